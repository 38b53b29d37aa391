"""What maskers of surfaces and grayordinates have in common: files and shared images go by ours.

Covers: which images nilearn takes and which are read here, fitting to a space, cleaning. Does not cover: the
maskers (``surfaces``), reading files (``opening``), which elements are meant (``regions``).
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar, cast

import numpy as np
from nibabel.cifti2.cifti2 import Cifti2Image
from nibabel.gifti.gifti import GiftiImage
from nilearn.signal import clean, high_variance_confounds
from sklearn.utils.validation import check_is_fitted

from sharedmask.errors import EmptyMaskError, ParameterError, SharedMaskWarning
from sharedmask.image.extraction import extract
from sharedmask.image.image import SharedImage
from sharedmask.maskers.base import Parametrised, check_clean_args
from sharedmask.maskers.inputs import read_tables
from sharedmask.regions import parcels
from sharedmask.regions.regions import Regions
from sharedmask.sources.opening import open_source
from sharedmask.sources.source import Source
from sharedmask.spaces.parcellation import Elements
from sharedmask.spaces.space import Space
from sharedmask.storage.segment import Handle
from sharedmask.typing import Array

_CLEANING = ("detrend", "standardize", "standardize_confounds", "low_pass", "high_pass")
_READ = (str, os.PathLike, np.ndarray, Source, SharedImage, Handle, Regions, Cifti2Image, GiftiImage)


class ElementsMasker(Parametrised):
    """What these maskers do besides nilearn's: what is no ``SurfaceImage`` is read here."""

    _given: ClassVar[str]
    """The parameter that says which elements are meant, and with ``_`` what nilearn makes of it."""
    _UNLIKE = """\
Unlike nilearn's: ``clean_args`` that would be ignored are refused. What is read here, and not given as a
``SurfaceImage``, has the repetition time that its file says unless ``t_r`` is given; of nilearn's attributes
there are then those that need no mesh, and no pictures in reports."""

    mask_img: Any
    smoothing_fwhm: float | None
    t_r: float | None
    dtype: Any
    clean_args: dict[str, Any] | None
    high_variance_confounds: bool
    memory_limit: int | float | str | None
    space_: Elements
    n_elements_: int
    _reads: bool
    """Whether it was fitted to what is read here."""

    _step: float | None
    """The repetition time of what it makes of signals: that given, else of the image it was fitted to."""

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
            With ``space_``, and what it found under other names that end in ``_``.

        Raises
        ------
        ParameterError
            Nothing says where elements are; ``clean_args`` has a key that nilearn's ``clean`` does not know.
        """
        check_clean_args(self.clean_args)
        given = getattr(self, self._given)
        told = (given, self.mask_img, imgs)
        self._reads = any(map(_is_read, told[: 3 if given is None else 2]))
        self._step = self.t_r
        if self._reads:
            found = [facts for one in told if (facts := _facts_of(one)) is not None]
            self._fit_to_space([space for space, _ in found])
            if self.t_r is None and found and imgs is not None:
                self._step = found[-1][1]
        else:
            super().fit(None if _is_read(imgs) else imgs, y)
            self.space_ = cast(Elements, open_source(getattr(self, f"{self._given}_")).grid)
        return self

    def _fit_to_space(self, told: list[Space]) -> None:
        space = next((one for one in told if isinstance(one, Elements)), None)
        if self.smoothing_fwhm is not None:
            said = "smoothing_fwhm is not applied: surfaces are smoothed beforehand, as by wb_command"
            warnings.warn(said, SharedMaskWarning, stacklevel=3)
        if space is None and told:
            raise ParameterError(f"{told[-1].name} is a volume, for SharedNiftiMasker: {told[-1]}")
        if space is None:
            raise ParameterError(f"fit() needs an image, or {self._given}= as a file, to know the elements")
        self._reset_report()
        self.space_ = space
        self._learn(self._regions_on(space))

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
        ndarray or data frame, (n_timepoints, n_elements)
            (n_elements,) of an image without time. Columns are those of :meth:`fit`, whatever the image has:
            NaN, with a warning, where it lacks an element, or all elements of a region.
        """
        check_is_fitted(self)
        confounds = read_tables(confounds, sample_mask)
        if self._is_nilearns(imgs):
            signals: Array = super().transform(imgs, confounds, sample_mask)
            return signals
        if self.high_variance_confounds:
            with _opened(imgs) as (image, space):
                found = high_variance_confounds(self._voxels(image, masked(None, space), None))
            given = confounds if isinstance(confounds, list) else [confounds] * (confounds is not None)
            confounds = [found, *given]
        return self.transform_single_imgs(imgs, confounds, sample_mask)

    def transform_single_imgs(self, imgs: Any, confounds: Any = None, sample_mask: Any = None) -> Array:
        """The same as :meth:`transform`, without high variance confounds.

        Parameters
        ----------
        imgs : SharedImage, Handle, path, pair of paths, nibabel or nilearn image
            One image.
        confounds : array, data frame, path, or list of those, optional
            For :func:`nilearn.signal.clean`.
        sample_mask : array, optional
            The volumes to keep.

        Returns
        -------
        ndarray, (n_timepoints, n_elements)
            (n_elements,) of an image without time.
        """
        check_is_fitted(self)
        confounds = read_tables(confounds, sample_mask)
        if self._is_nilearns(imgs):
            signals: Array = super().transform_single_imgs(imgs, confounds, sample_mask)
            return signals
        with _opened(imgs) as (image, space):
            regions, here = self._found_on(space)
            self._warn_of(here, image.name)
            signals, t_r = self._signals(image, regions), image.t_r
        flat = signals.ndim == 1 and getattr(self, "_sklearn_output_config", None) is None
        cleaned = self._cleaned(np.atleast_2d(signals), t_r, confounds, sample_mask)
        if not here.all():
            found, shape = cleaned, (len(cleaned), len(here))
            cleaned = np.full(shape, np.nan, np.result_type(found, "f4"))
            cleaned[:, here] = found
        return cleaned[0] if flat else cleaned

    def _warn_of(self, here: Array, name: str) -> None:
        """Tell of columns that an image has nothing for.

        Raises EmptyMaskError: it has nothing for any.
        """
        if here.all():
            return
        lost = self._called(np.flatnonzero(~here))
        if not here.any():
            raise EmptyMaskError(f"{name} has no element of {lost}, to which the masker was fitted")
        said = f"{name} has no element of {lost}, to which the masker was fitted: NaN in its signals"
        warnings.warn(said, SharedMaskWarning, stacklevel=4)

    def _is_nilearns(self, imgs: Any) -> bool:
        return not self._reads and not _is_read(imgs)

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

    def inverse_transform(self, signals: Any) -> Any:
        """The image that has the signals: each in the elements that it is from, 0 elsewhere.

        Parameters
        ----------
        signals : ndarray, (n_timepoints, n_columns) or (n_columns,)
            As :meth:`transform` gives them; of maps, their weights.

        Returns
        -------
        nibabel.Cifti2Image or nilearn.surface.SurfaceImage
            The latter if all that was given to the masker was one.
        """
        check_is_fitted(self)
        if not self._reads:
            return super().inverse_transform(signals)
        signals = self._check_array(signals, sklearn_check=False)  # which refuses NaN, of what an image lacks
        return parcels.dense(self.space_, self._spread(signals), self._step)

    def _spread(self, signals: Array) -> Array:
        """The values of all elements, (n_timepoints, n_elements)."""
        raise NotImplementedError

    def _regions_on(self, space: Space) -> Regions:
        return masked(self.mask_img, space)

    def _found_on(self, space: Space) -> tuple[Regions, Array]:
        """What was fitted, as far as an image has it, and whether it has something for each column."""
        raise NotImplementedError

    def _called(self, columns: Array) -> str:
        """What some columns are of."""
        return f"{len(columns)} of the {self.n_elements_} elements"

    def _learn(self, regions: Regions) -> None:
        raise NotImplementedError

    def _signals(self, opened: Any, regions: Regions) -> Array:
        raise NotImplementedError

    def _check_imgs(self, imgs: Any) -> None:
        try:
            super()._check_imgs(imgs)
        except TypeError as error:
            said = "imgs is a file of surfaces or grayordinates, a shared image, or nilearn's SurfaceImage"
            raise TypeError(f"{said}, not {type(imgs).__name__}") from error

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "space_")


def _is_read(thing: Any) -> bool:
    """Whether it is not nilearn's to take, or to refuse."""
    return any(map(_is_read, thing)) if isinstance(thing, list | tuple) else isinstance(thing, _READ)


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


def _facts_of(thing: Any) -> tuple[Space, float | None] | None:
    """Space and repetition time of what has them: arrays and names of structures have none."""
    if isinstance(thing, Regions):
        return thing.grid, None
    if thing is None or isinstance(thing, np.ndarray):
        return None
    try:
        with _opened(thing) as (image, space):
            return space, image.t_r
    except FileNotFoundError:
        if not isinstance(thing, str) or "." in thing:
            raise
        return None  # the name of a structure


def masked(mask_img: Any, space: Space) -> Regions:
    """One region: the mask, or all elements."""
    inside = np.ones(space.shape, bool) if mask_img is None else mask_img
    return replace(Regions.from_any([inside], space), container="list")
