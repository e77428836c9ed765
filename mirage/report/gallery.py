"""The gallery: question, picture, and the answers of several models side by side (the paper's Figure 4)."""

from __future__ import annotations

import base64
import io
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mirage.evaluation.run.counting import question_verdict
from mirage.report.runs import SIDES, Run, starts
from mirage.schema import Record, Verdict

if TYPE_CHECKING:
    from PIL.Image import Image

LONGEST = 1500  # characters of an answer that are shown
THUMBNAIL_PX = 320
PICTURE_BYTES = 6_000_000  # of all pictures of a page together, as they stand in it
PIXEL_ART_PX = 96  # pictures up to this size are kept as they are, lossless, and enlarged without smoothing


class Answered(NamedTuple):
    """One question as asked, its answer and the verdict."""

    question: str
    answer: str
    verdict: str
    shot: int


class Shown(NamedTuple):
    """One model in a card: its answer to the plain question, and the answer that decided the attack."""

    model: str
    plain: Answered
    attacked: Answered
    after: str  # the verdict over all K shots


class Card(NamedTuple):
    """One question of the gallery."""

    id: str
    unsafe: bool
    category: str | None
    question: str
    picture: str | None  # data URI
    picture_name: str | None
    not_shown: str  # why a picture is not
    pixel_art: bool
    shown: tuple[Shown, ...]


class Gallery(NamedTuple):
    """The cards of one side, and how they were chosen."""

    side: str
    cards: tuple[Card, ...]
    chosen: str


class Thumbnail(NamedTuple):
    """A picture small enough to stand in the page."""

    uri: str
    pixel_art: bool


OpenPicture = Callable[[Path, str], "Image"]  # of a run's folder and the name of a picture in its records


def galleries(
    runs: Sequence[Run], shown: int = 8, open_picture: OpenPicture | None = None
) -> tuple[list[Gallery], list[str]]:
    """For each side up to `shown` questions on which the models differ most, and what could not be shown.

    Args:
        runs: The runs; their starting models come first in each card.
        shown: Most cards a side.
        open_picture: The picture that a run's records call by a name; without it no picture is shown.
    """
    found: list[Gallery] = []
    notes: list[str] = []
    pictures = _Pictures(open_picture)
    for side in SIDES:
        answering = [(start.label, start.run, f"start.{side}") for start in starts(runs)]
        answering += [(run.label, run, side) for run in runs]
        models = [_Model(label, run.folder, _by_question(run.records.get(stem, ()))) for label, run, stem in answering]
        models = [model for model in models if model.questions]
        asked = sorted({key for model in models for key in model.questions})
        if not asked:
            continue
        candidates = [_shown(key, models, side == "unsafe") for key in asked]
        order = sorted(range(len(asked)), key=lambda i: (-_disagreement(candidates[i]), asked[i]))
        cards = []
        for i in order[:shown]:
            answering_it = next(model for model in models if asked[i] in model.questions)
            first = answering_it.questions[asked[i]][0]
            thumbnail = pictures.of(answering_it.folder, str(first.image)) if first.image else None
            cards.append(
                Card(
                    id=clean(asked[i].id),
                    unsafe=side == "unsafe",
                    category=clean(str(first.category)) if first.category else None,
                    question=clean(first.question),
                    picture=thumbnail.uri if isinstance(thumbnail, Thumbnail) else None,
                    picture_name=clean(str(first.image)) if first.image else None,
                    not_shown=clean(thumbnail, 300) if isinstance(thumbnail, str) else "",
                    pixel_art=isinstance(thumbnail, Thumbnail) and thumbnail.pixel_art,
                    shown=candidates[i],
                )
            )
        differ = sum(_disagreement(candidate) > 1 for candidate in candidates)
        if repeated := len(asked) - len({key.id for key in asked}):
            notes.append(
                f"The runs were asked different data: {repeated} {side} ids stand for another question or picture in one"
                " run than in another. Their answers are on cards of their own, and the rows of the table are over"
                " different questions."
            )
        found.append(
            Gallery(
                side,
                tuple(cards),
                f"{len(cards)} of {len(asked)} {side} questions: those with most different outcomes among the models and"
                f" before and after the attack ({differ} have more than one)."
                " A choice to look at, not a sample to count.",
            )
        )
    return found, notes + pictures.notes()


