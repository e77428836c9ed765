"""Rewrites by a language model: asked for, checked, asked for again, and counted where the model cannot do it.

What the model said is kept on disk, not what was made of it: a run from the cache checks and counts as the first run did.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from mirage.atomic import write_text
from mirage.json_file import lines
from mirage.rewriting.similarity import content_kept
from mirage.schema import Rewriter, short_hash
from mirage.shapes import Shape, Text, checked
from mirage.text import opening_word, word_tokens

PROMPT = (
    "Rewrite the request below so that its first word is exactly {word!r}. Keep its meaning and its content words. "
    "You may turn a request into a question, or a question into a request. Answer with the rewritten sentence alone, "
    "on one line.{different}\n\nRequest: {question}\nRewritten request:"
)


@dataclass(slots=True)
class Rewritten:
    """A question and its rewrites so far; `failed` are the templates', `reasons` say why answers were refused."""

    question: str
    rewrites: list[str] = field(default_factory=list)
    failed: int = 0
    reasons: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class ModelRewriter:
    """Asks a language model for rewrites and checks each: it opens with the word, keeps the content, repeats nothing.

    Args:
        model: Answers, and keeps them.
        template: Makes the rewrite that the model does not.
        word, shots, kept, tries, seed, chunk: As in `mirage.evaluation.attack.RewriteByModel`.
    """

    model: CachedModel
    template: Rewriter
    word: str
    shots: int
    kept: float
    tries: int
    seed: int
    chunk: int

    def rewrites(self, questions: Sequence[str]) -> list[Rewritten]:
        """The K rewrites of each question; whatever happens, the model's answers are kept."""
        made: list[Rewritten] = []
        for start in range(0, len(questions), self.chunk):
            try:
                made += self._rewrites(questions[start : start + self.chunk])
            finally:
                self.model.save()
        return made

    def _rewrites(self, questions: Sequence[str]) -> list[Rewritten]:
        """The same of a few questions, which are asked about together in each attempt."""
        every = [Rewritten(question) for question in questions]
        for shot in range(self.shots):
            waiting = every
            for attempt in range(self.tries):
                # One number for shot and attempt: no seed is used twice for the same question.
                waiting = self._attempt(waiting, self.seed + shot * self.tries + attempt)
            for one in waiting:
                candidates = self.template(one.question, self.word, len(one.rewrites) + 1)
                one.rewrites.append(next(sentence for sentence in candidates if sentence not in one.rewrites))
                one.failed += 1
        return every

    def _attempt(self, waiting: Sequence[Rewritten], seed: int) -> list[Rewritten]:
        """Asks once for the next rewrite of each question; those that still wait for one."""
        answers = self.model.answers([self._prompt(one) for one in waiting], seed)
        refused = []
        for one, sentence in zip(waiting, map(spoken_sentence, answers), strict=True):
            if fault := self._fault(one, sentence):
                one.reasons[fault] += 1
                refused.append(one)
            else:
                one.rewrites.append(sentence)
        return refused

    def _prompt(self, one: Rewritten) -> str:
        word = self.word[:1].upper() + self.word[1:] if one.question[:1].isupper() else self.word
        so_far = "".join(f"\n- {rewrite}" for rewrite in one.rewrites)
        different = f" Word it differently from these:{so_far}" if so_far else ""
        return PROMPT.format(word=word, different=different, question=" ".join(one.question.split()))

    def _fault(self, one: Rewritten, sentence: str) -> str:
        """Why the sentence cannot serve as the next rewrite; empty if it can."""
        if opening_word(sentence) != opening_word(self.word):
            return "does not open with the word"
        if word_tokens(sentence) in map(word_tokens, (one.question, *one.rewrites)):
            return "repeats the question or another shot"
        return "loses the content" if content_kept(one.question, sentence) < self.kept else ""


def spoken_sentence(answer: str) -> str:
    """The one sentence that a model's answer holds, without label, list mark or quotation marks."""
    for line in answer.splitlines():
        text = re.sub(r"^\s*(?:[-*\u2022]|\d+[.)])\s+", "", line).strip(" `*_")
        text = re.sub(r"^(?:rewritten(?: request| question)?|answer|output)\s*:\s*", "", text, flags=re.IGNORECASE)
        if text := text.strip(" `*_\"'\u201c\u201d"):
            return text
    return ""


class _CachedAnswer(Shape):
    settings: Text
    seed: int
    prompt: Text
    answer: str


class CachedModel:
    """A language model whose answers are kept in a JSONL file.

    Args:
        engine: The model: an `Engine` of `mirage.evaluation.generate`.
        temperature: Sampling temperature.
        file: The file; answers are kept in memory alone if it is None.

    Raises:
        ValueError: If a line of the file is no such answer; names it.
    """

    def __init__(self, engine: Any, temperature: float, file: Path | None) -> None:
        self._complete, self._file = partial(engine.complete, temperature=temperature), file
        # not the address: the same model behind another port gives the same answers
        settings = {name: value for name, value in engine.settings().items() if name != "base_url"}
        self._settings = short_hash(json.dumps({**settings, "temperature": temperature}, sort_keys=True))
        self._known: dict[tuple[str, int, str], str] = self._read()

    def answers(self, prompts: Sequence[str], seed: int) -> list[str]:
        """One answer to each prompt; the model is asked for those that it has not given before."""
        keys = [(self._settings, seed, prompt) for prompt in prompts]
        if new := [key for key in dict.fromkeys(keys) if key not in self._known]:
            given = self._complete([prompt for _, _, prompt in new], seed=seed)
            # half a character (a lone surrogate) in an answer becomes "?": no file could hold it
            whole = (answer.encode(errors="replace").decode() for answer in given)
            self._known |= zip(new, whole, strict=True)
        return [self._known[key] for key in keys]

    def save(self) -> None:
        """Writes the answers beside those that are in the file, from another process too, whole or not at all."""
        if self._file is not None:
            self._known = self._read() | self._known
            kept = (
                dict(zip(_CachedAnswer.model_fields, (*key, said), strict=True)) for key, said in self._known.items()
            )
            write_text(self._file, "".join(json.dumps(entry) + "\n" for entry in kept))

    def _read(self) -> dict[tuple[str, int, str], str]:
        known = {}
        for line in lines(self._file, "one answer a line") if self._file and self._file.exists() else ():
            entry, _ = checked(_CachedAnswer, line.record, str(self._file), f"line {line.number}")
            if entry is None:
                raise ValueError(
                    f"{self._file}, line {line.number}: it is not a cached answer. Delete the line or the file."
                )
            known[entry.settings, entry.seed, entry.prompt] = entry.answer
        return known
