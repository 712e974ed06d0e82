"""What an encoded chunk decodes to, known before it is decoded: from the size that it states, or by decoding with a limit.

blosc, lz4 and most zstd streams state the size; of other zstd streams the blocks are counted. gzip, zlib, bz2 and lzma do not, so that they are decoded piece by piece, and dropped, until
the end or the limit, unless the stored bytes are too few for any stream to reach it.
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

SLACK_BYTES, SLACK = 2**20, 8  # that an encoded chunk may have beyond its array's: filters may widen numbers
PIECE = 2**20  # bytes that are decoded at a time
DICTIONARY = 2**28  # bytes that lzma may keep while it decodes; its highest preset keeps 64 MiB

_STATED = ("blosc", "lz4", "zstd")
_RATIO = {
    "gzip": 1032,
    "zlib": 1032,
}  # the most that a byte of deflate stands for [RFC 1951]; of the others it has no bound
_COMPRESSORS = {*_STATED, "gzip", "zlib", "bz2", "lzma"}
_ZSTD = b"\x28\xb5\x2f\xfd"  # what a frame begins with
_EMPTY = 2**64 - 1  # offset and length of a chunk that a shard does not have

Codec = tuple[str, Mapping[str, Any]]  # name and options


class Shard(NamedTuple):
    """Of a sharded array. chunks : in a shard.  at_end : whether the index stands behind them, else before.
    sums : bytes of the checksum behind the index.
    """

    chunks: int
    at_end: bool
    sums: int


@dataclass(frozen=True)
class Chunk:
    """Of an array. size : bytes of one that is decoded.  compressor : that made the stored bytes; None for none.
    shard : that the chunks are in; None for none.
    """

    size: int
    compressor: Codec | None
    shard: Shard | None = None

    def problem(self, stored: memoryview, is_whole: bool) -> str | None:
        """Return what is wrong with stored bytes that decode to much more than a chunk, else None. is_whole : as they are on disk."""
        if self.compressor is None:
            return None
        most = SLACK * self.size + SLACK_BYTES
        return next((wrong for part in self._parts(stored, is_whole) if (wrong := self._problem(part, most))), None)

    def is_cut(self, stored: memoryview, is_whole: bool) -> bool:
        """Return whether stored bytes end before the length that they state. is_whole : as of `problem`."""
        return self.compressor is not None and any(
            len(part) < stated_length(part, self.compressor[0]) for part in self._parts(stored, is_whole)
        )

    def _parts(self, stored: memoryview, is_whole: bool) -> list[memoryview]:
        return _inside(stored, self.shard) if self.shard is not None and is_whole else [stored]

    def _problem(self, stored: memoryview, most: int) -> str | None:
        assert self.compressor is not None
        name, options = self.compressor
        if name in _STATED:
            declared = stated_bytes(stored, name, most)
            return f"declares {declared} bytes, expected {self.size}" if declared > most else None
        if len(stored) * _RATIO.get(name, np.inf) <= most:
            return None
        try:
            found = _decoded(stored, most, lambda: _DECODERS[name](options))
        except lzma.LZMAError as error:
            return f"asks for more memory than {DICTIONARY} bytes ({error})" if "emory" in str(error) else None
        except (OSError, EOFError, ValueError, zlib.error):  # damaged: the codec says so, after as many bytes
            return None
        return f"decodes to more than {most} bytes, expected {self.size}" if found > most else None


def compressor_of(codecs: Sequence[Codec]) -> Codec | None:
    """Return the compressor among the codecs of an array, in the order in which they encode; None without one.

    Raises
    ------
    ValueError
        If what it decodes to would not be known: it is packed again, or its bytes are moved.
    """
    plain = [(name.removeprefix("numcodecs."), options) for name, options in codecs]
    at = [i for i, (name, _) in enumerate(plain) if name in _COMPRESSORS]
    if not at:
        return None
    behind = [
        name for name, options in plain[at[0] + 1 :] if name != "crc32c" or options.get("location", "end") != "end"
    ]
    if behind:
        raise ValueError(f"is encoded by {plain[at[0]][0]} and then by {', '.join(behind)}, which is not decoded")
    return plain[at[0]]


def _inside(stored: memoryview, shard: Shard) -> list[memoryview]:
    """The chunks of a shard, by its index: offset and length of each [Zarr v3, sharding codec]."""
    start = len(stored) - 16 * shard.chunks - shard.sums if shard.at_end else 0
    index = stored[start : start + 16 * shard.chunks] if start >= 0 else b""
    if len(index) < 16 * shard.chunks:
        return []  # shorter than its index, as zarr will find
    entries = np.frombuffer(index, "<u8").reshape(-1, 2).tolist()
    return [stored[offset : offset + length] for offset, length in entries if offset != _EMPTY]


def _decoded(stored: memoryview, most: int, made: Callable[[], Any]) -> int:
    """How many bytes a stream decodes to, counted until they are more than `most`. Streams may follow each other."""
    found, rest = 0, stored
    while len(rest) and found <= most:
        decoder = made()
        piece = decoder.decompress(rest, PIECE)
        while found <= most and not decoder.eof:
            found += len(piece)
            tail = getattr(decoder, "unconsumed_tail", None)  # of zlib; the others keep what they have not read
            if not piece and (tail == b"" or getattr(decoder, "needs_input", False)):
                return found  # cut, as the codec will find
            piece = decoder.decompress(b"" if tail is None else tail, PIECE)
        found += len(piece)
        rest = memoryview(decoder.unused_data)
    return found


_DECODERS: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    "gzip": lambda options: zlib.decompressobj(31),
    "zlib": lambda options: zlib.decompressobj(15),
    "bz2": lambda options: bz2.BZ2Decompressor(),
    "lzma": lambda options: _lzma(options),
}


def _lzma(options: Mapping[str, Any]) -> lzma.LZMADecompressor:
    """The decoder of the codec's format; the raw one, without a header, takes filters and no limit of memory."""
    format_, filters = int(options.get("format", lzma.FORMAT_XZ)), options.get("filters")
    if format_ == lzma.FORMAT_RAW:
        return lzma.LZMADecompressor(format_, filters=filters)
    return lzma.LZMADecompressor(format_, memlimit=DICTIONARY)


