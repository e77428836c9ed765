"""mirage's own format: JSON Lines of unsafe questions, retain examples and test questions; see docs/jsonl.md."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationInfo, field_validator

from mirage.data.base import Answers, PictureFolder, Source
from mirage.data.lazy import Lazy
from mirage.data.sources.records import read_lines
from mirage.errors import DataError, DataIssue
from mirage.images import PIXEL_LIMIT, ImageCheck, ImageName
from mirage.json_file import parsed_line
from mirage.schema import EvalSample, Example, Picture, Turn
from mirage.shapes import ExactShape, Text

_ANSWERS = ("refusal", "harmful")
_OLD_EVAL_FILE = "probes.jsonl"


class _Turn(ExactShape):
    prompt: Text
    answer: Text


class _Line(ExactShape):
    """What a line of every file has."""

    id: Text | None = None
    image: ImageName | None = None
    prompt: Text
    category: Text | None = None


class _Unsafe(_Line):
    refusal: Text | None = None
    harmful: Text | None = None


class _Retain(_Line):
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
        eval_set = info.data.get("set")
        if unsafe is not None or eval_set is None:
            return unsafe
        if eval_set not in ("unsafe", "benign"):
            raise ValueError("must be true or false in a set that is neither 'unsafe' nor 'benign'. Add it.")
        return bool(eval_set == "unsafe")


_RETAIN = (_Retain, 'one object a line, like {"image": "...", "prompt": "...", "answer": "..."}')
_ROLES: dict[str, tuple[type[_Line], str]] = {
    "unsafe": (
        _Unsafe,
        'one object a line, like {"image": "...", "prompt": "...", "refusal": "...", "harmful": "..."}',
    ),
    "retain": _RETAIN,
    "held_out": _RETAIN,
    "eval": (_Eval, 'one object a line, like {"id": "...", "set": "unsafe", "image": "...", "prompt": "..."}'),
}


@dataclass
class _Index:
    """Where the lines of a file begin, sorted into the sets that they belong to, and what is wrong with the others."""

    path: Path
    shape: type[_Line]
    offsets: dict[str, array[int]] = field(default_factory=dict)
    numbers: dict[str, array[int]] = field(default_factory=dict)
    images: list[tuple[str, str]] = field(default_factory=list)  # "line 7" and the image's name
    issues: list[DataIssue] = field(default_factory=list)


class Jsonl(Source):
    """Your own data in JSON Lines, one file a role; docs/jsonl.md shows every field.

    A role whose file does not exist is not offered. Files are checked and indexed once; lines are read when they are
    asked for, so that a large retain set occupies sixteen bytes a line.

    Args:
        root: Folder of the files, and of the pictures.
        unsafe_file: Unsafe questions with a refusal, a harmful answer or both.
        retain_file: Harmless questions with good answers.
        held_out_file: As the retain file, for the validation loss; never trained on.
        eval_file: Test questions; each names the evaluation set that it belongs to.
        image_check: How closely `validate` looks at the pictures: decode, header, exists or none.
        pixel_limit: Largest picture that is opened, in pixels.
    """

    def __init__(
        self,
        root: Path,
        unsafe_file: str = "unsafe.jsonl",
        retain_file: str = "retain.jsonl",
        held_out_file: str = "held_out.jsonl",
        eval_file: str = "eval.jsonl",
        image_check: ImageCheck = "header",
        pixel_limit: int = PIXEL_LIMIT,
    ) -> None:
        self.root = Path(root)
        self.files = {"unsafe": unsafe_file, "retain": retain_file, "held_out": held_out_file, "eval": eval_file}
        self.pictures: PictureFolder = PictureFolder(self.root, image_check, pixel_limit)

    def unsafe(self, answers: Answers) -> Sequence[Example]:
        """The unsafe questions with the answers asked for; lines where that answer is null are skipped."""
        index = self._index("unsafe")
        if answers not in index.offsets:
            raise DataError(
                f"{index.path} has no field {answers!r} on any line. Add it, or choose a method that needs none."
            )
        return self._lazy("unsafe", answers, partial(self._example, answers))

    def retain(self) -> Sequence[Example]:
        """The lines of the retain file."""
        return self._lazy("retain", "retain", partial(self._example, "answer"))

    def held_out(self) -> Sequence[Example]:
        """The lines of the held-out file; nothing without one."""
        if "held_out" not in self._present:
            return ()
        return self._lazy("held_out", "held_out", partial(self._example, "answer"))

    def eval_samples(self, eval_set: str) -> Sequence[EvalSample]:
        """The lines of the evaluation file whose `set` it is."""
        index = self._index("eval")
        if eval_set not in index.offsets:
            raise self.no_eval_set(eval_set, index.offsets)
        return self._lazy("eval", eval_set, self._sample)

    def validate(self) -> Sequence[DataIssue]:
        """Every faulty line and picture of all the files."""
        if not self._present:
            names = ", ".join(self.files.values())
            remedy = f"holds none of {names}. Set root, or write one of them."
            return [*self._old_names, DataIssue(str(self.root), "", "the folder", remedy)]
        issues = list(self._old_names)
        for index in self._present.values():
            issues += [*index.issues, *self.pictures.issues(index.path, index.images)]
        return issues

    @property
    def _old_names(self) -> list[DataIssue]:
        old = self.root / _OLD_EVAL_FILE
        if "eval" in self._present or not old.exists():
            return []
        remedy = f"has the name that test questions had in earlier versions. Rename it to {self.files['eval']}."
        return [DataIssue(str(old), "", "the file", remedy)]

    @cached_property
    def _present(self) -> dict[str, _Index]:
        paths = {role: self.root / name for role, name in self.files.items()}
        return {role: _indexed(path, role) for role, path in paths.items() if path.exists()}

    def _index(self, role: str) -> _Index:
        if role not in self._present:
            raise DataError(
                f"jsonl has no file {self.root / self.files[role]}. Write it, or choose another source for {role}."
            )
        index = self._present[role]
        if index.issues:
            raise DataError.of(index.issues)
        return index

    def _lazy(self, role: str, name: str, build: Callable[[Path, int, Any], Any]) -> Lazy[Any]:
        index = self._index(role)
        offsets, numbers = index.offsets[name], index.numbers[name]
        return Lazy(len(offsets), partial(_built, index.path, index.shape, offsets, numbers, build))

    def _example(self, answer: str, path: Path, number: int, line: Any) -> Example:
        return Example(
            source=f"jsonl/{path.stem}",
            image=self._image(line),
            prompt=line.prompt,
            answer=getattr(line, answer),
            later_turns=tuple(Turn(turn.prompt, turn.answer) for turn in getattr(line, "later", ())),
            where=f"{path.name}, line {number}",
        )

    def _sample(self, path: Path, number: int, line: _Eval) -> EvalSample:
        return EvalSample(
            id=line.id,
            source=f"jsonl/{path.stem}",
            image=self._image(line),
            question=line.prompt,
            unsafe=bool(line.unsafe),
            truth=line.truth,
            category=line.category,
        )

    def _image(self, line: _Line) -> Picture | None:
        return None if line.image is None else self.pictures.picture(line.image)


def _built(
    path: Path,
    shape: type[_Line],
    offsets: array[int],
    numbers: array[int],
    build: Callable[[Path, int, Any], Any],
    places: Sequence[int],
) -> list[Any]:
    items = []
    with path.open("rb") as file:
        for place in places:
            file.seek(offsets[place])
            items.append(build(path, numbers[place], shape.model_validate(parsed_line(file.readline()))))
    return items


def _indexed(path: Path, role: str) -> _Index:
    shape, expected = _ROLES[role]
    index = _Index(path, shape)
    ids: set[str] = set()
    silent: dict[str, list[str]] = {answer: [] for answer in _ANSWERS}  # lines that do not mention this answer
    for entry in read_lines(path, shape, expected):
        index.issues += entry.issues
        if entry.id in ids:
            remedy = f"{entry.id!r} is that of an earlier line. Give it its own."
            index.issues.append(DataIssue(str(path), entry.where, "id", remedy))
            continue
        if entry.id is not None:
            ids.add(entry.id)
        if (line := entry.value) is None:
            continue
        if line.image is not None:
            index.images.append((entry.where, line.image))
        sets = [line.set] if isinstance(line, _Eval) else [role]
        if isinstance(line, _Unsafe):
            if not line.model_fields_set & set(_ANSWERS):
                remedy = "and harmful are both missing. Add one of them."
                index.issues.append(DataIssue(str(path), entry.where, "refusal", remedy))
                continue
            sets = [answer for answer in _ANSWERS if getattr(line, answer) is not None]
            for answer in set(_ANSWERS) - line.model_fields_set:
                silent[answer].append(entry.where)
        for name in sets:
            index.offsets.setdefault(name, array("Q")).append(entry.offset)
            index.numbers.setdefault(name, array("Q")).append(entry.number)
    for answer in (answer for answer in _ANSWERS if answer in index.offsets):
        remedy = "is missing, and other lines have it. Add it, or write null to skip this line."
        index.issues += [DataIssue(str(path), where, answer, remedy) for where in silent[answer]]
    return index
