"""Cohorts: every image's signals or its error, whatever dies; nothing twice, nothing kept."""

import os
import shutil
import signal
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from images import SHAPE, bold, niimg, random_masks, same_bits, save, truth

from sharedmask import SharedImage, batch_process, extract
from sharedmask.errors import (
    DamagedImageError,
    MissingFileError,
    ParameterError,
    SharedMaskWarning,
    SourceChangedError,
    WorkerError,
)
from sharedmask.image.extraction import Extraction
from sharedmask.study import cohort, executors
from sharedmask.study.cohort import Task, extract_many
from sharedmask.study.tasks import Study


@pytest.fixture
def runs(tmp_path):
    return [str(save(tmp_path / f"sub-{i}_bold.nii.gz", bold(seed=i))) for i in range(5)]


@pytest.fixture
def calls(monkeypatch):
    """Sources that were extracted in this process."""
    made = []
    real = Extraction.run

    def counted(asked, *args):
        made.append(asked.source.file)
        return real(asked, *args)

    monkeypatch.setattr(Extraction, "run", counted)
    return made


def own(path):
    """Something that a callback can know a result by."""
    return os.path.basename(path)


@pytest.mark.parametrize("n_jobs", [None, 2, 3])
def test_each_image_as_alone(runs, masks, n_jobs):
    study = extract_many(runs, masks, n_jobs=n_jobs)
    assert set(study.results) == set(runs) == set(study.complete)
    for path, signals in study.results.items():
        for name, mask in masks.items():
            same_bits(signals[name], truth(path)[mask].T.astype("float32"))


def test_sources_by_key_pattern_and_number(runs, masks, tmp_path):
    images = [niimg(truth(path)) for path in runs[:2]]
    assert list(extract_many({"x": runs[0]}, masks).results) == ["x"]
    assert sorted(extract_many(f"{tmp_path}/*_bold.nii.gz", masks).results) == sorted(runs)
    assert sorted(extract_many(images, masks).results) == [0, 1]
    with pytest.raises(MissingFileError, match=r"no file matches"):
        extract_many(f"{tmp_path}/*_none.nii.gz", masks)


def of_an_open_image(path):
    with SharedImage(path) as image:
        return image.mask(np.ones(SHAPE, bool))


def a_lesion(path):
    (name,) = batch_process(path, lambda lesion: 1).results
    return np.full(1, name == "b[1]old")


NAMED = {
    "extract_many": lambda path: extract_many(path, np.ones(SHAPE, bool)).results[path],
    "extract_many, list": lambda path: extract_many([path], np.ones(SHAPE, bool)).results[path],
    "extract": lambda path: extract(path, np.ones(SHAPE, bool)),
    "masks": lambda path: extract(niimg(bold()), path)[0],
    "atlas": lambda path: extract(niimg(bold()), path, strategy="mean"),
    "SharedImage": of_an_open_image,
    "lesions": a_lesion,
}


@pytest.mark.parametrize("entry", NAMED)
@pytest.mark.parametrize("home", [False, True])
def test_what_exists_is_no_pattern(tmp_path, monkeypatch, entry, home):
    folder = tmp_path / "st[1]udy?"
    (tmp_path / "st1udyX").mkdir()
    folder.mkdir()
    volumes = (bold() > 0).astype("i2") if entry in ("masks", "atlas") else bold()
    save(folder / "b[1]old.nii", volumes[..., 0] if entry == "atlas" else volumes)
    save(tmp_path / "st1udyX" / "b1old.nii", bold() * 0)
    monkeypatch.setenv("HOME", str(tmp_path))
    path = "~/st[1]udy?/b[1]old.nii" if home else str(folder / "b[1]old.nii")
    assert np.asarray(NAMED[entry](path)).any()


@pytest.mark.parametrize("path", ["~/sub-1_bold.nii", "sub-1_bold.nii"])
def test_resume_knows_paths_however_they_are_written(tmp_path, monkeypatch, masks, path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "sub-1_bold.nii", bold())
    again = {"on_result": lambda *_: None, "resume": "~/done.jsonl" if "~" in path else "done.jsonl"}
    assert extract_many([path], masks, **again).complete == [path]
    other = str(tmp_path / "sub-1_bold.nii")
    for written in (path, other):
        assert extract_many([written], masks, **again).skipped == [written]


