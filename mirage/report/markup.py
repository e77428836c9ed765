"""Table 1 in Markdown and in LaTeX: the grid of `tables`, written so that no name in it can break the page."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from mirage.report.runs import Run
from mirage.report.tables import Cell, grid, heads_of, percent, plain

_LATEX = str.maketrans(
    {character: "\\" + character for character in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "|": r"\textbar{}"}
    | {
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "[": "{[}",
        "]": "{]}",
    }  # after \\\\ a bracket would open an argument
)


def markdown_table(runs: Sequence[Run]) -> str:
    """Table 1 in Markdown: a row a run, with n and 95 % intervals."""
    columns, rows, caption = grid(runs)
    heads = ["model", "n unsafe / benign", *(column.title for column in columns)]
    body = [[row.label, row.n, *map(_with_unscored, row.cells.values())] for row in rows]
    return f"{markdown_rows(heads, body)}\n\n{markdown(f'Percent (Wilson 95 % interval). {caption}')}\n"


def markdown_rows(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, its cells escaped: the first column to the left, the others to the right."""
    rule = f"| --- |{' ---: |' * (len(heads) - 1)}"
    head, *body = (f"| {' | '.join(map(markdown, cells))} |" for cells in (heads, *rows))
    return "\n".join([head, rule, *body])


def markdown(text: str) -> str:
    """The text as Markdown shows it, on one line and inert."""
    return re.sub(r"([\\`*_\[\]|~])", r"\\\1", html.escape(plain(text), quote=False))


def latex_table(runs: Sequence[Run]) -> str:
    """Table 1 in LaTeX for the booktabs package: a row a run, with n and 95 % intervals."""
    import jinja2

    environment = jinja2.Environment(
        block_start_string="<%", block_end_string="%>", variable_start_string="<<", variable_end_string=">>",
        trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined, finalize=_latex, keep_trailing_newline=True,
    )  # fmt: skip
    columns, rows, caption = grid(runs)
    environment.filters["percent"] = percent
    template = environment.from_string((files("mirage.report") / "table.tex.jinja").read_text(encoding="utf-8"))
    return template.render(columns=columns, rows=rows, caption=caption, heads=heads_of(columns))


def _with_unscored(cell: Cell) -> str:
    return cell.interval + (f", {cell.unscored} of {cell.n} unscored" if cell.unscored else "")


def _latex(value: Any) -> Any:
    """A text as LaTeX prints it, on one line."""
    if not isinstance(value, str):
        return value
    return re.sub(r'"([^"]*)"', r"``\1''", plain(value).translate(_LATEX)).replace('"', "''")
