from .dataset import FrameDataset as FrameDataset

__all__ = [
    "FrameDataset",
]
