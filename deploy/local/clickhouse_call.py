"""What a request to ClickHouse's HTTP interface says: its parameters and headers, its body, or a form.

Limits: of parameters with the same name in the URL the last counts; a body has at most `BODY_BYTES_MAX`, before
and after decoding, and is kept in a file from `IN_MEMORY_BYTES_MAX` on; a query's text has at most
`TEXT_BYTES_MAX`; a form holds no external tables.
"""

import asyncio
import re
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast
from urllib.parse import parse_qsl

from starlette.requests import Request

from deploy.local.clickhouse_codecs import DECODERS, IDENTITY, PIECE_BYTES_MAX, chosen_encoding
from deploy.local.clickhouse_errors import BAD_ARGUMENTS, NOT_IMPLEMENTED, QUERY_IS_TOO_LARGE, refusal
from deploy.local.clickhouse_sql import DEFAULT_FORMAT

BODY_BYTES_MAX = 4 << 30
IN_MEMORY_BYTES_MAX = 1 << 20
TEXT_BYTES_MAX = 4 << 20
PARAMETERS_MAX = 1000
# Between two pieces of a body: as in a server.
RECEIVE_S_MAX = 30
# For a place in the engine, unless `queue_max_wait_ms` says otherwise.
WAIT_MS_MAX = 10_000

SETTING = re.compile(r"[A-Za-z_]\w*", re.ASCII)
FORMAT = re.compile(r"\w+", re.ASCII)
BOUNDARY = re.compile(r'multipart/form-data;.*boundary="?([^";]+)', re.IGNORECASE)
FIELD = re.compile(rb'name="([^"]*)"')
# Parameters that are not settings of the engine.
TRANSPORT = {
    *("query", "database", "default_format", "query_id", "wait_end_of_query", "buffer_size", "compress", "decompress"),
    *("user", "password", "quota_key", "role", "stacktrace", "client_protocol_version"),
    *("session_id", "session_timeout", "session_check", "close_session"),
}


@dataclass(frozen=True)
class Call:
    """What a request says beside its body. `form_boundary` is empty unless the body is a form."""

    query: bytes
    query_id: str
    database: str
    default_format: str
    settings: dict[str, str]
    parameters: dict[str, str]
    body_encoding: str
    answer_encoding: str
    form_boundary: bytes
    waits_for_end: bool
    is_read_only: bool
    wait_ms_max: int

    @classmethod
    def read(cls, request: Request) -> "Call":
        headers, given = request.headers, _given(request)
        if _is_on(given.get("compress")) or _is_on(given.get("decompress")):
            raise refusal(NOT_IMPLEMENTED, "ClickHouse's own compression is not supported: use an HTTP encoding")
        settings = {name: value for name, value in given.items() if _is_setting(name)}
        wait_ms_max = settings.get("queue_max_wait_ms", "")
        compresses = _is_on(settings.get("enable_http_compression", "1"))
        boundary = BOUNDARY.match(headers.get("Content-Type", ""))
        return cls(
            query=_bytes(given.get("query", "")),
            query_id=_query_id(given.get("query_id") or headers.get("X-ClickHouse-Query-Id", "")),
            database=headers.get("X-ClickHouse-Database") or given.get("database", ""),
            default_format=_format(headers.get("X-ClickHouse-Format") or given.get("default_format", "")),
            settings=settings,
            parameters=_parameters(given.items()),
            body_encoding=_body_encoding(headers.get("Content-Encoding", "")),
            answer_encoding=chosen_encoding(headers.get("Accept-Encoding", "")) if compresses else "",
            form_boundary=boundary[1].encode() if boundary else b"",
            waits_for_end=_is_on(given.get("wait_end_of_query")) or _is_on(settings.get("http_wait_end_of_query")),
            # As in a server: only POST writes.
            is_read_only=request.method != "POST",
            wait_ms_max=int(wait_ms_max) if wait_ms_max.isdecimal() else WAIT_MS_MAX,
        )


def spool(directory: Path) -> BinaryIO:
    """A nameless file that stays in memory while it is small."""
    return cast(BinaryIO, tempfile.SpooledTemporaryFile(IN_MEMORY_BYTES_MAX, dir=str(directory)))


