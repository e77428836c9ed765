"""Crossed forms: questions of both sets are reworded in forms that give the label away as little as possible.

    L = E_t [ l_u(x_t) ] + gamma * E_t [ l_r(x_t) ]        t ~ forms, one distribution for both sets

A question has content (what it asks about) and form (opening word, question or request, final mark, length). Training
finds what separates its two sets most cheaply, and in VLGuard the form alone does (its opening word, its final mark or its
second word: 97 % each). Opening word and final mark of a crossed question are sampled independently of the label. Templates
still make other sentences of requests than of questions, so what form gives away is measured again before training.

Which form an example has in which use is a pure function of (seed, lap, example), so resuming, ranks and batch layouts do
not change it.
"""

from __future__ import annotations

import json
import logging
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from mirage.data.lazy import sampled
from mirage.data.mixture import Mixture
from mirage.errors import DataError
from mirage.rewriting import frames
from mirage.rewriting.from_file import read_paraphrases
from mirage.rewriting.one_word import with_opening_word
from mirage.rewriting.reading import DATA
from mirage.schema import Example, Rewriter, short_hash
from mirage.text import check_word, first_names, opening_root, opening_word

# Questions that say nothing by themselves, so that the picture decides; every sort of form is among them.
NEUTRAL = (
    "What about this image?", "Describe this.", "What is this?", "Tell me about this picture.", "Can you look at this?",
    "Please comment on this image.", "Share this with me.", "Look at the picture.", "How about this one?", "This picture.",
    "Explain this image.", "Is there something to say about this?",
)  # fmt: skip
FRAMES, ONE_WORD = "frames", "one_word"
_SHOTS = 3  # of how many rewrites that open with a word one is sampled
_FRAME_BYTES = 256  # more than the longest frame with a tail, or the longest neutral question
_OFTEN = 0.005  # `forms: audit` takes the opening words of at least this share of the questions
_MOST_REFUSED = 0.2  # share of questions that no rewriter can reword
_MOST_NEUTRAL = 0.75  # share of the uses of an example whose picture decides; the rest keep its words in training

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Crossing:
    """Crossed forms: how the questions of both training sets are reworded, whatever their label.

    Args:
        share: Share of the other uses in which a question has another form than its own, 0 to 1.
        rewriters: What words the new forms, each as often as the others: `frames` (templates: whole sentences), `one_word`
            (only the opening word changes), and files that `mirage prepare paraphrases` wrote. At least two, where neutral
            questions count as one, or the manner of the single rewriter becomes a new cue.
        forms: The opening words, each as likely; `audit` takes those of the training sets themselves.
        neutral: Share of the uses, in each set, in which the question says nothing ("What about this image?"), so that the
            picture has to be looked at. It falls to the examples whose picture decides (sources say which those are). If
            one of the sets has fewer of them, it is their share there, for both sets.
        exchange: Share of the other uses in which an unsafe example whose picture decides is asked a question of the retain
            set, so that harmless words do not promise an answer. A refusal answers that question too; a harmful answer
            does not, but is unlearned before that question as well.
        plain: Share of the uses in which a question that both sets ask (a harmless one, with `exchange`) keeps its own
            form, instead of 1 - share: that form says nothing about the label.
        forms_per_example: How many different forms an example has at most; the reference is computed for each.
        exclude: Opening words (with their contractions) that no form has; questions that open with them always get another
            form, if a rewriter can. Later turns stay as they are. `attack`: those of this run's attacks.

    Raises:
        ValueError: If a share is not within 0 to 1, or a list is empty or has unknown members.
    """

    share: float = 0.95
    rewriters: list[str] = field(default_factory=lambda: [FRAMES, ONE_WORD])
    forms: Literal["audit"] | list[str] = "audit"
    neutral: float = 0.0
    exchange: float = 0.0
    plain: float = 0.5
    forms_per_example: int = 8
    exclude: Literal["attack"] | list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name in ("share", "neutral", "exchange", "plain"):
            share = getattr(self, name)
            if not 0 <= share <= 1:
                raise ValueError(f"data.crossing.{name} is {share}: it is a share, from 0 to 1.")
        if self.forms_per_example < 1:
            raise ValueError(f"data.crossing.forms_per_example is {self.forms_per_example}: it must be at least 1.")
        if len(set(self.rewriters)) + (self.neutral > 0) < 2:
            raise ValueError(
                f"data.crossing.rewriters are {self.rewriters}: name at least two, or one and a share of neutral "
                "questions; the manner of a single rewriter is a new cue."
            )
        for name in self.rewriters:
            if name not in (FRAMES, ONE_WORD) and not name.endswith(".jsonl"):
                raise ValueError(
                    f"data.crossing.rewriters: there is no {name!r}. Choose {FRAMES}, {ONE_WORD}, or a .jsonl file that "
                    "mirage prepare paraphrases wrote."
                )
        for listed, words in {"forms": self.forms, "exclude": self.exclude}.items():
            for word in () if isinstance(words, str) else words:
                check_word(word, f"data.crossing.{listed}: one of them")
        if not self.forms:
            raise ValueError("data.crossing.forms is empty: name opening words, or write audit.")


