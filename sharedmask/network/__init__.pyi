from .batches import batch_process as batch_process
from .mapper import FunctionalNetworkMapper as FunctionalNetworkMapper

__all__ = [
    "FunctionalNetworkMapper",
    "batch_process",
]