def stated_length(stored: memoryview, compressor: str) -> int:
    """Return the bytes of an encoded chunk by its header; 0 where that is not stated. Past the end, blosc decodes what is in memory."""
    return int.from_bytes(stored[12:16], "little") if compressor == "blosc" else 0


def stated_bytes(stored: memoryview, compressor: str, most: int) -> int:
    """Return the decoded bytes that the header of an encoded chunk states; 0 where there is no header.

    Parameters
    ----------
    stored : memoryview
    compressor : {"blosc", "lz4", "zstd"}
    most : int
        Where a zstd stream states no size, its blocks are counted until they are more than this.
    """
    head = bytes(stored[:24])
    if compressor == "blosc":
        return int.from_bytes(head[4:8], "little")
    if compressor == "lz4":
        return int.from_bytes(head[:4], "little")
    if head[:4] != _ZSTD or len(head) < 6:
        return 0
    flags = head[4]  # RFC 8878, 3.1.1.1
    width = (1 if flags & 0x20 else 0, 2, 4, 8)[flags >> 6]
    at = 5 + (0 if flags & 0x20 else 1) + (0, 1, 2, 4)[flags & 3]
    if width == 0:
        return _zstd_blocks(stored, at, most)
    return int.from_bytes(head[at : at + width], "little") + (256 if width == 2 else 0)


def _zstd_blocks(stored: memoryview, at: int, most: int) -> int:
    """The most that the blocks of zstd frames decode to, where no size is stated, counted until it is more than `most`.

    A block decodes to at most 128 KiB, and begins with 3 bytes: whether it is the last (bit 0), its type (bits 1 and 2; type 1
    repeats the one byte that follows), and its size. at : where the first begins. [RFC 8878, 3.1.1.2]
    """
    found, check = 0, stored[4] & 4
    while at + 3 <= len(stored) and found <= most:
        header = int.from_bytes(stored[at : at + 3], "little")
        found += 2**17
        at += 3 + (1 if header >> 1 & 3 == 1 else header >> 3)
        if header & 1:
            at += check
            if bytes(stored[at : at + 4]) != _ZSTD or at + 6 > len(stored):
                break
            flags, check = stored[at + 4], stored[at + 4] & 4
            at += 5 + (0 if flags & 0x20 else 1) + (0, 1, 2, 4)[flags & 3] + (flags >> 5 & 1, 2, 4, 8)[flags >> 6]
    return found
