"""Containers: a header of JSON facts of any length, then arrays.

Covers: layout, header, reading one back, containers with a checksum of every byte, facts that others
wrote. Does not cover: where the bytes live, who owns them.

::

    0       16       24        40                   ends at a page
    | magic | length | blake2b | JSON facts, spaces | array | pad | array ...

The header says where each array lies, at a multiple of 64 bytes, the first at a page.
"""

import json
import math
import mmap
import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import fields
from hashlib import blake2b
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np

from sharedmask.errors import AttachError, SegmentError
from sharedmask.records import dataclass
from sharedmask.storage.views import DTYPE
from sharedmask.system import files, platform
from sharedmask.system.process import at_a_time
from sharedmask.system.threads import Threads
from sharedmask.typing import Array

T = TypeVar("T")
OURS = b"sharedmask\x00"
"""What containers of all versions begin with."""
MAGIC = OURS + b"\x00\x00\x00\x00\x02"
_PREFIX = struct.Struct("<16sQ16s")
_ALIGNMENT, _PAGE = 64, 4096
# Room for what is known only once the arrays are there: a few numbers, never a text of the caller's.
_SPARE_BYTES = 1024
# Smaller files are copied: a mapping holds a descriptor for as long as its arrays live.
_MAPPED_BYTES = 16 * 2**20
_PART_BYTES = 4 * 2**20  # whose checksum takes longer than it takes to start a thread
Geometry = Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]
Specs = Mapping[str, dict[str, Any]]
"""Of each array: its offset, shape and dtype, and its order."""


# --- the owner's side ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """Where everything lies."""

    header_bytes: int
    specs: Specs
    nbytes: int


