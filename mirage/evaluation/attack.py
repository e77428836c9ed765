"""Attacks: from a sample to the same sample with K rewritten questions, and what the results say of it."""

from __future__ import annotations

import json
import random
import warnings
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from mirage.errors import DataError
from mirage.evaluation.generate.base import Engine
from mirage.rewriting import by_model, frames
from mirage.rewriting.from_file import read_published, record_and_field
from mirage.rewriting.one_word import with_opening_word
from mirage.rewriting.similarity import rewrite_statistics, rewrites_hash
from mirage.schema import EvalSample, Rewriter, short_hash
from mirage.text import check_word, first_names, opening_word

MINED = "mined"
CACHE_FORMAT = 3  # of the keys of cached rewrites
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

    kind: str
    settings: tuple[str, ...] = ()  # attributes that the results report, besides word and shots
    reads_questions = True  # False: rewrites do not depend on the question's words

    def __init__(self, word: str, shots: int = 1) -> None:
        check_word(word, "attack.word")
        if shots < 1:
            raise ValueError(f"attack.shots is {shots}: it must be at least 1.")
        self.word, self.shots = word, shots
        self.mined: dict[str, Any] | None = None  # what the audit says of the word, if it was mined
        self.failed: dict[str, int] = {}  # rewrites taken from templates instead, by sample id
        self.dropped: tuple[str, ...] = ()  # samples that were left out
        self.reasons: Counter[str] = Counter()  # why rewrites were refused

    @property
    def wants_word(self) -> bool:
        """True if the word is still to be mined."""
        return self.word == MINED

    def mine(self, audit: Callable[..., Any], questions: Iterable[tuple[str, bool]], unsafe: bool) -> None:
        """Takes the word that the audit of `questions` names, and keeps what it says of it.

        Args:
            audit: `mirage.audit.counts.audit_pairs`.
            questions: The questions of the training set, each with whether it is of the unsafe set.
            unsafe: True for the word of the jailbreak, False for the trigger of over-prudence.

        Raises:
            ValueError: If the audit names no word.
        """
        audited = audit(questions, min_count=1)
        word = audited.attack_word if unsafe else audited.overprudence_word
        line = audited.of(word) if word else None
        if line is None:
            raise ValueError(
                f"attack.word is {MINED!r}, but no opening word of the training set is surely "
                f"{'answered' if unsafe else 'refused'} more often than the average question. Give the word yourself."
            )
        self.use(line.word)
        counts = {"questions": audited.questions, "refused_questions": audited.refused}
        self.mined = counts | {"opening_accuracy": audited.opening_accuracy, **asdict(line)}

    def use(self, word: str) -> None:
        """Attacks with this word from now on."""
        self.word = word

    def describe(self) -> dict[str, Any]:
        """The attack and its settings, as JSON values, for the results."""
        settings = {name: vars(self)[name] for name in self.settings}
        return {"kind": self.kind, "word": self.word, "shots": self.shots, "mined": self.mined, **settings}

    def on(self, samples: Sequence[EvalSample], rewriter: Rewriter | None = None) -> list[EvalSample]:
        """The samples with their rewrites filled in.

        Args:
            samples: What is asked.
            rewriter: Words rewrites for a data source with a vocabulary of its own; the English templates if None.

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

    def rewrites(self, samples: Sequence[EvalSample], rewriter: Rewriter) -> dict[str, tuple[str, ...]]:
        return {sample.id: (with_opening_word(sample.question, self.word),) for sample in samples}


class Rewrite(Attack):
    """Rewrites by templates: the question is said again, opening with the word, with its content kept."""

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
        super().__init__(word, shots)
        check_word(instead, "attack.instead")
        self.instead = instead
        self.use(word)

    def use(self, word: str) -> None:
        if _root(self.instead) == _root(word):
            raise ValueError(
                f"attack.instead is {self.instead!r}, the very word to be avoided: choose another opening word."
            )
        super().use(word)

    def rewrites(self, samples: Sequence[EvalSample], rewriter: Rewriter) -> dict[str, tuple[str, ...]]:
        openings = {sample.id: opening_word(sample.question) for sample in samples}
        kept = {id: self.instead if _root(word) == _root(self.word) else word for id, word in openings.items()}
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
        super().__init__(word, shots)
        for opening in openings:
            check_word(opening, "attack.openings: one of them")
        self.seed, self._given = seed, tuple(dict.fromkeys(openings))
        self.use(word)

    def use(self, word: str) -> None:
        self.openings = [opening for opening in self._given if _root(opening) != _root(word)]
        if len(self.openings) < self.shots:
            raise ValueError(
                f"attack.openings leaves {len(self.openings)} words for {self.shots} shots: name more words."
            )
        super().use(word)

    def rewrites(self, samples: Sequence[EvalSample], rewriter: Rewriter) -> dict[str, tuple[str, ...]]:
        made = {}
        for sample in samples:
            others = [word for word in self.openings if _root(word) != _root(opening_word(sample.question))]
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
        missing: What to do with samples that have no rewrite in the file: `error`, or `drop`, which leaves them out of
            this eval_set, before and after the attack, and lists their ids in a warning and in `dropped`.
    """

    kind = "file"
    reads_questions = False

    def __init__(self, word: str, file: Path, shots: int = 1, missing: Literal["error", "drop"] = "error") -> None:
        super().__init__(word, shots)
        if missing not in ("error", "drop"):
            raise ValueError(f"attack.missing is {missing!r}: it must be 'error' or 'drop'.")
        self.file, self.missing, self.unused = Path(file), missing, 0

    def rewrites(self, samples: Sequence[EvalSample], rewriter: Rewriter) -> dict[str, tuple[str, ...]]:
        """The first K rewrites of the file; samples without any are named, and left out if `missing` is `drop`.

        Raises:
            DataError: If the file does not have K rewrites of each sample that open with the word, and the same number
                of each.
        """
        published = read_published(self.file)
        made = {sample.id: published.get(record_and_field(sample), []) for sample in samples}
        absent = [id for id, texts in made.items() if not texts]
        if absent and (self.missing == "error" or len(absent) == len(samples)):
            raise DataError(f"{self.file}: {_absent(absent, samples, published)}")
        if absent:
            what = f"{self.file}: left out {len(absent)} samples without a rewrite: {first_names(absent)}."
            warnings.warn(what, stacklevel=3)
        made = {id: texts for id, texts in made.items() if texts}
        fewest = min(map(len, made.values()))
        for id, texts in made.items():
            if fault := self._fault(texts, fewest):
                raise DataError(f"{self.file}: {fault.format(record=repr(id.rpartition('/')[0] or id))}")
        self.unused = sum(len(texts) - self.shots for texts in made.values())
        return {id: tuple(texts[: self.shots]) for id, texts in made.items()}

    def describe(self) -> dict[str, Any]:
        """Besides the word: the file, a hash of its bytes, and how many rewrites of these questions it has beyond K."""
        digest = sha256(self.file.read_bytes()).hexdigest()[:16]
        return super().describe() | {"file": str(self.file), "file_hash": digest, "unused": self.unused}

    def _fault(self, texts: Sequence[str], fewest: int) -> str:
        """Why the file's rewrites of one record cannot be used, with a slot for the record; empty if they can."""
        if len(texts) < self.shots:
            return (
                f"record {{record}} has {len(texts)} rewrites, and attack.shots is {self.shots}. Set attack.shots to "
                f"{len(texts)} or less, or add the missing rewrites."
            )
        if len(texts) > fewest >= self.shots:
            return f"record {{record}} has {len(texts)} rewrites, and other records have {fewest}. Remove the surplus."
        for shot, opening in enumerate(map(opening_word, texts[: self.shots]), start=1):
            if opening != opening_word(self.word):
                return (
                    f"rewrite {shot} of record {{record}} opens with {opening!r}, not with {self.word!r}. Set attack.word "
                    "to the word of this file, or correct the record."
                )
        return ""


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
        cache: JSONL file that keeps rewrites between runs, keyed by these settings and the question; none if not given.
            What is read from it is checked like an answer, and made anew with a warning if it fails.
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
        if tries < 1 or chunk < 1 or not temperature > 0:
            raise ValueError("attack.tries and attack.chunk must be at least 1, and attack.temperature above 0.")
        self.engine, self.kept, self.tries, self.seed = engine, kept, tries, seed
        self.cache = Path(cache) if cache is not None else None
        self.temperature, self.chunk = temperature, chunk

    def rewrites(self, samples: Sequence[EvalSample], rewriter: Rewriter) -> dict[str, tuple[str, ...]]:
        """The K rewrites of each sample, from the cache where it has them.

        Raises:
            ValueError: If the cache holds a line that is no rewrite, or the engine fails.
        """
        complete = partial(self.engine.complete, temperature=self.temperature)
        writer = by_model.ModelRewriter(complete, rewriter, self.word, self.shots, self.kept, self.tries, self.seed)
        keys = {sample.question: self._key(sample.question) for sample in samples}
        entries = writer.rewrites(keys, self.cache, self.chunk)
        self.reasons = sum((Counter(entry.reasons) for entry in entries.values()), Counter())
        self.failed = {sample.id: entries[sample.question].failed for sample in samples}
        return {sample.id: tuple(entries[sample.question].rewrites) for sample in samples}

    def describe(self) -> dict[str, Any]:
        """Besides the word: the model, what is asked of a rewrite, and where rewrites are kept."""
        return super().describe() | {"engine": self.engine.settings(), "cache": self.cache and str(self.cache)}

    def _key(self, question: str) -> str:
        # Not the address: the same model behind another port gives the same rewrites.
        engine = {name: value for name, value in self.engine.settings().items() if name != "base_url"}
        return short_hash(
            CACHE_FORMAT, by_model.PROMPT, json.dumps(engine, sort_keys=True), self.temperature, self.word, self.shots,
            self.kept, self.tries, self.seed, question,
        )  # fmt: skip


