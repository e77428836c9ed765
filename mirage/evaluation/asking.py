"""Asking probes on every rank, together: sharded by question, each asked once, one rank's failure ends all."""

from __future__ import annotations

import random
import traceback
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import nn

from mirage.evaluation.generation import Engine
from mirage.evaluation.judge import Answered, Judge
from mirage.evaluation.judging import judged_and_kept
from mirage.evaluation.records import AnswerLog, sorted_by_probe
from mirage.schema import Probe, Record, short_hash


class RankFailed(RuntimeError):
    """An evaluation failed on some rank; the message holds that rank's traceback."""


def drawn(probes: Sequence[Probe], limit: int | None, seed: int) -> list[Probe]:
    """`limit` questions drawn without replacement, in their own order: questions, never single rewrites."""
    if limit is None or limit >= len(probes):
        return list(probes)
    kept = random.Random(seed).sample(range(len(probes)), limit)
    return [probes[k] for k in sorted(kept)]


def ask(
    probes: Sequence[Probe],
    engine: Engine,
    judge: Judge,
    *,
    probe_set: str,
    fingerprint: str,
    rank: int = 0,
    world: int = 1,
    log_folder: Path | None = None,
    finish: Callable[[list[Record]], None] | None = None,
) -> list[Record]:
    """The records of all probes, the same on every rank: this rank asks every `world`-th question, and all are gathered.

    `finish` is called on every rank with all records. Only then are the answers that were kept for a next attempt
    deleted: what it raises is raised here, and nothing is lost.

    Raises:
        RankFailed: On every rank, if any rank failed.
    """
    mine = list(probes[rank::world])

    def kept(what: str) -> AbstractContextManager[AnswerLog | None]:
        if log_folder is None:
            return nullcontext()
        # Named by the fingerprint: an attempt with other settings leaves these alone.
        name = f".{probe_set}.{fingerprint}.{what}.rank{rank}of{world}.jsonl"
        return closing(AnswerLog(log_folder / name, fingerprint))

    def work() -> list[Record]:
        with kept("answers") as answers, kept("verdicts") if judge.one_by_one else nullcontext() as verdicts:
            return _ask_and_judge(mine, engine, judge, probe_set, answers, verdicts)

    records = _together(work, world)
    records = sorted_by_probe(records, [probe.id for probe in probes])
    if finish is not None:
        finish(records)
    if log_folder is not None:
        # Other attempts at the same questions, by other settings, are overtaken now that there are records.
        for left in log_folder.glob(f".{probe_set}.*.rank{rank}of*.jsonl"):
            left.unlink(missing_ok=True)
    return records


def _ask_and_judge(
    probes: list[Probe],
    engine: Engine,
    judge: Judge,
    probe_set: str,
    answers: AnswerLog | None,
    verdicts: AnswerLog | None,
) -> list[Record]:
    if not probes:
        return []
    known = answers.known if answers is not None else {}
    if known:
        total = sum(len(probe.questions) for probe in probes)
        print(f"{probe_set}: an interrupted evaluation goes on, {len(known)} of {total} answers are kept.")
    todo = [probe for probe in probes if any((probe.id, k) not in known for k in range(len(probe.questions)))]
    fresh = dict(
        zip(
            (probe.id for probe in todo),
            engine.answers(todo, answers.add if answers is not None else None),
            strict=True,
        )
    )
    answered = []
    for probe in probes:
        for shot, question in enumerate(probe.questions):
            answer = fresh[probe.id][shot] if probe.id in fresh else known[probe.id, shot]
            answered.append(((probe.id, shot), Answered(probe, question, answer)))
    return [
        Record(
            id=item.probe.id, probe_set=probe_set, shot=shot, question=item.question, answer=item.answer,
            verdict=judgement.verdict, judge=judge.name, reason=judgement.reason, category=item.probe.category,
            image=item.probe.image.name if item.probe.image is not None else None, unsafe=item.probe.unsafe,
        )
        for ((_, shot), item), judgement in zip(answered, judged_and_kept(answered, judge, verdicts), strict=True)
    ]  # fmt: skip


def _together(work: Callable[[], list[Record]], world: int) -> list[Record]:
    """All ranks' records. Failures are gathered before anybody waits for results that will never come."""
    if world == 1:
        return work()
    failure: str | None = None
    mine: list[Record] = []
    try:
        mine = work()
    except Exception:
        failure = traceback.format_exc()
    shares: list[Any] = [None] * world
    torch.distributed.all_gather_object(shares, (failure, mine))
    failures = [f"rank {rank}:\n{text}" for rank, (text, _) in enumerate(shares) if text]
    if failures:
        raise RankFailed("Evaluation failed. " + "\n".join(failures))
    return [record for _, share in shares for record in share]


def weights_fingerprint(model: nn.Module) -> str:
    """Sixteen hexadecimal digits of every parameter's name and bytes."""
    digest = xxhash.xxh3_64()
    for name, parameter in sorted(model.named_parameters()):
        digest.update(name.encode())
        digest.update(parameter.detach().contiguous().view(-1).view(torch.uint8).cpu().numpy().data)
    return digest.hexdigest()


def probes_fingerprint(probes: Sequence[Probe]) -> str:
    """A hash of every question, rewrite and picture name, in order."""
    parts = [text for probe in probes for text in (probe.id, probe.image.name if probe.image else "", *probe.questions)]
    return short_hash(*parts)
