"""The lifecycle manager: records, owners, the reaper, and what is left after each kind of death."""

import errno
import fcntl
import gc
import json
import os
import secrets
import signal
import stat
import time

import numpy as np
import pytest
from children import kill_group, python, running
from faults import failing
from images import bold, save
from segments import exists

from sharedmask import SharedImage, extract
from sharedmask.errors import ParameterError, SegmentError
from sharedmask.settings import using
from sharedmask.storage import memory, registry, segment
from sharedmask.storage.registry import OwnedSegment, entries, find, reap
from sharedmask.storage.segment import attach
from sharedmask.system import files

GEOMETRY = {"rows": ((3, 5), np.dtype("int16"))}

OWNER = """
    import os, sys, time
    import numpy as np
    from sharedmask.storage.registry import OwnedSegment as Owned
    owned = Owned("run.nii.gz", {"rows": ((3, 5), np.dtype("int16"))})
    owned.segment.array("rows")[:] = 7
    handle = owned.share({})
    print("ready", handle.to_json().replace(" ", ""), flush=True)
"""


def test_publishing_and_releasing_leaves_nothing(registry_dir):
    owned = OwnedSegment("run.nii.gz", GEOMETRY)
    (before,) = entries()
    assert before.handle is None
    handle = owned.share({"finite": True})
    (after,) = entries()
    assert after.handle == handle
    assert (after.label, after.pid, after.token) == ("run.nii.gz", os.getpid(), handle.token)
    owned.release()
    assert entries() == []
    assert os.listdir(registry_dir) == []
    assert not exists(handle.name)


def test_release_is_idempotent():
    owned = OwnedSegment("run", GEOMETRY)
    owned.release()
    owned.release()


def test_the_record_exists_and_is_locked_before_the_segment(monkeypatch, registry_dir):
    seen = []

    def make(store):
        name = store.name
        (record,) = os.listdir(registry_dir)
        with open(registry_dir / record) as file:
            assert json.load(file)["name"] == name
            with pytest.raises(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        seen.append(name)
        raise SegmentError("no more")

    monkeypatch.setattr(memory.Named, "_make", make)
    with pytest.raises(SegmentError, match="no more"):
        OwnedSegment("run", GEOMETRY)
    assert len(seen) == 1
    assert os.listdir(registry_dir) == []


def test_dropping_the_owner_releases_and_warns():
    owned = OwnedSegment("run.nii.gz", GEOMETRY)
    name = owned.share({}).name
    with pytest.warns(ResourceWarning, match=r"run\.nii\.gz was not closed"):
        del owned
        gc.collect()
    assert not exists(name)


def test_registry_is_private(registry_dir):
    registry_dir.rmdir()
    OwnedSegment("run", GEOMETRY).release()
    assert stat.S_IMODE(os.stat(registry_dir).st_mode) == 0o700


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o701])
def test_a_registry_open_to_others_is_refused(registry_dir, mode):
    registry_dir.chmod(mode)
    with pytest.raises(SegmentError, match=f"must be private.*{mode:o}"):
        entries()
    registry_dir.chmod(0o700)


def test_a_linked_registry_is_refused(registry_dir, tmp_path):
    registry_dir.rmdir()
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    registry_dir.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SegmentError, match="cannot be used"):
        entries()
    registry_dir.unlink()


def test_a_file_in_place_of_the_registry_is_refused(registry_dir):
    registry_dir.rmdir()
    registry_dir.write_text("")
    with pytest.raises(SegmentError, match="cannot be used"):
        reap()
    registry_dir.unlink()


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "x" * 70_000, '{"token": 3}', "[" * 60_000])
def test_strange_records_are_passed_over_or_reaped(registry_dir, content):
    entries()
    (registry_dir / f"{'0' * 32}.json").write_text(content)
    assert entries() == []
    assert reap() == []
    for left in registry_dir.iterdir():  # too large to be ours: not touched
        assert len(content) > 65536
        left.unlink()


def test_fifos_links_and_other_names_are_not_touched(registry_dir, tmp_path):
    entries()
    target = tmp_path / "precious.txt"
    target.write_text("mine")
    os.mkfifo(registry_dir / f"{'1' * 32}.json")
    (registry_dir / f"{'2' * 32}.json").symlink_to(target)
    (registry_dir / "notes.txt").write_text("mine")
    assert entries() == []
    assert reap() == []
    assert sorted(p.name for p in registry_dir.iterdir()) == [
        f"{'1' * 32}.json",
        f"{'2' * 32}.json",
        "notes.txt",
    ]
    assert target.read_text() == "mine"
    for left in registry_dir.iterdir():
        left.unlink()


