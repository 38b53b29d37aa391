"""The contract of images of elements: every way in gives the values of their files, or the same sentence."""

import os
from functools import partial
from types import SimpleNamespace

import bad_elements as bad
import cifti_files as dense
import nibabel as nib
import numpy as np
import pytest
import surface_files as surfaces
from command import called
from images import same_bits
from nilearn.connectome import ConnectivityMeasure
from serving import serving

from sharedmask import Regions, SharedImage, errors, extract, extract_many
from sharedmask.maskers import (
    SharedCiftiLabelsMasker,
    SharedCiftiMasker,
    SharedSurfaceLabelsMasker,
    SharedSurfaceMapsMasker,
    SharedSurfaceMasker,
)
from sharedmask.sources.opening import open_source

FOREIGN = ("expat", "nibabel", "reshape", "KeyError", "padding", "literal", "Traceback", "token", "errno")


def of_many(images, masks):
    """The first error of a study."""
    for error in extract_many(images, masks, strategy="mean", on_error=lambda *_: None).errors.values():
        raise error


def held(image, work, **how):
    with SharedImage(image, **how) as opened:
        return work(opened)


def as_an_image(image):
    masks = np.ones(15 if ".nii" in image.name else 10, bool)
    return {
        "extract": partial(extract, image, masks),
        "means": partial(extract, image, masks.astype(int), strategy="mean"),
        "image": partial(held, image, SharedImage.load),
        "file": partial(held, image, SharedImage.load, store="file"),
        "many": partial(of_many, [image], masks),
        "surfaces": partial(SharedSurfaceMasker().fit_transform, image),
        "grayordinates": partial(SharedCiftiMasker().fit_transform, image),
        "maps": partial(SharedSurfaceMapsMasker(np.ones((len(masks), 2))).fit_transform, image),
    }


def as_regions(image, regions):
    return {
        "mask": partial(extract, image, {"a": regions}),
        "atlas": partial(extract, image, regions, strategy="mean"),
        "reduce": partial(held, image, lambda opened: opened.reduce(regions)),
        "from_labels": partial(held, image, lambda opened: Regions.from_labels(regions, opened.space)),
        "mask_img": partial(held, image, SharedImage.load, mask_img=regions),
        "many": partial(of_many, [image], regions),
        "surfaces": partial(SharedSurfaceMasker(regions).fit_transform, image),
        "labels": partial(SharedSurfaceLabelsMasker(regions).fit_transform, image),
        "grayordinates": lambda: SharedCiftiLabelsMasker(regions).fit().transform(image),
    }


def check_sentence(text, path, piece):
    assert os.fspath(path) in text and piece in text
    assert not [word for word in FOREIGN if word in text]


def check_commands(folder, image, given, path, piece, code):
    """Nothing is written but that a run failed, and the exit code is that of what is wrong."""
    folder.mkdir()
    one, each = folder / "one.tsv", folder / "each"
    for args, ends in (
        (["extract", image, *given, "-o", one], code),
        (["extract", image, *given, "--out-dir", each], 1),
        (["run", image, *given, "--output-dir", folder / "run"], 1),
        (["submit", "--dry-run", "--", "extract", image, *given, "--out-dir", each], code),
    ):
        done = called(*args)
        assert done.returncode == ends, done
        check_sentence(done.stderr, path, piece)
        assert done.stderr.count("\n") == 1 and not done.stdout.replace(str(path), "").count(piece)
    assert not bad.left(folder)


@pytest.mark.some(10)
@pytest.mark.parametrize("name", bad.IMAGES)
def test_a_bad_image_is_told_of_in_one_sentence_by_every_way_in(tmp_path, name):
    make, piece = bad.IMAGES[name]
    path = make(tmp_path)
    said = set()
    for call in as_an_image(path).values():
        with pytest.raises(errors.ImageError) as caught:
            call()
        said.add(str(caught.value))
    assert len(said) == 1
    check_sentence(*said, path, piece)
    code = 66 if isinstance(caught.value, errors.MissingFileError) else 65
    if "labels and no signals" not in piece:  # which info tells of
        assert called("info", path).returncode == code
    (tmp_path / "masks").mkdir()
    check_commands(tmp_path / "out", path, ["--mask", bad.dlabel(tmp_path / "masks")], path, piece, code)


@pytest.mark.some(10)
@pytest.mark.parametrize("name", bad.REGIONS)
def test_bad_regions_are_told_of_in_one_sentence_by_every_way_in(tmp_path, name):
    image, make, piece = bad.REGIONS[name]
    image, path = image(tmp_path), make(tmp_path)
    for call in as_regions(image, path).values():
        with pytest.raises((errors.MaskError, errors.ImageError)) as caught:
            call()
        check_sentence(str(caught.value), path, piece)
    code = 66 if isinstance(caught.value, errors.MissingFileError) else 65
    check_commands(tmp_path / "out", image, ["--atlas", path], path, piece, code)


