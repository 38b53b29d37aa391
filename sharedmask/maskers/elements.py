"""Maskers of surfaces and grayordinates: nilearn's parameters and numbers, over files and shared images.

Covers: `SharedSurfaceMasker`, `SharedSurfaceLabelsMasker`, `SharedSurfaceMapsMasker`, `SharedCiftiMasker` and
`SharedCiftiLabelsMasker`. Does not cover: volumes (``base``), reading files (``opening``), which elements are
meant (``regions``). Cleaning is nilearn's.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from inspect import cleandoc
from typing import Any

import numpy as np
import pandas as pd
from nilearn.signal import clean, high_variance_confounds
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from sharedmask.errors import EmptyMaskError, MaskError, ParameterError, SharedMaskWarning
from sharedmask.image.extraction import extract
from sharedmask.image.image import SharedImage
from sharedmask.maskers._nilearn import InputTags
from sharedmask.maskers.base import check_clean_args
from sharedmask.regions import parcels
from sharedmask.regions.regions import Regions
from sharedmask.sources.opening import open_source
from sharedmask.spaces.brain_models import BrainModels
from sharedmask.spaces.space import Space
from sharedmask.storage.segment import Handle
from sharedmask.typing import Array

_COMMON = """\
smoothing_fwhm, memory, memory_level, verbose, reports, cmap : optional
    As nilearn has them; not used.
standardize, standardize_confounds, detrend, high_variance_confounds, low_pass, high_pass : optional
    For :func:`nilearn.signal.clean`; cut-off frequencies in Hz.
t_r : float, optional
    Repetition time in seconds; the image's by default.
clean_args : dict, optional
    Further arguments of :func:`nilearn.signal.clean`.
dtype : dtype, optional
    Of the signals.
