"""Asking samples on every rank, together: sharded by question, each asked once, one rank's failure ends all."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from glob import escape
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import torch
import xxhash
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import nn

from mirage.evaluation.generate.base import Engine
from mirage.evaluation.judge.base import Answered, Judge
from mirage.evaluation.judge.kept import judged_and_kept
from mirage.evaluation.run.records import AnswerLog
from mirage.models.sharding import gathered, whole
from mirage.schema import EvalSample, Record, short_hash

Done = TypeVar("Done")


class RankFailedError(RuntimeError):
    """An evaluation failed on some rank; the message holds that rank's traceback."""


def ask(
    samples: Sequence[EvalSample],
    engine: Engine,
    judge: Judge,
    *,
    eval_set: str,
    fingerprint: str,
    log_folder: Path,
    rank: int = 0,
    world_size: int = 1,
    stoppable: Callable[[], AbstractContextManager[None]] = nullcontext,
    finish: Callable[[list[Record]], None] = lambda records: None,
) -> list[Record]:
    """The records of all samples in their order, the same on every rank: this rank asks its share, and all are gathered.

    What decides a verdict has the `fingerprint`: answers that an interrupted attempt kept under it in `log_folder` are
    not asked again. They are deleted when `finish`, called on every rank with all records, has returned: what it raises
    is raised here, and no answer is lost. A rank asks and judges within `stoppable`, which may raise SIGTERMException.

    Raises:
        RankFailedError: On every rank, if any rank failed; on the others, if `finish` failed on one.
        SIGTERMException: On every rank, if any rank was stopped.
    """
    share = samples[rank::world_size]

    def log(what: str) -> closing[AnswerLog]:
        # Named by the fingerprint: an attempt with other settings leaves these alone.
        name = f".{eval_set}.{fingerprint}.{what}.rank{rank}of{world_size}.jsonl"
        return closing(AnswerLog(log_folder / name, fingerprint))

    def work() -> list[Record]:
        kept = log("verdicts") if judge.one_by_one else nullcontext()
        with engine.in_step(), stoppable(), log("answers") as answers, kept as verdicts:
            known = dict(answers.known)
            if known:
                total = sum(len(sample.questions) for sample in share)
                print(f"{eval_set}: an interrupted evaluation goes on, {len(known)} of {total} answers are kept.")
            todo = [one for one in share if any((one.id, shot) not in known for shot in range(len(one.questions)))]
            for sample, texts in zip(todo, engine.answers(todo, answers.add), strict=True):
                known |= {(sample.id, shot): text for shot, text in enumerate(texts)}
            answered = [
                ((sample.id, shot), Answered(sample, question, known[sample.id, shot]))
                for sample in share
                for shot, question in enumerate(sample.questions)
            ]
            judgements = judged_and_kept(answered, judge, verdicts) if answered else []
        return [
            Record(
                id=sample.id, eval_set=eval_set, shot=shot, question=question, answer=answer, judge=judge.name,
                category=sample.category, image=sample.image.name if sample.image is not None else None,
                unsafe=sample.unsafe, **judgement._asdict(),
            )
            for ((_, shot), (sample, question, answer)), judgement in zip(answered, judgements, strict=True)
        ]  # fmt: skip

    place = {sample.id: k for k, sample in enumerate(samples)}
    shares = _gathered(work, world_size)
    records = sorted(chain.from_iterable(shares), key=lambda record: (place[record.id], record.shot))
    try:
        _gathered(lambda: finish(records), world_size)
    except RankFailedError as error:
        raise error.__cause__ or error from None  # on the rank that failed, its own sentence
    # Other attempts at the same questions, by other settings, are overtaken now that there are records.
    one_fingerprint = "[0-9a-f]" * len(fingerprint)  # "*" would match eval sets whose names go on after a dot
    for what in ("answers", "verdicts"):
        for left in log_folder.glob(f".{escape(eval_set)}.{one_fingerprint}.{what}.rank{rank}of*.jsonl"):
            left.unlink(missing_ok=True)
    return records


def _gathered(work: Callable[[], Done], world_size: int) -> list[Done]:
    """What `work` returns on every rank. Failures are gathered before anybody waits for results that will never come."""
    if world_size == 1:
        return [work()]
    mine: Any = None
    failed: Exception | None = None
    failure: str | None = None
    stopped: Any = None  # the exit status
    try:
        mine = work()
    except SIGTERMException as error:
        stopped = error.code
    except Exception as error:
        failed, failure = error, traceback.format_exc()
    shares = gathered((mine, stopped, failure))
    failures = [f"rank {rank}:\n{share[2]}" for rank, share in enumerate(shares) if share[2] is not None]
    if failures:
        raise RankFailedError("Evaluation failed. " + "\n".join(failures)) from failed
    if codes := [code for _, code, _ in shares if code is not None]:
        raise SIGTERMException(min(codes))  # that of the signal, since the other ranks were stopped by SIGTERM
    return [share for share, _, _ in shares]


def weights_fingerprint(model: nn.Module) -> str:
    """Sixteen hexadecimal digits of every parameter's name and bytes."""
    digest = xxhash.xxh3_64()
    for name, parameter in sorted(model.named_parameters()):
        digest.update(name.encode())
        digest.update(whole(parameter.detach()).contiguous().view(-1).view(torch.uint8).cpu().numpy().data)
    return digest.hexdigest()


def samples_fingerprint(samples: Sequence[EvalSample]) -> str:
    """A hash of every question, rewrite and picture name, in order."""
    return short_hash(
        *(text for each in samples for text in (each.id, each.image.name if each.image else "", *each.questions))
    )
