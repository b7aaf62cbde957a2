"""Disk spool: holds records while Kafka is away. At most `bytes_max` of them, and none older than `age_max_s`.

What `append` has returned for is on disk: SQLite in WAL mode with synchronous=FULL, one transaction, and so one
fsync, for all that waits. A process killed or a machine without power at any instant loses nothing of it, and a
transaction that was cut short leaves nothing behind. Each worker has a file of its own, locked while it lives;
a worker that starts takes over the files that nobody holds.
"""

import asyncio
import fcntl
import os
import shutil
import sqlite3
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import IO, TypeVar

import structlog

from gateway.record import OVERHEAD_BYTES, Record

log = structlog.get_logger(__name__)

BUSY_TIMEOUT_S = 5.0
DISK_RESERVE_BYTES = 16_000_000  # left free: SQLite writes, too, when it removes records

SCHEMA = """
CREATE TABLE IF NOT EXISTS records (
    id INTEGER PRIMARY KEY AUTOINCREMENT, -- never used again: a removal may be tried again
    topic TEXT NOT NULL,
    partition INTEGER,
    key BLOB NOT NULL,
    value BLOB NOT NULL,
    timestamp_ms INTEGER NOT NULL,
    scope BLOB NOT NULL, -- empty for none: in a unique index every NULL is another
    UNIQUE (topic, key, timestamp_ms, scope)
) STRICT
"""
# A record that is there already stays: a file whose takeover was cut short is taken over once more.
INSERT = """
INSERT INTO records (topic, partition, key, value, timestamp_ms, scope) VALUES (?, ?, ?, ?, ?, ?)
ON CONFLICT (topic, key, timestamp_ms, scope) DO NOTHING
"""

T = TypeVar("T")


