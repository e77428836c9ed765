"""Agreement with the starting model's answers: chrF against an independent count, and its mean over questions."""

from __future__ import annotations

from collections import Counter

import pytest
from builders import record_of
from hypothesis import given
from hypothesis import strategies as st

from mirage.evaluation.run.agreement import agreement, chrf


def chrf_by_hand(answer: str, reference: str) -> float:
    """The definition: F2 of the precision and recall of character n-grams, each a mean over n = 1 to 6."""
    a, r = "".join(answer.split()), "".join(reference.split())
    precisions, recalls = [], []
    for n in range(1, 7):
        grams = [Counter(text[k : k + n] for k in range(len(text) - n + 1)) for text in (a, r)]
        if all(grams):
            both = (grams[0] & grams[1]).total()
            precisions.append(both / grams[0].total())
            recalls.append(both / grams[1].total())
    if not precisions:
        return 0.0
    precision, recall = sum(precisions) / len(precisions), sum(recalls) / len(recalls)
    return 5 * precision * recall / (4 * precision + recall) if precision + recall else 0.0


@given(st.text("abc de", min_size=6, max_size=40), st.text("abc de", min_size=6, max_size=40))
def test_chrf_is_that_of_the_definition(answer: str, reference: str) -> None:
    (score,) = chrf([answer], [reference])
    assert score == pytest.approx(1.0 if answer == reference else chrf_by_hand(answer, reference), abs=1e-6)


def test_agreement_is_a_mean_over_questions_of_the_mean_over_shots() -> None:
    answers = {"a": ("a red ball", "a red ball", "zzz"), "b": ("a dog", "qqq", "qqq")}
    records = [record_of(id, shot, answer=answer) for id, own in answers.items() for shot, answer in enumerate(own)]
    records.append(record_of("no starting answer", answer="x"))
    found = agreement(records, {"a": "a red ball", "b": "a dog"})
    assert found["before"] == {"mean": 1.0, "low": 1.0, "high": 1.0, "n": 2}
    assert found["after"]["mean"] == pytest.approx(0.25) and found["after"]["n"] == 2
    assert 0 <= found["after"]["low"] < 0.25 < found["after"]["high"] <= 0.5
    assert agreement(records, {}) == {
        key: {"mean": None, "low": None, "high": None, "n": 0} for key in ("before", "after")
    }
