"""Maskers of many runs: nilearn's numbers, whatever works on them."""

import nibabel as nib
import numpy as np
import pytest
from drop_ins import ATLAS, MAPS, MASK, plain
from images import SHAPE, bold, niimg, save, sent
from nilearn.maskers import MultiNiftiLabelsMasker, MultiNiftiMapsMasker, MultiNiftiMasker

from sharedmask import SharedImage, SharedMultiLabelsMasker, SharedMultiMapsMasker, SharedMultiNiftiMasker
from sharedmask.errors import MemoryLimitError
from sharedmask.maskers import runs as many

PAIRS = {
    "voxels": (SharedMultiNiftiMasker, MultiNiftiMasker, {"mask_img": MASK}),
    "labels": (SharedMultiLabelsMasker, MultiNiftiLabelsMasker, {"labels_img": ATLAS}),
    "maps": (SharedMultiMapsMasker, MultiNiftiMapsMasker, {"maps_img": MAPS}),
}
every = pytest.mark.parametrize(("ours", "nilearns", "regions"), PAIRS.values(), ids=PAIRS.keys())
LENGTHS = (30, 24, 20)


@pytest.fixture
def paths(tmp_path):
    return [save(tmp_path / f"run-{n}.nii.gz", bold((*SHAPE, n), seed=n)) for n in LENGTHS]


def confounds():
    rng = np.random.default_rng(1)
    return [rng.normal(size=(n, 2)) for n in LENGTHS]


def near(got, expected):
    assert isinstance(got, list) and len(got) == len(expected)
    for one, other in zip(got, expected, strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5 * np.abs(other).max())


@pytest.mark.some(3)
@every
@pytest.mark.parametrize("n_jobs", [1, 2])
def test_the_numbers_are_nilearns(ours, nilearns, regions, n_jobs, paths):
    settings = {"standardize": "zscore_sample", "detrend": True, "high_variance_confounds": True}
    kept = [np.arange(2, n) for n in LENGTHS]
    call = {"sample_mask": kept}
    expected = plain(nilearns, regions, **settings).fit().transform(paths, confounds(), **call)
    given = confounds()
    masker = plain(ours, regions, n_jobs=n_jobs, **settings).fit()
    near(masker.transform(paths, given, **call), expected)
    assert all(table.shape[1] == 2 for table in given)  # which nilearn adds columns to


@every
def test_whatever_the_runs_are(ours, nilearns, regions, paths):
    expected = plain(nilearns, regions).fit().transform(list(map(str, paths)))
    masker = plain(ours, regions).fit()
    with SharedImage(paths[0]) as image:
        near(masker.transform([image, nib.load(paths[1]), str(paths[2])]), expected)
        near(masker.transform([sent(image), *paths[1:]]), expected)
    near(plain(ours, regions).fit_transform(paths), expected)
    np.testing.assert_array_equal(masker.transform(paths[1]), masker.transform(paths)[1])


@every
def test_volumes_are_runs_of_one(ours, nilearns, regions):
    volumes = [niimg(bold(SHAPE, seed=n)) for n in LENGTHS]
    near(plain(ours, regions).fit().transform(volumes), plain(nilearns, regions).fit().transform(volumes))


def test_a_mask_is_computed_from_all_runs():
    made = []
    for n in LENGTHS:
        data = np.zeros((12, 12, 12, n))
        data[1:-1, 1:-1, 1:-1] = np.random.default_rng(n).normal(100, 5, (10, 10, 10, n))
        made.append(niimg(data))
    expected, fitted = (plain(kind, {}).fit(made) for kind in (MultiNiftiMasker, SharedMultiNiftiMasker))
    np.testing.assert_array_equal(fitted.mask_img_.get_fdata(), expected.mask_img_.get_fdata())


def test_workers_leave_the_table_of_the_last_run(paths):
    tables = []
    for n_jobs in (1, 2):
        masker = plain(SharedMultiLabelsMasker, {"labels_img": ATLAS}, n_jobs=n_jobs).fit()
        masker.transform(paths)
        tables.append((masker.region_ids_, masker.region_table_["coverage"].tolist()))
    assert tables[0] == tables[1]


@pytest.mark.shares
@every
def test_as_many_runs_at_a_time_as_memory_allows(ours, nilearns, regions, paths, monkeypatch):
    asked = []
    run_processes = many.pool.run_processes

    def counting(kernel, arguments, items, jobs, **options):
        asked.append(jobs)
        return run_processes(kernel, arguments, items, jobs, **options)

    monkeypatch.setattr(many.pool, "run_processes", counting)
    monkeypatch.setattr(many, "_RUN_BYTES", 200 * 2**20)
    plain(ours, regions, n_jobs=3, memory_limit="450M").fit().transform(paths)
    plain(ours, regions, n_jobs=3, memory_limit="250M").fit().transform(paths)
    assert asked == [2]
    with pytest.raises(MemoryLimitError):
        plain(ours, regions, n_jobs=3, memory_limit=100).fit().transform(paths)


@every
def test_lists_of_another_length_are_refused(ours, nilearns, regions, paths):
    for masker in (plain(nilearns, regions).fit(), plain(ours, regions).fit()):
        with pytest.raises(ValueError, match="number of confounds"):
            masker.transform(list(map(str, paths)), confounds()[:2])
        with pytest.raises(TypeError, match="must be a None or a list"):
            masker.transform(list(map(str, paths)), confounds()[0])


@every
@pytest.mark.parametrize("call", ["transform", "fit_transform", "transform_imgs"])
@pytest.mark.parametrize("n_jobs", [1, 2])
def test_each_run_has_a_data_frame_of_its_own(ours, nilearns, regions, call, n_jobs, paths):
    """scikit-learn makes one of what comes back, and a list of runs is none."""
    masker = plain(ours, regions, n_jobs=n_jobs).fit()
    expected = masker.transform(paths)
    frames = getattr(masker.set_output(transform="pandas"), call)(paths)
    assert [frame.columns.tolist() for frame in frames] == 3 * [list(masker.get_feature_names_out())]
    near([frame.to_numpy() for frame in frames], expected)
    near([masker.transform(paths[0]).to_numpy()], expected[:1])
