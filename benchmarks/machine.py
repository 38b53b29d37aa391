"""Facts of this machine, and whether it has room for a measurement."""

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

# nibabel reads through indexed_gzip where that is installed: with less memory, at another speed.
_PACKAGES = (
    *("sharedmask", "numpy", "nibabel", "indexed_gzip", "nilearn", "isal", "joblib"),
    *("scikit-learn", "psutil", "memory-profiler", "rapidgzip"),
)
_SPARED = 0.2  # of what is available


def facts() -> dict[str, Any]:
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "ram_bytes": psutil.virtual_memory().total,
        "load_average": os.getloadavg()[0],
        "kernel": platform.release(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def described(found: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in found["packages"].items())
    return (
        f"{found['cpu']}, {found['cores']} cores, {found['ram_bytes'] / 1e9:.0f} GB RAM, "
        f"kernel {found['kernel']}, load {found['load_average']:.1f}\nPython {found['python']}, {versions}"
    )


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def room() -> float:
    """Bytes that a measurement may take now."""
    return psutil.virtual_memory().available * (1 - _SPARED)


def lacking(projected: float) -> str | None:
    """Why a measurement that needs ``projected`` bytes cannot be made here; None if it can."""
    if projected <= room():
        return None
    return f"needs {projected / 1e6:,.0f} MB, {room() / 1e6:,.0f} MB may be used"
