"""Encoded bodies as honest callers send them, and as hostile ones do.

What no encoder makes is written by hand: bombs of gigabytes in a few bytes, streams that cost much and say nothing.
"""

import gzip
import zlib
from collections.abc import Callable
from itertools import pairwise

import brotli
from backports import zstd

ZSTD_MAGIC = (0xFD2FB528).to_bytes(4, "little")


def zlib_deflate(body: bytes) -> bytes:
    return zlib.compress(body)


def raw_deflate(body: bytes) -> bytes:
    stream = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return stream.compress(body) + stream.flush()


def stored_deflate(body: bytes) -> bytes:
    stream = zlib.compressobj(0, wbits=-zlib.MAX_WBITS)
    return stream.compress(body) + stream.flush()


def named_gzip(body: bytes) -> bytes:
    """All that a member's head can have: extra field, name, comment and a checksum of the head."""
    head = b"\x1f\x8b\x08\x1e" + bytes(4) + b"\x02\x03" + b"\x04\x00ab\x00\x00" + b"events.json\0" + b"comment\0"
    crc16 = (zlib.crc32(head) & 0xFFFF).to_bytes(2, "little")
    tail = zlib.crc32(body).to_bytes(4, "little") + len(body).to_bytes(4, "little")
    return head + crc16 + raw_deflate(body) + tail


def flushed_gzip(body: bytes) -> bytes:
    """As a caller encodes who sends as it goes."""
    stream = zlib.compressobj(wbits=zlib.MAX_WBITS + 16)
    cuts = [*range(0, len(body), 1_000), len(body)]
    parts = [stream.compress(body[a:b]) + stream.flush(zlib.Z_SYNC_FLUSH) for a, b in pairwise(cuts)]
    return b"".join(parts) + stream.flush()


def gzip_members(body: bytes) -> bytes:
    half = len(body) // 2
    return gzip.compress(body[:half]) + gzip.compress(b"") + gzip.compress(body[half:])


def br(body: bytes) -> bytes:
    encoded: bytes = brotli.compress(body, quality=5)
    return encoded


def br_wide(body: bytes) -> bytes:
    encoded: bytes = brotli.compress(body, quality=5, lgwin=24)
    return encoded


def zstd_checked(body: bytes) -> bytes:
    return zstd.compress(body, options={zstd.CompressionParameter.checksum_flag: 1})


def zstd_streamed(body: bytes) -> bytes:
    """Without the content's size in the head, and with the largest window that HTTP allows."""
    stream = zstd.ZstdCompressor(options={zstd.CompressionParameter.window_log: 23})
    half = len(body) // 2
    return stream.compress(body[:half], stream.FLUSH_BLOCK) + stream.compress(body[half:]) + stream.flush()


def zstd_frames(body: bytes) -> bytes:
    half = len(body) // 2
    return zstd.compress(body[:half]) + zstd_skippable(b"index") + zstd_checked(body[half:])


def zstd_skippable(content: bytes) -> bytes:
    return b"\x50\x2a\x4d\x18" + len(content).to_bytes(4, "little") + content


ENCODERS: dict[str, tuple[bytes, Callable[[bytes], bytes]]] = {
    "gzip": (b"gzip", gzip.compress),
    "x-gzip": (b"x-gzip", gzip.compress),
    "gzip with a full head": (b"gzip", named_gzip),
    "gzip, flushed": (b"gzip", flushed_gzip),
    "gzip members": (b"gzip", gzip_members),
    "deflate": (b"deflate", zlib_deflate),
    "raw deflate": (b"deflate", raw_deflate),
    "stored deflate": (b"deflate", stored_deflate),
    "br": (b"br", br),
    "br, wide": (b"br", br_wide),
    "zstd": (b"zstd", zstd.compress),
    "zstd, checked": (b"zstd", zstd_checked),
    "zstd, streamed": (b"zstd", zstd_streamed),
    "zstd frames": (b"zstd", zstd_frames),
}
SINGLE_STREAMS = {name: encoder for name, encoder in ENCODERS.items() if not name.endswith(("members", "frames"))}


def zstd_frame(*blocks: bytes, window_log: int = 20) -> bytes:
    """The last block must be marked as such by its maker."""
    return ZSTD_MAGIC + b"\0" + bytes([(window_log - 10) << 3]) + b"".join(blocks)


def zstd_block(kind: int, size: int, content: bytes = b"", *, last: bool = False) -> bytes:
    """kind: 0 is raw, 1 one byte repeated `size` times."""
    return (last | kind << 1 | size << 3).to_bytes(3, "little") + content


def zstd_huge_segment(size: int) -> bytes:
    """One segment: its window is as large as its content says to be."""
    return ZSTD_MAGIC + b"\xe0" + size.to_bytes(8, "little") + zstd_block(0, 1, b"x", last=True)


