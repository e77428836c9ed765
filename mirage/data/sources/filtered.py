"""A source without the retain examples that a filter has dropped."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from mirage.data.base import Answers, Source
from mirage.data.lazy import Chosen
from mirage.errors import DataError, DataIssue
from mirage.json_file import BrokenFile, lines, text_fault
from mirage.schema import EvalSample, Example, Picture
from mirage.shapes import json_name

_SHAPE = 'lines like {"id": "<example id>", "place": 412}, as `mirage filter` writes them'


class Filtered(Source):
    """Another source, without the retain examples that `mirage filter` listed. All else of it stays as it is.

    Nothing is judged or copied here: the file names what to leave out, by id and by place. If the places do not fit
    (the file was written by hand, or the data were sorted anew), the ids are looked for in the whole retain set.

    Args:
        source: The source whose retain set was filtered.
        dropped: The file `dropped.jsonl` that `mirage filter` wrote for it.
    """

    def __init__(self, source: Source, dropped: Path) -> None:
        self.source, self.dropped = source, Path(dropped)

    @property
    def name(self) -> str:
        """The source's name, and that it was filtered."""
        return f"{self.source.name}/filtered"

    @property
    def rewriter(self) -> Any:
        """The source's own rewriter, or None."""
        return getattr(self.source, "rewriter", None)

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
        """What the source leaves out, and how much of it the file takes away."""
        gone, total = len(self._retained) - len(self._kept), len(self._retained)
        return [*self.source.skipped(), self._fault(f"takes {gone} of {total} examples out of the retain set.")]

    def picture(self, name: str) -> Picture | None:
        """The source's picture."""
        return self.source.picture(name)

    def validate(self) -> Sequence[DataIssue]:
        """The source's faults; if it has none, those of the file."""
        if found := self.source.validate():
            return found
        try:
            faults = self._listed[1]
            return faults or ([] if len(self._kept) else [self._fault("drops every example of the retain set.")])
        except DataError as error:
            return [self._fault(f"does not fit the data: {error}")]

    def __getstate__(self) -> dict[str, Any]:
        """Loader workers get the places that stay, not the list."""
        _ = self._kept
        return {key: value for key, value in self.__dict__.items() if key != "_listed"}

    @cached_property
    def _retained(self) -> Sequence[Example]:
        return self.source.retain()

    @cached_property
    def _listed(self) -> tuple[dict[str, list[int]], list[DataIssue]]:
        """Id -> places, as the file has them, and what is wrong with the file."""
        listed: dict[str, list[int]] = {}
        faults: list[DataIssue] = []
        try:
            for line in lines(self.dropped, _SHAPE):
                where, record = f"line {line.number}", line.record
                if line.fault is not None:
                    faults.append(line.fault)
                elif not isinstance(record, dict):
                    faults.append(
                        DataIssue(str(self.dropped), where, "the line", f"is {json_name(record)}. Expected {_SHAPE}.")
                    )
                elif remedy := text_fault(record, "id"):
                    faults.append(DataIssue(str(self.dropped), where, "id", remedy))
                else:
                    places = listed.setdefault(record["id"], [])
                    if isinstance(place := record.get("place"), int):
                        places.append(place)
        except BrokenFile as error:
            faults.append(error.fault)
        return listed, faults

    @cached_property
    def _kept(self) -> array[int]:
        """The places of the retain set that stay."""
        listed, faults = self._listed
        if faults:
            raise DataError.of(faults)
        everything = self._retained
        leave_out = {place for places in listed.values() for place in places}
        if not all(listed.values()) or not all(
            0 <= place < len(everything) and everything[place].id == id
            for id, places in listed.items()
            for place in places
        ):
            leave_out, found = set(), set()
            for place, example in enumerate(everything):
                if example.id in listed:
                    leave_out.add(place)
                    found.add(example.id)
            if strangers := [id for id in listed if id not in found]:
                raise DataError(
                    f"{self.dropped} drops {len(strangers)} examples that the retain set of {self.source.name} does not "
                    f"have, such as {strangers[0]}. Run `mirage filter` on this data."
                )
        return array("L", (place for place in range(len(everything)) if place not in leave_out))

    def _fault(self, remedy: str) -> DataIssue:
        return DataIssue(str(self.dropped), "", "the file", remedy)