@pytest.mark.parametrize("form", ["arrays", "lists of tables", "paths"])
def test_changed_confounds_are_another_result(tmp_path, masks, form):
    path = str(save(tmp_path / "sub-1_bold.nii", bold()))
    again = {"on_result": lambda *_: None, "resume": tmp_path / "done.jsonl"}
    seen = None
    for seed in (1, 1, 2):
        table = np.random.default_rng(seed).normal(size=(12, 2))
        np.savetxt(tmp_path / "c.txt", table)
        confounds = {"arrays": table, "lists of tables": [table, table**2], "paths": str(tmp_path / "c.txt")}
        study = extract_many([path], masks, confounds=[confounds[form]], **again)
        assert study.errors == {}
        assert len(study.skipped) == (seen == seed)
        seen = seed


def test_nothing_is_kept_where_there_is_a_callback(runs, masks):
    got = {}
    study = extract_many(runs, masks, on_result=lambda key, signals: got.update({key: signals["a"].shape}))
    assert study.results == {} and set(got) == set(runs) == set(study.complete)


def test_masks_may_be_each_images_own(runs):
    own_masks = dict(zip(runs, random_masks(5, seed=3), strict=True))
    study = extract_many(runs, lambda key: own_masks[key])
    for path, mask in own_masks.items():
        same_bits(study.results[path], truth(path)[mask].T.astype("float32"))


@pytest.mark.parametrize("as_dict", [False, True])
def test_confounds_are_each_images_own(runs, masks, as_dict):
    tables = [np.random.default_rng(i).normal(size=(12, 2)) for i in range(5)]
    given = dict(zip(runs, tables, strict=True)) if as_dict else tables
    study = extract_many(runs, masks, strategy="mean", confounds=given, detrend=True)
    for path, table in zip(runs, tables, strict=True):
        alone = extract(path, masks, strategy="mean", confounds=table, detrend=True)
        np.testing.assert_array_equal(study.results[path], alone)


def test_wrong_numbers_of_confounds_are_told(runs, masks):
    with pytest.raises(ParameterError, match=r"confounds: one per image is needed, 5 in all, not 1 of them"):
        extract_many(runs, masks, confounds=[np.zeros((12, 1))])
    with pytest.raises(ParameterError, match=r"sample_mask: none for .*sub-1_bold.* and 3 more$"):
        extract_many(runs, masks, sample_mask={runs[0]: [1, 2]})
    with pytest.raises(ParameterError, match=r"confounds: one per image is needed, .* not 'motion.tsv'"):
        extract_many(runs, masks, confounds="motion.tsv")


@pytest.mark.parametrize("kind", [str, Path, nib.load], ids=["str", "Path", "image"])
def test_one_run_needs_no_list(runs, masks, kind):
    study = extract_many(kind(runs[0]), masks, strategy="mean")
    (key,) = study.complete
    assert key == (0 if kind is nib.load else runs[0])
    np.testing.assert_array_equal(study.results[key], extract(runs[0], masks, strategy="mean"))


# --- failures ------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_failures_are_their_images_own(runs, masks, tmp_path, n_jobs):
    content = (tmp_path / "sub-1_bold.nii.gz").read_bytes()
    (tmp_path / "sub-1_bold.nii.gz").write_bytes(content[: len(content) // 2])
    missing, told = str(tmp_path / "none.nii.gz"), {}
    study = extract_many([*runs, missing], masks, n_jobs=n_jobs, on_error=lambda *error: told.update([error]))
    assert set(study.errors) == set(told) == {runs[1], missing}
    assert isinstance(told[runs[1]], DamagedImageError) and runs[1] in str(told[runs[1]])
    assert isinstance(told[missing], MissingFileError)
    assert set(study.complete) == set(runs) - {runs[1]}


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({"standardise": True}, TypeError, "there is no parameter 'standardise'"),
        ({"strategy": "men"}, ParameterError, "strategy='men' is none of mean, median"),
        ({"low_pass": 0.01, "high_pass": 0.1}, ParameterError, "low_pass=0.01 must be above high_pass=0.1"),
        ({"low_pass": 0.1, "t_r": -2.0}, ParameterError, "t_r=-2.0 must be above 0"),
        ({"standardize": "zscore"}, ParameterError, "standardize='zscore' is none of"),
        ({"nan_policy": "skip"}, ParameterError, "nan_policy='skip' is none of"),
    ],
)
def test_what_no_image_can_take_is_refused_before_the_first(runs, masks, parameters, error, message):
    with pytest.raises(error, match=message):
        extract_many(runs, masks, **parameters)


