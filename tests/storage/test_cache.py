"""Folders of caches: a file is made once, found until room is needed, and never anybody else's that goes."""

import fcntl
import logging
import os
import threading

import numpy as np
import pytest
from children import running

from sharedmask.errors import AttachError, SegmentError
from sharedmask.storage import container
from sharedmask.storage.cache import CacheFolder
from sharedmask.system import files, locks

A, B, C = (f"{number:032x}" for number in range(3))


@pytest.fixture
def kept(tmp_path):
    return CacheFolder(tmp_path / "folder", "the folder", "one-", 32, "kept")


def add(kept, key, size=1000):
    with kept.turn(key):
        path = kept.path / kept.name(key)
        with files.atomic_write(path) as temporary, open(temporary, "wb") as file:
            container.write(file.fileno(), [np.zeros(size, "u1")], key)
    return path


def find(kept, key):
    return kept.find(key, lambda fd: container.read(fd, key))


def test_what_was_made_is_found_and_nothing_else_is_there(kept):
    assert find(kept, A) is None
    add(kept, A)
    assert len(find(kept, A)[0]) == 1000
    assert os.listdir(kept.path) == [kept.name(A)]


def test_a_damaged_file_is_said_once_and_made_room_for(kept, caplog):
    path = add(kept, A)
    path.write_bytes(path.read_bytes()[:-1])
    with caplog.at_level(logging.WARNING):
        assert find(kept, A) is None
        assert find(kept, A) is None
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
        f"{path} is damaged, and is made again"
    ]
    assert os.listdir(kept.path) == []


def test_a_file_of_the_users_is_refused_and_stays(kept):
    path = add(kept, A)
    path.write_text("a user's work")
    with pytest.raises(SegmentError, match=r"kept is no file of sharedmask: move it away"):
        find(kept, A)
    assert not kept.remove(path.name)
    assert kept.make_room(lambda held: held == 0) == (0, 0)
    assert path.read_text() == "a user's work"


def test_the_least_recently_used_goes_unless_it_is_in_use(kept):
    paths = [add(kept, key) for key in (A, B, C)]
    for age, path in enumerate(paths):
        os.utime(path, ns=(0, age + 1))
    find(kept, A)
    size = paths[0].stat().st_size
    with open(paths[1], "rb") as used:
        fcntl.flock(used, fcntl.LOCK_SH)
        assert kept.make_room(lambda held: held <= 2 * size) == (2 * size, 1)
    assert [path.exists() for path in paths] == [True, True, False]


@pytest.mark.parametrize(("mode", "refused"), [(0o755, 0o077), (0o770, 0o022), (0o702, 0o022)])
def test_a_folder_that_others_can_use_is_refused(kept, mode, refused):
    kept.path.mkdir()
    os.chmod(kept.path, mode)
    with pytest.raises(SegmentError, match=r"the folder .* must be private"):
        CacheFolder(kept.path, "the folder", "one-", 32, "kept", refused).opened().__enter__()


def test_links_are_not_followed(kept, tmp_path):
    target = tmp_path / "other"
    target.write_bytes(add(kept, B).read_bytes())
    os.symlink(target, kept.path / kept.name(A))
    with pytest.raises(OSError, match="Too many levels"):
        find(kept, A)
    assert not kept.remove(kept.name(A))
    (tmp_path / "away").mkdir()
    os.symlink(tmp_path / "away", tmp_path / "link")
    with pytest.raises(SegmentError, match="cannot be used"):
        CacheFolder(tmp_path / "link", "the folder", "", 32, "kept").opened().__enter__()


TURN = """
    import sys, time
    from pathlib import Path
    from sharedmask.storage.cache import CacheFolder
    with CacheFolder(Path(sys.argv[1]), "the folder", "one-", 32, "kept").turn(sys.argv[2]):
        print("ready", flush=True)
        time.sleep(60)
"""


def test_what_the_dead_left_is_swept_and_what_the_living_hold_is_not(kept):
    add(kept, B)
    lock = f"one-{A}.lock"
    with running(TURN, kept.path, A) as child:
        assert kept.sweep() == []
        assert lock in os.listdir(kept.path)
        child.kill()
        child.wait()
    (kept.path / f"one-{C}.lock").write_text("a user's work")
    assert kept.sweep() == [lock]
    assert sorted(os.listdir(kept.path)) == [kept.name(B), f"one-{C}.lock"]


def test_a_wait_is_said_after_a_while(kept, monkeypatch):
    said, texts = threading.Event(), []
    monkeypatch.setattr(locks._log, "warning", lambda text, name: texts.append(text % name) or said.set())
    monkeypatch.setattr(locks, "_PATIENCE", 0.01)
    with running(TURN, kept.path, A) as child:
        threading.Thread(target=lambda: said.wait(60) and child.kill()).start()
        with kept.turn(A):
            assert texts == [f"another process holds {kept.path}/one-{A}.lock: waiting for it"]


def test_a_read_that_fails_is_the_callers(kept):
    add(kept, A)

    def failing(fd):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        kept.find(A, failing)
    assert find(kept, A) is not None


def test_refused_by_its_reader_is_damaged(kept):
    add(kept, A)

    def refusing(fd):
        raise AttachError("another one")

    assert kept.find(A, refusing) is None
    assert os.listdir(kept.path) == []
