"""Atlases: found by file and by name, told apart, and compared with the space of runs."""

import json
import re
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from datasets import SPACE, atlas, parcellations, preprocessed
from images import niimg

from sharedmask import Grid
from sharedmask.errors import GridMismatchError, MissingFileError, NoInputError, ParameterError
from sharedmask.study.atlases import Atlas, find_atlas
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


@pytest.mark.parametrize("make", [find_atlas, Atlas.at])
def test_an_atlas_that_outputs_cannot_be_named_by_is_refused(tmp_path, make):
    path = atlas(tmp_path).rename(tmp_path / "脑.nii.gz")
    with pytest.raises(ParameterError, match=r"脑\.nii\.gz has no ASCII letter or digit in its name"):
        make(path)


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
        ("a.nii.gz", {"SpatialReference": "bids:mni:tpl-MNI305_T1w.nii.gz"}, "MNI305"),
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


@pytest.mark.parametrize("folder", ["NKI", "WHS", "my_MNI"])
def test_a_folder_that_may_be_called_after_a_study_tells_no_space(tmp_path, folder):
    path = atlas(tmp_path / folder)
    assert find_atlas(path.rename(path.with_name("custom.nii.gz"))).space is None


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


# --- by name ---------------------------------------------------------------------------------------


@pytest.fixture
def templateflow(tmp_path, monkeypatch):
    """A home with two templates, resolutions, cohorts and an atlas of several sizes; some are not fetched."""
    home = tmp_path / "templateflow"
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(home))
    names = [f"atlas-Schaefer2018_desc-{n}Parcels{k}Networks_dseg" for n in (100, 400, 1000) for k in (7, 17)]
    for space in ("MNI152NLin2009cAsym", "MNI152NLin6Asym", "MNIInfant_cohort-1", "MNIInfant_cohort-2"):
        template, _, cohort = space.partition("_")
        folder = home / f"tpl-{template}" / cohort
        folder.mkdir(parents=True, exist_ok=True)
        for resolution, size in (("01", 1.0), ("02", 2.0), ("03", 3.4)):
            for name in names:
                path = folder / f"tpl-{space}_res-{resolution}_{name}.nii.gz"
                niimg(np.ones((2, 2, 2), "i2"), np.diag([size, size, size, 1])).to_filename(path)
        for name in names:
            (folder / f"tpl-{space}_{name}.tsv").write_text("index\tname\n1\tone\n")
    return home


def voxels_of(size):
    return Grid((2, 2, 2), np.diag([size, size, size, 1]))


@pytest.mark.parametrize(
    ("name", "space", "size", "found"),
    [
        ("Schaefer2018:400,7", "MNI152NLin6Asym", 2.2, "MNI152NLin6Asym_res-02_.*_desc-400Parcels7Networks"),
        ("Schaefer2018:7,400", "MNI152NLin6Asym", 1.2, "MNI152NLin6Asym_res-01_.*_desc-400Parcels7Networks"),
        ("Schaefer2018:17networks,100", "MNIInfant+2", 9.0, "cohort-2_res-03_.*_desc-100Parcels17Networks"),
        ("Schaefer2018+1000Parcels17Networks", "MNI152NLin2009cAsym", 2.0, "res-02_.*1000Parcels17Networks"),
    ],
)
def test_an_atlas_of_templateflow_by_its_name(templateflow, name, space, size, found):
    atlas = find_atlas(name, (), space).nearest(voxels_of(size))
    assert re.search(found, atlas.image.name) and atlas.space == space
    assert atlas.lut.name == re.sub(r"_res-\d+", "", atlas.image.name).replace(".nii.gz", ".tsv")


def test_what_could_be_several_atlases_is_refused(templateflow):
    for name in ("Schaefer2018", "Schaefer2018:400", "Schaefer2018:7"):
        with pytest.raises(NoInputError, match=r"in several files"):
            find_atlas(name, (), "MNI152NLin6Asym")
    for name in ("Schaefer2018:40", "Schaefer2018:400,8"):
        with pytest.raises(NoInputError, match=r": of Schaefer2018 there are desc-\S*, desc-"):
            find_atlas(name, (), "MNI152NLin6Asym")
    with pytest.raises(NoInputError, match=r"there are: Schaefer2018"):
        find_atlas("AAL", (), "MNI152NLin6Asym")


def several(folder):
    for space in ("MNI152NLin2009cAsym", "MNI152NLin6Asym"):
        for number in (20, 40):
            atlas(folder, f"A_desc-{number}Parcels").rename(
                folder / f"tpl-{space}_res-2_atlas-A_desc-{number}Parcels_dseg.nii.gz"
            )
    return folder


@pytest.mark.parametrize(
    ("what", "space", "said"),
    [
        ("A", None, r"differ in space \(MNI152NLin2009cAsym, MNI152NLin6Asym\) and in desc \(20Parcels, 40"),
        ("A:20", None, r"files that differ in space \(.*Asym\): choose runs by --space, or give a path$"),
        (
            "A",
            "MNI152NLin6Asym",
            r"in desc \(20Parcels, 40Parcels\): add a word to its name, as :20P",
        ),
        ("A:30", None, r": of A there are desc-20Parcels, desc-40Parcels$"),
        ("A:20", "T1w", r"A:20 is in MNI152NLin2009cAsym, MNI152NLin6Asym, the runs in T1w: choose runs by"),
        ("B", None, r"; there are: A$"),
        ("b/B_dseg.nii.gz", None, r"^b/B_dseg.nii.gz is no file$"),
        ("B.dlabel.nii", None, r"^B.dlabel.nii is no file$"),
    ],
)
def test_an_atlas_that_is_not_found_is_told_with_what_there_is(what, space, said, tmp_path):
    with pytest.raises(NoInputError, match=said):
        find_atlas(what, [several(tmp_path / "atlases")], space)


