"""ScienceQA: school questions with lettered options, most of its published numbers on those that have a picture."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from string import ascii_uppercase
from typing import Any, Literal

from mirage.evaluation.benchmarks import Benchmark, Item, Question
from mirage.evaluation.benchmarks.official_file import OfficialFile

REMEDY = "Take problems.json and pid_splits.json from https://github.com/lupantech/ScienceQA (data/scienceqa)."
SUBJECTS = {"natural science": "NAT", "social science": "SOC", "language science": "LAN"}

LETTER_ALONE = re.compile(r"\W*([A-Za-z])\W*")
LETTER_FIRST = re.compile(r"[\s\"'*]*(?:\(([A-Za-z])\)|([A-Za-z])\**[.:)])(?=[\s*]|$)")
LETTER_NAMED = (
    re.compile(r"(?i:\banswer(?:\s+is|\s*:)(?:\s+(?:option|choice))?)[\s:\"'(\[*]*([A-Z])\b(?!')"),
    re.compile(r"(?i:\b(?:option|choice)\b)[\s:\"'(\[*]*([A-Z])\b(?!')"),
)
# What makes a letter that was read one of two; text between them counts only where the second is a clear label.
_GAP = r"[\s\"'*)\].:,]*"
LETTER_TOO = re.compile(
    rf"{_GAP}(?:\b(?:or|and)\b|[/&])[\s\"'*]*\(([A-Za-z])\)"  # (A) or (B)
    rf"|{_GAP}(?:\bor\s|/)[\s\"'*]*([A-Z])\b(?!')"  # A. or B.
    rf"|{_GAP}(?:\band\s|&)[\s\"'*]*([A-Z])\b(?=[\"'*]*(?:[).:!]|\s*$))"  # A and B.
    r"|[^\n.!?]*?\bor\s+(?:\(([A-Za-z])\)|([A-Z])[.:)]\s+\w)"  # (A) Georgia or (B) Alabama
)


def option_letter(answer: str, count: int) -> str | None:
    """The one option among the first `count` letters that an answer chooses, or None if it cannot be read.

    Read in this order: a letter alone on the first line (`B`, `(b)`, `**B**.`); a letter that opens the answer as a
    label (`B. Georgia`, `(B) Georgia`, `B) Georgia`, `B: Georgia`); the one capital letter that is named as the answer
    (`The answer is B.`, `Answer: (B)`); the one that is named as an option (`I choose option B`). Two different letters
    named (`(A) or (B)`), a letter beyond the options and the text of an option without its letter cannot be read.

    This agrees with LLaVA-1.5's script wherever that reads a letter, unless the answer contradicts itself or the script
    reads a letter into a word (`The answer is Canada`). Beyond that it reads the same answer in other clothes: models
    that were not trained on LLaVA's format answer `(B) Georgia`.
    """
    options = ascii_uppercase[:count]
    lines = answer.strip().splitlines() or [""]
    alone = LETTER_ALONE.fullmatch(lines[0])
    label = alone or LETTER_FIRST.match(answer)
    if label and (letter := _letter(label)) in options:
        return letter if alone or _joined(answer, label.end()) <= {letter} else None
    for pattern in LETTER_NAMED:
        named = {letter for found in pattern.finditer(answer) for letter in (found[1], *_joined(answer, found.end()))}
        if named:
            letter = named.pop()
            return letter if not named and letter in options else None
    return None


def _letter(found: re.Match[str]) -> str:
    return "".join(filter(None, found.groups())).upper()


def _joined(answer: str, end: int) -> set[str]:
    """The letter that is named together with the one that ends at `end`, if there is one."""
    found = LETTER_TOO.match(answer, end)
    return {_letter(found)} if found else set()


class ScienceQA(Benchmark):
    """ScienceQA, from `problems.json` and `pid_splits.json`; the hint is part of the prompt.

    An answer whose letter cannot be read is wrong, as in the official accuracy; the summary says in `unread` how many
    there were, so that a model that has lost the format is not mistaken for one that has lost its knowledge.

    Args:
        root: Folder with the official JSON files.
        split: Which of the official splits is asked.
        subset: `image` asks the questions that have a picture (IMG, the number usually published for VLMs), `all` asks
            the others too, without a picture.
        image_root: Folder with `train/`, `val/` and `test/`, each with a folder a problem; absent, it is `root/images`.
        limit: Ask that many questions only, drawn by `seed`.
        seed: Which questions are drawn.
    """

    metric = "accuracy of the option letter"

    def __init__(
        self,
        root: Path,
        split: Literal["train", "val", "test", "minival", "minitest", "trainval"] = "test",
        subset: Literal["image", "all"] = "image",
        image_root: Path | None = None,
        limit: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(root, image_root if image_root is not None else Path(root) / "images", limit, seed)
        self.split, self.subset = split, subset

    @property
    def name(self) -> str:
        """`scienceqa_img` for the questions with a picture, `scienceqa` for all."""
        return "scienceqa_img" if self.subset == "image" else "scienceqa"

    @property
    def prompt_template(self) -> str:
        """LLaVA-1.5's prompt: context, question, options. A question without a hint has the context N/A."""
        return (
            "Context: {hint}\nQuestion: {question}\nOptions: {options}\n"
            "Answer with the option's letter from the given choices directly."
        )

    def questions(self) -> Sequence[Question]:
        """The questions of the split and subset."""
        split_file = OfficialFile(self.root / "pid_splits.json", "the problem ids of every ScienceQA split", REMEDY)
        file = OfficialFile(self.root / "problems.json", "the ScienceQA problems by id", REMEDY)
        ids = split_file.texts(split_file.read(), self.split)
        problems = file.read()
        questions = [self._question(file, id, file.field(problems, id, dict)) for id in ids]
        return [question for question in questions if question.image is not None or self.subset == "all"]

    def grade(self, answer: str, item: Item) -> float:
        """1 if the answer chooses the right letter, else 0."""
        return float(option_letter(answer, len(item.options)) == item.gold[0])

    def details(self, answers: Sequence[str]) -> dict[str, Any]:
        """How many answers choose no letter that could be read."""
        pairs = zip(self.items(), answers, strict=True)
        return {"unread": sum(option_letter(answer, len(item.options)) is None for item, answer in pairs)}

    def _question(self, file: OfficialFile, id: str, problem: dict[str, Any]) -> Question:
        where = f"problem {id}"
        options = file.texts(problem, "choices", where)
        if not 2 <= len(options) <= len(ascii_uppercase):
            raise file.wrong(f"there are {len(options)} choices", where)
        right = file.field(problem, "answer", int, where)
        if not 0 <= right < len(options):
            raise file.wrong(f"answer {right} is none of its {len(options)} choices", where)
        hint = file.field(problem, "hint", str, where).strip()
        picture = problem.get("image")
        folder = file.field(problem, "split", str, where) if picture else ""
        image = f"{folder}/{id}/{file.field(problem, 'image', str, where)}" if picture else None
        blanks = {
            "hint": hint or "N/A",
            "question": file.field(problem, "question", str, where),
            "options": " ".join(
                f"({letter}) {option}" for letter, option in zip(ascii_uppercase, options, strict=False)
            ),
        }
        return Question(
            id=id,
            image=image,
            blanks={name: text.replace("  ", " ") for name, text in blanks.items()},
            gold=(ascii_uppercase[right],),
            options=options,
            groups=self._groups(file, problem, hint, image, where),
        )

    def _groups(
        self, file: OfficialFile, problem: dict[str, Any], hint: str, image: str | None, where: str
    ) -> tuple[str, ...]:
        """The columns of the official leaderboard that the problem belongs to."""
        subject, grade = file.field(problem, "subject", str, where), file.field(problem, "grade", str, where)
        if subject not in SUBJECTS:
            raise file.wrong(f"the subject {subject!r} is not one of {', '.join(SUBJECTS)}", where)
        year = grade.removeprefix("grade")
        if not year.isdecimal():
            raise file.wrong(f"the grade {grade!r} is not one of grade1 to grade12", where)
        context = (["TXT"] if hint else []) + (["IMG"] if image else []) or ["NO"]
        return (SUBJECTS[subject], *context, "G1-6" if int(year) <= 6 else "G7-12")
