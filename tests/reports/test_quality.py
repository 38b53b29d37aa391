"""Quality: numbers of a run, against their definitions."""

import numpy as np
import pytest

from sharedmask.reports.quality import DESCRIBED, N_PROBES, Quality, as_texts, dvars, kept_of, probes_of

VALUES = np.random.default_rng(0).normal(100, 2, (60, 300)) + np.sin(np.arange(60))[:, None]


def test_dvars_are_those_of_fmriprep():
    """Voxel by voxel, as nipype's ComputeDVARS has it."""
    scale, changes = [], np.diff(VALUES, axis=0)
    for series in VALUES.T:
        low, high = np.percentile(series, [25, 75], method="lower")
        centred = series - series.mean()
        along = (centred[1:] @ centred[:-1]) / (centred @ centred)
        scale.append(np.sqrt((1 - along) * 2) * (high - low) / 1.349)
    expected = np.sqrt((changes**2).mean(1)) / np.mean(scale)
    found = dvars(VALUES)
    assert np.isnan(found[0])
    np.testing.assert_allclose(found[1:], expected)


@pytest.mark.parametrize("values", [VALUES[:2], np.ones((9, 5)), VALUES[:1]])
def test_what_never_changes_has_no_dvars(values):
    quality = Quality(values, np.ones(len(values), bool))
    assert np.isnan(quality.std_dvars).all()
    assert as_texts(quality.measures())["mean_std_dvars"] == "n/a"


def test_measures_are_described_and_true(tmp_path):
    fd = np.r_[np.nan, np.linspace(0, 1, 59)]
    rows = [
        "framewise_displacement\tstd_dvars",
        *("n/a\tn/a" if t == 0 else f"{fd[t]}\t1.5" for t in range(60)),
    ]
    table = tmp_path / "confounds.tsv"
    table.write_text("\n".join(rows) + "\n")
    kept = kept_of(60, np.arange(5, 60))
    found = Quality.of(VALUES, kept, table).measures()
    assert set(found) < set(DESCRIBED)
    assert found["mean_fd"] == pytest.approx(0.5) and found["max_fd"] == 1.0
    assert found["fd_above_0.5mm"] == (fd > 0.5).sum()
    assert found["mean_std_dvars"] == 1.5
    assert found["tsnr"] == pytest.approx(np.median(VALUES.mean(0) / VALUES.std(0)))
    assert found["global_signal"] == pytest.approx(VALUES.mean())
    assert (found["n_volumes"], found["n_kept"]) == (60, 55)
    assert as_texts({"a": np.nan, "d": -np.inf, "b": 3.0, "c": 0.123456}) == {
        "a": "n/a",
        "d": "n/a",
        "b": "3",
        "c": "0.1235",
    }


@pytest.mark.parametrize("text", ['nonsense\n"', "framewise_displacement\n1\n2\n", None])
def test_a_table_that_tells_nothing_is_no_fault(text, tmp_path):
    table = None if text is None else tmp_path / "confounds.tsv"
    if table:
        table.write_text(text)
    quality = Quality.of(VALUES, kept_of(60, None), table)
    assert quality.fd is None and np.isfinite(quality.std_dvars[1:]).all()


def test_probes_are_spread_over_the_brain():
    brain = np.arange(10, 100_000)
    probes = probes_of(brain)
    assert len(np.unique(probes)) == N_PROBES and probes[0] == 10 and probes[-1] == 99_999
    assert probes_of(brain[:7]).tolist() == brain[:7].tolist()


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_a_voxel_that_is_not_finite_ends_no_run(wrong):
    values = np.random.default_rng(0).normal(1000, 10, (12, 5)).astype("f4")
    whole = Quality.of(values[:, 1:], np.ones(12, bool), None)
    values[3, 0] = wrong
    quality = Quality.of(values, np.ones(12, bool), None)
    assert quality.tsnr == whole.tsnr
    assert as_texts(quality.measures())["global_signal"] == "n/a"