def layout(geometry: Geometry, facts: Mapping[str, Any] | None = None) -> Layout:
    """That of a container of these arrays, with room in its header for ``facts`` and a little more."""
    specs: dict[str, dict[str, Any]] = {
        name: {"offset": 2**63, "shape": list(shape), "dtype": dtype.str, "order": "C"}
        for name, (shape, dtype) in geometry.items()
    }
    said = len(json.dumps({"arrays": specs, **(facts or {})}))
    header_bytes = end = -(-(_PREFIX.size + said + _SPARE_BYTES) // _PAGE) * _PAGE
    for name, (shape, dtype) in geometry.items():
        specs[name]["offset"] = end
        end += -(-math.prod(shape) * dtype.itemsize // _ALIGNMENT) * _ALIGNMENT
    return Layout(header_bytes, specs, end)


def projected(geometry: Geometry) -> int:
    """Bytes of a segment that holds these arrays."""
    return layout(geometry).nbytes


def header(facts: Any, nbytes: int) -> bytes:
    """The header of that size that says these facts."""
    text, room = json.dumps(facts).encode(), nbytes - _PREFIX.size
    if len(text) > room:
        raise SegmentError(f"the facts of the segment take {len(text)} bytes, more than {room}")
    text = text.ljust(room)
    return _PREFIX.pack(MAGIC, room, _digest(text)) + text


def _digest(text: bytes) -> bytes:
    return blake2b(text, digest_size=16).digest()


# --- reading -------------------------------------------------------------------------------------


def parse_header(buffer: mmap.mmap | memoryview | bytes) -> tuple[dict[str, Any], int]:
    """The facts of a header, and its size: where arrays may begin.

    Raises AttachError: it is none of ours, or damaged.
    """
    start = bytes(buffer[: _PREFIX.size])
    size = _header_bytes(start, len(buffer))
    text = bytes(buffer[_PREFIX.size : size])
    if _digest(text) != start[-16:]:
        raise AttachError("the header is damaged")
    text = text[: text.rfind(b"}") + 1]  # without the spaces, a fourth of the time that stripping them takes
    return checked_json(text, "a header of ours"), size


def read_header(fd: int) -> tuple[dict[str, Any], int]:
    """The same of a file."""
    page = platform.pread(fd, _PAGE, 0)
    return parse_header(platform.pread(fd, _header_bytes(page, os.fstat(fd).st_size), 0))


def _header_bytes(start: bytes, nbytes: int) -> int:
    """The size of the header that begins so, in ``nbytes`` bytes."""
    if not start.startswith(MAGIC):
        raise AttachError("it was never finished, or is none of ours")
    size = _PREFIX.size + (_PREFIX.unpack_from(start)[1] if len(start) >= _PREFIX.size else nbytes)
    if size > nbytes:
        raise AttachError(f"the header is damaged: it ends at {size} of {nbytes} bytes")
    return size


def arrays_in(buffer: mmap.mmap | memoryview | bytearray | bytes, specs: Any, first: int) -> dict[str, Array]:
    """The arrays of a header, each of them behind the first ``first`` bytes of ``buffer`` and within it.

    Raises AttachError: they are not there.
    """
    try:
        return {
            name: array_at(buffer, _checked(name, spec, first, len(buffer))) for name, spec in specs.items()
        }
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise AttachError(f"the header describes no arrays: {error!r}") from error


def _checked(name: str, spec: Mapping[str, Any], first: int, end: int) -> Mapping[str, Any]:
    sizes = [spec["offset"], *spec["shape"]] if type(spec["shape"]) is list else [-1]
    possible = all(type(n) is int and 0 <= n <= end for n in sizes)
    if not DTYPE.fullmatch(spec["dtype"]) or not possible:
        raise AttachError(f"array {name!r} has an impossible shape or dtype")
    nbytes = math.prod(spec["shape"]) * np.dtype(spec["dtype"]).itemsize
    if spec["offset"] < first or spec["offset"] + nbytes > end:
        raise AttachError(f"array {name!r} lies outside of its container")
    return spec


def array_at(buffer: mmap.mmap | memoryview | bytearray | bytes | Array, spec: Mapping[str, Any]) -> Array:
    # frombuffer keeps the map alive through the array; np.ndarray(buffer=map) would not,
    # and closing the map under such a view is a segmentation fault.
    count = math.prod(spec["shape"])
    flat = np.frombuffer(buffer, dtype=np.dtype(spec["dtype"]), count=count, offset=spec["offset"])
    return flat.reshape(spec["shape"], order=spec.get("order", "C"))


# --- with a checksum -----------------------------------------------------------------------------


def geometry_of(arrays: Sequence[Array]) -> Geometry:
    """Of arrays without names."""
    return {str(number): (array.shape, array.dtype) for number, array in enumerate(arrays)}


def write(fd: int, arrays: Sequence[Array], key: str) -> int:
    """Write a container of ``arrays``, each in its own order, to an empty file; its size in bytes."""
    facts: dict[str, Any] = {"key": key, "crc": 2**32}
    place = layout(geometry_of(arrays), facts)
    crc, end = 0, place.header_bytes
    for spec, array in zip(place.specs.values(), arrays, strict=True):
        spec["order"] = "F" if array.flags.f_contiguous else "C"
        for piece in (_bytes_of(array), bytes(-array.nbytes % _ALIGNMENT)):
            crc = _crc32(piece, crc)
            files.pwrite_all(fd, piece, end)
            end += len(piece)
    files.pwrite_all(fd, header({**facts, "crc": crc, "arrays": place.specs}, place.header_bytes), 0)
    return end


def read(fd: int, key: str) -> list[Array]:
    """The arrays as they were written, writeable, each change private.

    Large ones are views of the file's pages, which are copied where they are written to.

    Raises AttachError: a byte is wrong, or it is of another key.
    """
    facts, first = read_header(fd)
    size = os.fstat(fd).st_size
    buffer: mmap.mmap | bytearray
    if size >= _MAPPED_BYTES:
        buffer = mmap.mmap(fd, size, access=mmap.ACCESS_COPY)
    else:
        buffer = bytearray(size)
        files.pread_into(fd, memoryview(buffer), 0)
    with memoryview(buffer) as view, view[first:] as payload:
        if (facts.get("key"), facts.get("crc")) != (key, _crc32_of(payload)):
            raise AttachError("the arrays are damaged")
    return list(arrays_in(buffer, facts.get("arrays"), first).values())


def _crc32(data: memoryview | bytes, crc: int = 0) -> int:
    from isal import isal_zlib  # here, because workers need not import it

    return isal_zlib.crc32(data, crc)


def _crc32_of(data: memoryview) -> int:
    """Of much on all cores: a result that was found is mostly this."""
    from isal import isal_zlib

    n_parts = at_a_time(len(data) // _PART_BYTES)
    if n_parts < 2:
        return _crc32(data)
    edges = [len(data) * part // n_parts for part in range(n_parts + 1)]
    with Threads(n_parts - 1, "sharedmask-verify") as threads:
        others = [threads.submit(_crc32, data[a:b]) for a, b in pairwise(edges[1:])]
        crc = _crc32(data[: edges[1]])
        for other, (start, stop) in zip(others, pairwise(edges[1:]), strict=True):
            crc = isal_zlib.crc32_combine(crc, other.result(), stop - start)
    return crc


def _bytes_of(array: Array) -> memoryview:
    """The array's memory; of a copy only where it has gaps."""
    rows = np.asarray(array.T if array.flags.f_contiguous else array, order="C")
    return rows.reshape(-1).view(np.uint8).data


# --- facts that others wrote ---------------------------------------------------------------------


def checked_json(text: str | bytes, what: str) -> dict[str, Any]:
    """The facts in a text that others wrote; ``what`` it should be, for the message of the AttachError."""
    try:
        facts = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise AttachError(f"not {what}: {error}") from error
    if not isinstance(facts, dict):
        raise AttachError(f"not {what}: a {type(facts).__name__}")
    return facts


def checked_facts(cls: type[T], facts: Any, what: str) -> T:
    """The dataclass ``cls`` out of facts that others wrote, each of exactly the type it should have."""
    try:
        made = cls(**facts)
    except TypeError as error:
        raise AttachError(f"not {what}: {error}") from error
    kinds: dict[str, Any] = {field.name: field.type for field in fields(made)}  # type: ignore[arg-type]
    for name, kind in kinds.items():
        if type(getattr(made, name)) is not kind:
            raise AttachError(f"not {what}: {name} is no {kind.__name__}")
    return made
