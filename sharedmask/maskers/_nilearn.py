"""nilearn's private names: all that sharedmask knows, in one file, where a new nilearn is followed.

Covers: what is imported, and the attributes of its maskers that ours override. Does not cover: what takes
their place (``extractors``), estimators (``base``).
"""

from nilearn._base import NilearnBaseEstimator
from nilearn._utils.logger import find_stack_level
from nilearn._utils.tags import InputTags
from nilearn.maskers.base_masker import filter_and_extract, mask_logger
from nilearn.maskers.nifti_labels_masker import _ExtractionFunctor as LabelsFunctor
from nilearn.maskers.nifti_maps_masker import _ExtractionFunctor as MapsFunctor
from nilearn.maskers.nifti_masker import filter_and_mask
from nilearn.maskers.nifti_spheres_masker import _ExtractionFunctor as SpheresFunctor
from nilearn.masking import load_mask_img
from nilearn.regions.signal_extraction import _check_shape_and_affine_compatibility as check_grids
from nilearn.regions.signal_extraction import _get_labels_data as labels_of
from nilearn.regions.signal_extraction import _trim_maps as trim_maps

__all__ = [
    "InputTags",
    "LabelsFunctor",
    "MapsFunctor",
    "NilearnBaseEstimator",
    "SpheresFunctor",
    "check_grids",
    "filter_and_extract",
    "filter_and_mask",
    "find_stack_level",
    "labels_of",
    "load_mask_img",
    "mask_logger",
    "trim_maps",
]

PRIVATE = {
    "_cache": "BaseMasker",  # calls what is costly: with our functions in the place of nilearn's
    "_check_imgs": "SurfaceMasker",  # refuses what is no image: in words that name ours, too
    "_reset_report": "SurfaceMasker",  # is called in the beginning and when it is fitted anew
    "_load_mask": "BaseMasker",  # alters the caller's mask: gets a copy
    "_get_masker_params": "NiftiMasker",  # what is given to the functions: with n_jobs
    "_report_content": "NiftiMasker",  # with the next: what fit keeps for reports, here until there is one
    "_reporting_data": "NiftiMasker",
    "_post_process_inverse_transform": "BaseMasker",  # gives an image of signals its dtype
    "_load_report_displays": "NiftiSpheresMasker",  # draws one radius: gets the mean of several
    "_check_array": "NiftiLabelsMasker",  # checks the signals of inverse_transform
    "_fit": "NiftiLabelsMasker",  # checks the strategy, and knows none of ours
    "_generate_lut": "NiftiLabelsMasker",  # is called when the atlas is loaded and not resampled yet
    "_lut_": "NiftiLabelsMasker",  # one row per column: with those of labels without voxels
}
"""Attributes of nilearn's maskers that ours override or set, and the class that has them."""
