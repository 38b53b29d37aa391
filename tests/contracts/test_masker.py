"""The contract of maskers: checks of nilearn and scikit-learn, and what makes ours stand in for nilearn's."""

import itertools
import os
import pickle
import tempfile
import warnings

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from drop_ins import MASK, PAIRS, T, every_masker, plain
from images import SHAPE, bold, niimg, save, sent, truth
from nilearn._utils.estimator_checks import (
    check_doc_link,
    nilearn_check_generator,
    return_expected_failed_checks,
)
from nilearn.conftest import _make_mesh
from nilearn.connectome import ConnectivityMeasure
from nilearn.surface import SurfaceImage
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import estimator_checks_generator

from sharedmask import (
    SharedCiftiLabelsMasker,
    SharedCiftiMasker,
    SharedImage,
    SharedLabelsMasker,
    SharedMapsMasker,
    SharedMultiLabelsMasker,
    SharedMultiMapsMasker,
    SharedMultiMasker,
    SharedMultiNiftiMasker,
    SharedNiftiMasker,
    SharedSpheresMasker,
    SharedSurfaceLabelsMasker,
    SharedSurfaceMapsMasker,
    SharedSurfaceMasker,
)
from sharedmask.errors import (
    DamagedImageError,
    ImageError,
    MemoryLimitError,
    ParameterError,
)
from sharedmask.sources import loader

# ---- the checks of nilearn and of scikit-learn


def checked_maskers():
    maps = niimg(np.random.default_rng(42).random((7, 8, 9, 2)), np.eye(4))
    labels = niimg((np.arange(504) % 10).reshape(7, 8, 9).astype("i4"), np.eye(4))
    return [
        SharedNiftiMasker(standardize=None),
        SharedLabelsMasker(labels, standardize=None),
        SharedMapsMasker(maps, standardize=None),
        SharedSpheresMasker([(1, 1, 1)], standardize=None),
        SharedMultiNiftiMasker(standardize=None),
        SharedMultiLabelsMasker(labels, standardize=None),
        SharedMultiMapsMasker(maps, standardize=None),
    ]


def maskers_of_elements():
    mesh = _make_mesh()
    labels = SurfaceImage(mesh, {"left": np.array([0, 0, 1, 1]), "right": np.array([1, 1, 0, 0, 0])})
    rng = np.random.default_rng(42)
    maps = SurfaceImage(mesh, {"left": rng.random((4, 2)), "right": rng.random((5, 2))})
    return [
        SharedSurfaceMasker(standardize=None),
        SharedSurfaceLabelsMasker(labels, standardize=None),
        SharedSurfaceMapsMasker(maps, standardize=None),
        SharedCiftiMasker(standardize=None),
        SharedCiftiLabelsMasker(labels, standardize=None),
    ]


def nilearn_checks():
    for masker in [*checked_maskers(), *maskers_of_elements()]:
        for estimator, check in nilearn_check_generator(masker):
            # Its pattern is a page of nilearn's own documentation.
            if check is not check_doc_link:
                yield pytest.param(estimator, check, id=f"{type(masker).__name__}-{check.__name__}")


