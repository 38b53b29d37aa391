"""Settings: where values come from, what is refused, and what each knob changes."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
from images import bold, random_masks, save

from sharedmask.errors import ParameterError, SharedMaskWarning
from sharedmask.system import limits, settings
from sharedmask.system.settings import GIB, PROFILES, Settings, current, origins, using

FIELDS = [field.name for field in dataclasses.fields(Settings)]
MIB = 2**20


@pytest.fixture(autouse=True)
def _nothing_set(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith(("SHAREDMASK_", "SLURM_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(settings, "_resolved", None)  # tests change the machine under it
    monkeypatch.setattr(settings, "_known", set())


@pytest.fixture
def config(tmp_path):
    """The usual configuration file: a function that writes it."""
    path = tmp_path / "home/sharedmask/config.toml"
    path.parent.mkdir(parents=True)

    def write(text):
        path.write_text(text)
        return path

    return write


# ---- places


def test_nothing_is_set_here():
    assert current() == Settings()
    assert origins() == {}


def test_the_order_of_places(config, monkeypatch):
    path = config('profile = "small"\nmemory_buffer = 0.1\nspill_limit = "1G"\nuse_disk = false\n')
    monkeypatch.setenv("SHAREDMASK_SPILL_LIMIT", "2G")
    monkeypatch.setenv("SHAREDMASK_USE_DISK", "yes")
    with using(use_disk=False):
        now, origin = current(), origins()
    assert (now.disk_threshold, origin["disk_threshold"]) == (GIB // 2, "profile small")
    assert (now.memory_buffer, origin["memory_buffer"]) == (0.1, f"the configuration file {path}")
    assert (now.spill_limit, origin["spill_limit"]) == (2 * GIB, "SHAREDMASK_SPILL_LIMIT")
    assert (now.use_disk, origin["use_disk"]) == (False, "given")


def test_a_changed_file_and_environment_count_at_once(config, monkeypatch):
    config("memory_buffer = 0.1")
    assert current().memory_buffer == 0.1
    monkeypatch.setenv("SHAREDMASK_MEMORY_BUFFER", "0.2")
    assert current().memory_buffer == 0.2


def test_in_a_block_files_are_looked_at_once_and_what_is_given_counts(config):
    config("disk_threshold = 1")
    with settings.looked_up():
        config("disk_threshold = 2")
        assert current().disk_threshold == 1
        with using(disk_threshold=3):
            assert current().disk_threshold == 3
        assert current().disk_threshold == 1
    assert current().disk_threshold == 2


def test_a_named_file_comes_instead_of_the_usual_one(config, tmp_path, monkeypatch):
    config("memory_buffer = 0.1\nmonitor = true")
    named, given = tmp_path / "named.toml", tmp_path / "given.toml"
    named.write_text("memory_buffer = 0.2")
    given.write_text("memory_buffer = 0.3")
    monkeypatch.setenv("SHAREDMASK_CONFIG", str(named))
    assert current() == Settings(memory_buffer=0.2)
    with using(config=given):
        assert current() == Settings(memory_buffer=0.3)


def test_using_nests_and_ends():
    with using(memory_buffer=0.1, keep_disk=False), using(memory_buffer=0.2, keep_disk=None):
        assert (current().memory_buffer, current().keep_disk) == (0.2, False)
    assert current() == Settings()


def test_an_error_inside_using_ends_it():
    with pytest.raises(ZeroDivisionError), using(keep_disk=False):
        raise ZeroDivisionError
    assert current().keep_disk


@pytest.mark.parametrize("name", ["SHAREDMASK_DIR", "SHAREDMASK_TEST_DATA", "SHAREDMASK_SLOW_TESTS"])
def test_variables_that_are_no_settings_are_known(name, monkeypatch, tmp_path):
    monkeypatch.setenv(name, str(tmp_path))
    assert current() == Settings()


@pytest.mark.parametrize(
    ("text", "value"),
    [("1", True), ("TRUE", True), ("on", True), ("no", False), ("0", False), ("Off", False)],
)
def test_flags_of_the_environment(text, value, monkeypatch):
    monkeypatch.setenv("SHAREDMASK_MONITOR", text)
    assert current().monitor is value


def test_folders_of_the_environment(monkeypatch):
    monkeypatch.setenv("SHAREDMASK_TMPDIR", "~/spill")
    assert current().spill_dir == Path("~/spill").expanduser()


# ---- refusals

WRONG = {
    "profile": ["huge", 3],
    "memory_limit": [-1, "much", True],
    "memory_buffer": [1.0, -0.1, True, "half"],
    "max_memory_per_process": [-1, "8X", True],
    "shared_memory": [1, "maybe"],
    "use_disk": [0, "maybe"],
    "disk_threshold": [-5, "-1G", []],
    "spill_dir": [3, ""],
    "spill_limit": [-1, "x"],
    "keep_disk": [1, "maybe"],
    "cleanup_temporary": [1, "maybe"],
    "monitor": ["maybe"],
    "log_memory": [2],
    "cache_dir": [True, ""],
    "cache_limit": [-1, "lots"],
    "decoders": [0, -1, 1.5, True, "many", "2K"],
    "fingerprint": [1, "times"],
}


def test_every_knob_has_wrong_values():
    assert set(WRONG) == set(FIELDS)


@pytest.mark.parametrize("name", FIELDS)
def test_wrong_values_are_refused_wherever_they_come_from(name, config, monkeypatch):
    for value in WRONG[name]:
        with pytest.raises(ParameterError, match=f"given: {name}: "), using(**{name: value}):
            pass
    texts = [value for value in WRONG[name] if isinstance(value, str)]
    for text in texts:
        path = config(f'{name} = "{text}"')
        with pytest.raises(ParameterError, match=f"{path}: {name}: "):
            current()
    path.unlink() if texts else None
    for text in filter(None, texts):
        variable = "SHAREDMASK_TMPDIR" if name == "spill_dir" else f"SHAREDMASK_{name.upper()}"
        monkeypatch.setenv(variable, text)
        with pytest.raises(ParameterError, match=f"^{variable}: {name}: "):
            current()


def test_a_flag_in_the_file_is_no_text(config):
    path = config('use_disk = "true"')
    with pytest.raises(ParameterError, match=f"{path}: use_disk: 'true' is neither true nor false"):
        current()


def test_unknown_names_are_refused(config):
    with pytest.raises(ParameterError, match="no setting 'use_disc'"), using(use_disc=True):
        pass
    path = config("use_disc = true")
    with pytest.raises(ParameterError, match=f"{path}: there is no setting 'use_disc'"):
        current()


STRAY = {"SHAREDMASK_USE_DISC": "SHAREDMASK_USE_DISK", "SHAREDMASK_MEM_LIMIT": "SHAREDMASK_MEMORY_LIMIT"}
NO_SETTING = "the variable {} is no setting and changes nothing; the nearest is {}"
SAID = [NO_SETTING.format(name, near) for name, near in STRAY.items()]


def test_unknown_variables_are_told_once(monkeypatch):
    for name in STRAY:
        monkeypatch.setenv(name, "1")
    with pytest.warns(SharedMaskWarning) as told:
        assert current() == Settings()
    assert sorted(str(warning.message) for warning in told) == sorted(SAID)
    monkeypatch.setenv("SHAREDMASK_USE_DISK", "false")
    assert current().use_disk is False  # and nothing is said again


PYTHON = """
import sys
from sharedmask import SharedImage, extract_many
if __name__ == "__main__":
    with SharedImage(sys.argv[1]) as image:
        image.map(len, [sys.argv[2]] * 2, n_jobs=2)
    extract_many([sys.argv[1]] * 2, sys.argv[2], n_jobs=2, strategy="mean")