@pytest.mark.parametrize(("limit", "first"), [(None, ["work", "work", "keep"]), ("tight", ["work", "keep"])])
def test_the_next_is_worked_on_while_one_is_kept(runs, masks, limit, first, monkeypatch):
    """As far as memory holds both."""
    did, at_work = [], ThreadPoolExecutor(1)
    submit = at_work.submit
    at_work.submit = lambda *a, **k: did.append("work") or submit(*a, **k)
    if limit:
        ours = cohort.Engine
        monkeypatch.setattr(cohort, "engine", lambda *_: nullcontext(ours(at_work, 1, local=True)))
        monkeypatch.setattr(cohort.Extraction, "needed", lambda *_: 2**62)
    with at_work:
        extract_many(runs[:3], masks, executor=at_work, n_jobs=1, on_result=lambda *_: did.append("keep"))
    assert did[: len(first)] == first and did.count("keep") == did.count("work") == 3


@pytest.mark.parametrize(
    ("parameters", "cleans"),
    [({}, False), ({"detrend": False, "low_pass": None}, False), ({"detrend": True}, True)],
)
def test_what_cleans_is_imported_by_workers_that_clean(runs, masks, parameters, cleans, monkeypatch):
    """Which takes as long as two runs; the command line says of each parameter what it is."""
    told, engine = [], cohort.engine
    monkeypatch.setattr(cohort, "engine", lambda *a: told.append(a[2]) or engine(*a))
    extract_many(runs, masks, n_jobs=1, **parameters)
    assert ["nilearn.signal" in preload for preload in told] == [cleans]


def test_a_study_says_what_became_of_it_not_the_signals(runs, masks):
    said = repr(extract_many(runs, masks, strategy="mean"))
    assert "results" not in said
    assert said.count(".nii.gz") == len(runs)


def test_failures_nobody_takes_are_warned_of(runs, masks, tmp_path):
    with pytest.warns(SharedMaskWarning, match=r"1 of 6 images failed, the first .*none\.nii"):
        study = extract_many([*runs, str(tmp_path / "none.nii")], masks)
    assert len(study.results) == 5


def test_a_callback_that_raises_fails_its_image_only(runs, masks):
    def take(key, signals):
        if key == runs[2]:
            raise RuntimeError("no space for sub-2")

    errors = {}
    study = extract_many(runs, masks, on_result=take, on_error=lambda *error: errors.update([error]))
    assert [str(error) for error in errors.values()] == ["no space for sub-2"]
    assert set(study.complete) == set(runs) - {runs[2]}


class Flaky(ThreadPoolExecutor):
    """Fails each task ``times`` before it works."""

    def __init__(self, error, times):
        super().__init__(1)
        self.error, self.times, self.tried = error, times, {}

    def submit(self, function, task):
        self.tried[task.key] = self.tried.get(task.key, 0) + 1
        if self.tried[task.key] <= self.times:
            future = Future()
            future.set_exception(self.error)
            return future
        return super().submit(function, task)


@pytest.mark.parametrize("error", [WorkerError("killed"), TimeoutError(), OSError(5, "input/output error")])
def test_what_may_pass_is_tried_again(runs, masks, error):
    with Flaky(error, times=2) as executor:
        study = extract_many(runs, masks, executor=executor, retries=2)
    assert set(study.complete) == set(runs) and set(executor.tried.values()) == {3}


@pytest.mark.parametrize("error", [ParameterError("no"), DamagedImageError("cut"), ValueError("x")])
def test_what_will_not_pass_is_not(runs, masks, error):
    with Flaky(error, times=9) as executor:
        study = extract_many(runs, masks, executor=executor, retries=3, on_error=lambda *_: None)
    assert set(executor.tried.values()) == {1} and set(study.errors) == set(runs)


def test_tries_end(runs, masks):
    with Flaky(WorkerError("killed"), times=9) as executor:
        study = extract_many(runs[:1], masks, executor=executor, retries=1, on_error=lambda *_: None)
    assert executor.tried == {runs[0]: 2} and isinstance(study.errors[runs[0]], WorkerError)


@pytest.mark.shares
def test_a_killed_worker_costs_one_try(runs, masks, monkeypatch, tmp_path):
    flag = tmp_path / "killed"

    def die_once(task):
        if task.key.endswith("sub-3_bold.nii.gz") and not flag.exists():
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return "", "", task.run()

    monkeypatch.setattr(cohort, "work", die_once)
    study = extract_many(runs, masks, n_jobs=2)
    assert flag.exists() and set(study.complete) == set(runs)
    same_bits(study.results[runs[3]]["a"], truth(runs[3])[masks["a"]].T.astype("float32"))


