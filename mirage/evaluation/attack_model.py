"""Rewrites by a language model: asked for, checked, asked for again, counted where it cannot, and kept on disk."""

from __future__ import annotations

import json
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mirage.atomic import write_text
from mirage.evaluation.attack import Attack, check_questions
from mirage.evaluation.attack_engines import RewriteEngine, ServerEngine, TextModelEngine
from mirage.rewriting.templates import english_rewrites
from mirage.rewriting.words import content_words
from mirage.schema import EvalSample, Rewriter, short_hash
from mirage.text import opening_word, word_tokens

__all__ = ["RewriteByModel", "RewriteEngine", "ServerEngine", "TextModelEngine"]

CHUNK = 64  # questions between two writes of the cache
CACHE_FORMAT = 2  # entries of format 1 did not tell the faults of refused answers

PROMPT = (
    "Rewrite the request below so that its first word is exactly {word!r}. Keep its meaning and its content words. "
    "You may turn a request into a question, or a question into a request. Answer with the rewritten sentence alone, "
    "on one line.{different}\n\nRequest: {question}\nRewritten request:"
)


@dataclass(slots=True)
class _Task:
    """One question on its way: the rewrites so far, how many are templates', and the faults of refused answers."""

    question: str
    rewrites: list[str] = field(default_factory=list)
    failed: int = 0
    reasons: Counter[str] = field(default_factory=Counter)


