"""Excerpts: the same values as of the whole, whatever the source; what is asked beyond it is refused."""

import gzip

import nibabel as nib
import numpy as np
import pytest
from gzip_files import indexed, raw_run, small_pieces
from source_files import gz, read, save, signal, wrong_crc

from sharedmask import SharedImage, extract
from sharedmask.errors import DamagedImageError, ImageError, ParameterError
from sharedmask.sources.by_row import RowSource
from sharedmask.sources.excerpt import excerpt, with_volumes
from sharedmask.sources.opening import open_source

SHAPE = (8, 7, 6, 40)


def series(folder):
    data = signal(SHAPE)
    return open_source([str(save(folder / f"{t:02d}.nii", data[..., t])) for t in range(SHAPE[3])])


def with_index(folder):
    pytest.importorskip("rapidgzip")
    return indexed(packed(folder))[0]


def packed(folder):
    return gz(folder / "run.nii.gz", gzip.compress(save(folder / "run.nii", signal(SHAPE)).read_bytes()))


KINDS = {
    "plain": lambda folder: open_source(save(folder / "run.nii", signal(SHAPE))),
    "gzip": lambda folder: open_source(packed(folder)),
    "indexed": with_index,
    "array": lambda folder: open_source(nib.Nifti1Image(signal(SHAPE), np.eye(4))),
    "series": series,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("volumes", [slice(0, 40), slice(None, 7), slice(13, 14), slice(11, None)])
def test_the_same_values(kind, volumes, tmp_path, monkeypatch):
    small_pieces(monkeypatch)
    source = KINDS[kind](tmp_path)
    whole, part = read(source), excerpt(source, volumes)
    np.testing.assert_array_equal(read(part), whole[volumes])
    assert part.shape == (*SHAPE[:3], len(whole[volumes]))
    assert excerpt(source, None) is source


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("wanted", [[3, 38], [0], [5, 6, 9], [39]])
def test_volumes_that_lie_apart(kind, wanted, tmp_path, monkeypatch):
    small_pieces(monkeypatch)
    source = KINDS[kind](tmp_path)
    found, numbers = with_volumes(source, np.array(wanted))
    np.testing.assert_array_equal(read(found), read(source)[numbers])
    assert set(wanted) <= set(numbers.tolist())
    assert numbers.tolist() == wanted or kind != "indexed" or len(wanted) > 2


@pytest.mark.parametrize("kind", KINDS)
def test_an_excerpt_of_an_excerpt(kind, tmp_path):
    source = KINDS[kind](tmp_path)
    np.testing.assert_array_equal(
        read(excerpt(excerpt(source, slice(10, 30)), slice(5, 9))), read(source)[15:19]
    )


@pytest.mark.parametrize("kind", KINDS)
def test_excerpts_are_told_apart(kind, tmp_path):
    source = KINDS[kind](tmp_path)
    spans = [None, slice(0, 10), slice(10, 20), slice(0, 40)]
    assert len({excerpt(source, span).fingerprint for span in spans[:3]}) == 3
    assert len({excerpt(source, span).content for span in spans[:3]}) == 3


@pytest.mark.parametrize(
    "volumes",
    [slice(0, 41), slice(5, 5), slice(9, 3), slice(-3, None), slice(0, 9, 2), 3, [1, 2], slice("a", None)],
)
def test_what_is_no_excerpt_is_refused(volumes, tmp_path):
    with pytest.raises(ParameterError, match="volumes="):
        excerpt(KINDS["plain"](tmp_path), volumes)


def test_what_has_no_volumes_is_refused(tmp_path):
    source = KINDS["plain"](tmp_path)
    rows = RowSource(**{name: getattr(source, name) for name in source.__dataclass_fields__})
    with pytest.raises(ImageError, match="volume by volume"):
        excerpt(rows, slice(0, 3))


def test_with_an_index_nothing_else_is_decoded(tmp_path, monkeypatch):
    pytest.importorskip("rapidgzip")
    small_pieces(monkeypatch)
    source, _ = indexed(gz(tmp_path / "run.nii.gz", gzip.compress(raw_run(tmp_path), 1)))
    decoded = []
    decode = type(source.points).decode
    monkeypatch.setattr(type(source.points), "decode", lambda *args: decoded.append(args[2]) or decode(*args))
    monkeypatch.setattr("sharedmask.decoding.parallel.n_cpus", lambda: 1)
    read(excerpt(source, slice(20, 22)))
    assert 0 < len(decoded) < len(source.points) / 3


def test_without_one_the_checksum_is_verified(tmp_path):
    path = packed(tmp_path)
    path.write_bytes(wrong_crc(path.read_bytes()))
    with pytest.raises(DamagedImageError):
        read(excerpt(open_source(path), slice(0, 3)))


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_a_file_that_is_too_short_says_so_of_the_whole(ending, tmp_path):
    plain = save(tmp_path / "run.nii", signal(SHAPE)).read_bytes()
    cut = plain[: len(plain) // 2]
    path = tmp_path / f"cut{ending}"
    path.write_bytes(gzip.compress(cut) if ending == ".nii.gz" else plain)
    source = open_source(path)
    if ending == ".nii":
        path.write_bytes(cut)
        source = excerpt(source, slice(30, 40))
        with pytest.raises(ImageError):
            read(source)
        return
    promised = f"promises {len(plain) - 352} bytes of image data, {len(cut) - 352} were found"
    with pytest.raises(DamagedImageError, match=promised):
        read(excerpt(source, slice(30, 40)))


@pytest.mark.parametrize("store", ["auto", "disk", "file"])
def test_a_shared_image_of_some_volumes(store, tmp_path):
    data = signal(SHAPE)
    path = save(tmp_path / "run.nii", data)
    mask = np.zeros(SHAPE[:3], bool)
    mask[2:5, 3, 1:] = True
    with SharedImage(path, volumes=slice(12, 20), store=store) as image:
        assert image.shape == (*SHAPE[:3], 8)
        np.testing.assert_array_equal(image.mask(mask), data[..., 12:20][mask].T)
        np.testing.assert_array_equal(image.frame(3), data[..., 15])
        assert image.as_nifti().shape == (*SHAPE[:3], 8)
    with SharedImage(path, volumes=slice(0, 8), store=store) as image:
        np.testing.assert_array_equal(image.mask(mask), data[..., :8][mask].T)
        assert image.t_r == SharedImage(path).t_r


def test_kept_results_are_those_of_their_volumes(tmp_path):
    data = signal(SHAPE)
    path, mask = save(tmp_path / "run.nii", data), np.ones(SHAPE[:3], bool)
    expected = np.array(extract(path, [mask], memory=str(tmp_path / "cache"))[0])
    for span in (slice(0, 9), slice(9, 18)):
        with SharedImage(path, volumes=span) as image:
            found = image.mask(mask, memory=str(tmp_path / "cache"))
        np.testing.assert_array_equal(found, expected[span])
