"""The BIDS app: its arguments, pages, exit codes."""

import hashlib
import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from datasets import SPACE, signals, text
from images import save, truth

from sharedmask.cli import bids
from sharedmask.study import executors
from sharedmask.study.bids import find_runs
from sharedmask.study.dataset import analyse

pytestmark = pytest.mark.usefixtures("blank_pictures")


def app(*args):
    """Exit code of the BIDS app."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["sharedmask-bids", *map(str, args)])
        with pytest.raises(SystemExit) as stop:
            bids.main()
    return stop.value.code or 0


def test_the_app(dataset, toy, out, capsys):
    code = app(dataset, out, "participant", "--atlases", "Toy", "--atlases-dir", toy.image.parent,
               "--participant_label", "01", "02", "-t", "rest", "--nprocs", "2", "--mem", "4G")  # fmt: skip
    assert code == 0
    assert "2 runs complete" in capsys.readouterr().out
    assert signals(out, "01").exists() and signals(out, "02").exists()
    assert sorted(path.name for path in out.glob("*.html")) == [
        "study.html",
        f"sub-01_task-rest_{SPACE}_desc-preproc_bold.html",
        f"sub-02_task-rest_{SPACE}_desc-preproc_bold.html",
    ]


def test_an_atlas_by_name_is_the_one_nearest_to_each_run(dataset, toy, out, capsys):
    for path in (dataset / "sub-02").rglob("*.nii.gz"):  # twice as large
        image = nib.load(path)
        values, affine = np.asanyarray(image.dataobj), image.affine @ np.diag([2.0, 2, 2, 1])
        save(path, values, affine=affine, **({"t_r": 2.0} if values.ndim == 4 else {}))
    for resolution, factor in (("1", 0.5), ("2", 1.0), ("3", 2.0)):
        image = nib.load(toy.image)
        affine = image.affine @ np.diag([factor] * 3 + [1])
        name = toy.image.name.replace("_atlas-Toy", f"_atlas-Toy_res-{resolution}")
        nib.save(nib.Nifti1Image(np.asanyarray(image.dataobj), affine), toy.image.with_name(name))
    toy.image.unlink()
    given = ("--atlases", "Toy", "--atlases-dir", toy.image.parent, "--no-reports", "--min-coverage", "0")
    assert app(dataset, out, "participant", *given) == 0
    taken = toy.image.with_name(toy.image.name.replace("_atlas-Toy", "_atlas-Toy_res-2"))
    assert f"atlas Toy: {taken}\n" in capsys.readouterr().err
    for subject, image in (("01", taken), ("02", Path(str(taken).replace("_res-2", "_res-3")))):
        told = json.loads(signals(out, subject).with_suffix(".json").read_text())
        assert told["AtlasFile"] == image.name
        assert told["AtlasDigest"] == f"sha256:{hashlib.sha256(image.read_bytes()).hexdigest()}"


def test_pages_show_memory_and_parameters(dataset, toy, out, tmp_path):
    given = ("--atlases", toy.image, "--high-pass", "0.013")
    assert app(dataset, out, "participant", *given, "--nprocs", "2") == 0
    run, study = (text(page) for page in (next(out.glob("sub-01*.html")), out / "study.html"))
    assert "peak memory" in run and "while this run was at work" in run
    assert "Memory of the last pass" in study
    assert "high_pass 0.013" in run and "high_pass 0.013" in study
    (out / "study.html").unlink()
    assert app(dataset, out, "group") == 0
    assert text(out / "study.html") == study


def test_pages_show_no_memory_of_workers_elsewhere(dataset, toy, out):
    with ThreadPoolExecutor(1) as executor:
        analyse(dataset, out, [toy], executor=executor)
    assert "Memory" not in text(out / "study.html")
    assert "peak memory" not in text(next(out.glob("sub-01*.html")))


def test_the_apps_exit_codes(dataset, toy, out, tmp_path):
    given = ("--atlases", toy.image)
    assert app(tmp_path, out, "participant", *given) == 16
    assert app(dataset, out, "second-level", *given) == 17
    assert app(dataset, out, "participant", *given, "--participant-label", "77") == 18
    assert app(dataset, out, "participant") == 64
    bad = find_runs(dataset)[1].bold
    bad.write_bytes(b"no image")
    assert app(dataset, out, "participant", *given) == 1


def test_a_dry_run_prints_and_writes_nothing(dataset, toy, out, capsys):
    find_runs(dataset)[1].sidecars[-1].write_bytes(b"")
    given = ("--atlases", toy.image, "--denoise-strategy", "simple", "--low-pass", "0.1", "--dry-run")
    assert app(dataset, out, "participant", *given) == 1
    printed = capsys.readouterr().out
    assert not out.exists()
    for what in ("bold ", "mask ", "confounds ", "repetition time ", "space ", "atlas Toy ", "writes 1 "):
        assert printed.count(f"\n  {what}") == 2
    assert re.search(
        rf"problem .*sub-02_task-rest_{SPACE}_desc-preproc_bold\.json.*: Expecting value", printed
    )
    assert "2 runs, 1 of them would fail" in printed
    assert app(dataset, out, "participant", *given, "--shard", "1/2") == 0
    assert "1 runs, 0 of them would fail" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["--stat", "mean", "modus"], "--stat modus is none of mean, median"),
        (["--min-coverage", "5"], "--min-coverage 5.0 is no share"),
        (["--low-pass", "0.01", "--high-pass", "0.1"], "--low-pass 0.01 must be above --high-pass 0.1"),
        (["--low-pass", "0.1", "--t-r", "-2"], "--t-r -2.0 must be above 0"),
        (["--denoise-strategy", "simpel"], "neither a strategy (simple, scrubbing,"),
        (["--format", "parquet"], "writing .parquet needs pyarrow"),
        (["--voxels"], "writing .h5 needs h5py"),
    ],
)
@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_what_no_run_can_do_is_refused_before_the_first(
    wrong, said, dry, dataset, toy, out, capsys, monkeypatch
):
    for package in ("pyarrow", "h5py"):
        monkeypatch.setitem(sys.modules, package, None)
    assert app(dataset, out, "participant", "--atlases", toy.image, *wrong, *dry) == 64
    assert said in capsys.readouterr().err and not out.exists()


@pytest.mark.parametrize(
    ("wrong", "code", "said"),
    [
        (["--participant-label", "1"], 18, "has sub-1; there are: 01, 02"),
        (["--space", "MNI"], 18, "has space-MNI; there are: MNI152NLin2009cAsym"),
    ],
)
def test_what_is_wrong_with_the_data_set_is_told_before_what_is_wrong_with_atlases(
    wrong, code, said, dataset, toy, out, capsys
):
    given = ("participant", "--atlases", "Nobodys", "--atlases-dir", toy.image.parent)
    assert app(dataset, out, *given, *wrong) == code
    assert said in capsys.readouterr().err
    for folder, why in ((dataset / "sub-01", "has no dataset_description.json"), (out, "is no folder")):
        assert app(folder, out, *given) == 16
        assert why in capsys.readouterr().err


def test_a_repetition_time_that_is_given(dataset, toy, out):
    from nilearn.signal import clean

    given = ("--atlases", toy.image, "--no-reports", "--min-coverage", "0")
    assert app(dataset, out, "participant", *given) == 0
    assert app(dataset, out, "participant", *given, "--low-pass", "0.1", "--t-r", "1.25") == 0
    plain = pd.read_csv(signals(out), sep="\t").to_numpy()[:, :6]
    path = signals(out, desc="_desc-lowpass100mHz")
    expected = clean(plain, standardize=None, detrend=False, low_pass=0.1, t_r=1.25)
    np.testing.assert_allclose(pd.read_csv(path, sep="\t").to_numpy()[:, :6], expected, rtol=1e-4)
    sidecar = json.loads(path.with_suffix(".json").read_text())
    assert (sidecar["RepetitionTime"], sidecar["RepetitionTimeSource"]) == (1.25, "given")


@pytest.mark.some(1)
@pytest.mark.parametrize("header", [0.0, 1.0])
@pytest.mark.parametrize("place", ["beside", "task-rest_bold.json", "sub-01/sub-01_bold.json"])
def test_filters_take_the_repetition_time_of_the_sidecar(dataset, toy, out, header, place, capfd):
    from nilearn.signal import clean

    (run, _) = find_runs(dataset)
    sidecar = run.sidecars[-1] if place == "beside" else dataset / place
    sidecar.write_text(run.sidecars[-1].unlink() or '{"RepetitionTime": 2.0}')
    save(run.bold, truth(run.bold), t_r=header)
    given = ("--atlases", toy.image, "--no-reports", "--min-coverage", "0", "--participant-label", "01")
    assert app(dataset, out, "participant", *given) == 0
    assert app(dataset, out, "participant", *given, "--low-pass", "0.1") == 0
    plain, path = (
        pd.read_csv(signals(out), sep="\t").to_numpy()[:, :6],
        signals(out, desc="_desc-lowpass100mHz"),
    )
    expected = clean(plain, standardize=None, detrend=False, low_pass=0.1, t_r=2.0)
    np.testing.assert_allclose(pd.read_csv(path, sep="\t").to_numpy()[:, :6], expected, rtol=1e-4)
    told = json.loads(path.with_suffix(".json").read_text())
    assert (told["RepetitionTime"], told["RepetitionTimeSource"]) == (
        2.0,
        f"of {sidecar.relative_to(dataset)}",
    )
    assert told["SoftwareFilters"]["nilearn.signal.clean"]["t_r"] == 2.0


@pytest.mark.parametrize("lacking", ["matplotlib", "jinja2"])
def test_what_pages_need_is_looked_for_before_the_first_run(dataset, toy, out, lacking, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, lacking, None)
    given = ("--atlases", toy.image)
    assert app(dataset, out, "participant", *given) == 64
    assert f"pages need {lacking}: install {lacking}" in capsys.readouterr().err
    assert not list(out.rglob("*_timeseries.tsv"))
    for level in (("participant", *given), ("group",)):
        assert app(dataset, out, *level, "--no-reports") == 0
        assert signals(out).is_file() and (out / "group_qc.tsv").is_file() and not list(out.glob("*.html"))


def test_nothing_is_downloaded_without_templateflow(dataset, out, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(tmp_path))
    monkeypatch.setitem(sys.modules, "templateflow", None)
    given = (dataset, out, "participant", "--atlases", "AAL", "--download", "--nprocs", "1")
    for more, said in (((), "needs templateflow: pip install"), (("--dry-run",), "leave out --download")):
        assert app(*given, *more) == 64
        (line,) = capsys.readouterr().err.splitlines()
        assert said in line and not out.exists()


def test_what_is_missing_is_a_line_on_standard_error(dataset, toy, out):
    find_runs(dataset)[0].mask.unlink()
    script = "from sharedmask.cli.bids import main; main()"
    command = [
        sys.executable,
        "-c",
        script,
        str(dataset),
        str(out),
        "participant",
        "--atlases",
        str(toy.image),
    ]
    done = subprocess.run([*command, "--no-reports"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0
    key = f"sub-01_task-rest_{SPACE}_desc-preproc_bold"
    assert (
        done.stderr
        == f"sharedmask: {key}: no brain mask was found: coverage counts every voxel of the image\n"
    )


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("facts", [{"bold": {"participant": "02"}, "t1w": {"session": "x"}}, {"sub": "02"}])
def test_filters_come_from_a_file_too(dataset, toy, out, tmp_path, facts, mark):
    file = tmp_path / "filter.json"
    file.write_text(mark + json.dumps(facts))
    assert app(dataset, out, "participant", "--atlases", toy.image, "--bids-filter-file", file) == 0
    assert not signals(out, "01").exists() and signals(out, "02").exists()


def test_a_file_of_filters_for_other_images_leaves_all_runs(dataset, toy, out, tmp_path):
    file = tmp_path / "filter.json"
    file.write_text(json.dumps({"t1w": {"session": "x"}}))
    assert (
        app(dataset, out, "participant", "--atlases", toy.image, "--bids-filter-file", file, "--dry-run") == 0
    )


@pytest.mark.parametrize(
    "text, said",
    [
        ("{", "holds no BIDS filters: Expecting"),
        ("[]", "holds no BIDS filters: a JSON object was expected, not list"),
        ('{"bold": []}', "holds no BIDS filters: bold is no JSON object"),
        ('{"bold": {"task": {"value": "r.*", "regex": true}}}', "task is an object"),
        (None, "filter.json does not exist"),
    ],
)
def test_a_file_that_holds_no_filters_is_refused(dataset, toy, out, tmp_path, capsys, text, said):
    file = tmp_path / "filter.json"
    if text is not None:
        file.write_text(text)
    assert app(dataset, out, "participant", "--atlases", toy.image, "--bids-filter-file", file) == 64
    assert said in capsys.readouterr().err and not out.exists()


def test_the_legacy_layout_and_the_group_level(dataset, toy, out, capsys):
    assert (
        app(dataset, out, "participant", "--atlases", toy.image, "--no-reports", "--output-layout", "legacy")
        == 0
    )
    assert signals(out / "sharedmask").exists()
    capsys.readouterr()
    assert app(dataset, out, "group", "--output-layout", "legacy") == 0
    written = [out / "sharedmask" / name for name in ("study.html", "group_regions.tsv")]
    assert capsys.readouterr().out.splitlines() == list(map(str, written))
    assert (out / "sharedmask" / "study.html").exists()


def test_shards_are_all_runs_once(dataset, toy, out):
    for shard in ("1/2", "2/2"):
        assert app(dataset, out, "participant", "--atlases", toy.image, "--shard", shard, "--no-reports") == 0
    assert signals(out, "01").exists() and signals(out, "02").exists()


@pytest.mark.parametrize(
    "flags, code",
    [
        ((), 0),
        (("--task-id", "rest"), 0),
        (("--task-id", "nback"), 18),
        (("--session-label", "1"), 18),
        (("--run-label", "1"), 18),
        (("--space", "T1w"), 18),
    ],
)
def test_runs_are_selected_by_their_entities(dataset, toy, out, flags, code):
    assert app(dataset, out, "participant", "--atlases", toy.image, "--dry-run", *flags) == code


@pytest.mark.some(1)
@pytest.mark.parametrize("flags, most", [((), 2), (("--nprocs", "1"), 1), (("--low-mem",), 1)])
def test_runs_at_a_time(dataset, toy, out, monkeypatch, flags, most):
    asked, ours = [], executors.Engine
    monkeypatch.setattr(executors, "Engine", lambda own, n, **more: asked.append(n) or ours(own, n, **more))
    assert app(dataset, out, "participant", "--atlases", toy.image, "--no-reports", *flags) == 0
    assert asked == [most]


def test_the_first_crash_may_be_the_last(dataset, toy, out, capsys):
    for path in dataset.rglob("*_desc-preproc_bold.nii.gz"):
        path.write_bytes(b"nothing")
    given = ("participant", "--atlases", toy.image, "--no-reports", "--nprocs", "1")
    assert app(dataset, out, *given) == 1
    assert "2 failed" in capsys.readouterr().out
    assert app(dataset, out, *given, "--stop-on-first-crash") != 0
    assert "failed" not in capsys.readouterr().out
