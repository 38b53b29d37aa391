"""Outputs are what their names say, whichever verb writes them."""

import numpy as np
import pandas as pd
import pytest
from datasets import atlas, preprocessed
from nilearn.connectome import ConnectivityMeasure
from programs import sharedmask, sharedmask_bids

ATLAS = ["--atlas", "a.nii.gz"]
NPZ = ["--out-dir", "OUT", "--format", "npz"]
WRONG = {
    "extract": ["extract", "b.nii.gz", *ATLAS, "--stat", "mean", "-o", "OUT/z.npz"],
    "extract, h5": ["extract", "b.nii.gz", *ATLAS, "--stat", "mean", "-o", "OUT/z.h5"],
    "extract, csv": ["extract", "b.nii.gz", *ATLAS, "--stat", "pc1", "-o", "OUT/z.csv"],
    "extract many": ["extract", "b.nii.gz", *ATLAS, "--stat", "mean", "--out-dir", "OUT", "--format", "npz"],
    "run": ["run", "b.nii.gz", *ATLAS, "--stat", "mean", "--output-dir", "OUT", "--format", "h5"],
    "submit": ["submit", "--dry-run", "--", "extract", "b.nii.gz", *ATLAS, "--stat=mean", *NPZ],
}


def at(arguments, folder):
    return [argument.replace("OUT", str(folder)) for argument in arguments]


@pytest.mark.parametrize("arguments", WRONG.values(), ids=WRONG.keys())
def test_a_statistic_is_written_to_no_archive(arguments, tmp_path):
    ended = sharedmask(*at(arguments, tmp_path))
    assert ended.code == 64 and "gives a table, which goes to .tsv" in ended.err
    assert not [path for path in tmp_path.iterdir() if path.name != "registry"]


@pytest.mark.parametrize("option", [["--stat", "mean"], ["--format", "tsv"], ["--drop-empty"]])
def test_options_of_tables_are_refused_beside_voxels(option, tmp_path):
    ended = sharedmask_bids("data", tmp_path / "out", "participant", "--atlases", "a", "--voxels", *option)
    assert ended.code == 64 and f"leave out {option[0]}" in ended.err


TWICE = {
    "extract": ["extract", "b.nii.gz", *ATLAS, *ATLAS, "-o", "OUT/z.tsv"],
    "extract, equals": ["extract", "b.nii.gz", *ATLAS, "--atlas=c.nii.gz", "-o", "OUT/z.tsv"],
    "extract, statistics": [
        "extract",
        "b.nii.gz",
        *ATLAS,
        "--stat",
        "mean",
        "--stat",
        "median",
        "-o",
        "OUT/z.tsv",
    ],
    "extract, outputs": ["extract", "b.nii.gz", *ATLAS, "-o", "OUT/z.tsv", "--output", "OUT/y.tsv"],
    "run": ["run", "b.nii.gz", *ATLAS, *ATLAS],
    "network": ["network", "l.nii.gz", "--connectome", "c", "--connectome", "d", "--out", "OUT"],
    "submit": ["submit", "--dry-run", "--", "extract", "b.nii.gz", *ATLAS, *ATLAS, "--out-dir", "OUT"],
}


@pytest.mark.parametrize("arguments", TWICE.values(), ids=TWICE.keys())
def test_of_an_option_given_twice_none_wins_in_silence(arguments, tmp_path):
    ended = sharedmask(*at(arguments, tmp_path))
    assert ended.code == 64 and "is given twice: it takes one value" in ended.err


def test_the_app_refuses_a_second_statistic(tmp_path):
    twice = ["--stat", "mean", "--stat", "median"]
    ended = sharedmask_bids("data", tmp_path / "out", "participant", "--atlases", "a", *twice)
    assert ended.code == 64 and "--stat is given twice" in ended.err


def test_columns_without_a_number_are_dropped_on_request(tmp_path):
    dataset, out = preprocessed(tmp_path / "fmriprep", subjects=("01",)), tmp_path / "out"
    arguments = (dataset, out, "participant", "--atlases", atlas(tmp_path / "atlases"), "--no-reports")
    assert sharedmask_bids(*arguments).code == 0
    (table,) = out.rglob("*_timeseries.tsv")
    every = pd.read_csv(table, sep="\t")
    assert every.isna().all().any()
    assert sharedmask_bids(*arguments, "--drop-empty").code == 0
    found = pd.read_csv(table, sep="\t")
    pd.testing.assert_frame_equal(found, every.dropna(axis="columns", how="all"))
    matrix = ConnectivityMeasure(kind="correlation").fit_transform([found.to_numpy()])
    assert np.isfinite(matrix).all()
    (coverage,) = out.rglob("*_stat-coverage_bold.tsv")
    assert len(pd.read_csv(coverage, sep="\t")) == every.shape[1]
