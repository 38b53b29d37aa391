"""The cache of results: never stale, never wrong, computed once, bounded, and only ours is removed."""

import inspect
import os
import signal
import threading
import time
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path

import joblib
import numpy as np
import pytest
from children import python, running
from hypothesis import given, settings
from hypothesis import strategies as st
from images import bold, niimg, random_masks, same_bits, save

from sharedmask import SharedImage, extract
from sharedmask.compute.request import Parameters, Request
from sharedmask.errors import (
    ClosedImageError,
    OutsideImageError,
    ParameterError,
    SharedMaskWarning,
    SourceChangedError,
)
from sharedmask.image import results
from sharedmask.image.results import Cache
from sharedmask.regions.regions import Regions
from sharedmask.sources.opening import open_source
from sharedmask.sources.source import FileSource
from sharedmask.spaces.grid import Grid
from sharedmask.storage import container
from sharedmask.system.settings import using

KEY, OTHER = 40 * "a", 40 * "b"
N_TIMEPOINTS = 40  # enough for the filters
HERE = str(Path(__file__).parents[1] / "helpers")


@pytest.fixture
def place(tmp_path):
    return tmp_path / "cache"


def counts(place):
    return Cache(place).stats().counts


def not_computed():
    raise AssertionError("computed again")


def forged(text):
    """A header with a right digest."""
    return container._PREFIX.pack(container.MAGIC, len(text), container._digest(text)) + text


# --- the folder -----------------------------------------------------------------------------------


def test_computed_once(place):
    first, was_there = Cache(place).get_or_compute(KEY, lambda: [np.arange(3)])
    again, is_there = Cache(place).get_or_compute(KEY, not_computed)
    assert (was_there, is_there) == (False, True)
    np.testing.assert_array_equal(first, again)
    now = Cache(place).stats()
    assert (now.n_entries, now.counts.hits, now.counts.misses, now.counts.bytes_read) == (1, 1, 1, 24)
    assert now.nbytes == now.counts.bytes_written


def test_what_raises_is_not_kept(place):
    with pytest.raises(ZeroDivisionError):
        Cache(place).get_or_compute(KEY, lambda: 1 / 0)
    assert os.listdir(place / "sharedmask") == []


@pytest.mark.parametrize(
    "spoil",
    [
        lambda content: content[:-1] + bytes([content[-1] ^ 1]),
        lambda content: content[:20],
        lambda content: content[:4100],
        lambda content: content[:16] + b"\xff" * 8 + content[24:],
        lambda content: container.header({"key": KEY, "crc": 0, "arrays": 3}, 4096),
        lambda content: container.header([], 4096),
        lambda content: forged(b"[" * 100_000),
        lambda content: b"smresult" + content[8:],
    ],
    ids=["bit", "prefix", "payload", "length", "arrays", "list", "nested", "old"],
)
def test_a_damaged_entry_is_computed_again_and_replaced(place, spoil):
    Cache(place).get_or_compute(KEY, lambda: [np.arange(3)])
    path = place / "sharedmask" / f"{KEY}.result"
    path.write_bytes(spoil(path.read_bytes()))
    assert not Cache(place).get_or_compute(KEY, lambda: [np.arange(3)])[1]
    assert Cache(place).get_or_compute(KEY, not_computed)[1]
    assert (counts(place).damaged, counts(place).misses, counts(place).hits) == (1, 2, 1)


def test_the_least_recently_used_go_first(place):
    cache = Cache(place, limit=3 * 12_000)
    keys = [f"{number:040x}" for number in range(4)]
    for age, key in enumerate(keys[:3]):
        cache.get_or_compute(key, lambda: [np.zeros(900)])
        os.utime(place / "sharedmask" / f"{key}.result", ns=(0, age + 1))
    cache.get_or_compute(keys[0], not_computed)  # used now, so number 1 is the oldest
    cache.get_or_compute(keys[3], lambda: [np.zeros(900)])
    kept = {key for key in keys if (place / "sharedmask" / f"{key}.result").exists()}
    assert kept == {keys[0], keys[2], keys[3]}
    assert cache.stats().nbytes <= cache.limit
    assert cache.stats().counts.evicted == 1


