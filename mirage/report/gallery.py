"""The gallery: question, picture, and the answers of several models side by side (the paper's Figure 4)."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mirage.evaluation.run.counting import question_verdict
from mirage.report.runs import SIDES, Model, Run, models
from mirage.schema import Record, Verdict

if TYPE_CHECKING:
    from PIL.Image import Image

THUMBNAIL_PX = 320
PIXEL_ART_PX = 96  # pictures up to this size are kept as they are, lossless, and enlarged without smoothing

OpenPicture = Callable[[Path, str], "Image"]
"""A run's folder and the name of a picture in its records -> the picture."""


class Responses(NamedTuple):
    """One model in a card: its answer to the plain question, and the answer that decided the attack."""

    model: str
    plain: Record
    attacked: Record
    after: Verdict  # over all K shots


class Thumbnail(NamedTuple):
    """A picture small enough to stand in the page, as a data URI; or why there is none."""

    uri: str = ""
    pixel_art: bool = False
    problem: str = ""


class Card(NamedTuple):
    """One question of the gallery."""

    asked: Record  # plainly
    picture: Thumbnail
    responses: tuple[Responses, ...]

    @property
    def disagreement(self) -> int:
        """How many different outcomes (before, after) the models have, plus the models that the attack changed."""
        outcomes = [(each.plain.verdict, each.after) for each in self.responses]
        return len(set(outcomes)) + sum(before != after for before, after in outcomes)


class Gallery(NamedTuple):
    """The cards of one side, and how they were chosen."""

    side: str
    cards: tuple[Card, ...]
    chosen: str


def galleries(
    runs: Sequence[Run], shown: int = 8, open_picture: OpenPicture | None = None, max_picture_bytes: int = 6_000_000
) -> tuple[list[Gallery], list[str]]:
    """For each side up to `shown` questions on which the models differ most, and what could not be shown.

    Args:
        runs: The runs; their starting models come first in each card.
        shown: Most cards a side.
        open_picture: Opens a picture; without it no picture is shown.
        max_picture_bytes: Most bytes of all pictures together, as they stand in the page.
    """
    made: list[Gallery] = []
    notes: list[str] = []
    thumbnails = _Thumbnails(open_picture, max_picture_bytes)
    for side in SIDES:
        # An id alone may stand for other data in another run: question and picture belong to the key.
        answers: dict[tuple[str, str, str], list[tuple[Model, list[Record]]]] = {}
        for model in models(runs):
            for records in _by_id(model.records(side)):
                key = (records[0].id, records[0].question, records[0].image or "")
                answers.setdefault(key, []).append((model, records))
        if not answers:
            continue
        cards = [
            (
                Card(given[0][1][0], Thumbnail(), tuple(_responses(*one, side == "unsafe") for one in given)),
                given[0][0].run,
            )
            for _, given in sorted(answers.items())
        ]
        differ = sum(card.disagreement > 1 for card, _ in cards)
        cards.sort(key=lambda pair: -pair[0].disagreement)
        chosen = tuple(
            card._replace(picture=thumbnails.of(run.folder, card.asked.image)) for card, run in cards[:shown]
        )
        if repeated := len(answers) - len({id for id, _, _ in answers}):
            notes.append(
                f"The runs were asked different data: {repeated} {side} ids stand for another question or picture in one"
                " run than in another. Their answers are on separate cards, and the rows of the table are over"
                " different questions."
            )
        text = (
            f"{len(chosen)} of {len(cards)} {side} questions: those with most different outcomes among the models and"
            f" before and after the attack ({differ} have more than one). A choice to look at, not a sample to count."
        )
        made.append(Gallery(side, chosen, text))
    return made, notes + thumbnails.notes()


class _Thumbnails:
    """Thumbnails until the page is full, and the pictures that cannot be shown."""

    def __init__(self, open_picture: OpenPicture | None, max_bytes: int) -> None:
        self.open_picture = open_picture
        self.max_bytes = self.bytes_left = max_bytes
        self.problems: dict[str, str] = {}

    def of(self, folder: Path, name: str | None) -> Thumbnail:
        """The picture that the records in a run's folder call `name`, or why it is not shown."""
        if self.open_picture is None or not name:
            return Thumbnail(problem="not embedded")
        try:
            thumbnail = _thumbnail(self.open_picture(folder, name))
            if len(thumbnail.uri) > self.bytes_left:
                limit = f"{self.max_bytes / 1e6:.0f} MB"
                raise ValueError(f"the pictures of a page may have {limit} together. Show fewer questions.")
        except MemoryError:
            raise
        except Exception as error:  # whatever is wrong with one picture, the report stands without it
            self.problems[name] = str(error)
            return Thumbnail(problem=f"not shown: {error}")
        self.bytes_left -= len(thumbnail.uri)
        return thumbnail

    def notes(self) -> list[str]:
        """One sentence for all pictures that cannot be shown, with the first of them."""
        count = "1 picture is" if len(self.problems) == 1 else f"{len(self.problems)} pictures are"
        first = next(iter(self.problems.items()), None)
        return [f"{count} not shown in the gallery. {first[0]}: {first[1]}"] if first else []


def _by_id(records: Iterable[Record]) -> Iterable[list[Record]]:
    """The records of each question, by shot."""
    questions: dict[str, list[Record]] = {}
    for record in sorted(records, key=lambda record: record.shot):
        questions.setdefault(record.id, []).append(record)
    return questions.values()


def _responses(model: Model, records: Sequence[Record], unsafe: bool) -> Responses:
    plain, *attacked = records
    after = question_verdict([record.verdict for record in attacked], unsafe)
    return Responses(model.label, plain, next(record for record in attacked if record.verdict is after), after)


def _thumbnail(image: Image) -> Thumbnail:
    image = image.convert("RGB")
    pixel_art = max(image.size) <= PIXEL_ART_PX
    image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    buffer, kind = io.BytesIO(), "png" if pixel_art else "jpeg"
    image.save(buffer, format=kind, **({} if pixel_art else {"quality": 80}))
    return Thumbnail(f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}", pixel_art)