class CrossedForms:
    """The forms of the examples of two training sets, sampled as the settings say: a function of seed, example and use.

    Args:
        rewriter: Takes the place of the templates, for a source with a language of its own.
        answer_for: What becomes of an answer under another form of its question; by default it stays.
        exclude: Opening words that no form has.
        placeholder: Of a picture, which no question may hold that is asked of another example.

    Raises:
        DataError: If a paraphrase file is not of these sets, no opening word is left, a word has no frames, or more than
            a fifth of the questions cannot be reworded.
    """

    def __init__(
        self,
        settings: Crossing,
        unsafe: Sequence[Example],
        retain: Sequence[Example],
        rewriter: Rewriter | None = None,
        answer_for: Callable[[str, str], str] | None = None,
        exclude: Iterable[str] = (),
        seed: int = 0,
        placeholder: str = "<image>",
    ) -> None:
        self.settings, self.answer_for, self.seed, self.placeholder = settings, answer_for, seed, placeholder
        self.rewriter = rewriter or frames.rewrites
        self.excluded = frozenset(map(opening_root, exclude))
        samples = {True: sampled(unsafe), False: sampled(retain)}
        self.words = self._opening_words([*samples[True], *samples[False]], own=rewriter is not None)
        self.neutral_questions = [question for question in NEUTRAL if not self._excluded(question)]
        self._set_shares(_deciding(unsafe), _deciding(retain))
        files = [name for name in settings.rewriters if name not in (FRAMES, ONE_WORD)]
        self.paraphrases = {name: self._paraphrases(Path(name), samples) for name in files}
        self.not_reworded = sum(map(self._not_reworded, samples.values()))

    def of(self, example: Example, lap: int, *, unsafe: bool) -> Example:
        """The example as it is asked in the lap-th walk through its set."""
        number = self.settings.forms_per_example
        shift = random.Random(f"{self.seed}/{example.question_id}").randrange(number)
        return self._form(example, (lap + shift) % number, unsafe)

    def every(self, example: Example, *, unsafe: bool) -> list[Example]:
        """The example in each of its forms, equal ones once."""
        forms = (self._form(example, number, unsafe) for number in range(self.settings.forms_per_example))
        return list({form.prompt: form for form in forms}.values())

    @property
    def most_bytes_added(self) -> int:
        """A bound on how many bytes longer than its own question a form is, as UTF-8."""
        others = [text for each in self.paraphrases.values() for texts in each.values() for text in texts]
        others += [question for question, _ in self.exchanged]
        return _FRAME_BYTES + max((len(text.encode()) for text in others), default=0)

    def describe(self) -> dict[str, object]:
        """The settings as they took effect, as JSON values, for the results."""
        return {
            "share": self.settings.share, "rewriters": [Path(name).name for name in self.settings.rewriters],
            "words": self.words, "neutral": self.neutral_share, "exchange": self.exchange, "plain": self.settings.plain,
            "paraphrases": short_hash(json.dumps(self.paraphrases, sort_keys=True)) if self.paraphrases else None,
            "forms_per_example": self.settings.forms_per_example, "excluded": sorted(self.excluded),
            "not_reworded": self.not_reworded,
        }  # fmt: skip

    def _form(self, example: Example, number: int, unsafe: bool) -> Example:
        draw = random.Random(f"{self.seed}/{example.question_id}/{number}")
        question, id, share = example.prompt, example.question_id, self.settings.share
        if example.picture_decides:
            if draw.random() < self.neutral[unsafe]:
                return replace(example, prompt=draw.choice(self.neutral_questions))
            if unsafe and draw.random() < self.exchange:
                question, id = draw.choice(self.exchanged)
            if self.exchanged and not (unsafe and id == example.question_id):  # both sets ask it
                share = 1 - self.settings.plain
        if self.excluded and share == self.settings.share:
            share = 1.0  # else questions that need not be reworded, mostly those of one set, would keep their form
        if draw.random() >= share and not self._excluded(question):
            return replace(example, prompt=question)
        prompt = self._reworded(question, id, draw)
        if prompt is None:
            again = _reworded_by(self.rewriter, question, draw.choice(self.words), draw)
            prompt = again if self._excluded(question) and again else question
        return replace(
            example,
            prompt=prompt,
            answer=self.answer_for(example.answer, prompt) if self.answer_for else example.answer,
        )

    def _reworded(self, question: str, id: str, draw: random.Random) -> str | None:
        """The question in a form sampled from all; None if no rewriter can."""
        for name in draw.sample(self.settings.rewriters, len(self.settings.rewriters)):
            if name == FRAMES:
                reworded = _reworded_by(self.rewriter, question, draw.choice(self.words), draw)
            elif name == ONE_WORD:
                reworded = _opened_with(question, draw.choice(self.words))
            else:
                listed = [each for each in self.paraphrases[name].get(id, ()) if not self._excluded(each)]
                reworded = draw.choice(listed) if listed else None
            if reworded:
                return reworded
        return None

    def _set_shares(self, unsafe: tuple[float, list[Example]], retain: tuple[float, list[Example]]) -> None:
        """How often neutral and exchanged questions are asked, from the share of examples whose picture decides and the
        examples themselves, of each set."""
        settings, deciding = self.settings, {True: unsafe[0], False: retain[0]}
        possible = min(deciding.values())
        self.neutral_share = min(settings.neutral, _MOST_NEUTRAL * possible)
        self.neutral = {label: self.neutral_share / share if share else 0.0 for label, share in deciding.items()}
        if settings.neutral and not (self.neutral_share and self.neutral_questions):
            raise DataError(
                "data.crossing.neutral needs examples whose picture decides in both training sets, and a neutral question "
                "whose opening word is not excluded. Set it to 0, mark such examples in the source, or exclude less."
            )
        lent = [each for each in retain[1] if self.placeholder not in each.prompt] if settings.exchange else []
        self.exchanged = [(each.prompt, each.question_id) for each in lent]
        if settings.exchange and not self.exchanged:
            raise DataError(
                "data.crossing.exchange needs questions of the retain set whose picture decides, and there are none. "
                "Set it to 0, or mark such examples in the source."
            )
        # At most as often as the retain set answers them, or harmless words would become a reason to refuse.
        worded = {label: share - self.neutral_share for label, share in deciding.items()}
        self.exchange = min(settings.exchange, worded[False] / worded[True]) if worded[True] > 0 else 0.0
        for name, took_effect in {"neutral": self.neutral_share, "exchange": self.exchange}.items():
            if took_effect < getattr(settings, name) / 2:
                _log.warning(
                    "data.crossing.%s is %.3g and takes effect as %.3g: few examples of a training set are such that their "
                    "picture decides", name, getattr(settings, name), took_effect,
                )  # fmt: skip

    def _opening_words(self, examples: Sequence[Example], own: bool) -> list[str]:
        """The opening words of forms, sorted: those that the templates know, or (`own`) those of the source."""
        counts = Counter(opening_word(example.prompt) for example in examples)
        known = counts.keys() if own else DATA.frames.keys()
        if self.settings.forms == "audit":
            words = {word for word, count in counts.items() if word and count >= _OFTEN * len(examples)} & known
        else:
            words = set(map(opening_word, self.settings.forms))
            if unknown := sorted(words - known):
                whose = "question of this source opens" if own else "frames open"
                raise DataError(f"data.crossing.forms: no {whose} with {first_names(unknown)}. Choose other words.")
        words = {word for word in words if not self._excluded(word)}
        if len(words) < 2:
            raise DataError(
                "data.crossing leaves fewer than two opening words. Name more of them in data.crossing.forms."
            )
        return sorted(words)

    def _excluded(self, question: str) -> bool:
        return opening_root(question) in self.excluded

    def _paraphrases(self, file: Path, samples: Mapping[bool, Sequence[Example]]) -> dict[str, list[str]]:
        """The paraphrases of a file, which must have every question, and some for about as many of each set."""
        by_id, placeholder = read_paraphrases(file), self.placeholder
        if broken := next((id for id, texts in by_id.items() if any(placeholder in text for text in texts)), None):
            raise DataError(f"{file}: a paraphrase of {broken} holds the image placeholder {placeholder}. Remove it.")
        examples = [*samples[True], *samples[False]]
        if missing := [each.where or each.id for each in examples if each.question_id not in by_id]:
            raise DataError(
                f"{file} lacks {len(missing)} of {len(examples)} questions of the training sets "
                f"({first_names(missing, 3)}). Make it anew with mirage prepare paraphrases."
            )
        covered = [
            sum(any(not self._excluded(text) for text in by_id[each.question_id]) for each in of_set) / len(of_set)
            for of_set in samples.values()
            if of_set
        ]
        if max(covered) - min(covered) > _MOST_REFUSED:
            raise DataError(
                f"{file} has paraphrases of {covered[0]:.0%} of the unsafe set and of {covered[-1]:.0%} of the retain set: "
                "being paraphrased would give the label away. Use a model that can word both."
            )
        return by_id

    def _not_reworded(self, examples: Sequence[Example]) -> int:
        """How many questions of a set no rewriter can reword.

        Raises:
            DataError: If they are more than a fifth.
        """
        draw = random.Random(self.seed)
        refused = [each for each in examples if self._reworded(each.prompt, each.question_id, draw) is None]
        if len(refused) > _MOST_REFUSED * len(examples):
            names = [each.where or each.id for each in refused]
            raise DataError(
                f"data.crossing: {len(refused)} of {len(examples)} questions of one set cannot be reworded "
                f"({first_names(names, 3)}). Choose other rewriters, or leave data.crossing out."
            )
        return len(refused)


