"""`mirage audit`: how far a training set's words give its labels away (the paper's Figure 1)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from mirage.commands.arguments import Parser, instantiated
from mirage.data.source import BadData, Source
from mirage.evaluation.keyword import is_refusal
from mirage.schema import Example

Labels = Literal["membership", "answers"]
Pair = tuple[str, bool]  # a question, and whether it is refused
Refuses = Callable[[str], bool]  # whether an answer refuses

_SHAPE = (
    'VLGuard\'s format: a list of records like {"id": "...", "instr-resp": [{"instruction": "...", "response": "..."}]}'
)
_QUESTIONS = {"instruction": True, "unsafe_instruction": True, "safe_instruction": False}  # name -> unsafe


def run(arguments: Sequence[str]) -> None:
    """Parses the arguments, counts, prints and writes."""
    parser = Parser(
        prog="mirage audit",
        description="For every opening word of a training set: how often it occurs, how often its questions are refused, "
        "and the words that would make the best attack and the best trigger of refusals. Prints a table and writes "
        "audit.json, audit.png and audit.svg.",
    )
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
        "--preset", type=Literal["default", "published"], default="default",
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
    from mirage.audit import audit_command

    if (given.data is None) == (given.file is None):
        raise ValueError("Give --data (a source, such as VLGuard) or --file (a file in VLGuard's format): one of them.")
    if given.rows < 1:
        raise ValueError(f"--rows is {given.rows}: print at least one row.")
    refuses = (lambda answer: is_refusal(answer, given.preset)) if given.labels == "answers" else None
    if given.file is not None:
        if given.retain is not None:
            raise ValueError("--retain goes with --data: --file holds both sets already.")
        pairs = pairs_of_file(given.file, refuses)
        title = f"{given.file}, {_labelled(given)}"
    else:
        pairs = pairs_of_source(given.data, given.retain, given.answers, refuses)
        title = f"{given.data.name}, {_labelled(given)}"
    print(title)
    audit_command(pairs, given.out, every_word=given.every_word, min_count=given.min_count, rows=given.rows)
    print(f"{given.out} holds audit.json, audit.png and audit.svg.")


def pairs_of_source(
    source: Source, retain: Source | None, answers: Literal["refusal", "harmful"], refuses: Refuses | None = None
) -> Iterator[Pair]:
    """Every question of the unsafe and the retain set, later turns included, with its label.

    Args:
        source: Its unsafe set, and its retain set unless `retain` is given.
        retain: Another source of the retain set.
        answers: Which answers the unsafe set is asked for.
        refuses: Tells whether an answer refuses; without it the set decides.
    """
    kept = retain or source
    sets: list[tuple[bool, Sequence[Example]]] = []
    # With labels from the answers one set will do; membership needs both, and a missing one says so itself.
    if refuses is None or _has(source, "unsafe"):
        sets.append((True, source.unsafe(answers)))
    if refuses is None or _has(kept, "retain"):
        sets.append((False, kept.retain()))
    for unsafe, examples in sets:
        for example in examples:
            for question, answer in ((example.prompt, example.answer), *example.later_turns):
                yield question, unsafe if refuses is None else refuses(answer)


def pairs_of_file(path: Path, refuses: Refuses | None = None) -> Iterator[Pair]:
    """The questions of a file in VLGuard's format, with their labels.

    By membership, as the paper splits the file: `instruction` (about unsafe pictures) is the unsafe set, `safe_instruction`
    the retain set, and `unsafe_instruction` (about safe pictures) in neither. By answers, every question counts.

    Raises:
        BadData: Naming file and record, where it is not of this format.
    """
    from mirage.data.json_file import records

    for number, record in enumerate(records(path, _SHAPE)):
        for question, answer, field in _told(record, f"{path}, record {number}"):
            if refuses is not None:
                yield question, refuses(answer)
            elif field != "unsafe_instruction":
                yield question, _QUESTIONS[field]


def _told(record: Any, where: str) -> Iterable[tuple[str, str, str]]:
    """Question, answer and the question's field, for each pair of a record."""
    told = record.get("instr-resp") if isinstance(record, dict) else None
    if not isinstance(told, list) or not told:
        raise BadData(f"{where}: it has no list 'instr-resp'. Expected {_SHAPE}.")
    for pair in told:
        fields = [name for name in _QUESTIONS if name in pair] if isinstance(pair, dict) else []
        texts = [pair.get(name) for name in (*fields, "response")] if fields else []
        if len(fields) != 1 or not all(isinstance(text, str) for text in texts):
            raise BadData(f"{where}: a pair of 'instr-resp' is not one question and one 'response'. Expected {_SHAPE}.")
        yield texts[0], texts[1], fields[0]


def _has(source: Source, part: str) -> bool:
    return getattr(type(source), part) is not getattr(Source, part)


def _labelled(given: Any) -> str:
    if given.labels == "answers":
        return f"refused if the answer refuses by keyword({given.preset})"
    return "refused if in the unsafe set"
