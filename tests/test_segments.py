"""Segments: headers, handles, attaching, and every refusal."""

import dataclasses
import gc
import json
import mmap
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from sharedmask import segments
from sharedmask.errors import AttachError, SegmentError
from sharedmask.segments import Handle, Segment, attach

TOKEN = "0123456789abcdef" * 2
GEOMETRY = {"rows": ((3, 5), np.dtype("int16")), "voxels": ((3,), np.dtype(np.intp))}


@pytest.fixture
def segment():
    made = Segment(TOKEN, GEOMETRY)
    yield made
    made.unlink()
    vars(made).pop("_map", None)  # pytest holds on to the fixture's value


@pytest.fixture
def handle(segment):
    segment.array("rows")[:] = np.arange(15).reshape(3, 5)
    segment.array("voxels")[:] = [2, 3, 7]
    return segment.share("run.nii.gz", {"finite": True})


def test_attached_arrays_are_the_written_ones(handle):
    found = attach(handle)
    np.testing.assert_array_equal(found.arrays["rows"], np.arange(15).reshape(3, 5))
    np.testing.assert_array_equal(found.arrays["voxels"], [2, 3, 7])
    assert found.arrays["rows"].dtype == np.int16
    assert found.meta == {"finite": True}


def test_arrays_start_at_multiples_of_64_bytes(handle):
    for array in attach(handle).arrays.values():
        assert array.ctypes.data % 64 == 0


def test_attached_arrays_cannot_be_made_writable(handle):
    rows = attach(handle).arrays["rows"]
    with pytest.raises(ValueError, match="read-only"):
        rows[0, 0] = 1
    with pytest.raises(ValueError):
        rows.flags.writeable = True


def test_one_mapping_per_process(handle):
    assert attach(handle) is attach(handle)


def test_views_keep_their_bytes_after_unlink(handle, segment):
    view = attach(handle).arrays["rows"][1:, ::2].T
    segment.unlink()
    gc.collect()
    np.testing.assert_array_equal(view, np.arange(15).reshape(3, 5)[1:, ::2].T)
    segment._shm = segments._create(segment.name, segment.nbytes)  # for the fixture to unlink
    segment._shm.close()


def test_the_map_goes_with_the_last_view(handle):
    def mapped():
        with open("/proc/self/maps") as maps:
            return segments.segment_name(TOKEN) in maps.read()

    view = attach(handle).arrays["rows"][1]
    gc.collect()
    assert mapped()
    del view
    gc.collect()
    assert not mapped()


def test_sealed_segment_is_read_only_on_disk(handle, segment):
    assert os.stat(f"/dev/shm/{handle.name}").st_mode & 0o777 == 0o400
    with pytest.raises(AttributeError):
        segment.array("rows")


def test_output_segment_is_writable_by_workers():
    made = Segment(TOKEN, {"out": ((4,), np.dtype("f4"))})
    try:
        there = attach(made.share("output", {}, writable=True), writable=True).arrays["out"]
        there[:] = 7
        np.testing.assert_array_equal(made.array("out"), [7, 7, 7, 7])
    finally:
        made.unlink()


def test_handle_survives_json(handle):
    assert Handle.from_json(handle.to_json()) == handle
    assert len(handle.to_json()) < 600


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "{", '{"token": 1}', "null", "[" * 100_000, b"\xff\xfe", '"x"'], ids=range(9)
)
def test_what_is_no_handle_is_refused(text):
    with pytest.raises(AttachError, match="not a handle"):
        Handle.from_json(text)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("token", 3),
        ("nbytes", "4096"),
        ("pid", True),
        ("created", 1),
        ("label", None),
    ],
)
def test_fields_of_another_type_are_refused(handle, field, value):
    fields = json.loads(handle.to_json())
    fields[field] = value
    with pytest.raises(AttachError, match=field):
        Handle.from_json(json.dumps(fields))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "unknown kind"),
        ({"store": "tape"}, "unknown kind"),
        ({"token": "../../etc/passwd"}, "not the name"),
        ({"name": "../etc/passwd"}, "not the name"),
        ({"name": "sharedmask-0000000000000000"}, "not the name"),
        ({"host": "elsewhere"}, "elsewhere"),
        ({"boot_id": "earlier"}, "restart"),
        ({"uid": 12345}, "user 12345"),
        ({"ino": 1}, "another segment"),
        ({"dev": 1}, "another segment"),
        ({"nbytes": 4096}, "another segment"),
    ],
)
def test_a_handle_of_something_else_is_refused(handle, changes, message):
    with pytest.raises(AttachError, match=message):
        attach(dataclasses.replace(handle, **changes))


