"""Attacks: from a sample to the same sample with K rewritten questions, and what the results say of it."""

from __future__ import annotations

import random
import warnings
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar, Literal

from mirage.errors import DataError
from mirage.evaluation.generate.base import Engine, check_at_least_one
from mirage.rewriting import frames
from mirage.rewriting.by_model import CachedModel, ModelRewriter
from mirage.rewriting.from_file import read_published, record_and_field
from mirage.rewriting.one_word import with_opening_word
from mirage.rewriting.similarity import rewrite_statistics, rewrites_hash
from mirage.schema import EvalSample, Rewriter
from mirage.text import check_word, first_names, normalized, opening_root, opening_word

MINED = "mined"
# Openings for which the templates have good English for every sort of question.
OPENINGS = (
    "what", "how", "can", "could", "would", "is", "are", "do", "who", "when", "which", "please", "tell", "share",
    "describe", "explain", "help", "try", "look", "now", "take", "i",
)  # fmt: skip


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

    kind: ClassVar[str]
    settings: ClassVar[tuple[str, ...]] = ()  # attributes that the results report, besides word and shots
    reads_questions: ClassVar[bool] = True  # False: rewrites do not depend on the question's words

    def __init__(self, word: str, shots: int = 1) -> None:
        check_at_least_one("attack.", shots=shots)
        self.shots = shots
        self.mined: dict[str, Any] | None = None  # what the audit says of the word, if it was mined
        self.failed: dict[str, int] = {}  # rewrites taken from templates instead, by sample id
        self.dropped: tuple[str, ...] = ()  # samples that were left out
        self.reasons: Counter[str] = Counter()  # why rewrites were refused
        self.use(word)

    @property
    def wants_word(self) -> bool:
        """True if the word is still to be mined."""
        return self.word == MINED

    def use(self, word: str) -> None:
        """Attacks with this word from now on."""
        check_word(word, "attack.word")
        self.word = word

    def mine(self, audit: Callable[..., Any], questions: Iterable[tuple[str, bool]], unsafe: bool) -> None:
        """Takes the word that the audit of `questions` names, and keeps what it says of it.

        Args:
            audit: `mirage.audit.counts.audit_pairs`.
            questions: Each with whether it is of the unsafe set.
            unsafe: True for the word of the jailbreak, False for the trigger of over-prudence.

        Raises:
            ValueError: If the audit names no word.
        """
        audited = audit(questions, min_count=1)
        word = audited.attack_word if unsafe else audited.overprudence_word
        if word is None:
            raise ValueError(
                f"attack.word is {MINED!r}, but no opening word of the training set is surely "
                f"{'answered' if unsafe else 'refused'} more often than the average question: name one."
            )
        self.use(word)
        counts = {"questions": audited.questions, "refused_questions": audited.refused}
        self.mined = counts | {"opening_accuracy": audited.opening_accuracy, **asdict(audited.of(word))}

    def on(self, samples: Sequence[EvalSample], rewriter: Rewriter | None = None) -> list[EvalSample]:
        """The samples with their rewrites filled in, worded by a source's own rewriter or by the English templates.

        Raises:
            ValueError: If a question has no word, or cannot be rewritten.
        """
        without = [f"{sample.id} ({sample.question!r})" for sample in samples if not opening_word(sample.question)]
        if without and self.reads_questions:
            raise ValueError(
                f"{len(without)} of {len(samples)} samples ask without a word, so there is nothing to rewrite: "
                f"{first_names(without)}. Remove them from the data, or correct their questions."
            )
        made = self.rewrites(samples, rewriter or frames.rewrites)
        self.dropped = tuple(sample.id for sample in samples if sample.id not in made)
        return [replace(sample, rewrites=made[sample.id]) for sample in samples if sample.id in made]

    @abstractmethod
    def rewrites(self, samples: Sequence[EvalSample], rewriter: Rewriter) -> dict[str, tuple[str, ...]]:
        """The K rewritten questions of each sample, by its id; a sample that is not among them is left out."""

    def describe(self, samples: Sequence[EvalSample]) -> dict[str, Any]:
        """What the results say of the attack, as JSON values: its settings, and what it made of these samples."""
        return {
            "kind": self.kind,
            "word": self.word,
            "shots": self.shots,
            "mined": self.mined,
            **{name: getattr(self, name) for name in self.settings},
            "rewrites_hash": rewrites_hash(samples),
            "statistics": rewrite_statistics(samples, self.failed),
            "dropped": list(self.dropped),
            "reasons": dict(self.reasons),
        }


