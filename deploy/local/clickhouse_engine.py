"""The ClickHouse engine (chDB) of this process: a bounded number of queries at once, each in a session of its own.

A session is opened for one request and closed after it, which takes a millisecond; whatever the request set
goes with it, so nothing leaks into another. At most `QUERIES_MAX` run at a time, `WAITING_MAX` more wait for a
place, a bounded time each; whoever comes after is refused.

An INSERT reads its data from a file (`FROM INFILE`), as fast as through chDB's own `send_insert`. That one is
not used, because it swallows every error of writing: it reports rows as written when a constraint, a
materialized view, a KILL QUERY or a full disk has kept them out.

Limits: chDB gives every query an id of its own, so a running query is found by its `log_comment`, which is
the request's query id (behind the request's own comment, if it has one).
"""

import asyncio
import json
import os
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from chdb.session import Session

from deploy.local.clickhouse_errors import (
    ABORTED,
    QUERY_WITH_SAME_ID_IS_ALREADY_RUNNING,
    TOO_MANY_SIMULTANEOUS_QUERIES,
    UNKNOWN_FORMAT,
    engine_error,
    refusal,
)
from deploy.local.clickhouse_sql import DEFAULT_FORMAT, Insert, Query
from deploy.local.clickhouse_tokens import forget_lost_tokens

QUERIES_MAX = 8
WAITING_MAX = 64
KILL_AGAIN_S = 0.1
CLOSE_S_MAX = 1.0

MEMORY_BYTES_MAX = 2 << 30
# Of a server's gigabytes for caches a developer's machine needs little.
CACHE_BYTES_MAX = 64 << 20
CACHES = ("mark_cache_size", "primary_index_cache_size", "index_mark_cache_size", "query_condition_cache_size")

# Names that the Python package takes for its own, not the engine's.
PYTHON_FORMATS = ("arrowtable", "dataframe", "datastore", "debug")

T = TypeVar("T")


class EngineUnavailable(Exception):
    """The engine does not start: the reason in one line."""


