"""Values of regions in volumes that pass by have the bits of those of rows."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from stored import conversion, random_rows, reduce_regions

from sharedmask.compute.steps import Reducer
from sharedmask.compute.strategies import BY_VOLUME

STRATEGIES = sorted(BY_VOLUME)


@given(
    st.lists(st.sampled_from([1, 2, 7, 40, 3000]), min_size=1, max_size=30),
    st.sampled_from([1, 2, 3, 32, 70]),
    st.lists(st.sampled_from(STRATEGIES), min_size=1, max_size=3, unique=True),
    st.sampled_from(["zero", "propagate", "omit"]),
    st.sampled_from(["f4", "f8", "i2", "u4", "i8"]),
    st.sampled_from([1.0, 0.3]),
    st.booleans(),
)
@settings(max_examples=60)
def test_they_have_the_bits_of_rows(sizes, n_volumes, strategies, policy, stored, slope, finite):
    rows = random_rows(sum(sizes), n_volumes, "f8")
    rows[::7] = -0.0
    if stored[0] == "f":
        rows[np.random.default_rng(5).random(rows.shape) < 0.01 * (not finite)] = np.nan
    else:
        rows = np.clip(rows * 1e30, np.iinfo(stored).min / 2, np.iinfo(stored).max / 2)
    rows, how = rows.astype(stored), conversion(stored, "f8", slope, nan_policy=policy)
    index, offsets = np.arange(len(rows)), np.cumsum([0, *sizes])
    weights = np.random.default_rng(8).random(len(rows)) + 0.1
    reducer = Reducer.of(strategies, rows.dtype, how, offsets, weights)
    volumes = np.ascontiguousarray(rows[reducer.order].T)
    for strategy in strategies:
        expected, got = np.empty((len(sizes), n_volumes)), np.empty((n_volumes, len(sizes)))
        reduce_regions(rows, False, expected, how, strategy, index, offsets, 0, weights)
        assert reducer.reduce(volumes, got, strategy) == bool(np.isfinite(rows).all())
        np.testing.assert_array_equal(got, expected.T)
        assert (np.signbit(got) == np.signbit(expected.T))[~np.isnan(got)].all()


def test_sums_of_equal_regions_are_all_steps():
    steps = Reducer.of(["mean"], np.dtype("f4"), conversion("f4", "f8"), np.arange(0, 501, 5)).steps
    assert len(steps.edges) == 6
    assert steps.order[:100].tolist() == list(range(0, 500, 5))


def test_one_large_region_has_no_steps():
    assert Reducer.of(["sum"], np.dtype("f4"), conversion("f4", "f8"), np.array([0, 9000])).steps.edges == (
        0,
    )
