"""Our utility scores of the same answers are those of lmms-eval's own metric functions, where it is installed."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import pytest

from mirage.evaluation.benchmarks.base import Benchmark, Question
from mirage.evaluation.benchmarks.scienceqa import ScienceQA
from mirage.evaluation.benchmarks.soft_accuracy import CONTRACTIONS
from mirage.evaluation.benchmarks.textvqa import TextVQA
from mirage.evaluation.benchmarks.vizwiz import VizWiz
from mirage.evaluation.benchmarks.vqav2 import VQAv2

vqav2, textvqa, vizwiz, scienceqa = (
    pytest.importorskip(
        f"lmms_eval.tasks.{task}.utils",
        reason="lmms-eval is not installed: docs/lmms_eval.md says how (its metric functions need few of its packages)",
        exc_type=ImportError,
    )
    for task in ("vqav2", "textvqa", "vizwiz_vqa", "scienceqa")
)

OPEN = {"vqav2": VQAv2, "textvqa": TextVQA, "vizwiz": VizWiz}
TYPED = """
    yes no Red red. RED! blue? t-shirt x/y (b) @home "hi" -5 50% rock&roll $5.00 2:50 a.m. 3.5 3. .5 v.2 !!! café im
    1,000 red,blue it?yes girl's Levi's a the An one Two ten none zero eleven 0 10 unanswerable Unanswerable. unsuitable
"""
WORDS = [*TYPED.split(), *CONTRACTIONS, "couldntve", "", "red\nblue", "tab\there", "red, blue"]


def theirs(benchmark: str, answer: str, humans: list[str]) -> float:
    if benchmark == "vqav2":
        answers = [{"answer": human, "answer_id": id, "answer_confidence": "yes"} for id, human in enumerate(humans)]
        return float(vqav2.vqav2_process_results({"question_id": 1, "answers": answers}, [answer])["exact_match"])
    module, name = (textvqa, "textvqa") if benchmark == "textvqa" else (vizwiz, "vizwiz_vqa")
    results = getattr(module, f"{name}_process_results")({"question_id": 1, "answers": [*humans]}, [answer])
    return float(results["exact_match"])


def ours(benchmark: Benchmark, answer: str, gold: list[str], options: tuple[str, ...] = ()) -> float:
    return benchmark.grade(answer, Question(id="1", image=None, prompt="", gold=tuple(gold), options=options))


@pytest.mark.parametrize("name", OPEN)
def test_soft_accuracies_are_equal(name: str) -> None:
    """Punctuation, articles, numbers, contractions, ties and "unanswerable", in answers and in those of the humans."""
    pick, benchmark, words = random.Random(0), OPEN[name](Path()), WORDS
    if name == "vizwiz":  # what is read otherwise has a test of its own
        words = [word for word in WORDS if not re.search(r",\S|\?\S|'s", word)]

    def phrase() -> str:
        return " ".join(pick.choices(words, k=pick.choice([1, 1, 1, 2, 3])))

    scores = set()
    for _ in range(3000):
        base = phrase()
        spellings = [base, base.upper(), f"the {base}", f"{base}.", f"{base} !", re.sub("['-]", "", base)]
        agreeing = pick.randint(0, 10)
        humans = pick.choices(spellings, k=agreeing) + [phrase() for _ in range(10 - agreeing)]
        answer = pick.choice(spellings)
        scores.add(round(ours(benchmark, answer, humans), 9))
        assert ours(benchmark, answer, humans) == pytest.approx(theirs(name, answer, humans), abs=1e-9), answer
    assert scores == {0, 0.3, 0.6, 0.9, 1}


def test_where_soft_accuracies_differ() -> None:
    """The official pattern takes one comma between digits; VizWiz's evaluator is VQA's, not TextVQA's tokens."""
    for name, answer, human, own, other in [
        ("vqav2", "1000", "1,,000", 0, 1), ("vizwiz", "1000", "1,,000", 0, 1), ("textvqa", "1000", "1,,000", 1, 1),
        ("vizwiz", "red blue", "red,blue", 1, 0), ("vizwiz", "redblue", "red,blue", 0, 1),
        ("vizwiz", "1000", "1,000", 1, 1), ("vizwiz", "levi 's", "Levi's", 0, 1), ("textvqa", "redblue", "red,blue", 1, 1),
    ]:  # fmt: skip
        assert (ours(OPEN[name](Path()), answer, [human] * 10), theirs(name, answer, [human] * 10)) == (own, other)


@pytest.mark.parametrize(("answer", "own", "other"), [
    ("B", 1, 1), (" b\n", 1, 1), ("B.", 1, 1), ("B. Georgia", 1, 1), ("A", 0, 0), ("C. Ohio", 0, 0), ("D", 0, 0),
    ("Georgia", 0, 0), ("", 0, 0), ("A or B", 0, 0), ("B, since it is", 0, 0), ("I'm sorry, but no.", 0, 0),
    # read by the official script and LLaVA's, or as plain, but not by lmms-eval
    ("The answer is B.", 1, 0), ("Answer: B", 1, 0), ("(B) Georgia", 1, 0), ("B) Georgia", 1, 0), ("b. Georgia", 1, 0),
    ("B\nbecause", 1, 0),
    ("B.C. or A", 0, 1),  # the other way round: no label
])  # fmt: skip
def test_scienceqa_letters(answer: str, own: int, other: int) -> None:
    options = ("Alabama", "Georgia", "Ohio")
    document: dict[str, Any] = {"choices": [*options], "answer": 1}
    assert scienceqa.sqa_process_results(document, [answer]) == {"exact_match": other}
    assert ours(ScienceQA(Path()), answer, ["B"], options) == own
