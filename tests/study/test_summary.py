"""Summaries: the page and the table of all runs of a study."""

import re

import numpy as np
import pandas as pd
import pytest
from datasets import atlas, confounds_of, signals
from images import truth

from sharedmask.compute.journal import Entry
from sharedmask.reports.pages import StudyReport
from sharedmask.reports.quality import Quality, kept_of, probes_of
from sharedmask.study import summary
from sharedmask.study.analysis import Outputs
from sharedmask.study.atlases import find_atlas
from sharedmask.study.bids import find_runs
from sharedmask.study.dataset import analyse
from sharedmask.study.summary import QC, summarise


@pytest.fixture
def moving(dataset):
    """Two runs, the second of which moves."""
    for run, moves in zip(find_runs(dataset), ((), (3, 4, 9)), strict=True):
        confounds_of(run.bold, run.bold.name.split("_space")[0], n_timepoints=40, moves=moves)
    return dataset


@pytest.fixture
def shown(monkeypatch):
    """The pages that are written."""
    written = []
    monkeypatch.setattr(StudyReport, "write", lambda self, path: written.append(self))
    return written


def test_the_quality_of_all_runs_is_that_of_their_voxels(moving, toy, out):
    analyse(moving, out, [toy], Outputs(min_coverage=0.0, reports=False), denoise_strategy=["scrub"])
    table = pd.read_csv(out / QC, sep="\t", dtype={"sub": str})
    assert table["sub"].tolist() == ["01", "02"] and table["n_kept"].tolist()[0] == 40
    for run, row in zip(find_runs(moving), table.itertuples(), strict=True):
        voxels = truth(run.bold).reshape(-1, 40, order="F").T
        brain = np.flatnonzero(truth(run.mask).reshape(-1, order="F"))
        expected = Quality.of(voxels[:, probes_of(brain)], kept_of(40, None), run.confounds).measures()
        assert row.tsnr == pytest.approx(expected["tsnr"], rel=1e-3)
        assert row.mean_fd == pytest.approx(expected["mean_fd"], rel=1e-3)
        assert row.n_regions == 7 and row.n_left_out == 1
    each = [path for path in out.rglob("*_qc.tsv") if path.name != QC]
    assert len(each) == 2 and all(path.with_suffix(".json").is_file() for path in each)


def test_the_worst_run_comes_first_with_its_page_and_picture(moving, toy, out, shown):
    analyse(moving, out, [toy], Outputs(min_coverage=0.0))
    (page,) = shown
    assert [re.match("sub-..", run.name)[0] for run in page.runs] == ["sub-02", "sub-01"]
    assert all((out / run.page).is_file() and run.thumbnail.startswith(b"\x89PNG") for run in page.runs)
    assert 'href="study.html"' in (out / page.runs[0].page).read_text()


def test_coverage_is_regions_by_runs(dataset, toy, out, tmp_path, shown):
    other = find_atlas(atlas(tmp_path / "atlases", "Other", n_regions=3, seed=1))
    analyse(dataset, out, [toy, other], Outputs(min_coverage=0.0, reports=False))
    assert not shown
    summarise(out)
    coverage = shown[0].coverage
    assert {name: shares.shape for name, shares in coverage.items()} == {"Toy": (7, 2), "Other": (4, 2)}
    path = signals(out, stat="coverage")
    table = pd.read_csv(path.with_name(path.name.replace("timeseries", "bold")), sep="\t")
    np.testing.assert_allclose(coverage["Toy"][:, 0], table["coverage"])


@pytest.mark.some(2)
@pytest.mark.parametrize("damage", [None, b"", b"\xff\xfe", b"Node\ttsnr\n", b"Node\ttsnr\n1\n", b"{"])
def test_what_a_run_lost_is_no_fault(moving, toy, out, shown, damage):
    analyse(moving, out, [toy], Outputs(min_coverage=0.0, reports=False))
    for ending in ("qc.tsv", "timeseries.json", "coverage_bold.tsv"):
        for path in out.rglob(f"sub-01*_*{ending}"):
            path.unlink() if damage is None else path.write_bytes(damage)
    summarise(out)
    assert [run.facts.get("tsnr", "none") == "none" for run in shown[-1].runs] == [False, True]
    assert len(pd.read_csv(out / QC, sep="\t")) == 1
    assert summary.thumbnail_of(out, "x").parent.is_dir()


def test_of_very_many_runs_a_column_is_the_mean_of_several(tmp_path, monkeypatch):
    monkeypatch.setattr(summary, "_MOST_COLUMNS", 2)
    found, shares = summary._Coverage(3), [[1.0, 0.5], [0.0, 0.5], [0.25, 0.75, 1.0]]
    for number, values in enumerate(shares):
        path = tmp_path / f"sub-{number}_atlas-Toy_stat-coverage_bold.tsv"
        rows = "".join(f"region {n}\t{value}\n" for n, value in enumerate(values))
        path.write_text(f"Node\tcoverage\n{rows}")
        found.add(Entry("x", "", (str(tmp_path / f"sub-{number}_atlas-Toy_stat-mean_timeseries.tsv"),)))
    expected = [[0.5, 0.25], [0.5, 0.75], [np.nan, 1.0]]
    np.testing.assert_array_equal(found.matrices["Toy"], expected)
