"""The gateway of the tutorials: FastAPI, and aiokafka's `send_and_wait` for each event.

The same contract model, the same row, an idempotent producer with acks=all; uvicorn with uvloop and httptools.
No quotas, keys, metrics or spool. `python -m tests.bench.peers.fastapi_gateway --port N --brokers HOST:PORT`.
"""

import argparse
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
import uvicorn
from aiokafka import AIOKafkaProducer
from fastapi import FastAPI, HTTPException, Response
from uuid_utils import uuid7

from schemas.app_interaction import InteractionRequest
from schemas.streams import APP_INTERACTIONS, iso_ms
from tests.bench import events

APPS = {events.APP}


def create_app(brokers: str) -> FastAPI:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        producer = AIOKafkaProducer(bootstrap_servers=brokers, acks="all", enable_idempotence=True)
        await producer.start()
        app.state.producer = producer
        yield
        await producer.stop()

    app = FastAPI(lifespan=lifespan)

    @app.get("/readyz")
    async def ready() -> Response:
        return Response()

    @app.post("/v1/public/apps/{slug}/interactions")
    async def track(slug: str, event: InteractionRequest) -> dict[str, Any]:
        if slug not in APPS:
            raise HTTPException(404, "app not found")
        event_id = str(uuid7())
        row = {
            "event_id": event_id,
            "app": slug,
            "received_at": iso_ms(time.time_ns() // 1_000_000),
            **event.model_dump(exclude_unset=True, exclude=set(event.model_extra or ())),
        }
        if event.model_extra:
            row["extra"] = event.model_extra
        await app.state.producer.send_and_wait(APP_INTERACTIONS.name, orjson.dumps(row), key=event_id.encode())
        return {"success": True, "event_id": event_id, "durability": "kafka"}

    return app


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--brokers", required=True)
    args = parser.parse_args()
    uvicorn.run(
        create_app(args.brokers),
        port=args.port,
        loop="uvloop",
        http="httptools",
        ws="none",
        access_log=False,
        log_level="warning",
    )


if __name__ == "__main__":
    main()
