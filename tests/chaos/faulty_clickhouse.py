"""Stands before the real engine and, while told so, answers as an ill one does: with an error of its own, or not."""

import asyncio
import re
import threading

from deploy.local.process import HOST

_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)


class FaultyClickHouse:
    """`error` is the code and text to answer with; None passes everything on. While `keeps_answers`, what answers a
    block with a token does not arrive: the block has landed, and the connection ends."""

    def __init__(self, target: int) -> None:
        self.error: tuple[int, str] | None = None
        self.keeps_answers = False
        self.refused = 0
        self.kept = 0
        self.port = 0
        self._target = target
        self._loop = asyncio.new_event_loop()
        started = threading.Event()
        threading.Thread(target=self._run, args=(started,), daemon=True).start()
        assert started.wait(10)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)

    def _run(self, started: threading.Event) -> None:
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, HOST, 0))
        self.port = server.sockets[0].getsockname()[1]
        started.set()
        self._loop.run_forever()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(HOST, self._target)
        answers = asyncio.ensure_future(self._pump(there, writer))
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = _LENGTH.search(head)
                body = await reader.readexactly(int(length[1]) if length else 0)
                if self.error is not None:
                    self._refuse(writer, *self.error)
                    break
                if self.keeps_answers and b"insert_deduplication_token" in head:
                    answers.cancel()
                    await asyncio.wait({answers})
                    back.write(head + body)
                    await there.readuntil(b"\r\n\r\n")
                    self.kept += 1
                    break
                back.write(head + body)
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            answers.cancel()
            back.close()
            writer.close()

    def _refuse(self, writer: asyncio.StreamWriter, code: int, text: str) -> None:
        self.refused += 1
        body = f"Code: {code}. DB::Exception: {text} (version 26.9.2.1)\n".encode()
        writer.write(
            b"HTTP/1.1 500 Internal Server Error\r\nX-ClickHouse-Exception-Code: %d\r\n"
            b"Content-Type: text/plain\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b" % (code, len(body), body)
        )

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(65_536):
            sink.write(data)
            await sink.drain()
        sink.close()
