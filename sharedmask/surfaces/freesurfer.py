"""FreeSurfer's files of one surface: overlays (``.mgh``, ``.mgz``) and annotations (``.annot``).

Covers: reading them, names of labels, saying what is wrong with them. Does not cover: volumes, which have the
same endings (``sources.nifti``).
"""

from __future__ import annotations

import gzip
import math
import os
import zlib
from dataclasses import replace
from typing import Any

import numpy as np
from nibabel.freesurfer.io import read_annot
from nibabel.freesurfer.mghformat import MGHHeader

from sharedmask.errors import DamagedImageError, ImageError
from sharedmask.surfaces.surface import Surface, structure_of

_BACKGROUND = ("unknown", "???", "background", "medial", "freesurfer_defined_medial")
_HEADER = 284  # bytes of an MGH file before its values


def read_annotation(path: str) -> Surface:
    """The labels of an ``.annot``: places in its table, from 1 on unless the first is the background."""
    try:
        places, _, names = read_annot(path)
    except (LookupError, TypeError, ValueError, EOFError) as error:
        there = os.path.getsize(path)
        raise DamagedImageError(f"{path} is no complete annotation of FreeSurfer: {there} bytes") from error
    called = [name.decode("utf-8", "replace") for name in names]
    first = not called or not called[0].lower().startswith(_BACKGROUND)
    labels = {place + first: name for place, name in enumerate(called)}
    values = np.where(places < 0, 0, places + first).astype(np.int32)
    return Surface.of_parts(path, {structure_of(path): values[:, None]}, False, labels)


def is_overlay(path: str) -> bool:
    """Whether an MGH file is an image of vertices; a volume has more than one column and row."""
    with _opened(path) as file:
        header = MGHHeader.from_fileobj(file)
    shape = tuple(map(int, header.get_data_shape()))
    needed = _HEADER + math.prod(shape) * header.get_data_dtype().itemsize
    is_cut = path.lower().endswith(".mgh") and os.path.getsize(path) < needed  # which reading it will say
    return shape[1:3] == (1, 1) or is_cut


def read_overlay(path: str) -> Surface:
    """The values of an overlay.

    Raises DamagedImageError: it ends early, or is no MGH file.
    Raises ImageError: its values are of a kind that is not known.
    """
    content = _content(path)
    header = MGHHeader(content[:_HEADER].ljust(_HEADER, b"\0"), check=False)
    if header["version"] != 1:
        raise DamagedImageError(
            f"{path} is no MGH file: it is of version {header['version']}, and there is 1"
        )
    try:
        dtype = header.get_data_dtype().newbyteorder(">")
    except KeyError as error:
        raise ImageError(f"{path} holds values of MGH's type {error}, which is not known") from error
    shape = tuple(map(int, header["dims"]))
    needed = math.prod(shape) * dtype.itemsize
    if (there := max(0, len(content) - _HEADER)) < needed:
        said = f"its header promises {needed} bytes of values, {there} were found"
        raise DamagedImageError(f"{path} is truncated: {said}")
    values = np.frombuffer(content, dtype, math.prod(shape), _HEADER).reshape(shape[0], -1, order="F")
    native = values.astype(dtype.newbyteorder("="))
    surface = Surface.of_parts(path, {structure_of(path): native}, native.shape[1] > 1)
    return replace(surface, t_r=_seconds(content[_HEADER + needed :]))


def _seconds(footer: bytes) -> float | None:
    """The repetition time, the first behind the values, in milliseconds; files may end before it."""
    if len(footer) < 4:
        return None
    milliseconds = float(str(np.frombuffer(footer, ">f4", 1)[0]))
    return milliseconds / 1000 if 0 < milliseconds < math.inf else None


def _content(path: str) -> bytes:
    try:
        with _opened(path) as file:
            return bytes(file.read())
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        there = os.path.getsize(path)
        raise DamagedImageError(
            f"{path} is truncated or damaged: its {there} bytes cannot be decompressed"
        ) from error


def _opened(path: str) -> Any:
    return gzip.open(path) if path.lower().endswith("z") else open(path, "rb")
