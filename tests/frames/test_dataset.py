"""Frames: the values, who shares what, folds, transforms, and what is left behind."""

import gc
import json
import os
import pickle
import signal
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from children import kill_group, python, running
from faults import failing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from images import AFFINE, SHAPE, bold, niimg, same_bits, save, truth
from scipy.ndimage import affine_transform

from sharedmask import FrameDataset
from sharedmask.compute import pool
from sharedmask.errors import (
    AttachError,
    ClosedImageError,
    DamagedImageError,
    EmptyMaskError,
    FrameIndexError,
    MemoryLimitError,
    ParameterError,
    SegmentError,
)
from sharedmask.frames import kernels
from sharedmask.storage import mapped_file, registry
from sharedmask.storage.mapped_file import FileHandle
from sharedmask.storage.spill import Spill
from sharedmask.system.settings import using

N = 12
STORES = ["auto", "shm", "memfd", "disk"]


@pytest.fixture
def run(tmp_path):
    return save(tmp_path / "run.nii", bold(dtype="float32"))


def shift(millimetres=3.5):
    """Of one voxel along x, on a grid of 3.5 mm."""
    affine = np.eye(4)
    affine[0, 3] = millimetres
    return affine


# --- values --------------------------------------------------------------------------------------


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("dtype", ["int16", "uint8", "float32", "float64", ">i2", ">f4"])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_frames_have_the_bits_of_the_file(tmp_path, store, dtype, ending):
    data = (bold() % 200).astype(dtype)
    if data.dtype.kind == "f":
        data[0, 0, 0, 3] = np.nan
    path = save(tmp_path / f"run{ending}", data)
    with FrameDataset(path, store=store) as ds:
        assert (len(ds), ds.shape3d, ds.size3d) == (N, SHAPE, np.prod(SHAPE))
        same_bits(ds.dataobj, truth(path))
        for number, (frame, affine) in enumerate(ds):
            same_bits(frame, truth(path)[..., number])
            assert affine is None


def test_a_series_and_an_image_in_memory_are_runs_too(tmp_path):
    data = bold(dtype="float32")
    paths = [save(tmp_path / f"{t:02d}.nii", data[..., t]) for t in range(N)]
    with FrameDataset(paths) as series, FrameDataset(niimg(data)) as image:
        same_bits(series[:][0], data)
        same_bits(image[:][0], data)
        assert series == image


def test_scaled_images_give_true_values(tmp_path):
    path = save(tmp_path / "run.nii", bold(), slope=0.5, inter=3.0)
    with FrameDataset(path) as ds:
        same_bits(ds[4][0], truth(path)[..., 4])
        same_bits(ds[2:9:3][0], truth(path)[..., 2:9:3])
        same_bits(ds.stored, bold())
        assert ds.dtype == np.float64
        with pytest.raises(ParameterError, match="no view has the frames"):
            _ = ds.dataobj


@pytest.mark.parametrize("store", STORES)
def test_a_frame_is_a_contiguous_view(run, store):
    with FrameDataset(run, store=store) as ds:
        frame = ds[5][0]
        assert isinstance(frame, np.ndarray)
        assert np.shares_memory(frame, ds.dataobj)
        assert np.shares_memory(frame, ds[4:8][0])
        assert np.shares_memory(frame, ds.select([5])[0][0])
        assert frame.flags.f_contiguous
        assert not frame.flags.writeable
        assert frame[frame > 1000].ndim == 1
        assert len(np.array_split(frame, 3)) == 3


