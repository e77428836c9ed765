"""mirage's own format: JSON Lines of unsafe questions, retain examples and test questions; see docs/jsonl.md."""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationInfo, field_validator, model_validator

from mirage.data.base import Answers, FileSource
from mirage.data.lazy import Lazy
from mirage.errors import DataError, DataIssue
from mirage.images import ImageName
from mirage.json_file import parsed_line, sound_records
from mirage.schema import EvalSample, Example, Turn
from mirage.shapes import ExactShape, Text

_ANSWERS = ("refusal", "harmful", "answer")
_OLD_EVAL_FILE = "probes.jsonl"
_IMPLIED = {"unsafe": True, "benign": False}  # eval set -> whether its questions are unsafe


class _Turn(ExactShape):
    prompt: Text
    answer: Text


class _Line(ExactShape):
    """What a line of every file has."""

    id: Text | None = None
    image: ImageName | None = None
    prompt: Text
    category: Text | None = None


class _Trained(_Line):
    picture_decides: bool = False

    @model_validator(mode="after")
    def _has_the_picture(self) -> _Trained:
        if self.picture_decides and self.image is None:
            raise ValueError("says that its picture decides, and has no image. Add it, or remove picture_decides.")
        return self


class _Unsafe(_Trained):
    refusal: Text | None = None
    harmful: Text | None = None

    @model_validator(mode="after")
    def _mentions_an_answer(self) -> _Unsafe:
        if not self.model_fields_set.intersection(_ANSWERS):
            raise ValueError("has neither refusal nor harmful. Add one of them.")
        return self


class _Retain(_Trained):
    answer: Text
    later: list[_Turn] = Field(default=[])


class _Eval(_Line):
    id: Text
    set: Text
    truth: Text | None = None
    unsafe: bool | None = Field(default=None, validate_default=True)

    @field_validator("unsafe")
    @classmethod
    def _known(cls, unsafe: bool | None, info: ValidationInfo) -> bool | None:
        if (eval_set := info.data.get("set", "unsafe")) not in _IMPLIED:
            if unsafe is None:
                raise ValueError("must be true or false in a set that is neither 'unsafe' nor 'benign'. Add it.")
            return unsafe
        if unsafe not in (None, _IMPLIED[eval_set]):
            raise ValueError(f"contradicts the set {eval_set!r}. Remove it, or name another set.")
        return _IMPLIED[eval_set]


_SHAPES: dict[str, type[_Line]] = {"unsafe": _Unsafe, "retain": _Retain, "held_out": _Retain, "eval": _Eval}


@dataclass
class _Index:
    """The sound lines of a file by set, and what is wrong with the others.

    A line of `eval.jsonl` is in the set that it names, any other in a set for each of its answers, by their field.
    """

    path: Path
    shape: type[_Line]
    numbers: defaultdict[str, array[int]] = field(default_factory=lambda: defaultdict(partial(array, "Q")))
    offsets: defaultdict[str, array[int]] = field(default_factory=lambda: defaultdict(partial(array, "Q")))
    images: list[tuple[str, str]] = field(default_factory=list)  # "line 7" and the image's name
    issues: list[DataIssue] = field(default_factory=list)


