"""When signals need cleaning."""

import numpy as np
import pytest

from sharedmask.compute.cleaning import Cleaning


@pytest.mark.parametrize(
    ("cleaning", "needed"),
    [
        ({}, False),
        ({"t_r": 2.0}, False),
        ({"standardize": "psc"}, True),
        ({"detrend": True}, True),
        ({"confounds": np.zeros((9, 1))}, True),
        ({"sample_mask": np.arange(3)}, True),
        ({"low_pass": 0.1}, True),
        ({"high_pass": 0.1}, True),
    ],
)
def test_whether_cleaning_is_needed(cleaning, needed):
    assert Cleaning(**cleaning).needed is needed
