"""Brain models: which elements are the same places, with and without a medial wall."""

import json
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sharedmask.spaces.brain_models import BrainModels, Structure
from sharedmask.spaces.grid import Grid
from sharedmask.spaces.space import mismatch_error

LEFT, RIGHT, THALAMUS = (
    "CIFTI_STRUCTURE_CORTEX_LEFT",
    "CIFTI_STRUCTURE_CORTEX_RIGHT",
    "CIFTI_STRUCTURE_THALAMUS_LEFT",
)
BOX = Grid((3, 2, 2), np.diag([2.0, 2, 2, 1]))


def surface(numbers, name=LEFT, n_vertices=8):
    return Structure(name, np.asarray(numbers, np.intp), n_vertices)


def some(*structures, volume=None):
    return BrainModels(structures, volume, "the image")


def all_of(models):
    return np.arange(models.n_voxels)


vertices = st.sets(st.integers(0, 7), min_size=1).map(sorted)


@given(vertices, vertices, vertices, vertices)
def test_vertices_are_matched_by_their_number(mine, its, right, its_right):
    image = some(surface(mine), surface(right, RIGHT, 9))
    mask = some(surface(its_right, RIGHT, 9), surface(its))
    places = [(LEFT, v) for v in mine] + [(RIGHT, v) for v in right]
    asked = [(RIGHT, v) for v in its_right] + [(LEFT, v) for v in its]
    found = image.numbers_of(mask, all_of(mask))
    assert found.tolist() == [places.index(one) if one in places else -1 for one in asked]


@given(vertices, st.sets(st.integers(0, 11), min_size=1).map(sorted))
def test_brain_models_travel(left, voxels):
    models = some(surface(left), Structure(THALAMUS, np.array(voxels)), volume=BOX)
    for back in (
        BrainModels.from_dict(json.loads(json.dumps(models.to_dict()))),
        pickle.loads(pickle.dumps(models)),
    ):
        assert back.matches(models)
        assert models.matches(back)
        assert (back.identity, back.name, str(back)) == (models.identity, models.name, str(models))


@pytest.mark.parametrize(
    "other",
    [
        some(surface([0, 1, 2])),
        some(surface([0, 1, 3], n_vertices=9)),
        some(surface([0, 1, 3], RIGHT)),
        some(surface([0, 1, 3]), surface([0], RIGHT)),
        BOX,
    ],
)
def test_others_do_not_match(other):
    models = some(surface([0, 1, 3]))
    assert models.matches(some(surface([0, 1, 3])))
    assert not models.matches(other)
    assert models.identity != other.identity


def test_what_is_not_here_has_no_numbers():
    image = some(surface([0, 1, 3]))
    assert image.numbers_of(some(surface([0, 1, 3], n_vertices=9)), np.array([0])) is None
    both = some(surface([0, 5]), surface([2], RIGHT))
    assert image.numbers_of(both, np.array([0, 1])).tolist() == [0, -1]
    assert image.numbers_of(both, np.array([0, 2])) is None
    assert image.numbers_of(BOX, np.array([0])) is None
    assert BOX.numbers_of(image, np.array([0])) is None


ELSEWHERE = Grid(BOX.shape, np.diag([3.0, 3, 3, 1]))
VOXELS = Structure(THALAMUS, np.array([4, 7]))


@pytest.mark.parametrize(
    ("own", "said"),
    [
        (ELSEWHERE, [str(ELSEWHERE), str(BOX), "to the volume of the image's voxels"]),
        (some(VOXELS, volume=ELSEWHERE), [str(ELSEWHERE), str(BOX), "to the image's surfaces"]),
        (some(surface([0], RIGHT)), ["CORTEX_RIGHT", str(BOX), "to the image's surfaces"]),
    ],
)
def test_a_mismatch_tells_of_both_volumes_where_they_differ(own, said):
    error = str(mismatch_error("mask 'a'", own, some(surface([0]), VOXELS, volume=BOX)))
    assert [part for part in said if part not in error] == []


def test_a_mismatch_does_not_tell_of_a_volume_that_both_have():
    image = some(surface([0]), VOXELS, volume=BOX)
    error = str(mismatch_error("mask 'a'", some(surface([0], n_vertices=9), VOXELS, volume=BOX), image))
    assert str(BOX) not in error


def test_voxels_are_found_in_a_volume_however_its_axes_lie():
    image = some(surface([1]), Structure(THALAMUS, np.array([4, 7, 11])), volume=BOX)
    assert image.numbers_of(BOX, np.arange(12)).tolist() == [-1, -1, -1, -1, 1, -1, -1, 2, -1, -1, -1, 3]
    flipped = Grid(
        BOX.shape, BOX.affine @ np.array([[-1, 0, 0, 2], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    )
    assert image.numbers_of(flipped, np.arange(12)).tolist() == [-1, -1, -1, -1, 1, -1, -1, 2, -1, 3, -1, -1]
    assert image.numbers_of(Grid((3, 2, 2), np.eye(4)), np.arange(12)) is None


def test_a_voxel_is_not_left_out_as_a_vertex_is():
    image = some(Structure(THALAMUS, np.array([4, 7])), volume=BOX)
    more = some(Structure(THALAMUS, np.array([4, 7, 8])), volume=BOX)
    assert image.numbers_of(more, np.array([1, 0])).tolist() == [1, 0]
    assert image.numbers_of(more, np.array([2])) is None


@pytest.mark.parametrize("name", ["CortexRight", "cortex_right", "CORTEX RIGHT", RIGHT])
def test_structures_have_names(name):
    models = some(surface([0, 1]), surface([3, 4, 5], RIGHT))
    assert models.part(name).tolist() == [2, 3, 4]
    assert models.part("Cerebellum") is None


def test_damaged_models_are_no_models():
    given = some(surface([0, 1])).to_dict()
    with pytest.raises(ValueError, match="brain models"):
        BrainModels.from_dict({**given, "numbers": "AAAA"})
