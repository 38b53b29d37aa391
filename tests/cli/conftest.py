"""A study: a run, masks, an atlas and its names."""

import numpy as np
import pytest
from images import SHAPE, bold, random_masks, save


@pytest.fixture
def study(tmp_path):
    folder = tmp_path / "study"
    folder.mkdir()
    save(folder / "bold.nii.gz", bold())
    for number, mask in enumerate(random_masks(3)):
        save(folder / f"roi{number}.nii.gz", mask.astype("u1"))
    atlas = np.random.default_rng(5).integers(0, 4, SHAPE).astype("i2")
    save(folder / "atlas.nii.gz", atlas)
    (folder / "atlas.tsv").write_text("index\tname\n1\tinsula\n2\tcuneus\n3\tpons\n9\tabsent\n")
    return folder
