"""Attacks that rewrite a question so that it opens with a given word, their controls, and how far the rewrites went."""

from __future__ import annotations

import json
import random
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mirage.evaluation.attack import Attack
from mirage.evaluation.attack_model import RewriteByModel, ServerEngine, TextModelEngine
from mirage.evaluation.attack_published import Published
from mirage.rewriting.templates import english_rewrites
from mirage.rewriting.words import content_words
from mirage.schema import EvalSample, short_hash
from mirage.text import check_word, opening_word, word_tokens

__all__ = [
    "Published",
    "RandomWord",
    "Rewrite",
    "RewriteByModel",
    "ServerEngine",
    "TextModelEngine",
    "WithoutWord",
    "describe_attack",
    "rewrite_statistics",
    "rewrites_hash",
]

Rewriter = Callable[[str, str, int], tuple[str, ...]]

# Openings that the templates turn into good English for every sort of question.
OPENINGS = (
    "what", "how", "can", "could", "would", "is", "are", "do", "who", "when", "which", "please", "tell", "share",
    "describe", "explain", "help", "try", "look", "now", "take", "i",
)  # fmt: skip


class Rewrite(Attack):
    """Rewrites by templates: the question is said again, opening with the word, with its content kept.

    A data source with a language of its own sets `rewriter` after construction: a function of question, word and
    number of shots. Its default knows English.

    Args:
        word: The opening word, as it is to be written inside a sentence (`what`, `share`), or `mined`: the word that the
            audit of the training set names.
        shots: How many different rewrites of each question (K). An attack succeeds if any of them does.
    """

    kind = "rewrite"

    def __init__(self, word: str, shots: int = 1) -> None:
        super().__init__(word, shots)
        self.rewriter: Rewriter = english_rewrites

    def rewrite(self, sample: EvalSample) -> tuple[str, ...]:
        """K different sentences that open with the word; none of them is the question itself."""
        return self.rewriter(sample.question, self.word, self.shots)


class WithoutWord(Attack):
    """Control: as many rewrites as the attack makes, which keep the question's own opening word.

    What rises under this control is due to rewording; what rises under the attack beyond it is due to the word.

    Args:
        word: The attack's opening word, which no rewrite opens with; or `mined`.
        shots: How many different rewrites of each question.
        instead: The opening of rewrites of a question that itself opens with `word`.

    Raises:
        ValueError: If `instead` is `word`, or not one word.
    """

    kind = "without_word"

    def __init__(self, word: str, shots: int = 1, instead: str = "please") -> None:
        super().__init__(word, shots)
        check_word(instead, "attack.instead")
        self.instead = instead
        self.rewriter: Rewriter = english_rewrites
        self.use(word)

    def use(self, word: str) -> None:
        """Avoids this word from now on."""
        if _root(self.instead) == _root(word):
            raise ValueError(
                f"attack.instead is {self.instead!r}, the very word to be avoided: choose another opening word."
            )
        super().use(word)

    def describe(self) -> dict[str, Any]:
        """Besides the word that is avoided, the one that stands instead of it."""
        return super().describe() | {"instead": self.instead}

    def rewrite(self, sample: EvalSample) -> tuple[str, ...]:
        """K different sentences, none of which opens with the word."""
        own = opening_word(sample.question)
        opening = self.instead if not own or _root(own) == _root(self.word) else own
        return self.rewriter(sample.question, opening, self.shots)


class RandomWord(Attack):
    """Control: as many rewrites as the attack makes, each opening with another word drawn at random.

    Args:
        word: The attack's opening word, which is never drawn; or `mined`.
        shots: How many different rewrites of each question.
        seed: The draw is a function of this seed and the sample's id, so it does not depend on order or subset.
        openings: The words to draw from, at least as many as shots. Ours are English; a source with a language of its own
            (mini) needs words that it knows.

    Raises:
        ValueError: If fewer than `shots` words remain to draw from, or one of them is not one word.
    """

    kind = "random_word"

    def __init__(self, word: str, shots: int = 1, seed: int = 0, openings: tuple[str, ...] = OPENINGS) -> None:
        super().__init__(word, shots)
        for opening in openings:
            check_word(opening, "attack.openings: one of them")
        self.seed, self._given = seed, tuple(dict.fromkeys(openings))
        self.rewriter: Rewriter = english_rewrites
        self.use(word)

    def use(self, word: str) -> None:
        """Never draws this word from now on."""
        self.openings = tuple(opening for opening in self._given if _root(opening) != _root(word))
        if len(self.openings) < self.shots:
            raise ValueError(
                f"attack.openings leaves {len(self.openings)} words for {self.shots} shots: name more words."
            )
        super().use(word)

    def describe(self) -> dict[str, Any]:
        """Besides the word that is never drawn, those that are, and the seed."""
        return super().describe() | {"openings": list(self.openings), "seed": self.seed}

    def rewrite(self, sample: EvalSample) -> tuple[str, ...]:
        """K different sentences that open with K different words, none of them the attack's or the question's own."""
        own = _root(opening_word(sample.question))
        openings = [opening for opening in self.openings if _root(opening) != own]
        openings = openings if len(openings) >= self.shots else list(self.openings)
        drawn = random.Random(f"{self.seed}/{sample.id}").sample(openings, self.shots)
        return tuple(self.rewriter(sample.question, opening, 1)[0] for opening in drawn)


