"""A source without the retain examples that a filter has dropped."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from mirage.data.base import Answers, Source
from mirage.data.lazy import Chosen
from mirage.data.sources.records import read_lines
from mirage.errors import DataError, DataIssue
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
        self.rewriter = source.rewriter

    @property
    def name(self) -> str:
        """The source's name, and that it was filtered."""
        return f"{self.source.name}/filtered"

    def unsafe(self, answers: Answers) -> Sequence[Example]:
        """The source's unsafe set."""
        return self.source.unsafe(answers)

    def retain(self) -> Sequence[Example]:
        """The source's retain set without what was dropped, each example built when it is asked for.

        Raises:
            DataError: If the file is faulty, or names examples that the retain set does not have.
        """
        return Chosen(self._retained, self._kept)

    def held_out(self) -> Sequence[Example]:
        """The source's held-out examples."""
        return self.source.held_out()

    def eval_samples(self, eval_set: str) -> Sequence[EvalSample]:
        """The source's samples."""
        return self.source.eval_samples(eval_set)

    def skipped(self) -> Sequence[DataIssue]:
        """What the source skips, and how much of it the file takes away."""
        total = len(self._retained)
        remedy = f"takes {total - len(self._kept)} of {total} examples out of the retain set."
        return [*self.source.skipped(), self._issue(remedy)]

    def picture(self, name: str) -> Picture | None:
        """The source's picture."""
        return self.source.picture(name)

    def validate(self) -> Sequence[DataIssue]:
        """Every issue of the source; if it has none, those of the file."""
        if issues := self.source.validate() or self._listed[1]:
            return issues
        try:
            return [] if len(self._kept) else [self._issue("drops every example of the retain set.")]
        except DataError as error:
            return [self._issue(f"does not fit the data: {error}")]

    def __getstate__(self) -> dict[str, Any]:
        """Loader workers get the places that stay, not the list."""
        _ = self._kept
        return {key: value for key, value in self.__dict__.items() if key != "_listed"}

    @cached_property
    def _retained(self) -> Sequence[Example]:
        return self.source.retain()

    @cached_property
    def _listed(self) -> tuple[dict[str, list[int]], list[DataIssue]]:
        """Id -> places, as the file has them, and every issue of the file."""
        listed: dict[str, list[int]] = {}
        issues: list[DataIssue] = []
        for entry in read_lines(self.dropped, _Dropped, _EXPECTED, may_be_empty=True):
            issues += entry.issues
            if entry.value is not None:
                places = listed.setdefault(entry.value.id, [])
                places += [] if entry.value.place is None else [entry.value.place]
        return listed, issues

    @cached_property
    def _kept(self) -> array[int]:
        """The places of the retain set that stay."""
        listed, issues = self._listed
        if issues:
            raise DataError.of(issues)
        everything = self._retained
        named = [(id, place) for id, places in listed.items() for place in places]
        leave_out = {place for _, place in named}
        fits = all(0 <= place < len(everything) and everything[place].id == id for id, place in named)
        if not (fits and all(listed.values())):
            by_place = {place: example.id for place, example in enumerate(everything) if example.id in listed}
            leave_out = set(by_place)
            if unknown := list(set(listed).difference(by_place.values())):
                raise DataError(
                    f"{self.dropped} drops {len(unknown)} examples that the retain set of {self.source.name} does not "
                    f"have, such as {min(unknown)}. Run `mirage filter` on this data."
                )
        return array("L", (place for place in range(len(everything)) if place not in leave_out))

    def _issue(self, remedy: str) -> DataIssue:
        return DataIssue(str(self.dropped), "", "the file", remedy)
