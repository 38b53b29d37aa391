"""Faults at every moment, in both stores: kills, exits, forks, foreign pools, lack of room, races."""

import contextlib
import dataclasses
import faulthandler
import gc
import itertools
import json
import os
import pickle
import secrets
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import psutil
import pytest
from children import gone, kill_group, python, running
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from images import bold, save, truth
from segments import exists

from sharedmask import SharedImage
from sharedmask.errors import AttachError, SegmentError
from sharedmask.storage import container, registry, segment
from sharedmask.storage import memory as stores
from sharedmask.storage.registry import OwnedSegment, entries, reap
from sharedmask.storage.segment import Handle, Segment, attach

STORES = ["shm", "memfd"]
GEOMETRY = {"rows": ((3, 5), np.dtype("int16"))}
ROWS = np.full((3, 5), 7)

OWNER = """
    import gc, os, signal, sys, time
    import numpy as np
    from multiprocessing import resource_tracker
    from sharedmask.storage.registry import OwnedSegment as Owned, entries, reap
    from sharedmask.storage.segment import Handle, attach
    store = sys.argv[1]
    owned = Owned("run.nii.gz", {"rows": ((3, 5), np.dtype("int16"))}, store)
    owned.segment.array("rows")[:] = 7
    handle = owned.share({})
    tracker = resource_tracker._resource_tracker._pid or 0
    print("ready", handle.to_json().replace(" ", ""), tracker, flush=True)
"""


