"""Images that change while they are read, or before: values of one state, or a refusal."""

import os
import re
import shutil
import threading
import time
import zlib
from contextlib import contextmanager, suppress

import numpy as np
import pytest
from faults import intercepted, recorded
from images import SHAPE, bold, random_masks, save

from sharedmask import FrameDataset, SharedImage, extract, extract_many
from sharedmask.errors import ImageError, MaskError, SourceChangedError
from sharedmask.system import settings

N_MOMENTS = 50 if os.environ.get("SHAREDMASK_SLOW_TESTS") else 6
N_TIMEPOINTS = 40
MASK = random_masks(1)[0]
BOTH = ("run.nii", "run.nii.gz")


def held(store, **options):
    def work(path):
        with SharedImage(path, store=store, **options) as image:
            return image.mask(MASK)

    return work


def framed(store):
    def work(path):
        with FrameDataset(path, store=store) as frames:
            return np.array([frames[number][0][MASK] for number in range(len(frames))])

    return work


def many(path):
    study = extract_many([path], [MASK], retries=0, on_error=lambda key, error: None)
    for error in study.errors.values():
        raise error
    return study.results[str(path)][0]


def masked(path):
    from sharedmask.maskers import SharedNiftiMasker

    image = save(path.with_name("mask.nii"), MASK.astype("u1"))
    try:
        return SharedNiftiMasker(image, standardize=None).fit_transform(path)
    except (ValueError, OSError, EOFError, zlib.error) as error:  # nilearn's own, of files that we refuse
        raise ImageError(f"{path}: {error}") from error


def in_bands(path):
    """The disk store, where not all rows fit in memory at once."""
    from sharedmask.sources import rechunk

    most, rechunk._BAND_BYTES = rechunk._BAND_BYTES, 1
    try:
        return held("disk")(path)
    finally:
        rechunk._BAND_BYTES = most


def private(path):
    with settings.using(shared_memory=False):
        return held("auto")(path)


PASSES = {
    "shm": held("shm"),
    "memfd": held("memfd"),
    "disk": held("disk"),
    "bands": in_bands,
    "private": private,
    "smoothed": held("memfd", smoothing_fwhm=6),
    "extract": lambda path: extract(path, MASK),
    "mean": lambda path: extract(path, [MASK], strategy="mean"),
    "many": many,
    "masker": masked,
    "frames-memfd": framed("memfd"),
    "frames-disk": framed("disk"),
}
MAPPED = {"file": held("file"), "frames-file": framed("file")}


# --- how a file changes ---


def replaced(path, other):
    other.replace(path)


def rewritten(path, other):
    content = other.read_bytes()
    with open(path, "r+b") as file:
        file.write(content)
        file.truncate()


