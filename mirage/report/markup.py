"""Table 1 in Markdown and in LaTeX: the grid of `tables`, written so that no name in it can break the page."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

from mirage.report.runs import Run
from mirage.report.tables import Cell, grid, heads_of, percent, percent_of, plain, with_interval


def markdown_table(runs: Sequence[Run]) -> str:
    """Table 1 in Markdown: a row a run, with n and 95 % intervals."""
    columns, rows, caption = grid(runs)
    heads = ["model", "n unsafe / benign", *(column.title for column in columns)]
    body = [[row.label, row.n, *map(_with_unscored, row.cells.values())] for row in rows]
    return f"{markdown_rows(heads, body)}\n\n{markdown(f'Percent (Wilson 95 % interval). {caption}')}\n"


def latex_table(runs: Sequence[Run]) -> str:
    """Table 1 in LaTeX for the booktabs package: a row a run, with n and 95 % intervals."""
    columns, rows, caption = grid(runs)
    arrows = {"lower": r" $\downarrow$", "higher": r" $\uparrow$", "neither": ""}
    better = {column.head: arrows[column.better] for column in columns}
    spans, rules, at = [], [], 3
    for head, width in heads_of(columns):
        spans.append(rf"\multicolumn{{{width}}}{{c}}{{{_latex(head)}{better[head]}}}")
        if width > 1:
            rules.append(rf"\cmidrule(lr){{{at}-{at + width - 1}}}")
        at += width
    lines = [
        "% Needs \\usepackage{booktabs}; names in other than Latin letters need lualatex or xelatex.",
        r"\begin{table*}",
        r"\centering\small\setlength{\tabcolsep}{3pt}",
        rf"\caption{{Percent, with Wilson 95\,\% intervals; n is unsafe / benign questions. {_latex(caption)}}}",
        rf"\begin{{tabular}}{{ll{'r' * len(columns)}}}",
        r"\toprule",
        " & & " + " & ".join(spans) + r" \\",
        " ".join(rules),
        "model & n & " + " & ".join(_latex(column.under) for column in columns) + r" \\",
        r"\midrule",
    ]
    for row in rows:
        cells = row.cells.values()
        lines.append(" & ".join([_latex(row.label), row.n, *map(percent_of, cells)]) + r" \\[-2pt]")
        lines.append(" & & " + " & ".join(map(_latex_interval, cells)) + r" \\[2pt]")
    return "\n".join([*(line for line in lines if line), r"\bottomrule", r"\end{tabular}", r"\end{table*}", ""])


def markdown_rows(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, its cells escaped: the first column to the left, the others to the right."""
    rule = f"| --- |{' ---: |' * (len(heads) - 1)}"
    head, *body = (f"| {' | '.join(map(markdown, cells))} |" for cells in (heads, *rows))
    return "\n".join([head, rule, *body])


def _with_unscored(cell: Cell | None) -> str:
    return with_interval(cell) + (f", {cell.unscored} of {cell.n} unscored" if cell and cell.unscored else "")


def markdown(text: str) -> str:
    """The text as Markdown shows it, on one line and inert."""
    escaped = html.escape(plain(text), quote=False)
    return "".join("\\" + character if character in "\\`*_[]|~" else character for character in escaped)


def _latex_interval(cell: Cell | None) -> str:
    if cell is None or cell.rate.low is None:
        return ""
    scored = f", n={cell.n - cell.unscored}" if cell.unscored else ""
    return rf"{{\tiny {percent(cell.rate.low)}--{percent(cell.rate.high)}{scored}}}"


def _latex(text: str) -> str:
    special = {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        **{character: "\\" + character for character in "&%$#_{}"},
        "[": "{[}",  # after a rule it would be taken for its thickness
        "]": "{]}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
    }
    escaped = "".join(special.get(character, character) for character in plain(text))
    return re.sub(r'"([^"]*)"', r"``\1''", escaped).replace('"', "''")
