"""The store of frames: transformed ones, how other processes find them, what views lead to."""

import gc
import gzip
import json
import os
import pickle

import gzip_files
import numpy as np
import pytest
from frame_cases import STORES, N, shift
from images import AFFINE, bold, same_bits, save, truth
from scipy.ndimage import affine_transform

from sharedmask import FrameDataset
from sharedmask.errors import (
    AttachError,
    ClosedImageError,
    DamagedImageError,
    ParameterError,
)
from sharedmask.sources.opening import open_source
from sharedmask.storage import indexes, mapped_file
from sharedmask.storage.mapped_file import FileHandle
from sharedmask.storage.spill import Spill


@pytest.mark.parametrize("store", STORES)
def test_a_transform_goes_to_a_copy_of_the_frame(run, store):
    before = run.read_bytes()
    with FrameDataset(run, store=store) as ds:
        view = ds[3][0]
        kept = view.copy()
        ds.set_transform(3, shift(), order=1)
        moved, affine = ds[3]
        np.testing.assert_array_equal(affine, shift())
        expected = affine_transform(
            truth(run)[..., 3], np.linalg.inv(AFFINE) @ shift() @ AFFINE, output=np.float32, order=1
        )
        same_bits(moved, expected)
        same_bits(ds.original(3), truth(run)[..., 3])
        same_bits(view, kept)
        np.testing.assert_array_equal(ds[2][1], np.eye(4))
        same_bits(ds[2:4][0], np.stack([truth(run)[..., 2], expected], -1))
        with pytest.raises(ParameterError, match="no view"):
            _ = ds.dataobj
    assert run.read_bytes() == before


def test_each_transform_starts_from_the_original(run):
    with FrameDataset(run) as ds:
        ds.set_transform(1, shift(2.0))
        ds.set_transform(1, shift(3.5))
        twice = ds[1][0].copy()
        ds.set_transform(2, np.eye(4))
        with FrameDataset(run) as other:
            other.set_transform(1, shift(3.5))
            same_bits(twice, other[1][0])
        ds.set_transform(1, np.eye(4))
        same_bits(ds.dataobj, truth(run))


def test_given_affines_stay_those_of_other_frames(run):
    affines = np.repeat(shift(1.0)[None], N, axis=0)
    with FrameDataset(run, affines=affines) as ds:
        ds.set_transform(4, shift(2.0))
        affines[4] = shift(2.0)
        np.testing.assert_array_equal(ds.motion_affines, affines)


def test_a_later_transform_is_seen_by_who_attached_before(run):
    with FrameDataset(run) as ds:
        ds.set_transform(0, shift())
        back = pickle.loads(pickle.dumps(ds))
        ds.set_transform(1, shift())
        same_bits(back[1][0], ds[1][0])
        np.testing.assert_array_equal(back.motion_affines, ds.motion_affines)


def test_a_long_run_with_many_facts_is_a_small_handle(tmp_path):
    n = 1500
    path = save(tmp_path / "run.nii", bold((3, 3, 3, n)))
    with FrameDataset(path, affines=np.ones((n, 4, 4)), per_frame={"time": np.arange(n)}) as ds:
        assert len(pickle.dumps(ds.select(np.arange(n) % 3 > 0))) < 2048


def test_views_travel_as_handles(run):
    with FrameDataset(run) as ds:
        frame = ds[3][0]
        assert len(pickle.dumps(frame)) < 1024
        assert np.shares_memory(pickle.loads(pickle.dumps(frame[::2, 1:])), frame)


def test_private_frames_stay_in_their_process(run):
    with FrameDataset(run, store="private") as frames:
        with pytest.raises(ParameterError, match=r"run\.nii is held by this process alone: "):
            pickle.dumps(frames)
        np.testing.assert_array_equal(frames[0][0], truth(run)[..., 0])


def test_a_changed_file_is_noticed(run):
    with FrameDataset(run) as ds:
        handle = pickle.dumps(ds[0][0])
    del ds
    gc.collect()  # now it is not mapped here, as in another process
    os.utime(run, ns=(1, 1))
    with pytest.raises(AttachError, match="or has changed"):
        pickle.loads(handle)


