"""gateway.bots: who is called a bot and why, who never is, and what it may cost."""

import re
import time
from typing import Any

import pytest
from crawleruseragents import CRAWLER_USER_AGENTS_DATA
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway import bots
from gateway.bots import USER_AGENT_BYTES_MAX, columns, is_bot, reason

bounded = settings(max_examples=200, derandomize=True, deadline=None, database=None)

LISTED: list[dict[str, Any]] = [entry for entry in CRAWLER_USER_AGENTS_DATA if entry["pattern"] not in bots.PEOPLE]
EXAMPLES = [(entry, example) for entry in LISTED for example in entry["instances"]]

COLD_S_MAX = 0.05  # 1 ms here; of computing, so that a busy machine is no fault. What is catastrophic takes minutes.

WEBKIT = "AppleWebKit/537.36 (KHTML, like Gecko)"


@pytest.mark.parametrize(
    ("user_agent", "expected"),
    [
        ("Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)", "crawler:googlebot"),
        (
            f"Mozilla/5.0 (Linux; Android 6.0.1; Nexus 5X Build/MMB29P) {WEBKIT} Chrome/131.0.6778.85 Mobile "
            "Safari/537.36 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)",
            "crawler:googlebot",
        ),
        ("Mozilla/5.0 (compatible; SemrushBot/7~bl; +http://www.semrush.com/bot.html)", "crawler:semrushbot"),
        ("Mozilla/5.0 (compatible; GPTBot/1.2; +https://openai.com/gptbot)", "crawler:gptbot"),
        (f"Mozilla/5.0 (X11; Linux x86_64) {WEBKIT} Chrome/99.0.4844.84 Safari/537.36 PTST/220401", "crawler:ptst"),
        ("Mozilla/5.0 (compatible; NewestBot/0.1; +https://example.com)", "crawler:unlisted"),
        ("my_crawler", "crawler:unlisted"),
        (
            f"Mozilla/5.0 (X11; Linux x86_64) {WEBKIT} HeadlessChrome/131.0.0.0 Safari/537.36",
            "automation:headlesschrome",
        ),
        (
            "Mozilla/5.0 (Unknown; Linux x86_64) AppleWebKit/538.1 (KHTML, like Gecko) PhantomJS/2.1.1 Safari/538.1",
            "automation:phantomjs",
        ),
        ("headless-something/1.0", "crawler:unlisted"),
        ("curl/8.11.0", "http_client:curl"),
        ("python-requests/2.32.3", "http_client:python-requests"),
        ("python-httpx/0.28.1", "http_client:httpx"),
        ("Go-http-client/2.0", "http_client:go-http-client"),
        ("okhttp/4.12.0", "http_client:okhttp"),
        ("axios/1.7.9", "http_client:axios"),
        ("Wget/1.21.4", "http_client:wget"),
        # Whoever crawls with a library is a crawler first.
        ("python-requests/2.32.3 (compatible; bingbot/2.0)", "crawler:bingbot"),
        ("python-requests/2.32.3 examplebot", "crawler:unlisted"),
        ("", "no_user_agent"),
        (" \t", "no_user_agent"),
    ],
)
def test_reason(user_agent: str, expected: str) -> None:
    assert reason(user_agent.encode()) == expected
    flag: dict[str, Any] = {"is_bot": True} if expected.startswith(("crawler:", "automation:")) else {}
    assert columns(user_agent.encode()) == {**flag, "bot_reason": expected}


def test_no_user_agent() -> None:
    assert reason(None) == "no_user_agent"
    assert columns(None) == {"bot_reason": "no_user_agent"}
    assert not is_bot("no_user_agent")
    assert not is_bot(None)


