"""The shared image from its first use to its end: facts, states, views and frames."""

import gc
import re
import warnings
from functools import partial

import numpy as np
import pytest
from images import SHAPE, bold, niimg, same_bits, save, truth
from nilearn.image import smooth_img
from small_runs import every_worker, owned, refused

from sharedmask import SharedImage, extract
from sharedmask.errors import (
    ClosedImageError,
    OutsideImageError,
    ParameterError,
)
from sharedmask.image.niimg import SharedNifti
from sharedmask.sources import loader
from sharedmask.storage import segment
from sharedmask.storage.views import SharedArray

# ---- facts and states


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


def test_close_releases_the_memory(path, segments_of_this_test):
    opened = SharedImage(path).load()
    assert len(segments_of_this_test()) == 1
    assert not opened.closed
    opened.close()
    assert opened.closed
    assert not segments_of_this_test()
    assert owned() == []


def test_a_view_that_was_taken_travels_under_the_name_that_the_image_has_then(shared):
    before, view = shared.handle, shared.array
    handle = shared.publish("another")
    assert (before.label == "another", handle.label, shared.handle) == (False, "another", handle)
    assert SharedArray.__reduce_ex__(view, 4)[1][0] == handle.to_json()
    assert segment.attach(handle) is view.origin


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


@pytest.mark.parametrize("t", [12, 99, -13, True, np.False_])
def test_a_frame_that_is_not_there(t, shared):
    with pytest.raises(ParameterError, match=rf"^sub-01_bold\.nii\.gz has 12 volumes, .* no volume {t!r}$"):
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


@pytest.mark.parametrize("make", [SharedImage.attach, SharedNifti.of])
@pytest.mark.parametrize("given", [5, None, b"run", ["run"]])
def test_what_is_no_handle_is_refused_by_name(make, given):
    with pytest.raises(
        ParameterError, match=f"known by its handle or its name, not by {re.escape(repr(given))}"
    ):
        make(given)
