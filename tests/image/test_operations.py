"""What can be asked of a shared image: masks, atlases, functions, many masks; and in which container."""

import os

import nibabel as nib
import numpy as np
import pytest
from images import AFFINE, SHAPE, bold, niimg, same_bits, save, truth
from small_runs import every_worker

from sharedmask import Regions, SharedImage, extract
from sharedmask.errors import (
    DamagedImageError,
    MaskError,
    MissingFileError,
    ParameterError,
    WorkerError,
)

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


@every_worker
def test_several_reductions_are_those_of_each_alone(workers, shared, path, labels):
    every = ("mean", "pc1", "maximum")
    for detrend in (False, True):
        expected = {one: shared.reduce(labels, one, detrend=detrend) for one in every}
        found = shared.reduce(labels, every, detrend=detrend, **workers)
        passing = extract(path, labels, strategy=[*every], detrend=detrend)
        for one in every:
            np.testing.assert_array_equal(found[one], expected[one])
            np.testing.assert_array_equal(passing[one], expected[one])
        assert list(found) == list(passing) == list(every)


def test_several_reductions_are_kept_and_told_as_one(path, labels, tmp_path):
    told = []
    asked = {"memory": tmp_path, "on_result": lambda *one: told.append(one)}
    first, again = (extract(path, labels, strategy=["mean", "sum"], **asked) for _ in range(2))
    assert len(told) == 2 * first["sum"].shape[1]
    for key, series in told:
        assert list(series) == ["mean", "sum"] and isinstance(key, str)
    for one in first:
        np.testing.assert_array_equal(first[one], again[one])


@pytest.mark.parametrize("wrong", [[], ["mean", "mean"], ["mean", "mode"], 3])
def test_strategies_that_are_none_are_refused(wrong, shared, path, labels):
    for call in (lambda **how: shared.reduce(labels, **how), lambda **how: extract(path, labels, **how)):
        with pytest.raises(ParameterError, match=r"strategy="):
            call(strategy=wrong)


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


@pytest.mark.parametrize("func", [None, "mean", 3])
def test_what_is_no_function_is_not_mapped(func, shared, masks):
    with pytest.raises(ParameterError, match="is no function"):
        shared.map(func, masks)