INDICES = st.one_of(
    st.integers(-N, N - 1),
    st.slices(N),
    st.lists(st.integers(-N, N - 1), max_size=2 * N),
    st.lists(st.booleans(), min_size=N, max_size=N).map(np.array),
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    path = save(tmp_path_factory.mktemp("frames") / "run.nii", bold(dtype="float32"))
    with FrameDataset(path, affines=np.arange(N * 16.0).reshape(N, 4, 4), per_frame=_fields()) as ds:
        yield ds


def _fields():
    return {"time": np.arange(N) * 2.0, "gradients": np.arange(N * 4.0).reshape(N, 4)}


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(index=INDICES)
def test_indices_mean_what_they_mean_to_numpy(dataset, index):
    at = np.array(index, int) if isinstance(index, list) else index
    data, affine, when, gradient = dataset[index]
    same_bits(np.asarray(data), bold(dtype="float32")[..., at])
    np.testing.assert_array_equal(affine, np.arange(N * 16.0).reshape(N, 4, 4)[at])
    np.testing.assert_array_equal(when, _fields()["time"][at])
    np.testing.assert_array_equal(gradient, _fields()["gradients"][at])


@pytest.mark.parametrize(
    "index", [N, -N - 1, "a", None, [0, N], np.ones(N + 1, bool), np.ones((2, 2), int), 1.5]
)
def test_what_is_no_frame_is_an_index_error(dataset, index):
    with pytest.raises(FrameIndexError, match="12 frames") as raised:
        _ = dataset[index]
    assert isinstance(raised.value, IndexError)


# --- fields --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"affines": np.zeros((3, 4, 4))}, r"motion_affines has shape \(3, 4, 4\) where \(12, 4, 4\)"),
        ({"affines": "moved"}, "motion_affines is no array of numbers"),
        ({"per_frame": {"time": np.arange(5)}}, r"time has shape \(5,\): .* the 12 frames"),
        ({"per_frame": {"dataobj": np.arange(N)}}, "'dataobj' is no name"),
        ({"per_frame": {"_x": np.arange(N)}}, "'_x' is no name"),
        ({"per_frame": {"a/b": np.arange(N)}}, "'a/b' is no name"),
        ({"per_frame": {"kind": ["b0"] * N}}, "kind holds <U2 values"),
        ({"overall": {"note": "text"}}, "note holds <U4 values"),
    ],
)
def test_wrong_fields_are_refused(run, fields, said):
    with pytest.raises(ParameterError, match=said):
        FrameDataset(run, **fields)


def test_the_mask_is_carried_along(run):
    brain = np.zeros(SHAPE, bool)
    brain[1:4, 2:, 1] = True
    with FrameDataset(run, mask_img=nib.Nifti1Image(brain.astype("u1"), AFFINE)) as ds:
        np.testing.assert_array_equal(ds.brainmask, brain)
        assert ds.select([1, 2]).brainmask is not None
    with pytest.raises(EmptyMaskError):
        FrameDataset(run, mask_img=np.zeros(SHAPE, bool))


# --- selections ----------------------------------------------------------------------------------


def test_numbers_of_frames_survive_filtering(run):
    kept = np.ones(N, bool)
    kept[[0, 7]] = False
    with FrameDataset(run, per_frame=_fields()) as ds:
        diffusion = ds.select(kept)
        again = diffusion.select(slice(5, None))
        assert [again.original_index(i) for i in range(len(again))] == [6, 8, 9, 10, 11]
        np.testing.assert_array_equal(again.per_frame["time"], [12, 16, 18, 20, 22])
        same_bits(again.original(1), truth(run)[..., 8])
        same_bits(again[-1][0], truth(run)[..., 11])
        again.close()
        assert not ds.closed


@pytest.mark.parametrize("index", [[], [2, 1], [3, 3], slice(5, 5), slice(None, None, -1), 3])
def test_a_selection_keeps_the_order(run, index):
    with FrameDataset(run) as ds, pytest.raises(ParameterError):
        ds.select(index)


# --- transforms ----------------------------------------------------------------------------------


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


def test_a_shift_by_a_voxel_is_exact_for_integers():
    frame = bold(dtype="int16")[..., 0]
    grid = np.diag([3.5, 3.5, 4, 1])
    moved = kernels.resample(frame, grid, shift(), 3, frame.dtype)
    same_bits(moved[:-1], frame[1:])
    high = kernels.resample(frame * 0 + np.int16(32767), grid, shift(0.3), 3, frame.dtype)
    assert high.min() >= 0


@pytest.mark.parametrize("affine", [np.eye(3), np.full((4, 4), np.nan), np.zeros((4, 4)), np.ones((4, 4))])
def test_what_is_no_affine_is_refused(run, affine):
    with FrameDataset(run) as ds, pytest.raises(ParameterError, match="affine"):
        ds.set_transform(0, affine)


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


# --- sums ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["int16", "uint8", "float32", "float64"])
def test_sums_are_those_of_the_frames_in_their_order(tmp_path, dtype):
    data = (bold() % 250).astype(dtype)
    with FrameDataset(save(tmp_path / "run.nii.gz", data)) as ds:
        for index, frame, training in ds.leave_one_out():
            others = np.delete(data, index, axis=3)
            expected = np.zeros(SHAPE)
            for other in np.moveaxis(others, 3, 0):
                expected += other
            same_bits(frame, data[..., index])
            same_bits(training.sum(), expected)
            same_bits(training.mean(), expected / (N - 1))
        total = np.zeros(SHAPE)
        for frame in np.moveaxis(data, 3, 0):
            total += frame
        same_bits(ds.sum(), total)


def test_a_transform_changes_the_sums(run, tmp_path):
    with FrameDataset(save(tmp_path / "run.nii.gz", bold())) as ds:
        training = ds.select(np.arange(N) != 0)
        before = training.sum()
        ds.set_transform(1, shift(10.0))
        assert not np.array_equal(training.sum(), before)
        same_bits(training.sum(), training[:][0].astype(np.float64).sum(axis=3))