@pytest.fixture
def own_folder(tmp_path, monkeypatch):
    """Some checks write where they are, or to a temporary folder that they leave."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("estimator", "check"), list(nilearn_checks()))
def test_nilearns_checks(estimator, check, own_folder):
    check(estimator)


MULTI_CHECKS = {
    "check_estimator_cloneable",
    "check_estimator_tags_renamed",
    "check_valid_tag_types",
    "check_estimator_repr",
    "check_no_attributes_set_in_init",
    "check_estimators_unfitted",
    "check_do_not_raise_errors_in_init_or_set_params",
    "check_mixin_order",
    "check_transformers_unfitted",
    "check_parameters_default_constructible",
    "check_get_params_invariance",
    "check_set_params",
}


def sklearn_checks():
    """All but those that nilearn expects to fail; of many masks those that give no table of numbers to it."""
    for estimator in [*checked_maskers(), *maskers_of_elements(), SharedMultiMasker()]:
        many = isinstance(estimator, SharedMultiMasker)
        failing = {} if many else return_expected_failed_checks(estimator)
        for given, check in estimator_checks_generator(estimator, mark=None):
            name = getattr(check, "func", check).__name__
            if name in MULTI_CHECKS if many else name not in failing:
                yield pytest.param(given, check, id=f"{type(estimator).__name__}-{name}")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("estimator", "check"), list(sklearn_checks()))
def test_sklearns_checks(estimator, check):
    check(estimator)


def test_the_checks_are_those_that_nilearn_passes():
    names = [param.id.partition("-") for param in sklearn_checks()]
    of = {masker: {name for who, _, name in names if who == masker} for masker, _, _ in names}
    assert of.pop("SharedMultiMasker") == MULTI_CHECKS
    for found in of.values():
        assert found == of["SharedNiftiMasker"] and len(found) >= 13
    assert len(list(nilearn_checks())) >= 54 + 53 + 53 + 53 + 55 + 50 + 50 + 5 * 50


# ---- in the place of nilearn's


@every_masker
def test_parameters_are_nilearns_and_then_ours(ours, nilearns, regions):
    here, there = ours().get_params(), nilearns().get_params()
    assert {name: here[name] for name in there} == there
    assert set(here) - set(there) <= {"memory_limit", "keep_missing_labels"}


@every_masker
def test_whatever_the_image_is_the_numbers_are_nilearns(ours, nilearns, regions, path):
    expected = plain(nilearns, regions).fit().transform(path)
    masker = plain(ours, regions).fit()
    with SharedImage(path) as image:
        shared = [image, image.as_nifti(), sent(image)]
        for given in (path, str(path), nib.load(path), niimg(truth(path)), *shared):
            got = masker.transform(given)
            np.testing.assert_allclose(got, expected, rtol=1e-6)
            assert (got.dtype, got.shape) == (expected.dtype, expected.shape)
            assert got.flags.c_contiguous and got.flags.writeable


@every_masker
def test_a_list_and_a_pattern_are_series(ours, nilearns, regions, path, tmp_path):
    volumes = [save(tmp_path / f"v{t:02d}.nii", truth(path)[..., t]) for t in range(T)]
    expected = plain(nilearns, regions).fit().transform(path)
    for given in (volumes, [nib.load(volume) for volume in volumes], str(tmp_path / "v*.nii")):
        np.testing.assert_allclose(plain(ours, regions).fit().transform(given), expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["a[1]b", "a*b", "a?b"])
@every_masker
def test_files_whose_names_look_like_patterns_are_those_files(ours, nilearns, regions, name, tmp_path):
    (folder := tmp_path / name).mkdir()
    path = save(folder / "bold.nii.gz", bold())
    images = {key: value for key, value in regions.items() if key.endswith("_img")}
    files = {key: str(save(folder / f"{key}.nii", np.asarray(images[key].dataobj))) for key in images}
    masker = plain(ours, regions | files, reports=True)
    expected = plain(nilearns, regions).fit().transform(niimg(truth(path)))
    np.testing.assert_allclose(masker.fit_transform(path), expected, rtol=1e-6)
    assert {key: masker.get_params()[key] for key in files} == files


@every_masker
def test_one_volume_is_one_row_or_none(ours, nilearns, regions, path):
    volume = niimg(truth(path)[..., 0])
    for given in (volume, [volume]):
        expected = plain(nilearns, regions).fit().transform(given)
        np.testing.assert_allclose(plain(ours, regions).fit().transform(given), expected, rtol=1e-6)
    with SharedImage(volume) as image:
        assert plain(ours, regions).fit().transform(image).ndim == 1


@pytest.mark.some(1)
@every_masker
def test_cleaning_takes_all_forms_of_its_parameters(ours, nilearns, regions, tmp_path):
    path = save(tmp_path / "long.nii.gz", bold((*SHAPE, 30)))
    table = np.random.default_rng(3).normal(size=(30, 2))
    frame = pd.DataFrame(table, columns=["x", "y"])
    frame.to_csv(tmp_path / "confounds.tsv", sep="\t", index=False)
    settings = {"detrend": True, "standardize": "psc", "low_pass": 0.2, "t_r": 2.0}
    kept = np.arange(30) > 1
    forms = [table, [table], frame, str(tmp_path / "confounds.tsv"), [table, frame]]
    masks = [None, np.flatnonzero(kept), kept, [kept]]
    for confounds, sample_mask in [*zip(forms, itertools.cycle(masks)), *zip(itertools.repeat(table), masks)]:
        call = {"confounds": confounds, "sample_mask": sample_mask}
        expected = plain(nilearns, regions, **settings).fit().transform(path, **call)
        got = plain(ours, regions, **settings).fit().transform(path, **call)
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max())


@every_masker
def test_high_variance_confounds_are_of_all_voxels(ours, nilearns, regions, path):
    settings = {"high_variance_confounds": True, "standardize": "zscore_sample"}
    image = nib.load(path)
    expected = plain(nilearns, regions, **settings).fit().transform(path)
    np.testing.assert_allclose(plain(ours, regions, **settings).fit().transform(image), expected, atol=1e-5)
    assert not image.in_memory


# ---- nothing loaded, nothing altered, nothing left


@every_masker
def test_of_a_shared_image_nothing_is_loaded(ours, nilearns, regions, path, monkeypatch):
    expected = plain(nilearns, regions).fit_transform(niimg(truth(path)))
    with SharedImage(path).load() as image:
        for name in ("load", "blocks"):
            monkeypatch.setattr(loader, name, lambda *_, **__: pytest.fail("loaded"))
        masker = (
            plain(ours, regions).fit(image) if ours is not SharedNiftiMasker else plain(ours, regions).fit()
        )
        np.testing.assert_allclose(masker.transform(image), expected, rtol=1e-6)


@every_masker
def test_the_callers_images_are_neither_altered_nor_cached(ours, nilearns, regions, tmp_path):
    data = bold(dtype="f4")
    data[2, 2, 2, 3] = np.nan
    hole = np.ones(SHAPE)
    hole[0, 0, 0] = np.nan
    image, mask = niimg(data.copy()), niimg(hole.copy())
    lazy = nib.load(save(tmp_path / "nan.nii", data))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for given in (image, lazy):
            plain(ours, regions | {"mask_img": mask}, smoothing_fwhm=5).fit(given).transform(given)
            plain(ours, regions | {"mask_img": mask}).fit_transform(given)
    np.testing.assert_array_equal(image.dataobj, data)
    np.testing.assert_array_equal(mask.dataobj, hole)
    assert not lazy.in_memory


@every_masker
def test_a_cache_is_not_stale_once_the_file_has_changed(ours, nilearns, regions, tmp_path):
    path = save(tmp_path / "bold.nii", bold())
    masker = plain(ours, regions, memory=str(tmp_path / "cache"), memory_level=1).fit()
    first = masker.transform(path)
    save(path, bold(seed=5))
    os.utime(path, ns=(1, 1))
    second = masker.transform(path)
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(second, plain(ours, regions).fit().transform(path))


@every_masker
def test_memory_is_asked_for_before_it_is_taken(ours, nilearns, regions, path):
    with pytest.raises(MemoryLimitError, match="extracting from"):
        plain(ours, regions, memory_limit=100).fit().transform(path)


# ---- what is refused


@every_masker
def test_settings_that_nilearn_would_ignore_are_refused(ours, nilearns, regions):
    with pytest.raises(ParameterError, match="no parameter 'filtre'"):
        plain(ours, regions, clean_args={"filtre": "cosine"}).fit()
    plain(ours, regions, clean_args={"filter": "cosine", "butterworth__order": 3}).fit()


@every_masker
def test_bad_images_are_refused_as_by_nilearn(ours, nilearns, regions, path, tmp_path):
    volumes = [niimg(bold()), niimg(bold())]
    bad = [np.ones(SHAPE), None, 3, str(tmp_path / "none.nii"), str(tmp_path / "no*.nii"), [], volumes]
    for given in bad:
        classes = []
        for masker in (nilearns, ours):
            with pytest.raises((TypeError, ValueError)) as caught:
                plain(masker, regions).fit().transform(given)
            classes.append(caught.type)
        assert classes[0] is classes[1]


@every_masker
def test_what_only_we_refuse_is_refused_by_name(ours, nilearns, regions, tmp_path):
    with pytest.raises(ImageError, match="complex64"):
        plain(ours, regions).fit().transform(niimg(bold(dtype="f4").astype("c8")))
    cut = save(tmp_path / "cut.nii.gz", bold())
    cut.write_bytes(cut.read_bytes()[:-400])
    with pytest.raises(DamagedImageError, match=r"cut\.nii\.gz is truncated"):
        plain(ours, regions).fit().transform(cut)


# ---- in scikit-learn and nilearn


class Level(TransformerMixin, BaseEstimator):
    """A stand-in for whatever follows a masker: how large its columns are."""

    def fit(self, X, y=None):
        self.level_ = float(np.abs(X).mean())
        return self

    def transform(self, X):
        return X

    def score(self, X, y=None):
        return -float(np.abs(X).mean())


def test_connectivity_of_pickled_and_cloned_maskers(path):
    for ours, nilearns, regions in PAIRS.values():
        settings = {"standardize": "zscore_sample"}
        expected = plain(nilearns, regions, **settings).fit().transform(path)
        for masker in (plain(ours, regions, **settings), clone(plain(ours, regions, **settings))):
            fitted = pickle.loads(pickle.dumps(masker.fit()))
            got = ConnectivityMeasure(standardize=None).fit_transform([fitted.transform(path)])
            wanted = ConnectivityMeasure(standardize=None).fit_transform([expected])
            np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_a_pipeline_and_a_search_over_its_parameters(tmp_path):
    paths = [save(tmp_path / f"v{t}.nii", bold(SHAPE, seed=t)) for t in range(8)]
    steps = make_pipeline(plain(SharedNiftiMasker, {"mask_img": MASK}), Level())
    search = GridSearchCV(steps, {"sharedniftimasker__smoothing_fwhm": [None, 8]}, cv=2)
    search.fit(paths)
    assert search.best_params_["sharedniftimasker__smoothing_fwhm"] in (None, 8)
    assert len(set(search.cv_results_["mean_test_score"])) == 2


@every_masker
def test_data_frames_come_out_where_asked_for(ours, nilearns, regions, path):
    masker = plain(ours, regions).fit().set_output(transform="pandas")
    frame = masker.transform(path)
    assert list(frame.columns) == list(masker.get_feature_names_out())
    with SharedImage(path) as image:
        pd.testing.assert_frame_equal(masker.transform(image), frame)


@every_masker
def test_inverse_transform_is_nilearns(ours, nilearns, regions, path):
    theirs, masker = plain(nilearns, regions).fit(), plain(ours, regions).fit()
    signals = theirs.transform(path)
    expected = theirs.inverse_transform(signals)
    np.testing.assert_array_equal(masker.inverse_transform(signals).get_fdata(), expected.get_fdata())
