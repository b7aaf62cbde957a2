"""Adapter to ClickHouse over HTTP: the only module that imports clickhouse_connect.

Its calls block, so the consumer makes them from threads. Every call ends: connecting takes at most 5 s, an
answer at most `insert_timeout_ms`. Library errors become one of the errors here, and what we do not know is
an outage: it is retried, never blamed on a row.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import unquote, urlsplit

import clickhouse_connect
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError
from clickhouse_connect.driver.httpclient import HttpClient

from consumer.settings import ConsumerSettings

CONNECT_TIMEOUT_S = 5
PIECE_BYTES = 262_144

PARSING = {
    "input_format_parallel_parsing": 0,
    # Nothing is lost or coerced silently: not a column that the table lacks, not a null, number or boolean
    # where the column wants something else.
    "input_format_skip_unknown_fields": 0,
    "input_format_null_as_default": 0,
    "input_format_json_read_numbers_as_strings": 0,
    "input_format_json_read_bools_as_numbers": 0,
}

ONE_BLOCK = {
    # One INSERT must be one block, cut the same way every time: the token's protection ends where a replay
    # is cut into another number of blocks.
    "async_insert": 0,
    "max_insert_block_size": 1_000_000_000,
    "min_insert_block_size_rows": 1_000_000_000,
    "min_insert_block_size_bytes": 10_000_000_000,
    "insert_deduplicate": 1,
    "deduplicate_blocks_in_dependent_materialized_views": 1,
    # An acknowledged insert is one that has been written.
    "wait_end_of_query": 1,
    **PARSING,
}

# Errors about the text of a row. Everything else is about the server, the table or the way there.
ROW_ERRORS = {
    6,  # CANNOT_PARSE_TEXT
    26,  # CANNOT_PARSE_QUOTED_STRING
    27,  # CANNOT_PARSE_INPUT_ASSERTION_FAILED
    33,  # CANNOT_READ_ALL_DATA
    38,  # CANNOT_PARSE_DATE
    41,  # CANNOT_PARSE_DATETIME
    53,  # TYPE_MISMATCH
    69,  # ARGUMENT_OUT_OF_BOUND
    70,  # CANNOT_CONVERT_TYPE
    72,  # CANNOT_PARSE_NUMBER
    117,  # INCORRECT_DATA
    130,  # CANNOT_READ_ARRAY_FROM_TEXT
    131,  # TOO_LARGE_STRING_SIZE
    321,  # VALUE_IS_OUT_OF_RANGE_OF_DATA_TYPE
    349,  # CANNOT_INSERT_NULL_IN_ORDINARY_COLUMN
    407,  # DECIMAL_OVERFLOW
    467,  # CANNOT_PARSE_BOOL
    676,  # CANNOT_PARSE_IPV4
    677,  # CANNOT_PARSE_IPV6
}


class ClickHouseUnavailable(Exception):
    """The insert may or may not have landed; the same one is to be sent again. `code` is 0 without an answer."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class RowRejected(Exception):
    """ClickHouse cannot parse a row; nothing was inserted. `row` counts from 0, None where it was not named."""

    def __init__(self, code: int, message: str, row: int | None) -> None:
        super().__init__(message)
        self.code = code
        self.row = row


