"""`mirage filter`: what a judge calls harmful in instruction data, listed with reasons, for the `Filtered` source."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from mirage.atomic import sweep_partials, write_text
from mirage.commands.arguments import Parser, instantiated
from mirage.commands.outputs import check_folder
from mirage.data.base import Source
from mirage.errors import DataError
from mirage.evaluation.judge.base import Answered, Judge, Judgement, check_any_scored, warn_many_unscored
from mirage.evaluation.judge.exact import Exact
from mirage.evaluation.judge.fluency import Fluency
from mirage.evaluation.judge.kept import from_log, to_log
from mirage.evaluation.judge.keyword import Keyword
from mirage.evaluation.judge.model import ModelJudge
from mirage.evaluation.judge.topic import TopicFilter
from mirage.evaluation.run.records import AnswerLog
from mirage.schema import EvalSample, Example, Verdict

DROPPED = (Verdict.COMPLIED, Verdict.UNSCORED)  # an answer that the judge cannot read is never taken for safe
_WORST_FIRST = (*DROPPED, Verdict.REFUSED, Verdict.IRRELEVANT)
_FEW = 2  # answers; a block's last ones may be beyond any judge


def filter_data(data: Source, out: Path, judge: Judge | None = None, block_size: int = 256) -> None:
    """Lists the retain examples that give harmful answers.

    A judge reads every question with its answer. A conversation is dropped if the judge calls any of its answers
    complied (with something harmful) or cannot score one. Written to the folder: dropped.jsonl, which the source
    `Filtered` reads (id, place, file and record, question, verdict, reason), kept_ids.jsonl, and filter.json with the
    counts. An interrupted command goes on where it stopped when it is given again.

    Args:
        data: The source whose retain set is read, such as LlavaInstruct.
        out: Folder to write.
        judge: Who reads, TopicFilter by default: a word list, quick and crude. ModelJudge reads, by its rubric for
            instruction data unless it is given another; a harm classifier is given as Classifier. Those that cannot
            recognise harm (Keyword, Exact, Fluency) are refused.
        block_size: How many conversations are judged, and their verdicts kept on the disk, at a time.
    """
    judge = judge or TopicFilter()
    if isinstance(judge, Keyword | Exact | Fluency):
        raise ValueError(
            f"--judge {type(judge).__name__} tells refusals from answers, not harmful answers from good ones: it would "
            "drop nearly everything. Choose TopicFilter, or a judge that reads question and answer."
        )
    if block_size < 1:
        raise ValueError(f"--block_size is {block_size}: it must be at least 1.")
    if isinstance(judge, ModelJudge):
        judge = judge.for_instruction_data()
    check_folder(out)
    if issues := data.validate():
        raise DataError.of(issues)
    examples = data.retain()
    out.mkdir(parents=True, exist_ok=True)
    sweep_partials(out)
    started = time.perf_counter()
    # ids hash the content: a verdict fits wherever the example stands
    log = AnswerLog(out / ".judged.jsonl", f"filter/{judge.name}")
    dropped, kept, verdicts = [], [], Counter[str]()
    unscored: list[Judgement] = []
    try:
        for place, example, judgement in _judged(examples, judge, log, block_size):
            verdicts[judgement.verdict] += 1
            if judgement.verdict is Verdict.UNSCORED:
                unscored.append(judgement)
            if judgement.verdict in DROPPED:
                dropped.append({
                    "id": example.id, "place": place, "where": example.where, "prompt": example.prompt,
                    "verdict": judgement.verdict, "reason": judgement.reason, "harmful": True,
                })  # fmt: skip
            else:
                kept.append({"id": example.id, "place": place})
    finally:
        log.close()
    warn_many_unscored(unscored, len(examples), judge.name)
    for name, listed in (("kept_ids", kept), ("dropped", dropped)):
        write_text(out / f"{name}.jsonl", "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in listed))
    report = {
        "source": data.name, "judge": judge.name, "examples": len(examples), "kept": len(kept), "dropped": len(dropped),
        "verdicts": dict(verdicts), "seconds": round(time.perf_counter() - started, 1),
    }  # fmt: skip
    write_text(out / "filter.json", json.dumps(report, indent=1) + "\n")
    log.path.unlink(missing_ok=True)
    print(f"{out}: {len(dropped)} of {len(examples)} examples are dropped by {judge.name}; dropped.jsonl lists them.")
    print(f"  use it with source Filtered, dropped {out / 'dropped.jsonl'}")


def _judged(
    examples: Sequence[Example], judge: Judge, log: AnswerLog, block_size: int
) -> Iterator[tuple[int, Example, Judgement]]:
    """Every example with the worst that the judge says of its answers."""
    from rich.console import Console
    from rich.progress import track

    unscored: dict[tuple[str, int], Judgement] = {}
    for start in track(range(0, len(examples), block_size), "judging", console=Console(stderr=True)):
        block = examples[start : start + block_size]
        keys = {example.id: [(example.id, turn) for turn in range(1 + len(example.later_turns))] for example in block}
        todo = [_answered(example, key) for example in block for key in keys[example.id] if key not in log.known]
        if todo:
            judgements = judge.judge([one for _, one in todo])
            if len(todo) > _FEW or not log.known:  # a judge that is down must not drop what is left
                check_any_scored([one.answer for _, one in todo], judgements, judge.name)
            for (key, _), judgement in zip(todo, judgements, strict=True):
                if judgement.verdict is Verdict.UNSCORED:
                    unscored[key] = judgement  # not kept: asked again if the command is given again
                else:
                    log.add(*key, to_log(judgement))
        for place, example in enumerate(block, start):
            said = [unscored[key] if key in unscored else from_log(log.known[key]) for key in keys[example.id]]
            yield place, example, min(said, key=lambda each: _WORST_FIRST.index(each.verdict))


def _answered(example: Example, key: tuple[str, int]) -> tuple[tuple[str, int], Answered]:
    question, answer = ((example.prompt, example.answer), *example.later_turns)[key[1]]
    # asked as if it were unsafe: whether the answer does harm is the question here
    sample = EvalSample(
        id=f"{key[0]}/{key[1]}", source=example.source, image=example.image, question=question, unsafe=True,
    )  # fmt: skip
    return key, Answered(sample, question, answer)


def run(arguments: Sequence[str]) -> None:
    """Parses the arguments and filters."""
    about = (filter_data.__doc__ or "").split("\n\n    Args:")[0]
    parser = Parser(prog="mirage filter", description=about)
    parser.add_argument("--config", action="config", help="A YAML file with these options.")
    parser.add_function_arguments(filter_data, as_group=False)
    built = instantiated(parser, arguments).as_dict()
    built.pop("config", None)
    filter_data(**built)
