"""Groups: what all runs gave, against their own tables."""

import csv
import re
import sys

import numpy as np
import pandas as pd
import pytest
from datasets import atlas
from nilearn.connectome import ConnectivityMeasure
from programs import sharedmask_bids

from sharedmask.errors import DatasetError, NoInputError
from sharedmask.study.analysis import Outputs
from sharedmask.study.atlases import find_atlas
from sharedmask.study.dataset import analyse
from sharedmask.study.derivatives import Derivatives
from sharedmask.study.group import REGIONS, Stack, read_table, summarise_group, summarise_regions

KINDS = ("correlation", "partial correlation")


@pytest.fixture
def done(dataset, toy, out, tmp_path):
    """A study of two runs with two atlases, two statistics, matrices, and two ways of cleaning."""
    other = find_atlas(atlas(tmp_path / "more", "Other", n_regions=3, seed=2))
    outputs = Outputs(("mean", "median"), min_coverage=0.0, reports=False, connectivity=KINDS)
    for cleaning in ({}, {"detrend": True}):
        analyse(dataset, out, [toy, other], outputs, **cleaning)
    return out


def test_a_row_for_each_region_of_each_table(done):
    path = summarise_regions(done)
    assert path == done / REGIONS
    table = pd.read_csv(path, sep="\t", dtype={"sub": str}, keep_default_na=False, na_values=["n/a"])
    assert len(table) == 2 * 2 * 2 * (7 + 4)  # runs, statistics, ways, regions
    for (sub, name, stat), rows in table[table["desc"].isna()].groupby(["sub", "atlas", "stat"]):
        (file,) = done.rglob(f"sub-{sub}_*_atlas-{name}_stat-{stat}_timeseries.tsv")
        signals = pd.read_csv(file, sep="\t")
        assert rows["region"].tolist() == list(signals) and set(rows["n_timepoints"]) == {40}
        np.testing.assert_allclose(rows["mean"], signals.mean(), rtol=1e-12)
        np.testing.assert_allclose(rows["standard_deviation"], signals.std(ddof=0), rtol=1e-9)
        covered = pd.read_csv(next(done.rglob(f"sub-{sub}_*_atlas-{name}_stat-coverage_bold.tsv")), sep="\t")
        np.testing.assert_allclose(rows["coverage"], covered["coverage"])
    assert set(table["desc"].dropna()) == {"detrend"}


def test_stacks_hold_the_matrices_of_all_runs(done):
    stacks = Stack.all(done)
    assert len(stacks) == len({stack.name for stack in stacks}) == 2 * 2 * 2 * 2
    assert all(len(set(stack.runs)) == 2 for stack in stacks)
    for stack in stacks[::5]:  # each has a picture, which takes a while
        written = stack.write(done)
        with np.load(written[0]) as kept:
            assert kept["runs"].tolist() == list(stack.runs)
            for path, matrix in zip(stack.paths, kept["matrices"], strict=True):
                expected = pd.read_csv(path, sep="\t", index_col=0)
                assert kept["regions"].tolist() == list(expected)
                np.testing.assert_array_equal(matrix, expected.to_numpy())
            mean = pd.read_csv(written[1], sep="\t", index_col=0)
            there = ~np.isnan(kept["matrices"]).all(axis=0)
            np.testing.assert_allclose(
                mean.to_numpy()[there], kept["matrices"].mean(axis=0)[there], rtol=1e-12
            )
        assert written[2].read_bytes().startswith(b"\x89PNG")


def test_a_region_that_a_run_lacks_is_no_number_there(tmp_path):
    paths = []
    for number, names in enumerate((["a", "b"], ["b", "c"])):
        paths.append(tmp_path / f"sub-{number}_relmat.tsv")
        rows = [["Node", *names], *([name, str(number + 1.0), str(number + 2.0)] for name in names)]
        with open(paths[-1], "w", newline="") as file:
            csv.writer(file, delimiter="\t").writerows(rows)
    stack, mean, _ = Stack("group_x", ("0", "1"), tuple(paths)).write(tmp_path)
    with np.load(stack) as kept:
        assert kept["regions"].tolist() == ["a", "b", "c"] and np.isnan(kept["matrices"][0, 2]).all()
    found = pd.read_csv(mean, sep="\t", index_col=0)
    assert found.loc["b", "b"] == 2.0 and found.loc["a", "b"] == 2.0 and np.isnan(found.loc["a", "c"])


