"""The gallery: question, picture, and the answers of several models side by side (the paper's Figure 4)."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from PIL.Image import Image

from mirage.evaluation.run.counting import question_verdict
from mirage.report.runs import Model, Run, attacked_sets, is_benign, models
from mirage.schema import Record, Verdict

THUMBNAIL_PX = 320
PIXEL_ART_PX = 96  # pictures up to this size are kept as they are, lossless, and enlarged without smoothing

OpenPicture = Callable[[Path, str, str], Image]
"""A run's folder, an evaluation set and the name of a picture in its records -> the picture."""


class Responses(NamedTuple):
    """One model in a card: its answer to the plain question, and the answer that decided the attack."""

    model: Model
    plain: Record
    attacked: Record
    after: Verdict  # over all K shots


class Card(NamedTuple):
    """One question of the gallery, its picture as a data URI, or why there is none."""

    responses: Sequence[Responses]
    uri: str = ""
    pixel_art: bool = False
    problem: str = "not embedded"

    @property
    def asked(self) -> Record:
        """The plain question."""
        return self.responses[0].plain

    @property
    def disagreement(self) -> int:
        """How many different outcomes (before, after) the models have, plus the models that the attack changed."""
        outcomes = [(each.plain.verdict, each.after) for each in self.responses]
        return len(set(outcomes)) + sum(before != after for before, after in outcomes)


class Gallery(NamedTuple):
    """The cards of one evaluation set, and how they were chosen."""

    side: str
    unsafe: bool
    cards: Sequence[Card]
    chosen: str


def galleries(
    runs: Sequence[Run], shown: int = 8, open_picture: OpenPicture | None = None, max_picture_bytes: int = 6_000_000
) -> tuple[list[Gallery], list[str]]:
    """For each evaluation set up to `shown` questions on which the models differ most, and what could not be shown.

    Args:
        runs: The runs; their starting models come first in each card.
        shown: Most cards a set.
        open_picture: Opens a picture; without it no picture is shown.
        max_picture_bytes: Most bytes of all pictures together, as they stand in the page.
    """
    made: list[Gallery] = []
    notes: list[str] = []
    problems: dict[str, str] = {}  # of pictures, by their names
    bytes_left = max_picture_bytes

    def illustrated(card: Card) -> Card:
        nonlocal bytes_left
        if open_picture is None or not (name := card.asked.image):
            return card
        try:
            picture = open_picture(card.responses[0].model.folder, card.asked.eval_set, name)
            uri, pixel_art = data_uri(picture), max(picture.size) <= PIXEL_ART_PX
            if len(uri) > bytes_left:
                raise ValueError(f"the page is full of pictures ({max_picture_bytes:,} bytes). Show fewer questions.")
        except Exception as error:  # whatever is wrong with one picture, the report stands without it
            problems[name] = str(error)
            return card._replace(problem=f"not shown: {error}")
        bytes_left -= len(uri)
        return card._replace(uri=uri, pixel_art=pixel_art)

    all_models = models(runs)
    results = [model.results for model in all_models]
    for side in attacked_sets(results):
        unsafe = not is_benign(results, side)
        # An id alone may stand for other data in another run: question and picture belong to the key.
        answers: dict[tuple[str, str, str], list[Responses]] = {}
        for model in all_models:
            records = sorted(model.records.get(side, ()), key=lambda record: (record.id, record.shot))
            for id, (plain, *attacked) in groupby(records, key=lambda record: record.id):
                after = question_verdict([record.verdict for record in attacked], unsafe)
                decided = next(record for record in attacked if record.verdict is after)
                key = (id, plain.question, plain.image or "")
                answers.setdefault(key, []).append(Responses(model, plain, decided, after))
        if not answers:
            continue
        if repeated := len(answers) - len({id for id, _, _ in answers}):
            notes.append(
                f"The runs were asked different data: {repeated} {side} ids stand for another question or picture in one"
                " run than in another. Their answers are on separate cards, and the table's rows are over other questions."
            )
        cards = sorted((Card(answers[key]) for key in sorted(answers)), key=lambda card: -card.disagreement)
        differ = sum(card.disagreement > 1 for card in cards)
        chosen = [illustrated(card) for card in cards[:shown]]
        text = (
            f"{len(chosen)} of {len(cards)} {side} questions: those with most different outcomes among the models and"
            f" before and after the attack ({differ} have more than one). A choice to look at, not a sample to count."
        )
        made.append(Gallery(side, unsafe, chosen, text))
    if problems:
        count = "1 picture is" if len(problems) == 1 else f"{len(problems)} pictures are"
        name, problem = next(iter(problems.items()))
        notes.append(f"{count} not shown in the gallery. {name}: {problem}")
    return made, notes


def data_uri(image: Image, longest: int = THUMBNAIL_PX) -> str:
    """The picture as a data URI, at most `longest` pixels on its longer side: small ones as PNG, others as JPEG."""
    image = image.convert("RGB")
    kind = "png" if max(image.size) <= PIXEL_ART_PX else "jpeg"
    image.thumbnail((longest, longest))
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **({"quality": 80} if kind == "jpeg" else {}))
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