def test_writing_to_a_mapped_file_is_noticed(run):
    with FrameDataset(run) as ds:
        os.utime(run, ns=(1, 1))
        with pytest.raises(DamagedImageError, match="written to while"):
            _ = ds[0]


def test_a_mapped_file_that_was_written_to_and_removed_is_noticed(run):
    with FrameDataset(run) as ds:
        os.utime(run, ns=(1, 1))
        run.unlink()
        with pytest.raises(DamagedImageError, match="written to while"):
            _ = ds[0]


def test_a_replaced_file_is_no_matter(run, tmp_path):
    values = truth(run).copy()
    with FrameDataset(run) as ds:
        os.replace(save(tmp_path / "other.nii", bold(seed=1, dtype="float32")), run)
        same_bits(ds[3][0], values[..., 3])


def test_handles_lead_to_their_file_only(run, tmp_path):
    mapped = mapped_file.map_users_file(run, "run.nii")
    handle = mapped.handle.to_json()
    for field, value, said in [
        ("ino", 1, "another file"),
        ("nbytes", 1, "another file"),
        ("boot_id", "x", "before a restart"),
        ("path", str(tmp_path / "gone"), "No such file"),
        ("path", "/dev/null", "is no file"),
        ("token", "x" * 32, "none of ours"),
        ("dev", "x", "dev is no int"),
    ]:
        facts = json.loads(handle)
        (facts["file"] if field in facts["file"] else facts)[field] = value
        with pytest.raises(AttachError, match=said):
            mapped_file.attach_file(FileHandle.from_json(json.dumps(facts)))
    for text in ("[]", handle.replace('"label":', '"name":'), handle.replace('"token":""', '"token":1')):
        with pytest.raises(AttachError, match="not a handle"):
            FileHandle.from_json(text)


def test_a_closed_file_of_ours_is_gone():
    spill = Spill("test", {"a": ((3, 4), np.dtype("f8"))})
    handle = spill.handle
    spill.write("a", 1, np.arange(4.0))
    np.testing.assert_array_equal(spill.array("a"), [[0] * 4, [0, 1, 2, 3], [0] * 4])
    spill.release()
    spill.release()
    gc.collect()
    with pytest.raises(AttachError, match="cannot be mapped"):
        mapped_file.attach_file(handle)


@pytest.mark.parametrize("store", STORES)
def test_views_outlive_the_data_set(run, store):
    ds = FrameDataset(run, store=store)
    ds.set_transform(0, shift())
    moved, frame = ds[0][0], ds[3][0]
    expected = moved.copy()
    ds.close()
    ds.close()
    same_bits(moved, expected)
    same_bits(frame, truth(run)[..., 3])
    assert "closed" in repr(ds)
    for use in (lambda: ds[3], lambda: ds.original(3), lambda: ds.set_transform(0, shift()), ds.sum):
        with pytest.raises(ClosedImageError, match=r"run\.nii is closed"):
            use()
    with pytest.raises(ClosedImageError):
        pickle.dumps(ds)


def test_a_few_frames_are_decoded_by_an_index(tmp_path, monkeypatch):
    """Then all are loaded; what is written of them is the same."""
    pytest.importorskip("rapidgzip")
    gzip_files.small_pieces(monkeypatch)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    path = tmp_path / "run.nii.gz"
    path.write_bytes(gzip.compress(gzip_files.raw_run(tmp_path), 1))
    with FrameDataset(path) as plain:
        expected = np.array(plain[:][0])
    indexes.make(open_source(path))
    with FrameDataset(path) as frames:
        for number in (31, 0, -1, 7):
            frame = frames[number][0]
            np.testing.assert_array_equal(frame, expected[..., number])
            assert not frame.flags.writeable and frames.store[0] == "index"
        assert "index" in repr(frames)
        assert len([frame for frame, *_ in frames]) == 60 and frames.store[0] != "index"
        np.testing.assert_array_equal(frames[:][0], expected)
    with pytest.raises(ClosedImageError):
        frames[0]
    with FrameDataset(path) as frames:
        frames[3]
        other = pickle.loads(pickle.dumps(frames))
        np.testing.assert_array_equal(other[5][0], expected[..., 5])
    with pytest.raises(ParameterError, match="store="):
        FrameDataset(path, store="nowhere")
