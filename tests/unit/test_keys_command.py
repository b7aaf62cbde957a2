"""`python -m gateway keys new`: keys for people, hashes for the registry file."""

import hashlib
import re
import sys

import pytest

from gateway.__main__ import main
from gateway.registry import Registry

PRINTED = re.compile(
    r"public key  (?P<key>pk_\S{43})\n  sha256    (?P<key_hash>[0-9a-f]{64})\n"
    r"token       (?P<token>tok_\S{43})\n  sha256    (?P<token_hash>[0-9a-f]{64})\n"
)


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    monkeypatch.setattr(sys, "argv", ["sluice-gateway", "keys", "new"])
    main()
    out, err = capsys.readouterr()
    assert err == ""
    match = PRINTED.fullmatch(out)
    assert match is not None, out
    return match.groupdict()


def test_hashes_belong_to_the_keys(printed: dict[str, str]) -> None:
    assert printed["key_hash"] == hashlib.sha256(printed["key"].encode()).hexdigest()
    assert printed["token_hash"] == hashlib.sha256(printed["token"].encode()).hexdigest()


def test_a_registry_takes_the_hashes(printed: dict[str, str]) -> None:
    registry = Registry.parse(
        f'[retrievers.shop]\npublic_key_sha256 = ["{printed["key_hash"]}"]\ntoken_sha256 = ["{printed["token_hash"]}"]'
    )
    assert registry.knows_token(hashlib.sha256(printed["token"].encode()).hexdigest())


def test_keys_alone_is_no_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["sluice-gateway", "keys"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    assert "usage" in capsys.readouterr().err
