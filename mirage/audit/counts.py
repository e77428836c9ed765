"""How far a training set's words give its labels away: the paper's Figure 1 for any list of (question, refused).

Pure counting on text: needs neither model nor torch. For every opening word (or every word): how often it occurs, how
often its questions are refused, and how much it moves the odds; for the opening word as a whole: how many bits it tells
about the label and how well it separates the two sets by itself.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mirage.stats import Z_95, wilson
from mirage.text import WORD, opening_word

SCHEMA_VERSION = 1

Counts = npt.NDArray[np.int64]
Reals = npt.NDArray[np.float64]


class Words(NamedTuple):
    """What the two labels are called when they are told."""

    refused: str
    answered: str
    refused_head: str  # short, over a column
    answered_head: str


BY_ANSWERS = Words("refused", "answered", "refused", "answered")
BY_MEMBERSHIP = Words("in the unsafe set", "in the retain set", "unsafe", "retain")


@dataclass(frozen=True, slots=True)
class Interval:
    """A rate with its Wilson 95 % interval, as fractions."""

    rate: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class WordCount:
    """What one word tells about the label.

    Args:
        word: Lower-cased.
        count: Questions that open with it (with `every_word`: that hold it).
        refused: Those of them that are refused.
        p_refused: P(refused | word).
        share_of_refused: Share of all refused questions that have the word.
        share_of_answered: Share of all answered questions that have the word.
        log_odds: Natural log of the odds ratio of refusal, questions with the word against all others, each of the four
            counts raised by 1/2 (Haldane-Anscombe). Above 0: the word goes with refusal.
        log_odds_low: Lower end of its 95 % interval (Woolf: normal, from the four raised counts).
        log_odds_high: Upper end.
    """

    word: str
    count: int
    refused: int
    p_refused: Interval
    share_of_refused: float
    share_of_answered: float
    log_odds: float
    log_odds_low: float
    log_odds_high: float


@dataclass(frozen=True, slots=True)
class Audit:
    """The word statistics of one training set.

    Args:
        questions: How many there are.
        refused: How many of them are refused.
        wordless: Questions without any letter; as openers they count as one word of their own, which is not listed.
        every_word: True if `words` counts words anywhere in a question (once each), False if its opening word only.
        min_count: Rarer words are not listed.
        distinct_words: How many words there are, rare ones included.
        words: The listed words, the most frequent first.
        label_entropy_bits: Entropy of the label: what there is to know.
        mutual_information_bits: What the opening word alone tells of it (plug-in: a little high for rare words).
        opening_accuracy: Share of questions that are labelled rightly by the commoner label of their opening word.
        left_out_accuracy: The same where each question is judged by the others only, so that a word seen once tells
            nothing.
        majority_accuracy: Share labelled rightly by the commoner label of all.
        attack_word: The opening word that is answered most surely, or None if none is answered more than the average:
            the highest Wilson 95 % lower bound of P(answered | word).
        overprudence_word: The opening word that is refused most surely, by the same rule for P(refused | word).
    """

    questions: int
    refused: int
    wordless: int
    every_word: bool
    min_count: int
    distinct_words: int
    words: tuple[WordCount, ...]
    label_entropy_bits: float
    mutual_information_bits: float
    opening_accuracy: float
    left_out_accuracy: float
    majority_accuracy: float
    attack_word: str | None
    overprudence_word: str | None

    @property
    def answered(self) -> int:
        """How many questions are not refused."""
        return self.questions - self.refused

    def of(self, word: str) -> WordCount | None:
        """The line of `word`, if it is listed."""
        return next((line for line in self.words if line.word == word), None)

    def to_json(self, data: str = "", skipped: Sequence[str] = ()) -> str:
        """The audit as indented JSON; rates are fractions.

        Args:
            data: What was audited, and what counted as refused.
            skipped: What of it is not counted, in sentences.
        """
        about = {"schema_version": SCHEMA_VERSION, "data": data, "skipped": list(skipped)}
        return json.dumps({**about, **asdict(self)}, indent=2) + "\n"


def audit(questions: Iterable[str], refused: Iterable[bool], *, every_word: bool = False, min_count: int = 5) -> Audit:
    """The word statistics of `questions`, of which the i-th is refused if `refused[i]`.

    Args:
        questions: The questions as they are trained on.
        refused: As many labels.
        every_word: List all words of the questions, not the opening ones alone.
        min_count: List words that occur in at least this many questions. Totals always count all.

    Raises:
        ValueError: If there are no questions, the two differ in length, or `min_count` is less than 1.
    """
    return audit_pairs(_paired(questions, refused), every_word=every_word, min_count=min_count)


def audit_pairs(pairs: Iterable[tuple[str, bool]], *, every_word: bool = False, min_count: int = 5) -> Audit:
    """`audit` of questions with their labels, none of which is kept: a generator of millions needs no memory."""
    if min_count < 1:
        raise ValueError(f"audit: min_count is {min_count}: it must be at least 1.")
    openers: Counter[str] = Counter()
    refused_openers: Counter[str] = Counter()
    words: Counter[str] = Counter()
    refused_words: Counter[str] = Counter()
    for question, label in pairs:
        opener = opening_word(question)
        openers[opener] += 1
        if label:
            refused_openers[opener] += 1
        if every_word:
            held = set(WORD.findall(question.lower().replace("\u2019", "'")))
            words.update(held)
            if label:
                refused_words.update(held)
    if not openers:
        raise ValueError("audit: there are no questions. Give a training set that has some.")

    total, of_them = openers.total(), refused_openers.total()
    counts, refusals = _columns(openers, refused_openers)
    names = [word for word in openers if word]
    named = [position for position, word in enumerate(openers) if word]
    attack, overprudence = _surest(counts[named], refusals[named], of_them / total)
    listed, refused_listed = (words, refused_words) if every_word else (openers, refused_openers)
    return Audit(
        questions=total,
        refused=of_them,
        wordless=openers[""],
        every_word=every_word,
        min_count=min_count,
        distinct_words=sum(1 for word in listed if word),
        words=_lines(list(listed), *_columns(listed, refused_listed), total, of_them, min_count),
        label_entropy_bits=_entropy_bits(np.array([of_them, total - of_them])),
        mutual_information_bits=_mutual_information_bits(counts, refusals),
        opening_accuracy=float(np.maximum(refusals, counts - refusals).sum() / total),
        left_out_accuracy=_left_out_accuracy(counts, refusals),
        majority_accuracy=max(of_them, total - of_them) / total,
        attack_word=None if attack is None else names[attack],
        overprudence_word=None if overprudence is None else names[overprudence],
    )


def _paired(questions: Iterable[str], refused: Iterable[bool]) -> Iterable[tuple[str, bool]]:
    """The questions with their labels.

    Raises:
        ValueError: If there are more of the one than of the other.
    """
    missing: Any = object()
    pairs = enumerate(zip_longest(questions, refused, fillvalue=missing))
    for place, (question, label) in pairs:
        if question is missing or label is missing:
            longer = place + 1 + sum(1 for _ in pairs)
            found = (place, longer) if question is missing else (longer, place)
            raise ValueError(f"audit: {found[0]} questions but {found[1]} labels: each question needs one.")
        yield question, label


def _columns(counted: Counter[str], refused: Counter[str]) -> tuple[Counts, Counts]:
    """For each word, in order of first occurrence, how often it occurs and how often it is refused."""
    return (
        np.fromiter(counted.values(), dtype=np.int64, count=len(counted)),
        np.fromiter((refused[word] for word in counted), dtype=np.int64, count=len(counted)),
    )


def _lines(
    words: list[str], counts: Counts, refusals: Counts, total: int, refused: int, min_count: int
) -> tuple[WordCount, ...]:
    with_refused, with_answered = refusals + 0.5, counts - refusals + 0.5
    else_refused, else_answered = refused - refusals + 0.5, (total - refused) - (counts - refusals) + 0.5
    log_odds = np.log(with_refused * else_answered / (with_answered * else_refused))
    reach = Z_95 * np.sqrt(1 / with_refused + 1 / with_answered + 1 / else_refused + 1 / else_answered)
    listed = [i for i in range(len(words)) if words[i] and counts[i] >= min_count]
    return tuple(
        WordCount(
            word=words[i],
            count=int(counts[i]),
            refused=int(refusals[i]),
            p_refused=_interval(int(refusals[i]), int(counts[i])),
            share_of_refused=float(refusals[i] / max(refused, 1)),
            share_of_answered=float((counts[i] - refusals[i]) / max(total - refused, 1)),
            log_odds=float(log_odds[i]),
            log_odds_low=float(log_odds[i] - reach[i]),
            log_odds_high=float(log_odds[i] + reach[i]),
        )
        for i in sorted(listed, key=lambda i: (-counts[i], words[i]))
    )


def _interval(hits: int, n: int) -> Interval:
    rate, low, high = wilson(hits, n)
    assert rate is not None and low is not None and high is not None  # every word occurs
    return Interval(rate, low, high)


def _lower_ends(hits: Counts, n: Counts) -> Reals:
    return np.array([_interval(int(k), int(of)).low for k, of in zip(hits, n, strict=True)], dtype=np.float64)


def _surest(counts: Counts, refusals: Counts, base_rate: float) -> tuple[int | None, int | None]:
    """Positions of the words most surely answered and most surely refused, each only if surely above average."""
    if not len(counts):
        return None, None
    answered_low, refused_low = _lower_ends(counts - refusals, counts), _lower_ends(refusals, counts)
    best_answered, best_refused = int(answered_low.argmax()), int(refused_low.argmax())
    return (
        best_answered if answered_low[best_answered] > 1 - base_rate else None,
        best_refused if refused_low[best_refused] > base_rate else None,
    )


def _entropy_bits(counts: Counts) -> float:
    shares = counts[counts > 0] / counts.sum()
    return float(max(0.0, -(shares * np.log2(shares)).sum()))


def _mutual_information_bits(counts: Counts, refusals: Counts) -> float:
    """H(word) + H(label) - H(word, label)."""
    label = np.array([refusals.sum(), (counts - refusals).sum()])
    joint = np.concatenate([refusals, counts - refusals])
    return max(0.0, _entropy_bits(counts) + _entropy_bits(label) - _entropy_bits(joint))


def _left_out_accuracy(counts: Counts, refusals: Counts) -> float:
    """Each question judged by the other questions of its opening word; where those tie, by all other questions."""
    total, answers = counts.sum(), counts - refusals
    refused_in_all = refusals.sum()
    right = 0
    for mine, other, others_of_mine in (
        (refusals, answers, refused_in_all - 1),
        (answers, refusals, total - refused_in_all - 1),
    ):
        wins = (mine - 1 > other) | ((mine - 1 == other) & (others_of_mine > total - 1 - others_of_mine))
        right += int(mine[wins & (mine > 0)].sum())
    return float(right / total)
