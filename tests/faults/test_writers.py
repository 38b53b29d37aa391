"""Every writer, every call that may fail: the output is absent, old, or whole; the message has its path."""

import collections
import contextlib
import os
import shutil

import numpy as np
import power
import pytest
from faults import ERRORS, every_fault, failing
from images import bold, save

from sharedmask.compute.journal import Failures
from sharedmask.errors import SharedMaskError, SharedMaskWarning
from sharedmask.frames.convert import convert
from sharedmask.storage.registry import publish, reap
from sharedmask.study.tables import write_series, write_table
from sharedmask.system import files

ALL = bool(os.environ.get("SHAREDMASK_SLOW_TESTS"))
# Of whose some 350 and 500 calls that can fail one of each kind does, with each error; of other works all do.
LARGE = () if ALL else ("bids", "network")
VALUES = np.arange(12.0).reshape(4, 3)
WRITES = {name: ERRORS[name] for name in ("write", "pwrite", "pwritev", "fsync", "fdatasync", "ftruncate")}
WRITES |= {name: ERRORS[name] for name in ("link", "rename", "replace", "posix_fallocate", "open", "mmap")}


def frames_to(name):
    def work(out, data):
        convert(data / "run.nii.gz", out / name)

    return work


WRITERS = {
    "table": lambda out, data: write_table(out / "out.tsv", VALUES, ("a", "b", "c")),
    "table.csv": lambda out, data: write_table(out / "out.csv", VALUES, ("a", "b", "c")),
    "series.npz": lambda out, data: write_series(out / "out.npz", {"a": VALUES}),
    "series.h5": lambda out, data: write_series(out / "out.h5", {"a": VALUES}),
    "json": lambda out, data: files.write_json(out / "out.json", {"a": 1}),
    "failure": lambda out, data: Failures(out).add("sub-01", ValueError("x")),
    "frames.h5": frames_to("out.h5"),
    "frames.nii": frames_to("out.nii"),
    "frames.nii.gz": frames_to("out.nii.gz"),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    save(folder / "run.nii.gz", bold())
    return folder


def left_in(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def open_in(folder):
    found = (os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd"))
    return [path for path in found if path.startswith(str(folder))]


@pytest.mark.some(4)
@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("old", [False, True])
def test_what_fails_leaves_the_output_absent_old_or_whole(tmp_path, data, writer, old):
    work, out = WRITERS[writer], tmp_path / "out"
    out.mkdir()
    work(out, data)
    (name,) = left_in(out)

    def begin():
        (out / name).unlink(missing_ok=True)
        if old:
            (out / name).write_bytes(b"old")

    begin()
    faults = list(every_fault(lambda: work(out, data), of="/out/", errors=WRITES))
    assert len(faults) > 3
    for fault in faults:
        begin()
        try:
            with failing(fault):
                work(out, data)
        except (OSError, SharedMaskError, SharedMaskWarning) as error:
            assert fault.error == "EINTR" or "out" in str(error), (fault, error)  # a handler raised it
        found = left_in(out)
        assert set(found) <= {name}, (fault, set(found))
        assert found.get(name) != b"", fault
        work(out, data)  # the next use
        assert set(left_in(out)) == {name}, fault


@pytest.mark.parametrize("store", ["memfd", "shm"])
def test_what_fails_while_memory_is_shared_leaves_nothing(registry_dir, segments_of_this_test, store):
    def work():
        owned, attachment = publish("it", {"it": ((4,), np.dtype("u1"))}, lambda arrays: None, store)
        assert attachment.arrays["it"].tolist() == [0] * 4
        owned.release()

    work()
    before = set(os.listdir("/proc/self/fd"))
    faults = list(every_fault(work, of="^/"))  # not the pipe of Python's tracker
    assert len(faults) > 20
    for fault in faults:
        with contextlib.suppress(OSError, SharedMaskError), failing(fault, must=False):
            work()
        reap()
        left = os.listdir(registry_dir), segments_of_this_test(), set(os.listdir("/proc/self/fd")) - before
        assert not any(left), (fault, left)


def one_of_each_kind(faults):
    kinds = collections.defaultdict(list)
    for fault in faults:
        kinds[fault.name, fault.error].append(fault)
    return [of_one[len(of_one) // 2] for of_one in kinds.values()]


@pytest.mark.long
@pytest.mark.timeout(7200 if ALL else 600)
@pytest.mark.parametrize("work", power.WORKS)
def test_what_fails_in_the_middle_of_a_work_is_taken_up(tmp_path, work):
    """Of the calls on its way, of every kind: what has its name is whole, the next run makes the rest.

    With ``SHAREDMASK_SLOW_TESTS`` each call fails; without it, in the two large works, one of each kind.
    """
    data, out, reference = tmp_path / "data", tmp_path / "out", tmp_path / "reference"
    power.prepare(data)
    power.WORKS[work](data, reference)
    faults = list(every_fault(lambda: power.WORKS[work](data, out), of=str(out)))
    for fault in one_of_each_kind(faults) if work in LARGE else faults:
        shutil.rmtree(out)
        try:
            with failing(fault, must=False):
                power.WORKS[work](data, out)
        except (OSError, SharedMaskError, AssertionError):  # the last: of runs that failed
            pass
        assert not open_in(out), fault
        assert power.faults_of(work, out, reference) == [], fault
        power.WORKS[work](data, out)
        assert power.faults_of(work, out, reference) == [], fault
        assert work == "disk" or power.missing(out, reference) == [], fault
        assert not list(out.rglob("*.tmp")), fault
