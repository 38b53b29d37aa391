"""How many CPUs there are."""

from pathlib import Path

import numpy as np
import pytest

from sharedmask.system import limits
from sharedmask.system.process import effective_n_jobs


@pytest.mark.parametrize("variable", [None, "1", "3", "100"])
def test_n_jobs_follows_joblib(monkeypatch, variable):
    import joblib

    if variable is None:
        monkeypatch.delenv("LOKY_MAX_CPU_COUNT", raising=False)
    else:
        monkeypatch.setenv("LOKY_MAX_CPU_COUNT", variable)
    assert [effective_n_jobs(n) for n in (None, 1, 7)] == [1, 1, 7]
    for asked in (-1, -2):
        assert effective_n_jobs(asked) == joblib.effective_n_jobs(asked)


@pytest.mark.parametrize(
    ("groups", "files", "quota"),
    [
        ("0::/job/step\n", {"job/cpu.max": "150000 100000\n", "job/step/cpu.max": "max 100000\n"}, 1.5),
        ("0::/elsewhere\n", {"cpu.max": "50000 100000\n"}, 0.5),
        ("3:cpu,cpuacct:/job\n", {"cpu/job/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_quota_us": "-1"}, None),
        (
            "3:cpu,cpuacct:/job\n2:memory:/\n",
            {"cpu/job/cpu.cfs_quota_us": "300000\n", "cpu/job/cpu.cfs_period_us": "100000\n"},
            3.0,
        ),
        ("0::/\n", {}, None),
    ],
)
def test_the_time_that_control_groups_leave(tmp_path, monkeypatch, groups, files, quota):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "groups").write_text(groups)
    real = Path.read_text
    path = "/proc/self/cgroup"
    monkeypatch.setattr(limits, "_CGROUPS", tmp_path)
    monkeypatch.setattr(
        Path, "read_text", lambda self: real(tmp_path / "groups" if str(self) == path else self)
    )
    assert limits.cpu_quota() == quota
    if quota is not None:
        assert effective_n_jobs(-1) <= max(1, np.ceil(quota))
