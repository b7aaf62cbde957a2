"""Undoes a request's Content-Encoding: at most `bytes_max` come out, a step at a time, whatever went in.

- gzip and zstd may be several members in a row, as appended log files and parallel compressors make them
  (RFC 1952, 2.2; RFC 8878, 3.1): all limits hold over all of them, and there are at most MEMBERS_MAX, because one that
  holds nothing costs 10 µs. deflate and br are one stream. Whatever else follows the end is an error.
- deflate is taken with its zlib wrapping (RFC 9110) and without, which many callers send.
- One coding and no more: stacked ones are never sent by a usual client, and multiply what a bomb can do.
- Beyond RATIO_FREE_BYTES a body may not come out RATIO_MAX times larger than it arrived. It is a limit on what cheap
  requests can make us do and lies above what honest ones reach: batches of rich events, alike but for an id, come to
  170 (gzip), 500 (zstd) and 590 (br). The same event ten thousand times over does exceed it, in br and zstd.
- A step takes WIRE_STEP_BYTES and gives PIECE_BYTES at most (2 % more with br). Nothing else in here allocates by
  what the body says: windows are of 32 KiB (deflate), 16 MiB (br) or ZSTD_WINDOW_BYTES_MAX, and are only touched as
  far as they are filled.
"""

import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import brotli

from gateway.errors import BadRequest, PayloadTooLarge, UnsupportedMediaType

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

RATIO_MAX = 1_000
RATIO_FREE_BYTES = 1_048_576
MEMBERS_MAX = 1_000
WIRE_STEP_BYTES = 4_096  # the worst known, br that is all prefix codes, takes half a millisecond
PIECE_BYTES = 32_000  # br gives no less than the 32,752 bytes of its first buffer
ZSTD_WINDOW_BYTES_MAX = 8_388_608  # what RFC 9659 allows a Content-Encoding

ACCEPTED = b"gzip, deflate, br, zstd"

_ZSTD_OPTIONS: dict[int, int] = {zstd.DecompressionParameter.window_log_max: ZSTD_WINDOW_BYTES_MAX.bit_length() - 1}
_ERRORS = (zlib.error, brotli.error, zstd.ZstdError)


class Member(Protocol):
    """One gzip member, zstd frame, deflate or br stream. `decode` raises one of _ERRORS."""

    def decode(self, data: bytes | memoryview) -> bytes:
        """At most a piece. While there is more it takes nothing but `rest`."""
        ...

    @property
    def ended(self) -> bool: ...
    @property
    def has_more(self) -> bool: ...
    @property
    def rest(self) -> bytes:
        """What was not taken of the data: the next to be decoded, by this member or, once it has ended, by another."""
        ...


class _Inflate:
    def __init__(self, wbits: int) -> None:
        self._stream = zlib.decompressobj(wbits)
        self.has_more = False

    def decode(self, data: bytes | memoryview) -> bytes:
        piece = self._stream.decompress(data, PIECE_BYTES)
        self.has_more = len(piece) == PIECE_BYTES  # zlib may have taken all data and still hold bytes back
        return piece

    @property
    def ended(self) -> bool:
        return self._stream.eof

    @property
    def rest(self) -> bytes:
        return self._stream.unused_data or self._stream.unconsumed_tail


class _Brotli:
    """It refuses by itself what follows the end, and keeps what it has not taken."""

    rest = b""

    def __init__(self) -> None:
        self._stream = brotli.Decompressor()
        self.has_more = False

    def decode(self, data: bytes | memoryview) -> bytes:
        piece: bytes = self._stream.process(data, output_buffer_limit=PIECE_BYTES)
        # `can_accept_more_data` says yes as soon as all data was taken, even if bytes are held back.
        self.has_more = len(piece) >= PIECE_BYTES or not self._stream.can_accept_more_data()
        return piece

    @property
    def ended(self) -> bool:
        return bool(self._stream.is_finished())


class _Zstd:
    def __init__(self) -> None:
        self._frame = zstd.ZstdDecompressor(options=_ZSTD_OPTIONS)

    def decode(self, data: bytes | memoryview) -> bytes:
        return self._frame.decompress(data, PIECE_BYTES)

    @property
    def ended(self) -> bool:
        return self._frame.eof

    @property
    def has_more(self) -> bool:
        return not self._frame.needs_input

    @property
    def rest(self) -> bytes:
        return self._frame.unused_data


