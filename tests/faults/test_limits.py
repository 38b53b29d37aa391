"""Where little is allowed: no process, no descriptor, no Python to start, no working directory."""

import contextlib
import multiprocessing.spawn
import os
import tempfile
from multiprocessing import resource_tracker
from pathlib import Path

import numpy as np
import pytest
from children import python
from images import bold, random_masks, save

from sharedmask import FrameDataset, SharedImage, batch_process, extract_many
from sharedmask.workers import pool

PYTHONS = [None, "/nonexistent/python", "/bin/false"]


@pytest.fixture(params=PYTHONS, ids=str)
def embedded(request, monkeypatch):
    """Python in another program: nothing to start a process with."""
    monkeypatch.setattr(multiprocessing.spawn, "_python_exe", request.param)
    monkeypatch.setattr(pool, "_pools", {})
    yield request.param
    for one in pool._pools.values():
        one.end()


def means_of_frames(path, n_jobs):
    with FrameDataset(path) as dataset:
        return dataset.map(np.mean, n_jobs=n_jobs)


CALLS = {
    "signals": lambda image, masks, jobs: image.mask_parallel(masks, n_jobs=jobs, prefer="processes"),
    "cleaned": lambda image, masks, jobs: image.mask_parallel(
        masks, n_jobs=jobs, detrend=True, prefer="processes"
    ),
    "map": lambda image, masks, jobs: image.map(lambda x: x.sum(), masks, n_jobs=jobs),
    "frames": lambda image, masks, jobs: means_of_frames(image.path, jobs),
    "many": lambda image, masks, jobs: extract_many({"a": image.path}, masks, n_jobs=jobs).results["a"],
    "batch": lambda image, masks, jobs: list(batch_process({1: -1, 2: 2}, abs, n_jobs=jobs).results.values()),
}


