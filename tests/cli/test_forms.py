"""Outputs are what their names say, whichever verb writes them."""

import json
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from datasets import atlas, confounds_of, preprocessed
from images import SHAPE, save
from nilearn.connectome import ConnectivityMeasure
from nilearn.interfaces.fmriprep import load_confounds_strategy
from nilearn.maskers import NiftiLabelsMasker
from programs import sharedmask, sharedmask_bids

from sharedmask import extract, extract_many
from sharedmask.errors import ParameterError
from sharedmask.sources.names import camel
from sharedmask.sources.source import Source
from sharedmask.study.denoising import Denoise

ATLAS = ["--atlas", "a.nii.gz"]
NPZ = ["--out-dir", "OUT", "--format", "npz"]
WRONG = {
    "extract": ["extract", "b.nii.gz", *ATLAS, "--stat", "mean", "-o", "OUT/z.npz"],
    "extract, h5": ["extract", "b.nii.gz", *ATLAS, "--stat", "mean", "-o", "OUT/z.h5"],
    "extract, mat": ["extract", "b.nii.gz", *ATLAS, "--stat", "pc1", "-o", "OUT/z.mat"],
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
    "extract, outputs": ["extract", "b.nii.gz", *ATLAS, "-o", "OUT/z.tsv", "--output", "OUT/y.tsv"],
    "run": ["run", "b.nii.gz", *ATLAS, "--output-dir", "OUT", "--output-dir", "OUT"],
    "network": ["network", "l.nii.gz", "--connectome", "c", "--connectome", "d", "--out", "OUT"],
    "submit": ["submit", "--dry-run", "--", "extract", "b.nii.gz", *ATLAS, *NPZ, *NPZ],
}


@pytest.mark.parametrize("arguments", TWICE.values(), ids=TWICE.keys())
def test_of_an_option_given_twice_none_wins_in_silence(arguments, tmp_path):
    ended = sharedmask(*at(arguments, tmp_path))
    assert ended.code == 64 and "is given twice: it takes one value" in ended.err


SAME = {
    "atlas": (["--atlas", "a.nii.gz", "b/a.nii.gz"], "would both be written to ..._atlas-a_...: rename"),
    "statistic": ([*ATLAS, "--stat", "mean", "--stat=mean"], "--stat mean is asked for twice"),
    "output": ([*ATLAS, "--stat", "mean", "sum"], "-o - has room for one table, and 2 are asked for"),
    "tables": ([*ATLAS, "c.nii.gz", "--lut", "a.tsv"], "1 of 2 are given"),
}


@pytest.mark.parametrize(("arguments", "said"), SAME.values(), ids=SAME.keys())
def test_of_several_tables_no_two_are_one(arguments, said):
    ended = sharedmask("extract", "b.nii.gz", *arguments, "-o", "-")
    assert ended.code == 64 and said in ended.err


@pytest.fixture
def decoded(monkeypatch):
    """How often each file's volumes were begun."""
    begun, volumes = Counter(), Source.volumes

    def counted(self):
        begun[self.paths[0].name] += 1
        return volumes(self)

    monkeypatch.setattr(Source, "volumes", counted)
    return begun


def test_extract_writes_a_table_for_each_atlas_and_statistic_in_one_pass(tmp_path, decoded):
    root = preprocessed(tmp_path / "in", subjects=("01",))
    bold = next(root.rglob("*_bold.nii.gz"))
    given = [atlas(tmp_path / name, name) for name in "AB"]
    luts = [path.with_name(path.name.replace(".nii.gz", ".tsv")) for path in given]
    ended = sharedmask("extract", "--stat", "mean", "median", "--atlas", *given, "--lut", *luts,
                       "-o", tmp_path / "o.tsv", bold)  # fmt: skip
    assert (ended.code, ended.err, decoded[bold.name]) == (0, "", 1)
    for path, lut in zip(given, luts, strict=True):
        for stat in ("mean", "median"):
            name = path.name[path.name.index("atlas-") :].removesuffix("_dseg.nii.gz")
            table = pd.read_csv(tmp_path / f"o_{name}_stat-{stat}.tsv", sep="\t")
            masker = NiftiLabelsMasker(path, strategy=stat, standardize=None)
            np.testing.assert_allclose(table, masker.fit_transform(bold), rtol=1e-6)
            assert list(table) == pd.read_csv(lut, sep="\t")["name"].tolist()[: table.shape[1]]
    assert len(list(tmp_path.glob("o*"))) == 4


