"""Arrays in one file, with a checksum of every byte.

Covers: the layout of the file, writing it, mapping it. Does not cover: where the file is, what its
key stands for, who may write it (``kept``).

::

    magic, length and CRC of the header | header: JSON, the CRC of what follows | array | array ...

Everything begins at a multiple of 64 bytes. Arrays keep their order in memory, C or Fortran.
"""

import json
import math
import mmap
import struct
from collections.abc import Iterator, Sequence
from io import FileIO
from typing import Any

import numpy as np
from isal import isal_zlib

from sharedmask.typing import Array

MAGIC = b"smresult"
_PREFIX = struct.Struct("<8sII")
_ALIGNMENT = 64
# Smaller files are copied: a mapping holds a descriptor for as long as its arrays live.
_MAPPED_BYTES = 16 * 2**20


def write(file: FileIO, key: str, arrays: Sequence[Array]) -> int:
    """Write ``arrays`` to an empty file; returns its size in bytes."""
    parts = [_bytes_of(array) for array in arrays]
    crc = 0
    for piece in _padded(parts):
        crc = isal_zlib.crc32(piece, crc)
    specs = [[array.dtype.str, list(array.shape), _order(array)] for array in arrays]
    header = json.dumps({"key": key, "crc": crc, "arrays": specs}).encode()
    header += b" " * (-(_PREFIX.size + len(header)) % _ALIGNMENT)
    _write_all(file, _PREFIX.pack(MAGIC, len(header), isal_zlib.crc32(header)) + header)
    for piece in _padded(parts):
        _write_all(file, piece)
    return file.tell()


def read(file: FileIO, key: str) -> list[Array] | None:
    """The arrays as they were written, writeable, each change private; None if a byte is wrong.

    Large ones are views of the file's pages, which are copied where they are written to.
    """
    size = file.seek(0, 2)
    if size < _PREFIX.size:
        return None
    buffer = _content(file, size)
    magic, length, crc = _PREFIX.unpack_from(buffer)
    start = _PREFIX.size + length
    if magic != MAGIC or start > size:
        return None
    with memoryview(buffer) as view, view[_PREFIX.size : start] as header, view[start:] as payload:
        if isal_zlib.crc32(header) != crc:
            return None
        facts = json.loads(bytes(header))
        if facts["key"] != key or isal_zlib.crc32(payload) != facts["crc"]:
            return None
    return list(_arrays(buffer, start, facts["arrays"]))


def _content(file: FileIO, size: int) -> bytearray | mmap.mmap:
    if size >= _MAPPED_BYTES:
        return mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY)
    file.seek(0)
    content = bytearray(size)
    return content[: file.readinto(content)]


def _arrays(buffer: bytearray | mmap.mmap, start: int, specs: Sequence[Any]) -> Iterator[Array]:
    for kind, shape, order in specs:
        dtype, count = np.dtype(kind), math.prod(shape)
        yield np.frombuffer(buffer, dtype, count, start).reshape(shape, order=order)
        start += -(-count * dtype.itemsize // _ALIGNMENT) * _ALIGNMENT


def _order(array: Array) -> str:
    return "F" if array.flags.f_contiguous else "C"


def _bytes_of(array: Array) -> memoryview:
    """The array's memory; of a copy only where it has gaps."""
    rows = np.ascontiguousarray(array.T if _order(array) == "F" else array)
    return rows.reshape(-1).view(np.uint8).data


def _padded(parts: Sequence[memoryview]) -> Iterator[memoryview | bytes]:
    for part in parts:
        yield part
        yield bytes(-len(part) % _ALIGNMENT)


def _write_all(file: FileIO, data: memoryview | bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]
