"""``sharedmask demo``."""

import nibabel as nib
import pytest
from command import sharedmask


@pytest.mark.long
def test_demo_compares_and_finds_the_same_numbers(study):
    done = sharedmask("demo", "--volumes", "10", "-j", "2", "--full")
    assert done.returncode == 0, done.stderr
    assert "NiftiMasker loop" in done.stdout
    assert "projected" not in done.stdout
    assert "equal to NiftiMasker's, bit for bit" in done.stdout


@pytest.mark.long
def test_demo_takes_a_run(study):
    done = sharedmask("demo", "bold.nii.gz", "-j", "2", cwd=study)
    assert done.returncode == 0, done.stderr
    assert "bit for bit" in done.stdout
    said = [line.split()[-1] for line in done.stdout.splitlines() if "MiB" in line]
    assert said == ["measured", "projected", "measured"]


def test_the_whole_loop_is_projected_from_a_part():
    from sharedmask.cli.demo import Measured

    done = Measured(4, 4, 10.0, 1000, {}, loop=8.0, caller=200)
    whole = done.projected(20, 20)
    assert (whole.n_jobs, whole.n_regions, whole.seconds, whole.peak) == (20, 20, 42.0, 4200)


def test_the_made_run_is_a_real_image(tmp_path):
    from sharedmask.cli.demo import make_run

    make_run(tmp_path / "bold.nii.gz", 5)
    image = nib.load(tmp_path / "bold.nii.gz")
    assert image.shape == (50, 59, 50, 5)
    assert image.header.get_zooms()[3] == 2.0
    data = image.get_fdata()
    head = data[..., 0] > 0
    assert 0.1 < head.mean() < 0.5
    assert abs(data[head].mean() - 1000) < 5
    assert 100 < data[head].std() < 140
