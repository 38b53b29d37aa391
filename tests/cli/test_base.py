"""What all verbs share: errors, progress, memory, settings."""

import contextlib
import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
import warnings

import click
import pytest
from command import called, sharedmask

from sharedmask.cli.base import CONTEXT, Verb, denoise_of, denoise_options, in_flags, run_program
from sharedmask.errors import SharedMaskWarning
from sharedmask.study.denoising import Denoise


def test_debug_shows_the_traceback(study):
    wrong = ["extract", "absent.nii", "--masks", "roi*", "-o", "o.npz"]
    for args in (["--debug", *wrong], [*wrong, "--debug"]):
        assert "Traceback" in sharedmask(*args, cwd=study).stderr


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            FileNotFoundError(2, "No such file or directory", "/proc/out"),
            "/proc/out: No such file or directory",
        ),
        (PermissionError(13, "Permission denied", b"a.nii"), "a.nii: Permission denied"),
        (OSError(28, "No space left on device"), "[Errno 28] No space left on device"),
        (OSError("a.nii is cut"), "a.nii is cut"),
    ],
)
def test_an_error_of_the_system_names_its_file_first(error, said):
    assert in_flags(error) == said


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


def test_a_timeline_and_its_picture(study, tmp_path):
    pytest.importorskip("matplotlib")
    mprof = pytest.importorskip("mprof")
    timeline = tmp_path / "mem.dat"
    arguments = ("--atlas", "atlas.nii.gz", "-o", "out.tsv", "--profile-memory", timeline)
    done = sharedmask("extract", "bold.nii.gz", *arguments, cwd=study)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert "extract" in mprof.read_mprofile_file(str(timeline))["func_timestamp"]
    assert (tmp_path / "mem.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("name", "code"), [("mem.png", 64), ("nowhere/mem.dat", 73)])
def test_a_timeline_that_has_no_place(name, code, study):
    arguments = ("--atlas", "atlas.nii.gz", "-o", "out.tsv", "--profile-memory", name)
    done = sharedmask("extract", "bold.nii.gz", *arguments, cwd=study)
    assert done.returncode == code
    assert name in done.stderr
    assert not (study / "out.tsv").exists()


@pytest.mark.parametrize("category", [SharedMaskWarning, UserWarning])
def test_a_warning_is_shown_as_one_line(category, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["sharedmask"])
    shows = click.Command(
        "shows", callback=lambda: click.echo(warnings.formatwarning("told", category, "a.py", 1))
    )
    with pytest.raises(SystemExit) as ended:
        run_program(shows)
    assert not ended.value.code
    assert capsys.readouterr().out == "sharedmask: told\n\n"


def test_memory_is_logged_to_standard_error(study):
    arguments = ("--atlas", "atlas.nii.gz", "-o", "-", "--log-memory")
    done = sharedmask("extract", "bold.nii.gz", *arguments, cwd=study)
    assert done.returncode == 0
    assert done.stderr.startswith("extracting from bold.nii.gz: projected ")
    assert "projected" not in done.stdout


def test_settings_by_option_before_environment_before_file(study):
    (study / "mine.toml").write_text('memory_limit = "100M"\nspill_limit = "7G"\nlog_memory = false\n')
    environment = {**os.environ, "SHAREDMASK_MEMORY_LIMIT": "90M"}
    arguments = ("--config", "mine.toml", "--profile", "small", "--set", "memory_buffer=0")
    said = sharedmask("info", "bold.nii.gz", *arguments, cwd=study, env=environment).stdout
    assert "90 MiB (memory_limit='90M')" in said
    assert "(SHAREDMASK_MEMORY_LIMIT)" in said
    assert "(the configuration file mine.toml)" in said
    assert "disk_threshold           536870912 (profile small)" in said
    assert "0.0 (given)" in said
    said = sharedmask(
        "info", "bold.nii.gz", *arguments, "--memory-limit", "80M", cwd=study, env=environment
    ).stdout
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
    done = sharedmask("info", "bold.nii.gz", *arguments, cwd=study)
    assert done.returncode == 64
    assert named in done.stderr


@pytest.mark.parametrize(
    ("flags", "asked"),
    [
        ("", None),
        ("--demean", None),
        ("--denoise-strategy simple --motion basic --wm-csf full",
         ("simple", {"motion": "basic", "wm_csf": "full"})),
        ("--denoise-strategy scrubbing --fd-threshold 0.2 --std-dvars-threshold 3 --scrub 0 --no-demean",
         ("scrubbing", {"fd_threshold": 0.2, "std_dvars_threshold": 3.0, "scrub": 0, "demean": False})),
        ("--denoise-strategy compcor --compcor temporal --n-compcor 5",
         ("compcor", {"compcor": "temporal", "n_compcor": 5})),
        ("--denoise-strategy compcor --n_compcor all", ("compcor", {"n_compcor": "all"})),
        ("--denoise-strategy ica_aroma --ica-aroma basic", ("ica_aroma", {"ica_aroma": "basic"})),
        ("--denoise-strategy motion high_pass --global-signal power2",
         (("motion", "high_pass"), {"global_signal": "power2"})),
        ("--confounds-columns trans_*,csf --dummy-scans 4",
         ((), {"columns": "trans_*,csf", "dummy_scans": 4})),
        ("--dummy-scans auto", ((), {"dummy_scans": "auto"})),
    ],
)  # fmt: skip
def test_flags_of_denoising_are_its_parameters(flags, asked):
    @click.command(cls=Verb, context_settings=CONTEXT)
    @denoise_options
    def verb(**options):
        return denoise_of(options)

    expected = None if asked is None else Denoise(asked[0], **asked[1])
    assert verb.main(flags.split(), standalone_mode=False) == expected


@pytest.mark.parametrize(
    "line",
    [
        *(f"demo --volumes {number}" for number in (0, -3)),
        "demo -j 0",
        *(f"serve --idle {number}" for number in ("nan", "-5", "inf", "soon")),
        *(
            f"submit --{name} {number} --dry-run -- extract a.nii --mask m.nii --out-dir out"
            for name in ("array", "max-array")
            for number in (0, -1)
        ),
        *(
            f"run bold.nii.gz --atlas atlas.nii.gz --{name} {number}"
            for name in ("memory-threshold", "max-memory-per-process")
            for number in ("nan", "inf", "-1", "much")
        ),
    ],
)
def test_numbers_that_make_no_sense_are_wrong_usage(line, study, monkeypatch):
    monkeypatch.chdir(study)
    done = called(*line.split())
    assert done.returncode == 64
    assert "\n" not in done.stderr.strip()


_EARLY = """
import importlib, sys
import sharedmask.cli as cli

def stop(name):
    raise KeyboardInterrupt

cli.import_module = stop
cli.main()
"""


def test_who_interrupts_while_verbs_are_imported_sees_no_traceback():
    done = subprocess.run([sys.executable, "-c", _EARLY], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "sharedmask: interrupted\n")