@pytest.mark.parametrize(
    "given", [np.ones(15), np.ones((14, 2)), np.full((15, 2), np.nan), np.full((15, 2), "a")]
)
def test_maps_that_are_none_are_told_of(tmp_path, given):
    with pytest.raises(errors.MaskError, match=r"maps_img= is an array that has"):
        SharedSurfaceMapsMasker(given).fit(bad.series(tmp_path))


# --- the same values -------------------------------------------------------------------------------

T = 40


def of_dense(folder, **how):
    path = dense.dtseries(folder / "run.dtseries.nii", T, **how)
    return path, dense.truth(path)


def of_parcels(folder):
    path = dense.ptseries(folder / "run.ptseries.nii", T)
    return path, dense.truth(path)


def of_hemisphere(folder, side="L"):
    path = surfaces.func(folder / f"sub-1_hemi-{side}_bold.func.gii", T, seed=ord(side))[0]
    return path, np.stack([one.data for one in nib.load(path).darrays])


def of_pair(folder):
    (left, of_left), (right, of_right) = of_hemisphere(folder), of_hemisphere(folder, "R")
    return [str(left), str(right)], np.concatenate([of_left, of_right], axis=1)


def of_overlay(folder):
    path = surfaces.overlay(folder / "lh.bold.mgz", np.random.default_rng(0).normal(100, 10, (10, T)))
    return path, np.ascontiguousarray(np.asarray(nib.load(path).dataobj).reshape(10, T).T, "f4")


IMPLEMENTERS = {
    "dtseries": of_dense,
    "dtseries-by-volume": partial(of_dense, by_row=False, dtype=">i2"),
    "ptseries": of_parcels,
    "func": of_hemisphere,
    "pair": of_pair,
    "mgz": of_overlay,
}


@pytest.fixture(params=IMPLEMENTERS)
def it(request, tmp_path):
    """The image as it is given, its values by nibabel, (T, n_elements), and an atlas of three regions."""
    image, values = IMPLEMENTERS[request.param](tmp_path)
    atlas = np.arange(values.shape[1]) % 4 if values.shape[1] > 3 else np.arange(1, 4)
    return SimpleNamespace(image=image, values=np.ascontiguousarray(values), atlas=atlas)


def parts(it):
    return [it.values[:, it.atlas == label].astype(float) for label in (1, 2, 3)]


REDUCED = {
    "mean": partial(np.mean, axis=1),
    "median": partial(np.median, axis=1),
    "sum": partial(np.sum, axis=1),
    "minimum": partial(np.min, axis=1),
    "maximum": partial(np.max, axis=1),
    "variance": partial(np.var, axis=1),
    "standard_deviation": partial(np.std, axis=1),
    "pc1": None,
}


def first_component(values):
    """Up to its sign and scale."""
    left, _, _ = np.linalg.svd(values - values.mean(axis=0), full_matrices=False)
    return left[:, 0]


@pytest.mark.parametrize("store", ["shm", "memfd", "disk", "private"])
def test_values_are_the_file_s_in_every_store(it, store):
    masks = {"a": it.atlas == 1, "b": it.atlas > 1}
    with SharedImage(it.image, store=store) as image:
        assert image.space.n_voxels == it.values.shape[1] and image.shape == it.values.shape[::-1]
        native = it.values.astype(it.values.dtype.newbyteorder("="))
        same_bits(np.ascontiguousarray(image.array), np.ascontiguousarray(native.T))
        same_bits(np.ascontiguousarray(image.frame(3)), native[3])
        for n_jobs in (1, 2):
            for name, signals in image.mask_parallel(masks, n_jobs=n_jobs, dtype=native.dtype).items():
                same_bits(signals, native[:, masks[name]])
        for name, signals in image.iter_masks(masks, batch_size=1, dtype=native.dtype):
            same_bits(signals, native[:, masks[name]])
        if store != "private":
            with SharedImage.attach(image.handle) as other:
                same_bits(
                    np.ascontiguousarray(other.mask(it.atlas == 1, dtype=native.dtype)),
                    native[:, it.atlas == 1],
                )
    for name, signals in extract(it.image, masks, dtype=native.dtype).items():
        same_bits(signals, native[:, masks[name]])


def test_reductions_are_numpy_s(it):
    with SharedImage(it.image) as image:
        for strategy, of in REDUCED.items():
            found = image.reduce(it.atlas, strategy)
            same_bits(extract(it.image, it.atlas, strategy=strategy), found)
            for column, values in zip(found.T, parts(it), strict=True):
                if of is not None:
                    np.testing.assert_allclose(column, of(values), rtol=1e-5)
                else:
                    assert abs(np.corrcoef(column, first_component(values))[0, 1]) > 1 - 1e-5


