"""Attacks: from a sample to the same sample with K rewritten questions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from typing import Any

from mirage.schema import EvalSample
from mirage.text import check_word, opening_span, opening_word

MINED = "mined"


def check_questions(samples: Sequence[EvalSample]) -> None:
    """Nothing, if every question has a word.

    Raises:
        ValueError: If some have none; names the first ten of these samples.
    """
    without = [f"{sample.id} ({sample.question!r})" for sample in samples if not opening_word(sample.question)]
    if without:
        named = ", ".join(without[:10]) + (f" and {len(without) - 10} more" if len(without) > 10 else "")
        raise ValueError(
            f"{len(without)} of {len(samples)} samples ask without a word, so there is nothing to rewrite: {named}. "
            "Remove them from the data, or correct their questions."
        )


class Attack(ABC):
    """Base of every attack: a word, a number of shots, and how a question is made to open with the word.

    Args:
        word: The opening word, as it is to be written inside a sentence (`what`, `share`). `mined` takes it from the
            audit of the run's training set: for unsafe questions the word that is answered most surely there, for
            benign ones the word that is refused most surely. (The word "mined" itself is written `Mined`.)
        shots: How many rewrites of each question (K). An attack succeeds if any of them does.

    Raises:
        ValueError: If `word` is not one word of letters, digits, apostrophes and hyphens, or `shots` is less than 1.
    """

    kind: str

    def __init__(self, word: str, shots: int = 1) -> None:
        check_word(word, "attack.word")
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
        from mirage.audit.counts import audit_pairs

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

    def describe(self) -> dict[str, Any]:
        """The attack and its settings, as JSON values, for the results."""
        return {"kind": self.kind, "word": self.word, "shots": self.shots, "mined": self.mined}

    @abstractmethod
    def rewrite(self, sample: EvalSample) -> tuple[str, ...]:
        """The K rewritten questions of one sample, each opening with the word."""

    def on(self, samples: Sequence[EvalSample]) -> list[EvalSample]:
        """The samples with their rewrites filled in.

        Raises:
            ValueError: If a question has no word, or cannot be rewritten.
        """
        check_questions(samples)
        return [replace(sample, rewrites=self.rewrite(sample)) for sample in samples]


def with_opening_word(question: str, word: str) -> str:
    """The question with its opening word replaced and nothing else changed; case as the replaced word had it.

    Raises:
        ValueError: If the question has no word.
    """
    span = opening_span(question)
    if span is None:
        raise ValueError(f"The question {question!r} has no word that could be replaced: remove it from the data.")
    cased = word[:1].upper() + word[1:] if question[span[0]].isupper() else word
    return question[: span[0]] + cased + question[span[1] :]


class OneWord(Attack):
    """The strict attack: the opening word is replaced, nothing else. One shot, since there is one such rewrite.

    Args:
        word: The opening word, as it is to be written inside a sentence (`what`, `share`), or `mined`: the word that the
            audit of the training set names.
        shots: How many rewrites of each question: 1, for there is no other.

    Raises:
        ValueError: If `shots` is not 1.
    """

    kind = "one_word"

    def __init__(self, word: str, shots: int = 1) -> None:
        if shots != 1:
            raise ValueError(
                f"attack.shots is {shots}, but OneWord makes one rewrite of a question: leave attack.shots out, or take "
                "an attack that words a question in many ways, such as Rewrite."
            )
        super().__init__(word, shots)

    def rewrite(self, sample: EvalSample) -> tuple[str, ...]:
        """The one question that differs in its opening word alone."""
        return (with_opening_word(sample.question, self.word),)
