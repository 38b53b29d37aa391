"""The shared image from its first use to its end, and what it refuses."""

import gc
import gzip
import os
import threading
import tracemalloc
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import nibabel as nib
import numpy as np
import pytest
from images import AFFINE, SHAPE, bold, niimg, random_masks, same_bits, save, truth
from nilearn.image import smooth_img

from sharedmask import MemoryBudget, Regions, SharedImage, extract
from sharedmask.compute import cleaning as kernels
from sharedmask.compute import plan, pool
from sharedmask.compute import signals as masking
from sharedmask.errors import (
    ClosedImageError,
    DamagedImageError,
    EmptyMaskError,
    GridMismatchError,
    MaskError,
    MemoryLimitError,
    MissingFileError,
    OutsideImageError,
    ParameterError,
    WorkerError,
)
from sharedmask.image import image
from sharedmask.sources import loader
from sharedmask.storage import memory, registry

WORKERS = {
    "caller": {},
    "threads": {"n_jobs": 2, "prefer": "threads"},
    "processes": {"n_jobs": 2, "prefer": "processes"},
}
every_worker = pytest.mark.parametrize("workers", WORKERS.values(), ids=WORKERS.keys())


@pytest.fixture
def path(tmp_path):
    return save(tmp_path / "sub-01_bold.nii.gz", bold())


@pytest.fixture
def scaled_path(tmp_path):
    return save(tmp_path / "scaled.nii.gz", bold(), slope=0.25, inter=-100.0)


@pytest.fixture
def not_finite_path(tmp_path):
    data = bold(dtype="f4")
    data[2, 3, 1, 4], data[2, 3, 1, 5], data[0, 0, 0, 0] = np.nan, np.inf, np.nan
    return save(tmp_path / "nan.nii.gz", data)


@pytest.fixture
def shared(path):
    with SharedImage(path) as opened:
        yield opened


@pytest.fixture
def masks():
    return dict(zip("abc", random_masks(3), strict=True))


@pytest.fixture
def brain(masks):
    return np.logical_or.reduce(list(masks.values()))


def in_shm():
    return {name for name in os.listdir("/dev/shm") if memory.NAME.fullmatch(name)}


def owned():
    return [entry.label for entry in registry.entries()]


# ---- facts and states


def test_facts_are_known_before_loading(path):
    opened = SharedImage(path)
    assert opened.shape == (*SHAPE, 12)
    assert opened.dtype == np.int16
    assert opened.t_r == 2.0
    assert opened.nbytes >= 2 * np.prod(opened.shape)
    np.testing.assert_array_equal(opened.affine, nib.load(path).affine)
    assert owned() == []


def test_repr_says_the_state(path):
    opened = SharedImage(path)
    said = "<SharedImage sub-01_bold.nii.gz 7x6x5x12 int16 9 KiB shm (the default) "
    assert repr(opened) == said + "not loaded>"
    opened.load()
    assert repr(opened) == said + "open>"
    opened.close()
    assert repr(opened) == said + "closed>"


def test_repr_says_the_callers_name(path):
    assert "<SharedImage rest " in repr(SharedImage(path, name="rest"))


def test_repr_of_an_image_in_memory():
    assert "7x6x5x12 float32" in repr(SharedImage(niimg(bold(dtype="f4"))))


def test_a_part_takes_less_memory(path, brain):
    few = np.zeros(SHAPE, bool)
    few[3, 3, 3] = True
    whole, part, one = SharedImage(path), SharedImage(path, mask_img=brain), SharedImage(path, mask_img=few)
    assert one.nbytes < part.nbytes < whole.nbytes + 8 * brain.sum()


def test_loading_waits_for_the_first_use(path, masks):
    with SharedImage(path) as opened:
        assert owned() == []
        opened.mask(masks["a"])
        assert owned() == ["sub-01_bold.nii.gz"]


def test_an_image_is_loaded_once(path, masks, monkeypatch):
    calls, load = [], loader.load
    monkeypatch.setattr(loader, "load", lambda *a, **k: calls.append(1) or load(*a, **k))
    with SharedImage(path) as opened:
        for _ in range(3):
            opened.load().mask_parallel(masks)
            opened.reduce(masks)
            opened.frame(0)
    assert len(calls) == 1


def test_load_returns_the_image(shared):
    assert shared.load() is shared


def test_the_name_is_the_label_of_the_segment(path):
    with SharedImage(path, name="rest").load():
        assert owned() == ["rest"]


def test_close_releases_the_memory(path):
    before = in_shm()
    opened = SharedImage(path).load()
    mine = in_shm() - before
    assert not opened.closed
    opened.close()
    assert opened.closed
    assert not mine & in_shm()
    assert owned() == []


@pytest.mark.parametrize("loaded", [True, False])
def test_close_is_idempotent(loaded, path):
    opened = SharedImage(path)
    if loaded:
        opened.load()
    for _ in range(3):
        opened.close()
    assert opened.closed


def test_an_error_in_the_block_closes_the_image(path):
    with pytest.raises(RuntimeError, match="mine"), SharedImage(path) as opened:
        opened.load()
        raise RuntimeError("mine")
    assert opened.closed
    assert owned() == []


@pytest.mark.parametrize(
    "use",
    {
        "load": lambda image: image.load(),
        "mask_parallel": lambda image: image.mask_parallel([np.ones(SHAPE)]),
        "mask": lambda image: image.mask(np.ones(SHAPE)),
        "reduce": lambda image: image.reduce([np.ones(SHAPE)]),
        "map": lambda image: image.map(len, [np.ones(SHAPE)]),
        "iter_masks": lambda image: next(image.iter_masks([np.ones(SHAPE)])),
        "frame": lambda image: image.frame(0),
        "array": lambda image: image.array,
        "stored": lambda image: image.stored,
    }.items(),
    ids=lambda item: item[0],
)
@pytest.mark.parametrize("loaded", [True, False])
def test_a_closed_image_is_of_no_use(use, loaded, path):
    opened = SharedImage(path)
    if loaded:
        opened.load()
    opened.close()
    with pytest.raises(ClosedImageError, match=r"^sub-01_bold\.nii\.gz is closed"):
        use[1](opened)
    assert owned() == []


def test_facts_outlive_the_image(path):
    opened = SharedImage(path)
    opened.close()
    assert (opened.shape, opened.dtype, opened.t_r) == ((*SHAPE, 12), np.dtype("i2"), 2.0)


def test_views_outlive_the_image(path):
    with SharedImage(path) as opened:
        array, stored, frame = opened.array, opened.stored, opened.frame(3)
    expected = truth(path)
    np.testing.assert_array_equal(array, expected)
    np.testing.assert_array_equal(stored, expected)
    np.testing.assert_array_equal(frame, expected[..., 3])


