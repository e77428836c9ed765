"""The paper's Table 1 and Figures 1, 3 and 4 in one page, the published figure beside each of ours."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

from mirage.atomic import replacing
from mirage.report.figures import panels
from mirage.report.gallery import OpenPicture, galleries
from mirage.report.markup import markdown_sheet
from mirage.report.page import page
from mirage.report.runs import Run, load_run
from mirage.report.tables import Cell, Column, Sheet, cell_of, percent

SHOWN = 4  # questions of each kind in the gallery
COLUMNS = (
    Column("ASR", "before", "unsafe", "lower"),
    Column("ASR", "after", "unsafe", "lower"),
    Column("ASR", "before", "spavl_unsafe", "lower"),
    Column("ASR", "after", "spavl_unsafe", "lower"),
    Column("RR", "before", "benign", "lower"),
    Column("RR", "after", "benign", "lower"),
    Column("RR", "before", "spavl_benign", "lower"),
    Column("RR", "after", "spavl_benign", "lower"),
    Column("utility", "vqav2", "utility", "higher"),
    Column("utility", "textvqa_ocr", "utility", "higher"),
    Column("utility", "scienceqa_img", "utility", "higher"),
    Column("utility", "vizwiz", "utility", "higher"),
)
DIFFERENCES = (
    "The published ASR is judged by Qwen2.5-VL-7B, before the attack by stricter rules than after it; ours by the judge "
    "that the table names, both times.",
    "The published rewrites are by a language model; ours are those of the attack that the table names.",
    "SPA-VL's ASR after is the mean over the three rewrites, as the published figures seem to be; VLGuard's counts "
    "any of the three.",
    "VQAv2 and VizWiz are published on test splits that only a server can score; ours are on the validation splits.",
    "The published NPO and RMU rows are no exact targets: several are no multiple of one question, so they are "
    "averages, and settings and seeds are not known.",
)


class PaperRow(NamedTuple):
    """One row of the table."""

    name: str
    label: str
    group: str
    published: Sequence[float] | None  # percent
    run: Path | None  # folder of its results.json; None: not finished


class PaperCell(NamedTuple):
    """Ours and the published figure, in percent."""

    cell: Cell
    published: float | None

    def __str__(self) -> str:
        return f"{percent(self.cell.rate)} / {'-' if self.published is None else f'{self.published:.2f}'}"


def paper_report(
    rows: Sequence[PaperRow],
    heads: Sequence[str],
    out: Path,
    figure1: Path,
    notes: Sequence[str],
    pictures: OpenPicture,
) -> list[Path]:
    """Writes report.html and table.md into `out` and returns them.

    Args:
        rows: Every row, in order; those of a group stand together.
        heads: What the published figures are, in their order, which is that of `COLUMNS`.
        out: The folder.
        figure1: The audit's figure; left out of the page if there is no such file.
        notes: What is missing, in sentences.
        pictures: Opens a picture for the gallery.

    Raises:
        ValueError: If a run cannot be read, or none is finished.
    """
    # what a row started from has a row of its own
    runs = {
        row.name: run._replace(
            label=row.label, results={**run.results, "start": None},
            records={name: each for name, each in run.records.items() if not name.startswith("start.")},
        )
        for row in rows
        if row.run is not None and (run := load_run(row.run))
    }  # fmt: skip
    cells = {row.name: _cells(runs.get(row.name), row.published) for row in rows}
    groups = [(group, list(members)) for group, members in groupby(rows, key=lambda row: row.group)]
    curves, first = [], None
    for group, members in groups:
        own = [runs[row.name] for row in members if row.name in runs]
        first = first or own
        titles = {"asr": "ASR, unsafe questions", "rr": "RR, benign questions"}
        curves += [panel._replace(title=f"{group}: {titles[panel.measure]}") for panel in panels(own)]
    cards, picture_notes = galleries(first or (), SHOWN, pictures)
    uri = f"data:image/svg+xml;base64,{base64.b64encode(figure1.read_bytes()).decode()}" if figure1.is_file() else ""
    notes = [*notes, *(note for run in runs.values() for note in run.notes), *picture_notes]
    named = [runs[row.name]._replace(label=f"{row.group}, {row.label}") for row in rows if row.name in runs]
    html = page(
        named, curves, cards, None, notes, name="paper.html.jinja", groups=groups, cells=cells, figure1=uri,
        columns=COLUMNS, heads=heads, differences=DIFFERENCES, matrices=[],
    )  # fmt: skip
    body: list[list[str]] = []
    for group, members in groups:
        body += [[group], *([row.label, *map(str, cells[row.name])] for row in members)]
    width = len(heads)
    body = [row if len(row) > 1 else [*row, *[""] * width] for row in body]
    sheet = Sheet("", ["ours / published, percent", *heads], body, " ".join(DIFFERENCES))
    files = {out / "report.html": html, out / "table.md": markdown_sheet(sheet)}
    for path, text in files.items():
        with replacing(path) as file:
            file.write(text.encode())
    return list(files)


def _cells(run: Run | None, published: Sequence[float] | None) -> list[PaperCell]:
    results = {} if run is None else run.results
    return [
        PaperCell(_ours(results, column), None if published is None else published[at])
        for at, column in enumerate(COLUMNS)
    ]


def _ours(results: Mapping[str, Any], column: Column) -> Cell:
    """The figure that the published one can be compared with."""
    cell = cell_of(results, column)
    if (column.side, column.under) == ("spavl_unsafe", "after") and cell.rate is not None:
        shots = [block["asr"]["rate"] for block in results[column.side]["per_shot"]]
        return Cell(mean(rate for rate in shots if rate is not None), n=cell.n, unscored=cell.unscored)
    return cell
