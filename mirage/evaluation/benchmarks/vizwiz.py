"""VizWiz: questions that blind people asked about their own pictures, some of which have no answer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from mirage.evaluation.benchmarks import Benchmark, Item, Question
from mirage.evaluation.benchmarks.official_file import OfficialFile
from mirage.evaluation.benchmarks.soft_accuracy import soft_accuracy, vqa_normal

UNANSWERABLE = "unanswerable"
NO_ANSWER_DUE = "not answerable"
REMEDY = "Take the annotations of VizWiz-VQA from https://vizwiz.org/tasks-and-datasets/vqa/."


class VizWiz(Benchmark):
    """VizWiz-VQA, from `<split>.json`: one question a picture, asked under the picture's name.

    "Unanswerable" is an answer like any other to the accuracy: it counts by how many humans gave it. A model that
    says it too often or never is seen in `unanswerable` of the summary, the challenge's second task: how often it was
    said, how often it was due (`answerable` is 0), how often both, and their F1. Like the human answers of VQAv2,
    those of VizWiz are normalised here; the published evaluator leaves them as they are.

    Args:
        root: Folder with the official JSON files.
        split: Which of the official splits is asked. `test` has no public answers and goes to the server.
        image_root: Folder with `train/`, `val/` and `test/`; absent, it is `root`.
        limit: Ask that many questions only, drawn by `seed`.
        seed: Which questions are drawn.
    """

    metric = "VQA soft accuracy (10 choose 9)"

    def __init__(
        self,
        root: Path,
        split: Literal["train", "val", "test"] = "val",
        image_root: Path | None = None,
        limit: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(root, image_root, limit, seed)
        self.split = split

    @property
    def name(self) -> str:
        """`vizwiz`."""
        return "vizwiz"

    @property
    def prompt_template(self) -> str:
        """LLaVA-1.5's prompt, which offers the way out."""
        return (
            "{question}\nWhen the provided information is insufficient, respond with 'Unanswerable'.\n"
            "Answer the question using a single word or phrase."
        )

    def questions(self) -> Sequence[Question]:
        """Every question of the split, with its ten answers where they are public."""
        expected = f"the VizWiz-VQA annotations of {self.split}, a list of questions with their pictures' names"
        file = OfficialFile(self.root / f"{self.split}.json", expected, REMEDY)
        records = file.read()
        if not isinstance(records, list):
            raise file.wrong("it is no list (the files of the captioning task have the same names)")
        questions: list[Question] = []
        for number, record in enumerate(records):
            where = f"record {number}"
            picture = file.field(record, "image", str, where)
            gold, groups = ((), ()) if self.split == "test" else self._gold(file, record, where)
            questions.append(
                Question(
                    id=picture,
                    image=f"{self.split}/{picture}",
                    blanks={"question": file.field(record, "question", str, where)},
                    gold=gold,
                    groups=groups,
                )
            )
        return questions

    def grade(self, answer: str, item: Item) -> float:
        """Soft accuracy of one answer."""
        return soft_accuracy(vqa_normal(answer), tuple(vqa_normal(human) for human in item.gold))

    def details(self, answers: Sequence[str]) -> dict[str, Any]:
        """How often the model said "unanswerable", how often that was due, and the F1 of the two."""
        pairs = [
            (vqa_normal(answer) == UNANSWERABLE, NO_ANSWER_DUE in item.groups)
            for item, answer in zip(self.items(), answers, strict=True)
            if item.gold
        ]
        said, due = sum(said for said, _ in pairs), sum(due for _, due in pairs)
        both = sum(said and due for said, due in pairs)
        f1 = 2 * both / (said + due) if said + due else None
        return {UNANSWERABLE: {"said": said, "due": due, "both": both, "f1": f1}}

    def submission(self, answers: Sequence[str]) -> list[dict[str, Any]]:
        """A list of `{"image": str, "answer": str}`, normalised, for the VizWiz challenge on EvalAI."""
        return [
            {"image": item.id, "answer": vqa_normal(answer)}
            for item, answer in zip(self.items(), self._complete(answers), strict=True)
        ]

    def _gold(self, file: OfficialFile, record: Any, where: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The ten human answers, and the groups: answer type, and whether there is an answer at all."""
        answers = file.field(record, "answers", list, where)
        humans = file.ten(tuple(file.field(answer, "answer", str, where) for answer in answers), where)
        answerable = file.field(record, "answerable", int, where)
        if answerable not in (0, 1):
            raise file.wrong(f"the field 'answerable' is {answerable}", where)
        kind = file.field(record, "answer_type", str, where)
        return humans, (kind, "answerable" if answerable else NO_ANSWER_DUE)