async def receive_body(request: Request, body: BinaryIO) -> int:
    """The whole body into a file, and its size. Raises ClientDisconnect if it is cut off, TimeoutError if it stalls."""
    loop = asyncio.get_running_loop()
    size = 0
    pending: list[bytes] = []
    pending_bytes = 0
    async with asyncio.timeout(RECEIVE_S_MAX) as deadline:
        async for chunk in request.stream():
            size += len(chunk)
            if size > BODY_BYTES_MAX:
                raise refusal(QUERY_IS_TOO_LARGE, f"The body is larger than {BODY_BYTES_MAX} bytes")
            pending.append(chunk)
            pending_bytes += len(chunk)
            if pending_bytes >= PIECE_BYTES_MAX:
                # A disk may be slow, and nobody else is to wait for it.
                await asyncio.to_thread(body.writelines, pending)
                pending, pending_bytes = [], 0
            deadline.reschedule(loop.time() + RECEIVE_S_MAX)
    body.writelines(pending)
    body.seek(0)
    return size


def form(call: Call, body: bytes) -> tuple[bytes, dict[str, str]]:
    """Query and parameters from a form: how clickhouse-connect sends parameters that are too long for a URL."""
    text, parameters = call.query, dict(call.parameters)
    for part in (b"\r\n" + body).split(b"\r\n--" + call.form_boundary)[1:-1]:
        head, _, value = part.partition(b"\r\n\r\n")
        name = FIELD.search(head)
        if name is None or b"filename=" in head:
            raise refusal(NOT_IMPLEMENTED, "External data is not supported")
        if name[1] == b"query":
            text += value
        else:
            field = name[1].decode(errors="replace"), value.decode(errors="surrogateescape")
            parameters.update(_parameters([field]))
    return text, parameters


def whole(pieces: Iterator[bytes]) -> bytes:
    """A query's text."""
    return b"".join(bounded(pieces, TEXT_BYTES_MAX, "The query"))


def bounded(pieces: Iterator[bytes], bytes_max: int, what: str) -> Iterator[bytes]:
    """The same pieces. Raises if they are more than `bytes_max`."""
    size = 0
    for piece in pieces:
        size += len(piece)
        if size > bytes_max:
            raise refusal(QUERY_IS_TOO_LARGE, f"{what} is larger than {bytes_max} bytes")
        yield piece


def _given(request: Request) -> dict[str, str]:
    """The URL's parameters; bytes that are not UTF-8 as surrogates."""
    text = request.scope["query_string"].decode("latin-1")
    try:
        return dict(parse_qsl(text, keep_blank_values=True, errors="surrogateescape", max_num_fields=PARAMETERS_MAX))
    except ValueError as error:
        raise refusal(BAD_ARGUMENTS, f"More than {PARAMETERS_MAX} parameters") from error


def _is_setting(name: str) -> bool:
    if not name or name in TRANSPORT or name.startswith("param_"):
        return False
    if not SETTING.fullmatch(name):
        raise refusal(BAD_ARGUMENTS, f"Not a name of a setting: {name!r}")
    return True


def _parameters(fields: Iterable[tuple[str, str]]) -> dict[str, str]:
    parameters = {name.removeprefix("param_"): value for name, value in fields if name.startswith("param_")}
    try:
        "".join([*parameters, *parameters.values()]).encode()
    except UnicodeEncodeError as error:
        raise refusal(BAD_ARGUMENTS, "A query parameter is not UTF-8") from error
    return parameters


def _query_id(given: str) -> str:
    # It is sent back in a header.
    if not (given.isascii() and given.isprintable()):
        raise refusal(BAD_ARGUMENTS, "A query_id is printable ASCII")
    return given or str(uuid.uuid4())


def _format(given: str) -> str:
    if given and not FORMAT.fullmatch(given):
        raise refusal(BAD_ARGUMENTS, f"Not a name of a format: {given!r}")
    return given or DEFAULT_FORMAT


def _body_encoding(given: str) -> str:
    encoding = given.strip().lower()
    if encoding not in IDENTITY and encoding not in DECODERS:
        raise refusal(NOT_IMPLEMENTED, f"Unknown compression method {encoding!r}")
    return encoding


def _is_on(value: str | None) -> bool:
    return value is not None and value.lower() not in ("", "0", "false")


def _bytes(text: str) -> bytes:
    return text.encode(errors="surrogateescape")
