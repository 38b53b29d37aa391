"""Regions side by side: all of them, none larger than asked, and the bits of each alone."""

from itertools import pairwise

import numpy as np
import pytest
from stored import conversion, random_rows, reduce_regions

from sharedmask.compute.piles import stacked
from sharedmask.compute.strategies import STRATEGIES
from sharedmask.sources.values import REGION_BYTES


@pytest.mark.parametrize("most", [1, 7, 40, 10_000])
def test_every_voxel_has_a_place_in_a_pile(most):
    sizes = np.random.default_rng(0).integers(1, 40, 60)
    offsets, seen = np.append(0, np.cumsum(sizes)), np.zeros(sizes.sum(), int)
    regions = []
    for pile in stacked(offsets, most).piles():
        assert len(pile.places) <= most or len(pile.regions) == 1
        np.testing.assert_array_equal(pile.sizes[:, 0], sizes[pile.regions])
        regions += pile.regions.tolist()
        seen[pile.places[~pile.left]] += 1
        of = pile.of(pile.places[:, None])[..., 0]
        for region, places in zip(pile.regions, of, strict=True):
            own = np.arange(offsets[region], offsets[region + 1])
            np.testing.assert_array_equal(places, np.pad(own, (0, of.shape[1] - len(own)), "edge"))
    assert sorted(regions) == list(range(60))
    assert (seen == 1).all()


@pytest.mark.some(12)
@pytest.mark.parametrize("strategy", sorted(set(STRATEGIES) - {"weighted_mean"}))
@pytest.mark.parametrize("stored", ["i2", "f4", "f8"])
@pytest.mark.parametrize("n_timepoints", [1, 2, 700])
@pytest.mark.parametrize("policy", ["propagate", "zero", "omit", "raise"])
def test_regions_together_have_the_bits_of_each_alone(strategy, stored, n_timepoints, policy):
    if (strategy, policy) == ("pc1", "omit"):
        return  # refused
    most = REGION_BYTES // (8 * n_timepoints)
    sizes = [1, 300, 3, 3, 2, 17, min(most, 2000) + 5, 1, 80]
    offsets = np.append(0, np.cumsum(sizes))
    rows = random_rows(500, n_timepoints, dtype=stored)
    rows[rows < -1] *= 0  # -0.0 among them
    index = np.random.default_rng(1).integers(0, 500, offsets[-1])
    if stored != "i2" and policy != "raise":
        rows[3, 0] = np.nan
    finite, how = stored == "i2" or policy == "raise", conversion(stored, "f8", nan_policy=policy)
    together = np.empty((len(sizes), n_timepoints))
    reduce_regions(rows, finite, together, how, strategy, index, offsets, 0, n_parts=3)
    for number, (start, stop) in enumerate(pairwise(offsets)):
        alone = np.empty((1, n_timepoints))
        own = np.array([0, stop - start])
        reduce_regions(rows, finite, alone, how, strategy, index[start:stop], own, 0)
        assert together[number].tobytes() == alone[0].tobytes()


@pytest.mark.parametrize("n_parts", [1, 2, 5, 1000])
def test_parts_are_whole_piles_and_all_of_them(n_parts):
    sizes = np.random.default_rng(2).integers(1, 40, 60)
    whole = stacked(np.append(0, np.cumsum(sizes)), 100)
    parts = list(whole.parts(n_parts))
    assert 1 <= len(parts) <= n_parts
    for field in whole._fields:
        together = np.concatenate([getattr(part, field) for part in parts])
        np.testing.assert_array_equal(together, getattr(whole, field))
    assert [len(part.places) for part in parts] == [
        sum(len(pile.places) for pile in part.piles()) for part in parts
    ]
