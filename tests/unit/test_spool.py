"""gateway.spool: what `append` has returned for is on the disk, whatever happens next."""

import asyncio
import os
import random
import resource
import select
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from gateway import spool as spool_module
from gateway.record import Record
from gateway.spool import Spool, SpoolRefusal
from tests.unit import appending_process

ROOT = Path(__file__).parents[2]
NOW_MS = time.time_ns() // 1_000_000
DAY_S = 86_400  # no run of the suite takes a part of it that matters
ROOMY = 1_000_000_000

Opener = Callable[..., Awaitable[Spool]]


def record(number: int, *, size: int = 10, topic: str = "t", timestamp_ms: int = NOW_MS) -> Record:
    return Record(topic, None, b"%07d" % number, b"v" * size, timestamp_ms + number)


@pytest.fixture
async def opened(tmp_path: Path) -> AsyncIterator[Opener]:
    """Open a spool, as one more worker; its lock goes at the end of the test, as if the worker had died."""
    workers: list[Spool] = []

    async def opened(directory: Path = tmp_path, *, bytes_max: int = ROOMY, age_max_s: float = 1e12) -> Spool:
        workers.append(Spool(directory, bytes_max=bytes_max, age_max_s=age_max_s))
        await workers[-1].open()
        return workers[-1]

    yield opened
    for worker in workers:
        await dies(worker)


async def dies(spool: Spool) -> None:
    """What the system does for a process that was killed: it lets go of its locks and closes its files."""
    await asyncio.get_running_loop().run_in_executor(None, spool._thread.shutdown)
    if spool._database is not None:
        spool._database.close()
        spool._database = None
    if spool._lock is not None:
        spool._lock.close()


def on_disk(directory: Path) -> list[Record]:
    """As another process finds it, file by file."""
    found: list[Record] = []
    for path in sorted(directory.glob("*.db")):
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
            rows = database.execute(
                "SELECT topic, partition, key, value, timestamp_ms, nullif(scope, x'') FROM records ORDER BY id"
            )
            found += [Record(*row) for row in rows]
    return found


def files(directory: Path, suffix: str = "") -> list[Path]:
    return [path for path in directory.iterdir() if path.name.endswith(suffix)]


def size_of(paths: list[Path]) -> int:
    return sum(path.stat().st_size for path in paths)


def copy_cut_short(wal: Path, cut: int, directory: Path) -> None:
    (directory / wal.name).write_bytes(wal.read_bytes()[:cut])


async def held(spool: Spool, bytes_max: int = ROOMY, skip: int = 0) -> list[Record]:
    return [found for _, found in await spool.oldest(bytes_max, skip=skip)]


# Appending


async def test_on_the_disk_when_append_returns(opened: Opener, tmp_path: Path) -> None:
    spool = await opened()
    for n in range(5):
        await spool.append([record(2 * n), record(2 * n + 1)])
        assert on_disk(tmp_path) == [record(m) for m in range(2 * n + 2)]


async def test_every_commit_reaches_the_disk_itself(opened: Opener) -> None:
    """What outlives a machine without power: SQLite's own promise for these two settings."""
    spool = await opened()
    database = spool._connected()
    assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert database.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL


async def test_every_field_comes_back_as_it_was(opened: Opener) -> None:
    spool = await opened()
    records = [
        Record("t", None, b"", b"", 0),
        Record("ü\0", 2**31 - 1, bytes(range(256)), b"\0" * 300_000, 2**62),
        Record("t", 0, b"\xff", b"{}", 1),
    ]
    await spool.append(records)
    assert await held(spool) == records
    reader = await spool.oldest(ROOMY)
    assert [type(found.value) for _, found in reader] == [bytes] * 3


async def test_concurrent_appends_share_transactions(opened: Opener) -> None:
    spool = await opened()
    statements: list[str] = []
    spool._connected().set_trace_callback(statements.append)
    await asyncio.gather(*(spool.append([record(n)]) for n in range(500)))
    assert statements.count("COMMIT") <= 3
    assert len(await held(spool)) == 500


