"""Limits that a batch job and the kernel set, and what is kept free of them."""

import resource

import psutil
import pytest
from children import python

from sharedmask import MemoryBudget
from sharedmask.errors import MemoryLimitError
from sharedmask.system import limits, settings

MIB = 2**20


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """1000 GiB of RAM and no control groups, so that only what a test sets is a limit."""
    monkeypatch.setattr(limits, "_cgroups", lambda: iter(()))
    monkeypatch.setattr(limits, "ram", lambda: (1000 * 2**30, 900 * 2**30))


@pytest.fixture
def job(monkeypatch):
    """A function that makes this process one of a SLURM job."""

    def begin(**variables):
        monkeypatch.setenv("SLURM_JOB_ID", "7")
        for name, value in variables.items():
            monkeypatch.setenv(f"SLURM_{name}", value)
        return {limit.reason: limit.total // MIB for limit in limits.all_limits()}

    return begin


@pytest.mark.parametrize(
    ("variables", "mib"),
    [
        ({"MEM_PER_NODE": "32000"}, 32000),
        ({"MEM_PER_NODE": "32000", "NTASKS_PER_NODE": "16"}, 32000),
        ({"MEM_PER_NODE": "32000", "STEP_TASKS_PER_NODE": "4(x2)"}, 8000),
        ({"MEM_PER_CPU": "2000", "CPUS_ON_NODE": "8"}, 16000),
        ({"MEM_PER_CPU": "2000", "CPUS_PER_TASK": "4"}, 8000),
        ({"MEM_PER_CPU": "2000", "CPUS_PER_TASK": "4", "NTASKS_PER_NODE": "2"}, 16000),
        ({"MEM_PER_CPU": "2000", "CPUS_PER_TASK": "4", "TASKS_PER_NODE": "3(x2),1"}, 24000),
        ({"MEM_PER_CPU": "2000"}, 2000),
    ],
)
def test_a_jobs_memory(variables, mib, job):
    (source,) = {name for name in variables if name.startswith("MEM")}
    assert job(**variables)[f"the job's SLURM_{source}"] == mib


@pytest.mark.parametrize("variables", [{}, {"MEM_PER_NODE": "0"}, {"MEM_PER_NODE": "?"}])
def test_a_job_that_names_no_memory_has_no_limit_of_its_own(variables, job):
    assert not [reason for reason in job(**variables) if "job" in reason]


def test_outside_of_a_job_its_variables_mean_nothing(monkeypatch):
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "100")
    assert MemoryBudget.from_environment().reason == "free RAM"


def test_what_this_process_holds_is_gone_from_the_jobs_memory(job):
    job(MEM_PER_NODE="32000")
    here = MemoryBudget.from_environment()
    used = 32000 * MIB - here.limit
    assert here.reason == "the job's SLURM_MEM_PER_NODE"
    assert 10 * MIB < used < 4000 * MIB
    assert MemoryBudget.here(held=5000 * MIB).limit < here.limit - 4000 * MIB


def test_a_refusal_names_the_job_and_what_would_fit(job):
    job(MEM_PER_NODE="32000")
    said = r"^loading x needs 40,000 MiB and .* \(the job's SLURM_MEM_PER_NODE\): use less$"
    with pytest.raises(MemoryLimitError, match=said):
        MemoryBudget.from_environment().require("loading x", 40000 * MIB, "use less")


def test_capacity_is_what_there_would_be(job):
    job(MEM_PER_NODE="32000")
    assert limits.capacity() == 32000 * MIB


@pytest.mark.parametrize(
    ("kind", "name"), [(resource.RLIMIT_AS, "RLIMIT_AS"), (resource.RLIMIT_DATA, "RLIMIT_DATA")]
)
def test_limits_of_the_kernel_less_what_is_mapped(kind, name):
    done = python(
        """
        import resource, sys, mmap
        from sharedmask import MemoryBudget
        import numpy, psutil
        kind = int(sys.argv[1])
        resource.setrlimit(kind, (2**31, 2**31))
        before = MemoryBudget.here()
        block = mmap.mmap(-1, 300 * 2**20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        after = MemoryBudget.here()
        assert 0 < after.limit < before.limit < 2**31
        assert 299 * 2**20 < before.limit - after.limit < 310 * 2**20
        numpy.empty(after.limit - 40 * 2**20, 'u1')
        try:
            numpy.empty(after.limit + 40 * 2**20, 'u1')
        except MemoryError:
            print(after.reason)
        """,
        int(kind),
    )
    assert name in done.stdout, done.stderr


# ---- what is kept free


def test_a_fraction_of_the_limit_stays_free(job):
    job(MEM_PER_NODE="10000")
    without = MemoryBudget.here().limit
    with settings.using(memory_buffer=0.2):
        here = MemoryBudget.here()
    assert abs(without - here.limit - 2000 * MIB) < 50 * MIB
    assert here.reason == "the job's SLURM_MEM_PER_NODE, 20% kept free"


def test_the_fraction_may_make_another_limit_the_strictest():
    with settings.using(memory_buffer=0.5):
        assert MemoryBudget.here("450G").limit == 225 * 2**30
        assert MemoryBudget.here("850G").limit == 400 * 2**30
        assert MemoryBudget.here("850G").reason == "free RAM, 50% kept free"


def test_the_setting_is_a_limit_and_the_argument_comes_first():
    with settings.using(memory_limit="3G"):
        assert MemoryBudget.from_environment() == MemoryBudget(3 * 2**30, "memory_limit='3G'")
        assert MemoryBudget.here("5G") == MemoryBudget(5 * 2**30, "memory_limit='5G'")


def test_ram_is_what_psutil_says(monkeypatch):
    monkeypatch.undo()
    total, available = limits.ram()
    said = psutil.virtual_memory()
    assert total == said.total and abs(available - said.available) < said.total / 4


@pytest.mark.parametrize("said", ["", "MemTotal: 5 kB", "MemTotal: 5 kB\nMemAvailable: 9 kB", "MemTotal: x"])
def test_ram_without_a_table_that_makes_sense(said, tmp_path, monkeypatch):
    monkeypatch.undo()
    (tmp_path / "meminfo").write_text(said)
    monkeypatch.setattr(limits, "Path", lambda _: tmp_path / "meminfo")
    assert limits.ram()[0] == psutil.virtual_memory().total


def test_limits_that_were_looked_up_hold_until_the_end_of_the_block(monkeypatch):
    before = limits.all_limits()
    with limits.looked_up():
        monkeypatch.setattr(limits, "ram", lambda: (2 * MIB, MIB))
        assert limits.all_limits() == before
    assert min(limit.left for limit in limits.all_limits()) == MIB
