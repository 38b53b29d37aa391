"""Batches: what is handed over, what is kept, and what happens when something raises."""

import gc
import weakref

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from images import bold, niimg, random_masks

import sharedmask
from sharedmask import FunctionalNetworkMapper, SharedImage, batch_process, extract
from sharedmask.errors import CallbackError, MemoryLimitError, ParameterError
from sharedmask.system.settings import using

NUMBERS = {f"n{i}": i for i in range(7)}


class Result:
    def __init__(self, number):
        self.summary = {"number": number}


def inverse(number):
    return 1 / number


@settings(max_examples=30)
@given(count=st.integers(0, 12), size=st.integers(1, 14))
def test_each_lesion_is_in_one_batch_in_order(count, size):
    batches = []
    given = {str(i): i for i in range(count)}
    outcome = batch_process(given, str, batch_size=size, on_batch=batches.append)
    assert [name for batch in batches for name in batch] == list(given)
    assert all(len(batch) == size for batch in batches[:-1])
    assert list(outcome.summaries) == list(given)
    assert outcome.results == {}


def test_without_a_callback_results_are_kept_by_name():
    assert batch_process(NUMBERS, str, batch_size=3).results == {name: str(i) for name, i in NUMBERS.items()}


def test_with_a_callback_only_summaries_are_kept():
    made, handed = [], []

    def analysis(number):
        made.append(weakref.ref(result := Result(number)))
        return result

    def on_batch(batch):
        gc.collect()
        handed.append(sum(ref() is not None for ref in made))

    outcome = batch_process(NUMBERS, analysis, batch_size=2, on_batch=on_batch)
    assert handed == [2, 2, 2, 1]
    assert outcome.summaries["n3"] == {"number": 3}
    assert not any(ref() for ref in made)


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_one_bad_lesion_is_an_entry_in_the_errors(n_jobs):
    outcome = batch_process(NUMBERS, inverse, batch_size=3, errors="collect", n_jobs=n_jobs)
    assert list(outcome.results) == ["n1", "n2", "n3", "n4", "n5", "n6"]
    assert [type(error) for error in outcome.errors.values()] == [ZeroDivisionError]
    assert list(outcome.errors) == ["n0"]


def test_errors_raise_after_the_rest_of_the_batch_was_handed_over():
    handed = []
    with pytest.raises(ZeroDivisionError):
        batch_process({"a": 1, "b": 0, "c": 2}, inverse, on_batch=handed.append)
    assert handed == [{"a": 1.0, "c": 0.5}]


def test_an_error_holds_no_frame_of_its_lesion():
    held = []

    class Thing:
        pass

    def analysis(number):
        thing = Thing()
        held.append(weakref.ref(thing))
        raise ValueError("no")

    outcome = batch_process([1], analysis, errors="collect")
    gc.collect()
    assert str(outcome.errors["mask_000"]) == "no"
    assert held[0]() is None


def raising_at(number):
    calls = []

    def on_batch(batch):
        calls.append(list(batch))
        if len(calls) == number:
            raise OSError("disk full")

    return on_batch, calls


def test_a_raising_callback_ends_the_call_and_loses_nothing():
    on_batch, calls = raising_at(2)
    with pytest.raises(CallbackError, match=r"batch 1 \(n2, n3\): disk full") as caught:
        batch_process(NUMBERS, str, batch_size=2, on_batch=on_batch)
    assert calls == [["n0", "n1"], ["n2", "n3"]]
    outcome = caught.value.outcome
    assert outcome.results == {"n2": "2", "n3": "3"}
    assert list(outcome.summaries) == ["n0", "n1", "n2", "n3"]
    assert isinstance(caught.value.__cause__, OSError)


def test_a_raising_callback_is_collected_with_its_batch():
    on_batch, calls = raising_at(2)
    outcome = batch_process(NUMBERS, str, batch_size=2, on_batch=on_batch, errors="collect")
    assert len(calls) == 4
    assert outcome.results == {"n2": "2", "n3": "3"}
    (failure,) = outcome.failed_callbacks
    assert (failure.batch, failure.names, str(failure.error)) == (1, ("n2", "n3"), "disk full")


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_progress_counts_lesions_as_they_end(n_jobs):
    told = []
    batch_process(
        NUMBERS, str, batch_size=4, n_jobs=n_jobs, progress=lambda done, total: told.append((done, total))
    )
    counts = [done for done, total in told if total == 7]
    assert counts == sorted(counts)
    assert set(counts) == set(range(1, 8))


def test_the_prior_names_are_aliases():
    handed, told = [], []
    outcome = batch_process(
        NUMBERS,
        str,
        lesion_batch_size=5,
        batch_result_callback=handed.append,
        show_progress=lambda *done: told.append(done),
    )
    assert handed == [["0", "1", "2", "3", "4"], ["5", "6"]]
    assert told[-1] == (7, 7)
    assert outcome.results == {}


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({"batch_size": 0}, ParameterError, "batch_size=0"),
        ({"batch_size": 2.5}, ParameterError, r"batch_size=2\.5"),
        ({"errors": "ignore"}, ParameterError, "errors='ignore'"),
        ({"n_jobs": 0}, ParameterError, "n_jobs=0"),
        ({"bacth_size": 3}, TypeError, "bacth_size"),
        ({"analysis": 3}, ParameterError, "neither a mapper nor a function"),
    ],
)
def test_what_makes_no_sense_is_refused(parameters, error, message):
    with pytest.raises(error, match=message):
        batch_process(NUMBERS, **{"analysis": str, **parameters})


# --- batches of masks ----------------------------------------------------------------------------


SHAPE = (16, 16, 16)


