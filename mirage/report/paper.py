"""The paper's Table 1 and Figures 1, 3 and 4 in one page, the published figure beside each of ours."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from statistics import mean
from typing import Any

from mirage.atomic import write_text
from mirage.report.figures import panels
from mirage.report.gallery import galleries
from mirage.report.markup import markdown_sheet
from mirage.report.page import page
from mirage.report.run_config import run_pictures
from mirage.report.runs import Run, load_run
from mirage.report.tables import Cell, Column, Sheet, cell_of, percent

SHOWN = 4  # questions of each kind in the gallery


def paper_report(
    table: Mapping[str, Any],
    folders: Mapping[str, Path],
    out: Path,
    figure1: Path,
    notes: Sequence[str],
) -> list[Path]:
    """Writes report.html and table.md into `out` and returns them.

    Args:
        table: `columns`, `rows` and `differences` as rows.yaml of `mirage.paper` has them; rows of a group stand together.
        folders: Of each finished row, by its name, the folder of its results.json.
        out: Where to.
        figure1: The audit's figure; left out of the page if there is no such file.
        notes: What is missing, in sentences.

    Raises:
        ValueError: If a run cannot be read.
    """
    rows, heads = table["rows"], list(table["columns"])
    runs = {name: _alone(load_run(folder), rows[name]["label"]) for name, folder in folders.items()}
    columns = [(Column(*column), head in table["mean_over_rewrites"]) for head, column in table["columns"].items()]
    cells = {}
    for name, row in rows.items():
        ours = [_ours(runs[name].results if name in runs else {}, *column) for column in columns]
        cells[name] = list(zip(ours, row.get("published", [None] * len(ours)), strict=True))
    groups = {group: list(names) for group, names in groupby(rows, key=lambda name: rows[name]["group"])}
    by_group = {group: [runs[name] for name in names if name in runs] for group, names in groups.items()}
    curves = [
        panel._replace(title=f"{group}: {panel.title}")
        for group, members in by_group.items()
        for panel in panels(members)
    ]
    cards, picture_notes = galleries(next(filter(None, by_group.values())), SHOWN, run_pictures())
    notes = [*notes, *(note for run in runs.values() for note in run.notes), *picture_notes]
    image = figure1.read_bytes() if figure1.is_file() else b""
    html = page(
        [run._replace(label=f"{rows[name]['group']}, {run.label}") for name, run in runs.items()], curves, cards, None,
        notes, name="paper.html.jinja", groups=groups, rows=rows, cells=cells, heads=heads, matrices=[],
        differences=table["differences"], figure1=base64.b64encode(image).decode(),
    )  # fmt: skip
    lines: list[list[str]] = []
    for group, names in groups.items():
        lines.append([group, *[""] * len(heads)])
        for name in names:
            shown = [f"{percent(cell.rate)} / {'-' if x is None else f'{x:.2f}'}" for cell, x in cells[name]]
            lines.append([rows[name]["label"], *shown])
    sheet = Sheet("", ["ours / published, percent", *heads], lines, " ".join(table["differences"]))
    write_text(out / "report.html", html)
    write_text(out / "table.md", markdown_sheet(sheet))
    return [out / "report.html", out / "table.md"]


def _alone(run: Run, label: str) -> Run:
    """The run under this label, without what it started from, which has a row of its own."""
    records = {name: each for name, each in run.records.items() if not name.startswith("start.")}
    return run._replace(label=label, results={**run.results, "start": None}, records=records)


def _ours(results: Mapping[str, Any], column: Column, mean_over_rewrites: bool) -> Cell:
    cell = cell_of(results, column)
    if not mean_over_rewrites or cell.rate is None:
        return cell
    shots = [block["asr"]["rate"] for block in results[column.side]["per_shot"]]
    return Cell(mean(rate for rate in shots if rate is not None), n=cell.n, unscored=cell.unscored)
