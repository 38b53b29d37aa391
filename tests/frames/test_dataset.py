"""Frames: the values, who shares what, folds, transforms, and what is left behind."""

import gc
import os
import pickle
import signal
from pathlib import Path

import numpy as np
import pytest
from children import kill_group, python, running
from frame_cases import STORES, N, fields, shift
from images import SHAPE, bold, niimg, same_bits, save, truth

from sharedmask import FrameDataset
from sharedmask.errors import (
    ParameterError,
)
from sharedmask.storage import registry
from sharedmask.workers import pool

# --- values --------------------------------------------------------------------------------------


@pytest.mark.some(16)
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


# --- other processes -----------------------------------------------------------------------------


@pytest.mark.some(2)
@pytest.mark.parametrize("store", STORES)
def test_workers_see_the_same_frames(run, store):
    brain = np.ones(SHAPE, bool)
    with FrameDataset(run, store=store, mask_img=brain, per_frame=fields()) as ds:
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


@pytest.mark.long
def test_a_joblib_loop_over_folds_sends_handles(run):
    done = python(LOOP, run)
    assert (done.returncode, done.stderr) == (0, "")


def test_threads_and_one_job_need_no_workers(run):
    heard = {}
    with FrameDataset(run) as ds:
        for options in ({}, {"n_jobs": 2, "prefer": "threads"}):
            means = ds.map(np.mean, on_result=heard.__setitem__, **options)
            assert means == [truth(run)[..., i].mean() for i in range(N)]
    assert heard == dict(enumerate(means))
    assert not pool._pools.get((), pool._Pool(()))._idle


# --- memory and what is left ---------------------------------------------------------------------

PEAK = """
    import sys
    from pathlib import Path
    import h5py, nibabel, numpy as np, psutil
    from sharedmask import FrameDataset
    from sharedmask.frames.convert import convert
    from sharedmask.storage import memory_pages

    memory_pages._TRIED = 60  # large ones wherever the kernel has them, as on a machine with much free memory

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


@pytest.mark.some(1)
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
    done = python(PEAK + WALKED, large / name, store, fresh=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < VOLUME + 32 * 2**20


@pytest.mark.long
@pytest.mark.parametrize(("source", "target"), [("run.nii.gz", "new.h5"), ("packed.h5", "new.nii.gz")])
def test_converting_takes_one_frame(large, tmp_path, source, target):
    done = python(PEAK + CONVERTED, large / source, tmp_path / target, fresh=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < VOLUME + 32 * 2**20


def test_all_folds_together_copy_nothing(large):
    done = python(PEAK + FOLDS, large / "run.nii", fresh=True)
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


@pytest.mark.some(1)
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
