"""The masker of maps: least squares over all maps at once, within a mask, of overlapping maps or not."""

import numpy as np
import pytest
from drop_ins import ATLAS, MAPS, MASK, plain
from images import SHAPE, niimg, truth

from sharedmask import SharedImage, SharedMapsMasker


def test_signals_are_the_least_squares_of_all_maps(path):
    inside = np.asarray(MASK.dataobj) > 0
    maps = np.asarray(MAPS.dataobj)[inside]
    expected = np.linalg.lstsq(maps, truth(path)[inside].astype("f8"), rcond=None)[0].T
    masker = plain(SharedMapsMasker, {"maps_img": MAPS, "mask_img": MASK})
    with SharedImage(path) as image:
        for given in (path, image):
            np.testing.assert_allclose(masker.fit_transform(given), expected, rtol=1e-4)


def test_maps_that_overlap_are_refused_where_they_must_not(path):
    with pytest.raises(ValueError, match="Overlap detected"):
        plain(SharedMapsMasker, {"maps_img": MAPS}, allow_overlap=False).fit_transform(path)
    apart = niimg(np.stack([np.asarray(ATLAS.dataobj) == label for label in (1, 2)], -1).astype("f4"))
    masker = plain(SharedMapsMasker, {"maps_img": apart}, allow_overlap=False)
    assert apart.shape == (*SHAPE, 2)
    np.testing.assert_allclose(
        masker.fit_transform(path)[:, 0], truth(path)[np.asarray(ATLAS.dataobj) == 1].mean(axis=0), rtol=1e-5
    )
