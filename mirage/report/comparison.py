"""Two runs on the same questions: a paired test for each measure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mirage.evaluation.run.counting import cluster_of, question_verdict, shots_by_question
from mirage.report.runs import SIDES, Run, attacked_sets, is_benign
from mirage.report.tables import Sheet, attack_of, percent
from mirage.schema import Record, Verdict
from mirage.stats import mcnemar

MEASURES = {True: {"ASR": Verdict.COMPLIED}, False: {"RR": Verdict.REFUSED, "helpful": Verdict.COMPLIED}}


def compare(run_a: Run, run_b: Run) -> Sheet:
    """McNemar's exact test of ASR, RR and helpful, before and after the attack, over the questions of both runs.

    Questions about one picture are one cluster of the test (see `mcnemar`).

    Columns: measure, n (questions scored in both runs), skipped (unscored in either, never taken as safe), the rate of
    each run over the n, the two discordant counts, and p.

    Raises:
        ValueError: If the runs share no eval_set with records, have other ids or other questions under the same ids,
            or were judged differently (two judges cannot be compared).
    """
    pair, names = (run_a, run_b), f"{run_a.label} and {run_b.label}"
    rows: list[list[str]] = []
    notes: list[str] = []
    results = [run.results for run in pair]
    for side in attacked_sets(results):
        unsafe = not is_benign(results, side)
        if lacking := [run.label for run in pair if side not in run.records]:
            notes.append(f"No {side} questions are compared: {' and '.join(lacking)} has no records of them.")
            continue
        summaries = [each[side] for each in results]
        first, second = (summary.get("judge") for summary in summaries)
        if first != second:
            raise ValueError(
                f"{names}: the {side} answers were judged by {first} and by {second}, and rates of two judges cannot be"
                " compared. Judge one of them again with the judge of the other."
            )
        first, second = ({"attack": attack_of(summary), **(summary.get("generation") or {})} for summary in summaries)
        if keys := [key for key in {**first, **second} if first.get(key) != second.get(key)]:
            settings = (", ".join(f"{key} {of.get(key)}" for key in keys) for of in (first, second))
            notes.append(f"The {side} questions were asked differently: {' and '.join(settings)}.")
        asked = [{(one.id, one.question, one.image) for one in run.records[side] if one.shot == 0} for run in pair]
        if differ := asked[0] ^ asked[1]:
            raise ValueError(
                f"{names}: a paired test needs the same questions about the same pictures under the same ids, but"
                f" {len(differ)} {side} ones are in one run only, such as {min(one[0] for one in differ)}. Evaluate both"
                " with the same data, limit and seed."
            )
        first, second = (_outcomes(run.records[side], unsafe) for run in pair)
        clusters = {record.id: cluster_of(record) for record in run_a.records[side]}
        for title, verdict in MEASURES[unsafe].items():
            title = title if side in SIDES else f"{side} {title}"
            rows += [
                _row(f"{title} {when}", first[when], second[when], verdict, clusters) for when in ("before", "after")
            ]
    if not rows:
        raise ValueError(f"{names} have no records of the same eval_set: nothing can be paired.")
    notes.append("Rates in percent of the n questions that both runs scored; 'only' counts those that differ.")
    notes.append(f"p is two-sided and not adjusted for the {len(rows)} tests.")
    labels = [run.label for run in pair]
    heads = ["measure", "n", "skipped", *labels, *(f"only {label}" for label in labels), "p"]
    return Sheet(f"{' against '.join(labels)}: McNemar's exact test", heads, rows, " ".join(notes))


def _outcomes(records: Sequence[Record], unsafe: bool) -> dict[str, dict[str, Verdict]]:
    """The verdict on each question, `before` and `after` the attack."""
    shots = shots_by_question(records)
    return {
        "before": {id: verdicts[0] for id, verdicts in shots.items()},
        "after": {id: question_verdict(verdicts[1:], unsafe) for id, verdicts in shots.items()},
    }


def _row(
    title: str,
    first: Mapping[str, Verdict],
    second: Mapping[str, Verdict],
    verdict: Verdict,
    clusters: Mapping[str, str],
) -> list[str]:
    scored = [id for id in first if Verdict.UNSCORED not in (first[id], second[id])]
    before, after = ({id: side[id] is verdict for id in scored} for side in (first, second))
    test = mcnemar(before, after, clusters)
    n, only = len(scored), (test.only_before, test.only_after)
    rates = [percent((test.both + own) / n if n else None) for own in only]
    p = "-" if n == 0 else "< 0.001" if test.p < 0.001 else f"{test.p:.3f}"
    return [title, str(n), str(len(first) - n), *rates, *map(str, only), p]
