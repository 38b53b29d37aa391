"""A shared image as a nibabel image, for code that knows nothing of sharedmask.

Covers: an image whose data are views of the shared rows and which pickles as a handle. Does not
cover: reading files (``sources``), sharing (``image``).
"""

from typing import Any

import numpy as np
from nibabel import Nifti1Image
from numpy.typing import DTypeLike, NDArray

from sharedmask import masking, segments
from sharedmask.masking import Rows
from sharedmask.segments import Handle

Array = NDArray[Any]


class SharedNifti(Nifti1Image):
    """A NIfTI image over shared memory; a few hundred bytes when pickled.

    Where the stored values are the true ones, its data are a read-only view, so nothing is copied
    on the way to a masker. Scaled images, and those that hold the voxels of a mask only, give
    nibabel's values in a fresh array each time, as nibabel does for a file.
    """

    # None for what nibabel and nilearn derive from it by calling its class: an ordinary image.
    _handle: Handle | None = None

    @classmethod
    def of(cls, handle: Handle | str) -> "SharedNifti":
        """The image behind a handle."""
        handle = Handle.from_json(handle) if isinstance(handle, str) else handle
        rows = Rows.attached(segments.attach(handle))
        facts = rows.facts
        image = cls(_data_of(rows), facts.affine)
        image._handle = handle
        image.header.set_data_dtype(facts.scaled_dtype)
        image.header.set_xyzt_units("mm", "sec")
        if facts.ndim == 4 and facts.t_r:
            image.header.set_zooms((*image.header.get_zooms()[:3], facts.t_r))
        return image

    @property
    def slicer(self) -> Any:
        """nibabel's; it knows by class on which axis time is, and does not know this one."""
        return Nifti1Image(self.dataobj, self.affine, self.header).slicer

    def __reduce_ex__(self, protocol: Any) -> Any:
        if self._handle is None:
            return super().__reduce_ex__(protocol)
        return SharedNifti.of, (self._handle.to_json(),)


def _data_of(rows: Rows) -> Any:
    if rows.facts.is_scaled or rows.voxels is not None:
        return _Values(rows)
    view = masking.stored_view(rows)
    return view[..., 0] if rows.facts.ndim == 3 else view


class _Values:
    """What nibabel calls a proxy: the values of volumes when they are asked for."""

    is_proxy = True
    slope, inter = 1.0, 0.0  # of what is given, which has been scaled

    def __init__(self, rows: Rows) -> None:
        self.shape = rows.facts.shape[: rows.facts.ndim]
        self.ndim = rows.facts.ndim
        self.dtype = rows.facts.scaled_dtype
        self._rows = rows

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> Array:
        values = masking.volumes(self._rows, slice(None)).reshape(self.shape, order="F")
        return values if dtype is None else values.astype(dtype, copy=False)

    def __getitem__(self, slicer: Any) -> Array:
        if isinstance(slicer, tuple) and len(slicer) == 4 and isinstance(slicer[3], (int, np.integer)):
            t = int(slicer[3]) % self.shape[3]
            return np.asarray(masking.volumes(self._rows, slice(t, t + 1))[..., 0][slicer[:3]])
        return np.asarray(np.asarray(self)[slicer])