async def test_a_transaction_that_fails_fails_all_who_share_it_and_nobody_else(opened: Opener, tmp_path: Path) -> None:
    spool = await opened()
    await spool.append([record(0)])
    first = asyncio.create_task(spool.append([record(1)]))  # has a transaction of its own
    await asyncio.sleep(0)
    bad = Record("t", None, b"bad", b"", 1)._replace(timestamp_ms="no number")  # type: ignore[arg-type]
    together = await asyncio.gather(
        spool.append([record(2)]), spool.append([bad]), spool.append([record(3)]), return_exceptions=True
    )
    assert await first is None
    assert [type(answer) for answer in together] == [SpoolRefusal] * 3
    assert len({id(answer) for answer in together}) == 3
    await spool.append([record(4)])
    assert on_disk(tmp_path) == [record(n) for n in (0, 1, 4)]
    assert (spool.records, spool.bytes) == (3, 3 * record(0).bytes)


async def test_no_constraint_but_that_on_repeats_is_passed_over(opened: Opener, tmp_path: Path) -> None:
    spool = await opened()
    await spool.append([record(0)])
    await spool.append([record(0)])
    with pytest.raises(SpoolRefusal):
        await spool.append([record(1)._replace(topic=None)])  # type: ignore[arg-type]
    assert on_disk(tmp_path) == [record(0)]


async def test_cancelled_append_does_not_break_the_others(opened: Opener, tmp_path: Path) -> None:
    spool = await opened()
    tasks = [asyncio.create_task(spool.append([record(n)])) for n in range(10)]
    await asyncio.sleep(0)
    tasks[0].cancel()
    tasks[5].cancel()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(answer) for answer in answers].count(asyncio.CancelledError) == 2
    assert answers.count(None) == 8
    await spool.append([record(10)])
    assert {r.key for r in on_disk(tmp_path)} >= {record(n).key for n in range(11) if n not in (0, 5)}
    assert spool.records == len(on_disk(tmp_path))
    assert spool.bytes == sum(r.bytes for r in on_disk(tmp_path))


# Bounds


async def test_byte_cap(opened: Opener, tmp_path: Path) -> None:
    size = record(0, size=1000).bytes
    spool = await opened(bytes_max=10 * size)
    await spool.append([record(n, size=1000) for n in range(7)])
    with pytest.raises(SpoolRefusal) as caught:
        await spool.append([record(n, size=1000) for n in range(7, 11)])
    assert caught.value.reason == "spool_full"
    assert len(on_disk(tmp_path)) == 7  # all of an append or nothing
    await spool.append([record(n, size=1000) for n in range(7, 10)])
    assert spool.bytes == 10 * size
    with pytest.raises(SpoolRefusal):
        await spool.append([record(10, size=0)])

    await spool.remove([id_ for id_, _ in await spool.oldest(2 * size)])  # what has left makes room for as much
    await spool.append([record(n, size=1000) for n in (11, 12)])
    with pytest.raises(SpoolRefusal):
        await spool.append([record(13, size=1000)])


async def test_byte_cap_counts_what_is_still_being_written(opened: Opener, tmp_path: Path) -> None:
    size = record(0, size=1000).bytes
    spool = await opened(bytes_max=10 * size)
    answers = await asyncio.gather(*(spool.append([record(n, size=1000)]) for n in range(30)), return_exceptions=True)
    assert answers.count(None) == 10
    assert {answer.reason for answer in answers if isinstance(answer, SpoolRefusal)} == {"spool_full"}
    assert len(on_disk(tmp_path)) == 10


async def test_byte_cap_counts_what_an_earlier_worker_left(opened: Opener) -> None:
    size = record(0, size=1000).bytes
    dead = await opened()
    await dead.append([record(n, size=1000) for n in range(9)])
    await dies(dead)
    spool = await opened(bytes_max=10 * size)
    assert (spool.records, spool.bytes) == (9, 9 * size)
    await spool.append([record(9, size=1000)])
    with pytest.raises(SpoolRefusal):
        await spool.append([record(10, size=1000)])


