"""Random operations for a while: memory, descriptors, maps, threads and /dev/shm do not grow.

``python tests/faults/test_soak.py SECONDS FOLDER`` prints the slopes over the second half of the time, per
1000 operations.
"""

import gc
import json
import os
import random
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

LIMITS = {"kilobytes": 400.0, "descriptors": 2.0, "maps": 20.0, "threads": 2.0, "segments": 2.0}


def held():
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {
        "kilobytes": int(status["RssAnon"].split()[0]),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "maps": Path("/proc/self/maps").read_text().count("\n"),
        "threads": int(status["Threads"]),
        "segments": len(os.listdir(os.environ["SHAREDMASK_DIR"])),
    }


def operations(folder):
    import networks
    from images import bold, niimg, random_masks, save

    from sharedmask import FrameDataset, FunctionalNetworkMapper, SharedImage, extract, extract_many, share
    from sharedmask.image.coordinator import Coordinator
    from sharedmask.maskers import SharedMultiMasker

    paths = [save(folder / f"run-{i}.nii{'.gz' * (i % 2)}", bold(seed=i)) for i in range(4)]
    masks = random_masks(5)
    connectome = networks.write(folder / "connectome.h5", networks.series(3))
    lesion = networks.lesion(inside=networks.mask())[0]

    def image(store):
        path = random.choice(paths[::2] if store == "file" else paths)
        with SharedImage(path, store=store) as found:
            found.mask_parallel(masks, n_jobs=random.choice((1, 2)))
            with SharedImage.attach(found.handle) as other:
                return other.array.sum()

    def refused():
        try:
            extract(paths[0], np.ones((3, 3, 3)))
        except ValueError:
            return

    def frames():
        with FrameDataset(random.choice(paths), store=random.choice(("auto", "memfd", "disk"))) as found:
            found[random.randrange(12)][0].sum()
            if random.random() < 0.2:
                found.to_filename(folder / "frames.h5")

    def cohort():
        journal = folder / "done.jsonl"  # which would grow, and what it takes with it
        extract_many(paths, masks, n_jobs=2, on_result=lambda *_: None, resume=journal)
        journal.unlink()

    def network():
        FunctionalNetworkMapper(n_jobs=random.choice((1, 2))).fit(connectome).transform([lesion])

    def shared():
        with share(np.ones((50, 50)), store=random.choice(("shm", "memfd"))) as one:
            one.array.sum()

    def coordinated():
        with Coordinator(), SharedImage.connect(random.choice(paths)) as image:
            image.mask(masks[0])

    def masker():
        SharedMultiMasker([niimg(mask.astype("u1")) for mask in masks]).fit().transform(random.choice(paths))

    return [
        *(lambda store=store: image(store) for store in ("shm", "memfd", "disk", "file")),
        lambda: extract(random.choice(paths), masks, standardize=True),
        lambda: extract(random.choice(paths), masks, memory=folder / "cache"),
        frames,
        cohort,
        network,
        shared,
        coordinated,
        masker,
        refused,
    ]


def main(seconds, folder):
    warnings.simplefilter("ignore")
    random.seed(0)
    todo, samples, count = operations(folder), [], 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        random.choice(todo)()
        count += 1
        if count % 20 == 0:
            gc.collect()
            samples.append((count, held()))
    late = samples[len(samples) // 2 :]
    counts = [n for n, _ in late]
    slopes = {what: 1000 * np.polyfit(counts, [h[what] for _, h in late], 1)[0] for what in LIMITS}
    print(json.dumps({"operations": count, "slopes": slopes, "last": late[-1][1]}))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_nothing_grows_with_random_operations(tmp_path):
    seconds = os.environ.get("SHAREDMASK_SOAK_SECONDS", "1200")
    done = subprocess.run(
        [sys.executable, __file__, seconds, str(tmp_path)], capture_output=True, text=True, check=True
    )
    slopes = json.loads(done.stdout)["slopes"]
    assert all(slopes[what] < most for what, most in LIMITS.items()), slopes


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))
    main(float(sys.argv[1]), Path(sys.argv[2]))
