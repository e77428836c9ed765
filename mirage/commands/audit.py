"""`mirage audit`: how far the words and the form of a training set's questions give its labels away."""

from __future__ import annotations

import gc
import posixpath
from argparse import RawDescriptionHelpFormatter
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import Literal

from jsonargparse import DefaultHelpFormatter
from pydantic import Field, model_validator

from mirage.atomic import free_name, write_text
from mirage.audit.counts import BY_ANSWERS, BY_MEMBERSHIP, audit_pairs
from mirage.audit.forms import Asked, Sample, audit_forms
from mirage.commands.arguments import Parser, instantiated
from mirage.commands.outputs import check_folder
from mirage.data.base import Source
from mirage.errors import DataError
from mirage.evaluation.judge.keyword import Preset, are_refusals
from mirage.json_file import records
from mirage.shapes import AnyText, Shape, checked

_SHAPE = (
    'VLGuard\'s format: a list of records like {"id": "...", "instr-resp": [{"instruction": "...", "response": "..."}]}'
)
_NEITHER = "unsafe_instruction"  # about safe pictures: in neither of the paper's two sets

_DESCRIPTION = """For every opening word of a training set: how often it occurs, how often its
questions are refused, and the words that would make the best attack and the best
trigger of refusals. For every cue of form (opening and second word, final mark, clause
type, length, image folder) and all together: how well it alone tells the labels apart.
Prints tables and writes audit.json, audit.html, audit.png and audit.svg. A folder that
holds an earlier audit is set aside first: runs/audit becomes runs/audit.1.

The paper's Figure 1: all 2,977 questions of VLGuard's train.json, refused or not by
the phrases of the paper's code:
  mirage audit --file VLGUARD/train.json --labels answers --preset published

How well the opening word alone separates the paper's forget set from its retain set
(1,023 and 977 questions: 97.65 %):
  mirage audit --file VLGUARD/train.json
With the 977 unsafe questions about safe pictures among the unsafe ones:
  mirage audit --file VLGUARD/train.json --unsafe_set all

What mirage trains on, without the questions that it skips (it says which):
  mirage audit --data VLGuard --data.root VLGUARD

An instruction mix in LLaVA's format, by its answers:
  mirage audit --data LlavaInstruct --data.file mix.json --data.images IMAGES
    --labels answers"""