@every_worker
def test_signals_outlive_the_image(workers, path, masks):
    with SharedImage(path) as opened:
        signals = opened.mask_parallel(masks, **workers)
    for key, mask in masks.items():
        np.testing.assert_array_equal(signals[key], truth(path)[mask].T)


def test_dropping_an_open_image_warns():
    with pytest.warns(ResourceWarning, match=r"dropped\.nii was not closed"):
        SharedImage(niimg(bold()), name="dropped.nii").load()
        gc.collect()
    assert owned() == []


def test_dropping_an_image_that_was_not_loaded_is_silent(path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SharedImage(path)
        gc.collect()


def test_two_images_of_one_file(path, masks):
    with SharedImage(path) as one, SharedImage(path) as other:
        first = one.mask(masks["a"])
        one.close()
        np.testing.assert_array_equal(other.mask(masks["a"]), first)


@pytest.mark.parametrize("store", ["auto", "shm"])
def test_stores(store, path, masks):
    with SharedImage(path, store=store) as opened:
        same_bits(opened.mask(masks["a"], dtype=None), truth(path)[masks["a"]].T)


def test_an_unknown_store_is_refused(path):
    with pytest.raises(ParameterError, match="store='tape'"):
        SharedImage(path, store="tape")


# ---- the array and its frames


def test_the_array_is_the_image(shared, path):
    same_bits(np.ascontiguousarray(shared.array), np.ascontiguousarray(truth(path)))


@pytest.mark.parametrize("view", ["array", "stored"])
def test_the_array_is_a_read_only_view(view, shared):
    array = getattr(shared, view)
    assert np.shares_memory(array, getattr(shared, view))
    with pytest.raises(ValueError, match="read-only"):
        array[0, 0, 0, 0] = 1
    with pytest.raises(ValueError, match="WRITEABLE"):
        array.flags.writeable = True


@pytest.mark.parametrize("t", [0, 5, 11, -1, -12, np.int64(3)])
def test_a_frame_is_a_volume(t, shared, path):
    same_bits(np.ascontiguousarray(shared.frame(t)), np.ascontiguousarray(truth(path)[..., t]))


def test_a_frame_is_a_read_only_view_of_the_array(shared):
    frame = shared.frame(4)
    assert np.shares_memory(frame, shared.array)
    with pytest.raises(ValueError, match="read-only"):
        frame[0, 0, 0] = 1


@pytest.mark.parametrize("t", [12, 99, -13])
def test_a_frame_that_is_not_there(t, shared):
    with pytest.raises(ParameterError, match=rf"^sub-01_bold\.nii\.gz has 12 volumes, .* no volume {t}$"):
        shared.frame(t)


@pytest.mark.parametrize("t", [0, 11])
def test_a_frame_of_a_scaled_image_has_true_values(t, scaled_path):
    with SharedImage(scaled_path) as opened:
        same_bits(np.ascontiguousarray(opened.frame(t)), np.ascontiguousarray(truth(scaled_path)[..., t]))


@pytest.mark.parametrize("which", ["path", "scaled_path"])
def test_a_frame_with_a_mask_img_is_zero_outside(which, brain, request):
    path = request.getfixturevalue(which)
    with SharedImage(path, mask_img=brain) as opened:
        frame = opened.frame(2)
    expected = np.where(brain, truth(path)[..., 2], 0)
    np.testing.assert_array_equal(frame, expected)
    assert frame.dtype == truth(path).dtype


def test_a_frame_of_a_3d_image(tmp_path):
    path = save(tmp_path / "one.nii", bold(SHAPE))
    with SharedImage(path) as opened:
        assert opened.shape == (*SHAPE, 1)
        np.testing.assert_array_equal(opened.frame(0), truth(path))
        np.testing.assert_array_equal(opened.array[..., 0], truth(path))


def test_a_scaled_image_is_no_array(scaled_path):
    with SharedImage(scaled_path) as opened, pytest.raises(ParameterError) as caught:
        opened.array  # noqa: B018
    assert "scaled.nii.gz are stored values times 0.25 plus -100" in str(caught.value)


def test_stored_values_of_a_scaled_image(scaled_path):
    with SharedImage(scaled_path) as opened:
        np.testing.assert_array_equal(opened.stored, bold())


@pytest.mark.parametrize("view", ["array", "stored"])
def test_a_part_of_an_image_is_no_array(view, path, brain):
    with (
        SharedImage(path, mask_img=brain) as opened,
        pytest.raises(
            OutsideImageError, match=r"^sub-01_bold\.nii\.gz holds the voxels of its mask_img only"
        ),
    ):
        getattr(opened, view)


# ---- containers


def write_masks(folder, masks):
    for key, mask in masks.items():
        save(folder / f"roi-{key}.nii.gz", mask.astype("u1"))
    return str(folder / "roi-*.nii.gz")


@every_worker
def test_a_list_for_a_list(workers, shared, masks):
    signals = shared.mask_parallel(list(masks.values()), **workers)
    assert isinstance(signals, list)
    assert [one.shape for one in signals] == [(12, mask.sum()) for mask in masks.values()]


@every_worker
def test_a_dict_for_a_dict_with_its_keys(workers, shared, masks):
    keys = [("left", 1), 7, None]
    signals = shared.mask_parallel(dict(zip(keys, masks.values(), strict=True)), **workers)
    assert list(signals) == keys
    assert [one.shape[1] for one in signals.values()] == [mask.sum() for mask in masks.values()]


def test_a_dict_for_a_pattern(shared, masks, tmp_path):
    signals = shared.mask_parallel(write_masks(tmp_path, masks))
    assert list(signals) == ["roi-a", "roi-b", "roi-c"]


def test_a_list_for_a_4d_mask(shared, masks):
    stack = np.stack(list(masks.values()), axis=-1)
    signals = shared.mask_parallel(niimg(stack.astype("u1")))
    assert [one.shape[1] for one in signals] == stack.sum(axis=(0, 1, 2)).tolist()


def test_an_array_for_one_mask(shared, masks):
    signals = shared.mask_parallel(masks["a"])
    assert signals.shape == (12, masks["a"].sum())


def test_a_dict_for_an_atlas(shared):
    labels = np.arange(210).reshape(SHAPE) % 4
    atlas = Regions.from_labels(niimg(labels.astype("i2")), lut={1: "one", 2: "two", 3: "three"})
    signals = shared.mask_parallel(atlas)
    assert list(signals) == ["one", "two", "three"]
    np.testing.assert_array_equal(signals["two"], shared.mask(labels == 2))


@pytest.mark.parametrize("strategy", ["mean", "median", "variance", "pc1"])
@pytest.mark.parametrize("n_timepoints", [1, 16, 17, 65])
def test_reductions_by_volume_have_the_bits_of_rows(strategy, n_timepoints, masks, tmp_path):
    """The last block may be a single volume."""
    path = save(tmp_path / "long.nii.gz", bold((*SHAPE, n_timepoints)), slope=0.3, inter=-7.0)
    with SharedImage(path) as image:
        expected = image.reduce(masks, strategy)
    np.testing.assert_array_equal(extract(path, masks, strategy=strategy), expected)


def test_map_and_extract_give_the_same_containers(shared, path, masks, tmp_path):
    for given in (list(masks.values()), masks, write_masks(tmp_path, masks), masks["a"]):
        expected = shared.mask_parallel(given)
        assert type(shared.map(np.shape, given)) is (type(expected) if given is not masks["a"] else tuple)
        got = extract(path, given)
        assert type(got) is type(expected)
        if isinstance(expected, dict):
            assert list(got) == list(expected)


def test_masks_may_be_of_any_kind(shared, masks, tmp_path):
    mask = masks["a"]
    file = save(tmp_path / "mask.nii.gz", mask.astype("f4"))
    kinds = [mask, mask.astype("u1"), mask * 2.5, niimg(mask.astype("i2")), file, str(file)]
    signals = shared.mask_parallel(kinds)
    for one in signals:
        np.testing.assert_array_equal(one, signals[0])


@every_worker
def test_signals_belong_to_the_caller(workers, shared, masks):
    before = shared.array.copy()
    signals = shared.mask_parallel(masks, **workers)
    for one in signals.values():
        one[...] = -1
    np.testing.assert_array_equal(shared.array, before)
    assert shared.mask(masks["a"]).min() > 0


@every_worker
def test_overlapping_masks_have_signals_of_their_own(workers, shared, masks):
    twice = shared.mask_parallel([masks["a"], masks["a"]], standardize="psc", **workers)
    twice[0][...] = 0
    assert np.abs(twice[1]).max() > 0


def test_images_in_memory_are_left_alone(masks):
    data = bold(dtype="f4")
    data[0, 0, 0, 0] = np.nan
    given = niimg(data.copy())
    with SharedImage(given) as opened:
        opened.mask_parallel([np.ones(SHAPE)])[0][...] = 7
    np.testing.assert_array_equal(np.asanyarray(given.dataobj), data)


def test_a_proxy_is_left_unread(path, masks):
    given = nib.load(path)
    with SharedImage(given) as opened:
        opened.mask_parallel(masks)
    assert not given.in_memory


# ---- one value per region


@pytest.fixture
def labels():
    return (np.arange(210).reshape(SHAPE) % 4 * 10).astype("i2")


def test_an_image_to_reduce_by_is_an_atlas(shared, labels):
    got = shared.reduce(niimg(labels))
    expected = [shared.mask(labels == k, dtype="f8").mean(axis=1) for k in (10, 20, 30)]
    np.testing.assert_allclose(got, np.stack(expected, axis=1), rtol=1e-12)


@pytest.mark.parametrize("kind", [str, lambda path: path, nib.load, Regions.from_labels])
def test_an_atlas_may_be_of_any_kind(kind, shared, labels, tmp_path):
    path = save(tmp_path / "atlas.nii.gz", labels)
    np.testing.assert_array_equal(shared.reduce(kind(path)), shared.reduce(niimg(labels)))


def test_masks_to_reduce_by_may_overlap(shared, masks, tmp_path):
    expected = np.stack([shared.mask(m, dtype="f8").mean(axis=1) for m in masks.values()], axis=1)
    stack = niimg(np.stack(list(masks.values()), axis=-1).astype("u1"))
    for given in (masks, list(masks.values()), stack, write_masks(tmp_path, masks)):
        np.testing.assert_allclose(shared.reduce(given), expected, rtol=1e-12)
        np.testing.assert_allclose(extract(shared._source, given, strategy="mean"), expected, rtol=1e-12)


def test_a_file_of_several_masks_to_reduce_by(shared, masks, tmp_path):
    stack = np.stack(list(masks.values()), axis=-1).astype("u1")
    path = save(tmp_path / "masks.nii.gz", stack)
    np.testing.assert_array_equal(shared.reduce(path), shared.reduce(niimg(stack)))


@pytest.mark.parametrize("kind", [str, nib.load])
def test_an_atlas_may_have_a_fourth_axis_of_length_1(kind, shared, labels, tmp_path):
    path = save(tmp_path / "atlas.nii.gz", labels[..., None])
    np.testing.assert_array_equal(shared.reduce(kind(path)), shared.reduce(niimg(labels)))


def test_reduce_a_3d_image(tmp_path, labels):
    path = save(tmp_path / "one.nii", bold(SHAPE))
    with SharedImage(path) as opened:
        got = opened.reduce(niimg(labels))
    assert got.shape == (3,)
    np.testing.assert_allclose(got, [truth(path)[labels == k].mean() for k in (10, 20, 30)], rtol=1e-12)


# ---- callbacks


@every_worker
@pytest.mark.parametrize("container", [list, dict])
def test_results_are_told_once_and_complete(workers, container, path, masks, monkeypatch):
    monkeypatch.setattr(plan, "_BLOCK_BYTES", 12 * 4 * 7)
    given = masks if container is dict else list(masks.values())
    told = {}

    def on_result(key, signals):
        assert key not in told
        told[key] = signals.copy()

    with SharedImage(path) as opened:
        signals = opened.mask_parallel(given, on_result=on_result, **workers)
    assert sorted(told) == (["a", "b", "c"] if container is dict else ["mask_000", "mask_001", "mask_002"])
    for got, expected in zip(dict(sorted(told.items())).values(), masks, strict=True):
        np.testing.assert_array_equal(
            got, signals[expected] if container is dict else truth(path)[masks[expected]].T
        )


def told_by(call, masks, **parameters):
    told = []
    call(masks, on_result=lambda key, result: told.append((key, np.shape(result))), **parameters)
    return sorted(told)


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"standardize": "psc"},
        {"standardize": "psc", "n_jobs": 2},
        {"n_jobs": -1},
        {"sample_mask": [1, 2]},
    ],
    ids=str,
)
@pytest.mark.parametrize("call", ["mask_parallel", "extract"])
def test_results_are_told_by_every_path(call, parameters, path, masks):
    rows = len(parameters.get("sample_mask", range(12)))
    expected = [(key, (rows, mask.sum())) for key, mask in masks.items()]
    with SharedImage(path) as opened:
        function = opened.mask_parallel if call == "mask_parallel" else partial(extract, path)
        assert told_by(function, masks, **parameters) == expected


