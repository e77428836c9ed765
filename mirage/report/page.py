"""One page for all runs. Answers are hostile input: everything is escaped, and a content policy forbids scripts too."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from mirage.report.comparison import Comparison, comparison_heads, comparison_rows
from mirage.report.figures import COLOURS, Panel, themed_svg
from mirage.report.gallery import Gallery, clean
from mirage.report.runs import SIDES, Run, starts
from mirage.report.tables import SAFETY, Cell, Column, attack_of, cell_of, grid, heads_of, percent
from mirage.report.template import STYLE, TEMPLATE
from mirage.schema import Verdict

# The figure's own colours on white, and lighter ones of the same hue for a dark page.
DARK_COLOURS = ("#6cb8f0", "#ff9d63", "#4fcfa6", "#e79ad3", "#d9b95a", "#f08c8c", "#a3aef5", "#a9cf6e")
_BESIDE = 1  # utility scores that fit beside the rest of Table 1; more have a table of their own
HINTS = {
    "ASR": "unsafe, lower is better",
    "RR": "benign, lower is better",
    "IR": "unsafe",
    "helpful": "benign, higher is better",
    "utility": "higher is better",
}


def page(
    runs: Sequence[Run],
    drawn: Sequence[Panel] = (),
    galleries: Sequence[Gallery] = (),
    comparison: Comparison | None = None,
    notes: Sequence[str] = (),
) -> str:
    """The whole of report.html: tables, curves and gallery in one file that needs no network and runs no script."""
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    columns, _, caption = grid(runs)
    fits = len(columns) <= len(SAFETY) + _BESIDE
    return environment.from_string(TEMPLATE).render(
        style=Markup(_style()),
        names=_listed([clean(run.label) for run in runs]),
        caption=clean(caption),
        notes=[clean(note) for note in notes],
        table1=_table(runs, slice(None) if fits else slice(len(SAFETY))),
        utility=None if fits else _table(runs, slice(len(SAFETY), None)),
        curves=[_curve(panel, Markup(themed_svg(panel))) for panel in drawn],
        comparison=_comparison(comparison),
        categories=_categories(runs),
        shots=_per_shot(runs),
        galleries=galleries,
        made=[{"label": clean(run.label), "facts": _facts(run)} for run in runs],
        tone=_tone,
    )


def _table(runs: Sequence[Run], part: slice) -> dict[str, Any]:
    """Some columns of Table 1."""
    all_columns, rows, _ = grid(runs)
    columns, colours = all_columns[part], _colours(runs)
    return {
        "columns": columns,
        "heads": [{"name": clean(head), "width": width, "hint": HINTS[head]} for head, width in heads_of(columns)],
        "rows": [
            {
                "label": clean(row.label),
                "colour": colours[row.label],
                "n": " / ".join("-" if n is None else str(n) for n in row.n),
                "cells": [(column, _shown(cell)) for column, cell in zip(columns, row.cells[part], strict=True)],
            }
            for row in rows
        ],
    }


def _style() -> str:
    def variables(colours: Sequence[str]) -> str:
        return " ".join(f"--run{i}: {colour};" for i, colour in enumerate(colours))

    return STYLE.replace("LIGHT", variables(COLOURS)).replace("DARK", variables(DARK_COLOURS))


def _colours(runs: Sequence[Run]) -> dict[str, str]:
    return {start.label: "start" for start in starts(runs)} | {
        run.label: f"run{i % len(COLOURS)}" for i, run in enumerate(runs)
    }


def _shown(cell: Cell | None) -> dict[str, Any] | None:
    if cell is None:
        return None
    rate, low, high = cell.rate
    return {
        "rate": None if rate is None else percent(rate),
        "low": None if low is None else percent(low),
        "high": None if high is None else percent(high),
        "width": None if low is None or high is None else percent(high - low),
        "n": cell.n,
        "unscored": cell.unscored,
    }


def _curve(panel: Panel, svg: Any) -> dict[str, Any]:
    longest = max(len(series.blocks) for series in panel.series)
    return {
        "svg": svg,
        "title": panel.title,
        "ks": range(longest),
        "lines": [
            {
                "label": clean(series.label),
                "rates": [percent(block[panel.measure]["rate"]) for block in series.blocks]
                + [""] * (longest - len(series.blocks)),
            }
            for series in panel.series
        ],
    }


def _comparison(comparison: Comparison | None) -> dict[str, Any] | None:
    if comparison is None:
        return None
    return {
        "first": clean(comparison.first),
        "second": clean(comparison.second),
        "note": clean(comparison.note),
        "heads": [clean(head) for head in comparison_heads(comparison)],
        "rows": comparison_rows(comparison),
    }


def _models(runs: Sequence[Run]) -> list[tuple[str, Mapping[str, Any]]]:
    return [(start.label, start.run.results["start"]) for start in starts(runs)] + [
        (run.label, run.results) for run in runs
    ]


def _categories(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """One table a side that has categories: a row a category, a column a model, after the attack."""
    found = []
    measures = (("unsafe", "asr", "ASR by category", "lower"), ("benign", "rr", "RR by category", "lower"))
    for side, measure, title, better in measures:
        models = [(label, (model.get(side) or {}).get("per_category") or {}) for label, model in _models(runs)]
        names = sorted({name for _, categories in models for name in categories})
        if not names:
            continue
        column = Column(title, "after", side, measure, "lower")
        found.append(
            {
                "title": f"{title}, after the attack",
                "caption": f"Percent of the scored {side} questions of the category, with 95 % intervals.",
                "corner": "Category (n)",
                "heads": [clean(label) for label, _ in models],
                "better": better,
                "rows": [
                    (
                        f"{clean(name)} ({_counts([_n(categories.get(name)) for _, categories in models])})",
                        [_shown(cell_of({side: categories.get(name) or {}}, column)) for _, categories in models],
                    )
                    for name in names
                ],
            }
        )
    return found


def _per_shot(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """One table a side: each rewrite on its own, a row a model, a column a shot."""
    found = []
    for side, measure, title in (("unsafe", "asr", "ASR by shot"), ("benign", "rr", "RR by shot")):
        models = [(label, (model.get(side) or {}).get("per_shot") or []) for label, model in _models(runs)]
        most = max((len(shots) for _, shots in models), default=0)
        if most < 2:
            continue  # a single shot is the `after` column of the first table
        column = Column(title, "after", side, measure, "lower")
        found.append(
            {
                "title": title,
                "caption": f"Each rewrite of the {side} questions on its own, percent, with 95 % intervals.",
                "corner": "Model",
                "heads": [f"shot {k}" for k in range(1, most + 1)],
                "better": "lower",
                "rows": [
                    (
                        clean(label),
                        [_shown(cell_of({side: {"after": shot}}, column)) for shot in shots]
                        + [None] * (most - len(shots)),
                    )
                    for label, shots in models
                ],
            }
        )
    return found


def _counts(n: Sequence[int]) -> str:
    """`200`, or `20 to 200` where the models were asked different numbers of questions."""
    asked = [each for each in n if each] or [0]
    return str(asked[0]) if min(asked) == max(asked) else f"{min(asked)} to {max(asked)}"


def _n(category: Mapping[str, Any] | None) -> int:
    n: int = ((category or {}).get("after") or {}).get("n", 0)
    return n


def _facts(run: Run) -> list[tuple[str, str]]:
    """What decides a run's numbers, as pairs of name and text."""
    results = run.results
    facts = [("folder", str(run.folder))]
    facts += [
        (key, str(results[key]))
        for key in ("method", "model", "source", "seed", "epoch", "step", "checkpoint")
        if key in results
    ]
    for side in SIDES:
        if results.get(side):
            facts.append((f"{side} attack", attack_of(results[side])))
            facts.append((f"{side} judge", str(results[side].get("judge", "unknown"))))
            if results[side].get("limit") is not None:
                n = results[side]["before"]["n"]
                facts.append((f"{side} subset", f"{n} questions, drawn with seed {results[side].get('seed')}"))
            for key in ("generation", "fingerprint"):
                if results[side].get(key):
                    value = results[side][key]
                    facts.append((f"{side} {key}", value if isinstance(value, str) else json.dumps(value)))
            statistics = (results[side].get("attack") or {}).get("statistics")
            if statistics:
                facts.append((f"{side} rewrites", json.dumps(statistics)))
    for name, score in (results.get("utility") or {}).items():
        told = [f"{key} {score[key]}" for key in ("metric", "source", "n") if score.get(key) is not None]
        facts.append((f"utility {name}", ", ".join(told)))
        if score.get("prompt"):
            facts.append((f"utility {name} prompt", str(score["prompt"])))
    if "fingerprint" in results:
        facts.append(("fingerprint", str(results["fingerprint"])))
    versions = results.get("versions")
    if isinstance(versions, dict):
        facts.append(("versions", ", ".join(f"{name} {version}" for name, version in versions.items())))
    seconds = results.get("seconds")
    if isinstance(seconds, dict):
        facts.append(("seconds", ", ".join(f"{name} {value}" for name, value in seconds.items())))
    return [(clean(name), clean(value)) for name, value in facts]


def _tone(verdict: str, unsafe: bool) -> str:
    """The class of a verdict's badge: bad and good depend on which side the question is on."""
    if verdict == Verdict.UNSCORED:
        return "odd"
    if verdict == Verdict.IRRELEVANT:
        return "even"
    return "bad" if (verdict == Verdict.COMPLIED) == unsafe else "good"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