memory_limit : int, float, str or None
    What ``transform`` may take: bytes, ``"8G"``, or a fraction of the RAM."""
_CLEANING = ("detrend", "standardize", "standardize_confounds", "low_pass", "high_pass")


class ElementsMasker(TransformerMixin, BaseEstimator):
    """What these maskers have in common."""

    _given: str
    """The parameter that says which elements are meant."""

    mask_img: Any
    smoothing_fwhm: float | None
    t_r: float | None
    dtype: Any
    clean_args: dict[str, Any] | None
    high_variance_confounds: bool
    memory_limit: int | float | str | None
    space_: BrainModels
    n_elements_: int

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        text = cleandoc(cls.__doc__ or "").replace("{common}", _COMMON)
        parents = (cls.__base__.__doc__ or "").partition("\n")[2]
        cls.__doc__ = text if "Parameters\n" in text else f"{text}\n{parents}"

    def _set(self, own: dict[str, Any]) -> None:
        for name, value in own.items():
            if name not in ("self", "__class__"):
                setattr(self, name, value)

    def fit(self, imgs: Any = None, y: Any = None) -> Any:
        """Prepare the mask or the regions.

        Parameters
        ----------
        imgs : SharedImage, Handle, path, pair of paths, nibabel or nilearn image, optional
            Where elements are, if what was given to the masker does not say so.
        y : None
            Not used.

        Returns
        -------
        self
            With ``space_``, ``n_elements_`` and what a masker learns of its regions.

        Raises
        ------
        ParameterError
            Nothing says where elements are; ``clean_args`` has a key that nilearn's ``clean`` does not know.
        """
        check_clean_args(self.clean_args)
        if self.smoothing_fwhm is not None:
            said = "smoothing_fwhm is not applied: surfaces are smoothed beforehand, as by wb_command"
            warnings.warn(said, SharedMaskWarning, stacklevel=2)
        told = (getattr(self, self._given), self.mask_img, imgs)
        space = next((found for one in told if (found := _space_of(one)) is not None), None)
        if not isinstance(space, BrainModels):
            raise ParameterError(f"fit() needs an image, or {self._given}= as a file, to know the elements")
        self.space_ = space
        self._mesh = next((one.mesh for one in told if hasattr(one, "mesh")), None)
        self._learn(self._regions_on(space))
        return self

    def transform(self, imgs: Any, confounds: Any = None, sample_mask: Any = None) -> Array:
        """Extract signals.

        Parameters
        ----------
        imgs : SharedImage, Handle, path, pair of paths, nibabel or nilearn image
            Of a file of rows only those asked for are read; of a shared image nothing is loaded.
        confounds : array, data frame, path, or list of those, optional
            For :func:`nilearn.signal.clean`; (n_timepoints, n_confounds).
        sample_mask : array, optional
            The volumes to keep.

        Returns
        -------
        ndarray, (n_timepoints, n_elements)
            (n_elements,) of an image without time.
        """
        check_is_fitted(self, "space_")
        with _opened(imgs) as (image, space):
            signals, t_r = self._signals(image, self._regions_on(space)), image.t_r
            if self.high_variance_confounds:
                found = high_variance_confounds(self._voxels(image, _masked(None, space), None))
                given = confounds if isinstance(confounds, list) else [confounds] * (confounds is not None)
                confounds = [found, *given]
        cleaned = self._cleaned(np.atleast_2d(signals), t_r, confounds, sample_mask)
        return cleaned if signals.ndim > 1 else cleaned[0]

    def _cleaned(self, signals: Array, t_r: float | None, confounds: Any, sample_mask: Any) -> Array:
        asked = {name: getattr(self, name) for name in _CLEANING}
        t_r = self.t_r if self.t_r is not None else t_r
        cleaned = clean(
            signals, t_r=t_r, confounds=confounds, sample_mask=sample_mask, **asked, **(self.clean_args or {})
        )
        return np.asarray(cleaned) if self.dtype in (None, "auto") else np.asarray(cleaned).astype(self.dtype)

    def _voxels(self, opened: Any, regions: Regions, dtype: Any = np.float64) -> Array:
        how: dict[str, Any] = {"dtype": dtype, "nan_policy": "propagate"}
        if isinstance(opened, SharedImage):
            return np.asarray(opened.mask_parallel(regions, **how)[0])
        return np.asarray(extract(opened, regions, memory_limit=self.memory_limit, **how)[0])

    def _image(self, values: Array) -> Any:
        """(n_timepoints, n_elements) as the image that a caller of :meth:`inverse_transform` gets."""
        if self._mesh is None:
            return parcels.dense(self.space_, values, self.t_r)
        from nilearn.surface import SurfaceImage

        sides = {one.name.rpartition("_")[2].lower(): one for one in self.space_.structures}
        starts = dict(zip(sides, self.space_.starts, strict=False))
        parts = {
            side: values[:, starts[side] : starts[side] + len(one.numbers)].T for side, one in sides.items()
        }
        return SurfaceImage(self._mesh, parts)

    def inverse_transform(self, signals: Array) -> Any:
        """The image that has the signals: each in the elements that it is from, 0 elsewhere.

        Parameters
        ----------
        signals : ndarray, (n_timepoints, n_columns) or (n_columns,)
            As :meth:`transform` gives them; of maps, their weights.

        Returns
        -------
        nibabel.Cifti2Image or nilearn.surface.SurfaceImage
            What the masker was given, (n_timepoints, n_elements).
        """
        check_is_fitted(self, "space_")
        return self._image(self._spread(np.atleast_2d(signals)))

    def _spread(self, signals: Array) -> Array:
        """The values of all elements, (n_timepoints, n_elements)."""
        raise NotImplementedError

    def _regions_on(self, space: Space) -> Regions:
        raise NotImplementedError

    def _learn(self, regions: Regions) -> None:
        self.n_elements_ = len(regions)

    def _signals(self, opened: Any, regions: Regions) -> Array:
        raise NotImplementedError

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags, tags.estimator_type = InputTags(niimg_like=False, surf_img=True), "masker"
        return tags

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "space_")


@contextmanager
def _opened(imgs: Any) -> Iterator[tuple[Any, Space]]:
    """An image, and where its elements are; one that is attached for this is let go of."""
    if isinstance(imgs, Handle):
        with SharedImage.attach(imgs) as image:
            yield image, image.space
    elif isinstance(imgs, SharedImage):
        yield imgs, imgs.space
    else:
        source = open_source(imgs)
        yield source, source.grid


def _space_of(thing: Any) -> Space | None:
    """Of what has one: arrays and names of structures have none."""
    if isinstance(thing, Regions):
        return thing.grid
    if thing is None or isinstance(thing, np.ndarray):
        return None
    try:
        with _opened(thing) as (_, space):
            return space
    except FileNotFoundError:
        return None  # the name of a structure


def _masked(mask_img: Any, space: Space) -> Regions:
    """One region: the mask, or all elements."""
    inside = np.ones(space.shape, bool) if mask_img is None else mask_img
    return replace(Regions.from_any([inside], space), container="list")


class SharedSurfaceMasker(ElementsMasker):
    """nilearn's ``SurfaceMasker`` over files, pairs of hemispheres and shared images.

    Parameters
    ----------
    mask_img : mask, optional
        What :meth:`SharedImage.mask_parallel` takes for one mask: a file, an array over the elements, the
        name of a structure, nilearn's ``SurfaceImage``. Default: all elements.
    {common}

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
        self._set(locals())

    def _spread(self, signals: Array) -> Array:
        values = np.zeros((len(signals), self.space_.n_voxels), signals.dtype)
        values[:, self._regions_on(self.space_).indices] = signals
        return values

    def _regions_on(self, space: Space) -> Regions:
        return _masked(self.mask_img, space)

    def _learn(self, regions: Regions) -> None:
        self.n_elements_ = len(regions.indices)

    def _signals(self, opened: Any, regions: Regions) -> Array:
        return self._voxels(opened, regions)


