"""Denoising strategies: what is loaded, and what is said of tables that do not serve."""

import numpy as np
import pandas as pd
import pytest
from datasets import MNI, confounds_of, run_of

from sharedmask.errors import MissingFileError, ParameterError
from sharedmask.study.bids import find_runs
from sharedmask.study.denoising import Denoising

STEM = "sub-01_task-rest"


@pytest.fixture
def run(tmp_path):
    (tmp_path / "dataset_description.json").write_text('{"Name": "some"}')
    run_of(tmp_path, STEM)
    (run,) = find_runs(tmp_path)
    return run


@pytest.mark.parametrize("strategy", ["simple", "scrubbing"])
@pytest.mark.parametrize("name", [STEM, f"{STEM}_echo-1"])
def test_confounds_and_volumes_are_nilearns(run, strategy, name):
    from nilearn.interfaces.fmriprep import load_confounds_strategy

    confounds_of(run.bold, STEM, moves=(3, 4))
    confounds, kept = load_confounds_strategy(str(run.bold), strategy)
    run.bold.with_name(f"{STEM}_desc-confounds_timeseries.tsv").rename(
        run.bold.with_name(f"{name}_desc-confounds_timeseries.tsv")
    )
    found = Denoising.load(run, strategy, 24)
    assert found.columns == list(confounds.columns)
    np.testing.assert_array_equal(found.kept, np.arange(24) if kept is None else kept)
    np.testing.assert_array_equal(np.union1d(found.kept, found.dropped), np.arange(24))
    assert (found.sample_mask is None) == (strategy == "simple")
    pd.testing.assert_frame_equal(found.take(), confounds)


def test_a_run_without_a_table_is_named(run):
    with pytest.raises(
        MissingFileError, match=rf"{MNI}_desc-preproc_bold\.nii\.gz has no \.\.\._desc-confounds"
    ):
        Denoising.load(run, "simple", 24)


@pytest.mark.parametrize(
    ("strategy", "change", "what"),
    [
        ("simple", lambda table: table[["csf"]], "white_matter"),
        ("scrubbing", lambda table: table.assign(framewise_displacement=9.0), "[Aa]ll volumes"),
        ("simple", lambda table: table.iloc[:20], "has 20 rows for the 24 volumes"),
        ("simple", lambda table: table.iloc[:0], "."),
        ("compcor", lambda table: table, "compcor"),
    ],
)
def test_a_table_that_does_not_serve_is_named(run, strategy, change, what):
    path = confounds_of(run.bold, STEM)
    change(pd.read_csv(path, sep="\t")).to_csv(path, sep="\t", index=False)
    with pytest.raises(ParameterError, match=rf"{path.name}.*{what}"):
        Denoising.load(run, strategy, 24)
