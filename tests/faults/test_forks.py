"""Forked children and pools of others: they take nothing with them."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
from children import python, running
from images import bold, random_masks, save
from owners import OWNER, STORES, assert_no_leak, handle_of, links

from sharedmask.storage.registry import reap

pytestmark = pytest.mark.long

# --- T-fork ---

FORKS = {
    "os.fork": """
        pid = os.fork()
        if pid == 0:
            END
            os._exit(0)
        os.waitpid(pid, 0)
    """,
    "multiprocessing": """
        import multiprocessing
        def child():
            END
        process = multiprocessing.get_context("fork").Process(target=child)
        process.start()
        process.join()
    """,
    "double": """
        pid = os.fork()
        if pid == 0:
            inner = os.fork()
            if inner == 0:
                END
                os._exit(0)
            os.waitpid(inner, 0)
            END
            os._exit(0)
        os.waitpid(pid, 0)
    """,
    "subprocess": """
        import subprocess
        subprocess.run([sys.executable, "-c", "import sharedmask.storage.registry, sys; sys.exit(3)"])
    """,
    "exec": """
        pid = os.fork()
        if pid == 0:
            os.execvp("true", ["true"])
        os.waitpid(pid, 0)
    """,
}


ENDS = {
    "return": "pass",
    "sys.exit": "sys.exit(0)",
    "os._exit": "os._exit(0)",
    "exception": "raise RuntimeError('no')",
    "del": "owned = None; gc.collect()",
    "release": "owned.release()",
}


def _forks():
    for how in FORKS:
        for end in ENDS if "END" in FORKS[how] else ["return"]:
            yield how, end


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize(("how", "end"), list(_forks()))
def test_fork_takes_nothing_with_it(how, end, store, registry_dir):
    what = textwrap.indent(textwrap.dedent(FORKS[how]), "    ")
    if how == "multiprocessing" and end == "del":
        what = what.replace("def child():", "def child():\n        global owned")
    script = OWNER + what.replace("END", ENDS[end])
    script += """
    rest = [entry.handle for entry in entries()]
    assert rest == [handle], rest
    assert reap() == []
    assert attach(handle).arrays["rows"].sum() == 105
    owned.release()
    print("done")
    """
    done = python(script, store)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("done\n")
    assert_no_leak(registry_dir, json.loads(done.stdout.split()[1])["name"])


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("generations", [1, 2])
def test_fork_that_outlives_the_owner_holds_neither_lock_nor_bytes(generations, store, registry_dir):
    script = (
        OWNER
        + f"""
    for _ in range({generations}):
        if os.fork() > 0:
            break
    else:
        print("forked", flush=True)
        os.close(1), os.close(2)
    time.sleep(60)
    """
    )
    with running(script, store) as owner:
        name = handle_of(owner).name
        assert owner.stdout.readline() == "forked\n"
        os.kill(owner.pid, signal.SIGKILL)
        owner.wait()
        reap()
        try:
            assert_no_leak(registry_dir, name)
        finally:
            os.killpg(owner.pid, signal.SIGKILL)


@pytest.mark.parametrize("store", STORES)
def test_what_a_fork_in_the_midst_of_a_load_does_later_is_its_own(store, registry_dir):
    """Its memory lies where the parent has the image: it stays when what it knows of that goes."""
    script = """
    import gc, os, sys
    import numpy as np
    from sharedmask.storage.registry import publish
    def fill(arrays):
        global pid, mine
        pid = os.fork()
        if not pid:
            mine = [np.ones(2**23 - 2**14) for _ in range(3)]
            raise KeyError("this goes on in the parent")
        arrays["rows"][:] = 7
    geometry = {"rows": ((2**26,), np.dtype("i1"))}
    try:
        owned, _ = publish("run", geometry, fill, sys.argv[1])
    except KeyError:
        pass
    if not pid:
        gc.collect()
        sys.exit(int(sum(one.sum() for one in mine) != 3 * (2**23 - 2**14)))
    print(os.waitpid(pid, 0)[1])
    owned.release()
    """
    done = python(script, store)
    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr
    assert os.listdir(registry_dir) == []


@pytest.mark.parametrize("store", STORES)
def test_fork_while_another_thread_publishes_holds_neither_lock_nor_bytes(store, registry_dir):
    """The child is forked between the record and the end of reserving, which takes seconds per GB."""
    script = """
    import os, sys, threading, time
    import numpy as np
    from sharedmask.storage.registry import OwnedSegment as Owned
    reserving, go_on = threading.Event(), threading.Event()
    fallocate = os.posix_fallocate
    def slow(*args):
        reserving.set()
        go_on.wait(2)
        fallocate(*args)
    os.posix_fallocate = slow
    def publish():
        global owned
        owned = Owned("run", {"rows": ((3, 5), np.dtype("int16"))}, sys.argv[1])
        owned.share({})
    thread = threading.Thread(target=publish)
    thread.start()
    reserving.wait(30)
    forked, tell = os.pipe()
    if os.fork() == 0:
        os.write(tell, b"1")
        os.close(1), os.close(2)
        time.sleep(60)
        os._exit(0)
    go_on.set()
    thread.join()
    os.read(forked, 1)
    print("ready", owned.segment.store.name, flush=True)
    time.sleep(60)
    """
    with running(script, sys_store := store) as owner:
        assert sys_store == store
        (name,) = owner.said
        os.kill(owner.pid, signal.SIGKILL)
        owner.wait()
        reap()
        try:
            records, holders = os.listdir(registry_dir), links(name)
        finally:
            os.killpg(owner.pid, signal.SIGKILL)
    time.sleep(0.1)
    reap()
    assert (records, holders) == ([], [])


# --- T-start: pools of others ---

WORK = '''
import os
import numpy as np

def look(thing):
    """Of what a worker received: its values, whether it may write, and which memory it is."""
    if hasattr(thing, "dataobj"):
        array = np.asanyarray(thing.dataobj)
    else:
        array = thing if isinstance(thing, np.ndarray) else thing.array
    address = array.__array_interface__["data"][0]
    with open("/proc/self/maps") as maps:
        for line in maps:
            low, high = (int(part, 16) for part in line.split()[0].split("-"))
            if low <= address < high:
                inode = int(line.split()[4])
    return array.tobytes(), array.flags.writeable, inode

def signals(image, mask):
    from nilearn.maskers import NiftiMasker
    return NiftiMasker(mask, standardize=None).fit_transform(image)
'''


START = """
import multiprocessing, os, pickle, sys, warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
import joblib
import numpy as np
from joblib import Parallel, delayed
from sharedmask import SharedImage
from work import look, signals

