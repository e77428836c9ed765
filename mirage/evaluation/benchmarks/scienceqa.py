"""ScienceQA: school questions with lettered options, most of its published numbers on those that have a picture."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from string import ascii_uppercase
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from mirage.evaluation.benchmarks.base import Benchmark, Question
from mirage.shapes import Shape

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

    LLaVA-1.5's script reads the same letters and fewer forms of them, but finds some in words (`The answer is Canada`).
    """
    options = ascii_uppercase[:count]
    lines = answer.strip().splitlines() or [""]
    alone = LETTER_ALONE.fullmatch(lines[0])
    label = alone or LETTER_FIRST.match(answer)
    if label and (letter := _letter(label)) in options:
        return letter if alone or _joined(answer, label.end()) <= {letter} else None
    for pattern in LETTER_NAMED:
        named = {letter for match in pattern.finditer(answer) for letter in (match[1], *_joined(answer, match.end()))}
        if named:
            letter = named.pop()
            return letter if not named and letter in options else None
    return None


def _letter(match: re.Match[str]) -> str:
    return "".join(filter(None, match.groups())).upper()


def _joined(answer: str, end: int) -> set[str]:
    """The letter that is named together with the one that ends at `end`, if there is one."""
    match = LETTER_TOO.match(answer, end)
    return {_letter(match)} if match else set()


class _Problem(Shape):
    question: str
    choices: Annotated[list[str], Field(min_length=2, max_length=len(ascii_uppercase))]
    answer: Annotated[int, Field(ge=0)]
    hint: str
    image: str | None
    split: str
    subject: Literal["natural science", "social science", "language science"]
    grade: Annotated[str, Field(pattern=r"^grade\d+$")]

    @model_validator(mode="after")
    def _is_a_choice(self) -> _Problem:
        if self.answer >= len(self.choices):
            raise ValueError(f"the answer {self.answer} is none of the {len(self.choices)} choices")
        return self


class ScienceQA(Benchmark):
    """ScienceQA, from `problems.json` and `pid_splits.json`; the hint is part of the prompt.

    An answer whose letter cannot be read is wrong, as in the official accuracy; the summary says in `unread` how many
    there were, so that a model that has lost the format is not mistaken for one that has lost its knowledge.

    Args:
        root: Folder with the official JSON files; `image_root` has `train/`, `val/` and `test/`, each with a folder a
            problem.
        split: Which of the official splits is asked.
        subset: `image` asks the questions that have a picture (IMG, the number usually published for VLMs, reported as
            `scienceqa_img`), `all` asks the others too, without a picture (`scienceqa`).
    """

    metric = "accuracy of the option letter"
    prompt_template = (  # LLaVA-1.5's: context, question, options; a question without a hint has the context N/A
        "Context: {hint}\nQuestion: {question}\nOptions: {options}\n"
        "Answer with the option's letter from the given choices directly."
    )
    official = "the ScienceQA problems by id, and the ids of every split"
    remedy = "Take problems.json and pid_splits.json from https://github.com/lupantech/ScienceQA (data/scienceqa)."
    image_folder = "images"

    def __init__(
        self,
        root: Path,
        split: Literal["train", "val", "test", "minival", "minitest", "trainval"] = "test",
        subset: Literal["image", "all"] = "image",
        **kwargs: Any,
    ) -> None:
        super().__init__(root, split, **kwargs)
        self.subset = subset
        self.name = "scienceqa_img" if subset == "image" else "scienceqa"

    def questions(self) -> Sequence[Question]:
        """The questions of the split and subset."""
        ids = self.read("pid_splits.json", dict[str, list[str]]).get(self.split, [])
        problems = self.read("problems.json", dict[str, _Problem])
        if missing := [id for id in ids if id not in problems]:
            raise self.unusable("problems.json", f"problem {missing[0]!r} is missing")
        return [self._question(id, problems[id]) for id in ids if problems[id].image or self.subset == "all"]

    def _question(self, id: str, problem: _Problem) -> Question:
        hint = problem.hint.strip()
        lettered = zip(ascii_uppercase, problem.choices, strict=False)
        options = " ".join(f"({letter}) {option}" for letter, option in lettered)
        blanks = {"hint": hint or "N/A", "question": problem.question, "options": options}
        context = (["TXT"] if hint else []) + (["IMG"] if problem.image else []) or ["NO"]
        years = "G1-6" if int(problem.grade.removeprefix("grade")) <= 6 else "G7-12"
        return Question(
            id=id,
            image=f"{problem.split}/{id}/{problem.image}" if problem.image else None,
            prompt=self.prompt_template.format(**{name: text.replace("  ", " ") for name, text in blanks.items()}),
            gold=(ascii_uppercase[problem.answer],),
            options=tuple(problem.choices),
            groups=(SUBJECTS[problem.subject], *context, years),  # the columns of the official leaderboard
        )

    def grade(self, answer: str, question: Question) -> float:
        """1 if the answer chooses the right letter, else 0."""
        return float(option_letter(answer, len(question.options)) == question.gold[0])

    def summary(self, scores: Sequence[float | None], answers: Sequence[str]) -> dict[str, Any]:
        """As of every benchmark, and `unread`: how many answers choose no letter that could be read."""
        pairs = zip(self.asked, answers, strict=True)
        unread = sum(option_letter(answer, len(question.options)) is None for question, answer in pairs)
        return super().summary(scores, answers) | {"unread": unread}
