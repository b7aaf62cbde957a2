"""gateway.privacy: each policy keeps what it says, and the rest nowhere."""

import hmac
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.privacy import DIGEST_HEX_CHARS, USER_AGENT_CHARS_MAX, check, columns
from gateway.registry import Privacy, Registry, RegistryError
from gateway.settings import GatewaySettings

bounded = settings(max_examples=300, derandomize=True, deadline=None, database=None)

KEY = b"0123456789abcdef"
ADDRESS = "203.0.113.77"
USER_AGENT = "Mozilla/5.0 (X11; Linux x86_64; rv:133.0) Gecko/20100101 Firefox/133.0"
POLICIES = ["keep", "truncate", "hmac", "drop"]


def of_address(policy: str, address: str | None, key: bytes | None = KEY) -> str | None:
    kept, no_session = columns(
        Privacy.model_validate({"client_address": policy}), address, b"a browser", opted_out=False, key=key
    )
    assert not no_session
    assert kept.keys() <= {"client_address"}
    return kept.get("client_address")


def of_user_agent(policy: str, user_agent: bytes | None, key: bytes | None = KEY) -> str | None:
    kept, no_session = columns(
        Privacy.model_validate({"user_agent": policy}), ADDRESS, user_agent, opted_out=True, key=key
    )
    assert not no_session
    assert kept.keys() <= {"user_agent"}
    return kept.get("user_agent")


def test_nothing_is_kept_by_default() -> None:
    assert columns(Privacy(), ADDRESS, USER_AGENT.encode(), opted_out=False, key=KEY) == ({}, False)
    assert columns(Privacy(), ADDRESS, USER_AGENT.encode(), opted_out=True, key=KEY) == ({}, False)


@pytest.mark.parametrize("policy", POLICIES)
def test_opting_out_is_honoured_where_the_owner_says_so(policy: str) -> None:
    fields = {"client_address": policy, "user_agent": policy}
    honours = Privacy.model_validate({**fields, "honour_do_not_track": True})
    assert columns(honours, ADDRESS, USER_AGENT.encode(), opted_out=True, key=KEY) == ({}, True)
    does_not = Privacy.model_validate(fields)
    for policy_, opted_out in ((honours, False), (does_not, True)):
        kept, no_session = columns(policy_, ADDRESS, USER_AGENT.encode(), opted_out=opted_out, key=KEY)
        assert not no_session
        assert kept.keys() == (set() if policy == "drop" else {"client_address", "user_agent"})


@pytest.mark.parametrize("policy", POLICIES)
def test_nothing_is_kept_of_nothing(policy: str) -> None:
    assert of_address(policy, None) is None
    assert of_address(policy, "") is None
    assert of_user_agent(policy, None) is None
    assert of_user_agent(policy, b"") is None
    assert of_user_agent(policy, b" \t\x00\x1f\x7f") is None


@pytest.mark.parametrize(
    ("address", "kept", "truncated"),
    [
        (ADDRESS, ADDRESS, "203.0.113.0"),
        ("0.0.0.0", "0.0.0.0", "0.0.0.0"),
        ("255.255.255.255", "255.255.255.255", "255.255.255.0"),
        ("2001:DB8:1:2:3:4:5:6", "2001:db8:1:2:3:4:5:6", "2001:db8:1::"),
        ("2001:0db8:0001:0000:0000:0000:0000:0001", "2001:db8:1::1", "2001:db8:1::"),
        ("::1", "::1", "::"),
        ("fe80::1%eth0", "fe80::1", "fe80::"),
        (f"::ffff:{ADDRESS}", ADDRESS, "203.0.113.0"),
        ("::ffff:cb00:714d", ADDRESS, "203.0.113.0"),
        ("2002:cb00:714d:1::1", "2002:cb00:714d:1::1", "2002:cb00:7100::"),  # 6to4: 203.0.113.77 within
        ("64:ff9b::cb00:714d", "64:ff9b::cb00:714d", "64:ff9b::"),  # NAT64: the same
    ],
)
def test_address(address: str, kept: str, truncated: str) -> None:
    assert of_address("keep", address) == kept
    assert of_address("truncate", address) == truncated
    assert of_address("truncate", truncated) == truncated
    assert of_address("hmac", address) == of_address("hmac", kept)
    assert of_address("drop", address) is None


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(
    "address",
    ["testclient", "1.2.3", "010.0.0.1", "1.2.3.256", "1.2.3.4:80", "[::1]", ":", "1.2.3.4\0", "é", "\udcff", "1" * 99],
    ids=repr,
)
def test_what_is_no_address_is_not_kept(policy: str, address: str) -> None:
    assert of_address(policy, address) is None


