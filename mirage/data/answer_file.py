"""Answers that take the place of a data set's own, from the file that `mirage prepare` wrote."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Literal

from mirage.data.lazy import Lazy, items_at
from mirage.errors import DataError, DataIssue
from mirage.json_file import sound_records
from mirage.schema import Example
from mirage.shapes import Shape, Text


class _Answer(Shape):
    id: Text
    answer: Text | None


class AnswerFile:
    """A file of answers that `mirage prepare` wrote: question id -> answer, None where no usable one is known.

    JSON Lines (or one JSON list) of objects with `id` and `answer`; other fields are for the reader and are ignored.
    `command` makes the file anew; messages name it.
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
        if self.file.is_file():  # else reading it says what is wrong
            with suppress(OSError), self.file.open("rb") as file:
                form = "list" if file.read(64).lstrip().startswith(b"[") else "lines"
        expected = 'lines like {"id": "<record id>/<field>", "answer": "..."}'
        for entry in sound_records(self.file, _Answer, expected, issues, form, may_be_empty=True):
            value = entry.value
            if answers.setdefault(value.id, value.answer) != value.answer:
                remedy = f"{value.id!r} occurs twice with different answers. Remove one."
                issues.append(DataIssue(str(self.file), entry.where, "id", remedy))
        return answers, issues


class Reanswered(Lazy[Example]):
    """Examples with other answers to their first questions, by `Example.question_id`.

    An example whose id has none, or None, keeps its own; so does a conversation with later turns, which go on from its
    own answer.
    """

    def __init__(self, examples: Sequence[Example], answers: Mapping[str, str | None]) -> None:
        self.examples, self.answers = examples, answers
        super().__init__(len(examples), self._reanswered)

    def _reanswered(self, places: Sequence[int]) -> list[Example]:
        return [
            each if each.later_turns else replace(each, answer=self.answers.get(each.question_id) or each.answer)
            for each in items_at(self.examples, places)
        ]
