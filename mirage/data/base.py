"""What a data source offers: training sets, samples, and a list of its faults, all without a model."""

from __future__ import annotations

from abc import ABC
from collections.abc import Sequence
from typing import Literal

from mirage.errors import DataError, DataIssue
from mirage.schema import EvalSample, Example, Picture

Answers = Literal["refusal", "harmful"]


class Source(ABC):
    """Base of every data source. A source overrides what it has; the rest says clearly that it has none.

    A constructor takes typed settings only and reads no file; files are read by the methods, once.
    `Sequence` may be lazy (Arrow): a set of 665k examples is never a Python list.
    """

    @property
    def name(self) -> str:
        """Short name for ids, results and messages."""
        return type(self).__name__.lower()

    def unsafe(self, answers: Answers) -> Sequence[Example]:
        """The unsafe set: harmful questions, answered by a refusal (to learn) or a harmful answer (to unlearn)."""
        raise DataError(f"{self.name} has no unsafe set. Choose a source that has one as data.source.")

    def retain(self) -> Sequence[Example]:
        """The retain set: harmless questions with good answers."""
        raise DataError(f"{self.name} has no retain set. List a source that has one under data.retain.")

    def offers(self, part: Literal["unsafe", "retain"]) -> bool:
        """False if sources of this kind have no such training set at all; no file is read to find out."""
        return getattr(type(self), part) is not getattr(Source, part)

    def held_out(self) -> Sequence[Example]:
        """Retain examples that are never trained on, for the validation loss; may be empty."""
        return ()

    def eval_samples(self, eval_set: str) -> Sequence[EvalSample]:
        """The test questions of `unsafe`, `benign`, or of another set that the source names."""
        raise DataError(
            f"{self.name} has no samples called {eval_set!r}. Choose a source that has them as data.source."
        )

    def skipped(self) -> Sequence[DataIssue]:
        """What stands in the files and is not trained on, each with the reason; for the results."""
        return ()

    def picture(self, name: str) -> Picture | None:
        """The picture that examples and samples of this source call `name`, unopened; None if there can be none.

        The file need not be there: that shows when the picture is opened, which may touch nothing outside the data root.
        """
        return None

    def validate(self) -> Sequence[DataIssue]:
        """Every defect that can be found without a model: files, records, fields, images."""
        return ()