def test_functions_and_cleaning_are_those_of_the_values(it):
    from nilearn.signal import clean

    confounds = np.random.default_rng(1).normal(size=(T, 2))
    how = {"standardize": "zscore_sample", "detrend": True, "confounds": confounds}
    masks = {str(label): it.atlas == label for label in (1, 2, 3)}
    with SharedImage(it.image) as image:
        for n_jobs in (1, 2):
            stds = image.map(partial(np.std, axis=0), masks, n_jobs=n_jobs)
            cleaned = image.mask_parallel(masks, n_jobs=n_jobs, **how)
            for name, values in zip(masks, parts(it), strict=True):
                np.testing.assert_allclose(stds[name], values.std(axis=0), rtol=1e-4)
                np.testing.assert_allclose(cleaned[name], clean(values, **how), atol=2e-5)


def test_results_are_kept_and_many_images_are_one(it, tmp_path):
    means = np.stack([values.mean(axis=1) for values in parts(it)], axis=1)
    for _ in range(2):
        with SharedImage(it.image) as image:
            np.testing.assert_allclose(image.reduce(it.atlas, memory=tmp_path / "kept"), means, rtol=1e-6)
        got = extract(it.image, it.atlas, strategy="mean", memory=tmp_path / "kept")
        np.testing.assert_allclose(got, means, rtol=1e-6)
    for n_jobs in (1, 2):
        study = extract_many({"run": it.image}, it.atlas, strategy="mean", n_jobs=n_jobs)
        np.testing.assert_allclose(study.results["run"], means, rtol=1e-6)
    done = {}
    kept = {"strategy": "mean", "resume": tmp_path / "journal", "on_result": done.__setitem__}
    assert extract_many({"run": it.image}, it.atlas, **kept).complete == ["run"]
    assert extract_many({"run": it.image}, it.atlas, **kept).skipped == ["run"]
    np.testing.assert_allclose(done["run"], means, rtol=1e-6)


def test_published_images_are_found_by_name(it):
    name = f"elements-{os.getpid()}"
    with SharedImage(it.image, store="shm") as image:
        image.publish(name)
        with SharedImage.attach(name) as other:
            np.testing.assert_array_equal(other.reduce(it.atlas), image.reduce(it.atlas))
            assert other.space.matches(image.space) and other.t_r == image.t_r


def test_models_matrices_and_maps_are_numpy_s(it):
    rng = np.random.default_rng(2)
    design = np.column_stack([rng.normal(size=T), np.ones(T)])
    seed = rng.normal(size=T)
    with SharedImage(it.image) as image:
        model = image.fit_glm(design, contrasts={"slope": [1, 0]})
        matrix = image.connectivity(it.atlas)
        maps = image.seed_maps(seed)
        for needs_a_volume in (image.as_nifti, lambda: image.searchlight(np.mean, 4.0)):
            with pytest.raises(errors.GridMismatchError, match="needs a volume, and"):
                needs_a_volume()
    values = it.values.astype(float)
    np.testing.assert_allclose(model.estimates, np.linalg.lstsq(design, values)[0], rtol=1e-3, atol=1e-4)
    means = np.stack([values[:, it.atlas == label].mean(axis=1) for label in (1, 2, 3)], axis=1)
    expected = ConnectivityMeasure(kind="correlation").fit_transform([means])[0]
    np.testing.assert_allclose(matrix, expected, atol=1e-5)
    each = [np.corrcoef(seed, one)[0, 1] for one in values.T]
    np.testing.assert_allclose(np.asarray(maps.dataobj).reshape(-1), each, atol=1e-5)
    effect = model.to_cifti(model.contrasts["slope"].effect)
    np.testing.assert_allclose(effect.get_fdata()[0], model.estimates[0], rtol=1e-6)
    for image in (maps, effect):
        assert np.array_equal(open_source(image).grid.n_voxels, it.values.shape[1])


@pytest.mark.long
def test_a_cluster_of_dask_gives_the_same(it):
    distributed = pytest.importorskip("distributed")
    cluster = distributed.LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, dashboard_address="localhost:0", protocol="inproc"
    )
    with cluster, distributed.Client(cluster) as client:
        study = extract_many({"run": it.image}, it.atlas, strategy="mean", executor=client.get_executor())
    same_bits(study.results["run"], extract(it.image, it.atlas, strategy="mean"))


@pytest.mark.long
def test_the_coordinator_holds_it_for_others(it):
    with serving():
        if isinstance(it.image, list):
            with pytest.raises(errors.ImageError):
                SharedImage.connect(it.image)
            return
        with SharedImage.connect(it.image) as image:
            same_bits(image.reduce(it.atlas), extract(it.image, it.atlas, strategy="mean"))
