"""Table 1 in Markdown and in LaTeX: the grid of `tables`, written so that no name in it can break the page."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from typing import Any

import jinja2

from mirage.report.runs import Run, plain
from mirage.report.tables import Sheet, attack_of, grid, heads_of, percent

_LATEX = str.maketrans(
    {character: "\\" + character for character in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "|": r"\textbar{}"}
    # after \\ a bracket would open an argument
    | {"<": r"\textless{}", ">": r"\textgreater{}", "[": "{[}", "]": "{]}"}
)


def template(name: str, **options: Any) -> jinja2.Template:
    """A template of this package; `options` are those of Jinja's environment."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mirage.report", ""), undefined=jinja2.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True, **options,
    )  # fmt: skip
    environment.filters.update(percent=percent, heads=heads_of, attack=attack_of, plain=plain)
    return environment.get_template(name)


def markdown_table(runs: Sequence[Run]) -> str:
    """Table 1 in Markdown, as `table_sheet` has it."""
    return markdown_sheet(table_sheet(runs))


def table_sheet(runs: Sequence[Run]) -> Sheet:
    """Table 1 as texts: a row a run, with n and 95 % intervals."""
    columns, rows, caption = grid(runs)
    heads = ["model", "n unsafe / benign", *(f"{column.head} {column.label}" for column in columns)]
    body = [
        [row.model.label, row.n]
        + [
            cell.interval + f", {cell.unscored} of {cell.n} unscored" * (cell.unscored > 0)
            for cell in row.cells.values()
        ]
        for row in rows
    ]
    return Sheet("", heads, body, f"Percent (Wilson 95 % interval). {caption}")


def markdown_sheet(sheet: Sheet) -> str:
    """The table in Markdown, its first column to the left, the others to the right; its title above, its caption below."""
    rule = f"| --- |{' ---: |' * (len(sheet.heads) - 1)}"
    head, *body = (f"| {' | '.join(map(markdown, cells))} |" for cells in (sheet.heads, *sheet.rows))
    title = f"\n{markdown(sheet.title)}\n\n" if sheet.title else ""
    return title + "\n".join([head, rule, *body]) + f"\n\n{markdown(sheet.caption)}\n"


def markdown(text: str) -> str:
    """The text as Markdown shows it, on one line and inert."""
    return re.sub(r"([\\`*_\[\]|~])", r"\\\1", html.escape(plain(text), quote=False))


def latex_table(runs: Sequence[Run]) -> str:
    """Table 1 in LaTeX for the booktabs package: a row a run, with n and 95 % intervals."""
    delimiters = {
        "block_start_string": "<%", "block_end_string": "%>", "variable_start_string": "<<", "variable_end_string": ">>",
    }  # fmt: skip
    return template("table.tex.jinja", finalize=_latex, **delimiters).render(grid(runs)._asdict())


def _latex(value: Any) -> Any:
    """A text as LaTeX prints it, on one line."""
    if not isinstance(value, str):
        return value
    return re.sub(r'"([^"]*)"', r"``\1''", plain(value).translate(_LATEX)).replace('"', "''")
