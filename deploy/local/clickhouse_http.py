"""ClickHouse's HTTP interface over the embedded engine: clickhouse-connect, curl and dashboards see a server.

`/` takes a query in the `query` parameter, the body, or both with a line break between them; settings,
`param_*`, `database`, `default_format` and the like come as parameters or headers. `/ping` and
`/replicas_status` answer from the event loop, whatever the engine does.

An INSERT begins when the last byte of its body is here, so a caller that dies on the way leaves nothing
behind, and a slow one holds no place in the engine. A query whose caller has left is dropped if it only reads;
anything else is brought to its end.

Limits: any user and password are let in (so listen on a loopback address only); `session_id` is taken and
ignored, so temporary tables and SET end with their request; no external tables, no `compress=1` or
`decompress=1` (ClickHouse's own framing; HTTP's encodings work), no progress headers.
"""

import asyncio
import errno
import logging
import socket
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from deploy.local.clickhouse_answer import Answer, Work
from deploy.local.clickhouse_call import Call, receive_body, spool
from deploy.local.clickhouse_engine import Engine, EngineSession
from deploy.local.clickhouse_errors import NOT_ENOUGH_SPACE, SOCKET_TIMEOUT, UNKNOWN_EXCEPTION, ClickHouseError, refusal

logger = logging.getLogger(__name__)

# For a caller to take a piece of an answer: as in a server.
SEND_S_MAX = 30

TEXT = "text/plain; charset=UTF-8"
CONTENT_TYPES = {
    "json": "application/json; charset=UTF-8",
    "jsoncompact": "application/json; charset=UTF-8",
    "jsonstrings": "application/json; charset=UTF-8",
    "jsoneachrow": "application/x-ndjson; charset=UTF-8",
    "csv": "text/csv; charset=UTF-8; header=absent",
    "csvwithnames": "text/csv; charset=UTF-8; header=present",
    "tabseparated": "text/tab-separated-values; charset=UTF-8",
    "tabseparatedwithnames": "text/tab-separated-values; charset=UTF-8",
    "tsv": "text/tab-separated-values; charset=UTF-8",
    "native": "application/octet-stream",
    "rowbinary": "application/octet-stream",
    "parquet": "application/octet-stream",
    "arrow": "application/octet-stream",
}


def app(engine: Engine, upload_dir: Path) -> Starlette:
    """The interface; bodies are kept in nameless files in `upload_dir` while they are worked on."""
    return Starlette(
        routes=[
            Route("/", Queries(engine, upload_dir), methods=["GET", "HEAD", "POST"]),
            Route("/ping", _ok, methods=["GET", "HEAD"]),
            Route("/replicas_status", _ok, methods=["GET", "HEAD"]),
        ],
        exception_handlers={404: _not_found},
    )


async def _ok(_: Request) -> Response:
    return PlainTextResponse("Ok.\n")


async def _not_found(request: Request, _: Exception) -> Response:
    return PlainTextResponse(f"There is no handle {request.url.path}\n\nUse / or /ping for health checks.\n", 404)


class Queries:
    """The endpoint `/`."""

    def __init__(self, engine: Engine, upload_dir: Path) -> None:
        self._engine = engine
        self._upload_dir = upload_dir
        self._display_name = socket.gethostname()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        sender = Sender(send, {"X-ClickHouse-Server-Display-Name": self._display_name})
        try:
            await self._serve(request, sender)
        except ClientDisconnect:
            return
        except ClickHouseError as error:
            await self._refuse(error, sender)
        except TimeoutError:
            await self._refuse(refusal(SOCKET_TIMEOUT, "Timeout exceeded while waiting for the client"), sender)
        except Exception as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                await self._refuse(refusal(NOT_ENOUGH_SPACE, "No space left for a body or a result"), sender)
                return
            logger.exception("A request failed in the server itself")
            await self._refuse(refusal(UNKNOWN_EXCEPTION, "The server failed, and has logged why"), sender)

    async def _serve(self, request: Request, sender: "Sender") -> None:
        call = Call.read(request)
        sender.headers["X-ClickHouse-Query-Id"] = call.query_id
        with ExitStack() as upload:
            body = upload.enter_context(spool(self._upload_dir))
            size = await receive_body(request, body)
            if request.method != "POST" and not call.query and not size:
                await (await _ok(request))(request.scope, request.receive, sender.send)
                return
            gone = asyncio.ensure_future(request.receive())
            comment = call.settings.get("log_comment", "")
            try:
                async with self._engine.session(call.query_id, comment, call.wait_ms_max, gone) as session:
                    # From here on a thread works with the body, maybe longer than this task lives, and closes it.
                    upload.pop_all()
                    work = Work(call, session, body, self._upload_dir, self._engine.version)
                    answer = await session.step(work.answer, gone)
                    await sender.start(200, self._answer_headers(call, session, answer))
                    await self._pass_on(answer, session, gone, sender)
            finally:
                gone.cancel()

    def _answer_headers(self, call: Call, session: EngineSession, answer: Answer) -> dict[str, str]:
        headers = {
            "Content-Type": CONTENT_TYPES.get((answer.format or "").lower(), TEXT),
            "X-ClickHouse-Timezone": self._engine.timezone,
            "X-ClickHouse-Exception-Tag": answer.tag,
            "X-ClickHouse-Summary": session.statistics.json(),
        }
        if answer.format:
            headers["X-ClickHouse-Format"] = answer.format
        if call.answer_encoding:
            headers["Content-Encoding"] = call.answer_encoding
        return headers

    async def _pass_on(
        self, answer: Answer, session: EngineSession, gone: "asyncio.Future[Any]", sender: "Sender"
    ) -> None:
        while not gone.done() and (piece := await session.step(answer.next_piece, gone)) is not None:
            if piece:
                await sender.body(piece)
        if not answer.is_broken:
            await sender.end()

    async def _refuse(self, error: ClickHouseError, sender: "Sender") -> None:
        """Answer with the error; an answer that has begun is left without its end, and the connection dropped."""
        if not sender.has_begun:
            code = {"X-ClickHouse-Exception-Code": str(error.code)}
            await sender.start(error.status, {"Content-Type": TEXT, **code})
            await sender.body(error.body(self._engine.version) + b"\n")
            await sender.end()


class Sender:
    """Sends each part of an answer within `SEND_S_MAX`, or raises TimeoutError. `headers` go with every answer."""

    def __init__(self, send: Send, headers: dict[str, str]) -> None:
        self.headers = headers
        self.has_begun = False
        self._send = send

    async def start(self, status: int, headers: dict[str, str]) -> None:
        named = {**self.headers, **headers}.items()
        raw = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in named]
        await self.send({"type": "http.response.start", "status": status, "headers": raw})

    async def body(self, piece: bytes) -> None:
        await self.send({"type": "http.response.body", "body": piece, "more_body": True})

    async def end(self) -> None:
        await self.send({"type": "http.response.body", "body": b"", "more_body": False})

    async def send(self, message: Message) -> None:
        self.has_begun = True
        async with asyncio.timeout(SEND_S_MAX):
            await self._send(message)
