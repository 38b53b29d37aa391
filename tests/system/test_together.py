"""Files that get their names together: whole, or not there."""

import pytest

from sharedmask.system import files
from sharedmask.system.together import Together, at_once, settle


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
