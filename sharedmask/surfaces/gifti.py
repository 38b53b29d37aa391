"""GIFTI files: functional series, maps and labels of one surface.

Covers: which arrays of a file are values, names of labels, the surface they are of; external, base64 and
compressed data, as nibabel reads them. Does not cover: meshes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.gifti.gifti import GiftiImage

from sharedmask.errors import ImageError
from sharedmask.spaces.parcellation import names_of
from sharedmask.surfaces.surface import Surface, structure_of

_MESH = ("NIFTI_INTENT_POINTSET", "NIFTI_INTENT_TRIANGLE")
_LABEL, _SERIES = "NIFTI_INTENT_LABEL", "NIFTI_INTENT_TIME_SERIES"


def read(path: str) -> Surface:
    """The values of a file.

    Raises
    ------
    ImageError
        There are none: it is a mesh, or has arrays of other shapes.
    """
    image: Any = nib.load(path)
    if not isinstance(image, GiftiImage):
        raise ImageError(f"{path} is no GIFTI file")
    return of_image(path, image)


def of_image(name: str, image: GiftiImage) -> Surface:
    """The same of a loaded one."""
    intents = [nib.nifti1.intent_codes.niistring[one.intent] for one in image.darrays]
    if not intents or set(intents) & set(_MESH):
        raise ImageError(f"{name} is a mesh or is empty: give the .func.gii, .shape.gii or .label.gii")
    columns = [one.data.reshape(len(one.data), -1) for one in image.darrays]
    if len({len(one) for one in columns}) > 1:
        raise ImageError(f"{name} has arrays of {', '.join(str(len(one)) for one in columns)} vertices")
    told = (one.meta.get("AnatomicalStructurePrimary") for one in (image, *image.darrays))
    said = next(filter(None, told), None)
    values = np.concatenate(columns, axis=1)
    labels = _labels(name, image) if _LABEL in intents else None
    is_series = labels is None and (_SERIES in intents or values.shape[1] > 1)
    native = values.astype(values.dtype.newbyteorder("="), copy=False)
    return Surface.of_parts(name, {structure_of(name, said): native}, is_series, labels)


def _labels(name: str, image: GiftiImage) -> Mapping[int, str]:
    labels = image.labeltable.labels  # one without a name has no such attribute
    return names_of(name, ((int(one.key), getattr(one, "label", None)) for one in labels))