async def test_age_cap(opened: Opener) -> None:
    spool = await opened(age_max_s=DAY_S)
    await spool.append([record(0, timestamp_ms=NOW_MS - DAY_S * 100)])
    await spool.append(
        [record(1, timestamp_ms=NOW_MS - 2 * DAY_S * 1_000)]
    )  # an empty or young spool takes an old record
    await spool.remove([id_ for id_, _ in await spool.oldest(1)])
    with pytest.raises(SpoolRefusal) as caught:
        await spool.append([record(2)])
    assert caught.value.reason == "spool_old"
    await spool.remove([id_ for id_, _ in await spool.oldest(ROOMY)])
    await spool.append([record(3)])


async def test_age_cap_counts_what_an_earlier_worker_left(opened: Opener) -> None:
    dead = await opened()
    await dead.append([record(0, timestamp_ms=NOW_MS - 2 * DAY_S * 1_000)])
    await dies(dead)
    spool = await opened(age_max_s=DAY_S)
    with pytest.raises(SpoolRefusal) as caught:
        await spool.append([record(1)])
    assert caught.value.reason == "spool_old"


# What comes out


async def test_oldest_first_whatever_their_timestamps(opened: Opener) -> None:
    spool = await opened()
    records = [record(n, timestamp_ms=NOW_MS - 100 * n) for n in range(20)]
    for each in records:
        await spool.append([each])
    assert await held(spool) == records


async def test_oldest_is_bounded_by_bytes_and_never_empty_handed(opened: Opener) -> None:
    spool = await opened()
    records = [record(n, size=1000) for n in range(6)]
    size = records[0].bytes
    await spool.append(records)
    assert await held(spool, 3 * size) == records[:3]
    assert await held(spool, 3 * size - 1) == records[:2]
    assert await held(spool, 0) == records[:1]


async def test_oldest_skips_by_number(opened: Opener) -> None:
    """And still returns what it has skipped: its caller knows which of them to leave out."""
    spool = await opened()
    records = [record(n, size=1000) for n in range(6)]
    await spool.append(records)
    assert await held(spool, 1, skip=2) == records[:3]
    assert await held(spool, 2 * records[0].bytes, skip=2) == records[:4]
    assert await held(spool, 1, skip=6) == records
    assert await held(spool, 1, skip=99) == records


async def test_find_and_remove(opened: Opener, tmp_path: Path) -> None:
    spool = await opened()
    records = [record(n) for n in range(6)]
    await spool.append(records)
    ids = dict(zip(records, [id_ for id_, _ in await spool.oldest(ROOMY)], strict=True))
    elsewhere = [
        record(7),
        records[0]._replace(topic="other"),
        records[0]._replace(key=b"other"),
        records[0]._replace(timestamp_ms=0),
    ]
    wanted = [records[4], records[1]]
    assert await spool.find([*elsewhere, *wanted]) == [ids[each] for each in wanted]
    await spool.remove(await spool.find(wanted))
    assert on_disk(tmp_path) == [records[n] for n in (0, 2, 3, 5)]
    assert await spool.find(wanted) == []
    assert (spool.records, spool.bytes) == (4, sum(records[n].bytes for n in (0, 2, 3, 5)))
    await spool.remove([10**6])  # is not there
    assert spool.records == 4


async def test_find_ignores_what_became_of_the_partition(opened: Opener) -> None:
    spool = await opened()
    await spool.append([record(0)._replace(partition=3)])
    assert len(await spool.find([record(0)])) == 1


async def test_a_spool_that_was_emptied_needs_no_room(opened: Opener, tmp_path: Path) -> None:
    spool = await opened()
    for n in range(20):
        await spool.append([record(n, size=100_000)])
    assert size_of(files(tmp_path)) > 2_000_000
    for _ in range(3):
        await spool.append([record(n, size=100_000) for n in range(20, 40)])
        await spool.remove([id_ for id_, _ in await spool.oldest(ROOMY)])
        assert (spool.records, spool.bytes, spool.oldest_ms) == (0, 0, None)
        assert size_of(files(tmp_path, "-wal")) == 0
        assert size_of(files(tmp_path)) < 8_000_000  # pages are used again


