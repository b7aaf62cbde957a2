"""`python -m gateway` serves; `python -m gateway keys new` prints a fresh key and its hash."""

import argparse
import os
import signal
import tempfile

import uvicorn

from gateway.app import create_app, registry_file
from gateway.asgi import ASGIApp
from gateway.metrics import MULTIPROCESS_DIR
from gateway.registry import RegistryError, key_digest, new_key
from gateway.server import HttpProtocol
from gateway.settings import GatewaySettings
from schemas import kafka, logs, memory


def main() -> None:
    parser = argparse.ArgumentParser(prog="sluice-gateway", description="Serve Sluice's HTTP gateway.")
    commands = parser.add_subparsers(dest="command")
    commands.add_parser("serve", help="serve, with settings from GATEWAY_… variables (the default)")
    keys = commands.add_parser("keys", help="keys for the registry file").add_subparsers(required=True)
    keys.add_parser("new", help="print a fresh public key and token, each with its hash")
    if parser.parse_args().command == "keys":
        print_new_keys()
    else:
        serve(GatewaySettings.load())


def print_new_keys() -> None:
    for kind, prefix in (("public key", "pk"), ("token", "tok")):
        key = new_key(prefix)
        print(f"{kind:10}  {key}\n{'  sha256':10}  {key_digest(key.encode())}")


def serve(settings: GatewaySettings) -> None:
    """Until SIGTERM or SIGINT; exits 0 once everything in flight is answered."""
    logs.configure(settings.log_level)
    try:
        registry_file(settings)
        kafka.connection(settings)
    except RegistryError as error:
        settings.refuse("registry_file", str(error))
    except kafka.UnusableCertificate as error:
        settings.refuse(error.setting, str(error))
    # uvicorn raises the signal it was stopped by once more when it is done, which would end us with 143.
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda *_: None)
    with tempfile.TemporaryDirectory(prefix="sluice-metrics-") as metrics_dir:
        if settings.workers > 1:
            os.environ[MULTIPROCESS_DIR] = metrics_dir
        uvicorn.run(
            "gateway.__main__:worker",
            factory=True,
            host=settings.host,
            port=settings.port,
            workers=settings.workers,
            loop="uvloop",
            http=HttpProtocol,  # type: ignore[arg-type]  # uvicorn's annotation forgets BufferedProtocol
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=max(1, settings.shutdown_deadline_ms // 1000),
        )


def worker() -> ASGIApp:
    """The application of one worker process."""
    settings = GatewaySettings()  # `main` has checked it, and has warned of misspelt variables
    logs.configure(settings.log_level)
    app = create_app(settings)
    memory.settle()
    return app


if __name__ == "__main__":
    main()
