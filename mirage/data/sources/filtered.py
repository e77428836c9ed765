"""A source without the retain examples that a filter has dropped."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

from mirage.data.base import Answers, Source
from mirage.data.lazy import Chosen
from mirage.errors import DataError, DataIssue
from mirage.json_file import sound_records
from mirage.schema import EvalSample, Example, Picture
from mirage.shapes import Shape, Text

_EXPECTED = 'lines like {"id": "<example id>", "place": 412}, as `mirage filter` writes them'


class _Dropped(Shape):
    id: Text
    place: int | None = None


class Filtered(Source):
    """Another source, without the retain examples that `mirage filter` listed. All else of it stays as it is.

    Nothing is judged or copied here: the file names what to leave out, by id and by place. If the places do not fit
    (the file was written by hand, or the data were sorted anew), the ids are searched in the whole retain set.

    Args:
        source: The source whose retain set was filtered.
        dropped: The file `dropped.jsonl` that `mirage filter` wrote for it.
    """

    def __init__(self, source: Source, dropped: Path) -> None:
        self.source, self.dropped = source, Path(dropped)
        self.rewriter, self.answer_for = source.rewriter, source.answer_for

    @property
    def name(self) -> str:
        """The source's name, and that it was filtered."""
        return f"{self.source.name}/filtered"

    def unsafe(self, answers: Answers) -> Sequence[Example]:
        """The source's unsafe set."""
        return self.source.unsafe(answers)

    def held_out(self) -> Sequence[Example]:
        """The source's held-out examples."""
        return self.source.held_out()

    def eval_samples(self, eval_set: str) -> Sequence[EvalSample]:
        """The source's samples."""
        return self.source.eval_samples(eval_set)

    def offers(self, part: Literal["unsafe", "retain"]) -> bool:
        """Whether the source has such a set."""
        return self.source.offers(part)

    def picture(self, name: str) -> Picture | None:
        """The source's picture."""
        return self.source.picture(name)

    def retain(self) -> Sequence[Example]:
        """The source's retain set without what was dropped, each example built when it is asked for.

        Raises:
            DataError: If the file is faulty, or names examples that the retain set does not have.
        """
        return Chosen(self._retained, self._kept)

    def skipped(self) -> Sequence[DataIssue]:
        """What the source skips, and how much of it the file takes away."""
        total = len(self._retained)
        remedy = f"takes {total - len(self._kept)} of {total} examples out of the retain set."
        return [*self.source.skipped(), *self._issue(remedy)]

    def validate(self) -> Sequence[DataIssue]:
        """Every issue of the source; if it has none, those of the file."""
        if issues := self.source.validate():
            return issues
        try:
            _ = self._kept
        except DataError as error:
            return error.issues
        return ()

    @cached_property
    def _retained(self) -> Sequence[Example]:
        return self.source.retain()

    @cached_property
    def _kept(self) -> array[int]:
        """The places of the retain set that stay."""
        everything = self._retained
        issues: list[DataIssue] = []
        entries = sound_records(self.dropped, _Dropped, _EXPECTED, issues, "lines", may_be_empty=True)
        listed = [(entry.value.id, -1 if entry.value.place is None else entry.value.place) for entry in entries]
        places = {place for _, place in listed}
        if not all(0 <= place < len(everything) and everything[place].id == id for id, place in listed):
            ids = {id for id, _ in listed}
            by_place = {place: example.id for place, example in enumerate(everything) if example.id in ids}
            places = set(by_place)
            if unknown := ids.difference(by_place.values()):
                issues += self._issue(
                    f"drops {len(unknown)} examples that the retain set of {self.source.name} does not have, such as "
                    f"{min(unknown)}. Run `mirage filter` on this data."
                )
        elif len(places) == len(everything):
            issues += self._issue("drops every example of the retain set. Filter by fewer topics, or add data.")
        if issues:
            raise DataError.of(issues)
        return array("L", (place for place in range(len(everything)) if place not in places))

    def _issue(self, remedy: str) -> list[DataIssue]:
        return [DataIssue(str(self.dropped), "", "the file", remedy)]
