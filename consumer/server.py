"""The consumer's own HTTP: /metrics, /livez and /readyz, served from the consumer's event loop."""

import contextlib
from collections.abc import Iterator

import orjson
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from consumer.loop import Consumer
from consumer.metrics import CONTENT_TYPE, Metrics


class Server(uvicorn.Server):
    """Leaves signals to the consumer: uvicorn would otherwise take SIGTERM for itself."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def create_server(consumer: Consumer, metrics: Metrics, host: str, port: int) -> Server:
    """Run `serve()` as a task; set `should_exit` to end it."""

    async def metrics_page(_: Request) -> Response:
        return Response(metrics.render(), headers={"content-type": CONTENT_TYPE})

    async def livez(_: Request) -> Response:
        return Response(b'{"status":"ok"}', media_type="application/json")

    async def readyz(_: Request) -> Response:
        reason = consumer.unready_reason
        body = {"status": "ok"} if reason is None else {"status": "unready", "reason": reason}
        return Response(orjson.dumps(body), 200 if reason is None else 503, media_type="application/json")

    app = Starlette(routes=[Route("/metrics", metrics_page), Route("/livez", livez), Route("/readyz", readyz)])
    return Server(
        uvicorn.Config(app, host=host, port=port, log_config=None, access_log=False, ws="none", lifespan="off")
    )
