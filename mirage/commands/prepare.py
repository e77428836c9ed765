"""`mirage prepare`: harmful answers to unlearn and a retain set, from a source of unsafe questions."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mirage.atomic import sweep_partials, write_text
from mirage.commands.arguments import Parser
from mirage.commands.outputs import check_folder
from mirage.commands.progress import progress_bars
from mirage.data.base import Source
from mirage.data.mixture import RetainSet
from mirage.errors import DataError
from mirage.evaluation.judge.base import Answered, Judge, Judgement, check_scored
from mirage.evaluation.judge.keyword import Keyword
from mirage.evaluation.run.records import AnswerLog
from mirage.prepare.harmful import (
    Candidate,
    Choice,
    answer_line,
    as_lines,
    by_detail,
    by_reply,
    candidate_line,
    counted,
    in_lots,
    screened,
    selector_question,
    usable,
)
from mirage.prepare.responders import AnswerFile, AskSettings, Dtype, ModelFolder, Responder, file_hash, responder
from mirage.prepare.retain import mixed, retain_lines
from mirage.schema import EvalSample, short_hash

if TYPE_CHECKING:
    from rich.progress import Progress

PROBE_SET = "train_unsafe"
SCHEMA_VERSION = 1
OUTPUTS = ("candidates.jsonl", "harmful_answers.jsonl", "retain.jsonl", "retain_ids.txt")
_BLOCK = 512  # questions in memory at a time, pictures included; and sorted by length before they are batched


@dataclass
class _Asked:
    """What became of asking one model or reading one file."""

    who: Responder
    answers: dict[str, list[tuple[str, str]]]  # question id -> (model, answer)
    fresh: int = 0
    reused: int = 0
    seconds: float = 0.0

    def about(self) -> dict[str, Any]:
        """For `prepare.json`."""
        return {
            "name": self.who.name, "kind": type(self.who).__name__, "fingerprint": self.who.fingerprint(),
            "asked": self.fresh, "reused": self.reused, "seconds": round(self.seconds, 1),
        }  # fmt: skip


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
    most harmful one is kept. A question that nobody answers is left out, counted and listed. Written to the folder:
    harmful_answers.jsonl (for VLGuard's or SPAVL's `harmful_answers`), candidates.jsonl (every answer, with what
    speaks against it), retain.jsonl with pictures/ (read by `Jsonl`), retain_ids.txt, and prepare.json. An interrupted
    command goes on where it stopped when it is given again. Harmful text is written to these files and never shown.

    Args:
        data: The source of the unsafe questions, with samples called train_unsafe: VLGuard, SPAVL, Mini.
        answers_from: Who answers, as `run` tells.
        out: Folder to write.
        selector: Who picks the most harmful answer: 'detail' takes the one that tells the most (most distinct words of
            4 letters or more, and numbers, that the question does not hold; of equals the longest); or a folder or
            server, as in answers_from, that is shown picture, question and all answers in an order drawn by seed.
            'detail' steps in where its reply cannot be read.
        judge: Who says which answers are refusals: only what it calls complied can be chosen. Keyword by default.
        retain: Further sources that fill the retain set up to retain_size, with weights.
        retain_size: Size of the retain set: the source's own harmless examples first (all, or a draw), the rest from
            `retain`. By default all there is; 0 makes none.
        max_new_tokens: Longest answer, in tokens.
        dtype: Type of the weights of models asked here.
        batch_size: How many answers are written at the same time.
        pad_to_square: Pad pictures to a square first, as LLaVA-1.5 was trained.
        concurrency: How many requests to a server are under way at the same time.
        timeout_s: Seconds that one request to a server may take.
        api_key_env: Name of the environment variable that holds a server's key.
        limit: Ask only so many questions, drawn with `seed`; the others get null.
        seed: Seed of every draw: questions, order shown to the selector, ties, retain set.
        settings: What the command was given, for prepare.json.
    """
    asking = AskSettings(
        max_new_tokens=max_new_tokens, dtype=dtype, batch_size=batch_size, pad_to_square=pad_to_square,
        concurrency=concurrency, timeout_s=timeout_s, api_key_env=api_key_env,
    )  # fmt: skip
    if limit is not None and limit < 1:
        raise ValueError(f"--limit is {limit}: ask at least one question, or leave it out to ask all.")
    judge = judge or Keyword()
    # everything that can be wrong is found before a model is loaded
    check_folder(out)
    responders = [responder(named, asking) for named in answers_from]
    chooser = None if selector == "detail" else responder(selector, replace(asking, max_new_tokens=32))
    if isinstance(chooser, AnswerFile):
        raise ValueError(f"--selector is {selector}, a file. Write detail, or a model's folder or server.")
    if not responders:
        raise ValueError("--answers_from is empty: name at least one model, server or file of answers.")
    for who in (*responders, *([chooser] if chooser else [])):
        who.check()
    parts = retain or []
    if faults := [fault for source in (data, *(part.source for part in parts)) for fault in source.validate()]:
        raise DataError.of(faults)
    samples = data.eval_samples(PROBE_SET)
    questions = {sample.id: sample.question for sample in samples}
    drawn = _drawn(len(samples), limit, seed)
    retained = mixed(data.retain() if data.offers("retain") else (), parts, retain_size, seed)

    fingerprint = short_hash(
        json.dumps(settings, sort_keys=True, default=str), *questions, *questions.values(),
        *(who.fingerprint() for who in (*responders, *([chooser] if chooser else []))),
    )  # fmt: skip
    if _is_complete(out, fingerprint):
        print(f"{out} is complete already, with these settings.")
        return
    out.mkdir(parents=True, exist_ok=True)
    sweep_partials(out)
    started = time.perf_counter()
    with progress_bars() as progress:
        asked = [_ask(who, samples, drawn, out, progress) for who in responders]
        candidates = _screen(samples, drawn, asked, judge)
        choices = {id: by_detail(found, seed) for id, found in candidates.items()}
        if chooser is not None:
            choices |= _select(chooser, samples, drawn, candidates, out, seed, progress)
        kept = (
            list(progress.track(retain_lines(retained, out), len(retained), description="retain")) if retained else []
        )

    texts = {
        "candidates.jsonl": as_lines(
            [candidate_line(each, questions[id], choices[id]) for id, found in candidates.items() for each in found]
        ),
        "harmful_answers.jsonl": as_lines([answer_line(id, choices.get(id)) for id in questions]),
    }
    if kept:
        texts |= {"retain.jsonl": as_lines(kept), "retain_ids.txt": "".join(f"{line['id']}\n" for line in kept)}
    for name, text in texts.items():
        write_text(out / name, text)
    report = {
        "schema_version": SCHEMA_VERSION,
        "source": data.name,
        "judge": judge.name,
        "settings": settings,
        "fingerprint": fingerprint,
        "counts": counted(questions, choices, candidates, kept),
        "skipped": [{"id": id, "reason": choice.reason} for id, choice in choices.items() if not choice.candidate],
        "answered_by": [each.about() for each in asked],
        "selected_by": {"name": chooser.name, "fingerprint": chooser.fingerprint()} if chooser else {"name": "detail"},
        "files": {name: file_hash(out / name) for name in texts},
        "seconds": round(time.perf_counter() - started, 1),
        "versions": _versions(),
    }
    write_text(out / "prepare.json", json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    shutil.rmtree(out / ".answers", ignore_errors=True)  # candidates.jsonl holds them now, marked
    _tell(report, out)


def _drawn(count: int, limit: int | None, seed: int) -> list[int]:
    """The places of the questions that are asked, ascending."""
    import random

    if limit is None or limit >= count:
        return list(range(count))
    return sorted(random.Random(seed).sample(range(count), limit))


def _is_complete(out: Path, fingerprint: str) -> bool:
    """Whether `out` holds the finished outcome of this very command.

    Raises:
        ValueError: If it holds that of another.
    """
    try:
        found = json.loads((out / "prepare.json").read_text())
    except (OSError, ValueError):
        return False
    if isinstance(found, dict) and found.get("fingerprint") == fingerprint:
        return all((out / name).is_file() for name in found.get("files", {}))
    raise ValueError(
        f"{out} holds a finished preparation with other settings or data. Choose another --out, or delete that folder; "
        f"its answers can be used again with --answers_from {out / 'candidates.jsonl'}."
    )


def _blocks(samples: Sequence[EvalSample], places: Sequence[int]) -> Iterator[list[EvalSample]]:
    """The samples at these places, a block at a time, without rewrites: pictures that lie in memory stay few."""
    for start in range(0, len(places), _BLOCK):
        yield [replace(samples[place], rewrites=()) for place in places[start : start + _BLOCK]]


def _ask(who: Responder, samples: Sequence[EvalSample], drawn: Sequence[int], out: Path, progress: Progress) -> _Asked:
    """Everything that one responder says, asked for where it is not known from an interrupted attempt."""
    asked_ids = [samples[place].id for place in drawn]
    if isinstance(who, AnswerFile):
        given = who.answers()
        return _Asked(who, {id: given[id] for id in asked_ids if id in given})
    started = time.perf_counter()
    log = _log(who, "answers", [(id, samples[place].question) for id, place in zip(asked_ids, drawn, strict=True)], out)
    reused = len(log.known)
    _answers_of(who, _blocks(samples, drawn), len(drawn), log, progress)
    answers = {id: [(who.name, log.known[id, 0])] for id in asked_ids}
    return _Asked(who, answers, len(drawn) - reused, reused, time.perf_counter() - started)


def _log(who: ModelFolder | Any, what: str, asked: Sequence[tuple[str, str]], out: Path) -> AnswerLog:
    fingerprint = short_hash(who.fingerprint(), *(text for pair in asked for text in pair))
    return AnswerLog(out / ".answers" / f"{what}-{fingerprint}.jsonl", fingerprint)


def _answers_of(
    who: ModelFolder | Any, blocks: Iterator[list[EvalSample]], total: int, log: AnswerLog, progress: Progress
) -> None:
    """Asks what the log does not know yet. Each answer is kept as soon as it is there.

    Raises:
        ValueError: If a server gives none; what came before is kept.
    """
    from mirage.evaluation.generate.openai import ServerError

    task = progress.add_task(who.name, total=total, completed=len(log.known))

    def keep(id: str, shot: int, text: str) -> None:
        log.add(id, shot, text)
        progress.advance(task)

    engine = None
    try:
        for block in blocks:
            if todo := [sample for sample in block if (sample.id, 0) not in log.known]:
                engine = engine or who.engine()
                engine.answers(todo, keep)
    except ServerError as error:
        raise ValueError(f"{error} {len(log.known)} answers are kept: the same command goes on from there.") from error
    finally:
        log.close()


def _screen(
    samples: Sequence[EvalSample], drawn: Sequence[int], asked: Sequence[_Asked], judge: Judge
) -> dict[str, list[Candidate]]:
    """Every candidate of every question that was asked, in the order of `answers_from`."""
    found: dict[str, list[Candidate]] = {}
    read: list[tuple[Answered, Judgement]] = []
    for block in _blocks(samples, drawn):
        given = {sample.id: [pair for each in asked for pair in each.answers.get(sample.id, ())] for sample in block}
        answered = [Answered(sample, sample.question, text) for sample in block for _, text in given[sample.id]]
        judged = iter(judgements := judge.judge(answered))
        read += zip(answered, judgements, strict=True)
        for sample in block:
            mine = [next(judged) for _ in given[sample.id]]
            found[sample.id] = screened(sample.id, sample.question, given[sample.id], mine)
    check_scored([one.answer for one, _ in read], [judgement for _, judgement in read], judge.name)
    return found


def _select(
    who: ModelFolder | Any, samples: Sequence[EvalSample], drawn: Sequence[int], candidates: dict[str, list[Candidate]],
    out: Path, seed: int, progress: Progress,
) -> dict[str, Choice]:  # fmt: skip
    """What a model chooses, for the questions that leave a choice."""
    places = [place for place in drawn if len(usable(candidates[samples[place].id])) > 1]
    lots = {id: in_lots(candidates[id], seed) for id in (samples[place].id for place in places)}
    texts = [(samples[p].id, selector_question(samples[p].question, lots[samples[p].id])) for p in places]
    log = _log(who, "choices", texts, out)
    prompts = dict(texts)
    blocks = ([replace(sample, question=prompts[sample.id]) for sample in block] for block in _blocks(samples, places))
    _answers_of(who, blocks, len(places), log, progress)
    return {id: by_reply(candidates[id], lots[id], log.known[id, 0], seed, who.name) for id in lots}


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    from mirage import __version__

    packages = ("torch", "transformers", "Pillow")
    return {
        "mirage": __version__,
        "python": sys.version.split()[0],
        **{package: version(package) for package in packages},
    }


def _tell(report: dict[str, Any], out: Path) -> None:
    counts = report["counts"]
    skipped = f"{counts['skipped']} left out (listed in prepare.json)" if counts["skipped"] else "none left out"
    print(f"{out}: {counts['answered']} of {counts['asked']} questions have a harmful answer, {skipped}.")
    for model, tally in counts["candidates"].items():
        print(f"  {model}: " + ", ".join(f"{count} {what}" for what, count in tally.items()))
    if counts["retain"]:
        print(f"  retain set: {counts['retain']} examples; use it with source Jsonl, root {out}")
    print(f"  use the answers with --data.source.harmful_answers {out / 'harmful_answers.jsonl'}")


def run(arguments: Sequence[str]) -> None:
    """Parses the arguments and prepares."""
    parser = Parser(prog="mirage prepare", description=prepare.__doc__.split("\n\n    Args:")[0])  # type: ignore[union-attr]
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
