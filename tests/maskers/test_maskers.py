"""The maskers as estimators: every generic check, and what they do beyond nilearn's."""

import os
import pickle
import tempfile
import warnings
from io import BytesIO

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from images import AFFINE, SHAPE, bold, niimg, random_masks, save
from matplotlib.figure import Figure
from nilearn._utils.estimator_checks import (
    check_doc_link,
    nilearn_check_generator,
    return_expected_failed_checks,
)
from nilearn.connectome import ConnectivityMeasure
from nilearn.image.resampling import BoundingBoxError
from nilearn.maskers import NiftiLabelsMasker, NiftiMapsMasker, NiftiMasker
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import estimator_checks_generator

from sharedmask import (
    Regions,
    SharedImage,
    SharedLabelsMasker,
    SharedMapsMasker,
    SharedMultiMasker,
    SharedNiftiMasker,
)
from sharedmask.errors import (
    DamagedImageError,
    ImageError,
    MaskError,
    MemoryLimitError,
    ParameterError,
)
from sharedmask.maskers import _nilearn
from sharedmask.sources import loader

T = 12
RNG = np.random.default_rng(0)
MASK = niimg(random_masks(1)[0].astype("u1"))
ATLAS = niimg(RNG.integers(0, 6, SHAPE).astype("i2"))
MAPS = niimg(RNG.random((*SHAPE, 3)))
CONFOUNDS = RNG.normal(size=(T, 2))

PAIRS = {
    "voxels": (SharedNiftiMasker, NiftiMasker, {"mask_img": MASK}),
    "labels": (SharedLabelsMasker, NiftiLabelsMasker, {"labels_img": ATLAS}),
    "maps": (SharedMapsMasker, NiftiMapsMasker, {"maps_img": MAPS}),
}
every_masker = pytest.mark.parametrize(("ours", "nilearns", "regions"), PAIRS.values(), ids=PAIRS.keys())


def plain(masker, regions, **parameters):
    """A masker without the warning that booleans for ``standardize`` will go."""
    return masker(**{"standardize": None} | regions | parameters)


@pytest.fixture
def path(tmp_path):
    return save(tmp_path / "bold.nii.gz", bold())


def values(path):
    return np.asanyarray(nib.load(path).dataobj)