@pytest.mark.shares
def test_of_small_images_that_go_to_a_worker_together_each_has_its_own_end(runs, masks, monkeypatch):
    at_once = []

    def work(task):
        if task.key == runs[1]:
            os.kill(os.getpid(), signal.SIGKILL)
        if task.key == runs[2]:
            raise ValueError("its own")
        return "", "", task.run()

    def take(self):
        while len(at_once) == 0 and len(self._waiting) < len(runs):
            time.sleep(0.01)
        at_once.append(len(found := real(self)))
        return found

    real = executors.Processes._take
    monkeypatch.setattr(executors.Processes, "_take", take)
    monkeypatch.setattr(cohort, "work", work)
    errors = {}
    study = extract_many(runs, masks, n_jobs=2, retries=0, on_error=lambda *error: errors.update([error]))
    assert max(at_once) > 1 and set(study.complete) == {runs[0], *runs[3:]}
    assert {key: type(error) for key, error in errors.items()} == {runs[1]: WorkerError, runs[2]: ValueError}


@pytest.mark.parametrize("times", [1, 2])
def test_an_image_that_changes_is_tried_once_more_then_named(runs, masks, monkeypatch, tmp_path, times):
    read, written = Extraction.run, []

    def written_meanwhile(asked, *args):
        if len(written) < times:
            written.append(save(runs[0], bold(seed=9 + len(written)), slope=2.0))
        return read(asked, *args)

    monkeypatch.setattr(Extraction, "run", written_meanwhile)
    resume = tmp_path / "done.jsonl"
    results = {}
    study = extract_many(
        runs[:1], masks, executor=ThreadPoolExecutor(1), resume=resume,
        on_result=results.__setitem__, on_error=lambda *_: None,
    )  # fmt: skip
    if times == 1:
        same_bits(results[runs[0]]["a"], truth(runs[0])[masks["a"]].T)
        assert not study.errors
    else:
        assert isinstance(study.errors[runs[0]], SourceChangedError) and runs[0] in str(study.errors[runs[0]])
        assert not results and not resume.exists()


# --- resuming ------------------------------------------------------------------------------------


def test_a_second_pass_does_what_is_left(runs, masks, tmp_path, calls):
    taken = []

    def take(key, signals):
        if key == runs[1] and key not in taken:
            taken.append(key)
            raise RuntimeError("interrupted")

    again = {"on_result": take, "on_error": lambda *_: None, "resume": tmp_path / "done.jsonl"}
    first = extract_many(runs, masks, **again)
    assert len(first.complete) == 4
    calls.clear()
    second = extract_many(runs, masks, **again)
    assert calls == [runs[1]] and second.complete == [runs[1]] and len(second.skipped) == 4
    third = extract_many(runs, masks, **again)
    assert third == Study(skipped=runs)


def test_an_image_that_changed_is_done_again(runs, masks, tmp_path, calls):
    again = {"on_result": lambda *_: None, "resume": tmp_path / "done.jsonl"}
    extract_many(runs, masks, **again)
    save(runs[2], bold(seed=77))
    calls.clear()
    assert extract_many(runs, masks, **again).complete == [runs[2]] == calls


@pytest.mark.parametrize(
    "how", ["from elsewhere", "images moved", "both moved", "images copied", "written again"]
)
def test_images_are_known_wherever_they_lie(tmp_path, masks, monkeypatch, calls, how):
    """By where one stands, by where the data set or the outputs lie, by when a file was written."""
    study, out = tmp_path / "study", tmp_path / "out"
    study.mkdir()
    names = [save(study / f"sub-{i}_bold.nii.gz", bold(seed=i)).name for i in range(3)]
    monkeypatch.chdir(study)
    extract_many(names, masks, on_result=lambda *_: None, resume=out / "done.jsonl")
    calls.clear()
    if how == "from elsewhere":
        monkeypatch.chdir(tmp_path)
        names = [f"study/{name}" for name in names]
    elif how == "images moved":
        study.rename(tmp_path / "moved")
        monkeypatch.chdir(tmp_path / "moved")
    elif how == "both moved":
        (tmp_path / "far").mkdir()
        for folder in (study, out):
            folder.rename(tmp_path / "far" / folder.name)
        out = tmp_path / "far" / "out"
        monkeypatch.chdir(tmp_path / "far" / "study")
    elif how == "images copied":
        shutil.copytree(study, tmp_path / "copy")
        shutil.rmtree(study)
        monkeypatch.chdir(tmp_path / "copy")
    else:
        for name in names:
            content = (study / name).read_bytes()
            (study / name).unlink()
            (study / name).write_bytes(content)
    again = extract_many(names, masks, on_result=lambda *_: None, resume=out / "done.jsonl")
    assert again.skipped == names and calls == []


