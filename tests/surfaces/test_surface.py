"""Surfaces: GIFTI and FreeSurfer files, a hemisphere or two, and nilearn's images of them."""

import pickle

import numpy as np
import pytest
import surface_files as files
from images import same_bits
from nilearn.surface import InMemoryMesh, PolyMesh, SurfaceImage

from sharedmask import Regions, SharedImage, errors, extract
from sharedmask.sources.opening import open_source
from sharedmask.surfaces.surface import structure_of

LEFT, RIGHT = np.array([0, 1, 1, 1, 2, 2, 0, 0, 1, 2]), np.array([2, 2, 0, 0, 1, 1, 1, 1, 0, 0])


def means(values, labels):
    kept = np.unique(labels[labels > 0])
    return np.stack([values[labels == k].astype(float).mean(axis=0) for k in kept], axis=1)


@pytest.fixture
def pair(tmp_path):
    left, one = files.func(tmp_path / "sub-1_hemi-L_bold.func.gii")
    right, other = files.func(tmp_path / "sub-1_hemi-R_bold.func.gii", seed=1)
    return [str(left), str(right)], np.concatenate([one, other])


def test_two_hemispheres_are_one_image(tmp_path, pair):
    paths, values = pair
    (tmp_path / "sub-1_bold.json").write_text('{"RepetitionTime": 1.5}')
    source = open_source(paths)
    assert (source.shape, source.t_r) == ((20, 12), 1.5)
    assert source.grid.parts == "CORTEX_LEFT, CORTEX_RIGHT"
    same_bits(source.read(), values)
    same_bits(pickle.loads(pickle.dumps(source)).read(), values)
    same_bits(extract(paths, ["CortexRight"])[0], values[10:].T)
    atlas = [files.labels(tmp_path / f"{side}h.label.gii", one) for side, one in (("l", LEFT), ("r", RIGHT))]
    both = np.concatenate([LEFT, RIGHT])
    np.testing.assert_allclose(extract(paths, atlas, strategy="mean"), means(values, both), rtol=1e-6)


def test_labels_with_other_names_in_each_hemisphere_stay_apart(tmp_path, pair):
    paths, values = pair
    names = ({0: "???", 1: f"{side}_V1", 2: f"{side}_A1"} for side in "LR")
    atlas = [
        files.labels(tmp_path / f"{side}h.label.gii", one, next(names))
        for side, one in (("l", LEFT), ("r", RIGHT))
    ]
    with SharedImage(paths) as image:
        found = image.mask_parallel(atlas)
    assert list(found) == ["L_V1", "L_A1", "R_V1", "R_A1"]
    same_bits(found["R_A1"], values[10:][RIGHT == 2].T)


def surface_image(values):
    coordinates, faces = np.random.default_rng(0).normal(size=(10, 3)), np.array([[0, 1, 2]])
    mesh = PolyMesh(left=InMemoryMesh(coordinates, faces), right=InMemoryMesh(coordinates, faces))
    return SurfaceImage(mesh, {"left": values[:10], "right": values[10:]})


def test_nilearn_s_images(pair):
    paths, values = pair
    both = np.concatenate([LEFT, RIGHT])
    for atlas in (both, surface_image(both)):
        got = extract(surface_image(values), atlas, strategy="mean")
        same_bits(got, extract(paths, both, strategy="mean"))


def test_what_is_no_series_of_a_surface_is_refused(tmp_path, pair):
    atlas = files.labels(tmp_path / "lh.label.gii", LEFT)
    with pytest.raises(errors.ImageError, match=r"lh\.label\.gii holds labels and no signals"):
        extract(atlas, LEFT)
    with pytest.raises(errors.ImageError, match="are of one hemisphere"):
        extract([pair[0][0], pair[0][0]], LEFT)
    short = files.func(tmp_path / "rh.func.gii", 5)[0]
    with pytest.raises(errors.ImageError, match=r"have 12 and 5 maps"):
        open_source([pair[0][0], str(short)])
    other = files.func(tmp_path / "lh.func.gii")[0]
    other.write_bytes(other.read_bytes()[:300])
    with pytest.raises(errors.ImageError, match=r"lh\.func\.gii is no complete GIFTI file"):
        open_source(other)
    mesh = files.gifti(tmp_path / "lh.surf.gii", np.ones((3, 1), "f4"), "NIFTI_INTENT_POINTSET")
    with pytest.raises(errors.ImageError, match="is a mesh"):
        open_source(mesh)
    with pytest.raises(errors.GridMismatchError, match="7 of 7 vertices"):
        extract(pair[0][0], files.labels(tmp_path / "L.label.gii", np.ones(7), structure="CortexLeft"))


@pytest.mark.parametrize("name", ["sub-1_hemi-L_bold.func.gii", "lh.aparc.annot", "LH.GII"])
def test_files_of_surfaces_on_servers_are_refused_before_anyone_is_asked(name):
    url, said = (
        f"http://127.0.0.1:9/{name}",
        "is a file of a surface, which is read on this machine: download it",
    )
    for given in (url, [url, url]):
        with pytest.raises(errors.ImageError, match=said):
            open_source(given)
        with pytest.raises(errors.ImageError, match=said):
            SharedImage(given)
    with pytest.raises(errors.MaskError, match=said):
        Regions.from_labels(url)
    with pytest.raises(errors.MaskError, match=said):
        Regions.from_any([url])


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("sub-1_hemi-L_bold.func.gii", "_LEFT"),
        ("sub-R_hemi-L_bold.func.gii", "_LEFT"),
        ("sub-L_ses-L_hemi-R.mgh", "_RIGHT"),
        ("rh.L.mgh", "_RIGHT"),
        ("100307.R.aparc.32k_fs_LR.label.gii", "_RIGHT"),
        ("lh.aparc.annot", "_LEFT"),
        ("Left.mgh", ""),
    ],
)
def test_the_hemisphere_is_what_the_name_says_surest(name, side):
    assert structure_of(f"/data/rh/{name}") == f"CIFTI_STRUCTURE_CORTEX{side}"
