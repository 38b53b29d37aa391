"""Matrices of regions and maps of seeds, against nilearn and numpy."""

import numpy as np
import pytest
from nilearn.connectome import ConnectivityMeasure

from sharedmask.compute.connectivity import (
    KINDS,
    SeedCorrelation,
    check_matrices,
    checked_kinds,
    connectivity,
    fishers_z,
    measure,
    standardized,
)
from sharedmask.errors import ParameterError


@pytest.fixture
def signals():
    return np.random.default_rng(2).normal(size=(50, 6))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_matrices_are_nilearns(kind, dtype, signals):
    signals = signals.astype(dtype)
    expected = ConnectivityMeasure(kind=kind).fit_transform([signals])[0]
    np.testing.assert_allclose(connectivity(signals, kind), expected, rtol=1e-6)


def test_regions_without_signals_have_none_in_the_matrix(signals):
    lacking = signals.copy()
    lacking[:, 2] = np.nan
    found = connectivity(lacking, "correlation")
    assert np.isnan(found[2]).all() and np.isnan(found[:, 2]).all()
    others = [0, 1, 3, 4, 5]
    alone = connectivity(signals[:, others], "correlation")
    np.testing.assert_array_equal(found[np.ix_(others, others)], alone)
    assert np.isnan(connectivity(np.full((50, 2), np.nan), "covariance")).all()


def test_fishers_z_is_of_correlations(signals):
    plain, found = (connectivity(signals, "partial correlation", fisher_z=z) for z in (False, True))
    off = ~np.eye(6, dtype=bool)
    np.testing.assert_allclose(np.tanh(found[off]), plain[off])
    assert np.isnan(np.diag(found)).all() and np.isnan(np.diag(fishers_z(np.eye(3)))).all()


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ((["tangent"], False), "is of a group"),
        ((["correlations"], False), "'correlations' is none of correlation, partial correlation"),
        ((["correlation", "correlation"], False), "'correlation' is asked for twice"),
        ((["covariance"], True), "fisher_z is of correlations, not of covariance"),
        (([], True), "fisher_z is of correlations, not of none"),
        ((["correlation"], False, False), "not of the series of all voxels"),
    ],
)
def test_what_cannot_be_is_refused(asked, said):
    with pytest.raises(ParameterError, match=said):
        check_matrices(*asked)


def test_one_volume_has_no_matrix(signals):
    for few in (signals[:1], signals[0]):
        with pytest.raises(ParameterError, match="needs several volumes"):
            connectivity(few, "correlation")


def test_measures_have_names_of_files():
    assert checked_kinds(["partial_correlation", "covariance"]) == ("partial correlation", "covariance")
    assert checked_kinds(None) == checked_kinds(()) == ()
    assert measure("partial correlation", False) == "partialCorrelation"
    assert measure("correlation", True) == "correlationFisherZ"


def test_voxels_are_correlated_with_seeds(signals):
    voxels = np.column_stack([signals[:, :3], np.full(50, 4.0)]).astype("f4")
    found = SeedCorrelation(standardized(signals[:, :2]))(voxels)
    expected = np.corrcoef(voxels[:, :3].T, signals[:, :2].T)[:3, 3:]
    np.testing.assert_allclose(found[:3], expected, atol=1e-6)
    np.testing.assert_array_equal(found[3], 0)  # never changes
    np.testing.assert_allclose(
        SeedCorrelation(standardized(signals[:, :2]), True)(voxels)[2], np.arctanh(expected[2]), rtol=1e-5
    )


@pytest.mark.parametrize("level", [1 / 3, 7.3, -1e4 / 3, 1e5 / 7, 0.0])
@pytest.mark.parametrize("n", [37, 50, 601])
def test_a_constant_series_is_correlated_with_nothing(level, n):
    """Its mean is rounded: what is left of it beside that is no series."""
    signals = np.random.default_rng(2).normal(size=(n, 3))
    signals[:, 1] = level
    found = SeedCorrelation(standardized(signals))(signals)
    assert not found[1].any() and not found[:, 1].any()
    np.testing.assert_allclose(np.diag(found), [1, 0, 1], rtol=1e-6)
    moving = level + 1e-6 * max(abs(level), 1) * np.sin(np.arange(n))[:, None]
    np.testing.assert_allclose(np.linalg.norm(standardized(moving)), 1)
