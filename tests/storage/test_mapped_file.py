"""An image in its own file: mapped as it is, never written, refused when it is another one."""

import os
import pickle
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from children import python
from hypothesis import given, settings
from hypothesis import strategies as st
from images import SHAPE, bold, niimg, random_masks, same_bits, save, truth

from sharedmask import SharedImage
from sharedmask.errors import AttachError, ImageError, MemoryLimitError, ParameterError
from sharedmask.sources import loader
from sharedmask.sources.values import Conversion
from sharedmask.storage import mapped_file, rows
from sharedmask.storage.mapped_file import FileIdentity

MASKS = random_masks(3)


@pytest.fixture
def path(tmp_path):
    return save(tmp_path / "run.nii", bold())


def as_it_is(path, **options):
    return SharedImage(path, store="file", **options)


def test_the_array_is_a_view_of_the_file(path, monkeypatch):
    monkeypatch.setattr(loader, "load", None)
    with as_it_is(path) as image:
        same_bits(np.asarray(image.array), truth(path))
        assert image.store == ("file", "asked for")
        assert not image.array.flags.writeable
        with open("/proc/self/maps") as maps:
            assert any(line.split()[-1] == str(path) and "r--s" in line for line in maps)


def test_the_file_stays_as_it_was(path):
    before, content = os.stat(path), path.read_bytes()
    os.chmod(path, 0o400)
    with as_it_is(path) as image:
        image.mask_parallel(MASKS)
        image.frame(2)
        image.publish("run")
    after = os.stat(path)
    assert (after.st_mtime_ns, after.st_ino, path.read_bytes()) == (
        before.st_mtime_ns,
        before.st_ino,
        content,
    )


def test_another_process_maps_the_same_file(path):
    script = """
        import sys
        from sharedmask import SharedImage
        image = SharedImage.attach(sys.argv[1])
        print(image.store[0], int(image.array.sum()), int(image.mask(image.array[..., 0] > 1000).sum()))
    """
    with as_it_is(path) as image:
        handle = image.handle.to_json()
        done = python(script, handle)
        inside = truth(path)[..., 0] > 1000
    assert len(handle) < 2000
    values = truth(path).astype("f4")
    assert done.stdout.split() == ["file", str(int(values.sum())), str(int(values[inside].T.sum()))], (
        done.stderr
    )


def test_views_travel_as_handles(path):
    with as_it_is(path) as image:
        for view in (image.array, image.array[1:, ::2, -1], image.frame(3), image.array[..., 2:5]):
            sent = pickle.dumps(view)
            assert len(sent) < 2000
            same_bits(np.asarray(pickle.loads(sent)), np.asarray(view))


@pytest.mark.some(1)
@pytest.mark.parametrize("how", [{}, {"n_jobs": 2}, {"n_jobs": 2, "prefer": "processes"}], ids=str)
def test_all_requests_have_the_numbers_of_other_stores(path, how):
    with as_it_is(path) as image, SharedImage(path, store="shm") as other:
        for ask in (
            lambda image: image.mask_parallel(MASKS, **how),
            lambda image: image.mask_parallel(MASKS, standardize="zscore_sample", **how),
            lambda image: [image.reduce(MASKS, "median", **how)],
            lambda image: image.map(np.cov, MASKS, **how),
            lambda image: [signals for _, signals in image.iter_masks(MASKS, batch_size=2, **how)],
            lambda image: [np.asarray(image.as_nifti().dataobj)],
        ):
            for got, right in zip(ask(image), ask(other), strict=True):
                same_bits(got, right)


def test_results_are_told_as_they_are_ready(path):
    told, done = {}, []
    with as_it_is(path) as image:
        image.mask_parallel(
            dict(zip("abc", MASKS, strict=True)),
            on_result=told.__setitem__,
            progress=lambda now, total: done.append((now, total)),
        )
    assert list(told) == ["a", "b", "c"]
    assert done[-1][0] == done[-1][1]


def test_values_that_are_not_finite_are_found_on_the_way(tmp_path):
    data = bold(dtype="float32")
    data[2, 3, 1, 4] = np.nan
    path = save(tmp_path / "run.nii", data)
    mask = np.ones(SHAPE, bool)
    with as_it_is(path) as image:
        assert image.mask(mask).min() == 0
        with pytest.raises(ParameterError, match="not finite"):
            image.mask(mask, nan_policy="raise")


