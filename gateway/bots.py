"""What a user agent says of who is behind it, by the list of the `crawler-user-agents` project.

- `crawler:NAME`, `automation:NAME`: a bot. `crawler:unlisted` calls itself one, and is not on the list;
- `http_client:NAME`, `no_user_agent`: a program. Whether a bot: it does not say. Servers forward what people did with
  curl's library as well as with any other, and every Android app is okhttp.
So `NOT is_bot` are all events that may be a person's, `bot_reason IS NULL` those of browsers and apps. Nothing is ever
dropped for it, and whoever wants to pass for a browser does.

Limits: 512 bytes of a user agent count; the last 4,096 of them are remembered. Names come from the list, never from
the user agent: there are some 1,500 reasons.
"""

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

from crawleruseragents import CRAWLER_USER_AGENTS_DATA

USER_AGENT_BYTES_MAX = 512
REASON_NAME_CHARS_MAX = 40

PEOPLE = frozenset(
    {
        r"Code\/1\.",  # Visual Studio Code
        r"Fetch\/",  # MozacFetch: Firefox on Android
        "Fluid",  # a browser for one site
        r"Notion\/",  # its desktop app
        "Podimo",
        "Sonic",  # Slack's desktop app calls itself so
        r"Trae\/",  # an editor
        "Viber",  # its in-app browser
        "WhatsApp",
    }
)
"""Patterns of the list that also match what people use. It is made for requests of pages, where a link preview counts;
previews send no events."""

Columns = Mapping[str, bool | str]

NONE: Columns = {}


def columns(user_agent: bytes | None) -> Columns:
    """`is_bot` and `bot_reason` of a row, each only where it says something. Shared: not to be changed."""
    return _columns(user_agent[:USER_AGENT_BYTES_MAX] if user_agent else None)


def reason(user_agent: bytes | None) -> str | None:
    """`crawler:googlebot`, `automation:headlesschrome`, `http_client:curl`, `no_user_agent`; None: nothing to say."""
    return _reason(user_agent[:USER_AGENT_BYTES_MAX].decode("latin-1") if user_agent else "")


def is_bot(reason: str | None) -> bool:
    return reason is not None and reason.startswith(("crawler:", "automation:"))


@lru_cache(maxsize=4096)
def _columns(user_agent: bytes | None) -> Columns:
    why = reason(user_agent)
    if why is None:
        return NONE
    return {"is_bot": True, "bot_reason": why} if is_bot(why) else {"bot_reason": why}


def _reason(user_agent: str) -> str | None:
    if not user_agent.strip():
        return "no_user_agent"
    return _BOTS.find(user_agent) or _unlisted(user_agent) or _HTTP_CLIENTS.find(user_agent)


class _Patterns:
    """Regular expressions as one. Nearly all are plain text, and together a tree of prefixes: a tenth of the time of
    looking for each, and linear whatever the text. The few others are bounded by the length of the text."""

    def __init__(self, entries: Iterable[dict[str, Any]]) -> None:
        self._reasons: dict[str, str] = {}
        self._others: list[tuple[re.Pattern[str], str]] = []
        for entry in entries:
            pattern, why = entry["pattern"], _reason_of(entry)
            if _PLAIN.fullmatch(pattern):
                self._reasons[_ESCAPE.sub(r"\1", pattern)] = why
            else:
                self._others.append((re.compile(pattern), why))
        others = [pattern.pattern for pattern, _ in self._others]
        self._plain = re.compile(_alternatives(self._reasons))
        # `search` would try those that begin with ^ at every place.
        self._start = re.compile("|".join(p for p in others if p[0] == "^" and "|" not in p))
        self._other = re.compile("|".join(p for p in others if p[0] != "^" or "|" in p))

    def find(self, text: str) -> str | None:
        plain = self._plain.search(text)
        if plain is not None:
            return self._reasons[plain[0]]
        if self._start.match(text) is None and self._other.search(text) is None:
            return None
        return next((why for pattern, why in self._others if pattern.search(text)), None)


_PLAIN = re.compile(r"(?:[^\\^$.|?*+()\[\]{}]|\\[^\w])+")
_ESCAPE = re.compile(r"\\(.)")
_NOT_A_NAME = re.compile(r"[^a-z0-9]+")


def _alternatives(words: Iterable[str]) -> str:
    """A regular expression for any of the words, the shortest where one begins with another."""
    tree: dict[str, Any] = {}
    for word in words:
        node = tree
        for letter in word:
            node = node.setdefault(letter, {})
        node[""] = {}

    def expression(node: dict[str, Any]) -> str:
        if "" in node:
            return ""
        branches = [re.escape(letter) + expression(rest) for letter, rest in node.items()]
        return branches[0] if len(branches) == 1 else f"(?:{'|'.join(branches)})"

    return expression(tree) or r"(?!)"


def _kind(entry: dict[str, Any]) -> str:
    tags = entry.get("tags", ())
    if "http-library" in tags:
        return "http_client"
    return "automation" if "browser-automation" in tags else "crawler"


def _reason_of(entry: dict[str, Any]) -> str:
    """Named after what the pattern finds in the list's own example; after the pattern, if there is none."""
    name = entry["pattern"]
    for example in entry.get("instances", ()):
        found = re.search(name, example)
        if found:
            name = found[0]
            break
    return f"{_kind(entry)}:{_NOT_A_NAME.sub('-', name.lower()[:REASON_NAME_CHARS_MAX]).strip('-')}"


# A bot that is not on the list, if it says so. Cubot makes phones.
_UNLISTED = re.compile(r"(?<!cu)bots?(?:\b|_)|crawl|spider|headless")


def _unlisted(user_agent: str) -> str | None:
    return "crawler:unlisted" if _UNLISTED.search(user_agent.lower()) else None


_LISTED = [entry for entry in CRAWLER_USER_AGENTS_DATA if entry["pattern"] not in PEOPLE]
_BOTS = _Patterns(entry for entry in _LISTED if _kind(entry) != "http_client")
_HTTP_CLIENTS = _Patterns(entry for entry in _LISTED if _kind(entry) == "http_client")
