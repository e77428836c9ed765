"""What the sources share: records checked against a shape, harmful answers from a file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Generic

from mirage.errors import DataError, DataIssue
from mirage.json_file import Line, UnreadableFileError, lines, records
from mirage.shapes import AnyShape, Shape, Text, checked, json_name

_ANSWERS = 'lines like {"id": "<record id>/<field>", "answer": "..."}'


@dataclass(slots=True)
class Entry(Generic[AnyShape]):
    """One record of a file: in its shape and without issues, or None and everything that is wrong with it."""

    value: AnyShape | None
    issues: list[DataIssue]
    where: str = ""  # "record 412 (id Ads_1)" or "line 7"; empty where the file itself is at fault
    number: int = 0  # of the record (from 0) or the line (from 1)
    offset: int = 0  # bytes before the line
    id: str | None = None  # of a faulty record too, where it has one


def read_list(path: Path, shape: type[AnyShape], expected: str) -> Iterator[Entry[AnyShape]]:
    """The records of a JSON list. A file that cannot be read, or has no records, ends in an entry that says so.

    Args:
        path: The file.
        shape: The shape of a record.
        expected: What should be in the file, for messages: "a list of records like {...}".
    """
    numbered = (Line(number, 0, record) for number, record in enumerate(records(path, expected)))
    return _entries(path, shape, expected, "record", numbered, may_be_empty=False)


def read_lines(
    path: Path, shape: type[AnyShape], expected: str, *, may_be_empty: bool = False
) -> Iterator[Entry[AnyShape]]:
    """The records of a JSON Lines file, as `read_list` gives them."""
    return _entries(path, shape, expected, "line", lines(path, expected), may_be_empty)


def _entries(
    path: Path, shape: type[AnyShape], expected: str, unit: str, numbered: Iterable[Line], may_be_empty: bool
) -> Iterator[Entry[AnyShape]]:
    try:
        for line in numbered:
            may_be_empty = True
            where, record = f"{unit} {line.number}", line.record
            if line.issue is not None:
                yield Entry(None, [line.issue])
            elif isinstance(record, dict):
                id = record.get("id")
                if unit == "record" and "id" in record:
                    where += f" (id {id})"
                value, issues = checked(shape, record, str(path), where)
                yield Entry(value, issues, where, line.number, line.offset, id if isinstance(id, str) else None)
            else:
                remedy = f"is {json_name(record)}. Expected {expected}."
                yield Entry(None, [DataIssue(str(path), where, "the record", remedy)], where)
    except UnreadableFileError as error:
        yield Entry(None, [error.issue])
    else:
        if not may_be_empty:
            yield Entry(None, [DataIssue(str(path), "", "the file", f"has no records. Expected {expected}.")])


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
        self.file, self.command = file, command

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
        entries: Iterator[Entry[Any]] = (
            read_list(self.file, _Answer, _ANSWERS)
            if _starts_a_list(self.file)
            else read_lines(self.file, _Answer, _ANSWERS, may_be_empty=True)
        )
        for entry in entries:
            issues += entry.issues
            if (value := entry.value) is None:
                continue
            if answers.setdefault(value.id, value.answer) != value.answer:
                remedy = f"{value.id!r} occurs twice with different answers. Remove one."
                issues.append(DataIssue(str(self.file), entry.where, "id", remedy))
        return answers, issues


def _starts_a_list(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(64).lstrip()[:1] == b"["
    except OSError:
        return False  # reading it says why
