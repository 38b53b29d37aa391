"""nilearn's maskers over shared and streamed images: the same parameters, the same numbers.

Covers: `SharedNiftiMasker`, `SharedLabelsMasker` and `SharedMapsMasker`, subclasses of nilearn's that load
and extract by themselves. Does not cover: what is done to an image (``pipeline``), many masks at once
(``multimask``). Fitting, parameter checks, cleaning, reports and the way back are nilearn's.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy as shallow_copy
from copy import deepcopy
from typing import Any, ClassVar, TypeVar

import numpy as np
import pandas as pd
from nibabel import Nifti1Image
from nilearn.image import high_variance_confounds
from nilearn.maskers import NiftiLabelsMasker, NiftiMapsMasker, NiftiMasker
from nilearn.maskers.base_masker import filter_and_extract
from nilearn.maskers.nifti_masker import filter_and_mask
from sklearn.base import TransformerMixin
from sklearn.utils.validation import check_is_fitted

from sharedmask import pipeline
from sharedmask.errors import ParameterError
from sharedmask.niimgs import SourceNifti
from sharedmask.pipeline import Array, check_clean_args, served

Masker = TypeVar("Masker", bound=type)

_STAND_INS: dict[Any, Callable[..., Any]] = {
    filter_and_mask: pipeline.filter_and_mask,
    filter_and_extract: pipeline.filter_and_extract,
    high_variance_confounds: pipeline.high_variance_confounds,
}
_HEADING = re.compile(r"^([A-Z]\w*(?: \w+)?)\n-+\n", re.MULTILINE)


def documented(masker: Masker) -> Masker:
    """The class with nilearn's description of what it inherits, and its own parameters after those."""
    own, parents = _sections(masker), _sections(masker.__mro__[2])
    parents["Parameters"] += "\n\n" + own.pop("Parameters")
    merged = parents | own
    order = ("", "Parameters", "Attributes", "See Also", "Notes", "Examples")
    texts = [f"{name}\n{'-' * len(name)}\n{merged[name]}" if name else merged[name] for name in order]
    masker.__doc__ = "\n\n".join(texts) + "\n"
    return masker


def _sections(documented_class: type) -> dict[str, str]:
    """Heading -> text of a numpydoc docstring; the summary is under the empty heading."""
    parts = _HEADING.split(inspect.cleandoc(documented_class.__doc__ or ""))
    return {"": parts[0].strip()} | {
        name: text.strip("\n ") for name, text in zip(parts[1::2], parts[2::2], strict=True)
    }


