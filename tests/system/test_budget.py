"""How much memory may be used, and what is refused."""

from pathlib import Path

import psutil
import pytest

from sharedmask import MemoryBudget
from sharedmask.errors import MemoryLimitError, SharedMaskError
from sharedmask.system import limits

MIB = 2**20


# ---- refusing


@pytest.mark.parametrize("needed", [0, 9, 10])
def test_what_fits_is_allowed(needed):
    MemoryBudget(10, "free RAM").require("loading", needed)


def test_what_does_not_fit_is_refused():
    with pytest.raises(MemoryLimitError) as caught:
        MemoryBudget(3 * MIB, "memory_limit='3M'").require("loading run.nii.gz", 1200 * MIB)
    assert str(caught.value) == (
        "loading run.nii.gz needs 1,200 MiB and 3 MiB may be used (memory_limit='3M')"
    )


def test_a_limit_already_passed_is_no_negative_amount():
    with pytest.raises(MemoryLimitError, match=r"and 0 MiB may be used"):
        MemoryBudget(-5 * MIB, "free RAM").require("loading", 1)


@pytest.mark.parametrize("kind", [MemoryError, SharedMaskError])
def test_refusals_are_also(kind):
    with pytest.raises(kind):
        MemoryBudget(0, "free RAM").require("loading", 1)


# ---- the limit that holds here


class Machine:
    """RAM and control groups of a machine that does not exist."""

    def __init__(self, folder, monkeypatch):
        self.root, self.own = folder / "cgroup", folder / "own"
        self.root.mkdir()
        self.in_groups("")
        read = {"/proc/self/cgroup": self.own}
        monkeypatch.setattr(limits, "_CGROUPS", self.root)
        monkeypatch.setattr(limits, "Path", lambda path: read.get(path) or Path(path))
        monkeypatch.setattr(psutil, "virtual_memory", lambda: self)
        monkeypatch.setattr(limits, "ram", lambda: (self.total, self.available))
        self.available = self.total = 1000 * MIB

    def in_groups(self, text):
        self.own.write_text(text)

    def group(self, path, limit, used, names=("memory.max", "memory.current"), **stat):
        folder = self.root / path
        folder.mkdir(parents=True, exist_ok=True)
        for name, value in zip(names, (limit, used), strict=True):
            (folder / name).write_text(f"{value}\n")
        if stat:
            (folder / "memory.stat").write_text("".join(f"{k} {v}\n" for k, v in stat.items()))


V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes")


@pytest.fixture
def machine(tmp_path, monkeypatch):
    return Machine(tmp_path, monkeypatch)


def limit_here(*given, **how):
    here = MemoryBudget.here(*given, **how)
    return here.limit // MIB, here.reason


def test_free_ram_is_a_limit(machine):
    assert limit_here() == (1000, "free RAM")


def test_the_callers_limit(machine):
    assert limit_here("100M") == (100, "memory_limit='100M'")


def test_the_callers_limit_may_be_a_fraction(machine):
    assert limit_here(0.5) == (500, "memory_limit=0.5")


def test_what_is_held_counts_towards_the_callers_limit(machine):
    assert limit_here("100M", held=30 * MIB)[0] == 70


def test_what_is_held_has_left_the_free_ram_already(machine):
    assert limit_here(held=30 * MIB)[0] == 1000


def test_a_limit_above_the_free_ram_changes_nothing(machine):
    assert limit_here("1T") == (1000, "free RAM")


def test_a_control_group_is_a_limit(machine):
    machine.in_groups("0::/job\n")
    machine.group("job", 500 * MIB, 100 * MIB)
    assert limit_here() == (400, f"control group {machine.root / 'job'}")


def test_the_limit_of_an_ancestor_counts(machine):
    machine.in_groups("0::/slurm/job/step/task\n")
    machine.group("slurm/job", 500 * MIB, 100 * MIB)
    machine.group("slurm/job/step", "max", 100 * MIB)
    machine.group("slurm/job/step/task", "max", 50 * MIB)
    assert limit_here() == (400, f"control group {machine.root / 'slurm/job'}")


def test_the_strictest_control_group_counts(machine):
    machine.in_groups("0::/a/b/c\n")
    machine.group("a", 300 * MIB, 250 * MIB)
    machine.group("a/b", 200 * MIB, 10 * MIB)
    machine.group("a/b/c", 400 * MIB, 10 * MIB)
    assert limit_here() == (50, f"control group {machine.root / 'a'}")


def test_the_group_of_a_container_is_the_root_it_sees(machine):
    machine.in_groups("0::/docker/0123/not-visible-here\n")
    machine.group("", 300 * MIB, 100 * MIB)
    assert limit_here() == (200, f"control group {machine.root}")


def test_the_strictest_of_all_limits_counts(machine):
    machine.in_groups("0::/job\n")
    machine.group("job", 500 * MIB, 100 * MIB)
    assert limit_here("300M")[1] == "memory_limit='300M'"
    assert limit_here("450M")[1].startswith("control group")


def test_pages_that_can_be_dropped_are_not_used(machine):
    machine.in_groups("0::/job\n")
    machine.group("job", 500 * MIB, 400 * MIB, anon=7, inactive_file=150 * MIB)
    assert limit_here()[0] == 250


@pytest.mark.parametrize("limit", ["max", "", "nonsense"])
def test_a_group_without_a_limit_is_none(machine, limit):
    machine.in_groups("0::/job\n")
    machine.group("job", limit, 0)
    assert limit_here()[1] == "free RAM"


def test_a_group_that_is_over_its_limit_leaves_nothing(machine):
    machine.in_groups("0::/job\n")
    machine.group("job", 100 * MIB, 120 * MIB)
    assert limit_here()[0] == 0


def test_control_groups_of_the_first_version(machine):
    machine.in_groups("5:cpu,cpuacct:/job\n4:memory:/slurm/job\n1:name=systemd:/x\n")
    machine.group("memory/slurm/job", 2**63 - 4096, 100 * MIB, V1)
    machine.group("memory/slurm", 500 * MIB, 200 * MIB, V1, total_inactive_file=50 * MIB, inactive_file=1)
    assert limit_here() == (350, f"control group {machine.root / 'memory/slurm'}")


def test_both_versions_at_once(machine):
    machine.in_groups("4:memory:/job\n0::/job\n")
    machine.group("memory/job", 300 * MIB, 0, V1)
    machine.group("job", 200 * MIB, 0)
    assert limit_here()[0] == 200


def test_other_groups_do_not_matter(machine):
    machine.in_groups("0::/a/b\n")
    machine.group("a/c", 10 * MIB, 0)
    machine.group("a/b/d", 10 * MIB, 0)
    assert limit_here()[1] == "free RAM"


def test_a_machine_without_control_groups(machine):
    machine.own.unlink()
    assert limit_here() == (1000, "free RAM")


def test_this_machine_has_a_limit():
    here = MemoryBudget.here()
    assert 0 < here.limit <= psutil.virtual_memory().total
