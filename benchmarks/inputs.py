"""What the experiment masks: a run, the same run uncompressed, masks, and their sizes.

Covers: the generated run of so many subjects, a run of the user's. Does not cover: generating
(``data``, ``generate``). Facts come from a process of its own (``python -m benchmarks.inputs RUN
MASK...``), because what this process maps would make those that it watches look smaller.
"""

import glob
import gzip
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import cycle, islice
from pathlib import Path

from benchmarks import data

SUBJECT = (50, 59, 50, 168)
"""Of the development fMRI dataset: voxels and volumes of one subject."""
_RESULT_ITEMSIZE = 4
_PIECE_BYTES = 4 * 2**20


@dataclass(frozen=True)
class Inputs:
    """A run, masks on its grid, and their sizes."""

    run: Path
    plain: Path
    """The run uncompressed; the run itself if it is."""
    masks: tuple[Path, ...]
    shape: tuple[int, int, int, int]
    itemsize: int
    """Bytes per value once nibabel has decoded it."""
    union_voxels: int
    mask_voxels: tuple[int, ...]

    @property
    def image_bytes(self) -> int:
        x, y, z, t = self.shape
        return x * y * z * t * self.itemsize

    def signal_bytes(self, n_masks: int) -> int:
        """Of so many masks, in turn and from the start again."""
        return sum(islice(cycle(self.mask_voxels), n_masks)) * self.shape[3] * _RESULT_ITEMSIZE

    def __str__(self) -> str:
        shape = "x".join(map(str, self.shape))
        return (
            f"{shape} volumes, {self.image_bytes / 1e6:,.0f} MB decoded, "
            f"{self.run.stat().st_size / 1e6:,.0f} MB as {''.join(self.run.suffixes[-2:])}; "
            f"{len(self.masks)} masks of {min(self.mask_voxels)} to {max(self.mask_voxels)} voxels "
            f"({self.signal_bytes(len(self.masks)) / 1e6:,.0f} MB of signals), "
            f"together {self.union_voxels} voxels"
        )


def generated(folder: Path, n_images: int, n_regions: int) -> Inputs:
    """As many volumes as ``n_images`` subjects of the development fMRI dataset have, concatenated."""
    x, y, z, t = SUBJECT
    return of_spec(folder, data.Spec(shape=(x, y, z, t * n_images), n_masks=n_regions))


def of_spec(folder: Path, spec: data.Spec) -> Inputs:
    dataset = data.prepare(folder, spec)
    return _described(dataset.run, dataset.run.with_name("run.nii"), dataset.masks)


def given(folder: Path, image: Path, masks: str, n_regions: int) -> Inputs:
    """The user's run, and the first ``n_regions`` of the masks that the pattern finds."""
    found = sorted(glob.glob(masks))[:n_regions]
    if not found:
        raise FileNotFoundError(f"no file is called {masks}")
    image = image.resolve()
    facts = image.stat()
    key = blake2b(f"{image} {facts.st_size} {facts.st_mtime_ns}".encode(), digest_size=8).hexdigest()
    plain = folder.resolve() / f"plain-{key}.nii" if image.suffix == ".gz" else image
    return _described(image, plain, [Path(mask).resolve() for mask in found])


def _described(run: Path, plain: Path, masks: Sequence[Path]) -> Inputs:
    _decompress(run, plain)
    command = [sys.executable, "-m", "benchmarks.inputs", str(run), *map(str, masks)]
    facts = json.loads(subprocess.run(command, cwd=data.ROOT, check=True, capture_output=True).stdout)
    return Inputs(
        run=run,
        plain=plain,
        masks=tuple(masks),
        shape=tuple(facts["shape"]),
        itemsize=facts["itemsize"],
        union_voxels=facts["union_voxels"],
        mask_voxels=tuple(facts["mask_voxels"]),
    )


def _decompress(run: Path, plain: Path) -> None:
    if plain.exists():
        return
    plain.parent.mkdir(parents=True, exist_ok=True)
    partial = plain.with_name(f".{plain.name}.{os.getpid()}")
    try:
        with gzip.open(run) as packed, open(partial, "wb") as file:
            shutil.copyfileobj(packed, file, _PIECE_BYTES)
        os.replace(partial, plain)
    finally:
        partial.unlink(missing_ok=True)


def main(run: str, *masks: str) -> None:
    """Print the facts as JSON."""
    import nibabel as nib
    import numpy as np

    from benchmarks.variants import load_masks

    image = nib.load(run)
    inside = load_masks([Path(mask) for mask in masks])
    facts = {
        "shape": image.shape,
        "itemsize": np.asanyarray(image.dataobj[..., :1]).dtype.itemsize,
        "union_voxels": int(np.any(inside, axis=0).sum()),
        "mask_voxels": [int(mask.sum()) for mask in inside],
    }
    print(json.dumps(facts))


if __name__ == "__main__":
    main(*sys.argv[1:])
