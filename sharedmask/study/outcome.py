"""Outcomes: what became of the images of a study.

Covers: results, errors, what was complete before. Does not cover: the work (``cohort``).
"""

from dataclasses import field
from typing import Any

from sharedmask.records import dataclass

Key = Any


@dataclass(frozen=True)
class Study:
    """What became of a study's images.

    Attributes
    ----------
    results : dict
        Key -> signals; empty if ``on_result`` took them.
    errors : dict
        Key -> the exception that ended it.
    complete : list
        Keys of the images that were done now, in order of completion.
    skipped : list
        Keys that were complete before.
    """

    results: dict[Key, Any] = field(default_factory=dict, repr=False)
    errors: dict[Key, Exception] = field(default_factory=dict)
    complete: list[Key] = field(default_factory=list)
    skipped: list[Key] = field(default_factory=list)

    def to_dataframe(self) -> Any:
        """A row for each image: its key, ``complete``, ``skipped`` or ``failed``, and the error."""
        import pandas as pd

        rows = [(key, state, "") for state in ("complete", "skipped") for key in getattr(self, state)]
        failed = [(key, "failed", str(error)) for key, error in self.errors.items()]
        return pd.DataFrame([*rows, *failed], columns=["image", "state", "error"])
