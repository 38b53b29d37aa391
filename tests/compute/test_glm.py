"""Linear models of arrays: what whole images do not show."""

import numpy as np
import pytest

from sharedmask.compute import glm
from sharedmask.errors import ParameterError

N = 40
DESIGN = np.column_stack([np.sin(np.arange(N)), np.linspace(-1, 1, N), np.ones(N)])


def test_a_design_of_dependent_columns_is_as_nilearns():
    from nilearn.glm.regression import ARModel

    design = np.column_stack([DESIGN, DESIGN[:, 0]])
    series = np.random.default_rng(0).normal(size=(5, N))
    for rho in (0.0, 0.37):
        estimates, residuals = glm.Model(design, rho).fit(series)
        expected = ARModel(design, rho).fit(series.T)
        np.testing.assert_allclose(estimates, expected.theta.T, atol=1e-10)
        np.testing.assert_allclose(residuals, expected.whitened_residuals.T, atol=1e-10)
        assert glm.degrees_of_freedom(design) == expected.df_residuals == N - 3


def test_a_constant_series_has_no_autocorrelation():
    assert glm.autocorrelation(np.zeros((2, N)), 0.0).tolist() == [0, 0]


def test_autocorrelation_is_cut_towards_zero():
    series = np.tile([1.0, -1.0], N)[None]
    assert glm.autocorrelation(series, 0.0).tolist() == [-1.0]
    assert abs(glm.autocorrelation(series + 0.05 * np.arange(2 * N), 0.0)[0] * 100) % 1 < 1e-9


@pytest.mark.parametrize("effect", [0.0, 1e-3, 5.0, -40.0, 1e6])
@pytest.mark.parametrize("dimension", [1, 3])
def test_scores_are_nilearns_at_any_size(effect, dimension):
    from nilearn.glm.contrasts import Contrast

    given = np.full(4, effect) if dimension == 1 else np.full((3, 4), effect)
    ours = glm.Contrast(given, np.ones(4), N)
    theirs = Contrast(given, np.ones(4), dim=dimension, dof=N, stat_type="t" if dimension == 1 else "F")
    np.testing.assert_allclose(ours.stat, theirs.stat(), rtol=1e-12)
    np.testing.assert_allclose(ours.p_value, theirs.p_value(), rtol=1e-9, atol=1e-300)
    np.testing.assert_allclose(ours.z_score, theirs.z_score(), rtol=1e-9, atol=1e-9)


def test_the_only_trial_is_a_model_of_its_own():
    found = glm.separate_estimator(DESIGN, [0])
    np.testing.assert_allclose(found[0], np.linalg.pinv(DESIGN)[0], atol=1e-12)


@pytest.mark.parametrize("given", ["z", [1, 2, 3, 4], [[np.nan]], np.ones((1, 1, 1))])
def test_contrasts_that_are_none_are_refused(given):
    with pytest.raises(ParameterError, match="contrast"):
        glm.contrast_matrix(given, ["a", "b", "c"])


def test_blocks_take_what_is_planned():
    assert glm.block_rows(10**9) == 1
    assert glm.block_bytes(600) <= 32 * 2**20
