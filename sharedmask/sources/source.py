"""What an image is, and its volumes streamed into a buffer the caller gives.

Covers: shape, stored dtype, affine, scaling, repetition time and fingerprint of NIfTI and Analyze files,
series of 3D ones and nibabel images; reading their volumes once, forward, as stored. Does not cover:
headers of files (``nifti``), decompression (``codecs``), where the bytes go and in what layout
(``loader``), applying the scaling (``values``), masks (``regions``) and grids (``grid``).
"""

from __future__ import annotations

import math
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import field, fields, replace
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.analyze import AnalyzeImage
from nibabel.arrayproxy import ArrayProxy
from nibabel.filebasedimages import FileBasedImage
from nibabel.spatialimages import SpatialImage
from nibabel.volumeutils import apply_read_scaling
from numpy.typing import NDArray

from sharedmask import errors
from sharedmask.decoding import parallel
from sharedmask.decoding.codecs import GZIP, Stream, codec_of, most_bytes, open_raw, open_stream
from sharedmask.decoding.points import Index, Points
from sharedmask.errors import DamagedImageError, ImageError, MissingFileError, SourceChangedError
from sharedmask.records import dataclass
from sharedmask.sources import nifti
from sharedmask.sources.grid import Grid
from sharedmask.sources.layout import FileLayout
from sharedmask.sources.sidecar import RepetitionTime
from sharedmask.sources.volumes import VolumeReader, Volumes
from sharedmask.system import identity
from sharedmask.system.files import matches
from sharedmask.system.identity import FileState
from sharedmask.system.process import cached_property
from sharedmask.typing import Array

_WHILE_READ = "while it was read"


@dataclass(frozen=True, eq=False)
class Facts:
    """What an image is; all that a process needs to know that has the image's rows but not its file."""

    name: str  # in messages: the path as given, or what the image is
    shape: tuple[int, int, int, int]  # (x, y, z, t); t is 1 for a 3D image
    ndim: int  # 3 for a 3D image, else 4
    dtype: np.dtype[Any]  # of the stored values, unscaled, in native byte order
    affine: NDArray[np.float64] = field(repr=False)  # voxel indices to millimetres, read-only
    slope: float  # of the stored values; 1.0 if they are not scaled
    inter: float  # of the stored values; 0.0 if they are not scaled
    t_r: float | None  # repetition time in seconds: the BIDS sidecar's, else the header's
    t_r_origin: str  # the sidecar or "its header"; why it is not known
    header: Any = field(repr=False)  # a copy, for later writers; of a shared image without extensions

    @property
    def n_voxels(self) -> int:
        """Number of voxels of one volume."""
        return math.prod(self.shape[:3])

    @cached_property
    def grid(self) -> Grid:
        """Where the voxels are."""
        return Grid(self.shape[:3], self.affine, self.name)

    @property
    def n_timepoints(self) -> int:
        """Number of volumes."""
        return self.shape[3]

    @property
    def nbytes(self) -> int:
        """Size of all stored values, in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def is_scaled(self) -> bool:
        """Whether the stored values are not the true ones."""
        return (self.slope, self.inter) != (1.0, 0.0)

    @cached_property
    def scaled_dtype(self) -> np.dtype[Any]:
        """Dtype of the values after scaling: what nibabel's ``dataobj`` reads as."""
        return apply_read_scaling(np.zeros(1, self.dtype), self.slope, self.inter).dtype.newbyteorder("=")

    def __getstate__(self) -> dict[str, Any]:
        # Without what has been computed meanwhile: pickles of the same image are the same.
        return {fact.name: getattr(self, fact.name) for fact in fields(self)}

    def to_dict(self) -> dict[str, Any]:
        """The facts as JSON has them; floats keep all their bits."""
        taken = {fact.name: getattr(self, fact.name) for fact in fields(Facts)}
        exact = {"shape": list(self.shape), "dtype": self.dtype.str, "affine": self.affine.tolist()}
        return taken | exact | {"header": nifti.header_text(self.header)}

    @classmethod
    def from_dict(cls, given: dict[str, Any]) -> Facts:
        """The opposite of :meth:`to_dict`."""
        affine = np.array(given["affine"], np.float64)
        affine.setflags(write=False)
        exact = {"shape": tuple(given["shape"]), "dtype": np.dtype(given["dtype"]), "affine": affine}
        return Facts(**given | exact | {"header": nifti.header_of(given["header"])})


