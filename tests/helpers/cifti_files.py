"""CIFTI-2 files of every kind, small: made by nibabel, in both orders, dtypes and byte orders."""

from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.cifti2 import BrainModelAxis, Cifti2Image, LabelAxis, ParcelsAxis, ScalarAxis, SeriesAxis

N_VERTICES = 12
BOX = (4, 3, 2)
AFFINE = np.diag([-2.0, 2, 2, 1])
TABLE = {0: ("???", (0, 0, 0, 0)), 1: ("V1", (1, 0, 0, 1)), 2: ("A1", (0, 1, 0, 1)), 3: ("M1", (0, 0, 1, 1))}


def surface(name="CortexLeft", vertices=(0, 1, 3, 4, 7, 8, 11), n_vertices=N_VERTICES):
    return BrainModelAxis.from_surface(np.array(vertices), n_vertices, name)


def voxels(name="ThalamusLeft", numbers=(1, 2, 9, 20), affine=AFFINE):
    inside = np.zeros(BOX, bool)
    inside.reshape(-1)[list(numbers)] = True
    return BrainModelAxis.from_mask(inside, affine=affine, name=name)


def models():
    """15 elements: two surfaces without their medial walls, and two structures of voxels."""
    right = surface("CortexRight", (1, 2, 5))
    return surface() + right + voxels() + voxels("BrainStem", (0,))


def whole():
    """Both surfaces with their medial walls."""
    return surface(vertices=range(N_VERTICES)) + surface("CortexRight", range(N_VERTICES))


def series(n_timepoints=20, t_r=0.8, unit="SECOND"):
    return SeriesAxis(0, t_r, n_timepoints, unit)


def labels(*names):
    return LabelAxis(list(names) or ["parcels"], TABLE)


def scalars(*names):
    return ScalarAxis(list(names) or ["mask"])


def values(n_elements, n_maps, dtype="f4", seed=0):
    rng = np.random.default_rng(seed)
    made = rng.integers(0, 100, (n_maps, n_elements)) if np.dtype(dtype).kind in "iu" else None
    return (rng.normal(100, 10, (n_maps, n_elements)) if made is None else made).astype(dtype)


def save(path: Path, data, maps, places, *, by_row=True, slope=None, inter=None):
    """``data``, (n_maps, n_elements), in its dtype and byte order; ``by_row``: an element's side by side."""
    data = data if by_row else data.T
    axes = (maps, places) if by_row else (places, maps)
    image = Cifti2Image(data, axes)
    header = nib.Nifti2Header(endianness=">" if data.dtype.str[0] == ">" else "<")
    header.set_data_dtype(data.dtype)
    header.set_data_shape((1, 1, 1, 1, *data.shape))
    header.set_intent("ConnDenseSeries" if isinstance(maps, SeriesAxis) else "ConnDenseScalar")
    header.set_xyzt_units("mm", "sec")
    extension = nib.cifti2.parse_cifti2.Cifti2Extension.from_bytes(image.header.to_xml())
    header.extensions.append(extension)
    made = nib.Nifti2Image(data.reshape(1, 1, 1, 1, *data.shape), None, header)
    if slope is None:
        nib.save(made, path)
        return path
    made.header.set_slope_inter(slope, inter)
    stored = np.ascontiguousarray(data.T).tobytes()  # the first axis is the fastest
    made.to_filename(path)
    whole = bytearray(Path(path).read_bytes())
    offset = len(whole) - len(stored)
    whole[offset:] = stored
    order = ">" if data.dtype.str[0] == ">" else "<"
    whole[176:192] = np.array([slope, inter], f"{order}f8").tobytes()  # scl_slope and scl_inter of NIfTI-2
    Path(path).write_bytes(whole)
    return path


def dtseries(path: Path, n_timepoints=20, places=None, dtype="f4", seed=0, **how):
    places = models() if places is None else places
    data = values(len(places), n_timepoints, dtype, seed)
    return save(path, data, how.pop("maps", series(n_timepoints)), places, **how)


def rewritten(path: Path, *changes):
    """The file with pieces of the XML in its header exchanged, which may make it longer."""
    image, whole = nib.Nifti2Image.from_filename(path), path.read_bytes()
    (extension,), values = image.header.extensions, whole[int(image.dataobj.offset) :]
    text = extension.content.rstrip(b"\0").decode()
    for old, new in changes:
        assert old in text, text
        text = text.replace(old, new, 1)
    told, order = text.encode(), image.header.endianness
    size = -(-(8 + len(told)) // 16) * 16
    head = bytearray(whole[:540])
    head[168:176] = np.array(544 + size, f"{order}i8").tobytes()  # where data begin, in NIfTI-2
    sizes = np.array([size, 32], f"{order}i4").tobytes()
    path.write_bytes(bytes(head) + b"\1\0\0\0" + sizes + told.ljust(size - 8, b"\0") + values)
    return path


def truth(path: Path):
    """What nibabel reads, as (n_maps, n_elements)."""
    image = nib.load(path)
    data = np.asanyarray(image.dataobj).copy()  # not mapped
    return data.T if isinstance(image.header.get_axis(0), BrainModelAxis | ParcelsAxis) else data


def parcels():
    """Three parcels: vertices of both surfaces, of one, and voxels; the names of two are the same."""
    named = [
        ("V1", surface(vertices=(0, 1)) + surface("CortexRight", (1, 2))),
        ("A1", surface(vertices=(3, 4, 7))),
        ("A1", voxels()),
    ]
    return ParcelsAxis.from_brain_models([(name, models) for name, models in named])


def ptseries(path: Path, n_timepoints=20, dtype="f4", **how):
    return dtseries(path, n_timepoints, parcels(), dtype, **how)