def test_without_a_folder_of_atlases_its_option_is_told(templateflow, monkeypatch, tmp_path):
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(tmp_path / "none"))
    with pytest.raises(NoInputError, match=r"--atlases-dir\), or have them downloaded \(--download\)$"):
        find_atlas("Schaefer2018:400")


def test_an_atlas_that_is_not_fetched_is_named(templateflow):
    for path in templateflow.rglob("*_res-0[23]_*400Parcels7*.nii.gz"):
        path.write_bytes(b"")
    found = find_atlas("Schaefer2018:400,7", (), "MNI152NLin6Asym").nearest(voxels_of(3.4))
    assert "_res-01_" in found.image.name
    for path in templateflow.rglob("*_res-01_*400Parcels7*.nii.gz"):
        path.unlink()
    for path in templateflow.rglob("*_res-03_*400Parcels7*.nii.gz"):
        path.unlink()
    with pytest.raises(MissingFileError, match=r"has no content: get it .*templateflow"):
        find_atlas("Schaefer2018:400,7", (), "MNI152NLin6Asym")


def test_ones_own_folders_come_before_templateflow(templateflow, tmp_path):
    (tmp_path / "own").mkdir()
    own = next(templateflow.rglob("tpl-MNI152NLin6Asym_res-01_*400Parcels7*.nii.gz"))
    own = own.rename(tmp_path / "own" / own.name)
    assert find_atlas("Schaefer2018:400,7", [tmp_path / "own"], "MNI152NLin6Asym").image == own


@pytest.fixture
def client(tmp_path, monkeypatch):
    """TemplateFlow's client: its home gets empty files at first, and content by ``get``."""
    home, asked = tmp_path / "templateflow", []
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(home))
    stems = [
        f"{res}_atlas-{name}" for res in ("res-01", "res-02") for name in ("A_desc-7n", "A_desc-17n", "B")
    ]
    names = [f"{stem}_dseg.nii.gz" for stem in stems] + ["atlas-A_desc-7n_dseg.tsv"]
    files = [home / f"tpl-{SPACE.removeprefix('space-')}" / f"tpl-{SPACE.removeprefix('space-')}_{name}"
             for name in names]  # fmt: skip

    def update(**_):
        for path in files:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()

    def get(template, **entities):
        asked.append(entities)
        if entities.get("atlas") == "B":
            raise RuntimeError("Failed to download\nit")
        parts = [f"res-{entities['resolution']:02}"] if "resolution" in entities else []
        parts += [f"{key}-{entities[key]}" for key in ("atlas", "desc") if entities[key]]
        name = "_".join([f"tpl-{template}", *parts, entities["suffix"] + entities["extension"]])
        path = home / f"tpl-{template}" / name
        assert path in files
        if path.suffix == ".tsv":
            path.write_text("index\tname\n1\tone\n")
        else:
            size = float(entities["resolution"])
            niimg(np.ones((2, 2, 2), "i2"), np.diag([size, size, size, 1])).to_filename(path)

    module = ModuleType("templateflow")
    module.__spec__ = ModuleSpec("templateflow", None)
    module.conf, module.api = SimpleNamespace(update=update), SimpleNamespace(get=get)
    monkeypatch.setitem(sys.modules, "templateflow", module)
    return asked


def test_an_atlas_is_downloaded_if_that_is_asked_for(client, tmp_path):
    space = SPACE.removeprefix("space-")
    with pytest.raises(NoInputError, match="A:7n is neither a file nor an atlas"):
        find_atlas("A:7n", (), space)
    assert not client and not (tmp_path / "templateflow").exists()
    found = find_atlas("A:7n", (), space, download=True)
    assert len(found.resolutions) == 2 and found.lut.read_text().endswith("one\n") and len(client) == 3
    assert find_atlas("A:7n", (), space, download=True) == find_atlas("A:7n", (), space) == found
    assert len(client) == 3  # all was there
    with pytest.raises(NoInputError, match="is in several files"):
        find_atlas("A", (), space, download=True)
    with pytest.raises(NoInputError, match="C is neither a file nor an atlas of any folder; there are: A, B"):
        find_atlas("C", (), space, download=True)
    with pytest.raises(
        MissingFileError, match=r"atlas-B_dseg\.nii\.gz cannot be downloaded: Failed to download it$"
    ):
        find_atlas("B", (), space, download=True)
    with pytest.raises(MissingFileError, match=r"has no content: get it .*--download"):
        find_atlas("A:17n", (), space).nearest(voxels_of(1.0))


def test_what_a_folder_has_is_not_downloaded(client, tmp_path):
    path = atlas(tmp_path / "atlases", "A")
    assert find_atlas("A", [tmp_path / "atlases"], download=True).image == path
    assert find_atlas(path, download=True).image == path and not client


def test_downloading_without_templateflow_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(tmp_path / "none"))
    monkeypatch.setitem(sys.modules, "templateflow", None)
    said = r"^downloading atlas AAL needs templateflow: pip install 'sharedmask\[atlases\]'$"
    with pytest.raises(ParameterError, match=said):
        find_atlas("AAL", download=True)