@pytest.mark.some(6)
@pytest.mark.parametrize("call", CALLS)
def test_where_no_process_can_be_started_threads_give_the_answer(call, embedded, path, caplog):
    masks = random_masks(3)
    with SharedImage(path) as image:
        image.path = str(path)
        found = CALLS[call](image, masks, 2)
        assert "threads of this process do the work" in caplog.text
        assert repr(embedded or "") in caplog.text
        expected = CALLS[call](image, masks, 1)
    assert all(np.array_equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("how", ["cannot start", "dies", "is told too late"])
def test_a_segment_is_made_without_the_tracker_and_leaves_no_name(
    how, path, monkeypatch, segments_of_this_test
):
    def refuse(*_):
        raise BlockingIOError(11, "Resource temporarily unavailable")

    def broken(*_):
        raise BrokenPipeError(32, "Broken pipe")

    if how == "cannot start":
        monkeypatch.setattr(resource_tracker, "ensure_running", refuse)
    else:
        monkeypatch.setattr(resource_tracker, "register", broken)
        monkeypatch.setattr("multiprocessing.shared_memory.register", broken, raising=False)
    if how == "dies":
        monkeypatch.setattr(resource_tracker, "unregister", broken)
    with SharedImage(path, store="shm") as image:
        assert image.mask(random_masks(1)[0]).size
        assert len(segments_of_this_test()) == 1
    assert segments_of_this_test() == set()


NO_DESCRIPTORS = """
import os, resource, sys
import numpy as np
from sharedmask import SharedImage
from sharedmask.errors import SharedMaskError
from sharedmask.storage import registry

path, masks, store, prefer = sys.argv[1], list(np.load(sys.argv[2])), *sys.argv[3:]
with SharedImage(path, store=store) as image:
    image.mask_parallel(masks, n_jobs=2, prefer=prefer)  # what is imported later would need them too
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
from sharedmask.workers import pool
pool.shutdown()
held = []
try:
    while True:
        held.append(os.open("/dev/null", os.O_RDONLY))
except OSError:
    pass
said = []
for room in range(16):
    try:
        with SharedImage(path, store=store) as image:
            image.mask_parallel(masks, n_jobs=2, prefer=prefer)
    except OSError as error:
        said.append(f"{type(error).__name__}: {error}")
    os.close(held.pop())
registry.reap()
print(all("open" in one and "files" in one for one in said), len(said) < 16, os.listdir(registry.directory()))
"""


@pytest.mark.some(1)
@pytest.mark.parametrize("prefer", ["threads", "processes"])
@pytest.mark.parametrize("store", ["shm", "memfd"])
def test_without_descriptors_the_error_says_so_and_nothing_stays(store, prefer, path, tmp_path):
    np.save(tmp_path / "masks.npy", np.array(random_masks(3)))
    done = python(NO_DESCRIPTORS, path, tmp_path / "masks.npy", store, prefer)
    assert done.stdout == "True True []\n", done.stderr


def test_a_folder_that_is_gone_is_no_folder_of_workers(path, tmp_path):
    script = """
    import os, sys, tempfile
    import numpy as np
    from sharedmask import SharedImage
    path, masks = sys.argv[1], list(np.load(sys.argv[2]))
    gone = tempfile.mkdtemp()
    os.chdir(gone)
    os.rmdir(gone)
    with SharedImage(path) as image:
        print(len(image.mask_parallel(masks, n_jobs=2, prefer="processes")))
    """
    np.save(tmp_path / "masks.npy", np.array(random_masks(3)))
    long = tmp_path / ("x" * 120)
    long.mkdir()
    done = python(script, path, tmp_path / "masks.npy", env={**os.environ, "TMPDIR": str(long)})
    assert done.stdout == "3\n", done.stderr


FEW = """
import os, resource, sys
import numpy as np
from sharedmask import FrameDataset, MemoryMonitor, SharedImage, batch_process, extract, extract_many
from sharedmask.errors import SharedMaskError
from sharedmask.workers import pool

path, masks, how, where = sys.argv[1], list(np.load(sys.argv[2])), *sys.argv[3:]

def frames(n_jobs):
    with FrameDataset(path) as dataset:
        return dataset.map(np.mean, n_jobs=n_jobs)

def held(call):
    def of(n_jobs):
        with SharedImage(path) as image:
            return call(image, n_jobs)
    return of

CALLS = {
    "signals": held(lambda image, jobs: image.mask_parallel(masks, n_jobs=jobs)),
    "processes": held(lambda image, jobs: image.mask_parallel(masks, n_jobs=jobs, prefer="processes")),
    "cleaned": held(lambda image, jobs: image.mask_parallel(masks, n_jobs=jobs, detrend=True)),
    "map": held(lambda image, jobs: image.map(lambda x: x.sum(), masks, n_jobs=jobs)),
    "smoothed": lambda jobs: extract(path, masks, n_jobs=jobs, smoothing_fwhm=2.0),
    "disk": lambda jobs: [SharedImage(path, store="disk").mask(masks[0], n_jobs=jobs)],
    "many": lambda jobs: extract_many({"a": path, "b": path}, masks, n_jobs=jobs).results["b"],
    "batch": lambda jobs: list(batch_process({1: -1, 2: 2}, abs, n_jobs=jobs).results.values()),
    "frames": frames,
}
expected = {name: call(1) for name, call in CALLS.items()}

def end_all():
    for one in pool._pools.values():
        one.end()

def allow(count):
    if how == "group":
        with open(f"{where}/pids.max", "w") as file:
            file.write("max")
        end_all()
        with open(f"{where}/pids.current") as file:
            now = int(file.read())
        with open(f"{where}/pids.max", "w") as file:
            file.write(str(now + count))
    else:
        os.environ["SHAREDMASK_DIR"] = f"{where}/of-the-user"
        os.setgroups([]), os.setresgid(65533, 65533, 65533), os.setresuid(65533, 65533, 65533)
        resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))

if how == "group":
    with open(f"{where}/cgroup.procs", "w") as file:
        file.write(str(os.getpid()))
end_all()
wrong = []
for count in range(6 if how == "group" else 1):
    allow(count)
    for name, call in CALLS.items():
        try:
            found = call(2)
        except Exception as error:
            wrong.append((count, name, repr(error)))
            continue
        if not all(np.array_equal(one, other) for one, other in zip(found, expected[name], strict=True)):
            wrong.append((count, name, "other numbers"))
try:
    with MemoryMonitor():
        pass
except SharedMaskError as error:
    print(error) if how == "ulimit" else None
print(wrong)
end_all()
"""


@pytest.fixture
def control_group():
    """One that limits processes, where this user may make one."""
    for above in ("/sys/fs/cgroup/pids", "/sys/fs/cgroup"):
        with contextlib.suppress(OSError):
            group = tempfile.mkdtemp(prefix="sharedmask-test-", dir=above)
            if os.path.exists(f"{group}/pids.max"):
                yield group
                os.rmdir(group)
                return
            os.rmdir(group)
    pytest.skip("no control group with a limit of processes can be made here")


def little(how, where, path, tmp_path):
    np.save(tmp_path / "masks.npy", np.array(random_masks(3)))
    # Where OpenBLAS finds no thread, it raises a KeyboardInterrupt of its own.
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    return python(FEW, path, tmp_path / "masks.npy", how, where, fresh=True, env=environment)


@pytest.mark.long
@pytest.mark.privileged
def test_a_control_group_that_allows_few_processes_and_threads(control_group, path, tmp_path):
    done = little("group", control_group, path, tmp_path)
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.long
@pytest.mark.privileged
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_user_who_may_start_nothing(monkeypatch):
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        monkeypatch.setenv("SHAREDMASK_TMPDIR", folder)
        path = save(Path(folder, "run.nii.gz"), bold())
        done = little("ulimit", folder, path, Path(folder))
    assert done.stdout.endswith("[]\n"), (done.stdout, done.stderr)
    assert (
        "no thread can be started: Resource temporarily unavailable (processes and threads are" in done.stdout
    )
