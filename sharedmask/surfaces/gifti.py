"""GIFTI files: functional series, maps and labels of one surface.

Covers: which arrays of a file are values, names of labels, the surface they are of; external, base64 and
compressed data, as nibabel reads them; meshes; saying what is wrong with a file. Does not cover: pictures
of meshes (``meshes``).
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from xml.parsers.expat import ExpatError

import nibabel as nib
import numpy as np
from nibabel.gifti.gifti import GiftiImage
from nibabel.gifti.parse_gifti_fast import GiftiImageParser
from nibabel.nifti1 import data_type_codes

from sharedmask.errors import DamagedImageError, ImageError, MissingFileError
from sharedmask.records import dataclass
from sharedmask.spaces.parcellation import names_of
from sharedmask.surfaces.surface import Surface, structure_of
from sharedmask.system.identity import FileState
from sharedmask.system.inputs import dangling
from sharedmask.typing import Array

_MESH = ("NIFTI_INTENT_POINTSET", "NIFTI_INTENT_TRIANGLE")
_MESH_CODES: Any = nib.nifti1.intent_codes.code
_LABEL, _SERIES = "NIFTI_INTENT_LABEL", "NIFTI_INTENT_TIME_SERIES"


def read(path: str) -> Surface:
    """The values of a file.

    Raises DamagedImageError: it is no GIFTI file, is not complete, or a file with its data is not.
    Raises ImageError: there are none: it is a mesh, or has arrays of other shapes.
    """
    parser = _parsed(path)
    return replace(of_image(path, parser.img), files=tuple(parser.external.values()))


@dataclass(frozen=True, eq=False)
class Mesh:
    """Where the vertices of a surface are.

    ``name``: the file's.
    ``structure``: CIFTI's name of the surface.
    ``points``, (n_vertices, 3): in mm.
    ``triangles``, (n_triangles, 3): numbers of vertices.
    """

    name: str
    structure: str
    points: Array
    triangles: Array


def read_mesh(path: str) -> Mesh:
    """The mesh in a ``.surf.gii``.

    Raises MissingFileError, DamagedImageError: as for series.
    Raises ImageError: there is no mesh in it.
    """
    image = _parsed(path).img
    found = [[one.data for one in image.darrays if one.intent == _MESH_CODES[intent]] for intent in _MESH]
    if any(len(arrays) != 1 or arrays[0].shape[1:] != (3,) for arrays in found):
        raise ImageError(f"{path} is no mesh, points and triangles: give the .surf.gii")
    (points,), (triangles,) = found
    if triangles.min() < 0 or triangles.max() >= len(points):
        raise DamagedImageError(
            f"{path} has triangles of vertex {triangles.max()}, and {len(points)} vertices"
        )
    told = (one.meta.get("AnatomicalStructurePrimary") for one in (*image.darrays, image))
    return Mesh(path, structure_of(path, next(filter(None, told), None)), points, triangles)


def _parsed(path: str) -> _Parser:
    """A file that was read whole."""
    if not os.path.exists(path):
        raise MissingFileError(f"{path} {dangling(path) or 'does not exist'}")
    parser = _Parser(path)
    with open(path, "rb") as file:
        try:
            parser.parse(fptr=file)  # type: ignore[no-untyped-call]
        except (MemoryError, ImageError):
            raise
        except Exception as error:  # of expat, base64, zlib and NumPy
            raise DamagedImageError(f"{path} {parser.fault(error)}") from error
    if parser.img is None:
        raise DamagedImageError(f"{path} is no GIFTI file")
    return parser


class _Parser(GiftiImageParser):
    """nibabel's, that knows where it is and looks at files with data before they are read."""

    img: Any
    da: Any

    def __init__(self, path: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._path = path
        self.external: dict[str, FileState] = {}

    def StartElementHandler(self, name: str, attrs: Mapping[str, str]) -> None:
        super().StartElementHandler(name, attrs)  # type: ignore[no-untyped-call]
        if name == "Data" and self.da.ext_fname:
            self.da.ext_fname = self._external_file(self.da.ext_fname)
            self._check_external(self.da.ext_fname)

    def EndElementHandler(self, name: str) -> None:
        promised = getattr(self, "expected_numDA", None)
        if name == "GIFTI" and promised not in (None, self._number):
            raise DamagedImageError(
                f"{self._path} says that it has {promised} arrays, and has {self._number}"
            )
        super().EndElementHandler(name)  # type: ignore[no-untyped-call]

    @property
    def _number(self) -> int:
        """Of the array that is being read."""
        return len(self.img.darrays) if self.img else 0

    def _external_file(self, name: str) -> str:
        """The file with data: beside the one that names it, or beside what that is a link to."""
        beside, target = (
            os.path.join(os.path.dirname(path), name) for path in (self._path, os.path.realpath(self._path))
        )
        return target if os.path.isfile(target) and not os.path.lexists(beside) else beside

    def _check_external(self, file: str) -> None:
        said = f"{self._path} has its array {self._number} in {file}, which"
        if not os.path.isfile(file):
            raise DamagedImageError(f"{said} {dangling(file) or 'is no file, or not there'}")
        dtype: Any = data_type_codes.dtype[self.da.datatype]
        values = math.prod(self.da.dims) * dtype.itemsize
        if (there := os.path.getsize(file)) < (end := self.da.ext_offset + values):
            raise DamagedImageError(f"{said} is truncated: {end} bytes are needed, {there} were found")
        self.external.setdefault(file, FileState.now(file))

    def fault(self, error: Exception) -> str:
        """What is wrong where reading ended."""
        if type(error) is ExpatError:
            where = f"line {error.lineno}, column {error.offset}"
            return f"is no complete GIFTI file: it breaks off, or is not well formed, at {where}"
        if isinstance(error, KeyError):
            return f"has {error.args[0]}, which GIFTI does not know"
        where = f"array {self._number}" if self._number else "header"
        return f"has a damaged {where}: its values are not as many as it says, or badly written"


def of_image(name: str, image: GiftiImage) -> Surface:
    """The same of a loaded one."""
    intents = [nib.nifti1.intent_codes.niistring[one.intent] for one in image.darrays]
    if not intents or set(intents) & set(_MESH):
        raise ImageError(f"{name} is a mesh or is empty: give the .func.gii, .shape.gii or .label.gii")
    if not all(np.ndim(one.data) and np.size(one.data) for one in image.darrays):
        raise ImageError(f"{name} has arrays without values")
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
