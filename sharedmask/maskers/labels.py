"""SharedLabelsMasker: nilearn's NiftiLabelsMasker over shared and streamed images.

Covers: one value per label. Does not cover: what all maskers share (``base``).
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy as shallow_copy
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from nilearn.image import new_img_like
from nilearn.maskers import NiftiLabelsMasker
from sklearn.utils.validation import check_is_fitted

from sharedmask.errors import ParameterError
from sharedmask.maskers.base import SharedMasker, documented
from sharedmask.regions.lut import lut_columns
from sharedmask.regions.masks import whole_labels
from sharedmask.typing import Array


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

    Notes
    -----
    ``strategy`` may also be ``"pc1"``, the first principal time course of a region's voxels (scaled as SPM's
    eigenvariate), or a function of a region's (n_timepoints, n_voxels) array that gives n_timepoints values.

    After ``transform`` the properties ``labels_``, ``region_ids_`` and ``region_names_`` describe the
    columns, ``region_atlas_`` is the atlas that was used, and :attr:`region_table_` tells of each region how
    much of it there was.

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
    labels_img_: Any
    keep_missing_labels: bool
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
        self._take(locals())

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

    def _completed(self, signals: Any) -> Any:
        kinds = [table["index"].dtype.kind for table in (self.lut_, self._lut_)]
        if kinds == ["u", "f"]:  # nilearn's has rounded labels of more than 63 bits
            found = np.unique(np.asanyarray(self.region_atlas_.dataobj))
            self._lut_ = self.lut_[np.isin(self.lut_["index"].to_numpy(), found)].reset_index(drop=True)
        return self._with_missing(signals) if self.keep_missing_labels else signals

    def inverse_transform(self, signals: Any) -> Any:
        """An image in which each voxel of a region has the region's signal.

        Parameters
        ----------
        signals : array or data frame, (n_timepoints, n_elements) or (n_elements,)
            As :meth:`transform` gives them.

        Returns
        -------
        Nifti1Image
            3D or 4D, on the atlas's grid; 0 outside of the regions.
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
        data = np.asanyarray(self.labels_img_.dataobj)
        if (labels := whole_labels(data)) is not data:
            self.labels_img_ = new_img_like(self.labels_img_, labels)
        self._given_sizes = _sizes(self.labels_img_)
        # nilearn takes a frame as it is: a label twice would shift the columns after it.
        table = None if self.lut is None else pd.DataFrame(lut_columns(self.lut))
        with self._as_if(lut=table):
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
