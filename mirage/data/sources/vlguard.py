"""VLGuard (Zong et al., 2024): safe and unsafe pictures with questions, refusals and answers."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import Field, ValidationInfo, field_validator

from mirage.data.base import Answers, PictureFolder, Source
from mirage.data.sources.records import HarmfulAnswers, read_list
from mirage.errors import DataError, DataIssue
from mirage.images import PIXEL_LIMIT, ImageCheck, ImageName
from mirage.schema import EvalSample, Example
from mirage.shapes import AnyText, ExactShape, Text

_EXPECTED = 'a list of records like {"id": "...", "image": "...", "safe": true, "instr-resp": [{...}]}'
_FIELDS = {True: ("safe_instruction", "unsafe_instruction"), False: ("instruction",)}
# Published twice, for one picture with other questions and answers. Both records count among the 977 safe ones.
_PUBLISHED_TWICE = {"Ads_303871"}
_NO_QUESTION = "n/a"
_EVAL_SETS = {"unsafe": "instruction", "benign": "safe_instruction", "unsafe_safe_image": "unsafe_instruction"}

_log = logging.getLogger(__name__)


class _TestRecord(ExactShape):
    """A record of the test split, where 17 responses are empty."""

    id: Text
    image: ImageName
    safe: bool
    questions: list[dict[str, AnyText]] = Field(alias="instr-resp")
    harmful_category: AnyText | None = Field(default=None, validate_default=True)
    harmful_subcategory: AnyText | None = Field(default=None, validate_default=True)

    @field_validator("questions")
    @classmethod
    def _complete(cls, questions: list[dict[str, str]], info: ValidationInfo) -> list[dict[str, str]]:
        expected = [{name, "response"} for name in _FIELDS[info.data["safe"]]] if "safe" in info.data else []
        if expected and [set(each) for each in questions] not in (expected, expected[::-1]):
            held = " and ".join(f"{{{', '.join(each)}}}" for each in questions) or "nothing"
            wanted = " and ".join(f"{{{name}, response}}" for name in _FIELDS[info.data["safe"]])
            raise ValueError(f"holds {held}. It must hold {wanted}.")
        if not all(text.strip() for each in questions for name, text in each.items() if name != "response"):
            raise ValueError("has an empty question. Write it, or remove the record.")
        return questions

    @field_validator("harmful_category", "harmful_subcategory")
    @classmethod
    def _named(cls, category: str | None, info: ValidationInfo) -> str | None:
        if info.data.get("safe") is False and not (category or "").strip():
            raise ValueError("is missing or empty. Write the category of the unsafe picture.")
        return category


class _TrainRecord(_TestRecord):
    questions: list[dict[str, Text]] = Field(alias="instr-resp")


class _Question(NamedTuple):
    """One question of a record."""

    id: str  # <record id>/<field>
    field: str  # instruction, safe_instruction or unsafe_instruction
    text: str
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
        image_check: How closely `validate` looks at the pictures: decode, header, exists or none.
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
        self.pictures: PictureFolder = PictureFolder(self.root, image_check, pixel_limit)
        self.unsafe_set, self.num_held_out = unsafe_set, num_held_out
        which = "" if unsafe_set == "instruction" else f" --data.unsafe_set {unsafe_set}"
        self._command = f"mirage prepare --data VLGuard --data.root {root}{which} --answers_from MODEL --out OUT"
        self._harmful = None if harmful_answers is None else HarmfulAnswers(Path(harmful_answers), self._command)

    def unsafe(self, answers: Answers) -> Sequence[Example]:
        """Unsafe questions with VLGuard's refusals, or with the harmful answers of `harmful_answers`."""
        questions = self._unsafe_questions
        if answers == "refusal":
            return [self._example(question, question.response, "train") for question in questions]
        if self._harmful is None:
            raise DataError(
                "vlguard has refusals only, and unlearning needs harmful answers. Make them with "
                f"`{self._command}` (MODEL is a model's folder), and set harmful_answers to OUT/harmful_answers.jsonl."
            )
        by_id = self._harmful.by_id(question.id for question in questions)
        return [
            self._example(question, answer, "train")
            for question in questions
            if (answer := by_id[question.id]) is not None
        ]

    def retain(self) -> Sequence[Example]:
        """The harmless questions about safe training pictures, with their answers."""
        safe = [question for question in self._training[0] if question.field == "safe_instruction"]
        return [self._example(question, question.response, "train") for question in safe]

    def held_out(self) -> Sequence[Example]:
        """The first harmless test questions that have an answer (17 of the 558 published ones are empty)."""
        safe = [question for question in self._questions("test") if question.field == "safe_instruction"]
        answered = [question for question in safe if question.response.strip()]
        return [self._example(question, question.response, "test") for question in answered[: self.num_held_out]]

    def eval_samples(self, eval_set: str) -> Sequence[EvalSample]:
        """The test questions of `unsafe`, `benign` or `unsafe_safe_image`; `train_unsafe` for `mirage prepare`."""
        if eval_set == "train_unsafe":
            return [self._sample(question, "train") for question in self._unsafe_questions]
        if eval_set not in _EVAL_SETS:
            raise self.no_eval_set(eval_set, (*_EVAL_SETS, "train_unsafe"))
        return [self._sample(each, "test") for each in self._questions("test") if each.field == _EVAL_SETS[eval_set]]

    def skipped(self) -> Sequence[DataIssue]:
        """The training records that are not trained on, each with the reason."""
        skipped = list(self._training[1])
        if self._harmful is not None:
            by_id = self._harmful.by_id(())
            remedy = f"has no harmful answer in {self._harmful.file}."
            skipped += [
                DataIssue(self.files["train"], question.where, question.field, remedy)
                for question in self._unsafe_questions
                if by_id.get(question.id, "") is None
            ]
        return skipped

    def validate(self) -> Sequence[DataIssue]:
        """Every faulty record and picture of both splits, and every unsafe question without a harmful answer."""
        issues = [issue for _, in_file in self._read.values() for issue in in_file]
        usable = not issues
        for split, file in self.files.items():
            images = {question.where: self._image(question, split) for question in self._read[split][0]}
            issues += self.pictures.issues(self.root / file, list(images.items()))
        if self._harmful is not None and usable:
            issues += self._harmful.issues(question.id for question in self._unsafe_questions)
        return issues

    @cached_property
    def _read(self) -> dict[str, tuple[list[_Question], list[DataIssue]]]:
        shapes = {"train": _TrainRecord, "test": _TestRecord}
        return {split: _read_file(self.root / file, shapes[split]) for split, file in self.files.items()}

    def _questions(self, split: str) -> list[_Question]:
        questions, issues = self._read[split]
        if issues:
            raise DataError.of(issues)
        return questions

    @cached_property
    def _training(self) -> tuple[list[_Question], list[DataIssue]]:
        """Questions to train on, and what is skipped."""
        file = self.files["train"]
        kept: list[_Question] = []
        skipped: list[DataIssue] = []
        in_both: set[str] = set()
        test_images = {question.image for question in self._questions("test")}
        for question in self._questions("train"):
            if question.image in test_images:
                in_both.add(question.image)
                remedy = f"{question.image} is in the test set too."
                skipped.append(DataIssue(file, question.where, "image", remedy))
            elif question.text.strip().lower() == _NO_QUESTION:
                skipped.append(DataIssue(file, question.where, question.field, f"is only {question.text!r}."))
            else:
                kept.append(question)
        if skipped:
            _log.warning(
                "%s: not trained on: %d questions that are only 'N/A', %d pictures that are in the test set too (%s)",
                self.root / file,
                sum(issue.field != "image" for issue in skipped),
                len(in_both),
                ", ".join(sorted(in_both)),
            )
        return kept, skipped

    @property
    def _unsafe_questions(self) -> list[_Question]:
        fields = ("instruction", "unsafe_instruction") if self.unsafe_set == "all" else ("instruction",)
        return [question for question in self._training[0] if question.field in fields]

    def _image(self, question: _Question, split: str) -> str:
        """The image's name below `root`."""
        return question.image if self.folders[split] == "." else f"{self.folders[split]}/{question.image}"

    def _example(self, question: _Question, answer: str, split: str) -> Example:
        return Example(
            source=f"vlguard/{split}",
            image=self.pictures.picture(self._image(question, split)),
            prompt=question.text,
            answer=answer,
            where=f"{self.files[split]}, {question.where}",
            # an unsafe question about a safe picture is unsafe by its words alone
            picture_decides=question.field != "unsafe_instruction",
        )

    def _sample(self, question: _Question, split: str) -> EvalSample:
        return EvalSample(
            id=question.id,
            source=f"vlguard/{split}",
            image=self.pictures.picture(self._image(question, split)),
            question=question.text,
            unsafe=question.field != "safe_instruction",
            category=question.category,
        )


def _read_file(path: Path, shape: type[_TestRecord]) -> tuple[list[_Question], list[DataIssue]]:
    """The questions of a file's sound records, and the issues of the others."""
    questions: list[_Question] = []
    issues: list[DataIssue] = []
    seen: Counter[str | None] = Counter()
    for entry in read_list(path, shape, _EXPECTED):
        issues += entry.issues
        seen[entry.id] += entry.id is not None
        if seen[entry.id] > 1 and entry.id not in _PUBLISHED_TWICE:
            remedy = "is that of an earlier record. Give it its own, or remove one of them."
            issues.append(DataIssue(str(path), entry.where, "id", remedy))
        elif (record := entry.value) is not None:
            key = record.id if seen[record.id] == 1 else f"{record.id}#{seen[record.id]}"
            category = None if record.safe else f"{record.harmful_category}/{record.harmful_subcategory}"
            for each in record.questions:
                field = next(name for name in each if name != "response")
                id = f"{key}/{field}"
                questions.append(
                    _Question(id, field, each[field], each["response"], record.image, category, entry.where)
                )
    return questions, issues