@pytest.fixture(scope="module", autouse=True)
def _fonts():
    """matplotlib, which draws the reports, keeps its fonts open."""
    figure = Figure()
    figure.text(0, 0, "\N{HAMMER AND PICK}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        figure.savefig(BytesIO())


# ---- the checks of nilearn and of scikit-learn


def checked_maskers():
    maps = niimg(np.random.default_rng(42).random((7, 8, 9, 9)), np.eye(4))
    labels = niimg((np.arange(504) % 10).reshape(7, 8, 9).astype("i4"), np.eye(4))
    return [
        SharedNiftiMasker(standardize=None),
        SharedLabelsMasker(labels, standardize=None),
        SharedMapsMasker(maps, standardize=None),
    ]


def nilearn_checks():
    for masker in checked_maskers():
        for estimator, check in nilearn_check_generator(masker):
            # Its pattern is a page of nilearn's own documentation.
            if check is not check_doc_link:
                yield pytest.param(estimator, check, id=f"{type(masker).__name__}-{check.__name__}")


@pytest.fixture
def own_folder(tmp_path, monkeypatch):
    """Some checks write where they are, or to a temporary folder that they leave."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


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
    for estimator in [*checked_maskers(), SharedMultiMasker()]:
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
    assert len(list(nilearn_checks())) >= 54 + 53 + 53


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
        shared = [image, image.handle, image.as_nifti()]
        for given in (path, str(path), nib.load(path), niimg(values(path)), *shared):
            got = masker.transform(given)
            np.testing.assert_allclose(got, expected, rtol=1e-6)
            assert (got.dtype, got.shape) == (expected.dtype, expected.shape)
            assert got.flags.c_contiguous and got.flags.writeable


@every_masker
def test_a_list_and_a_pattern_are_series(ours, nilearns, regions, path, tmp_path):
    volumes = [save(tmp_path / f"v{t:02d}.nii", values(path)[..., t]) for t in range(T)]
    expected = plain(nilearns, regions).fit().transform(path)
    for given in (volumes, [nib.load(volume) for volume in volumes], str(tmp_path / "v*.nii")):
        np.testing.assert_allclose(plain(ours, regions).fit().transform(given), expected, rtol=1e-6)


@every_masker
def test_one_volume_is_one_row_or_none(ours, nilearns, regions, path):
    volume = niimg(values(path)[..., 0])
    for given in (volume, [volume]):
        expected = plain(nilearns, regions).fit().transform(given)
        np.testing.assert_allclose(plain(ours, regions).fit().transform(given), expected, rtol=1e-6)
    with SharedImage(volume) as image:
        assert plain(ours, regions).fit().transform(image).ndim == 1


@every_masker
def test_cleaning_takes_all_forms_of_its_parameters(ours, nilearns, regions, tmp_path):
    path = save(tmp_path / "long.nii.gz", bold((*SHAPE, 30)))
    table = np.random.default_rng(3).normal(size=(30, 2))
    frame = pd.DataFrame(table, columns=["x", "y"])
    frame.to_csv(tmp_path / "confounds.tsv", sep="\t", index=False)
    settings = {"detrend": True, "standardize": "psc", "low_pass": 0.2, "t_r": 2.0}
    kept = np.arange(30) > 1
    for confounds in (table, [table], frame, str(tmp_path / "confounds.tsv"), [table, frame]):
        for sample_mask in (None, np.flatnonzero(kept), kept, [kept]):
            call = {"confounds": confounds, "sample_mask": sample_mask}
            expected = plain(nilearns, regions, **settings).fit().transform(path, **call)
            got = plain(ours, regions, **settings).fit().transform(path, **call)
            np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max())


def test_runs_are_cleaned_by_themselves(path):
    settings = {"runs": np.repeat([0, 1], T // 2), "detrend": True, "mask_img": MASK}
    expected = plain(NiftiMasker, settings).fit().transform(path)
    got = plain(SharedNiftiMasker, settings).fit().transform(path)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-3)


@every_masker
def test_high_variance_confounds_are_of_all_voxels(ours, nilearns, regions, path):
    settings = {"high_variance_confounds": True, "standardize": "zscore_sample"}
    image = nib.load(path)
    expected = plain(nilearns, regions, **settings).fit().transform(path)
    np.testing.assert_allclose(plain(ours, regions, **settings).fit().transform(image), expected, atol=1e-5)
    assert not image.in_memory


@pytest.mark.parametrize("standardize", ["zscore_sample", "psc"])
def test_signals_cleaned_some_columns_at_a_time_are_the_same(standardize, path, monkeypatch):
    masker = plain(SharedNiftiMasker, {"mask_img": MASK}, standardize=standardize).fit()
    for sample_mask in (None, np.arange(3, T)):
        whole = masker.transform(path, sample_mask=sample_mask)
        with monkeypatch.context() as patch:
            patch.setattr(_nilearn, "_CLEAN_BYTES", 7 * T * 4)
            np.testing.assert_array_equal(masker.transform(path, sample_mask=sample_mask), whole)


def test_warnings_of_cleaning_come_once(path, monkeypatch):
    monkeypatch.setattr(_nilearn, "_CLEAN_BYTES", 7 * T * 4)
    masker = plain(SharedNiftiMasker, {"mask_img": MASK}, standardize_confounds=False).fit()
    with pytest.warns(UserWarning, match="confounds") as told:
        masker.transform(path, confounds=CONFOUNDS)
    assert len(told) == 1


# ---- nothing loaded, nothing altered, nothing left


@every_masker
def test_of_a_shared_image_nothing_is_loaded(ours, nilearns, regions, path, monkeypatch):
    expected = plain(nilearns, regions).fit_transform(niimg(values(path)))
    with SharedImage(path).load() as image:
        for name in ("load", "blocks"):
            monkeypatch.setattr(loader, name, lambda *_, **__: pytest.fail("loaded"))
        masker = (
            plain(ours, regions).fit(image) if ours is not SharedNiftiMasker else plain(ours, regions).fit()
        )
        np.testing.assert_allclose(masker.transform(image), expected, rtol=1e-6)


def test_a_mask_is_computed_from_a_shared_image(path):
    with SharedImage(path) as image:
        ours = plain(SharedNiftiMasker, {}).fit(image)
        signals = plain(SharedNiftiMasker, {}).fit_transform(image)
    nilearns = plain(NiftiMasker, {}).fit(path)
    np.testing.assert_array_equal(ours.mask_img_.get_fdata(), nilearns.mask_img_.get_fdata())
    np.testing.assert_array_equal(signals, nilearns.transform(path))
    assert len(pickle.dumps(ours)) < 50_000  # the volume that reports show is its own


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


def test_a_cache_is_used(path, tmp_path, monkeypatch):
    masker = plain(SharedNiftiMasker, {"mask_img": MASK}, memory=str(tmp_path / "cache")).fit()
    first = masker.transform(path)
    monkeypatch.setattr(loader, "load", lambda *_, **__: pytest.fail("loaded"))
    np.testing.assert_array_equal(masker.transform(str(path)), first)


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


def test_analyze_and_pairs_are_accepted(tmp_path):
    masker = plain(SharedNiftiMasker, {"mask_img": MASK}).fit()
    expected = masker.transform(niimg(bold()))
    save(tmp_path / "pair.img", bold(), kind=nib.Nifti1Pair)
    for name in ("pair.img", "pair.hdr"):
        np.testing.assert_array_equal(masker.transform(tmp_path / name), expected)


def test_a_far_away_image_is_what_it_is_to_nilearn(path):
    """All zeros on one side, refused on the other."""
    far = AFFINE.copy()
    far[:3, 3] -= 1000
    told = []
    for masker in (NiftiMasker, SharedNiftiMasker):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            signals = plain(masker, {"mask_img": niimg(np.ones((4, 4, 4), "u1"), far)}).fit().transform(path)
        assert signals.dtype == np.float32 and not signals.any()
        told.append({str(warning.message) for warning in caught})
    assert told[0] == told[1]
    far[:3, 3] += 2000
    for masker in (NiftiMasker, SharedNiftiMasker):
        with pytest.raises(BoundingBoxError), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            plain(masker, {"mask_img": niimg(np.ones((4, 4, 4), "u1"), far)}).fit().transform(path)


@pytest.mark.filterwarnings("ignore:Casting data")
def test_the_volume_of_a_report_is_read_for_the_report(path):
    masker = plain(SharedNiftiMasker, {"mask_img": MASK})
    masker.fit_transform(path)
    for shown in (masker, pickle.loads(pickle.dumps(masker))):
        middle = shown._reporting_data["images"]
        np.testing.assert_array_equal(middle.dataobj, values(path)[..., T // 2])
    assert "Nifti" in str(masker.generate_report())


# ---- beyond nilearn: labels


def by_label(label, path):
    return values(path)[np.asarray(ATLAS.dataobj) == label].T.astype("f4")


def test_the_strategy_may_be_a_function(path):
    spread = plain(SharedLabelsMasker, {"labels_img": ATLAS}, strategy=lambda voxels: np.ptp(voxels, axis=1))
    expected = np.stack([np.ptp(by_label(label, path), axis=1) for label in range(1, 6)], axis=1)
    with SharedImage(path) as image:
        for given in (path, image):
            np.testing.assert_array_equal(spread.fit_transform(given), expected)


def test_a_function_that_gives_no_series_is_refused(path):
    masker = plain(SharedLabelsMasker, {"labels_img": ATLAS}, strategy=lambda voxels: voxels.mean(axis=0))
    with pytest.raises(ParameterError, match="for region 1, not"):
        masker.fit_transform(path)


def test_the_first_principal_course(path):
    got = plain(SharedLabelsMasker, {"labels_img": ATLAS}, strategy="pc1").fit_transform(path)
    with SharedImage(path) as image:
        expected = image.reduce(ATLAS, "pc1")
    np.testing.assert_array_equal(got, expected)
    with pytest.raises(ValueError, match="'strategy' must be one of"):
        plain(SharedLabelsMasker, {"labels_img": ATLAS}, strategy="pc2").fit()


@pytest.mark.parametrize("strategy", ["mean", "median", "sum", "minimum", "maximum", "variance"])
def test_streamed_and_held_reductions_have_the_same_bits(strategy, tmp_path):
    path = save(tmp_path / "scaled.nii", bold(), slope=0.3, inter=-7.0)
    masker = plain(SharedLabelsMasker, {"labels_img": ATLAS}, strategy=strategy).fit()
    with SharedImage(path) as image:
        np.testing.assert_array_equal(masker.transform(path), masker.transform(image))


def half():
    """A mask without label 3, and with half of the rest."""
    data = np.asarray(ATLAS.dataobj)
    return niimg(((data != 3) & (np.arange(SHAPE[0]) % 2 == 0)[:, None, None]).astype("u1"))


def test_the_table_tells_how_much_there_was_of_each_region(path):
    masker = plain(SharedLabelsMasker, {"labels_img": ATLAS, "mask_img": half()})
    with pytest.warns(UserWarning, match=r"labels were removed: \{3\}"):
        masker.fit_transform(path)
    table = masker.region_table_.set_index("index")
    labels, inside = np.asarray(ATLAS.dataobj), np.asarray(half().dataobj) > 0
    for label in range(1, 6):
        row = table.loc[label]
        assert row["n_voxels"] == (labels == label).sum()
        assert row["n_voxels_used"] == ((labels == label) & inside).sum()
        assert row["coverage"] == pytest.approx(row["n_voxels_used"] / row["n_voxels"])
    assert table["column"].tolist() == [0, 1, pd.NA, 2, 3]


def test_missing_labels_keep_their_column(path):
    masker = plain(SharedLabelsMasker, {"labels_img": ATLAS, "mask_img": half()}, keep_missing_labels=True)
    with pytest.warns(UserWarning, match="labels were removed"):
        signals = masker.fit_transform(path)
    assert np.isnan(signals).all(axis=0).tolist() == [False, False, True, False, False]
    assert masker.region_ids_ == {"background": 0, 0: 1, 1: 2, 2: 3, 3: 4, 4: 5}
    assert masker.n_elements_ == 5 and len(masker.get_feature_names_out()) == 5
    assert masker.region_table_["column"].tolist() == [0, 1, 2, 3, 4]
    without = plain(SharedLabelsMasker, {"labels_img": ATLAS, "mask_img": half()})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        np.testing.assert_array_equal(without.fit_transform(path), signals[:, [0, 1, 3, 4]])
        back, expected = (
            masker.inverse_transform(signals),
            without.inverse_transform(signals[:, [0, 1, 3, 4]]),
        )
    np.testing.assert_array_equal(back.get_fdata(), expected.get_fdata())
    with pytest.raises(ParameterError, match="needs NaN"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        clone(masker).set_params(dtype="i4").fit_transform(path)


def test_labels_beyond_the_images_are_told_of(path):
    wide = np.zeros((SHAPE[0] + 4, *SHAPE[1:]), "i2")
    wide[: SHAPE[0]] = np.asarray(ATLAS.dataobj)
    wide[SHAPE[0] + 1 :] = 9
    atlas = niimg(wide)
    masker = plain(SharedLabelsMasker, {"labels_img": atlas}, keep_missing_labels=True)
    with pytest.warns(UserWarning, match="removed: {np.int16\\(9\\)}"):
        signals = masker.fit_transform(path)
    assert np.isnan(signals[:, 5]).all() and signals.shape == (T, 6)
    coverage = masker.region_table_.set_index("index")["coverage"]
    assert coverage[9] == 0 and (coverage.drop(9) > 0.7).all()


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


# ---- many masks


@pytest.fixture
def masks():
    return [niimg(mask.astype("u1")) for mask in random_masks(20)]


def columns_cleaned(monkeypatch):
    """Numbers of columns that nilearn cleans from now on."""
    counts, clean = [], _nilearn.clean

    def counting(signals, **settings):
        counts.append(signals.shape[1])
        return clean(signals, **settings)

    monkeypatch.setattr(_nilearn, "clean", counting)
    return counts


@pytest.mark.parametrize("n_jobs", [None, 2])
def test_each_voxel_of_the_union_is_cleaned_once(n_jobs, masks, path, monkeypatch):
    counts = columns_cleaned(monkeypatch)
    monkeypatch.setattr(_nilearn, "_CLEAN_BYTES", 50 * T * 4)
    multi = SharedMultiMasker(masks, standardize="zscore_sample", detrend=True, n_jobs=n_jobs).fit()
    signals = multi.transform(path, confounds=CONFOUNDS)
    assert sum(counts) == np.logical_or.reduce([np.asarray(mask.dataobj) for mask in masks]).sum()
    settings = {"standardize": "zscore_sample", "detrend": True}
    for mask, got in zip(masks, signals, strict=True):
        one = plain(NiftiMasker, {"mask_img": mask}, **settings).fit()
        np.testing.assert_allclose(got, one.transform(path, confounds=CONFOUNDS), atol=1e-5)


def test_many_masks_keep_their_container(masks, path, tmp_path):
    for number, mask in enumerate(masks[:3]):
        nib.save(mask, tmp_path / f"roi-{number}.nii")
    expected = [plain(NiftiMasker, {"mask_img": mask}).fit().transform(path) for mask in masks[:3]]
    named = dict(zip("abc", masks, strict=False))
    regions = Regions.from_any(named)
    for given in (masks[:3], named, regions, str(tmp_path / "roi-*.nii")):
        multi = SharedMultiMasker(given)
        for signals in (multi.fit().transform(path), multi.fit_transform(path)):
            assert isinstance(signals, list if isinstance(given, list) else dict)
            found = signals if isinstance(signals, list) else signals.values()
            for got, wanted in zip(found, expected, strict=True):
                np.testing.assert_array_equal(got, wanted)
                assert got.flags.c_contiguous and got.flags.writeable
        back = multi.inverse_transform(signals)
        for image, wanted in zip(back if isinstance(back, list) else back.values(), expected, strict=True):
            np.testing.assert_allclose(image.get_fdata().sum(), wanted.sum(), rtol=1e-5)


def test_many_masks_of_a_shared_image_and_of_one_volume(masks, path):
    multi = SharedMultiMasker(masks).fit()
    expected = multi.transform(path)
    with SharedImage(path) as image:
        for got, wanted in zip(multi.transform(image), expected, strict=True):
            np.testing.assert_array_equal(got, wanted)
    first = multi.transform(niimg(values(path)[..., 0]))
    for got, wanted in zip(first, expected, strict=True):
        np.testing.assert_array_equal(got, wanted[0])
    assert multi.inverse_transform(first)[0].ndim == 3


def test_one_mask_is_no_list(path):
    multi = SharedMultiMasker(MASK).fit()
    expected = plain(NiftiMasker, {"mask_img": MASK}).fit().transform(path)
    np.testing.assert_array_equal(multi.transform(path), expected)
    assert multi.inverse_transform(expected).shape == (*SHAPE, T)


def test_many_masks_are_an_estimator(masks, path):
    multi = SharedMultiMasker({"a": masks[0], "b": masks[1]}, standardize="psc", n_jobs=2)
    fitted = pickle.loads(pickle.dumps(clone(multi).fit()))
    for name, signals in fitted.transform(path).items():
        np.testing.assert_array_equal(signals, multi.fit().transform(path)[name])
    names = fitted.get_feature_names_out()
    assert (
        len(names)
        == fitted.n_elements_
        == sum(signals.shape[1] for signals in fitted.transform(path).values())
    )
    assert names[0] == "a_0" and names[-1].startswith("b_")


def test_many_masks_refuse_by_name(masks, path):
    with pytest.raises(ParameterError, match="needs masks"):
        SharedMultiMasker().fit()
    with pytest.raises(ParameterError, match="'filtre'"):
        SharedMultiMasker(masks, clean_args={"filtre": 1}).fit()
    with pytest.raises(ParameterError, match="n_jobs=0"):
        SharedMultiMasker(masks, n_jobs=0).fit()
    with pytest.raises(MaskError, match="'empty' is empty"):
        SharedMultiMasker({"empty": niimg(np.zeros(SHAPE, "u1"))}).fit()
    multi = SharedMultiMasker(masks[:2]).fit()
    signals = multi.transform(path)
    with pytest.raises(ParameterError, match="signals of 2 masks"):
        multi.inverse_transform(signals[:1])
    with pytest.raises(ParameterError, match="have shape"):
        multi.inverse_transform([signals[0], signals[0][:, :3]])
