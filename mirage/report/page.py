"""One page for all runs. Answers are hostile input: everything is escaped, and a content policy forbids scripts too."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup

from mirage.report.comparison import Comparison
from mirage.report.figures import COLOURS, Panel, themed_svg
from mirage.report.gallery import Gallery
from mirage.report.runs import Model, Run, models
from mirage.report.tables import SAFETY, Cell, Column, cell_of, grid, heads_of, percent

MAX_CHARACTERS = 1500  # of an answer, or of any other text of a run
_BIDI = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
_COUNTED = {"before", "after", "per_shot", "per_category", "start", "schema_version", "score", "unscored"}


class Matrix(NamedTuple):
    """A table of one measure: a row a category or a model, a column a model or a shot."""

    title: str
    caption: str
    corner: str
    heads: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Cell | None]]]


def page(
    runs: Sequence[Run],
    panels: Sequence[Panel] = (),
    galleries: Sequence[Gallery] = (),
    comparison: Comparison | None = None,
    notes: Sequence[str] = (),
) -> str:
    """The whole of report.html: tables, curves and gallery in one file that needs no network and runs no script."""
    folder = files("mirage.report")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_inert
    )
    environment.filters.update(percent=percent, heads=heads_of)
    table1, shown = grid(runs), models(runs)
    return environment.from_string((folder / "page.html.jinja").read_text(encoding="utf-8")).render(
        style=Markup((folder / "page.css").read_text(encoding="utf-8")),
        names=", ".join(run.label for run in runs[:-1]) + " and " * (len(runs) > 1) + runs[-1].label,
        table1=table1,
        # One utility score fits beside the rest of Table 1; more have a table of their own.
        beside=len(table1.columns) if len(table1.columns) <= len(SAFETY) + 1 else len(SAFETY),
        num_colours=len(COLOURS),
        notes=notes,
        curves=[(panel, Markup(themed_svg(panel))) for panel in panels],
        comparison=comparison,
        matrices=[*_categories(shown), *_shots(shown)],
        galleries=galleries,
        runs=[(run.label, [("folder", str(run.folder)), *_facts(run.results)]) for run in runs],
        markup=Markup,
    )


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


def _categories(shown: Sequence[Model]) -> Iterator[Matrix]:
    """ASR and RR by category after the attack, where the questions have categories."""
    for column in (Column("ASR", "after", "unsafe", "asr", "lower"), Column("RR", "after", "benign", "rr", "lower")):
        by_category = [model.side(column.side).get("per_category") or {} for model in shown]
        rows = []
        for name in sorted({name for categories in by_category for name in categories}):
            cells = [cell_of({column.side: categories.get(name)}, column) for categories in by_category]
            counts = sorted({cell.n for cell in cells if cell and cell.n}) or [0]
            rows.append((f"{name} ({' to '.join(map(str, dict.fromkeys((counts[0], counts[-1]))))})", cells))
        if rows:
            caption = f"Percent of the scored {column.side} questions of the category, with 95 % intervals."
            heads = [model.label for model in shown]
            yield Matrix(f"{column.head} by category, after the attack", caption, "Category (n)", heads, rows)


def _shots(shown: Sequence[Model]) -> Iterator[Matrix]:
    """ASR and RR of each rewrite alone; a single one is the `after` column of Table 1 and needs no table."""
    for column in (Column("ASR", "after", "unsafe", "asr", "lower"), Column("RR", "after", "benign", "rr", "lower")):
        shots = [model.side(column.side).get("per_shot") or [] for model in shown]
        num_shots = max(map(len, shots))
        if num_shots > 1:
            rows = [
                (model.label, [cell_of({column.side: {"after": block}}, column) for block in blocks])
                for model, blocks in zip(
                    shown, (each + [None] * (num_shots - len(each)) for each in shots), strict=True
                )
            ]
            caption = f"Each rewrite of the {column.side} questions alone, percent, with 95 % intervals."
            heads = [f"shot {k}" for k in range(1, num_shots + 1)]
            yield Matrix(f"{column.head} by shot", caption, "Model", heads, rows)


def _facts(results: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """What decides a run's numbers: every entry of results.json that is not counted from the answers."""
    for key, value in results.items():
        if key in _COUNTED or value is None or value in ({}, []):
            continue
        if isinstance(value, Mapping) and any(isinstance(item, Mapping) for item in value.values()):
            yield from _facts(value, f"{prefix}{key} ")
        elif isinstance(value, Mapping):
            given = {name: item for name, item in value.items() if item is not None}
            yield f"{prefix}{key}", ", ".join(f"{name} {item}" for name, item in given.items())
        else:
            yield f"{prefix}{key}", str(value)
