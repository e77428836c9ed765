"""How far two readings of the same answers agree: confusion matrix and Cohen's kappa. Pure functions, no torch."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from mirage.schema import Verdict
from mirage.stats import Kappa, cohens_kappa

Label = TypeVar("Label", bound=Hashable)
_NO_WIDTH = 1e-7  # a standard error below this is 0 with the noise of computing it
_NARROW, _FEW = 2.5e-4, 5  # nor is one believed below the printed digits if a side gives other verdicts so seldom
VERDICTS = (Verdict.REFUSED, Verdict.COMPLIED, Verdict.IRRELEVANT, Verdict.UNSCORED)


def confusion(first: Sequence[Label], second: Sequence[Label], labels: Sequence[Label]) -> list[list[int]]:
    """Counts of pairs: row = what the first says, column = what the second says, both in the order of `labels`.

    Raises:
        ValueError: If the two differ in length, or a label is not among `labels`.
    """
    place = {label: k for k, label in enumerate(labels)}
    counts = [[0] * len(labels) for _ in labels]
    if len(first) != len(second):
        raise ValueError(f"{len(first)} labels against {len(second)}: each answer needs one of both.")
    for one, other in zip(first, second, strict=True):
        if one not in place or other not in place:
            raise ValueError(f"The label {one if one not in place else other!r} is none of {list(labels)}.")
        counts[place[one]][place[other]] += 1
    return counts


def agreement(first: Sequence[Verdict], second: Sequence[Verdict]) -> dict[str, Any]:
    """All that `mirage calibrate` tells of two readings: counts, agreement and kappa where both scored.

    kappa has no interval where its standard error comes out as 0 (a perfect match, or one side that gives one verdict
    always) or next to it: the counts say nothing of how much it varies.

    `recall` is, for each verdict of the second, the share of it that the first gives too; `precision` the reverse.
    """
    counts = confusion(first, second, VERDICTS)
    scored = [row[:-1] for row in counts[:-1]]  # unscored is no category of its own: it is counted apart
    n = sum(map(sum, scored))
    told = cohens_kappa(scored) if n else Kappa(None, None, None, None)
    names = [str(verdict) for verdict in VERDICTS]
    rows, columns = [sum(row) for row in scored], [sum(row[k] for row in scored) for k in range(len(scored))]
    seldom = min(n - max(rows), n - max(columns)) < _FEW
    if told.standard_error is not None and told.standard_error < (_NARROW if seldom else _NO_WIDTH):
        told = Kappa(told.kappa, None, None, None)
    hits = {name: scored[k][k] for k, name in enumerate(names[:-1])}
    return {
        "n": len(first),
        "scored_by_both": n,
        "unscored": {"first": sum(counts[-1]), "second": sum(row[-1] for row in counts)},
        "agreement": sum(hits.values()) / n if n else None,
        "kappa": told._asdict(),
        "labels": names,
        "confusion": counts,
        "precision": {name: hits[name] / rows[k] if rows[k] else None for k, name in enumerate(names[:-1])},
        "recall": {name: hits[name] / columns[k] if columns[k] else None for k, name in enumerate(names[:-1])},
    }


def read_labels(path: Path) -> dict[tuple[str, int], Verdict]:
    """Verdicts by record id and shot, out of JSON lines `{"id": "...", "shot": 0, "verdict": "refused"}`.

    `shot` may be left out and is 0 then; other fields are for the reader. A file of records is such a file.

    Raises:
        ValueError: Naming file and line, if a line is not one of these or labels an answer a second time.
    """
    labels: dict[tuple[str, int], Verdict] = {}
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read ({error}). Give a file of JSON lines with id and verdict.") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
            if isinstance(fields, Mapping) and "fingerprint" in fields and "id" not in fields:
                continue  # the header of a records file
            key, verdict = (str(fields["id"]), int(fields.get("shot", 0))), Verdict(fields["verdict"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            shape = '{"id": "...", "shot": 0, "verdict": "refused"}'
            raise ValueError(f"{path}, line {number}: it is no label like {shape} ({error!r}). Correct it.") from error
        if labels.setdefault(key, verdict) is not verdict:
            raise ValueError(f"{path}, line {number}: {key[0]} (shot {key[1]}) has another label above. Remove one.")
    if not labels:
        raise ValueError(f"{path} holds no labels. Give a file of JSON lines with id and verdict.")
    return labels