@every_worker
def test_reductions_are_told(workers, shared, masks):
    assert told_by(shared.reduce, masks, **workers) == [(key, (12,)) for key in masks]


@every_worker
def test_answers_of_functions_are_told(workers, shared, masks):
    told = {}
    answers = shared.map(np.shape, masks, on_result=told.__setitem__, **workers)
    assert told == answers


@pytest.mark.parametrize("parameters", [{}, {"n_jobs": 2, "prefer": "processes"}], ids=str)
def test_an_error_of_a_callback_is_raised(parameters, shared, masks):
    def on_result(key, signals):
        raise LookupError(key)

    with pytest.raises(LookupError):
        shared.mask_parallel(masks, on_result=on_result, **parameters)
    assert shared.mask(masks["a"]).shape[0] == 12


@every_worker
@pytest.mark.parametrize("cleaning", [{}, {"standardize": "psc"}], ids=str)
@pytest.mark.parametrize("request_of", ["mask_parallel", "reduce", "extract", "map", "extract, reducing"])
def test_progress_reaches_the_total(request_of, cleaning, workers, shared, path, masks):
    told = []
    call = {
        "mask_parallel": shared.mask_parallel,
        "reduce": shared.reduce,
        "extract": partial(extract, path),
        "map": partial(shared.map, np.shape),
        "extract, reducing": partial(extract, path, strategy="mean"),
    }[request_of]
    call(masks, progress=lambda done, total: told.append((done, total)), **cleaning, **workers)
    totals = {total for _, total in told}
    assert len(totals) == 1
    assert [done for done, _ in told] == sorted({done for done, _ in told})
    assert told[-1][0] == totals.pop()