class ClickHouse:
    """One HTTP connection pool; safe to call from several threads."""

    def __init__(self, settings: ConsumerSettings) -> None:
        self.database = settings.database
        self._settings = settings
        self._client: Client | None = None

    def insert(self, table: str, texts: Sequence[bytes], token: str) -> None:
        """One attempt at one block, whose rows are those of all texts; sent once. Raises RowRejected or
        ClickHouseUnavailable."""
        self._call(
            "raw_insert",
            f"`{self.database}`.`{table}`",
            # clickhouse-connect sends bytes, and nothing else, again by itself when the connection breaks. Whoever
            # repeats an INSERT must know it: see lost_rows.
            insert_block=_pieces(texts),
            fmt="JSONEachRow",
            settings={**ONE_BLOCK, "insert_deduplication_token": token},
            # Without it the body would be chunked: who gets less of it than this knows that it was cut off.
            transport_settings={"Content-Length": str(sum(map(len, texts)))},
        )

    def parse(self, structure: str, rows: bytes) -> None:
        """Parse rows and write nothing. Raises RowRejected with the first bad row, or ClickHouseUnavailable."""
        quoted = structure.replace("\\", "\\\\").replace("'", "\\'")
        self._call(
            "raw_insert",
            f"FUNCTION null('{quoted}')",
            insert_block=rows,
            fmt="JSONEachRow",
            settings={**PARSING, "async_insert": 0},
        )

    def columns(self, table: str) -> dict[str, str]:
        """Type by name of the columns that an INSERT may fill. Raises ClickHouseUnavailable if there are none."""
        found = self.query(
            "SELECT name, type FROM system.columns WHERE database = {database:String} AND table = {table:String} "
            "AND default_kind IN ('', 'DEFAULT') ORDER BY position",
            {"database": self.database, "table": table},
        )
        if not found:
            raise self._missing(table)
        return dict(found)

    def engine(self, table: str) -> str:
        """The table's engine with its settings, as SQL. Raises ClickHouseUnavailable if there is no such table."""
        found = self.query(
            "SELECT engine_full FROM system.tables WHERE database = {database:String} AND name = {table:String}",
            {"database": self.database, "table": table},
        )
        if not found:
            raise self._missing(table)
        return str(found[0][0])

    def query(self, sql: str, parameters: dict[str, Any] | None = None) -> list[tuple[Any, ...]]:
        """Rows of a SELECT."""
        return [tuple(row) for row in self._call("query", sql, parameters=parameters).result_rows]

    def command(self, sql: str, parameters: dict[str, Any] | None = None) -> None:
        """DDL."""
        self._call("command", sql, parameters=parameters)

    def use_database(self) -> None:
        """Let unqualified table names mean ours. Only for `migrate`: at its start the database may not exist."""
        self._connected().database = self.database

    def close(self) -> None:
        if self._client is not None:
            self._client.close()

    def _missing(self, table: str) -> ClickHouseUnavailable:
        return ClickHouseUnavailable(60, f"table {self.database}.{table} does not exist")

    def _call(self, method: str, *arguments: Any, **options: Any) -> Any:
        try:
            return getattr(self._connected(), method)(*arguments, **options)
        except ClickHouseError as error:
            raise _translated(error) from error
        except OSError as error:
            raise ClickHouseUnavailable(0, f"{type(error).__name__}: {error}") from error

    def _connected(self) -> Client:
        if self._client is None:
            self._client = self._connect()
        return self._client

    def _connect(self) -> Client:
        """Asks the server for its version and settings, so it fails while ClickHouse is away."""
        url = urlsplit(self._settings.clickhouse_url.get_secret_value())
        client = clickhouse_connect.get_client(
            interface=url.scheme,
            host=url.hostname or "",
            port=url.port or (8443 if url.scheme == "https" else 8123),
            username=unquote(url.username) if url.username else None,
            password=unquote(url.password) if url.password else "",
            ca_cert=self._settings.clickhouse_ca_file,
            connect_timeout=CONNECT_TIMEOUT_S,
            send_receive_timeout=self._settings.insert_timeout_ms / 1000,
            # Sessions would serialise our threads.
            autogenerate_session_id=False,
            compress=False,
        )
        assert isinstance(client, HttpClient), "there is no other for http and https"
        client.http_retries = 0  # urllib3 sends again what ended with an error of TLS
        return client


def _pieces(texts: Sequence[bytes]) -> Iterator[bytes]:
    """What is sent at once: a copy of all would be new memory each time, which costs as much as making the rows."""
    piece: list[bytes] = []
    size = 0
    for text in texts:
        piece.append(text)
        size += len(text)
        if size >= PIECE_BYTES:
            yield b"".join(piece)
            piece, size = [], 0
    if piece:
        yield b"".join(piece)


_CODE = re.compile(r"(?:Code: |error code )(\d+)")
_ROW = re.compile(r"\(at row (\d+)\)")
_QUOTED_ROWS = re.compile(r" before: '.*?'(?=: \(|$)", re.DOTALL)


def _translated(error: ClickHouseError) -> Exception:
    # The engine quotes the rows that follow: they are people's data, and no log's business.
    message = " ".join(_QUOTED_ROWS.sub("", str(error)).split())[:1000]
    found = _CODE.search(message)
    code = int(found.group(1)) if found else 0
    if code in ROW_ERRORS:
        row = _ROW.search(message)
        return RowRejected(code, message, int(row.group(1)) - 1 if row else None)
    return ClickHouseUnavailable(code, message)