def test_living_owners_are_not_reaped():
    owned = OwnedSegment("run", GEOMETRY)
    handle = owned.share({})
    assert reap() == []
    np.testing.assert_array_equal(attach(handle).arrays["rows"], np.zeros((3, 5)))
    owned.release()


def test_a_living_owner_in_another_process_is_seen_and_not_reaped():
    with running(OWNER + "    time.sleep(60)") as child:
        assert reap() == []
        (entry,) = entries()
        assert (entry.pid, entry.label) == (child.pid, "run.nii.gz")
        np.testing.assert_array_equal(attach(entry.handle).arrays["rows"], np.full((3, 5), 7))
        child.terminate()
        child.wait()
        reap()
        assert entries() == []


def test_without_nameless_files_records_work_the_same(monkeypatch):
    monkeypatch.setattr(files, "nameless", lambda folder: None)
    owned = OwnedSegment("run", GEOMETRY)
    handle = owned.share({})
    assert reap() == []
    assert [entry.handle for entry in entries()] == [handle]
    owned.release()


def test_a_record_that_was_taken_before_it_was_locked_is_made_again(monkeypatch, registry_dir):
    """A reaper may lock and remove the named file between its creation and our lock."""
    monkeypatch.setattr(files, "nameless", lambda folder: None)
    lock, taken = registry._lock_and_fill, []

    def slow_lock(fd, content):
        if not taken:
            taken.extend(os.listdir(registry_dir))
            (registry_dir / taken[0]).unlink()
        lock(fd, content)

    monkeypatch.setattr(registry, "_lock_and_fill", slow_lock)
    owned = OwnedSegment("run", GEOMETRY)
    assert taken
    assert [entry.label for entry in entries()] == ["run"]
    owned.release()


def test_the_reaper_spares_a_record_replaced_under_its_hands(registry_dir):
    """It opened the old record; the owner replaced it and let go of the old lock."""
    owned = OwnedSegment("run", GEOMETRY)
    (name,) = os.listdir(registry_dir)
    with registry._open_directory() as folder, registry.opened_ours(folder, name) as old:
        owned.share({})
        assert registry.is_free(old)
        assert not registry.is_named(folder, name, old)
    assert reap() == []
    owned.release()


def test_owner_and_tracker_killed_together_leave_work_for_the_reaper(registry_dir):
    with running(OWNER + "    time.sleep(60)") as child:
        name = json.loads(child.said[0])["name"]
        kill_group(child)
    assert exists(name)
    assert reap() == [name]
    assert not exists(name)
    assert os.listdir(registry_dir) == []


def test_the_next_use_cleans_up_after_the_dead(registry_dir):
    with running(OWNER + "    time.sleep(60)") as child:
        kill_group(child)
    done = python(OWNER)
    assert done.returncode == 0
    assert os.listdir(registry_dir) == []


def test_readers_keep_their_data_when_the_owner_is_killed():
    with running(OWNER + "    time.sleep(60)") as child:
        (entry,) = entries()
        rows = attach(entry.handle).arrays["rows"]
        kill_group(child)
        reap()
        np.testing.assert_array_equal(rows, np.full((3, 5), 7))


@pytest.mark.some(2)
@pytest.mark.parametrize("end", ["os._exit(0)", "sys.exit(0)", "owned.release()", "del owned"])
def test_a_forked_child_takes_nothing_with_it(end):
    script = (
        OWNER
        + f"""
    import gc
    pid = os.fork()
    if pid == 0:
        {end}
        gc.collect()
        os._exit(0)
    os.waitpid(pid, 0)
    from sharedmask.storage.segment import attach
    assert os.path.exists("/dev/shm/" + handle.name)
    assert attach(handle).arrays["rows"].sum() == 105
    owned.release()
    """
    )
    done = python(script)
    assert done.returncode == 0, done.stderr


def test_a_forked_child_that_outlives_the_owner_does_not_hold_its_lock(registry_dir):
    script = (
        OWNER
        + """
    if os.fork() == 0:
        print("forked", flush=True)
        os.close(1), os.close(2)
        time.sleep(30)
        os._exit(0)
    time.sleep(60)
    """
    )
    with running(script) as child:
        assert child.stdout.readline() == "forked\n"
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        reap()
        assert os.listdir(registry_dir) == []
        kill_group_of(child)


def kill_group_of(child):
    """The orphans of a child that is dead already."""
    os.killpg(child.pid, signal.SIGKILL)