def test_a_segment_that_is_gone_is_refused(handle, segment):
    segment.unlink()
    with pytest.raises(AttachError, match=r"run\.nii\.gz is gone"):
        attach(handle)
    segment._shm = segments._create(segment.name, segment.nbytes)
    segment._shm.close()


def test_an_unfinished_segment_is_refused(segment):
    facts = os.stat(f"/dev/shm/{segment.name}")
    early = Handle(
        token=TOKEN,
        store="shm",
        name=segment.name,
        nbytes=segment.nbytes,
        dev=facts.st_dev,
        ino=facts.st_ino,
        uid=os.geteuid(),
        host=segments.socket.gethostname(),
        boot_id=segments.boot_id(),
        pid=os.getpid(),
        started=0,
        created=0.0,
        label="run",
    )
    with pytest.raises(AttachError, match="never finished"):
        attach(early)


def test_a_damaged_header_is_refused(handle, segment):
    path = f"/dev/shm/{handle.name}"
    os.chmod(path, 0o600)
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as page:
        page[100] ^= 1
    os.chmod(path, 0o400)
    with pytest.raises(AttachError, match="damaged"):
        attach(handle)


def _with_header(handle, change):
    """The same segment with another, correctly digested header."""
    path = f"/dev/shm/{handle.name}"
    os.chmod(path, 0o600)
    with open(path, "r+b") as file:
        facts = segments._parse_header(file.read(4096))
        change(facts)
        file.seek(0)
        file.write(segments._header(facts))
    os.chmod(path, 0o400)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("dtype", "|O"),
        ("dtype", "<M8[s]"),
        ("dtype", "<f4,<f4"),
        ("shape", [10**12, 10**12]),
        ("shape", [-3, -5]),
        ("shape", [2.5]),
        ("offset", 0),
        ("offset", 10**9),
    ],
)
def test_impossible_arrays_are_refused(handle, field, value):
    _with_header(handle, lambda facts: facts["arrays"]["rows"].update({field: value}))
    with pytest.raises(AttachError, match="rows"):
        attach(handle)


def test_a_header_of_another_token_is_refused(handle):
    _with_header(handle, lambda facts: facts.update(token="f" * 32))
    with pytest.raises(AttachError, match="another segment"):
        attach(handle)


def test_open_to_others_is_refused(handle):
    os.chmod(f"/dev/shm/{handle.name}", 0o444)
    with pytest.raises(AttachError, match="open to other users"):
        attach(handle)


def test_no_room_is_an_error_with_numbers_and_nothing_left(monkeypatch):
    def full(fd, start, length):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(SegmentError, match=r"too small: 1 MiB are needed and \d+ MiB were free"):
        Segment(TOKEN, {"rows": ((2**18,), np.dtype("f4"))})
    assert not os.path.exists(f"/dev/shm/{segments.segment_name(TOKEN)}")


def test_a_name_in_use_is_an_error(segment):
    with pytest.raises(SegmentError):
        Segment(TOKEN, GEOMETRY)


def test_too_many_facts_are_refused(segment):
    with pytest.raises(SegmentError, match="facts"):
        segment.share("x", {"long": "y" * 5000})


def test_remove_only_touches_our_names(tmp_path):
    assert not segments.remove("../etc/passwd")
    assert not segments.remove("sharedmask-xyz")
    assert not segments.remove("sharedmask-0000000000000000")


def test_an_unrelated_process_attaches_and_its_exit_harms_nothing(handle):
    script = f"""
        from sharedmask.segments import Handle, attach
        found = attach(Handle.from_json({handle.to_json()!r}))
        print(int(found.arrays["rows"].sum()))
    """
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", textwrap.dedent(script)],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert (done.stdout, done.stderr) == ("105\n", "")
    assert os.path.exists(f"/dev/shm/{handle.name}")


def test_start_time_tells_processes_apart():
    assert segments.start_time(os.getpid()) > 0
    assert segments.start_time(2**22 + 1) == 0
