"""VizWiz: questions that blind people asked about their own pictures, some of which have no answer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from mirage.evaluation.benchmarks.base import Question
from mirage.evaluation.benchmarks.soft_accuracy import SHORT_ANSWER, SoftAccuracy, TenHumans, vqa_normal
from mirage.shapes import Shape

UNANSWERABLE = "unanswerable"
NO_ANSWER_DUE = "not answerable"


class _Asked(Shape):
    image: str
    question: str


class _Answered(_Asked):
    answers: TenHumans
    answerable: Annotated[int, Field(ge=0, le=1)]
    answer_type: str


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
        "{question}\nWhen the provided information is insufficient, respond with 'Unanswerable'.\n" + SHORT_ANSWER
    )
    official = "the VizWiz-VQA annotations, a list of questions"  # the captioning task's files have the same names
    remedy = "Take the annotations of VizWiz-VQA from https://vizwiz.org/tasks-and-datasets/vqa/."
    uploaded_id = ("image", str)

    def __init__(self, root: Path, split: Literal["train", "val", "test"] = "val", **kwargs: Any) -> None:
        super().__init__(root, split, **kwargs)

    def questions(self) -> Sequence[Question]:
        """Every question of the split, with its ten answers where they are public."""
        shape: Any = list[_Asked] if self.split == "test" else list[_Answered]
        return [self._question(record) for record in self.read(f"{self.split}.json", shape)]

    def _question(self, record: _Asked) -> Question:
        gold: tuple[str, ...] = ()
        groups: tuple[str, ...] = ()
        if isinstance(record, _Answered):
            gold = tuple(human.answer for human in record.answers)
            groups = (record.answer_type, "answerable" if record.answerable else NO_ANSWER_DUE)
        prompt = self.prompt_template.format(question=record.question)
        return Question(id=record.image, image=f"{self.split}/{record.image}", prompt=prompt, gold=gold, groups=groups)

    def summary(self, scores: Sequence[float | None], answers: Sequence[str]) -> dict[str, Any]:
        """As of every benchmark; how often the model said "unanswerable", how often that was due, and the F1 of both."""
        pairs = zip(self.asked, answers, strict=True)
        graded = [(question, vqa_normal(answer) == UNANSWERABLE) for question, answer in pairs if question.gold]
        said = sum(told for _, told in graded)
        due = sum(NO_ANSWER_DUE in question.groups for question, _ in graded)
        both = sum(told and NO_ANSWER_DUE in question.groups for question, told in graded)
        f1 = 2 * both / (said + due) if said + due else None
        return super().summary(scores, answers) | {UNANSWERABLE: {"said": said, "due": due, "both": both, "f1": f1}}