def half_rewritten(path, other):
    """What a program leaves that has not come to the end yet."""
    content = other.read_bytes()
    with open(path, "r+b") as file:
        file.seek(len(content) // 2)
        file.write(content[len(content) // 2 :])


def truncated(path, other):
    os.truncate(path, path.stat().st_size // 2)


def appended(path, other):
    with open(path, "ab") as file:
        file.write(b"x" * 1000)


CHANGES = (replaced, rewritten, half_rewritten, truncated, appended)


# --- when ---


@contextmanager
def at_moment(number, path, change):
    """``change()`` happens before the call of that number that is about the file."""
    made, lock = iter(range(1 << 30)), threading.Lock()

    def around(call, function, args, options):
        with lock:
            is_now = call.target == str(path) and next(made) == number
        if is_now:
            change()
        return function(*args, **options)

    with intercepted(around):
        yield


def moments(path, work):
    with recorded(f"^{re.escape(str(path))}$") as calls:
        work(path)
    return sorted(set(np.linspace(0, len(calls) - 1, N_MOMENTS).astype(int).tolist()))


def opened_afresh(path, seed, slope):
    """A file that was written long ago."""
    save(path, bold((*SHAPE, N_TIMEPOINTS), seed=seed), slope=slope)
    os.utime(path, (1, 1))
    return path


def changes_at_all_moments(tmp_path, name, work, change):
    path, other = tmp_path / name, tmp_path / f"other-{name}"

    def begin():
        opened_afresh(other, 1, 2.0)
        opened_afresh(path, 0, 0.5)

    begin()
    states, when = [work(path)], moments(path, work)
    change(path, other)
    with suppress(ImageError):
        states.append(work(path))
    outcomes = set()
    for number in when:
        begin()
        with at_moment(number, path, lambda: change(path, other)):
            try:
                got = work(path)
            except ImageError as error:
                assert name in str(error)
                outcomes.add("refused")
                continue
        assert any(np.array_equal(got, one) for one in states), f"of no state, at call {number}"
    return outcomes


@pytest.mark.some(6)
@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("work", PASSES.values(), ids=PASSES)
def test_a_source_that_changes_gives_values_of_one_state_or_is_refused(tmp_path, name, work, change):
    assert "refused" in changes_at_all_moments(tmp_path, name, work, change)


@pytest.mark.parametrize("change", [replaced, rewritten, half_rewritten, appended])
@pytest.mark.parametrize("work", MAPPED.values(), ids=MAPPED)
def test_a_mapped_source_that_changes_gives_values_of_one_state_or_is_refused(tmp_path, work, change):
    changes_at_all_moments(tmp_path, "run.nii", work, change)


# --- between ---


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("store", ["shm", "memfd", "disk", "file"])
@pytest.mark.parametrize("change", [replaced, rewritten])
def test_a_source_that_changes_between_opening_and_loading_is_refused(tmp_path, name, store, change):
    path, other = opened_afresh(tmp_path / name, 0, 0.5), opened_afresh(tmp_path / f"other-{name}", 1, 2.0)
    if (store, path.suffix) == ("file", ".gz"):
        pytest.skip("cannot be mapped")
    with SharedImage(path, store=store) as image:
        change(path, other)
        with pytest.raises(SourceChangedError, match=f"{name} changed after it was opened"):
            image.load()


LOSSES = {
    "removed": lambda path: path.unlink(),
    "moved": lambda path: path.rename(path.with_name("elsewhere.nii")),
    "replaced": lambda path: shutil.copy(path, f"{path}2") and os.replace(f"{path}2", path),
}
"""How a file loses its name."""


@pytest.mark.parametrize("lose", [None, *LOSSES])
@pytest.mark.parametrize("use", ["mask", "frame", "stored", "reduce"])
def test_a_mapped_image_that_was_written_to_is_refused_at_its_next_use(tmp_path, use, lose):
    path, other = opened_afresh(tmp_path / "run.nii", 0, 0.5), opened_afresh(tmp_path / "b.nii", 1, 2.0)
    uses = {
        "mask": lambda: image.mask(MASK),
        "frame": lambda: image.frame(1),
        "stored": lambda: image.stored,
        "reduce": lambda: image.reduce([MASK], "mean"),
    }
    with SharedImage(path, store="file") as image:
        uses[use]()
        rewritten(path, other)
        if lose is not None:
            LOSSES[lose](path)
        with pytest.raises(SourceChangedError, match=r"run\.nii changed after it was mapped"):
            uses[use]()


@pytest.mark.parametrize("lose", LOSSES.values(), ids=LOSSES)
def test_a_mapped_file_that_lost_its_name_stays_what_it_was(tmp_path, lose):
    path = opened_afresh(tmp_path / "run.nii", 0, 0.5)
    with SharedImage(path, store="file") as image:
        before = image.mask(MASK)
        lose(path)
        assert np.array_equal(image.mask(MASK), before)


def test_a_change_that_restores_size_and_time_is_seen(tmp_path):
    path = opened_afresh(tmp_path / "run.nii", 0, None)
    time.sleep(0.05)  # a tick of the file system's clock
    with SharedImage(path, store="memfd") as image:
        with open(path, "r+b") as file:
            file.seek(2000)
            file.write(b"\1\1")
        os.utime(path, (1, 1))
        with pytest.raises(SourceChangedError, match=r"run\.nii"):
            image.mask(MASK)


def test_a_mask_that_changes_is_refused(tmp_path):
    path = opened_afresh(tmp_path / "run.nii", 0, None)
    mask = save(tmp_path / "mask.nii.gz", MASK.astype("u1"))
    os.utime(mask, (1, 1))
    # Before its voxels are read, after its header was.
    with recorded(re.escape(str(mask))) as calls:
        extract(path, mask)
    with (
        at_moment(len(calls) - 1, mask, lambda: os.utime(mask)),
        pytest.raises(MaskError, match=r"mask\.nii\.gz changed while it was read"),
    ):
        extract(path, mask)
