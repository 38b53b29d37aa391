from .cohort import extract_many as extract_many
from .tasks import Study as Study

__all__ = [
    "Study",
    "extract_many",
]
