"""Parcellations: the same parcels are found again wherever they stand, others are not."""

import pickle

import numpy as np
import pytest

from sharedmask.spaces.brain_models import VOXELS, BrainModels, Structure
from sharedmask.spaces.grid import Grid
from sharedmask.spaces.parcellation import Parcellation, elements_from_dict, shortened

LEFT = Structure("CIFTI_STRUCTURE_CORTEX_LEFT", np.array([0, 2, 3, 5]), 8)
INSIDE = Structure(VOXELS, np.array([1, 7]))
MODELS = BrainModels((LEFT, INSIDE), Grid((2, 2, 2), np.eye(4)))
PARCELS = Parcellation(("V1", "A1", "M1"), MODELS, np.array([0, 1, 1, 0, 2, 1]))


def reordered(names=("M1", "V1", "A1"), structures=(LEFT, INSIDE), volume=MODELS.volume):
    return Parcellation(names, BrainModels(structures, volume), np.array([1, 2, 2, 1, 0, 2]))


def test_the_same_parcels_in_another_order_are_found():
    assert PARCELS.numbers_of(reordered(), np.array([0, 1, 2])).tolist() == [2, 0, 1]
    assert not PARCELS.matches(reordered())


@pytest.mark.parametrize(
    "other",
    [
        reordered(("M1", "V1", "A2")),
        reordered(structures=(Structure(LEFT.name, LEFT.numbers, 9), INSIDE)),
        reordered(structures=(Structure(LEFT.name, LEFT.numbers + 1, 8), INSIDE)),
        reordered(structures=(Structure("CIFTI_STRUCTURE_CORTEX_RIGHT", LEFT.numbers, 8), INSIDE)),
        reordered(volume=Grid((2, 2, 2), 2 * np.eye(4))),
        MODELS,
        MODELS.volume,
    ],
)
def test_other_parcels_are_not(other):
    assert PARCELS.numbers_of(other, np.arange(3)) is None


def test_what_travels_is_the_same():
    for space in (PARCELS, MODELS):
        for back in (pickle.loads(pickle.dumps(space)), elements_from_dict(space.to_dict())):
            assert type(back) is type(space) and back.matches(space)
            assert back.identity == space.identity


def test_long_lists_are_shortened():
    assert shortened(list("abc")) == "a, b, c"
    assert shortened(list("abcde")) == "a, b, c, and 2 more"
