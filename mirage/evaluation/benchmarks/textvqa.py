"""TextVQA: questions about the writing in a picture, with or without OCR tokens in the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from mirage.evaluation.benchmarks.base import Question
from mirage.evaluation.benchmarks.official_file import TEN, OfficialFile
from mirage.evaluation.benchmarks.soft_accuracy import SoftAccuracy, m4c_normal
from mirage.shapes import Shape

REMEDY = "Take the v0.5.1 questions and the Rosetta OCR v0.2 tokens from https://textvqa.org/dataset/."


class _Asked(Shape):
    question_id: int
    image_id: str
    question: str
    answers: Annotated[list[str], TEN] | None = None


class _Tokens(Shape):
    image_id: str
    ocr_tokens: list[str]


class _QuestionFile(Shape):
    dataset_version: str | float | None = None
    dataset_type: str | None = None
    data: list[_Asked]


class _TokenFile(Shape):
    dataset_version: str | float | None = None
    dataset_type: str | None = None
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

    def __init__(
        self, root: Path, split: Literal["train", "val", "test"] = "val", ocr_tokens: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(root, **kwargs)
        self.split, self.ocr_tokens = split, ocr_tokens
        self.name = "textvqa_ocr" if ocr_tokens else "textvqa"
        tokens = "\nReference OCR token: {ocr_tokens}" if ocr_tokens else ""
        self.prompt_template = "{question}" + tokens + "\nAnswer the question using a single word or phrase."

    def questions(self) -> Sequence[Question]:
        """Every question of the split, with its ten answers where they are public."""
        expected = f"TextVQA v0.5.1 questions of {self.split}"
        file = OfficialFile(self.root / f"TextVQA_0.5.1_{self.split}.json", expected, REMEDY)
        content = file.read(_QuestionFile)
        self._check_head(file, content, "0.5.1")
        tokens = self._tokens() if self.ocr_tokens else {}
        folder = "test_images" if self.split == "test" else "train_images"
        questions: list[Question] = []
        for number, record in enumerate(content.data):
            if record.answers is None and self.split != "test":
                raise file.error(f"data[{number}].answers is missing")
            if self.ocr_tokens and record.image_id not in tokens:
                raise file.error(f"data[{number}].image_id {record.image_id} is not in the file of OCR tokens")
            # The official questions are lower case; LLaVA-1.5 asks them with a capital.
            question = record.question[:1].upper() + record.question[1:]
            named = ", ".join(tokens.get(record.image_id, ()))
            questions.append(
                Question(
                    id=str(record.question_id),
                    image=f"{folder}/{record.image_id}.jpg",
                    prompt=self.prompt_template.format(question=question, ocr_tokens=named),
                    gold=tuple(record.answers or ()) if self.split != "test" else (),
                )
            )
        return questions

    def normal(self, answer: str) -> str:
        """The answer as the TextVQA evaluator compares it."""
        return m4c_normal(answer)

    def submission(self, answers: Sequence[str]) -> list[dict[str, Any]]:
        """A list of `{"question_id": int, "answer": str}`, normalised, for the TextVQA challenge on EvalAI."""
        return [{"question_id": int(id), "answer": m4c_normal(answer)} for id, answer in self._complete(answers)]

    def _tokens(self) -> dict[str, list[str]]:
        """The OCR tokens by image id."""
        path = self.root / f"TextVQA_Rosetta_OCR_v0.2_{self.split}.json"
        remedy = f"{REMEDY} Or set ocr_tokens to false."
        file = OfficialFile(path, f"Rosetta OCR v0.2 tokens of {self.split}", remedy)
        content = file.read(_TokenFile)
        self._check_head(file, content, "0.2")
        return {record.image_id: record.ocr_tokens for record in content.data}

    def _check_head(self, file: OfficialFile, content: _QuestionFile | _TokenFile, version: str) -> None:
        # Not every official file says its version; one that says another is refused.
        file.check("dataset_version", str(content.dataset_version or version).lower().removeprefix("v"), version)
        file.check("dataset_type", content.dataset_type or self.split, self.split)
