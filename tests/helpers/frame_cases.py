"""Frames: how many, in which stores, moved how; and what a folder holds of ours."""

import numpy as np

from sharedmask.storage import disk

N = 12


STORES = ["auto", "shm", "memfd", "disk"]


def shift(millimetres=3.5):
    """Of one voxel along x, on a grid of 3.5 mm."""
    affine = np.eye(4)
    affine[0, 3] = millimetres
    return affine


def fields():
    """Two of each frame."""
    return {"time": np.arange(N) * 2.0, "gradients": np.arange(N * 4.0).reshape(N, 4)}


def left_in(folder):
    return sorted(
        path.name for path in folder.iterdir() if path.name != "registry" and path != disk.directory()
    )