@pytest.fixture(scope="module")
def run():
    return niimg(bold((*SHAPE, 200)))


@pytest.fixture(scope="module")
def masks():
    return {f"m{i}": mask for i, mask in enumerate(random_masks(7, SHAPE, density=0.05))}


@pytest.mark.parametrize("memory_limit", [None, 1_500_000])
def test_extract_hands_over_batches_and_keeps_shapes(memory_limit, run, masks):
    """With little memory the image is read once per batch, else once."""
    handed = []
    shapes = extract(run, masks, batch_size=3, on_batch=handed.append, memory_limit=memory_limit)
    assert [list(batch) for batch in handed] == [["m0", "m1", "m2"], ["m3", "m4", "m5"], ["m6"]]
    whole = extract(run, masks)
    for batch in handed:
        for name, signals in batch.items():
            np.testing.assert_array_equal(signals, whole[name])
    assert shapes == {name: signals.shape for name, signals in whole.items()}


def reads(monkeypatch):
    """How often the image is read through."""
    from sharedmask.sources import loader

    calls, load = [], loader.load
    monkeypatch.setattr(loader, "load", lambda *a, **k: calls.append(1) or load(*a, **k))
    return calls


def test_extract_reads_once_where_the_union_fits(run, masks, monkeypatch):
    calls = reads(monkeypatch)
    extract(run, masks, batch_size=2, on_batch=lambda batch: None)
    assert len(calls) == 1


def test_extract_reads_per_batch_where_it_does_not(run, masks, monkeypatch):
    calls = reads(monkeypatch)
    extract(run, masks, batch_size=1, on_batch=lambda batch: None, memory_limit=800_000)
    assert len(calls) == len(masks)


def test_extract_chooses_batches_that_fit(run, masks):
    handed = []
    extract(run, masks, on_batch=handed.append, memory_limit=1_500_000)
    assert 1 < len(handed) <= len(masks)
    assert [name for batch in handed for name in batch] == list(masks)
    with pytest.raises(MemoryLimitError):
        extract(run, masks, on_batch=handed.append, memory_limit=100_000)


@pytest.mark.parametrize("wrong", [{"batch_size": 3}, {"batch_size": 0, "on_batch": print}])
def test_extract_refuses_batches_that_make_no_sense(wrong, run, masks):
    with pytest.raises(ParameterError, match="batch_size"):
        extract(run, masks, **wrong)


def test_cleaned_batches_are_those_of_one_call(run, masks):
    handed = []
    cleaning = {"standardize": "zscore_sample", "n_jobs": 2}
    extract(run, masks, batch_size=4, on_batch=handed.append, **cleaning)
    whole = extract(run, masks, **cleaning)
    assert [len(batch) for batch in handed] == [4, 3]
    assert all(np.array_equal(one, whole[name]) for batch in handed for name, one in batch.items())


def test_extract_keeps_no_batches(run, masks, tmp_path):
    with pytest.raises(ParameterError, match="on_batch"):
        extract(run, masks, memory=tmp_path, on_batch=print)
    with using(cache_dir=tmp_path / "cache"):
        extract(run, masks, on_batch=lambda batch: None)
    assert not (tmp_path / "cache").exists()


def test_extract_reduces_no_batches(run, masks):
    with pytest.raises(ParameterError, match="on_batch"):
        extract(run, masks, strategy="mean", on_batch=print)


@pytest.mark.parametrize("limit", [None, 3_500_000])
def test_iter_masks_chooses_its_batches(limit, run, masks):
    with SharedImage(run, memory_limit=limit) as image:
        expected = image.mask_parallel(masks)
        for given in (masks, sharedmask.Regions.from_any(masks, image._grid)):
            got = dict(image.iter_masks(given, batch_size=None))
            assert list(got) == list(masks)
            assert all(np.array_equal(got[name], expected[name]) for name in masks)


def test_iter_masks_opens_no_more_than_fit(run):
    opened = []
    whole = nib.Nifti1Image(np.ones(SHAPE, "u1"), run.affine)

    def later():
        for number in range(6):
            opened.append(number)
            yield whole

    with SharedImage(run, memory_limit=9_000_000) as image:
        next(image.iter_masks(later(), batch_size=None))
    assert len(opened) < 6


def test_names_of_lacuna_are_aliases(connectome, lesions):
    mapper = FunctionalNetworkMapper(t_threshold=2).fit(connectome)
    given, taken = {name: lesions[name][0] for name in ("l0", "l1", "l2")}, []
    asked = {"batch_result_callback": lambda found: taken.append(len(found)), "show_progress": False}
    batch_process(given, mapper, strategy="sequential", **asked)
    batch_process(given, mapper, strategy="vectorized", lesion_batch_size=2, **asked)
    batch_process(given, mapper, strategy="parallel", **asked)
    assert taken == [1, 1, 1, 2, 1, 3]
    maps = mapper.transform(given)["l0"]
    for name in ("correlation_map", "z_map", "t_map", "t_threshold_map"):
        assert np.array_equal(maps[name].dataobj, getattr(maps, name).dataobj)
    assert maps.results["FunctionalNetworkMapping"]["summarystatistics"] == maps.summary
    assert maps.metadata == {"subject_id": "l0"}
    with pytest.raises(ParameterError, match="strategy='x'"):
        batch_process(given, mapper, strategy="x")
    for name in ("backend", "progress_desc", "compute_t_map"):
        with pytest.raises(TypeError, match=name):
            batch_process(given, mapper, **{name: "loky"})


def test_lesions_of_an_iterator_are_one_each():
    found = batch_process((number for number in range(3)), lambda number: number)
    assert list(found.results.values()) == [0, 1, 2]