class SharedSurfaceLabelsMasker(ElementsMasker):
    """nilearn's ``SurfaceLabelsMasker`` over files, pairs of hemispheres and shared images.

    Parameters
    ----------
    labels_img : atlas
        What :meth:`SharedImage.reduce` takes for an atlas: ``.dlabel.nii``, ``.label.gii``, ``.annot``, a
        pair of them, an array over the elements, nilearn's ``SurfaceImage``.
    labels : list of str, optional
        Names, from the first label on; ``lut`` is the better way.
    lut : path, data frame or mapping, optional
        Names of labels; by default those that the atlas has.
    background_label : int
        The value that is no region.
    mask_img : mask, optional
        Regions are cut to it.
    strategy : str
        One of mean, median, sum, minimum, maximum, variance, standard_deviation or pc1.
    {common}

    Attributes
    ----------
    labels_ : list of int
    region_names_ : dict of int to str
        By column.
    lut_ : data frame
        ``index`` and ``name`` of the columns.
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
        self._set(locals())

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

    def to_cifti(self, signals: Array, kind: parcels.Kind = "series") -> Any:
        """Make a parcellated image of values of the regions; see :meth:`Regions.to_cifti`.

        Parameters
        ----------
        signals : ndarray, (n_timepoints, n_regions) or (n_regions, n_regions)
            Series, or a matrix.
        kind : {"series", "matrix", "scalars"}
            To save as ``.ptseries.nii``, ``.pconn.nii``, ``.pscalar.nii``.

        Returns
        -------
        nibabel.Cifti2Image
            To be saved.
        """
        check_is_fitted(self, "space_")
        return self._regions_on(self.space_).to_cifti(signals, kind, t_r=self.t_r)

    def _regions_on(self, space: Space) -> Regions:
        if self.labels_img is None:
            raise ParameterError("labels_img= is the atlas, and none is given")
        how = {"lut": self.lut, "background_label": self.background_label}
        regions = Regions.from_labels(self.labels_img, space, **how)
        if self.labels is not None:
            if len(self.labels) != len(regions):
                raise ParameterError(f"labels= are {len(self.labels)} names for {len(regions)} regions")
            regions = replace(regions, names=tuple(self.labels), keys=tuple(self.labels))
        if self.mask_img is None:
            return regions
        inside = regions.within(_masked(self.mask_img, space).indices).without_empty()
        if not len(inside):
            raise EmptyMaskError("no region has an element in mask_img")
        return inside

    def _learn(self, regions: Regions) -> None:
        super()._learn(regions)
        self.labels_ = list(regions.labels)
        self.region_names_ = dict(enumerate(regions.names))
        self.lut_ = pd.DataFrame({"index": regions.labels, "name": regions.names})

    def _signals(self, opened: Any, regions: Regions) -> Array:
        if isinstance(opened, SharedImage):
            return np.asarray(opened.reduce(regions, self.strategy, nan_policy="propagate"))
        how: dict[str, Any] = {"strategy": self.strategy, "memory_limit": self.memory_limit}
        return np.asarray(extract(opened, regions, nan_policy="propagate", **how))


class SharedSurfaceMapsMasker(ElementsMasker):
    """nilearn's ``SurfaceMapsMasker``: the weights of maps that fit each volume best, by least squares.

    Parameters
    ----------
    maps_img : maps
        (n_elements, n_maps): a ``.dscalar.nii``, ``.func.gii`` or a pair of them, an array, or nilearn's
        ``SurfaceImage``.
    mask_img : mask, optional
        Elements that count.
    allow_overlap : bool
        Whether all maps may be other than 0 in an element.
    {common}
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
        self._set(locals())

    maps_img: Any
    allow_overlap: bool

    def _spread(self, signals: Array) -> Array:
        inside = self._regions_on(self.space_).indices
        values = np.zeros((len(signals), self.space_.n_voxels))
        values[:, inside] = signals @ self._maps_on(self.space_)[inside].T
        return values

    def _maps_on(self, space: Space) -> Array:
        """(n_elements, n_maps), 0 where there are no maps."""
        if isinstance(self.maps_img, np.ndarray):
            maps, numbers = self.maps_img, np.arange(len(self.maps_img))
        else:
            source = open_source(self.maps_img)
            maps = source.read().reshape(source.n_voxels, -1)
            numbers = np.arange(source.n_voxels)
            found = space.numbers_of(source.grid, numbers)
            if found is None:
                raise MaskError(f"{source.name} has {source.grid}, and the image {space}")
            numbers = found
        placed = np.zeros((space.n_voxels, maps.shape[1]), maps.dtype)
        placed[numbers[numbers >= 0]] = maps[numbers >= 0]
        return placed

    def _regions_on(self, space: Space) -> Regions:
        return _masked(self.mask_img, space)

    def _learn(self, regions: Regions) -> None:
        maps = self._maps_on(self.space_)
        if not self.allow_overlap and np.any(np.all(maps != 0, axis=1)):
            raise MaskError("Overlap detected in the maps.")
        self.n_elements_ = maps.shape[1]

    def _signals(self, opened: Any, regions: Regions) -> Array:
        from scipy.linalg import lstsq

        values = self._voxels(opened, regions).astype(np.float32)
        return np.asarray(lstsq(self._maps_on(regions.grid)[regions.indices], values.T)[0].T)


class SharedCiftiMasker(SharedSurfaceMasker):
    """The series of the elements of a CIFTI-2 file: :class:`SharedSurfaceMasker` for grayordinates."""


class SharedCiftiLabelsMasker(SharedSurfaceLabelsMasker):
    """The series of the parcels of a CIFTI-2 file: :class:`SharedSurfaceLabelsMasker` for grayordinates."""