@given(sizes=st.lists(st.integers(1, 4000), max_size=12))
@settings(max_examples=25)
def test_the_limit_holds(sizes, tmp_path_factory):
    cache = Cache(tmp_path_factory.mktemp("cache"), limit=60_000)
    for number, size in enumerate(sizes):
        assert cache.get_or_compute(f"{number:040x}", lambda size=size: [np.ones(size)])[0][0].sum() == size
        assert cache.stats().nbytes <= cache.limit


def test_a_result_above_the_limit_is_returned_with_one_warning(place):
    cache = Cache(place, limit=100)
    with pytest.warns(SharedMaskWarning, match="more than cache_limit"):
        cache.get_or_compute(KEY, lambda: [np.zeros(100)])
    cache.get_or_compute(KEY, lambda: [np.zeros(100)])
    assert cache.stats().n_entries == 0


def test_the_files_of_the_user_stay(place):
    place.mkdir()
    folder = place / "sharedmask"
    folder.mkdir()
    theirs = [place / "notes.txt", *(folder / name for name in ("notes.txt", f"{OTHER}.result", "counts"))]
    for path in theirs:
        path.write_text("longer than a header of ours" * 9)
    cache = Cache(place, limit=5000)
    cache.get_or_compute(KEY, lambda: [np.zeros(50)])
    cache.get_or_compute(40 * "c", lambda: [np.zeros(50)])
    assert cache.clear() == 1
    assert {path.read_text() for path in theirs} == {"longer than a header of ours" * 9}
    assert sorted(os.listdir(folder)) == sorted(path.name for path in theirs[1:])


def test_a_file_of_the_users_under_our_name_is_told_and_stays(place):
    Cache(place).get_or_compute(OTHER, lambda: [np.arange(3)])
    theirs = place / "sharedmask" / f"{KEY}.result"
    theirs.write_text("a user's work")
    with pytest.warns(SharedMaskWarning, match="is no file of sharedmask: move it away"):
        Cache(place).get_or_compute(KEY, lambda: [np.arange(3)])
    assert not Cache(place).get_or_compute(KEY, lambda: [np.arange(3)])[1]
    assert theirs.read_text() == "a user's work"


def test_clear_removes_what_is_ours(place):
    Cache(place).get_or_compute(KEY, lambda: [np.arange(3)])
    assert Cache(place).clear() == 1
    assert os.listdir(place / "sharedmask") == []
    assert Cache(place).clear() == 0


def test_a_place_that_cannot_be_written_costs_one_warning(place):
    place.mkdir()
    (place / "sharedmask").write_text("a file in the way")
    with pytest.warns(SharedMaskWarning, match="not cached in .*sharedmask"):
        assert Cache(place).get_or_compute(KEY, lambda: [np.arange(3)])[0][0][2] == 2
    assert not Cache(place).get_or_compute(KEY, lambda: [np.arange(3)])[1]


@pytest.mark.parametrize(
    "spoil", [lambda path: os.chmod(path, 0o722), lambda path: os.chown(path, 12345, -1)]
)
def test_a_folder_that_others_can_write_to_is_not_trusted(place, spoil):
    folder = Cache(place).folder
    Cache(place).get_or_compute(KEY, lambda: [np.arange(3)])
    assert folder.stat().st_mode & 0o777 == 0o700
    try:
        spoil(folder)
    except PermissionError:
        pytest.skip("only root gives files away")
    before = sorted(os.listdir(folder))
    with pytest.warns(UserWarning, match="must be private"):
        [found], was_there = Cache(place).get_or_compute(KEY, lambda: [np.arange(5)])
    assert (len(found), was_there) == (5, False)
    assert sorted(os.listdir(folder)) == before


def test_entries_are_found_where_nothing_can_be_written(place, monkeypatch):
    Cache(place).get_or_compute(KEY, lambda: [np.arange(3)])
    opened = os.open

    def read_only(path, flags, *mode, **more):
        if flags & (os.O_RDWR | os.O_WRONLY):
            raise OSError(30, "Read-only file system", str(path))
        return opened(path, flags, *mode, **more)

    monkeypatch.setattr(os, "open", read_only)
    assert Cache(place).get_or_compute(KEY, not_computed)[1]
    with pytest.warns(SharedMaskWarning, match="Read-only file system"):
        Cache(place).get_or_compute(OTHER, lambda: [np.arange(3)])


