"""Masks and atlases over the elements of a dense series: files, arrays, names of structures, volumes."""

import cifti_files as files
import nibabel as nib
import numpy as np
import pytest
import surface_files
from nibabel.cifti2 import LabelAxis

from sharedmask import (
    Regions,
    SharedImage,
    SharedSurfaceLabelsMasker,
    SharedSurfaceMasker,
    errors,
    extract,
)
from sharedmask.sources.opening import open_source

ELEMENTS = np.arange(15)


@pytest.fixture
def image(tmp_path):
    return open_source(files.dtseries(tmp_path / "run.dtseries.nii"))


def labels_of(path, places, values, axis=None, **how):
    return files.save(path, np.asarray(values)[None].astype("f4"), axis or files.labels(), places, **how)


def mask_of(path, places, inside):
    return files.save(path, np.asarray(inside, "f4")[None], files.scalars(), places)


ATLAS = [1, 1, 0, 2, 2, 2, 0, 1, 3, 3, 0, 0, 2, 0, 1]


@pytest.mark.parametrize("by_row", [True, False])
def test_a_label_file_has_the_names_of_its_table(tmp_path, image, by_row):
    path = labels_of(tmp_path / "a.dlabel.nii", files.models(), ATLAS, by_row=by_row)
    for given in (path, nib.load(path)):
        for regions in (Regions.from_labels(given, image.grid), Regions.from_any(given, image.grid)):
            assert regions.names == ("V1", "A1", "M1")
            assert [one.tolist() for one in regions] == [
                np.flatnonzero(np.array(ATLAS) == k).tolist() for k in (1, 2, 3)
            ]
    assert Regions.from_labels(path, image.grid, lut={1: "mine"}).names == ("mine", "2", "3")


def test_labels_that_lie_on_the_medial_wall_only_are_missing(tmp_path, image):
    values = np.zeros(24)
    values[[0, 1, 12]] = 1  # the first two are elements 0 and 1; vertex 0 on the right is none
    values[[2, 5]] = 2
    regions = Regions.from_labels(labels_of(tmp_path / "a.dlabel.nii", files.whole(), values), image.grid)
    assert regions[0].tolist() == [0, 1]
    assert (regions.names, regions.missing) == (("V1",), ((2, "A1"), (3, "M1")))


def test_atlases_and_masks_of_some_structures_fit(tmp_path, image):
    mask = mask_of(tmp_path / "a.dscalar.nii", files.surface("CortexRight", (1, 2, 4, 5)), [0, 1, 1, 1])
    assert Regions.from_any(mask, image.grid)[0].tolist() == [8, 9]
    assert image.grid.structures[1].numbers.tolist() == [1, 2, 5]


def test_arrays_and_structures_in_any_container(image):
    inside = ELEMENTS % 2 == 0
    assert Regions.from_any(inside, image.grid).container == "single"
    several = {"odd": ~inside, "left": "CortexLeft", "thalamus": "CIFTI_STRUCTURE_THALAMUS_LEFT"}
    regions = Regions.from_any(several, image.grid)
    assert regions.keys == tuple(several)
    assert [one.tolist() for one in regions] == [ELEMENTS[~inside].tolist(), list(range(7)), [10, 11, 12, 13]]
    stack = np.stack([inside, ~inside], axis=1)
    assert Regions.from_any(stack, image.grid).container == "list"
    names = Regions.from_any(["CortexLeft", "BRAIN_STEM"], image.grid)
    assert (names.names, names.sizes.tolist()) == (("CortexLeft", "BRAIN_STEM"), [7, 1])
    assert Regions.from_labels(np.array(ATLAS), image.grid).sizes.tolist() == [4, 4, 2]


def test_a_volume_atlas_reaches_the_structures_of_voxels(image):
    atlas = np.zeros(files.BOX, "i2")
    atlas.reshape(-1)[[1, 2, 3, 0]] = 1, 1, 1, 2
    regions = Regions.from_labels(nib.Nifti1Image(atlas, files.AFFINE), image.grid)
    voxels = files.models().voxel
    for label, region in zip((1, 2), regions, strict=True):
        assert (
            sorted(region)
            == np.flatnonzero([v[0] >= 0 and atlas[tuple(v)] == label for v in voxels]).tolist()
        )


