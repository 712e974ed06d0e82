"""Rows in the IDX format of MNIST. [LeCun, Cortes, Burges: the MNIST database]."""

from __future__ import annotations

import math
import struct
from typing import Literal

import numpy as np
from pydantic import Field

from pipeline.config import AnyPath, LocalPath
from pipeline.data.files import damaged, open_binary, opening, seekable, what_it_is
from pipeline.data.section import ConvertedSection
from pipeline.data.table import TableSource, refuse_other_size
from pipeline.errors import InputError

_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}  # the third byte; big-endian


class IdxSection(ConvertedSection):
    """An IDX file such as MNIST's; pictures are flattened row by row."""

    source: Literal["idx"] = Field("idx", description="the format of MNIST")
    path: AnyPath = Field(description="an IDX file, .gz or plain, or an fsspec URL of one")
    cache: LocalPath | None = Field(
        None,
        description="folder of the unpacked copy of a large .gz file, which workers must see; null: the folder of the input",
    )

    def open(self) -> TableSource:
        path = self.path
        with opening(path), open_binary(path, self.storage_options) as stream:
            magic = stream.read(4)
            if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in _TYPES:
                advice = what_it_is(magic) or "Set data.source to what it is"
                raise InputError(
                    f"{path}: begins with {magic.hex(' ')}, expected 00 00, a type and a rank. It is no IDX file. {advice}."
                )
            rank = magic[3]
            sizes = stream.read(4 * rank)
            if len(sizes) < 4 * rank:
                raise damaged(path, "its header is cut short")
            shape = struct.unpack(f">{rank}I", sizes)
            stored = np.dtype(_TYPES[magic[2]])
            offset = 4 + 4 * rank
            n_bytes = offset + math.prod(shape) * stored.itemsize
        if rank < 2:
            raise InputError(f"{path}: got shape {shape}, expected rows and features. Are these the labels?")
        path = seekable(path, self.storage_options, self.cache, n_bytes)
        with opening(path), open_binary(path, self.storage_options) as stream:
            refuse_other_size(stream, path, n_bytes)
        return TableSource(path, self.storage_options, offset, shape, stored)
