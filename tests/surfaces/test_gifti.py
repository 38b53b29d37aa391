"""GIFTI files of one hemisphere, however their data are written."""

import numpy as np
import pytest
import surface_files as files
from images import same_bits

from sharedmask import SharedImage, extract
from sharedmask.sources.opening import open_source

LEFT = np.array([0, 1, 1, 1, 2, 2, 0, 0, 1, 2])


def means(values, labels):
    kept = np.unique(labels[labels > 0])
    return np.stack([values[labels == k].astype(float).mean(axis=0) for k in kept], axis=1)


@pytest.mark.parametrize(
    "encoding", ["GIFTI_ENCODING_ASCII", "GIFTI_ENCODING_B64BIN", "GIFTI_ENCODING_B64GZ"]
)
def test_a_hemisphere_in_every_call(tmp_path, encoding):
    path, values = files.func(tmp_path / "a.func.gii", structure="CortexLeft", encoding=encoding)
    values = values if encoding != "GIFTI_ENCODING_ASCII" else open_source(path).read()
    atlas = files.labels(tmp_path / "a.label.gii", LEFT, structure="CortexLeft")
    np.testing.assert_allclose(extract(path, atlas, strategy="mean"), means(values, LEFT), rtol=1e-6)
    with SharedImage(path) as image:
        assert image.space.parts == "CORTEX_LEFT"
        same_bits(image.mask("CortexLeft"), values.T)
        assert sorted(image.mask_parallel(atlas)) == ["A1", "V1"]
        same_bits(image.reduce(LEFT), extract(path, atlas, strategy="mean"))
