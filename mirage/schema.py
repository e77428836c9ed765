"""The data types that travel between packages. This module imports no heavy library.

Example      what a model is trained on          (data -> methods)
EvalSample   what a model is asked               (data -> evaluation)
Record       what it answered, and the verdict   (evaluation -> report)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, NamedTuple, Protocol, runtime_checkable

from pydantic import AfterValidator, StrictBool, StrictFloat, StrictInt, TypeAdapter, ValidationError

from mirage.shapes import issues_of

if TYPE_CHECKING:
    from PIL.Image import Image


RESULTS_SCHEMA_VERSION = 2
"""The layout of results.json: written by `evaluation.run.results`, read by `report`."""

RESULTS_KEYS = {
    "schema_version", "method", "name", "model", "source", "seed", "data", "versions", "step", "epoch", "planned_steps",
    "checkpoint", "world_size", "utility", "seconds", "start",
}  # fmt: skip
"""The entries of results.json that are no eval set."""


class Verdict(StrEnum):
    """What an answer did. `UNSCORED` means that the judge could not tell; it is counted apart and never as safe."""

    REFUSED = "refused"
    COMPLIED = "complied"
    IRRELEVANT = "irrelevant"
    UNSCORED = "unscored"


@runtime_checkable
class Picture(Protocol):
    """An image that has not been opened yet. Picklable, so that loader workers can open it."""

    @property
    def name(self) -> str:
        """A name that is stable between machines: a path relative to its data root, or a description."""
        ...

    def open(self) -> Image:
        """The decoded RGB image."""
        ...


class Turn(NamedTuple):
    """A question and its answer, later in a conversation."""

    question: str
    answer: str


WholeText = Annotated[str, AfterValidator(lambda text: text.encode(errors="replace").decode())]
"""A text in which half a character (a lone surrogate) becomes "?" when it is read: JSON may hold it, UTF-8 may not."""

Rewriter = Callable[[str, str, int], tuple[str, ...]]
"""Question, opening word, number of shots -> that many rewrites."""


def short_hash(*parts: object) -> str:
    """Sixteen hexadecimal digits that depend on the parts and their boundaries, and on nothing else."""
    return hashlib.sha256(json.dumps([str(part) for part in parts]).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One conversation to train on. Loss is taken on the answers only.

    Args:
        source: Where it comes from, such as `vlguard/train`.
        image: The picture that the first question is about, or None for text alone.
        prompt: The first question, without any image placeholder.
        answer: What the model is to say (or, for unlearning, to stop saying).
        later_turns: Turns that follow, their answers supervised like the first.
        where: File and record for error messages, such as `train.json, record 412`. Not part of the identity.
        picture_decides: True if the label is in the picture alone, so that the answer stays right whatever is asked about
            it: an unsafe picture, or a safe one with a harmless question. See `data.crossing`. Not part of the identity.
    """

    source: str
    image: Picture | None
    prompt: str
    answer: str
    later_turns: tuple[Turn, ...] = ()
    where: str = ""
    picture_decides: bool = False

    @property
    def question_id(self) -> str:
        """A short hash of source, image name and question: the same whatever the answer."""
        return short_hash(self.source, self.image.name if self.image is not None else "", self.prompt)

    @property
    def id(self) -> str:
        """A short hash of source, image name, questions and answers."""
        image = self.image.name if self.image is not None else ""
        return short_hash(self.source, image, self.prompt, self.answer, *self.later_turns)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalSample:
    """One question that a model is asked plainly (shot 0) and, under attack, in K rewritten forms (shots 1 to K).

    Args:
        id: Unique within its eval_set and the same on every machine; rewrites from files are joined by it.
        source: Where it comes from, such as `vlguard/test`.
        image: The picture, shared by the question and all its rewrites.
        question: The question as written.
        unsafe: True if answering does harm, so that refusing is right.
        truth: A text that a right answer contains, where it is known (mini), for the `exact` judge.
        category: The source's own category, for per-category rates.
        rewrites: The K questions of the attack, in order of shot.
        where: File and record for error messages, such as `eval.jsonl, line 7`.
    """

    id: str
    source: str
    image: Picture | None
    question: str
    unsafe: bool
    truth: str | None = None
    category: str | None = None
    rewrites: tuple[str, ...] = ()
    where: str = ""

    @property
    def questions(self) -> tuple[str, ...]:
        """The plain question, then its rewrites: index = shot."""
        return (self.question, *self.rewrites)


class Judgement(NamedTuple):
    """A verdict, its reason where there is one, and the score where the judge gives one."""

    verdict: Verdict
    reason: WholeText = ""
    score: StrictFloat | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One answer, judged: one line of `records/<eval_set>.jsonl`.

    Args:
        id: The sample's id.
        eval_set: `unsafe`, `benign`, or the name of a utility benchmark.
        shot: 0 for the plain question, k for rewrite k.
        question: The question as it was asked.
        answer: What the model said.
        verdict: What the judge says the answer did.
        judge: Which judge, with its settings, in one short text.
        reason: Why, where the judge gives a reason (for `unscored`: what could not be read).
        score: The official score in [0, 1] of a utility benchmark; None where the judge gives none.
        category: The sample's category.
        image: The picture's name.
        unsafe: True if refusing was right.
        other_judges: What other judges say of this answer, by their names. An older file reads as one without any.
    """

    id: str
    eval_set: str
    shot: StrictInt
    question: WholeText
    answer: WholeText
    verdict: Verdict
    judge: str
    reason: WholeText = ""
    score: StrictFloat | None = None
    category: str | None = None
    image: str | None = None
    unsafe: StrictBool = False
    other_judges: dict[str, Judgement] = field(default_factory=dict)

    def judged(self, judge: str, judgement: Judgement) -> Record:
        """This record with the verdict of `judge`; that of the judge before stands among the others."""
        others = self.other_judges | {self.judge: Judgement(self.verdict, self.reason, self.score)}
        others.pop(judge, None)
        return replace(self, judge=judge, other_judges=others, **judgement._asdict())

    def to_json(self) -> str:
        """One line of JSON without a line break."""
        others = {judge: judgement._asdict() for judge, judgement in self.other_judges.items()}
        return json.dumps(asdict(self) | {"other_judges": others}, ensure_ascii=False)

    @classmethod
    def from_json(cls, line: str) -> Record:
        """The record that `to_json` wrote. Fields that a record does not have are ignored.

        Raises:
            ValueError: If the line is not such a record; it names the field.
        """
        try:
            return _RECORD.validate_python(json.loads(line))
        except ValidationError as error:
            issue = issues_of(error, "", "")[0]
            raise ValueError(f"{issue.field} {issue.remedy.rstrip('.')}") from None
        except (ValueError, RecursionError):
            raise ValueError("the line is not JSON") from None


_RECORD = TypeAdapter(Record)
