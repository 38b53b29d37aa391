"""What an image says of itself, before it is loaded and after it is closed."""

import nibabel as nib
import numpy as np
from images import SHAPE
from small_runs import owned

from sharedmask import SharedImage


def test_facts_are_known_before_loading(path):
    opened = SharedImage(path)
    assert opened.shape == (*SHAPE, 12)
    assert opened.dtype == np.int16
    assert opened.t_r == 2.0
    assert opened.nbytes >= 2 * np.prod(opened.shape)
    np.testing.assert_array_equal(opened.affine, nib.load(path).affine)
    assert owned() == []


def test_facts_outlive_the_image(path):
    opened = SharedImage(path)
    opened.close()
    assert (opened.shape, opened.dtype, opened.t_r) == ((*SHAPE, 12), np.dtype("i2"), 2.0)