def deflate_bomb(bytes_min: int) -> bytes:
    """A megabyte of spaces, over and over; never ends."""
    stream = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    megabyte = stream.compress(b" " * 1_000_000) + stream.flush(zlib.Z_FULL_FLUSH)
    return megabyte * (bytes_min // 1_000_000 + 1)


def gzip_bomb(bytes_min: int) -> bytes:
    return b"\x1f\x8b\x08" + bytes(7) + deflate_bomb(bytes_min)


def gzip_members_bomb(bytes_min: int) -> bytes:
    """Each member is harmless."""
    member = gzip.compress(b" " * 50_000)
    return member * (bytes_min // 50_000 + 1)


def zstd_bomb(bytes_min: int) -> bytes:
    """128 KiB from each four bytes."""
    return zstd_frame(zstd_block(1, 131_072, b" ") * (bytes_min // 131_072 + 1))


def zstd_frames_bomb(bytes_min: int) -> bytes:
    return zstd_frame(zstd_block(1, 131_072, b" ", last=True)) * (bytes_min // 131_072 + 1)


def br_bomb(bytes_min: int) -> bytes:
    encoded: bytes = brotli.compress(bytes(bytes_min), quality=1)
    return encoded


BOMBS: dict[str, tuple[bytes, Callable[[int], bytes], int]] = {
    "gzip": (b"gzip", gzip_bomb, 1_000_000_000),
    "gzip members": (b"gzip", gzip_members_bomb, 50_000_000),
    "gzip in gzip": (b"gzip", lambda size: gzip.compress(gzip_bomb(size)), 10_000_000_000),
    "deflate": (b"deflate", lambda size: b"\x78\xda" + deflate_bomb(size), 1_000_000_000),
    "raw deflate": (b"deflate", deflate_bomb, 1_000_000_000),
    "br": (b"br", br_bomb, 100_000_000),
    "zstd": (b"zstd", zstd_bomb, 10_000_000_000),
    "zstd frames": (b"zstd", zstd_frames_bomb, 100_000_000),
}
"""Coding, maker, and the size to make it for: the largest of which it is made quickly."""


def _flipped(body: bytes, at: int) -> bytes:
    damaged = bytearray(body)
    damaged[at] ^= 1
    return bytes(damaged)


_TEXT = b'{"event_type":"click"}'
_GZIP = gzip.compress(_TEXT)
_GZIP_RESERVED_FLAG = _GZIP[:3] + b"\x80" + _GZIP[4:]
_ZLIB_WITH_DICTIONARY = b"\x78\xbb" + bytes(4) + raw_deflate(_TEXT)

INVALID: dict[str, tuple[bytes, bytes]] = {
    "nothing, gzip": (b"gzip", b""),
    "nothing, deflate": (b"deflate", b""),
    "nothing, br": (b"br", b""),
    "nothing, zstd": (b"zstd", b""),
    "plain JSON, gzip": (b"gzip", _TEXT),
    "plain JSON, deflate": (b"deflate", _TEXT),
    "plain JSON, br": (b"br", _TEXT),
    "plain JSON, zstd": (b"zstd", _TEXT),
    "zstd as gzip": (b"gzip", zstd.compress(_TEXT)),
    "gzip as deflate": (b"deflate", _GZIP),
    "zlib as gzip": (b"gzip", zlib.compress(_TEXT)),
    "gzip as br": (b"br", _GZIP),
    "gzip as zstd": (b"zstd", _GZIP),
    "gzip, wrong checksum": (b"gzip", _flipped(_GZIP, -8)),
    "gzip, wrong size": (b"gzip", _flipped(_GZIP, -1)),
    "gzip, unknown method": (b"gzip", b"\x1f\x8b\x07" + _GZIP[3:]),
    "gzip, reserved flag": (b"gzip", _GZIP_RESERVED_FLAG),
    "gzip, no trailer": (b"gzip", _GZIP[:-8]),
    "gzip, garbage behind": (b"gzip", _GZIP + b"garbage"),
    "gzip, zeros behind": (b"gzip", _GZIP + bytes(100)),
    "gzip, a byte behind": (b"gzip", _GZIP + b"\x1f"),
    "gzip, half a member behind": (b"gzip", _GZIP + _GZIP[:15]),
    "gzip, bad second member": (b"gzip", _GZIP + _flipped(_GZIP, -8)),
    "deflate, wrong checksum": (b"deflate", _flipped(zlib.compress(_TEXT), -1)),
    "deflate, needs a dictionary": (b"deflate", _ZLIB_WITH_DICTIONARY),
    "deflate, garbage behind": (b"deflate", zlib.compress(_TEXT) + b"x"),
    "deflate, twice": (b"deflate", zlib.compress(_TEXT) * 2),
    "raw deflate, garbage behind": (b"deflate", raw_deflate(_TEXT) + b"x"),
    "raw deflate, reserved block": (b"deflate", b"\x07"),
    "raw deflate, distance too far": (b"deflate", b"\x03\x02\x00"),
    "br, garbage behind": (b"br", brotli.compress(_TEXT) + b"x"),
    "br, twice": (b"br", brotli.compress(_TEXT) * 2),
    "br, large window": (b"br", b"\x11\x1e" + brotli.compress(_TEXT)),
    "zstd, wrong checksum": (b"zstd", _flipped(zstd_checked(_TEXT), -1)),
    "zstd, garbage behind": (b"zstd", zstd.compress(_TEXT) + b"garbage"),
    "zstd, bytes behind that may be a magic": (b"zstd", zstd.compress(_TEXT) + ZSTD_MAGIC[:3]),
    "zstd, half a frame behind": (b"zstd", zstd.compress(_TEXT) + zstd.compress(_TEXT)[:-1]),
    "zstd, half a skippable frame": (b"zstd", zstd_skippable(b"content")[:-1]),
    "zstd, reserved block": (b"zstd", zstd_frame(zstd_block(3, 1, b"x", last=True))),
    "zstd, reserved bit": (b"zstd", ZSTD_MAGIC + b"\x08\x50" + zstd_block(0, 0, last=True)),
    "zstd, needs a dictionary": (b"zstd", ZSTD_MAGIC + b"\x21\x07\x01" + zstd_block(0, 1, b"x", last=True)),
    "zstd, window of 16 MiB": (b"zstd", zstd_frame(zstd_block(0, 1, b"x", last=True), window_log=24)),
    "zstd, window of 2 TiB": (b"zstd", zstd_frame(zstd_block(0, 1, b"x", last=True), window_log=41)),
    "zstd, content of 2 EiB": (b"zstd", zstd_huge_segment(1 << 61)),
    "zstd, less than it says": (b"zstd", ZSTD_MAGIC + b"\x20\x05" + zstd_block(0, 1, b"x", last=True)),
    "zstd, old format": (b"zstd", b"\x27\xb5\x2f\xfd" + bytes(20)),
}


# Streams that make work and say nothing


def empty_gzip_members(bytes_min: int) -> bytes:
    member = gzip.compress(b"")
    return member * (bytes_min // len(member) + 1)


def empty_zstd_frames(bytes_min: int) -> bytes:
    frame = zstd.compress(b"")
    return frame * (bytes_min // len(frame) + 1)


def zstd_skippable_frames(bytes_min: int) -> bytes:
    return zstd_skippable(b"") * (bytes_min // 8 + 1)


def empty_stored_blocks(bytes_min: int) -> bytes:
    return b"\x00\x00\x00\xff\xff" * (bytes_min // 5) + b"\x01\x00\x00\xff\xff"


def empty_zstd_blocks(bytes_min: int) -> bytes:
    return zstd_frame(zstd_block(0, 0) * (bytes_min // 3), zstd_block(0, 0, last=True))


def empty_br_metablocks(bytes_min: int) -> bytes:
    """Metadata of no length; then the last, empty one."""
    return b"\x0c" + b"\x06" * bytes_min + b"\x03"


class _Bits:
    def __init__(self) -> None:
        self.value = self.length = 0

    def put(self, value: int, length: int) -> None:
        self.value |= value << self.length
        self.length += length

    def code(self, code: int, length: int) -> None:
        """Of Huffman, whose first bit is the highest."""
        for bit in reversed(range(length)):
            self.put(code >> bit & 1, 1)


def huffman_tables(bytes_min: int) -> bytes:
    """Raw deflate blocks of 225 bits: two tables with codes of up to 15 bits each, and then the end of the block."""
    lengths = [*range(1, 16), 15]
    block = _Bits()
    block.put(0b100, 3)  # not the last, dynamic
    block.put(272 - 257, 5)
    block.put(16 - 1, 5)
    block.put(19 - 4, 4)
    for symbol in (16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15):
        block.put(4 if 1 <= symbol <= 15 or symbol == 18 else 0, 3)
    for zeros in (138, 118):
        block.code(15, 4)
        block.put(zeros - 11, 7)
    for length in lengths * 2:
        block.code(length - 1, 4)
    block.code(0, 1)
    eight = sum(block.value << block.length * n for n in range(8)).to_bytes(block.length, "little")
    return eight * (bytes_min // len(eight) + 1) + b"\x03\x00"


IDLERS: dict[str, tuple[bytes, Callable[[int], bytes]]] = {
    "gzip members": (b"gzip", empty_gzip_members),
    "zstd frames": (b"zstd", empty_zstd_frames),
    "zstd skippable frames": (b"zstd", zstd_skippable_frames),
    "stored blocks": (b"deflate", empty_stored_blocks),
    "zstd blocks": (b"zstd", empty_zstd_blocks),
    "br metablocks": (b"br", empty_br_metablocks),
    "Huffman tables": (b"deflate", huffman_tables),
}
