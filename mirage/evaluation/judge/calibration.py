"""How far two readings of the same answers agree: confusion matrix and Cohen's kappa. Pure functions, no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from mirage.errors import DataError, DataIssue
from mirage.json_file import lines
from mirage.schema import Verdict
from mirage.shapes import Shape, Text, checked
from mirage.stats import Kappa, cohens_kappa

_NO_WIDTH = 1e-7  # a standard error below this is 0 with the noise of computing it
_NARROW, _FEW = 2.5e-4, 5  # nor is one believed below the printed digits if a side gives other verdicts so seldom


def agreement(first: Sequence[Verdict], second: Sequence[Verdict]) -> dict[str, Any]:
    """All that `mirage calibrate` prints of two readings: counts, agreement and kappa where both scored.

    `confusion` has a row for each verdict of the first and a column for each of the second, in the order of `labels`.
    `recall` is, for each verdict of the second, the share of it that the first gives too; `precision` the reverse.
    kappa has no interval where its standard error comes out as 0 (a perfect match, or one side that gives one verdict
    always) or next to it: the counts say nothing of how much it varies.

    Raises:
        ValueError: If the two differ in length.
    """
    pairs = Counter(zip(first, second, strict=True))
    counts = [[pairs[one, other] for other in Verdict] for one in Verdict]  # unscored is the last
    scored = [row[:-1] for row in counts[:-1]]  # unscored is no category of its own: it is counted apart
    n = sum(map(sum, scored))
    names = [str(verdict) for verdict in Verdict]
    rows, columns = ([sum(line) for line in lines] for lines in (scored, zip(*scored, strict=True)))
    kappa = cohens_kappa(scored) if n else Kappa(None, None, None, None)
    seldom = min(n - max(rows), n - max(columns)) < _FEW
    if kappa.standard_error is not None and kappa.standard_error < (_NARROW if seldom else _NO_WIDTH):
        kappa = Kappa(kappa.kappa, None, None, None)
    hits = {name: scored[k][k] for k, name in enumerate(names[:-1])}
    return {
        "n": len(first),
        "scored_by_both": n,
        "unscored": {"first": sum(counts[-1]), "second": sum(row[-1] for row in counts)},
        "agreement": sum(hits.values()) / n if n else None,
        "kappa": kappa._asdict(),
        "labels": names,
        "confusion": counts,
        "precision": {name: hits[name] / rows[k] if rows[k] else None for k, name in enumerate(hits)},
        "recall": {name: hits[name] / columns[k] if columns[k] else None for k, name in enumerate(hits)},
    }


class _Label(Shape):
    id: Text
    shot: int = 0
    verdict: Annotated[Verdict, Field(strict=False)]


def read_labels(path: Path) -> dict[tuple[str, int], Verdict]:
    """Verdicts by record id and shot, out of JSON lines `{"id": "...", "shot": 0, "verdict": "refused"}`.

    `shot` may be left out and is 0 then; other fields are for the reader. A file of records is such a file.

    Raises:
        DataError: With every line that is not one of these or labels an answer a second time.
    """
    labels: dict[tuple[str, int], Verdict] = {}
    issues: list[DataIssue] = []
    for line in lines(path, 'lines like {"id": "...", "shot": 0, "verdict": "refused"}'):
        if line.issue is not None:
            issues.append(line.issue)
            continue
        if isinstance(line.record, dict) and "fingerprint" in line.record and "id" not in line.record:
            continue  # the header of a records file
        label, wrong = checked(_Label, line.record, str(path), f"line {line.number}")
        if label is not None and labels.setdefault((label.id, label.shot), label.verdict) is not label.verdict:
            remedy = f"{label.id!r} (shot {label.shot}) has another label above. Remove one."
            wrong = [DataIssue(str(path), f"line {line.number}", "id", remedy)]
        issues += wrong
    if issues:
        raise DataError.of(issues)
    if not labels:
        raise DataError(f"{path} holds no labels. Give a file of JSON lines with id and verdict.")
    return labels