def test_regions_are_put_on_another_file_of_the_same_surfaces(tmp_path, image):
    whole = open_source(files.dtseries(tmp_path / "whole.dtseries.nii", places=files.whole()))
    regions = Regions.from_any({"a": np.arange(24) < 3, "b": np.arange(24) >= 11}, whole.grid)
    here = regions.on(image.grid)
    assert [one.tolist() for one in here] == [[0, 1], [6, 7, 8, 9]]
    assert here.on(whole.grid)[0].tolist() == [0, 1]
    assert here.digest != regions.digest
    lost = Regions.from_any({"wall": np.arange(24) == 2}, whole.grid)
    with pytest.raises(errors.EmptyMaskError, match="'wall' has no place"):
        lost.on(image.grid)


def dense(places):
    return nib.Cifti2Image(np.ones((1, len(places)), "f4"), (files.scalars(), places))


@pytest.mark.parametrize(
    ("mask", "error", "said"),
    [
        (
            dense(files.surface(n_vertices=99)),
            errors.GridMismatchError,
            r"of 99 vertices\n.* of 12 vertices",
        ),
        (dense(files.surface("Cerebellum", (0, 1))), errors.GridMismatchError, "CEREBELLUM"),
        (dense(files.voxels(numbers=(3,))), errors.GridMismatchError, "THALAMUS_LEFT 1 voxels"),
        (dense(files.voxels(affine=np.eye(4))), errors.GridMismatchError, "THALAMUS_LEFT"),
        (dense(files.surface(vertices=(2, 5))), errors.EmptyMaskError, "no place"),
        (nib.Nifti1Image(np.ones((2, 2, 2), "u1"), np.eye(4)), errors.GridMismatchError, "2 x 2 x 2 voxels"),
        (np.ones(14, bool), errors.GridMismatchError, "array of 14, the image 15"),
        (np.ones((3, 5, 2, 2)), errors.MaskError, "dimensions"),
        ("Amygdala", errors.MissingFileError, "no structure: there are CORTEX_LEFT, CORTEX_RIGHT"),
        (np.zeros(15), errors.EmptyMaskError, "is empty"),
    ],
)
@pytest.mark.parametrize("target", [None, "data"])
def test_what_does_not_fit_is_refused_naming_both(image, mask, error, said, target):
    with pytest.raises(error, match=said) as raised:
        Regions.from_any({"it": mask}, image.grid, resampling_target=target)
    if error is errors.GridMismatchError and not isinstance(mask, np.ndarray):
        assert "\n  image: 15 elements" in str(raised.value)


def test_a_volume_is_not_masked_with_elements(tmp_path):
    bold = nib.Nifti1Image(np.ones((2, 2, 2, 3), "f4"), np.eye(4))
    with pytest.raises(errors.GridMismatchError, match="elements: CORTEX_LEFT"):
        extract(bold, dense(files.surface()))
    with pytest.raises(errors.GridMismatchError, match="elements: CORTEX_LEFT"):
        extract(bold, dense(files.surface()), resampling_target="mask")


def test_which_of_several_label_maps_is_meant_is_not_guessed(tmp_path):
    maps = np.array([[1, 2], [2, 1]], "f4")
    path = files.save(
        tmp_path / "a.dlabel.nii", maps, files.labels("one", "two"), files.surface(vertices=(0, 3))
    )
    for read in (Regions.from_any, Regions.from_labels):
        with pytest.raises(
            errors.MaskError, match=r"a\.dlabel\.nii\) holds 2 label maps: give a file of the one"
        ):
            read(path)


def test_labels_without_names_take_those_given(tmp_path):
    values, axis = np.array([[1, -2]], "f4"), LabelAxis(["parcels"], [{}])
    path = files.save(tmp_path / "a.dlabel.nii", values, axis, files.surface(vertices=(0, 3)))
    with pytest.raises(errors.MaskError, match=r"a\.dlabel\.nii\) has a label table that gives no names"):
        Regions.from_labels(path)
    assert Regions.from_labels(path, lut={1: "V1", -2: "A1"}).names == ("A1", "V1")