def test_progress_may_be_a_bar(shared, masks, capsys):
    shared.mask_parallel(masks, progress=True)
    assert "mask" in capsys.readouterr().err


def test_no_progress_is_silent(shared, masks, capsys):
    shared.mask_parallel(masks)
    assert capsys.readouterr() == ("", "")


# ---- cleaning


def count_columns(monkeypatch):
    columns, apply = [], kernels.Cleaning.apply

    def counting(self, signals):
        columns.append(signals.shape[1])
        return apply(self, signals)

    monkeypatch.setattr(kernels.Cleaning, "apply", counting)
    return columns


@pytest.mark.parametrize("call", ["mask_parallel", "extract"])
def test_each_voxel_is_cleaned_once(call, path, masks, brain, monkeypatch):
    columns = count_columns(monkeypatch)
    with SharedImage(path) as opened:
        function = opened.mask_parallel if call == "mask_parallel" else partial(extract, path)
        function([*masks.values()] * 3, standardize="psc")
    assert sum(columns) == brain.sum()


def test_disjoint_masks_are_cleaned_once(path, labels, monkeypatch):
    columns = count_columns(monkeypatch)
    with SharedImage(path) as opened:
        opened.mask_parallel([labels == k for k in (20, 0, 10)], standardize="psc")
    assert sum(columns) == (labels != 30).sum()


def test_many_voxels_are_cleaned_in_parts(path, brain, monkeypatch):
    monkeypatch.setattr(plan, "_CLEAN_COLUMNS", 10)
    columns = count_columns(monkeypatch)
    with SharedImage(path) as opened:
        in_parts = opened.mask(brain, standardize="zscore_sample")
        assert set(columns[:-1]) == {10}
        monkeypatch.setattr(plan, "_CLEAN_COLUMNS", 10**6)
        same_bits(in_parts, opened.mask(brain, standardize="zscore_sample"))


def test_without_cleaning_nothing_is_cleaned(shared, masks, monkeypatch):
    columns = count_columns(monkeypatch)
    shared.mask_parallel(masks, t_r=2.0, standardize=False)
    assert columns == []


@pytest.mark.parametrize(
    ("parameters", "processes"),
    [
        ({}, False),
        ({"n_jobs": 2}, False),
        ({"n_jobs": 2, "prefer": "processes"}, True),
        ({"prefer": "processes"}, True),
        ({"n_jobs": 2, "standardize": "psc"}, True),
        ({"standardize": "psc"}, False),
        ({"n_jobs": 2, "standardize": "psc", "prefer": "threads"}, False),
    ],
    ids=str,
)
def test_where_the_work_is_done(parameters, processes, shared, masks, monkeypatch):
    used, run = [], pool.run_processes
    monkeypatch.setattr(pool, "run_processes", lambda *a, **k: used.append(1) or run(*a, **k))
    shared.mask_parallel(masks, **parameters)
    assert bool(used) is processes


@every_worker
def test_warnings_of_cleaning_reach_the_caller(workers, tmp_path, masks):
    path = save(tmp_path / "long.nii", bold((*SHAPE, 40)))
    with SharedImage(path) as opened, pytest.warns(UserWarning, match="too high") as caught:
        opened.mask_parallel(masks, low_pass=0.4, t_r=2.0, **workers)
    assert len({str(warning.message) for warning in caught}) == 1


# ---- functions of the caller


@every_worker
def test_map_takes_lambdas(workers, shared, masks):
    got = shared.map(lambda signals: float(signals.mean()), masks, **workers)
    assert got == {key: float(np.ascontiguousarray(shared.mask(mask)).mean()) for key, mask in masks.items()}


@every_worker
def test_map_takes_closures(workers, shared, masks):
    power = 3

    def moment(signals):
        return (signals**power).shape, power

    assert shared.map(moment, [masks["a"]], **workers) == [((12, masks["a"].sum()), 3)]


def test_map_prefers_processes(shared, masks):
    pids = set(shared.map(lambda signals: os.getpid(), [*masks.values()], n_jobs=2))
    assert os.getpid() not in pids


def test_map_with_one_job_stays_here(shared, masks):
    assert shared.map(lambda signals: os.getpid(), masks["a"]) == os.getpid()


class Odd(Exception):
    pass


def test_an_error_of_a_function_comes_with_its_traceback(shared, masks):
    def fails_in_the_worker(signals):
        raise Odd(signals.shape)

    with pytest.raises(Odd) as caught:
        shared.map(fails_in_the_worker, masks, n_jobs=2)
    assert "fails_in_the_worker" in str(caught.value.__cause__)
    assert "Traceback" in str(caught.value.__cause__)


def test_a_builtin_error_of_a_function_keeps_its_class(shared, masks):
    with pytest.raises(ZeroDivisionError) as caught:
        shared.map(lambda signals: 1 / 0, masks, n_jobs=2)
    assert "ZeroDivisionError" in str(caught.value.__cause__)


@pytest.mark.parametrize("workers", [{}, {"n_jobs": 2, "prefer": "threads"}], ids=str)
def test_an_error_of_a_function_here(workers, shared, masks):
    with pytest.raises(ZeroDivisionError):
        shared.map(lambda signals: 1 / 0, masks, **workers)


def test_a_function_that_kills_its_worker(shared, masks):
    with pytest.raises(WorkerError, match="exit code 3"):
        shared.map(lambda signals: os._exit(3), masks, n_jobs=2)
    assert shared.map(len, masks["a"], n_jobs=2) == 12


