"""What an image is, and its volumes streamed into a buffer the caller gives.

Covers: shape, stored dtype, affine, scaling, repetition time and fingerprint of images in files and in
memory, and of series of 3D ones; reading their volumes once, forward, as stored. Does not cover: what
callers give (``opening``), headers of files (``nifti``), decompression (``codecs``), where the bytes go and
in what layout (``loader``), applying the scaling (``values``), masks (``regions``) and grids (``grid``).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import field, fields
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

import numpy as np
from nibabel.volumeutils import apply_read_scaling

from sharedmask.decoding import bgzf, parallel
from sharedmask.decoding.codecs import GZIP, Stream, codec_of, open_file, open_raw, open_stream
from sharedmask.decoding.seek_points import Index, Pieces
from sharedmask.errors import DamagedImageError, ImageError, MissingFileError, SourceChangedError
from sharedmask.records import dataclass
from sharedmask.remote.addresses import without_query
from sharedmask.sources import nifti
from sharedmask.sources.layout import FileLayout
from sharedmask.sources.volumes import VolumeReader, Volumes
from sharedmask.spaces.grid import Grid
from sharedmask.spaces.parcellation import Elements, elements_from_dict
from sharedmask.spaces.space import Space
from sharedmask.system import identity, inputs
from sharedmask.system.identity import FileState
from sharedmask.system.process import cached_property, n_cpus
from sharedmask.typing import Array, NDArray, Numbers

_WHILE_READ = "while it was read"
Kind = Literal["fingerprint", "content"]


@dataclass(frozen=True, eq=False)
class Facts:
    """What an image is; all that a process needs to know that has the image's rows but not its file."""

    name: str  # in messages: the path as given, or what the image is
    shape: tuple[int, ...]  # (x, y, z, t), or (n_elements, t); t is 1 for a 3D image
    ndim: int  # 3 for a 3D image, else 4; of elements 1 or 2
    dtype: np.dtype[Any]  # of the stored values, unscaled, in native byte order
    affine: NDArray[np.float64] = field(repr=False)  # voxel indices to millimetres, read-only
    slope: float  # of the stored values; 1.0 if they are not scaled
    inter: float  # of the stored values; 0.0 if they are not scaled
    t_r: float | None  # repetition time in seconds: the BIDS sidecar's, else the header's
    t_r_origin: str  # the sidecar or "its header"; why it is not known
    header: Any = field(repr=False)  # a copy, for later writers; of a shared image without extensions
    models: Elements | None = field(repr=False, default=None, kw_only=True)  # of one that is no volume

    @property
    def n_voxels(self) -> int:
        """Number of voxels of one volume."""
        return math.prod(self.shape[:-1])

    @cached_property
    def grid(self) -> Space:
        """Where the voxels are."""
        if self.models is not None:
            return self.models
        x, y, z, _ = self.shape
        return Grid((x, y, z), self.affine, self.name)

    @property
    def n_timepoints(self) -> int:
        """Number of volumes."""
        return self.shape[-1]

    @property
    def is_series(self) -> bool:
        """Whether it has an axis of time, of whatever length."""
        return self.ndim == len(self.shape)

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

    def known(self, kind: type[Facts]) -> dict[str, Any]:
        """The fields of ``kind``, a class of this or one above it, and their values."""
        return {fact.name: getattr(self, fact.name) for fact in fields(kind)}

    def __getstate__(self) -> dict[str, Any]:
        # Without what has been computed meanwhile: pickles of the same image are the same.
        return self.known(type(self))

    def to_dict(self) -> dict[str, Any]:
        """The facts as JSON has them; floats keep all their bits."""
        exact = {"shape": list(self.shape), "dtype": self.dtype.str, "affine": self.affine.tolist()}
        models = self.models and self.models.to_dict()
        return self.known(Facts) | exact | {"header": nifti.header_text(self.header), "models": models}

    @classmethod
    def from_dict(cls, given: dict[str, Any]) -> Facts:
        """The opposite of :meth:`to_dict`."""
        affine = np.array(given["affine"], np.float64)
        affine.setflags(write=False)
        exact = {"shape": tuple(given["shape"]), "dtype": np.dtype(given["dtype"]), "affine": affine}
        models = given["models"] and elements_from_dict(given["models"])
        return Facts(**given | exact | {"header": nifti.header_of(given["header"]), "models": models})