def test_reaping_removes_only_what_a_record_names(registry_dir):
    entries()
    token, other = secrets.token_hex(16), secrets.token_hex(16)
    for made in (token, other):
        with open(f"/dev/shm/{segment.segment_name(made)}", "w"):
            pass
    record = {"token": token, "name": segment.segment_name(other), "store": "shm"}
    (registry_dir / f"{token}.json").write_text(json.dumps(record))
    assert reap() == [segment.segment_name(token)]
    assert exists(segment.segment_name(other))
    memory.remove(segment.segment_name(other))


# --- publishing ---


def fill(arrays):
    arrays["rows"][...] = 7
    return {"about": "seven"}


def test_what_is_published_is_attached_to_and_remembered():
    owned, attachment = registry.publish("run", GEOMETRY, fill)
    assert (attachment.arrays["rows"] == 7).all()
    assert attachment.meta == {"about": "seven"}
    assert find("run") == attachment.handle
    with owned:
        pass
    assert entries() == []


@pytest.mark.parametrize("store", ["shm", "memfd"])
def test_what_cannot_be_filled_is_not_published(store):
    def failing(arrays):
        raise RuntimeError

    with pytest.raises(RuntimeError):
        registry.publish("run", GEOMETRY, failing, store)
    assert entries() == []


def descriptors():
    return sorted(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize(("call", "of"), [("replace", "registry"), ("unlink", "sharedmask-")])
@pytest.mark.parametrize("error", ["EIO", "ENOSPC"])
def test_a_name_that_cannot_be_removed_or_replaced_holds_no_descriptor(call, of, error, registry_dir):
    OwnedSegment("image", GEOMETRY, "shm").release()  # what is opened once
    before = descriptors()
    if call == "replace":
        owned = OwnedSegment("image", GEOMETRY, "shm")
        with failing(call, error, of=of), pytest.raises(OSError, match=r"error|space"):
            owned.share({})
        owned.release()
    else:
        owned = OwnedSegment("image", GEOMETRY, "shm")
        owned.share({})
        with failing(call, error, of=of), pytest.raises(OSError, match=r"error|space"):
            owned.release()
        assert len(reap()) == 1
    assert descriptors() == before
    assert os.listdir(registry_dir) == []


@pytest.mark.parametrize("store", ["shm", "memfd"])
def test_a_registry_that_is_full_is_named_with_the_way_out(store, registry_dir, monkeypatch):
    def full(fd, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        with pytest.raises(SegmentError, match=r"No space left on device \(SHAREDMASK_DIR names another"):
            OwnedSegment("image", GEOMETRY, store)
    assert os.listdir(registry_dir) == []


def test_a_registry_of_others_is_named_with_the_way_out_and_stops_only_what_needs_it(tmp_path, monkeypatch):
    path = save(tmp_path / "run.nii.gz", bold())
    (tmp_path / "squatted").mkdir(mode=0o777)
    (tmp_path / "squatted").chmod(0o777)
    monkeypatch.setenv("SHAREDMASK_DIR", str(tmp_path / "squatted"))
    with SharedImage(path) as image, pytest.raises(SegmentError, match="SHAREDMASK_DIR names another one"):
        image.load()
    assert extract(path, np.ones((7, 6, 5))).shape == (12, 210)
    with using(shared_memory=False), SharedImage(path) as image:
        assert image.mask(np.ones((7, 6, 5))).shape == (12, 210)


@pytest.mark.parametrize("name", ["", " ", "{a", "a\nb", None, 5])
def test_what_nobody_could_ask_for_is_no_name(name, tmp_path):
    with SharedImage(save(tmp_path / "run.nii.gz", bold())) as image:
        with pytest.raises(ParameterError, match=r"run\.nii\.gz cannot be published under the name"):
            image.publish(name)
        assert image.handle.label == "run.nii.gz"


@pytest.mark.parametrize("how", ["at first", "published"])
def test_a_name_that_no_record_holds_is_refused_and_nothing_is_left(how, tmp_path, segments_of_this_test):
    path = save(tmp_path / "run.nii.gz", bold())
    with (
        SharedImage(path, name="x" * 70_000 if how == "at first" else None) as image,
        pytest.raises(ParameterError, match=r"the name of a shared image is too long"),
    ):
        image.publish("x" * 70_000)
    assert not segments_of_this_test()


def test_the_newest_image_of_a_name_is_found_though_the_clock_was_set_back(tmp_path, monkeypatch):
    paths = [save(tmp_path / f"run-{i}.nii.gz", bold(seed=i)) for i in range(2)]
    with SharedImage(paths[0], name="run") as older, SharedImage(paths[1], name="run") as newer:
        older.load()
        monkeypatch.setattr(time, "time", lambda: 0.0)
        newer.load()
        assert find("run").token == newer.handle.token
