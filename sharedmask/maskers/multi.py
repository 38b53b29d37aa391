"""Many masks, one image: one masker for which each voxel is loaded and cleaned once.

Covers: `SharedMultiMasker`, the union of its masks and the way from its columns to each mask's. Does not
cover: the masker of the union (``base``), reading masks (``regions``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from sklearn.base import TransformerMixin
from sklearn.utils.validation import check_is_fitted

from sharedmask.errors import ParameterError
from sharedmask.maskers._nilearn import InputTags, NilearnBaseEstimator
from sharedmask.maskers.extractors import looks_at_all
from sharedmask.maskers.nifti import SharedNiftiMasker
from sharedmask.regions.regions import Regions
from sharedmask.spaces.grid import box_of
from sharedmask.system.budget import within
from sharedmask.system.process import effective_n_jobs
from sharedmask.typing import NDArray


class _UnionMasker(SharedNiftiMasker):
    """The masker of all voxels, whose cleaning may use several threads, and may have to go by mask."""

    def _get_masker_params(self, ignore: list[str] | None = None, deep: bool = False) -> dict[str, Any]:
        parameters: dict[str, Any] = super()._get_masker_params(ignore, deep)
        return parameters | {"n_jobs": self._n_jobs, "parts": self._parts}


class SharedMultiMasker(  # type: ignore[call-arg]
    TransformerMixin, NilearnBaseEstimator, auto_wrap_output_keys=None
):
    """The signals of many masks from one image: list for list, dict for dict.

    The voxels of all masks are loaded in one pass, and each is cleaned once, however many masks share it.
    The result for each mask is what :class:`SharedNiftiMasker` gives with that mask: to the bit without
    cleaning, to 1e-5 with it (columns are cleaned among others). An image that is resampled and smoothed
    is smoothed in the box around all masks, not around each.

    Parameters
    ----------
    masks : list, dict, glob pattern, 4D image, Regions, one mask, or None, default=None
        Masks as paths or images, overlapping or not, all on one grid; non-zero is inside. Images on another
        grid are resampled to it.

    runs : numpy.ndarray or None, default=None
        The run of each volume; each run is detrended and cleaned by itself.

    smoothing_fwhm : float or None, default=None
        Full width at half maximum of a Gaussian, in mm, that the image is smoothed with.

    standardize : {"zscore_sample", "psc", True, False, None}, default=None
        How signals are scaled. Booleans are deprecated, as in nilearn.

    standardize_confounds : bool, default=True
        Whether confounds are z-scored.

    detrend : bool, default=False
        Whether linear trends are removed.

    high_variance_confounds : bool, default=False
        Whether :func:`nilearn.image.high_variance_confounds` of the image are regressed out.

    low_pass : float or None, default=None
        Upper cut-off frequency in Hz.

    high_pass : float or None, default=None
        Lower cut-off frequency in Hz.

    t_r : float or None, default=None
        Repetition time in seconds.

    dtype : dtype, "auto" or None, default=None
        Of the signals. None: as they are computed; "auto": int32 or float32, as nilearn's.

    memory : None, path or joblib.Memory, default=None
        Where signals are cached, by a fingerprint of the image, never by its name.

    memory_level : int, default=1
        1 caches signals.

    verbose : int, default=0
        0 is silent.

    clean_args : dict or None, default=None
        More arguments of :func:`nilearn.signal.clean`; unknown ones are refused.

    n_jobs : int or None, default=None
        Threads that clean, by joblib's convention. The numbers do not depend on it.

    memory_limit : int, float, str or None, default=None
        What ``transform`` may take: bytes, ``"8G"``, or a fraction of the RAM.

    Attributes
    ----------
    masker_ : SharedNiftiMasker
        Of the union of the masks.

    n_elements_ : int
        Number of columns of all masks together.

    regions_ : Regions
        The masks.

    Examples
    --------
    >>> import nibabel as nib
    >>> bold = nib.Nifti1Image(np.arange(240, dtype="int16").reshape(2, 3, 4, 10), np.eye(4))
    >>> inside = np.ones((2, 3, 4), dtype="uint8")
    >>> whole = nib.Nifti1Image(inside.copy(), np.eye(4))
    >>> inside[1] = 0
    >>> left = nib.Nifti1Image(inside, np.eye(4))
    >>> signals = SharedMultiMasker({"left": left, "whole": whole}).fit().transform(bold)
    >>> {name: part.shape for name, part in signals.items()}
    {'left': (10, 12), 'whole': (10, 24)}
    """

    masks: Any
    n_jobs: int | None
    memory_limit: int | float | str | None

    def __init__(
        self,
        masks: Any = None,
        runs: Any = None,
        smoothing_fwhm: float | None = None,
        standardize: Any = None,
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
        clean_args: dict[str, Any] | None = None,
        n_jobs: int | None = None,
        memory_limit: int | float | str | None = None,
    ) -> None:
        self.__dict__.update({name: value for name, value in locals().items() if name != "self"})

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags = InputTags(niimg_like=True)
        tags.estimator_type = "masker"
        return tags

    @property
    def _n_features_out(self) -> int:
        return int(self.n_elements_)

    def fit(self, imgs: Any = None, y: Any = None) -> SharedMultiMasker:
        """Read the masks.

        Parameters
        ----------
        imgs, y : None
            Not used.

        Returns
        -------
        self
            With ``regions_``, ``n_elements_`` and ``masker_``, the masker of all voxels.

        Raises
        ------
        ParameterError
            No masks were given, or ``clean_args`` has an unknown key.
        MaskError
            Naming the mask that cannot be used.
        """
        if self.masks is None:
            raise ParameterError("SharedMultiMasker needs masks: a list, a dict, or one mask")
        with within(self.memory_limit):
            self.regions_ = Regions.from_any(self.masks)
        self.n_elements_ = len(self.regions_.indices)
        mask = box_of(self.regions_.grid, "a mask").to_nifti(
            self.regions_.indices, np.ones(self.n_elements_, np.uint8)
        )
        _, self._columns = np.unique(_c_order(self.regions_), return_inverse=True)
        own = self.get_params(deep=False)
        del own["masks"], own["n_jobs"]
        self.masker_ = _UnionMasker(mask_img=mask, reports=False, **own)
        self.masker_._n_jobs, self.masker_._parts = effective_n_jobs(self.n_jobs), self._parts()
        self.masker_.fit()
        return self

    def transform(self, imgs: Any, confounds: Any = None, sample_mask: Any = None) -> Any:
        """The signals of each mask.

        Parameters
        ----------
        imgs : SharedImage, Handle, path, niimg, list or glob pattern of 3D ones
            One image.
        confounds : array, data frame, path, or list of those, optional
            For :func:`nilearn.signal.clean`; each voxel is cleaned once.
        sample_mask : array, or list of one, optional
            The volumes to keep.

        Returns
        -------
        list, dict or ndarray
            (n_timepoints, n_voxels) arrays, or (n_voxels,) for a 3D image, in the container of ``masks``.
        """
        check_is_fitted(self)
        signals = self.masker_.transform(imgs, confounds=confounds, sample_mask=sample_mask)
        signals = np.reshape(signals, (*signals.shape[: signals.ndim - 1], -1))
        if looks_at_all(self.masker_.get_params()):
            parts = np.split(signals, self.regions_.offsets[1:-1], axis=-1)
            return self.regions_.pack([np.ascontiguousarray(part) for part in parts])
        return self.regions_.pack([np.take(signals, columns, axis=-1) for columns in self._parts()])

    def fit_transform(self, imgs: Any, y: Any = None, confounds: Any = None, sample_mask: Any = None) -> Any:
        """The same as ``fit(imgs).transform(imgs, confounds, sample_mask)``.

        Parameters
        ----------
        imgs : SharedImage, Handle, path, niimg, list or glob pattern of 3D ones
            One image.
        y : None
            Not used.
        confounds : array, data frame, path, or list of those, optional
            For :func:`nilearn.signal.clean`; each voxel is cleaned once.
        sample_mask : array, or list of one, optional
            The volumes to keep.

        Returns
        -------
        list, dict or ndarray
            As :meth:`transform` gives them.
        """
        return self.fit(imgs, y).transform(imgs, confounds=confounds, sample_mask=sample_mask)

    def inverse_transform(self, X: Any) -> Any:
        """An image for each mask's signals.

        Parameters
        ----------
        X : list, dict or ndarray
            As :meth:`transform` gives them.

        Returns
        -------
        list, dict or Nifti1Image
            3D or 4D images, 0 outside of their mask, in the same container.
        """
        check_is_fitted(self)
        parts = self._unpacked(X)
        images = []
        for columns, part in zip(self._parts(), parts, strict=True):
            signals = np.asarray(part)
            if signals.ndim not in (1, 2) or signals.shape[-1] != len(columns):
                expected = f"(n_timepoints, {len(columns)}) or ({len(columns)},)"
                raise ParameterError(f"signals of a mask have shape {signals.shape}, not {expected}")
            full = np.zeros((*signals.shape[:-1], self.masker_.n_elements_), signals.dtype)
            full[..., columns] = signals
            images.append(self.masker_.inverse_transform(full))
        return self.regions_.pack(images)

    def get_feature_names_out(self, input_features: Any = None) -> NDArray[Any]:
        """A name for each column of all masks, one mask after the other.

        Parameters
        ----------
        input_features : None
            Not used.

        Returns
        -------
        ndarray of str
            The mask's name and the column's number.
        """
        check_is_fitted(self)
        sizes = zip(self.regions_.names, self.regions_.sizes, strict=True)
        return np.array([f"{name}_{i}" for name, size in sizes for i in range(size)], dtype=object)

    def _parts(self) -> list[NDArray[np.intp]]:
        """The union's columns of each mask."""
        return np.split(self._columns, self.regions_.offsets[1:-1])

    def _unpacked(self, given: Any) -> list[Any]:
        if self.regions_.container == "single":
            return [given]
        if isinstance(given, Mapping) and set(given) == set(self.regions_.keys):
            return [given[key] for key in self.regions_.keys]
        if isinstance(given, list | tuple) and len(given) == len(self.regions_):
            return list(given)
        raise ParameterError(f"give the signals of {len(self.regions_)} masks in the container of the masks")


def _c_order(regions: Regions) -> NDArray[np.intp]:
    """Voxel numbers in C order, which is that of a masker's columns."""
    shape = regions.grid.shape
    return np.ravel_multi_index(np.unravel_index(regions.indices, shape, order="F"), shape)
