"""Files as they were: what counts as a change, and what does not."""

import os
import time

import pytest

from sharedmask.errors import MissingFileError
from sharedmask.system import settings
from sharedmask.system.identity import FileState, fingerprint

TICK = 0.05  # of the file system's clock, and more


@pytest.fixture(params=[200_000, 120_000], ids=["large", "read whole"])
def path(tmp_path, request):
    path = tmp_path / "run.nii"
    path.write_bytes(bytes(request.param))
    os.utime(path, (1, 1))
    time.sleep(TICK)
    return path


def written_in_the_middle(path):
    with open(path, "r+b") as file:
        file.seek(100_000)
        file.write(b"x")


def hidden(path):
    """What rsync -t, tar and touch -r do: only the time of the inode's change tells."""
    written_in_the_middle(path)
    os.utime(path, (1, 1))


def replaced(path):
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    os.utime(other, (1, 1))
    other.replace(path)


CHANGES = [written_in_the_middle, hidden, replaced, os.utime, lambda path: os.truncate(path, 1000)]


def digest(path):
    with open(path, "rb", buffering=0) as file:
        return fingerprint(file)


@pytest.mark.parametrize("change", [*CHANGES, os.unlink])
def test_a_file_that_changed_has(path, change):
    state = FileState.now(path)
    assert not state.has_changed()
    change(path)
    assert state.has_changed()


@pytest.mark.parametrize("change", CHANGES)
def test_a_fingerprint_changes_with_the_file(path, change):
    before = digest(path)
    assert digest(path) == before
    change(path)
    assert digest(path) != before


@pytest.mark.parametrize(
    ("change", "is_same"), [(hidden, False), (replaced, True), (os.utime, True), (os.chmod, True)]
)
def test_by_content_only_bytes_count(path, change, is_same):
    with settings.using(fingerprint="content"):
        before = digest(path)
        change(path, 0o600) if change is os.chmod else change(path)
        assert (digest(path) == before) is is_same


def test_where_the_inode_means_nothing_it_does_not_count(path):
    with settings.using(fingerprint="content"):
        state = FileState.now(path)
    path.chmod(0o600)
    replaced(path)
    assert not state.has_changed()
    os.utime(path)
    assert state.has_changed()


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(MissingFileError, match="none does not exist"):
        FileState.now(tmp_path / "none")