@given(
    n_timepoints=st.integers(1, 70),
    n_voxels=st.integers(1, 60),
    picked=st.lists(st.integers(0, 59), max_size=30),
    scaled=st.booleans(),
)
@settings(max_examples=60)
def test_picking_is_indexing(n_timepoints, n_voxels, picked, scaled):
    volumes = np.random.default_rng(0).integers(0, 1000, (n_timepoints, n_voxels)).astype("i2")
    voxels = np.array(picked, np.intp) % n_voxels
    double = np.dtype(float)
    conversion = Conversion(2.0, 1.0, double, double) if scaled else None
    out = np.empty((len(voxels), n_timepoints), double if scaled else volumes.dtype)
    lying = rows.MappedVolumes(
        "run.nii", (n_voxels, 1, 1, n_timepoints), 4, volumes.dtype, np.eye(4), 1.0, 0.0, None, "", None, (),
        volumes.T.reshape(n_voxels, 1, 1, n_timepoints),
        SimpleNamespace(arrays={"volumes": volumes}, is_written_to=lambda: False),
    )  # fmt: skip
    assert rows.fill(lying, out, voxels, conversion)
    right = volumes[:, voxels].T
    same_bits(out, right * 2.0 + 1.0 if scaled else right)


@pytest.mark.some(1)
@pytest.mark.parametrize("change", ["rewritten", "touched", "removed"])
def test_a_file_that_changed_is_refused(path, change):
    with as_it_is(path) as image:
        handle = image.handle
    changes = {"rewritten": lambda: save(path, bold(seed=1)), "touched": lambda: os.utime(path)}
    with as_it_is(path) as image:
        handle = image.handle.to_json()
        changes.get(change, path.unlink)()
        done = python(
            "import sys; from sharedmask import SharedImage; SharedImage.attach(sys.argv[1])", handle
        )
    assert "AttachError" in done.stderr
    assert "is another file now, or has changed" in done.stderr or "cannot be opened" in done.stderr


@pytest.mark.parametrize(
    "write",
    [
        lambda folder: save(folder / "run.nii.gz", bold()),
        lambda folder: save(folder / "run.nii", bold().astype(">i2")),
        lambda folder: [save(folder / f"{i}.nii", bold(SHAPE)) for i in range(3)],
        lambda folder: niimg(bold()),
    ],
    ids=["compressed", "foreign", "series", "in memory"],
)
def test_what_cannot_be_used_as_it_is_is_refused(write, tmp_path):
    with pytest.raises(ImageError, match="cannot be used as it is"):
        as_it_is(write(tmp_path)).load()


def test_a_mask_img_is_refused(path):
    with pytest.raises(ParameterError, match="mask_img selects nothing"):
        as_it_is(path, mask_img=MASKS[0]).load()


def test_a_file_larger_than_memory_is_masked_and_too_many_rows_of_it_are_refused(tmp_path):
    data = bold((48, 48, 32, 60), "float32")
    path = save(tmp_path / "run.nii", data)
    mask = random_masks(1, data.shape[:3], density=0.005)[0]
    with as_it_is(path, memory_limit=data.nbytes // 4) as image:
        same_bits(image.mask(mask), data[mask].T)
        for ask in (image.mask, lambda mask: image.reduce([mask]), lambda mask: image.map(len, [mask])):
            with pytest.raises(MemoryLimitError, match=r"run\.nii"):
                ask(np.ones(data.shape[:3], bool))


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"path": 1},
        [],
        "x",
        {"path": "/x", "dev": 1, "ino": 1, "nbytes": 1, "mtime_ns": "0", "ours": True},
    ],
)
def test_what_is_no_identity_of_a_file_is_refused(given):
    with pytest.raises(AttachError, match="not the identity of a file"):
        FileIdentity.from_dict(given)


def test_a_pipe_in_the_place_of_the_file_does_not_block(path):
    with as_it_is(path) as image:
        handle = image.handle.to_json()
        Path(path).unlink()
        os.mkfifo(path)
        done = python(
            "import sys; from sharedmask import SharedImage; SharedImage.attach(sys.argv[1])", handle
        )
    assert "is no file" in done.stderr


CASES = [(5000, False, True), (5000, True, False), (4999, False, False)]


@pytest.mark.parametrize(("room", "cached", "is_read"), CASES)
def test_a_file_is_read_through_if_it_is_not_in_memory_and_there_is_room(
    tmp_path, monkeypatch, room, cached, is_read
):
    path, taken = tmp_path / "file", []
    path.write_bytes(bytes(5000))
    monkeypatch.setattr(mapped_file, "_is_cached", lambda fd: cached)
    monkeypatch.setattr(mapped_file, "bytearray", lambda n: taken.append(n) or bytearray(n), raising=False)
    mapped_file.read_through(path, room)
    assert bool(taken) == is_read
