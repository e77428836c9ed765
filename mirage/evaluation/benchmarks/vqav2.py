"""VQAv2: open-ended questions about COCO pictures, scored by soft accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AliasPath, Field

from mirage.evaluation.benchmarks.base import Question
from mirage.evaluation.benchmarks.soft_accuracy import SoftAccuracy, TenHumans
from mirage.shapes import Shape


class _Asked(Shape):
    question_id: int
    image_id: int
    question: str


class _Answered(Shape):
    question_id: int
    answer_type: str
    answers: TenHumans


class _Head(Shape):
    version: Annotated[str, Field(validation_alias=AliasPath("info", "version"))]
    data_subtype: str


class _QuestionFile(_Head):
    task_type: str
    questions: list[_Asked]


class _AnnotationFile(_Head):
    annotations: list[_Answered]


class VQAv2(SoftAccuracy):
    """VQAv2, from `v2_OpenEnded_mscoco_<split>_questions.json` and `v2_mscoco_<split>_annotations.json`.

    Both sides of a comparison are normalised, as https://visualqa.org/evaluation.html says. The published evaluator
    leaves unanimous human answers as they are and so can never match one with a hyphen ("t-shirt"); here it matches.

    The test splits have no public annotations: their questions stay unscored and `submission` makes the upload. The
    server wants an answer to every question of test2015, so a test-dev2015 upload answers the others with an empty text
    and needs the test2015 questions in the same folder.

    Args:
        root: Folder with the official JSON files; `image_root` has `train2014/`, `val2014/` and `test2015/`.
        split: Which of the official splits is asked.
    """

    name = "vqav2"
    official = "VQA v2.0"
    remedy = "Take the Balanced Real Images files of v2.0 from https://visualqa.org/download.html."

    def __init__(
        self,
        root: Path,
        split: Literal["train2014", "val2014", "test-dev2015", "test2015"] = "val2014",
        **kwargs: Any,
    ) -> None:
        super().__init__(root, split, **kwargs)

    def questions(self) -> Sequence[Question]:
        """Every question of the split, with its ten answers where they are public."""
        if self.split.startswith("test"):
            return [self._question(record) for record in self._records(self.split)]
        file = f"v2_mscoco_{self.split}_annotations.json"
        content = self.read(file, _AnnotationFile, version="2.0", data_subtype=self.split)
        annotations = {record.question_id: record for record in content.annotations}
        records = self._records(self.split)
        if unknown := [record.question_id for record in records if record.question_id not in annotations]:
            raise self.unusable(file, f"question_id {unknown[0]} has no annotation in it")
        return [self._question(record, annotations[record.question_id]) for record in records]

    def _question(self, record: _Asked, annotation: _Answered | None = None) -> Question:
        folder = self.split if annotation else "test2015"
        return Question(
            id=str(record.question_id),
            image=f"{folder}/COCO_{folder}_{record.image_id:012d}.jpg",
            prompt=self.prompt_template.format(question=record.question),
            gold=tuple(human.answer for human in annotation.answers) if annotation else (),
            groups=(annotation.answer_type,) if annotation else (),
        )

    def submission(self, answers: Sequence[str]) -> list[dict[str, Any]]:
        """As every upload; that of test-dev2015 answers the other questions of test2015 by nothing."""
        uploaded = super().submission(answers)
        if self.split != "test-dev2015":
            return uploaded
        answered = {entry["question_id"]: entry for entry in uploaded}
        return [
            answered.get(record.question_id, {"question_id": record.question_id, "answer": ""})
            for record in self._records("test2015")
        ]

    def _records(self, split: str) -> list[_Asked]:
        file, head = f"v2_OpenEnded_mscoco_{split}_questions.json", {"version": "2.0", "task_type": "Open-Ended"}
        return self.read(file, _QuestionFile, **head, data_subtype=split).questions
