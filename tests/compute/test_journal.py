"""Journals: what is complete survives kills, and nothing else counts as complete."""

import json
import os

import pytest
from children import python
from faults import Call, failing, recorded
from hypothesis import given, settings
from hypothesis import strategies as st

from sharedmask.compute.journal import Entry, Failures, Journal
from sharedmask.errors import ParameterError, SharedMaskWarning


@pytest.fixture
def path(tmp_path):
    return tmp_path / "study" / "done.jsonl"


def test_complete_runs_are_found_again(path):
    Journal(path).add(Entry("sub-01", "abc", (), 1.5))
    again = Journal(path)
    assert again.has("sub-01", "abc")
    assert not again.has("sub-01", "other inputs")
    assert not again.has("sub-02", "abc")


def test_a_journal_without_a_run_and_whose_images_are_there_is_not_asked_of_it(path, tmp_path):
    (image := tmp_path / "here.nii.gz").touch()
    entry = Entry(str(image), "abc", content="held", is_file=True)
    Journal(path).add(entry)
    assert Journal(path).may_have(entry.key) and not Journal(path).may_have("sub-02")
    image.unlink()  # and any may be this one, moved
    assert Journal(path).may_have("sub-02")


def test_the_last_entry_counts(path):
    journal = Journal(path)
    journal.add(Entry("sub-01", "old"))
    journal.add(Entry("sub-01", "new"))
    for seen in (journal, Journal(path)):
        assert seen.has("sub-01", "new") and not seen.has("sub-01", "old")


def test_a_run_whose_output_is_gone_is_not_complete(path, tmp_path):
    output = tmp_path / "out.tsv"
    output.touch()
    Journal(path).add(Entry("sub-01", "abc", (str(output),)))
    assert Journal(path).has("sub-01", "abc")
    output.unlink()
    assert not Journal(path).has("sub-01", "abc")