@dataclass(frozen=True)
class Coding:
    name: str
    members_max: int
    open: Callable[[bytes], Member]
    """Given the whole body, to look at."""


def _open_deflate(body: bytes) -> Member:
    """A zlib header is told from raw deflate by its checksum; raw deflate looks like one only if padded with ones."""
    wrapped = len(body) >= 2 and body[0] & 0x8F == 0x08 and (body[0] << 8 | body[1]) % 31 == 0
    return _Inflate(zlib.MAX_WBITS if wrapped else -zlib.MAX_WBITS)


_GZIP = Coding("gzip", MEMBERS_MAX, lambda _: _Inflate(zlib.MAX_WBITS + 16))
_CODINGS = {
    b"gzip": _GZIP,
    b"x-gzip": _GZIP,
    b"deflate": Coding("deflate", 1, _open_deflate),
    b"br": Coding("br", 1, lambda _: _Brotli()),
    b"zstd": Coding("zstd", MEMBERS_MAX, lambda _: _Zstd()),
}


def content_coding(content_encoding: bytes) -> Coding | None:
    """The one coding that a Content-Encoding names; None if it names none. Raises UnsupportedMediaType."""
    names = [name.strip().lower() for name in content_encoding.split(b",")]
    names = [name for name in names if name not in (b"", b"identity")]
    if not names:
        return None
    coding = _CODINGS.get(names[0])
    if coding is None or len(names) > 1:
        raise UnsupportedMediaType(
            "Content-Encoding is not supported" if len(names) == 1 else "Content-Encoding may name one coding only",
            code="content_encoding_unsupported",
            headers=[(b"accept-encoding", ACCEPTED)],
        )
    return coding


def encoded_bytes_max(bytes_max: int) -> int:
    """Of a body that decodes to `bytes_max`: stored deflate grows by 5 bytes in 16 KiB, and by a header."""
    return bytes_max + (bytes_max >> 10) + 1_024


def decode(coding: Coding, body: bytes, bytes_max: int) -> Iterator[bytes]:
    """The decoded body in pieces, many of them empty: a step of bounded work each.

    Raises BadRequest for a body that is damaged, cut short, followed by something else or in another coding,
    PayloadTooLarge for one that exceeds a limit.
    """
    member: Member | None = None
    members = decoded_bytes = 0
    view = memoryview(body)
    for start in range(0, len(body), WIRE_STEP_BYTES):
        data: bytes | memoryview = view[start : start + WIRE_STEP_BYTES]
        while True:
            if member is None:
                if members == coding.members_max:
                    raise _too_many_members(coding, bytes_max)
                member = coding.open(body)
                members += 1
            try:
                piece = member.decode(data)
            except _ERRORS as error:
                raise _invalid(coding, f"The body is not valid {coding.name}", str(error)) from None
            decoded_bytes += len(piece)
            if decoded_bytes > bytes_max:
                raise PayloadTooLarge(bytes_max)
            if decoded_bytes > RATIO_FREE_BYTES and decoded_bytes > RATIO_MAX * len(body):
                raise PayloadTooLarge(
                    bytes_max,
                    f"Decoded, the body is more than {RATIO_MAX} times as large: send less at once, or uncompressed",
                    code="content_encoding_ratio",
                )
            yield piece
            if member.ended:
                data = member.rest
                member = None
                if not data:
                    break
            elif member.has_more:
                data = member.rest
            else:
                break
    if member is not None or not members:
        raise _invalid(coding, f"The body ends before its {coding.name} does", "truncated")


def _invalid(coding: Coding, message: str, reason: str) -> BadRequest:
    details = {"content_encoding": coding.name, "reason": reason}
    return BadRequest(message, code="content_encoding_invalid", details=details)


def _too_many_members(coding: Coding, bytes_max: int) -> BadRequest | PayloadTooLarge:
    if coding.members_max == 1:
        return _invalid(coding, f"The body goes on after its {coding.name} has ended", "trailing data")
    message = f"The body is more than {coding.members_max} {coding.name} streams in a row"
    return PayloadTooLarge(bytes_max, message, code="content_encoding_members")