def links(name):
    """Maps and descriptors of any process that lead to the segment."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            with open(f"/proc/{pid}/maps") as maps:
                found += [(pid, "map") for line in maps if name in line]
            for fd in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    found += [(pid, fd)] * (name in os.readlink(f"/proc/{pid}/fd/{fd}"))
    return found


def assert_no_leak(registry_dir, name):
    """The oracle: no record, no name, and no process that holds the bytes."""
    assert os.listdir(registry_dir) == []
    assert not exists(name)
    deadline = time.monotonic() + 60
    while (found := links(name)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert found == []


def handle_of(child):
    return Handle.from_json(child.said[0])


# --- T-kill: SIGKILL before and after every call to the system ---

KILLS = '''
    import fcntl, json, mmap, os, select, signal, sys, time
    import _posixshmem
    import numpy as np
    from multiprocessing import resource_tracker
    import sharedmask
    from sharedmask.image import image
    from sharedmask.sources import loader as loading
    from sharedmask.storage import registry
    from sharedmask.storage import segment as segments
    from sharedmask.storage import memory as stores
    from sharedmask.storage.registry import OwnedSegment as Owned, entries, reap
    from sharedmask.storage.segment import Handle, attach

    scenario, store, path = sys.argv[1:4]

    # Names of this test's own, whoever else uses /dev/shm at the moment.
    mark, token_hex = os.urandom(4).hex(), registry.secrets.token_hex
    registry.secrets.token_hex = lambda n: token_hex(n) if n < 16 else mark + token_hex(12)

    def named():
        return {name for name in os.listdir("/dev/shm") if name.startswith("sharedmask-" + mark)}
    GEOMETRY = {"rows": ((3, 5), np.dtype("int16"))}
    RAW = {name: getattr(os, name) for name in ("read", "write", "close", "kill", "killpg")}
    CALLS = {
        os: "open link rename unlink write ftruncate posix_fallocate chmod fchmod memfd_create close stat "
        "fstat mkdir listdir readlink",
        fcntl: "flock fcntl",
        mmap: "mmap",
        _posixshmem: "shm_open shm_unlink",
        resource_tracker: "register unregister",
    }

    def arm(number, when, whom):
        """This process dies at the call of that number."""
        count = 0

        def die():
            RAW["killpg" if whom == "group" else "kill"](os.getpid(), signal.SIGKILL)
            time.sleep(60)

        def wrap(function):
            def call(*args, **kwargs):
                nonlocal count
                count += 1
                mine = count == number
                if mine and when == "before":
                    die()
                try:
                    return function(*args, **kwargs)
                finally:
                    if mine and when == "after":
                        die()
            return call

        for module, names in CALLS.items():
            for name in names.split():
                setattr(module, name, wrap(getattr(module, name)))

    def show(handle):
        """Wait until the reader has attached."""
        RAW["write"](to_reader[1], handle.to_json().encode())
        RAW["read"](to_owner[0], 1)

    def life():
        owned = Owned("run", GEOMETRY, store)
        owned.segment.array("rows")[:] = 7
        show(owned.share({}))
        attach(owned.rename("other"))
        owned.keep_record()
        owned.release()

    def an_image():
        with sharedmask.SharedImage(path, store=store) as shared:
            shared.load()
            show(shared.handle)
            shared.publish("other")
            shared.array
            shared.as_nifti()

    def reaper():
        reap()
        assert registry.entries() == [] or True

    def reader():
        attach(theirs).arrays["rows"].sum()
        entries()

    def victim():
        """What somebody leaves who is killed: written by hand, so no tracker takes it away."""
        for suffix in ("", ".0a1b2c3d"):
            token = mark + os.urandom(12).hex()
            os.close(os.open(f"/dev/shm/{segments.segment_name(token)}", os.O_CREAT | os.O_WRONLY, 0o600))
            with open(f"{folder}/{token}.json{suffix}", "w") as file:
                file.write("{")

    run = {"life": life, "image": an_image, "reap": reaper, "attach": reader}[scenario]
    folder = str(registry.directory())
    entries()
    living = Owned("living", GEOMETRY, store)
    living.segment.array("rows")[:] = 3
    theirs = living.share({})
    mine = set(os.listdir(folder)), named()
    failures, points, readers = [], 0, 0
    whoms = ("owner", "group") if scenario in ("life", "image") else ("owner",)
    for when in ("before", "after"):
        for whom in whoms:
            for number in range(1, 2000):
                if scenario == "reap":
                    victim()
                to_reader, to_owner = os.pipe(), os.pipe()
                pid = os.fork()
                if pid == 0:
                    os.setsid()
                    tracker = resource_tracker._resource_tracker
                    tracker._fd = tracker._pid = None  # one of its own
                    os.close(to_reader[0]), os.close(to_owner[1])
                    code = 1
                    try:
                        arm(number, when, whom)
                        run()
                        code = 0
                    except BaseException as error:
                        RAW["write"](2, f"{number} {when} {error!r}".encode())
                    finally:
                        os._exit(code)
                os.close(to_reader[1]), os.close(to_owner[0])
                said, rows = os.read(to_reader[0], 10_000), None
                if said:
                    rows = attach(Handle.from_json(said)).arrays["rows"]
                    expected = rows.copy()
                    readers += 1
                    os.write(to_owner[1], b"x")
                os.close(to_reader[0]), os.close(to_owner[1])
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                reap()
                if rows is not None and (rows != expected).any():
                    failures.append((number, when, whom, "a reader's data changed"))
                rows = None
                left = set(os.listdir(folder)), named()
                if left != mine:
                    failures.append((number, when, whom, str(left)))
                    mine = left
                if (attach(theirs).arrays["rows"] != 3).any() or len(entries()) != 1:
                    failures.append((number, when, whom, "a living owner was harmed"))
                if code not in (0, -9):
                    failures.append((number, when, whom, f"ended with {code}"))
                points += 1
                if code == 0:
                    break
    maps = open("/proc/self/maps").read().count("sharedmask-")
    living.release()
    print(json.dumps({"failures": failures, "points": points, "readers": readers, "maps": maps}))
'''


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize(("scenario", "least"), [("life", 100), ("image", 100), ("reap", 30), ("attach", 15)])
def test_kill_at_every_call(scenario, least, store, tmp_path, registry_dir):
    """Publishing, renaming, closing, loading, reaping, attaching: one reap() leaves nothing."""
    run = save(tmp_path / "run.nii.gz", bold())
    done = python(KILLS, scenario, store, run)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["failures"] == []
    assert found["points"] > least
    assert found["maps"] <= 1
    if scenario in ("life", "image"):
        assert found["readers"] > 10
    assert os.listdir(registry_dir) == []


# --- T-exit, T-group, T-tracker, T-reader ---


@pytest.mark.parametrize(
    "end",
    [
        "",
        "sys.exit(3)",
        "raise RuntimeError('no')",
        "os._exit(0)",
        "os.abort()",
        "os.kill(os.getpid(), 15)",
        "os.kill(os.getpid(), 2)",
        "os.kill(os.getpid(), 1)",
        "os.kill(os.getpid(), 9)",
        "os.kill(os.getpid(), 11)",
        "os.execvp('true', ['true'])",
    ],
)
@pytest.mark.parametrize("store", STORES)
def test_exit_of_the_owner(end, store, registry_dir):
    done = python(OWNER + f"    {end}", store)
    name = json.loads(done.stdout.split()[1])["name"]
    reap()
    assert_no_leak(registry_dir, name)


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize(
    "order",
    [order for n in (1, 2, 3) for order in itertools.permutations(("owner", "tracker", "reader"), n)]
    + [("group",)],
    ids="-".join,
)
def test_kills_in_all_orders(order, store, registry_dir):
    """Owner, tracker and a reader; who is left has the right data, the next use leaves nothing."""
    if store == "memfd" and "tracker" in order:
        pytest.skip("anonymous memory has no tracker")
    reader = """
        import sys, time
        from sharedmask.storage.segment import Handle, attach
        rows = attach(Handle.from_json(sys.argv[1])).arrays["rows"]
        print("ready", flush=True)
        for _ in sys.stdin:
            print(int(rows.sum()), flush=True)
    """
    with running(OWNER + "    sys.stdin.read()\n    owned.release()", store, stdin=subprocess.PIPE) as owner:
        handle, tracker = handle_of(owner), int(owner.said[1])
        with running(reader, owner.said[0], stdin=subprocess.PIPE) as other:
            rows = attach(handle).arrays["rows"]
            for whom in order:
                if whom == "group":
                    kill_group(owner)
                else:
                    pid = {"owner": owner.pid, "tracker": tracker, "reader": other.pid}[whom]
                    os.kill(pid, signal.SIGKILL)
                    assert gone([pid])
                np.testing.assert_array_equal(rows, ROWS)
                if "reader" not in order:
                    other.stdin.write("\n")
                    other.stdin.flush()
                    assert other.stdout.readline() == "105\n"
                if not {"owner", "group"} & set(order):
                    assert reap() == []
                    assert [entry.handle for entry in entries()] == [handle]
        owner.stdin.close()
        owner.wait(30)
        owner.stdin = None
    del rows
    reap()
    assert_no_leak(registry_dir, handle.name)


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
    from images import random_masks

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


# --- T-space ---


def _may_mount():
    with contextlib.suppress(OSError):
        mount = ["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
        return subprocess.run(mount, capture_output=True).returncode == 0
    return False


small_shm = pytest.mark.skipif(not _may_mount(), reason="this user may not mount in a namespace of its own")


def in_small_shm(script, *args, registry=None):
    """Run Python where /dev/shm has 16 MiB; the registry is in it too, unless given."""
    environment = {name: value for name, value in os.environ.items() if name != "SHAREDMASK_DIR"}
    if registry:
        environment["SHAREDMASK_DIR"] = str(registry)
    prepare = 'mount -t tmpfs -o size=16m tmpfs /dev/shm && exec "$@"'
    run = [sys.executable, "-c", textwrap.dedent(script), *map(str, args)]
    return subprocess.run(
        ["unshare", "-m", "sh", "-c", prepare, "sh", *run],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
    )


@pytest.fixture
def large(tmp_path):
    """An image of 32 MiB."""
    return save(tmp_path / "large.nii", bold((64, 64, 64, 64)))


@pytest.mark.privileged
@small_shm
def test_space_too_small_is_refused_with_numbers(large, registry_dir):
    script = """
    import os, sys
    from sharedmask import SharedImage
    from sharedmask.errors import SegmentError
    with SharedImage(sys.argv[1], store="shm") as image:
        try:
            image.load()
        except SegmentError as error:
            print(error)
    print(sorted(os.listdir("/dev/shm")))
    """
    done = in_small_shm(script, large, registry=registry_dir)
    assert done.stdout == "/dev/shm is too small: 32 MiB are needed and 16 MiB were free\n[]\n", done
    assert os.listdir(registry_dir) == []


@pytest.mark.privileged
@small_shm
def test_space_too_small_turns_auto_to_anonymous_memory(large):
    script = """
    import os, sys
    import nibabel as nib, numpy as np
    from sharedmask import SharedImage
    with SharedImage(sys.argv[1]) as image:
        print(image)
        np.testing.assert_array_equal(image.array, nib.load(sys.argv[1]).dataobj)
        print(image.handle.store)
    """
    done = in_small_shm(script, large)
    assert "memfd (/dev/shm has room for 16 MiB only)" in done.stdout, done.stderr
    assert done.stdout.endswith("memfd\n")


FULL = """
    import os, sys
    import numpy as np
    from sharedmask import SharedImage
    from sharedmask.storage import registry
    from sharedmask.storage import memory as stores
    from sharedmask.errors import SegmentError
    registry.entries()
    page = 4096
    image = SharedImage(np and sys.argv[1], store=sys.argv[2])
    spare = int(sys.argv[3])
    fill = stores.free_bytes() - (image.nbytes + page - 1) // page * page - spare * page
    if sys.argv[2] == "memfd":
        fill = stores.free_bytes()
    fd = os.open("/dev/shm/fill", os.O_CREAT | os.O_RDWR)
    os.posix_fallocate(fd, 0, fill)
    try:
        with image:
            image.load()
            print("loaded")
    except SegmentError as error:
        print("refused", error)
    print(sorted(os.listdir("/dev/shm")), os.listdir(registry.directory()))
