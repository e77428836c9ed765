"""VLGuard (Zong et al., 2024): safe and unsafe pictures with questions, refusals and answers."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

from mirage.data.base import Answers, Source
from mirage.errors import DataError, DataIssue
from mirage.images import PIXEL_LIMIT, FileImage, ImageCheck, faulty_images, name_fault
from mirage.json_file import BrokenFile, read_answers, records, text_fault
from mirage.schema import EvalSample, Example, Picture
from mirage.shapes import json_name

_SHAPE = 'a list of records like {"id": "...", "image": "...", "safe": true, "instr-resp": [{...}]}'
_QUESTIONS = {True: ("safe_instruction", "unsafe_instruction"), False: ("instruction",)}
_FIELDS = {"id", "image", "safe", "instr-resp", "harmful_category", "harmful_subcategory"}
# Published twice, for one picture with other questions and answers. Both records count among the 977 safe ones.
_PUBLISHED_TWICE = {"Ads_303871"}
_NO_QUESTION = "n/a"
_PROBES = {"unsafe": "instruction", "benign": "safe_instruction", "unsafe_safe_image": "unsafe_instruction"}

_log = logging.getLogger(__name__)


class _Pair(NamedTuple):
    """One question of a record that has been checked."""

    id: str  # <record id>/<field>
    field: str  # instruction, safe_instruction or unsafe_instruction
    question: str
    response: str
    image: str
    category: str | None
    where: str


class VLGuard(Source):
    """VLGuard: 2000 records to train on and 1000 to test with, as its authors publish them.

    The unsafe set is `instruction` (questions about the 1023 unsafe pictures). Left out of training, and named in the
    log: the 14 questions that are only "N/A", and the 8 pictures that are in both splits. Of 977 safe pictures 974 stay
    for the retain set, of 1023 unsafe questions 1004.

    EvalSample sets: `unsafe` (442), `benign` (558), `unsafe_safe_image` (558 unsafe questions about safe pictures), and
    `train_unsafe`, the questions of the unsafe set, for which harmful answers are to be made.

    Args:
        root: Folder with both JSON files and the picture folders.
        train_file: Training records, below `root`.
        test_file: Test records, below `root`.
        train_images: Folder of the training pictures, below `root`; '.' where they lie in `root` itself.
        test_images: Folder of the test pictures, below `root`.
        unsafe_set: `instruction` is the unsafe set of the paper; `all` adds the unsafe questions about safe pictures,
            as safety fine-tuning does.
        harmful_answers: File that `mirage prepare` wrote: one JSON line for each unsafe question, with `id`
            ('<record id>/<field>') and `answer`. NPO and RMU need it. An answer of null leaves its question out.
        num_held_out: Test answers to harmless questions that serve for the validation loss.
        image_check: How closely `faults` looks at the pictures: decode, header, exists or none.
        pixel_limit: Largest picture that is opened, in pixels.
    """

    def __init__(
        self,
        root: Path,
        train_file: str = "train.json",
        test_file: str = "test.json",
        train_images: str = "train",
        test_images: str = "test",
        unsafe_set: Literal["instruction", "all"] = "instruction",
        harmful_answers: Path | None = None,
        num_held_out: int = 64,
        image_check: ImageCheck = "header",
        pixel_limit: int = PIXEL_LIMIT,
    ) -> None:
        if num_held_out < 0:
            raise ValueError(f"VLGuard num_held_out is {num_held_out}: it must be 0 or more.")
        self.root = Path(root)
        self.files = {"train": train_file, "test": test_file}
        self.folders = {"train": train_images, "test": test_images}
        self.unsafe_set, self.harmful_answers = unsafe_set, harmful_answers
        self.num_held_out, self.image_check, self.pixel_limit = num_held_out, image_check, pixel_limit

    def unsafe(self, answers: Answers) -> Sequence[Example]:
        """Unsafe questions with VLGuard's refusals, or with the harmful answers of `harmful_answers`."""
        pairs = self._unsafe_pairs
        if answers == "refusal":
            return [self._example(pair, pair.response) for pair in pairs]
        if self.harmful_answers is None:
            raise DataError(
                "vlguard has refusals only, and unlearning needs harmful answers. Make them with "
                f"`{self._command}` (MODEL is a model's folder), and set harmful_answers to OUT/harmful_answers.jsonl."
            )
        found = self._harmful
        if unanswered := [self._unanswered(pair) for pair in pairs if pair.id not in found]:
            raise DataError.of(unanswered)
        return [self._example(pair, answer) for pair in pairs if (answer := found[pair.id]) is not None]

    def retain(self) -> Sequence[Example]:
        """The harmless questions about safe training pictures, with their answers."""
        return [self._example(pair, pair.response) for pair in self._training if pair.field == "safe_instruction"]

    def held_out(self) -> Sequence[Example]:
        """The first harmless test questions that have an answer (17 of the 558 published ones are empty)."""
        pairs = [pair for pair in self._pairs("test") if pair.field == "safe_instruction" and pair.response.strip()]
        return [self._example(pair, pair.response, "test") for pair in pairs[: self.num_held_out]]

    def eval_samples(self, eval_set: str) -> Sequence[EvalSample]:
        """The test questions of `unsafe`, `benign` or `unsafe_safe_image`; `train_unsafe` for `mirage prepare`."""
        if eval_set == "train_unsafe":
            return [self._sample(pair, "train") for pair in self._unsafe_pairs]
        if eval_set not in _PROBES:
            raise DataError(
                f"vlguard has no samples called {eval_set!r}. It has: {', '.join((*_PROBES, 'train_unsafe'))}."
            )
        return [self._sample(pair, "test") for pair in self._pairs("test") if pair.field == _PROBES[eval_set]]

    def picture(self, name: str) -> Picture | None:
        """The file below `root`, its picture folder included."""
        return FileImage(self.root, name, self.pixel_limit)

    def skipped(self) -> Sequence[DataIssue]:
        """The training records that are not trained on, each with the reason."""
        found = list(self._split_training[1])
        if self.harmful_answers is not None:
            unusable = [pair for pair in self._unsafe_pairs if self._harmful.get(pair.id, "") is None]
            remedy = f"has no harmful answer in {self.harmful_answers}."
            found += [DataIssue(self.files["train"], pair.where, pair.field, remedy) for pair in unusable]
        return found

    def validate(self) -> Sequence[DataIssue]:
        """Every faulty record and picture of both splits, and every unsafe question without a harmful answer."""
        found = [fault for split in ("train", "test") for fault in self._read[split][1]]
        for split in ("train", "test"):
            found += self._image_faults(split)
        if self.harmful_answers is not None and not any(faults for _, faults in self._read.values()):
            try:
                found += [self._unanswered(pair) for pair in self._unsafe_pairs if pair.id not in self._harmful]
            except BrokenFile as error:
                found.append(error.fault)
            except DataError as error:
                found.append(DataIssue(str(self.harmful_answers), "", "the file", f"has faults:\n{error}"))
        return found

    @cached_property
    def _read(self) -> dict[str, tuple[list[_Pair], list[DataIssue]]]:
        return {
            split: _checked(self.root / file, may_be_unanswered=split == "test") for split, file in self.files.items()
        }

    def _pairs(self, split: str) -> list[_Pair]:
        pairs, faults = self._read[split]
        if faults:
            raise DataError.of(faults)
        return pairs

    @cached_property
    def _split_training(self) -> tuple[list[_Pair], list[DataIssue]]:
        """Pairs to train on, and what was left out."""
        test_images = {pair.image for pair in self._pairs("test")}
        kept, skipped = [], []
        for pair in self._pairs("train"):
            if pair.image in test_images:
                skipped.append(
                    DataIssue(self.files["train"], pair.where, "image", f"{pair.image} is in the test set too.")
                )
            elif pair.question.strip().lower() == _NO_QUESTION:
                skipped.append(DataIssue(self.files["train"], pair.where, pair.field, f"is only {pair.question!r}."))
            else:
                kept.append(pair)
        if skipped:
            both = sorted(test_images & {pair.image for pair in self._pairs("train")})
            _log.warning(
                "%s: not trained on: %d questions that are only 'N/A', %d pictures that are in the test set too (%s)",
                self.root / self.files["train"],
                sum(fault.field != "image" for fault in skipped),
                len(both),
                ", ".join(both),
            )
        return kept, skipped

    @property
    def _command(self) -> str:
        """What makes harmful answers to the questions of this unsafe set."""
        which = "" if self.unsafe_set == "instruction" else f" --data.unsafe_set {self.unsafe_set}"
        return f"mirage prepare --data VLGuard --data.root {self.root}{which} --answers_from MODEL --out OUT"

    @property
    def _training(self) -> list[_Pair]:
        return self._split_training[0]

    @property
    def _unsafe_pairs(self) -> list[_Pair]:
        fields = ("instruction", "unsafe_instruction") if self.unsafe_set == "all" else ("instruction",)
        return [pair for pair in self._training if pair.field in fields]

    @cached_property
    def _harmful(self) -> dict[str, str | None]:
        assert self.harmful_answers is not None
        return read_answers(Path(self.harmful_answers))

    def _unanswered(self, pair: _Pair) -> DataIssue:
        remedy = f"lacks a line for {pair.id!r}. Run `{self._command}` again."
        return DataIssue(str(self.harmful_answers), "", "the file", remedy)

    def _picture(self, pair: _Pair, split: str) -> FileImage:
        folder = self.folders[split]
        return FileImage(self.root, pair.image if folder == "." else f"{folder}/{pair.image}", self.pixel_limit)

    def _example(self, pair: _Pair, answer: str, split: str = "train") -> Example:
        return Example(
            source=f"vlguard/{split}",
            image=self._picture(pair, split),
            prompt=pair.question,
            answer=answer,
            where=f"{self.files[split]}, {pair.where}",
        )

    def _sample(self, pair: _Pair, split: str) -> EvalSample:
        return EvalSample(
            id=pair.id,
            source=f"vlguard/{split}",
            image=self._picture(pair, split),
            question=pair.question,
            unsafe=pair.field != "safe_instruction",
            category=pair.category,
        )

    def _image_faults(self, split: str) -> Iterator[DataIssue]:
        pairs = self._read[split][0]
        folder = self.root / self.folders[split]
        wrong = faulty_images(folder, (pair.image for pair in pairs), self.image_check, self.pixel_limit)
        records_of = {pair.where: pair.image for pair in pairs if pair.image in wrong}
        for where, image in records_of.items():
            yield DataIssue(str(self.root / self.files[split]), where, "image", wrong[image])