@pytest.mark.parametrize(
    "user_agent",
    [
        f"Mozilla/5.0 (Windows NT 10.0; Win64; x64) {WEBKIT} Chrome/131.0.0.0 Safari/537.36",
        f"Mozilla/5.0 (Windows NT 10.0; Win64; x64) {WEBKIT} Chrome/131.0.0.0 Safari/537.36 Edg/131.0.0.0",
        f"Mozilla/5.0 (Windows NT 10.0; Win64; x64) {WEBKIT} Chrome/131.0.0.0 Safari/537.36 OPR/115.0.0.0",
        f"Mozilla/5.0 (X11; CrOS x86_64 14541.0.0) {WEBKIT} Chrome/131.0.0.0 Safari/537.36",
        f"Mozilla/5.0 (Linux; Android 10; K) {WEBKIT} Chrome/131.0.0.0 Mobile Safari/537.36",
        f"Mozilla/5.0 (Linux; Android 14; SM-S918B) {WEBKIT} SamsungBrowser/27.0 Chrome/125.0.0.0 Mobile Safari/537.36",
        f"Mozilla/5.0 (Linux; Android 9; KFMAWI) {WEBKIT} Silk/138.4.1 like Chrome/138.0.7204.168 Safari/537.36",
        f"Mozilla/5.0 (Linux; Android 13; CUBOT_X18_Plus; wv) {WEBKIT} Version/4.0 Chrome/131.0 Mobile Safari/537.36",
        f"Mozilla/5.0 (Linux; Android 6.0; CUBOT MAX Build/MRA58K) {WEBKIT} Chrome/51.0.2704.81 Mobile Safari/537.36",
        f"Mozilla/5.0 (Windows NT 10.0; Win64; x64) {WEBKIT} coc_coc_browser/120.0.0 Chrome/114.0.0.0 Safari/537.36",
        f"Mozilla/5.0 (Windows NT 10.0; Win64; x64) {WEBKIT} Chrome/130.0.0.0 YaBrowser/24.12 Yowser/2.5 Safari/537.36",
        "Mozilla/5.0 (Windows NT 10.0; Win64; x64; rv:133.0) Gecko/20100101 Firefox/133.0",
        "Mozilla/5.0 (Android 14; Mobile; rv:133.0) Gecko/133.0 Firefox/133.0",
        "Mozilla/5.0 (iPhone; CPU iPhone OS 18_1 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.1 "
        "Mobile/15E148 Safari/604.1",
        # Browsers inside of apps.
        "Mozilla/5.0 (iPhone; CPU iPhone OS 13_3 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) "
        "Mobile/15E148 Instagram 123.1.0.26.115 (iPhone11,8; iOS 13_3; en_US; en-US; scale=2.00; 828x1792; 190542906)",
        "Mozilla/5.0 (iPhone; CPU iPhone OS 13_3_1 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) "
        "Mobile/15E148 [FBAN/FBIOS;FBDV/iPhone11,8;FBMD/iPhone;FBSN/iOS;FBSV/13.3.1;FBSS/2;FBID/phone;FBLC/en_US]",
        f"Mozilla/5.0 (Linux; Android 5.1; LUA-L23; wv) {WEBKIT} Version/4.0 Chrome/69.0 Safari/537.36 [Pinterest/iOS]",
        f"Mozilla/5.0 (Linux; Android 9; ANE-LX1; wv) {WEBKIT} Version/4.0 Chrome/79.0 Mobile Safari/537.36 "
        "MicroMessenger/6.5.16.1120 NetType/WIFI Language/zh_CN",
        f"Mozilla/5.0 (Linux; Android 7.1.2; G011A; wv) {WEBKIT} Version/4.0 Chrome/66.0.3359.158 Safari/537.36 "
        "Viber/11.9.5.8",
        f"Mozilla/5.0 (iPad; CPU OS 16_6_1 like Mac OS X) {WEBKIT} Mobile/15E148 Phantom/ios/24.3.0.16061",
        # What the list also finds, and people use.
        f"Mozilla/5.0 (Windows NT 10.0; Win64; x64) {WEBKIT} Slack/4.4.2 Chrome/78.0.3904.130 Electron/7.2.1 "
        "Safari/537.36 WindowsStore/10.0.18362 Sonic Slack_SSB/4.4.2",
        f"Mozilla/5.0 (Windows NT 10.0; Win64; x64) {WEBKIT} Code/1.95.3 Chrome/128.0 Electron/32.2.1 Safari/537.36",
        f"Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) {WEBKIT} Notion/3.15 Chrome/126.0 Electron/31 Safari/537.36",
        "Mozilla/5.0 (Macintosh; U; Intel Mac OS X 10_5_6) AppleWebKit/528.16 (KHTML, like Gecko) Fluid/0.9.6",
        "MozacFetch/49.0.20200702190156",
        "WhatsApp/2.6.4 iPhone_OS/4.3.3 Device/iPhone_4",
        # Apps.
        "MyShop/4.1 CFNetwork/1335.0.3 Darwin/21.6.0",
        "MyShop/1 Dalvik/2.1.0 (Linux; U; Android 6.0.1; vivo 1610 Build/MMB29M)",
        "Dart/3.5 (dart:io)",
        "\xff\xfe browser",
    ],
)
def test_people(user_agent: str) -> None:
    assert reason(user_agent.encode()) is None
    assert columns(user_agent.encode()) == {}


