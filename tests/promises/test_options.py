"""Every option of every verb does something that is seen, or is refused with the reason."""

import re
from pathlib import Path

import click
import numpy as np
import pytest
from command import called
from images import AFFINE, SHAPE, bold, niimg, random_masks, save
from networks import lesion, series, write

from sharedmask.cli import base, bids, verbs

ROOT = Path(__file__).parents[2]

ROIS = ("--masks", "roi*.nii.gz")
ONE = ("extract", "bold.nii.gz")
TABLE = (*ONE, *ROIS, "-o", "out.tsv")
FOLDER = (*ONE, "other.nii.gz", *ROIS, "--out-dir", "out")
RUN = ("run", "sub-1.nii.gz", "sub-2.nii.gz", *ROIS)
NETWORK = ("network", "lesion.nii.gz", "--connectome", "c.h5", "--out", "maps")
FINE = ("network", "fine.nii.gz", "--connectome", "c.h5", "--out", "maps")
INFO = ("info", "bold.nii.gz")
NO_ROOM = ("--memory-limit", "1000")
FILTER = ("--low-pass", "0.1")
CACHE = ("--set", "cache_dir=kept")

DENOISING = (
    "--denoise-strategy", "--motion", "--wm-csf", "--global-signal", "--compcor", "--n-compcor",
    "--ica-aroma", "--fd-threshold", "--std-dvars-threshold", "--scrub", "--demean",
    "--confounds-columns", "--dummy-scans",
)  # fmt: skip
# What both verbs take: options added to a command line of theirs, and what must be on both.
_IMAGES = {
    "--stat": ("--stat", "maximum"),
    "--smoothing-fwhm": ("--smoothing-fwhm", "8"),
    "--standardize": ("--standardize", "psc"),
    "--detrend": ("--detrend",),
    "--low-pass": FILTER,
    "--high-pass": ("--high-pass", "0.1"),
    "--config": ("--config", "settings.toml"),
    "--set": ("--set", "memory_limit=1000"),
    "--memory-limit": NO_ROOM,
    "--log-memory": ("--log-memory",),
    "--profile-memory": ("--profile-memory", "mem.dat"),
    "--no-header": ("--no-header",),
    "--precision": ("--precision", "3"),
    "--transpose": ("--transpose",),
    "--connectivity": ("--connectivity", "covariance"),
}
DECODING = "test_how_many_cores_decode"


def of_images(verb, one):
    """Of each option the command line without it, and with it."""
    regions = (*one[: one.index("--masks")], *one[one.index("--masks") + 2 :])
    far, atlas = (*regions, "--mask", "far.nii.gz"), (*regions, "--atlas", "atlas.nii.gz")
    folder = one if verb == "run" else FOLDER
    nan = tuple("nan.nii.gz" if word in ("bold.nii.gz", "sub-1.nii.gz") else word for word in one)
    return {
        **{option: (one, (*one, *more)) for option, more in _IMAGES.items()},
        "--mask": (one, (*regions, "--mask", "roi0.nii.gz")),
        "--masks": (one, (*regions, "--masks", "roi1*.nii.gz")),
        "--atlas": (one, atlas),
        "--sphere": (one, (*regions, "--sphere", "0,0,0,8")),
        "--lut": (atlas, (*atlas, "--lut", "atlas.tsv")),
        "--format": (folder, (*folder, "--format", "npz")),
        "--shard": (folder, (*folder, "--shard", "1/2")),
        "--overwrite": "test_many_images_go_to_a_folder",
        "--decode-jobs": DECODING,
        "--dask": "test_a_local_dask_cluster",
        "--n-jobs": "test_how_many_images_go_at_a_time",
        "--resampling-target": (far, (*far, "--resampling-target", "data")),
        "--nan-policy": (nan, (*nan, "--nan-policy", "raise")),
        "--no-cache": ((*one, *CACHE), (*one, *CACHE, "--no-cache")),
        "--cache-dir": (one, (*one, "--cache-dir", "mine")),
        "--confounds": (one, (*one, "--confounds", "c.tsv", *(("c.tsv",) if verb == "run" else ()))),
        "--t-r": ((*one, *FILTER), (*one, *FILTER, "--t-r", "3")),
        "--profile": ((*one, *NO_ROOM), (*one, *NO_ROOM, "--profile", "small")),
        "--fisher-z": "test_extract_writes_matrices_beside_its_tables",
        **dict.fromkeys(DENOISING, "test_flags_of_denoising_are_its_parameters"),
    }