kind, path = sys.argv[1:]

def pool():
    if kind in ("fork", "spawn", "forkserver"):
        opened = multiprocessing.get_context(kind).Pool(2)
        return lambda f, things: opened.map(f, things, chunksize=1), opened.terminate
    if kind == "ProcessPoolExecutor":
        opened = ProcessPoolExecutor(2)
        return lambda f, things: list(opened.map(f, things)), opened.shutdown
    if kind == "dask":
        import dask
        def compute(f, things):
            return dask.compute([dask.delayed(f)(thing) for thing in things], scheduler="processes")[0]
        return compute, lambda: None
    backend = kind.removeprefix("joblib-")
    opened = Parallel(2, backend=backend, max_nbytes=100, pre_dispatch="all")
    opened.__enter__()
    return lambda f, t: opened(delayed(f)(x) for x in t), lambda: opened.__exit__(None, None, None)

def joblib_bytes():
    return sum(p.stat().st_size for d in Path("/dev/shm").glob("joblib*") for p in d.rglob("*"))

def check(run, store):
    with SharedImage(path, store=store) as image:
        image.load()
        nifti = image.as_nifti()
        things = [image, image.array[1:, ::2], image.array, nifti]
        before = joblib_bytes()
        assert all(len(pickle.dumps(thing)) < 1024 for thing in things)
        expected = [look(thing)[0] for thing in things]
        found = run(look, things * 2)
        assert [data for data, _, _ in found] == expected * 2
        assert not any(writeable for _, writeable, _ in found)
        assert {inode for _, _, inode in found} == {image.handle.ino}, (found, image.handle)
        assert joblib_bytes() == before

if __name__ == "__main__":
    from itertools import product
    early, stop = pool()
    early(len, ["a", "b"])  # workers are there before any image
    for store in ("shm", "memfd"):
        check(early, store)
    stop()
    for store in ("shm", "memfd"):
        with SharedImage(path, store=store) as image:
            image.load()
            late, stop = pool()
            check(late, store)
            stop()
    print("done")
"""


@pytest.mark.parametrize(
    "kind",
    [
        "fork",
        "spawn",
        "forkserver",
        "ProcessPoolExecutor",
        "joblib-loky",
        "joblib-multiprocessing",
        "joblib-threading",
        "dask",
    ],
)
def test_start_of_pools_before_and_after_the_image(kind, tmp_path):
    """An image, its views and as_nifti() arrive in any pool as the same memory, read-only."""
    if kind == "dask":
        pytest.importorskip("dask")
    path = save(tmp_path / "run.nii.gz", bold())
    (tmp_path / "work.py").write_text(WORK)
    (tmp_path / "start.py").write_text(START)
    done = subprocess.run(
        [sys.executable, tmp_path / "start.py", kind, path], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


LOOP = """
import sys
import nibabel as nib
import numpy as np
from joblib import Parallel, delayed
from sharedmask import SharedImage
from work import signals