class SpoolRefusal(Exception):
    """The record is not on disk. `reason` is stable: spool_full, spool_old or spool_failed."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Spool:
    """Open it before use. Its methods are for one event loop; the disk is touched by one thread of its own."""

    def __init__(self, directory: Path, *, bytes_max: int, age_max_s: float) -> None:
        self._directory = directory
        self._bytes_max = bytes_max
        self._age_max_s = age_max_s
        self._thread = ThreadPoolExecutor(1, "spool")
        self._waiting: list[tuple[Sequence[Record], asyncio.Future[None]]] = []
        self._writing = False
        self._lock: IO[str] | None = None
        self._database: sqlite3.Connection | None = None
        self._bytes_waiting = 0
        self._bytes_written = 0
        self.records = 0
        self.oldest_ms: int | None = None

    @property
    def bytes(self) -> int:
        """On the disk or on the way there."""
        return self._bytes_written + self._bytes_waiting

    async def open(self) -> None:
        """Raises SpoolRefusal if the directory cannot be written to."""
        await self._call(self._open)
        if self.records:
            log.info("spool holds records of an earlier run", records=self.records, bytes=self.bytes)

    async def append(self, records: Sequence[Record]) -> None:
        """Returns when the records are on disk. Raises SpoolRefusal: none of them is, or, if the disk failed in
        the middle, nobody can say."""
        size = sum(record.bytes for record in records)
        if self.bytes + size > self._bytes_max:
            raise SpoolRefusal("spool_full", "The spool is full")
        if self.oldest_ms is not None and time.time() - self.oldest_ms / 1000 > self._age_max_s:
            raise SpoolRefusal("spool_old", "The spool holds records that should have left it long ago")
        self._bytes_waiting += size
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((records, written))
        if not self._writing:
            self._writing = True
            asyncio.get_running_loop().create_task(self._write(), name="spool-write")
        await written

    async def oldest(self, bytes_max: int, *, skip: int = 0) -> list[tuple[int, Record]]:
        """The oldest records with their ids: `skip` of them, whatever their size, and then at least one if there
        is any. Raises SpoolRefusal."""
        return await self._call(self._oldest, bytes_max, skip)

    async def find(self, records: Sequence[Record]) -> list[int]:
        """Ids of those of the records that are still here."""
        return await self._call(self._find, records)

    async def remove(self, ids: Sequence[int]) -> None:
        """Returns when they are gone from the disk. Raises SpoolRefusal."""
        await self._call(self._remove, ids)

    async def close(self) -> None:
        await self._call(self._close)
        self._thread.shutdown()

    async def _write(self) -> None:
        """Group commit: what arrives during one transaction makes the next."""
        while self._waiting:
            batch, self._waiting = self._waiting, []
            try:
                await self._call(self._insert, [record for records, _ in batch for record in records])
            except SpoolRefusal as refusal:
                for _, written in batch:
                    if not written.done():  # its caller may have given up
                        written.set_exception(SpoolRefusal(refusal.reason, str(refusal)))
            else:
                for _, written in batch:
                    if not written.done():
                        written.set_result(None)
            self._bytes_waiting -= sum(record.bytes for records, _ in batch for record in records)
        self._writing = False

    async def _call(self, function: Callable[..., T], *arguments: object) -> T:
        """In the spool's thread. Whatever fails there becomes SpoolRefusal, and the database is opened again."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)
        except SpoolRefusal:
            raise
        except Exception as error:  # what nobody foresaw must not leave a caller waiting for a write that is none
            await asyncio.get_running_loop().run_in_executor(self._thread, self._disconnect)
            log.error("spool failed", directory=str(self._directory), error=repr(error))
            raise SpoolRefusal("spool_failed", "The spool's disk does not take the event") from error

    # In the thread.

    def _open(self) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        abandoned = [path for path in sorted(self._directory.glob("*.db")) if self._is_abandoned(path)]
        self._path = self._directory / f"{uuid.uuid4().hex}.db"
        self._lock = _locked(self._path)
        for path in abandoned:
            try:
                self._take_over(path)
            except (sqlite3.Error, OSError) as error:
                # Damaged, or no room for a copy: it stays where it is, and must not keep the others from starting.
                log.error("spool file could not be taken over, it is left in place", file=path.name, error=repr(error))
        self._count()

    def _is_abandoned(self, path: Path) -> bool:
        lock = _locked(path)
        if lock is None:
            return False
        lock.close()
        return True

    def _take_over(self, path: Path) -> None:
        """Copy, then delete; whatever happens in between, every record is in one of the two files or in both."""
        lock = _locked(path)
        if lock is None:
            return  # another worker that starts was faster
        with lock:  # to the end of the deletion: in between, another would copy it too
            with closing(_connect(path)) as source, self._connected() as database:
                columns = "topic, partition, key, value, timestamp_ms, scope"
                rows = source.execute(f"SELECT {columns} FROM records ORDER BY id")
                database.executemany(INSERT, rows)
            for leftover in (path, *path.parent.glob(f"{path.name}-*"), _lock_path(path)):
                leftover.unlink(missing_ok=True)
        log.info("spool file taken over", file=path.name)

    def _insert(self, records: Sequence[Record]) -> None:
        if shutil.disk_usage(self._directory).free < DISK_RESERVE_BYTES:
            raise SpoolRefusal("spool_full", "The spool's disk is full")
        rows = [(r.topic, r.partition, r.key, r.value, r.timestamp_ms, r.scope or b"") for r in records]
        with self._connected() as database:
            database.executemany(INSERT, rows)
        self.records += len(records)
        self._bytes_written += sum(record.bytes for record in records)
        if self.oldest_ms is None:
            self.oldest_ms = min(record.timestamp_ms for record in records)

    def _oldest(self, bytes_max: int, skip: int) -> list[tuple[int, Record]]:
        found: list[tuple[int, Record]] = []
        size = 0
        rows = self._connected().execute(
            "SELECT id, topic, partition, key, value, timestamp_ms, nullif(scope, x'') FROM records ORDER BY id"
        )
        for id_, *fields in rows:
            record = Record(*fields)
            if len(found) >= skip:
                size += record.bytes
                if len(found) > skip and size > bytes_max:
                    break
            found.append((id_, record))
        rows.close()
        return found

    def _find(self, records: Sequence[Record]) -> list[int]:
        database = self._connected()
        found = []
        for record in records:
            row = database.execute(
                "SELECT id FROM records WHERE topic = ? AND key = ? AND timestamp_ms = ? AND scope = ?",
                (record.topic, record.key, record.timestamp_ms, record.scope or b""),
            ).fetchone()
            if row is not None:
                found.append(row[0])
        return found

    def _remove(self, ids: Sequence[int]) -> None:
        with self._connected() as database:
            database.executemany("DELETE FROM records WHERE id = ?", [(id_,) for id_ in ids])
        self._count()
        if not self.records:
            self._connected().execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def _count(self) -> None:
        self.records, size, self.oldest_ms = (
            self._connected()
            .execute("SELECT count(*), coalesce(sum(length(key) + length(value)), 0), min(timestamp_ms) FROM records")
            .fetchone()
        )
        self._bytes_written = size + self.records * OVERHEAD_BYTES

    def _connected(self) -> sqlite3.Connection:
        if self._database is None:
            self._database = _connect(self._path)
        return self._database

    def _disconnect(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None

    def _close(self) -> None:
        """An empty file is of no use to anybody."""
        empty = not self.records
        self._disconnect()
        if empty:
            self._path.unlink(missing_ok=True)
        if self._lock is not None:
            if empty:
                _lock_path(self._path).unlink(missing_ok=True)
            self._lock.close()


def _connect(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, check_same_thread=False)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = FULL")
    database.execute(SCHEMA)
    return database


def _lock_path(path: Path) -> Path:
    return path.with_suffix(".lock")


def _locked(path: Path) -> IO[str] | None:
    """Hold the file for as long as this stays open, which is as long as the process lives; None if another does."""
    lock = _lock_path(path).open("a")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    return lock


assert os.name == "posix", "the spool locks its files with flock"
