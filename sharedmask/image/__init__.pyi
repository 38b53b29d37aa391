from .coordinator import Coordinator as Coordinator
from .extraction import extract as extract
from .image import SharedImage as SharedImage

__all__ = [
    "Coordinator",
    "SharedImage",
    "extract",
]
