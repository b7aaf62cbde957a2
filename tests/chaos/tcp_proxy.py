"""A network between a Kafka client and its broker that can be broken and mended.

Listens on a port of its own and passes on whole frames of Kafka's protocol, so that a fault strikes each request
and each answer by itself. Clients connect to the address that the broker's metadata names: the proxy writes its own
port there instead. Limits: one broker, plaintext, loopback; one thread.
"""

import asyncio
import contextlib
import enum
import socket
import struct
import threading
from random import Random
from types import TracebackType
from typing import Self

from deploy.local.process import HOST, free_ports

DELAY_S_MAX = 3.0  # twice the gateway's deadline


class Fault(enum.Enum):
    """What becomes of a request or an answer; `RESET` and `LOSE` strike every other one, at random."""

    NONE = "none"
    DELAY = "delay"  # it arrives up to DELAY_S_MAX later
    RESET = "reset"  # half of it arrives, then the connection is reset
    LOSE = "lose"  # half of it arrives, and nothing else ever does on this connection


class TcpProxy:
    """`fault` may be set at any time, from any thread; it holds for frames that arrive from then on."""

    def __init__(self, broker_port: int, random: Random) -> None:
        self.fault = Fault.NONE
        self.struck = 0
        self._broker_port = broker_port
        self._random = random
        [self.port] = free_ports(1)
        self._rewritten = (_address(broker_port), _address(self.port))
        self._is_listening = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="tcp-proxy", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._is_listening.wait(10), "the proxy cannot listen"
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join(10)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        self._connections: set[asyncio.Task[None]] = set()
        server = await asyncio.start_server(self._accept, HOST, self.port)
        self._is_listening.set()
        await self._ended.wait()
        server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)
        with contextlib.suppress(asyncio.CancelledError):
            await self._relay(reader, writer)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Until either end closes, or a fault resets both."""
        writers = [writer]
        try:
            broker_reader, broker_writer = await asyncio.open_connection(HOST, self._broker_port)
            writers.append(broker_writer)
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(self._pump(reader, broker_writer))
                pumps.create_task(self._pump(broker_reader, writer))
        except (OSError, ExceptionGroup):
            pass
        finally:
            for each in writers:
                _reset(each)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Raises OSError at the end, so that the other direction ends, too."""
        is_deaf = False
        while True:
            try:
                head = await reader.readexactly(4)
                frame = head + await reader.readexactly(*struct.unpack(">i", head))
            except asyncio.IncompleteReadError as error:
                raise ConnectionResetError from error
            if is_deaf:
                continue
            frame = frame.replace(*self._rewritten)
            fault = self.fault
            if fault is Fault.DELAY:
                self.struck += 1
                await asyncio.sleep(self._random.uniform(0, DELAY_S_MAX))
            elif fault is not Fault.NONE and self._random.random() < 0.5:
                self.struck += 1
                frame = frame[: len(frame) // 2]
            else:
                fault = Fault.NONE
            writer.write(frame)
            await writer.drain()
            if fault is Fault.RESET:
                raise ConnectionResetError
            is_deaf = fault is Fault.LOSE


def _address(port: int) -> bytes:
    """As Kafka's protocol has it in metadata: the end of a string, then 32 bits."""
    return HOST.encode() + struct.pack(">i", port)


def _reset(writer: asyncio.StreamWriter) -> None:
    """RST instead of FIN, and nothing more of what is buffered."""
    connection = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