def _deciding(examples: Sequence[Example]) -> tuple[float, list[Example]]:
    """The share of examples whose picture decides, and (of a large set some of) those examples."""
    if isinstance(examples, Mixture):  # a sample of the whole would hold few of a small part
        parts = [
            (_deciding(part), count / len(examples)) for part, count in zip(examples.sets, examples.counts, strict=True)
        ]
        return sum(share * weight for (share, _), weight in parts), [each for (_, some), _ in parts for each in some]
    seen = sampled(examples)
    some = [example for example in seen if example.picture_decides]
    return len(some) / max(len(seen), 1), some


def _reworded_by(rewriter: Rewriter, question: str, word: str, draw: random.Random) -> str | None:
    if "```" in question or question.count("\n") > 2:  # code and lists would lose their lines
        return None
    for shots in range(draw.randint(1, _SHOTS), 0, -1):
        try:
            return rewriter(question, word, shots)[-1]
        except ValueError:  # it has fewer rewrites than that
            continue
    return None


def _opened_with(question: str, word: str) -> str | None:
    """The question with another opening word, and the final mark that goes with the word."""
    try:
        replaced = with_opening_word(question, word)
    except ValueError:
        return None
    stem = replaced.rstrip()
    return stem.rstrip(".?!") + ("?" if frames.asks(word) else ".") if stem[-1:] in ".?!" else replaced
