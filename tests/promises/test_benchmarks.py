"""What the benchmarks compute from what they measure, and one small run of the experiment."""

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
MB = 1e6


@pytest.fixture
def bench(monkeypatch):
    """Imports a module of ``benchmarks``, which is not installed."""
    monkeypatch.syspath_prepend(ROOT)
    return lambda name: import_module(f"benchmarks.{name}")


def test_a_projection_counts_images_jobs_and_results(bench):
    class Sizes:
        image_bytes = 1000

        def signal_bytes(self, n_masks):
            return 10 * n_masks

    cost = bench("memory").Cost(images=1.0, images_per_job=2.0, bytes_per_job=5.0)
    assert cost.projected(Sizes(), n_jobs=3, n_masks=4) == 1000 * 7 + 2 * 40 + 15


def test_what_needs_more_than_there_is_is_lacking(bench):
    machine = bench("machine")
    assert machine.lacking(1.0) is None
    assert "needs" in machine.lacking(machine.room() * 100)


def test_mprof_files_are_read(bench, tmp_path):
    dat = tmp_path / "one.dat"
    dat.write_text("CMDLINE python\nMEM 2.0 100.5\nCHLD 7 1.0 100.5\nMEM 3.5 100.6\n")
    assert bench("watching").read_dat(dat) == [(100.5, 2.0 * 2**20), (100.6, 3.5 * 2**20)]


def test_a_table_tells_what_was_not_run_and_what_was_wrong(bench):
    results = bench("results")
    rows = [
        results.Result("loop", 20, False, 44e9, state="skipped", note="needs 44,000 MB"),
        results.Result("other", 1, False, 1e9, state="wrong", note="other signals"),
        results.Result("ours", 1, True, 1e9, seconds=1.5, cpu_seconds=2, n_runs=3, peak=int(250 * MB)),
    ]
    *_, skipped, wrong, fine = results.markdown(rows).splitlines()
    assert skipped.endswith("not run: needs 44,000 MB |")
    assert wrong.endswith("WRONG: other signals |")
    assert fine == "| ours | 1 | 1.50 | 2.00 | 250 |  |  |  |"


def test_a_block_of_a_page_is_replaced_and_nothing_else(bench, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- one -->\nold\n<!-- /one -->\nafter\n")
    bench("pages").replace_block(page, "one", "new\n")
    assert page.read_text() == "before\n<!-- one -->\nnew\n<!-- /one -->\nafter\n"


def test_a_page_without_the_block_is_refused(bench, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- one -->\n")
    with pytest.raises(ValueError, match="no block"):
        bench("pages").replace_block(page, "one", "new")
    assert page.read_text() == "<!-- one -->\n"


@pytest.mark.parametrize("page, names", [
    ("docs/benchmarks.md", ("experiment", "limits", "scaling")),
    ("README.md", ("experiment", "demo")),
])  # fmt: skip
def test_pages_have_the_blocks_that_are_written(bench, tmp_path, page, names):
    copied = tmp_path / "page.md"
    copied.write_text((ROOT / page).read_text())
    for name in names:
        bench("pages").replace_block(copied, name, f"new {name}")
    assert all(f"new {name}" in copied.read_text() for name in names)


def test_only_what_is_a_fifth_slower_is_slower(bench):
    baseline = {"a": 1.0, "b": 1.0, "c": 1.0}
    assert bench("kernels").slower({"a": 1.19, "b": 1.21, "new": 9.0}, baseline) == ["b"]


def test_the_stored_kernels_are_those_that_are_measured(bench):
    kernels = bench("kernels")
    stored = json.loads((ROOT / "benchmarks/kernels.json").read_text())["ratios"]
    assert set(stored) == {kernel.name for kernel in kernels._kernels()}


def test_a_curve_tells_what_one_more_costs(bench):
    curve = bench("scaling").Curve("masks", "resident", ((2, 1.0), (10, 2.0), (20, 7.0)))
    assert (curve.first, curve.last) == (0.5, 0.5)


def _costs(model):
    gb = 1e9
    return model.Costs(
        10**9, 10**8, 20, decode=gb, decode_in_parallel=gb / 2, transpose=2 * gb, gather=gb, masker=4.0
    )


def test_the_model_on_one_core_is_what_was_measured(bench):
    model = bench("model")
    found = model.times(_costs(model), model.Node(1, 1e15))
    assert found["extract"] == 1.0
    assert found["masks, resident"] == pytest.approx(0.1)
    assert found["NiftiMasker loop"] == 80.0


def test_the_model_ends_at_the_bandwidth(bench):
    model = bench("model")
    found = model.times(_costs(model), model.Node(10_000, 100e9))
    assert found["extract"] == pytest.approx(1e9 / (100e9 / model._DECODING_TRAFFIC))


def test_the_model_is_called_a_model(bench):
    model = bench("model")
    assert model.described(_costs(model), 64, model.BANDWIDTH).startswith("MODEL, not a measurement")


def test_other_signals_are_wrong_and_have_no_time(bench):
    results, watching = bench("results"), bench("watching")
    experiment = bench("experiment")._Experiment(None, 1, None)
    experiment._expected = ["right"]
    timed = results.Result("ours", 1, True, 1e9, seconds=1.0, cpu_seconds=1.0)
    assert experiment._checked(timed, watching.Timed(1.0, 1.0, ["right"])) == timed
    wrong = experiment._checked(timed, watching.Timed(1.0, 1.0, ["other"]))
    assert (wrong.state, wrong.seconds, wrong.cpu_seconds) == ("wrong", None, None)


@pytest.mark.slow
def test_the_experiment_runs_and_writes(tmp_path):
    pytest.importorskip("memory_profiler")
    pytest.importorskip("matplotlib")
    output = tmp_path / "out"
    options = ["--quick", "--repeats", "1", "--only", "SharedImage, s", "--data", str(tmp_path / "data")]
    command = [sys.executable, "-m", "benchmarks", "experiment", *options, "--output", str(output)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    found = json.loads((output / "results.json").read_text())["results"]
    assert [one["state"] for one in found] == ["ok"]
    assert found[0]["peak"] > 90 * MB
    names = {path.name for path in output.iterdir()}
    assert names == {
        "table.md",
        "table.csv",
        "results.json",
        "timeline.png",
        "bars.png",
        "sharedimage-shm.dat",
    }


def test_the_pipeline_takes_volumes_of_rapidgzip(bench, tmp_path):
    pytest.importorskip("rapidgzip")
    values = np.random.default_rng(0).normal(size=(5, 6, 4, 12)).astype("f4")
    run, voxels = tmp_path / "run.nii.gz", np.array([7, 3, 100])
    nib.save(nib.Nifti1Image(values, np.eye(4)), run)
    rows = values.reshape(-1, 12, order="F")[voxels]
    np.testing.assert_array_equal(bench("rapid").extract(run, values.shape, voxels), rows)
