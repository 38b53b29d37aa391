"""Many images to a folder: one file each, failures named, nothing done twice."""

import json
import os
import shutil
from functools import partial

import numpy as np
import pandas as pd
import pytest
from images import AFFINE, SHAPE, bold, niimg, random_masks, save, truth

from sharedmask import extract
from sharedmask.errors import DamagedImageError, ParameterError
from sharedmask.regions.regions import Regions
from sharedmask.study.output import Parts, check_places, extract_to, outputs


@pytest.fixture
def runs(tmp_path):
    return [str(save(tmp_path / f"sub-{i}_bold.nii.gz", bold(seed=i))) for i in range(3)]


@pytest.fixture
def masks():
    return dict(zip(["left", "right"], random_masks(2), strict=True))


def test_a_table_per_image(runs, masks, tmp_path):
    study = extract_to(tmp_path / "out", runs, masks, strategy="median")
    assert set(study.complete) == set(runs)
    for path in runs:
        table = pd.read_csv(outputs([path], tmp_path / "out", ".tsv")[path], sep="\t")
        assert list(table.columns) == ["left", "right"]
        np.testing.assert_array_equal(table.to_numpy(), extract(path, masks, strategy="median"))


@pytest.mark.parametrize("single", [False, True])
def test_series_per_image(runs, masks, tmp_path, single):
    given = masks["left"] if single else masks
    extract_to(tmp_path / "out", runs, given, form=".npz")
    with np.load(tmp_path / "out" / "sub-1_bold.npz") as series:
        (name, *_) = series.files
        np.testing.assert_array_equal(series[name], truth(runs[1])[masks["left"]].T)


def test_an_atlas_may_be_made_for_each_grid(runs, tmp_path):
    labels = np.random.default_rng(0).integers(0, 4, SHAPE).astype("int16")
    flip = np.diag([-1.0, 1, 1, 1])
    flip[0, 3] = SHAPE[0] - 1
    turned = str(save(tmp_path / "turned.nii", truth(runs[0])[::-1], AFFINE @ flip))
    extract_to(tmp_path / "out", [*runs, turned], lambda grid: Regions.from_labels(niimg(labels), grid))
    assert (tmp_path / "out" / "turned.tsv").read_text() == (tmp_path / "out" / "sub-0_bold.tsv").read_text()


def test_failures_have_files_until_they_are_mended(runs, masks, tmp_path):
    whole = (tmp_path / "sub-1_bold.nii.gz").read_bytes()
    (tmp_path / "sub-1_bold.nii.gz").write_bytes(whole[:900])
    study = extract_to(tmp_path / "out", runs, masks)
    assert isinstance(study.errors[runs[1]], DamagedImageError)
    (failed,) = (tmp_path / "out" / ".sharedmask" / "failed").iterdir()
    assert json.loads(failed.read_text())["run"] == runs[1]
    (tmp_path / "sub-1_bold.nii.gz").write_bytes(whole)
    again = extract_to(tmp_path / "out", runs, masks)
    assert again.complete == [runs[1]] and len(again.skipped) == 2
    assert not failed.exists()


def test_another_form_is_another_output(runs, masks, tmp_path):
    extract_to(tmp_path / "out", runs, masks)
    assert len(extract_to(tmp_path / "out", runs, masks, form=".npz").complete) == 3
    assert len(extract_to(tmp_path / "out", runs, masks, form=".npz", overwrite=True).complete) == 3
    assert len(extract_to(tmp_path / "elsewhere", runs, masks, form=".npz").complete) == 3


def test_two_images_never_share_a_file(tmp_path):
    with pytest.raises(ParameterError, match=r"a/x\.nii and b/x\.nii\.gz would both be written to x\.tsv"):
        outputs(["a/x.nii", "b/x.nii.gz"], tmp_path, ".tsv")


