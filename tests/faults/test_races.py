"""Owners, readers, reapers and kills at once; names removed and owners stalled under use."""

import json
import os
import pickle
import signal
import time

import numpy as np
import pytest
from children import kill_group, python, running
from images import bold, save, truth
from owners import GEOMETRY, OWNER, ROWS, STORES, handle_of
from segments import exists

from sharedmask import SharedImage
from sharedmask.storage import memory, registry
from sharedmask.storage.registry import OwnedSegment, entries, reap
from sharedmask.storage.segment import attach

pytestmark = pytest.mark.long

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


# --- T-race ---

RACE = '''
    import fcntl, json, os, random, signal, sys, time
    import numpy as np
    from multiprocessing import resource_tracker
    from sharedmask.storage import registry
    from sharedmask.storage import segment as segments
    from sharedmask.storage import memory
    from sharedmask.errors import AttachError, SegmentError
    from sharedmask.storage.registry import OwnedSegment as Owned, entries, reap
    from sharedmask.storage.segment import attach

    seconds, naive = float(sys.argv[1]), sys.argv[2] == "naive"

    # Names of this test's own, whoever else uses /dev/shm at the moment.
    urandom = os.urandom
    mark = urandom(4)
    os.urandom = lambda n: urandom(n) if n < 16 else mark + urandom(n - 4)  # of tokens

    def named():
        return {name for name in os.listdir("/dev/shm") if name.startswith("sharedmask-" + mark.hex())}
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
        name = owned.record.name
        with registry._open_directory() as there:
            mine = registry.is_named(there, name, owned.record._fd)
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

    started = []

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
        started.append(pid)
        return pid

    def kill(pid, how):
        try:
            how(pid, signal.SIGKILL)
        except ProcessLookupError:  # it has no group of its own yet
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)

    def lives(group):
        try:
            os.killpg(group, 0)
        except OSError:
            return False
        return True

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
    # Whom a killed process had begun has what was locked until it is gone, and nobody waits for it.
    last = time.monotonic() + 10
    while any(map(lives, started)) and time.monotonic() < last:
        time.sleep(0.01)
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
        memory.remove(name)
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
