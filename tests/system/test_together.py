"""Files that get their names together: whole, or not there."""

import os

import pytest

from sharedmask.system import files
from sharedmask.system.together import Together, at_once, settling, waiting


def settle(groups):
    """Without anything else to do meanwhile."""
    with waiting() as threads:
        steps = settling(groups, threads)
        while True:
            try:
                next(steps).wait()
            except StopIteration as end:
                return end.value


def written(folder, name):
    with Together() as group, files.atomic_write(folder / name) as temporary:
        temporary.write_text(name)
    return group


def test_of_files_that_fail_together_none_is_there_and_others_are(tmp_path, monkeypatch):
    groups, sync = [written(tmp_path, name) for name in "ab"], files.Draft.sync

    def failing(draft):
        if draft.path.name == "a":
            raise OSError(28, "No space left on device")
        sync(draft)

    monkeypatch.setattr(files.Draft, "sync", failing)
    errors = settle(groups)
    assert [type(error) for error in errors] == [OSError, type(None)]
    assert sorted(path.name for path in tmp_path.glob("?")) == ["b"] and not any(
        group.drafts for group in groups
    )


def test_a_block_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(KeyError), Together() as group:
        with files.atomic_write(tmp_path / "a") as temporary:
            temporary.write_text("a")
        raise KeyError
    assert not any(tmp_path.glob("?")) and settle([group]) == [None]


def test_files_have_their_names_when_they_are_settled_and_old_ones_until_then(tmp_path):
    (tmp_path / "a").write_text("old")
    group = written(tmp_path, "a")
    assert (tmp_path / "a").read_text() == "old"
    assert settle([group, written(tmp_path, "b")]) == [None, None]
    assert [(tmp_path / name).read_text() for name in "ab"] == ["a", "b"]


def test_each_call_is_made_and_what_it_raised_is_told():
    errors = at_once(lambda number: 1 // number, [1, 0, 2])
    assert [type(error) for error in errors] == [type(None), ZeroDivisionError, type(None)]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


@pytest.fixture(params=["nameless", "named"])
def kinds_of_files(request, monkeypatch):
    """Folders where files need no name, and those, as of file servers, where they have one."""
    if request.param == "named":
        monkeypatch.setattr(files, "nameless", lambda folder, mode=0o600: None)


@pytest.mark.parametrize("size", [0, 10, files._FEW + 1])
def test_text_is_whole_under_its_name_when_it_is_settled(folder, kinds_of_files, size):
    (folder / "a").write_text("old")
    with Together() as group:
        files.write_text(folder / "a", ["ä" * size])
    assert (folder / "a").read_text() == "old"
    assert settle([group]) == [None]
    assert (folder / "a").read_bytes() == ("ä" * size).encode() and len(list(folder.iterdir())) == 1


def lines_that_end(size):
    yield from ["a" * size] * files._LINES
    raise KeyError


@pytest.mark.parametrize("size", [10, files._FEW + 1])
def test_text_that_is_not_finished_leaves_nothing(folder, kinds_of_files, size):
    with pytest.raises(KeyError), Together() as group:
        files.write_text(folder / "a", ["a" * size])
        files.write_text(folder / "b", lines_that_end(size))
    assert not list(folder.iterdir()) and settle([group]) == [None]


def test_a_file_that_cannot_be_made_is_named_and_is_its_own_groups(folder, kinds_of_files):
    (folder / "gone").mkdir()
    groups = []
    for name in ("gone/a", "b"):
        with Together() as group:
            files.write_text(folder / name, ["a"])
        groups.append(group)
    (folder / "gone").rmdir()
    error, none = settle(groups)
    assert error.filename == str(folder / "gone" / "a") and none is None
    assert [path.name for path in folder.iterdir()] == ["b"]


def test_a_pipe_is_written_to_in_a_group_too(folder):
    os.mkfifo(folder / "pipe")
    reader = os.open(folder / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    with Together() as group:
        for name in ("a", "pipe"):
            files.write_text(folder / name, ["it"])
    assert os.read(reader, 9) == b"it" and len(group.drafts) == 1
    os.close(reader)
    group.end()
