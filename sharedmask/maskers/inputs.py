"""What a masker may be given: images and tables, ours or for nilearn to refuse.

Covers: images that read themselves, tables of confounds. Does not cover: what is made of them
(``extractors``), surfaces (``elements``).
"""

import os
from typing import Any, cast

import numpy as np
from nilearn.image import check_niimg

from sharedmask.compute.confounds import read_confounds, rows_kept
from sharedmask.errors import ConfoundsError, RemoteError, SharedMaskError
from sharedmask.image.image import SharedImage
from sharedmask.image.niimg import SharedNifti, SourceNifti
from sharedmask.remote.addresses import url_of
from sharedmask.sources.opening import open_source
from sharedmask.spaces.grid import Grid
from sharedmask.storage.indexes import indexed
from sharedmask.storage.segment import Handle
from sharedmask.system import inputs

Niimg = SharedNifti | SourceNifti


def as_niimg(imgs: Any) -> Any:
    """An image as one that reads itself; what is no image as it is, for nilearn to refuse in its words."""
    if isinstance(imgs, Handle):
        return SharedNifti.of(imgs)
    if isinstance(imgs, SharedImage):
        return imgs.as_nifti()
    if imgs is None or _is_niimg(imgs):
        return imgs
    try:
        source = open_source(imgs)
        return SourceNifti.of(indexed(source)) if len(source.shape) == 4 else imgs  # else of a surface
    except RemoteError:
        raise
    except (SharedMaskError, OSError):
        check_there(imgs)
        return imgs


def check_there(imgs: Any) -> None:
    """Refuse files whose content is elsewhere: nilearn would call them damaged, or not there."""
    for one in imgs if isinstance(imgs, list | tuple) else [imgs]:
        if isinstance(one, str | os.PathLike) and url_of(one) is None:
            inputs.check_there(one)


def _is_niimg(imgs: Any) -> bool:
    shared = isinstance(imgs, SharedNifti) and imgs.held is not None
    return shared or (isinstance(imgs, SourceNifti) and imgs.source is not None)


def require_niimg(imgs: Any) -> Niimg:
    """The same, with what is no image refused: by nilearn if it does so too, else by us."""
    image = as_niimg(imgs)
    if not _is_niimg(image):
        check_niimg(imgs, atleast_4d=True, ensure_ndim=4)
        image = SourceNifti.of(indexed(open_source(imgs)))
    return cast(Niimg, image)


def read_tables(confounds: Any, sample_mask: Any = None) -> Any:
    """Confounds whose files are read, finite in volumes that are kept; the rest is for nilearn to refuse."""
    kept = rows_kept(sample_mask)
    if isinstance(confounds, list | tuple):
        return type(confounds)(read_tables(one, sample_mask) for one in confounds)
    if isinstance(confounds, str | os.PathLike):
        return read_confounds(confounds, kept)
    if isinstance(confounds, np.ndarray) or hasattr(confounds, "columns"):
        try:
            read_confounds(confounds)  # in their own dtype they are what nilearn computes with
        except ConfoundsError:
            return read_confounds(confounds, kept)
    return confounds


def grid_of(image: Any) -> Grid:
    return Grid(image.shape[:3], image.affine)
