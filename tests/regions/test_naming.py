"""Names of regions and lesions: written so that no two become one, or refused before the pass."""

import json
import os
from importlib.util import find_spec

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from datasets import preprocessed
from images import SHAPE, bold, save, truth
from networks import lesion, series, write
from programs import sharedmask, sharedmask_bids

from sharedmask import FunctionalNetworkMapper
from sharedmask.errors import ParameterError
from sharedmask.network.output import map_to
from sharedmask.regions.naming import columns, members


@pytest.fixture
def study(tmp_path):
    """A run and an atlas of three labels, whose table a test writes."""
    labels = np.resize([1, 2, 3], SHAPE).astype("i2")
    (tmp_path / "atlases").mkdir()
    save(tmp_path / "atlases/tpl-MNI152NLin2009cAsym_atlas-Toy_dseg.nii.gz", labels)
    save(tmp_path / "bold.nii.gz", bold())
    preprocessed(tmp_path / "fmriprep", subjects=("01",))
    return tmp_path


def name_regions(study, names):
    cells = ['"' + name.replace('"', '""') + '"' for name in names]
    table = "index\tname\n" + "".join(f"{k}\t{cell}\n" for k, cell in enumerate(cells, 1))
    (study / "atlases/tpl-MNI152NLin2009cAsym_atlas-Toy_dseg.tsv").write_bytes(table.encode())


def atlas_of(study):
    image = study / "atlases/tpl-MNI152NLin2009cAsym_atlas-Toy_dseg.nii.gz"
    return ["--atlas", image, "--lut", image.with_name(image.name.replace(".nii.gz", ".tsv"))]


def one(study, form):
    out = study / f"out.{form}"
    return sharedmask("extract", study / "bold.nii.gz", *atlas_of(study), "-o", out), out


def many(study, form):
    options = ["--out-dir", study / "out", "--format", form]
    return sharedmask(
        "extract", study / "bold.nii.gz", *atlas_of(study), *options
    ), study / f"out/bold.{form}"


def held(study, form):
    options = ["--output-dir", study / "out", "--format", form]
    return sharedmask("run", study / "bold.nii.gz", *atlas_of(study), *options), study / f"out/bold.{form}"


def app(study, form):
    dataset = study / "fmriprep"
    options = ["--atlases", atlas_of(study)[1], "--no-reports", "--min-coverage", "0"]
    options += ["--voxels"] if form == "h5" else ["--format", form]
    ended = sharedmask_bids(dataset, study / "out", "participant", *options)
    return ended, next((study / "out").rglob(f"*_timeseries.{form}"), study / "none")


WAYS = [
    *((way, form) for way in (one, many, held) for form in ("tsv", "npz", "h5")),
    *((app, form) for form in ("tsv", "h5", "parquet") if form != "parquet" or find_spec("pyarrow")),
]
IDS = [f"{way.__name__}-{form}" for way, form in WAYS]
every_way = pytest.mark.parametrize(("way", "form"), WAYS, ids=IDS)


def read(path, form):
    if form in ("tsv", "parquet"):
        table = pd.read_csv(path, sep="\t") if form == "tsv" else pd.read_parquet(path)
        return {name: table[name].to_numpy() for name in table}
    if form == "npz":
        with np.load(path) as arrays:
            return {name: arrays[name] for name in arrays.files}
    h5py = pytest.importorskip("h5py")
    with h5py.File(path) as file:
        return {name: file[name][:] for name in file}


@every_way
def test_names_that_cannot_be_written_as_they_are_lose_no_region(study, way, form):
    names = ("L/IFG\t1", "one\ntwo", '"Hippo" left')
    name_regions(study, names)
    ended, out = way(study, form)
    assert ended.code == 0, ended.err
    found = read(out, form)
    written = columns(names) if form in ("tsv", "parquet") else members(names)
    assert sorted(found) == sorted(written)
    labels = truth(study / "atlases/tpl-MNI152NLin2009cAsym_atlas-Toy_dseg.nii.gz")
    image = study / "bold.nii.gz"
    if way is app:
        (image,) = (study / "fmriprep").rglob("*_bold.nii.gz")
        mask = truth(next((study / "fmriprep").rglob("*brain_mask.nii.gz"))) != 0
        labels = labels * mask
    for label, name in enumerate(written, 1):
        voxels = truth(image)[labels == label].astype("f8").T
        expected = voxels.mean(axis=1) if form in ("tsv", "parquet") else voxels
        np.testing.assert_allclose(found[name], expected, rtol=1e-6)


@every_way
def test_names_that_would_become_one_are_refused_before_the_pass(study, way, form):
    text = form in ("tsv", "parquet")
    first, second = ("L\tIFG", "L IFG") if text else ("L/IFG", "L_IFG")
    name_regions(study, (first, second, "R"))
    for image in (study / "bold.nii.gz", *(study / "fmriprep").rglob("*_bold.nii.gz")):
        os.truncate(image, image.stat().st_size // 2)  # a pass would say so
    ended, out = way(study, form)
    assert ended.code == (64 if way is one else 1)
    both = f"{first!r} and {second!r} would both be written by the {'column' if text else 'name'}"
    assert both in ended.err
    assert not out.exists()


def test_numpy_reads_an_array_by_its_name_with_and_without_an_ending():
    for names in (("a", "b", "a.npy"), ("a.npy", "b", "a")):
        with pytest.raises(ParameterError, match=r"would both be written by the name"):
            members(names)
    assert members(["a.npy", "b.npy"]) == columns(["a.npy", "b.npy"]) == ("a.npy", "b.npy")
    assert columns(["a", "a.npy"]) == ("a", "a.npy")


@pytest.mark.parametrize("names", [("a/b", "a_b"), ("a\0b", "a/b"), ("a\nb", "a_b")])
def test_lesions_that_would_become_one_are_refused_before_any_is_mapped(tmp_path, names):
    mapper = FunctionalNetworkMapper().fit(write(tmp_path / "c.h5", series()))
    with pytest.raises(ParameterError, match="would both be written"):
        map_to(dict.fromkeys(names, lesion(0)[0]), mapper, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_maps_of_lesions_lie_in_the_folder_whatever_their_names(tmp_path):
    mapper = FunctionalNetworkMapper().fit(write(tmp_path / "c.h5", series()))
    nib.save(lesion(1)[0], tmp_path / "x\ty.nii.gz")
    report = map_to({"../a": lesion(0)[0], "b\n": str(tmp_path / "x\ty.nii.gz")}, mapper, tmp_path / "out")
    assert report.complete == (".._a", "b_")
    maps = [path.name for path in sorted((tmp_path / "out").glob("*_rmap.nii.gz"))]
    assert maps == [".._a_rmap.nii.gz", "b__rmap.nii.gz"]
    table = pd.read_csv(tmp_path / "out/summary.tsv", sep="\t", keep_default_na=False)
    assert table["lesion"].tolist() == [".._a", "b_"]
    assert table["file"].tolist() == ["n/a", str(tmp_path / "x\\ty.nii.gz")]
    assert json.loads((tmp_path / "out/b__summary.json").read_text())["lesion"] == "b_"


@pytest.mark.parametrize("write_names", [columns, members])
@pytest.mark.parametrize("name", ["", " ", "\n"])
def test_blank_names_are_refused(write_names, name):
    if write_names is members and name == "\n":
        assert members([name]) == ("_",)
        return
    with pytest.raises(ParameterError, match="is no name that can be written"):
        write_names([name])
