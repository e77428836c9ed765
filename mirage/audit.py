"""How far a training set's words give its labels away: the paper's Figure 1 for any list of (question, refused).

Pure counting on text: needs neither model nor torch. For every opening word (or every word): how often it occurs, how
often its questions are refused, and how much it moves the odds; for the opening word as a whole: how many bits it tells
about the label and how well it separates the two sets by itself.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from mirage.atomic import write_text

if TYPE_CHECKING:
    from rich.console import Console

WORD = re.compile(r"[A-Za-z']+")
SCHEMA_VERSION = 1
_Z95 = 1.959963984540054

Counts = npt.NDArray[np.int64]
Reals = npt.NDArray[np.float64]


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

    def to_json(self) -> str:
        """The audit as indented JSON; rates are fractions."""
        return json.dumps({"schema_version": SCHEMA_VERSION, **asdict(self)}, indent=2) + "\n"


def audit(questions: Iterable[str], refused: Iterable[bool], *, every_word: bool = False, min_count: int = 5) -> Audit:
    """The word statistics of `questions`, of which the i-th is refused if `refused[i]`.

    Args:
        questions: The questions as they are trained on; read once, so a generator will do.
        refused: As many labels.
        every_word: List all words of the questions, not the opening ones alone.
        min_count: List words that occur in at least this many questions. Totals always count all.

    Raises:
        ValueError: If there are no questions, the two differ in length, or `min_count` is less than 1.
    """
    if min_count < 1:
        raise ValueError(f"audit: min_count is {min_count}: it must be at least 1.")
    labels = np.fromiter((bool(label) for label in refused), dtype=bool)
    openers, opener_of, words, word_of, question_of = _coded(questions, every_word)
    if len(opener_of) != len(labels):
        raise ValueError(f"audit: {len(opener_of)} questions but {len(labels)} labels: each question needs one.")
    if not len(labels):
        raise ValueError("audit: there are no questions. Give a training set that has some.")

    counts, refusals = _tally(opener_of, labels, len(openers))
    named = [position for position, word in enumerate(openers) if word]
    attack, overprudence = _surest(counts[named], refusals[named], labels.mean())
    listed = (openers, counts, refusals)
    if every_word:
        listed = (words, *_tally(word_of, labels[question_of], len(words)))
    names = [openers[position] for position in named]
    total, of_them = len(labels), int(labels.sum())
    return Audit(
        questions=total,
        refused=of_them,
        wordless=int(counts[openers.index("")]) if "" in openers else 0,
        every_word=every_word,
        min_count=min_count,
        distinct_words=sum(1 for word in listed[0] if word),
        words=_lines(*listed, total, of_them, min_count),
        label_entropy_bits=_entropy_bits(np.array([of_them, total - of_them])),
        mutual_information_bits=_mutual_information_bits(counts, refusals),
        opening_accuracy=float(np.maximum(refusals, counts - refusals).sum() / total),
        left_out_accuracy=_left_out_accuracy(counts, refusals),
        majority_accuracy=max(of_them, total - of_them) / total,
        attack_word=None if attack is None else names[attack],
        overprudence_word=None if overprudence is None else names[overprudence],
    )


def _coded(questions: Iterable[str], every_word: bool) -> tuple[list[str], Counts, list[str], Counts, Counts]:
    """Openers and their index per question; words, their index and question per (question, distinct word)."""
    openers: dict[str, int] = {}
    words: dict[str, int] = {}
    opener_of: list[int] = []
    word_of: list[int] = []
    sizes: list[int] = []
    for question in questions:
        first = WORD.search(question)
        opener_of.append(openers.setdefault(first.group().lower() if first else "", len(openers)))
        if every_word:
            held = set(WORD.findall(question.lower()))
            word_of.extend(words.setdefault(word, len(words)) for word in held)
            sizes.append(len(held))
    question_of = np.repeat(np.arange(len(sizes)), sizes)
    as_array = lambda indices: np.array(indices, dtype=np.int64)
    return list(openers), as_array(opener_of), list(words), as_array(word_of), question_of


def _tally(index: Counts, labels: npt.NDArray[np.bool_], size: int) -> tuple[Counts, Counts]:
    return np.bincount(index, minlength=size), np.bincount(index[labels], minlength=size)


def _lines(
    words: list[str], counts: Counts, refusals: Counts, total: int, refused: int, min_count: int
) -> tuple[WordCount, ...]:
    with_refused, with_answered = refusals + 0.5, counts - refusals + 0.5
    else_refused, else_answered = refused - refusals + 0.5, (total - refused) - (counts - refusals) + 0.5
    log_odds = np.log(with_refused * else_answered / (with_answered * else_refused))
    reach = _Z95 * np.sqrt(1 / with_refused + 1 / with_answered + 1 / else_refused + 1 / else_answered)
    low, high = _wilson(refusals, counts)
    listed = [i for i in range(len(words)) if words[i] and counts[i] >= min_count]
    return tuple(
        WordCount(
            word=words[i],
            count=int(counts[i]),
            refused=int(refusals[i]),
            p_refused=Interval(float(refusals[i] / counts[i]), float(low[i]), float(high[i])),
            share_of_refused=float(refusals[i] / max(refused, 1)),
            share_of_answered=float((counts[i] - refusals[i]) / max(total - refused, 1)),
            log_odds=float(log_odds[i]),
            log_odds_low=float(log_odds[i] - reach[i]),
            log_odds_high=float(log_odds[i] + reach[i]),
        )
        for i in sorted(listed, key=lambda i: (-counts[i], words[i]))
    )


def _wilson(hits: Counts, n: Counts) -> tuple[Reals, Reals]:
    rate, square = hits / n, _Z95**2
    middle = (rate + square / (2 * n)) / (1 + square / n)
    reach = _Z95 / (1 + square / n) * np.sqrt(rate * (1 - rate) / n + square / (4 * n**2))
    return np.clip(middle - reach, 0.0, 1.0), np.clip(middle + reach, 0.0, 1.0)


def _surest(counts: Counts, refusals: Counts, base_rate: float) -> tuple[int | None, int | None]:
    """Positions of the words most surely answered and most surely refused, each only if surely above average."""
    if not len(counts):
        return None, None
    answered_low, _ = _wilson(counts - refusals, counts)
    refused_low, _ = _wilson(refusals, counts)
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


def _percent(rate: float) -> str:
    return f"{100 * rate:.1f} %"


def sentences(found: Audit) -> list[str]:
    """What the audit says, in plain sentences."""
    told = found.mutual_information_bits / found.label_entropy_bits if found.label_entropy_bits else 0.0
    lines = [
        f"{found.questions} questions, {found.refused} refused and {found.answered} answered.",
        f"The opening word tells {found.mutual_information_bits:.3f} of {found.label_entropy_bits:.3f} bits of the"
        f" label ({_percent(told)}).",
        f"Alone it separates the two with {100 * found.opening_accuracy:.2f} % accuracy"
        f" ({100 * found.left_out_accuracy:.2f} % on questions left out; the majority label:"
        f" {100 * found.majority_accuracy:.2f} %).",
    ]
    for word, effect, purpose in (
        (found.attack_word, "answered", "attack"),
        (found.overprudence_word, "refused", "over-prudence trigger"),
    ):
        lines.append(
            f"Best {purpose}: {word!r}, the opening word that is most surely {effect}."
            if word
            else f"Best {purpose}: none, no opening word is surely {effect} more than the average question."
        )
    return lines


def print_audit(found: Audit, *, rows: int = 25, console: Console | None = None) -> None:
    """Prints the `rows` most frequent words as a table, and what they say."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    console = console or Console()
    table = Table(box=SIMPLE_HEAD, padding=(0, 0, 0, 1), pad_edge=False)
    table.add_column("word" if found.every_word else "opening\nword", no_wrap=True)
    for heading in ("n", "refused", "rate", "of all\nrefused", "of all\nanswered", "log-odds\n[95 % interval]"):
        table.add_column(heading, justify="right", no_wrap=True)
    for line in found.words[:rows]:
        table.add_row(
            line.word,
            str(line.count),
            str(line.refused),
            _percent(line.p_refused.rate),
            _percent(line.share_of_refused),
            _percent(line.share_of_answered),
            f"{line.log_odds:+.2f} [{line.log_odds_low:+.2f}, {line.log_odds_high:+.2f}]",
            style="red" if line.log_odds_low > 0 else "blue" if line.log_odds_high < 0 else None,
        )
    console.print(table)
    if len(found.words) < found.distinct_words or len(found.words) > rows:
        console.print(
            f"{min(rows, len(found.words))} of {found.distinct_words} words shown; the JSON lists those that occur"
            f" {found.min_count} times or more.",
            highlight=False,
        )
    for sentence in sentences(found):
        console.print(sentence, highlight=False, markup=False)


def audit_command(
    pairs: Iterable[tuple[str, bool]],
    out: Path,
    *,
    every_word: bool = False,
    min_count: int = 5,
    rows: int = 25,
    title: str = "",
    console: Console | None = None,
) -> Audit:
    """The audit of (question, refused) pairs, printed and written to `audit.json`, `.png` and `.svg` in `out`."""
    questions: list[str] = []
    refused: list[bool] = []
    for question, was_refused in pairs:
        questions.append(question)
        refused.append(was_refused)
    from mirage.audit_figure import figure, write_figure

    found = audit(questions, refused, every_word=every_word, min_count=min_count)
    print_audit(found, rows=rows, console=console)
    write_text(out / "audit.json", found.to_json())
    drawn = figure(found, title=title)
    for suffix in (".png", ".svg"):
        write_figure(drawn, out / f"audit{suffix}")
    return found