def _checked(path: Path, may_be_unanswered: bool) -> tuple[list[_Pair], list[DataIssue]]:
    """The questions of a file's sound records, and the faults of the others."""
    pairs: list[_Pair] = []
    faults: list[DataIssue] = []
    seen: Counter[str] = Counter()
    index = -1
    try:
        for index, record in enumerate(records(path, _SHAPE)):
            where, found = f"record {index}", _record_faults(record, may_be_unanswered)
            if isinstance(record, dict) and isinstance(record.get("id"), str):
                key = record["id"]
                where += f" (id {key})"
                seen[key] += 1
                if seen[key] > 1 and key not in _PUBLISHED_TWICE:
                    found.append(("id", "is that of an earlier record. Give it its own, or remove one of them."))
            if found:
                faults += [DataIssue(str(path), where, field, remedy) for field, remedy in found]
            else:
                pairs += _pairs_of(record, seen[key], where)
    except BrokenFile as error:
        faults.append(error.fault)
    if index < 0 and not faults:
        faults.append(DataIssue(str(path), "", "the file", f"has no records. Expected {_SHAPE}."))
    return pairs, faults


def _pairs_of(record: Any, occurrence: int, where: str) -> Iterator[_Pair]:
    """The questions of a sound record."""
    key = record["id"] if occurrence == 1 else f"{record['id']}#{occurrence}"
    category = None if record["safe"] else f"{record['harmful_category']}/{record['harmful_subcategory']}"
    for pair in record["instr-resp"]:
        field = next(name for name in _QUESTIONS[record["safe"]] if name in pair)
        yield _Pair(f"{key}/{field}", field, pair[field], pair["response"], record["image"], category, where)


