"""gateway.registry: what a registry file may say, how it is replaced, how keys are compared."""

import asyncio
import hashlib
import hmac
import os
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from gateway import registry as registry_module
from gateway.registry import Registry, RegistryError, RegistryFile, key_digest, matches_any, new_key

A, B, C = (hashlib.sha256(letter.encode()).hexdigest() for letter in "abc")
SECRET = "tok_" + "s3cr3t" * 6

TWO_RETRIEVERS = f"""
[apps.shop]
[apps."with spaces, ünïcode"]
[retrievers.one]
public_key_sha256 = ["{A}"]
token_sha256 = ["{B}", "{C}"]
[retrievers.two]
public_key_sha256 = []
token_sha256 = []
"""


def retriever(**fields: Any) -> str:
    lines = {"public_key_sha256": f'["{A}"]', "token_sha256": f'["{B}"]', **fields}
    return "[retrievers.shop]\n" + "".join(f"{name} = {value}\n" for name, value in lines.items() if value)


def test_registry() -> None:
    registry = Registry.parse(TWO_RETRIEVERS)
    assert set(registry.apps) == {"shop", "with spaces, ünïcode"}
    assert set(registry.retrievers) == {"one", "two"}
    assert registry.retrievers["one"].token_sha256 == (B, C)
    assert [registry.knows_public_key(digest) for digest in (A, B, C)] == [True, False, False]
    assert [registry.knows_token(digest) for digest in (A, B, C)] == [False, True, True]


def test_empty_file_is_an_empty_registry() -> None:
    registry = Registry.parse("")
    assert not registry.apps
    assert not registry.retrievers
    assert not registry.knows_token(A)


@pytest.mark.parametrize(
    ("text", "where"),
    [
        (f"[apps.shop]\ntoken = '{SECRET}'", "apps.shop.token"),
        (f"[app.shop]\nx = '{SECRET}'", "app"),
        (f"secret = '{SECRET}'", "secret"),
        (f"apps = '{SECRET}'", "apps"),
        (f"[apps]\nshop = '{SECRET}'", "apps.shop"),
        (retriever(token=f"'{SECRET}'"), "retrievers.shop.token"),
        (retriever(token_sha256=f"['{SECRET}']"), "retrievers.shop.token_sha256.0"),
        (retriever(token_sha256=f"['{B}', '{SECRET}']"), "retrievers.shop.token_sha256.1"),
        (retriever(token_sha256=f"'{SECRET}'"), "retrievers.shop.token_sha256"),
        (retriever(token_sha256=""), "retrievers.shop.token_sha256"),
        (retriever(public_key_sha256=""), "retrievers.shop.public_key_sha256"),
        (retriever(public_key_sha256=f"['{A.upper()}']"), "retrievers.shop.public_key_sha256.0"),
        (retriever(public_key_sha256=f"['{A[:-1]}']"), "retrievers.shop.public_key_sha256.0"),
        (retriever(public_key_sha256=f'["{A}\\n"]'), "retrievers.shop.public_key_sha256.0"),
        (retriever(public_key_sha256="[1]"), "retrievers.shop.public_key_sha256.0"),
        (retriever(public_key_sha256=f"['{SECRET}'"), "line"),
        (f"[apps.shop]\nx = {SECRET}", "line"),
        (f"[apps.shop]\n[apps.shop]\n# {SECRET}", "line"),
        ("x = " + "1" * 5000, "integer"),
        ("x = " + "[" * 5000, "recursion"),
    ],
    ids=lambda value: value[:60] if isinstance(value, str) else value,
)
def test_refused_text_says_where_but_never_what(text: str, where: str) -> None:
    with pytest.raises(RegistryError) as caught:
        Registry.parse(text)
    assert where in str(caught.value)
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__  # nor does a traceback show it


