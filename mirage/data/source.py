"""What a data source offers: training sets, probes, and a list of its faults, all without a model."""

from __future__ import annotations

from abc import ABC
from collections.abc import Sequence
from typing import Literal, NamedTuple

from mirage.schema import Example, Picture, Probe

Answers = Literal["refusal", "harmful"]


class Fault(NamedTuple):
    """One defect in a data file, in the words of its remedy."""

    file: str
    record: str  # "record 412 (id Ads_1)", or "line 7, column 3" where the file does not parse
    field: str
    remedy: str  # what is wrong and what to do: "is empty. Remove the record or add a response."

    def __str__(self) -> str:
        return ", ".join(part for part in (self.file, self.record) if part) + f": {self.field} {self.remedy}"


class BadData(ValueError):
    """A file or set that cannot be used; the message names file, record and remedy."""

    @classmethod
    def of(cls, faults: Sequence[Fault | str], shown: int = 10) -> BadData:
        """The first `shown` faults together, and how many there are."""
        lines = [str(fault) for fault in faults[:shown]]
        if len(faults) > shown:
            lines.append(f"... and {len(faults) - shown} more ({len(faults)} faults in all).")
        return cls("\n".join(lines))


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
        raise BadData(f"{self.name} has no unsafe set. Choose a source that has one as data.source.")

    def retain(self) -> Sequence[Example]:
        """The retain set: harmless questions with good answers."""
        raise BadData(f"{self.name} has no retain set. List a source that has one under data.retain.")

    def offers(self, part: Literal["unsafe", "retain"]) -> bool:
        """False if sources of this kind have no such training set at all; no file is read to find out."""
        return getattr(type(self), part) is not getattr(Source, part)

    def held_out(self) -> Sequence[Example]:
        """Retain examples that are never trained on, for the validation loss; may be empty."""
        return ()

    def probes(self, probe_set: str) -> Sequence[Probe]:
        """The test questions of `unsafe`, `benign`, or of another set that the source names."""
        raise BadData(f"{self.name} has no probes called {probe_set!r}. Choose a source that has them as data.source.")

    def left_out(self) -> Sequence[Fault]:
        """What stands in the files and is not trained on, each with the reason; for the results."""
        return ()

    def picture(self, name: str) -> Picture | None:
        """The picture that examples and probes of this source call `name`, unopened; None if there can be none.

        The file need not be there: that shows when the picture is opened, which may touch nothing outside the data root.
        """
        return None

    def faults(self) -> Sequence[Fault]:
        """Every defect that can be found without a model: files, records, fields, images."""
        return ()
