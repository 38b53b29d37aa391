"""Every verb with standard streams that are closed, and with names of files in any locale."""

import json
import os
import subprocess
import sys

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from datasets import atlas, preprocessed
from images import bold, random_masks, save
from networks import lesion, series, write

from sharedmask.study.summary import summarise

VERBS = {
    "extract": "sharedmask extract bold.nii.gz --atlas atlas.nii.gz -o out.tsv",
    "extract many": "sharedmask extract bold.nii.gz copy.nii.gz --atlas atlas.nii.gz --out-dir out -j2",
    "run": "sharedmask run bold.nii.gz --atlas atlas.nii.gz --output-dir out --parallel --n-jobs 2",
    "network": "sharedmask network lesions/sub-0.nii.gz --connectome c.h5 --out out",
    "frames": "sharedmask frames convert bold.nii.gz out.h5",
    "bids": "sharedmask.cli.bids fmriprep out participant --atlases TOY --no-reports",
    "info": "sharedmask info bold.nii.gz",
    "gc": "sharedmask gc",
    "ls": "sharedmask ls",
    "cache": "sharedmask cache stats --cache-dir cache",
    "submit": "sharedmask submit --dry-run -- extract bold.nii.gz --atlas atlas.nii.gz --out-dir out",
}


@pytest.fixture
def study(tmp_path):
    save(tmp_path / "bold.nii.gz", bold())
    save(tmp_path / "copy.nii.gz", bold(seed=1))
    save(tmp_path / "atlas.nii.gz", np.random.default_rng(5).integers(0, 4, (7, 6, 5)).astype("i2"))
    write(tmp_path / "c.h5", series())
    (tmp_path / "lesions").mkdir()
    nib.save(lesion(0)[0], tmp_path / "lesions/sub-0.nii.gz")
    return tmp_path


def command(line, study):
    program, *options = line.split()
    if program == "sharedmask":
        return [sys.executable, "-m", "sharedmask", *options]
    preprocessed(study / "fmriprep", subjects=("01",))
    toy = str(atlas(study / "atlases"))
    main = "from sharedmask.cli.bids import main; main()"
    return [sys.executable, "-c", main, *(toy if option == "TOY" else option for option in options)]


@pytest.mark.some(1)
@pytest.mark.parametrize(
    "closed", [(2,), pytest.param((0, 1, 2), marks=pytest.mark.long)], ids=["error", "all"]
)
@pytest.mark.parametrize("line", VERBS.values(), ids=VERBS.keys())
def test_closed_streams_end_no_verb(line, closed, study):
    arguments = command(line, study)
    close = "".join(f" {fd}>&-" for fd in closed)
    child = ["sh", "-c", f'exec "$@"{close}', "sh", *arguments]
    done = subprocess.run(child, cwd=study, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    if " out" in line and "submit" not in line:
        assert any(path.name.startswith("out") for path in study.iterdir())


def test_a_table_for_a_closed_standard_output_is_refused(study):
    line = f"{sys.executable} -m sharedmask extract bold.nii.gz --atlas atlas.nii.gz -o - >&-"
    done = subprocess.run(line, shell=True, cwd=study, capture_output=True, text=True, timeout=120)
    assert done.returncode == 73 and "standard output is closed" in done.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    "line",
    [
        "extract bold.nii.gz --atlas atlas.nii.gz -o -",
        "info bold.nii.gz",
        "ls",
        pytest.param("doctor", marks=pytest.mark.long),
        pytest.param("cache stats --cache-dir kept", marks=pytest.mark.long),
        pytest.param("--version", marks=pytest.mark.long),
    ],
)
def test_a_full_standard_output_is_named(line, unbuffered, study):
    call = [sys.executable, "-m", "sharedmask", *line.split()]
    known = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            call, cwd=study, env=known, stdout=full, stderr=subprocess.PIPE, text=True, timeout=120
        )
    assert done.returncode == 74 and "standard output" in done.stderr, done.stderr
    assert done.stderr.count("\n") == 1


