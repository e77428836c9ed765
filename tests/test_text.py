"""The opening word is one thing: for the audit, for every attack, and for rewrites."""

from __future__ import annotations

import pytest

from mirage.audit.counts import audit_pairs
from mirage.evaluation.attack import OneWord, Rewrite
from mirage.schema import EvalSample
from mirage.text import opening_word, without_list_mark

CASES = [
    ("\u00dcber die Br\u00fccke?", "\u00fcber", "What die Br\u00fccke?"),
    ("3D printers: what are they?", "3d", "what printers: what are they?"),
    ("a) Share this picture.", "share", "a) What this picture."),
    ("Co-author the letter.", "co-author", "What the letter."),
    ("What\u2019s in the box?", "what's", "What in the box?"),
    ("What's in the box?", "what's", "What in the box?"),
    ("1. Describe the hill.", "describe", "1. What the hill."),
    ("- 4. Describe the hill.", "describe", "- 4. What the hill."),
    ("\u2022 Describe the hill.", "describe", "\u2022 What the hill."),
    ("1.2. Describe the hill.", "describe", "1.2. What the hill."),
    ("(2) Describe the hill.", "describe", "(2) What the hill."),
    ("2 men and a dog", "2", "what men and a dog"),
    ("A hill?", "a", "What hill?"),
    ('"Draw" the hill.', "draw", '"What" the hill.'),
    ("\u00bfQu\u00e9 es?", "qu\u00e9", "\u00bfWhat es?"),
]


@pytest.mark.parametrize(("question", "word", "replaced"), CASES)
def test_audit_attack_and_rewrites_agree_on_the_opening_word(question: str, word: str, replaced: str) -> None:
    assert opening_word(question) == word
    audited = audit_pairs([(question, True), ("...", False)], min_count=1)
    assert [line.word for line in audited.words] == [word]
    sample = EvalSample(id="a", source="test", image=None, question=question, unsafe=True)
    assert OneWord("what").on([sample])[0].rewrites == (replaced,)
    rewrites = Rewrite("what", shots=3).on([sample])[0].rewrites
    assert {opening_word(rewrite) for rewrite in rewrites} == {"what"}
    plain = EvalSample(id="a", source="test", image=None, question=without_list_mark(question), unsafe=True)
    assert Rewrite("what", shots=3).on([plain])[0].rewrites == rewrites


@pytest.mark.parametrize("question", ["", " ", "?", "2) ...", "\u2026"])
def test_a_text_without_a_word_has_no_opening_word(question: str) -> None:
    assert opening_word(question) == ""
    assert audit_pairs([(question, True), ("What?", False)], min_count=1).wordless == 1