"""


@pytest.mark.privileged
@small_shm
@pytest.mark.parametrize("spare", [0, 1, 2, 3])
def test_space_of_the_record_is_short(spare, tmp_path):
    """The segment fits to the byte, and the records of the registry in the same place do not."""
    path = save(tmp_path / "run.nii", bold((32, 32, 32, 64)))
    done = in_small_shm(FULL, path, "shm", spare)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(("loaded", "refused"))
    assert done.stdout.endswith("['fill', 'sharedmask-0'] []\n")


@pytest.mark.privileged
@small_shm
def test_space_of_a_full_shm_is_no_matter_for_anonymous_memory(tmp_path):
    path = save(tmp_path / "run.nii", bold((32, 32, 32, 64)))
    done = in_small_shm(FULL, path, "memfd", 0)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(("loaded", "refused"))


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("k", [1, 2, 4])
def test_space_ends_in_the_middle_of_reserving(k, store, monkeypatch, registry_dir, segments_of_this_test):
    calls, fallocate = [], os.posix_fallocate

    def short(fd, start, length):
        calls.append(start)
        if len(calls) == k:
            raise OSError(28, "No space left on device")
        fallocate(fd, start, length)

    monkeypatch.setattr(os, "posix_fallocate", short)
    monkeypatch.setattr(stores, "_RESERVE_BYTES", 2**20)
    with pytest.raises(SegmentError, match=r"(too small|short): 4 MiB"):
        OwnedSegment("run", {"rows": ((2**21,), np.dtype("i2"))}, store)
    assert calls == [2**20 * i for i in range(k)]
    assert not segments_of_this_test()
    assert os.listdir(registry_dir) == []


# --- T-view ---


@pytest.mark.parametrize("store", STORES)
def test_views_in_use_while_the_image_closes(store, tmp_path):
    faulthandler.enable()
    path = save(tmp_path / "run.nii.gz", bold())
    image = SharedImage(path, store=store)
    whole, nifti = image.array, image.as_nifti()
    views = [whole[::-1, 1:], whole.T, whole[2, 3, 4], whole.reshape(-1, order="F"), memoryview(whole)]
    views += [nifti.dataobj[..., 3], nifti.slicer[1:3].dataobj, np.asarray(whole)]
    expected = [np.array(view) for view in views]
    cycle = [views]
    cycle.append(cycle)
    name = image.handle.name
    image.close()
    del whole, nifti, image
    gc.collect()
    for view, before in zip(views, expected, strict=True):
        np.testing.assert_array_equal(view, before)
    assert not exists(name)
    assert links(name)
    del views, cycle, view
    gc.collect()
    assert links(name) == []


@pytest.mark.parametrize(
    "compute",
    [
        lambda a: a + 1,
        lambda a: a.sum(axis=3),
        lambda a: a.astype("f4"),
        lambda a: a[[0]],
        lambda a: a.copy(),
    ],
    ids=["add", "sum", "astype", "pick", "copy"],
)
def test_views_copied_or_computed_hold_no_bytes(compute, tmp_path):
    path = save(tmp_path / "run.nii.gz", bold())
    with SharedImage(path) as image:
        computed, name = compute(image.array), image.handle.name
    gc.collect()
    found = links(name)
    assert computed.size
    assert found == []


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("last", ["image", "view", "nifti", "cycle", "module"])
def test_views_at_the_end_of_the_interpreter(last, store, tmp_path, registry_dir):
    path = save(tmp_path / "run.nii.gz", bold())
    script = """
    import atexit, faulthandler, sys
    faulthandler.enable()
    import numpy as np
    if sys.argv[3] == "module":
        kept = []
        atexit.register(lambda: print(int(kept[0].sum())))
    from sharedmask import SharedImage
    image = SharedImage(sys.argv[1], store=sys.argv[2])
    view, nifti = image.array[1:], image.as_nifti()
    if sys.argv[3] == "module":
        kept.append(view)
    elif sys.argv[3] == "cycle":
        class Node: pass
        node = Node()
        node.me, node.view, node.image = node, view, image
        node.__class__.__del__ = lambda self: self.view.sum()
        del view, image, nifti, node
    else:
        for other in {"image", "view", "nifti"} - {sys.argv[3]}:
            del globals()[other]
    """
    done = python(script, path, store, last)
    assert (done.returncode, done.stderr) == (0, "")
    if last == "module":
        assert done.stdout == f"{truth(path)[1:].sum()}\n"
    assert os.listdir(registry_dir) == []


def _loop(store):
    owned = OwnedSegment("run", GEOMETRY, store)
    owned.segment.array("rows")[:] = 7
    rows = attach(owned.share({})).arrays["rows"]
    owned.release()
    assert rows.sum() == 105


def _counts():
    gc.collect()
    with open("/proc/self/maps") as maps:
        n_maps = sum("sharedmask" in line for line in maps)
    return len(os.listdir("/proc/self/fd")), n_maps


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("rounds", [1000, pytest.param(20_000, marks=pytest.mark.slow)])
def test_views_in_many_loops_hold_nothing(rounds, store):
    for _ in range(100):
        _loop(store)
    before, memory = _counts(), psutil.Process().memory_info().rss
    for _ in range(rounds):
        _loop(store)
    assert _counts() == before
    assert psutil.Process().memory_info().rss - memory < 8 * 2**20


# --- T-stall, T-ipc ---


@pytest.mark.parametrize("store", STORES)
def test_stall_of_the_owner_keeps_nobody_waiting(store):
    with running(OWNER + "    time.sleep(60)", store) as owner:
        owner.send_signal(signal.SIGSTOP)
        assert reap() == []
        (entry,) = entries()
        np.testing.assert_array_equal(attach(entry.handle).arrays["rows"], ROWS)
        owner.send_signal(signal.SIGCONT)
    reap()


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("what", ["record", "directory"])
def test_ipc_the_registry_is_removed_under_a_living_owner(what, store, tmp_path, registry_dir):
    path = save(tmp_path / "run.nii.gz", bold())
    with SharedImage(path, store=store) as image:
        handle = image.load().handle
        for record in registry_dir.iterdir():
            record.unlink()
        if what == "directory":
            registry_dir.rmdir()
        assert entries() == []
        np.testing.assert_array_equal(image.array, truth(path))
        assert image.handle == handle
        assert [entry.handle for entry in entries()] == [handle]
        assert reap() == []
        with SharedImage.attach("run.nii.gz") as other:
            np.testing.assert_array_equal(other.array, truth(path))
    assert os.listdir(registry_dir) == []


def test_ipc_the_name_is_removed_under_a_living_owner(tmp_path, registry_dir):
    path = save(tmp_path / "run.nii.gz", bold())
    script = """
    import sys
    from sharedmask import SharedImage
    from sharedmask.errors import AttachError
    try:
        SharedImage.attach(sys.argv[1])
    except AttachError as error:
        print(error)
    """
    with SharedImage(path, store="shm") as image:
        view, handle = image.array, image.handle
        os.unlink(f"/dev/shm/{handle.name}")
        done = python(script, handle.to_json())
        assert done.stdout == "the shared image run.nii.gz is gone: No such file or directory\n", done.stderr
        np.testing.assert_array_equal(view, truth(path))
        np.testing.assert_array_equal(image.array, truth(path))
        del view
    assert os.listdir(registry_dir) == []


@pytest.mark.parametrize("store", STORES)
def test_ipc_the_registry_is_removed_before_closing(store, tmp_path, registry_dir):
    path = save(tmp_path / "run.nii.gz", bold())
    with SharedImage(path, store=store) as image:
        name = image.load().handle.name
        for record in registry_dir.iterdir():
            record.unlink()
        registry_dir.rmdir()
    assert not exists(name)


# --- T-sec: forged handles and headers are refused, whatever is in them ---

_numbers = st.one_of(
    st.integers(-2, 70_000), st.integers(-(2**80), 2**80), st.sampled_from([2**31, 2**63 - 1, 2**63, 2**64])
)
_texts = st.one_of(
    st.text(max_size=20),
    st.text(st.characters(categories=None), max_size=5),
    st.sampled_from(
        ["", "/", "../x", "\0", "shm", "memfd", "sharedmask-0123456789abcdef", "\ud800", "x" * 9000]
    ),
)
_anything = st.recursive(
    st.one_of(st.none(), st.booleans(), _numbers, st.floats(), _texts),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(_texts, inner, max_size=3)),
    max_leaves=5,
)
_dtypes = st.one_of(
    st.sampled_from(
        ["<i2", ">f8", "|b1", "|O", "<f3", "<i0", "|u0", "|b7", "=f99999999999999999999", "<M8[s]"]
    ),
    st.from_regex(r"[<>|=][biuf]\d+", fullmatch=True),
    _anything,
)
_shapes = st.one_of(st.lists(_numbers, max_size=4), st.lists(st.just(1), max_size=70), _anything)
_spec = st.fixed_dictionaries({}, optional={"dtype": _dtypes, "shape": _shapes, "offset": _anything})
_fuzz = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}


def _fuzzed(test, cases):
    settings(max_examples=cases, **_fuzz)(test)()


CASES = [1000, pytest.param(100_000, marks=pytest.mark.slow)]


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("cases", CASES)
def test_sec_forged_handles_are_refused(cases, store):
    with contextlib.closing(_Shared(store)) as shared:
        facts = json.loads(shared.handle.to_json())
        typed = {str: _texts, int: _numbers, float: st.floats()}
        kinds = Handle.__annotations__
        fields = {name: st.one_of(typed[kinds[name]], _anything) for name in facts}
        changes = st.fixed_dictionaries({}, optional=fields).filter(len)

        @given(changes)
        def try_it(change):
            segment._attached.clear()
            with contextlib.suppress(AttachError):
                found = attach(Handle.from_json(json.dumps({**facts, **change})))
                np.testing.assert_array_equal(found.arrays["rows"], ROWS)

        _fuzzed(try_it, cases)


@pytest.mark.parametrize("cases", CASES)
def test_sec_what_is_no_handle_is_refused(cases):
    @given(st.one_of(_anything.map(json.dumps), st.text(max_size=200), st.binary(max_size=200)))
    def try_it(text):
        with pytest.raises(AttachError):
            attach(Handle.from_json(text))

    _fuzzed(try_it, cases)


class _Shared:
    """A segment whose owner may forge its header."""

    def __init__(self, store="shm"):
        self._segment = Segment(secrets.token_hex(16), GEOMETRY, store)
        self._segment.array("rows")[:] = 7
        self.handle = self._segment.share("run", {})

    def write(self, page):
        path = f"/dev/shm/{self.handle.name}"
        os.chmod(path, 0o600)
        with open(path, "r+b") as file:
            file.write(page)

    def header(self):
        with open(f"/dev/shm/{self.handle.name}", "rb") as file:
            return container.parse_header(file.read(4096))

    def close(self):
        self._segment.store.release()
        vars(self._segment).pop("_map", None)


@pytest.mark.parametrize("cases", CASES)
def test_sec_forged_headers_are_refused(cases):
    """Headers with a right digest and any content: refused, or arrays within the segment."""
    with contextlib.closing(_Shared()) as shared:
        facts, handle = shared.header(), shared.handle
        array = st.tuples(_texts, _spec).map(
            lambda pair: {"arrays": {pair[0]: {**facts["arrays"]["rows"], **pair[1]}}}
        )
        whole = st.fixed_dictionaries(
            {}, optional={"arrays": _anything, "meta": _anything, "token": _anything, "nbytes": _numbers}
        )

        @given(st.one_of(array, whole, st.lists(_anything, max_size=2)))
        def try_it(change):
            changed = {**facts, **change} if isinstance(change, dict) else change
            try:
                shared.write(container.header(changed))
            except (SegmentError, UnicodeEncodeError):
                return
            segment._attached.clear()
            with contextlib.suppress(AttachError):
                for found in attach(handle).arrays.values():
                    assert found.nbytes <= handle.nbytes - 4096
                    assert not found.flags.writeable
                    found.tobytes()

        _fuzzed(try_it, cases)


@pytest.mark.parametrize("cases", CASES)
def test_sec_damaged_headers_are_refused(cases):
    with contextlib.closing(_Shared()) as shared:
        with open(f"/dev/shm/{shared.handle.name}", "rb") as file:
            page = file.read(4096)

        @given(st.integers(0, 4095), st.integers(1, 255))
        def try_it(position, change):
            damaged = bytearray(page)
            damaged[position] ^= change
            shared.write(damaged)
            segment._attached.clear()
            with pytest.raises(AttachError):
                attach(shared.handle)

        _fuzzed(try_it, cases)


@pytest.mark.parametrize("shape", [[0, 10**30], [10**30, 0], [0, 2**63]])
def test_sec_an_empty_array_of_impossible_extent_is_refused(shape):
    with contextlib.closing(_Shared()) as shared:
        facts = shared.header()
        facts["arrays"]["rows"]["shape"] = shape
        shared.write(container.header(facts))
        try:
            raised = type(attach(shared.handle))
        except Exception as error:  # its traceback would hold the map
            raised = type(error)
        assert raised is AttachError


@pytest.mark.parametrize("store", STORES)
def test_sec_a_segment_that_is_no_image_is_no_image(store):
    owned = OwnedSegment("output", GEOMETRY, store)
    handle = owned.share({})
    try:
        try:
            raised = type(SharedImage.attach(handle))
        except Exception as error:
            raised = type(error)
        assert raised is AttachError
    finally:
        owned.release()


@pytest.mark.parametrize("cases", CASES)
def test_sec_forged_records_are_passed_over(cases, registry_dir):
    """Records that somebody holds: listed with facts of the right types, or not at all."""
    import fcntl

    entries()
    path = registry_dir / f"{'0' * 32}.json"
    keys = ("token", "name", "label", "pid", "created", "ino")
    content = st.one_of(
        st.fixed_dictionaries({}, optional=dict.fromkeys(keys, _anything)),
        st.fixed_dictionaries(dict.fromkeys(keys[:-1], _anything)),
        _anything,
    )

    @given(content)
    def try_it(value):
        with open(path, "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            json.dump(value, file)
            file.flush()
            for entry in entries():
                assert [type(fact) for fact in dataclasses.astuple(entry)[:5]] == [str, str, str, int, float]
            assert reap() == []

    _fuzzed(try_it, cases)
    path.unlink()


# --- T-race ---

RACE = '''
    import fcntl, json, os, random, signal, sys, time
    import numpy as np
    from multiprocessing import resource_tracker
    from sharedmask.storage import registry
    from sharedmask.storage import segment as segments
    from sharedmask.storage import memory as stores
    from sharedmask.errors import AttachError, SegmentError
    from sharedmask.storage.registry import OwnedSegment as Owned, entries, reap
    from sharedmask.storage.segment import attach

    seconds, naive = float(sys.argv[1]), sys.argv[2] == "naive"

    # Names of this test's own, whoever else uses /dev/shm at the moment.
    mark, token_hex = os.urandom(4).hex(), registry.secrets.token_hex
    registry.secrets.token_hex = lambda n: token_hex(n) if n < 16 else mark + token_hex(12)

    def named():
        return {name for name in os.listdir("/dev/shm") if name.startswith("sharedmask-" + mark)}
    GEOMETRY = {"rows": ((64, 64), np.dtype("int32"))}
    folder = str(registry.directory())
    entries()

    if naive:
        def created_then_locked(folder, name, content):
            fd = os.open(name, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=folder)
            time.sleep(0.001)
            registry._lock_and_fill(fd, content)
            return fd
        registry._locked_file = created_then_locked

    said, say = os.pipe()
    latest = time.monotonic() + 150  # should nobody be left to kill us

    def violation(what):
        os.write(say, (what + "\\n").encode())

    def stands(owned):
        """Whether our record and our name are as we made them."""
        name = owned._record.name
        with registry._open_directory() as there:
            mine = registry.is_named(there, name, owned._record._fd)
        named = owned.segment.store.kind == "memfd" or os.path.exists("/dev/shm/" + owned.segment.store.name)
        return mine and named

    def owner(rng):
        while time.monotonic() < latest:
            owned = Owned("run", GEOMETRY, rng.choice(("shm", "memfd")))
            token = owned.segment.token
            owned.segment.array("rows")[:] = int(token[-7:], 16)
            try:
                handle = owned.share({})
            except FileNotFoundError:
                violation("a name was removed before sealing")
                owned.release()
                continue
            time.sleep(rng.random() * 0.01)
            if not stands(owned):
                violation("a living owner's record or name was removed")
            if attach(handle).arrays["rows"][0, 0] != int(token[-7:], 16):
                violation("the owner's bytes are wrong")
            owned.release()
            os.write(say, b"life\\n")

    def reader(rng):
        while time.monotonic() < latest:
            for entry in entries():
                if entry.handle is None:
                    continue
                try:
                    rows = attach(entry.handle).arrays["rows"]
                except AttachError:
                    continue  # released in between
                if not (rows == int(entry.token[-7:], 16)).all():
                    violation("a reader's bytes are wrong")
                os.write(say, b"read\\n")

    def reaper(rng):
        while time.monotonic() < latest:
            reap()
            time.sleep(rng.random() * 0.002)

    def start(role, seed):
        pid = os.fork()
        if pid == 0:
            os.setsid()
            tracker = resource_tracker._resource_tracker
            tracker._fd = tracker._pid = None
            os.close(said)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2) if role is owner else None
            try:
                role(random.Random(seed))
            except BaseException as error:
                violation(f"{role.__name__}: {error!r}")
            finally:
                os._exit(1)
        return pid

    def kill(pid, how):
        try:
            how(pid, signal.SIGKILL)
        except ProcessLookupError:  # it has no group of its own yet
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)

    roles = [owner] * 4 + [reader] * 2 + [reaper] * 2
    running = {start(role, seed): role for seed, role in enumerate(roles)}
    rng, kills = random.Random(0), 0
    os.set_blocking(said, False)
    lines = b""

    def drain():
        global lines
        try:
            while part := os.read(said, 65536):
                lines += part
        except BlockingIOError:
            pass

    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(rng.random() * 0.05)
        pid = rng.choice(list(running))
        role = running.pop(pid)
        kill(pid, os.killpg if rng.random() < 0.5 else os.kill)
        kills += 1
        running[start(role, 1000 + kills)] = role
        drain()
    for pid in running:
        kill(pid, os.killpg)
    drain()
    reap()
    counts = {}
    for line in lines.decode().splitlines():
        counts[line] = counts.get(line, 0) + 1
    left = os.listdir(folder)
    print(json.dumps({"counts": counts, "kills": kills, "records": left, "names": sorted(named())}))
'''


def _race(seconds, mode):
    done = python(RACE, seconds, mode)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    counts = found["counts"]
    lives, reads = counts.pop("life", 0), counts.pop("read", 0)
    return found, counts, lives, reads


@pytest.mark.parametrize("seconds", [10, pytest.param(60, marks=pytest.mark.slow)])
def test_race_of_owners_readers_reapers_and_kills(seconds):
    found, violations, lives, reads = _race(seconds, "real")
    assert violations == {}
    assert (found["records"], found["names"]) == ([], [])
    assert lives > 50
    assert reads > 50
    assert found["kills"] > 50


def test_race_control_a_record_created_before_it_is_locked_is_destroyed():
    """The stress can fail: with the naive order it finds living owners whose records are gone."""
    found, violations, *_ = _race(3, "naive")
    for name in found["names"]:
        stores.remove(name)
    assert sum(violations.values()) > 0


def test_race_control_at_its_moment(monkeypatch, registry_dir):
    """The same without chance: a reaper between creating and locking."""

    def created_then_locked(folder, name, content):
        fd = os.open(name, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600, dir_fd=folder)
        reap()
        registry._lock_and_fill(fd, content)
        return fd

    monkeypatch.setattr(registry, "_locked_file", created_then_locked)
    owned = OwnedSegment("run", GEOMETRY)
    assert entries() == []
    assert os.listdir(registry_dir) == []
    owned.release()


def test_race_a_reader_never_misses_a_living_image():
    """Between two states of a record, an image stays listed."""
    script = (
        OWNER
        + """
    while True:
        owned.rename("a")
        owned.rename("b")
    """
    )
    with running(script, "memfd") as owner:
        name = handle_of(owner).name
        end = time.monotonic() + 2
        seen = [len(entries()) for _ in iter(lambda: time.monotonic() < end, False)]
        kill_group(owner)
    reap()
    assert name
    assert set(seen) == {1}
    assert pickle.dumps(seen)
