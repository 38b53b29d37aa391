"""Linear models: nilearn's numbers, in blocks, within memory."""

import numpy as np
import pandas as pd
import pytest
from images import SHAPE, niimg, random_masks, save

from sharedmask import SharedImage
from sharedmask.compute import glm
from sharedmask.errors import MemoryLimitError, ParameterError

N = 60
VECTOR, MATRIX = [1.0, -1.0], [[1.0, 0, 0], [0, 1.0, 0]]


def designed(seed=0, constant=True):
    rng = np.random.default_rng(seed)
    table = {f"c{i}": np.convolve(rng.random(N) > 0.8, np.hanning(7), "same") for i in range(3)}
    table["drift"] = np.linspace(-1, 1, N)
    return pd.DataFrame(table | ({"constant": np.ones(N)} if constant else {}))


def twice(column, name):
    """A design that has a column once more, under another name."""
    design = designed()
    design.insert(len(design.columns), name, design[column], allow_duplicates=True)
    return design


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(1)
    noise = rng.normal(0, 5, (*SHAPE, N))
    for t in range(1, N):
        noise[..., t] += 0.4 * noise[..., t - 1]
    effect = rng.normal(0, 3, (*SHAPE, 3)) @ designed().to_numpy()[:, :3].T
    return (1000 + effect + noise).round().astype("i2")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(glm, "_BLOCK_BYTES", 50 * N * 8)


def nilearns(series, design, noise_model, contrast):
    from nilearn.glm import compute_contrast
    from nilearn.glm.first_level import run_glm

    labels, results = run_glm(series, design.to_numpy(), noise_model=noise_model)
    return labels, compute_contrast(labels, results, np.asarray(contrast))


