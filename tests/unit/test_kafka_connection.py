"""A connection to Kafka that is reset is lost from the first turn of the loop on, with the loop of both processes."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from typing import Any

import pytest
import uvloop
from aiokafka.conn import AIOKafkaConnection, CloseReason, create_conn
from aiokafka.errors import KafkaConnectionError
from aiokafka.protocol.metadata import MetadataRequest

import schemas.kafka  # noqa: F401  (it mends aiokafka)

LOOP_FACTORY = uvloop.new_event_loop
TURNS = 4


class Broker:
    """Says which versions of metadata requests it knows; then it resets the connection when told to."""

    def __init__(self) -> None:
        self.reset = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        [size] = struct.unpack(">i", await reader.readexactly(4))
        request = await reader.readexactly(size)
        versions = request[4:8] + struct.pack(">hihhh", 0, 1, 3, 0, 5)
        writer.write(struct.pack(">i", len(versions)) + versions)
        await self.reset.wait()
        connection: socket.socket = writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.close()


@pytest.fixture
async def broker() -> Broker:
    return Broker()


@pytest.fixture
async def connection(broker: Broker) -> AsyncIterator[AIOKafkaConnection]:
    async with await asyncio.start_server(broker.serve, "127.0.0.1", 0) as server:
        connection = await create_conn("127.0.0.1", server.sockets[0].getsockname()[1])
        yield connection
        connection.close()


@pytest.mark.parametrize("turns", range(TURNS))
async def test_what_is_sent_on_a_lost_connection_is_an_error_of_kafka(
    broker: Broker, connection: AIOKafkaConnection, turns: int
) -> None:
    reasons: list[CloseReason] = []
    connection._on_close_cb = lambda _, reason: reasons.append(reason)
    sent: asyncio.Future[asyncio.Task[Any]] = asyncio.get_running_loop().create_future()
    lose = connection._protocol.connection_lost

    async def send() -> None:
        for _ in range(turns):
            await asyncio.sleep(0)
        await connection.send(MetadataRequest(None))

    def lost(error: Exception | None) -> None:
        lose(error)
        sent.set_result(asyncio.create_task(send()))

    connection._protocol.connection_lost = lost
    broker.reset.set()
    with pytest.raises(KafkaConnectionError):
        await (await sent)
    assert not connection.connected()
    assert reasons == [CloseReason.CONNECTION_BROKEN]
