from .cohort import Study as Study
from .cohort import extract_many as extract_many

__all__ = [
    "Study",
    "extract_many",
]
