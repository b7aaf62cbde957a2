"""/livez, /readyz and /metrics: the same for both processes."""

from collections.abc import Callable

import orjson
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route


def routes(unready_reason: Callable[[], str | None], render_metrics: Callable[[], bytes]) -> list[Route]:
    """`unready_reason` is None while the process does its work; /readyz is 503 with the reason otherwise."""

    async def livez(_: Request) -> Response:
        return Response(b'{"status":"ok"}', media_type="application/json")

    async def readyz(_: Request) -> Response:
        reason = unready_reason()
        body = {"status": "ok"} if reason is None else {"status": "unready", "reason": reason}
        return Response(orjson.dumps(body), 200 if reason is None else 503, media_type="application/json")

    async def metrics(_: Request) -> Response:
        return Response(render_metrics(), headers={"content-type": CONTENT_TYPE_LATEST})

    return [Route("/livez", livez), Route("/readyz", readyz), Route("/metrics", metrics)]