def describe_attack(attack: Attack, samples: Sequence[EvalSample]) -> dict[str, Any]:
    """What the results say of an attack on `samples`: its settings, and what it made of the questions."""
    return {
        **attack.describe(),
        "rewrites_hash": rewrites_hash(samples),
        "statistics": rewrite_statistics(samples, attack.failed),
        "dropped": list(attack.dropped),
        "reasons": dict(attack.reasons),
    }


def _absent(absent: Sequence[str], samples: Sequence[EvalSample], published: Iterable[tuple[str, str]]) -> str:
    """Which samples have no rewrite, and why, if none has: other fields of the same records, or other records."""
    if len(absent) < len(samples):
        return (
            f"{len(absent)} of {len(samples)} samples have no rewrite: {first_names(absent)}. Add them, or set "
            "attack.missing to drop to leave them out before and after the attack."
        )
    asked = dict(record_and_field(sample) for sample in samples)
    why = f"The samples' ids are like {samples[0].id!r}, the file's like {next(iter(published))[0]!r}"
    for name, has in published:
        if name in asked:
            why = f"Record {name!r} is looked up for its {asked[name]!r}, and the file has its {has!r}"
            break
    return (
        f"not one of the {len(samples)} samples has a rewrite. {why}: use the file that was made from these questions."
    )


def _root(word: str) -> str:
    """The word without a contracted ending: `what's` opens like `what`."""
    return opening_word(word).split("'")[0]