def test_no_file_of_an_image_is_another_image_s(tmp_path):
    parts = Parts({"": None}, "mean", ("correlation",))
    names = ["x", "x_meas-correlation_relmat", "x_outliers"]
    paths = {f"{name}.nii": tmp_path / f"{name}.tsv" for name in names}
    for name, denoised in (("x_meas-correlation_relmat", False), ("x_outliers", True)):
        written = {image: parts.planned(paths[image], denoised) for image in ("x.nii", f"{name}.nii")}
        with pytest.raises(ParameterError, match=rf"{name}\.nii would be written over .*as those of x\.nii"):
            check_places(written, [])
    check_places({image: [path] for image, path in paths.items()}, [])


def test_no_table_of_another_folders_image_is_written_over(runs, masks, tmp_path):
    out, there = tmp_path / "out", tmp_path / "other"
    extract_to(out, runs, masks)
    table = (out / "sub-0_bold.tsv").read_text()
    there.mkdir()
    other, new = (str(save(there / f"sub-{n}_bold.nii.gz", bold(seed=7 + n))) for n in (0, 9))
    with pytest.raises(ParameterError, match=rf"{other} would be written over .*0_bold\.tsv, .* {runs[0]}: "):
        extract_to(out, [new, other], masks)
    assert (out / "sub-0_bold.tsv").read_text() == table
    assert not (out / "sub-9_bold.tsv").exists()
    assert extract_to(out, [other], masks, overwrite=True).complete == [other]
    assert (out / "sub-0_bold.tsv").read_text() != table


def test_images_that_were_moved_or_copied_keep_their_tables(runs, masks, tmp_path):
    there = tmp_path / "other"
    there.mkdir()
    extract_to(tmp_path / "out", runs, masks)
    moved = [shutil.copy(runs[0], there), str(there / "sub-1_bold.nii.gz"), shutil.move(runs[2], there)]
    os.link(runs[1], moved[1])
    study = extract_to(tmp_path / "out", moved, masks)
    assert (study.complete, study.skipped) == (moved[:2], moved[2:])


def test_unknown_forms_are_refused_before_any_work(runs, masks, tmp_path):
    with pytest.raises(ParameterError, match=r"\.npz, \.h5"):
        extract_to(tmp_path / "out", runs, masks, form=".xlsx")
    assert not (tmp_path / "out").exists()


def test_a_file_for_each_atlas_and_statistic(runs, tmp_path):
    values = np.arange(210).reshape(SHAPE)
    images = {name: niimg((values % n).astype("i2")) for name, n in (("a", 3), ("b", 5))}
    makers = {f"atlas-{name}": partial(Regions.from_labels, image) for name, image in images.items()}
    for strategy in (("mean", "standard_deviation"), "median"):
        parts = Parts(makers, strategy)
        assert extract_to(tmp_path / "out", runs, parts, strategy=strategy).errors == {}
        assert len(extract_to(tmp_path / "out", runs, parts, strategy=strategy).skipped) == 3
        for run, path in outputs(runs, tmp_path / "out", ".tsv").items():
            tables = iter([pd.read_csv(one, sep="\t") for one in parts.paths(path)])
            for image in images.values():
                for one in strategy if isinstance(strategy, tuple) else [strategy]:
                    np.testing.assert_array_equal(next(tables), extract(run, image, strategy=one))
    assert sorted(path.name for path in (tmp_path / "out").glob("sub-0*")) == [
        f"sub-0_bold_atlas-{end}.tsv"
        for end in (
            "a", "a_stat-mean", "a_stat-standardDeviation", "b", "b_stat-mean", "b_stat-standardDeviation"
        )
    ]  # fmt: skip
    parts = Parts(makers, None)
    extract_to(tmp_path / "out", runs[:1], parts, form=".npz")
    with np.load(tmp_path / "out" / "sub-0_bold_atlas-b.npz") as series:
        assert series.files == ["1", "2", "3", "4"]
        np.testing.assert_array_equal(series["4"], extract(runs[0], Regions.from_labels(images["b"]))["4"])


def test_a_folder_below_home_has_tables_and_what_is_known_of_them(runs, masks, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for done in ("complete", "skipped"):
        assert getattr(extract_to("~/out", runs[:1], masks), done) == runs[:1]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"sub-0_bold.tsv", ".sharedmask"}
    assert not (tmp_path / "~").exists()