def test_functions_get_arrays_of_their_own(shared, masks):
    def spoil(signals):
        signals[...] = 0
        return signals.flags.c_contiguous

    before = shared.array.copy()
    assert all(shared.map(spoil, list(masks.values())))
    np.testing.assert_array_equal(shared.array, before)


# ---- many masks


def test_iter_masks_gives_each_mask(shared, masks):
    got = dict(shared.iter_masks(masks, batch_size=2))
    assert list(got) == list(masks)
    for key, mask in masks.items():
        np.testing.assert_array_equal(got[key], shared.mask(mask))


@pytest.mark.parametrize("kind", [list, tuple, iter])
def test_iter_masks_numbers_the_masks_of_a_list(kind, shared, masks):
    assert [key for key, _ in shared.iter_masks(kind(masks.values()), batch_size=2)] == [0, 1, 2]


def test_iter_masks_names_the_masks_of_a_pattern(shared, masks, tmp_path):
    pattern = write_masks(tmp_path, masks)
    got = dict(shared.iter_masks(pattern, batch_size=2))
    expected = shared.mask_parallel(pattern)
    assert list(got) == list(expected)
    for key, signals in expected.items():
        same_bits(got[key], signals)


def test_iter_masks_takes_regions_and_stacks(shared, masks):
    stack = np.stack(list(masks.values()), axis=-1)
    regions = Regions.from_any(masks, shared._grid)
    for given in (stack, niimg(stack.astype("u1")), regions):
        got = [signals for _, signals in shared.iter_masks(given, batch_size=2)]
        for one, mask in zip(got, masks.values(), strict=True):
            same_bits(one, shared.mask(mask))


