"""Stored values as results: scaling, what is not finite, pieces that fit the cache."""

import numpy as np
import pytest
from nibabel.volumeutils import apply_read_scaling
from stored import F4, F8, I2, conversion, random_rows

from sharedmask.errors import ParameterError
from sharedmask.sources import values
from sharedmask.sources.values import all_finite


def converted(stored, how):
    out = np.empty(stored.shape, how.result)
    values.convert(stored, out, how)
    return out


@pytest.mark.parametrize(
    ("how", "stored", "finite", "kept"),
    [
        (conversion("f4", "f4"), F4, False, True),
        (conversion("f4", "f4", nan_policy="zero"), F4, True, True),
        (conversion("f4", "f4", nan_policy="zero"), F4, False, False),
        (conversion("f4", "f4", nan_policy="raise"), F4, False, False),
        (conversion("i2", "i2", nan_policy="zero"), I2, False, True),
        (conversion("i2", "f4"), I2, True, False),
        (conversion("f4", "f8"), F4, True, False),
        (conversion("f8", "f8", slope=2.0), F8, True, False),
        (conversion("f8", "f8", inter=2.0), F8, True, False),
    ],
)
def test_stored_values_that_are_the_results_already(how, stored, finite, kept):
    assert how.keeps(stored, finite) is kept


@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
@pytest.mark.parametrize("scaling", [(0.25, -100.0), (1.0, 0.1), (-3.7, 0.0), (0.1, 1e9)])
def test_scaling_is_nibabels(dtype, scaling):
    stored = random_rows(dtype=dtype)
    expected = apply_read_scaling(stored, *scaling)
    scaled = values.scale(stored, conversion(dtype, "f8", *scaling))
    assert scaled.dtype == expected.dtype
    np.testing.assert_array_equal(scaled, expected)


def test_unscaled_values_are_not_copied():
    stored = random_rows()
    assert values.scale(stored, conversion()) is stored


@pytest.mark.parametrize(
    ("nan_policy", "expected"),
    [
        ("zero", [1, 0, 0, 0]),
        ("propagate", [1, np.nan, np.inf, -np.inf]),
        ("omit", [1, np.nan, np.nan, np.nan]),
    ],
)
@pytest.mark.parametrize("result", ["f4", "f8"])
def test_non_finite_values(nan_policy, expected, result):
    stored = np.array([1, np.nan, np.inf, -np.inf], "f4")
    got = converted(stored, conversion("f4", result, nan_policy=nan_policy))
    np.testing.assert_array_equal(got, np.array(expected, result))


def test_non_finite_values_are_counted_when_refused():
    stored = np.array([1, np.nan, np.inf, 2], "f4")
    with pytest.raises(ParameterError, match=r"2 of \d+ values"):
        converted(stored, conversion("f4", nan_policy="raise"))


def test_values_that_scaling_makes_infinite_are_not_finite():
    stored = np.array([1e300, 1], "f8")
    with np.errstate(over="ignore"):
        got = converted(stored, conversion("f8", "f8", slope=1e30, nan_policy="zero"))
    np.testing.assert_array_equal(got, [0, 1e30])


def test_the_stored_values_stay_as_they_are():
    stored = np.array([1, np.nan], "f4")
    converted(stored, conversion("f4", nan_policy="zero"))
    np.testing.assert_array_equal(stored, np.array([1, np.nan], "f4"))


@pytest.mark.parametrize(
    ("values", "finite"),
    [
        ([1, 2, 3], True),
        ([1, np.nan], False),
        ([np.inf, 1], False),
        ([np.inf, -np.inf], False),
        ([np.finfo("f4").max] * 3, True),
        ([np.finfo("f4").max] * 3 + [np.nan], False),
        ([], True),
    ],
)
def test_all_finite(values, finite):
    assert all_finite(np.array([values], "f4")) is finite


@pytest.mark.parametrize("n_rows", [0, 1, 63, 64, 65, 1000])
@pytest.mark.parametrize("row_bytes", [0, 1, 4096, 2**20])
def test_pieces_are_all_rows_once(n_rows, row_bytes):
    rows = [row for piece in values.pieces(n_rows, row_bytes) for row in range(n_rows)[piece]]
    assert rows == list(range(n_rows))


def test_pieces_fit_the_cache():
    sizes = [piece.stop - piece.start for piece in values.pieces(1000, 1000)]
    assert max(sizes) * 1000 <= values.PIECE_BYTES
    assert len(sizes) > 1


def test_rows_larger_than_the_cache_are_pieces_of_their_own():
    assert list(values.pieces(2, 10 * values.PIECE_BYTES)) == [slice(0, 1), slice(1, 2)]