"""
PROGRAMS = {
    name: ["-m", "sharedmask", *line.split()]
    for name, line in {
        "extract": "extract BOLD COPY --mask MASK --out-dir OUT -j2",
        "run": "run BOLD --masks MASK --output-dir OUT --parallel --n-jobs=2",
        "info": "info BOLD",
        "gc": "gc",
        "submit": "submit --dry-run -- extract BOLD --mask MASK --out-dir OUT",
    }.items()
} | {"Python": ["-c", PYTHON, "BOLD", "MASK"]}


@pytest.mark.some(1)
@pytest.mark.parametrize("command", PROGRAMS.values(), ids=PROGRAMS.keys())
def test_module_systems_have_variables_of_their_own(command, tmp_path):
    places = {name: tmp_path / f"{name}.nii.gz" for name in ("BOLD", "COPY", "MASK")} | {
        "OUT": tmp_path / "out"
    }
    save(places["BOLD"], bold())
    save(places["COPY"], bold())
    save(places["MASK"], random_masks(1)[0].astype("u1"))
    environ = {**os.environ, "SHAREDMASK_ROOT": "/sw/sharedmask", **dict.fromkeys(STRAY, "1")}
    arguments = [str(places.get(word, word)) for word in command]
    done = subprocess.run(
        [sys.executable, *arguments], env=environ, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    for said in (*SAID, NO_SETTING.format("SHAREDMASK_ROOT", "")):
        assert done.stderr.count(said) == 1, done.stderr


@pytest.mark.parametrize("content", [b"use_disk = ", b"\xff\xfe"])
def test_files_that_are_none_are_refused(content, tmp_path):
    path = tmp_path / "bad.toml"
    path.write_bytes(content)
    with pytest.raises(ParameterError, match=f"{path} cannot be read"), using(config=path):
        pass


def test_a_named_file_must_be_there(tmp_path, monkeypatch):
    monkeypatch.setenv("SHAREDMASK_CONFIG", str(tmp_path / "none.toml"))
    with pytest.raises(ParameterError, match=r"none\.toml cannot be read"):
        current()


@pytest.mark.parametrize("text", ["keep_disk", "use_disc=1", "=1", ""])
def test_texts_that_set_nothing(text):
    with pytest.raises(ParameterError, match="sets nothing"):
        settings.from_texts([text])


def test_texts_that_set_something():
    assert settings.from_texts(["keep_disk=no", "memory_buffer=0.5", "memory_limit=8G"]) == {
        "keep_disk": False,
        "memory_buffer": 0.5,
        "memory_limit": "8G",
    }


# ---- profiles


@pytest.mark.parametrize(
    ("profile", "numbers"),
    [("small", (0.5, 0.3, 4)), ("medium", (1, 0.2, 8)), ("large", (2, 0.15, 16))],
)
def test_the_numbers_of_the_profiles(profile, numbers):
    with using(profile=profile) as now:
        gib = now.disk_threshold / GIB, now.memory_buffer, now.max_memory_per_process / GIB
    assert gib == numbers


@pytest.mark.parametrize(
    ("gib", "profile"), [(4, "small"), (15.9, "small"), (16, "medium"), (64, "medium"), (65, "large")]
)
def test_auto_goes_by_the_memory_there_is(gib, profile, monkeypatch):
    monkeypatch.setattr(limits, "capacity", lambda: int(gib * GIB))
    with using(profile="auto") as now:
        assert {name: getattr(now, name) for name in PROFILES[profile]} == PROFILES[profile]


def test_auto_goes_by_the_limit_given(monkeypatch):
    monkeypatch.setattr(limits, "capacity", lambda: 100 * GIB)
    with using(profile="auto", memory_limit="8G") as now:
        assert now.memory_buffer == 0.3


def test_explicit_values_win_over_profiles(monkeypatch):
    monkeypatch.setenv("SHAREDMASK_MEMORY_BUFFER", "0.05")
    with using(profile="large", disk_threshold="9G") as now:
        assert (now.memory_buffer, now.disk_threshold) == (0.05, 9 * GIB)


@pytest.mark.parametrize(
    ("capacity", "tasks", "per_process", "threshold"),
    [(32000 * MIB, 16, 1600 * MIB, 400 * MIB), (64 * GIB, 1, 64 * GIB * 8 // 10, GIB)],
)
def test_a_jobs_numbers(capacity, tasks, per_process, threshold, monkeypatch):
    monkeypatch.setattr(limits, "capacity", lambda: capacity)
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", str(tasks))
    with using(profile="slurm") as now:
        assert (now.max_memory_per_process, now.disk_threshold) == (per_process, threshold)
