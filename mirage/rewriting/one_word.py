"""The smallest rewrite there is: the opening word is replaced, and nothing else."""

from __future__ import annotations

from mirage.text import opening_span


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
