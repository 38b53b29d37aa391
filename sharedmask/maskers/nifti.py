"""SharedNiftiMasker: nilearn's NiftiMasker over shared and streamed images.

Covers: the voxels of one mask. Does not cover: what all maskers share (``base``).
"""

from __future__ import annotations

from typing import Any, ClassVar

from nilearn.maskers import NiftiMasker

from sharedmask.maskers.base import SharedMasker, documented


@documented
class SharedNiftiMasker(SharedMasker, NiftiMasker):
    """nilearn's ``NiftiMasker`` over shared or streamed images.

    Signals of a file are read in one pass that holds the mask's voxels only; those of a ``SharedImage`` (or
    of its handle) are gathered from shared memory. Parameters, order of operations, values, dtypes and
    warnings are those of :class:`nilearn.maskers.NiftiMasker`.

    Notes
    -----
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
        self._take(locals())

    def transform_single_imgs(
        self, imgs: Any, confounds: Any = None, sample_mask: Any = None, copy: bool = True
    ) -> Any:
        """The same as :meth:`transform`, without its checks and high variance confounds.

        Parameters
        ----------
        imgs : SharedImage, Handle, path, niimg, list or glob pattern of 3D ones
            One image.
        confounds : array, data frame, path, or list of those, optional
            For :func:`nilearn.signal.clean`.
        sample_mask : array, optional
            The volumes to keep.
        copy : bool
            Not used.

        Returns
        -------
        ndarray, (n_timepoints, n_elements)
            (n_elements,) for a 3D image.
        """
        return super().transform_single_imgs(imgs, confounds=confounds, sample_mask=sample_mask)
