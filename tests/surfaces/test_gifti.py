"""GIFTI files of one hemisphere, however their data are written."""

import numpy as np
import pytest
import surface_files as files
from bad_elements import external
from images import same_bits

from sharedmask import SharedImage, errors, extract
from sharedmask.sources.opening import open_source
from sharedmask.surfaces.gifti import read_mesh

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


def test_a_file_with_its_data_belongs_to_it(tmp_path):
    path = external(tmp_path)
    with SharedImage(path) as image:
        same_bits(image.mask(LEFT == 1), np.arange(40, dtype="f4").reshape(4, 10)[:, LEFT == 1])
    opened = open_source(path)
    (tmp_path / "lh.dat").write_bytes(bytes(164))
    with pytest.raises(errors.SourceChangedError, match=r"lh\.func\.gii changed"):
        opened.read()


@pytest.mark.parametrize("links", [["lh.func.gii"], ["lh.func.gii", "lh.dat"]], ids=["one", "both"])
def test_data_beside_a_link_or_beside_what_it_is_a_link_to(tmp_path, links):
    (tmp_path / "store").mkdir()
    external(tmp_path / "store")
    for name in links:
        (tmp_path / name).symlink_to(f"store/{name}")
    same_bits(open_source(tmp_path / "lh.func.gii").read(), np.arange(40, dtype="f4").reshape(4, 10).T)


def test_meshes(tmp_path):
    found = read_mesh(files.mesh(tmp_path / "hemi-R_inflated.surf.gii", np.eye(3), [[0, 1, 2]]))
    assert found.structure == "CIFTI_STRUCTURE_CORTEX_RIGHT"
    assert found.points.tolist() == np.eye(3).tolist() and found.triangles.tolist() == [[0, 1, 2]]
    with pytest.raises(errors.DamagedImageError, match="triangles of vertex 3, and 3 vertices"):
        read_mesh(files.mesh(tmp_path / "b.surf.gii", np.eye(3), [[0, 1, 3]]))
    with pytest.raises(errors.ImageError, match=r"a\.func\.gii is no mesh"):
        read_mesh(str(files.func(tmp_path / "a.func.gii")[0]))
    with pytest.raises(errors.MissingFileError, match=r"none\.surf\.gii does not exist"):
        read_mesh("none.surf.gii")
