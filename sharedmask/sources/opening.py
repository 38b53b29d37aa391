"""Opening: what callers give as an image, and the source that it is.

Covers: paths, patterns, nibabel images, lists of volumes; refusing what is no image. Does not cover: headers
of files (``nifti``, ``cifti``), what a source can be asked (``source``), masks (``regions``).
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from nibabel.analyze import AnalyzeImage
from nibabel.arrayproxy import ArrayProxy
from nibabel.cifti2.cifti2 import Cifti2Image
from nibabel.filebasedimages import FileBasedImage
from nibabel.gifti.gifti import GiftiImage
from nibabel.spatialimages import SpatialImage

from sharedmask import errors
from sharedmask.decoding.codecs import most_bytes, open_raw
from sharedmask.errors import ImageError, MissingFileError
from sharedmask.remote.addresses import absolute, named, url_of
from sharedmask.sources import cifti, nifti
from sharedmask.sources.by_row import RowSource
from sharedmask.sources.sidecar import RepetitionTime, asked_together, sidecars
from sharedmask.sources.source import ArraySource, FileSource, SeriesSource, Source
from sharedmask.system import inputs
from sharedmask.system.identity import FileState, state_of
from sharedmask.system.inputs import matches
from sharedmask.typing import Array

if TYPE_CHECKING:
    from sharedmask.surfaces.surface import Surface

_SURFACES = (".gii", ".annot")
_OVERLAYS = (".mgh", ".mgz")


def open_source(source: object, beside: Sequence[Path] | None = None) -> Source:
    """Learn what an image is, without reading its voxels.

    ``source``: a string with ``*``, ``?`` or ``[`` that is no file is a pattern: its matches, sorted, are one
    series. A loaded but unread nibabel image of a file is read from that file, and left untouched.
    ``beside``: its sidecars, the nearest first, where they were looked for already.

    A `Source` is returned as it is.

    Raises MissingFileError: there is no such file.
    Raises DamagedImageError: the file is empty, shorter than its header promises, or not what its name says.
    Raises ImageError: the image cannot be served: neither NIfTI nor Analyze, complex or RGB values, no
    voxels, fewer than 3 axes or two beyond the third; or if the images of a series do not fit together.

    Examples
    --------
    >>> import nibabel, numpy as np
    >>> source = open_source(nibabel.Nifti1Image(np.ones((2, 2, 1, 3), np.int16), np.eye(4)))
    >>> out = np.empty((source.n_timepoints, source.n_voxels), source.dtype)
    >>> with source.volumes() as volumes:
    ...     volumes.readinto(out)
    >>> out.shape, int(out.sum())
    ((3, 4), 12)
    """
    url = url_of(source) if isinstance(source, str | os.PathLike) and beside is None else None
    with nullcontext() if url is None else asked_together(url):
        opened = _open(source)
        return opened if opened is source else _told(opened, beside)


def _told(source: Source, beside: Iterable[Path] | None) -> Source:
    """With the repetition time that its sidecars tell."""
    if not source.is_series:
        return source
    if beside is None:
        beside = sidecars(source.paths[0]) if source.paths else ()
    time = RepetitionTime(source.t_r, source.t_r_origin).told_by(source.name, beside)
    return replace(source, t_r=time.seconds, t_r_origin=time.origin, t_r_doubt=time.doubt)


def warn_of_time(source: Source) -> None:
    """Say of an image's repetition time what is to be said, once where it is opened for its signals."""
    if source.t_r_doubt:
        warnings.warn(source.t_r_doubt, errors.SharedMaskWarning, stacklevel=3)


def _open(source: object) -> Source:
    if isinstance(source, (list, tuple)):
        if are_surfaces(source):
            return _from_surfaces([os.fsdecode(one) for one in source])
        items = [_open_one(item) for item in source]
        return _series(f"a list of {len(items)} volumes ({items[0].name} ...)" if items else "", items)
    if isinstance(source, str) and (found := matches(source)):
        if all(map(is_surface, found)):
            return _from_surfaces(found)
        items = [_open_one(path) for path in found]
        whole = len(items) == 1 and items[0].is_series
        return items[0] if whole else _series(f"{source} ({len(items)} volumes)", items)
    return _open_one(source)


def _open_one(source: object) -> Source:
    if isinstance(source, Source):
        return source
    if isinstance(source, (str, os.PathLike)):
        path = os.fsdecode(source)
        if not path:
            raise MissingFileError("an image is named by an empty text: give the path of a file")
        return _from_surfaces([path]) if is_surface(path) else _from_path(path)
    if is_surface(source):
        return _from_surface_object(source)
    if isinstance(source, SpatialImage | Cifti2Image):
        return _from_image(source)
    if isinstance(source, FileBasedImage):
        raise nifti.refused_kind(source.get_filename() or "the image given", type(source))
    raise ImageError(f"an image is a path, a nibabel image or a list of 3D ones, not {type(source).__name__}")


def _from_path(name: str) -> Source:
    path, name = absolute(name), named(name)
    if url_of(path) and name.lower().endswith(_SURFACES):
        raise ImageError(f"{name} is a file of a surface, which is read on this machine: download it")
    nifti.check_path(path, name)
    files = _files_now(path)  # before the header is read: what changes later is seen
    with nifti.as_image_error(name):
        image, file = nifti.load(path, name), nifti.files_of(path)[0]
        if file != path:
            nifti.check_path(file, file)
        return _file_source(name, image, file, files)


# --- surfaces ------------------------------------------------------------------------------------


def is_surface(thing: Any) -> bool:
    """Whether it is a file of one surface, or an object with values on surfaces, of nibabel or nilearn."""
    if not isinstance(thing, str | os.PathLike):
        return isinstance(thing, GiftiImage) or hasattr(getattr(thing, "data", None), "parts")
    path = os.path.expanduser(os.fsdecode(thing))
    if url_of(path):
        return False
    if not path.lower().endswith(_OVERLAYS):
        return path.lower().endswith(_SURFACES)
    from sharedmask.surfaces import freesurfer

    try:
        return freesurfer.is_overlay(path)
    except FileNotFoundError:
        return False
    except Exception:  # which reading it will say
        return True


def are_surfaces(things: Any) -> bool:
    """Whether these are files of surfaces, as of two hemispheres: one image, or one mask if one is meant."""
    several = isinstance(things, list | tuple) and len(things) > 0
    return several and all(isinstance(one, str | os.PathLike) and is_surface(one) for one in things)


def _from_surfaces(names: Sequence[str]) -> Source:
    from sharedmask.surfaces.surface import Later

    paths = [os.path.abspath(os.path.expanduser(name)) for name in names]
    for path, name in zip(paths, names, strict=True):
        nifti.check_path(path, name)
        nifti.check_magic(path, name)
    files, name = tuple(FileState.now(Path(path)) for path in paths), " and ".join(names)
    surface = _read_surfaces(name, paths)
    values = Later(partial(_values_of, name, paths), surface.values)
    return _surface_source(name, surface, values, files + surface.files)


def _read_surfaces(name: str, paths: Sequence[str]) -> Surface:
    from sharedmask.surfaces.surface import Surface

    with nifti.as_image_error(name):
        parts = [_read_surface(path) for path in paths]
        return parts[0] if len(parts) == 1 else Surface.joined(name, parts)


def _read_surface(path: str) -> Surface:
    from sharedmask.surfaces import freesurfer, gifti

    if path.lower().endswith(".annot"):
        return freesurfer.read_annotation(path)
    return gifti.read(path) if path.lower().endswith(".gii") else freesurfer.read_overlay(path)


def _values_of(name: str, paths: Sequence[str]) -> Array:
    return _read_surfaces(name, paths).values


def _from_surface_object(image: Any) -> Source:
    from sharedmask.surfaces import gifti
    from sharedmask.surfaces.surface import Surface, structure_of

    name = f"{type(image).__name__} in memory"
    if isinstance(image, GiftiImage):
        surface = gifti.of_image(image.get_filename() or name, image)
    else:
        given = {side: np.asarray(values) for side, values in image.data.parts.items()}
        parts = {structure_of("", f"cortex_{side}"): one.reshape(len(one), -1) for side, one in given.items()}
        surface = Surface.of_parts(name, parts, all(one[:1].size > 1 for one in given.values()))
    return _surface_source(name, surface, surface.values, ())


def _surface_source(name: str, surface: Surface, values: Any, files: tuple[FileState, ...]) -> ArraySource:
    affine = np.eye(4)
    affine.setflags(write=False)
    return ArraySource(
        name=name,
        shape=surface.values.shape,
        ndim=2 if surface.is_series or surface.values.shape[1] > 1 else 1,
        dtype=surface.values.dtype,
        affine=affine,
        slope=1.0,
        inter=0.0,
        t_r=surface.t_r,
        t_r_origin=nifti.HEADER_TIME if surface.t_r else nifti.untimed(name),
        header=None,
        models=replace(surface.models, name=name),
        labels=surface.labels,
        files=files,
        dataobj=values,
    )


def check_signals(source: Source) -> None:
    """Refuse labels where signals are asked for.

    Raises ImageError.
    """
    if source.labels is not None:
        raise ImageError(f"{source.name} holds labels and no signals: give it as an atlas")


# --- images --------------------------------------------------------------------------------------


def _files_now(path: str) -> tuple[FileState, ...]:
    return tuple(state_of(one) for one in nifti.files_of(path) if one == path or inputs.exists(one))


def _from_image(image: Any) -> Source:
    data, path = image.dataobj, image.get_filename()
    # SPM's reader can hold float32 scaling, with which float64 arithmetic would give other values.
    of_file = isinstance(image, AnalyzeImage | Cifti2Image) and type(data) is ArrayProxy and data.order == "F"
    if of_file and [type(fact) for fact in (data.file_like, data.slope, data.inter)] == [str, float, float]:
        file = os.path.abspath(data.file_like)
        nifti.check_path(file, file)
        return _file_source(data.file_like, image, file, _files_now(file))
    name = f"{type(image).__name__} {f'of {path}' if path else 'in memory'}"
    with nifti.as_image_error(name):
        one = data if isinstance(data, np.ndarray) else np.asanyarray(data[(slice(0, 1),) * len(data.shape)])
        dtype = np.dtype(np.uint8) if one.dtype == bool else one.dtype
        if (text := cifti.axes_text(image)) is not None:
            axes = cifti.read_axes(name, image, text, dtype)
            values = cifti.in_memory(np.asanyarray(data), axes.by_row)
            return ArraySource(**axes.facts, slope=1.0, inter=0.0, files=(), dataobj=values)
        return ArraySource(**nifti.facts_of(name, image, dtype), slope=1.0, inter=0.0, files=(), dataobj=data)


def _file_source(name: str, image: Any, file: str, files: tuple[FileState, ...]) -> FileSource:
    proxy, kind = image.dataobj, FileSource
    if (text := cifti.axes_text(image)) is not None:
        axes = cifti.read_axes(name, image, text, proxy.dtype)
        facts, kind = axes.facts, RowSource if axes.by_row else FileSource
    else:
        facts = nifti.facts_of(name, image, proxy.dtype)
    facts |= {"slope": proxy.slope, "inter": proxy.inter, "files": files}
    source = kind(**facts, file=file, offset=int(proxy.offset), foreign=not proxy.dtype.isnative)
    if (most := most_bytes(file, files[0].nbytes) - source.offset) < source.nbytes:
        open_raw(file).close()  # which tells what is no image at all
        raise source.truncated(max(int(most), 0))
    return source


def _series(name: str, items: Sequence[Source]) -> SeriesSource:
    if not items:
        raise ImageError("an empty list is not an image")
    first = items[0]
    for number, item in enumerate(items, start=1):
        _check_member(number, item, first)
    raw = len({(item.dtype, item.slope, item.inter) for item in items}) == 1
    files = tuple(file for item in items for file in item.files)
    facts = first.known(Source) | {"name": name, "files": files, "ndim": len(first.shape)}
    facts["shape"] = (*first.shape[:-1], len(items))
    if not raw:
        dtype = np.result_type(*(item.scaled_dtype for item in items))
        facts |= {"dtype": dtype, "slope": 1.0, "inter": 0.0}
    return SeriesSource(**facts, items=tuple(items), raw=raw)


def _check_member(number: int, item: Source, first: Source) -> None:
    said = f"volume {number} of the series, {item.name},"
    if item.n_timepoints != 1:
        hint = "a series is made of 3D images, and extract_many() takes several runs"
        raise ImageError(f"{said} has {item.n_timepoints} time points; {hint}")
    if item.shape != first.shape:
        raise ImageError(f"{said} has shape {item.shape[:-1]} where {first.name} has {first.shape[:-1]}")
    if not item.grid.matches(first.grid):
        if item.models or first.models:
            raise ImageError(f"{said} has {item.grid} where {first.name} has {first.grid}")
        have, want = item.affine.tolist(), first.affine.tolist()
        raise ImageError(f"{said} has affine {have} where {first.name} has {want}")
