"""A call's own ``memory_limit=`` holds for what it reads first, and the bound on a process for all calls."""

import tracemalloc

import networks
import numpy as np
import pytest
from command import sharedmask
from images import AFFINE, SHAPE, bold, save

from sharedmask import (
    FrameDataset,
    FunctionalNetworkMapper,
    Regions,
    SharedImage,
    SharedMultiMasker,
    extract,
    extract_many,
)
from sharedmask.errors import MemoryLimitError
from sharedmask.system import settings

LIMIT = "24M"


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """A run, a mask that takes 57 MB as stored and would be resampled, confounds of 6 MB."""
    folder = tmp_path_factory.mktemp("inputs")
    run = save(folder / "run.nii.gz", bold())
    mask = save(folder / "large.nii.gz", np.ones((240, 240, 500), "i2"), affine=AFFINE)
    table = folder / "confounds.tsv"
    table.write_text("csf\n" + "0.123456789\n" * 600_000)
    connectome = networks.write(folder / "connectome.h5", networks.series(3))
    return {"run": run, "mask": mask, "table": table, "connectome": connectome}


def _with_image(paths, call):
    with SharedImage(paths["run"], memory_limit=LIMIT) as image:
        call(image)


def _many(p):
    def fail(key, error):
        raise error

    extract_many([p["run"]], [p["mask"]], on_error=fail, **RESAMPLED, **LIMITED)


def _small():
    return np.ones(SHAPE[:3])


RESAMPLED = {"resampling_target": "data"}
LIMITED = {"memory_limit": LIMIT}
CALLS = {
    "extract": lambda p: extract(p["run"], [p["mask"]], **RESAMPLED, **LIMITED),
    "extract an atlas": lambda p: extract(p["run"], p["mask"], strategy="mean", **RESAMPLED, **LIMITED),
    "extract_many": _many,
    "mask_parallel": lambda p: _with_image(p, lambda i: i.mask_parallel([p["mask"]], **RESAMPLED)),
    "reduce": lambda p: _with_image(p, lambda i: i.reduce(p["mask"], **RESAMPLED)),
    "iter_masks": lambda p: _with_image(p, lambda i: list(i.iter_masks(p["mask"], **RESAMPLED))),
    "network": lambda p: (
        FunctionalNetworkMapper(**LIMITED, **RESAMPLED).fit(p["connectome"]).transform([p["mask"]])
    ),
    "masker": lambda p: SharedMultiMasker([p["mask"]], **LIMITED).fit(),
    "confounds": lambda p: extract(p["run"], _small(), confounds=str(p["table"]), **LIMITED),
}


@pytest.mark.parametrize("call", CALLS)
def test_what_is_read_for_a_call_is_held_to_its_limit(call, paths):
    tracemalloc.start()
    try:
        with pytest.raises(MemoryLimitError, match=r"reading .*memory_limit='24M'"):
            CALLS[call](paths)
        assert tracemalloc.get_traced_memory()[1] < 30 * 2**20
    finally:
        tracemalloc.stop()


def test_the_command_line_holds_to_it_too(paths):
    asked = ["extract", paths["run"], "--atlas", paths["mask"], "--resampling-target", "data"]
    done = sharedmask(*asked, "--memory-limit", LIMIT, "-o", paths["run"].with_name("out.tsv"))
    assert done.returncode == 75
    assert "memory_limit='24M'" in done.stderr


@pytest.mark.long
def test_it_ends_with_the_call(paths):
    with pytest.raises(MemoryLimitError):
        extract(paths["run"], [paths["mask"]], **RESAMPLED, **LIMITED)
    assert Regions.from_any(paths["mask"]).sizes == (240 * 240 * 500,)


def _of_an_image(call):
    def run(p):
        with SharedImage(p["run"]) as image:
            call(image)

    return run


def _of_frames(call):
    def run(p):
        with FrameDataset(p["run"]) as frames:
            call(frames)

    return run


def _lines(n_timepoints):
    return np.stack([np.ones(n_timepoints), np.arange(n_timepoints)], axis=1)


WORK = {
    "extract": lambda p: extract(p["run"], [_small()]),
    "means": lambda p: extract(p["run"], _small(), strategy="mean"),
    "cleaned means": lambda p: extract(p["run"], _small(), strategy="mean", detrend=True),
    "mask_parallel": _of_an_image(lambda i: i.mask_parallel([_small()])),
    "cleaned": _of_an_image(lambda i: i.mask_parallel([_small()], detrend=True)),
    "reduce": _of_an_image(lambda i: i.reduce(_small(), "median")),
    "map": _of_an_image(lambda i: i.map(np.mean, [_small()])),
    "seed_maps": _of_an_image(lambda i: i.seed_maps([_small()])),
    "connectivity": _of_an_image(lambda i: i.connectivity([_small(), _small()])),
    "searchlight": _of_an_image(lambda i: i.searchlight(np.mean, 4.0)),
    "fit_glm": _of_an_image(lambda i: i.fit_glm(_lines(i.shape[3]))),
    "network": lambda p: FunctionalNetworkMapper().fit(p["connectome"]).transform([p["mask"]]),
    "frames": _of_frames(lambda frames: frames.map(np.mean)),
    "frames of two jobs": _of_frames(lambda frames: frames.map(np.mean, n_jobs=2)),
}


@pytest.mark.parametrize("work", WORK)
def test_no_work_exceeds_the_bound_on_a_process(work, paths):
    with settings.using(max_memory_per_process=100), pytest.raises(MemoryLimitError, match="per_process"):
        WORK[work](paths)