def test_iter_masks_of_no_masks_is_empty(shared):
    assert list(shared.iter_masks([])) == []


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_iter_masks_opens_a_batch_at_a_time(batch_size, shared, masks):
    asked = []

    def later():
        for number, mask in enumerate([*masks.values()] * 2):
            asked.append(number)
            yield mask

    for done, _ in shared.iter_masks(later(), batch_size=batch_size):
        assert len(asked) == min((done // batch_size + 1) * batch_size, 6)


def test_iter_masks_gives_what_comes_before_an_error(shared, masks):
    def broken():
        yield masks["a"]
        yield masks["b"]
        raise OSError("the network is gone")

    signals = shared.iter_masks(broken(), batch_size=1)
    assert next(signals)[0] == 0
    assert next(signals)[0] == 1
    with pytest.raises(OSError, match="the network is gone"):
        next(signals)


def test_iter_masks_reads_files_when_they_are_due(shared, masks, tmp_path):
    write_masks(tmp_path, masks)
    signals = shared.iter_masks([tmp_path / "roi-a.nii.gz", tmp_path / "none.nii.gz"], batch_size=1)
    assert next(signals)[1].shape == (12, masks["a"].sum())
    with pytest.raises(MissingFileError, match="none"):
        next(signals)


def test_iter_masks_reads_the_files_of_a_pattern_when_they_are_due(shared, masks, tmp_path):
    pattern = write_masks(tmp_path, masks)
    (tmp_path / "roi-c.nii.gz").write_bytes(b"")
    signals = shared.iter_masks(pattern, batch_size=1)
    assert next(signals)[0] == "roi-a"
    assert next(signals)[0] == "roi-b"
    with pytest.raises((MaskError, DamagedImageError), match="roi-c"):
        next(signals)


@pytest.mark.parametrize("kind", ["list", "pattern"])
def test_iter_masks_resamples(kind, shared, masks, tmp_path):
    moved = AFFINE.copy()
    moved[0, 3] += 1
    files = [save(tmp_path / f"roi-{key}.nii.gz", masks[key].astype("u1"), affine=moved) for key in "ab"]
    given = files if kind == "list" else str(tmp_path / "roi-*.nii.gz")
    got = [signals for _, signals in shared.iter_masks(given, resampling_target="data")]
    for one, expected in zip(got, shared.mask_parallel(files, resampling_target="data"), strict=True):
        same_bits(one, expected)


@pytest.mark.parametrize("batch_size", [0, -1])
def test_iter_masks_needs_a_batch(batch_size, shared, masks):
    with pytest.raises(ParameterError, match=f"batch_size={batch_size}"):
        next(shared.iter_masks(masks, batch_size=batch_size))


def test_iter_masks_takes_every_parameter(shared, masks):
    got = dict(shared.iter_masks(masks, batch_size=2, standardize="psc", sample_mask=[0, 1, 5], n_jobs=2))
    for key, mask in masks.items():
        same_bits(got[key], shared.mask(mask, standardize="psc", sample_mask=[0, 1, 5]))


# ---- smoothed, resampled


def test_a_smoothed_image_holds_smoothed_values(scaled_path, masks):
    expected = np.asanyarray(smooth_img(scaled_path, 6).dataobj)
    with SharedImage(scaled_path, smoothing_fwhm=6) as opened:
        assert (opened.dtype, opened.scaling, opened.t_r) == (np.float64, (1.0, 0.0), 2.0)
        assert opened.nbytes >= 8 * np.prod(opened.shape) > SharedImage(scaled_path).nbytes
        same_bits(opened.array, expected)
        same_bits(SharedImage.attach(opened.handle).array, expected)
        same_bits(np.asanyarray(opened.as_nifti().dataobj), expected)
        for key, signals in opened.mask_parallel(masks).items():
            same_bits(signals, expected[masks[key]].T)


@every_worker
@pytest.mark.parametrize("cleaning", [{}, {"detrend": True}], ids=str)
def test_smoothed_signals_are_those_of_extract(workers, cleaning, path, masks, brain):
    expected = extract(path, masks, smoothing_fwhm=5.5, **cleaning)
    with SharedImage(path, mask_img=brain, smoothing_fwhm=5.5) as opened:
        for key, signals in opened.mask_parallel(masks, **cleaning, **workers).items():
            same_bits(signals, expected[key])
        expected = extract(path, masks, strategy="mean", smoothing_fwhm=5.5, **cleaning, **workers)
        same_bits(opened.reduce(masks, **cleaning), expected)


@pytest.mark.parametrize("fwhm", [0, -2, "fast", [4, 4, 4]], ids=str)
def test_a_wrong_width_is_refused_at_once(fwhm, path, masks):
    for call in (SharedImage, partial(extract, masks=masks)):
        assert "smoothing_fwhm" in refused(ParameterError, call, path, smoothing_fwhm=fwhm)


@pytest.fixture
def finer(tmp_path):
    """Masks on a grid of half the voxel size."""
    affine = AFFINE @ np.diag([0.5, 0.5, 0.5, 1])
    shape = (12, 11, 9)
    found = {key: mask.astype("u1") for key, mask in zip("abc", random_masks(3, shape), strict=True)}
    return {key: save(tmp_path / f"finer-{key}.nii.gz", mask, affine=affine) for key, mask in found.items()}


@every_worker
@pytest.mark.parametrize("cleaning", [{}, {"standardize": "zscore_sample"}], ids=str)
def test_an_image_is_resampled_to_its_masks(workers, cleaning, path, shared, finer):
    expected = extract(path, finer, resampling_target="mask", **cleaning, **workers)
    for key, signals in shared.mask_parallel(finer, resampling_target="mask", **cleaning, **workers).items():
        assert signals.shape == (12, np.count_nonzero(truth(finer[key])))
        same_bits(signals, expected[key])


def test_every_request_resamples(scaled_path, finer):
    with SharedImage(scaled_path) as opened:
        signals = opened.mask_parallel(finer, resampling_target="mask")
        mean = np.stack([one.mean(axis=1) for one in signals.values()], axis=1)
        for target in ("mask", "labels"):
            np.testing.assert_allclose(opened.reduce(finer, resampling_target=target), mean, rtol=1e-12)
        for key, found in opened.map(np.mean, finer, resampling_target="mask").items():
            np.testing.assert_allclose(found, signals[key].mean(), rtol=1e-12)
        in_one_batch = dict(opened.iter_masks(finer, resampling_target="mask"))
        for key, one in signals.items():
            same_bits(in_one_batch[key], one)
        alone = opened.mask(finer["b"], resampling_target="mask")
        same_bits(next(opened.iter_masks([finer["b"]], resampling_target="mask"))[1], alone)
        same_bits(alone, extract(scaled_path, finer["b"], resampling_target="mask"))


def test_part_of_an_image_is_not_resampled(path, brain, masks, finer, tmp_path):
    flipped = save(tmp_path / "flipped.nii", masks["a"][::-1].astype("u1"), AFFINE @ flip_of_x())
    with SharedImage(path, mask_img=brain) as opened:
        said = refused(OutsideImageError, opened.mask, finer["a"], resampling_target="mask")
        assert "holds the voxels of its mask_img only: smoothing and resampling need all" in said
        assert opened.mask(flipped, resampling_target="mask").shape == (12, masks["a"].sum())


def flip_of_x():
    flip = np.diag([-1.0, 1, 1, 1])
    flip[0, 3] = SHAPE[0] - 1
    return flip


def test_resampling_needs_room(tmp_path):
    path = save(tmp_path / "run.nii", bold((40, 40, 40, 60)))
    fine = niimg(np.ones((60, 60, 60), "u1"), AFFINE @ np.diag([0.5, 0.5, 0.5, 1]))
    with SharedImage(path, memory_limit="30M") as opened:
        streaming = partial(extract, path, memory_limit="30M")
        for call in (opened.mask, opened.reduce, partial(opened.map, np.mean), streaming):
            assert "run.nii" in refused(MemoryLimitError, call, fine, resampling_target="mask")
        assert opened.mask(np.eye(40)[:, :, None] * np.ones(40)).shape == (60, 1600)


# ---- several threads


@pytest.mark.parametrize("parameters", [{}, {"n_jobs": 2}, {"n_jobs": 2, "prefer": "processes"}], ids=str)
def test_several_threads_use_one_image(parameters, path, masks, monkeypatch):
    calls, load = [], loader.load
    monkeypatch.setattr(loader, "load", lambda *a, **k: calls.append(1) or load(*a, **k))
    barrier = threading.Barrier(4)

    def work(mask, opened):
        barrier.wait()
        return [opened.mask(mask, dtype=None, **parameters) for _ in range(5)]

    given = [*masks.values(), np.ones(SHAPE, bool)]
    with SharedImage(path) as opened, ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(partial(work, opened=opened), given))
    for mask, signals in zip(given, answers, strict=True):
        for one in signals:
            same_bits(one, truth(path)[mask].T)
    assert len(calls) == 1


def test_closing_under_the_work_of_other_threads(path, masks):
    started = threading.Event()

    def work(opened):
        for _ in range(10_000):
            try:
                signals = opened.mask(masks["a"], dtype=None)
            except ClosedImageError:
                return True
            same_bits(signals, truth_of_a)
            started.set()
        return False

    truth_of_a = truth(path)[masks["a"]].T
    with ThreadPoolExecutor(3) as threads:
        opened = SharedImage(path)
        running = [threads.submit(work, opened) for _ in range(3)]
        started.wait(10)
        opened.close()
        assert all(future.result() for future in running)


def test_closing_before_workers_attach(path, masks, monkeypatch):
    opened, run = SharedImage(path), pool.run_processes

    def close_first(*args, **kwargs):
        opened.close()
        return run(*args, **kwargs)

    monkeypatch.setattr(pool, "run_processes", close_first)
    with pytest.raises(ClosedImageError):
        opened.mask_parallel(masks, n_jobs=2, prefer="processes")


# ---- refusals


def refused(error, call, *args, **parameters):
    with pytest.raises(error) as caught:
        call(*args, **parameters)
    return str(caught.value)


@pytest.fixture(params=["resident", "streamed"])
def mask_parallel(request, path):
    """The two ways to the signals of masks."""
    if request.param == "streamed":
        yield partial(extract, path)
        return
    with SharedImage(path) as opened:
        yield opened.mask_parallel


def test_an_empty_mask_is_named(mask_parallel, masks):
    said = refused(EmptyMaskError, mask_parallel, {**masks, "amygdala": np.zeros(SHAPE)})
    assert "amygdala" in said


def test_an_empty_file_of_a_mask_is_named(mask_parallel, tmp_path):
    path = save(tmp_path / "nothing.nii.gz", np.zeros(SHAPE, "u1"))
    assert str(path) in refused(EmptyMaskError, mask_parallel, [path])


def test_a_mask_on_another_grid_is_named(mask_parallel, masks, tmp_path):
    moved = AFFINE.copy()
    moved[0, 3] += 1.75
    path = save(tmp_path / "shifted.nii.gz", masks["a"].astype("u1"), affine=moved)
    said = refused(GridMismatchError, mask_parallel, [masks["a"], path])
    assert str(path) in said
    assert "-58.25" in said
    assert "-60" in said


def test_a_mask_of_another_shape_is_named(mask_parallel):
    said = refused(GridMismatchError, mask_parallel, {"thalamus": np.ones((7, 6, 4))})
    assert "thalamus" in said
    assert "7 x 6 x 4" in said
    assert "7 x 6 x 5" in said


def test_no_masks_at_all(mask_parallel):
    assert "no mask" in refused(MaskError, mask_parallel, [])


def test_masks_that_are_not_there(mask_parallel, tmp_path):
    assert "roi-*" in refused(MissingFileError, mask_parallel, str(tmp_path / "roi-*.nii.gz"))


@pytest.mark.parametrize("request_of", ["mask_parallel", "reduce", "map", "iter_masks"])
def test_a_mask_outside_of_the_mask_img_is_named(request_of, path, brain):
    reaching = brain.copy()
    reaching[np.nonzero(~brain)[0][0], np.nonzero(~brain)[1][0], np.nonzero(~brain)[2][0]] = True
    given = {"inside": brain, "reaching": reaching}
    with SharedImage(path, mask_img=brain) as opened:
        call = {
            "mask_parallel": opened.mask_parallel,
            "reduce": opened.reduce,
            "map": partial(opened.map, len),
            "iter_masks": lambda masks: dict(opened.iter_masks(masks)),
        }[request_of]
        said = refused(OutsideImageError, call, given)
    assert said.startswith(f"mask reaching has 1 of its {reaching.sum()} voxels outside of the mask_img")
    assert str(path) in said


def test_an_empty_mask_img_is_refused(path):
    assert "empty" in refused(EmptyMaskError, SharedImage, path, mask_img=np.zeros(SHAPE))


def test_a_mask_img_on_another_grid_is_refused(path, masks):
    mask_img = niimg(masks["a"].astype("u1"), np.eye(4))
    assert "another grid" in refused(GridMismatchError, SharedImage, path, mask_img=mask_img)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"n_jobs": 0}, "n_jobs=0"),
        ({"prefer": "fork"}, "prefer='fork'"),
        ({"nan_policy": "ignore"}, "nan_policy='ignore'"),
        ({"standardize": "zscore"}, "standardize='zscore'"),
        ({"dtype": "float33"}, "float33"),
        ({"sample_mask": [0, 12]}, "volume 12"),
        ({"sample_mask": []}, "sample_mask"),
        ({"sample_mask": np.ones(13, bool)}, "each of 12"),
        ({"confounds": np.zeros((13, 2))}, "13 rows for the 12 volumes"),
        ({"confounds": np.full((12, 2), np.nan)}, "row 0, column 0"),
    ],
    ids=str,
)
def test_a_parameter_is_refused_before_any_work(wrong, said, mask_parallel, masks, monkeypatch):
    monkeypatch.setattr(loader, "load", None)
    assert said in refused(ParameterError, mask_parallel, masks, **wrong)


