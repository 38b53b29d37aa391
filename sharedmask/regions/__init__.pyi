from .regions import Regions as Regions
from .sets import RegionRow as RegionRow

__all__ = [
    "RegionRow",
    "Regions",
]
