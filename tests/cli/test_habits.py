"""Habits of other programs: where tables go, how they are written, what may stand before BOLD."""

import csv
import json

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from command import sharedmask
from datasets import confounds_of
from images import SHAPE, bold, niimg, save, truth
from nilearn.interfaces.fmriprep import load_confounds_strategy

from sharedmask import Regions, SharedSpheresMasker, extract
from sharedmask.cli.extract import extract as extract_verb

LUT = "index\tname\n1\tleft, upper\n2\tright\n4\tgone\n"


@pytest.fixture
def study(tmp_path):
    folder = tmp_path / "study"
    folder.mkdir()
    labels = (np.arange(210).reshape(SHAPE) % 3).astype("i2")
    save(folder / "bold.nii.gz", bold(dtype="f4"))
    niimg(labels).to_filename(folder / "atlas.nii.gz")
    (folder / "lut.tsv").write_text(LUT)
    for number in (1, 2, 3):
        inside = np.random.default_rng(number).random(SHAPE) < 0.3
        niimg(inside.astype("u1")).to_filename(folder / f"m{number}.nii.gz")
    return folder


def expected(study):
    return extract(study / "bold.nii.gz", study / "atlas.nii.gz", strategy="mean")


def ran(study, *arguments):
    done = sharedmask("extract", *arguments, cwd=study)
    assert done.returncode == 0, done.stderr
    return done.stdout


ATLAS = ("--atlas", "atlas.nii.gz", "--lut", "lut.tsv")


def test_without_an_output_a_table_goes_where_the_shell_sends_it(study):
    table = ran(study, "bold.nii.gz", *ATLAS)
    assert table == ran(study, "bold.nii.gz", *ATLAS, "-o", "-")
    assert table.splitlines()[0] == "left, upper\tright"


def test_several_images_still_need_a_folder(study):
    done = sharedmask("extract", "bold.nii.gz", "bold.nii.gz", *ATLAS, cwd=study)
    assert done.returncode == 64 and "--out-dir" in done.stderr and not done.stdout


@pytest.mark.some(8)
@pytest.mark.parametrize("ending", [".txt", ".1D", ".csv", ".tsv"])
@pytest.mark.parametrize("header", [True, False])
@pytest.mark.parametrize("transpose", [True, False])
def test_endings_are_those_of_other_programs(study, ending, header, transpose):
    flags = [*([] if header else ["--no-header"]), *(["--transpose"] if transpose else [])]
    ran(study, "bold.nii.gz", *ATLAS, "-o", f"out{ending}", *flags)
    lines = (study / f"out{ending}").read_text().splitlines()
    values = expected(study).T if transpose else expected(study)
    names = ["left, upper", "right"]
    if ending == ".1D" and header and not transpose:
        assert lines.pop(0) == "# left,_upper right"
    if ending in (".txt", ".1D"):
        np.testing.assert_array_equal(np.loadtxt(lines, dtype="f4"), values)
        return
    rows = list(csv.reader(lines, delimiter="," if ending == ".csv" else "\t"))
    if header and transpose:
        assert [row.pop(0) for row in rows] == names
    elif header:
        assert rows.pop(0) == names
    np.testing.assert_array_equal(np.array(rows, "f4"), values)


def test_digits_are_as_many_as_asked_for(study):
    table = ran(study, "bold.nii.gz", *ATLAS, "--precision", "4", "--no-header")
    cells = [cell for line in table.splitlines() for cell in line.split("\t")]
    assert max(len(cell.replace(".", "")) for cell in cells) <= 4
    np.testing.assert_allclose(np.array(cells, float), expected(study).ravel(), rtol=1e-3)


def test_missing_numbers_are_read_by_others(study):
    data = truth(study / "bold.nii.gz").copy()
    data[..., 3] = np.nan
    save(study / "nan.nii", data)
    asked = ("nan.nii", *ATLAS, "--nan-policy", "propagate")
    ran(study, *asked, "-o", "out.1D")
    assert np.isnan(np.loadtxt(study / "out.1D")[3]).all()
    ran(study, *asked, "-o", "out.csv")
    assert pd.read_csv(study / "out.csv").iloc[3].isna().all()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--masks", "m1.nii.gz", "m2.nii.gz", "m3.nii.gz", "bold.nii.gz"],
        ["--stat", "mean", "--masks", "m?.nii.gz", "bold.nii.gz"],
        ["--masks", "m1.nii.gz", "m2.nii.gz", "m3.nii.gz", "--stat", "mean", "bold.nii.gz"],
        ["--masks", "m1.nii.gz", "m2.nii.gz", "m3.nii.gz", "-j", "1", "bold.nii.gz"],
        ["bold.nii.gz", "--masks", "m1.nii.gz", "m2.nii.gz", "m3.nii.gz"],
        ["--mask", "m1.nii.gz", "m2.nii.gz", "m3.nii.gz", "bold.nii.gz"],
    ],
    ids=["the shell's", "quoted", "a statistic", "option between", "after", "--mask"],
)
def test_options_stand_before_bold(study, arguments):
    masks = [study / f"m{number}.nii.gz" for number in (1, 2, 3)]
    table = np.loadtxt(ran(study, *arguments, "-o", "-").splitlines()[1:])
    np.testing.assert_allclose(table, extract(study / "bold.nii.gz", masks, strategy="mean"), rtol=1e-6)


