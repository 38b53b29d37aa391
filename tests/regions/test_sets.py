"""Sets of voxels: the table, the digest, some of them and all of them again."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from oblique import OBLIQUE, SHAPE, random_mask, seeds, shapes

from sharedmask import errors
from sharedmask.regions.regions import Regions
from sharedmask.regions.sets import RegionRow
from sharedmask.spaces.grid import Grid


def test_pack_counts():
    made = Regions.from_any(np.ones((1, 1, 1)), Grid((1, 1, 1), np.eye(4)))
    with pytest.raises(errors.ParameterError, match="2 results for 1 regions"):
        made.pack([1, 2])


def test_batches_join_again(grid, mask):
    made = Regions.from_any({"a": mask, "b": ~mask, "c": mask}, grid)
    parts = list(made.batches(2))
    assert [part.names for part in parts] == [("a", "b"), ("c",)]
    assert {type(part) for part in parts} == {Regions}
    assert Regions.joined(parts).digest == made.part(0, 3).digest


# ---- the table


@given(shapes, seeds)
def test_table_counts_the_stored_voxels(shape, seed):
    rng = np.random.default_rng(seed)
    masks = {name: random_mask(rng, shape) for name in "abc"}
    brain = random_mask(rng, shape)
    stored = np.flatnonzero(brain.ravel(order="F"))
    rows = Regions.from_any(masks, Grid(shape, np.eye(4))).table(stored)
    for i, (row, (name, mask)) in enumerate(zip(rows, masks.items(), strict=True)):
        n, held = int(mask.sum()), int((mask & brain).sum())
        assert row == RegionRow(i + 1, name, n, held, held / n, i)


def test_table_without_stored_and_with_an_empty_region(grid):
    made = Regions(grid, np.array([3, 1]), np.array([0, 0, 2]), ("none", "two"), (5, 6), "list")
    assert made.table() == [RegionRow(5, "none", 0, 0, 0.0, 0), RegionRow(6, "two", 2, 2, 1.0, 1)]
    assert made.table(np.array([], dtype=np.intp))[1].coverage == 0.0
    assert made[0].size == 0
    assert made.sizes.tolist() == [0, 2]
    assert made.keys == ("none", "two")


# ---- the digest


def test_digest_tells_regions_apart(grid, mask):
    made = Regions.from_any({"a": mask, "b": ~mask}, grid)
    assert made.digest == Regions.from_any({"a": mask.astype(float), "b": ~mask}, grid).digest
    assert pickle.loads(pickle.dumps(made)).digest == made.digest
    int(made.digest, 16)
    moved = OBLIQUE.copy()
    moved[0, 3] += 1
    others = [
        Regions.from_any({"a": mask, "c": ~mask}, grid),
        Regions.from_any({"a": ~mask, "b": mask}, grid),
        Regions.from_any({"a": mask, "b": ~mask}, Grid(SHAPE, moved)),
        Regions.from_any({"a": mask}, grid),
        Regions(grid, made.indices, made.offsets, made.names, (1, 3), "dict"),
        Regions(grid, made.indices, made.offsets - [0, 1, 0], made.names, made.labels, "dict"),
    ]
    assert len({made.digest, *(other.digest for other in others)}) == 7


def test_digest_ignores_the_sign_of_zero(mask):
    signed = np.eye(4)
    signed[0, 1] = -0.0
    digests = {Regions.from_any(mask, Grid(SHAPE, affine)).digest for affine in (np.eye(4), signed)}
    assert len(digests) == 1


def test_within_keeps_what_is_among_the_voxels_with_its_weights(grid):
    made = Regions(grid, [1, 5, 2, 9, 4], [0, 2, 4, 5], ("a", "b", "c"), (1, 2, 3), "list")
    weighted = replace(made, weights=np.arange(5.0))
    cut = weighted.within(np.array([9, 5, 1]))
    assert [one.tolist() for one in cut] == [[1, 5], [9], []]
    assert cut.weights.tolist() == [0, 1, 3]
    assert (cut.names, cut.labels) == (made.names, made.labels) and made.within([4]).weights is None
    assert [one.tolist() for one in cut.without_empty()] == [[1, 5], [9]]
    assert cut.without_empty().keys == ("a", "b")
    assert len(made.within([7]).without_empty()) == 0


def test_voxels_of_each_region_in_order():
    indices, offsets = np.array([5, 1, 3, 0, 7, 3]), np.array([0, 3, 3, 6])
    sets = Regions(Grid((2, 2, 2), np.eye(4)), indices, offsets, ("a", "b", "c"), (1, 2, 3), "list")
    assert sets.in_order.tolist() == [1, 3, 5, 0, 3, 7] and sets.indices.tolist() == indices.tolist()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"indices": [0, 24, 2]}, "no voxel 24: the grid has 24"),
        ({"indices": [0, -1, 2]}, "no voxel -1"),
        ({"offsets": [0, 1, 4]}, "do not cut 3 voxels into 2 regions"),
        ({"offsets": [0, 1, 2]}, "do not cut 3 voxels"),
        ({"offsets": [1, 2, 3]}, "do not cut 3 voxels"),
        ({"offsets": [0, 3]}, "into 2 regions"),
        ({"offsets": []}, "into 2 regions"),
        ({"offsets": [0, 4, 3]}, "do not cut 3 voxels"),
        ({"names": ("a",)}, "into 1 regions"),
        ({"labels": (1, 2, 3)}, "do not cut 3 voxels"),
        ({"weights": np.ones(2)}, "2 weights are given for 3 voxels"),
    ],
    ids=repr,
)
def test_numbers_that_name_no_voxel_are_refused(change, said):
    given = {"indices": [0, 23, 2], "offsets": [0, 1, 3], "names": ("a", "b"), "labels": (1, 2)}
    Regions(grid=Grid((2, 3, 4), np.eye(4)), container="dict", **given)
    with pytest.raises(errors.MaskError, match=said):
        Regions(grid=Grid((2, 3, 4), np.eye(4)), container="dict", **given | change)