@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize("contrast", [VECTOR, MATRIX], ids=["t", "F"])
@pytest.mark.parametrize("noise_model", ["ols", "ar1"])
def test_the_numbers_are_nilearns(data, noise_model, contrast, constant):
    design = designed(constant=constant)
    full = np.pad(np.atleast_2d(contrast), ((0, 0), (0, design.shape[1] - np.shape(contrast)[-1])))
    full = full[0] if np.ndim(contrast) == 1 else full
    with SharedImage(niimg(data)) as image:
        found = image.fit_glm(design, contrasts={"it": contrast}, noise_model=noise_model, n_jobs=2)
    series = data.reshape(-1, N).T.astype("f4")
    labels, expected = nilearns(series, design, noise_model, full)
    one = found.contrasts["it"]
    near = {"rtol": 1e-6, "atol": 1e-6}
    np.testing.assert_allclose(one.effect, expected.effect_size(), **near)
    np.testing.assert_allclose(one.variance, expected.effect_variance(), **near)
    np.testing.assert_allclose(one.stat, expected.stat(), rtol=1e-6, atol=1e-5)
    np.testing.assert_allclose(one.z_score, expected.z_score(), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(one.p_value, expected.p_value(), rtol=1e-4, atol=1e-6)
    if noise_model == "ar1":
        np.testing.assert_allclose(found.rho, labels.astype(float), atol=1e-6)
        assert len(np.unique(found.rho)) > 1


@pytest.mark.parametrize("store", ["shm", "disk", "file"])
def test_every_store_gives_the_same(data, store, tmp_path, monkeypatch):
    monkeypatch.setenv("SHAREDMASK_TMPDIR", str(tmp_path))
    path = save(tmp_path / "run.nii", data)
    with SharedImage(niimg(data)) as held, SharedImage(path, store=store) as image:
        expected = held.fit_glm(designed(), noise_model="ar1").estimates
        np.testing.assert_array_equal(image.fit_glm(designed(), noise_model="ar1").estimates, expected)


def test_single_trials_are_each_in_a_model_of_its_own(data):
    design, trials = designed(), ["c0", "c1", "c2"]
    with SharedImage(niimg(data)) as image:
        found = image.fit_glm(design, trials=trials)
        together = image.fit_glm(design)
    assert found.names == tuple(trials)
    series = data.reshape(-1, N).T.astype("f8")
    for trial, estimates in zip(trials, found.estimates, strict=True):
        others = design[[name for name in trials if name != trial]].sum(axis=1)
        own = np.column_stack([design[trial], others, design["drift"], design["constant"]])
        np.testing.assert_allclose(estimates, np.linalg.lstsq(own, series)[0][0], rtol=1e-5, atol=1e-5)
    expected = np.linalg.lstsq(design.to_numpy(), series)[0]
    np.testing.assert_allclose(together.estimates, expected, rtol=1e-5, atol=1e-5)


def test_per_cent_of_the_mean_is_nilearns_scaling(data):
    from nilearn.glm.first_level import mean_scaling

    scaled, _ = mean_scaling(data.reshape(-1, N).T.astype("f8"), 0)
    with SharedImage(niimg(data)) as image:
        found = image.fit_glm(designed(), in_per_cent=True)
    expected = np.linalg.lstsq(designed().to_numpy(), scaled)[0]
    np.testing.assert_allclose(found.estimates, expected, rtol=1e-4, atol=1e-5)


def test_maps_and_means_of_regions(data):
    masks = dict(zip("ab", random_masks(2), strict=True))
    with SharedImage(niimg(data), mask_img=masks["a"] | masks["b"]) as image:
        found = image.fit_glm(designed(), masks, contrasts=["c1"])
        everywhere = image.fit_glm(designed())
    effect = found.contrasts["c1"].effect
    means = found.by_region(effect)
    maps = np.asarray(found.to_nifti(effect).dataobj)
    for name, mask in masks.items():
        assert means[name] == pytest.approx(maps[mask].mean(), rel=1e-5)
    assert not maps[~(masks["a"] | masks["b"])].any()
    assert found.to_nifti(found.estimates).shape == (*SHAPE, 5)
    np.testing.assert_allclose(np.asarray(everywhere.to_nifti(everywhere.estimates[1]).dataobj), maps)


@pytest.mark.parametrize(
    "asked, message",
    [
        ({"design": np.ones((N - 1, 2))}, "59 rows for the 60 volumes"),
        ({"design": np.full((N, 2), np.nan)}, "no finite number"),
        ({"design": np.ones((N, N))}, "60 regressors for 60 volumes"),
        ({"noise_model": "ar2"}, "noise_model='ar2'"),
        ({"contrasts": ["none"]}, "'none' is no regressor; there are c0"),
        ({"contrasts": {"x": np.ones(9)}}, "9"),
        ({"contrasts": {"x": np.zeros(5)}}, "contrast 'x': of 1 rows this design tells 0 apart"),
        ({"contrasts": {"x": [[1, 0], [1, 0]]}}, "contrast 'x': of 2 rows this design tells 1 apart"),
        ({"contrasts": {"x": [[1, 0], [0, 1], [1, 1]]}}, "of 3 rows this design tells 2 apart"),
        ({"design": twice("c0", "d"), "contrasts": {"x": [1, 0, 0, 0, 0, -1]}}, "tells 0 apart"),
        ({"design": twice("c0", "d"), "contrasts": {"x": np.eye(6)[[0, 5]]}}, "tells 1 apart"),
        ({"design": twice("c0", "c1"), "contrasts": ["c1"]}, "contrast 'c1' is the name of 2 regressors"),
        ({"design": twice("c0", "c1"), "trials": ["c1"]}, "trial 'c1' is the name of 2 regressors"),
        ({"trials": ["none"]}, "'none' is no regressor"),
        ({"trials": ["c0"], "noise_model": "ar1"}, "one by one"),
    ],
)
def test_what_makes_no_sense_is_refused(data, asked, message):
    with SharedImage(niimg(data)) as image, pytest.raises(ParameterError, match=message):
        image.fit_glm(**{"design": designed(), **asked})


def test_it_is_refused_before_it_is_begun(data):
    with SharedImage(niimg(data), memory_limit="120K") as image, pytest.raises(MemoryLimitError):
        image.fit_glm(designed())


@pytest.mark.parametrize("noise_model", ["ols", "ar1"])
@pytest.mark.parametrize("in_per_cent", [False, True])
@pytest.mark.parametrize("level", [7.3, -1e4, 1e-20])
@pytest.mark.parametrize("contrast", [VECTOR, MATRIX, "c0"], ids=["t", "F", "name"])
def test_nothing_is_found_where_nothing_changes(data, noise_model, in_per_cent, level, contrast):
    """What rounding leaves of a constant series has an error as small as itself."""
    series = data.astype("f8")
    series[1, 2] = level
    asked = {"contrasts": {"it": contrast}, "noise_model": noise_model, "in_per_cent": in_per_cent}
    with SharedImage(niimg(series)) as image:
        found = image.fit_glm(designed(), **asked).contrasts["it"]
    steady = (series == level).all(axis=-1).ravel()
    assert steady.sum() == SHAPE[2] and not found.stat[steady].any() and not found.variance[steady].any()
    assert (found.stat[~steady] != 0).all() and (found.z_score[~steady] != 0).any()


def test_a_constant_that_is_not_in_the_design_is_not_explained(data):
    series = data.astype("f4")
    series[1, 2] = 7.3
    design = designed(constant=False)
    with SharedImage(niimg(series)) as image:
        found = image.fit_glm(design, contrasts={"it": VECTOR}).contrasts["it"]
    _, expected = nilearns(series.reshape(-1, N).T, design, "ols", [1, -1, 0, 0])
    np.testing.assert_allclose(found.stat, expected.stat(), rtol=1e-4, atol=1e-4)
