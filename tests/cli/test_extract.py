"""The command line: what it writes, what it says where, and its exit codes."""

import contextlib
import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from children import kill_group, running
from images import AFFINE, SHAPE, bold, random_masks, save, truth
from nilearn.maskers import NiftiLabelsMasker

from sharedmask import extract
from sharedmask.storage.registry import OwnedSegment

GEOMETRY = {"rows": ((3, 5), np.dtype("int16"))}


def run(*args, **kwargs):
    command = [sys.executable, "-W", "error", "-m", "sharedmask", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **kwargs)


@pytest.fixture
def study(tmp_path):
    folder = tmp_path / "study"
    folder.mkdir()
    save(folder / "bold.nii.gz", bold())
    for number, mask in enumerate(random_masks(3)):
        save(folder / f"roi{number}.nii.gz", mask.astype("u1"))
    atlas = np.random.default_rng(5).integers(0, 4, SHAPE).astype("i2")
    save(folder / "atlas.nii.gz", atlas)
    (folder / "atlas.tsv").write_text("index\tname\n1\tinsula\n2\tcuneus\n3\tpons\n9\tabsent\n")
    return folder


def test_an_atlas_gives_a_table_with_names(study):
    done = run(
        "extract", "bold.nii.gz", "--atlas", "atlas.nii.gz", "--lut", "atlas.tsv", "-o", "out.tsv", cwd=study
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    table = pd.read_csv(study / "out.tsv", sep="\t")
    assert list(table) == ["insula", "cuneus", "pons"]
    masker = NiftiLabelsMasker(study / "atlas.nii.gz", standardize=None)
    np.testing.assert_allclose(table, masker.fit_transform(study / "bold.nii.gz"), rtol=1e-12)


def test_a_smoothed_image_is_resampled_to_a_mask(study):
    affine = AFFINE @ np.diag([0.5, 0.5, 0.5, 1])
    save(study / "fine.nii.gz", np.ones((6, 6, 6), "u1"), affine=affine)
    steps = {"smoothing_fwhm": 5.0, "resampling_target": "mask"}
    options = [f"--{name.replace('_', '-')}={value}" for name, value in steps.items()]
    done = run("extract", "bold.nii.gz", "--mask", "fine.nii.gz", *options, "-o", "out.npz", cwd=study)
    assert (done.returncode, done.stderr) == (0, "")
    expected = extract(study / "bold.nii.gz", study / "fine.nii.gz", **steps)
    np.testing.assert_array_equal(np.load(study / "out.npz")["fine"], expected)
    done = run("extract", "bold.nii.gz", "--mask", "roi0.nii.gz", "--smoothing-fwhm=0", "-o", "-", cwd=study)
    assert (done.returncode, done.stdout) == (64, "")
    assert "smoothing_fwhm=0.0 is no width" in done.stderr


def test_a_dash_writes_the_table_to_standard_output(study):
    done = run("extract", "bold.nii.gz", "--atlas", "atlas.nii.gz", "--stat", "median", "-o", "-", cwd=study)
    assert done.stdout.splitlines()[0] == "1\t2\t3"
    assert len(done.stdout.splitlines()) == 13
    assert done.stderr == ""


@pytest.mark.parametrize(
    "masks",
    [
        ["--mask", "roi0.nii.gz", "roi1.nii.gz", "roi2.nii.gz"],
        ["--mask", "roi0.nii.gz", "--mask", "roi1.nii.gz", "roi2.nii.gz"],
        ["--masks", "roi*.nii.gz"],
    ],
)
def test_masks_give_the_series_of_their_voxels(study, masks):
    done = run("extract", "bold.nii.gz", *masks, "-o", "out.npz", cwd=study)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    data = truth(study / "bold.nii.gz")
    with np.load(study / "out.npz") as series:
        assert series.files == ["roi0", "roi1", "roi2"]
        for name in series.files:
            inside = truth(study / f"{name}.nii.gz") != 0
            np.testing.assert_array_equal(series[name], data[inside].T.astype("f4"))


def test_several_masks_before_other_options(study):
    done = run("extract", "--mask", "roi0.nii.gz", "roi1.nii.gz", "-o", "out.npz", "bold.nii.gz", cwd=study)
    assert done.returncode == 0, done.stderr


def test_masks_with_a_statistic_give_a_table(study):
    run(
        "extract",
        "bold.nii.gz",
        "--masks",
        "roi*.nii.gz",
        "--stat",
        "standard-deviation",
        "-o",
        "o.tsv",
        cwd=study,
    )
    table = pd.read_csv(study / "o.tsv", sep="\t")
    inside = truth(study / "roi1.nii.gz") != 0
    np.testing.assert_allclose(table["roi1"], truth(study / "bold.nii.gz")[inside].std(axis=0))


def test_cleaning_options_and_underscores(study):
    np.savetxt(study / "confounds.tsv", np.random.default_rng(0).normal(size=(12, 2)), delimiter="\t")
    options = ["--standardize", "zscore_sample", "--detrend", "--confounds", "confounds.tsv", "--n_jobs", "1"]
    done = run("extract", "bold.nii.gz", "--atlas", "atlas.nii.gz", *options, "-o", "out.tsv", cwd=study)
    assert done.returncode == 0, done.stderr
    masker = NiftiLabelsMasker(study / "atlas.nii.gz", standardize="zscore_sample", detrend=True)
    expected = masker.fit_transform(
        study / "bold.nii.gz", confounds=np.loadtxt(study / "confounds.tsv", delimiter="\t")
    )
    np.testing.assert_allclose(pd.read_csv(study / "out.tsv", sep="\t"), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        ([], 64, "Missing argument 'BOLD...'"),
        (["bold.nii.gz", "-o", "o.tsv"], 64, "give one of --mask, --masks and --atlas"),
        (["bold.nii.gz", "--masks", "r*", "--atlas", "a", "-o", "o.tsv"], 64, "give one of"),
        (["bold.nii.gz", "--masks", "roi*", "--lut", "a.tsv", "-o", "o.npz"], 64, "--lut"),
        (["bold.nii.gz", "--masks", "roi*", "-o", "o.csv"], 64, r".npz or .h5"),
        (["bold.nii.gz", "--atlas", "atlas.nii.gz", "--stat", "mode", "-o", "o.tsv"], 64, "strategy='mode'"),
        (["bold.nii.gz", "--masks", "roi*", "-j", "0", "-o", "o.npz"], 64, "n_jobs=0"),
        (["absent.nii", "--masks", "roi*", "-o", "o.npz"], 66, "absent.nii does not exist"),
        (["bold.nii.gz", "--masks", "none*.nii", "-o", "o.npz"], 66, "none*.nii"),
        (["cut.nii.gz", "--masks", "roi*", "-o", "o.npz"], 65, "cut.nii.gz is truncated"),
        (["atlas.tsv", "--masks", "roi*", "-o", "o.npz"], 65, "atlas.tsv"),
        (["bold.nii.gz", "--mask", "empty.nii.gz", "-o", "o.npz"], 65, "empty"),
        (["bold.nii.gz", "--mask", "other.nii.gz", "-o", "o.npz"], 65, "another grid"),
        (["bold.nii.gz", "--masks", "roi*", "--memory-limit", "1K", "-o", "o.npz"], 75, "memory_limit='1K'"),
        (["bold.nii.gz", "--masks", "roi*", "-o", "nowhere/o.npz"], 73, "nowhere"),
    ],
)
def test_errors_are_one_line_and_a_code(study, args, code, message):
    whole = (study / "bold.nii.gz").read_bytes()
    (study / "cut.nii.gz").write_bytes(whole[: len(whole) // 2])
    save(study / "empty.nii.gz", np.zeros(SHAPE, "u1"))
    save(study / "other.nii.gz", np.ones(SHAPE, "u1"), affine=np.diag([2, 2, 2, 1]))
    done = run("extract", *args, cwd=study)
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    assert not list(study.glob("o.*"))
    assert not list(study.glob(".o.*"))


def test_debug_shows_the_traceback(study):
    wrong = ["extract", "absent.nii", "--masks", "roi*", "-o", "o.npz"]
    for args in (["--debug", *wrong], [*wrong, "--debug"]):
        assert "Traceback" in run(*args, cwd=study).stderr


def test_info_tells_what_an_image_is(study):
    done = run("info", "bold.nii.gz", cwd=study)
    assert done.returncode == 0
    for fact in ("7 x 6 x 5 x 12", "int16", "2 s", "MiB", "memory that may be used"):
        assert fact in done.stdout


def test_ls_shows_living_images_and_gc_removes_dead_ones():
    owner = """
    import time, numpy as np
    from sharedmask.storage.registry import OwnedSegment as Owned
    owned = Owned("their.nii.gz", {"rows": ((3, 5), np.dtype("int16"))})
    owned.share({})
    print("ready", flush=True)
    time.sleep(60)
    """
    mine = OwnedSegment("mine.nii.gz", GEOMETRY)
    mine.share({})
    with running(owner) as child:
        shown = run("ls").stdout
        assert "mine.nii.gz" in shown
        assert str(os.getpid()) in shown
        assert "their.nii.gz" in shown
        kill_group(child)
    assert run("gc").stdout.startswith("removed sharedmask-")
    shown = run("ls").stdout
    assert "mine.nii.gz" in shown
    assert "their.nii.gz" not in shown
    mine.release()


def _all_of(terminal):
    """What was written to a terminal that nobody writes to any more."""
    shown = b""
    with contextlib.suppress(OSError):  # EIO is its end of file
        while piece := os.read(terminal, 100_000):
            shown += piece
    os.close(terminal)
    return shown.decode()


def test_a_terminal_sees_progress_and_a_summary(study):
    """A pipe stays silent (all other tests); a terminal does not."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    command = [sys.executable, "-m", "sharedmask", "extract", "bold.nii.gz", "--masks", "roi*", "-o", "o.npz"]
    done = subprocess.run(command, stderr=theirs, stdout=subprocess.PIPE, cwd=study, timeout=60)
    os.close(theirs)
    shown = _all_of(ours)
    assert (done.returncode, done.stdout) == (0, b"")
    assert "0/12 [" in shown
    assert "bold.nii.gz: 3 regions x 12 volumes in" in shown


def test_ctrl_c_is_130_and_leaves_no_output(study):
    big = np.zeros((60, 60, 60, 60), "f4")
    save(study / "big.nii.gz", big)
    save(study / "all.nii.gz", np.ones((60, 60, 60), "u1"))
    command = [sys.executable, "-m", "sharedmask", "extract", "big.nii.gz", "--mask", "all.nii.gz"]
    options = ["--low-pass", "0.1", "-o", "o.npz"]
    with subprocess.Popen(command + options, stderr=subprocess.PIPE, cwd=study, text=True) as child:
        deadline = time.monotonic() + 60
        while "scipy/signal" not in Path(f"/proc/{child.pid}/maps").read_text():  # cleaning has begun
            assert time.monotonic() < deadline
            time.sleep(0.02)
        child.send_signal(signal.SIGINT)
        assert child.stderr.read().strip() == "sharedmask: interrupted"
        # `python -m` ends by the signal itself where it came while a string was executed, as imports
        # of named tuples do; a shell says 130 to both
        assert child.wait() in (130, -signal.SIGINT)
    assert not list(study.glob("*o.npz*"))


def test_demo_compares_and_finds_the_same_numbers(study):
    done = run("demo", "--volumes", "10", "-j", "2")
    assert done.returncode == 0, done.stderr
    assert "NiftiMasker loop" in done.stdout
    assert "equal to NiftiMasker's, bit for bit" in done.stdout


def test_demo_takes_a_run(study):
    done = run("demo", "bold.nii.gz", "-j", "2", cwd=study)
    assert done.returncode == 0, done.stderr
    assert "bit for bit" in done.stdout


def test_the_made_run_is_a_real_image(tmp_path):
    from sharedmask.cli.demo import make_run

    make_run(tmp_path / "bold.nii.gz", 5)
    image = nib.load(tmp_path / "bold.nii.gz")
    assert image.shape == (50, 59, 50, 5)
    assert image.header.get_zooms()[3] == 2.0
    data = image.get_fdata()
    assert 0.1 < (data[..., 0] > 0).mean() < 0.5


# ---- memory and settings


def test_a_timeline_and_its_picture(study, tmp_path):
    pytest.importorskip("matplotlib")
    mprof = pytest.importorskip("mprof")
    timeline = tmp_path / "mem.dat"
    arguments = ("--atlas", "atlas.nii.gz", "-o", "out.tsv", "--profile-memory", timeline)
    done = run("extract", "bold.nii.gz", *arguments, cwd=study)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert "extract" in mprof.read_mprofile_file(str(timeline))["func_timestamp"]
    assert (tmp_path / "mem.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("name", "code"), [("mem.png", 64), ("nowhere/mem.dat", 73)])
def test_a_timeline_that_has_no_place(name, code, study):
    arguments = ("--atlas", "atlas.nii.gz", "-o", "out.tsv", "--profile-memory", name)
    done = run("extract", "bold.nii.gz", *arguments, cwd=study)
    assert done.returncode == code
    assert name in done.stderr
    assert not (study / "out.tsv").exists()


def test_memory_is_logged_to_standard_error(study):
    arguments = ("--atlas", "atlas.nii.gz", "-o", "-", "--log-memory")
    done = run("extract", "bold.nii.gz", *arguments, cwd=study)
    assert done.returncode == 0
    assert done.stderr.startswith("extracting from bold.nii.gz: projected ")
    assert "projected" not in done.stdout


def test_settings_by_option_before_environment_before_file(study):
    (study / "mine.toml").write_text('memory_limit = "100M"\nspill_limit = "7G"\nlog_memory = false\n')
    environment = {**os.environ, "SHAREDMASK_MEMORY_LIMIT": "90M"}
    arguments = ("--config", "mine.toml", "--profile", "small", "--set", "memory_buffer=0")
    said = run("info", "bold.nii.gz", *arguments, cwd=study, env=environment).stdout
    assert "90 MiB (memory_limit='90M')" in said
    assert "(SHAREDMASK_MEMORY_LIMIT)" in said
    assert "(the configuration file mine.toml)" in said
    assert "disk_threshold           536870912 (profile small)" in said
    assert "0.0 (given)" in said
    said = run("info", "bold.nii.gz", *arguments, "--memory-limit", "80M", cwd=study, env=environment).stdout
    assert "80 MiB (memory_limit='80M')" in said


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--set", "use_disc=1"), "use_disc=1"),
        (("--set", "use_disk=maybe"), "use_disk"),
        (("--config", "none.toml"), "none.toml"),
        (("--profile", "huge"), "huge"),
    ],
)
def test_settings_that_make_no_sense(arguments, named, study):
    done = run("info", "bold.nii.gz", *arguments, cwd=study)
    assert done.returncode == 64
    assert named in done.stderr