def of_settings(one):
    return {
        "--config": (one, (*one, "--config", "settings.toml")),
        "--set": (one, (*one, "--set", "memory_limit=1000")),
        "--memory-limit": (one, (*one, *NO_ROOM)),
        "--profile": ((*one, *NO_ROOM), (*one, *NO_ROOM, "--profile", "small")),
        "--log-memory": (one, (*one, "--log-memory")),
        "--decode-jobs": DECODING,
    }


def added(one, *options):
    return one, (*one, *options)


# Verb -> option -> the command lines without and with it, or the test that sees what it does.
OPTIONS = {
    "extract": {
        **of_images("extract", TABLE),
        "--output": (TABLE, (*TABLE[:-1], "other.tsv")),
        "--out-dir": (TABLE, FOLDER),
    },
    "run": {
        **of_images("run", RUN),
        "--subjects": added(RUN, "--subjects", "1"),
        "--rois": added(RUN, "--rois", "roi1"),
        "--output-dir": added(RUN, "--output-dir", "elsewhere"),
        "--standard": added((*RUN, *CACHE), "--standard"),
        "--parallel": "test_how_many_images_go_at_a_time",
        "--cached": added(RUN, "--cached"),
        "--clear-cache": added(RUN, "--clear-cache"),
        "--cache-stats": added(RUN, "--cache-stats"),
        "--memory-efficient": added((*RUN, "-v", "-j1"), "--memory-efficient"),
        "--memory-threshold": added((*RUN, "-v", "-j1"), "--memory-threshold", "0"),
        "--force-memmap": added((*RUN, "-v", "-j1"), "--force-memmap"),
        "--memory-buffer": added((*RUN, *NO_ROOM), "--memory-buffer", "0.5"),
        "--max-memory-per-process": added(RUN, "--max-memory-per-process", "0.000001"),
        "--disable-shared-memory": added(
            (*RUN, "-v", "-j1", "--memory-efficient"), "--disable-shared-memory"
        ),
        "--auto-configure": added((*RUN, *NO_ROOM), "--auto-configure"),
        "--slurm": added((*RUN, "--memory-limit", "26M"), "--slurm"),
        "--verbose": added(RUN, "--verbose"),
    },
    "network": {
        **of_settings(NETWORK),
        "--connectome": (NETWORK, tuple("d.h5" if word == "c.h5" else word for word in NETWORK)),
        "--out": (NETWORK, (*NETWORK[:-1], "elsewhere")),
        "--method": added(NETWORK, "--method", "pini"),
        "--pini-percentile": added((*NETWORK, "--method", "pini"), "--pini-percentile", "90"),
        "--t-threshold": added(NETWORK, "--t-threshold", "2"),
        "--fdr-alpha": added(NETWORK, "--fdr-alpha", "0.5"),
        "--output-space": added((*FINE, "--resampling-target", "data"), "--output-space", "lesion"),
        "--resampling-target": added(FINE, "--resampling-target", "data"),
        "--batch-size": added(NETWORK, "--batch-size", "3"),
        "--n-jobs": "test_workers_do_not_change_a_bit",
        "--resume": "test_resuming_does_what_is_missing_changed_or_failed_before",
    },
    "info": {**of_settings(INFO), "--mask-img": added(INFO, "--mask-img", "roi0.nii.gz")},
    "cache": {"--cache-dir": added(("cache", "stats"), "--cache-dir", "mine")},
    "frames convert": {
        "--gzip": added(("frames", "convert", "bold.nii.gz", "x.h5"), "--gzip", "1"),
        "--version": added(("frames", "convert", "bold.nii.gz", "x.h5"), "--version", "2"),
    },
}


@pytest.fixture
def inputs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SHAREDMASK_TMPDIR", str(tmp_path / "spill"))
    (tmp_path / "spill").mkdir()
    run = bold((*SHAPE, 40))
    for name in ("bold", "other", "sub-1", "sub-2"):
        save(tmp_path / f"{name}.nii.gz", run)
    broken = run.astype("f4")
    broken[3] = np.nan
    save(tmp_path / "nan.nii.gz", broken)
    for name, inside in zip(("roi0", "roi1", "roi12"), random_masks(3), strict=True):
        save(tmp_path / f"{name}.nii.gz", inside.astype("u1"))
    far = AFFINE.copy()
    far[:3, 3] += AFFINE[:3, 0] / 2
    niimg(np.ones(SHAPE, "u1"), far).to_filename(tmp_path / "far.nii.gz")
    niimg((np.arange(run[..., 0].size).reshape(SHAPE) % 3).astype("i2")).to_filename(
        tmp_path / "atlas.nii.gz"
    )
    (tmp_path / "settings.toml").write_text("memory_limit = 1000")
    (tmp_path / "atlas.tsv").write_text("index\tname\n1\tone\n2\ttwo\n")
    (tmp_path / "c.tsv").write_text("\n".join(["x", *(str(i % 7) for i in range(40))]))
    write(tmp_path / "c.h5", series())
    write(tmp_path / "d.h5", series(seed=2))
    small, _ = lesion(1)
    small.to_filename(tmp_path / "lesion.nii.gz")
    fine = AFFINE @ np.diag([0.5, 1, 1, 1])
    data = np.asarray(small.dataobj).repeat(2, axis=0)
    niimg(data, fine).to_filename(tmp_path / "fine.nii.gz")
    return tmp_path