class _Formatter(RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Keeps the lines of the description."""


class _Pair(Shape):
    instruction: AnyText | None = None
    unsafe_instruction: AnyText | None = None
    safe_instruction: AnyText | None = None
    response: AnyText

    def questions(self) -> dict[str, str]:
        """The question by the name of its field; a pair has one."""
        return {name: text for name, text in self if name != "response" and text is not None}

    @model_validator(mode="after")
    def _one_question(self) -> _Pair:
        if len(self.questions()) != 1:
            raise ValueError("holds more or less than one question: write one of the three instructions.")
        return self


class _Record(Shape):
    image: AnyText | None = None
    pairs: list[_Pair] = Field(alias="instr-resp", min_length=1)


def run(arguments: Sequence[str]) -> None:
    """Parses the arguments, counts, prints and writes."""
    parser = Parser(prog="mirage audit", description=_DESCRIPTION, formatter_class=_Formatter)
    parser.add_argument("--data", type=Source | None, default=None, help="The training set, such as VLGuard.")
    parser.add_argument("--retain", type=Source | None, default=None, help="Take the retain set from this source.")
    parser.add_argument(
        "--file", type=Path | None, default=None,
        help="A file in VLGuard's format instead of --data: all its questions, also those that training skips.",
    )  # fmt: skip
    parser.add_argument(
        "--unsafe_set", type=Literal["instruction", "all"], default="instruction",
        help="With --file: all adds the unsafe questions about safe pictures to the unsafe set.",
    )  # fmt: skip
    parser.add_argument(
        "--labels", type=Literal["membership", "answers"], default="membership",
        help="membership: the unsafe set counts as refused, the retain set as answered (with --file: instruction against "
        "safe_instruction). answers: a question counts as refused if its answer in the data refuses.",
    )  # fmt: skip
    parser.add_argument(
        "--preset", type=Preset, default="default",
        help="With --labels answers, the keyword judge's preset; published for the paper's figures.",
    )  # fmt: skip
    parser.add_argument(
        "--answers", type=Literal["refusal", "harmful"], default="refusal",
        help="Which answers the unsafe set is asked for: some sources have harmful ones only.",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("runs/audit"), help="Folder that the files are written to.")
    parser.add_argument("--every_word", action="store_true", help="Count every word of a question, not only its first.")
    parser.add_argument("--min_count", type=int, default=5, help="List words that occur in at least so many questions.")
    parser.add_argument("--rows", type=int, default=25, help="Rows of the printed table.")
    given = instantiated(parser, arguments)
    if (given.data is None) == (given.file is None):
        raise ValueError("Give --data (a source, such as VLGuard) or --file (a file in VLGuard's format): one of them.")
    if given.file is not None and given.retain is not None:
        raise ValueError("--retain goes with --data: --file holds both sets already.")
    if given.file is None and given.unsafe_set != "instruction":
        raise ValueError("--unsafe_set goes with --file; a source has its own, such as --data.unsafe_set for VLGuard.")
    if given.rows < 1:
        raise ValueError(f"--rows is {given.rows}: print at least one row.")
    check_folder(given.out)
    aside = free_name(given.out) if (given.out / "audit.json").exists() else None

    by_answers = given.labels == "answers"
    skipped: list[str] = []
    if given.file is not None:
        asked, name = of_file(given.file, by_answers or given.unsafe_set == "all", skipped), str(given.file)
    else:
        asked = of_source(given.data, given.retain, given.answers, by_answers, skipped)
        name = " and ".join(dict.fromkeys(source.name for source in (given.data, given.retain) if source is not None))
    if by_answers:
        labelled = by_answers_of(asked, given.preset)
        data = f"{name}, refused if the answer refuses by keyword({given.preset})"
    else:
        labelled = (each for each, _ in asked)
        added = " (questions about safe pictures too)" if given.unsafe_set == "all" else ""
        data = f"{name}, the unsafe set{added} against the retain set"
    print(data)
    gc.set_threshold(50_000, 20, 20)  # of millions of objects without cycles: by default a tenth of the time is lost
    sample = Sample()
    pairs = ((each.question, each.unsafe) for each in sample.through(labelled))
    audit = audit_pairs(pairs, every_word=given.every_word, min_count=given.min_count)
    try:
        forms = audit_forms(sample)
    except DataError as error:  # the words can be counted all the same
        forms = None
        skipped.append(str(error))
    from mirage.audit.figure import figure, write_figure
    from mirage.audit.page import page
    from mirage.audit.table import print_audit, print_forms

    names = BY_ANSWERS if by_answers else BY_MEMBERSHIP
    print_audit(audit, rows=given.rows, names=names)
    if forms is not None:
        print_forms(forms, names=names)
    if aside is not None:
        given.out.resolve().rename(aside)
        print(f"{given.out} held an earlier audit, which is now {aside}.")
    write_text(given.out / "audit.json", audit.to_json(data, skipped, forms))
    style = (files("mirage.report") / "page.css").read_text(encoding="utf-8")
    html = page(audit, forms, style=style, names=names, data=data, skipped=skipped, rows=given.rows)
    write_text(given.out / "audit.html", html)
    image = figure(audit, data=data, names=names, forms=forms)
    for suffix in ("png", "svg"):
        write_figure(image, given.out / f"audit.{suffix}")
    for sentence in skipped:
        print(sentence)
    print(f"{given.out} holds audit.json, audit.html, audit.png and audit.svg.")


def of_source(
    source: Source, retain: Source | None, answers: Literal["refusal", "harmful"], by_answers: bool, skipped: list[str]
) -> Iterator[tuple[Asked, str]]:
    """Every question of the unsafe and the retain set with its answer, later turns included.

    Args:
        source: Its unsafe set, and its retain set unless `retain` is given.
        retain: Another source of the retain set.
        answers: Which answers the unsafe set is asked for.
        by_answers: One of the two sets will do; otherwise a source without one of them raises.
        skipped: Receives what the sources do not train on, in sentences.
    """
    benign = retain or source
    for unsafe, owner in ((True, source), (False, benign)):
        if by_answers and not owner.offers("unsafe" if unsafe else "retain"):
            continue
        for example in owner.unsafe(answers) if unsafe else owner.retain():
            name = example.image.name if example.image is not None else ""
            picture, folder = name or example.id, _folder(name)
            for question, answer in ((example.prompt, example.answer), *example.later_turns):
                yield Asked(question, unsafe, picture, folder), answer
    for each in dict.fromkeys((source, benign)):
        skipped += _skipped_by(each)


def by_answers_of(asked: Iterator[tuple[Asked, str]], preset: Preset) -> Iterator[Asked]:
    """The questions, unsafe where their answer refuses."""
    while some := list(islice(asked, 10_000)):
        refused = are_refusals([answer for _, answer in some], preset)
        yield from (Asked(each.question, unsafe, *each[2:]) for (each, _), unsafe in zip(some, refused, strict=True))


def of_file(path: Path, every_question: bool, skipped: list[str]) -> Iterator[tuple[Asked, str]]:
    """The questions of a file in VLGuard's format, with their answers.

    As the paper splits the file: `instruction` (about unsafe pictures) is the unsafe set, `safe_instruction` the retain
    set, and `unsafe_instruction` (about safe pictures) in neither.

    Args:
        path: The file.
        every_question: Yield those that are in neither set too, as unsafe.
        skipped: Receives how many questions are in neither set, once all are read.

    Raises:
        DataError: Naming file and record, where it is not of this format.
    """
    neither = 0
    for number, content in enumerate(records(path, _SHAPE)):
        record, issues = checked(_Record, content, str(path), f"record {number}")
        if record is None:
            raise DataError.of([*map(str, issues), f"Expected {_SHAPE}."])
        for pair in record.pairs:
            ((field, question),) = pair.questions().items()
            if every_question or field != _NEITHER:
                picture = record.image or ""
                yield Asked(question, field != "safe_instruction", picture, _folder(picture)), pair.response
            else:
                neither += 1
    if neither:
        skipped.append(
            f"Not counted: the {neither} questions {_NEITHER} (about safe pictures), which are in neither of the paper's "
            "sets. --unsafe_set all counts them as unsafe, --labels answers by their answers."
        )


def _folder(image: str) -> str:
    return posixpath.dirname(image) or "." if image else "no picture"


def _skipped_by(source: Source) -> Iterable[str]:
    """What a source reads and does not train on, in a sentence."""
    issues = source.skipped()
    images = {issue.remedy for issue in issues if issue.field == "image"}
    reasons = Counter(f"{i.field} {i.remedy.rstrip('.')}" for i in issues if i.field != "image" and i.record)
    parts = [f"{count} records whose {reason}" for reason, count in reasons.items()]
    parts += [f"the questions about {len(images)} pictures that are in the test set too"] if images else []
    parts += [str(issue).rstrip(".") for issue in issues if not issue.record]
    return [f"Not counted, since {source.name} skips it in training: {'; '.join(parts)}."] if issues else []
