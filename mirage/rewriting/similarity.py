"""How far rewrites went from their questions: content words kept, shares of repetitions, a hash of the whole set."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from statistics import mean

from mirage.rewriting.reading import known
from mirage.schema import EvalSample, short_hash
from mirage.text import word_tokens

_FUNCTION_WORDS = known(
    "wh", "be", "do", "modals", "pronouns", "determiners", "prepositions", "conjunctions", "adverbs", "functions"
)


def content_words(text: str) -> set[str]:
    """The words that carry content, without their inflection, so that `depicts` and `depicted` count as one."""
    return {_stem(token) for token in word_tokens(text) if token not in _FUNCTION_WORDS}


def content_kept(question: str, rewrite: str) -> float:
    """The share of the question's content words that the rewrite has too, in any form; 1 if the question has none."""
    wanted = content_words(question)
    return len(wanted & content_words(rewrite)) / len(wanted) if wanted else 1.0


def rewrites_hash(samples: Sequence[EvalSample]) -> str:
    """Sixteen hexadecimal digits that change with any question or rewrite, but not with the order of the samples."""
    return short_hash(*sorted(json.dumps([sample.id, *sample.questions]) for sample in samples))


def rewrite_statistics(samples: Sequence[EvalSample], failed: Mapping[str, int]) -> dict[str, float]:
    """How far the rewrites went from their questions: counts, and shares (0 to 1) of all rewrites where there are any.

    `repeating` samples have two shots that are the same to the letter; `unchanged` rewrites have the question's words.

    Args:
        samples: Samples with their rewrites.
        failed: Rewrites that an attack had to take from templates instead, by sample id (`Attack.failed`).
    """
    pairs = [(sample.question, rewrite) for sample in samples for rewrite in sample.rewrites]
    counts: dict[str, float] = {
        "samples": len(samples),
        "rewrites": len(pairs),
        "without_rewrite": sum(not sample.rewrites for sample in samples),
        "repeating": sum(len(set(sample.rewrites)) < len(sample.rewrites) for sample in samples),
        "failed": sum(failed.get(sample.id, 0) for sample in samples),
    }
    if not pairs:
        return counts
    return counts | {
        "distinct": sum(len(set(sample.rewrites)) for sample in samples) / len(pairs),
        "unchanged": mean(word_tokens(question) == word_tokens(rewrite) for question, rewrite in pairs),
        "content_kept_mean": mean(content_kept(question, rewrite) for question, rewrite in pairs),
    }


def _stem(word: str) -> str:
    word = word.removesuffix("'s").strip("'")
    for ending in ("ing", "ies", "ed", "es", "s"):
        if word.endswith(ending) and len(word) - len(ending) >= 3 and not word.endswith("ss"):
            word = word[: -len(ending)]
            break
    return word.rstrip("ey") or word