def test_a_copy_of_an_image_is_an_image_of_its_own(runs, masks, tmp_path):
    again = {"on_result": lambda *_: None, "resume": tmp_path / "done.jsonl"}
    extract_many(runs, masks, **again)
    copy = shutil.copy(runs[0], tmp_path / "sub-9_bold.nii.gz")
    assert extract_many([str(copy)], masks, **again).complete == [str(copy)]


def test_moved_and_changed_is_done_again(runs, masks, tmp_path):
    again = {"on_result": lambda *_: None, "resume": tmp_path / "done.jsonl"}
    extract_many(runs[:1], masks, **again)
    os.remove(runs[0])
    other = str(save(tmp_path / "new_bold.nii.gz", bold(seed=99)))
    assert extract_many([other], masks, **again).complete == [other]


@pytest.mark.filterwarnings("ignore:.* has two repetition times:sharedmask.errors.SharedMaskWarning")
def test_a_changed_sidecar_is_another_result(tmp_path, masks):
    path = save(tmp_path / "sub-1_bold.nii.gz", bold((*SHAPE, 40)))
    again = {"on_result": lambda *_: None, "resume": tmp_path / "done.jsonl", "low_pass": 0.1}
    for t_r in (2.0, 1.5):
        (tmp_path / "sub-1_bold.json").write_text(f'{{"RepetitionTime": {t_r}}}')
        assert len(extract_many([str(path)], masks, **again).complete) == 1
    assert len(extract_many([str(path)], masks, **again).skipped) == 1


def test_what_else_outputs_depend_on_may_be_each_images_own(runs, masks, tmp_path):
    again = {"on_result": lambda *_: None, "resume": tmp_path / "done.jsonl"}
    extract_many(runs, masks, **again, variant=lambda key: "first")
    changed = extract_many(runs, masks, **again, variant=lambda key: "second" if key == runs[1] else "first")
    assert changed.complete == [runs[1]]


CHANGES = {
    "strategy": {"strategy": "median"},
    "detrend": {"detrend": True},
    "dtype": {"dtype": "float64"},
    "confounds": {"confounds": [np.ones((12, 1)) * np.arange(12)[:, None]] * 5},
    "sample_mask": {"sample_mask": [[0, 1, 2]] * 5},
}


@pytest.mark.parametrize("change", CHANGES)
def test_other_parameters_are_other_results(runs, masks, tmp_path, change):
    again = {"on_result": lambda *_: None, "resume": tmp_path / "done.jsonl"}
    extract_many(runs, masks, **again)
    assert len(extract_many(runs, masks, **again, **CHANGES[change]).complete) == 5


def test_other_masks_are_other_results(runs, masks, tmp_path):
    again = {"on_result": lambda *_: None, "resume": tmp_path / "done.jsonl"}
    extract_many(runs, masks, **again)
    masks["a"] = ~masks["a"]
    assert len(extract_many(runs, masks, **again).complete) == 5


def test_confounds_are_compared_by_content(runs, masks, tmp_path):
    table = tmp_path / "confounds.tsv"
    again = {"on_result": lambda *_: None, "resume": tmp_path / "done.jsonl", "confounds": [str(table)] * 5}
    table.write_text("x\n" + "\n".join(map(str, range(12))))
    extract_many(runs, masks, **again)
    assert len(extract_many(runs, masks, **again).skipped) == 5
    table.write_text("x\n" + "\n".join(map(str, reversed(range(12)))))
    assert len(extract_many(runs, masks, **again).complete) == 5


def test_how_it_is_run_does_not_matter(runs, masks, tmp_path):
    again = {"on_result": lambda *_: None, "resume": tmp_path / "done.jsonl"}
    extract_many(runs, masks, **again)
    assert len(extract_many(runs, masks, **again, n_jobs=2, memory_limit="1G").skipped) == 5


