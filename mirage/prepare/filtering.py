"""What a judge calls harmful in instruction data, listed with reasons, for the `Filtered` source."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from mirage.atomic import sweep_partials, write_text
from mirage.data.base import Source
from mirage.errors import DataError
from mirage.evaluation.judge.base import Answered, Judge, Judgement, check_any_scored, warn_many_unscored
from mirage.evaluation.judge.exact import Exact
from mirage.evaluation.judge.fluency import Fluency
from mirage.evaluation.judge.kept import from_log, judged_now
from mirage.evaluation.judge.keyword import Keyword
from mirage.evaluation.judge.model import ModelJudge
from mirage.evaluation.judge.topic import TopicFilter
from mirage.evaluation.run.counting import WORST_FIRST
from mirage.evaluation.run.records import AnswerLog
from mirage.json_file import json_lines
from mirage.prepare.responders import progress_bar
from mirage.schema import EvalSample, Example, Verdict

DROPPED = (Verdict.COMPLIED, Verdict.UNSCORED)  # an answer that the judge cannot read is never taken for safe
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
    with closing(log), progress_bar() as progress:
        for start in progress.track(range(0, len(examples), block_size), description="judging"):
            block = examples[start : start + block_size]
            for place, (example, judgement) in enumerate(zip(block, _worst(block, judge, log), strict=True), start):
                verdicts[judgement.verdict] += 1
                line = {"id": example.id, "place": place}
                if judgement.verdict not in DROPPED:
                    kept.append(line)
                    continue
                dropped.append({
                    **line, "where": example.where, "prompt": example.prompt, "verdict": judgement.verdict,
                    "reason": judgement.reason, "harmful": True,
                })  # fmt: skip
                unscored += [judgement] if judgement.verdict is Verdict.UNSCORED else []
    warn_many_unscored(unscored, len(examples), judge.name)
    for name, listed in (("kept_ids", kept), ("dropped", dropped)):
        write_text(out / f"{name}.jsonl", json_lines(listed))
    report = {
        "source": data.name, "judge": judge.name, "examples": len(examples), "kept": len(kept), "dropped": len(dropped),
        "verdicts": dict(verdicts), "seconds": round(time.perf_counter() - started, 1),
    }  # fmt: skip
    write_text(out / "filter.json", json.dumps(report, indent=1) + "\n")
    log.path.unlink(missing_ok=True)
    print(f"{out}: {len(dropped)} of {len(examples)} examples are dropped by {judge.name}; dropped.jsonl lists them.")
    print(f"  use it with source Filtered, dropped {out / 'dropped.jsonl'}")


def _worst(examples: Sequence[Example], judge: Judge, log: AnswerLog) -> list[Judgement]:
    """The worst that the judge says of any answer of each example; what it can score is kept in the log."""
    answered = {}
    for example in examples:
        for turn, (question, answer) in enumerate(((example.prompt, example.answer), *example.later_turns)):
            # asked as if it were unsafe: whether the answer does harm is the question here
            sample = EvalSample(
                id=f"{example.id}/{turn}", source=example.source, image=example.image, question=question, unsafe=True
            )
            answered[example.id, turn] = Answered(sample, question, answer)
    judgements = {key: from_log(log.known[key]) for key in answered if key in log.known}
    todo = {key: one for key, one in answered.items() if key not in judgements}
    first = not log.known
    new = judged_now(todo, judge, log) if todo else {}
    if len(todo) > _FEW or first:  # a judge that is down must not drop what is left
        check_any_scored([one.answer for one in todo.values()], [*new.values()], judge.name)
    judgements |= new
    worst: dict[str, Judgement] = {}
    for (id, _), judgement in judgements.items():
        worst[id] = min(worst.get(id, judgement), judgement, key=lambda each: WORST_FIRST[True].index(each.verdict))
    return [worst[example.id] for example in examples]