def test_a_table_that_the_reader_leaves_is_no_success(study):
    """Without a buffer a stream takes what there is room for, and says how much that was."""
    save(study / "long.nii.gz", np.arange(7 * 6 * 5 * 5000, dtype="i4").reshape(7, 6, 5, 5000))
    call = f"{sys.executable} -u -m sharedmask extract long.nii.gz --atlas atlas.nii.gz -o -"
    with subprocess.Popen(call.split(), cwd=study, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        child.stdout.read(10)
        child.stdout.close()
        assert child.wait(120) != 0


IN_FOLDERS = ["extract many", "run", "network", "bids", "submit"]


@pytest.mark.some(2)
@pytest.mark.parametrize("folder", ["file", "file/below"])
@pytest.mark.parametrize("verb", IN_FOLDERS)
def test_a_folder_that_cannot_be_made_is_refused_before_the_work(verb, folder, study):
    (study / "file").write_text("hello")
    arguments = [folder if one == "out" else one for one in command(VERBS[verb], study)]
    before = sorted(study.rglob("*"))
    done = subprocess.run(arguments, cwd=study, capture_output=True, text=True, timeout=120)
    said = f"sharedmask: {folder} cannot be created: {study / 'file'} is no folder to write to\n"
    assert (done.returncode, done.stdout, done.stderr) == (73, "", said)
    assert sorted(study.rglob("*")) == before


# ---- names of files

ASCII = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
UTF8 = {"LC_ALL": "C.UTF-8", "PYTHONUTF8": "1"}
LATIN, JAPANESE = b"Jos\xe9", "脳_é".encode()
SHOWN = {LATIN: "Jos\\xe9", JAPANESE: "脳_é"}
in_every_locale = pytest.mark.parametrize("locale", [ASCII, UTF8], ids=["ASCII", "UTF-8"])
of_every_name = pytest.mark.parametrize("name", [LATIN, JAPANESE], ids=["Latin-1", "UTF-8 name"])


def call(study, locale, *arguments):
    environ = {key: value for key, value in os.environ.items() if not key.startswith(("LC_", "LANG"))}
    program = () if arguments[0] == "-c" else ("-W", "error", "-m", "sharedmask")
    line = [sys.executable, *program, *arguments]
    return subprocess.run(line, cwd=study, env=environ | locale, capture_output=True, timeout=120)


@pytest.mark.long
@in_every_locale
@of_every_name
def test_lesions_of_any_name_are_mapped_listed_and_resumed(study, locale, name):
    target = os.fsencode(study / "lesions") + b"/" + name + b".nii.gz"
    os.rename(study / "lesions/sub-0.nii.gz", target)
    (study / "lesions/broken.nii.gz").write_bytes(name)
    options = ["network", "lesions/*.nii.gz", "--connectome", "c.h5", "--out", "out"]
    for _ in range(2):
        done = call(study, locale, *options, "--resume")
        assert (done.returncode, done.stderr.count(b"\n")) == (1, 1) and b"broken" in done.stderr
        table = pd.read_csv(study / "out/summary.tsv", sep="\t")
        assert table["lesion"].tolist() == [SHOWN[name]]
        assert table["file"].tolist() == [str(study / f"lesions/{SHOWN[name]}.nii.gz")]
    assert [path.name for path in (study / "out").glob("*_rmap.nii.gz")] == [f"{SHOWN[name]}_rmap.nii.gz"]


@pytest.mark.some(1)
@in_every_locale
@of_every_name
@pytest.mark.parametrize(
    "form", ["tsv", *(pytest.param(form, marks=pytest.mark.long) for form in ("npz", "h5"))]
)
def test_masks_of_any_name_are_named_in_the_outputs(study, locale, name, form):
    mask = os.fsencode(study) + b"/" + name + b".nii.gz"
    save(study / "mask.nii.gz", random_masks(1)[0].astype("u1"))
    os.rename(study / "mask.nii.gz", mask)
    done = call(study, locale, "extract", "bold.nii.gz", "--mask", mask, "-o", f"out.{form}")
    assert (done.returncode, done.stderr) == (0, b"")
    if form == "tsv":
        assert list(pd.read_csv(study / "out.tsv", sep="\t")) == [SHOWN[name]]
        done = call(study, locale, "extract", "bold.nii.gz", "--mask", mask, "-o", "-")
        assert done.stdout == (study / "out.tsv").read_bytes()
    elif form == "npz":
        assert np.load(study / "out.npz").files == [SHOWN[name]]
    else:
        h5py = pytest.importorskip("h5py")
        with h5py.File(study / "out.h5") as file:
            assert list(file) == [SHOWN[name]]


@pytest.mark.long
@in_every_locale
@of_every_name
def test_images_of_any_name_have_outputs_named_like_them(study, locale, name):
    image = os.fsencode(study) + b"/" + name + b"_bold.nii.gz"
    os.rename(study / "bold.nii.gz", image)
    os.rename(study / "copy.nii.gz", (study / "bad.nii.gz"))
    (study / "bad.nii.gz").write_bytes(b"no image")
    bad = os.fsencode(study) + b"/bad_" + name + b".nii.gz"
    os.rename(study / "bad.nii.gz", bad)
    options = ["--atlas", "atlas.nii.gz", "--out-dir", "out"]
    for complete in (b"1 images complete, 0 were", b"0 images complete, 1 were"):
        done = call(study, locale, "extract", image, bad, *options)
        assert done.returncode == 1 and complete in done.stdout and done.stderr.count(b"\n") == 1, done
        assert os.path.exists(os.fsencode(study) + b"/out/" + name + b"_bold.tsv")
    (failure,) = (study / "out/.sharedmask/failed").iterdir()
    assert os.fsencode(failure.name).startswith(b"bad_" + name)


@pytest.mark.long
@in_every_locale
@of_every_name
def test_data_sets_and_atlases_of_any_name_are_named_in_sidecars_and_pages(study, locale, name):
    preprocessed(study / "fmriprep", subjects=("01",))
    there = os.fsencode(study) + b"/" + name
    os.rename(study / "fmriprep", there)
    image = os.fsencode(atlas(study)).replace(b"Toy_dseg", b"Toy_" + name)
    os.rename(atlas(study), image)
    options = [there, "out", "participant", "--atlases", image, "--no-reports"]
    for complete in (b"1 runs complete, 0 were", b"0 runs complete, 1 were"):
        done = call(study, locale, "-c", "from sharedmask.cli.bids import main; main()", *options)
        assert done.returncode == 0 and complete in done.stdout, done
    (sidecar,) = (study / "out").rglob("*_timeseries.json")
    shown = f"Toy_{SHOWN[name]}.nii.gz"
    assert json.loads(sidecar.read_text(encoding="utf-8"))["AtlasFile"].endswith(shown)
    assert shown in summarise(study / "out").read_text(encoding="utf-8")


@pytest.mark.long
@in_every_locale
@of_every_name
def test_a_script_for_slurm_names_images_as_they_are(study, locale, name):
    image = name + b".nii.gz"
    os.rename(study / "bold.nii.gz", os.fsencode(study) + b"/" + image)
    command = ["extract", image, "--atlas", "atlas.nii.gz", "--out-dir", "out"]
    done = call(study, locale, "submit", "--dry-run", "--", *command)
    assert done.returncode == 0 and image in done.stdout, done