def _record_faults(record: object, may_be_unanswered: bool) -> list[tuple[str, str]]:
    """Field and remedy of everything that is wrong in a record."""
    if not isinstance(record, dict):
        return [("the record", f"is {json_name(record)}. Expected {_SHAPE}.")]
    found = [
        (name, "is not a field of VLGuard. Correct its name or remove it.") for name in record if name not in _FIELDS
    ]
    if remedy := text_fault(record, "id"):
        found.append(("id", remedy))
    if remedy := text_fault(record, "image") or name_fault(record["image"]):
        found.append(("image", remedy))
    safe = record.get("safe")
    if not isinstance(safe, bool):
        what = f"is {json_name(safe)}" if "safe" in record else "is missing"
        return [*found, ("safe", f"{what}. It must be true or false.")]
    if not safe:
        for name in ("harmful_category", "harmful_subcategory"):
            if remedy := text_fault(record, name):
                found.append((name, remedy))
    return found + _answer_faults(record.get("instr-resp"), _QUESTIONS[safe], may_be_unanswered)


def _answer_faults(pairs: object, expected: tuple[str, ...], may_be_unanswered: bool) -> list[tuple[str, str]]:
    wanted = " and ".join(f'{{"{name}", "response"}}' for name in expected)
    if not isinstance(pairs, list) or not pairs:
        what = "is empty" if pairs == [] else f"is {json_name(pairs)}"
        return [("instr-resp", f"{what}. It must be a list of {wanted}.")]
    found: list[tuple[str, str]] = []
    asked: Counter[str] = Counter()
    for number, pair in enumerate(pairs):
        at = f"instr-resp[{number}]"
        if not isinstance(pair, dict):
            found.append((at, f"is {json_name(pair)}. It must be an object with a question and a response."))
            continue
        questions = [name for name in pair if name in expected]
        if len(questions) != 1 or set(pair) - {"response", *expected}:
            held = ", ".join(map(repr, pair)) or "nothing"
            found.append((at, f"holds {held}. It must hold 'response' and one of {', '.join(map(repr, expected))}."))
            continue
        asked[questions[0]] += 1
        for name, may_be_empty in ((questions[0], False), ("response", may_be_unanswered)):
            if remedy := text_fault(pair, name, may_be_empty=may_be_empty):
                found.append((f"{at}.{name}", remedy))
    if not found and asked != Counter(expected):
        found.append(("instr-resp", f"asks {', '.join(asked.elements())}. It must hold {wanted}, once each."))
    return found
