"""TextVQA: questions about the writing in a picture, with or without OCR tokens in the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from mirage.evaluation.benchmarks import Benchmark, Item, Question
from mirage.evaluation.benchmarks.official_file import OfficialFile
from mirage.evaluation.benchmarks.soft_accuracy import m4c_normal, soft_accuracy

REMEDY = "Take the v0.5.1 questions and the Rosetta OCR v0.2 tokens from https://textvqa.org/dataset/."


class TextVQA(Benchmark):
    """TextVQA, from `TextVQA_0.5.1_<split>.json` and, for the tokens, `TextVQA_Rosetta_OCR_v0.2_<split>.json`.

    With OCR tokens the prompt is the one of LLaVA-1.5's published numbers (58.2 for the 7B model); without them a model
    has to read the picture itself, and scores some 12 points lower. The two are different benchmarks and named so.

    Args:
        root: Folder with the official JSON files.
        split: Which of the official splits is asked. `test` has no public answers and goes to the server.
        ocr_tokens: Name the OCR tokens of the picture in the prompt.
        image_root: Folder with `train_images/` (train and val) and `test_images/`; absent, it is `root`.
        limit: Ask that many questions only, drawn by `seed`.
        seed: Which questions are drawn.
    """

    metric = "VQA soft accuracy (10 choose 9), m4c tokens"

    def __init__(
        self,
        root: Path,
        split: Literal["train", "val", "test"] = "val",
        ocr_tokens: bool = True,
        image_root: Path | None = None,
        limit: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(root, image_root, limit, seed)
        self.split, self.ocr_tokens = split, ocr_tokens

    @property
    def name(self) -> str:
        """`textvqa_ocr` with OCR tokens in the prompt, `textvqa` without."""
        return "textvqa_ocr" if self.ocr_tokens else "textvqa"

    @property
    def prompt_template(self) -> str:
        """LLaVA-1.5's prompt for short answers, the tokens joined by commas."""
        tokens = "\nReference OCR token: {ocr_tokens}" if self.ocr_tokens else ""
        return "{question}" + tokens + "\nAnswer the question using a single word or phrase."

    def questions(self) -> Sequence[Question]:
        """Every question of the split, with its ten answers where they are public."""
        path = self.root / f"TextVQA_0.5.1_{self.split}.json"
        file = OfficialFile(path, f"TextVQA v0.5.1 questions of {self.split}", REMEDY)
        records = self._records(file, "0.5.1")
        tokens = self._tokens() if self.ocr_tokens else {}
        folder = "test_images" if self.split == "test" else "train_images"
        questions: list[Question] = []
        for number, record in enumerate(records):
            where = f"record {number} of data"
            picture = file.field(record, "image_id", str, where)
            question = file.field(record, "question", str, where)
            if self.ocr_tokens and picture not in tokens:
                raise file.wrong(f"image_id {picture} is not in {self._token_file().path.name}", where)
            gold = () if self.split == "test" else file.ten(file.texts(record, "answers", where), where)
            questions.append(
                Question(
                    id=str(file.field(record, "question_id", int, where)),
                    image=f"{folder}/{picture}.jpg",
                    # The official questions are lower case; LLaVA-1.5 asks them with a capital.
                    blanks={"question": question[:1].upper() + question[1:], "ocr_tokens": tokens.get(picture, "")},
                    gold=gold,
                )
            )
        return questions

    def grade(self, answer: str, item: Item) -> float:
        """Soft accuracy of one answer."""
        return soft_accuracy(m4c_normal(answer), tuple(m4c_normal(human) for human in item.gold))

    def submission(self, answers: Sequence[str]) -> list[dict[str, Any]]:
        """A list of `{"question_id": int, "answer": str}`, normalised, for the TextVQA challenge on EvalAI."""
        return [
            {"question_id": int(item.id), "answer": m4c_normal(answer)}
            for item, answer in zip(self.items(), self._complete(answers), strict=True)
        ]

    def _token_file(self) -> OfficialFile:
        path = self.root / f"TextVQA_Rosetta_OCR_v0.2_{self.split}.json"
        return OfficialFile(path, f"Rosetta OCR v0.2 tokens of {self.split}", REMEDY + " Or set ocr_tokens to false.")

    def _tokens(self) -> dict[str, str]:
        """By image id, its OCR tokens as they stand in the prompt."""
        file = self._token_file()
        tokens: dict[str, str] = {}
        for number, record in enumerate(self._records(file, "0.2")):
            where = f"record {number} of data"
            tokens[file.field(record, "image_id", str, where)] = ", ".join(file.texts(record, "ocr_tokens", where))
        return tokens

    def _records(self, file: OfficialFile, version: str) -> list[Any]:
        content = file.read()
        records = file.field(content, "data", list)
        # Not every official file says its version; one that says another is refused.
        found, split = content.get("dataset_version", version), content.get("dataset_type", self.split)
        if str(found).lower().removeprefix("v") != version:
            raise file.wrong(f"its dataset_version is {found!r}")
        if split != self.split:
            raise file.wrong(f"its dataset_type is {split!r}")
        return records
