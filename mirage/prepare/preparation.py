"""Harmful answers and a retain set, from the first question that is asked to the files that are written."""

from __future__ import annotations

import json
import platform
import random
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mirage import __version__
from mirage.atomic import sweep_partials, write_text
from mirage.data.base import Source
from mirage.data.lazy import Chosen
from mirage.data.mixture import RetainSet
from mirage.errors import DataError
from mirage.evaluation.judge.base import Answered, Judge, check_scored
from mirage.evaluation.judge.keyword import Keyword
from mirage.json_file import json_lines
from mirage.prepare import harmful
from mirage.prepare.responders import BLOCK, Responder, file_hash, progress_bar, responder
from mirage.prepare.retain import mixed, retain_lines
from mirage.schema import EvalSample, short_hash

EVAL_SET = "train_unsafe"
SCHEMA_VERSION = 1


def prepare(
    data: Source,
    answers_from: list[str],
    out: Path,
    selector: str = "detail",
    judge: Judge | None = None,
    retain: list[RetainSet] | None = None,
    retain_size: int | None = None,
    limit: int | None = None,
    seed: int = 0,
    settings: dict[str, Any] | None = None,
    **asking: Any,
) -> None:
    """Makes the forget and retain sets of unlearning, as the paper did.

    Every model answers the unsafe training questions; refusals and degenerate answers are dropped; of the rest the
    most harmful one is kept. A question that nobody answers is skipped, counted and listed. Written to the folder:
    harmful_answers.jsonl (for VLGuard's or SPAVL's `harmful_answers`), candidates.jsonl (every answer, with what
    speaks against it), retain.jsonl with pictures/ (read by `Jsonl`), retain_ids.txt, and prepare.json. An interrupted
    command continues where it stopped when it is given again. Harmful text is written to these files and never shown.

    Args:
        data: The source of the unsafe questions, with samples called train_unsafe: VLGuard, SPAVL, Mini.
        answers_from: Who answers, one or more of: a Hugging Face folder (or package:...); a server and its model, as
            http://127.0.0.1:8000/v1#MODEL; a .jsonl file of answers with id and answer (and model), such as the
            candidates.jsonl of an earlier preparation.
        out: Folder to write.
        selector: Who picks the most harmful answer: 'detail' takes the most specific one (most distinct words of 4
            letters or more, and numbers, that the question does not hold; of equals the longest); or a folder or
            server, as in answers_from, that is shown picture, question and all answers in an order shuffled by seed.
            'detail' steps in where its reply cannot be read.
        judge: Who says which answers are refusals: only what it calls complied can be chosen. Keyword by default.
        retain: Further sources that fill the retain set up to retain_size, with weights.
        retain_size: Size of the retain set: the source's harmless examples first (all, or a sample), the rest from
            `retain`. By default all there is; 0 makes none.
        limit: Ask only so many questions, sampled with `seed`; the others get null.
        seed: Seed of every random choice: questions, order shown to the selector, ties, retain set.
        settings: The command's arguments, for prepare.json.
        **asking: How models are asked (see `responder`).
    """
    judge = judge or Keyword()
    # everything that can be wrong is reported before a model is loaded
    if limit is not None and limit < 1:
        raise ValueError(f"--limit is {limit}: ask at least one question, or leave it out to ask all.")
    others = retain or []
    if issues := [issue for source in (data, *(other.source for other in others)) for issue in source.validate()]:
        raise DataError.of(issues)
    responders = [responder(name, **asking) for name in answers_from]
    if not responders:
        raise ValueError("--answers_from is empty: name at least one model, server or file of answers.")
    chooser = None if selector == "detail" else responder(selector, **{**asking, "max_new_tokens": 32})
    if chooser is not None and chooser.engine is None:
        raise ValueError(f"--selector is {selector}, a file. Write detail, or a model's folder or server.")
    samples = data.eval_samples(EVAL_SET)
    questions = {sample.id: sample.question for sample in samples}
    places = sorted(random.Random(seed).sample(range(len(samples)), min(limit or len(samples), len(samples))))
    retained = mixed(data.retain() if data.offers("retain") else (), others, retain_size, seed)

    fingerprint = short_hash(
        json.dumps(settings, sort_keys=True, default=str), *questions, *questions.values(),
        *(who.fingerprint for who in (*responders, chooser) if who is not None),
    )  # fmt: skip
    if _is_complete(out, fingerprint):
        print(f"{out} is complete already, with these settings.")
        return
    out.mkdir(parents=True, exist_ok=True)
    sweep_partials(out)
    started = time.perf_counter()
    asked = Chosen(samples, places)
    prompts = {sample.id: sample.question for sample in asked}
    answers: dict[str, list[tuple[str, str]]] = {id: [] for id in prompts}  # in the order of answers_from
    answered_by = []
    for who in responders:
        began, num_asked, reused = time.perf_counter(), 0, 0
        for id in prompts.keys() & who.answers.keys():
            answers[id] += who.answers[id]
        if who.engine is not None:
            replies, reused = who.replies(asked, prompts, out / ".answers")
            num_asked = len(prompts) - reused
            for id, text in replies.items():
                answers[id].append((who.name, text))
        answered_by.append({
            "name": who.name, "kind": who.kind, "fingerprint": who.fingerprint, "asked": num_asked,
            "reused": reused, "seconds": round(time.perf_counter() - began, 1),
        })  # fmt: skip
    candidates = _screened(asked, answers, judge)
    choices = {id: harmful.by_detail(given, seed) for id, given in candidates.items()}
    if chooser is not None:
        choices |= _selected(chooser, asked, candidates, out / ".answers", seed)
    written = retain_lines(retained, out) if retained else ()
    with progress_bar() as progress:
        kept = list(progress.track(written, len(retained or ()), description="retain"))

    every = [
        {**asdict(each), "chosen": each is choices[id].candidate, "harmful": True}
        for id, given in candidates.items()
        for each in given
    ]
    texts = {
        "candidates.jsonl": json_lines(every),
        "harmful_answers.jsonl": json_lines(harmful.answer_line(id, choices.get(id)) for id in questions),
    }
    if kept:
        texts |= {"retain.jsonl": json_lines(kept), "retain_ids.txt": "".join(f"{line['id']}\n" for line in kept)}
    for name, text in texts.items():
        write_text(out / name, text)
    counts = {"questions": len(questions), **harmful.counted(choices, candidates), "retain": len(kept)}
    report = {
        "schema_version": SCHEMA_VERSION, "source": data.name, "judge": judge.name, "settings": settings,
        "fingerprint": fingerprint, "counts": counts,
        "skipped": [{"id": id, "reason": choice.reason} for id, choice in choices.items() if not choice.candidate],
        "answered_by": answered_by,
        "selected_by": {"name": chooser.name, "fingerprint": chooser.fingerprint} if chooser else {"name": "detail"},
        "files": {name: file_hash(out / name) for name in texts},
        "seconds": round(time.perf_counter() - started, 1),
        "versions": {
            "mirage": __version__, "python": platform.python_version(),
            **{package: version(package) for package in ("torch", "transformers", "Pillow")},
        },
    }  # fmt: skip
    write_text(out / "prepare.json", json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    shutil.rmtree(out / ".answers", ignore_errors=True)  # candidates.jsonl holds them now, marked
    _print(counts, out)


def _is_complete(out: Path, fingerprint: str) -> bool:
    """True if `out` holds the finished outcome of this very command.

    Raises:
        ValueError: If it holds that of another.
    """
    try:
        report = json.loads((out / "prepare.json").read_text())
    except (OSError, ValueError):
        return False
    if isinstance(report, dict) and report.get("fingerprint") == fingerprint:
        return all((out / name).is_file() for name in report.get("files", {}))
    raise ValueError(
        f"{out} holds a finished preparation with other settings or data. Choose another --out, or delete that folder; "
        f"its answers can be used again with --answers_from {out / 'candidates.jsonl'}."
    )


def _screened(
    asked: Sequence[EvalSample], answers: Mapping[str, Sequence[tuple[str, str]]], judge: Judge
) -> dict[str, list[harmful.Candidate]]:
    """Every candidate of every question that was asked."""
    given, judgements = [], []
    for start in range(0, len(asked), BLOCK):
        block = [(each, model, text) for each in asked[start : start + BLOCK] for model, text in answers[each.id]]
        judgements += judge.judge([Answered(sample, sample.question, text) for sample, _, text in block])
        given += [(sample.id, sample.question, model, text) for sample, model, text in block]
    check_scored([text for *_, text in given], judgements, judge.name)
    candidates: dict[str, list[harmful.Candidate]] = {id: [] for id in answers}
    for (id, question, model, text), judgement in zip(given, judgements, strict=True):
        candidates[id].append(harmful.screened(id, question, model, text, judgement))
    return candidates


def _selected(
    chooser: Responder, asked: Sequence[EvalSample], candidates: Mapping[str, Sequence[harmful.Candidate]],
    kept: Path, seed: int,
) -> dict[str, harmful.Choice]:  # fmt: skip
    """What a model chooses, for the questions that leave a choice."""
    places = [place for place, given in enumerate(candidates.values()) if len(harmful.usable(given)) > 1]
    offered, prompts = {}, {}
    for sample in (open_to_choice := Chosen(asked, places)):
        offered[sample.id] = harmful.shuffled(candidates[sample.id], seed)
        prompts[sample.id] = harmful.selector_question(sample.question, offered[sample.id])
    replies, _ = chooser.replies(open_to_choice, prompts, kept)
    return {
        id: harmful.by_reply(candidates[id], offered[id], reply, seed, chooser.name) for id, reply in replies.items()
    }


def _print(counts: Mapping[str, Any], out: Path) -> None:
    skipped = f"{counts['skipped']} skipped (listed in prepare.json)" if counts["skipped"] else "none skipped"
    print(f"{out}: {counts['answered']} of {counts['asked']} questions have a harmful answer, {skipped}.")
    for model, tally in counts["candidates"].items():
        print(f"  {model}: " + ", ".join(f"{count} {what}" for what, count in tally.items()))
    if counts["retain"]:
        print(f"  retain set: {counts['retain']} examples; use it with source Jsonl, root {out}")
    print(f"  use the answers with --data.source.harmful_answers {out / 'harmful_answers.jsonl'}")