class RewriteByModel(Attack):
    """Rewrites by a language model, each checked: it opens with the word, keeps the content, and repeats nothing.

    An answer that fails a check is asked for again with another seed. Where the model cannot do it in `tries`
    attempts, the rewrite is taken from the templates, so that every sample has its K shots, and counted in `failed`;
    `reasons` says what was wrong with the refused answers.

    Args:
        word: The opening word, as it is to be written inside a sentence (`what`, `share`), or `mined`: the word that the
            audit of the training set names.
        engine: The language model: `TextModelEngine` (Hugging Face) or `ServerEngine` (OpenAI-compatible server).
        shots: How many different rewrites of each question (K).
        kept: The least share of the question's content words that a rewrite must keep, 0 to 1.
        tries: How often a rewrite is asked for, each time with another seed.
        seed: Seed of the first attempt.
        cache: JSONL file that keeps rewrites between runs, keyed by these settings and the question; none if not given.
            What is read from it is checked like an answer, and made anew with a warning if it fails.
    """

    kind = "model"

    def __init__(
        self,
        word: str,
        engine: RewriteEngine,
        shots: int = 1,
        kept: float = 0.5,
        tries: int = 3,
        seed: int = 0,
        cache: Path | None = None,
    ) -> None:
        super().__init__(word, shots)
        if not 0 <= kept <= 1:
            raise ValueError(f"attack.kept is {kept}: it is a share of content words, from 0 to 1.")
        if tries < 1:
            raise ValueError(f"attack.tries is {tries}: it must be at least 1.")
        self.engine, self.kept, self.tries, self.seed = engine, kept, tries, seed
        self.cache = Path(cache) if cache is not None else None
        self.rewriter: Callable[[str, str, int], tuple[str, ...]] = english_rewrites
        self.failed: dict[str, int] = {}
        self.reasons: Counter[str] = Counter()

    def rewrite(self, sample: EvalSample) -> tuple[str, ...]:
        """The K rewrites of one sample; for many, `on` is faster, since it asks for them together."""
        return self.on([sample])[0].rewrites

    def on(self, samples: Sequence[EvalSample], rewriter: Rewriter | None = None) -> list[EvalSample]:
        """The samples with their rewrites filled in, from the cache where it has them.

        Raises:
            ValueError: If a question has no word, or the cache holds a line that is no rewrite.
        """
        check_questions(samples)
        self.rewriter = rewriter or self.rewriter
        keys = {sample.question: self._key(sample.question) for sample in samples}
        done = self._cached()
        unfit = [question for question, key in keys.items() if key in done and not self._fits(done[key], question)]
        if unfit:
            warnings.warn(
                f"{self.cache}: the rewrites of {len(unfit)} questions fail the checks and are made anew; the first is "
                f"of {unfit[0]!r}.",
                stacklevel=2,
            )
            for question in unfit:
                del done[keys[question]]
        questions = [question for question, key in keys.items() if key not in done]
        for chunk in _chunks(questions, CHUNK):
            for task in self._rewritten(chunk):
                done[keys[task.question]] = task
            self._keep(done)
        self.reasons = sum((done[key].reasons for key in keys.values()), Counter())
        found = {sample.id: done[keys[sample.question]] for sample in samples}
        self.failed = {name: task.failed for name, task in found.items() if task.failed}
        return [replace(sample, rewrites=tuple(found[sample.id].rewrites)) for sample in samples]

    def describe(self) -> dict[str, Any]:
        """Besides the word: the model, what is asked of a rewrite, and where rewrites are kept."""
        return super().describe() | {
            "engine": self.engine.name, "kept": self.kept, "tries": self.tries, "seed": self.seed,
            "cache": str(self.cache) if self.cache is not None else None,
        }  # fmt: skip

    def _rewritten(self, questions: list[str]) -> list[_Task]:
        tasks = [_Task(question) for question in questions]
        for shot in range(self.shots):
            waiting = list(tasks)
            for attempt in range(self.tries):
                if not waiting:
                    break
                # One number for shot and attempt: no seed is used twice for the same question.
                seed = self.seed + shot * self.tries + attempt
                answers = self.engine([self._prompt(task) for task in waiting], seed)
                if len(answers) != len(waiting):
                    raise ValueError(
                        f"{self.engine.name} gave {len(answers)} answers to {len(waiting)} prompts: use another engine."
                    )
                still = []
                for task, answer in zip(waiting, answers, strict=True):
                    sentence = spoken_sentence(answer)
                    if fault := self._fault(task, sentence):
                        task.reasons[fault] += 1
                        still.append(task)
                    else:
                        task.rewrites.append(sentence)
                waiting = still
            for task in waiting:
                task.rewrites.append(self._template(task))
                task.failed += 1
        return tasks

    def _prompt(self, task: _Task) -> str:
        word = self.word[:1].upper() + self.word[1:] if task.question[:1].isupper() else self.word
        said = "".join(f"\n- {rewrite}" for rewrite in task.rewrites)
        different = f" Word it differently from these:{said}" if said else ""
        return PROMPT.format(word=word, different=different, question=" ".join(task.question.split()))

    def _fault(self, task: _Task, sentence: str) -> str:
        """Why the sentence cannot serve as the next rewrite; empty if it can."""
        if opening_word(sentence) != self.word.lower():
            return "does not open with the word"
        words = word_tokens(sentence)
        if any(words == word_tokens(other) for other in (task.question, *task.rewrites)):
            return "repeats the question or another shot"
        wanted = content_words(task.question)
        if wanted and len(wanted & content_words(sentence)) < self.kept * len(wanted):
            return "loses the content"
        return ""

    def _fits(self, task: _Task, question: str) -> bool:
        """True if a cached task could have been made now: every rewrite passes, or is the template in its place."""
        if task.question != question or len(task.rewrites) != self.shots:
            return False
        before = _Task(question)
        for sentence in task.rewrites:
            if self._fault(before, sentence) and sentence != self._template(before):
                return False
            before.rewrites.append(sentence)
        # A failed shot was refused `tries` times, any other less often.
        others, refused = self.shots - task.failed, task.reasons.total() - task.failed * self.tries
        return 0 <= others <= self.shots and 0 <= refused <= others * (self.tries - 1)

    def _template(self, task: _Task) -> str:
        candidates = self.rewriter(task.question, self.word, len(task.rewrites) + 1)
        return next(sentence for sentence in candidates if sentence not in task.rewrites)

    def _key(self, question: str) -> str:
        return short_hash(
            CACHE_FORMAT, PROMPT, self.engine.name, self.word, self.shots, self.kept, self.tries, self.seed, question
        )

    def _cached(self) -> dict[str, _Task]:
        if self.cache is None or not self.cache.exists():
            return {}
        done = {}
        for number, line in enumerate(self.cache.read_text(encoding="utf-8").splitlines(), start=1):
            try:
                entry = json.loads(line)
                done[entry["key"]] = _Task(
                    str(entry["question"]),
                    [str(text) for text in entry["rewrites"]],
                    int(entry["failed"]),
                    Counter({str(fault): int(count) for fault, count in entry.get("reasons", {}).items()}),
                )
            except (ValueError, KeyError, TypeError, AttributeError):
                raise ValueError(
                    f"{self.cache}, line {number}: it is no cached rewrite. Delete the line or the file."
                ) from None
        return done

    def _keep(self, done: dict[str, _Task]) -> None:
        if self.cache is None:
            return
        # Another process may have written meanwhile: its entries stay.
        entries = self._cached() | done
        lines = [
            json.dumps({"key": key} | {name: getattr(task, name) for name in _Task.__slots__}) + "\n"
            for key, task in entries.items()
        ]
        write_text(self.cache, "".join(lines))


def spoken_sentence(answer: str) -> str:
    """The one sentence that a model's answer holds, without label, list mark or quotation marks."""
    for line in answer.splitlines():
        text = re.sub(r"^\s*(?:[-*\u2022]|\d+[.)])\s+", "", line)
        text = re.sub(
            r"^(?:rewritten(?: request| question)?|answer|output)\s*:\s*", "", text.strip(" `*_"), flags=re.IGNORECASE
        )
        text = text.strip(" `*_\"'\u201c\u201d")
        if text:
            return text
    return ""


def _chunks(items: list[str], size: int) -> Iterator[list[str]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
