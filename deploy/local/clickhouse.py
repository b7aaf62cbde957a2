"""ClickHouse on one machine, without Docker: `python -m deploy.local.clickhouse --data-dir DIR --port N`.

Serves the engine in the chDB wheel over ClickHouse's HTTP interface (`clickhouse_http` says what of it). A row
that an INSERT was answered 200 for is on the disk, and there again after SIGKILL and a restart, which takes
about a second. SIGTERM and SIGINT end it cleanly within about two.

Limits: one process a data directory; any user and password are let in, so it listens on a loopback address
unless told otherwise; HTTP only, not ClickHouse's native protocol.
"""

import argparse
import errno
import logging
import os
import signal
import socket
import sys
from pathlib import Path

import uvicorn

CONNECTIONS_MAX = 256
KEEP_ALIVE_S = 30


class CannotStart(Exception):
    """The reason in one line."""


def main(argv: list[str] | None = None) -> int:
    arguments = _arguments(argv)
    # Ends us while we start; later uvicorn takes the signals, and raises them again when it is done.
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: sys.exit(0))
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    try:
        listener = _listener(arguments.host, arguments.port)
        data_dir = _data_dir(arguments.data_dir)
    except CannotStart as error:
        return _fail(error)
    # Loads half a gigabyte: not before it is known to be of use.
    from deploy.local.clickhouse_engine import Engine, EngineUnavailable
    from deploy.local.clickhouse_http import app

    try:
        engine = Engine(data_dir)
    except EngineUnavailable as error:
        return _fail(error)

    class Server(uvicorn.Server):
        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            engine.stop()
            await super().shutdown(sockets)

    config = uvicorn.Config(
        app(engine, data_dir),
        log_config=None,
        # It logs a connection that is dropped on purpose as an error; failures of ours are logged by us.
        log_level=logging.CRITICAL,
        access_log=False,
        server_header=False,
        lifespan="off",
        limit_concurrency=CONNECTIONS_MAX,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=1,
    )
    host, port = listener.getsockname()[:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    print(f"ClickHouse {engine.version} (chDB) listening on {url}, data in {data_dir}", flush=True)
    try:
        Server(config).run(sockets=[listener])
    finally:
        if not engine.close():
            # A query that cannot be killed still runs. What is acknowledged is safe, as it is from SIGKILL.
            os._exit(0)
    return 0


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    description = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m deploy.local.clickhouse", description=description)
    parser.add_argument("--data-dir", type=Path, required=True, help="directory for the tables, created if missing")
    parser.add_argument("--port", type=int, default=8123, help="default: %(default)s; 0 takes a free one")
    parser.add_argument("--host", default="127.0.0.1", help="default: %(default)s; whoever reaches it is let in")
    return parser.parse_args(argv)


def _listener(host: str, port: int) -> socket.socket:
    """A socket that already listens, so that nobody who read our line is refused."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        is_busy = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
        reason = "the port is in use by another process" if is_busy else error
        raise CannotStart(f"Cannot listen on {host}:{port}: {reason}") from error


def _data_dir(path: Path) -> Path:
    path = path.absolute()
    if {"?", "&"} & set(str(path)):
        raise CannotStart(f"Cannot use {path}: the engine takes no path with ? or &")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CannotStart(f"Cannot use {path}: {error.strerror}") from error
    return path


def _fail(error: Exception) -> int:
    print(f"clickhouse: {error}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