@dataclass(frozen=True, eq=False)
class Source(Facts, ABC):
    """The facts of one image, and the way to its volumes. `open_source` makes it."""

    files: tuple[FileState, ...] = field(repr=False)  # when it was opened; the one with the voxels first
    t_r_doubt: str = field(repr=False, default="", kw_only=True)  # what is to be said of the repetition time

    @property
    def facts(self) -> Facts:
        """A source is its own facts."""
        return self

    @property
    def paths(self) -> tuple[Path, ...]:
        """Of its files, the one with the voxels first; none of an image in memory."""
        return tuple(Path(file.path) for file in self.files)

    def narrowed(self, select: NDArray[np.intp]) -> tuple[Volumes, NDArray[np.intp]]:
        """The volumes to read for the voxels ``select``, and their numbers there."""
        return self, select

    @property
    def compressed(self) -> bool:
        """Whether reading means decompressing."""
        return any(codec_of(path) for path in self.paths)

    @property
    def layout(self) -> FileLayout | str:
        """Where its values can be mapped as they are; else the reason why they cannot, for messages."""
        return "it is not one file"

    @property
    def reading_bytes(self) -> int:
        """Memory that :meth:`volumes` takes besides what it is read into, where that is much."""
        return 0

    @property
    def fingerprint(self) -> str:
        """Digest that changes when the image does; taken anew each time.

        For files: see :func:`sharedmask.system.identity.fingerprint`. For an image in memory: of all its
        values, which it reads.
        """
        return self._digest(self._identify)

    @property
    def content(self) -> str:
        """Digest of all that its files hold, wherever they are and whenever they were written; reads them."""
        return self._digest(self._digest_content)

    def _digest(self, of: Callable[[blake2b], None]) -> str:
        digest = blake2b(digest_size=20)
        facts = (self.shape, self.dtype.str, self.slope, self.inter, self.affine.tolist())
        digest.update(repr(facts).encode())
        of(digest)
        return digest.hexdigest()

    def _identify(self, digest: blake2b) -> None:
        for path in self.paths:
            with open_raw(path) as file:
                digest.update(identity.fingerprint(file))

    def _digest_content(self, digest: blake2b) -> None:
        for path in self.paths:
            with open_raw(path) as file:
                digest.update(identity.content(file))

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """What is read of the files in the ``with`` block is what they held when the image was opened.

        Raises
        ------
        SourceChangedError
            Before the block, or after it; also in the place of what a change made of the file.
        """
        self.check()
        try:
            yield
        except (ImageError, OSError):
            self.check(_WHILE_READ)
            raise
        self.check(_WHILE_READ)

    def check(self, when: str = "after it was opened: open it again") -> None:
        """Raise a SourceChangedError if a file is not what it was when the image was opened."""
        changed = [file.path for file in self.files if file.has_changed()]
        if changed and not os.path.exists(changed[0]):
            raise MissingFileError(f"{changed[0]} does not exist")
        if changed:
            raise SourceChangedError(f"{self.name} changed {when}")

    def read(self) -> Array:
        """All true values at once, (x, y, z) or (x, y, z, t): for masks and other small images."""
        stored = np.empty((self.n_timepoints, self.n_voxels), self.dtype)
        with self.volumes() as reader:
            reader.readinto(stored)
        values = apply_read_scaling(stored, self.slope, self.inter)
        return np.asarray(values.reshape(self.shape[::-1]).T.reshape(self.shape[: self.ndim]))

    @contextmanager
    def volumes(self) -> Iterator[VolumeReader]:
        """Read the volumes from the first on; closes what it opened at the end of the ``with`` block.

        Raises
        ------
        SourceChangedError
            A file changed since it was opened; what was read by then counts for nothing.
        """
        with self.unchanged(), self._volumes() as reader:
            yield reader

    @abstractmethod
    def _volumes(self) -> AbstractContextManager[VolumeReader]: ...


