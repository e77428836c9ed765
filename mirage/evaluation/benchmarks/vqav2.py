"""VQAv2: open-ended questions about COCO pictures, scored by soft accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from mirage.evaluation.benchmarks.base import Question
from mirage.evaluation.benchmarks.official_file import TEN, HumanAnswer, OfficialFile
from mirage.evaluation.benchmarks.soft_accuracy import SoftAccuracy, vqa_normal
from mirage.shapes import Shape

REMEDY = "Take the Balanced Real Images files of v2.0 from https://visualqa.org/download.html."


class _Info(Shape):
    version: str


class _Asked(Shape):
    question_id: int
    image_id: int
    question: str


class _QuestionFile(Shape):
    info: _Info
    data_subtype: str
    task_type: str
    questions: list[_Asked]


class _Answered(Shape):
    question_id: int
    answer_type: str
    answers: Annotated[list[HumanAnswer], TEN]


class _AnnotationFile(Shape):
    info: _Info
    data_subtype: str
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
    prompt_template = "{question}\nAnswer the question using a single word or phrase."  # LLaVA-1.5's for short answers

    def __init__(
        self,
        root: Path,
        split: Literal["train2014", "val2014", "test-dev2015", "test2015"] = "val2014",
        **kwargs: Any,
    ) -> None:
        super().__init__(root, **kwargs)
        self.split = split

    def questions(self) -> Sequence[Question]:
        """Every question of the split, with its ten answers where they are public."""
        if self.split.startswith("test"):
            return [self._question(record) for record in self._records(self.split)]
        path = self.root / f"v2_mscoco_{self.split}_annotations.json"
        file = OfficialFile(path, f"VQA v2.0 annotations of {self.split}", REMEDY)
        content = file.read(_AnnotationFile)
        file.check("version", content.info.version, "2.0")
        file.check("data_subtype", content.data_subtype, self.split)
        annotations = {record.question_id: record for record in content.annotations}
        records = self._records(self.split)
        if unknown := [record.question_id for record in records if record.question_id not in annotations]:
            raise file.error(f"question_id {unknown[0]} has no annotation in it")
        return [self._question(record, annotations[record.question_id]) for record in records]

    def submission(self, answers: Sequence[str]) -> list[dict[str, Any]]:
        """A list of `{"question_id": int, "answer": str}`, normalised, for the VQA challenge on EvalAI."""
        answered = {int(id): vqa_normal(answer) for id, answer in self._complete(answers)}
        ids = list(answered)
        if self.split == "test-dev2015":
            ids = [record.question_id for record in self._records("test2015")]
            if unknown := answered.keys() - set(ids):
                raise self._file("test2015").error(f"{len(unknown)} questions of {self.split} are not in it")
        return [{"question_id": id, "answer": answered.get(id, "")} for id in ids]

    def _question(self, record: _Asked, annotation: _Answered | None = None) -> Question:
        folder = self.split if annotation else "test2015"
        return Question(
            id=str(record.question_id),
            image=f"{folder}/COCO_{folder}_{record.image_id:012d}.jpg",
            prompt=self.prompt_template.format(question=record.question),
            gold=tuple(human.answer for human in annotation.answers) if annotation else (),
            groups=(annotation.answer_type,) if annotation else (),
        )

    def _file(self, split: str) -> OfficialFile:
        path = self.root / f"v2_OpenEnded_mscoco_{split}_questions.json"
        return OfficialFile(path, f"VQA v2.0 open-ended questions of {split}", REMEDY)

    def _records(self, split: str) -> list[_Asked]:
        file = self._file(split)
        content = file.read(_QuestionFile)
        file.check("version", content.info.version, "2.0")
        file.check("task_type", content.task_type, "Open-Ended")
        file.check("data_subtype", content.data_subtype, split)
        return content.questions