@pytest.mark.usefixtures("blank_pictures")
def test_the_app_writes_a_table_for_each_atlas_and_statistic_in_one_pass(tmp_path, decoded):
    root, out = preprocessed(tmp_path / "in", subjects=("01",)), tmp_path / "out"
    bold = next(root.rglob("*_bold.nii.gz"))
    given = [atlas(tmp_path / name, name, seed=seed) for seed, name in enumerate("AB")]
    stats = ["--stat", "mean", "standard-deviation"]
    asked = (root, out, "participant", "--atlases", *given, *stats, "--min-coverage", "0")
    ended = sharedmask_bids(*asked)
    assert (ended.code, decoded[bold.name]) == (0, 1), ended
    mask = next(root.rglob("*brain_mask.nii.gz"))
    for path, name in zip(given, "AB", strict=True):
        for stat in ("mean", "standard_deviation"):
            (table,) = out.rglob(f"*atlas-{name}_stat-{camel(stat)}_timeseries.tsv")
            masker = NiftiLabelsMasker(path, mask_img=mask, strategy=stat, standardize=None)
            expected = masker.fit_transform(bold)
            found = pd.read_csv(table, sep="\t").dropna(axis="columns")
            np.testing.assert_allclose(found, expected, rtol=1e-6)
            assert json.loads(table.with_suffix(".json").read_text())["Statistic"] == stat
    assert "1 were already" in sharedmask_bids(*asked).out


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


# --- denoising, through each entry point ---------------------------------------------------------

ASKED = {"strategy": "scrubbing", "fd_threshold": 0.3, "scrub": 2, "global_signal": "basic"}
FLAGS = ["--denoise-strategy", "scrubbing", "--fd-threshold", "0.3", "--scrub", "2", "--global-signal=basic"]
FLAGS += ["--low-pass", "0.1", "--standardize", "zscore_sample"]


@pytest.fixture
def scrubbed(tmp_path):
    """A data set whose head moves, its image, an atlas, and nilearn's signals."""
    root = preprocessed(tmp_path / "in", subjects=("01",), n_timepoints=60)
    bold = next(root.rglob("*_bold.nii.gz"))
    save(next(root.rglob("*brain_mask.nii.gz")), np.ones(SHAPE, "u1"))
    confounds_of(bold, "sub-01_task-rest", n_timepoints=60, moves=(7, 20), more=True)
    image = atlas(tmp_path / "atlases")
    asked = {name: value for name, value in ASKED.items() if name != "strategy"}
    confounds, kept = load_confounds_strategy(str(bold), ASKED["strategy"], **asked)
    masker = NiftiLabelsMasker(image, standardize="zscore_sample", low_pass=0.1, t_r=2.0)
    return root, bold, image, masker.fit_transform(bold, confounds=confounds, sample_mask=kept), kept


def _from_extract(root, bold, image, out):
    ended = sharedmask("extract", bold, "--atlas", image, *FLAGS, "-o", out / "o.tsv")
    assert ended.code == 0, ended.err
    return out / "o.tsv", out / "o.json", out / "o_outliers.tsv"


def _from_extract_many(root, bold, image, out):
    ended = sharedmask("extract", bold, "--atlas", image, *FLAGS, "--out-dir", out)
    assert ended.code == 0, ended.err
    stem = bold.name.removesuffix(".nii.gz")
    return out / f"{stem}.tsv", out / f"{stem}.json", out / f"{stem}_outliers.tsv"


