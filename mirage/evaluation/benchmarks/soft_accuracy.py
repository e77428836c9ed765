"""VQA soft accuracy and the two answer normalisers of the official evaluators.

Antol et al. 2015 and https://visualqa.org/evaluation.html: an answer counts min(#humans who gave it / 3, 1), averaged
over every choice of nine of the ten humans, after both sides were normalised. Singh et al. 2019 (TextVQA, the `m4c`
evaluator) takes the same score after tokenising first.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field

from mirage.evaluation.benchmarks.base import Benchmark, Question
from mirage.shapes import Shape

# Apostrophe, colon, dollar, percent and ampersand are no punctuation to the official evaluator.
PUNCTUATION = frozenset(';/[]"{}()=+\\_-><@`,?!')
THOUSANDS = re.compile(r"\d,\d")
# The evaluator's own pattern opens with `(?!<=\d)`, a look-behind misspelt, which never fails: what it removes is every
# period that no digit follows. So "1." loses it and ".5" keeps it.
PERIOD = re.compile(r"\.(?!\d)")
DIGITS = "zero one two three four five six seven eight nine ten"
NUMBERS = {"none": "0"} | {word: str(value) for value, word in enumerate(DIGITS.split())}
ARTICLES = frozenset({"a", "an", "the"})
# A contraction gets its apostrophe back where exactly one is missing (couldnt, couldn'tve). The list is the official
# one: that "im", "ill" and "shes" are not in it is no slip here.
CONTRACTED = Path(__file__).with_name("contractions.txt").read_text(encoding="utf-8").split()
CONTRACTIONS = {
    word[: mark.start()] + word[mark.end() :]: word for word in CONTRACTED for mark in re.finditer("'", word)
}
CONTRACTIONS["somebody'd"] = "somebodyd"  # the official table has it this way round


@lru_cache(maxsize=1 << 16)
def vqa_normal(answer: str) -> str:
    """The answer as the VQA evaluator compares it.

    Lower case; punctuation becomes a space, or nothing where it touches a space or where digits with a comma between
    them occur anywhere in the answer; periods go unless a digit follows; number words up to ten become digits ("none"
    becomes 0); articles go; contractions get their apostrophe back. `"T-shirt"` -> `"t shirt"`, `"1,000."` -> `"1000"`.
    """
    text = answer.replace("\n", " ").replace("\t", " ").strip()
    glued = THOUSANDS.search(text) is not None
    marks: dict[str, str | int | None] = {
        mark: "" if glued or f"{mark} " in text or f" {mark}" in text else " "
        for mark in PUNCTUATION.intersection(text)
    }
    text = PERIOD.sub("", text.translate(str.maketrans(marks)))
    words = (NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


@lru_cache(maxsize=1 << 16)
def m4c_normal(answer: str) -> str:
    """The answer as the TextVQA evaluator compares it: tokenised, then as `vqa_normal`.

    Commas and question marks go without a trace and `'s` stands apart: `"Levi's, red"` -> `"levi 's red"`.
    """
    return vqa_normal(answer.lower().replace(",", "").replace("?", "").replace("'s", " 's"))


def soft_accuracy(answer: str, humans: Sequence[str]) -> float:
    """The mean over every choice of all but one human of min(#chosen humans who gave this answer / 3, 1).

    Answers are compared as they are: normalise first. With ten humans, k matches give 0, 0.3, 0.6, 0.9, and 1 from
    four on: with k matches, k of the ten choices miss one of them and the other ten - k miss none.
    """
    matches = humans.count(answer)
    without_one, with_all = min(1.0, (matches - 1) / 3), min(1.0, matches / 3)
    return (matches * without_one + (len(humans) - matches) * with_all) / len(humans)


SHORT_ANSWER = "Answer the question using a single word or phrase."  # LLaVA-1.5's prompt for short answers


class HumanAnswer(Shape):
    """What one human answered."""

    answer: str


Ten = Field(min_length=10, max_length=10)  # humans: the metric averages over every choice of nine
TenHumans = Annotated[list[HumanAnswer], Ten]


class SoftAccuracy(Benchmark):
    """Base of the benchmarks that ten humans answered; what it uploads has a question's id and the normalised answer."""

    metric = "VQA soft accuracy (10 choose 9)"
    prompt_template = "{question}\n" + SHORT_ANSWER
    uploaded_id: ClassVar[tuple[str, type]] = ("question_id", int)
    """The field and type of an id in an upload."""

    def normal(self, answer: str) -> str:
        """The answer as it is compared."""
        return vqa_normal(answer)

    def grade(self, answer: str, question: Question) -> float:
        """Soft accuracy of one answer."""
        return soft_accuracy(self.normal(answer), tuple(map(self.normal, question.gold)))

    def submission(self, answers: Sequence[str]) -> list[dict[str, Any]]:
        """A list of `{"question_id": int, "answer": str}`, normalised, for the benchmark's challenge on EvalAI."""
        if self.limit is not None:
            raise ValueError(
                f"{self.name} was asked a subset of {len(answers)} questions, and a server takes a complete split only. "
                f"Remove {type(self).__name__}.limit."
            )
        field, kind = self.uploaded_id
        pairs = zip(self.asked, answers, strict=True)
        return [{field: kind(question.id), "answer": self.normal(answer)} for question, answer in pairs]
