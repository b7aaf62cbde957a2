"""gateway.client_address: whom a request came from, and which proxies may say so."""

from ipaddress import ip_network
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gateway.client_address import ENTRY_CHARS_MAX, HOPS_MAX, ClientAddress, quota_key
from gateway.settings import GatewaySettings

bounded = settings(max_examples=200, derandomize=True, deadline=None, database=None)

PROXIES = ClientAddress([ip_network(n) for n in ("10.0.0.0/8", "192.0.2.7", "fd00::/8", "2001:db8:ff::1")])
PROXY = "10.0.0.1"


def scope(peer: str | None, *forwarded: bytes) -> dict[str, Any]:
    headers = [(b"host", b"x"), *((b"x-forwarded-for", value) for value in forwarded), (b"accept", b"*/*")]
    return {"client": None if peer is None else (peer, 4711), "headers": headers}


def test_without_trusted_proxies_it_is_the_peer() -> None:
    addresses = ClientAddress([])
    assert addresses.of(scope("198.51.100.1", b"203.0.113.9")) == "198.51.100.1"
    assert addresses.of(scope("10.0.0.1", b"203.0.113.9")) == "10.0.0.1"
    assert addresses.of(scope("::1", b"203.0.113.9")) == "::1"


@pytest.mark.parametrize("peer", [None, "", "testclient", "/run/gateway.sock", "1.2.3"], ids=repr)
def test_a_peer_without_an_address_has_none_and_is_no_proxy(peer: str | None) -> None:
    assert ClientAddress([]).of(scope(peer)) is None
    assert PROXIES.of(scope(peer, b"203.0.113.9")) is None
    assert ClientAddress([ip_network("0.0.0.0/0"), ip_network("::/0")]).of(scope(peer, b"203.0.113.9")) is None


def test_a_scope_may_lack_the_peer() -> None:
    assert PROXIES.of({"headers": [(b"x-forwarded-for", b"203.0.113.9")]}) is None


def test_a_stranger_is_not_believed() -> None:
    assert PROXIES.of(scope("198.51.100.1", b"203.0.113.9")) == "198.51.100.1"
    assert PROXIES.of(scope("192.0.2.8", b"203.0.113.9")) == "192.0.2.8"
    assert PROXIES.of(scope("2001:db8:ff::2", b"203.0.113.9")) == "2001:db8:ff::2"


@pytest.mark.parametrize(
    "peer", ["10.0.0.0", "10.255.255.255", "192.0.2.7", "::ffff:10.1.2.3", "fd12::1", "2001:db8:ff::1"]
)
def test_a_trusted_proxy_is_believed(peer: str) -> None:
    assert PROXIES.of(scope(peer, b"203.0.113.9")) == "203.0.113.9"


@pytest.mark.parametrize(
    ("forwarded", "address"),
    [
        (b"203.0.113.9, 10.2.3.4", "203.0.113.9"),
        (b"203.0.113.9,10.2.3.4,fd00::1, 192.0.2.7", "203.0.113.9"),
        (b"1.1.1.1, 203.0.113.9", "203.0.113.9"),
        (b"10.9.9.9, 203.0.113.9", "203.0.113.9"),
        (b"1.1.1.1, 203.0.113.9, 10.2.3.4", "203.0.113.9"),
        (b"10.3.3.3, 10.2.3.4", "10.3.3.3"),
        (b"", PROXY),
    ],
)
def test_the_last_that_is_no_trusted_proxy(forwarded: bytes, address: str) -> None:
    assert PROXIES.of(scope(PROXY, forwarded)) == address


def test_several_headers_are_one_list() -> None:
    assert PROXIES.of(scope(PROXY, b"1.1.1.1", b"203.0.113.9", b"10.2.3.4, 10.2.3.5")) == "203.0.113.9"
    assert PROXIES.of(scope(PROXY, b"203.0.113.9", b"198.51.100.1")) == "198.51.100.1"


def test_no_header_no_caller_beyond_the_proxy() -> None:
    assert PROXIES.of(scope(PROXY)) == PROXY


