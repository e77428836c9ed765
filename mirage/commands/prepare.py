"""`mirage prepare`: harmful answers to unlearn and a retain set, from a source of unsafe questions."""

from __future__ import annotations

import json
import platform
import random
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mirage import __version__
from mirage.atomic import sweep_partials, write_text
from mirage.commands.arguments import Parser
from mirage.commands.outputs import check_folder, progress_bars
from mirage.data.base import Source
from mirage.data.mixture import RetainSet
from mirage.errors import DataError
from mirage.evaluation.judge.base import Answered, Judge, Judgement, check_scored
from mirage.evaluation.judge.keyword import Keyword
from mirage.evaluation.run.records import AnswerLog
from mirage.prepare import harmful
from mirage.prepare.harmful import Candidate, Choice
from mirage.prepare.responders import AnswerFile, AskSettings, Dtype, Responder, file_hash, responder
from mirage.prepare.retain import mixed, retain_lines
from mirage.schema import EvalSample, short_hash

if TYPE_CHECKING:
    from rich.progress import Progress

EVAL_SET = "train_unsafe"
SCHEMA_VERSION = 1
_BLOCK = 512  # questions in memory at a time, pictures included; and sorted by length before they are batched


def prepare(
    data: Source,
    answers_from: list[str],
    out: Path,
    selector: str = "detail",
    judge: Judge | None = None,
    retain: list[RetainSet] | None = None,
    retain_size: int | None = None,
    max_new_tokens: int = 128,
    dtype: Dtype = "float32",
    batch_size: int = 32,
    pad_to_square: bool = False,
    concurrency: int = 8,
    timeout_s: float = 120.0,
    api_key_env: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    settings: dict[str, Any] | None = None,
) -> None:
    """Makes the forget and retain sets of unlearning, as the paper did.

    Every model answers the unsafe training questions; refusals and degenerate answers are dropped; of the rest the
    most harmful one is kept. A question that nobody answers is skipped, counted and listed. Written to the folder:
    harmful_answers.jsonl (for VLGuard's or SPAVL's `harmful_answers`), candidates.jsonl (every answer, with what
    speaks against it), retain.jsonl with pictures/ (read by `Jsonl`), retain_ids.txt, and prepare.json. An interrupted
    command continues where it stopped when it is given again. Harmful text is written to these files and never shown.

    Args:
        data: The source of the unsafe questions, with samples called train_unsafe: VLGuard, SPAVL, Mini.
        answers_from: Who answers: names as `run` describes them.
        out: Folder to write.
        selector: Who picks the most harmful answer: 'detail' takes the most specific one (most distinct words of 4
            letters or more, and numbers, that the question does not hold; of equals the longest); or a folder or
            server, as in answers_from, that is shown picture, question and all answers in an order shuffled by seed.
            'detail' steps in where its reply cannot be read.
        judge: Who says which answers are refusals: only what it calls complied can be chosen. Keyword by default.
        retain: Further sources that fill the retain set up to retain_size, with weights.
        retain_size: Size of the retain set: the source's harmless examples first (all, or a sample), the rest from
            `retain`. By default all there is; 0 makes none.
        max_new_tokens: Longest answer, in tokens.
        dtype: Type of the weights of models asked here.
        batch_size: How many answers are generated at the same time.
        pad_to_square: Pad pictures to a square first, as LLaVA-1.5 was trained.
        concurrency: How many requests to a server are under way at the same time.
        timeout_s: Seconds that one request to a server may take.
        api_key_env: Name of the environment variable that holds a server's key.
        limit: Ask only so many questions, sampled with `seed`; the others get null.
        seed: Seed of every random choice: questions, order shown to the selector, ties, retain set.
        settings: The command's arguments, for prepare.json.
    """
    asking = AskSettings(
        max_new_tokens=max_new_tokens, dtype=dtype, batch_size=batch_size, pad_to_square=pad_to_square,
        concurrency=concurrency, timeout_s=timeout_s, api_key_env=api_key_env,
    )  # fmt: skip
    judge = judge or Keyword()
    # everything that can be wrong is reported before a model is loaded
    if limit is not None and limit < 1:
        raise ValueError(f"--limit is {limit}: ask at least one question, or leave it out to ask all.")
    check_folder(out)
    responders = [responder(name, asking) for name in answers_from]
    chooser = None if selector == "detail" else responder(selector, replace(asking, max_new_tokens=32))
    if isinstance(chooser, AnswerFile):
        raise ValueError(f"--selector is {selector}, a file. Write detail, or a model's folder or server.")
    if not responders:
        raise ValueError("--answers_from is empty: name at least one model, server or file of answers.")
    everyone = [*responders, *([chooser] if chooser else [])]
    for who in everyone:
        who.check()
    others = retain or []
    if issues := [issue for source in (data, *(other.source for other in others)) for issue in source.validate()]:
        raise DataError.of(issues)
    samples = data.eval_samples(EVAL_SET)
    questions = {sample.id: sample.question for sample in samples}
    places = sorted(random.Random(seed).sample(range(len(samples)), min(limit or len(samples), len(samples))))
    retained = mixed(data.retain() if data.offers("retain") else (), others, retain_size, seed)

    fingerprint = short_hash(
        json.dumps(settings, sort_keys=True, default=str), *questions, *questions.values(),
        *(who.fingerprint() for who in everyone),
    )  # fmt: skip
    if _is_complete(out, fingerprint):
        print(f"{out} is complete already, with these settings.")
        return
    out.mkdir(parents=True, exist_ok=True)
    sweep_partials(out)
    started = time.perf_counter()
    prompts = {samples[place].id: samples[place].question for place in places}
    answers: dict[str, list[tuple[str, str]]] = {id: [] for id in prompts}  # in the order of answers_from
    answered_by = []
    with progress_bars() as progress:
        for who in responders:
            began, asked, reused = time.perf_counter(), 0, 0
            if isinstance(who, AnswerFile):
                for id, pairs in who.answers().items():
                    answers.get(id, []).extend(pairs)
            else:
                replies, reused = _replies(who, samples, places, prompts, out, progress)
                asked = len(prompts) - reused
                for id, text in replies.items():
                    answers[id].append((who.name, text))
            answered_by.append({
                "name": who.name, "kind": type(who).__name__, "fingerprint": who.fingerprint(), "asked": asked,
                "reused": reused, "seconds": round(time.perf_counter() - began, 1),
            })  # fmt: skip
        candidates = _screen(samples, places, answers, judge)
        choices = {id: harmful.by_detail(given, seed) for id, given in candidates.items()}
        if chooser is not None:
            choices |= _select(chooser, samples, places, candidates, out, seed, progress)
        written = retain_lines(retained, out) if retained else ()
        kept = list(progress.track(written, len(retained or ()), description="retain"))

    every = [(each, id) for id, given in candidates.items() for each in given]
    texts = {
        "candidates.jsonl": _as_lines([harmful.candidate_line(each, questions[id], choices[id]) for each, id in every]),
        "harmful_answers.jsonl": _as_lines([harmful.answer_line(id, choices.get(id)) for id in questions]),
    }
    if kept:
        texts |= {"retain.jsonl": _as_lines(kept), "retain_ids.txt": "".join(f"{line['id']}\n" for line in kept)}
    for name, text in texts.items():
        write_text(out / name, text)
    counts = {"questions": len(questions), **harmful.counted(choices, candidates), "retain": len(kept)}
    report = {
        "schema_version": SCHEMA_VERSION, "source": data.name, "judge": judge.name, "settings": settings,
        "fingerprint": fingerprint, "counts": counts,
        "skipped": [{"id": id, "reason": choice.reason} for id, choice in choices.items() if not choice.candidate],
        "answered_by": answered_by,
        "selected_by": {"name": chooser.name, "fingerprint": chooser.fingerprint()} if chooser else {"name": "detail"},
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


def _blocks(samples: Sequence[EvalSample], places: Sequence[int]) -> Iterator[list[EvalSample]]:
    """The samples at these places, a block at a time, without rewrites: pictures that lie in memory stay few."""
    for start in range(0, len(places), _BLOCK):
        yield [replace(samples[place], rewrites=()) for place in places[start : start + _BLOCK]]


def _replies(
    who: Responder, samples: Sequence[EvalSample], places: Sequence[int], prompts: Mapping[str, str], out: Path,
    progress: Progress,
) -> tuple[dict[str, str], int]:  # fmt: skip
    """What `who` replies to the prompt of each sample, by id, and how many replies an interrupted attempt had kept.

    Each reply is kept as soon as it is there.

    Raises:
        ValueError: If a server gives none; what came before is kept.
    """
    from mirage.evaluation.generate.openai import ServerError

    fingerprint = short_hash(who.fingerprint(), *(text for pair in prompts.items() for text in pair))
    log = AnswerLog(out / ".answers" / f"{fingerprint}.jsonl", fingerprint)
    reused = len(log.known)
    task = progress.add_task(who.name, total=len(places), completed=reused)

    def keep(id: str, shot: int, text: str) -> None:
        log.add(id, shot, text)
        progress.advance(task)

    engine = None
    try:
        for block in _blocks(samples, places):
            todo = [replace(each, question=prompts[each.id]) for each in block if (each.id, 0) not in log.known]
            if todo:
                engine = engine or who.engine()  # type: ignore[union-attr]  # a file is read, not asked
                engine.answers(todo, keep)
    except ServerError as error:
        raise ValueError(
            f"{error} {len(log.known)} answers are kept: the same command continues from there."
        ) from error
    finally:
        log.close()
    return {id: log.known[id, 0] for id in prompts}, reused


def _screen(
    samples: Sequence[EvalSample], places: Sequence[int], answers: Mapping[str, Sequence[tuple[str, str]]], judge: Judge
) -> dict[str, list[Candidate]]:
    """Every candidate of every question that was asked."""
    candidates: dict[str, list[Candidate]] = {id: [] for id in answers}
    judged: list[tuple[Answered, Judgement]] = []
    for block in _blocks(samples, places):
        given = [(sample, model, text) for sample in block for model, text in answers[sample.id]]
        answered = [Answered(sample, sample.question, text) for sample, _, text in given]
        judgements = judge.judge(answered)
        judged += zip(answered, judgements, strict=True)
        for (sample, model, text), judgement in zip(given, judgements, strict=True):
            candidates[sample.id].append(harmful.screened(sample.id, sample.question, model, text, judgement))
    check_scored([one.answer for one, _ in judged], [judgement for _, judgement in judged], judge.name)
    return candidates


def _select(
    who: Responder, samples: Sequence[EvalSample], places: Sequence[int], candidates: Mapping[str, Sequence[Candidate]],
    out: Path, seed: int, progress: Progress,
) -> dict[str, Choice]:  # fmt: skip
    """What a model chooses, for the questions that leave a choice."""
    chosen_from = [place for place in places if len(harmful.usable(candidates[samples[place].id])) > 1]
    offered = {samples[place].id: harmful.shuffled(candidates[samples[place].id], seed) for place in chosen_from}
    prompts = {
        samples[p].id: harmful.selector_question(samples[p].question, offered[samples[p].id]) for p in chosen_from
    }
    replies, _ = _replies(who, samples, chosen_from, prompts, out, progress)
    return {id: harmful.by_reply(candidates[id], offered[id], reply, seed, who.name) for id, reply in replies.items()}


def _as_lines(objects: Sequence[dict[str, Any]]) -> str:
    return "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in objects)


def _print(counts: Mapping[str, Any], out: Path) -> None:
    skipped = f"{counts['skipped']} skipped (listed in prepare.json)" if counts["skipped"] else "none skipped"
    print(f"{out}: {counts['answered']} of {counts['asked']} questions have a harmful answer, {skipped}.")
    for model, tally in counts["candidates"].items():
        print(f"  {model}: " + ", ".join(f"{count} {what}" for what, count in tally.items()))
    if counts["retain"]:
        print(f"  retain set: {counts['retain']} examples; use it with source Jsonl, root {out}")
    print(f"  use the answers with --data.source.harmful_answers {out / 'harmful_answers.jsonl'}")


def run(arguments: Sequence[str]) -> None:
    """Parses the arguments and prepares."""
    parser = Parser(prog="mirage prepare", description=(prepare.__doc__ or "").split("\n\n    Args:")[0])
    parser.add_argument("--config", action="config", help="A YAML file with these options.")
    parser.add_argument(
        "--answers_from", nargs="+", required=True, metavar="WHO",
        help="Who answers, one or more of: a Hugging Face folder (or package:...); a server and its model, as "
        "http://127.0.0.1:8000/v1#MODEL; a .jsonl file of answers with id and answer (and model), such as the "
        "candidates.jsonl of an earlier preparation.",
    )  # fmt: skip
    parser.add_function_arguments(prepare, skip={"settings", "answers_from"}, as_group=False)
    given = parser.parse_args(list(arguments))
    settings = json.loads(parser.dump(given, format="json", skip_none=False))
    settings.pop("out", None)
    built = parser.instantiate_classes(given).as_dict()
    built.pop("config", None)
    prepare(**built, settings=settings)
