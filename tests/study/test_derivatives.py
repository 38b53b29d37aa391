"""Files of derivatives: sidecars, series, parquet, valid by the standard."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from datasets import PLAIN, SPACE, signals
from images import truth

from sharedmask.errors import (
    DatasetError,
)
from sharedmask.study.analysis import Outputs
from sharedmask.study.atlases import Atlas
from sharedmask.study.bids import find_runs
from sharedmask.study.dataset import analyse
from sharedmask.study.derivatives import Derivatives
from sharedmask.study.group import summarise_group


def test_sidecars_say_where_signals_come_from(dataset, toy, out):
    analyse(dataset, out, [toy], PLAIN)
    sidecar = json.loads(signals(out).with_suffix(".json").read_text())
    assert sidecar["RepetitionTime"] == 2.0 and sidecar["SamplingFrequency"] == 0.5
    assert sidecar["Statistic"] == "mean" and sidecar["AtlasFile"] == toy.image.name
    assert (
        sidecar["Sources"][0]
        == f"bids:preprocessed:sub-01/func/sub-01_task-rest_{SPACE}_desc-preproc_bold.nii.gz"
    )
    description = json.loads((out / "dataset_description.json").read_text())
    assert description["DatasetType"] == "derivative"
    assert description["DatasetLinks"]["preprocessed"] == dataset.as_uri()


@pytest.mark.parametrize("within", [True, False])
def test_sidecars_name_no_folder_of_this_machine(dataset, toy, out, within):
    """Files of the data set by its name for them, others by their own."""
    image, lut = toy.image, toy.image.with_name("names.tsv")
    lut.write_text("index\tname\n1\ta\n")
    if within:
        image, lut = (one.rename(dataset / one.name) for one in (image, lut))
    analyse(dataset, out, [Atlas.at(image, lut)], PLAIN)
    for path in (out / "sub-01").rglob("*.json"):
        assert str(dataset.parent) not in path.read_text()
    sidecar = json.loads(next(out.rglob("*_timeseries.json")).read_text())
    place = "bids:preprocessed:" if within else ""
    told = [sidecar[key] for key in ("AtlasFile", "AtlasLabels")]
    assert told == [f"{place}{image.name}", f"{place}names.tsv"]


def test_voxels_go_to_hdf5(dataset, toy, out):
    import h5py

    analyse(dataset, out, [toy], Outputs(voxels=True, min_coverage=0.0))
    run = find_runs(dataset)[0]
    inside = (truth(run.mask) != 0) & (truth(toy.image) == 2)
    path = out / "sub-01" / "func" / f"sub-01_task-rest_{SPACE}_atlas-Toy_timeseries.h5"
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file["region 2"][:], truth(run.bold)[inside].T.astype("f4"))


def test_parquet_on_request(dataset, toy, out):
    pytest.importorskip("pyarrow")
    analyse(dataset, out, [toy], Outputs(form="parquet", reports=False))
    analyse(dataset, out, [toy], Outputs(reports=False))
    table = pd.read_parquet(signals(out).with_suffix(".parquet"))
    pd.testing.assert_frame_equal(table, pd.read_csv(signals(out), sep="\t"), check_exact=False)


def test_another_programs_folder_is_refused(dataset, toy):
    with pytest.raises(DatasetError, match=r"is another data set"):
        analyse(dataset, dataset, [toy])


@pytest.mark.long
def test_the_derivatives_are_valid_bids(dataset, toy, out):
    """All but names that no standard has yet, which the data set itself says to ignore."""
    validator = Path(sys.executable).with_name("bids-validator-deno")
    if not validator.exists():
        pytest.skip("bids-validator-deno is not installed")
    everything = replace(PLAIN, connectivity=["correlation"], statistic=["mean", "median"])
    analyse(dataset, out, [toy], everything, denoise_strategy="simple", detrend=True)
    summarise_group(out, tangent=True)
    command = [str(validator), "--format", "json", str(out)]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=120)
    issues = json.loads(answer.stdout)["issues"]["issues"]
    assert [issue for issue in issues if issue.get("severity") == "error"] == []


@pytest.mark.parametrize("place", ["sub-01", "sub-01/func/more"])
def test_outputs_do_not_go_to_the_folder_of_a_subject(dataset, place):
    """Where a description would end the search for sidecars."""
    with pytest.raises(DatasetError, match="lies in the folder of a subject"):
        Derivatives.create(dataset / place, dataset)
    assert not (dataset / "sub-01" / "dataset_description.json").exists()
    Derivatives.create(dataset / "derivatives", dataset)