def _from_app(root, bold, image, out):
    given = ("--atlases", image, *FLAGS, "--no-reports", "--min-coverage", "0")
    ended = sharedmask_bids(root, out, "participant", *given)
    assert ended.code == 0, ended.err
    (table,) = out.rglob("*_stat-mean_*_timeseries.tsv")
    return table, table.with_suffix(".json"), next(out.rglob("*_outliers.tsv"))


@pytest.mark.some(1)
@pytest.mark.parametrize("way", [_from_extract, _from_extract_many, _from_app])
def test_denoised_signals_are_nilearns(way, scrubbed, tmp_path):
    root, bold, image, expected, kept = scrubbed
    (tmp_path / "out").mkdir()
    table, sidecar, outliers = way(root, bold, image, tmp_path / "out")
    found = pd.read_csv(table, sep="\t").dropna(axis="columns")
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    said = json.loads(sidecar.read_text())
    assert said["KeptVolumes"] == kept.tolist() and said["NumberOfVolumes"] == 60
    assert said["Confounds"]["Parameters"] == {name: ASKED[name] for name in ASKED if name != "strategy"}
    assert said["Confounds"]["Strategy"].endswith("load_confounds_strategy: scrubbing")
    assert "global_signal" in said["Confounds"]["Columns"]
    dropped = pd.read_csv(outliers, sep="\t")["outlier"]
    np.testing.assert_array_equal(np.flatnonzero(dropped == 0), kept)


def test_denoised_signals_are_the_same_from_python(scrubbed):
    _, bold, image, expected, _ = scrubbed
    denoise = Denoise(**ASKED)
    asked = {"standardize": "zscore_sample", "low_pass": 0.1, "strategy": "mean"}
    one = extract(bold, image, **denoise.of_image(bold).cleaning, **asked)
    (many,) = extract_many([bold], image, denoise=denoise, **asked).results.values()
    np.testing.assert_array_equal(one, many)
    np.testing.assert_allclose(one, expected, rtol=1e-6, atol=1e-6)
    with pytest.raises(ParameterError, match="two answers to one question"):
        extract_many([bold], image, denoise="simple", confounds=[np.ones((60, 1))])


def test_the_app_takes_images_of_ica_aroma_by_itself(tmp_path):
    root = preprocessed(tmp_path / "in", subjects=("01",), n_timepoints=60)
    bold = next(root.rglob("*_bold.nii.gz"))
    aroma = bold.with_name(bold.name.replace("preproc", "smoothAROMAnonaggr"))
    aroma.write_bytes(bold.read_bytes())
    image = atlas(tmp_path / "atlases")
    given = (root, tmp_path / "out", "participant", "--atlases", image, "--denoise-strategy", "ica_aroma")
    assert "_desc-smoothAROMAnonaggr_bold.nii.gz: 7 x 6 x 5" in sharedmask_bids(*given, "--dry-run").out
    confounds_of(bold, "sub-01_task-rest", n_timepoints=60, more=True)
    printed = sharedmask_bids(*given, "--ica-aroma", "basic", "--dry-run").out
    assert "_desc-preproc_bold.nii.gz: 7 x 6 x 5" in printed and "0 of them would fail" in printed