def test_outputs_are_found_from_another_directory_and_after_a_move(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path.parent.mkdir()
    (path.parent / "out.tsv").touch()
    Journal(path).add(Entry("sub-01", "abc", ("study/out.tsv",)))
    monkeypatch.chdir("/")
    assert Journal(path).has("sub-01", "abc")
    path.parent.rename(tmp_path / "moved")
    assert Journal(tmp_path / "moved" / path.name).has("sub-01", "abc")


@settings(max_examples=40)
@given(cut=st.integers(1, 200))
def test_a_line_cut_short_loses_only_itself(tmp_path_factory, cut):
    path = tmp_path_factory.mktemp("journal") / "done.jsonl"
    journal = Journal(path)
    journal.add(Entry("first", "abc"))
    whole = path.stat().st_size
    journal.add(Entry("second", "abc"))
    os.truncate(path, max(whole, path.stat().st_size - cut))
    after = Journal(path)
    after.add(Entry("third", "abc"))
    last = Journal(path)
    assert last.has("first", "abc") and last.has("third", "abc")
    # Without its end of line an entry is whole; without one character more it is not.
    assert last.has("second", "abc") == (cut == 1)


def test_processes_append_to_one_journal(path):
    script = """
        import sys
        from sharedmask.compute.journal import Entry, Failures, Journal
        journal = Journal(sys.argv[1])
        for number in range(50):
            journal.add(Entry(f"{sys.argv[2]}-{number}", "x" * 500))
    """
    import threading

    children = [threading.Thread(target=python, args=(script, path, name)) for name in "abc"]
    for child in children:
        child.start()
    for child in children:
        child.join()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert {line["key"] for line in lines} == {f"{name}-{number}" for name in "abc" for number in range(50)}


def test_what_is_no_journal_is_refused(tmp_path):
    with pytest.raises(ParameterError, match=r"cannot be read as a journal"):
        Journal(tmp_path)


def test_what_was_moved_is_known_by_its_content(path, tmp_path):
    image, moved = tmp_path / "a.nii", tmp_path / "b.nii"
    image.touch()
    Journal(path).add(Entry(str(image), "here", (), 0.0, "what it holds", is_file=True))
    asked = []

    def content(holds="what it holds"):
        asked.append(holds)
        return holds

    assert Journal(path).has(str(image), "here", content) and asked == []
    assert Journal(path).has(str(image), "written again", content)
    assert not Journal(path).has(str(image), "changed", lambda: content("something else"))
    assert not Journal(path).has(str(moved), "there", content)  # a copy has outputs of its own
    image.rename(moved)
    assert Journal(path).has(str(moved), "there", content)
    asked.clear()
    assert Journal(path).has(str(moved), "there", content) and asked == []  # noted


def test_files_are_named_as_seen_from_the_journal(path, tmp_path):
    (tmp_path / "a.nii").touch()
    Journal(path).add(Entry(str(tmp_path / "a.nii"), "abc", is_file=True))
    tmp_path.joinpath("elsewhere").mkdir()
    for name in ("a.nii", "study"):
        (tmp_path / name).rename(tmp_path / "elsewhere" / name)
    assert Journal(tmp_path / "elsewhere" / "study" / path.name).has(
        str(tmp_path / "elsewhere" / "a.nii"), "abc"
    )


def test_a_line_nested_too_deep_is_passed_over(path):
    Journal(path).add(Entry("sub-01", "abc"))
    with open(path, "a") as file:
        file.write("[" * 100_000 + "\n")
    Journal(path).add(Entry("sub-02", "abc"))
    assert [entry.key for entry in Journal(path).entries] == ["sub-01", "sub-02"]


@pytest.mark.parametrize("damage", [b"", b"{", b"[" * 100_000, b"[1]", b"{}", b'{"run": 3}', b"\xff\xfe"])
def test_a_damaged_failure_is_told_and_its_run_done_again(damage, tmp_path):
    failures = Failures(tmp_path)
    failures.add("sub-01", ValueError("cut short"))
    failures.add("sub-02", ValueError("cut short"))
    (path,) = tmp_path.glob("sub-01*")
    path.write_bytes(damage)
    found = failures.all()
    assert found.pop("sub-02") == "ValueError: cut short"
    ((_, said),) = found.items()
    assert str(path) in said


@pytest.mark.parametrize("key", ["x" * 5000, "ä" * 228, "/data/" + "y" * 250, "a/b" * 100])
def test_a_failure_of_any_name_has_a_file(key, tmp_path):
    failures = Failures(tmp_path)
    failures.add(key, ValueError("cut short"))
    failures.add(key + "2", ValueError("cut short"))
    assert failures.all() == {key: "ValueError: cut short", key + "2": "ValueError: cut short"}
    failures.remove(key)
    assert list(failures.all()) == [key + "2"]


@pytest.mark.parametrize("change", ["emptied", "cut", "changed", "removed"])
def test_an_output_that_is_not_whole_is_made_again(tmp_path, change):
    output = tmp_path / "out.tsv"
    output.write_text("a\tb\n1\t2\n")
    path = tmp_path / "done.jsonl"
    Journal(path).add(Entry("sub-01", "digest", (str(output),)))
    assert Journal(path).has("sub-01", "digest")
    changes = {
        "emptied": lambda: output.write_text(""),
        "cut": lambda: output.write_text("a\tb\n1"),
        "changed": lambda: output.write_text("a\tb\n1\t3\n"),
        "removed": output.unlink,
    }
    changes[change]()
    assert not Journal(path).has("sub-01", "digest")


def test_journals_without_sums_are_read(tmp_path):
    path = tmp_path / "done.jsonl"
    path.write_text('{"key":"sub-01","digest":"d","outputs":["done.jsonl"],"seconds":1.0}\n')
    assert Journal(path).has("sub-01", "d")


def test_outputs_and_their_names_are_on_the_disk_before_the_line(tmp_path):
    output, path = tmp_path / "out" / "out.tsv", tmp_path / "private" / "done.jsonl"
    output.parent.mkdir()
    output.write_text("a\n")
    with recorded() as calls:
        Journal(path).add(Entry("sub-01", "digest", (str(output),)))
    synced = [call.target for call in calls if call.name == "fsync"]
    assert synced == [str(output), str(output.parent), str(path), str(path.parent)]
    written = [number for number, call in enumerate(calls) if call == Call("write", str(path))]
    assert [
        number for number, call in enumerate(calls) if call == Call("fsync", str(output.parent))
    ] < written


@pytest.mark.parametrize("error", ["ENOSPC", "EIO", "short"])
def test_a_line_that_cannot_be_written_names_the_journal(tmp_path, error):
    path = tmp_path / "done.jsonl"
    if error == "short":
        with failing("write", error, of="done.jsonl"):
            Journal(path).add(Entry("sub-01", "digest"))
        assert Journal(path).has("sub-01", "digest")
        return
    with failing("write", error, of="done.jsonl"), pytest.raises(OSError, match=r"done\.jsonl"):
        Journal(path).add(Entry("sub-01", "digest"))
    assert not Journal(path).has("sub-01", "digest")


@pytest.mark.parametrize("sums", [[], ["x"], ["R06-ab"], ["1-ab", "2-cd"], [None]])
def test_a_run_with_damaged_sums_is_not_complete(sums, path, tmp_path):
    output = tmp_path / "out.tsv"
    output.write_text("a")
    Journal(path).add(Entry("sub-01", "abc", (str(output),)))
    facts = json.loads(path.read_text())
    path.write_text(json.dumps({**facts, "sums": sums or ["", ""]}) + "\n")
    assert not Journal(path).has("sub-01", "abc")


def test_a_failure_that_cannot_be_recorded_is_a_warning(tmp_path):
    (tmp_path / "failed").write_text("no folder")
    with pytest.warns(SharedMaskWarning, match=r"the failure of sub-01 is not recorded: .*failed"):
        Failures(tmp_path / "failed").add("sub-01", ValueError("x"))
    assert Failures(tmp_path / "failed").all() == {}
