"""Connectome Workbench: it reads what is written here, has the same means, and what it writes is read."""

import shutil
import subprocess

import cifti_files as files
import nibabel as nib
import numpy as np
import pytest

from sharedmask import Regions, SharedImage, errors, extract

pytestmark = pytest.mark.skipif(
    shutil.which("wb_command") is None, reason="Connectome Workbench is not installed"
)

ATLAS = np.arange(15) % 4
ENCODINGS = ["ASCII", "BASE64_BINARY", "GZIP_BASE64_BINARY", "EXTERNAL_FILE_BINARY"]


def wb(*arguments):
    done = subprocess.run(["wb_command", *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def run(tmp_path):
    return files.dtseries(tmp_path / "run.dtseries.nii", 20)


@pytest.fixture
def atlas(tmp_path):
    return files.save(tmp_path / "x.dlabel.nii", ATLAS[None].astype("f4"), files.labels(), files.models())


def means(run, inside=slice(None)):
    """Of the atlas, as far as it is ``inside``."""
    labels = np.zeros(15, int)
    labels[inside] = ATLAS[inside]
    return np.stack([files.truth(run)[:, labels == k].astype(float).mean(axis=1) for k in (1, 2, 3)], axis=1)


def outputs(run, atlas):
    """Each kind of file that is written, its ending and what Workbench says of it."""
    with SharedImage(run) as image:
        regions = Regions.from_labels(atlas, image.space)
        signals = image.reduce(regions)
        model = image.fit_glm(np.c_[np.ones(20), np.arange(20)], contrasts={"slope": [0, 1]})
        yield "ptseries", regions.to_cifti(signals, t_r=image.t_r), ["Parcel Series", "Step:  0.800"]
        yield (
            "pconn",
            regions.to_cifti(image.connectivity(regions), "matrix"),
            ["CIFTI - Parcel", "Parcel 3: M1"],
        )
        yield "pscalar", regions.to_cifti(signals[:2], "scalars"), ["Parcel Scalar", "Number of Maps: 2"]
        yield "dscalar", image.seed_maps(signals[:, 0]), ["Dense Scalar", "CortexLeft: 7 out of 12 vertices"]
        yield "dscalar", image.seed_maps(atlas), ["Number of Maps: 3", " 0 V1 2 ", " 0 A1 3 ", " 0 M1 "]
        yield (
            "dscalar",
            model.to_cifti(model.contrasts["slope"].effect),
            ["Dense Scalar", "BrainStem: 1 voxels"],
        )


def test_it_reads_what_is_written(tmp_path, run, atlas):
    for ending, image, facts in outputs(run, atlas):
        path = tmp_path / f"written.{ending}.nii"
        image.to_filename(path)
        said = " ".join(wb("-file-information", path).split())
        for fact in facts:
            assert " ".join(fact.split()) in said


def test_its_means_of_parcels_have_the_same_bits(tmp_path, run, atlas):
    wb("-cifti-parcellate", run, atlas, "COLUMN", tmp_path / "its.ptseries.nii")
    its = nib.load(tmp_path / "its.ptseries.nii")
    np.testing.assert_array_equal(extract(run, atlas, strategy="mean"), its.get_fdata(dtype=np.float32))
    assert its.header.get_axis(1).name.tolist() == ["V1", "A1", "M1"]


def test_what_it_writes_is_read(tmp_path, run, atlas):
    expected = means(run)
    wb("-cifti-transpose", run, tmp_path / "t.dtseries.nii")
    wb("-cifti-parcellate", run, atlas, "COLUMN", tmp_path / "p.ptseries.nii")
    np.testing.assert_allclose(
        extract(tmp_path / "t.dtseries.nii", atlas, strategy="mean"), expected, rtol=1e-6
    )
    with SharedImage(tmp_path / "p.ptseries.nii") as image:
        np.testing.assert_allclose(image.array.T, expected, rtol=1e-6)
    np.testing.assert_allclose(
        extract(run, tmp_path / "p.ptseries.nii", strategy="mean"), expected, rtol=1e-6
    )
    wb("-file-convert", "-cifti-version-convert", run, "1", tmp_path / "one.dtseries.nii")
    with pytest.raises(errors.ImageError, match="is of version 1 of CIFTI, and 2 is read"):
        extract(tmp_path / "one.dtseries.nii", atlas)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_its_surfaces_are_read(tmp_path, run, atlas, encoding):
    pair, labels = [], []
    for side, structure in (("R", "CORTEX_RIGHT"), ("L", "CORTEX_LEFT")):
        pair.append(str(tmp_path / f"run_hemi-{side}.func.gii"))
        labels.append(str(tmp_path / f"x_hemi-{side}.label.gii"))
        wb("-cifti-separate", run, "COLUMN", "-metric", structure, pair[-1])
        wb("-cifti-separate", atlas, "COLUMN", "-label", structure, labels[-1])
        wb("-gifti-convert", encoding, pair[-1], pair[-1])
    wb("-cifti-create-label", tmp_path / "y.dlabel.nii", "-left-label", labels[1], "-right-label", labels[0])
    expected = means(run, slice(10))
    for image, regions in ((pair, labels), (run, tmp_path / "y.dlabel.nii")):
        np.testing.assert_allclose(extract(image, regions, strategy="mean"), expected, rtol=1e-5)