def test_hmac() -> None:
    digest = of_address("hmac", ADDRESS)
    assert digest == "d3f08554a1d7f3b55a7cc480002914ca"  # it must stay what it was in the first release
    assert len(digest) == DIGEST_HEX_CHARS
    expected = hmac.new(KEY, b"user_agent\0" + USER_AGENT.encode(), "sha256").hexdigest()
    assert of_user_agent("hmac", USER_AGENT.encode()) == expected[:DIGEST_HEX_CHARS]
    assert of_address("hmac", "203.0.113.78") != digest
    assert of_address("hmac", ADDRESS, b"another key of 16") != digest
    # An address in a header is not the address.
    assert of_user_agent("hmac", bytes([203, 0, 113, 77])) != digest


def test_without_a_key_nothing_is_kept_under_hmac() -> None:
    assert of_address("hmac", ADDRESS, None) is None
    assert of_user_agent("hmac", USER_AGENT.encode(), None) is None


@pytest.mark.parametrize(
    ("user_agent", "kept"),
    [
        (b"  a browser ", "a browser"),
        ("ünïcode 😀".encode(), "ünïcode 😀"),
        (b"\xe4 latin-1", "ä latin-1"),
        (b"a\x00b\r\nc\td\x7fe", "a b c d e"),
        (b"a\xc2\x85b", "a b"),  # a control character in UTF-8
        (b"\x80\x9fa", "a"),  # and in Latin-1
        (b"x" * 5_000, "x" * USER_AGENT_CHARS_MAX),
        ("é".encode() * 5_000, "é" * USER_AGENT_CHARS_MAX),
        (b"x" * 511 + b"   y", "x" * 511),
    ],
)
def test_user_agent_is_kept_as_text(user_agent: bytes, kept: str) -> None:
    assert of_user_agent("keep", user_agent) == kept


WEBKIT = "AppleWebKit/537.36 (KHTML, like Gecko)"
WINDOWS, MAC = "Windows NT 10.0; Win64; x64", "Macintosh; Intel Mac OS X 10_15_7"


@pytest.mark.parametrize(
    ("user_agent", "truncated"),
    [
        # What Chrome has reduced stays.
        (*[f"Mozilla/5.0 ({WINDOWS}) {WEBKIT} Chrome/131.0.0.0 Safari/537.36"] * 2,),
        (*[f"Mozilla/5.0 ({MAC}) {WEBKIT} Chrome/131.0.0.0 Safari/537.36"] * 2,),
        (*[f"Mozilla/5.0 (Linux; Android 10; K) {WEBKIT} Chrome/131.0.0.0 Mobile Safari/537.36"] * 2,),
        (*[f"Mozilla/5.0 (X11; CrOS x86_64 14541.0.0) {WEBKIT} Chrome/131.0.0.0 Safari/537.36"] * 2,),
        (*[f"Mozilla/5.0 (X11; Linux x86_64) {WEBKIT} Chrome/131.0.0.0 Safari/537.36 Edg/131.0.0.0"] * 2,),
        (
            f"Mozilla/5.0 (Windows NT 6.1; WOW64) {WEBKIT} Chrome/93.0.4577.63 Safari/537.36 OPR/79.0.4143.22",
            f"Mozilla/5.0 ({WINDOWS}) {WEBKIT} Chrome/93.0.0.0 Safari/537.36 OPR/79.0.0.0",
        ),
        (
            f"Mozilla/5.0 (Linux; Android 11; Pixel 2 Build/RP1A.201005.004.A1; wv) {WEBKIT} Version/4.0 "
            "Chrome/91.0.4472.120 Mobile Safari/537.36 Instagram 194.0.0.36.172 Android (30/11; 420dpi; 1080x1878; "
            "Google/google; Pixel 2; walleye; walleye; en_US; 301484483)",
            f"Mozilla/5.0 (Linux; Android 10; K) {WEBKIT} Version/4.0 Chrome/91.0.0.0 Mobile Safari/537.36",
        ),
        (
            "Mozilla/5.0 (iPhone; CPU iPhone OS 17_4_1 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) "
            "Version/17.4.1 Mobile/15E148 Safari/604.1 [FBAN/FBIOS;FBDV/iPhone11,8;FBCR/VIVO]",
            "Mozilla/5.0 (iPhone; CPU iPhone OS 17_0 like Mac OS X) AppleWebKit/605.1 (KHTML, like Gecko) "
            "Version/17.0 Mobile Safari/604.1",
        ),
        (
            "Mozilla/5.0 (Windows NT 10.0; Win64; x64; rv:133.0) Gecko/20100101 Firefox/133.0",
            f"Mozilla/5.0 ({WINDOWS}) Gecko/20100101 Firefox/133.0",
        ),
        ("Mozilla/5.0 (PlayStation 4 5.55) SecretId/4711", "Mozilla/5.0 (other)"),
        ("Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)", "Mozilla/5.0 (compatible)"),
        ("Mozilla/5.0 (never closed", "Mozilla/5.0 (other)"),
        # And of what is no browser a name and a major version.
        ("python-requests/2.32.3", "python-requests/2"),
        ("MyShop/4.5.1 (iPhone15,2; iOS 17.1; id 6f3a) CFNetwork/1", "MyShop/4"),
        ("com.example.shop/v12.3", "com.example.shop/12"),
        ("curl", "curl"),
        ("SomeTool build 7", "SomeTool"),
        ("Tool/20251122", "Tool"),
        ("550e8400-e29b-41d4-a716-446655440000", "other"),
        ("d41d8cd98f00b204e9800998ecf8427e/1", "other"),
        ("A" * 33, "other"),
        ("[FBAN/FB4A;FBAV/26.0]", "other"),
        ("ünïcode", "other"),
    ],
)
def test_user_agent_is_truncated(user_agent: str, truncated: str) -> None:
    assert of_user_agent("truncate", user_agent.encode()) == truncated
    assert of_user_agent("truncate", truncated.encode()) == truncated


