"""Errors of the input. Each message is one sentence or a list of them: what is wrong, where, and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class DataIssue(NamedTuple):
    """One defect in a data file, in the words of its remedy."""

    file: str
    record: str  # "record 412 (id Ads_1)", or "line 7, column 3" where the file does not parse
    field: str
    remedy: str  # what is wrong and what to do: "is empty. Remove the record or add a response."

    def __str__(self) -> str:
        return ", ".join(part for part in (self.file, self.record) if part) + f": {self.field} {self.remedy}"


class DataError(ValueError):
    """A file or data set that cannot be used; the message names file, record and remedy."""

    issues: Sequence[DataIssue] = ()
    """All that the error was made `of`; the message may show the first ten only."""

    @classmethod
    def of(cls, issues: Sequence[DataIssue | str], shown: int = 10) -> DataError:
        """An error that lists the first `shown` issues and says how many there are."""
        lines = [str(issue) for issue in issues[:shown]]
        if len(issues) > shown:
            lines.append(f"... and {len(issues) - shown} more ({len(issues)} issues in all).")
        error = cls("\n".join(lines))
        error.issues = [issue for issue in issues if isinstance(issue, DataIssue)]
        return error


class ModelError(ValueError):
    """A model, a processor or one of their settings cannot be used; the message says what, where and what to do."""