def test_a_value_that_is_not_finite_stays_in_its_fold(tmp_path):
    data = bold(dtype="float32")
    data[0, 0, 0, 2] = np.nan
    with FrameDataset(save(tmp_path / "run.nii", data)) as ds:
        finite = [np.isfinite(training.mean()).all() for _, _, training in ds.leave_one_out()]
    assert finite == [index == 2 for index in range(N)]


def test_folds_split_the_run(run):
    with FrameDataset(run) as ds:
        tested = []
        for indices, test, training in ds.k_fold(5):
            tested += indices.tolist()
            same_bits(test[:][0], truth(run)[..., indices])
            same_bits(training.materialise(), np.delete(truth(run), indices, axis=3))
            same_bits(np.asarray(training), np.delete(truth(run), indices, axis=3))
        assert tested == list(range(N))
        for k in (1, N + 1, 2.5):
            with pytest.raises(ParameterError, match="12 frames cannot be split"):
                next(ds.k_fold(k))


def test_regressions_are_least_squares(run):
    design = np.column_stack([np.ones(N), np.arange(N), np.cos(np.arange(N))])
    with FrameDataset(run) as ds:
        found = ds.regress(design)
        series = truth(run).reshape(-1, N).T.astype(float)
        expected = np.linalg.lstsq(design, series, rcond=None)[0].T.reshape(*SHAPE, 3)
        np.testing.assert_allclose(found, expected, rtol=1e-9)
        with pytest.raises(ParameterError, match=r"finite \(12, k\)"):
            ds.regress(design[:5])


def test_a_reduction_sees_frames_and_fields(run):
    with FrameDataset(run, per_frame={"time": np.arange(N)}) as ds:
        total = ds.reduce(lambda state, frame, affine, time: state + time * float(frame[0, 0, 0]), 0.0)
    np.testing.assert_allclose(total, (truth(run)[0, 0, 0].astype(float) * np.arange(N)).sum())


def test_progress_is_told(run):
    told = []
    with FrameDataset(run) as ds:
        for _ in ds.frames(progress=lambda done, total: told.append((done, total))):
            pass
        assert sum(1 for _ in ds.frames(progress=True)) == N
    assert told == [(i + 1, N) for i in range(N)]


# --- other processes -----------------------------------------------------------------------------


@pytest.mark.parametrize("store", STORES)
def test_workers_see_the_same_frames(run, store):
    brain = np.ones(SHAPE, bool)
    with FrameDataset(run, store=store, mask_img=brain, per_frame=_fields()) as ds:
        assert len(pickle.dumps(ds)) < 2048
        back = pickle.loads(pickle.dumps(ds.select([1, 4, 5])))
        assert back == ds.select([1, 4, 5])
        assert np.shares_memory(back[1][0], ds[4][0]) or store in ("shm", "memfd")
        expected = [float(truth(run)[..., i].max()) for i in range(N)]
        assert ds.map(lambda frame: float(frame.max()), n_jobs=2) == expected
        ds.set_transform(4, shift())
        assert len(pickle.dumps(ds)) < 2048
        for got, (frame, _, *_) in zip(ds.map(np.array, n_jobs=2), ds, strict=True):
            same_bits(got, np.array(frame))
        with pytest.raises(ParameterError, match="only its owner"):
            pickle.loads(pickle.dumps(ds)).set_transform(1, shift())


LOOP = """
    import sys
    import numpy as np
    from joblib import Parallel, delayed
    from sharedmask import FrameDataset

    def error(ds, index):
        frame = ds[index][0]
        training = ds.select(np.arange(len(ds)) != index)
        return float(np.abs(frame - training.mean()).max())

    with FrameDataset(sys.argv[1]) as ds:
        ds.set_transform(2, np.diag([1, 1, 1.01, 1]))
        found = Parallel(2)(delayed(error)(ds, index) for index in range(len(ds)))
        assert found == [error(ds, index) for index in range(len(ds))]
"""


def test_a_joblib_loop_over_folds_sends_handles(run):
    done = python(LOOP, run)
    assert (done.returncode, done.stderr) == (0, "")


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


def test_threads_and_one_job_need_no_workers(run):
    heard = {}
    with FrameDataset(run) as ds:
        for options in ({}, {"n_jobs": 2, "prefer": "threads"}):
            means = ds.map(np.mean, on_result=heard.__setitem__, **options)
            assert means == [truth(run)[..., i].mean() for i in range(N)]
    assert heard == dict(enumerate(means))
    assert not pool._pools.get((), pool._Pool(()))._idle