class SharedMasker(TransformerMixin):
    """What the maskers do unlike nilearn's."""

    _SHOWN: ClassVar[dict[str, str]]
    """What reports show besides the image, and the attribute that has it."""

    def fit(self, imgs: Any = None, y: Any = None) -> Any:
        """Prepare the mask or the regions.

        Parameters
        ----------
        imgs : SharedImage, Handle, path, niimg, list or glob pattern of 3D ones, optional
            What the mask is computed from, if none was given, and what reports show.
        y : None
            Not used.

        Returns
        -------
        self

        Raises
        ------
        ParameterError
            ``clean_args`` has a key that :func:`nilearn.signal.clean` does not know.
        """
        check_clean_args(self.clean_args)
        image = served(imgs)
        if self.reports and self._can_wait(image):
            with self._as_if(reports=False):
                super().fit(image, y)
            self._report_later(image)
        else:
            super().fit(image, y)
            self._own_report_volume()
        return self

    def transform(self, imgs: Any, confounds: Any = None, sample_mask: Any = None) -> Any:
        """Extract signals.

        Parameters
        ----------
        imgs : SharedImage, Handle, path, niimg, list or glob pattern of 3D ones
            A file is read once, forward, and only what is asked for is kept. Of a shared image nothing is
            loaded. An image in memory is not altered.
        confounds : array, data frame, path, or list of those, optional
            For :func:`nilearn.signal.clean`; (n_timepoints, n_confounds).
        sample_mask : array, or list of one, optional
            The volumes to keep, by number or as booleans.

        Returns
        -------
        ndarray or data frame, (n_timepoints, n_elements)
            (n_elements,) for a 3D image.
        """
        check_is_fitted(self)
        return super().transform(served(imgs), confounds=confounds, sample_mask=sample_mask)

    def transform_single_imgs(self, imgs: Any, confounds: Any = None, sample_mask: Any = None) -> Any:
        """The same as :meth:`transform`, without its checks and high variance confounds."""
        check_is_fitted(self)
        return super().transform_single_imgs(served(imgs), confounds=confounds, sample_mask=sample_mask)

    def _cache(self, func: Any, *args: Any, **options: Any) -> Any:
        # nilearn calls whatever is costly through this method: here its way with images becomes ours.
        return super()._cache(_STAND_INS.get(func, func), *args, **options)

    def _load_mask(self, imgs: Any) -> Any:
        # nilearn writes zeros where the mask is not finite: into a copy, and not into the caller's.
        lent = shallow_copy(self)
        lent.mask_img = deepcopy(self.mask_img)
        return super(SharedMasker, lent)._load_mask(imgs)

    @contextmanager
    def _as_if(self, **parameters: Any) -> Iterator[None]:
        """Other parameters, for nilearn to see meanwhile."""
        own = {name: getattr(self, name) for name in parameters}
        self.set_params(**parameters)
        try:
            yield
        finally:
            self.set_params(**own)

    def _can_wait(self, image: Any) -> bool:
        """Whether the volume that reports show need not be read before there is a report.

        It is the middle one: to read it costs half of the time of reading the file.
        """
        of_file = isinstance(image, SourceNifti) and image.source is not None and image.source.paths
        resampled = getattr(self, "target_affine", None) is not None or getattr(self, "target_shape", None)
        return bool(of_file) and len(image.shape) == 4 and not resampled

    def _report_later(self, image: SourceNifti) -> None:
        """What nilearn's ``fit`` keeps for reports."""
        self._report_content["reports_at_fit_time"] = True
        shown = {key: getattr(self, attribute) for key, attribute in self._SHOWN.items()}
        self._reporting_data = shown | {"dim": 4, "images": image.later(image.shape[3] // 2)}

    def _own_report_volume(self) -> None:
        """The volume that reports show, in an array of its own: it holds no image, and can be pickled."""
        kept = getattr(self, "_reporting_data", None) or {}
        if isinstance(image := kept.get("images"), Nifti1Image):
            kept["images"] = Nifti1Image(np.array(image.dataobj), image.affine, image.header)


@documented
class SharedNiftiMasker(SharedMasker, NiftiMasker):
    """nilearn's ``NiftiMasker`` over shared or streamed images.

    Signals of a file are read in one pass that holds the mask's voxels only; those of a ``SharedImage`` (or
    of its handle) are gathered from shared memory. Parameters, order of operations, values, dtypes and
    warnings are those of :class:`nilearn.maskers.NiftiMasker`.

    Parameters
    ----------
    memory_limit : int, float, str or None, default=None
        What ``transform`` may take: bytes, ``"8G"``, or a fraction of the RAM. Free memory and control
        groups limit it anyway.

    Notes
    -----
    Unlike nilearn's: the caller's images and masks are never altered nor left cached; ``memory`` caches by a
    fingerprint of the file, not by its name; ``clean_args`` that would be ignored are refused; Analyze images
    and pairs of files are accepted, complex images refused; values have native byte order.

    nilearn's decoders and ``SecondLevelModel`` build a plain ``NiftiMasker`` from the parameters of the
    masker that they are given: they work with this one, and gain nothing. ``FirstLevelModel`` uses a masker
    that is fitted as it is.

    The volume that a report shows is read from the file when the report is made.

    Examples
    --------
    >>> import nibabel as nib
    >>> bold = nib.Nifti1Image(np.arange(240, dtype="int16").reshape(2, 3, 4, 10), np.eye(4))
    >>> mask = nib.Nifti1Image(np.ones((2, 3, 4), dtype="uint8"), np.eye(4))
    >>> SharedNiftiMasker(mask, standardize=None).fit().transform(bold).shape
    (10, 24)
    """

    _SHOWN: ClassVar[dict[str, str]] = {"mask": "mask_img_"}

    def __init__(
        self,
        mask_img: Any = None,
        runs: Any = None,
        smoothing_fwhm: float | None = None,
        standardize: Any = False,
        standardize_confounds: bool = True,
        detrend: bool = False,
        high_variance_confounds: bool = False,
        low_pass: float | None = None,
        high_pass: float | None = None,
        t_r: float | None = None,
        target_affine: Any = None,
        target_shape: Any = None,
        mask_strategy: str = "background",
        mask_args: dict[str, Any] | None = None,
        dtype: Any = None,
        memory: Any = None,
        memory_level: int = 1,
        verbose: int = 0,
        reports: bool = True,
        cmap: str = "gray",
        clean_args: dict[str, Any] | None = None,
        memory_limit: int | float | str | None = None,
    ) -> None:
        super().__init__(
            mask_img=mask_img,
            runs=runs,
            smoothing_fwhm=smoothing_fwhm,
            standardize=standardize,
            standardize_confounds=standardize_confounds,
            detrend=detrend,
            high_variance_confounds=high_variance_confounds,
            low_pass=low_pass,
            high_pass=high_pass,
            t_r=t_r,
            target_affine=target_affine,
            target_shape=target_shape,
            mask_strategy=mask_strategy,
            mask_args=mask_args,
            dtype=dtype,
            memory=memory,
            memory_level=memory_level,
            verbose=verbose,
            reports=reports,
            cmap=cmap,
            clean_args=clean_args,
        )
        self.memory_limit = memory_limit

    def transform_single_imgs(
        self, imgs: Any, confounds: Any = None, sample_mask: Any = None, copy: bool = True
    ) -> Any:
        """The same as :meth:`transform`, without its checks and high variance confounds."""
        return super().transform_single_imgs(imgs, confounds=confounds, sample_mask=sample_mask)


@documented
class SharedLabelsMasker(SharedMasker, NiftiLabelsMasker):
    """nilearn's ``NiftiLabelsMasker`` over shared or streamed images, in one pass for all labels.

    Each volume of a file is reduced as it passes by: memory holds the regions' signals and some volumes.
    Parameters, values, dtypes and warnings are those of :class:`nilearn.maskers.NiftiLabelsMasker`.

    Parameters
    ----------
    keep_missing_labels : :obj:`bool`, default=False
        Whether labels that have no voxel left, in the images' field of view and in the mask, keep their
        column, filled with NaN.

    memory_limit : int, float, str or None, default=None
        What ``transform`` may take: bytes, ``"8G"``, or a fraction of the RAM. Free memory and control
        groups limit it anyway.

    Notes
    -----
    ``strategy`` may also be ``"pc1"``, the first principal time course of a region's voxels (scaled as SPM's
    eigenvariate), or a function of a region's (n_timepoints, n_voxels) array that gives n_timepoints values.

    After ``transform`` the properties ``labels_``, ``region_ids_`` and ``region_names_`` describe the
    columns, ``region_atlas_`` is the atlas that was used, and :attr:`region_table_` tells of each region how
    much of it there was.

    Unlike nilearn's: the caller's images and masks are never altered nor left cached; ``memory`` caches by a
    fingerprint of the file, not by its name; ``clean_args`` that would be ignored are refused; Analyze images
    and pairs of files are accepted, complex images refused; values have native byte order.

    Examples
    --------
    >>> import nibabel as nib
    >>> bold = nib.Nifti1Image(np.arange(240, dtype="int16").reshape(2, 3, 4, 10), np.eye(4))
    >>> atlas = nib.Nifti1Image(np.arange(24, dtype="int16").reshape(2, 3, 4) % 3, np.eye(4))
    >>> masker = SharedLabelsMasker(atlas, standardize=None)
    >>> masker.fit_transform(bold).shape
    (10, 2)
    >>> masker.region_table_["coverage"].tolist()
    [1.0, 1.0]
    """

    _SHOWN: ClassVar[dict[str, str]] = {"labels_image": "labels_img_", "mask": "mask_img_"}
    strategy: str | Callable[[Array], Array]
    _lut_: pd.DataFrame  # one row per column of the signals

    def __init__(
        self,
        labels_img: Any = None,
        labels: list[str] | None = None,
        lut: Any = None,
        background_label: int | float = 0,
        mask_img: Any = None,
        smoothing_fwhm: float | None = None,
        standardize: Any = False,
        standardize_confounds: bool = True,
        high_variance_confounds: bool = False,
        detrend: bool = False,
        low_pass: float | None = None,
        high_pass: float | None = None,
        t_r: float | None = None,
        dtype: Any = None,
        resampling_target: str | None = "data",
        memory: Any = None,
        memory_level: int = 1,
        verbose: int = 0,
        strategy: str | Callable[[Array], Array] = "mean",
        keep_masked_labels: bool = False,
        reports: bool = True,
        cmap: str | None = None,
        clean_args: dict[str, Any] | None = None,
        keep_missing_labels: bool = False,
        memory_limit: int | float | str | None = None,
    ) -> None:
        super().__init__(
            labels_img=labels_img,
            labels=labels,
            lut=lut,
            background_label=background_label,
            mask_img=mask_img,
            smoothing_fwhm=smoothing_fwhm,
            standardize=standardize,
            standardize_confounds=standardize_confounds,
            high_variance_confounds=high_variance_confounds,
            detrend=detrend,
            low_pass=low_pass,
            high_pass=high_pass,
            t_r=t_r,
            dtype=dtype,
            resampling_target=resampling_target,
            memory=memory,
            memory_level=memory_level,
            verbose=verbose,
            strategy=strategy,
            keep_masked_labels=keep_masked_labels,
            reports=reports,
            cmap=cmap,
            clean_args=clean_args,
        )
        self.keep_missing_labels = keep_missing_labels
        self.memory_limit = memory_limit

    @property
    def region_table_(self) -> pd.DataFrame:
        """One row per label of the atlas, of the last ``transform``.

        Columns are ``index`` (the label) and ``name``; ``n_voxels``, in the atlas as it was given;
        ``n_voxels_used``, on the grid of the signals, in the field of view and in the mask; ``coverage``, the
        share of the region's volume that was used; ``column``, its number in the signals, or <NA>.
        """
        check_is_fitted(self, "region_atlas_")
        table = self.lut_.loc[self.lut_["index"] != self.background_label, ["index", "name"]]
        table = table.reset_index(drop=True)
        given, given_volume = self._given_sizes
        used, used_volume = _sizes(self.region_atlas_)
        table["n_voxels"] = table["index"].map(given).astype(int)
        table["n_voxels_used"] = table["index"].map(used).fillna(0).astype(int)
        share = table["n_voxels_used"] * used_volume / (table["n_voxels"] * given_volume)
        table["coverage"] = share.clip(upper=1.0)
        columns = {label: i for i, label in self.region_ids_.items() if i != "background"}
        table["column"] = table["index"].map(columns).astype("Int64")
        return table

    def transform_single_imgs(self, imgs: Any, confounds: Any = None, sample_mask: Any = None) -> Any:
        """The same as :meth:`transform`, without its checks and high variance confounds."""
        signals = super().transform_single_imgs(imgs, confounds=confounds, sample_mask=sample_mask)
        return self._with_missing(signals) if self.keep_missing_labels else signals

    def inverse_transform(self, signals: Any) -> Any:
        """An image in which each voxel of a region has the region's signal.

        Parameters
        ----------
        signals : array or data frame, (n_timepoints, n_elements) or (n_elements,)

        Returns
        -------
        Nifti1Image
        """
        check_is_fitted(self)
        if not self.keep_missing_labels:
            return super().inverse_transform(signals)
        signals = self._check_array(signals, sklearn_check=False)  # which refuses NaN
        without = shallow_copy(self)
        without._lut_ = self._lut_of_atlas()
        present = self._columns().isin(without._lut_["index"])
        return super(SharedLabelsMasker, without).inverse_transform(signals[..., present])

    def _fit(self, imgs: Any) -> Any:
        # nilearn checks the strategy, and knows none of ours.
        ours = callable(self.strategy) or self.strategy == "pc1"
        with self._as_if(strategy="mean" if ours else self.strategy):
            return super()._fit(imgs)

    def _generate_lut(self) -> pd.DataFrame:
        # The one place where the atlas is loaded and not resampled yet.
        self._given_sizes = _sizes(self.labels_img_)
        return super()._generate_lut()

    def _columns(self) -> pd.Series:
        """The labels of all columns, those without voxels included."""
        index = self.lut_["index"]
        return index[index != self.background_label]

    def _lut_of_atlas(self) -> pd.DataFrame:
        """The rows of the labels that :meth:`inverse_transform` finds in the atlas."""
        data = np.asanyarray(self.labels_img_.dataobj)
        if self.mask_img_ is not None:
            data = data[np.asarray(self.mask_img_.dataobj) != 0]
        return self.lut_[self.lut_["index"].isin(np.unique(data))]

    def _with_missing(self, signals: Array) -> Array:
        """The signals with a column of NaN for each label without voxels; columns are the fitted labels."""
        present = self._columns().isin(self._lut_["index"]).to_numpy()
        self._lut_ = self.lut_.copy()
        if present.all():
            return signals
        if signals.dtype.kind != "f":
            raise ParameterError(f"keep_missing_labels needs NaN, which {signals.dtype} does not have")
        full = np.full((*signals.shape[:-1], len(present)), np.nan, signals.dtype)
        full[..., present] = signals
        return full


def _sizes(atlas: Any) -> tuple[dict[Any, int], float]:
    """Number of voxels per label, and the volume of one in mm³."""
    labels, counts = np.unique(np.asanyarray(atlas.dataobj), return_counts=True)
    volume = abs(np.linalg.det(atlas.affine[:3, :3]))
    return dict(zip(labels.tolist(), counts.tolist(), strict=True)), float(volume)


@documented
class SharedMapsMasker(SharedMasker, NiftiMapsMasker):
    """nilearn's ``NiftiMapsMasker`` over shared or streamed images.

    The least squares fit of the maps to each volume is made as the volumes pass by. Parameters, values (to
    1e-6), dtypes and warnings are those of :class:`nilearn.maskers.NiftiMapsMasker`.

    Parameters
    ----------
    memory_limit : int, float, str or None, default=None
        What ``transform`` may take: bytes, ``"8G"``, or a fraction of the RAM. Free memory and control
        groups limit it anyway.

    Notes
    -----
    Unlike nilearn's: the caller's images and masks are never altered nor left cached; ``memory`` caches by a
    fingerprint of the file, not by its name; ``clean_args`` that would be ignored are refused; Analyze images
    and pairs of files are accepted, complex images refused; values have native byte order.

    Examples
    --------
    >>> import nibabel as nib
    >>> rng = np.random.default_rng(0)
    >>> bold = nib.Nifti1Image(rng.normal(size=(4, 4, 4, 10)), np.eye(4))
    >>> maps = nib.Nifti1Image(rng.random((4, 4, 4, 3)), np.eye(4))
    >>> SharedMapsMasker(maps, standardize=None).fit_transform(bold).shape
    (10, 3)
    """

    _SHOWN: ClassVar[dict[str, str]] = {"maps_image": "maps_img_", "mask": "mask_img_"}

    def __init__(
        self,
        maps_img: Any = None,
        mask_img: Any = None,
        allow_overlap: bool = True,
        smoothing_fwhm: float | None = None,
        standardize: Any = False,
        standardize_confounds: bool = True,
        high_variance_confounds: bool = False,
        detrend: bool = False,
        low_pass: float | None = None,
        high_pass: float | None = None,
        t_r: float | None = None,
        dtype: Any = None,
        resampling_target: str | None = "data",
        keep_masked_maps: bool = False,
        memory: Any = None,
        memory_level: int = 0,
        verbose: int = 0,
        reports: bool = True,
        cmap: str = "CMRmap_r",
        clean_args: dict[str, Any] | None = None,
        memory_limit: int | float | str | None = None,
    ) -> None:
        super().__init__(
            maps_img=maps_img,
            mask_img=mask_img,
            allow_overlap=allow_overlap,
            smoothing_fwhm=smoothing_fwhm,
            standardize=standardize,
            standardize_confounds=standardize_confounds,
            high_variance_confounds=high_variance_confounds,
            detrend=detrend,
            low_pass=low_pass,
            high_pass=high_pass,
            t_r=t_r,
            dtype=dtype,
            resampling_target=resampling_target,
            keep_masked_maps=keep_masked_maps,
            memory=memory,
            memory_level=memory_level,
            verbose=verbose,
            reports=reports,
            cmap=cmap,
            clean_args=clean_args,
        )
        self.memory_limit = memory_limit
