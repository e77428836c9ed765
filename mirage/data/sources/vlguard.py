"""VLGuard (Zong et al., 2024): safe and unsafe pictures with questions, refusals and answers."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple, TypeVar

from pydantic import Field, ValidationInfo, field_validator

from mirage.data.base import Answers, PictureFolder, Source
from mirage.data.sources.records import HarmfulAnswers, read_records
from mirage.errors import DataError, DataIssue
from mirage.images import PIXEL_LIMIT, ImageCheck, ImageName
from mirage.schema import EvalSample, Example
from mirage.shapes import AnyText, ExactShape, Text

_EXPECTED = 'a list of records like {"id": "...", "image": "...", "safe": true, "instr-resp": [{...}]}'
_QUESTIONS = {True: ["safe_instruction", "unsafe_instruction"], False: ["instruction"]}  # of a safe or unsafe picture
# Published twice, for one picture with other questions and answers. Both records count among the 977 safe ones.
_PUBLISHED_TWICE = {"Ads_303871"}
_NO_QUESTION = "n/a"
_EVAL_SETS = {"unsafe": "instruction", "benign": "safe_instruction", "unsafe_safe_image": "unsafe_instruction"}

_log = logging.getLogger(__name__)


class _Pair(ExactShape):
    """One question and its response, which is empty 17 times in the test split."""

    instruction: Text = ""
    safe_instruction: Text = ""
    unsafe_instruction: Text = ""
    response: AnyText

    @property
    def field(self) -> str:
        """The name of the field that holds the question."""
        return " + ".join(sorted(self.model_fields_set - {"response"}))


class _TrainPair(_Pair):
    response: Text


AnyPair = TypeVar("AnyPair", bound=_Pair)


class _Record(ExactShape, Generic[AnyPair]):
    id: Text
    image: ImageName
    safe: bool
    pairs: list[AnyPair] = Field(alias="instr-resp")
    harmful_category: AnyText | None = Field(default=None, validate_default=True)
    harmful_subcategory: AnyText | None = Field(default=None, validate_default=True)

    @field_validator("pairs")
    @classmethod
    def _complete(cls, pairs: list[AnyPair], info: ValidationInfo) -> list[AnyPair]:
        held = sorted(pair.field for pair in pairs)
        if "safe" in info.data and held != (wanted := _QUESTIONS[info.data["safe"]]):
            raise ValueError(f"has the questions {held}. It must have {wanted}, each with its response.")
        return pairs

    @field_validator("harmful_category", "harmful_subcategory")
    @classmethod
    def _named(cls, category: str | None, info: ValidationInfo) -> str | None:
        if info.data.get("safe") is False and not (category or "").strip():
            raise ValueError("is missing or empty. Write the category of the unsafe picture.")
        return category


class _Question(NamedTuple):
    """One question of a record."""

    id: str  # <record id>/<field>
    field: str  # instruction, safe_instruction or unsafe_instruction
    text: str
    response: str
    image: str
    category: str | None
    split: str  # train or test
    where: str


@dataclass(eq=False)
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

    root: Path
    train_file: str = "train.json"
    test_file: str = "test.json"
    train_images: str = "train"
    test_images: str = "test"
    unsafe_set: Literal["instruction", "all"] = "instruction"
    harmful_answers: Path | None = None
    num_held_out: int = 64
    image_check: ImageCheck = "header"
    pixel_limit: int = PIXEL_LIMIT

    def __post_init__(self) -> None:
        """Opens no file yet."""
        if self.num_held_out < 0:
            raise ValueError(f"VLGuard num_held_out is {self.num_held_out}: it must be 0 or more.")
        self.files = {"train": Path(self.root, self.train_file), "test": Path(self.root, self.test_file)}
        self.pictures: PictureFolder = PictureFolder(self.root, self.image_check, self.pixel_limit)
        which = "" if self.unsafe_set == "instruction" else f" --data.unsafe_set {self.unsafe_set}"
        self._command = f"mirage prepare --data VLGuard --data.root {self.root}{which} --answers_from MODEL --out OUT"
        self._harmful = None if self.harmful_answers is None else HarmfulAnswers(self.harmful_answers, self._command)

    def unsafe(self, answers: Answers) -> Sequence[Example]:
        """Unsafe questions with VLGuard's refusals, or with the harmful answers of `harmful_answers`."""
        questions = self._unsafe_questions
        if answers == "refusal":
            return [self._example(question, question.response) for question in questions]
        if self._harmful is None:
            raise DataError(
                "vlguard has refusals only, and unlearning needs harmful answers. Make them with "
                f"`{self._command}` (MODEL is a model's folder), and set harmful_answers to OUT/harmful_answers.jsonl."
            )
        harmful = self._harmful.by_id(question.id for question in questions)
        answered = [(question, harmful[question.id]) for question in questions]
        return [self._example(question, answer) for question, answer in answered if answer is not None]

    def retain(self) -> Sequence[Example]:
        """The harmless questions about safe training pictures, with their answers."""
        return [self._example(each, each.response) for each in self._training[0] if each.field == "safe_instruction"]

    def held_out(self) -> Sequence[Example]:
        """The first harmless test questions that have an answer (17 of the 558 published ones are empty)."""
        safe = [question for question in self._questions("test") if question.field == "safe_instruction"]
        answered = [question for question in safe if question.response.strip()]
        return [self._example(question, question.response) for question in answered[: self.num_held_out]]

    def eval_samples(self, eval_set: str) -> Sequence[EvalSample]:
        """The test questions of `unsafe`, `benign` or `unsafe_safe_image`; `train_unsafe` for `mirage prepare`."""
        if eval_set not in (*_EVAL_SETS, "train_unsafe"):
            raise self.no_eval_set(eval_set, (*_EVAL_SETS, "train_unsafe"))
        field = _EVAL_SETS.get(eval_set)
        chosen = [each for each in self._questions("test") if each.field == field] if field else self._unsafe_questions
        return [
            EvalSample(
                id=question.id,
                source=f"vlguard/{question.split}",
                image=self.pictures.picture(self._image(question)),
                question=question.text,
                unsafe=question.field != "safe_instruction",
                category=question.category,
            )
            for question in chosen
        ]

    def skipped(self) -> Sequence[DataIssue]:
        """The training records that are not trained on, each with the reason."""
        skipped = list(self._training[1])
        if self._harmful is not None:
            harmful = self._harmful.by_id(())
            remedy = f"has no harmful answer in {self._harmful.file}."
            skipped += [
                DataIssue(self.train_file, question.where, question.field, remedy)
                for question in self._unsafe_questions
                if harmful.get(question.id) is None
            ]
        return skipped

    def validate(self) -> Sequence[DataIssue]:
        """Every faulty record and picture of both splits, and every unsafe question without a harmful answer."""
        issues = [issue for _, in_file in self._read.values() for issue in in_file]
        sound = not issues
        for split, (questions, _) in self._read.items():
            images = {question.where: self._image(question) for question in questions}
            issues += self.pictures.issues(self.files[split], list(images.items()))
        if self._harmful is not None and sound:
            issues += self._harmful.issues(question.id for question in self._unsafe_questions)
        return issues

    @cached_property
    def _read(self) -> dict[str, tuple[list[_Question], list[DataIssue]]]:
        """The questions of each file's sound records, and the issues of the others."""
        shapes: dict[str, type[_Record[Any]]] = {"train": _Record[_TrainPair], "test": _Record[_Pair]}
        return {split: _read_file(file, shapes[split], split) for split, file in self.files.items()}

    def _questions(self, split: str) -> list[_Question]:
        questions, issues = self._read[split]
        if issues:
            raise DataError.of(issues)
        return questions

    @cached_property
    def _training(self) -> tuple[list[_Question], list[DataIssue]]:
        """Questions to train on, and what is skipped."""
        questions = self._questions("train")
        in_both = {each.image for each in questions} & {each.image for each in self._questions("test")}
        kept: list[_Question] = []
        skipped: list[DataIssue] = []
        for each in questions:
            field, remedy = each.field, f"is only {each.text!r}."
            if each.image in in_both:
                field, remedy = "image", f"{each.image} is in the test set too."
            if each.image in in_both or each.text.strip().lower() == _NO_QUESTION:
                skipped.append(DataIssue(self.train_file, each.where, field, remedy))
            else:
                kept.append(each)
        if skipped:
            _log.warning(
                "%s: not trained on: %d questions that are only 'N/A', %d pictures that are in the test set too (%s)",
                self.files["train"],
                sum(issue.field != "image" for issue in skipped),
                len(in_both),
                ", ".join(sorted(in_both)),
            )
        return kept, skipped

    @property
    def _unsafe_questions(self) -> list[_Question]:
        fields = ("instruction", "unsafe_instruction") if self.unsafe_set == "all" else ("instruction",)
        return [question for question in self._training[0] if question.field in fields]

    def _image(self, question: _Question) -> str:
        """The image's name below `root`."""
        folder = self.train_images if question.split == "train" else self.test_images
        return question.image if folder == "." else f"{folder}/{question.image}"

    def _example(self, question: _Question, answer: str) -> Example:
        return Example(
            source=f"vlguard/{question.split}",
            image=self.pictures.picture(self._image(question)),
            prompt=question.text,
            answer=answer,
            where=f"{self.train_file if question.split == 'train' else self.test_file}, {question.where}",
        )


def _read_file(path: Path, shape: type[_Record[Any]], split: str) -> tuple[list[_Question], list[DataIssue]]:
    questions: list[_Question] = []
    issues: list[DataIssue] = []
    seen: Counter[str] = Counter()
    for record, where, *_ in read_records(path, shape, _EXPECTED, issues, may_repeat=_PUBLISHED_TWICE):
        seen[record.id] += 1
        key = record.id if seen[record.id] == 1 else f"{record.id}#{seen[record.id]}"
        category = None if record.safe else f"{record.harmful_category}/{record.harmful_subcategory}"
        for pair in record.pairs:
            id, text = f"{key}/{pair.field}", getattr(pair, pair.field)
            questions.append(_Question(id, pair.field, text, pair.response, record.image, category, split, where))
    return questions, issues