@pytest.mark.parametrize(
    ("digest", "accepted", "matched"),
    [(A, (), False), (A, (A,), True), (A, (B,), False), (A, (A, B, C), True), (C, (A, B, C), True), ("", (A,), False)],
    ids=["none", "only", "other", "first", "last", "empty"],
)
def test_matches_any_looks_at_every_digest_in_constant_time(
    digest: str, accepted: tuple[str, ...], matched: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[tuple[str, str]] = []
    real = hmac.compare_digest

    def compare_digest(left: str, right: str) -> bool:
        compared.append((left, right))
        return real(left, right)

    monkeypatch.setattr(hmac, "compare_digest", compare_digest)
    assert matches_any(digest, accepted) is matched
    assert compared == [(digest, candidate) for candidate in accepted]


def test_key_digest_is_sha256_in_hex() -> None:
    assert key_digest(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_new_keys_are_long_and_differ() -> None:
    keys = {new_key("pk") for _ in range(50)}
    assert len(keys) == 50
    assert all(key.startswith("pk_") and len(key) == 46 for key in keys)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "registry.toml"
    path.write_text("[apps.old]")
    return path


def replace(path: Path, content: str | bytes) -> None:
    """As an operator or a config map does: another file takes the name."""
    new = path.with_suffix(".new")
    new.write_bytes(content.encode() if isinstance(content, str) else content)
    os.replace(new, path)


async def test_unchanged_file_is_not_read_again(path: Path) -> None:
    file = RegistryFile(path)
    before = file.current
    assert not await file.reload_if_changed()
    assert file.current is before


async def test_changed_file_is_in_force(path: Path) -> None:
    file = RegistryFile(path)
    replace(path, "[apps.new]")
    assert await file.reload_if_changed()
    assert set(file.current.apps) == {"new"}
    assert not await file.reload_if_changed()


async def test_another_file_of_the_same_size_and_time_is_a_change(path: Path) -> None:
    file = RegistryFile(path)
    before = os.stat(path)
    replace(path, "[apps.new]")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert os.stat(path).st_size == before.st_size
    assert await file.reload_if_changed()
    assert set(file.current.apps) == {"new"}


@pytest.mark.parametrize(
    "content",
    [
        b"[apps",
        f"[apps.new]\ntoken = '{SECRET}'".encode(),
        retriever(token_sha256=f"['{SECRET}']").encode(),
        b"\xff\xfe",
        b"x = " + b"1" * 5000,
        b"x = " + b"[" * 5000,
        None,
    ],
    ids=["not-toml", "unknown-field", "not-a-hash", "not-utf8", "huge-integer", "endless-brackets", "gone"],
)
async def test_broken_file_is_refused_and_the_old_one_stays(path: Path, content: bytes | None) -> None:
    file = RegistryFile(path)
    if content is None:
        os.unlink(path)
    else:
        replace(path, content)

    with capture_logs() as logs:
        assert not await file.reload_if_changed()
        assert not await file.reload_if_changed()  # said once, not every second

    assert set(file.current.apps) == {"old"}
    assert [entry["log_level"] for entry in logs] == ["error"]
    assert "refused" in logs[0]["event"]
    assert logs[0]["reason"]
    assert SECRET not in repr(logs)

    replace(path, "[apps.mended]")
    assert await file.reload_if_changed()
    assert set(file.current.apps) == {"mended"}


@pytest.mark.parametrize("content", [None, b"[apps", b"\xff"], ids=["missing", "not-toml", "not-utf8"])
def test_no_registry_at_the_start_is_an_error(path: Path, content: bytes | None) -> None:
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RegistryError) as caught:
        RegistryFile(path)
    assert str(path) not in str(caught.value)


async def test_watch_goes_on_after_a_broken_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_module, "RELOAD_INTERVAL_S", 0.001)
    file = RegistryFile(path)
    watch = asyncio.create_task(file.watch())
    with capture_logs() as logs:
        replace(path, "x = " + "[" * 5000)
        await eventually(lambda: len(logs) == 1)
        replace(path, "[apps.new]")
        await eventually(lambda: "new" in file.current.apps)
    watch.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watch


async def eventually(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - a file changes, nobody tells
            await asyncio.sleep(0.001)
