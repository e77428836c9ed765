"""TextVQA: questions about the writing in a picture, with or without OCR tokens in the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from mirage.evaluation.benchmarks.base import Question
from mirage.evaluation.benchmarks.soft_accuracy import SHORT_ANSWER, SoftAccuracy, Ten, m4c_normal
from mirage.shapes import Shape


class _Asked(Shape):
    question_id: int
    image_id: str
    question: str
    answers: Annotated[list[str], Ten] | None = None


class _Tokens(Shape):
    image_id: str
    ocr_tokens: list[str]


class _Head(Shape):
    # Not every official file says its version; one that says another is refused.
    dataset_version: str | float | None = None
    dataset_type: str | None = None


class _QuestionFile(_Head):
    data: list[_Asked]


class _TokenFile(_Head):
    data: list[_Tokens]


class TextVQA(SoftAccuracy):
    """TextVQA, from `TextVQA_0.5.1_<split>.json` and, for the tokens, `TextVQA_Rosetta_OCR_v0.2_<split>.json`.

    With OCR tokens the prompt is the one of LLaVA-1.5's published numbers (58.2 for the 7B model); without them a model
    has to read the picture itself, and scores some 12 points lower. The two are different benchmarks and named so:
    `textvqa_ocr` and `textvqa`.

    Args:
        root: Folder with the official JSON files; `image_root` has `train_images/` (train and val) and `test_images/`.
        split: Which of the official splits is asked. `test` has no public answers and goes to the server.
        ocr_tokens: Name the OCR tokens of the picture in the prompt.
    """

    metric = "VQA soft accuracy (10 choose 9), m4c tokens"
    official = "TextVQA v0.5.1"
    remedy = (
        "Take the questions (v0.5.1) and the Rosetta OCR tokens (v0.2) from https://textvqa.org/dataset/; to ask without "
        "tokens, set ocr_tokens to false."
    )

    def __init__(
        self, root: Path, split: Literal["train", "val", "test"] = "val", ocr_tokens: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(root, split, **kwargs)
        self.ocr_tokens = ocr_tokens
        self.name = "textvqa_ocr" if ocr_tokens else "textvqa"
        if ocr_tokens:
            self.prompt_template = "{question}\nReference OCR token: {ocr_tokens}\n" + SHORT_ANSWER

    def questions(self) -> Sequence[Question]:
        """Every question of the split, with its ten answers where they are public."""
        file = f"TextVQA_0.5.1_{self.split}.json"
        records = self.read(file, _QuestionFile, dataset_version="0.5.1", dataset_type=self.split).data
        tokens: dict[str, list[str]] = {}
        if self.ocr_tokens:
            name = f"TextVQA_Rosetta_OCR_v0.2_{self.split}.json"
            listed = self.read(name, _TokenFile, dataset_version="0.2", dataset_type=self.split).data
            tokens = {record.image_id: record.ocr_tokens for record in listed}
        test = self.split == "test"
        questions: list[Question] = []
        for record in records:
            if record.answers is None and not test:
                raise self.unusable(file, f"question {record.question_id} has no answers")
            if self.ocr_tokens and record.image_id not in tokens:
                raise self.unusable(file, f"its picture {record.image_id} is not in the file of OCR tokens")
            # The official questions are lower case; LLaVA-1.5 asks them with a capital.
            question = record.question[:1].upper() + record.question[1:]
            named = ", ".join(tokens.get(record.image_id, ()))
            questions.append(
                Question(
                    id=str(record.question_id),
                    image=f"{'test' if test else 'train'}_images/{record.image_id}.jpg",
                    prompt=self.prompt_template.format(question=question, ocr_tokens=named),
                    gold=tuple(record.answers or ()) if not test else (),
                )
            )
        return questions

    def normal(self, answer: str) -> str:
        """The answer as the TextVQA evaluator compares it."""
        return m4c_normal(answer)
