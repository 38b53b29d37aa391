"""Matrices and seed maps of a shared image, against nilearn."""

import cifti_files as files
import nibabel as nib
import numpy as np
import pytest
from images import SHAPE, bold, niimg, save
from nilearn.connectome import ConnectivityMeasure
from nilearn.maskers import NiftiLabelsMasker, NiftiMasker
from small_runs import every_worker

from sharedmask import Regions, SharedImage
from sharedmask.errors import ParameterError
from sharedmask.sources.opening import open_source

CLEANING = {"standardize": "zscore_sample", "detrend": True, "low_pass": 0.1, "t_r": 2.0}


@pytest.fixture
def run(tmp_path):
    return save(tmp_path / "bold.nii.gz", bold((*SHAPE, 60)).astype("f4"))


@pytest.fixture
def atlas():
    return niimg((np.arange(210).reshape(SHAPE) % 5).astype("i2"))


@pytest.mark.parametrize("kind", ["correlation", "partial correlation", "covariance"])
@pytest.mark.parametrize("cleaning", [{}, CLEANING], ids=["plain", "cleaned"])
def test_matrices_are_nilearns(kind, cleaning, run, atlas):
    masker = NiftiLabelsMasker(atlas, **{"standardize": None, **cleaning})
    expected = ConnectivityMeasure(kind=kind).fit_transform([masker.fit_transform(run)])[0]
    with SharedImage(run) as image:
        np.testing.assert_allclose(
            image.connectivity(atlas, kind, **cleaning), expected, rtol=1e-6, atol=1e-9
        )


@pytest.mark.some(3)
@every_worker
@pytest.mark.parametrize("inside", [None, "held", "asked"])
def test_seed_maps_are_those_of_nilearns_signals(workers, inside, run, atlas):
    brain = np.random.default_rng(4).random(SHAPE) < 0.6
    seeds = NiftiLabelsMasker(atlas, **CLEANING).fit_transform(run)
    masker = NiftiMasker(niimg((brain if inside else np.ones(SHAPE)).astype("u1")), **CLEANING)
    voxels = masker.fit_transform(run)
    expected = np.dot(voxels.T, seeds) / (len(seeds) - 1)
    held = {"mask_img": brain} if inside == "held" else {}
    with SharedImage(run, **held) as image:
        asked = {"mask_img": brain} if inside == "asked" else {}
        given = seeds if inside == "held" else atlas
        maps = image.seed_maps(given, **asked, **CLEANING, **workers)
    assert maps.shape == (*SHAPE, 4) and maps.get_data_dtype() == np.float32
    np.testing.assert_array_equal(maps.affine, nib.load(run).affine)
    values = np.asarray(maps.dataobj)
    where = brain if inside else np.ones(SHAPE, bool)
    np.testing.assert_allclose(values[where], expected, atol=1e-5)
    np.testing.assert_array_equal(values[~where], 0)


def test_seeds_are_looked_at_before_the_work(run, atlas):
    with SharedImage(run) as image:
        for wrong in (np.ones((59, 2)), np.full((60, 1), np.nan)):
            with pytest.raises(ParameterError, match="finite series of 60 volumes are needed"):
                image.seed_maps(wrong)
        with pytest.raises(ParameterError, match="maps are on the grid of the image"):
            image.seed_maps(atlas, resampling_target="mask")
        for seeds in (atlas, np.ones((1, 2))):
            with pytest.raises(ParameterError, match=r"need several volumes: .* 1 is kept"):
                image.seed_maps(seeds, sample_mask=[3])
        with pytest.raises(ParameterError, match="one value per region"):
            image.connectivity(atlas, strategy=["mean", "sum"])
        kept = np.arange(5, 60)
        maps = image.seed_maps(np.random.default_rng(0).normal(size=55), sample_mask=kept, fisher_z=True)
        assert maps.shape == (*SHAPE, 1)


@pytest.mark.parametrize("of", ["elements", "parcels"])
def test_maps_of_seeds_have_the_names_of_their_regions(of, tmp_path):
    run = files.dtseries(tmp_path / "run.dtseries.nii", 20)
    numbers = (np.arange(15) % 4)[None].astype("f4")
    labels = files.save(tmp_path / "x.dlabel.nii", numbers, files.labels(), files.models())
    with SharedImage(run) as image:
        regions = Regions.from_labels(labels, image.space)
        parcellated = regions.to_cifti(image.reduce(regions), t_r=2.0)
        image_of = {"elements": run, "parcels": parcellated}
    with SharedImage(image_of[of]) as image:
        seeds = {"first": image.space.names[0]} if of == "parcels" else regions
        maps = image.seed_maps(seeds)
        assert image.seed_maps(np.arange(20.0)).header.get_axis(0).name.tolist() == ["map 1"]
    expected = ["first"] if of == "parcels" else ["V1", "A1", "M1"]
    assert maps.header.get_axis(0).name.tolist() == expected
    assert open_source(maps).shape[-1] == len(expected)
