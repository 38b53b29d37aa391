from .regions import RegionRow as RegionRow
from .regions import Regions as Regions

__all__ = [
    "RegionRow",
    "Regions",
]