@dataclass(frozen=True, eq=False)
class Source(Facts, ABC):
    """The facts of one image, and the way to its volumes. `open_source` makes it."""

    files: tuple[FileState, ...] = field(repr=False)  # when it was opened; the one with the voxels first
    t_r_doubt: str = field(repr=False, default="", kw_only=True)  # what is to be said of the repetition time
    labels: Mapping[int, str] | None = field(repr=False, default=None, kw_only=True)  # names of its values

    @property
    def facts(self) -> Facts:
        """A source is its own facts."""
        return self

    @property
    def paths(self) -> tuple[Path, ...]:
        """Of its files, the one with the voxels first; none of an image in memory."""
        return tuple(Path(without_query(file.path)) for file in self.files)

    def narrowed(self, select: Numbers | None) -> tuple[Volumes, Numbers | None]:
        """The volumes to read for the voxels ``select`` (None: all), and their numbers there."""
        return self, select

    @property
    def is_remote(self) -> bool:
        """Whether a file of it lies on a server."""
        return any(file.is_remote for file in self.files)

    @property
    def compressed(self) -> bool:
        """Whether reading means decompressing."""
        return any(codec_of(path) for path in self.paths)

    @property
    def n_decoders(self) -> int:
        """Cores that decode it."""
        return 1

    @property
    def reads_ahead(self) -> bool:
        """Whether a pass reads ahead by itself."""
        return self.n_decoders > 1

    @property
    def n_writers(self) -> int:
        """Threads that keep pace with reading it when they transpose; one does beside one that decodes."""
        return 1 if self.compressed and self.n_decoders == 1 else n_cpus()

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
        return self._digest("fingerprint")

    @property
    def content(self) -> str:
        """Digest of all that its files hold, wherever they are and whenever they were written; reads them."""
        return self._digest("content")

    def _digest(self, kind: Kind) -> str:
        digest = blake2b(digest_size=20)
        facts = (self.shape, self.dtype.str, self.slope, self.inter, self.affine.tolist())
        digest.update(repr(facts).encode() + (self.models.identity if self.models else b""))
        self._feed(digest, kind)
        return digest.hexdigest()

    def _feed(self, digest: blake2b, kind: Kind) -> None:
        for one in self.files:
            with open_raw(one.path) as file:
                digest.update(getattr(identity, kind)(file))

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """What is read of the files in the ``with`` block is what they held when the image was opened.

        Raises SourceChangedError before the block or after it, also in the place of what a change made of it.
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
        if changed and not inputs.exists(changed[0]):
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

        Raises SourceChangedError: a file changed since it was opened; what was read counts for nothing.
        """
        with self.unchanged(), self._volumes() as reader:
            yield reader

    def each_volume(self) -> Iterator[Array]:
        """The stored values of one volume after the other, each valid until the next is asked for."""
        stored = np.empty(self.n_voxels, self.dtype)
        with self.volumes() as reader:
            while reader.remaining:
                reader.readinto(stored)
                yield stored

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
    whole: tuple[int, int] | None = field(repr=False, default=None, kw_only=True)
    """Where the volumes of the file begin and how many bytes they are, if these are not all of them."""

    @cached_property
    def points(self) -> Pieces | None:
        """Where decoding can begin, if that is known: by the file itself, or its index."""
        if self.is_remote or codec_of(self.file) is not GZIP:
            return None
        with open_file(self.file) as file:
            points: Pieces | None = bgzf.found(file)
            if points is None and self.index is not None:
                points = self.index.find(file)
        return points if points is not None and points.nbytes >= self.offset + self.nbytes else None

    @property
    def has_no_points(self) -> bool:
        """Whether somebody looked for them, and there are none."""
        return vars(self).get("points", self) is None

    @property
    def _is_small(self) -> bool:
        """Whether one core decodes it, for which nobody has to look for points."""
        return parallel.is_small(sum(self.whole or (self.offset, self.nbytes)))

    @property
    def reading_bytes(self) -> int:
        points = None if self._is_small else self.points
        return 0 if points is None else parallel.reading_bytes(points, self.n_decoders)

    @cached_property
    def n_decoders(self) -> int:
        """Decided once, as what may be used is looked at for it."""
        return 1 if self._is_small or self.points is None else parallel.n_decoders(self.points)

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
        if self.is_remote:
            return "it lies on a server"
        if self.foreign:
            return "its values are in foreign byte order"
        return FileLayout.aligned(self.file, self.offset, self.dtype, "F")

    def _feed(self, digest: blake2b, kind: Kind) -> None:
        super()._feed(digest, kind)
        if self.whole is not None:
            digest.update(repr((self.offset, self.whole)).encode())

    @contextmanager
    def _volumes(self) -> Iterator[VolumeReader]:
        with self._opened() as stream:
            view = partial(self._view, stream) if stream.has_views else None
            yield VolumeReader(self, partial(self._fill, stream), view)

    @contextmanager
    def _opened(self) -> Iterator[Stream]:
        """From the first volume on."""
        points, n_threads = self.points, self.n_decoders
        if points is not None and (n_threads > 1 or self.whole):
            with parallel.open_indexed(self.file, self.name, points, self.offset, n_threads) as stream:
                yield stream
            return
        with open_stream(self.file, self.name) as stream:
            if (found := stream.skip(self.offset)) < self.offset:
                raise self.truncated(found - self.offset)
            yield stream

    def _fill(self, stream: Stream, rows: Array, remaining: int) -> None:
        got = stream.readinto(rows.view(np.uint8).reshape(-1).data)
        if got < rows.nbytes:
            before = self.nbytes - self.nbytes // self.n_timepoints * remaining - rows.nbytes
            raise self.truncated(before + got)
        if self.foreign:
            rows.byteswap(inplace=True)
        if not remaining:
            stream.finish()

    def _view(self, stream: Stream, remaining: int) -> Array | None:
        """The next volume where it already lies, if its values can be used there."""
        aligned = self.offset % self.dtype.alignment == 0 and not self.foreign
        view = stream.view(self.n_voxels * self.dtype.itemsize) if aligned and remaining else None
        return None if view is None else np.frombuffer(view, self.dtype)

    def truncated(self, found: int) -> DamagedImageError:
        """The error that `found` bytes of image are too few."""
        begin, nbytes = self.whole or (self.offset, self.nbytes)
        found = max(found + self.offset - begin, 0)
        wanted = f"its header promises {nbytes} bytes of image data"
        return DamagedImageError(f"{self.name} is truncated: {wanted}, {found} were found")


@dataclass(frozen=True, eq=False)
class ArraySource(Source):
    """A nibabel image in memory, or of a kind that only nibabel reads, which takes all its values."""

    dataobj: Any = field(repr=False)

    @contextmanager
    def _volumes(self) -> Iterator[VolumeReader]:
        values = np.moveaxis(np.asanyarray(self.dataobj).reshape(self.shape), -1, 0)
        yield VolumeReader(self, partial(self._fill, iter(values)))

    def _fill(self, values: Iterator[Array], rows: Array, remaining: int) -> None:
        for row in rows:
            row.reshape(self.shape[:-1], order="F")[...] = next(values)

    def _feed(self, digest: blake2b, kind: Kind) -> None:
        if self.files:
            super()._feed(digest, kind)
            return
        for volume in self.each_volume():
            digest.update(volume.view(np.uint8).data)


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

    def _feed(self, digest: blake2b, kind: Kind) -> None:
        for item in self.items:
            digest.update(getattr(item, kind).encode())
