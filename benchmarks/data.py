"""The run and the masks that everything is measured on: where they are, how large, made once.

Covers: the description, the cache. Does not cover: the values (``generate``, which needs numpy:
it runs in a process of its own, because what this process maps is shared with the processes whose
memory is measured, and would make them look smaller).
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Protocol

ROOT = Path(__file__).resolve().parent.parent
_VERSION = 2  # of the generator: older files are not taken for newer ones
_ITEMSIZE = 4


@dataclass(frozen=True)
class Spec:
    """What to generate; the same spec gives the same bytes."""

    shape: tuple[int, int, int, int] = (50, 59, 50, 600)
    n_masks: int = 20
    mask_voxels: int = 1500
    n_regions: int = 400
    seed: int = 0

    @property
    def name(self) -> str:
        shape = "x".join(map(str, self.shape))
        return f"{shape}-{self.n_masks}x{self.mask_voxels}-{self.n_regions}-seed{self.seed}-v{_VERSION}"


class Sizes(Protocol):
    """What a projection has to know of a run and its masks."""

    @property
    def image_bytes(self) -> int: ...
    def signal_bytes(self, n_masks: int) -> int: ...


@dataclass(frozen=True)
class Dataset:
    """A compressed float32 run, masks and an atlas on its grid, confounds, and their sizes."""

    run: Path
    brain: Path
    atlas: Path
    confounds: Path
    masks: tuple[Path, ...]
    shape: tuple[int, int, int, int]
    brain_voxels: int
    union_voxels: int
    mask_voxels: tuple[int, ...]

    @property
    def image_bytes(self) -> int:
        x, y, z, t = self.shape
        return x * y * z * t * _ITEMSIZE

    @property
    def union_bytes(self) -> int:
        return self.union_voxels * self.shape[3] * _ITEMSIZE

    def signal_bytes(self, n_masks: int) -> int:
        """Of so many masks, in turn and from the start again."""
        return sum(islice(cycle(self.mask_voxels), n_masks)) * self.shape[3] * _ITEMSIZE

    def __str__(self) -> str:
        shape = "x".join(map(str, self.shape))
        signals = self.signal_bytes(len(self.masks))
        return (
            f"{shape} float32, {_mb(self.image_bytes)} ({_mb(self.run.stat().st_size)} compressed), "
            f"{self.brain_voxels} brain voxels; {len(self.masks)} masks, {sum(self.mask_voxels)} voxels "
            f"({_mb(signals)}), union {self.union_voxels} ({_mb(self.union_bytes)})"
        )


def _mb(nbytes: int) -> str:
    return f"{nbytes / 1e6:.0f} MB"


def default_folder() -> Path:
    return Path(tempfile.gettempdir()) / f"sharedmask-benchmarks-{os.getuid()}"


def prepare(folder: Path, spec: Spec | None = None) -> Dataset:
    """The dataset of ``spec`` in ``folder``, generated if it is not there yet."""
    spec = spec or Spec()
    home = folder.resolve() / spec.name
    if not (home / "facts.json").exists():
        print(f"generating {home}", file=sys.stderr, flush=True)
        home.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "benchmarks.generate", str(home), json.dumps(asdict(spec))]
        subprocess.run(command, cwd=ROOT, check=True)
    facts = json.loads((home / "facts.json").read_text())
    return Dataset(
        run=home / "run.nii.gz",
        brain=home / "brain.nii.gz",
        atlas=home / "atlas.nii.gz",
        confounds=home / "confounds.tsv",
        masks=tuple(home / f"mask-{i:02d}.nii.gz" for i in range(spec.n_masks)),
        shape=spec.shape,
        brain_voxels=facts["brain_voxels"],
        union_voxels=facts["union_voxels"],
        mask_voxels=tuple(facts["mask_voxels"]),
    )
