"""``sharedmask info``."""

import cifti_files
import numpy as np
import pytest
import surface_files
from command import sharedmask


def test_info_tells_what_an_image_is(study):
    done = sharedmask("info", "bold.nii.gz", cwd=study)
    assert done.returncode == 0
    for fact in ("7 x 6 x 5 x 12", "int16", "2 s", "MiB", "memory that may be used"):
        assert fact in done.stdout


@pytest.mark.parametrize("kind", ["dlabel.nii", "label.gii", "annot"])
def test_info_tells_what_regions_an_atlas_has(tmp_path, kind):
    path, labels = tmp_path / f"lh.x.{kind}", np.array([0, 1, 1, 2, 1, 2, 1, 1, 1, 1])
    if kind == "dlabel.nii":
        places = cifti_files.surface(vertices=range(10))
        cifti_files.save(path, labels[None].astype("f4"), cifti_files.labels(), places)
    elif kind == "label.gii":
        surface_files.labels(path, labels)
    else:
        surface_files.annotation(path, labels, ["unknown", "V1", "A1"])
    done = sharedmask("info", path.name, cwd=tmp_path)
    assert done.returncode == 0
    for fact in (path.name, "CORTEX_LEFT 10 of 1", "2 (V1, A1)", "elements in regions  9"):
        assert fact in done.stdout
