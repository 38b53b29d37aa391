"""Correlations: moments, large offsets, values near one, p of any t, the adjustment for many."""

import numpy as np
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from networks import inside, lesion, mapped, mask, reference, write

from sharedmask.network import correlation


@settings(max_examples=100)
@given(p=hnp.arrays("f8", st.integers(1, 50), elements=st.floats(0, 1)))
def test_fdr_of_any_p_is_scipys(p):
    expected = scipy.stats.false_discovery_control(p)
    np.testing.assert_allclose(correlation.benjamini_hochberg(p), expected, rtol=1e-12, atol=1e-300)


@settings(max_examples=50)
@given(
    t=hnp.arrays("f8", 5, elements=st.floats(-50, 50)),
    n_subjects=st.integers(2, 1000),
)
def test_p_of_any_t_is_scipys(t, n_subjects):
    expected = 2 * scipy.stats.t.sf(np.abs(t), n_subjects - 1)
    np.testing.assert_allclose(correlation.p_values(t, n_subjects), expected, rtol=1e-9, atol=1e-300)


@settings(max_examples=50)
@given(z=hnp.arrays("f8", st.tuples(st.integers(2, 9), st.just(3)), elements=st.floats(-0.7, 0.7)))
def test_moments_are_mean_and_squared_deviations(z):
    """Correlations made to be tanh(z), one subject after the other."""
    axes = np.eye(4, dtype="f4")
    r = np.tanh(z)
    moments = np.zeros((2, 1, 3))
    for number, one in enumerate(r):
        rows = np.stack([c * axes[0] + np.sqrt(1 - c**2) * axes[1] for c in one]).astype("f4")
        correlation.accumulate(rows[None], axes[None, :1].astype("f8"), moments, number, 0)
    np.testing.assert_allclose(moments[0, 0], z.mean(axis=0), atol=3e-7)
    np.testing.assert_allclose(moments[1, 0], ((z - z.mean(axis=0)) ** 2).sum(axis=0), atol=3e-6)


def test_correlations_near_one_are_made_in_float64(tmp_path):
    rng = np.random.default_rng(0)
    common = rng.normal(size=(5, 60, 1))
    noise = np.logspace(-3, 0, int(mask().sum()))
    data = (common + noise * rng.normal(size=(5, 60, len(noise)))).astype("f4")
    image, chosen = lesion(3, 5)
    each, z, t = reference(data, chosen)
    assert np.abs(each).max() > 3.5
    maps = mapped(write(tmp_path / "c.h5", data), image)
    assert np.abs(inside(maps.zmap) - z).max() <= 1e-6
    assert (np.abs(inside(maps.tmap) - t) / np.maximum(np.abs(t), 1)).max() <= 1e-5
