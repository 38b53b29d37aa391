"""Completion: what is known as done without opening it, and what is put on the disk together."""

import json
import os

import pytest
from datasets import atlas, preprocessed

from sharedmask.image.extraction import Extraction
from sharedmask.study.analysis import Outputs
from sharedmask.study.atlases import find_atlas
from sharedmask.study.bids import find_runs
from sharedmask.study.completion import Completion, stamp_of
from sharedmask.study.dataset import analyse
from sharedmask.system import settings


@pytest.fixture
def study(tmp_path, monkeypatch):
    """Runs a study; what became of it, and how many images were prepared."""
    root, toy = preprocessed(tmp_path / "in"), find_atlas(atlas(tmp_path / "atlases"))
    prepared, prepare = [], Extraction.prepared.__func__

    def counted(cls, source, *args, **options):
        prepared.append(source)
        return prepare(cls, source, *args, **options)

    monkeypatch.setattr(Extraction, "prepared", classmethod(counted))

    def run(**options):
        prepared.clear()
        done = analyse(
            root, tmp_path / "out", [toy], Outputs(reports=False), n_jobs=1, shard="1/1", **options
        )
        return len(done.complete), len(done.skipped), len(prepared)

    return run


def test_what_was_complete_is_known_without_opening_it(study):
    assert study() == (2, 0, 2)
    assert study() == (0, 2, 0)
    assert study(standardize="psc") == (2, 0, 2)


@pytest.mark.some(1)
@pytest.mark.parametrize("what", ["bold", "mask", "sidecar", "atlas", "confounds"])
def test_an_input_that_was_written_to_is_looked_at(study, tmp_path, what):
    study()
    run = find_runs(tmp_path / "in")[0]
    path = {
        "bold": run.bold,
        "mask": run.mask,
        "sidecar": run.sidecars[-1],
        "confounds": run.confounds,
        "atlas": next((tmp_path / "atlases").glob("*.nii.gz")),
    }[what]
    path.write_bytes(path.read_bytes())  # the same again: looked at, and found to be complete
    looked_at = 2 if what == "atlas" else 1
    assert study() == (0, 2, looked_at)


def test_a_sidecar_that_is_new_is_another_input(study, tmp_path):
    study()
    (tmp_path / "in" / "sub-01" / "sub-01_task-rest_bold.json").write_text(json.dumps({"StartTime": 3.0}))
    assert study() == (0, 2, 1)  # the nearer one has it too
    run = find_runs(tmp_path / "in")[0]
    run.sidecars[-1].write_text(json.dumps({"RepetitionTime": 2.0, "StartTime": 3.0}))
    assert study()[0] == 1


@pytest.mark.some(2)
@pytest.mark.parametrize("change", ["touched", "changed", "removed", "moved"])
@pytest.mark.parametrize(
    "what", ["timeseries.tsv", "timeseries.json", "coverage_bold.tsv", "qc.tsv", "qc.json"]
)
def test_an_output_that_was_written_to_is_looked_at(study, tmp_path, what, change):
    study()
    (path,) = (tmp_path / "out" / "sub-01" / "func").glob(f"*_{'stat-' * what.startswith('cov')}{what}")
    content = path.read_text()
    changes = {
        "touched": lambda: os.utime(path),
        "changed": lambda: path.write_text(content.replace("a", "e").replace("1", "2")),
        "removed": path.unlink,
        "moved": lambda: (path.rename(path.with_suffix(".x")), path.write_text(content)),
    }
    changes[change]()
    redone = change in ("changed", "removed")
    assert study() == (redone, 2 - redone, 1)
    assert path.read_text() == content


def test_where_times_tell_nothing_there_is_no_stamp(tmp_path):
    (tmp_path / "a").write_text("a")
    assert stamp_of("asked", [tmp_path / "a"]) != stamp_of("more", [tmp_path / "a"]) != ""
    assert stamp_of("asked", [tmp_path / "b"]) == stamp_of("asked", ["https://host/a"]) == ""
    with settings.using(fingerprint="content"):
        assert stamp_of("asked", [tmp_path / "a"]) == ""


def test_without_a_journal_all_is_due_at_once():
    assert Completion(None).is_due and Completion(None).patience is None