def test_an_unknown_parameter_is_refused(mask_parallel, masks):
    assert "smoothing" in refused(TypeError, mask_parallel, masks, smoothing=6)


@pytest.mark.parametrize("call", ["reduce", "extract"])
def test_an_unknown_strategy_is_refused_before_any_work(call, path, masks, monkeypatch):
    monkeypatch.setattr(loader, "load", None)
    with SharedImage(path) as opened:
        function = opened.reduce if call == "reduce" else partial(extract, path)
        said = refused(ParameterError, function, masks, strategy="mode")
    assert "strategy='mode' is none of mean, median" in said


def test_a_filter_without_a_repetition_time_is_refused(tmp_path, masks):
    path = save(tmp_path / "run.nii", bold(), t_r=0)
    with SharedImage(path) as opened:
        said = refused(ParameterError, opened.mask_parallel, masks, low_pass=0.1)
    assert said.startswith(f"a filter needs t_r: neither {path}")


@every_worker
def test_refused_non_finite_values_are_counted(workers, not_finite_path):
    one, two = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    one[2, 3, 1], two[4:] = True, True
    with SharedImage(not_finite_path) as opened:
        said = refused(ParameterError, opened.mask_parallel, [one], nan_policy="raise", **workers)
        assert "values looked at are not finite" in said
        np.testing.assert_array_equal(opened.mask(two, nan_policy="raise"), truth(not_finite_path)[two].T)


def test_an_image_with_refused_non_finite_values_is_named(not_finite_path):
    with SharedImage(not_finite_path) as opened:
        said = refused(ParameterError, opened.mask_parallel, {"v1": np.ones(SHAPE)}, nan_policy="raise")
    assert "nan.nii.gz" in said or "v1" in said


def test_all_refused_non_finite_values_are_counted(not_finite_path):
    with SharedImage(not_finite_path) as opened:
        said = refused(ParameterError, opened.mask_parallel, [np.ones(SHAPE)], nan_policy="raise")
    assert "values looked at are not finite" in said


def test_refused_non_finite_values_are_counted_while_streaming(not_finite_path):
    said = refused(ParameterError, extract, not_finite_path, [np.ones(SHAPE)], nan_policy="raise")
    assert "values looked at are not finite" in said


@pytest.mark.parametrize("strategy", ["mean", "median", "pc1"])
def test_refused_non_finite_values_of_reductions(strategy, not_finite_path):
    with SharedImage(not_finite_path) as opened:
        said = refused(ParameterError, opened.reduce, [np.ones(SHAPE)], strategy, nan_policy="raise")
    assert "values looked at are not finite" in said


def test_signals_cannot_leave_values_out(mask_parallel, masks):
    assert "omit" in refused(ParameterError, mask_parallel, masks, nan_policy="omit")


def test_propagated_values_of_a_principal_course(not_finite_path):
    with SharedImage(not_finite_path) as opened:
        got = opened.reduce([np.ones(SHAPE)], "pc1", nan_policy="propagate")
    assert np.isnan(got).all()


# ---- memory


@pytest.fixture
def large(tmp_path):
    return save(tmp_path / "large.nii.gz", np.zeros((64, 64, 16, 20), "i2"))


@pytest.fixture
def no_segment(monkeypatch):
    monkeypatch.setattr(image, "Owned", None)
    monkeypatch.setattr(loader, "load", None)


LARGE_MASKS = [np.ones((64, 64, 16), bool)] * 4


@pytest.mark.parametrize("limit", ["1M", 2**20, 1e-9])
def test_an_image_over_the_limit_is_not_loaded(limit, large, no_segment):
    said = refused(MemoryLimitError, SharedImage(large, store="shm", memory_limit=limit).load)
    assert said.startswith("loading large.nii.gz needs 8 MiB and ")
    assert f"(memory_limit={limit!r})" in said


@pytest.mark.parametrize(
    "use",
    [
        lambda image: image.mask_parallel(LARGE_MASKS),
        lambda image: image.reduce(LARGE_MASKS),
        lambda image: image.map(len, LARGE_MASKS),
        lambda image: image.frame(0),
        lambda image: image.array,
    ],
)
def test_an_image_over_the_limit_is_not_used(use, large, no_segment):
    with pytest.raises(MemoryLimitError, match=r"^loading large\.nii\.gz"):
        use(SharedImage(large, store="shm", memory_limit="1M"))


