"""When signals need cleaning, and what they become beside others."""

import numpy as np
import pytest
from images import niimg
from nilearn.signal import clean

from sharedmask import SharedImage, SharedMultiMasker, SharedNiftiMasker, extract, extract_many
from sharedmask.compute.cleaning import Cleaning
from sharedmask.maskers import extractors


@pytest.mark.parametrize(
    ("cleaning", "needed"),
    [
        ({}, False),
        ({"t_r": 2.0}, False),
        ({"standardize": "psc"}, True),
        ({"detrend": True}, True),
        ({"confounds": np.zeros((9, 1))}, True),
        ({"sample_mask": np.arange(3)}, True),
        ({"low_pass": 0.1}, True),
        ({"high_pass": 0.1}, True),
    ],
)
def test_whether_cleaning_is_needed(cleaning, needed):
    assert Cleaning(**cleaning).needed is needed


# --- per cent of filtered signals ----------------------------------------------------------------

SHAPE, T = (11, 10, 10), 40
KEPT = np.delete(np.arange(T), [4, 11, 12, 30])


def run_and_masks():
    """A run of little mean in its first half and much in the other; masks of one half, the other, both."""
    rng = np.random.default_rng(0)
    data = rng.normal(0, 5, (*SHAPE, T)) + np.where(np.arange(SHAPE[0]) < 6, 3, 2000)[:, None, None, None]
    data[..., [4, 12, 30]] += rng.normal(0, 50, (*SHAPE, 3))
    inside = np.indices(SHAPE)[0]
    return niimg(data.astype("f4")), {"little": inside < 6, "much": inside >= 6, "both": inside > -1}


def held(image, masks, **asked):
    with SharedImage(image, store="private") as shared:
        return shared.mask_parallel(masks, **asked)


def of_processes(image, masks, **asked):
    with SharedImage(image) as shared:
        return shared.mask_parallel(masks, n_jobs=2, prefer="processes", **asked)


def one_by_one(image, masks, **asked):
    with SharedImage(image, store="private") as shared:
        return {name: shared.mask(mask, n_jobs=2, **asked) for name, mask in masks.items()}


def iterated(image, masks, **asked):
    with SharedImage(image, store="private") as shared:
        return dict(shared.iter_masks(masks, batch_size=2, **asked))


def mapped(image, masks, **asked):
    with SharedImage(image, store="private") as shared:
        return shared.map(np.copy, masks, **asked)


def batched(image, masks, **asked):
    found = {}
    extract(image, masks, batch_size=2, on_batch=found.update, **asked)
    return found


def many(image, masks, **asked):
    for name in {"confounds", "sample_mask"} & asked.keys():
        asked[name] = [asked[name]]
    return extract_many([image], masks, **asked).results[0]


def each_by_a_masker(image, masks, confounds=None, sample_mask=None, **asked):
    given = {"confounds": confounds, "sample_mask": sample_mask}
    maskers = {name: SharedNiftiMasker(niimg(mask.astype("u1")), **asked) for name, mask in masks.items()}
    return {name: one.fit().transform(image, **given) for name, one in maskers.items()}


def all_by_a_masker(image, masks, confounds=None, sample_mask=None, **asked):
    images = {name: niimg(mask.astype("u1")) for name, mask in masks.items()}
    masker = SharedMultiMasker(images, **asked).fit()
    return masker.transform(image, confounds=confounds, sample_mask=sample_mask)


ENTRIES = [held, of_processes, one_by_one, iterated, mapped, extract, batched, many]
MASKERS = [each_by_a_masker, all_by_a_masker]


@pytest.mark.shares
@pytest.mark.parametrize(
    "asked",
    [
        {"high_pass": 0.01, "sample_mask": KEPT},
        {"high_pass": 0.01, "low_pass": 0.1, "detrend": True, "sample_mask": KEPT},
        {"low_pass": 0.1, "detrend": True},
        {"low_pass": 0.1, "confounds": np.linspace(0, 1, T)[:, None] ** 2},
    ],
    ids=lambda asked: "-".join(asked),
)
@pytest.mark.parametrize("made", [*ENTRIES, *MASKERS])
def test_per_cent_of_filtered_signals_hangs_on_the_mask_alone(made, asked, monkeypatch):
    monkeypatch.setattr(extractors, "_CLEAN_BYTES", 8192)
    image, masks = run_and_masks()
    found = made(image, masks, standardize="psc", t_r=2.0, **asked)
    for name, mask in masks.items():
        signals = np.asarray(image.dataobj)[mask].T.copy()
        expected = clean(signals, standardize="psc", t_r=2.0, **{"detrend": False, **asked})
        np.testing.assert_allclose(found[name], expected, rtol=1e-5, atol=2e-6 * np.abs(expected).max())