def test_views_travel_as_handles(run):
    with FrameDataset(run) as ds:
        frame = ds[3][0]
        assert len(pickle.dumps(frame)) < 1024
        assert np.shares_memory(pickle.loads(pickle.dumps(frame[::2, 1:])), frame)


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


# --- stores --------------------------------------------------------------------------------------


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


def test_data_sets_are_equal_by_their_values(run, tmp_path):
    packed = save(tmp_path / "run.nii.gz", truth(run))
    other = save(tmp_path / "other.nii", truth(run) + np.float32(1))
    with FrameDataset(run) as one, FrameDataset(packed) as same, FrameDataset(other) as different:
        assert one == same
        assert one != different
        assert one != "run.nii"
        assert one.select([1]) != one.select([1, 2])
        same.set_transform(1, shift())
        assert one != same


# --- memory and what is left ---------------------------------------------------------------------

PEAK = """
    import sys
    from pathlib import Path
    import h5py, nibabel, numpy as np, psutil
    from sharedmask import FrameDataset
    from sharedmask.frames.convert import convert

    def status(name):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith(name)).split()[1]) * 1024

    FrameDataset(nibabel.Nifti1Image(np.ones((3, 3, 3, 2), "f4"), np.eye(4))).close()
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the imports
    before = status("VmRSS")
"""

WALKED = """
    with FrameDataset(sys.argv[1], store=sys.argv[2]) as ds:
        for frame in ds.frames():
            frame.max()
    print(status("VmHWM") - before)
"""

CONVERTED = """
    convert(sys.argv[1], sys.argv[2])
    print(status("VmHWM") - before)
"""

FOLDS = """
    with FrameDataset(sys.argv[1]) as ds:
        folds = list(ds.leave_one_out())
        for _, frame, training in folds[:3]:
            training.mean()
    print(status("VmHWM") - before)
"""

VOLUME = 64 * 76 * 64 * 4


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """40 volumes, 47 MiB, as .nii, .nii.gz, .h5 and compressed .h5."""
    folder = tmp_path_factory.mktemp("large")
    ramp = np.arange(64 * 76 * 64, dtype="f4").reshape(64, 76, 64) % 1000
    data = np.stack([ramp + t for t in range(40)], axis=-1)
    path = save(folder / "run.nii", np.asfortranarray(data))
    del data
    with FrameDataset(path) as ds:
        ds.to_nifti(folder / "run.nii.gz")
        ds.to_filename(folder / "run.h5")
        ds.to_filename(folder / "packed.h5", "gzip", 1)
    return folder


@pytest.mark.parametrize(
    ("name", "store"),
    [
        ("run.nii", "auto"),
        ("run.nii.gz", "shm"),
        ("run.nii.gz", "disk"),
        ("run.h5", "auto"),
        ("run.h5", "memfd"),
        ("packed.h5", "disk"),
    ],
)
def test_visiting_every_frame_takes_one_of_them(large, name, store):
    done = python(PEAK + WALKED, large / name, store)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < VOLUME + 32 * 2**20


@pytest.mark.parametrize(("source", "target"), [("run.nii.gz", "new.h5"), ("packed.h5", "new.nii.gz")])
def test_converting_takes_one_frame(large, tmp_path, source, target):
    done = python(PEAK + CONVERTED, large / source, tmp_path / target)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < VOLUME + 32 * 2**20


def test_all_folds_together_copy_nothing(large):
    done = python(PEAK + FOLDS, large / "run.nii")
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 4 * VOLUME + 16 * 2**20


OWNER = """
    import pickle, sys, time
    import numpy as np
    from sharedmask import FrameDataset

    ds = FrameDataset(sys.argv[1], store=sys.argv[2])
    affine = np.eye(4)
    affine[0, 3] = 1
    ds.set_transform(2, affine)
    pickle.dumps(ds)
    print("ready", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("store", ["file", "shm", "memfd", "disk"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_of_an_owner_that_is_killed(run, registry_dir, tmp_path, store, number):
    folder = tmp_path / "spilled"
    folder.mkdir()
    with running(OWNER, run, store, env={**os.environ, "SHAREDMASK_TMPDIR": str(folder)}) as child:
        if number == signal.SIGKILL:
            kill_group(child)
        else:
            os.kill(child.pid, number)
            child.wait()
    registry.reap()
    assert [path for path in folder.rglob("*") if path.is_file()] == []
    assert not list(Path(registry_dir).iterdir())


def test_an_unclosed_data_set_of_shared_frames_warns(run):
    ds = FrameDataset(run, store="memfd")
    with pytest.warns(ResourceWarning, match=r"run\.nii was not closed"):
        del ds
        gc.collect()
