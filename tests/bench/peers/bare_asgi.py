"""The limit of what a gateway in ASGI can be: the same requests, the same bytes in answer, and nothing done.

By default uvicorn as it comes, with httptools; with `--protocol ours` behind the gateway's own protocol class.
`python -m tests.bench.peers.bare_asgi --port N`.
"""

import argparse
import uuid

import uvicorn

from gateway.asgi import Receive, Scope, Send

BODY = b'{"success":true,"event_id":"%b","durability":"kafka"}' % str(uuid.uuid4()).encode()
HEADERS = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(BODY))]


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
    await send({"type": "http.response.body", "body": BODY})


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--protocol", choices=["uvicorn", "ours"], default="uvicorn")
    args = parser.parse_args()
    protocol: object = "httptools"
    if args.protocol == "ours":
        from gateway.server import HttpProtocol

        protocol = HttpProtocol
    uvicorn.run(
        app,
        port=args.port,
        loop="uvloop",
        http=protocol,  # type: ignore[arg-type]
        ws="none",
        lifespan="off",
        access_log=False,
        server_header=False,
        log_level="warning",
    )


if __name__ == "__main__":
    main()