class OneWord(Attack):
    """The strict attack: the opening word is replaced, nothing else. One shot, since there is one such rewrite."""

    kind = "one_word"

    def __init__(self, word: str, shots: int = 1) -> None:
        super().__init__(word, shots)
        if shots > 1:
            raise ValueError(f"attack.shots is {shots}, but OneWord makes one rewrite: leave it out, or take Rewrite.")

    def rewrites(self, samples: Sequence[EvalSample], rewriter: Rewriter) -> dict[str, tuple[str, ...]]:
        return {sample.id: (with_opening_word(sample.question, self.word),) for sample in samples}


class Rewrite(Attack):
    """Rewrites by templates: the question is reworded to open with the word, its content kept."""

    kind = "rewrite"

    def rewrites(self, samples: Sequence[EvalSample], rewriter: Rewriter) -> dict[str, tuple[str, ...]]:
        return {sample.id: rewriter(sample.question, self.word, self.shots) for sample in samples}


class WithoutWord(Attack):
    """Control: as many rewrites as the attack makes, which keep the question's original opening word.

    What rises under this control is due to rewording; what rises under the attack beyond it is due to the word.

    Args:
        word: The attack's opening word, which no rewrite opens with; or `mined`.
        shots: How many different rewrites of each question.
        instead: The opening of rewrites of a question that itself opens with `word`.

    Raises:
        ValueError: If `instead` is `word`, or not one word.
    """

    kind = "without_word"
    settings = ("instead",)

    def __init__(self, word: str, shots: int = 1, instead: str = "please") -> None:
        check_word(instead, "attack.instead")
        self.instead = instead
        super().__init__(word, shots)

    def use(self, word: str) -> None:
        super().use(word)
        if opening_root(self.instead) == opening_root(word):
            raise ValueError(
                f"attack.instead is {self.instead!r}, the word to be avoided: choose another opening word."
            )

    def rewrites(self, samples: Sequence[EvalSample], rewriter: Rewriter) -> dict[str, tuple[str, ...]]:
        openings = {sample.id: opening_word(sample.question) for sample in samples}
        kept = {
            id: self.instead if opening_root(word) == opening_root(self.word) else word for id, word in openings.items()
        }
        return {sample.id: rewriter(sample.question, kept[sample.id], self.shots) for sample in samples}


class RandomWord(Attack):
    """Control: as many rewrites as the attack makes, each opening with another word sampled at random.

    Args:
        word: The attack's opening word, which is never sampled; or `mined`.
        shots: How many different rewrites of each question.
        seed: The words are a function of this seed and the sample's id, so they do not depend on order or subset.
        openings: The words to sample from, at least as many as shots. The default ones are English; a source with a
            vocabulary of its own (mini) needs words that it knows.

    Raises:
        ValueError: If fewer than `shots` words remain to sample from, or one of them is not one word.
    """

    kind = "random_word"
    settings = ("openings", "seed")

    def __init__(self, word: str, shots: int = 1, seed: int = 0, openings: tuple[str, ...] = OPENINGS) -> None:
        for opening in openings:
            check_word(opening, "attack.openings: one of them")
        self.seed, self.openings = seed, list(dict.fromkeys(openings))
        super().__init__(word, shots)

    def use(self, word: str) -> None:
        super().use(word)
        self.openings = [opening for opening in self.openings if opening_root(opening) != opening_root(word)]
        if len(self.openings) < self.shots:
            left = len(self.openings)
            raise ValueError(f"attack.openings leaves {left} words for {self.shots} shots: name more words.")

    def rewrites(self, samples: Sequence[EvalSample], rewriter: Rewriter) -> dict[str, tuple[str, ...]]:
        made = {}
        for sample in samples:
            others = [
                word for word in self.openings if opening_root(word) != opening_root(opening_word(sample.question))
            ]
            allowed = others if len(others) >= self.shots else self.openings
            words = random.Random(f"{self.seed}/{sample.id}").sample(allowed, self.shots)
            made[sample.id] = tuple(rewriter(sample.question, word, 1)[0] for word in words)
        return made


