"""Maskers of surfaces and grayordinates: nilearn's parameters and numbers, over files and shared images.

Covers: `SharedSurfaceMasker`, `SharedSurfaceLabelsMasker`, `SharedSurfaceMapsMasker`, `SharedCiftiMasker` and
`SharedCiftiLabelsMasker`. Does not cover: what they have in common (``elements``), volumes (``base``), which
elements are meant (``regions``).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from nilearn.maskers import SurfaceLabelsMasker, SurfaceMapsMasker, SurfaceMasker
from sklearn.utils.validation import check_array, check_is_fitted

from sharedmask.errors import EmptyMaskError, MaskError, ParameterError
from sharedmask.image.extraction import extract
from sharedmask.image.image import SharedImage
from sharedmask.maskers.base import documented
from sharedmask.maskers.elements import ElementsMasker, masked
from sharedmask.regions import parcels
from sharedmask.regions.regions import Regions
from sharedmask.sources.opening import check_signals, open_source
from sharedmask.spaces.space import Space, mismatch_error
from sharedmask.typing import Array

_NAMED = 5  # regions, in a warning


@documented
class SharedSurfaceMasker(ElementsMasker, SurfaceMasker):
    """nilearn's ``SurfaceMasker`` over files, pairs of hemispheres and shared images.

    Parameters
    ----------
    mask_img : SurfaceImage, path, pair of paths, ndarray, str or None, default=None
        Which elements are meant: an image, also a file, that is not 0 there; an array over the elements; the
        name of a structure, as ``"CortexLeft"``. None: all.

    Attributes
    ----------
    space_ : BrainModels
        Where the elements are.

    Examples
    --------
    >>> from nilearn.surface import InMemoryMesh, PolyMesh, SurfaceImage
    >>> mesh = InMemoryMesh(np.eye(4, 3), np.array([[0, 1, 2]]))
    >>> image = SurfaceImage(PolyMesh(left=mesh), {"left": np.arange(20.0).reshape(4, 5)})
    >>> SharedSurfaceMasker(standardize=None).fit_transform(image).shape
    (5, 4)
    """

    _given = "mask_img"

    def __init__(
        self,
        mask_img: Any = None,
        smoothing_fwhm: float | None = None,
        standardize: Any = False,
        standardize_confounds: bool = True,
        detrend: bool = False,
        high_variance_confounds: bool = False,
        low_pass: float | None = None,
        high_pass: float | None = None,
        t_r: float | None = None,
        dtype: Any = None,
        memory: Any = None,
        memory_level: int = 1,
        verbose: int = 0,
        reports: bool = True,
        cmap: str = "inferno",
        clean_args: dict[str, Any] | None = None,
        memory_limit: int | float | str | None = None,
    ) -> None:
        self._take(locals())

    def _spread(self, signals: Array) -> Array:
        values = np.zeros((len(signals), self.space_.n_voxels), signals.dtype)
        values[:, self._regions_on(self.space_).indices] = signals
        return values

    def _found_on(self, space: Space) -> tuple[Regions, Array]:
        fitted = self._regions_on(self.space_)
        numbers = space.numbers_of(self.space_, fitted.indices)
        if numbers is None:
            self._regions_on(space)  # whose error names a file of the mask
            raise mismatch_error("the masker", self.space_, space)
        here = numbers >= 0
        offsets = np.array([0, np.count_nonzero(here)])
        return replace(fitted, grid=space, indices=numbers[here], offsets=offsets), here

    def _learn(self, regions: Regions) -> None:
        self.n_elements_ = len(regions.indices)

    def _signals(self, opened: Any, regions: Regions) -> Array:
        return self._voxels(opened, regions)


@documented
class SharedSurfaceLabelsMasker(ElementsMasker, SurfaceLabelsMasker):
    """nilearn's ``SurfaceLabelsMasker`` over files, pairs of hemispheres and shared images.

    Attributes
    ----------
    space_ : BrainModels
        Where the elements are.

    Notes
    -----
    ``labels_img`` may also be what :meth:`SharedImage.reduce` takes for an atlas: ``.dlabel.nii``,
    ``.label.gii``, ``.annot``, a pair of them, an array over the elements. Its own table gives the names,
    unless ``lut`` does. ``strategy`` may then also be ``"pc1"``.
    """

    _given = "labels_img"

    def __init__(
        self,
        labels_img: Any = None,
        labels: list[str] | None = None,
        lut: Any = None,
        background_label: int = 0,
        mask_img: Any = None,
        smoothing_fwhm: float | None = None,
        standardize: Any = False,
        standardize_confounds: bool = True,
        detrend: bool = False,
        high_variance_confounds: bool = False,
        low_pass: float | None = None,
        high_pass: float | None = None,
        t_r: float | None = None,
        dtype: Any = None,
        memory: Any = None,
        memory_level: int = 1,
        verbose: int = 0,
        strategy: str = "mean",
        reports: bool = True,
        cmap: str = "inferno",
        clean_args: dict[str, Any] | None = None,
        memory_limit: int | float | str | None = None,
    ) -> None:
        self._take(locals())

    lut: Any
    labels: list[str] | None
    labels_img: Any
    background_label: int
    strategy: str

    def _spread(self, signals: Array) -> Array:
        regions = self._regions_on(self.space_)
        values = np.zeros((len(signals), self.space_.n_voxels), signals.dtype)
        values[:, regions.indices] = np.repeat(signals, regions.sizes, axis=1)
        return values

    def to_cifti(self, signals: Array, kind: parcels.Kind | None = None) -> Any:
        """Make a parcellated image of values of the regions; see :meth:`Regions.to_cifti`.

        Parameters
        ----------
        signals : ndarray, (n_timepoints, n_regions) or (n_regions, n_regions)
            Series, or a matrix.
        kind : {"series", "matrix", "scalars"}, default="series"
            To save as ``.ptseries.nii``, ``.pconn.nii``, ``.pscalar.nii``.

        Returns
        -------
        nibabel.Cifti2Image
            To be saved.
        """
        check_is_fitted(self, "space_")
        return self._regions_on(self.space_).to_cifti(signals, kind, t_r=self._step)

    def _regions_on(self, space: Space) -> Regions:
        regions = self._atlas_on(space)
        if self.labels is not None:
            if len(self.labels) != len(regions):
                raise ParameterError(f"labels= are {len(self.labels)} names for {len(regions)} regions")
            regions = replace(regions, names=tuple(self.labels), keys=tuple(self.labels))
        inside = self._in_mask(regions)
        if not len(inside):
            raise EmptyMaskError("no region has an element in mask_img")
        return inside

    def _atlas_on(self, space: Space) -> Regions:
        if self.labels_img is None:
            raise ParameterError("labels_img= is the atlas, and none is given")
        how = {"lut": self.lut, "background_label": self.background_label}
        return Regions.from_labels(self.labels_img, space, **how)

    def _in_mask(self, regions: Regions) -> Regions:
        if self.mask_img is None:
            return regions
        return regions.within(masked(self.mask_img, regions.grid).indices).without_empty()

    def _found_on(self, space: Space) -> tuple[Regions, Array]:
        fitted = self._regions_on(self.space_)
        if any(isinstance(one, np.ndarray) for one in (self.labels_img, self.mask_img)):
            placed = fitted.placed_on(space)  # arrays are of the elements that were fitted
            return placed.without_empty(), placed.sizes > 0
        found = self._in_mask(self._atlas_on(space))
        place = {label: number for number, label in enumerate(found.labels)}
        numbers = [place[label] for label in fitted.labels if label in place]
        return found.picked(numbers), np.isin(fitted.labels, found.labels)

    def _called(self, columns: Array) -> str:
        names = self._regions_on(self.space_).names
        first = ", ".join(repr(names[column]) for column in columns[:_NAMED])
        more = f" and {len(columns) - _NAMED} more" if len(columns) > _NAMED else ""
        return f"region{'s' * (len(columns) > 1)} {first}{more}"

    def _learn(self, regions: Regions) -> None:
        self.lut_ = pd.DataFrame({"index": regions.labels, "name": regions.names})

    def _signals(self, opened: Any, regions: Regions) -> Array:
        if isinstance(opened, SharedImage):
            return np.asarray(opened.reduce(regions, self.strategy, nan_policy="propagate"))
        how: dict[str, Any] = {"strategy": self.strategy, "memory_limit": self.memory_limit}
        return np.asarray(extract(opened, regions, nan_policy="propagate", **how))


@documented
class SharedSurfaceMapsMasker(ElementsMasker, SurfaceMapsMasker):
    """nilearn's ``SurfaceMapsMasker``: the weights of maps that fit each volume best, by least squares.

    Attributes
    ----------
    space_ : BrainModels
        Where the elements are.

    Notes
    -----
    ``maps_img`` may also be a ``.dscalar.nii``, a ``.func.gii`` or a pair of them, or an array,
    (n_elements, n_maps).
    """

    _given = "maps_img"

    def __init__(
        self,
        maps_img: Any = None,
        mask_img: Any = None,
        allow_overlap: bool = True,
        smoothing_fwhm: float | None = None,
        standardize: Any = False,
        standardize_confounds: bool = True,
        detrend: bool = False,
        high_variance_confounds: bool = False,
        low_pass: float | None = None,
        high_pass: float | None = None,
        t_r: float | None = None,
        dtype: Any = None,
        memory: Any = None,
        memory_level: int = 1,
        verbose: int = 0,
        reports: bool = True,
        cmap: str = "inferno",
        clean_args: dict[str, Any] | None = None,
        memory_limit: int | float | str | None = None,
    ) -> None:
        self._take(locals())

    maps_img: Any
    allow_overlap: bool

    def _spread(self, signals: Array) -> Array:
        inside = self._regions_on(self.space_).indices
        values = np.zeros((len(signals), self.space_.n_voxels))
        values[:, inside] = check_array(signals) @ self._maps_on(self.space_)[inside].T
        return values

    def _maps_on(self, space: Space) -> Array:
        """(n_elements, n_maps), 0 where there are no maps."""
        if isinstance(self.maps_img, np.ndarray):
            name, maps, numbers = "maps_img= is an array that", self.maps_img, np.arange(space.n_voxels)
        else:
            source = open_source(self.maps_img)
            check_signals(source)
            found = space.numbers_of(source.grid, np.arange(source.n_voxels))
            if found is None:
                raise mismatch_error(source.name, source.grid, space)
            name, maps, numbers = source.name, source.read().reshape(source.n_voxels, -1), found
        if maps.ndim != 2 or len(maps) != len(numbers) or maps.dtype.kind not in "biuf":
            needed = f"({len(numbers)}, n_maps) of numbers is needed"
            raise MaskError(f"{name} has shape {maps.shape} of {maps.dtype}: {needed}")
        if wrong := np.count_nonzero(~np.isfinite(maps)):
            raise MaskError(f"{name} has {wrong} values that are not finite")
        placed = np.zeros((space.n_voxels, maps.shape[1]), maps.dtype)
        placed[numbers[numbers >= 0]] = maps[numbers >= 0]
        return placed

    def _found_on(self, space: Space) -> tuple[Regions, Array]:
        return self._regions_on(space), np.ones(self.n_elements_, bool)

    def _learn(self, regions: Regions) -> None:
        maps = self._maps_on(self.space_)
        if not self.allow_overlap and np.any(np.all(maps != 0, axis=1)):
            raise MaskError("Overlap detected in the maps.")
        self.n_elements_ = maps.shape[1]

    def _signals(self, opened: Any, regions: Regions) -> Array:
        from scipy.linalg import lstsq

        values = self._voxels(opened, regions).astype(np.float32)
        return np.asarray(lstsq(self._maps_on(regions.grid)[regions.indices], values.T)[0].T)


@documented
class SharedCiftiMasker(SharedSurfaceMasker):
    """The series of the elements of a CIFTI-2 file: :class:`SharedSurfaceMasker` for grayordinates."""


@documented
class SharedCiftiLabelsMasker(SharedSurfaceLabelsMasker):
    """The series of the parcels of a CIFTI-2 file: :class:`SharedSurfaceLabelsMasker` for grayordinates."""