@dataclass(eq=False)
class Jsonl(FileSource):
    """Your own data in JSON Lines, one file a role; docs/jsonl.md shows every field.

    A role whose file does not exist is not offered. Files are checked and indexed once; lines are read when they are
    asked for, so that a large retain set occupies sixteen bytes a line.

    Args:
        root: Folder of the files, and of the pictures.
        unsafe_file: Unsafe questions with a refusal, a harmful answer or both.
        retain_file: Harmless questions with good answers.
        held_out_file: As the retain file, for the validation loss; never trained on.
        eval_file: Test questions; each names the evaluation set that it belongs to.
    """

    root: Path
    unsafe_file: str = "unsafe.jsonl"
    retain_file: str = "retain.jsonl"
    held_out_file: str = "held_out.jsonl"
    eval_file: str = "eval.jsonl"

    def __post_init__(self) -> None:
        self.root = self.image_root = Path(self.root)
        names = (self.unsafe_file, self.retain_file, self.held_out_file, self.eval_file)
        self.files = {role: self.root / name for role, name in zip(_SHAPES, names, strict=True)}

    def unsafe(self, answers: Answers) -> Sequence[Example]:
        """The unsafe questions with the answers asked for; lines where that answer is null are skipped."""
        index = self._index("unsafe")
        if answers not in index.offsets:
            raise DataError(
                f"{index.path} has no answer to use: {answers!r} is null or missing on every line. Write it on some, or "
                "choose a method that needs none."
            )
        return self._lazy("unsafe", answers)

    def retain(self) -> Sequence[Example]:
        """The lines of the retain file."""
        return self._lazy("retain", "answer")

    def held_out(self) -> Sequence[Example]:
        """The lines of the held-out file; nothing without one."""
        return self._lazy("held_out", "answer") if "held_out" in self._present else ()

    def eval_samples(self, eval_set: str) -> Sequence[EvalSample]:
        """The lines of the evaluation file whose `set` it is."""
        index = self._index("eval")
        if eval_set not in index.offsets:
            raise self.no_eval_set(eval_set, index.offsets)
        return self._lazy("eval", eval_set)

    def validate(self) -> Sequence[DataIssue]:
        """Every faulty line and picture of all the files."""
        issues: list[DataIssue] = []
        old = self.root / _OLD_EVAL_FILE
        if "eval" not in self._present and old.exists():
            remedy = f"has the name that test questions had in earlier versions. Rename it to {self.eval_file}."
            issues.append(DataIssue(str(old), "", "the file", remedy))
        if not self._present:
            remedy = f"holds none of {', '.join(path.name for path in self.files.values())}. Set root, or write one."
            issues.append(DataIssue(str(self.root), "", "the folder", remedy))
        for index in self._present.values():
            issues += [*index.issues, *self.picture_issues(index.path, index.images)]
        return issues

    @cached_property
    def _present(self) -> dict[str, _Index]:
        return {
            role: _indexed(path, _SHAPES[role], self.misplaced(path))
            for role, path in self.files.items()
            if path.exists()
        }

    def _index(self, role: str) -> _Index:
        if role not in self._present:
            raise DataError(f"jsonl has no file {self.files[role]}. Write it, or choose another source for {role}.")
        index = self._present[role]
        if index.issues:
            raise DataError.of(index.issues)
        return index

    def _lazy(self, role: str, name: str) -> Lazy[Any]:
        return Lazy(len(self._index(role).offsets[name]), partial(self._built, role, name))

    def _built(self, role: str, name: str, places: Sequence[int]) -> list[Any]:
        index = self._present[role]
        items = []
        with index.path.open("rb") as file:
            for place in places:
                file.seek(index.offsets[name][place])
                line = index.shape.model_validate(parsed_line(file.readline()))
                items.append(self._item(line, name, index.path, index.numbers[name][place]))
        return items

    def _item(self, line: Any, name: str, path: Path, number: int) -> Example | EvalSample:
        source, image = f"jsonl/{path.stem}", None if line.image is None else self.picture(line.image)
        where = f"{path.name}, line {number}"
        if isinstance(line, _Eval):
            return EvalSample(
                id=line.id, source=source, image=image, question=line.prompt, unsafe=bool(line.unsafe),
                truth=line.truth, category=line.category, where=where,
            )  # fmt: skip
        return Example(
            source=source, image=image, prompt=line.prompt, answer=getattr(line, name),
            later_turns=tuple(Turn(turn.prompt, turn.answer) for turn in getattr(line, "later", ())),
            where=where, picture_decides=getattr(line, "picture_decides", False),
        )  # fmt: skip


def _indexed(path: Path, shape: type[_Line], misplaced: list[DataIssue]) -> _Index:
    index = _Index(path, shape, issues=misplaced)
    if misplaced:
        return index
    silent: defaultdict[str, list[str]] = defaultdict(list)  # unsafe lines that do not mention this answer
    first_of: dict[str, tuple[bool | None, str]] = {}  # eval set -> whether its first line is unsafe, and its place
    expected = f"one JSON object a line, with the fields {', '.join(shape.model_fields)}"
    for line, where, number, offset in sound_records(path, shape, expected, index.issues, "lines", may_repeat=()):
        if line.image is not None:
            index.images.append((where, line.image))
        if isinstance(line, _Eval):
            unsafe, first = first_of.setdefault(line.set, (line.unsafe, where))
            if line.unsafe != unsafe:
                remedy = f"is not that of {first}, which is of the set {line.set!r} too. Make two sets of it."
                index.issues.append(DataIssue(str(path), where, "unsafe", remedy))
        answers = [answer for answer in _ANSWERS if getattr(line, answer, None) is not None]
        for name in [line.set] if isinstance(line, _Eval) else answers:
            index.numbers[name].append(number)
            index.offsets[name].append(offset)
        if isinstance(line, _Unsafe):
            for answer in {"refusal", "harmful"} - line.model_fields_set:
                silent[answer].append(where)
    remedy = "is missing, and other lines have it. Add it, or write null to skip this line."
    for answer in (answer for answer in _ANSWERS if answer in index.offsets):
        index.issues += [DataIssue(str(path), where, answer, remedy) for where in silent[answer]]
    return index
