"""Our maskers beside nilearn's, and regions for each."""

import numpy as np
import pytest
from images import SHAPE, niimg, random_masks
from nilearn.maskers import NiftiLabelsMasker, NiftiMapsMasker, NiftiMasker

from sharedmask import SharedLabelsMasker, SharedMapsMasker, SharedNiftiMasker

T = 12
RNG = np.random.default_rng(0)
MASK = niimg(random_masks(1)[0].astype("u1"))
ATLAS = niimg(RNG.integers(0, 6, SHAPE).astype("i2"))
MAPS = niimg(RNG.random((*SHAPE, 3)))
CONFOUNDS = RNG.normal(size=(T, 2))
del RNG

PAIRS = {
    "voxels": (SharedNiftiMasker, NiftiMasker, {"mask_img": MASK}),
    "labels": (SharedLabelsMasker, NiftiLabelsMasker, {"labels_img": ATLAS}),
    "maps": (SharedMapsMasker, NiftiMapsMasker, {"maps_img": MAPS}),
}
every_masker = pytest.mark.parametrize(("ours", "nilearns", "regions"), PAIRS.values(), ids=PAIRS.keys())


def plain(masker, regions, **parameters):
    """A masker without the warning that booleans for ``standardize`` will go."""
    return masker(**{"standardize": None} | regions | parameters)
