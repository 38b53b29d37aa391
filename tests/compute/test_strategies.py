"""What the rows of one region come to, against numpy."""

import numpy as np
import pytest
from stored import INDEX, conversion, random_rows, reduce_regions

from sharedmask.compute.strategies import BY_VOLUME, EXTREMES, SQUARES, STRATEGIES, SUMS
from sharedmask.errors import ParameterError
from sharedmask.sources import values


def reduced(strategy, rows, index, how):
    out = np.empty((1, rows.shape[1]))
    reduce_regions(rows, False, out, how, strategy, index, np.array([0, len(index)]), 0)
    return out[0]


def test_what_strategies_are_made_of():
    assert STRATEGIES.keys() > SUMS | SQUARES | EXTREMES.keys()
    assert {*BY_VOLUME, "pc1"} == set(STRATEGIES)


def eigenvariate(signals):
    courses, scales, weights = np.linalg.svd(signals - signals.mean(axis=0), full_matrices=False)
    return np.sign(weights[0].sum()) * courses[:, 0] * scales[0] / np.sqrt(signals.shape[1])


def correlated(n_voxels, n_timepoints, sign=1):
    rng = np.random.default_rng(n_voxels)
    shared = rng.normal(size=n_timepoints)
    weights = rng.uniform(0.5, 2, (n_voxels, 1))
    return 100 + sign * weights * shared + 0.3 * rng.normal(size=(n_voxels, n_timepoints))


@pytest.mark.parametrize("size", [(5, 40), (40, 40), (90, 40), (40, 2)])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("piece_bytes", [values.PIECE_BYTES, 2000])
def test_first_principal_course(size, sign, piece_bytes, monkeypatch):
    monkeypatch.setattr(values, "PIECE_BYTES", piece_bytes)
    rows = correlated(*size, sign)
    got = reduced("pc1", rows, np.arange(size[0]), conversion("f8", "f8"))
    np.testing.assert_allclose(got, eigenvariate(rows.T), atol=1e-9 * np.abs(got).max())


def test_first_principal_course_of_one_voxel_is_its_course():
    rows = correlated(3, 40)
    got = reduced("pc1", rows, np.array([1]), conversion("f8", "f8"))
    np.testing.assert_allclose(got, rows[1] - rows[1].mean(), atol=1e-12)


@pytest.mark.parametrize("size", [(5, 9), (9, 5)])
def test_first_principal_course_of_constants_is_zero(size):
    got = reduced("pc1", np.full(size, 7.0), np.arange(size[0]), conversion("f8", "f8"))
    np.testing.assert_array_equal(got, 0)


def test_first_principal_course_needs_every_value():
    with pytest.raises(ParameterError, match="pc1"):
        reduced("pc1", random_rows(), INDEX, conversion("i2", "f8", nan_policy="omit"))
