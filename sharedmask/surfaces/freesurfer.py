"""FreeSurfer's files of one surface: overlays (``.mgh``, ``.mgz``) and annotations (``.annot``).

Covers: reading them, names of labels. Does not cover: volumes, which have the same endings (``nifti``).
"""

from __future__ import annotations

import gzip
from typing import Any

import numpy as np
from nibabel.freesurfer.io import read_annot
from nibabel.freesurfer.mghformat import MGHHeader, MGHImage

from sharedmask.errors import DamagedImageError
from sharedmask.surfaces.surface import Surface, structure_of

_BACKGROUND = ("unknown", "???", "background", "medial", "freesurfer_defined_medial")


def read_annotation(path: str) -> Surface:
    """The labels of an ``.annot``: places in its table, from 1 on unless the first is the background."""
    try:
        places, _, names = read_annot(path)
    except (IndexError, ValueError, EOFError) as error:
        raise DamagedImageError(f"{path} is no complete annotation of FreeSurfer ({error})") from error
    called = [name.decode("utf-8", "replace") for name in names]
    first = not called or not called[0].lower().startswith(_BACKGROUND)
    labels = {place + first: name for place, name in enumerate(called)}
    values = np.where(places < 0, 0, places + first).astype(np.int32)
    return Surface.of_parts(path, {structure_of(path): values[:, None]}, False, labels)


def is_overlay(path: str) -> bool:
    """Whether it is an image of vertices; a volume has more than one column and row."""
    if not path.lower().endswith((".mgh", ".mgz")):
        return False
    with _opened(path) as file:
        shape = MGHHeader.from_fileobj(file).get_data_shape()
    return tuple(shape[1:3]) == (1, 1)


def read_overlay(path: str) -> Surface:
    """The values of an overlay."""
    with _opened(path) as file:
        data = np.asanyarray(MGHImage.from_stream(file).dataobj)
    values = data.reshape(data.shape[0], -1)
    native = values.astype(values.dtype.newbyteorder("="), copy=False)
    return Surface.of_parts(path, {structure_of(path): native}, native.shape[1] > 1)


def _opened(path: str) -> Any:
    return gzip.open(path) if path.lower().endswith("z") else open(path, "rb")