if __name__ == "__main__":
    path = sys.argv[1]
    affine, masks = nib.load(path).affine, np.load(sys.argv[2])
    masks = [nib.Nifti1Image(mask.astype("u1"), affine) for mask in masks]
    for store in ("shm", "memfd"):
        with SharedImage(path, store=store) as image:
            found = Parallel(2)(delayed(signals)(image.as_nifti(), mask) for mask in masks)
        for got, mask in zip(found, masks):
            expected = signals(path, mask)
            assert got.dtype == expected.dtype
            assert got.tobytes() == expected.tobytes()
    print("done")
"""


def test_start_an_unchanged_loop_of_maskers(tmp_path):

    path = save(tmp_path / "run.nii.gz", bold())
    np.save(tmp_path / "masks.npy", np.array(random_masks(3)))
    (tmp_path / "work.py").write_text(WORK)
    (tmp_path / "loop.py").write_text(LOOP)
    done = subprocess.run(
        [sys.executable, tmp_path / "loop.py", path, tmp_path / "masks.npy"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


def test_a_forked_child_may_use_the_image_and_takes_nothing_with_it(run):
    script = f"""
    import os, sys
    import numpy as np
    from sharedmask import SharedImage
    with SharedImage({str(run)!r}) as image:
        expected = image.frame(3).copy()
        pid = os.fork()
        if pid == 0:
            image.close()
            sys.exit(0)
        os.waitpid(pid, 0)
        np.testing.assert_array_equal(image.frame(3), expected)
        assert len(image.map(np.sum, [np.ones(image.shape[:3], bool)], n_jobs=2)) == 1
    """
    done = python(script)
    assert done.returncode == 0, done.stderr


# --- forks at any moment ---

MOMENTS = """
import os, signal, sys, threading, time, warnings
import numpy as np
from sharedmask import Coordinator, FrameDataset, SharedImage, extract, extract_many
from sharedmask.workers import pool

warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 tells that threads do not survive a fork
path, masks, n_forks = sys.argv[1], list(np.load(sys.argv[2])), int(sys.argv[3])

def load(store="shm"):
    with SharedImage(path, store=store) as image:
        return image.frame(0).sum()

def mask():
    with SharedImage(path, store="memfd") as image:
        return sum(signals.sum() for signals in image.mask_parallel(masks, n_jobs=2, prefer="threads"))

def stream():
    return sum(signals.sum() for signals in extract(path, masks))

def clean():
    return extract(path, masks, detrend=True, n_jobs=2, prefer="threads")[0].std()

def start():
    with SharedImage(path) as image:
        found = image.map(np.sum, masks, n_jobs=2)
    pool.shutdown()
    return found[0]

def many():
    return sum(signals.sum() for signals in extract_many({"a": path}, masks).results["a"])

def frames():
    with FrameDataset(path) as dataset:
        return dataset.mean().sum()

def connect():
    with SharedImage.connect(path) as image:
        return image.frame(0).sum()

CALLS = [load, mask, stream, clean, many, frames, connect]
done = threading.Event()

def repeat(call):
    while not done.is_set():
        call()

with Coordinator(memory_limit="1G"):
    expected = [call() for call in [*CALLS, start]]
    threads = [threading.Thread(target=repeat, args=(call,)) for call in [*CALLS, start]]
    for thread in threads:
        thread.start()
    failed = []
    try:
        for number in range(n_forks):
            time.sleep(number % 7 / 500)
            call = CALLS[number % len(CALLS)] if number % 20 else start
            right = expected[[*CALLS, start].index(call)]
            pid = os.fork()
            if pid == 0:
                signal.alarm(10)
                if call() == right:
                    os._exit(0)
                os._exit(3)
            status = os.waitpid(pid, 0)[1]
            if status:
                failed.append((call.__name__, status))
    finally:
        done.set()
        for thread in threads:
            thread.join()
print(failed)
"""


@pytest.mark.parametrize(
    "n_forks",
    [10, 120, pytest.param(500, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])],
)
def test_children_of_any_moment_finish_a_call_of_their_own(n_forks, run, tmp_path):
    """Threads load, mask, clean, start workers and serve while the main thread forks.

    120 times, each call 16 of them, and workers are started 6 times; 500 with ``SHAREDMASK_SLOW_TESTS``.
    """
    np.save(tmp_path / "masks.npy", np.array(random_masks(3)))
    done = python(MOMENTS, run, tmp_path / "masks.npy", n_forks, timeout=280 if n_forks < 100 else 1700)
    assert done.stdout == "[]\n", done.stderr