def test_every_example_of_the_list_is_found() -> None:
    """By our one search as by the list's own patterns, one after the other."""
    assert len(EXAMPLES) > 1_500
    for entry, example in EXAMPLES:
        assert re.search(entry["pattern"], example)
        found = reason(example.encode()[:USER_AGENT_BYTES_MAX])
        assert found is not None
        if "http-library" not in entry["tags"]:
            assert is_bot(found), example


def test_patterns_that_are_excepted_are_in_the_list() -> None:
    """Or else the list has changed, and so may have what they were excepted for."""
    assert {entry["pattern"] for entry in CRAWLER_USER_AGENTS_DATA} >= bots.PEOPLE


def test_reasons_are_few_short_and_plain() -> None:
    reasons = {bots._reason_of(entry) for entry in LISTED}
    assert len(reasons) < 5_000
    for why in reasons:
        assert re.fullmatch(r"(crawler|automation|http_client):[a-z0-9][a-z0-9-]{0,39}", why)


words = sorted({word for entry in LISTED for word in re.findall(r"[\w-]{3,}", entry["pattern"])})
PATTERNS = [(re.compile(entry["pattern"]), entry["tags"]) for entry in LISTED]
user_agents = (
    st.lists(st.sampled_from(words) | st.text(max_size=8), max_size=60).map(" ".join) | st.text(max_size=600)
).map(str.encode) | st.binary(max_size=600)


@bounded
@given(user_agent=user_agents)
def test_one_search_finds_what_the_patterns_find(user_agent: bytes) -> None:
    text = user_agent[:USER_AGENT_BYTES_MAX].decode("latin-1")
    tags = [of_one for pattern, of_one in PATTERNS if pattern.search(text)]
    found = reason(user_agent)
    if any("http-library" not in of_one for of_one in tags):
        assert is_bot(found)
        assert found != "crawler:unlisted"
    elif tags:
        assert found is not None
    else:
        assert found in (None, "crawler:unlisted", "no_user_agent")


def nasty() -> list[str]:
    """All but the last letter of every word, over and over; the beginnings of what has a wildcard; one letter."""
    n = USER_AGENT_BYTES_MAX
    texts = [(letter * n)[:n] for letter in {word[0] for word in words} | set(" \t\0(/\\.+*|[]^$é")]
    texts += [(word[:-1] * n)[:n] for word in words]
    texts += [(entry["pattern"] * n)[:n] for entry in LISTED if re.search(r"[*+?{]", entry["pattern"])]
    texts += [("".join(word[:-1] for word in words[start:]) * n)[:n] for start in range(0, len(words), 50)]
    return texts


def test_no_user_agent_takes_long() -> None:
    for text in nasty():
        user_agent = text.encode("latin-1")
        seconds = []
        for _ in range(3):  # the machine may be busy once
            started = time.thread_time()
            reason(user_agent)
            seconds.append(time.thread_time() - started)
        assert min(seconds) < COLD_S_MAX, text


def test_only_the_beginning_counts_and_is_remembered() -> None:
    bots._columns.cache_clear()
    for n in range(10):
        assert columns(b"x" * USER_AGENT_BYTES_MAX + b"Googlebot/2.1 %d" % n * 10_000) == {}
    assert bots._columns.cache_info().currsize == 1
    assert bots._columns.cache_info().maxsize == 4096