@bounded
@given(
    address=st.none() | st.text(max_size=40) | st.ip_addresses().map(str),
    user_agent=st.none()
    | st.binary(max_size=700)
    | st.lists(st.sampled_from([*"()[]/;. ", "Mozilla/5.0 (", "Chrome/", "OS 1_2", "Mobile", "\0", "é", "99999"]))
    .map("".join)
    .map(str.encode),
    key=st.none() | st.binary(min_size=16, max_size=80),
)
@pytest.mark.parametrize("policy", POLICIES)
def test_whatever_is_sent(policy: str, address: str | None, user_agent: bytes | None, key: bytes | None) -> None:
    both = Privacy.model_validate({"client_address": policy, "user_agent": policy})
    kept, no_session = columns(both, address, user_agent, opted_out=False, key=key)
    assert not no_session
    assert json.loads(json.dumps(dict(kept)).encode()) == kept
    assert len(kept.get("client_address", "")) <= 45
    text = kept.get("user_agent", "")
    assert len(text) <= USER_AGENT_CHARS_MAX
    assert text.isprintable() or policy == "keep"
    assert not any(ord(letter) < 32 or 127 <= ord(letter) < 160 for letter in text)
    assert columns(both, address, user_agent, opted_out=False, key=key) == (kept, False)


RETRIEVER = "[retrievers.r]\npublic_key_sha256 = []\ntoken_sha256 = []\n"


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ('[apps.a]\n[apps.b.privacy]\nclient_address = "hmac"', "apps.b.privacy.client_address"),
        ('[apps.a.privacy]\nclient_address = "keep"\nuser_agent = "hmac"', "apps.a.privacy.user_agent"),
        (f'{RETRIEVER}[retrievers.r.privacy]\nuser_agent = "hmac"', "retrievers.r.privacy.user_agent"),
    ],
)
def test_hmac_without_a_key_is_refused(text: str, where: str) -> None:
    registry = Registry.parse(text)
    check(registry, key_present=True)
    with pytest.raises(RegistryError) as caught:
        check(registry, key_present=False)
    assert str(caught.value) == f"{where}: hmac needs GATEWAY_PRIVACY_HMAC_KEY"


def test_other_policies_need_no_key() -> None:
    check(Registry.parse(""), key_present=False)
    check(Registry.parse(f'[apps.a.privacy]\nclient_address = "truncate"\n{RETRIEVER}'), key_present=False)


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    def loaded(key: str) -> Any:
        monkeypatch.setenv("GATEWAY_PRIVACY_HMAC_KEY", key)
        return GatewaySettings.load().privacy_hmac_key

    return loaded


def test_key_in_the_settings(load: Callable[[str], Any]) -> None:
    assert load("") is None
    assert load("é" * 8).get_secret_value() == "é" * 8
    assert load("\udcff" * 16).get_secret_value() == "\udcff" * 16  # bytes that are not UTF-8
    assert "0123" not in repr(load("0123456789abcdef"))


@pytest.mark.parametrize("key", ["0123456789abcde", "é" * 7, "\udcff" * 15])
def test_short_key_is_refused_and_not_shown(
    key: str, load: Callable[[str], Any], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        load(key)
    assert caught.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("GATEWAY_PRIVACY_HMAC_KEY: must be at least 16 bytes")
    assert key not in line
