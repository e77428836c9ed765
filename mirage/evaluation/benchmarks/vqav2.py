"""VQAv2: open-ended questions about COCO pictures, scored by soft accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from mirage.evaluation.benchmarks import Benchmark, Item, Question
from mirage.evaluation.benchmarks.official_file import OfficialFile
from mirage.evaluation.benchmarks.soft_accuracy import soft_accuracy, vqa_normal

REMEDY = "Take the Balanced Real Images files of v2.0 from https://visualqa.org/download.html."


class VQAv2(Benchmark):
    """VQAv2, from `v2_OpenEnded_mscoco_<split>_questions.json` and `v2_mscoco_<split>_annotations.json`.

    Both sides of a comparison are normalised, as https://visualqa.org/evaluation.html says. The published evaluator
    leaves unanimous human answers as they are and so can never match one with a hyphen ("t-shirt"); here it matches.

    The test splits have no public annotations: their items stay unscored and `submission` makes the upload. The server
    wants an answer to every question of test2015, so a test-dev2015 upload answers the others with an empty text and
    needs the test2015 questions in the same folder.

    Args:
        root: Folder with the official JSON files.
        split: Which of the official splits is asked.
        image_root: Folder with `train2014/`, `val2014/` and `test2015/`; absent, it is `root`.
        limit: Ask that many questions only, drawn by `seed`.
        seed: Which questions are drawn.
    """

    metric = "VQA soft accuracy (10 choose 9)"

    def __init__(
        self,
        root: Path,
        split: Literal["train2014", "val2014", "test-dev2015", "test2015"] = "val2014",
        image_root: Path | None = None,
        limit: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(root, image_root, limit, seed)
        self.split = split

    @property
    def name(self) -> str:
        """`vqav2`."""
        return "vqav2"

    @property
    def prompt_template(self) -> str:
        """LLaVA-1.5's prompt for short answers."""
        return "{question}\nAnswer the question using a single word or phrase."

    def questions(self) -> Sequence[Question]:
        """Every question of the split, with its ten answers where they are public."""
        annotations = {} if self.split.startswith("test") else self._annotations()
        folder = "test2015" if self.split.startswith("test") else self.split
        file, records = self._question_records(self.split)
        questions: list[Question] = []
        for number, record in enumerate(records):
            where = f"question {number}"
            id = file.field(record, "question_id", int, where)
            picture = file.field(record, "image_id", int, where)
            gold, groups = annotations.get(id, ((), ()))
            if not gold and not self.split.startswith("test"):
                raise file.wrong(f"question_id {id} has no annotation in {self._annotation_file().path.name}", where)
            questions.append(
                Question(
                    id=str(id),
                    image=f"{folder}/COCO_{folder}_{picture:012d}.jpg",
                    blanks={"question": file.field(record, "question", str, where)},
                    gold=gold,
                    groups=groups,
                )
            )
        return questions

    def grade(self, answer: str, item: Item) -> float:
        """Soft accuracy of one answer."""
        return soft_accuracy(vqa_normal(answer), tuple(vqa_normal(human) for human in item.gold))

    def submission(self, answers: Sequence[str]) -> list[dict[str, Any]]:
        """A list of `{"question_id": int, "answer": str}`, normalised, for the VQA challenge on EvalAI."""
        answered = {
            int(item.id): vqa_normal(answer) for item, answer in zip(self.items(), self._complete(answers), strict=True)
        }
        if self.split == "test-dev2015":
            file, records = self._question_records("test2015")
            every = [file.field(record, "question_id", int, f"question {n}") for n, record in enumerate(records)]
            if strangers := answered.keys() - set(every):
                raise file.wrong(f"{len(strangers)} questions of {self.split} are not in it, such as {min(strangers)}")
        else:
            every = list(answered)
        return [{"question_id": id, "answer": answered.get(id, "")} for id in every]

    def _question_records(self, split: str) -> tuple[OfficialFile, list[Any]]:
        path = self.root / f"v2_OpenEnded_mscoco_{split}_questions.json"
        file = OfficialFile(path, f"VQA v2.0 open-ended questions of {split}", REMEDY)
        content = file.read()
        self._check_version(file, content, split)
        task = file.field(content, "task_type", str)
        if task != "Open-Ended":
            raise file.wrong(f"its task_type is {task!r}")
        return file, file.field(content, "questions", list)

    def _annotation_file(self) -> OfficialFile:
        path = self.root / f"v2_mscoco_{self.split}_annotations.json"
        return OfficialFile(path, f"VQA v2.0 annotations of {self.split}", REMEDY)

    def _annotations(self) -> dict[int, tuple[tuple[str, ...], tuple[str, ...]]]:
        """By question id, the ten human answers and the answer type."""
        file = self._annotation_file()
        content = file.read()
        self._check_version(file, content, self.split)
        annotations: dict[int, tuple[tuple[str, ...], tuple[str, ...]]] = {}
        for number, record in enumerate(file.field(content, "annotations", list)):
            where = f"annotation {number}"
            answers = file.field(record, "answers", list, where)
            humans = file.ten(tuple(file.field(answer, "answer", str, where) for answer in answers), where)
            annotations[file.field(record, "question_id", int, where)] = (
                humans,
                (file.field(record, "answer_type", str, where),),
            )
        return annotations

    def _check_version(self, file: OfficialFile, content: Any, split: str) -> None:
        version = file.field(file.field(content, "info", dict), "version", str)
        if version != "2.0":
            raise file.wrong(f"its version is {version!r}")
        subtype = file.field(content, "data_subtype", str)
        if subtype != split:
            raise file.wrong(f"its data_subtype is {subtype!r}")
