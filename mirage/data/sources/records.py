"""What the sources share: records checked against a shape, harmful answers from a file."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Generic, Literal, NamedTuple

from mirage.errors import DataError, DataIssue
from mirage.json_file import Line, lines, records
from mirage.shapes import AnyShape, Shape, Text, checked


class Entry(NamedTuple, Generic[AnyShape]):
    """One sound record of a file."""

    value: AnyShape
    where: str  # "record 412 (id Ads_1)" or "line 7"
    number: int  # of the record (from 0) or the line (from 1)
    offset: int  # bytes before the line


def read_records(
    path: Path,
    shape: type[AnyShape],
    expected: str,
    issues: list[DataIssue],
    form: Literal["list", "lines"] = "list",
    may_be_empty: bool = False,
    may_repeat: Container[object] | None = None,
) -> Iterator[Entry[AnyShape]]:
    """The sound records of a file, in order. What is wrong with the others, or with the file, is added to `issues`.

    Args:
        path: One JSON list, or JSON Lines.
        shape: The shape of a record.
        expected: What should be in the file, for messages: "a list of records like {...}".
        issues: Receives every defect.
        form: Which of the two forms the file has.
        may_be_empty: A file without records has no defect.
        may_repeat: The ids that several records may have; by default any.
    """
    unit, numbered = "line", lines(path, expected)
    if form == "list":
        unit, numbered = "record", (Line(number, 0, record) for number, record in enumerate(records(path, expected)))
    ids: set[str] = set()
    try:
        for line in numbered:
            may_be_empty = True
            if line.issue is not None:
                issues.append(line.issue)
                continue
            id = line.record.get("id") if isinstance(line.record, dict) else None
            where = f"{unit} {line.number}" + (f" (id {id})" if form == "list" and id is not None else "")
            value, wrong = checked(shape, line.record, str(path), where)
            if isinstance(id, str) and may_repeat is not None and id not in may_repeat:
                if id in ids:
                    remedy = f"{id!r} is that of an earlier {unit}. Give it its own, or remove one of them."
                    wrong.append(DataIssue(str(path), where, "id", remedy))
                ids.add(id)
            issues += wrong
            if value is not None and not wrong:
                yield Entry(value, where, line.number, line.offset)
    except DataError as error:  # of the file itself
        issues += error.issues
    else:
        if not may_be_empty:
            issues.append(DataIssue(str(path), "", "the file", f"has no records. Expected {expected}."))


class _Answer(Shape):
    id: Text
    answer: Text | None


class HarmfulAnswers:
    """The file of harmful answers that `mirage prepare` wrote: question id -> answer, None where no usable one is known.

    JSON Lines (or one JSON list) of objects with `id` and `answer`; other fields are for the reader and are ignored.

    Args:
        file: The file.
        command: What makes it anew, for messages.
    """

    def __init__(self, file: Path, command: str) -> None:
        self.file, self.command = Path(file), command

    def by_id(self, ids: Iterable[str]) -> dict[str, str | None]:
        """Every answer of the file.

        Raises:
            DataError: With every faulty record, or every one of `ids` that the file lacks.
        """
        if issues := self.issues(ids):
            raise DataError.of(issues)
        return self._read[0]

    def issues(self, ids: Iterable[str]) -> list[DataIssue]:
        """Every faulty record; if there is none, every one of `ids` that the file lacks."""
        answers, issues = self._read
        return issues or [
            DataIssue(str(self.file), "", "the file", f"lacks a line for {id!r}. Run `{self.command}` again.")
            for id in ids
            if id not in answers
        ]

    @cached_property
    def _read(self) -> tuple[dict[str, str | None], list[DataIssue]]:
        answers: dict[str, str | None] = {}
        issues: list[DataIssue] = []
        form: Literal["list", "lines"] = "lines"
        with suppress(OSError), self.file.open("rb") as file:  # reading it says what is wrong
            form = "list" if file.read(64).lstrip().startswith(b"[") else "lines"
        expected = 'lines like {"id": "<record id>/<field>", "answer": "..."}'
        for entry in read_records(self.file, _Answer, expected, issues, form, may_be_empty=True):
            value = entry.value
            if answers.setdefault(value.id, value.answer) != value.answer:
                remedy = f"{value.id!r} occurs twice with different answers. Remove one."
                issues.append(DataIssue(str(self.file), entry.where, "id", remedy))
        return answers, issues
