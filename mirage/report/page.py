"""One page for all runs. Answers are hostile input: everything is escaped, and a content policy forbids scripts too."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from itertools import chain
from typing import Any

from markupsafe import Markup

from mirage.report.figures import COLOURS, Panel, themed_svg
from mirage.report.gallery import Gallery
from mirage.report.markup import template
from mirage.report.runs import SIDES, Model, Run, attacked_sets, is_benign, models
from mirage.report.tables import AGREEMENT, SAFETY, Cell, Column, Sheet, cell_of, grid

MAX_CHARACTERS = 1500  # of an answer, or of any other text of a run
_BIDI = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
_COUNTED = {"before", "after", "per_shot", "per_category", "start", "schema_version", "score", "unscored"}


def page(
    runs: list[Run],
    panels: list[Panel],
    galleries: list[Gallery],
    comparison: Sheet | None,
    notes: list[str],
    name: str = "page.html.jinja",
    **more: Any,
) -> str:
    """The whole of report.html: tables, curves and gallery in one file that needs no network and runs no script.

    `name` is a template that extends page.html.jinja, and `more` what it needs or has otherwise.
    """
    table1, shown = grid(runs), models(runs)
    settings: dict[str, Any] = dict(
        style=Markup((files("mirage.report") / "page.css").read_text(encoding="utf-8")),
        table1=table1,
        # One utility score fits beside the rest of Table 1; more have a table of their own.
        beside=len(table1.columns) if len(table1.columns) <= len(SAFETY) + 1 else len(SAFETY),
        num_colours=len(COLOURS),
        notes=notes,
        curves=[(panel, Markup(themed_svg(panel))) for panel in panels],
        comparison=comparison,
        models=[model.label for model in shown],
        matrices=[*_matrices(shown), *_agreement(shown)],
        galleries=galleries,
        runs=[(run.label, [("folder", str(run.folder)), *_facts(run.results)]) for run in runs],
        markup=Markup,
    )
    return template(name, autoescape=True, finalize=_inert).render(settings | more)


def _inert(value: Any) -> Any:
    """A text as a page can hold it: no control characters, lone surrogates or overrides of the reading direction."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    kept = "".join(
        c if c in "\n\t" or (unicodedata.category(c) not in ("Cc", "Cs") and c not in _BIDI) else "\ufffd"
        for c in value[:MAX_CHARACTERS]
    )
    more = len(value) - len(kept)
    return f"{kept} [... {more:,} more characters in the records]" if more else kept


def _matrices(shown: Sequence[Model]) -> Iterator[tuple[str, str, dict[str, list[Cell]]]]:
    """Title, caption and rows of tables with a column a model: ASR or RR of each set under attack, by category and shot."""
    results = [model.results for model in shown]
    for eval_set in attacked_sets(results):
        column = Column("RR" if is_benign(results, eval_set) else "ASR", "after", eval_set)
        of_set = "" if eval_set in SIDES else f", {eval_set}"
        sides = [model.results.get(column.side) or {} for model in shown]
        categories = [side.get("per_category") or {} for side in sides]
        shots = [
            {f"shot {k}": {"after": block} for k, block in enumerate(side.get("per_shot") or [], start=1)}
            for side in sides
        ]
        for by, blocks, caption in (
            ("category", categories, f"Percent of the scored {column.side} questions of the category, under attack"),
            ("shot", shots, f"Each rewrite of the {column.side} questions alone, percent"),
        ):
            rows = {}
            for name in dict.fromkeys(chain.from_iterable(blocks)):
                cells = [cell_of({column.side: each.get(name)}, column) for each in blocks]
                counts = [cell.n for cell in cells if cell.n] or [0]
                n = " to ".join(map(str, sorted({min(counts), max(counts)})))
                rows[f"{name} ({n})"] = cells
            if rows and (by, len(rows)) != ("shot", 1):  # a single shot is the `after` column of Table 1
                yield f"{column.head} by {by}{of_set}", f"{caption}, with 95 % intervals; (n) questions.", rows


def _agreement(shown: Sequence[Model]) -> Iterator[tuple[str, str, dict[str, list[Cell]]]]:
    """Title, caption and rows of the table of agreement, where it was measured."""
    sides = attacked_sets([model.results for model in shown])
    columns = [Column(AGREEMENT, when, side) for side in sides for when in ("before", "after")]
    rows = {f"{each.side}, {each.under}": [cell_of(model.results, each) for model in shown] for each in columns}
    rows = {name: cells for name, cells in rows.items() if any(cell.rate is not None for cell in cells)}
    if rows:
        caption = (
            "chrF in percent with the starting model's answers to the plain questions, with 95 % bootstrap intervals. The "
            "starting model's own, after the attack, is the ceiling. On unsafe questions it says how much of the harmful "
            "answer survived."
        )
        yield "Agreement with the starting model", caption, rows


def _facts(results: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """What decides a run's numbers: every entry of results.json that is not counted from the answers."""
    for key, value in results.items():
        if key in _COUNTED or value in (None, {}, []):
            continue
        if isinstance(value, Mapping) and any(isinstance(item, Mapping) for item in value.values()):
            yield from _facts(value, f"{prefix}{key} ")
        elif isinstance(value, Mapping):
            yield f"{prefix}{key}", ", ".join(f"{name} {item}" for name, item in value.items() if item is not None)
        else:
            yield f"{prefix}{key}", str(value)