@dataclass(frozen=True, eq=False)
class FileSource(Source):
    """One NIfTI or Analyze image in a file."""

    file: str = field(repr=False)
    offset: int = field(repr=False)
    foreign: bool = field(repr=False)
    index: Index | None = field(repr=False, default=None, kw_only=True)
    """Where its seek points are kept, if there are any."""

    @cached_property
    def points(self) -> Points | None:
        """Where decoding can begin, if that is known."""
        if self.index is None or codec_of(self.file) is not GZIP:
            return None
        with open_raw(self.file) as file:
            points = self.index.find(file)
        return points if points is not None and points.nbytes >= self.offset + self.nbytes else None

    @property
    def reading_bytes(self) -> int:
        return 0 if self.points is None else parallel.reading_bytes(self.points)

    def volume(self, number: int) -> Array | None:
        """The stored values of one volume, if they can be read without those before."""
        if self.points is None:
            return None
        row = np.empty(self.n_voxels, self.dtype)
        place = self.offset + number * row.nbytes
        with self.unchanged(), parallel.open_indexed(self.file, self.name, self.points, place, 1) as stream:
            self._fill(stream, row, self.n_timepoints - number - 1)
        return row

    @property
    def layout(self) -> FileLayout | str:
        if self.compressed:
            return "it is compressed"
        if self.foreign:
            return "its values are in foreign byte order"
        return FileLayout.aligned(self.file, self.offset, self.dtype, "F")

    @contextmanager
    def _volumes(self) -> Iterator[VolumeReader]:
        with self._opened() as stream:
            if stream.skip(self.offset) < self.offset:
                raise self.truncated(0)
            yield VolumeReader(self, partial(self._fill, stream))

    def _opened(self) -> AbstractContextManager[Stream]:
        n_threads = 1 if self.points is None else parallel.n_decoders(self.points)
        if self.points is None or n_threads == 1:
            return open_stream(self.file, self.name)
        return parallel.open_indexed(self.file, self.name, self.points, 0, n_threads)

    def _fill(self, stream: Stream, rows: Array, remaining: int) -> None:
        got = stream.readinto(rows.view(np.uint8).reshape(-1).data)
        if got < rows.nbytes:
            before = self.nbytes - self.nbytes // self.n_timepoints * remaining - rows.nbytes
            raise self.truncated(before + got)
        if self.foreign:
            rows.byteswap(inplace=True)
        if not remaining:
            stream.finish()

    def truncated(self, found: int) -> DamagedImageError:
        """The error that `found` bytes of image are too few."""
        wanted = f"its header promises {self.nbytes} bytes of image data"
        return DamagedImageError(f"{self.name} is truncated: {wanted}, {found} were found")


@dataclass(frozen=True, eq=False)
class ArraySource(Source):
    """A nibabel image in memory, or of a kind that only nibabel reads, which takes all its values."""

    dataobj: Any = field(repr=False)

    @contextmanager
    def _volumes(self) -> Iterator[VolumeReader]:
        values = np.moveaxis(np.asanyarray(self.dataobj).reshape(self.shape), 3, 0)
        yield VolumeReader(self, partial(self._fill, iter(values)))

    def _fill(self, values: Iterator[Array], rows: Array, remaining: int) -> None:
        for row in rows:
            row.reshape(self.shape[:3], order="F")[...] = next(values)

    def _identify(self, digest: blake2b) -> None:
        row = np.empty(self.n_voxels, self.dtype)
        with self.volumes() as reader:
            while reader.remaining:
                reader.readinto(row)
                digest.update(row.view(np.uint8).data)

    def _digest_content(self, digest: blake2b) -> None:
        self._identify(digest)


@dataclass(frozen=True, eq=False)
class SeriesSource(Source):
    """3D images on one grid, one after the other in time; `raw` if all are stored and scaled alike."""

    items: tuple[Source, ...] = field(repr=False)
    raw: bool = field(repr=False)

    @contextmanager
    def _volumes(self) -> Iterator[VolumeReader]:
        yield VolumeReader(self, partial(self._fill, iter(self.items)))

    def _fill(self, items: Iterator[Source], rows: Array, remaining: int) -> None:
        for row in rows:
            item = next(items)
            stored = row if self.raw else np.empty(item.n_voxels, item.dtype)
            with item.volumes() as reader:
                reader.readinto(stored)
            if not self.raw:
                row[...] = apply_read_scaling(stored, item.slope, item.inter)

    def _identify(self, digest: blake2b) -> None:
        for item in self.items:
            digest.update(item.fingerprint.encode())

    def _digest_content(self, digest: blake2b) -> None:
        for item in self.items:
            digest.update(item.content.encode())


def open_source(source: object) -> Source:
    """Learn what an image is, without reading its voxels.

    Parameters
    ----------
    source : str, path, nibabel image, or list or tuple of 3D ones
        A string with ``*``, ``?`` or ``[`` that is no file is a pattern: its matches, sorted, are one
        series. A loaded but unread nibabel image of a file is read from that file, and left untouched.

    Returns
    -------
    Source
        A `Source` is returned as it is.

    Raises
    ------
    MissingFileError
        If there is no such file.
    DamagedImageError
        If the file is empty, shorter than its header promises, or not what its name says.
    ImageError
        If the image cannot be served: neither NIfTI nor Analyze, complex or RGB values, no voxels, fewer
        than 3 axes or two beyond the third; or if the images of a series do not fit together.

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
    opened = _open(source)
    return opened if opened is source else _told(opened)


def _told(source: Source) -> Source:
    """With the repetition time that its sidecars tell."""
    if source.ndim < 4 or not source.paths:
        return source
    time = RepetitionTime(source.t_r, source.t_r_origin).told_of(source.name, source.paths[0])
    return replace(source, t_r=time.seconds, t_r_origin=time.origin, t_r_doubt=time.doubt)


def warn_of_time(source: Source) -> None:
    """Say of an image's repetition time what is to be said, once where it is opened for its signals."""
    if source.t_r_doubt:
        warnings.warn(source.t_r_doubt, errors.SharedMaskWarning, stacklevel=3)


