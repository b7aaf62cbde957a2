"""The consumer's own HTTP: /metrics, /livez and /readyz, served from the consumer's event loop."""

import contextlib
from collections.abc import Iterator

import uvicorn
from starlette.applications import Starlette

from consumer.loop import Consumer
from consumer.metrics import Metrics
from schemas import probes


class Server(uvicorn.Server):
    """Leaves signals to the consumer: uvicorn would otherwise take SIGTERM for itself."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def create_server(consumer: Consumer, metrics: Metrics, host: str, port: int) -> Server:
    """Run `serve()` as a task; set `should_exit` to end it."""
    app = Starlette(routes=probes.routes(lambda: consumer.unready_reason, metrics.render))
    return Server(
        uvicorn.Config(app, host=host, port=port, log_config=None, access_log=False, ws="none", lifespan="off")
    )
