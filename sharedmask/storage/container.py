"""Containers: a header of JSON facts, then arrays at multiples of 64 bytes.

Covers: layout, header, reading one back, facts that others wrote. Does not cover: where the bytes live,
who owns them.

::

    0      16         20            4080      4096
    | magic | length  | JSON facts  | blake2b | array | pad | array ...
"""

import hashlib
import json
import math
import mmap
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np

from sharedmask.errors import AttachError, SegmentError
from sharedmask.typing import Array

T = TypeVar("T")
MAGIC = b"sharedmask\x00\x00\x00\x00\x00\x01"
HEADER_BYTES = 4096
_DIGEST_BYTES = 16
_ALIGNMENT = 64
Geometry = Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]
Specs = Mapping[str, Mapping[str, Any]]
"""Of each array: its offset, shape and dtype."""


# --- the owner's side ----------------------------------------------------------------------------


def layout(geometry: Geometry) -> tuple[dict[str, dict[str, Any]], int]:
    """Where each array begins behind the header, and where the last one ends."""
    arrays, offset = {}, HEADER_BYTES
    for name, (shape, dtype) in geometry.items():
        arrays[name] = {"offset": offset, "shape": list(shape), "dtype": dtype.str}
        nbytes = math.prod(shape) * dtype.itemsize
        offset += -(-nbytes // _ALIGNMENT) * _ALIGNMENT
    return arrays, offset


def projected(geometry: Geometry) -> int:
    """Bytes of a segment that holds these arrays."""
    return layout(geometry)[1]


def header(facts: Mapping[str, Any]) -> bytes:
    """The header page that says these facts."""
    text = json.dumps(facts).encode()
    room = HEADER_BYTES - _DIGEST_BYTES - len(MAGIC) - 4
    if len(text) > room:
        raise SegmentError(f"the facts of the segment take {len(text)} bytes, more than {room}")
    body = (MAGIC + len(text).to_bytes(4, "little") + text).ljust(HEADER_BYTES - _DIGEST_BYTES, b"\0")
    return body + hashlib.blake2b(body, digest_size=_DIGEST_BYTES).digest()


def parse_header(page: bytes) -> dict[str, Any]:
    """The facts of a header page.

    Raises
    ------
    AttachError
        It is none of ours, or damaged.
    """
    body, digest = page[:-_DIGEST_BYTES], page[-_DIGEST_BYTES:]
    if not body.startswith(MAGIC):
        raise AttachError("the segment was never finished, or is none of ours")
    if hashlib.blake2b(body, digest_size=_DIGEST_BYTES).digest() != digest:
        raise AttachError("the segment's header is damaged")
    start = len(MAGIC) + 4
    length = int.from_bytes(body[start - 4 : start], "little")
    try:
        facts = json.loads(body[start : start + length])
    except (ValueError, RecursionError) as error:
        raise AttachError(f"the segment's header is damaged: {error}") from error
    if not isinstance(facts, dict):
        raise AttachError("the segment's header holds no facts")
    return facts


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
    for name, kind in cls.__annotations__.items():
        if type(getattr(made, name)) is not kind:
            raise AttachError(f"not {what}: {name} is no {kind.__name__}")
    return made


def array_at(buffer: mmap.mmap, spec: Mapping[str, Any]) -> Array:
    # frombuffer keeps the map alive through the array; np.ndarray(buffer=map) would not,
    # and closing the map under such a view is a segmentation fault.
    count = math.prod(spec["shape"])
    flat = np.frombuffer(buffer, dtype=np.dtype(spec["dtype"]), count=count, offset=spec["offset"])
    return flat.reshape(spec["shape"])
