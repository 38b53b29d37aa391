"""Searchlights: nilearn's neighbourhoods and scores, whoever does the work."""

import numpy as np
import pytest
from images import AFFINE, SHAPE, bold, niimg, save
from nilearn.decoding import SearchLight
from nilearn.maskers import NiftiSpheresMasker
from sklearn.linear_model import RidgeClassifier
from sklearn.model_selection import KFold, LeaveOneGroupOut
from small_runs import every_worker

from sharedmask import Grid, SharedImage
from sharedmask.errors import EmptyMaskError, MemoryLimitError, ParameterError
from sharedmask.image import searchlight

BRAIN = np.random.default_rng(4).random(SHAPE) < 0.6
Y = np.arange(24) % 2


@pytest.fixture
def run(tmp_path):
    return save(tmp_path / "bold.nii.gz", bold((*SHAPE, 24)).astype("f4"))


def spread(signals):
    return signals.std()


@every_worker
@pytest.mark.parametrize("held", [False, True])
def test_neighbourhoods_are_nilearns_spheres(workers, held, run, monkeypatch):
    monkeypatch.setattr(searchlight, "_CENTRES", 20)
    centres = np.argwhere(BRAIN)
    seeds = [tuple((AFFINE @ [*place, 1])[:3]) for place in centres]
    spheres = NiftiSpheresMasker(
        seeds, 6.0, niimg(BRAIN.astype("u1")), allow_overlap=True, standardize=None
    ).fit_transform(run)
    kept = {"mask_img": BRAIN} if held else {}
    with SharedImage(run, **kept) as image:
        asked = {} if held else {"mask_img": BRAIN}
        means = image.searchlight(lambda signals: signals.mean(1), 6.0, **asked, **workers)
    assert means.shape == (*SHAPE, 24)
    np.testing.assert_allclose(means.get_fdata()[tuple(centres.T)], spheres.T, rtol=1e-5)
    assert not means.get_fdata()[~BRAIN].any()


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:Use a custom estimator")
@pytest.mark.parametrize(
    ("cv", "groups", "scoring"),
    [(KFold(4), None, None), (LeaveOneGroupOut(), np.arange(24) // 6, "roc_auc"), (3, None, "accuracy")],
)
def test_scores_are_nilearns(cv, groups, scoring, run):
    mask, centres = niimg(BRAIN.astype("u1")), BRAIN.copy()
    centres &= np.random.default_rng(0).random(SHAPE) < 0.2
    where = niimg(centres.astype("u1"))
    settings = {"cv": cv, "scoring": scoring}
    theirs = SearchLight(mask, where, radius=6.0, estimator=RidgeClassifier(), n_jobs=1, **settings)
    theirs.fit(run, Y, groups)
    with SharedImage(run) as image:
        ours = image.searchlight(
            RidgeClassifier(),
            6.0,
            mask_img=mask,
            process_mask_img=where,
            y=Y,
            groups=groups,
            n_jobs=2,
            **settings,
        )
    np.testing.assert_allclose(ours.get_fdata(), theirs.scores_, rtol=1e-6)


def test_signals_are_cleaned_before(run):
    cleaning = {"standardize": "zscore_sample", "detrend": True, "sample_mask": np.arange(4, 24)}
    centre = np.zeros(SHAPE, bool)
    centre[2, 2, 2] = True
    with SharedImage(run) as image:
        alone = image.mask(centre, **cleaning)
        found = image.searchlight(lambda signals: signals[:, 0], 0.0, process_mask_img=centre, **cleaning)
        scores = image.searchlight(
            RidgeClassifier(), process_mask_img=centre, y=Y[4:], cv=KFold(2), **cleaning
        )
    np.testing.assert_allclose(found.get_fdata()[2, 2, 2], alone[:, 0], rtol=1e-5)
    assert scores.get_fdata()[2, 2, 2] > 0


@every_worker
@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize(
    "asked",
    [
        {"high_pass": 0.01, "sample_mask": np.delete(np.arange(24), [4, 11, 12])},
        {"low_pass": 0.1, "detrend": True},
        {"low_pass": 0.1, "confounds": np.linspace(0, 1, 24)[:, None] ** 2},
    ],
    ids="-".join,
)
def test_per_cent_of_filtered_signals_hangs_on_the_mask_alone(workers, held, asked, monkeypatch):
    monkeypatch.setattr(searchlight, "_CENTRES", 30)
    rng = np.random.default_rng(0)
    # Little mean in one half, much in the other: blocks would decide otherwise than all do.
    levels = np.where(np.arange(SHAPE[2]) < SHAPE[2] // 2, 3, 2000)[:, None]
    data = rng.normal(0, 5, (*SHAPE, 24)) + levels
    data[..., [4, 12]] += rng.normal(0, 50, (*SHAPE, 2))
    image = niimg(data.astype("f4"))
    asked = asked | {"standardize": "psc", "t_r": 2.0}
    store = {"mask_img": BRAIN} if held else {}
    with SharedImage(image, **store) as shared:
        expected = shared.mask(BRAIN, **asked)
        found = shared.searchlight(lambda one: one[:, 0], 0.0, mask_img=BRAIN, **workers, **asked)
    np.testing.assert_allclose(
        found.get_fdata()[BRAIN].T, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max()
    )


def test_the_ball_is_in_millimetres():
    grid = Grid((9, 9, 9), np.diag([2.0, 2.0, 4.0, 1.0]))
    assert len(searchlight.Ball.of(grid, 2.0).offsets) == 5
    assert len(searchlight.Ball.of(grid, 4.0).offsets) == 15
    assert searchlight.Ball.of(grid, 0.0).offsets.tolist() == [[0, 0, 0]]


def test_random_numbers_do_not_depend_on_jobs(run, monkeypatch):
    monkeypatch.setattr(searchlight, "_CENTRES", 30)
    with SharedImage(run) as image:
        maps = [
            image.searchlight(lambda _: np.random.random(), 0.0, random_state=3, n_jobs=jobs).get_fdata()
            for jobs in (1, 2)
        ]
    np.testing.assert_array_equal(*maps)
    assert len(np.unique(maps[0])) == BRAIN.size


@pytest.mark.parametrize(
    ("asked", "kind", "said"),
    [
        ({"func": 3}, ParameterError, "need y"),
        ({"func": spread, "cv": 3}, ParameterError, "need y"),
        ({"func": spread, "y": Y}, ParameterError, "no estimator"),
        ({"func": RidgeClassifier(), "y": Y[1:]}, ParameterError, "y has 23 values for 24 volumes"),
        ({"func": RidgeClassifier(), "y": Y, "groups": [1]}, ParameterError, "groups has 1 values"),
        ({"func": spread, "radius": -1}, ParameterError, "radius=-1"),
        ({"func": spread, "radius": "6"}, ParameterError, "radius='6'"),
        ({"func": spread, "resampling_target": "mask"}, ParameterError, "grid of the image"),
        ({"func": lambda signals: "much"}, ParameterError, "has to give a number"),
        ({"func": lambda signals: signals}, ParameterError, "not shape|inhomogeneous"),
        ({"func": spread, "radius": 1.0, "process_mask_img": ~BRAIN}, EmptyMaskError, "around the centre"),
    ],
)
def test_what_makes_no_map_is_refused(asked, kind, said, run):
    with SharedImage(run, memory_limit="1G") as image, pytest.raises(kind, match=said):
        image.searchlight(**{"mask_img": BRAIN} | asked)


def test_memory_is_asked_for_before_the_work(run):
    with (
        SharedImage(run, memory_limit="300K") as image,
        pytest.raises(MemoryLimitError, match="maps of seeds"),
    ):
        image.seed_maps(np.random.default_rng(0).normal(size=(24, 400)))