@pytest.mark.parametrize(
    ("entry", "address"),
    [
        (b"203.0.113.9:555", "203.0.113.9"),
        (b"[2001:db8::1]:80", "2001:db8::1"),
        (b"[2001:db8::1]", "2001:db8::1"),
        (b"2001:DB8:0:0::0001", "2001:db8::1"),
        (b"::ffff:203.0.113.9", "203.0.113.9"),
        (b"::ffff:cb00:7109", "203.0.113.9"),
        (b"[::ffff:203.0.113.9]:555", "203.0.113.9"),
        (b"fe80::1%eth0", "fe80::1"),
        (b"[fe80::1%25eth0]:80", "fe80::1"),
        (b" \t203.0.113.9 ", "203.0.113.9"),
        (b"::1", "::1"),
    ],
)
def test_an_address_has_one_form(entry: bytes, address: str) -> None:
    assert PROXIES.of(scope(PROXY, entry)) == address
    assert PROXIES.of(scope(PROXY, b"1.1.1.1," + entry + b",10.2.3.4:80, [fd00::1%x]:443")) == address


def test_the_peer_has_the_same_form() -> None:
    assert ClientAddress([]).of(scope("::ffff:203.0.113.9")) == "203.0.113.9"
    assert ClientAddress([]).of(scope("fe80::1%eth0")) == "fe80::1"


MALFORMED = [
    *(b'unknown _hidden localhost - * "203.0.113.9" for=203.0.113.9 % %eth0 \xff\xfe'.split()),
    *(b"203.0.113 203.0.113.9.1 203.0.113.256 203.0.113.09 3405803785 0xcb007109 203.0.113.9/32".split()),
    *(b"203.0.113.9: 203.0.113.9:x 203.0.113.9:123456 : ::% 2001:db8::1::".split()),
    *(b"[2001:db8::1 2001:db8::1] []:80 [2001:db8::1]80 [2001:db8::1]:".split()),
    *(b"", b" ", b"203.0.113.9 10.0.0.1", b"203.0.113.9\x00", "\uff12\uff10\uff13.0.113.9".encode()),
    *(b"1" * ENTRY_CHARS_MAX, b"1" * 60_000, b"::1%" + b"x" * 60_000),
]


@pytest.mark.parametrize("entry", MALFORMED, ids=lambda e: repr(e[:20]))
def test_left_of_what_is_no_address_nobody_is_believed(entry: bytes) -> None:
    """The proxy that wrote it is the last we know of."""
    assert PROXIES.of(scope(PROXY, entry)) == PROXY
    assert PROXIES.of(scope(PROXY, b"203.0.113.9, " + entry)) == PROXY
    assert PROXIES.of(scope(PROXY, b"203.0.113.9, " + entry + b", 10.2.3.4")) == "10.2.3.4"
    assert PROXIES.of(scope(PROXY, entry + b", 203.0.113.9")) == "203.0.113.9"


def test_hops_are_bounded() -> None:
    trusted = [b"10.1.1.%d" % n for n in range(HOPS_MAX)]
    assert PROXIES.of(scope(PROXY, b",".join([b"203.0.113.9", *trusted[1:]]))) == "203.0.113.9"
    assert PROXIES.of(scope(PROXY, b",".join([b"203.0.113.9", *trusted]))) == "10.1.1.0"
    assert PROXIES.of(scope(PROXY, b"10.1.1.1," * 7000 + b"10.2.2.2")) == "10.1.1.1"
    assert PROXIES.of(scope(PROXY, b"," * 65_000)) == PROXY


addresses_ = st.ip_addresses().map(str)
junk = st.binary(max_size=20) | st.sampled_from(MALFORMED)


@bounded
@given(st.lists(addresses_.map(str.encode) | junk, max_size=5), addresses_)
def test_what_a_caller_claims_changes_nothing(claims: list[bytes], caller: str) -> None:
    """The first trusted proxy has appended the address that it saw."""
    expected = ClientAddress([]).of(scope(caller))
    assume(expected != PROXY)
    addresses = ClientAddress([ip_network(PROXY)])
    forwarded = [*claims, caller.encode()]
    assert addresses.of(scope(PROXY, b", ".join(forwarded))) == expected
    assert addresses.of(scope(PROXY, *forwarded)) == expected


