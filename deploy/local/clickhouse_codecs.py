"""Content encodings of HTTP bodies: gzip, deflate, zstd and lz4, in pieces of at most `PIECE_BYTES_MAX`.

A body may be several frames one behind the other. One that ends within a frame, or holds anything else, raises
`CodecError`. Limit: no brotli, which needs a wheel of its own.
"""

import sys
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO, Protocol

import lz4.frame  # type: ignore[import-untyped]

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

PIECE_BYTES_MAX = 1 << 20


class CodecError(Exception):
    """The body is not what its encoding says."""


class Decoder(Protocol):
    """One frame. `decompress` may be called again with b"" while `needs_input` is false."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes | None: ...
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class Inflater:
    """zlib's decoder, for gzip and deflate, with the manners of the others."""

    def __init__(self) -> None:
        self._zlib = zlib.decompressobj(wbits=32 + zlib.MAX_WBITS)
        self._needs_input = True

    @property
    def needs_input(self) -> bool:
        return self._needs_input

    @property
    def eof(self) -> bool:
        return self._zlib.eof

    @property
    def unused_data(self) -> bytes:
        return self._zlib.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        piece = self._zlib.decompress(self._zlib.unconsumed_tail + data, max_length)
        self._needs_input = len(piece) < max_length
        return piece


class Encoder(Protocol):
    """What `encode` gives out can be decoded at once, so that a slow result arrives as it is made."""

    def encode(self, piece: bytes) -> bytes: ...
    def end(self) -> bytes: ...


class Identity:
    def encode(self, piece: bytes) -> bytes:
        return piece

    def end(self) -> bytes:
        return b""


class Deflater:
    def __init__(self, wbits: int) -> None:
        self._zlib = zlib.compressobj(level=1, wbits=wbits)

    def encode(self, piece: bytes) -> bytes:
        return self._zlib.compress(piece) + self._zlib.flush(zlib.Z_SYNC_FLUSH)

    def end(self) -> bytes:
        return self._zlib.flush()


class Zstd:
    def __init__(self) -> None:
        self._zstd = zstd.ZstdCompressor(level=1)

    def encode(self, piece: bytes) -> bytes:
        return self._zstd.compress(piece, self._zstd.FLUSH_BLOCK)

    def end(self) -> bytes:
        return self._zstd.flush(self._zstd.FLUSH_FRAME)


class Lz4:
    def __init__(self) -> None:
        self._lz4 = lz4.frame.LZ4FrameCompressor(auto_flush=True)
        self._head = self._lz4.begin()

    def encode(self, piece: bytes) -> bytes:
        head, self._head = self._head, b""
        return bytes(head + self._lz4.compress(piece))

    def end(self) -> bytes:
        return bytes(self._head + self._lz4.flush())


DECODERS: dict[str, Callable[[], Decoder]] = {
    "gzip": Inflater,
    "x-gzip": Inflater,
    "deflate": Inflater,
    "zstd": zstd.ZstdDecompressor,
    "lz4": lz4.frame.LZ4FrameDecompressor,
}
# The cheapest first: this server answers programs on the same machine.
ENCODERS: dict[str, Callable[[], Encoder]] = {
    "lz4": Lz4,
    "zstd": Zstd,
    "gzip": lambda: Deflater(16 + zlib.MAX_WBITS),
    "deflate": lambda: Deflater(zlib.MAX_WBITS),
}
IDENTITY = ("", "identity")


def decoded(body: BinaryIO, encoding: str) -> Iterator[bytes]:
    """The body's bytes; `encoding` is one of `IDENTITY` or `DECODERS`."""
    pieces = iter(lambda: body.read(PIECE_BYTES_MAX), b"")
    if encoding in IDENTITY:
        yield from pieces
        return
    decoder = None
    for data in pieces:
        while data or (decoder and not decoder.eof and not decoder.needs_input):
            if decoder is None or decoder.eof:
                decoder = DECODERS[encoding]()
            try:
                piece = decoder.decompress(data, PIECE_BYTES_MAX)
            except (zlib.error, zstd.ZstdError, RuntimeError) as error:
                raise CodecError(f"{encoding} body: {error}") from error
            if piece:
                yield piece
            data = (decoder.unused_data or b"") if decoder.eof else b""
    if decoder is not None and not decoder.eof:
        raise CodecError(f"{encoding} body ends within a frame")


def chosen_encoding(accepted: str) -> str:
    """The encoding for an answer, of those that an Accept-Encoding header offers; "" if none fits."""
    offers = [offer.replace(" ", "").lower() for offer in accepted.split(",")]
    offered = {offer.partition(";")[0] for offer in offers if not offer.endswith(";q=0")}
    return next((name for name in ENCODERS if name in offered), "")


def new_encoder(encoding: str) -> Encoder:
    return ENCODERS[encoding]() if encoding else Identity()
