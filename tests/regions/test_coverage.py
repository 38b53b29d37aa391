"""Coverage: atlases cut to a brain, enough of a region or none of it, one pass for several atlases."""

import numpy as np
import pytest
from images import AFFINE, SHAPE

from sharedmask.errors import EmptyMaskError, ParameterError
from sharedmask.regions.coverage import Coverage
from sharedmask.regions.regions import Regions
from sharedmask.spaces.grid import Grid

GRID = Grid(SHAPE, AFFINE)
BRAIN = np.arange(20)


def atlas(**voxels):
    """Regions by the numbers of their voxels, labelled from 1 on."""
    labels = np.zeros(np.prod(SHAPE), "i2")
    for label, (_, numbers) in enumerate(voxels.items(), start=1):
        labels[list(numbers)] = label
    names = dict(enumerate(voxels, start=1))
    return Regions.from_labels(labels.reshape(SHAPE, order="F"), GRID, lut=names)


FIRST = atlas(whole=range(5), half=range(16, 24), out=range(30, 40))
SECOND = atlas(other=range(3, 8))


def test_regions_are_cut_to_the_brain_and_those_without_enough_are_left_out():
    coverage = Coverage.from_atlases([FIRST, SECOND], BRAIN, 0.5)
    assert coverage.regions.names == ("whole", "half", "other")
    voxels = [sorted(coverage.regions[number]) for number in range(3)]
    assert voxels == [list(range(5)), list(range(16, 20)), list(range(3, 8))]
    assert [[row.coverage for row in table] for table in coverage.tables] == [[1, 0.5, 0], [1]]
    assert [row.column for row in coverage.tables[0]] == [0, 1, 2]
    assert Coverage.from_atlases([FIRST], BRAIN, 0.51).regions.names == ("whole",)


def test_without_a_brain_all_is_covered():
    coverage = Coverage.from_atlases([FIRST], None)
    assert coverage.regions.names == ("whole", "half", "out")
    assert sorted(coverage.regions[1]) == list(range(16, 24))


def test_a_region_without_a_voxel_is_never_enough():
    assert Coverage.from_atlases([FIRST], BRAIN, 0.0).regions.names == ("whole", "half")


def test_signals_are_split_by_atlas_with_nan_for_what_was_left_out():
    coverage = Coverage.from_atlases([FIRST, SECOND], BRAIN)
    signals = np.arange(6, dtype="f4").reshape(2, 3)
    first, second = coverage.split(signals)
    np.testing.assert_array_equal(first, [[0, 1, np.nan], [3, 4, np.nan]])
    np.testing.assert_array_equal(second, [[2], [5]])
    assert first.dtype == np.float32
    assert coverage.share(["a", "b", "c"]) == [{"whole": "a", "half": "b"}, {"other": "c"}]


@pytest.mark.parametrize("least", [-0.1, 1.1, np.nan])
def test_what_is_no_share_is_refused(least):
    with pytest.raises(ParameterError, match="is no share"):
        Coverage.from_atlases([FIRST], BRAIN, least)


def test_nothing_covered_enough_says_what_there_was():
    with pytest.raises(EmptyMaskError, match=r"1 is asked for, the best has 0\.5"):
        Coverage.from_atlases([atlas(half=range(16, 24))], BRAIN, 1.0)