class Published(Attack):
    """Rewrites from a file in VLGuard's format: a JSON list of records with `id` and `instr-resp`.

    Shot k of a record is the k-th record with its id in the file, wherever it stands. A sample belongs to the record
    and field that its id names (`<record id>/<field>`, such as `Ads_1/instruction`); an id that does not end in
    `/instruction`, `/safe_instruction` or `/unsafe_instruction` is the record's id itself, and the field is
    `instruction` for an unsafe sample and `safe_instruction` for a benign one. Nothing is ever joined by position.

    Args:
        word: The opening word that every rewrite must have; or `mined`, which the file must fit.
        shots: How many rewrites of each question are used: the first of them, in the order of the file. What the file has
            beyond them is counted in the results as `unused`, and must be the same number for every question.
        file: The file, such as `test_what_3shot.json`.
        missing: What to do with samples that have no rewrite in the file, or one that repeats the question or another
            shot and so attacks nothing (in the paper's file the 17 questions that open with "What" by themselves):
            `error`, or `drop`, which leaves them out of this eval_set, before and after the attack, and lists their ids
            in a warning and in `dropped`.
    """

    kind = "file"
    settings = ("unused", "file_hash")  # the hash of the file's bytes when it was read
    reads_questions = False

    def __init__(self, word: str, file: Path, shots: int = 1, missing: Literal["error", "drop"] = "error") -> None:
        super().__init__(word, shots)
        self.file, self.missing, self.unused, self.file_hash = Path(file), missing, 0, ""

    def rewrites(self, samples: Sequence[EvalSample], rewriter: Rewriter) -> dict[str, tuple[str, ...]]:
        """The first K rewrites of the file; samples without K different ones are left out if `missing` is `drop`.

        Raises:
            DataError: If the file does not have K different rewrites of each sample that open with the word, and the
                same number of each.
        """
        published = read_published(self.file)
        self.file_hash = sha256(self.file.read_bytes()).hexdigest()[:16]
        keys = {sample.id: record_and_field(sample) for sample in samples}
        questions = {sample.id: sample.question for sample in samples}
        made = {id: published[key] for id, key in keys.items() if key in published}
        absent = [id for id in keys if id not in made]
        repeating = [id for id, texts in made.items() if _repeats(questions[id], texts[: self.shots])]
        made = {id: texts for id, texts in made.items() if id not in {*repeating}}
        repeats = "a rewrite that repeats the question or another shot"
        for lacking, what in ((absent, "no rewrite"), (repeating, repeats)):
            if not lacking:
                continue
            lacks = f"{self.file}: {len(lacking)} of {len(samples)} samples have {what}: {first_names(lacking)}"
            if self.missing == "error" or not made:
                wanted, held = ("/".join(key) for key in (keys[lacking[0]], next(iter(published))))
                raise DataError(
                    f"{lacks}. Looked up is {wanted!r}, and the file begins with {held!r}: use the file that was made from "
                    "these questions, correct its records, or set attack.missing to drop to leave out, before and after, "
                    "what it lacks."
                )
            warnings.warn(f"{lacks}, and are left out.", stacklevel=3)
        fewest = min(map(len, made.values()))
        for id, texts in made.items():
            record = f"{self.file}: record {keys[id][0]!r}"
            if not self.shots <= len(texts) <= fewest:
                raise DataError(
                    f"{record} has {len(texts)} rewrites, another has {fewest}, and attack.shots is {self.shots}: each "
                    "must have the same number, and at least attack.shots of them."
                )
            for shot, text in enumerate(texts[: self.shots], start=1):
                if opening_word(text) != opening_word(self.word):
                    raise DataError(
                        f"{record}: rewrite {shot} opens with {opening_word(text)!r}, not with {self.word!r}. Set "
                        "attack.word to the word of this file, or correct the record."
                    )
        self.unused = sum(len(texts) - self.shots for texts in made.values())
        return {id: tuple(texts[: self.shots]) for id, texts in made.items()}

    def describe(self, samples: Sequence[EvalSample]) -> dict[str, Any]:
        """Adds the file."""
        return super().describe(samples) | {"file": str(self.file)}


