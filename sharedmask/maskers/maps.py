"""SharedMapsMasker: nilearn's NiftiMapsMasker over shared and streamed images.

Covers: weights of maps. Does not cover: what all maskers share (``base``).
"""

from __future__ import annotations

from typing import Any, ClassVar

from nilearn.maskers import NiftiMapsMasker

from sharedmask.maskers.base import SharedMasker, documented


@documented
class SharedMapsMasker(SharedMasker, NiftiMapsMasker):
    """nilearn's ``NiftiMapsMasker`` over shared or streamed images.

    The least squares fit of the maps to each volume is made as the volumes pass by. Parameters, values (to
    1e-6), dtypes and warnings are those of :class:`nilearn.maskers.NiftiMapsMasker`.

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
        self._take(locals())