def test_a_full_disk_costs_one_warning(place):
    # A limit on the size of files refuses as a full disk does: in the middle of writing.
    done = python(
        """
        import os, resource, sys, warnings
        import numpy as np
        from sharedmask.image.results import Cache
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        cache = Cache(sys.argv[1])
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            for _ in range(2):
                [result], was_there = cache.get_or_compute("a" * 40, lambda: [np.ones(5000)])
                assert result.sum() == 5000 and not was_there
        assert len(told) == 1 and "File too large" in str(told[0].message), told
        print(*os.listdir(cache.folder))
        """,
        place,
    )
    assert done.stdout.split() == ["counts"], done.stderr


# --- several at once ------------------------------------------------------------------------------

ASKING = """
import os, sys, time
import numpy as np
from sharedmask.image.results import Cache

def compute():
    with open(sys.argv[2], "a") as log:
        log.write("computed\\n")
    print("ready", flush=True)
    time.sleep(float(sys.argv[3]))
    return [np.full(1000, 7.0)]

[result], was_there = Cache(sys.argv[1]).get_or_compute("a" * 40, compute)
assert (result == 7).all()
print("hit" if was_there else "computed")
"""


def test_of_two_processes_one_computes(place, tmp_path):
    log = tmp_path / "log"
    with running(ASKING, place, log, 1.0) as first:
        second = python(ASKING, place, log, 0)
        assert second.stdout.split()[-1] == "hit", second.stderr
        assert first.communicate()[0].split() == ["computed"]
    assert log.read_text().split() == ["computed"]
    assert (counts(place).misses, counts(place).hits) == (1, 1)


def test_if_the_first_dies_the_second_computes(place, tmp_path):
    log = tmp_path / "log"
    with running(ASKING, place, log, 60) as first:
        threading.Timer(0.5, first.send_signal, [signal.SIGKILL]).start()
        second = python(ASKING, place, log, 0)
    assert second.stdout.split() == ["ready", "computed"], second.stderr
    assert log.read_text().split() == ["computed"] * 2
    assert Cache(place).get_or_compute(KEY, not_computed)[1]


def test_threads_compute_once(place):
    computed, answers = [], []
    gate = threading.Barrier(8)

    def compute():
        computed.append(1)
        return [np.arange(1000)]

    def ask():
        gate.wait()
        answers.append(Cache(place).get_or_compute(KEY, compute)[1])

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(computed) == 1
    assert sorted(answers) == [False] + [True] * 7
    assert (counts(place).misses, counts(place).hits) == (1, 7)