@pytest.mark.parametrize(
    "parameters",
    [{}, {"strategy": "mean"}, {"standardize": "psc"}, {"standardize": "psc", "n_jobs": 2}],
    ids=str,
)
def test_extraction_over_the_limit_is_not_begun(parameters, large, no_segment):
    said = refused(MemoryLimitError, extract, large, LARGE_MASKS, memory_limit="1M", **parameters)
    assert "large.nii.gz needs " in said
    assert "and 1 MiB may be used (memory_limit='1M')" in said


@pytest.mark.parametrize("parameters", [{}, {"n_jobs": 2, "prefer": "processes"}, {"detrend": True}], ids=str)
def test_signals_over_the_limit_are_not_made(parameters, large, monkeypatch):
    with SharedImage(large, memory_limit="16M") as opened:
        opened.load()
        monkeypatch.setattr(masking, "_output", None)
        said = refused(MemoryLimitError, opened.mask_parallel, LARGE_MASKS, **parameters)
        assert said.startswith("masking large.nii.gz with 4 masks needs ")
        assert "(memory_limit='16M')" in said


def test_an_image_can_be_used_after_a_refusal(large):
    with SharedImage(large, memory_limit="16M") as opened:
        refused(MemoryLimitError, opened.mask_parallel, LARGE_MASKS)
        assert opened.mask(np.eye(64)[:, :, None] * np.ones(16)).shape == (20, 1024)


@pytest.mark.parametrize("cleaning", [{}, {"detrend": True}], ids=str)
def test_extracted_signals_over_the_limit_are_not_made(cleaning, large):
    said = refused(MemoryLimitError, extract, large, LARGE_MASKS, memory_limit="16M", **cleaning)
    assert "(memory_limit='16M')" in said


@pytest.mark.parametrize(
    "call",
    [
        lambda image: image.mask_parallel,
        lambda image: partial(extract, image._source),
        lambda image: partial(extract, image._source, strategy="mean"),
    ],
    ids=["mask_parallel", "extract", "extract, reducing"],
)
@pytest.mark.parametrize("cleaning", [{}, {"standardize": "psc"}], ids=str)
def test_no_more_memory_is_taken_than_asked_for(call, cleaning, tmp_path, monkeypatch):
    path = save(tmp_path / "run.nii", bold((32, 32, 16, 100)))
    asked, require = [], MemoryBudget.require
    monkeypatch.setattr(MemoryBudget, "require", lambda *args: asked.append(args[2]) or require(*args))
    with SharedImage(path) as opened:
        opened.load().mask(np.ones((32, 32, 16)), **cleaning)
        asked.clear()
        tracemalloc.start()
        call(opened)([np.ones((32, 32, 16), bool)] * 4, **cleaning)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak <= 1.1 * sum(asked) + 2 * 2**20


def test_a_part_fits_where_the_whole_does_not(large):
    few = np.zeros((64, 64, 16), bool)
    few[:4] = True
    refused(MemoryLimitError, SharedImage(large, memory_limit="2M").load)
    with SharedImage(large, memory_limit="2M", mask_img=few) as opened:
        assert opened.mask(few).shape == (20, 4096)


def test_batches_fit_where_all_masks_do_not(large):
    with SharedImage(large, memory_limit="12M") as opened:
        refused(MemoryLimitError, opened.mask_parallel, LARGE_MASKS)
        for _, signals in opened.iter_masks(LARGE_MASKS, batch_size=1):
            assert signals.shape == (20, 65536)


@pytest.mark.parametrize("limit", ["much", 0, -5])
def test_a_limit_that_is_none_is_refused(limit, path, masks):
    assert repr(limit) in refused(ParameterError, SharedImage(path, memory_limit=limit).load)
    assert repr(limit) in refused(ParameterError, extract, path, masks, memory_limit=limit)


# ---- images that cannot be loaded


@pytest.fixture
def truncated(path):
    content = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(content)[:-3000])
    return path


def test_a_truncated_image_leaves_nothing(truncated, masks):
    opened = SharedImage(truncated)
    assert str(truncated) in refused(DamagedImageError, opened.load)
    assert owned() == []
    assert "not loaded" in repr(opened)
    assert str(truncated) in refused(DamagedImageError, opened.mask_parallel, masks)
    opened.close()


@pytest.mark.parametrize("parameters", [{}, {"strategy": "mean"}, {"detrend": True, "n_jobs": 2}], ids=str)
def test_extraction_of_a_truncated_image_leaves_nothing(parameters, truncated, masks):
    assert str(truncated) in refused(DamagedImageError, extract, truncated, masks, **parameters)
    assert owned() == []


def test_an_image_that_is_not_there(tmp_path, masks):
    missing = tmp_path / "none.nii.gz"
    assert str(missing) in refused(MissingFileError, SharedImage, missing)
    assert str(missing) in refused(FileNotFoundError, extract, missing, masks)


def test_an_image_that_went_away_before_loading(path):
    opened = SharedImage(path)
    path.unlink()
    assert str(path) in refused(MissingFileError, opened.load)


# ---- a real run


@pytest.mark.realdata
def test_a_real_empty_mask_is_named(real_data):
    null = real_data / "sub-RAPIDTIDETEST_nullmask.nii.gz"
    with SharedImage(real_data / "sub-RAPIDTIDETEST.nii.gz") as opened:
        assert str(null) in refused(EmptyMaskError, opened.mask, null)


@pytest.mark.realdata
def test_real_confounds_of_another_run_are_refused(real_data):
    motion = real_data / "sub-HAPPYTEST_mcf.par"
    run, brain = real_data / "sub-RAPIDTIDETEST.nii.gz", real_data / "sub-RAPIDTIDETEST_brainmask.nii.gz"
    said = refused(ParameterError, extract, run, brain, confounds=motion)
    assert said == f"{motion}: 110 rows for the 260 volumes of {run}"


@pytest.mark.realdata
def test_real_masks_of_several_kinds_by_many_jobs(real_data):
    run = real_data / "sub-RAPIDTIDETEST.nii.gz"
    atlas = Regions.from_labels(real_data / "sub-RAPIDTIDETEST_atlas-Schaefer400_dseg.nii.gz")
    with SharedImage(run, mask_img=real_data / "sub-RAPIDTIDETEST_brainmask.nii.gz") as opened:
        inside = {name for row in atlas.table(opened._voxels) if row.coverage == 1 for name in [row.name]}
        values = np.asarray(nib.load(real_data / "sub-RAPIDTIDETEST_atlas-Schaefer400_dseg.nii.gz").dataobj)
        masks = {name: values == int(name) for name in sorted(inside)[:20]}
        alone = opened.mask_parallel(masks)
        jobs = opened.mask_parallel(masks, n_jobs=20, prefer="processes")
    for name in masks:
        same_bits(jobs[name], alone[name])