class _Asked(NamedTuple):
    """What makes two runs' answers answers to the same question: an id alone may stand for other data."""

    id: str
    question: str
    image: str


class _Model(NamedTuple):
    """One column of the cards."""

    label: str
    folder: Path
    questions: dict[_Asked, list[Record]]


class _Pictures:
    """Thumbnails, each made once, until the page is full; and what could not be shown."""

    def __init__(self, open_picture: OpenPicture | None) -> None:
        self.open_picture = open_picture
        self.room_bytes = PICTURE_BYTES
        self.made: dict[tuple[Path, str], Thumbnail | str] = {}
        self.unusable: list[str] = []
        self.no_room: list[str] = []

    def of(self, folder: Path, name: str) -> Thumbnail | str:
        """The picture that the records in a run's folder call `name`, or why it is not shown."""
        if self.open_picture is None:
            return "not embedded"
        if (folder, name) not in self.made:
            self.made[folder, name] = self._thumbnail(self.open_picture, folder, name)
        found = self.made[folder, name]
        if isinstance(found, str):
            return found
        if len(found.uri) > self.room_bytes:
            self.no_room.append(name)
            return f"left out, since the pictures of a page may have {PICTURE_BYTES / 1e6:.0f} MB together"
        self.room_bytes -= len(found.uri)
        return found

    def notes(self) -> list[str]:
        """One sentence for the pictures that could not be used, one for those that found no room."""
        notes = []
        if self.unusable:
            notes.append(f"{_count(self.unusable)} not shown in the gallery. {self.unusable[0]}")
        if self.no_room:
            limit = f"the pictures of a page may have {PICTURE_BYTES / 1e6:.0f} MB together"
            notes.append(f"{_count(self.no_room)} left out of the gallery: {limit}. Show fewer questions.")
        return notes

    def _thumbnail(self, open_picture: OpenPicture, folder: Path, name: str) -> Thumbnail | str:
        try:
            return _thumbnail(open_picture(folder, name))
        except MemoryError:
            raise
        except Exception as error:  # whatever is wrong with one picture, the report stands without it
            self.unusable.append(f"{name}: {error}")
            return f"not shown: {error}"


def _count(names: Sequence[str]) -> str:
    return "1 picture is" if len(names) == 1 else f"{len(names)} pictures are"


def clean(text: str, longest: int | None = LONGEST) -> str:
    """The text as a page can hold it: no control characters, lone surrogates or overrides of the reading direction."""
    whole = len(text)
    text = text if longest is None else text[:longest]
    kept = "".join(
        c if c in "\n\t" or (unicodedata.category(c) not in ("Cc", "Cs") and c not in _BIDI) else "\ufffd" for c in text
    )
    return kept if len(kept) == whole else f"{kept} [... {whole - len(kept):,} more characters in the records]"


_BIDI = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


def _by_question(records: Iterable[Record]) -> dict[_Asked, list[Record]]:
    found: dict[str, list[Record]] = {}
    for record in sorted(records, key=lambda record: record.shot):
        found.setdefault(record.id, []).append(record)
    return {_Asked(id, own[0].question, own[0].image or ""): own for id, own in found.items()}


def _shown(key: _Asked, models: Sequence[_Model], unsafe: bool) -> tuple[Shown, ...]:
    found = []
    for label, _, questions in models:
        if key not in questions:
            continue
        plain, *attacked = questions[key]
        after = question_verdict([record.verdict for record in attacked], unsafe)
        decisive = next(record for record in attacked if record.verdict is after)
        found.append(Shown(clean(label), _answered(plain), _answered(decisive), after.value))
    return tuple(found)


def _answered(record: Record) -> Answered:
    return Answered(clean(record.question), clean(record.answer), Verdict(record.verdict).value, record.shot)


def _disagreement(shown: Sequence[Shown]) -> int:
    """How many different outcomes (before, after) the models have between them, plus those that the attack turned."""
    turned = sum(one.plain.verdict != one.after for one in shown)
    return len({(one.plain.verdict, one.after) for one in shown}) + turned


def _thumbnail(image: Image) -> Thumbnail:
    image = image.convert("RGB")
    pixel_art = max(image.size) <= PIXEL_ART_PX
    image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    buffer = io.BytesIO()
    kind = "png" if pixel_art else "jpeg"
    image.save(buffer, format=kind, **({} if pixel_art else {"quality": 80}))
    return Thumbnail(f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}", pixel_art)