@pytest.mark.long
def test_counts_of_many_processes_add_up(place):
    script = """
    import sys
    import numpy as np
    from sharedmask.image.results import Cache
    for number in range(50):
        Cache(sys.argv[1]).get_or_compute(f"{number % 5:040x}", lambda: [np.arange(10)])
    """
    threads = [threading.Thread(target=python, args=(script, place)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (counts(place).misses, counts(place).hits) == (5, 145)


def test_what_was_half_written_is_never_used_and_goes(place):
    script = """
    import sys, time
    import numpy as np
    from sharedmask.image.results import Cache
    from sharedmask.system import files
    write = files.pwrite_all

    def half(fd, data, place):
        write(fd, data[: len(data) // 2], place)
        print("ready", flush=True)
        time.sleep(60)

    files.pwrite_all = half
    Cache(sys.argv[1]).get_or_compute(40 * "a", lambda: [np.arange(1000)])
    """
    lock = place / "sharedmask" / f"{KEY}.lock"
    with running(script, place) as child:
        Cache(place).get_or_compute(OTHER, lambda: [np.arange(3)])
        assert lock.exists()  # its process lives
        child.kill()
        child.wait()
    Cache(place).get_or_compute(40 * "c", lambda: [np.arange(3)])
    names = {f"{OTHER}.result", f"{40 * 'c'}.result", "counts"}
    assert set(os.listdir(place / "sharedmask")) == names
    assert not Cache(place).get_or_compute(KEY, lambda: [np.arange(1000)])[1]


# --- keys -----------------------------------------------------------------------------------------


def dataset(shape=(3, 3, 3, N_TIMEPOINTS)):
    source = open_source(niimg(bold(shape)))
    return source, Regions.from_any(random_masks(2, shape[:3]), Grid(shape[:3], source.affine))


def key(source, regions, strategy=None, voxels=None, fingerprint="f", **parameters):
    request = Request.checked(source, regions, strategy=strategy, **parameters)
    return results.Lookup(source, fingerprint, request, voxels).key


PERTURBED = {
    "n_jobs": 2,
    "prefer": "threads",
    "dtype": "float64",
    "nan_policy": "propagate",
    "standardize": "psc",
    "detrend": True,
    "confounds": np.arange(N_TIMEPOINTS),
    "sample_mask": [0, 1, 2],
    "low_pass": 0.1,
    "high_pass": 0.01,
    "t_r": 3.0,
    "progress": lambda done, total: None,
    "on_result": lambda key, result: None,
}


def test_every_parameter_is_in_the_key_unless_it_only_says_how():
    source, regions = dataset()
    assert set(PERTURBED) == set(Parameters.__annotations__)
    changing = {
        name for name in PERTURBED if key(source, regions, **{name: PERTURBED[name]}) != key(source, regions)
    }
    only_how = set(PERTURBED) - changing
    assert only_how == {"n_jobs", "prefer", "progress", "on_result"}
    assert results.HOW - only_how == {
        "label",
        "operation",
        "given",
    }  # no caller gives them, or no result is kept


# Where each argument that is no parameter of a request shows in the key; None: nowhere, because no
# number depends on it. A new argument belongs here, and in the key if numbers depend on it.
ARGUMENTS = {
    "source": "fingerprint",
    "volumes": "fingerprint",
    "smoothing_fwhm": "fingerprint",
    "masks": "regions",
    "labels_img": "regions",
    "resampling_target": "regions",
    "mask_img": "voxels",
    "strategy": "strategy",
    "memory": None,
    "memory_limit": None,
    "store": None,
    "index": None,
    "name": None,
    "batch_size": None,
    "on_batch": None,
}


@pytest.mark.parametrize("call", [extract, SharedImage, SharedImage.mask_parallel, SharedImage.reduce])
def test_every_other_argument_is_known_too(call):
    assert set(inspect.signature(call).parameters) - {"self", "parameters"} <= set(ARGUMENTS)
    known = {*inspect.signature(results.Lookup).parameters, *inspect.signature(Request).parameters}
    assert {place for place in ARGUMENTS.values() if place} <= known


@pytest.mark.parametrize(
    ("name", "one", "other"),
    [
        ("confounds", np.arange(N_TIMEPOINTS), np.arange(N_TIMEPOINTS) + 1e-12),
        ("low_pass", 0.1, np.nextafter(0.1, 1)),
        ("sample_mask", [0, 1], [1, 0]),
        ("standardize", "zscore_sample", "psc"),
    ],
)
def test_a_parameter_that_differs_in_its_last_bit_is_another(name, one, other):
    source, regions = dataset()
    assert key(source, regions, **{name: one}) == key(source, regions, **{name: one})
    assert key(source, regions, **{name: one}) != key(source, regions, **{name: other})


def test_the_names_of_one_dtype_are_one():
    source, regions = dataset()
    assert (
        len({key(source, regions, dtype=dtype) for dtype in ("f4", "float32", np.float32, np.dtype("f4"))})
        == 1
    )
    assert key(source, regions, dtype=None) != key(source, regions, dtype="f4") != key(source, regions)


def test_image_regions_strategy_and_stored_voxels_are_in_the_key():
    source, regions = dataset()
    moved = replace(regions, grid=Grid(regions.grid.shape, regions.grid.affine + 1))
    swapped = replace(regions, indices=regions.indices[::-1])
    keys = {
        key(source, regions),
        key(source, regions, fingerprint="g"),
        key(replace(source, ndim=3), regions),
        key(source, regions, strategy="mean"),
        key(source, regions, strategy="median"),
        key(source, regions, voxels=np.arange(27)),
        key(source, regions, voxels=np.arange(26)),
        key(source, moved),
        key(source, swapped),
    }
    assert len(keys) == 9


def test_versions_are_in_the_key(monkeypatch):
    source, regions = dataset()
    before = key(source, regions), key(source, regions, detrend=True)
    monkeypatch.setattr(results, "_versions", lambda cleaning: ("other",) if cleaning else ())
    assert not {key(source, regions), key(source, regions, detrend=True)} & set(before)
    monkeypatch.undo()
    assert results._versions(True)[len(results._versions(False)) :] == (
        __import__("nilearn").__version__,
        __import__("scipy").__version__,
    )


def test_what_has_no_certain_text_is_no_part_of_a_key():
    with pytest.raises(TypeError, match="a object cannot be part of a key"):
        results._plain({"new": (object(),)})


# --- requests -------------------------------------------------------------------------------------


def shared(method, *arguments):
    def ask(run, masks, **more):
        with SharedImage(run) as image:
            return getattr(image, method)(masks, *arguments, **more)

    return ask


ASKS = {
    "extract": extract,
    "extract means": partial(extract, strategy="mean"),
    "mask_parallel": shared("mask_parallel"),
    "reduce": shared("reduce", "median"),
    "mask": lambda run, masks, **more: [shared("mask")(run, masks[0], **more)],
}


@pytest.mark.parametrize("ask", ASKS.values(), ids=ASKS)
def test_a_hit_has_the_same_bits_and_reads_no_volume(ask, run, place, monkeypatch):
    masks = random_masks(3)
    expected = ask(run, masks, memory=False)
    first = ask(run, masks, memory=place)
    monkeypatch.setattr(FileSource, "volumes", not_computed)
    for got in (first, ask(run, masks, memory=place)):
        for one, other in zip(got, expected, strict=True):
            same_bits(one, other)
            assert one.flags.writeable == other.flags.writeable


def test_one_pass_and_the_shared_image_share_their_results(run, place):
    masks = random_masks(2)
    extract(run, masks, memory=place)
    extract(run, dict(enumerate(masks)), memory=place, n_jobs=2, prefer="threads")
    with SharedImage(run) as image:
        signals = image.mask_parallel(masks, memory=place)
    assert isinstance(signals, list)
    assert counts(place).misses == 2  # a dict's masks have other names
    assert counts(place).hits == 1


def test_containers_are_the_callers(run, place):
    masks = random_masks(2)
    regions = Regions.from_any(masks, Grid(masks[0].shape, open_source(run).affine))
    as_list = extract(run, regions, memory=place)
    as_dict = extract(run, replace(regions, container="dict", keys=("a", "b")), memory=place)
    assert (type(as_list), list(as_dict)) == (list, ["a", "b"])
    assert counts(place).hits == 1


@given(data=st.data())
@settings(max_examples=40)
def test_whatever_is_asked_the_cache_gives_what_computing_gives(data, tmp_path):
    source = save(
        tmp_path / f"run{data.draw(st.integers(0, 1))}.nii",
        bold(
            (3, 3, 3, N_TIMEPOINTS),
            data.draw(st.sampled_from(["int16", "float32"])),
            data.draw(st.integers(0, 1)),
        ),
        slope=data.draw(st.sampled_from([None, 0.5])),
    )
    masks = random_masks(2, (3, 3, 3), seed=data.draw(st.integers(1, 2)))
    choices = {
        "strategy": ["mean", "sum"],
        "dtype": [None, "f8"],
        "standardize": ["zscore_sample", "psc"],
        "detrend": [True],
        "sample_mask": [[0, 2, 4, 6, 8], np.arange(N_TIMEPOINTS) > 2],
        "confounds": [np.arange(N_TIMEPOINTS) ** 2.0],
        "n_jobs": [2],
    }
    asked = data.draw(st.fixed_dictionaries({}, optional={k: st.sampled_from(v) for k, v in choices.items()}))
    if asked.get("n_jobs"):
        asked["prefer"] = "threads"
    expected = extract(source, masks, memory=False, **asked)
    for _ in range(2):
        for one, other in zip(
            extract(source, masks, memory=tmp_path / "cache", **asked), expected, strict=True
        ):
            same_bits(one, other)


# --- never stale ----------------------------------------------------------------------------------


def rewritten(path, offset, value=77):
    content = bytearray(path.read_bytes())
    content[offset] = value
    path.write_bytes(content)


def test_a_file_changed_in_its_middle_is_read_again(tmp_path, place):
    run = save(tmp_path / "run.nii", bold((30, 30, 30, 12)))
    mask = np.ones((30, 30, 30), bool)
    before = extract(run, mask, memory=place)
    rewritten(run, 300_000)  # neither head nor tail: of the same size, only the time tells
    after = extract(run, mask, memory=place)
    assert not np.array_equal(before, after)
    same_bits(after, extract(run, mask, memory=False))


def test_a_file_replaced_with_its_time_kept_is_read_again(tmp_path, place):
    run, other = (save(tmp_path / f"{name}.nii", bold((30, 30, 30, 12))) for name in ("run", "other"))
    rewritten(other, 300_000)
    status = run.stat()
    extract(run, [np.ones((30, 30, 30), bool)], memory=place)
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    os.replace(other, run)
    [after] = extract(run, [np.ones((30, 30, 30), bool)], memory=place)
    same_bits(after, extract(run, [np.ones((30, 30, 30), bool)], memory=False)[0])


def test_what_changed_while_it_was_read_is_not_kept(run, place, monkeypatch):
    volumes = FileSource.volumes

    def changing(source):
        os.utime(run)
        return volumes(source)

    monkeypatch.setattr(FileSource, "volumes", changing)
    with pytest.raises(SourceChangedError):
        extract(run, random_masks(1), memory=place)
    assert Cache(place).stats().n_entries == 0


def long_ago(path):
    os.utime(path, ns=(10**18 + 1, 10**18 + 1))
    time.sleep(2 * results._TICK)  # the time of the inode's change cannot be set


def test_a_loaded_image_goes_by_what_it_was_loaded_from(run, place):
    masks = random_masks(1)
    long_ago(run)
    with SharedImage(run).load() as image:
        [first] = image.mask_parallel(masks, memory=place)
        save(run, bold(seed=5))
        same_bits(image.mask_parallel(masks, memory=place)[0], first)  # found
        image.reduce(masks, memory=place)  # not kept: the file says nothing of these rows any more
    assert (counts(place).hits, Cache(place).stats().n_entries) == (1, 1)
    [new] = extract(run, masks, memory=place)
    assert not np.array_equal(first, new)
    same_bits(new, extract(run, masks, memory=False)[0])


def test_an_image_loaded_from_a_file_that_is_gone_is_served(run, place):
    long_ago(run)
    with SharedImage(run).load() as image:
        run.unlink()
        same_bits(image.mask(random_masks(1)[0], memory=place), image.mask(random_masks(1)[0], memory=False))
    assert Cache(place).stats().n_entries == 0


def test_an_image_loaded_within_a_tick_of_its_writing_is_not_cached(run, place, monkeypatch):
    stamp = run.stat().st_mtime_ns
    monkeypatch.setattr(results.time, "time", lambda: stamp / 1e9 + 0.001)
    with SharedImage(run).load() as image:
        image.mask_parallel(random_masks(1), memory=place)
    assert not (place / "sharedmask").exists()


def test_a_file_used_in_place_is_looked_at_each_time(tmp_path, place):
    run, everywhere = save(tmp_path / "run.nii", bold((30, 30, 30, 12))), np.ones((30, 30, 30), bool)
    with SharedImage(run, store="file").load() as image:
        image.mask(everywhere, memory=place)
        rewritten(run, 300_000)
        with pytest.raises(SourceChangedError):
            image.mask(everywhere, memory=place)


def test_an_image_not_loaded_yet_looks_at_its_file_each_time(run, place):
    masks = random_masks(1)
    extract(run, masks, memory=place)
    with SharedImage(run) as image:
        image.mask_parallel(masks, memory=place)  # found
        save(run, bold(seed=5))
        with pytest.raises(SourceChangedError):
            image.mask_parallel(masks, memory=place)


def test_a_file_written_twice_in_one_tick_gives_the_second(tmp_path, place, monkeypatch):
    # The file system tells nothing of inodes.
    monkeypatch.setenv("SHAREDMASK_FINGERPRINT", "content")
    # The clock that stamps files stands still from the first write to the second.
    run, everywhere = save(tmp_path / "run.nii", bold((30, 30, 30, 12))), np.ones((30, 30, 30), bool)
    stamp, slept = run.stat().st_mtime_ns, []

    def sleep(seconds):
        slept.append(seconds)
        rewritten(run, 300_000)
        os.utime(run, ns=(stamp, stamp))

    with monkeypatch.context() as patched:
        patched.setattr(results.time, "time", lambda: stamp / 1e9 + 0.001)
        patched.setattr(results.time, "sleep", sleep)
        extract(run, everywhere, memory=place)
    same_bits(extract(run, everywhere, memory=place), extract(run, everywhere, memory=False))
    assert len(slept) == 1
    assert 0 < slept[0] <= results._COARSE_TICK


def test_an_image_in_memory_is_known_by_its_values(place):
    data, masks = bold(), random_masks(1)
    extract(niimg(data), masks, memory=place)
    extract(niimg(data.copy()), masks, memory=place)
    assert counts(place).hits == 1
    data[masks[0]] += 1
    [changed] = extract(niimg(data), masks, memory=place)
    same_bits(changed, extract(niimg(data), masks, memory=False)[0])


def test_a_three_dimensional_image_is_no_run_of_one_volume(place):
    mask = random_masks(1)
    assert extract(niimg(bold()[..., :1]), mask, memory=place)[0].ndim == 2
    assert extract(niimg(bold()[..., 0]), mask, memory=place)[0].ndim == 1


# --- the rest of a request ------------------------------------------------------------------------


def test_callbacks_are_called_on_a_hit(run, place):
    masks = dict(zip("ab", random_masks(2), strict=True))
    for strategy in (None, "mean"):
        told, progress = [], []
        more = {"strategy": strategy, "memory": place}
        extract(run, masks, **more)
        signals = extract(
            run,
            masks,
            on_result=lambda key, result: told.append((key, result)),  # noqa: B023
            progress=lambda *done: progress.append(done),  # noqa: B023
            **more,
        )
        assert [key for key, _ in told] == ["a", "b"]
        expected = signals["b"] if strategy is None else signals[:, 1]
        np.testing.assert_array_equal(told[1][1], expected)
        assert progress == [(2, 2)]


def test_refusals_stay_refusals(run, place):
    brain = np.zeros((7, 6, 5), bool)
    brain[:3] = True
    everywhere = [np.ones((7, 6, 5), bool)]
    extract(run, everywhere, memory=place)
    with SharedImage(run, mask_img=brain) as image, pytest.raises(OutsideImageError):
        image.mask_parallel(everywhere, memory=place)
    with pytest.raises(ClosedImageError):
        image.mask_parallel([brain], memory=place)
    with SharedImage(run) as image:
        image.close()
        with pytest.raises(ClosedImageError):
            image.mask_parallel(everywhere, memory=place)


def test_an_attached_image_is_not_cached(run, place):
    masks = random_masks(1)
    with SharedImage(run) as owner, SharedImage.attach(owner.handle) as image:
        same_bits(image.mask_parallel(masks, memory=place)[0], extract(run, masks)[0])
    assert not (place / "sharedmask").exists()


def test_a_hit_takes_no_store(run, place):
    extract(run, random_masks(1), memory=place)
    with SharedImage(run) as image:
        image.mask_parallel(random_masks(1), memory=place)
        assert "not loaded" in repr(image)


# --- where ----------------------------------------------------------------------------------------


def test_joblib_memory_gives_the_place(run, place):
    extract(run, random_masks(1), memory=joblib.Memory(place, verbose=0))
    extract(run, random_masks(1), memory=str(place))
    assert counts(place).hits == 1
    extract(run, random_masks(1), memory=joblib.Memory(None))
    assert counts(place).hits == 1


def test_the_setting_gives_the_place(run, place):
    with using(cache_dir=place, cache_limit="1M"):
        extract(run, random_masks(1))
        extract(run, random_masks(1))
        extract(run, random_masks(1), memory=False)
        assert Cache(place).limit == 2**20
    assert (counts(place).hits, counts(place).misses) == (1, 1)


@pytest.mark.parametrize("memory", [3, True, ["folder"]])
def test_memory_that_makes_no_sense_is_refused(run, memory):
    with pytest.raises(ParameterError, match="is no directory"):
        extract(run, random_masks(1), memory=memory)


def test_the_parent_of_the_place_must_exist(run, tmp_path):
    with pytest.raises(ValueError, match=r"there is no directory .*nowhere"):
        extract(run, random_masks(1), memory=tmp_path / "nowhere" / "cache")


def test_nothing_is_warned_of_where_all_is_well(run, place):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        extract(run, random_masks(1), memory=place)
        extract(run, random_masks(1), memory=place)
