"""Sums of rows that pass by: the bits of those that are held, wherever blocks end and rows lie."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stored import reduce_regions

from sharedmask import Grid, Regions
from sharedmask.compute import row_sums
from sharedmask.errors import ParameterError
from sharedmask.sources.values import Conversion

N_ROWS = 1200


def conversion(stored, nan_policy="propagate", slope=1.0):
    return Conversion(slope, 0.0, np.dtype("f8"), np.dtype("f8"), nan_policy, "img")


def regions_of(*parts):
    """Of the numbers of rows, each region's ascending."""
    offsets = np.append(0, np.cumsum([len(part) for part in parts]))
    names = tuple(map(str, range(len(parts))))
    grid = Grid((N_ROWS, 1, 1), np.eye(4))
    return Regions(grid, np.concatenate(parts), offsets, names, tuple(range(len(parts))), "list")


def passed_by(rows, regions, how, block):
    """The sums of blocks of so many rows, and whether all values are finite."""
    sums, finite = row_sums.RowSums.of(regions, rows.shape[1], rows.dtype, how), []
    for start in range(0, len(sums.wanted), block):
        here = rows[sums.wanted[start : start + block]]
        before = np.full((row_sums.ROWS_BEFORE, rows.shape[1]), 17, rows.dtype)
        finite.append(sums.add(start, np.concatenate([before, here])))
    return sums.totals, all(finite)


def held(rows, regions, how):
    out = np.empty((len(regions), rows.shape[1]))
    reduce_regions(rows, False, out, how, "sum", regions.indices, regions.offsets, 0)
    return out


def parts_of(lie, rng):
    """One region after the other; pieces of all; anywhere; some of both; some in others."""
    edges = np.cumsum([1, 2, 600, 397])
    if lie == "together":
        return np.split(np.arange(N_ROWS), edges)
    if lie == "in pieces":
        return [np.sort(np.concatenate(np.split(np.arange(N_ROWS), 40)[one::4])) for one in range(4)]
    if lie == "scattered":
        return [np.sort(part) for part in np.split(rng.permutation(N_ROWS), edges)]
    if lie == "both":
        rest = rng.permutation(np.arange(600, N_ROWS))
        return [np.arange(300), np.arange(300, 600), *(np.sort(part) for part in np.array_split(rest, 7))]
    return [np.arange(800), np.arange(100, 700), np.arange(650, N_ROWS), np.arange(0, N_ROWS, 3)]


LYING = ["together", "in pieces", "scattered", "both", "in others"]


@pytest.mark.parametrize("lie", LYING)
@pytest.mark.parametrize("policy", ["zero", "propagate"])
@pytest.mark.parametrize("bad", [None, np.nan, np.inf, -0.0])
@pytest.mark.parametrize("block", [437, 37, N_ROWS])
def test_sums_have_the_bits_of_rows_that_are_held(lie, policy, bad, block):
    rng = np.random.default_rng(4)
    rows = rng.standard_normal((N_ROWS, 700)).astype("f4")
    if bad is not None:
        rows[rng.integers(0, N_ROWS, 40), rng.integers(0, 700, 40)] = bad
        rows[:50, 3] = bad
    how, regions = conversion("f4", policy), regions_of(*parts_of(lie, rng))
    passing, finite = passed_by(rows, regions, how, block)
    assert passing.tobytes() == held(rows, regions, how).tobytes()
    assert finite == bool(np.isfinite(rows).all())


@pytest.mark.parametrize("lie", LYING)
@pytest.mark.parametrize("stored", ["f4", "f8", "i2", "i8"])
@pytest.mark.parametrize("n_volumes", [1, 2, 300])
@pytest.mark.parametrize("scale", [1e-45, 1.0, 3e38])
def test_rows_are_added_one_after_the_other(lie, stored, n_volumes, scale):
    rng = np.random.default_rng(5)
    rows = rng.standard_normal((N_ROWS, n_volumes)) * rng.choice([1e-3, 1, 1], (N_ROWS, 1))
    largest = {"i2": 3e4, "i8": 9e18}.get(stored, 3e38)
    scaled = rows * (scale if stored[0] == "f" else largest / 100)
    rows = np.clip(scaled, -largest, largest).astype(stored)
    regions = regions_of(*parts_of(lie, rng))
    expected = np.zeros((len(regions), n_volumes))
    for total, first, last in zip(expected, regions.offsets[:-1], regions.offsets[1:], strict=True):
        for row in rows[regions.indices[first:last]]:
            total += row.astype(float)
    for block in (53, 500):
        passing, finite = passed_by(rows, regions, conversion(stored), block)
        assert finite
        assert passing.tobytes() == expected.tobytes()


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_any_regions_in_any_blocks(data):
    seed, block = data.draw(st.integers(0, 2**32 - 1)), data.draw(st.integers(1, N_ROWS))
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((N_ROWS, 40)).astype(data.draw(st.sampled_from(["f4", "f8", "i2"])))
    parts = []
    for _ in range(data.draw(st.integers(1, 6))):
        first, stop = np.sort(rng.choice(N_ROWS + 1, 2, replace=False))
        part = np.arange(first, stop)
        parts.append(part if rng.random() < 0.6 else np.sort(rng.permutation(part)[: 1 + len(part) // 2]))
    how, regions = conversion("", "zero", data.draw(st.sampled_from([1.0, 0.5]))), regions_of(*parts)
    passing, _ = passed_by(rows, regions, how, block)
    assert passing.tobytes() == held(rows, regions, how).tobytes()


def test_values_that_are_not_finite_are_refused_where_that_is_asked():
    rows = np.ones((N_ROWS, 700), "f4")
    rows[900, 5] = np.nan
    with pytest.raises(ParameterError, match=r"1 of .* values looked at are not finite"):
        passed_by(rows, regions_of(np.arange(600), np.arange(600, N_ROWS)), conversion("f4", "raise"), 500)
