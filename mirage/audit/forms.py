"""What the form of a question alone gives away about its label, cue by cue and all together.

Form is how something is asked, content what is asked about. Alignment that can tell its two sets apart by form may learn
form instead of harm. For every cue: how well the best rule on it alone labels the questions, in sample and on pictures
that the rule has not seen; for all cues together: a logistic regression that sees no content word.

All accuracies are balanced (the mean of the two labels' accuracies), so 0.5 is chance whatever the sizes of the sets.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mirage.rewriting.reading import read
from mirage.rewriting.similarity import content_words
from mirage.text import WORD, has_words, opening_word, without_list_mark

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Places = NDArray[np.intp]  # indices of questions

LIMIT = 20_000
OPENING_WORD, FOLDER = "opening word", "image folder"
_MARKS = {**dict.fromkeys("?\uff1f\u061f", "?"), **dict.fromkeys(".\u3002\u2026", "."), **dict.fromkeys("!\uff01", "!")}
_CLOSING = "\"')]*\u201d\u2019"  # may stand behind a sentence's mark
_MASK = "_"  # no word of a question is spelled like this
_START, _END, _GRAM = 5, 4, 3  # masked words seen at the start, words and mark at the end, longest n-gram


class Asked(NamedTuple):
    """A question of a training set.

    Args:
        question: Its text.
        unsafe: Its label.
        picture: The name of its picture. Questions about one picture stay in one fold; without a name, a question stands
            for itself.
        folder: The folder of the picture, empty if there is none.
    """

    question: str
    unsafe: bool
    picture: str = ""
    folder: str = ""


@dataclass(frozen=True, slots=True)
class CueAccuracy:
    """How well one cue alone labels the questions.

    Args:
        cue: Its name.
        values: How many values it takes.
        in_sample: Balanced accuracy of the best rule from value to label, on the questions that it was made of.
        cross_validated: The same on pictures that the rule was not made of; a value that it does not know is a coin toss.
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
        measured: How many of them the figures are of (see `Sample`).
        unsafe: How many of the measured ones are unsafe.
        pictures: How many pictures they are about; a question without a picture counts as one.
        folds: Number of folds, none of which shares a picture with another.
        seed: Of the sample and of the folds.
        cues: One line a cue.
        form_only_accuracy: Of all cues together; see `form_only_accuracy`.
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
    """At most `limit` questions, half of them of each label, drawn evenly in one pass; a label with fewer is kept whole.

    Balanced accuracy does not depend on how many there are of each label, so the sample estimates that of the whole set.
    """

    def __init__(self, limit: int = LIMIT, seed: int = 0) -> None:
        self.seen = 0
        self._limit, self._random = limit // 2, random.Random(seed)
        self._kept: dict[bool, list[Asked]] = {True: [], False: []}
        self._of_label = {True: 0, False: 0}

    def through(self, asked: Iterable[Asked]) -> Iterator[Asked]:
        """The same questions, each considered for the sample (Vitter's algorithm R)."""
        for each in asked:
            kept, count = self._kept[each.unsafe], self._of_label[each.unsafe]
            if count < self._limit:
                kept.append(each)
            elif (place := self._random.randrange(count + 1)) < self._limit:
                kept[place] = each
            self._of_label[each.unsafe] += 1
            self.seen += 1
            yield each

    @property
    def questions(self) -> list[Asked]:
        """The sample."""
        return self._kept[True] + self._kept[False]


def cues(question: str) -> dict[str, str]:
    """The value of every cue of form that the text has, by name."""
    words = _words(question)
    mark = question.rstrip().rstrip(_CLOSING)[-1:]
    return {
        OPENING_WORD: opening_word(question),
        "second word": words[1] if len(words) > 1 else "",
        "final mark": _MARKS.get(mark, "none"),
        "clause type": clause_type(question),
        "length in words": str(len(words)),
    }


def clause_type(question: str) -> str:
    """`question`, `request` ("can you describe it?" too) or `statement`."""
    if not has_words(question):
        return "statement"
    reading = read(question)
    # What answers a question begins with "tell me", which the question did not say; a request says its act itself.
    said = " ".join(reading.act.lower().split()[:3]) in " ".join(question.lower().split())
    if reading.kind == "claim":
        return "statement"
    return "question" if reading.kind == "quote" or (reading.kind in {"clause", "thing"} and not said) else "request"


def form_features(question: str) -> list[str]:
    """What the form-only classifier sees: the cues, and n-grams of the first and last words with content words masked."""
    words = [_MASK if _is_content(word) else word for word in _words(question)]
    values = cues(question) | {"second word": "".join(words[1:2])}
    start, end = words[:_START], [*words, values["final mark"]][-_END:]
    features = [f"{name}: {value}" for name, value in values.items()]
    for side, tokens in (("start", ["^", *start]), ("end", end)):
        features += [
            f"{side}: {' '.join(tokens[at : at + n])}" for n in range(1, _GRAM + 1) for at in range(len(tokens) - n + 1)
        ]
    return features


