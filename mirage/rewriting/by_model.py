"""Rewrites by a language model: asked for, checked, asked for again, counted where it cannot, and kept on disk."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from mirage.atomic import write_text
from mirage.json_file import lines
from mirage.rewriting.similarity import content_kept, content_words
from mirage.schema import Rewriter
from mirage.shapes import Shape, Text, checked
from mirage.text import opening_word, word_tokens

PROMPT = (
    "Rewrite the request below so that its first word is exactly {word!r}. Keep its meaning and its content words. "
    "You may turn a request into a question, or a question into a request. Answer with the rewritten sentence alone, "
    "on one line.{different}\n\nRequest: {question}\nRewritten request:"
)


class ModelRewrites(Shape, frozen=False):
    """The rewrites of one question: one line of the cache.

    Args:
        key: Under which settings they were made, and of which question.
        question: The question.
        rewrites: Its rewrites so far.
        failed: How many of them are the templates', because the model could not.
        reasons: What was wrong with refused answers, and how often.
    """

    key: Text
    question: Text
    rewrites: list[Text] = Field(default_factory=list)
    failed: int = 0
    reasons: dict[str, int] = Field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ModelRewriter:
    """Asks a language model for rewrites and checks each: it opens with the word, keeps the content, repeats nothing.

    Args:
        complete: The model: `complete(prompts, seed=...)` gives one answer to each prompt.
        template: Makes the rewrite that the model does not.
        word, shots, kept, tries, seed: As in `mirage.evaluation.attack.RewriteByModel`.
    """

    complete: Callable[..., Sequence[str]]
    template: Rewriter
    word: str
    shots: int
    kept: float
    tries: int
    seed: int

    def rewrites(self, keys: Mapping[str, str], cache: Path | None, chunk: int) -> dict[str, ModelRewrites]:
        """The rewrites of each question, from the cache where it has sound ones.

        Args:
            keys: The questions, each with its key in the cache.
            cache: A JSONL file, written after each chunk.
            chunk: How many questions are rewritten between two writes.

        Raises:
            ValueError: If the cache holds a line that is no entry, or the model gives more or fewer answers than prompts.
        """
        cached = read_cache(cache) if cache else {}
        done = {question: cached[key] for question, key in keys.items() if key in cached}
        unsound = [question for question, entry in done.items() if not self._is_sound(entry, question)]
        if unsound:
            warnings.warn(
                f"{cache}: the rewrites of {len(unsound)} questions fail the checks and are made anew; the first is of "
                f"{unsound[0]!r}.",
                stacklevel=4,
            )
        missing = [question for question in keys if question not in done or question in unsound]
        for start in range(0, len(missing), chunk):
            entries = [ModelRewrites(key=keys[text], question=text) for text in missing[start : start + chunk]]
            self._fill(entries)
            done |= {entry.question: entry for entry in entries}
            if cache:
                add_to_cache(cache, entries)
        return done

    def _fill(self, tasks: Sequence[ModelRewrites]) -> None:
        """Adds the K rewrites to each of the questions; those of one attempt are asked for together."""
        for shot in range(self.shots):
            waiting = list(tasks)
            for attempt in range(self.tries):
                # One number for shot and attempt: no seed is used twice for the same question.
                waiting = self._attempt(waiting, self.seed + shot * self.tries + attempt) if waiting else []
            for task in waiting:
                task.rewrites.append(self._from_template(task))
                task.failed += 1

    def _is_sound(self, task: ModelRewrites, question: str) -> bool:
        """True if a cached entry could have been made now: every rewrite passes, or is the template in its place."""
        if task.question != question or len(task.rewrites) != self.shots:
            return False
        before = ModelRewrites(key=task.key, question=question)
        for sentence in task.rewrites:
            if self._fault(before, sentence) and sentence != self._from_template(before):
                return False
            before.rewrites.append(sentence)
        # A failed shot was refused `tries` times, any other less often.
        others, refused = self.shots - task.failed, sum(task.reasons.values()) - task.failed * self.tries
        return 0 <= others <= self.shots and 0 <= refused <= others * (self.tries - 1)

    def _attempt(self, tasks: Sequence[ModelRewrites], seed: int) -> list[ModelRewrites]:
        """Asks once for the next rewrite of each question; those that still wait for one."""
        answers = self.complete([self._prompt(task) for task in tasks], seed=seed)
        if len(answers) != len(tasks):
            raise ValueError(f"The model gave {len(answers)} answers to {len(tasks)} prompts: use another engine.")
        waiting = []
        for task, answer in zip(tasks, answers, strict=True):
            sentence = spoken_sentence(answer)
            if fault := self._fault(task, sentence):
                task.reasons[fault] = task.reasons.get(fault, 0) + 1
                waiting.append(task)
            else:
                task.rewrites.append(sentence)
        return waiting

    def _prompt(self, task: ModelRewrites) -> str:
        word = self.word[:1].upper() + self.word[1:] if task.question[:1].isupper() else self.word
        so_far = "".join(f"\n- {rewrite}" for rewrite in task.rewrites)
        different = f" Word it differently from these:{so_far}" if so_far else ""
        return PROMPT.format(word=word, different=different, question=" ".join(task.question.split()))

    def _fault(self, task: ModelRewrites, sentence: str) -> str:
        """Why the sentence cannot serve as the next rewrite; empty if it can."""
        if opening_word(sentence) != opening_word(self.word):
            return "does not open with the word"
        words = word_tokens(sentence)
        if any(words == word_tokens(other) for other in (task.question, *task.rewrites)):
            return "repeats the question or another shot"
        if content_words(task.question) and content_kept(task.question, sentence) < self.kept:
            return "loses the content"
        return ""

    def _from_template(self, task: ModelRewrites) -> str:
        candidates = self.template(task.question, self.word, len(task.rewrites) + 1)
        return next(sentence for sentence in candidates if sentence not in task.rewrites)


def spoken_sentence(answer: str) -> str:
    """The one sentence that a model's answer holds, without label, list mark or quotation marks."""
    for line in answer.encode(errors="replace").decode().splitlines():
        text = re.sub(r"^\s*(?:[-*\u2022]|\d+[.)])\s+", "", line).strip(" `*_")
        text = re.sub(r"^(?:rewritten(?: request| question)?|answer|output)\s*:\s*", "", text, flags=re.IGNORECASE)
        if text := text.strip(" `*_\"'\u201c\u201d"):
            return text
    return ""


def read_cache(file: Path) -> dict[str, ModelRewrites]:
    """The entries of a cache by key; none if there is no file.

    Raises:
        ValueError: If a line is no entry; names it.
    """
    entries = {}
    for line in lines(file, "one cached rewrite a line") if file.exists() else ():
        entry, _ = checked(ModelRewrites, line.record, str(file), f"line {line.number}")
        if entry is None:
            raise ValueError(f"{file}, line {line.number}: it is no cached rewrite. Delete the line or the file.")
        entries[entry.key] = entry
    return entries


def add_to_cache(file: Path, entries: Iterable[ModelRewrites]) -> None:
    """Writes the entries beside those that are in the file, from another process too, whole or not at all."""
    merged = read_cache(file) | {entry.key: entry for entry in entries}
    write_text(file, "".join(json.dumps(entry.model_dump()) + "\n" for entry in merged.values()))