def test_an_output_that_is_gone_is_made_again(runs, masks, tmp_path):
    def take(key, signals):
        path = tmp_path / f"{own(key)}.npy"
        np.save(path, signals["a"])
        return path

    again = {"on_result": take, "resume": tmp_path / "done.jsonl"}
    extract_many(runs, masks, **again)
    (tmp_path / f"{own(runs[3])}.npy").unlink()
    assert extract_many(runs, masks, **again).complete == [runs[3]]


def test_resuming_needs_somebody_who_kept_the_results(runs, masks, tmp_path):
    with pytest.raises(ParameterError, match=r"give on_result"):
        extract_many(runs, masks, resume=tmp_path / "done.jsonl")
    with pytest.raises(ParameterError, match="give resume"):
        extract_many(runs, masks, overwrite=True)


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shards_are_all_of_it_once(runs, masks, count):
    parts = [extract_many(runs, masks, shard=f"{i}/{count}").complete for i in range(1, count + 1)]
    assert sorted(path for part in parts for path in part) == sorted(runs)


@pytest.mark.parametrize("shard", ["0/3", "4/3", "3", "a/b", "1/0", "-1/2", (1, 2), 1])
def test_shards_that_are_none(runs, masks, shard):
    with pytest.raises(ParameterError, match=r"write 3/16"):
        extract_many(runs, masks, shard=shard)


# --- memory --------------------------------------------------------------------------------------


def test_images_at_work_fit_the_limit_together(runs, masks, monkeypatch):
    """Each is said to need 40 % of the limit: two may run, never three."""
    at_work, most, lock, together = set(), [], threading.Lock(), threading.Event()

    def watched(task):
        with lock:
            at_work.add(task.key)
            most.append(len(at_work))
        together.wait(0.3)  # for a third, which must not come
        result = "", "", Task.run(task)
        with lock:
            at_work.discard(task.key)
        return result

    monkeypatch.setattr(cohort, "work", watched)
    monkeypatch.setattr(Extraction, "needed", lambda *_: 40 * 2**20)
    monkeypatch.setattr(executors.pool, "can_start_processes", lambda: False)  # threads, which can be watched
    extract_many(runs, masks, memory_limit="100M", n_jobs=5)
    assert max(most) == 2


def test_an_image_too_large_is_refused_by_name(runs, masks):
    errors = {}
    extract_many(runs[:2], masks, memory_limit=1000, on_error=lambda *error: errors.update([error]))
    assert set(errors) == set(runs[:2])
    assert all("may be used (memory_limit=1000" in str(error) for error in errors.values())


def test_progress_counts_images(runs, masks, tmp_path):
    told = []
    extract_many(
        [*runs, str(tmp_path / "none.nii")],
        masks,
        progress=lambda done, total: told.append((done, total)),
        on_error=lambda *_: None,
    )
    assert told == [(i, 6) for i in range(1, 7)]


@pytest.mark.parametrize("threads, at_once", [({"tcp://a": 60, "tcp://b": 40}, 200), ({"tcp://a": 2}, 64)])
def test_a_cluster_has_two_images_for_each_of_its_threads(threads, at_once):
    with ThreadPoolExecutor(1) as given:
        given._client = SimpleNamespace(nthreads=lambda: threads)
        with executors.engine(given, None, False) as engine:
            assert engine.at_once == at_once


@pytest.mark.parametrize("broken", [(), (1, 3)])
def test_results_and_errors_are_in_the_order_of_the_images(runs, masks, broken, monkeypatch):
    """Whoever ends first: here the last that was begun."""

    def last_first(futures, *_, **__):
        futures[-1].exception()
        return SimpleNamespace(done={futures[-1]})

    for number in broken:
        path = Path(runs[number])
        path.write_bytes(path.read_bytes()[:-30])
    monkeypatch.setattr(cohort, "wait", last_first)
    with ThreadPoolExecutor(5) as executor:
        study = extract_many(runs, masks, executor=executor, on_error=lambda *_: None)
        kept = extract_many(runs, masks, executor=executor, on_error=lambda *_: None, strategy="mean")
    bad = [runs[number] for number in broken]
    good = [path for path in runs if path not in bad]
    assert study.complete != good and sorted(study.complete) == sorted(good)
    assert (list(study.results), list(study.errors)) == (list(kept.results), bad) == (good, bad)


@pytest.mark.parametrize("retries", [-1, 1.5, "2", None])
def test_what_is_no_number_of_retries_is_refused(retries, runs, masks):
    with pytest.raises(ParameterError, match="retries="):
        extract_many(runs, masks, retries=retries)