# Killed


async def test_torn_log_leaves_a_prefix_of_the_transactions(tmp_path: Path) -> None:
    """The files as they are at some instant, cut short anywhere: what a machine without power leaves."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    directory, copy = tmp_path / "spool", tmp_path / "copy"
    spool = Spool(directory, bytes_max=ROOMY, age_max_s=1e12)
    await spool.open()
    transactions = 25
    for n in range(transactions):
        await spool.append([record(2 * n, size=300), record(2 * n + 1, size=300)])
    wal = Path(f"{spool._path}-wal")
    length = size_of([wal])
    assert length > 100_000
    survivors = set()
    for cut in [0, 1, 31, 32, 33, length - 1, length, *(chance.randrange(length) for _ in range(60))]:
        shutil.rmtree(copy, ignore_errors=True)
        copy.mkdir()
        shutil.copy(spool._path, copy)
        copy_cut_short(wal, cut, copy)
        reader = Spool(copy, bytes_max=ROOMY, age_max_s=1e12)
        await reader.open()
        found = await held(reader)
        assert found == [record(n, size=300) for n in range(len(found))]
        assert len(found) % 2 == 0  # of no transaction a part
        survivors.add(len(found))
        await reader.append([record(10**6)])  # and it goes on
        assert on_disk(copy) == [*found, record(10**6)]
        await reader.close()
        if cut == length:
            assert len(found) == 2 * transactions
    assert len(survivors) > 10
    await dies(spool)


async def test_files_copied_while_they_are_written_hold_all_that_was_acknowledged_before(tmp_path: Path) -> None:
    directory, copies = tmp_path / "spool", []
    spool = Spool(directory, bytes_max=ROOMY, age_max_s=1e12)
    await spool.open()
    acknowledged = 0

    def moments() -> int:
        return len({before for before, _ in copies})

    async def append() -> None:
        nonlocal acknowledged
        for n in range(30_000):
            if n >= 300 and moments() > 3:
                break
            await spool.append([record(n, size=500)])
            acknowledged = n + 1

    writer = asyncio.create_task(append())
    while not writer.done():
        await asyncio.sleep(0.005)
        copies.append((acknowledged, tmp_path / f"copy-{len(copies)}"))
        copies[-1][1].mkdir()
        # The database before its log, which holds all that it lacks; and the thread may write meanwhile.
        await asyncio.to_thread(shutil.copy, spool._path, copies[-1][1])
        await asyncio.to_thread(shutil.copy, f"{spool._path}-wal", copies[-1][1])
    await writer
    await dies(spool)
    assert moments() > 3
    for before, copy in copies[:: max(1, len(copies) // 20)]:
        reader = Spool(copy, bytes_max=ROOMY, age_max_s=1e12)
        await reader.open()
        found = await held(reader)
        assert found == [record(n, size=500) for n in range(len(found))]
        assert len(found) >= before
        await reader.close()


@pytest.mark.parametrize("after_s", [0.05, 0.2, 0.4])
async def test_killed_process_has_lost_nothing_that_it_has_acknowledged(
    after_s: float, opened: Opener, tmp_path: Path
) -> None:
    with appending(tmp_path) as process:
        first = process.stdout.readline()
        deadline = time.monotonic() + after_s
        acknowledged = [first]
        while time.monotonic() < deadline or len(acknowledged) <= 10:
            acknowledged.append(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        acknowledged += process.stdout.readlines()  # what it had written to the pipe
    numbers = [int(line) for line in acknowledged if line.endswith(b"\n")]
    assert len(numbers) > 10
    spool = await opened()
    found = await held(spool)
    assert {int(each.key) for each in found} >= set(numbers)
    assert len(found) <= len(numbers) + appending_process.CALLERS
    assert all(each.value == b"v%b" % each.key * 50 for each in found)
    assert len(found) == len({each.key for each in found}) == spool.records


@contextmanager
def appending(directory: Path, *arguments: str) -> Iterator["subprocess.Popen[bytes]"]:
    process = subprocess.Popen(
        [sys.executable, "-m", appending_process.__name__, str(directory), *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert process.stdout is not None
        assert select.select([process.stdout], [], [], 20)[0], "it never began"
        yield process
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


# Taking over


async def test_dead_workers_file_is_adopted_once(opened: Opener, tmp_path: Path) -> None:
    dead = [await opened() for _ in range(3)]
    for n, worker in enumerate(dead):
        await worker.append([record(10 * n + m)._replace(partition=m or None) for m in range(3)])
    assert len(files(tmp_path, ".db")) == 3
    for worker in dead:
        await dies(worker)
    first = await opened()
    second = await opened()
    expected = {record(10 * n + m)._replace(partition=m or None) for n in range(3) for m in range(3)}
    found = await held(first)
    assert set(found) == expected
    assert len(found) == first.records == 9
    assert [[m for m in found if int(m.key) // 10 == n] for n in range(3)] == [
        [record(10 * n + m)._replace(partition=m or None) for m in range(3)] for n in range(3)
    ]  # each file's in its order
    assert (await held(second), second.records) == ([], 0)
    assert {path.stem for path in files(tmp_path, ".db") + files(tmp_path, ".lock")} == {
        first._path.stem,
        second._path.stem,
    }


async def test_live_workers_never_touch_each_others_files(opened: Opener, tmp_path: Path) -> None:
    workers = [await opened() for _ in range(3)]
    for n, worker in enumerate(workers):
        await worker.append([record(n)])
    workers.append(await opened())
    assert [await held(worker) for worker in workers] == [[record(0)], [record(1)], [record(2)], []]
    await workers[0].close()
    await workers[1].remove([id_ for id_, _ in await workers[1].oldest(1)])
    await workers[2].append([record(3)])
    assert await held(workers[2]) == [record(2), record(3)]
    assert len(on_disk(tmp_path)) == 3
    adopter = await opened()
    assert await held(adopter) == [record(0)]


async def test_live_process_keeps_its_file(opened: Opener, tmp_path: Path) -> None:
    with appending(tmp_path) as process:
        spool = await opened()
        assert spool.records == 0
        [theirs] = [path for path in files(tmp_path, ".db") if path != spool._path]
        assert theirs.exists()
        process.send_signal(signal.SIGKILL)
        process.wait()
        heir = await opened()
        assert heir.records > 0
        assert not theirs.exists()


@pytest.mark.parametrize("instant", ["before the copy is committed", "before anything is deleted", "while it deletes"])
async def test_takeover_that_was_interrupted_is_done_again(
    instant: str, opened: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = await opened()
    await dead.append([record(n) for n in range(50)])
    await dies(dead)

    class Killed(BaseException):
        pass

    unlinked: list[Path] = []

    def unlink(path: Path, **_: bool) -> None:
        if instant == "before anything is deleted" or unlinked:
            raise Killed
        unlinked.append(path)
        os.unlink(path)

    def copied_and_killed(self: Spool, path: Path) -> None:
        """All but the commit."""
        lock = spool_module._locked(path)
        assert lock is not None
        with lock, closing(spool_module._connect(path)) as source:
            rows = source.execute("SELECT topic, partition, key, value, timestamp_ms, scope FROM records ORDER BY id")
            self._connected().executemany(spool_module.INSERT, rows)
            raise Killed

    killed = Spool(tmp_path, bytes_max=ROOMY, age_max_s=1e12)
    with monkeypatch.context() as patch:
        if instant == "before the copy is committed":
            patch.setattr(Spool, "_take_over", copied_and_killed)
        else:
            patch.setattr(Path, "unlink", unlink)
        with pytest.raises(Killed):
            killed._open()
    if instant == "before anything is deleted":
        assert len(on_disk(tmp_path)) == 100
    await dies(killed)

    for _ in range(2):
        spool = await opened()
        assert await held(spool) == [record(n) for n in range(50)]
        assert spool.records == 50
        await dies(spool)
    assert len(files(tmp_path, ".db")) == 1


async def test_two_that_start_at_once_do_not_both_adopt(opened: Opener, tmp_path: Path) -> None:
    """From the copy to the end of the deletion, the file is locked: whoever comes in between finds it held."""
    dead = await opened()
    await dead.append([record(0)])
    await dies(dead)
    rival = Spool(tmp_path, bytes_max=ROOMY, age_max_s=1e12)
    rival._path = tmp_path / "rival.db"
    original = Path.unlink
    attempts = []

    def unlink(path: Path, missing_ok: bool = False) -> None:
        if path == dead._path and not attempts:
            attempts.append(path)
            rival._take_over(path)
        original(path, missing_ok=missing_ok)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "unlink", unlink)
        first = await opened()
    assert attempts
    rival._count()
    assert (first.records, rival.records) == (1, 0)
    rival._disconnect()


async def test_empty_file_of_a_dead_worker_is_cleared_away(opened: Opener, tmp_path: Path) -> None:
    await dies(await opened())
    (tmp_path / "killed-while-it-was-made.db").touch()
    spool = await opened()
    assert {path.stem for path in files(tmp_path, ".db") + files(tmp_path, ".lock")} == {spool._path.stem}


# A disk that fails


async def test_full_disk_is_a_refusal_and_forgotten_once_there_is_room(opened: Opener, tmp_path: Path) -> None:
    spool = await opened()
    await spool.append([record(0)])
    pages = spool._connected().execute("PRAGMA page_count").fetchone()[0]
    spool._connected().execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(SpoolRefusal) as caught:
        await spool.append([record(1, size=100_000)])
    assert caught.value.reason == "spool_failed"
    assert on_disk(tmp_path) == [record(0)]
    assert (spool.records, spool.bytes) == (1, record(0).bytes)
    # After an error the database is opened again, and has no limit then.
    await spool.append([record(2, size=100_000)])
    assert on_disk(tmp_path) == [record(0), record(2, size=100_000)]


async def test_limit_on_the_size_of_files_is_a_refusal_and_forgotten_once_there_is_room(
    opened: Opener, tmp_path: Path
) -> None:
    spool = await opened()
    await spool.append([record(0)])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, hard))  # SIGXFSZ is ignored in Python
        answers = [
            (await asyncio.gather(spool.append([record(n, size=50_000)]), return_exceptions=True))[0]
            for n in range(1, 30)
        ]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    taken = [n for n, answer in enumerate(answers, 1) if answer is None]
    assert 0 < len(taken) < 29
    assert {answer.reason for answer in answers if isinstance(answer, SpoolRefusal)} == {"spool_failed"}
    await spool.append([record(30, size=50_000)])
    found = on_disk(tmp_path)
    assert found[0] == record(0)
    assert {int(each.key) for each in found} >= {0, *taken, 30}
    await dies(spool)
    assert (await opened()).records == len(found)


async def test_process_on_a_full_disk_keeps_what_it_has_acknowledged(opened: Opener, tmp_path: Path) -> None:
    with appending(tmp_path, "300000") as process:
        assert process.stdout is not None
        lines = process.stdout.read().decode().split()
        assert process.wait(20) == 0
    refused = [line for line in lines if not line.isdigit()]
    assert set(refused) == {"spool_failed"}
    assert len(refused) == appending_process.CALLERS
    spool = await opened()
    assert {int(each.key) for each in await held(spool)} >= {int(line) for line in lines if line.isdigit()}


@pytest.mark.parametrize("call", ["oldest", "find", "remove", "append"])
async def test_database_that_is_gone_is_a_refusal_then_a_new_one(call: str, opened: Opener, tmp_path: Path) -> None:
    spool = await opened()
    await spool.append([record(0)])

    class Broken:
        def __getattr__(self, _: str) -> object:
            raise sqlite3.OperationalError("disk I/O error")

        def __enter__(self) -> object:
            raise sqlite3.OperationalError("disk I/O error")

        def __exit__(self, *_: object) -> None: ...

        def close(self) -> None: ...

    calls: dict[str, Callable[[], Awaitable[object]]] = {
        "oldest": lambda: spool.oldest(1),
        "find": lambda: spool.find([record(0)]),
        "remove": lambda: spool.remove([1]),
        "append": lambda: spool.append([record(1)]),
    }
    spool._database.close()  # type: ignore[union-attr]
    spool._database = Broken()  # type: ignore[assignment]
    with pytest.raises(SpoolRefusal) as caught:
        await calls[call]()
    assert caught.value.reason == "spool_failed"
    assert await held(spool) == [record(0)]
    assert (spool.records, spool.bytes) == (1, record(0).bytes)
    await calls[call]()


async def test_bytes_of_an_append_that_nobody_waited_for_and_that_failed_are_given_back(opened: Opener) -> None:
    """Or a disk that hangs and then fails would in the end be full of nothing."""
    spool = await opened()
    nobody_waits = threading.Event()

    def fail(_: object) -> None:
        nobody_waits.wait(30)
        raise sqlite3.OperationalError("disk I/O error")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spool, "_insert", fail)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await spool.append([record(0)])
        nobody_waits.set()
        with pytest.raises(SpoolRefusal):
            await spool.append([record(1)])
    assert spool.bytes == 0


@pytest.mark.parametrize("where", ["a file", "under a file"])
async def test_directory_that_cannot_be_made_is_a_refusal(where: str, opened: Opener, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    with pytest.raises(SpoolRefusal) as caught:
        await opened(path if where == "a file" else path / "spool")
    assert caught.value.reason == "spool_failed"


async def test_directory_is_made(opened: Opener, tmp_path: Path) -> None:
    await (await opened(tmp_path / "a" / "b")).append([record(0)])
    assert on_disk(tmp_path / "a" / "b") == [record(0)]


# Closing


async def test_close_removes_an_empty_file_and_keeps_any_other(tmp_path: Path) -> None:
    for records in ([], [record(0)]):
        spool = Spool(tmp_path, bytes_max=ROOMY, age_max_s=1e12)
        await spool.open()
        await spool.append([record(1)])
        await spool.remove([id_ for id_, _ in await spool.oldest(1)])
        if records:
            await spool.append(records)
        await spool.close()
        assert len(files(tmp_path)) == (2 if records else 0)  # the file and its lock
        assert on_disk(tmp_path) == records


async def test_close_waits_for_what_is_being_written(tmp_path: Path) -> None:
    spool = Spool(tmp_path, bytes_max=ROOMY, age_max_s=1e12)
    await spool.open()
    append = asyncio.create_task(spool.append([record(0)]))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await spool.close()
    await append
    assert on_disk(tmp_path) == [record(0)]


async def test_damaged_file_is_left_in_place_and_keeps_nobody_from_starting(opened: Opener, tmp_path: Path) -> None:
    good = await opened()
    await good.append([record(1)])
    await dies(good)
    damaged = tmp_path / "damaged.db"
    damaged.write_bytes(b"this is no database, whatever its name says" * 100)
    spool = await opened()
    assert await held(spool) == [record(1)]
    assert damaged.exists()


async def test_what_nobody_foresaw_is_a_refusal_and_the_next_append_works(opened: Opener) -> None:
    spool = await opened()
    with pytest.raises(SpoolRefusal):
        await spool.append([record(1, timestamp_ms=2**70)])  # OverflowError, which is none of SQLite's own
    await spool.append([record(2)])
    assert await held(spool) == [record(2)]


async def test_equal_ids_of_two_owners_are_two_events(opened: Opener) -> None:
    spool = await opened()
    ours = record(1)._replace(scope=b"shop")
    theirs = ours._replace(scope=b"blog")
    without = ours._replace(scope=None)
    await spool.append([ours, theirs, without, ours])
    assert [kept for _, kept in await spool.oldest(ROOMY)] == [ours, theirs, without]
    [found] = await spool.find([theirs])
    await spool.remove([found])
    assert [kept for _, kept in await spool.oldest(ROOMY)] == [ours, without]
