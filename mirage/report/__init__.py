"""Runs to tables, figures and one HTML page. Imports neither torch nor lightning.

runs        run folders, read and checked
tables      Table 1 on the terminal, and the table that a fit ends with
markup      Table 1 in Markdown and in LaTeX
comparison  two runs on the same questions: paired tests
figures     the K-shot curves
gallery     question, picture and answers side by side
page        all of it as one HTML page (its words, layout and style in `template`)
writing     all of it, written into one folder
"""

from mirage.report.comparison import Comparison, compare, comparison_table
from mirage.report.markup import latex_table, markdown_table
from mirage.report.runs import Run, load_run, load_runs
from mirage.report.tables import start_vs_aligned, terminal_table
from mirage.report.writing import report

__all__ = [
    "Comparison",
    "Run",
    "compare",
    "comparison_table",
    "latex_table",
    "load_run",
    "load_runs",
    "markdown_table",
    "report",
    "start_vs_aligned",
    "terminal_table",
]
