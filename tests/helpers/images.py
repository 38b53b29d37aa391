"""Small images for tests, written by nibabel and checked against it."""

import nibabel as nib
import numpy as np

from sharedmask.system import platform

AFFINE = np.array([[3.5, 0.2, 0, -60], [-0.2, 3.5, 0, -70], [0, 0, 4.0, -30], [0, 0, 0, 1]])
SHAPE = (7, 6, 5)


def bold(shape=(*SHAPE, 12), dtype="int16", seed=0):
    """Values of every bit pattern range that a scanner gives: positive, in the thousands."""
    rng = np.random.default_rng(seed)
    values = rng.normal(1000, 50, shape)
    return values.astype(dtype) if np.dtype(dtype).kind == "f" else values.round().astype(dtype)


def save(path, data, affine=AFFINE, kind=nib.Nifti1Image, slope=None, inter=None, t_r=2.0):
    """Write ``data`` as stored values; ``slope`` and ``inter`` go to the header as they are."""
    header = kind.header_class() if data.dtype.byteorder in "=|<" else kind.header_class(endianness=">")
    header.set_data_dtype(data.dtype)
    image = kind(data, affine, header)
    if slope is not None:
        # After the image is made, which forgets the header's: nibabel then stores values as they are.
        image.header.set_slope_inter(slope, inter or 0.0)
    if data.ndim == 4:
        image.header.set_zooms((*image.header.get_zooms()[:3], t_r))
    nib.save(image, path)
    return path


def sent(image):
    """What another process gets of a shared image: its handle, where processes share."""
    return image.handle if platform.can_share() else image


def truth(path):
    """What nibabel reads."""
    return np.asanyarray(nib.load(path).dataobj)


def signals(path):
    """Those of all voxels, as NiftiMasker gives them for integers."""
    values = truth(path)
    return values.reshape(-1, values.shape[3]).T.astype("f4")


def random_masks(count, shape=SHAPE, seed=1, density=0.3):
    """Overlapping boolean masks, none empty."""
    rng = np.random.default_rng(seed)
    masks = [rng.random(shape) < density for _ in range(count)]
    for mask in masks:
        mask[tuple(rng.integers(0, shape))] = True
    return masks


def niimg(data, affine=AFFINE, t_r=2.0):
    """``data`` as an image in memory."""
    image = nib.Nifti1Image(data, affine, dtype=data.dtype)
    if data.ndim == 4:
        image.header.set_zooms((*image.header.get_zooms()[:3], t_r))
    return image


def same_bits(got, expected):
    """Values, dtype and shape, the sign of zeros and NaN included; the byte order is native."""
    expected = np.asarray(expected)
    assert got.dtype == expected.dtype.newbyteorder("=")
    assert got.shape == expected.shape
    assert got.tobytes() == expected.astype(got.dtype).tobytes()
