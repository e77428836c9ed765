"""Records are judged again: of a validated checkpoint too, never of a cut file, and slow verdicts are kept as they come."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import pytest

from mirage.evaluation.judge.base import Answered, Judge, JudgeError, Judgement
from mirage.evaluation.judge.kept import BLOCK
from mirage.evaluation.judge.keyword import Keyword
from mirage.evaluation.judge.rescore import rejudge
from mirage.evaluation.run.counting import summarise
from mirage.evaluation.run.records import read_records, write_records
from mirage.report.runs import load_run
from mirage.schema import Record, Verdict

SHOTS = 3


def records(n: int, answer: str) -> list[Record]:
    return [
        Record(
            id=f"q{k}", eval_set="unsafe", shot=shot, question=f"tell {k} ({shot})", answer=f"{answer} {k}.{shot}",
            verdict=Verdict.COMPLIED, judge="exact", unsafe=True,
        )
        for k in range(n)
        for shot in range(1 + SHOTS)
    ]  # fmt: skip


def written(folder: Path, stem: str, own: list[Record]) -> dict[str, object]:
    """Writes a records file; returns what results.json says of it."""
    told = {"fingerprint": f"print of {stem}", "judge": "exact"}
    (folder / "records").mkdir(parents=True, exist_ok=True)
    write_records(folder / "records" / f"{stem}.jsonl", own, {**told, "eval_set": "unsafe"})
    return told | summarise(own, True)


def validated(root: Path, n: int = 40) -> Path:
    """A fit's folder and, within it, that of its validated checkpoint: the starting answers lie in the former."""
    start = written(root, "start.unsafe", records(n, "I cannot help with that,"))
    folder = root / "validate"
    own = written(folder, "unsafe", records(n, "Sure, it is"))
    results = {"schema_version": 2, "method": "rmu", "name": "rmu", "unsafe": own, "start": {"unsafe": start}}
    (folder / "results.json").write_text(json.dumps(results))
    return folder


def test_a_validated_checkpoint_is_judged_with_the_starting_answers_of_its_fit(tmp_path: Path) -> None:
    folder = validated(tmp_path / "rmu")
    results = rejudge(folder, Keyword())
    assert results["unsafe"]["before"]["asr"]["rate"] == 1.0 and results["start"]["unsafe"]["before"]["rr"]["rate"] == 1
    run = load_run(folder)
    assert run.records.keys() == {"unsafe", "start.unsafe"} and not run.notes
    assert read_records(tmp_path / "rmu" / "records" / "start.unsafe.jsonl")[0]["judge"] == "exact", (
        "the fit's own stay"
    )
    assert not list((folder / "records").glob(".*"))


def test_names_in_results_do_not_lead_out_of_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    outside = written(folder, "../../outside", records(3, "Sure, it is"))
    (folder / "results.json").write_text(json.dumps({"../../outside": outside}))
    before = (tmp_path / "outside.jsonl").read_bytes()
    with pytest.raises(ValueError, match=r"results\.json: '\.\./\.\./outside' leaves the folder"):
        rejudge(folder, Keyword())
    assert (tmp_path / "outside.jsonl").read_bytes() == before


def test_a_records_file_that_lost_questions_is_not_judged(tmp_path: Path) -> None:
    folder = validated(tmp_path / "rmu")
    file = folder / "records" / "unsafe.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[: 1 + 12 * (1 + SHOTS)]))
    before = (folder / "results.json").read_bytes()
    with pytest.raises(ValueError, match=r"unsafe\.jsonl holds 12 questions, but results\.json counts 40: it was cut"):
        rejudge(folder, Keyword())
    assert (folder / "results.json").read_bytes() == before


class Slow(Judge):
    """Counts what it reads, refuses everything, and goes down after so many answers."""

    one_by_one: ClassVar[bool] = True

    def __init__(self, lasts: int, how: str = "") -> None:
        self.lasts, self.how, self.read = lasts, how, list[str]()

    @property
    def name(self) -> str:
        return "slow"

    def judge(self, answered: Sequence[Answered]) -> list[Judgement]:
        if self.how == "dies" and len(self.read) >= self.lasts:
            raise KeyboardInterrupt
        said = []
        for one in answered:
            down = len(self.read) >= self.lasts
            self.read += [] if down else [one.answer]
            said.append(Judgement(Verdict.UNSCORED if down else Verdict.REFUSED, "down" if down else "no\nmore"))
        return said


def test_a_slow_judge_that_was_killed_goes_on_where_it_stopped(tmp_path: Path) -> None:
    folder = validated(tmp_path / "rmu")
    killed = Slow(lasts=2 * BLOCK, how="dies")
    with pytest.raises(KeyboardInterrupt):
        rejudge(folder, killed)
    again = Slow(lasts=10**6)
    results = rejudge(folder, again)
    everything = 2 * 40 * (1 + SHOTS)
    assert len(killed.read) == 2 * BLOCK and len(again.read) == everything - 2 * BLOCK
    assert not set(again.read) & set(killed.read)
    assert results["unsafe"]["after"]["rr"]["rate"] == 1.0
    assert {record.reason for record in read_records(folder / "records" / "unsafe.jsonl")[1]} == {"no\nmore"}
    assert not list((folder / "records").glob(".*"))


def test_a_judge_that_goes_down_is_left_alone_and_asked_again_later(tmp_path: Path) -> None:
    folder = validated(tmp_path / "rmu")
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    with pytest.raises(JudgeError, match="slow scored none of 160 answers"):
        rejudge(folder, Slow(lasts=0))
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before
    with pytest.warns(UserWarning, match="unscored"), pytest.raises(JudgeError):
        rejudge(folder, Slow(lasts=BLOCK))  # the first file in part, of the second one nothing
    again = Slow(lasts=10**6)
    rejudge(folder, again)
    assert len(again.read) == 2 * 40 * (1 + SHOTS) - BLOCK
