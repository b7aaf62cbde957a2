"""What the text of a request asks for: an INSERT with its data behind it, or a query and how to answer it.

Read with a lexer alone, for the engine does the parsing. What is found are the seams that HTTP needs: where
the data of an INSERT begins, which format an answer has, whether it may be sent as it comes. Text stays bytes,
as ClickHouse takes any bytes in it.

Limits: SETTINGS behind an INSERT's FORMAT are taken for data (write them before it), and what comes behind an
INSERT … SELECT … FROM input() is taken for a part of the query, so a semicolon within it is refused.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from deploy.local.clickhouse_errors import SYNTAX_ERROR, refusal

DEFAULT_FORMAT = "TabSeparated"

# What is begun and not ended goes on to the end of the text, so that each byte is looked at once.
TOKEN = re.compile(
    rb"""(?P<blank>\s+|--[^\n]*|\#[!\ ][^\n]*|/\*.*?(?:\*/|\Z))
       | (?P<quoted>'(?:[^'\\]|\\.?|'')*(?:'|\Z)
                  | "(?:[^"\\]|\\.?|"")*(?:"|\Z)
                  | `(?:[^`\\]|\\.?|``)*(?:`|\Z)
                  | \$(?P<tag>\w*)\$.*?(?:\$(?P=tag)\$|\Z))
       | (?P<word>\w[\w$]*)
       | (?P<sign>.)""",
    re.DOTALL | re.VERBOSE,
)
# The data begins behind one line break, if there is one.
BEFORE_DATA = re.compile(rb";?[ \t\f]*\r?\n?")

SELECTS = (b"SELECT", b"WITH", b"FROM")
ANSWERED = (*SELECTS, b"SHOW", b"DESCRIBE", b"DESC", b"EXISTS", b"EXPLAIN", b"CHECK", b"KILL")

# Formats without a head or a foot: the engine formats a result block by block, each as if it were alone.
STREAMED_FORMATS = {
    *("native", "rowbinary", "tabseparated", "tsv", "tabseparatedraw", "tsvraw", "csv"),
    *("jsoneachrow", "jsonlines", "ndjson", "jsoncompacteachrow", "jsonstringseachrow"),
}
# What adds a head or a foot to them, and what the engine does not stream at all.
UNSTREAMED_WORDS = (b"TOTALS", b"EXTREMES", b"OUTPUT_FORMAT_JSON_ARRAY_OF_ROWS", b"OUTFILE")


@dataclass(frozen=True)
class Insert:
    """`target` is the text up to its SETTINGS, `settings` these; the data is in the text from `data_at` on."""

    target: bytes
    settings: bytes
    format: str
    data_at: int


@dataclass(frozen=True)
class Query:
    """Any other statement. `format` is None for those that answer nothing; only a SELECT may be streamed."""

    text: bytes
    format: str | None
    selects: bool
    is_streamed: bool


@dataclass(frozen=True)
class Token:
    word: bytes  # upper case; a sign for itself, nothing for what is quoted
    start: int
    end: int
    depth: int


def insert_in(text: bytes) -> Insert | None:
    """The INSERT that the text begins with, if data comes behind it. Data may follow, and be cut off anywhere."""
    tokens = _tokens(text)
    before = next(tokens, None)
    if before is None or before.word != b"INSERT":
        return None
    settings_at = None
    for token in tokens:
        # A table may have the name of a keyword.
        is_name = token.depth > 0 or before.word in (b"INSERT", b"INTO", b"TABLE", b"FUNCTION", b".")
        before = token
        if is_name:
            continue
        if token.word in SELECTS:
            return None
        if token.word == b"SETTINGS":
            settings_at = token.start
        if token.word in (b"FORMAT", b"VALUES"):
            target = text[: token.start if settings_at is None else settings_at]
            settings = b"" if settings_at is None else text[settings_at : token.start]
            if token.word == b"VALUES":
                return Insert(target, settings, "Values", token.end)
            name = next(tokens, None)
            if name is None:
                return None
            data = BEFORE_DATA.match(text, name.end)
            assert data is not None, "matches the empty text"
            return Insert(target, settings, text[name.start : name.end].decode(errors="replace"), data.end())
    return None


def query_in(text: bytes, default_format: str = DEFAULT_FORMAT, settings: Iterable[str] = ()) -> Query:
    """The one statement that the text holds, to be run with these settings."""
    keyword = b""
    is_ended = inserts = False
    hindrances = {name.upper().encode() for name in settings}.intersection(UNSTREAMED_WORDS)
    answer_format = FormatClause()
    for token in _tokens(text):
        if token.word == b";":
            is_ended = True
            continue
        if is_ended:
            raise refusal(SYNTAX_ERROR, "Syntax error (Multi-statements are not allowed)")
        if not keyword and token.word != b"(":
            keyword = token.word or b"?"
        if token.word == b"INSERT" and keyword == b"WITH" and token.depth == 0:
            inserts = True
        if token.word in UNSTREAMED_WORDS:
            hindrances.add(token.word)
        answer_format.add(token, text)
    if not keyword:
        raise refusal(SYNTAX_ERROR, "Empty query")
    is_answered = keyword in ANSWERED and not inserts
    selects = is_answered and keyword in SELECTS
    named = answer_format.name or default_format
    return Query(
        text=text,
        format=named if is_answered else None,
        selects=selects,
        is_streamed=selects and not hindrances and named.lower() in STREAMED_FORMATS,
    )


class FormatClause:
    """The name behind the last FORMAT. Only SETTINGS may follow it, for a column may be called `format` as well."""

    def __init__(self) -> None:
        self.name = ""
        self._is_next = False
        self._is_followed = False

    def add(self, token: Token, text: bytes) -> None:
        if token.word == b"FORMAT" and token.depth == 0:
            self._is_next = True
        elif self._is_next:
            is_name = token.word not in (b"ASC", b"DESC")
            self.name = text[token.start : token.end].decode(errors="replace") if is_name else ""
            self._is_next = self._is_followed = False
        elif token.word == b"SETTINGS":
            self._is_followed = True
        elif not self._is_followed:
            self.name = ""


def _tokens(text: bytes) -> Iterator[Token]:
    depth = 0
    for found in TOKEN.finditer(text):
        kind = found.lastgroup
        if kind == "blank":
            continue
        word = found[0].upper() if kind in ("word", "sign") else b""
        if word in (b")", b"]", b"}"):
            depth -= 1
        yield Token(word, found.start(), found.end(), depth)
        if word in (b"(", b"[", b"{"):
            depth += 1