@pytest.mark.some(1)
@pytest.mark.parametrize("drop", [[], ["--drop-empty"]])
def test_the_app_writes_matrices_of_the_one_pass(tmp_path, decoded, drop):
    root, out = preprocessed(tmp_path / "in", subjects=("01",)), tmp_path / "out"
    bold, given = next(root.rglob("*_bold.nii.gz")), atlas(tmp_path / "atlases")
    kinds = ["--connectivity", "correlation", "partial-correlation", *drop]
    asked = (root, out, "participant", "--atlases", given, "--no-reports", *kinds)
    planned = sharedmask_bids(*asked, "--dry-run").out
    ended = sharedmask_bids(*asked)
    assert (ended.code, decoded[bold.name]) == (0, 1), ended
    (table,) = out.rglob("*_stat-mean_timeseries.tsv")
    signals = pd.read_csv(table, sep="\t")
    for kind, name in (("correlation", "correlation"), ("partial correlation", "partialCorrelation")):
        (path,) = out.rglob(f"*_stat-mean_meas-{name}_relmat.tsv")
        matrix = pd.read_csv(path, sep="\t", index_col=0)
        assert list(matrix) == list(matrix.index) == list(signals) and str(path) in planned
        there = signals.columns[signals.notna().all()]
        expected = ConnectivityMeasure(kind=kind).fit_transform([signals[there].to_numpy()])[0]
        np.testing.assert_allclose(matrix.loc[there, there], expected, rtol=1e-6)
        assert matrix.drop(columns=there).isna().all().all()
        said = json.loads(path.with_suffix(".json").read_text())
        assert said["RelationshipMeasure"] == kind and said["Sources"][0].endswith(bold.name)
    assert "1 were already" in sharedmask_bids(*asked).out


@pytest.mark.parametrize("many", [False, True])
def test_extract_writes_matrices_beside_its_tables(tmp_path, decoded, many):
    root = preprocessed(tmp_path / "in", subjects=("01",))
    bold, given = next(root.rglob("*_bold.nii.gz")), atlas(tmp_path / "atlases")
    stem = bold.name.removesuffix(".nii.gz")
    out = ["--out-dir", tmp_path] if many else ["-o", tmp_path / f"{stem}.tsv"]
    ended = sharedmask("extract", bold, "--atlas", given, "--connectivity", "correlation", "--fisher-z", *out)
    assert (ended.code, decoded[bold.name]) == (0, 1), ended
    matrix = pd.read_csv(tmp_path / f"{stem}_meas-correlationFisherZ_relmat.tsv", sep="\t", index_col=0)
    signals = pd.read_csv(tmp_path / f"{stem}.tsv", sep="\t")
    expected = ConnectivityMeasure(kind="correlation").fit_transform([signals.to_numpy()])[0]
    off = ~np.eye(len(expected), dtype=bool)
    np.testing.assert_allclose(np.tanh(matrix.to_numpy()[off]), expected[off], rtol=1e-6)
    assert list(matrix) == list(signals) and np.isnan(np.diag(matrix)).all()
    ended = sharedmask(
        "extract", bold, "--atlas", given, "--connectivity", "tangent", "-o", tmp_path / "x.tsv"
    )
    assert ended.code == 64 and "'tangent' is of a group" in ended.err


def test_extract_many_gives_matrices_with_signals(tmp_path):
    root = preprocessed(tmp_path / "in")
    runs, given = sorted(root.rglob("*_bold.nii.gz")), atlas(tmp_path / "atlases")
    study = extract_many(runs, given, connectivity=["covariance", "correlation"], t_r=2.0, low_pass=0.1)
    for run, found in study.results.items():
        signals = extract(run, given, strategy="mean", t_r=2.0, low_pass=0.1)
        np.testing.assert_array_equal(found["signals"], signals)
        for kind in ("covariance", "correlation"):
            expected = ConnectivityMeasure(kind=kind).fit_transform([signals])[0]
            np.testing.assert_allclose(found[kind], expected, rtol=1e-6)
    several = extract_many(runs, given, connectivity="correlation", strategy=["sum", "mean"]).results
    for found in several.values():
        assert list(found) == ["sum", "mean"]
        for one in found.values():
            expected = ConnectivityMeasure(kind="correlation").fit_transform([one["signals"]])[0]
            np.testing.assert_allclose(one["correlation"], expected, rtol=1e-6)
