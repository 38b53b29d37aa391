"""Maskers read what is no image of nilearn's: files of grayordinates; what makes no sense is refused."""

import cifti_files as files
import nibabel as nib
import numpy as np
import pytest

from sharedmask import SharedCiftiLabelsMasker, SharedCiftiMasker, SharedSurfaceMapsMasker, errors


@pytest.fixture
def path(tmp_path):
    return files.dtseries(tmp_path / "run.dtseries.nii", 50)


def test_elements_of_grayordinates(path):
    masker = SharedCiftiMasker("CortexRight", standardize="zscore_sample").fit(path)
    signals = masker.transform(path)
    np.testing.assert_allclose(signals.std(axis=0, ddof=1), 1, rtol=1e-6)
    dense = masker.inverse_transform(signals).get_fdata()
    np.testing.assert_array_equal(dense[:, 7:10], signals)
    assert not dense[:, :7].any()


def test_what_cannot_be_fitted_is_refused(path):
    with pytest.raises(ValueError, match="'imgs' must be provided"):
        SharedCiftiMasker().fit()
    with pytest.raises(errors.ParameterError, match="no parameter 'fliter'"):
        SharedCiftiMasker(clean_args={"fliter": 1}).fit(path)
    with pytest.raises(errors.ParameterError, match="2 names for 3 regions"):
        SharedCiftiLabelsMasker(np.arange(15) % 4, labels=["a", "b"]).fit(path)
    with pytest.raises(TypeError, match=r"a file of surfaces or grayordinates, .*, not Nifti1Image"):
        SharedCiftiMasker().fit(nib.Nifti1Image(np.ones((2, 2, 2, 3), "f4"), np.eye(4)))
    with pytest.raises(errors.MaskError, match="Overlap"):
        SharedSurfaceMapsMasker(np.ones((15, 2)), allow_overlap=False).fit(path)
    with pytest.warns(errors.SharedMaskWarning, match="smoothing_fwhm is not applied"):
        SharedCiftiMasker(smoothing_fwhm=4).fit(path)


def test_a_volume_is_an_atlas_of_the_elements_of_an_image(path, tmp_path):
    labels = nib.Nifti1Image(np.arange(24, dtype="i2").reshape(files.BOX) % 3, files.AFFINE)
    nib.save(labels, tmp_path / "atlas.nii")
    masker = SharedCiftiLabelsMasker(tmp_path / "atlas.nii", standardize=None).fit(path)
    assert masker.transform(path).shape == (50, 2)


def test_a_file_that_is_not_there_is_told_of():
    with pytest.raises(errors.MissingFileError, match=r"none\.dtseries\.nii does not exist"):
        SharedCiftiMasker().fit("none.dtseries.nii")
