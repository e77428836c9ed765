"""Attacks: from a probe to the same probe with K rewritten questions."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from typing import Any

from mirage.schema import Probe

MINED = "mined"

OPENING_WORD = re.compile(r"[^\W_][\w'’-]*")


def opening_word(question: str) -> str:
    """The first word of a question, lower-cased; empty if it has none."""
    match = OPENING_WORD.search(question)
    return match.group(0).lower() if match else ""


class Attack(ABC):
    """Base of every attack: a word, a number of shots, and how a question is made to open with the word.

    Args:
        word: The opening word, as it is to be written inside a sentence (`what`, `share`). `mined` takes it from the
            audit of the run's training set: for unsafe questions the word that is answered most surely there, for
            benign ones the word that is refused most surely. (The word "mined" itself is written `Mined`.)
        shots: How many rewrites of each question (K). An attack succeeds if any of them does.

    Raises:
        ValueError: If `word` is empty or holds white space, or `shots` is less than 1.
    """

    kind: str

    def __init__(self, word: str, shots: int = 1) -> None:
        if not word or word.split() != [word]:
            raise ValueError(f"attack.word is {word!r}: it must be one word without spaces, such as 'what'.")
        if shots < 1:
            raise ValueError(f"attack.shots is {shots}: it must be at least 1.")
        self.word, self.shots = word, shots
        self.mined: dict[str, Any] | None = None  # what the audit says of the word, if it was mined

    @property
    def wants_word(self) -> bool:
        """True if the word is still to be mined."""
        return self.word == MINED

    def mine(self, questions: Iterable[tuple[str, bool]], unsafe: bool) -> None:
        """Takes the word that the audit of `questions` names, and keeps what it says of it.

        Args:
            questions: The questions of the training set, each with whether it is of the unsafe set.
            unsafe: True for the word of the jailbreak, False for the trigger of over-prudence.

        Raises:
            ValueError: If the audit names no word.
        """
        from mirage.audit import audit_pairs

        found = audit_pairs(questions, min_count=1)
        word = found.attack_word if unsafe else found.overprudence_word
        line = found.of(word) if word else None
        if line is None:
            raise ValueError(
                f"attack.word is {MINED!r}, but no opening word of the training set is surely "
                f"{'answered' if unsafe else 'refused'} more often than the average question. Give the word yourself."
            )
        self.use(line.word)
        self.mined = {
            "questions": found.questions, "refused_questions": found.refused, "opening_accuracy": found.opening_accuracy,
            **asdict(line),
        }  # fmt: skip

    def use(self, word: str) -> None:
        """Attacks with this word from now on."""
        self.word = word

    def told(self) -> dict[str, Any]:
        """The attack and its settings, as JSON values, for the results."""
        return {"kind": self.kind, "word": self.word, "shots": self.shots, "mined": self.mined}

    @abstractmethod
    def rewrite(self, probe: Probe) -> tuple[str, ...]:
        """The K rewritten questions of one probe, each opening with the word."""

    def on(self, probes: Sequence[Probe]) -> list[Probe]:
        """The probes with their rewrites filled in."""
        return [replace(probe, rewrites=self.rewrite(probe)) for probe in probes]


def with_opening_word(question: str, word: str) -> str:
    """The question with its opening word replaced and nothing else changed; case as the replaced word had it."""
    match = OPENING_WORD.search(question)
    if match is None:
        return question
    cased = word[:1].upper() + word[1:] if match.group(0)[0].isupper() else word
    return question[: match.start()] + cased + question[match.end() :]


class OneWord(Attack):
    """The strict attack: the opening word is replaced, nothing else. One shot, since there is one such rewrite."""

    kind = "one_word"

    def rewrite(self, probe: Probe) -> tuple[str, ...]:
        """The one question that differs in its opening word alone."""
        return (with_opening_word(probe.question, self.word),) * self.shots
