"""Where frames are: which store is taken, damage, room."""

import numpy as np
import pytest
from faults import failing
from frame_cases import N, shift
from images import bold, niimg, save

from sharedmask import FrameDataset
from sharedmask.errors import (
    DamagedImageError,
    MemoryLimitError,
    ParameterError,
    SegmentError,
)
from sharedmask.system.settings import using


def test_a_full_folder_is_said_so(run, monkeypatch):
    monkeypatch.setenv("SHAREDMASK_TMPDIR", "/nowhere")
    with FrameDataset(run) as ds, pytest.raises(SegmentError, match="/nowhere does not exist"):
        ds.set_transform(0, shift())
    with pytest.raises(SegmentError, match="/nowhere"):
        FrameDataset(run, store="disk")


def test_room_is_reserved_on_disk(run):
    message = r"no room for .*No space left.*SHAREDMASK_TMPDIR"
    with failing("posix_fallocate", "ENOSPC"), pytest.raises(SegmentError, match=message):
        FrameDataset(run, store="disk")


def test_the_store_is_chosen(run, tmp_path, monkeypatch):
    compressed = save(tmp_path / "run.nii.gz", bold())
    foreign = save(tmp_path / "foreign.nii", bold().astype(">i2"))
    monkeypatch.setenv("SLURM_JOB_ID", "")
    for path, options, expected in [
        (run, {}, "file"),
        (run, {"store": "shm"}, "shm"),
        (compressed, {}, "shm"),
        (foreign, {}, "shm"),
        (compressed, {"memory_limit": 1000}, "disk"),
    ]:
        with FrameDataset(path, **options) as ds:
            assert ds.store[0] == expected
            assert expected in repr(ds)
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    with FrameDataset(compressed) as ds:
        assert ds.store[0] == "memfd"


@pytest.mark.some(2)
@pytest.mark.parametrize(
    ("knobs", "expected"),
    [
        ({"disk_threshold": 1000}, ("disk", "more than disk_threshold")),
        ({"memory_limit": 1000}, ("disk", "memory_limit")),
        ({"shared_memory": False}, ("disk", "shared_memory is off")),
        ({"disk_threshold": 1000, "use_disk": False}, ("shm", "the default")),
    ],
)
def test_settings_choose_the_store(monkeypatch, knobs, expected):
    monkeypatch.setenv("SLURM_JOB_ID", "")
    with using(**knobs), FrameDataset(niimg(bold())) as ds:
        store, reason = ds.store
        assert store == expected[0]
        assert expected[1] in reason
        assert ds.map(np.max, n_jobs=2) == [bold()[..., i].max() for i in range(N)]


@pytest.mark.parametrize(
    ("knobs", "error"),
    [
        ({"use_disk": False, "memory_limit": 1000}, MemoryLimitError),
        ({"use_disk": False, "shared_memory": False}, ParameterError),
    ],
)
def test_settings_may_leave_no_store(knobs, error):
    with using(**knobs), pytest.raises(error):
        FrameDataset(niimg(bold()))


def test_impossible_stores_are_refused(run, tmp_path):
    compressed = save(tmp_path / "run.nii.gz", bold())
    for source, store, said in [
        (compressed, "file", r"run\.nii\.gz cannot be mapped as it is \(it is compressed\)"),
        (niimg(bold()), "file", "not one file"),
        (run, "ram", "'ram' is none of 'auto', 'file'"),
    ]:
        with pytest.raises(ParameterError, match=said):
            FrameDataset(source, store=store)
    with pytest.raises(MemoryLimitError):
        FrameDataset(compressed, store="shm", memory_limit=1000)


@pytest.mark.parametrize("store", ["shm", "memfd", "disk"])
def test_a_damaged_file_leaves_nothing(tmp_path, store):
    path = save(tmp_path / "run.nii.gz", bold())
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DamagedImageError, match="truncated"):
        FrameDataset(path, store=store)
