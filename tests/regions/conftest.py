"""A grid that is turned and sheared, and a mask on it."""

import numpy as np
import pytest
from oblique import OBLIQUE, SHAPE

from sharedmask.spaces.grid import Grid


@pytest.fixture
def grid():
    return Grid(SHAPE, OBLIQUE)


@pytest.fixture
def mask():
    return np.random.default_rng(0).random(SHAPE) < 0.4
