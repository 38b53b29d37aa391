"""SharedSpheresMasker: nilearn's NiftiSpheresMasker over shared and streamed images.

Covers: means of spheres around seeds. Does not cover: which voxels those are (``regions.spheres``), what
all maskers share (``base``).
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy as shallow_copy
from typing import Any, ClassVar

import numpy as np
from nibabel import Nifti1Image
from nilearn.maskers import NiftiSpheresMasker
from sklearn.utils.validation import check_is_fitted

from sharedmask.maskers._nilearn import mask_logger
from sharedmask.maskers.base import SharedMasker, documented
from sharedmask.maskers.inputs import grid_of
from sharedmask.regions.spheres import spheres


@documented
class SharedSpheresMasker(SharedMasker, NiftiSpheresMasker):
    """nilearn's ``NiftiSpheresMasker`` over shared or streamed images.

    The spheres' voxels are all that is kept of a file. Parameters, values (to 1e-6) and warnings are those
    of :class:`nilearn.maskers.NiftiSpheresMasker`.

    Parameters
    ----------
    radius : float, None, or one for each seed, default=None
        In millimetres. None: the voxel in which the seed lies.

    Notes
    -----
    Means of integers are floats, as those of labels are; nilearn cuts off what follows the decimal point.
    ``dtype`` is that of the signals alone; nilearn converts the image to it before means are taken. A mask of
    several values is one, as in nilearn's other maskers.

    Examples
    --------
    >>> import nibabel as nib
    >>> bold = nib.Nifti1Image(np.arange(640.0).reshape(4, 4, 4, 10), np.eye(4))
    >>> masker = SharedSpheresMasker([(1, 1, 1), (3, 3, 3)], radius=[1.0, 0.5], standardize=None)
    >>> masker.fit_transform(bold)[0].tolist()
    [210.0, 630.0]
    """

    _SHOWN: ClassVar[dict[str, str]] = {"seeds": "seeds_", "mask": "mask_img_"}

    def __init__(
        self,
        seeds: Any = None,
        radius: float | Sequence[float] | None = None,
        mask_img: Any = None,
        allow_overlap: bool = False,
        smoothing_fwhm: float | None = None,
        standardize: Any = False,
        standardize_confounds: bool = True,
        high_variance_confounds: bool = False,
        detrend: bool = False,
        low_pass: float | None = None,
        high_pass: float | None = None,
        t_r: float | None = None,
        dtype: Any = None,
        memory: Any = None,
        memory_level: int = 1,
        verbose: int = 0,
        reports: bool = True,
        clean_args: dict[str, Any] | None = None,
        memory_limit: int | float | str | None = None,
    ) -> None:
        self._take(locals())

    def _as_fitted(self) -> SharedSpheresMasker:
        # The mask is that of fit, as in all others; nilearn reads a file of this name again.
        lent = shallow_copy(self)
        lent.mask_img = self.mask_img_
        return lent

    def inverse_transform(self, region_signals: Any) -> Any:
        """An image in which each voxel of a sphere has the sphere's signal, or the mean of several spheres'.

        Parameters
        ----------
        region_signals : array, (n_timepoints, n_seeds) or (n_seeds,)
            As :meth:`transform` gives them.

        Returns
        -------
        Nifti1Image
            On the mask's grid; 0 outside of the spheres.

        Raises
        ------
        ValueError
            The masker has no ``mask_img``.
        """
        check_is_fitted(self)
        if self.mask_img_ is None:
            return super().inverse_transform(region_signals)  # which says so
        signals = self._check_array(region_signals)
        mask_logger("inverse_transform", verbose=self.verbose)
        inside = np.asarray(self.mask_img_.dataobj) != 0
        grid = grid_of(self.mask_img_)
        found = spheres(self.seeds_, self.radius, grid, inside, allow_overlap=self.allow_overlap)
        rows = np.atleast_2d(signals)
        volumes = np.zeros((grid.n_voxels, len(rows)))
        for voxels, signal in zip(found, rows.T, strict=True):
            volumes[voxels] += signal
        volumes /= np.maximum(np.bincount(found.indices, minlength=grid.n_voxels), 1)[:, None]
        shape = (*grid.shape, len(rows)) if np.ndim(signals) == 2 else grid.shape
        image = Nifti1Image(volumes.reshape(shape, order="F"), grid.affine)
        return self._post_process_inverse_transform(signals, image)

    def _load_report_displays(self) -> Any:
        if np.ndim(self.radius) == 0:
            return super()._load_report_displays()
        with self._as_if(radius=float(np.mean(self.radius))):  # nilearn draws spheres of one size
            return super()._load_report_displays()
