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

from mirage.data.answer_file import AnswerFile
from mirage.data.base import Answers, FileSource
from mirage.errors import DataError, DataIssue
from mirage.images import ImageName
from mirage.json_file import sound_records
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
    sample: EvalSample  # its id is <record id>/<field>
    field: str  # instruction, safe_instruction or unsafe_instruction
    response: str
    image: str  # as the record names it
    file: str
    where: str

    def answered(self, answer: str) -> Example:
        """The question with this answer, to train on."""
        source, image, prompt = self.sample.source, self.sample.image, self.sample.question
        return Example(
            source=source, image=image, prompt=prompt, answer=answer, where=self.sample.where,
            picture_decides=self.field != "unsafe_instruction",  # such a question is unsafe by its words alone
        )  # fmt: skip


@dataclass(eq=False)
class VLGuard(FileSource):
    """VLGuard: 2000 records to train on and 1000 to test with, as its authors publish them.

    The unsafe set is `instruction` (questions about the 1023 unsafe pictures). Left out of training, and named in the
    results: the 14 questions that are only "N/A", and the 8 pictures that are in both splits. Of 977 safe pictures 974
    stay for the retain set, of 1023 unsafe questions 1004.

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
    """

    root: Path
    train_file: str = "train.json"
    test_file: str = "test.json"
    train_images: str = "train"
    test_images: str = "test"
    unsafe_set: Literal["instruction", "all"] = "instruction"
    harmful_answers: Path | None = None
    num_held_out: int = 64

    def __post_init__(self) -> None:
        if self.num_held_out < 0:
            raise ValueError(f"VLGuard num_held_out is {self.num_held_out}: it must be 0 or more.")
        self.image_root = Path(self.root)
        which = "" if self.unsafe_set == "instruction" else f" --data.unsafe_set {self.unsafe_set}"
        self._command = f"mirage prepare --data VLGuard --data.root {self.root}{which} --answers_from MODEL --out OUT"
        self._harmful = None if self.harmful_answers is None else AnswerFile(self.harmful_answers, self._command)

    def unsafe(self, answers: Answers) -> Sequence[Example]:
        """Unsafe questions with VLGuard's refusals, or with the harmful answers of `harmful_answers`."""
        questions = self._unsafe_questions
        if answers == "refusal":
            return [each.answered(each.response) for each in questions]
        if self._harmful is None:
            raise DataError(
                "vlguard has refusals only, and unlearning needs harmful answers. Make them with "
                f"`{self._command}` (MODEL is a model's folder), and set harmful_answers to OUT/harmful_answers.jsonl."
            )
        harmful = self._harmful.by_id(each.sample.id for each in questions)
        return [each.answered(answer) for each in questions if (answer := harmful[each.sample.id]) is not None]

    def retain(self) -> Sequence[Example]:
        """The harmless questions about safe training pictures, with their answers."""
        return [each.answered(each.response) for each in self._training[0] if not each.sample.unsafe]

    def held_out(self) -> Sequence[Example]:
        """The first harmless test questions that have an answer (17 of the 558 published ones are empty)."""
        safe = [each for each in self._questions(self.test_file) if not each.sample.unsafe and each.response.strip()]
        return [each.answered(each.response) for each in safe[: self.num_held_out]]

    def eval_samples(self, eval_set: str) -> Sequence[EvalSample]:
        """The test questions of `unsafe`, `benign` or `unsafe_safe_image`; `train_unsafe` for `mirage prepare`."""
        if eval_set == "train_unsafe":
            return [each.sample for each in self._unsafe_questions]
        if eval_set not in _EVAL_SETS:
            raise self.no_eval_set(eval_set, (*_EVAL_SETS, "train_unsafe"))
        return [each.sample for each in self._questions(self.test_file) if each.field == _EVAL_SETS[eval_set]]

    def skipped(self) -> Sequence[DataIssue]:
        """The training records that are not trained on, each with the reason."""
        skipped = list(self._training[1])
        if self._harmful is not None:
            harmful = self._harmful.by_id(())
            remedy = f"has no harmful answer in {self._harmful.file}."
            silent = [each for each in self._unsafe_questions if harmful.get(each.sample.id) is None]
            skipped += [DataIssue(each.file, each.where, each.field, remedy) for each in silent]
        return skipped

    def validate(self) -> Sequence[DataIssue]:
        """Every faulty record and picture of both splits, and every unsafe question without a harmful answer."""
        questions, in_records = self._read
        issues = list(in_records)
        for file in (self.train_file, self.test_file):
            images = {
                each.where: each.sample.image.name for each in questions if each.file == file and each.sample.image
            }
            issues += self.picture_issues(Path(self.root, file), list(images.items()))
        if self._harmful is not None and not in_records:
            issues += self._harmful.issues(each.sample.id for each in self._unsafe_questions)
        return issues

    @cached_property
    def _read(self) -> tuple[list[_Question], list[DataIssue]]:
        """The questions of the sound records of both files, and the issues of the others."""
        questions: list[_Question] = []
        issues: list[DataIssue] = []
        shape: type[_Record[Any]]
        for split, file, folder, shape in (
            ("train", self.train_file, self.train_images, _Record[_TrainPair]),
            ("test", self.test_file, self.test_images, _Record[_Pair]),
        ):
            seen: Counter[str] = Counter()
            path = Path(self.root, file)
            if misplaced := self.misplaced(path):
                issues += misplaced
                continue
            for record, where, *_ in sound_records(path, shape, _EXPECTED, issues, may_repeat=_PUBLISHED_TWICE):
                seen[record.id] += 1
                key = record.id if seen[record.id] == 1 else f"{record.id}#{seen[record.id]}"
                image = record.image if folder == "." else f"{folder}/{record.image}"
                for pair in record.pairs:
                    sample = EvalSample(
                        id=f"{key}/{pair.field}", source=f"vlguard/{split}", image=self.picture(image),
                        question=getattr(pair, pair.field), unsafe=pair.field != "safe_instruction",
                        category=None if record.safe else f"{record.harmful_category}/{record.harmful_subcategory}",
                        where=f"{file}, {where}",
                    )  # fmt: skip
                    questions.append(_Question(sample, pair.field, pair.response, record.image, file, where))
        return questions, issues

    def _questions(self, file: str) -> list[_Question]:
        questions, issues = self._read
        if issues:
            raise DataError.of(issues)
        return [each for each in questions if each.file == file]

    @cached_property
    def _training(self) -> tuple[list[_Question], list[DataIssue]]:
        """Questions to train on, and what is skipped."""
        kept: list[_Question] = []
        skipped: list[DataIssue] = []
        test_images = {each.image for each in self._questions(self.test_file)}
        for each in self._questions(self.train_file):
            if each.image in test_images:
                skipped.append(DataIssue(each.file, each.where, "image", f"{each.image} is in the test set too."))
            elif each.sample.question.strip().lower() == _NO_QUESTION:
                skipped.append(DataIssue(each.file, each.where, each.field, f"is only {each.sample.question!r}."))
            else:
                kept.append(each)
        if skipped:
            path = Path(self.root, self.train_file)
            _log.warning("%s: %d questions are not trained on:\n%s", path, len(skipped), DataError.of(skipped))
        return kept, skipped

    @property
    def _unsafe_questions(self) -> list[_Question]:
        fields = ("instruction", "unsafe_instruction") if self.unsafe_set == "all" else ("instruction",)
        return [each for each in self._training[0] if each.field in fields]