def test_a_mask_is_not_taken_for_the_run(study):
    done = sharedmask("extract", "--mask", "m1.nii.gz", "m2.nii.gz", cwd=study)
    assert done.returncode == 64 and "Missing argument 'BOLD...'" in done.stderr and not done.stdout


@pytest.mark.parametrize("flag", [["--no-header"], ["--precision", "3"], ["--transpose"]])
def test_the_style_of_tables_is_refused_for_archives(study, flag):
    done = sharedmask("extract", "bold.nii.gz", "--mask", "m1.nii.gz", "-o", "out.npz", *flag, cwd=study)
    assert done.returncode == 64 and "are for tables" in done.stderr


def test_run_takes_confounds_and_gives_matrices(study):
    path = save(study / "sub-01_task-rest_desc-preproc_bold.nii.gz", bold((*SHAPE, 40)), t_r=2.0)
    confounds_of(path, "sub-01_task-rest", n_timepoints=40)
    asked = ("--denoise-strategy", "simple", "--connectivity", "correlation", "--precision", "5")
    done = sharedmask("run", path.name, *ATLAS, *asked, "--output-dir", "out", cwd=study)
    assert done.returncode == 0, done.stderr
    confounds, kept = load_confounds_strategy(str(path), "simple")
    regions = Regions.from_labels(study / "atlas.nii.gz")
    signals = extract(path, regions, strategy="mean", confounds=confounds, sample_mask=kept)
    stem = study / "out" / path.name.removesuffix(".nii.gz")
    np.testing.assert_allclose(
        np.loadtxt(f"{stem}.tsv", skiprows=1, delimiter="\t"), signals, rtol=1e-4, atol=1e-4
    )
    matrix = pd.read_csv(f"{stem}_meas-correlation_relmat.tsv", sep="\t", index_col=0).to_numpy()
    assert matrix.shape == (2, 2) and matrix[0, 0] == pytest.approx(1)
    assert json.loads(stem.with_suffix(".json").read_text())
    both = sharedmask(
        "run", path.name, *ATLAS, "--confounds", "c.tsv", *asked, "--output-dir", "o", cwd=study
    )
    assert both.returncode == 64 and "leave out --denoise-strategy" in both.stderr


@pytest.mark.parametrize(
    ("arguments", "columns"),
    [
        (["--sphere", "2,2,2,3", "-1,0,1,2", "bold.nii.gz"], ["2,2,2", "-1,0,1"]),
        (["bold.nii.gz", "--sphere", "-1,0,1"], ["-1,0,1"]),
        (["--sphere", "seeds.tsv", "bold.nii.gz"], ["pcc", "ba"]),
        (["--sphere", "seeds.tsv", "bold.nii.gz", "--stat", "mean", "median"], ["pcc", "ba"]),
        (["--stat", "mean", "median", "--masks", "m1.nii.gz", "m2.nii.gz", "bold.nii.gz"], ["m1", "m2"]),
        (["--atlas", "atlas.nii.gz", "bold.nii.gz", "--stat", "mean", "median"], ["1", "2"]),
        (["--stat", "median", "bold.nii.gz", "--atlas", "atlas.nii.gz"], ["1", "2"]),
    ],
)
def test_spheres_and_what_stands_before_bold(study, monkeypatch, arguments, columns):
    (study / "seeds.tsv").write_text("name\tx\ty\tz\tradius\npcc\t2\t2\t2\t4\nba\t0\t1\t1\t3\n")
    affine = np.diag([1.0, 1, 1, 1])
    affine[:3, 3] = -2
    for path in study.glob("*.nii.gz"):
        save(path, np.asanyarray(nib.load(path).dataobj), affine=affine)
    monkeypatch.chdir(study)
    extract_verb.main([*arguments, "-o", "out.tsv"], standalone_mode=False)
    ends = ["_stat-mean", "_stat-median"] if "mean" in arguments else [""]
    for end in ends:
        table = pd.read_csv(study / f"out{end}.tsv", sep="\t")
        assert list(table.columns) == columns and len(table) == 12
    if arguments[:1] == ["--sphere"] and not ends[0]:
        seeds = [(2, 2, 2), (-1, 0, 1)] if "seeds.tsv" not in arguments else [(2, 2, 2), (0, 1, 1)]
        radii = [3, 2] if "seeds.tsv" not in arguments else [4, 3]
        masker = SharedSpheresMasker(seeds, radius=radii, standardize=None, allow_overlap=True)
        np.testing.assert_allclose(table, masker.fit_transform(study / "bold.nii.gz"), rtol=1e-6)


@pytest.mark.parametrize(
    "where", [("-o", "~/out.tsv"), ("--output=~/out.tsv",), ("--out-dir=~/",), ("--out-dir", "~/.")], ids=str
)
def test_home_is_meant_where_shells_leave_it(study, monkeypatch, where):
    monkeypatch.setenv("HOME", str(study))
    (study / "elsewhere").mkdir()
    done = sharedmask("extract", "~/bold.nii.gz", "--atlas=~/atlas.nii.gz", *where, cwd=study / "elsewhere")
    assert done.returncode == 0, done.stderr
    assert (study / ("bold.tsv" if "dir" in where[0] else "out.tsv")).exists()
    assert not list((study / "elsewhere").iterdir())