def seen(folder, args):
    """All that a call shows: its code, what it says, and the files that it leaves."""
    before = set(folder.rglob("*"))
    done = called(*args)
    made = sorted(set(folder.rglob("*")) - before, reverse=True)
    files = {}
    for path in made:
        if path.is_dir():
            path.rmdir()
            continue
        # When it was done, and what memory there was, is another time another.
        timed = path.name in ("complete.jsonl", "mem.dat", "mem.png", "counts") or {"spill", "failed"} & {
            *path.parts
        }
        files[path.relative_to(folder)] = None if timed else path.read_bytes()
        path.unlink()
    said = re.sub(
        r"in use .*|after [\d.]+ s|memory that may be used.*|room for.*", "", done.stdout + done.stderr
    )
    return done.returncode, said, files


CASES = [(verb, option) for verb, options in OPTIONS.items() for option in options]


@pytest.mark.some(25)
@pytest.mark.parametrize("verb, option", CASES, ids=["".join(case) for case in CASES])
def test_an_option_is_seen(inputs, verb, option):
    shown = OPTIONS[verb][option]
    if isinstance(shown, str):
        assert any(f"def {shown}(" in path.read_text() for path in ROOT.glob("tests/*/test_*.py")), shown
        return
    without, with_it = (seen(inputs, args) for args in shown)
    assert without == seen(inputs, shown[0])  # the same each time, but for the option
    assert without != with_it
    assert "no such option" not in with_it[1].lower()


@pytest.mark.parametrize(
    "args, why",
    [
        ((*TABLE, "--format", "npz"), "--format is for --out-dir"),
        ((*TABLE, "--overwrite"), "--overwrite is for --out-dir"),
        ((*TABLE, "--shard", "1/2"), "--shard is for --out-dir"),
        ((*TABLE, "--dask", "local"), "--dask is for --out-dir"),
        ((*TABLE, "--lut", "atlas.tsv"), "--lut names the labels of an --atlas"),
        ((*NETWORK, "--pini-percentile", "5"), "--pini-percentile is for --method pini"),
        (("frames", "convert", "bold.nii.gz", "x.nii", "--gzip", "1"), "compression is for .h5 files"),
        (("frames", "convert", "bold.nii.gz", "x.nii", "--version", "2"), "--version"),
    ],
)
def test_an_option_that_could_do_nothing_is_refused(inputs, args, why):
    code, said, files = seen(inputs, args)
    assert code == 64 and why in said
    assert not files


def every():
    """Verb -> the first spelling of each of its options."""
    verbs()
    waiting = [("", base.commands), ("sharedmask-bids", bids.app)]
    for name, command in waiting:
        if isinstance(command, click.Group):
            waiting += [(f"{name} {verb}".strip(), one) for verb, one in command.commands.items()]
        else:
            named = [one for one in command.params if isinstance(one, click.Option)]
            longs = (next(name for name in one.opts if name.startswith("--")) for one in named)
            yield name, sorted(longs)


# Verbs that need processes of their own, or rapidgzip, and the BIDS app: their tests type each option.
ELSEWHERE = ("demo", "gc", "index", "serve", "submit", "sharedmask-bids")


@pytest.mark.parametrize("verb, options", list(every()), ids=[verb or "sharedmask" for verb, _ in every()])
def test_every_option_of_a_verb_is_tried(verb, options):
    if verb in ELSEWHERE:
        typed = "".join(path.read_text() for path in ROOT.glob("tests/*/test_*.py")).replace("_", "-")
        assert not [option for option in options if option not in typed and option != "--version"]
    else:
        assert options == (["--debug", "--version"] if not verb else sorted(OPTIONS.get(verb, {})))
