"""Every knob does something: what it changes is seen with and without it."""

import dataclasses
import logging
import os
import warnings

import networks
import numpy as np
import pytest
from command import called
from images import niimg, save

from sharedmask import (
    FrameDataset,
    FunctionalNetworkMapper,
    MemoryBudget,
    MemoryMonitor,
    Regions,
    SharedImage,
    extract,
    extract_many,
)
from sharedmask.compute import plan
from sharedmask.compute.request import Request
from sharedmask.errors import MemoryLimitError, SegmentError
from sharedmask.image.results import Cache
from sharedmask.sources.opening import open_source
from sharedmask.storage import disk, rows
from sharedmask.system import limits, monitor, settings
from sharedmask.system.files import atomic_write
from sharedmask.system.settings import GIB, Settings

RUN = niimg(np.zeros((16, 16, 16, 64), "i2"))
MASKS = [np.ones((16, 16, 16), bool)]


def kept_free(tmp_path):
    return MemoryBudget.here("1G").reason


def limit(tmp_path):
    return MemoryBudget.here().limit


def buffered(tmp_path):
    return MemoryBudget.here("1M").limit


def cleaned_at_once(tmp_path):
    facts = open_source(RUN)
    regions = Regions.from_any(niimg(np.ones((16, 16, 16), "u1")))
    request = Request.checked(facts, regions, detrend=True)
    return plan.of_rows(facts, request, MemoryBudget(2**40, "free RAM")).rows


def store(tmp_path):
    with SharedImage(RUN) as image:
        image.mask_parallel(MASKS, n_jobs=2)
        return image.load().store[0]


def store_without_memory(tmp_path):
    return rows.choose("auto", open_source(RUN), None, MemoryBudget(0, "a machine without memory"))[0]


def store_with_memory(tmp_path):
    return rows.choose("auto", open_source(RUN), None, MemoryBudget(2**40, "free RAM"))[0]


def place(tmp_path):
    return disk.directory().parent


def image_on_disk(tmp_path):
    with settings.using(spill_dir=tmp_path), SharedImage(RUN, store="disk") as image:
        try:
            image.load()
        except SegmentError:
            return "refused"
    return sum(name.endswith(".rows") for name in os.listdir(disk_folder(tmp_path)))


def disk_folder(tmp_path):
    with settings.using(spill_dir=tmp_path):
        return disk.directory()


def half_written(tmp_path):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with pytest.raises(ZeroDivisionError), atomic_write(tmp_path / "out.tsv") as temporary:
            temporary.write_text("half")
            raise ZeroDivisionError
    left = [f"left half written: {path}" for path in tmp_path.iterdir()]
    assert left == [str(warning.message) for warning in said]
    return len(left)


def watched(tmp_path):
    monitor._peaks.clear()
    with SharedImage(RUN) as image:
        image.mask_parallel(MASKS)
    return sorted(monitor.peaks())


def logged(tmp_path):
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage().split()[0])
    logger = logging.getLogger("sharedmask.monitor")
    logger.addHandler(handler)
    level = logger.level
    logger.setLevel(logging.INFO)
    try:
        extract(RUN, MASKS)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    return lines


def cached(tmp_path):
    path = save(tmp_path / "run.nii", np.zeros((8, 8, 8, 4), "i2"))
    extract(path, [np.ones((8, 8, 8), bool)])
    cache = Cache.of(None)
    return cache is not None and cache.stats().n_entries


def cache_size(tmp_path):
    return Cache.of(tmp_path).limit


def known_where_it_was_moved(tmp_path):
    first = open_source(save(tmp_path / "run.nii", np.zeros((8, 8, 8, 4), "i2"))).fingerprint
    (tmp_path / "run.nii").rename(tmp_path / "moved.nii")
    return open_source(tmp_path / "moved.nii").fingerprint == first


def cores_that_decode(tmp_path):
    from sharedmask.decoding import parallel
    from sharedmask.decoding.seek_points import Points

    many = np.arange(5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel, "_SMALL_BYTES", 0)
        patch.setattr(parallel, "n_cpus", lambda: 4)
        return parallel.n_decoders(Points(many, many * 8, many[1:], many[1:], many[:0]))


