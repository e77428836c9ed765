"""VizWiz: questions that blind people asked about their own pictures, some of which have no answer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from mirage.evaluation.benchmarks.base import Question
from mirage.evaluation.benchmarks.official_file import TEN, HumanAnswer, OfficialFile
from mirage.evaluation.benchmarks.soft_accuracy import SoftAccuracy, vqa_normal
from mirage.shapes import Shape

UNANSWERABLE = "unanswerable"
NO_ANSWER_DUE = "not answerable"
REMEDY = "Take the annotations of VizWiz-VQA from https://vizwiz.org/tasks-and-datasets/vqa/."


class _Asked(Shape):
    image: str
    question: str


class _Answered(_Asked):
    answers: Annotated[list[HumanAnswer], TEN]
    answerable: Annotated[int, Field(ge=0, le=1)]
    answer_type: str


class _TestFile(Shape):
    records: list[_Asked]


class _File(Shape):
    records: list[_Answered]


class VizWiz(SoftAccuracy):
    """VizWiz-VQA, from `<split>.json`: one question a picture, asked under the picture's name.

    "Unanswerable" is an answer like any other to the accuracy: it counts by how many humans gave it. A model that
    says it too often or never is seen in `unanswerable` of the summary, the challenge's second task: how often it was
    said, how often it was due (`answerable` is 0), how often both, and their F1. Like the human answers of VQAv2,
    those of VizWiz are normalised here; the published evaluator leaves them as they are.

    Args:
        root: Folder with the official JSON files; `image_root` has `train/`, `val/` and `test/`.
        split: Which of the official splits is asked. `test` has no public answers and goes to the server.
    """

    name = "vizwiz"
    prompt_template = (  # LLaVA-1.5's, which offers the way out
        "{question}\nWhen the provided information is insufficient, respond with 'Unanswerable'.\n"
        "Answer the question using a single word or phrase."
    )

    def __init__(self, root: Path, split: Literal["train", "val", "test"] = "val", **kwargs: Any) -> None:
        super().__init__(root, **kwargs)
        self.split = split

    def questions(self) -> Sequence[Question]:
        """Every question of the split, with its ten answers where they are public."""
        expected = f"the VizWiz-VQA annotations of {self.split}, a list of questions (not the captioning task's file)"
        file = OfficialFile(self.root / f"{self.split}.json", expected, REMEDY)
        records: Sequence[_Asked] = (
            file.read(_TestFile, "records").records if self.split == "test" else file.read(_File, "records").records
        )
        return [self._question(record) for record in records]

    def _question(self, record: _Asked) -> Question:
        gold: tuple[str, ...] = ()
        groups: tuple[str, ...] = ()
        if isinstance(record, _Answered):
            gold = tuple(human.answer for human in record.answers)
            groups = (record.answer_type, "answerable" if record.answerable else NO_ANSWER_DUE)
        prompt = self.prompt_template.format(question=record.question)
        return Question(id=record.image, image=f"{self.split}/{record.image}", prompt=prompt, gold=gold, groups=groups)

    def details(self, answers: Sequence[str]) -> dict[str, Any]:
        """How often the model said "unanswerable", how often that was due, and the F1 of the two."""
        pairs = [
            (vqa_normal(answer) == UNANSWERABLE, NO_ANSWER_DUE in question.groups)
            for question, answer in zip(self.asked, answers, strict=True)
            if question.gold
        ]
        said, due = sum(said for said, _ in pairs), sum(due for _, due in pairs)
        both = sum(said and due for said, due in pairs)
        f1 = 2 * both / (said + due) if said + due else None
        return {UNANSWERABLE: {"said": said, "due": due, "both": both, "f1": f1}}

    def submission(self, answers: Sequence[str]) -> list[dict[str, Any]]:
        """A list of `{"image": str, "answer": str}`, normalised, for the VizWiz challenge on EvalAI."""
        return [{"image": id, "answer": vqa_normal(answer)} for id, answer in self._complete(answers)]
