"""Completion: what is known as done without opening it, and what is put on the disk together."""

import json
import os
import threading

import pytest
from datasets import atlas, preprocessed

from sharedmask.compute import journal
from sharedmask.compute.journal import Entry, Journal
from sharedmask.image.extraction import Extraction
from sharedmask.study import completion, output
from sharedmask.study.analysis import Outputs
from sharedmask.study.atlases import find_atlas
from sharedmask.study.bids import Run, find_runs
from sharedmask.study.completion import Completion, stamp_of
from sharedmask.study.dataset import analyse
from sharedmask.study.output import extract_to
from sharedmask.system import files, settings
from sharedmask.system.together import Together


@pytest.fixture
def prepared(monkeypatch):
    """The images that were prepared."""
    found, prepare = [], Extraction.prepared.__func__

    def counted(cls, source, *args, **options):
        found.append(source)
        return prepare(cls, source, *args, **options)

    monkeypatch.setattr(Extraction, "prepared", classmethod(counted))
    return found


@pytest.fixture
def study(tmp_path, prepared):
    """Runs a study; what became of it, and how many images were prepared."""
    root, toy = preprocessed(tmp_path / "in"), find_atlas(atlas(tmp_path / "atlases"))

    def run(**options):
        prepared.clear()
        done = analyse(
            root, tmp_path / "out", [toy], Outputs(reports=False), n_jobs=1, shard="1/1", **options
        )
        return len(done.complete), len(done.skipped), len(prepared)

    return run


@pytest.fixture
def folder(tmp_path, prepared):
    """The same into a folder of tables."""
    images = [str(run.bold) for run in find_runs(preprocessed(tmp_path / "in"))]
    toy = str(atlas(tmp_path / "atlases"))

    def run():
        prepared.clear()
        done = extract_to(tmp_path / "out", images, toy, n_jobs=1)
        return len(done.complete), len(done.skipped), len(prepared)

    return run


@pytest.fixture(params=["study", "folder"])
def either(request):
    return request.getfixturevalue(request.param)


def test_what_was_complete_is_known_without_opening_it(study):
    assert study() == (2, 0, 2)
    assert study() == (0, 2, 0)
    assert study(standardize="psc") == (2, 0, 2)


def test_what_was_written_is_not_read_for_the_journal(study, tmp_path, monkeypatch):
    monkeypatch.setattr(journal, "_sum", lambda path: pytest.fail(f"{path} is read again"))
    study()
    line = json.loads((tmp_path / "out" / ".sharedmask" / "complete.jsonl").read_text().splitlines()[0])
    monkeypatch.undo()
    files = [str(tmp_path / "out" / ".sharedmask" / path) for path in line["outputs"]]
    assert line["sums"] == list(map(journal._sum, files)) and len(files) == 5


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


@pytest.mark.parametrize(
    ("name", "looked_at"),
    [
        ("sub-01/func/notes.txt", 0),  # nothing that tells of runs
        ("sub-03/anat/sub-03_T1w.json", 0),  # another subject, which the root has in its list
        ("sub-01/func/sub-01_task-other_bold.json", 0),
        ("task-rest_bold.json", 2),
        ("sub-01/func/sub-01_task-rest_desc-preproc_bold.json", 1),
    ],
)
def test_names_that_are_new_are_looked_at_if_they_tell_of_a_run(either, tmp_path, name, looked_at):
    either()
    path = tmp_path / "in" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{}")
    assert either() == (0, 2, looked_at)


def test_what_tells_of_a_run_is_looked_for_once(either, monkeypatch):
    either()
    with monkeypatch.context() as patch:
        patch.setattr(Run, "inputs", property(lambda run: pytest.fail(f"{run.key} is looked for again")))
        patch.setattr(output, "sidecars_and_folders", lambda path: pytest.fail(f"{path} is looked for again"))
        assert either() == (0, 2, 0)


def test_a_root_that_is_nearer_is_another_input(either, tmp_path):
    either()
    (tmp_path / "in" / "sub-01" / "dataset_description.json").write_text('{"Name": "of one"}')
    (tmp_path / "in" / "sub-01" / "sub-01_task-rest_bold.json").write_text("{}")
    assert either() == (0, 2, 1)


def test_an_input_that_comes_where_a_link_led_is_another(study, tmp_path):
    run = find_runs(tmp_path / "in")[0]
    (reference := run.reference).unlink()
    reference.symlink_to(tmp_path / "there.nii.gz")
    assert study() == (2, 0, 2)
    assert study() == (0, 2, 0)
    (tmp_path / "there.nii.gz").write_bytes(run.bold.read_bytes())
    assert study() == (0, 2, 1)


def test_a_journal_that_says_not_where_inputs_lay_is_read(either, tmp_path):
    either()
    path = tmp_path / "out" / ".sharedmask" / "complete.jsonl"
    lines = map(json.loads, path.read_text().splitlines())
    older = [{name: one for name, one in line.items() if name not in ("inputs", "folders")} for line in lines]
    path.write_text("".join(f"{json.dumps(line)}\n" for line in older))
    assert either() == (0, 2, 0)


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


def test_without_a_journal_all_is_told_at_once():
    done = Completion(None)
    assert done.patience is None and done.record() == []
    done.add("a", Entry("a", ""), ())
    assert done.record() == [("a", 0.0, None)] and done.patience is None


@pytest.fixture
def slow_disk(monkeypatch):
    """A disk that answers when it is told to."""
    answer, sync = threading.Event(), files.Draft.sync
    monkeypatch.setattr(files.Draft, "sync", lambda draft: (answer.wait(60), sync(draft)))
    yield answer
    answer.set()


def added(done, folder, name):
    with Together() as written:
        files.write_text(folder / name, [name])
    done.add(name, Entry(name, ""), written)


def test_while_a_disk_is_waited_for_others_are_worked_on(tmp_path, monkeypatch, slow_disk):
    monkeypatch.setattr(completion, "_SECONDS", 0)
    done = Completion(Journal(tmp_path / "done.jsonl"))
    added(done, tmp_path, "a")
    assert done.record() == [] and done.patience is not None and not (tmp_path / "a").exists()
    slow_disk.set()
    ended = []
    while not ended:
        ended = done.record()
    assert [key for key, *_ in ended] == ["a"] and (tmp_path / "a").read_text() == "a"
    assert Journal(tmp_path / "done.jsonl").find("a").is_there


def test_what_is_last_is_waited_for_and_none_is_recorded_before_its_files_are_there(
    tmp_path, monkeypatch, slow_disk
):
    monkeypatch.setattr(completion, "_SECONDS", 0)
    done = Completion(Journal(tmp_path / "done.jsonl"))
    added(done, tmp_path, "a")
    assert done.record() == []
    added(done, tmp_path, "b")
    assert not Journal(tmp_path / "done.jsonl").may_have("a")
    slow_disk.set()
    assert [key for key, *_ in done.record(is_last=True)] == ["a", "b"] and done.record(is_last=True) == []
    assert {entry.key for entry in Journal(tmp_path / "done.jsonl").entries} == {"a", "b"}


def test_a_file_that_fails_is_its_own_images(tmp_path, slow_disk):
    done = Completion(Journal(tmp_path / "done.jsonl"))
    for name in "ab":
        (tmp_path / name).mkdir()
        added(done, tmp_path / name, name)
    (tmp_path / "a").rmdir()
    slow_disk.set()
    (_, _, error), (_, _, none) = done.record(is_last=True)
    assert error.filename == str(tmp_path / "a" / "a") and none is None
    assert [entry.key for entry in Journal(tmp_path / "done.jsonl").entries] == ["b"]