# Knob: (a value, what looks, what is seen without it, what is seen with it).
TABLE = {
    "profile": ("medium", kept_free, "memory_limit='1G'", "memory_limit='1G', 20% kept free"),
    "memory_limit": ("1M", lambda tmp: limit(tmp) == 2**20, False, True),
    "memory_buffer": (0.5, buffered, 2**20, 2**19),
    "max_memory_per_process": (6 * 64 * 8 * 100, cleaned_at_once, 480, 100),
    "shared_memory": (False, store, "shm", "private"),
    "use_disk": (False, store_without_memory, "disk", "shm"),
    "disk_threshold": ("100K", store_with_memory, "shm", "disk"),
    "spill_dir": ("/somewhere", lambda tmp: place(tmp).name == "somewhere", False, True),
    "spill_limit": ("100K", image_on_disk, 1, "refused"),
    "keep_disk": (False, image_on_disk, 1, 0),
    "cleanup_temporary": (False, half_written, 0, 1),
    "monitor": (True, watched, [], ["load", "mask"]),
    "log_memory": (True, logged, [], ["extracting"]),
    "cache_dir": ("cache", cached, False, 1),
    "cache_limit": ("1G", cache_size, 50 * GIB, GIB),
    "decoders": (3, cores_that_decode, 4, 3),
    "fingerprint": ("content", known_where_it_was_moved, False, True),
}


def test_the_table_has_every_knob():
    assert list(TABLE) == [field.name for field in dataclasses.fields(Settings)]


@pytest.mark.parametrize("knob", TABLE)
def test_a_knob_changes_what_it_says(knob, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    value, look, without, with_it = TABLE[knob]
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert look(tmp_path / "a") == without
    with settings.using(**{knob: value}):
        assert look(tmp_path / "b") == with_it


def test_images_in_private_memory_give_the_same_numbers():
    image = niimg(np.random.default_rng(0).normal(0, 1, (5, 5, 5, 7)).astype("f4"))
    masks = [np.ones((5, 5, 5), bool)]
    with SharedImage(image) as shared, settings.using(shared_memory=False), SharedImage(image) as private:
        np.testing.assert_array_equal(private.mask_parallel(masks, n_jobs=2), shared.mask_parallel(masks))
        np.testing.assert_array_equal(private.array, shared.array)
        np.testing.assert_array_equal(private.frame(3), shared.frame(3))
        assert not private.array.flags.writeable
        with pytest.raises(ValueError, match="held by this process alone"):
            _ = private.handle
        with pytest.raises(ValueError, match=r"another process's image|this process alone"):
            private.publish("name")


def of_network(tmp_path):
    path = networks.write(tmp_path / "c.h5", networks.series())
    return FunctionalNetworkMapper().fit(path).transform(networks.lesion(1)[0])


def of_workers(tmp_path):
    runs = [save(tmp_path / f"{name}.nii", np.zeros((8, 8, 8, 4), "i2")) for name in "ab"]
    study = extract_many(runs, [np.ones((8, 8, 8), bool)], n_jobs=2, on_error=lambda key, error: None)
    for error in study.errors.values():
        raise error


@pytest.mark.parametrize("call", [lambda tmp: extract(RUN, MASKS), of_workers, of_network])
def test_the_bound_on_each_process_holds_everywhere(call, tmp_path):
    with settings.using(max_memory_per_process="1K"), pytest.raises(MemoryLimitError, match="per_process"):
        call(tmp_path)


def of_frames(tmp_path):
    with FrameDataset(RUN, store="memfd") as ds:
        ds.map(np.mean)


@pytest.mark.some(1)
@pytest.mark.parametrize(
    "call, labels",
    [(of_network, ["load", "network"]), (of_workers, ["extract"] * 2), (of_frames, ["load", "map"])],
)
def test_monitors_see_phases_of_all_that_is_done(call, labels, tmp_path):
    with MemoryMonitor() as watching:
        call(tmp_path)
    assert sorted(phase.label for phase in watching.phases) == labels


def test_a_limit_is_the_same_however_it_is_given(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "capacity", lambda: 100 * GIB)
    path = save(tmp_path / "run.nii", np.zeros((8, 8, 8, 4), "i2"))
    flag, knob = (
        called("info", path, "--profile", "auto", *more).stdout
        for more in (("--memory-limit", "8G"), ("--set", "memory_limit=8G"))
    )
    assert "536870912 (profile auto)" in flag
    assert [line for line in flag.splitlines() if "profile" in line] == [
        line for line in knob.splitlines() if "profile" in line
    ]


@pytest.mark.parametrize("knob", TABLE)
def test_a_knob_set_by_name_is_set_whatever_flags_a_verb_has(knob, tmp_path):
    path = save(tmp_path / "run.nii", np.zeros((8, 8, 8, 4), "i2"))
    value = TABLE[knob][0]
    said = called("info", path, "--set", f"{knob}={tmp_path if knob.endswith('_dir') else value}").stdout
    assert [line for line in said.splitlines() if line.split()[0] == knob and line.endswith("(given)")]


def test_workers_have_the_settings_of_their_caller(tmp_path):
    runs = [save(tmp_path / f"{name}.nii", np.zeros((8, 8, 8, 4), "i2")) for name in "ab"]
    with settings.using(cache_dir=tmp_path / "kept"):
        extract_many(runs, [np.ones((8, 8, 8), bool)], n_jobs=2)
    assert Cache(tmp_path / "kept").stats().n_entries == 2
