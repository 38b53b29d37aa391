"""Images as nibabel images, for code that knows nothing of sharedmask.

Covers: an image whose data are views of shared rows and which pickles as a handle; one whose values are
read from its source when they are asked for, and whose identity is the source's fingerprint. Does not
cover: reading files (``source``), sharing (``image``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from nibabel import Nifti1Header, Nifti1Image, Nifti2Header, Nifti2Image
from nibabel.volumeutils import apply_read_scaling
from numpy.typing import DTypeLike

from sharedmask.sources.nifti import nifti1_header
from sharedmask.sources.source import Facts, Source
from sharedmask.storage import segment
from sharedmask.storage.rows import Held, attached
from sharedmask.storage.segment import Handle
from sharedmask.system.process import cached_property
from sharedmask.typing import Array

_MOST_IN_NIFTI1 = 2**15 - 1  # volumes


def plain(dataobj: Any, image: Nifti1Image) -> Nifti1Image:
    """An ordinary image of these values, with the affine and header of another."""
    kind: Any = Nifti2Image if isinstance(image.header, Nifti2Header) else Nifti1Image
    made: Nifti1Image = kind(dataobj, image.affine, image.header)
    return made


class _Lent(Nifti1Image):
    """What nibabel and nilearn derive from it is an ordinary image."""

    def __init__(self, dataobj: Any, affine: Any, header: Any = None, *others: Any, **named: Any) -> None:
        if isinstance(header, Nifti2Header):
            self.header_class = Nifti2Header
        super().__init__(dataobj, affine, header, *others, **named)  # type: ignore[no-untyped-call]

    @property
    def slicer(self) -> Any:
        """nibabel's; it knows by class on which axis time is, and does not know these."""
        return plain(self.dataobj, self).slicer


class SharedNifti(_Lent):
    """A NIfTI image over shared memory; a few hundred bytes when pickled.

    Where the stored values are the true ones, its data are a read-only view, so nothing is copied
    on the way to a masker. Scaled images, and those that hold the voxels of a mask only, give
    nibabel's values in a fresh array each time, as nibabel does for a file.
    """

    # None for what nibabel and nilearn derive from it by calling its class: an ordinary image.
    _handle: Handle | None = None
    held: Held | None = None
    """The series behind the image, as it was attached."""

    @classmethod
    def of(cls, handle: Handle | str) -> SharedNifti:
        """The image behind a handle."""
        handle = Handle.from_json(handle) if isinstance(handle, str) else handle
        image = cls.here(attached(segment.attach(handle)))
        image._handle = handle
        return image

    @classmethod
    def here(cls, held: Held) -> SharedNifti:
        """The image that this process holds; it travels with its values."""
        image = cls(_data_of(held), held.facts.affine, _header_of(held.facts))
        image.held = held
        return image

    def __reduce_ex__(self, protocol: Any) -> Any:
        if self._handle is None:
            return super().__reduce_ex__(protocol)
        return SharedNifti.of, (self._handle.to_json(),)


class SourceNifti(_Lent):
    """A source as a NIfTI image: its values are read, into a fresh array, each time they are asked for.

    Whatever is done with the values does not reach the image that the caller gave. Pickled, and so in
    the keys of joblib's caches, it carries the source's fingerprint, which changes when a file does.
    """

    # None for what nibabel and nilearn derive from it by calling its class: an ordinary image.
    source: Source | None = None

    @classmethod
    def of(cls, source: Source, fingerprint: str | None = None) -> SourceNifti:
        """The image that ``source`` reads; a ``fingerprint`` only distinguishes pickles."""
        image = cls(_SourceValues(source), source.affine, _header_of(source))
        image.source = source
        return image

    def later(self, t: int) -> Nifti1Image:
        """Volume ``t`` of a 4D image, read when it is first looked at."""
        assert self.source is not None
        return Nifti1Image(_LaterVolume(self.source, t), self.affine, dtype=self.source.scaled_dtype)

    def __repr__(self) -> str:
        name = self.source.name if self.source else f"{self.shape}"
        return f"{type(self).__name__}({name!r})"

    def __deepcopy__(self, memo: Any) -> SourceNifti | Nifti1Image:
        if self.source is None:
            return plain(np.array(self.dataobj), self)
        return SourceNifti.of(self.source)

    def __reduce_ex__(self, protocol: Any) -> Any:
        if self.source is None:
            return super().__reduce_ex__(protocol)
        return SourceNifti.of, (self.source, self.source.fingerprint)


def _header_of(facts: Facts) -> Nifti1Header:
    """The file's, as nibabel would give it; what was smoothed or resampled is stored otherwise."""
    fits = max(facts.shape) <= _MOST_IN_NIFTI1
    header = nifti1_header(facts.header) if fits else Nifti2Header.from_header(facts.header, check=False)
    if header.get_data_dtype().newbyteorder("=") != facts.dtype:
        header.set_data_dtype(facts.scaled_dtype)
    return header


def _data_of(held: Held) -> Any:
    if held.facts.is_scaled or held.voxels is not None:
        return _HeldValues(held)
    view = held.stored_view
    return view[..., 0] if held.facts.ndim == 3 else view


class _Values(ABC):
    """What nibabel calls a proxy: the values of volumes when they are asked for."""

    is_proxy = True
    slope, inter = 1.0, 0.0  # of what is given, which has been scaled

    def __init__(self, facts: Facts) -> None:
        self.shape = facts.shape[: facts.ndim]
        self.ndim = facts.ndim
        self.dtype = facts.scaled_dtype

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> Array:
        values = self._all()
        return values if dtype is None else values.astype(dtype, copy=False)

    def __getitem__(self, slicer: Any) -> Array:
        if isinstance(slicer, tuple) and len(slicer) == 4 and isinstance(slicer[3], (int, np.integer)):
            return np.asarray(self._volume(int(slicer[3]) % self.shape[3])[slicer[:3]])
        return np.asarray(np.asarray(self)[slicer])

    @abstractmethod
    def _all(self) -> Array: ...

    @abstractmethod
    def _volume(self, t: int) -> Array: ...


class _HeldValues(_Values):
    def __init__(self, held: Held) -> None:
        super().__init__(held.facts)
        self._held = held

    def _all(self) -> Array:
        return self._held.volumes_at(slice(None)).reshape(self.shape, order="F")

    def _volume(self, t: int) -> Array:
        return self._held.volumes_at(slice(t, t + 1))[..., 0]


class _SourceValues(_Values):
    def __init__(self, source: Source) -> None:
        super().__init__(source)
        self._source = source

    def _all(self) -> Array:
        return self._source.read()

    def _volume(self, t: int) -> Array:
        source = self._source
        stored = np.empty(source.n_voxels, source.dtype)
        with source.volumes() as reader:
            for _ in range(t + 1):
                reader.readinto(stored)
        values = apply_read_scaling(stored, source.slope, source.inter)
        return np.asarray(values.reshape(source.shape[:3], order="F"))


class _LaterVolume(_SourceValues):
    """One volume, read once."""

    def __init__(self, source: Source, t: int) -> None:
        super().__init__(source)
        self.shape, self.ndim = source.shape[:3], 3
        self._t = t

    @cached_property
    def _read(self) -> Array:
        return self._volume(self._t)

    def _all(self) -> Array:
        return self._read.copy()
