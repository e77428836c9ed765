"""How far rewrites went from their questions: content words kept, edit distances, a hash of the whole set."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence

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


def edit_distance(before: Sequence[str], after: Sequence[str]) -> int:
    """The least number of words to insert, delete or replace that turns one sequence into the other."""
    row = list(range(len(after) + 1))
    for taken, old in enumerate(before, start=1):
        diagonal, row[0] = row[0], taken
        for at, new in enumerate(after, start=1):
            diagonal, row[at] = row[at], min(row[at] + 1, row[at - 1] + 1, diagonal + (old != new))
    return row[-1]


def rewrites_hash(samples: Sequence[EvalSample]) -> str:
    """Sixteen hexadecimal digits that change with any question or rewrite, but not with the order of the samples."""
    return short_hash(*sorted(json.dumps([sample.id, *sample.questions]) for sample in samples))


def rewrite_statistics(samples: Sequence[EvalSample], failed: Mapping[str, int]) -> dict[str, float]:
    """How far the rewrites went from their questions: counts, shares (0 to 1) and word-level edit distances.

    Words are runs of `[a-z0-9']`, lower-cased. The relative distance is the distance by the length of the longer
    sentence. `repeating` samples have two shots that are the same to the letter.

    Args:
        samples: Samples with their rewrites.
        failed: Rewrites that an attack had to take from templates instead, by sample id (`Attack.failed`).
    """
    pairs = [(sample.question, rewrite) for sample in samples for rewrite in sample.rewrites]
    result = {
        "samples": float(len(samples)),
        "rewrites": float(len(pairs)),
        "without_rewrite": float(sum(not sample.rewrites for sample in samples)),
        "repeating": float(sum(len(set(sample.rewrites)) < len(sample.rewrites) for sample in samples)),
        "failed": float(sum(failed.get(sample.id, 0) for sample in samples)),
    }
    if not pairs:
        return result
    words = [(word_tokens(question), word_tokens(rewrite)) for question, rewrite in pairs]
    distances = [edit_distance(before, after) for before, after in words]
    relative = [far / max(len(before), len(after), 1) for far, (before, after) in zip(distances, words, strict=True)]
    replaced = [before[:1] != after[:1] and before[1:] == after[1:] for before, after in words]
    return result | {
        "distinct": sum(len(set(sample.rewrites)) for sample in samples) / len(pairs),
        "unchanged": statistics.mean(before == after for before, after in words),
        "pure_replacements": statistics.mean(replaced),
        "edit_distance_mean": statistics.mean(distances),
        "edit_distance_median": float(statistics.median(distances)),
        "relative_edit_distance_mean": statistics.mean(relative),
        "relative_edit_distance_median": statistics.median(relative),
        "content_kept_mean": statistics.mean(content_kept(question, rewrite) for question, rewrite in pairs),
        "words_before_mean": statistics.mean(len(before) for before, _ in words),
        "words_after_mean": statistics.mean(len(after) for _, after in words),
    }


def _stem(word: str) -> str:
    word = word.removesuffix("'s").strip("'")
    for ending in ("ing", "ies", "ed", "es", "s"):
        if word.endswith(ending) and len(word) - len(ending) >= 3 and not word.endswith("ss"):
            word = word[: -len(ending)]
            break
    return word.rstrip("ey") or word