def test_a_pattern_of_hemispheres_is_one_atlas(tmp_path):
    for side, structure in ("lh", "CortexLeft"), ("rh", "CortexRight"):
        array = nib.gifti.GiftiDataArray(
            np.array([0, 1, 2], "i4"),
            intent="NIFTI_INTENT_LABEL",
            datatype="NIFTI_TYPE_INT32",
            meta={"AnatomicalStructurePrimary": structure},
        )
        table = nib.gifti.GiftiLabelTable()
        for key, name in enumerate(("???", "V1", "A1")):
            label = nib.gifti.GiftiLabel(key)
            label.label = name
            table.labels.append(label)
        nib.save(
            nib.gifti.GiftiImage(labeltable=table, darrays=[array]), tmp_path / f"{side}_aparc.label.gii"
        )
    regions = Regions.from_any(str(tmp_path / "?h_aparc.label.gii"))
    assert regions.names == ("V1", "A1") and regions.sizes.tolist() == [2, 2]
    assert regions.grid.parts == "CORTEX_LEFT, CORTEX_RIGHT"


def scalars(tmp_path, weights):
    return files.save(tmp_path / "w.dscalar.nii", weights.T, files.scalars("a", "b", "c"), files.models())


def columns(tmp_path, weights):
    how = {"structure": "CortexLeft"}  # a loaded image does not know its name
    return surface_files.gifti(tmp_path / "w.func.gii", weights, "NIFTI_INTENT_NONE", **how)


@pytest.mark.parametrize("make", [scalars, columns])
@pytest.mark.parametrize("opened", [True, False])
def test_several_maps_are_masks_to_reduce_or_weights(tmp_path, make, opened):
    if make is scalars:
        image = files.dtseries(tmp_path / "run.dtseries.nii")
        values = files.truth(image).astype(float)
    else:
        image, values = surface_files.func(tmp_path / "lh.func.gii")
        values = values.T
    weights = np.random.default_rng(5).random((values.shape[1], 3)).astype("f4")
    weights[:, 0] *= np.arange(len(weights)) % 2
    inside = weights > 0.3
    for strategy, chosen in (("mean", inside.astype("f4")), ("weighted_mean", weights)):
        maps = make(tmp_path, chosen)
        got = extract(image, nib.load(maps) if opened else maps, strategy=strategy)
        np.testing.assert_allclose(got, values @ chosen / chosen.sum(0), rtol=1e-6)


def both_sides(tmp_path, name, values, intent):
    sides = {"lh": "CortexLeft", "rh": "CortexRight"}
    return [
        surface_files.gifti(tmp_path / f"{side}.{name}.gii", one, intent, structure)
        for (side, structure), one in zip(sides.items(), values, strict=True)
    ]


def by_shared_image(run, pair):
    with SharedImage(run, mask_img=pair) as image:
        return image.mask(pair)


WHERE_ONE_MASK_IS_MEANT = {
    "a list of one": lambda run, pair: extract(run, [pair])[0],
    "a dict": lambda run, pair: extract(run, {"roi": pair})["roi"],
    "SharedImage": by_shared_image,
    "SharedSurfaceMasker": lambda run, pair: SharedSurfaceMasker(pair, standardize=None).fit_transform(run),
    "a mask of labels": lambda run, pair: SharedSurfaceLabelsMasker(
        np.arange(1, 21), mask_img=pair, standardize=None, dtype="f4"
    ).fit_transform(run),
}


@pytest.mark.shares
@pytest.mark.parametrize("name", ["shape", "label", "func"])
@pytest.mark.parametrize("as_one", [list, tuple])
@pytest.mark.parametrize("made", WHERE_ONE_MASK_IS_MEANT.values(), ids=WHERE_ONE_MASK_IS_MEANT.keys())
def test_a_pair_of_hemispheres_is_one_mask_where_one_is_meant(tmp_path, name, as_one, made):
    rng = np.random.default_rng(0)
    values = rng.normal(size=(2, 10, 6)).astype("f4")
    inside = rng.random((2, 10, 1)) < 0.6
    run = both_sides(tmp_path, "bold.func", values, "time series")
    intent = "NIFTI_INTENT_LABEL" if name == "label" else "NIFTI_INTENT_SHAPE"
    pair = as_one(
        both_sides(tmp_path, f"mask.{name}", inside.astype("i4" if name == "label" else "f4"), intent)
    )
    expected = values.reshape(20, 6)[inside.ravel()].T
    np.testing.assert_array_equal(made(run, pair), expected)