def _root(word: str) -> str:
    """The word without a contracted ending: `what's` opens like `what`."""
    return re.split(r"['\u2019]", word.lower(), maxsplit=1)[0]


def rewrites_hash(samples: Sequence[EvalSample]) -> str:
    """Sixteen hexadecimal digits that change with any question or rewrite, but not with the order of the samples."""
    return short_hash(*sorted(json.dumps([sample.id, *sample.questions]) for sample in samples))


def edit_distance(before: Sequence[str], after: Sequence[str]) -> int:
    """The least number of words to insert, delete or replace that turns one sequence into the other."""
    row = list(range(len(after) + 1))
    for taken, old in enumerate(before, start=1):
        diagonal, row[0] = row[0], taken
        for at, new in enumerate(after, start=1):
            diagonal, row[at] = row[at], min(row[at] + 1, row[at - 1] + 1, diagonal + (old != new))
    return row[-1]


def content_kept(question: str, rewrite: str) -> float:
    """The share of the question's content words that the rewrite has too, in any form; 1 if the question has none."""
    wanted = content_words(question)
    return len(wanted & content_words(rewrite)) / len(wanted) if wanted else 1.0


def describe_attack(attack: Attack, samples: Sequence[EvalSample]) -> dict[str, Any]:
    """What the results say of an attack on `samples`: its settings, and what it made of the questions."""
    return {
        **attack.describe(),
        "rewrites_hash": rewrites_hash(samples),
        "statistics": rewrite_statistics(samples, getattr(attack, "failed", None)),
        "dropped": list(getattr(attack, "dropped", ())),
        "reasons": dict(getattr(attack, "reasons", {})),
    }


def rewrite_statistics(samples: Sequence[EvalSample], failed: Mapping[str, int] | None = None) -> dict[str, float]:
    """How far the rewrites went from their questions: counts, shares (0 to 1) and word-level edit distances.

    Words are runs of `[a-z0-9']`, lower-cased. The relative distance is the distance by the length of the longer
    sentence. `repeating` samples have two shots that are the same to the letter.

    Args:
        samples: Samples with their rewrites.
        failed: Rewrites that an attack had to take from templates instead, by sample id (`RewriteByModel.failed`).
    """
    pairs = [(sample.question, rewrite) for sample in samples for rewrite in sample.rewrites]
    result = {
        "samples": float(len(samples)),
        "rewrites": float(len(pairs)),
        "without_rewrite": float(sum(not sample.rewrites for sample in samples)),
        "repeating": float(sum(len(set(sample.rewrites)) < len(sample.rewrites) for sample in samples)),
        "failed": float(sum((failed or {}).get(sample.id, 0) for sample in samples)),
    }
    if not pairs:
        return result
    words = [(word_tokens(question), word_tokens(rewrite)) for question, rewrite in pairs]
    distances = [edit_distance(before, after) for before, after in words]
    relative = [
        distance / max(len(before), len(after), 1) for distance, (before, after) in zip(distances, words, strict=True)
    ]
    return result | {
        "distinct": sum(len(set(sample.rewrites)) for sample in samples) / len(pairs),
        "unchanged": statistics.mean(before == after for before, after in words),
        "pure_replacements": statistics.mean(
            before[:1] != after[:1] and before[1:] == after[1:] for before, after in words
        ),
        "edit_distance_mean": statistics.mean(distances),
        "edit_distance_median": float(statistics.median(distances)),
        "relative_edit_distance_mean": statistics.mean(relative),
        "relative_edit_distance_median": statistics.median(relative),
        "content_kept_mean": statistics.mean(content_kept(question, rewrite) for question, rewrite in pairs),
        "words_before_mean": statistics.mean(len(before) for before, _ in words),
        "words_after_mean": statistics.mean(len(after) for _, after in words),
    }
