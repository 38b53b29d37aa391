"""Tasks: images that workers do whole; what became of each, as a data frame."""

import os
import pickle
import signal

import numpy as np
import pytest
from images import AFFINE, SHAPE, bold, niimg, save

from sharedmask import Grid, Regions, extract_many
from sharedmask.image.extraction import Extraction
from sharedmask.study import cohort
from sharedmask.study.executors import Engine
from sharedmask.study.tasks import Apart, Task, Whole
from sharedmask.workers.executor import Processes
from sharedmask.workers.sender import Sender

REGIONS = Regions.from_labels(np.arange(210).reshape(SHAPE) % 60, Grid(SHAPE, AFFINE))


def test_a_row_for_each_image(tmp_path):
    good = save(tmp_path / "good.nii", bold())
    with pytest.warns(match="1 of 2 images failed"):
        study = extract_many({"x": good, "y": niimg(bold()[:3])}, REGIONS)
    frame = study.to_dataframe().set_index("image")
    assert frame.loc["x", "state"] == "complete" and "grid" in frame.loc["y", "error"]


@pytest.mark.shares
def test_regions_that_many_images_have_are_read_once_where_tasks_arrive(tmp_path):
    run, shape = save(tmp_path / "run.nii", np.ones((30, 30, 30, 2), np.int16)), (30, 30, 30)
    labels = np.arange(27_000).reshape(shape) % 60
    asked = Extraction.prepared(run, lambda grid: Regions.from_labels(labels, grid), strategy="mean")
    with Sender() as sender:
        handle = [sender.sent(asked.request.regions, 2**20) for _ in range(2)][1]
        tasks = [Task("a", asked), *(Task(key, asked, sent=handle) for key in "bc")]
        packed = [pickle.dumps(task) for task in tasks]
        assert len(packed[1]) < len(packed[0]) / 10
        arrived = [pickle.loads(one) for one in packed]
    first, second, third = (one.asked.request.regions for one in arrived)
    assert second is third and second.digest == first.digest == asked.request.regions.digest
    assert np.array_equal(arrived[0].run(), arrived[2].run())


FAILS = {"a": "raises", "b": "kills", "c": "is large"}


def _extracting(folder, fails=""):
    """As it travels: a worker does some images."""

    def keep(key, signals):
        if key == fails == "b":
            os.kill(os.getpid(), signal.SIGKILL)
        if key == fails == "a":
            raise ValueError("its own")
        return _kept(folder / f"{key} elsewhere", signals)

    asked = {"strategy": "mean", "on_result": keep, "resume": folder / "done"}
    return lambda some, **how: extract_many(some, REGIONS, **asked, **how)


def _kept(path, signals):
    path.write_text(str(signals.sum()))
    return path


@pytest.mark.parametrize(
    ("fails", "here"), [("", "d"), ("a", "d"), ("b", "abcd"), ("c", "cd")], ids=["none", *FAILS.values()]
)
def test_small_images_that_workers_do_whole_end_as_they_would_alone(tmp_path, fails, here):
    """What a worker died of, or says is large, is done here."""
    runs = {key: save(tmp_path / f"{key}.nii", bold(seed=seed)) for seed, key in enumerate("abcd")}
    if fails == "c":
        save(runs["c"], np.zeros((*SHAPE, 2**20 // 210), np.int16))
    (out := tmp_path / "out").mkdir()
    errors, asked = {}, {"strategy": "mean", "resume": out / "done", "n_jobs": 2}
    done = extract_many(
        runs,
        REGIONS,
        on_result=lambda key, signals: _kept(out / f"{key} here", signals),
        on_error=errors.__setitem__,
        apart=Apart.of(lambda key: key != "d", runs, _extracting(out, fails)),
        **asked,
    )
    assert [(key, repr(error)) for key, error in errors.items()] == [("a", "ValueError('its own')")][
        : fails == "a"
    ]
    assert sorted(done.complete) == sorted({*runs} - {*errors})
    assert {f"{key} {'here' if key in here else 'elsewhere'}" for key in done.complete} <= {*os.listdir(out)}
    again = extract_many(runs, REGIONS, on_result=lambda *_: [], **asked)
    assert sorted(again.skipped) == sorted(done.complete)


def test_images_that_no_worker_takes_together_are_each_done_here(tmp_path, monkeypatch):
    """Two at a time, of which each waits for room: not one is lost, and none is collected twice."""
    runs = {key: save(tmp_path / f"{key}.nii", bold(seed=number)) for number, key in enumerate("abcdefg")}
    submit = Processes.submit

    def refusing(self, function, *arguments):
        if function is Whole.run:
            raise RuntimeError("can't start new thread")
        return submit(self, function, *arguments)

    monkeypatch.setattr(Processes, "submit", refusing)
    monkeypatch.setattr(Engine, "most", lambda *_: 1)
    monkeypatch.setattr(cohort, "TOGETHER", (2, 2))
    apart = Apart.of(lambda key: True, runs, _extracting(tmp_path))
    keep = dict[str, np.ndarray]().__setitem__
    asked = {"on_result": keep, "resume": tmp_path / "done", "apart": apart, "n_jobs": 2}
    study = extract_many(runs, REGIONS, strategy="mean", **asked)
    assert sorted(study.complete) == list(runs) and study.errors == {}