@bounded
@given(st.lists(st.binary(max_size=200), max_size=4), st.text(max_size=50) | addresses_)
def test_anything_at_all_is_an_address_or_none(values: list[bytes], peer: str) -> None:
    everybody = ClientAddress([ip_network("0.0.0.0/0"), ip_network("::/0")])
    address = everybody.of(scope(peer, *values))
    assert address is None or ClientAddress([]).of(scope(address)) == address
    quota_key(address)


@bounded
@given(st.lists(st.ip_addresses(v=4).map(str) | st.ip_addresses(v=6).map(str), max_size=6), st.data())
def test_trust_is_membership(networks: list[str], data: st.DataObject) -> None:
    """Against the standard library's own answer, also for networks that overlap."""
    parsed = [ip_network((n, data.draw(st.integers(0, 128 if ":" in n else 32))), strict=False) for n in networks]
    parsed = [n for n in parsed if n.version == 4 or n.network_address.ipv4_mapped is None]
    edges = [str(a) for n in parsed for a in (n[0], n[-1])]
    peer = data.draw(st.sampled_from([*edges, *networks, "203.0.113.9", "2001:db8::1"]))
    address = ClientAddress([]).of(scope(peer))
    assert address is not None
    is_trusted = any(ip_network(address)[0] in network for network in parsed)
    assert (ClientAddress(parsed).of(scope(peer, b"198.51.100.77")) == "198.51.100.77") == (
        is_trusted or address == "198.51.100.77"
    )


def test_ipv4_is_its_own_quota_key() -> None:
    assert quota_key("203.0.113.9") == "203.0.113.9"
    assert quota_key("203.0.113.9") != quota_key("203.0.113.8")


def test_ipv6_shares_a_quota_in_its_64() -> None:
    assert quota_key("2001:db8:1:2::9") == quota_key("2001:db8:1:2:ffff:ffff:ffff:ffff")
    assert quota_key("2001:db8:1:2::9") != quota_key("2001:db8:1:3::9")
    assert quota_key("::1") == quota_key("::2")


def test_without_an_address_there_is_one_key() -> None:
    assert quota_key(None) not in {quota_key("0.0.0.0"), quota_key("::")}


@pytest.mark.parametrize(
    ("value", "networks"),
    [
        ("", ()),
        ("10.0.0.0/8", ("10.0.0.0/8",)),
        ("10.0.0.1", ("10.0.0.1/32",)),
        (" 10.0.0.1 ,::1,2001:db8::/32, 192.0.2.0/255.255.255.0", ("10.0.0.1", "::1", "2001:db8::/32", "192.0.2.0/24")),
        ("0.0.0.0/0,::/0", ("0.0.0.0/0", "::/0")),
        ("fe80::1%eth0", ("fe80::1%eth0",)),
    ],
)
def test_trusted_proxies_setting(value: str, networks: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_TRUSTED_PROXIES", value)
    proxies = GatewaySettings.load().trusted_proxies
    assert proxies == tuple(map(ip_network, networks))
    addresses = ClientAddress(proxies)
    assert all(addresses.of(scope(str(network[0]), b"203.0.113.9")) == "203.0.113.9" for network in proxies)


@pytest.mark.parametrize(
    "value",
    [
        *("proxy.internal", "10.0.0.1/8", "10.0.0.0/33", "192.0.2.0/24,", ",", "192.0.2.0/24;::1", "*", "[::1]"),
        *("10.0.0.1:80", "::ffff:10.0.0.0/104", '["10.0.0.0/8"]', "2001:db8::1/32", "192.0.2.0/24 ::1"),
    ],
)
def test_bad_trusted_proxies_are_refused(
    value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GATEWAY_TRUSTED_PROXIES", value)
    with pytest.raises(SystemExit) as caught:
        GatewaySettings.load()
    assert caught.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("GATEWAY_TRUSTED_PROXIES: must ")
    assert value not in line or len(value) < 4
