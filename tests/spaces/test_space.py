"""What spaces have in common."""

import weakref

import numpy as np
import pytest

from sharedmask.spaces.brain_models import BrainModels, Structure
from sharedmask.spaces.grid import Grid
from sharedmask.spaces.space import mismatch_error, per_space

GRID = Grid((2, 2, 2), np.eye(4), "run.nii")
MODELS = BrainModels((Structure("CIFTI_STRUCTURE_CORTEX_LEFT", np.arange(3), 3),), None, "run.dtseries.nii")


@pytest.mark.parametrize(
    ("own", "target", "todo"), [(GRID, MODELS, "wb_command"), (MODELS, GRID, "go with images of these only")]
)
def test_both_spaces_and_what_to_do_are_named(own, target, todo):
    said = str(mismatch_error("mask 'a'", own, target))
    for part in ("mask 'a'", target.name, str(own), str(target), todo):
        assert part in said


def test_something_is_made_once_for_each_space():
    made = []
    once = per_space(lambda space: made.append(space) or space.n_voxels)
    same = BrainModels(MODELS.structures, None, "another run")
    assert [once(space) for space in (GRID, MODELS, same, Grid((2, 2, 2), np.eye(4)))] == [8, 3, 3, 8]
    assert len(made) == 2


def test_what_is_made_for_very_many_spaces_is_not_held():
    """As where each subject of a study has a grid of its own."""
    alive = weakref.WeakSet()

    def make(space):
        alive.add(made := Grid(space.shape, np.eye(4)))
        return made

    once = per_space(make)
    for side in range(1, 100):
        assert once(Grid((side, 2, 2), np.eye(4))) is once(Grid((side, 2, 2), np.eye(4)))
    assert len(alive) < 20