@pytest.mark.parametrize("form", ["tsv", "parquet"])
def test_tables_are_read_as_they_were_written(dataset, toy, out, form):
    if form == "parquet":
        pytest.importorskip("pyarrow")
    analyse(dataset, out, [toy], Outputs(min_coverage=0.0, reports=False, form=form))
    names, signals = read_table(next(out.rglob(f"*_timeseries.{form}")))
    assert names[0] == "region 1" and signals.shape == (40, 7) and np.isnan(signals[:, 6]).all()
    assert (out / REGIONS) in summarise_group(out)


def test_a_study_without_tables_has_no_group(dataset, toy, out, monkeypatch):
    with pytest.raises(NoInputError, match="run the participant level first"):
        summarise_regions(out)
    with pytest.raises(DatasetError, match="has no outputs of sharedmask"):
        summarise_group(out)
    Derivatives.create(out, dataset)
    assert summarise_group(out) == []
    analyse(dataset, out, [toy], Outputs(min_coverage=0.0, reports=False, connectivity=["correlation"]))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert sorted(path.suffix for path in summarise_group(out)) == [".npz", ".tsv", ".tsv"]


@pytest.mark.long
def test_tangent_connectivity_is_nilearns(dataset, toy, out):
    analyse(dataset, out, [toy], Outputs(min_coverage=0.0, reports=False), standardize="zscore_sample")
    tables = [read_table(path) for path in sorted(out.rglob("*_timeseries.tsv"))]
    signals = [table[:, :6] for _, table in tables]  # the seventh has no voxel
    measure = ConnectivityMeasure(kind="tangent", standardize=None)
    expected = measure.fit_transform(signals)
    ended = sharedmask_bids(dataset, out, "group", "--connectivity", "tangent")
    assert ended.code == 0, ended.err
    (stack,) = out.glob("group_*_meas-tangent_relmat.npz")
    with np.load(stack) as kept:
        np.testing.assert_allclose(kept["matrices"], expected, rtol=1e-6, atol=1e-9)
        assert kept["regions"].tolist() == [f"region {number}" for number in range(1, 7)]
        assert len(kept["runs"]) == 2
    mean = pd.read_csv(stack.with_suffix(".tsv"), sep="\t", index_col=0)
    np.testing.assert_allclose(mean, measure.mean_, rtol=1e-6)
    assert str(stack) in ended.out
    refused = sharedmask_bids(dataset, out, "group", "--connectivity", "correlation")
    assert refused.code == 64 and "leave out correlation" in refused.err


def test_tangent_needs_several_runs(dataset, toy, out):
    analyse(dataset, out, [toy], Outputs(min_coverage=0.0, reports=False), filters={"sub": "01"})
    with pytest.raises(NoInputError, match="several runs"):
        summarise_group(out, tangent=True)


@pytest.mark.parametrize("damage", ["gone", "empty", "cut", "no text", "no number", "head alone"])
@pytest.mark.parametrize("what", ["timeseries", "relmat", "coverage_bold"])
@pytest.mark.some(7)
def test_a_table_that_is_not_as_it_was_written_is_named(dataset, toy, out, what, damage):
    analyse(dataset, out, [toy], Outputs(reports=False, connectivity=KINDS[:1]), n_jobs=1)
    path = next(out.rglob(f"sub-*_{what if what != 'coverage_bold' else 'stat-' + what}.tsv"))
    whole = path.read_text()
    path.write_bytes(
        {
            "gone": b"",
            "empty": b"",
            "cut": whole[: whole.rindex("\t")].encode(),
            "no text": b"\xff\xfe" + whole.encode(),
            "no number": whole.replace("0.", "x", 1).encode(),
            "head alone": whole.partition("\n")[0].encode() + b"\n",
        }[damage]
    )
    if damage == "gone":
        path.unlink()
    if (what, damage) in {("coverage_bold", "no number"), ("coverage_bold", "gone")}:
        return  # which the table of the group has as it is, or without a number
    with pytest.raises(DatasetError, match=f"{re.escape(str(path))}.* was written"):
        summarise_group(out)
    done = analyse(dataset, out, [toy], Outputs(reports=False, connectivity=KINDS[:1]), n_jobs=1)
    assert len(done.complete) == 1 and path.read_text() == whole and summarise_group(out)


def test_a_data_set_of_others_is_not_written_to(dataset):
    before = sorted(dataset.iterdir())
    assert sharedmask_bids(dataset, dataset, "group", "--no-reports").code == 16
    assert sorted(dataset.iterdir()) == before
