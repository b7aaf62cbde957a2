"""The part of a request that blocks: reads what it asks, has the engine do it, and hands out the result.

An INSERT gets the engine a file with its data; a SELECT in a format without a head or a foot comes block by
block. Limit: any other result is held in memory as a whole, outside the engine's own memory limit.
"""

import secrets
import tempfile
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import BinaryIO, cast

from deploy.local.clickhouse_call import BODY_BYTES_MAX, Call, bounded, form, spool, whole
from deploy.local.clickhouse_codecs import IDENTITY, PIECE_BYTES_MAX, CodecError, Encoder, decoded, new_encoder
from deploy.local.clickhouse_engine import EngineSession
from deploy.local.clickhouse_errors import CANNOT_DECOMPRESS, ClickHouseError, refusal
from deploy.local.clickhouse_sql import insert_in, query_in

# As a server's `max_query_size`: within them an INSERT comes to its data.
HEAD_BYTES_MAX = 256 << 10


class Answer:
    """What a request gets: a result piece by piece. The first is there already, so the query has begun well.

    An error after that is put into the result, between marks with `tag`, as clickhouse-connect knows them;
    then `is_broken` says that the answer is to have no proper end. `format` is None if there is no result.
    """

    def __init__(self, pieces: Iterator[bytes], answer_format: str | None, encoder: Encoder, version: str) -> None:
        first = next(pieces, b"")
        self.format = answer_format
        self.tag = secrets.token_hex(8)
        self.is_broken = False
        self._version = version
        self._pieces = self._encoded(chain((first,), pieces), encoder)

    def next_piece(self) -> bytes | None:
        return next(self._pieces, None)

    def _encoded(self, pieces: Iterator[bytes], encoder: Encoder) -> Iterator[bytes]:
        try:
            for piece in pieces:
                yield encoder.encode(piece)
        except ClickHouseError as error:
            self.is_broken = True
            text = error.body(self._version) + b"\n"
            mark = self.tag.encode()
            yield encoder.encode(
                b"\r\n__exception__\r\n%b\r\n%b%d %b\r\n__exception__\r\n" % (mark, text, len(text), mark)
            )
        yield encoder.end()


class Work:
    """One request's work, to be done in its session; closes the body."""

    def __init__(self, call: Call, session: EngineSession, body: BinaryIO, upload_dir: Path, version: str) -> None:
        self._call = call
        self._session = session
        self._body = body
        self._upload_dir = upload_dir
        self._version = version

    def answer(self) -> Answer:
        call = self._call
        with self._body:
            self._session.prepare(call.database, call.settings, is_read_only=call.is_read_only)
            pieces, answer_format = self._result()
        if call.waits_for_end:
            pieces = self._kept(pieces)
        return Answer(pieces, answer_format, new_encoder(call.answer_encoding), self._version)

    def _result(self) -> tuple[Iterator[bytes], str | None]:
        """The result and its format."""
        call, session = self._call, self._session
        parameters = call.parameters
        text = call.query + b"\n" if call.query else b""
        pieces = self._decoded()
        if call.form_boundary:
            text, parameters = form(call, whole(pieces))
        elif call.body_encoding in IDENTITY and (insert := insert_in(text)) and insert.data_at == len(text):
            session.insert(insert, self._body, parameters)
            return iter(()), None
        while len(text) < HEAD_BYTES_MAX and (piece := next(pieces, b"")):
            text += piece
        if insert := insert_in(text):
            with tempfile.TemporaryFile(dir=self._upload_dir) as data:
                rest = chain((text[insert.data_at :],), pieces)
                data.writelines(bounded(rest, BODY_BYTES_MAX, "The decoded body"))
                session.insert(insert, cast(BinaryIO, data), parameters)
            return iter(()), None
        query = query_in(whole(chain((text,), pieces)), call.default_format, call.settings)
        blocks = session.stream(query, parameters) if query.is_streamed else iter((session.answer(query, parameters),))
        return _cut(blocks), query.format

    def _decoded(self) -> Iterator[bytes]:
        try:
            yield from decoded(self._body, self._call.body_encoding)
        except CodecError as error:
            raise refusal(CANNOT_DECOMPRESS, str(error)) from error

    def _kept(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        """The same pieces, once the last of them is here: an error among them is raised now."""
        kept = spool(self._upload_dir)
        kept.writelines(bounded(pieces, BODY_BYTES_MAX, "The result to wait for"))
        kept.seek(0)
        return self._reread(kept)

    def _reread(self, kept: BinaryIO) -> Iterator[bytes]:
        with kept:
            yield from iter(lambda: kept.read(PIECE_BYTES_MAX), b"")


def _cut(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """The same bytes in pieces that can be sent and compressed one by one: the engine's may be of any size."""
    for block in blocks:
        for at in range(0, len(block), PIECE_BYTES_MAX):
            yield block[at : at + PIECE_BYTES_MAX]
