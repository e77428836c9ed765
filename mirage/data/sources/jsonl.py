"""mirage's own format: JSON Lines files of unsafe questions, retain examples and samples. docs/jsonl.md describes it."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from mirage.data.base import Answers, Source
from mirage.data.lazy import Lazy
from mirage.errors import DataError, DataIssue
from mirage.images import PIXEL_LIMIT, FileImage, ImageCheck, faulty_images, name_fault
from mirage.json_file import BrokenFile, lines, parsed_line, text_fault
from mirage.schema import EvalSample, Example, Picture, Turn
from mirage.shapes import json_name

_REQUIRED = {"unsafe": ("prompt",), "retain": ("prompt", "answer"), "samples": ("id", "set", "prompt")}
_OPTIONAL = {
    "unsafe": ("id", "image", "refusal", "harmful", "category"),
    "retain": ("id", "image", "later", "category"),
    "samples": ("image", "truth", "category", "unsafe"),
}
_OTHER_CHECKS = ("image", "later", "unsafe", "refusal", "harmful")
_ANSWERS = ("refusal", "harmful")
_SHAPES = {
    "unsafe": 'one object a line, like {"image": "...", "prompt": "...", "refusal": "...", "harmful": "..."}',
    "retain": 'one object a line, like {"image": "...", "prompt": "...", "answer": "..."}',
    "samples": 'one object a line, like {"id": "...", "set": "unsafe", "image": "...", "prompt": "..."}',
}


@dataclass
class _Index:
    """Where the lines of a file begin, sorted into the sets that they belong to, and what is wrong with the others."""

    path: Path
    offsets: dict[str, array[int]] = field(default_factory=dict)
    numbers: dict[str, array[int]] = field(default_factory=dict)
    images: dict[str, list[int]] = field(default_factory=dict)  # name -> line numbers
    faults: list[DataIssue] = field(default_factory=list)

    def add(self, name: str, number: int, offset: int) -> None:
        self.offsets.setdefault(name, array("Q")).append(offset)
        self.numbers.setdefault(name, array("Q")).append(number)


class Jsonl(Source):
    """Your own data in JSON Lines, one file a role; docs/jsonl.md shows every field.

    A role whose file does not exist is not offered. Files are checked and indexed once; lines are read when they are
    asked for, so that a large retain set occupies eight bytes a line.

    Args:
        root: Folder of the files, and of the pictures.
        unsafe_file: Unsafe questions with a refusal, a harmful answer or both.
        retain_file: Harmless questions with good answers.
        held_out_file: As the retain file, for the validation loss; never trained on.
        samples_file: Test questions; each names the eval_set that it belongs to.
        image_check: How closely `faults` looks at the pictures: decode, header, exists or none.
        pixel_limit: Largest picture that is opened, in pixels.
    """

    def __init__(
        self,
        root: Path,
        unsafe_file: str = "unsafe.jsonl",
        retain_file: str = "retain.jsonl",
        held_out_file: str = "held_out.jsonl",
        samples_file: str = "samples.jsonl",
        image_check: ImageCheck = "header",
        pixel_limit: int = PIXEL_LIMIT,
    ) -> None:
        self.root = Path(root)
        self.files = {"unsafe": unsafe_file, "retain": retain_file, "held_out": held_out_file, "samples": samples_file}
        self.image_check, self.pixel_limit = image_check, pixel_limit

    def unsafe(self, answers: Answers) -> Sequence[Example]:
        """The unsafe questions with the answers asked for; lines where that answer is null are left out."""
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
        """The lines of the samples file whose `set` it is."""
        index = self._index("samples")
        if eval_set not in index.offsets:
            raise DataError(f"{index.path} has no samples called {eval_set!r}. It has: {', '.join(index.offsets)}.")
        return self._lazy("samples", eval_set, self._sample)

    def picture(self, name: str) -> Picture | None:
        """The file below `root`."""
        return FileImage(self.root, name, self.pixel_limit)

    def validate(self) -> Sequence[DataIssue]:
        """Every faulty line and picture of all the files."""
        if not self._present:
            names = ", ".join(self.files.values())
            return [
                DataIssue(str(self.root), "", "the folder", f"holds none of {names}. Set root, or write one of them.")
            ]
        found: list[DataIssue] = []
        for index in self._present.values():
            found += index.faults
            wrong = faulty_images(self.root, index.images, self.image_check, self.pixel_limit)
            at = sorted((number, name) for name in wrong for number in index.images[name])
            found += [DataIssue(str(index.path), f"line {number}", "image", wrong[name]) for number, name in at]
        return found

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
        if index.faults:
            raise DataError.of(index.faults)
        return index

    def _lazy(self, role: str, name: str, build: Callable[[Path, int, dict[str, Any]], Any]) -> Lazy[Any]:
        index = self._index(role)
        offsets, numbers = index.offsets[name], index.numbers[name]
        return Lazy(len(offsets), partial(_built, index.path, offsets, numbers, build))

    def _example(self, answer: str, path: Path, number: int, line: dict[str, Any]) -> Example:
        return Example(
            source=f"jsonl/{path.stem}",
            image=self._picture(line),
            prompt=line["prompt"],
            answer=line[answer],
            later_turns=tuple(Turn(turn["prompt"], turn["answer"]) for turn in line.get("later", ())),
            where=f"{path.name}, line {number}",
        )

    def _sample(self, path: Path, number: int, line: dict[str, Any]) -> EvalSample:
        return EvalSample(
            id=line["id"],
            source=f"jsonl/{path.stem}",
            image=self._picture(line),
            question=line["prompt"],
            unsafe=line.get("unsafe", line["set"] == "unsafe"),
            truth=line.get("truth"),
            category=line.get("category"),
        )

    def _picture(self, line: dict[str, Any]) -> FileImage | None:
        name = line.get("image")
        return None if name is None else FileImage(self.root, name, self.pixel_limit)


def _built(
    path: Path,
    offsets: array[int],
    numbers: array[int],
    build: Callable[[Path, int, dict[str, Any]], Any],
    position: int,
) -> Any:
    with path.open("rb") as file:
        file.seek(offsets[position])
        line = parsed_line(file.readline())
    assert isinstance(line, dict)
    return build(path, numbers[position], line)


def _indexed(path: Path, role: str) -> _Index:
    kind = "retain" if role == "held_out" else role
    index = _Index(path)
    ids: set[str] = set()
    silent: dict[str, list[int]] = {answer: [] for answer in _ANSWERS}  # lines that do not mention this answer
    try:
        for line in lines(path, _SHAPES[kind]):
            if line.fault is not None:
                index.faults.append(line.fault)
                continue
            record: Any = line.record
            found = _line_faults(record, kind)
            if isinstance(record, dict) and isinstance(record.get("id"), str):
                if record["id"] in ids:
                    found.append(("id", f"{record['id']!r} is that of an earlier line. Give it its own."))
                ids.add(record["id"])
            index.faults += [DataIssue(str(path), f"line {line.number}", name, remedy) for name, remedy in found]
            if found:
                continue
            if record.get("image") is not None:
                index.images.setdefault(record["image"], []).append(line.number)
            for name in _sets_of(record, role):
                index.add(name, line.number, line.offset)
            if kind == "unsafe":
                for answer in _ANSWERS:
                    if answer not in record:
                        silent[answer].append(line.number)
    except BrokenFile as error:
        index.faults.append(error.fault)
    for answer in _ANSWERS:
        if answer in index.offsets:
            remedy = "is missing, and other lines have it. Add it, or write null to leave this line out."
            index.faults += [DataIssue(str(path), f"line {number}", answer, remedy) for number in silent[answer]]
    if not index.offsets and not index.faults:
        index.faults.append(DataIssue(str(path), "", "the file", f"has no lines. Expected {_SHAPES[kind]}."))
    return index


def _sets_of(record: dict[str, Any], role: str) -> list[str]:
    if role == "unsafe":
        return [answer for answer in _ANSWERS if record.get(answer) is not None]
    return [record["set"]] if role == "samples" else [role]


def _line_faults(record: object, kind: str) -> list[tuple[str, str]]:
    """Field and remedy of everything that is wrong in a line."""
    if not isinstance(record, dict):
        return [("the line", f"is {json_name(record)}. Expected {_SHAPES[kind]}.")]
    known = (*_REQUIRED[kind], *_OPTIONAL[kind])
    found = [(key, f"is no field of this file. It may have: {', '.join(known)}.") for key in record if key not in known]
    texts = [key for key in known if key in _REQUIRED[kind] or (key in record and key not in _OTHER_CHECKS)]
    texts += [answer for answer in _ANSWERS if record.get(answer) is not None]
    found += [(key, remedy) for key in texts if key in known and (remedy := text_fault(record, key))]
    if record.get("image") is not None and (remedy := name_fault(record["image"])):
        found.append(("image", remedy))
    if kind == "unsafe" and not any(answer in record for answer in _ANSWERS):
        found.append(("refusal", "and harmful are both missing. Add one of them."))
    if (
        kind == "samples"
        and record.get("set") not in ("unsafe", "benign")
        and not isinstance(record.get("unsafe"), bool)
    ):
        found.append(("unsafe", "must be true or false in a set that is neither 'unsafe' nor 'benign'. Add it."))
    elif kind == "samples" and not isinstance(record.get("unsafe", True), bool):
        found.append(("unsafe", f"is {json_name(record['unsafe'])}. It must be true or false."))
    if "later" in record and kind == "retain":
        found += _later_faults(record["later"])
    return found


def _later_faults(later: object) -> list[tuple[str, str]]:
    if not isinstance(later, list):
        return [("later", f"is {json_name(later)}. It must be a list of {{'prompt', 'answer'}}.")]
    found: list[tuple[str, str]] = []
    for number, turn in enumerate(later):
        if not isinstance(turn, dict) or set(turn) - {"prompt", "answer"}:
            found.append((f"later[{number}]", "must be an object with 'prompt' and 'answer' and nothing else."))
            continue
        found += [
            (f"later[{number}].{key}", remedy) for key in ("prompt", "answer") if (remedy := text_fault(turn, key))
        ]
    return found