def form_only_accuracy(asked: Iterable[Asked], folds: int = 5, seed: int = 0, limit: int = LIMIT) -> float:
    """Balanced accuracy of a classifier that sees form alone (`form_features`), on pictures that it was not fitted to.

    A logistic regression, both labels weighted equally, cross-validated over `folds` folds that share no picture. Of more
    than `limit` questions a `Sample` is measured. 0.5: form gives nothing away.

    Raises:
        ValueError: If one of the labels has fewer than two pictures.
    """
    sample = Sample(limit, seed)
    for _ in sample.through(asked):
        pass
    return _form_only_accuracy(sample.questions, _Folds(sample.questions, folds, seed))


def audit_forms(sample: Sample, folds: int = 5, seed: int = 0) -> FormAudit:
    """Every cue of form of the sampled questions; fewer folds where a label has fewer pictures.

    Raises:
        ValueError: If one of the labels has fewer than two pictures.
    """
    asked = sample.questions
    split = _Folds(asked, folds, seed)
    columns = [cues(each.question) | {FOLDER: each.folder} for each in asked]
    lines = []
    for cue in columns[0]:
        values, codes = np.unique([column[cue] for column in columns], return_inverse=True)
        rule = partial(_best_rule, codes, split.unsafe)
        everything = np.arange(len(asked))
        in_sample = split.balanced_accuracy(rule(everything, everything))
        lines.append(CueAccuracy(cue, len(values), in_sample, split.cross_validated(rule)))
    return FormAudit(
        questions=sample.seen,
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

        names = [f"picture {each.picture}" if each.picture else f"question {k}" for k, each in enumerate(asked)]
        groups = np.unique(names, return_inverse=True)[1]
        self.unsafe = np.array([each.unsafe for each in asked], dtype=bool)
        with_unsafe, with_safe = (len(np.unique(groups[self.unsafe == label])) for label in (True, False))
        if min(with_unsafe, with_safe) < 2:
            raise ValueError(
                f"The form of the questions cannot be measured: {self.unsafe.sum()} are unsafe ({with_unsafe} pictures) "
                f"and {(~self.unsafe).sum()} are safe ({with_safe} pictures). Give a training set with questions about "
                "at least two pictures of each kind."
            )
        self.pictures, self.folds = len(np.unique(groups)), min(folds, with_unsafe, with_safe)
        splitter = StratifiedGroupKFold(self.folds, shuffle=True, random_state=seed)
        self._splits = list(splitter.split(groups, self.unsafe, groups))

    def cross_validated(self, rule: Callable[[Places, Places], NDArray[Any]]) -> float:
        """Balanced accuracy of `rule`, which is made of the first places and labels the second (see `_best_rule`)."""
        leanings = np.zeros(len(self.unsafe))
        for train, test in self._splits:
            if 0 < self.unsafe[train].sum() < len(train):  # of one label alone nothing can be learned
                leanings[test] = rule(train, test)
        return self.balanced_accuracy(leanings)

    def balanced_accuracy(self, leanings: NDArray[Any]) -> float:
        """Mean over both labels of the share labelled rightly: 1 says unsafe, -1 safe, and 0 tosses a coin."""
        right = (1 + leanings * np.where(self.unsafe, 1, -1)) / 2
        return float((right[self.unsafe].mean() + right[~self.unsafe].mean()) / 2)


def _best_rule(codes: NDArray[Any], unsafe: NDArray[Any], train: Places, test: Places) -> NDArray[Any]:
    """The label under which each test value has the greater share of the training questions: 1, -1, or 0 for neither."""
    shares = []
    for label in (True, False):
        counts = np.bincount(codes[train][unsafe[train] == label], minlength=codes.max() + 1)
        shares.append(counts / counts.sum())
    return np.sign(shares[0] - shares[1])[codes[test]]


def _form_only_accuracy(asked: Sequence[Asked], split: _Folds) -> float:
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression

    features = CountVectorizer(analyzer=form_features, binary=True).fit_transform([each.question for each in asked])

    def rule(train: Places, test: Places) -> NDArray[Any]:
        model = LogisticRegression(class_weight="balanced", max_iter=1000).fit(features[train], split.unsafe[train])
        return np.where(model.predict(features[test]), 1, -1)

    return split.cross_validated(rule)


def _words(question: str) -> list[str]:
    return WORD.findall(without_list_mark(question).lower().replace("\u2019", "'"))


@lru_cache(1 << 16)
def _is_content(word: str) -> bool:
    return not word.isascii() or bool(content_words(word.removesuffix("'s")))