@dataclass(frozen=True)
class Statistics:
    """What X-ClickHouse-Summary tells, so far."""

    read_rows: int = 0
    read_bytes: int = 0
    written_rows: int = 0
    written_bytes: int = 0
    elapsed_ns: int = 0

    def __add__(self, other: "Statistics") -> "Statistics":
        return Statistics(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def json(self) -> str:
        return json.dumps({f.name: str(getattr(self, f.name)) for f in fields(self)}, separators=(",", ":"))


class EngineSession:
    """One request in the engine. All but `step` and `kill` block, and run within `step`."""

    def __init__(self, engine: "Engine", query_id: str, own_comment: str) -> None:
        self.statistics = Statistics()
        # A query whose caller left may be dropped if it only reads.
        self.selects = False
        self.query_id = query_id
        self.comment = f"{own_comment} {query_id}".strip()
        self._engine = engine
        self._block_rows = ""
        self._lock = threading.Lock()
        self._chdb: Any = None

    async def step(self, work: Callable[[], T], gone: "asyncio.Future[Any]") -> T:
        """The result of `work`. Once `gone` is done, a query that only reads is killed."""
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(self._engine.threads, self._alone, work)
        await asyncio.wait({future, gone}, return_when=asyncio.FIRST_COMPLETED)
        while not future.done():
            # Again and again: it may not have reached the list of running queries yet.
            if self.selects:
                await loop.run_in_executor(self._engine.killer, self.kill)
            await asyncio.wait({future}, timeout=KILL_AGAIN_S)
        return future.result()

    def prepare(self, database: str, settings: Mapping[str, str], *, is_read_only: bool) -> None:
        """Open the session, choose the database and set the settings, for this session alone."""
        with _translated():
            self._chdb = _opened(self._engine.address)
        if database:
            self._run(f"USE {_quoted(database, '`')}".encode(errors="surrogateescape"))
        chosen = {
            # Off in a server, on in chDB.
            "implicit_select": "0",
            **settings,
            "log_comment": self.comment,
        }
        if is_read_only and chosen.get("readonly", "0") == "0":
            chosen["readonly"] = "2"
        changes = ", ".join(f"{name} = {_quoted(value)}" for name, value in chosen.items())
        self._run(f"SET {changes}".encode(errors="surrogateescape"))
        self._block_rows = settings.get("max_insert_block_size_rows") or settings.get("max_insert_block_size", "")

    def answer(self, query: Query, parameters: Mapping[str, str]) -> bytes:
        """The whole result at once."""
        self.selects = query.selects
        result = self._run(query.text, query.format or DEFAULT_FORMAT, parameters)
        return bytes(result.bytes())

    def stream(self, query: Query, parameters: Mapping[str, str]) -> Iterator[bytes]:
        """The result block by block."""
        self.selects = query.selects
        with _translated():
            blocks = self._chdb.send_query(query.text, query.format, params=parameters)
        while True:
            with _translated():
                block = blocks.fetch()
            if block is None:
                return
            self.statistics += _statistics(block)
            yield block.bytes()

    def insert(self, insert: Insert, data: BinaryIO, parameters: Mapping[str, str]) -> None:
        """Insert a file's content: all of it or, if it is more than one block, a part before an error."""
        if self._block_rows not in ("", "0"):
            # A server parses into blocks of this size; reading a file, the engine goes by the other setting.
            self._run(f"SET max_block_size = {_quoted(self._block_rows)}".encode())
        descriptor = data.fileno()
        data.flush()
        data.seek(0)
        # By its descriptor, for it has no name, and a path would have to be quoted.
        infile = f"\nFROM INFILE '/dev/fd/{descriptor}'\n".encode()
        text = insert.target + infile + insert.settings + f"\nFORMAT {insert.format}".encode()
        self._run(text, DEFAULT_FORMAT, parameters)
        written = self.statistics
        self.statistics += Statistics(read_rows=written.written_rows, read_bytes=written.written_bytes)

    def kill(self) -> None:
        self._engine.kill(self.comment)

    def close(self) -> None:
        with self._lock:
            if self._chdb is not None:
                self._chdb.close()
        del self._engine.sessions[self.query_id]

    def _alone(self, work: Callable[[], T]) -> T:
        # A step outlives its task if that is cancelled, and then the session is closed behind it.
        with self._lock:
            return work()

    def _run(
        self, text: bytes, answer_format: str = DEFAULT_FORMAT, parameters: Mapping[str, str] | None = None
    ) -> Any:
        if answer_format.lower() in PYTHON_FORMATS:
            raise refusal(UNKNOWN_FORMAT, f"Unknown format {answer_format}")
        with _translated():
            result = self._chdb.query(text, answer_format, params=dict(parameters or {}))
        self.statistics += _statistics(result)
        return result


class Engine:
    """Opens the data directory, which only one process can. Raises EngineUnavailable."""

    def __init__(self, data_dir: Path) -> None:
        self.address = _address(data_dir)
        try:
            forget_lost_tokens(data_dir)
        except OSError as error:
            raise _unavailable(data_dir, str(error)) from error
        with _captured_stderr() as stderr:
            try:
                # Held open: the engine ends with its last session.
                self._control = _opened(self.address)
            except RuntimeError as error:
                raise _unavailable(data_dir, f"{stderr()} {error}") from error
        self.version, self.timezone = (
            str(self._control.query(f"SELECT {name}()", "TSVRaw")).strip() for name in ("version", "timezone")
        )
        self.threads = ThreadPoolExecutor(QUERIES_MAX, "query")
        self.killer = ThreadPoolExecutor(1, "kill")
        self._places = asyncio.Semaphore(QUERIES_MAX)
        self._waiting = 0
        self.sessions: dict[str, EngineSession] = {}
        self._is_stopping = False

    @asynccontextmanager
    async def session(
        self, query_id: str, own_comment: str, wait_ms_max: int, gone: "asyncio.Future[Any]"
    ) -> AsyncIterator[EngineSession]:
        """A session for one request; waits for a place at most `wait_ms_max`, and not once `gone` is done."""
        await self._take_place(wait_ms_max, gone)
        try:
            if self._is_stopping:
                raise refusal(ABORTED, "The server is shutting down")
            if query_id in self.sessions:
                raise refusal(QUERY_WITH_SAME_ID_IS_ALREADY_RUNNING, f"Query with id = {query_id} is already running")
            session = self.sessions[query_id] = EngineSession(self, query_id, own_comment)
            try:
                yield session
            finally:
                await asyncio.shield(asyncio.get_running_loop().run_in_executor(self.threads, session.close))
        finally:
            self._places.release()

    async def _take_place(self, wait_ms_max: int, gone: "asyncio.Future[Any]") -> None:
        if self._places.locked() and self._waiting >= WAITING_MAX:
            raise refusal(TOO_MANY_SIMULTANEOUS_QUERIES, f"Too many queries waiting. Maximum: {WAITING_MAX}")
        place = asyncio.ensure_future(self._places.acquire())
        self._waiting += 1
        try:
            await asyncio.wait({place, gone}, timeout=wait_ms_max / 1000, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._waiting -= 1
            is_taken = place.done()
            place.cancel()
        if is_taken and not gone.done():
            return
        if is_taken:
            self._places.release()
        if gone.done():
            raise refusal(ABORTED, "The client has left")
        raise refusal(TOO_MANY_SIMULTANEOUS_QUERIES, f"Too many simultaneous queries. Maximum: {QUERIES_MAX}")

    def kill(self, comment: str) -> None:
        """Let the queries with this comment fail. Called from the killer's thread alone."""
        with _translated():
            self._control.query(f"KILL QUERY WHERE Settings['log_comment'] = {_quoted(comment)} ASYNC")

    def stop(self) -> None:
        """Take no more queries, and kill those that only read. Does not wait."""
        self._is_stopping = True
        for session in list(self.sessions.values()):
            if session.selects:
                self.killer.submit(session.kill)

    def close(self) -> bool:
        """Close, once all queries are over; False if they are not in a second, and the engine stays open."""
        self.stop()
        deadline = time.monotonic() + CLOSE_S_MAX
        while self.sessions and time.monotonic() < deadline:
            time.sleep(0.02)
        if self.sessions:
            return False
        self.threads.shutdown()
        self.killer.shutdown()
        self._control.close()
        return True


def _opened(address: str) -> Any:
    return Session(address)  # type: ignore[no-untyped-call]


def _address(data_dir: Path) -> str:
    memory = min(MEMORY_BYTES_MAX, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2)
    options = {"max_server_memory_usage": memory, "background_pool_size": 2, **dict.fromkeys(CACHES, CACHE_BYTES_MAX)}
    return f"{data_dir}?{'&'.join(f'{name}={value}' for name, value in options.items())}"


def _unavailable(data_dir: Path, reason: str) -> EngineUnavailable:
    if "Cannot lock file" in reason:
        return EngineUnavailable(f"{data_dir} is in use by another process")
    return EngineUnavailable(f"ClickHouse does not start in {data_dir}: {' '.join(reason.split())}")


@contextmanager
def _captured_stderr() -> Iterator[Callable[[], str]]:
    """What the engine prints itself, to be called while captured: its exceptions do not say why it failed."""
    kept = os.dup(2)
    with tempfile.TemporaryFile() as captured:
        os.dup2(captured.fileno(), 2)

        def text() -> str:
            captured.seek(0)
            return captured.read().decode(errors="replace")

        try:
            yield text
        finally:
            os.dup2(kept, 2)
            os.close(kept)


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise engine_error(str(error)) from error


def _statistics(result: Any) -> Statistics:
    return Statistics(
        read_rows=result.storage_rows_read(),
        read_bytes=result.storage_bytes_read(),
        written_rows=result.rows_written(),
        written_bytes=result.bytes_written(),
        elapsed_ns=int(result.elapsed() * 1e9),
    )


def _quoted(text: str, quote: str = "'") -> str:
    escaped = text.replace("\\", "\\\\").replace(quote, f"\\{quote}").replace("\0", "\\0")
    return f"{quote}{escaped}{quote}"
