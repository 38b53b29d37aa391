"""Atlases: found by file and by name, told apart, and compared with the space of runs."""

import json

import pytest
from datasets import SPACE, atlas, parcellations, preprocessed

from sharedmask.errors import GridMismatchError, MissingFileError, NoInputError
from sharedmask.study.atlases import find_atlas
from sharedmask.study.bids import find_runs


def test_an_atlas_by_file_and_by_name(tmp_path):
    path = atlas(tmp_path / "atlases")
    for found in (find_atlas(path), find_atlas("Toy", [tmp_path])):
        assert (found.image, found.name) == (path, "Toy")
        assert found.lut.name.endswith("_atlas-Toy_dseg.tsv")
    with pytest.raises(NoInputError, match=r"AAL is neither a file nor an atlas of .*there are: Toy"):
        find_atlas("AAL", [tmp_path])


def test_several_atlases_of_one_name_are_told_apart_by_space(tmp_path):
    path = atlas(tmp_path)
    other = path.with_name(path.name.replace("MNI152NLin2009cAsym", "MNI152NLin6Asym"))
    other.write_bytes(path.read_bytes())
    with pytest.raises(NoInputError, match=r"in several files"):
        find_atlas("Toy", [tmp_path])
    assert find_atlas("Toy", [tmp_path], SPACE.removeprefix("space-")).image == path


def test_atlases_of_one_name_are_told_apart_by_desc(tmp_path):
    first, second = parcellations(tmp_path)
    assert [find_atlas(path).entities["atlas"] for path in (first, second)] == [
        "Toy+3Parcels",
        "Toy+5Parcels",
    ]
    with pytest.raises(NoInputError, match=r"in several files"):
        find_atlas("Toy", [tmp_path])
    assert find_atlas("Toy+5Parcels", [tmp_path]).image == second


@pytest.mark.parametrize(
    ("name", "entities"),
    [
        ("atlas-A_seg-7n_scale-100_dseg.nii.gz", {"atlas": "A", "seg": "7n", "scale": "100"}),
        ("seg-aparc_dseg.nii.gz", {"atlas": "aparc"}),
        ("my.atlas.v2.nii.gz", {"atlas": "myatlasv2"}),
    ],
)
def test_outputs_are_named_by_all_that_tells_an_atlas(tmp_path, name, entities):
    path = atlas(tmp_path).rename(tmp_path / name)
    assert find_atlas(path).entities == entities


@pytest.mark.parametrize("which", ["image", "lut"])
@pytest.mark.parametrize("by", ["file", "name"])
def test_links_to_nothing_are_named(tmp_path, which, by):
    path = atlas(tmp_path)
    lost = path if which == "image" else find_atlas(path).lut
    lost.unlink()
    lost.symlink_to("gone")
    with pytest.raises(MissingFileError, match=rf"{lost.name} is a link to .*datalad get"):
        find_atlas(path if by == "file" else "Toy", [tmp_path])


@pytest.mark.parametrize(
    ("place", "sidecar", "space"),
    [
        ("tpl-MNI152NLin6Asym_atlas-A_dseg.nii.gz", None, "MNI152NLin6Asym"),
        ("atlas-A_space-T1w_dseg.nii.gz", None, "T1w"),
        ("tpl-MNIInfant_cohort-1_atlas-A_dseg.nii.gz", None, "MNIInfant+1"),
        ("tpl-MNI152NLin6Asym/atlas-A_dseg.nii.gz", None, "MNI152NLin6Asym"),
        ("MNI152NLin6Asym/deep/a.nii.gz", None, "MNI152NLin6Asym"),
        ("Schaefer_100_MNI152NLin6Asym_2mm.nii.gz", None, "MNI152NLin6Asym"),
        ("a.nii.gz", {"SpatialReference": "MNI305"}, "MNI305"),
        ("a.nii.gz", {"Name": "A"}, None),
        ("a.nii.gz", None, None),
    ],
)
def test_an_atlas_has_a_space(tmp_path, place, sidecar, space):
    path = tmp_path / place
    path.parent.mkdir(parents=True, exist_ok=True)
    atlas(tmp_path / "made").rename(path)
    if sidecar is not None:
        path.with_name(path.name.replace(".nii.gz", ".json")).write_text(json.dumps(sidecar))
    assert find_atlas(path).space == space


def test_another_space_and_another_head_are_refused_by_name(tmp_path):
    (run,) = find_runs(preprocessed(tmp_path / "in", subjects=("01",)))
    path = atlas(tmp_path)
    find_atlas(path).check_space(run)
    other = path.rename(path.with_name("tpl-MNI152NLin6Asym_atlas-Toy_dseg.nii.gz"))
    with pytest.raises(
        GridMismatchError, match=r"atlas Toy is in the space MNI152NLin6Asym, sub-01_.* in MNI152NLin2009"
    ):
        find_atlas(other).check_space(run)
    find_atlas(other.rename(path.with_name("a.nii.gz"))).check_space(run)  # of a space that nobody knows


def test_the_space_of_a_head_is_of_that_head(tmp_path):
    root = preprocessed(tmp_path / "in", subjects=("01",))
    for path in (root / "sub-01" / "func").iterdir():
        path.rename(path.with_name(path.name.replace(SPACE, "space-T1w")))
    (run,) = find_runs(root)
    path = atlas(tmp_path)
    for subject in ("01", "02"):
        path = path.rename(path.with_name(f"sub-{subject}_space-T1w_desc-aparcaseg_dseg.nii.gz"))
        if subject == "01":
            find_atlas(path).check_space(run)
        else:
            with pytest.raises(GridMismatchError, match=r"is in T1w of sub-02, not of sub-01"):
                find_atlas(path).check_space(run)
