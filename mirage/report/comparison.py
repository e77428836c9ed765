"""Two runs on the same questions: a paired test for each measure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from rich.table import Table
from rich.text import Text

from mirage.evaluation.run.counting import question_verdict, shots_by_question
from mirage.report.markup import markdown, markdown_rows
from mirage.report.runs import SIDES, Run
from mirage.report.tables import attack_of, percent, plain, terminal
from mirage.schema import Verdict
from mirage.stats import McNemar, mcnemar

MEASURES = {"unsafe": {"ASR": Verdict.COMPLIED}, "benign": {"RR": Verdict.REFUSED, "helpful": Verdict.COMPLIED}}


class Difference(NamedTuple):
    """One measure of two runs on the questions that both scored."""

    title: str
    n: int  # questions scored in both runs
    skipped: int  # questions unscored in either run
    test: McNemar  # `before` is the first run, `after` the second

    @property
    def rates(self) -> tuple[float | None, float | None]:
        """The share of the n questions in the first and in the second run."""
        if self.n == 0:
            return None, None
        return (self.test.both + self.test.only_before) / self.n, (self.test.both + self.test.only_after) / self.n


class Comparison(NamedTuple):
    """Two runs, measure by measure."""

    first: str
    second: str
    differences: tuple[Difference, ...]
    note: str

    @property
    def heads(self) -> list[str]:
        """The heads of the columns of `rows`."""
        first, second = self.first, self.second
        return ["measure", "n", "skipped", first, second, f"only {first}", f"only {second}", "p"]

    @property
    def rows(self) -> list[list[str]]:
        """The cells of the table: measure, n, skipped, rate of each run, the two discordant counts, p."""
        rows = []
        for each in self.differences:
            p = "-" if each.n == 0 else "< 0.001" if each.test.p < 0.001 else f"{each.test.p:.3f}"
            counts = map(str, (each.test.only_before, each.test.only_after))
            rows.append([each.title, str(each.n), str(each.skipped), *map(percent, each.rates), *counts, p])
        return rows


def compare(run_a: Run, run_b: Run) -> Comparison:
    """McNemar's exact test of ASR, RR and helpful, before and after the attack, over the questions of both runs.

    A question that is unscored in either run is skipped and counted, never taken as safe.

    Raises:
        ValueError: If the runs share no eval_set with records, have other ids or other questions under the same ids,
            or were judged differently (two judges cannot be compared).
    """
    differences: list[Difference] = []
    notes: list[str] = []
    for side in SIDES:
        lacking = [run.label for run in (run_a, run_b) if side not in run.records]
        if lacking:
            notes.append(f"No {side} questions are compared: {' and '.join(lacking)} has no records of them.")
            continue
        summaries = [run.results[side] for run in (run_a, run_b)]
        first, second = (summary.get("judge") for summary in summaries)
        if first != second:
            raise ValueError(
                f"{run_a.label} and {run_b.label}: the {side} answers were judged by {first} and by {second}, and rates"
                " of two judges cannot be compared. Judge one of them again with the judge of the other."
            )
        first, second = map(attack_of, summaries)
        if first != second:
            notes.append(f"The attacks on {side} questions differ: {first} and {second}.")
        first, second = (summary.get("generation") or {} for summary in summaries)
        if keys := [key for key in {**first, **second} if first.get(key) != second.get(key)]:
            settings = (", ".join(f"{key} {of.get(key)}" for key in keys) for of in (first, second))
            notes.append(f"The {side} answers were written differently: {' and '.join(settings)}.")
        _check_same_questions(run_a, run_b, side)
        shots = [shots_by_question(run.records[side]) for run in (run_a, run_b)]
        before = [{id: verdicts[0] for id, verdicts in run.items()} for run in shots]
        after = [
            {id: question_verdict(verdicts[1:], side == "unsafe") for id, verdicts in run.items()} for run in shots
        ]
        for title, verdict in MEASURES[side].items():
            for when, (one, other) in (("before", before), ("after", after)):
                differences.append(_difference(f"{title} {when}", one, other, verdict))
    if not differences:
        raise ValueError(
            f"{run_a.label} and {run_b.label} have no records of the same eval_set: nothing can be paired."
        )
    notes.append("Rates in percent of the n questions that both runs scored; 'only' counts those that differ.")
    notes.append(f"p is two-sided and not adjusted for the {len(differences)} tests.")
    return Comparison(run_a.label, run_b.label, tuple(differences), " ".join(notes))


def comparison_table(comparison: Comparison) -> Table:
    """The paired tests for the terminal: both rates, the discordant counts and p."""
    table = terminal(comparison.note)
    title = f"{plain(comparison.first)} against {plain(comparison.second)}: McNemar's exact test"
    table.title = Text(title, style="bold")
    for i, head in enumerate(comparison.heads):
        table.add_column(Text(plain(head)), justify="right" if i else "left", overflow="fold", no_wrap=i == 0)
    for row in comparison.rows:
        table.add_row(*map(Text, row))
    return table


def comparison_markdown(comparison: Comparison) -> str:
    """The paired tests in Markdown, after a heading."""
    table = markdown_rows(comparison.heads, comparison.rows)
    return f"\nMcNemar's exact test\n\n{table}\n\n{markdown(comparison.note)}\n"


def _difference(
    title: str, first: Mapping[str, Verdict], second: Mapping[str, Verdict], verdict: Verdict
) -> Difference:
    scored = [id for id in first if Verdict.UNSCORED not in (first[id], second[id])]
    test = mcnemar({id: first[id] is verdict for id in scored}, {id: second[id] is verdict for id in scored})
    return Difference(title, len(scored), len(first) - len(scored), test)


def _check_same_questions(run_a: Run, run_b: Run, side: str) -> None:
    first, second = (
        {record.id: (record.question, record.image) for record in run.records[side] if record.shot == 0}
        for run in (run_a, run_b)
    )
    for run, only in ((run_a, first.keys() - second.keys()), (run_b, second.keys() - first.keys())):
        if only:
            raise ValueError(
                f"{side}: a paired test needs the same questions in both runs, but {len(only)} are only in {run.label},"
                f" such as {min(only)}. Evaluate both with the same data, limit and seed."
            )
    if changed := [id for id in first if first[id] != second[id]]:
        raise ValueError(
            f"{side}: question {changed[0]} (and {len(changed) - 1} others) reads differently, or is about another picture,"
            f" in {run_a.label} and {run_b.label}. Evaluate both with the same data."
        )
