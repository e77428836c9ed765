"""What the form of a question alone gives away about its label, cue by cue and all together.

Form is how something is asked, content what is asked about. Training that can tell its two sets apart by form may learn
form instead of harm. For every cue: how well the best rule on it alone labels the questions, in sample and on pictures
that the rule was not made of; for all cues together: a logistic regression that sees no content word.

Accuracies are balanced (the mean of the two labels' accuracies): 0.5 is chance, whatever the sizes of the sets.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mirage.errors import DataError
from mirage.rewriting.reading import read
from mirage.rewriting.similarity import content_words
from mirage.text import has_words, opening_word, without_list_mark, words_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Rule = Callable[[NDArray[Any], NDArray[Any]], NDArray[Any]]
    """Made of the questions at the first places, labels those at the second: 1 unsafe, -1 safe, 0 a coin toss."""

_MARKS = {**dict.fromkeys("?\uff1f\u061f", "?"), **dict.fromkeys(".\u3002\u2026", "."), **dict.fromkeys("!\uff01", "!")}
_CLOSING = "\"')]*\u201d\u2019"  # may stand behind the mark
_MASK = "_"  # no word of a question is spelled like this
_START, _END, _GRAM = 5, 4, 3  # masked words seen at the start, words and mark at the end, longest n-gram


class Asked(NamedTuple):
    """A question of a training set, and its label."""

    question: str
    unsafe: bool
    picture: str = ""  # its name: questions about one picture share a fold; without a name a question has its own
    folder: str = ""


@dataclass(frozen=True, slots=True)
class CueAccuracy:
    """Balanced accuracy of the best rule from the values of one cue to the label.

    Args:
        cue: Its name.
        values: How many different values there are.
        in_sample: On the questions that the rule was made of.
        cross_validated: On pictures that it was not made of; a value that it does not know is a coin toss.
    """

    cue: str
    values: int
    in_sample: float
    cross_validated: float


@dataclass(frozen=True, slots=True)
class FormAudit:
    """The cues of form of one training set.

    Args:
        questions: How many there are.
        measured: How many of them the figures are of: all, or a `Sample`.
        unsafe: How many of those are unsafe.
        pictures: How many pictures those are about; a question without one counts as one.
        folds: Their number; no picture is in two.
        seed: Of the folds.
        cues: The accuracy of each cue alone.
        form_only_accuracy: That of all but the folder together; see the function.
    """

    questions: int
    measured: int
    unsafe: int
    pictures: int
    folds: int
    seed: int
    cues: tuple[CueAccuracy, ...]
    form_only_accuracy: float


class Sample:
    """At most `limit` questions, half of them of each label, sampled evenly in one pass; a label with fewer is kept whole.

    Balanced accuracy does not depend on how many there are of each label, so that of the sample estimates that of all.
    """

    def __init__(self, limit: int = 20_000, seed: int = 0) -> None:
        self.seen: Counter[bool] = Counter()
        self._limit, self._random = limit // 2, random.Random(seed)
        self._kept: dict[bool, list[Asked]] = {True: [], False: []}

    def through(self, asked: Iterable[Asked]) -> Iterator[Asked]:
        """The same questions, each considered for the sample (Vitter's algorithm R)."""
        for each in asked:
            kept = self._kept[each.unsafe]
            self.seen[each.unsafe] += 1
            if len(kept) < self._limit:
                kept.append(each)
            elif (place := int(self._random.random() * self.seen[each.unsafe])) < self._limit:
                kept[place] = each
            yield each

    @property
    def questions(self) -> list[Asked]:
        """The sample, the unsafe ones first."""
        return self._kept[True] + self._kept[False]


def cues(question: str) -> dict[str, str]:
    """The value of every cue that the text alone has, by name."""
    words = words_of(without_list_mark(question))
    return {
        "opening word": opening_word(question),
        "second word": words[1] if len(words) > 1 else "",
        "final mark": _MARKS.get(question.rstrip().rstrip(_CLOSING)[-1:], "none"),
        "clause type": clause_type(question),
        "length in words": str(len(words)),
    }


@lru_cache(1 << 15)
def clause_type(question: str) -> str:
    """`question`, `request` (so is "can you describe it?") or `statement`."""
    question = without_list_mark(question)
    reading = read(question) if has_words(question) else None
    if reading is None or reading.kind == "claim":
        return "statement"
    # Questions read as "tell me what ...", which they do not say; a request's act stands in it.
    said = " ".join(reading.act.lower().split()[:3]) in " ".join(question.lower().split())
    return "question" if reading.kind == "quote" or (reading.kind in {"clause", "thing"} and not said) else "request"


def form_features(question: str) -> list[str]:
    """What the form-only classifier sees: cues, and n-grams of the first and last words, content words masked.

    Of content words it sees the opening one alone, which decides the form of the rest.
    """
    words = [_MASK if _is_content(word) else word for word in words_of(without_list_mark(question))]
    values = cues(question) | {"second word": "".join(words[1:2])}
    start, end = ["^", *words[:_START]], [*words, values["final mark"]][-_END:]
    grams = [
        f"{side}: {' '.join(tokens[at : at + n])}"
        for side, tokens in (("start", start), ("end", end))
        for n in range(1, _GRAM + 1)
        for at in range(len(tokens) - n + 1)
    ]
    return [f"{cue}: {value}" for cue, value in values.items()] + grams


def form_only_accuracy(asked: Iterable[Asked], folds: int = 5, seed: int = 0) -> float:
    """Balanced accuracy of a classifier that sees form alone (`form_features`), on pictures that it was not fitted to.

    A logistic regression that weighs both labels equally. Of more than 20,000 questions a `Sample` is measured.

    Raises:
        DataError: If one of the labels has fewer than two pictures.
    """
    sample = Sample(seed=seed)
    for _ in sample.through(asked):
        pass
    return _form_only_accuracy(sample.questions, _Folds(sample.questions, folds, seed))


def audit_forms(sample: Sample, folds: int = 5, seed: int = 0) -> FormAudit:
    """Every cue of form of the sampled questions; fewer folds where a label has fewer pictures.

    Raises:
        DataError: If one of the labels has fewer than two pictures.
    """
    asked = sample.questions
    split = _Folds(asked, folds, seed)
    rows = [cues(each.question) | {"image folder": each.folder} for each in asked]
    lines, everything = [], np.arange(len(asked))
    for cue in rows[0]:
        values, codes = np.unique([row[cue] for row in rows], return_inverse=True)
        rule = partial(_best_rule, codes, split.unsafe)
        in_sample = split.balanced_accuracy(rule(everything, everything))
        lines.append(CueAccuracy(cue, len(values), in_sample, split.cross_validated(rule)))
    return FormAudit(
        questions=sample.seen.total(),
        measured=len(asked),
        unsafe=int(split.unsafe.sum()),
        pictures=split.pictures,
        folds=split.folds,
        seed=seed,
        cues=tuple(lines),
        form_only_accuracy=_form_only_accuracy(asked, split),
    )


class _Folds:
    """Questions in folds that share no picture and have about as many of each label."""

    def __init__(self, asked: Sequence[Asked], folds: int, seed: int) -> None:
        from sklearn.model_selection import StratifiedGroupKFold

        groups = [f"picture {each.picture}" if each.picture else f"question {k}" for k, each in enumerate(asked)]
        self.unsafe = np.array([each.unsafe for each in asked], dtype=bool)
        by_label = [
            {group for group, each in zip(groups, asked, strict=True) if each.unsafe == u} for u in (True, False)
        ]
        fewest = min(map(len, by_label))
        if fewest < 2:
            raise DataError(
                f"The form of the questions cannot be measured: one label has {self.unsafe.sum()} questions about "
                f"{len(by_label[0])} pictures, the other {(~self.unsafe).sum()} about {len(by_label[1])}. Give a training "
                "set with questions about at least two pictures for each label."
            )
        self.pictures, self.folds = len(set(groups)), min(folds, fewest)
        splitter = StratifiedGroupKFold(self.folds, shuffle=True, random_state=seed)
        self._splits = list(splitter.split(groups, self.unsafe, groups))

    def cross_validated(self, rule: Rule) -> float:
        """Balanced accuracy of `rule`, made anew for every fold of all others."""
        said = np.zeros(len(self.unsafe))
        for train, test in self._splits:
            if 0 < self.unsafe[train].sum() < len(train):  # of one label alone nothing can be learned
                said[test] = rule(train, test)
        return self.balanced_accuracy(said)

    def balanced_accuracy(self, said: NDArray[Any]) -> float:
        """Mean over both labels of the share that is labelled rightly, half of the coin tosses being so."""
        right = (1 + said * np.where(self.unsafe, 1, -1)) / 2
        return float((right[self.unsafe].mean() + right[~self.unsafe].mean()) / 2)


def _best_rule(codes: NDArray[Any], unsafe: NDArray[Any], train: NDArray[Any], test: NDArray[Any]) -> NDArray[Any]:
    """Each value's label is the one of whose training questions it has the greater share: no rule is more balanced."""
    counts = [np.bincount(codes[train][unsafe[train] == label], minlength=codes.max() + 1) for label in (True, False)]
    return np.sign(counts[0] / counts[0].sum() - counts[1] / counts[1].sum())[codes[test]]


def _form_only_accuracy(asked: Sequence[Asked], split: _Folds) -> float:
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression

    features = CountVectorizer(analyzer=form_features, binary=True).fit_transform([each.question for each in asked])

    def rule(train: NDArray[Any], test: NDArray[Any]) -> NDArray[Any]:
        model = LogisticRegression(class_weight="balanced", max_iter=1000).fit(features[train], split.unsafe[train])
        return np.where(model.predict(features[test]), 1, -1)

    return split.cross_validated(rule)


@lru_cache(1 << 16)
def _is_content(word: str) -> bool:
    return not word.isascii() or bool(content_words(word.removesuffix("'s")))
