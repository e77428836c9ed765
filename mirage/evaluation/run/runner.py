"""Asking samples on every rank, together: sharded by question, each asked once, one rank's failure ends all."""

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

from mirage.evaluation.generate.base import Engine
from mirage.evaluation.judge.base import Answered, Judge
from mirage.evaluation.judge.kept import judged_and_kept
from mirage.evaluation.run.records import AnswerLog, sorted_by_sample
from mirage.schema import EvalSample, Record, short_hash


class RankFailedError(RuntimeError):
    """An evaluation failed on some rank; the message holds that rank's traceback."""


def subsample(samples: Sequence[EvalSample], limit: int | None, seed: int) -> list[EvalSample]:
    """`limit` questions drawn without replacement, in their own order: questions, never single rewrites."""
    if limit is None or limit >= len(samples):
        return list(samples)
    kept = random.Random(seed).sample(range(len(samples)), limit)
    return [samples[k] for k in sorted(kept)]


def ask(
    samples: Sequence[EvalSample],
    engine: Engine,
    judge: Judge,
    *,
    eval_set: str,
    fingerprint: str,
    rank: int = 0,
    world_size: int = 1,
    log_folder: Path | None = None,
    finish: Callable[[list[Record]], None] | None = None,
) -> list[Record]:
    """The records of all samples, the same on every rank: this rank asks its share, and all are gathered.

    `finish` is called on every rank with all records. Only then are the answers that were kept for a next attempt
    deleted: what it raises is raised here, and nothing is lost.

    Raises:
        RankFailedError: On every rank, if any rank failed.
    """
    mine = list(samples[rank::world_size])

    def kept(what: str) -> AbstractContextManager[AnswerLog | None]:
        if log_folder is None:
            return nullcontext()
        # Named by the fingerprint: an attempt with other settings leaves these alone.
        name = f".{eval_set}.{fingerprint}.{what}.rank{rank}of{world_size}.jsonl"
        return closing(AnswerLog(log_folder / name, fingerprint))

    def work() -> list[Record]:
        with kept("answers") as answers, kept("verdicts") if judge.one_by_one else nullcontext() as verdicts:
            return _ask_and_judge(mine, engine, judge, eval_set, answers, verdicts)

    records = _together(work, world_size)
    records = sorted_by_sample(records, [sample.id for sample in samples])
    if finish is not None:
        finish(records)
    if log_folder is not None:
        # Other attempts at the same questions, by other settings, are overtaken now that there are records.
        for left in log_folder.glob(f".{eval_set}.*.rank{rank}of*.jsonl"):
            left.unlink(missing_ok=True)
    return records


def _ask_and_judge(
    samples: list[EvalSample],
    engine: Engine,
    judge: Judge,
    eval_set: str,
    answers: AnswerLog | None,
    verdicts: AnswerLog | None,
) -> list[Record]:
    if not samples:
        return []
    known = answers.known if answers is not None else {}
    if known:
        total = sum(len(sample.questions) for sample in samples)
        print(f"{eval_set}: an interrupted evaluation goes on, {len(known)} of {total} answers are kept.")
    todo = [sample for sample in samples if any((sample.id, k) not in known for k in range(len(sample.questions)))]
    fresh = dict(
        zip(
            (sample.id for sample in todo),
            engine.answers(todo, answers.add if answers is not None else None),
            strict=True,
        )
    )
    answered = []
    for sample in samples:
        for shot, question in enumerate(sample.questions):
            answer = fresh[sample.id][shot] if sample.id in fresh else known[sample.id, shot]
            answered.append(((sample.id, shot), Answered(sample, question, answer)))
    return [
        Record(
            id=item.sample.id, eval_set=eval_set, shot=shot, question=item.question, answer=item.answer,
            verdict=judgement.verdict, judge=judge.name, reason=judgement.reason, category=item.sample.category,
            image=item.sample.image.name if item.sample.image is not None else None, unsafe=item.sample.unsafe,
        )
        for ((_, shot), item), judgement in zip(answered, judged_and_kept(answered, judge, verdicts), strict=True)
    ]  # fmt: skip


def _together(work: Callable[[], list[Record]], world_size: int) -> list[Record]:
    """All ranks' records. Failures are gathered before anybody waits for results that will never come."""
    if world_size == 1:
        return work()
    failure: str | None = None
    mine: list[Record] = []
    try:
        mine = work()
    except Exception:
        failure = traceback.format_exc()
    shares: list[Any] = [None] * world_size
    torch.distributed.all_gather_object(shares, (failure, mine))
    failures = [f"rank {rank}:\n{text}" for rank, (text, _) in enumerate(shares) if text]
    if failures:
        raise RankFailedError("Evaluation failed. " + "\n".join(failures))
    return [record for _, share in shares for record in share]


def weights_fingerprint(model: nn.Module) -> str:
    """Sixteen hexadecimal digits of every parameter's name and bytes."""
    digest = xxhash.xxh3_64()
    for name, parameter in sorted(model.named_parameters()):
        digest.update(name.encode())
        digest.update(parameter.detach().contiguous().view(-1).view(torch.uint8).cpu().numpy().data)
    return digest.hexdigest()


def samples_fingerprint(samples: Sequence[EvalSample]) -> str:
    """A hash of every question, rewrite and picture name, in order."""
    parts = [
        text for sample in samples for text in (sample.id, sample.image.name if sample.image else "", *sample.questions)
    ]
    return short_hash(*parts)