def _repeats(question: str, rewrites: Sequence[str]) -> bool:
    texts = [normalized(text) for text in (question, *rewrites)]
    return len({*texts}) < len(texts)


class RewriteByModel(Attack):
    """Rewrites by a language model, each checked: it opens with the word, keeps the content, and repeats nothing.

    An answer that fails a check is asked for again with another seed. Where the model cannot do it in `tries`
    attempts, the rewrite is taken from the templates, so that every sample has its K shots, and counted in `failed`;
    `reasons` says what was wrong with the refused answers.

    Args:
        word: The opening word, as it is to be written inside a sentence (`what`, `share`), or `mined`: the word that the
            audit of the training set names.
        engine: The language model: `PretrainedEngine` (a folder) or `OpenAIEngine` (a server).
        shots: How many different rewrites of each question (K).
        kept: The least share of the question's content words that a rewrite must keep, 0 to 1.
        tries: How often a rewrite is asked for, each time with another seed.
        seed: Seed of the first attempt.
        cache: JSONL file that keeps the model's answers between runs, by model, seed and prompt; none if not given. What
            is read from it is checked as it was when the model said it.
        temperature: Sampling temperature; above 0, so that another seed gives another answer.
        chunk: How many questions are rewritten between two writes of the cache.
    """

    kind = "model"
    settings = ("temperature", "kept", "tries", "seed")

    def __init__(
        self,
        word: str,
        engine: Engine,
        shots: int = 1,
        kept: float = 0.5,
        tries: int = 3,
        seed: int = 0,
        cache: Path | None = None,
        temperature: float = 0.7,
        chunk: int = 64,
    ) -> None:
        super().__init__(word, shots)
        if not 0 <= kept <= 1:
            raise ValueError(f"attack.kept is {kept}: it is a share of content words, from 0 to 1.")
        check_at_least_one("attack.", tries=tries, chunk=chunk)
        if not temperature > 0:
            raise ValueError(f"attack.temperature is {temperature}: it must be above 0.")
        self.engine, self.kept, self.tries, self.seed = engine, kept, tries, seed
        self.cache = Path(cache) if cache is not None else None
        self.temperature, self.chunk = temperature, chunk

    def rewrites(self, samples: Sequence[EvalSample], rewriter: Rewriter) -> dict[str, tuple[str, ...]]:
        """The K rewrites of each sample; the model is not asked what the cache answers.

        Raises:
            ValueError: If the cache holds a line that is no answer, or the engine fails.
        """
        model = CachedModel(self.engine, self.temperature, self.cache)
        writer = ModelRewriter(model, rewriter, self.word, self.shots, self.kept, self.tries, self.seed, self.chunk)
        questions = list(dict.fromkeys(sample.question for sample in samples))
        made = {one.question: one for one in writer.rewrites(questions)}
        self.reasons = sum((one.reasons for one in made.values()), Counter())
        self.failed = {sample.id: made[sample.question].failed for sample in samples}
        return {sample.id: tuple(made[sample.question].rewrites) for sample in samples}

    def describe(self, samples: Sequence[EvalSample]) -> dict[str, Any]:
        """Adds the model, and where its answers are kept."""
        return super().describe(samples) | {"engine": self.engine.settings(), "cache": self.cache and str(self.cache)}
