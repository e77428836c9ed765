"""How far a training set's words give its labels away: the paper's Figure 1 for any list of (question, refused).

Pure counting on text: needs neither model nor torch. For every opening word (or every word): how often it occurs, how
often its questions are refused, and how much it moves the odds; for the opening word as a whole: how many bits it
carries about the label and how well it separates the two sets by itself.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from math import fsum, log, log2, sqrt
from typing import TYPE_CHECKING, NamedTuple

from mirage.stats import Z_95, wilson
from mirage.text import opening_word, words_of

if TYPE_CHECKING:
    from mirage.audit.forms import FormAudit

SCHEMA_VERSION = 2


class LabelNames(NamedTuple):
    """What the two labels are called in tables and figures."""

    refused: str
    answered: str
    refused_head: str  # short, over a column
    answered_head: str


BY_ANSWERS = LabelNames("refused", "answered", "refused", "answered")
BY_MEMBERSHIP = LabelNames("in the unsafe set", "in the retain set", "unsafe", "retain")


@dataclass(frozen=True, slots=True)
class Interval:
    """A rate with its Wilson 95 % interval, as fractions."""

    rate: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class WordCount:
    """What one word says about the label.

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
        questions: Their number.
        refused: How many of them are refused.
        wordless: Questions without a letter or digit; as openers they count as one word of their own, which is not listed.
        every_word: True if `words` counts words anywhere in a question (once each), False if its opening word only.
        min_count: Rarer words are not listed.
        distinct_words: Number of different words, rare ones included.
        words: The listed words, the most frequent first.
        label_entropy_bits: Entropy of the label: what there is to know.
        mutual_information_bits: What the opening word alone says about it (plug-in: a little high for rare words).
        opening_accuracy: Share of questions that the more frequent label of their opening word labels correctly.
        left_out_accuracy: The same where each question is labelled by the others only, so that a word that occurs once
            says nothing.
        majority_accuracy: Share that the more frequent label of all questions labels correctly.
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

    def to_json(self, data: str = "", skipped: Sequence[str] = (), forms: FormAudit | None = None) -> str:
        """The audit as indented JSON; rates are fractions.

        Args:
            data: What was audited, and what counted as refused.
            skipped: What of it is not counted, in sentences.
            forms: The audit of form of the same questions; null in the JSON if there is none.
        """
        about = {"schema_version": SCHEMA_VERSION, "data": data, "skipped": list(skipped)}
        return json.dumps({**about, **asdict(self), "forms": forms and asdict(forms)}, indent=2) + "\n"


class Cue:
    """For each value of a cue (such as the opening word): how many questions have it, and how many of them are refused.

    Args:
        labelled: How many questions have a value and a label (refused or not). If each question has one value, `accuracy`
            and the like rate the cue as a classifier of the label.
    """

    def __init__(self, labelled: Counter[tuple[str, bool]]) -> None:
        self.count: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        for (value, refused), count in labelled.items():
            self.count[value] += count
            self.refused[value] += count * refused

    def sides(self) -> list[tuple[int, int]]:
        """(refused, answered) of each value, in order of first occurrence."""
        return [(self.refused[value], count - self.refused[value]) for value, count in self.count.items()]

    def mutual_information_bits(self) -> float:
        """What the value says about the label: H(value) + H(label) - H(value, label)."""
        sides = self.sides()
        label = [sum(side) for side in zip(*sides, strict=True)]
        joint = [count for pair in sides for count in pair]
        return max(0.0, entropy_bits(list(self.count.values())) + entropy_bits(label) - entropy_bits(joint))

    def accuracy(self) -> float:
        """Share of questions that the more frequent label of their value labels correctly."""
        return sum(map(max, self.sides())) / self.count.total()

    def left_out_accuracy(self) -> float:
        """The same, each question by the other questions of its value; where those tie, by all other questions."""
        total, refused = self.count.total(), self.refused.total()
        correct = 0
        for counts in self.sides():
            for same, other, same_in_all in zip(counts, counts[::-1], (refused, total - refused), strict=True):
                others_lean_here = 2 * (same_in_all - 1) > total - 1
                if same - 1 > other or (same - 1 == other and others_lean_here):
                    correct += same
        return correct / total

    def surest(self, refused: bool) -> str | None:
        """The value that is refused (or answered) most surely: by the Wilson lower bound, if above the average."""
        average = self.refused.total() / self.count.total()
        bounds = {
            value: _interval(self.refused[value] if refused else count - self.refused[value], count).low
            for value, count in self.count.items()
            if value
        }
        best = max(bounds, key=bounds.__getitem__, default="")
        return best if best and bounds[best] > (average if refused else 1 - average) else None