def _open(source: object) -> Source:
    if isinstance(source, (list, tuple)):
        items = [_open_one(item) for item in source]
        return _series(f"a list of {len(items)} volumes ({items[0].name} ...)" if items else "", items)
    if isinstance(source, str) and (found := matches(source)):
        items = [_open_one(path) for path in found]
        whole = len(items) == 1 and items[0].ndim == 4
        return items[0] if whole else _series(f"{source} ({len(items)} volumes)", items)
    return _open_one(source)


def _open_one(source: object) -> Source:
    if isinstance(source, Source):
        return source
    if isinstance(source, (str, os.PathLike)):
        return _from_path(os.fsdecode(source))
    if isinstance(source, SpatialImage):
        return _from_image(source)
    if isinstance(source, FileBasedImage):
        raise nifti.refused_kind(source.get_filename() or "the image given", type(source))
    raise ImageError(f"an image is a path, a nibabel image or a list of 3D ones, not {type(source).__name__}")


def _from_path(name: str) -> Source:
    path = os.path.abspath(os.path.expanduser(name))
    nifti.check_path(path, name)
    files = _files_now(path)  # before the header is read: what changes later is seen
    with nifti.as_image_error(name):
        image = nifti.load(path, name)
        return _file_source(name, image, image.file_map["image"].filename, files)


def _files_now(path: str) -> tuple[FileState, ...]:
    return tuple(FileState.now(one) for one in nifti.files_of(path) if one.exists())


def _from_image(image: Any) -> Source:
    data, path = image.dataobj, image.get_filename()
    # SPM's reader can hold float32 scaling, with which float64 arithmetic would give other values.
    of_file = isinstance(image, AnalyzeImage) and type(data) is ArrayProxy and data.order == "F"
    if of_file and [type(fact) for fact in (data.file_like, data.slope, data.inter)] == [str, float, float]:
        file = os.path.abspath(data.file_like)
        return _file_source(data.file_like, image, file, _files_now(file))
    name = f"{type(image).__name__} {f'of {path}' if path else 'in memory'}"
    with nifti.as_image_error(name):
        one = data if isinstance(data, np.ndarray) else np.asanyarray(data[(slice(0, 1),) * len(data.shape)])
        dtype = np.dtype(np.uint8) if one.dtype == bool else one.dtype
        return ArraySource(**nifti.facts_of(name, image, dtype), slope=1.0, inter=0.0, files=(), dataobj=data)


def _file_source(name: str, image: Any, file: str, files: tuple[FileState, ...]) -> FileSource:
    nifti.check_path(file, file)
    proxy = image.dataobj
    facts, offset, foreign = (
        nifti.facts_of(name, image, proxy.dtype),
        proxy.offset,
        not proxy.dtype.isnative,
    )
    facts |= {"slope": proxy.slope, "inter": proxy.inter, "files": files}
    source = FileSource(**facts, file=file, offset=int(offset), foreign=foreign)
    if (most := most_bytes(file) - source.offset) < source.nbytes:
        raise source.truncated(max(int(most), 0))
    return source


def _series(name: str, items: Sequence[Source]) -> SeriesSource:
    if not items:
        raise ImageError("an empty list is not an image")
    first = items[0]
    for number, item in enumerate(items, start=1):
        _check_member(number, item, first)
    raw = len({(item.dtype, item.slope, item.inter) for item in items}) == 1
    facts = {fact.name: getattr(first, fact.name) for fact in fields(Source)}
    facts |= {"name": name, "shape": (*first.shape[:3], len(items)), "ndim": 4}
    facts["files"] = tuple(file for item in items for file in item.files)
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
        raise ImageError(f"{said} has shape {item.shape[:3]} where {first.name} has {first.shape[:3]}")
    if not item.grid.matches(first.grid):
        have, want = item.affine.tolist(), first.affine.tolist()
        raise ImageError(f"{said} has affine {have} where {first.name} has {want}")
