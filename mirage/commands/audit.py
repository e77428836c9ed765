"""`mirage audit`: how far a training set's words give its labels away (the paper's Figure 1)."""

from __future__ import annotations

from argparse import RawDescriptionHelpFormatter
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from jsonargparse import DefaultHelpFormatter

from mirage.commands.arguments import Parser, instantiated
from mirage.commands.outputs import check_folder
from mirage.data.base import Source
from mirage.errors import DataError
from mirage.evaluation.judge.keyword import Preset, is_refusal
from mirage.schema import Example

Labels = Literal["membership", "answers"]
Pair = tuple[str, bool]  # a question, and whether it is refused
Told = tuple[str, str, bool]  # a question, its answer, and whether it is of the unsafe set

_SHAPE = (
    'VLGuard\'s format: a list of records like {"id": "...", "instr-resp": [{"instruction": "...", "response": "..."}]}'
)
_QUESTIONS = {"instruction": True, "unsafe_instruction": True, "safe_instruction": False}  # name -> unsafe

_DESCRIPTION = """For every opening word of a training set: how often it occurs, how often its
questions are refused, and the words that would make the best attack and the best
trigger of refusals. Prints a table and writes audit.json, audit.png and audit.svg.

The paper's Figure 1: all 2,977 questions of VLGuard's train.json, refused or not by
the phrases of the paper's code:
  mirage audit --file VLGUARD/train.json --labels answers --preset published

How well the opening word alone tells the paper's forget set from its retain set
(1,023 and 977 questions: 97.65 %):
  mirage audit --file VLGUARD/train.json

What mirage trains on, without the questions that it leaves out (it says which):
  mirage audit --data VLGuard --data.root VLGUARD

An instruction mix in LLaVA's format, by its answers:
  mirage audit --data LlavaInstruct --data.file mix.json --data.images IMAGES
    --labels answers"""