def audit_pairs(pairs: Iterable[tuple[str, bool]], *, every_word: bool = False, min_count: int = 5) -> Audit:
    """The word statistics of (question, refused) pairs, none of which is kept: a generator of millions needs no memory.

    Args:
        pairs: The questions as they are trained on, each with its label.
        every_word: List all words of the questions, not the opening ones alone.
        min_count: List words that occur in at least this many questions. Totals always count all.

    Raises:
        ValueError: If there are no questions or `min_count` is less than 1.
    """
    if min_count < 1:
        raise ValueError(f"audit: min_count is {min_count}: it must be at least 1.")
    by_opener: Counter[tuple[str, bool]] = Counter()
    by_word: Counter[tuple[str, bool]] = Counter()
    pairs = iter(pairs)
    while some := list(islice(pairs, 10_000)):
        by_opener.update((opening_word(question), refused) for question, refused in some)
        if every_word:
            by_word.update((word, refused) for question, refused in some for word in {*words_of(question)})
    if not by_opener:
        raise ValueError("audit: there are no questions. Give a training set that has some.")

    openers = Cue(by_opener)
    questions, refusals = openers.count.total(), openers.refused.total()
    listed = Cue(by_word) if every_word else openers
    often = [(word, count) for word, count in listed.count.items() if word and count >= min_count]
    return Audit(
        questions=questions,
        refused=refusals,
        wordless=openers.count[""],
        every_word=every_word,
        min_count=min_count,
        distinct_words=sum(1 for word in listed.count if word),
        words=tuple(
            _word_count(word, count, listed.refused[word], questions, refusals)
            for word, count in sorted(often, key=lambda each: (-each[1], each[0]))
        ),
        label_entropy_bits=entropy_bits([refusals, questions - refusals]),
        mutual_information_bits=openers.mutual_information_bits(),
        opening_accuracy=openers.accuracy(),
        left_out_accuracy=openers.left_out_accuracy(),
        majority_accuracy=max(refusals, questions - refusals) / questions,
        attack_word=openers.surest(refused=False),
        overprudence_word=openers.surest(refused=True),
    )


def entropy_bits(counts: Sequence[int]) -> float:
    """The plug-in entropy of `counts`, in bits."""
    total = sum(counts)
    return max(0.0, -fsum(count / total * log2(count / total) for count in counts if count))


def _word_count(word: str, count: int, refused: int, questions: int, refusals: int) -> WordCount:
    answered, answers = count - refused, questions - refusals
    cells = (refused + 0.5, answers - answered + 0.5, answered + 0.5, refusals - refused + 0.5)
    log_odds = log(cells[0] * cells[1] / (cells[2] * cells[3]))
    reach = Z_95 * sqrt(sum(1 / cell for cell in cells))
    return WordCount(
        word=word,
        count=count,
        refused=refused,
        p_refused=_interval(refused, count),
        share_of_refused=refused / max(refusals, 1),
        share_of_answered=answered / max(answers, 1),
        log_odds=log_odds,
        log_odds_low=log_odds - reach,
        log_odds_high=log_odds + reach,
    )


def _interval(hits: int, n: int) -> Interval:
    rate, low, high = wilson(hits, n)
    assert rate is not None and low is not None and high is not None  # every word occurs
    return Interval(rate, low, high)