class _Formatter(RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Keeps the lines of the description."""


def run(arguments: Sequence[str]) -> None:
    """Parses the arguments, counts, prints and writes."""
    parser = Parser(prog="mirage audit", description=_DESCRIPTION, formatter_class=_Formatter)
    parser.add_argument("--data", type=Source | None, default=None, help="The training set, such as VLGuard.")
    parser.add_argument("--retain", type=Source | None, default=None, help="Take the retain set from this source.")
    parser.add_argument(
        "--file", type=Path | None, default=None,
        help="A file in VLGuard's format instead of --data: all its questions, also those that training leaves out.",
    )  # fmt: skip
    parser.add_argument(
        "--labels", type=Labels, default="membership",
        help="membership: the unsafe set counts as refused, the retain set as answered (with --file: instruction against "
        "safe_instruction). answers: a question counts as refused if its answer in the data refuses.",
    )  # fmt: skip
    parser.add_argument(
        "--preset", type=Preset, default="default",
        help="With --labels answers, the keyword judge's preset; published for the paper's own figures.",
    )  # fmt: skip
    parser.add_argument(
        "--answers", type=Literal["refusal", "harmful"], default="refusal",
        help="Which answers the unsafe set is asked for: some sources have harmful ones only.",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("runs/audit"), help="Folder that the files are written to.")
    parser.add_argument(
        "--every_word", action="store_true", help="Count every word of a question, not its first alone."
    )
    parser.add_argument("--min_count", type=int, default=5, help="List words that occur in at least so many questions.")
    parser.add_argument("--rows", type=int, default=25, help="Rows of the printed table.")
    given = instantiated(parser, arguments)
    from mirage.audit import BY_ANSWERS, BY_MEMBERSHIP, audit_command

    if (given.data is None) == (given.file is None):
        raise ValueError("Give --data (a source, such as VLGuard) or --file (a file in VLGuard's format): one of them.")
    if given.rows < 1:
        raise ValueError(f"--rows is {given.rows}: print at least one row.")
    check_folder(given.out)
    preset: Preset | None = given.preset if given.labels == "answers" else None
    skipped: list[str] = []
    if given.file is not None:
        if given.retain is not None:
            raise ValueError("--retain goes with --data: --file holds both sets already.")
        pairs = pairs_of_file(given.file, preset, skipped)
        data = f"{given.file}, {_labelled(preset)}"
    else:
        pairs = pairs_of_source(given.data, given.retain, given.answers, preset, skipped)
        names = " and ".join(dict.fromkeys(source.name for source in (given.data, given.retain) if source is not None))
        data = f"{names}, {_labelled(preset)}"
    print(data)
    audit_command(
        pairs, given.out, every_word=given.every_word, min_count=given.min_count, rows=given.rows, data=data,
        skipped=skipped, words=BY_MEMBERSHIP if preset is None else BY_ANSWERS,
    )  # fmt: skip
    for sentence in skipped:
        print(sentence)
    print(f"{given.out} holds audit.json, audit.png and audit.svg.")


def pairs_of_source(
    source: Source,
    retain: Source | None,
    answers: Literal["refusal", "harmful"],
    preset: Preset | None = None,
    skipped: list[str] | None = None,
) -> Iterator[Pair]:
    """Every question of the unsafe and the retain set, later turns included, with its label.

    Args:
        source: Its unsafe set, and its retain set unless `retain` is given.
        retain: Another source of the retain set.
        answers: Which answers the unsafe set is asked for.
        preset: Of the keyword judge that tells whether an answer refuses; without it the set decides.
        skipped: Is added what the sources do not train on, in sentences.
    """
    kept = retain or source
    sets: list[tuple[bool, Sequence[Example]]] = []
    # With labels from the answers one set will do; membership needs both, and a missing one says so itself.
    if preset is None or source.offers("unsafe"):
        sets.append((True, source.unsafe(answers)))
    if preset is None or kept.offers("retain"):
        sets.append((False, kept.retain()))
    if skipped is not None:
        skipped += [sentence for each in dict.fromkeys((source, kept)) for sentence in _left_out(each)]
    return _labelled_pairs(_told_by(sets), preset)


def pairs_of_file(path: Path, preset: Preset | None = None, skipped: list[str] | None = None) -> Iterator[Pair]:
    """The questions of a file in VLGuard's format, with their labels.

    By membership, as the paper splits the file: `instruction` (about unsafe pictures) is the unsafe set, `safe_instruction`
    the retain set, and `unsafe_instruction` (about safe pictures) in neither. By answers, every question counts.

    Args:
        path: The file.
        preset: As of `pairs_of_source`.
        skipped: Is added how many questions are in neither set, once all pairs are read.

    Raises:
        DataError: Naming file and record, where it is not of this format.
    """
    return _labelled_pairs(_told_by_file(path, preset is not None, [] if skipped is None else skipped), preset)


def _labelled_pairs(told: Iterable[Told], preset: Preset | None) -> Iterator[Pair]:
    for question, answer, unsafe in told:
        yield question, unsafe if preset is None else is_refusal(answer, preset)


def _told_by(sets: Iterable[tuple[bool, Sequence[Example]]]) -> Iterator[Told]:
    for unsafe, examples in sets:
        for example in examples:
            yield example.prompt, example.answer, unsafe
            for question, answer in example.later_turns:
                yield question, answer, unsafe


def _told_by_file(path: Path, all_of_them: bool, skipped: list[str]) -> Iterator[Told]:
    from mirage.json_file import records

    neither: Counter[str] = Counter()
    for number, record in enumerate(records(path, _SHAPE)):
        for question, answer, field in _told(record, f"{path}, record {number}"):
            if all_of_them or field != "unsafe_instruction":
                yield question, answer, _QUESTIONS[field]
            else:
                neither[field] += 1
    skipped += [
        f"Not counted: the {count} questions {field} (about safe pictures), which are in neither of the paper's sets. "
        "--labels answers counts them."
        for field, count in neither.items()
    ]


def _told(record: Any, where: str) -> Iterable[tuple[str, str, str]]:
    """Question, answer and the question's field, for each pair of a record."""
    told = record.get("instr-resp") if isinstance(record, dict) else None
    if not isinstance(told, list) or not told:
        raise DataError(f"{where}: it has no list 'instr-resp'. Expected {_SHAPE}.")
    for pair in told:
        fields = [name for name in _QUESTIONS if name in pair] if isinstance(pair, dict) else []
        texts = [pair.get(name) for name in (*fields, "response")] if fields else []
        if len(fields) != 1 or not all(isinstance(text, str) for text in texts):
            raise DataError(
                f"{where}: a pair of 'instr-resp' is not one question and one 'response'. Expected {_SHAPE}."
            )
        yield texts[0], texts[1], fields[0]


def _left_out(source: Source) -> list[str]:
    """What a source reads and does not train on, in a sentence."""
    faults = source.skipped()
    if not faults:
        return []
    pictures = {fault.remedy for fault in faults if fault.field == "image"}
    reasons = Counter(
        f"{fault.field} {fault.remedy.rstrip('.')}" for fault in faults if fault.field != "image" and fault.record
    )
    told = [f"{count} records whose {reason}" for reason, count in reasons.items()]
    told += [f"the questions about {len(pictures)} pictures that are in the test set too"] if pictures else []
    told += [str(fault).rstrip(".") for fault in faults if not fault.record]
    return [f"Not counted, since {source.name} leaves it out of training: {'; '.join(told)}."]


def _labelled(preset: Preset | None) -> str:
    return (
        "the unsafe set against the retain set"
        if preset is None
        else f"refused if the answer refuses by keyword({preset})"
    )
