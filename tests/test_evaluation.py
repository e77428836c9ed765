"""Answers that survive an interruption, asking together on several ranks, and what is logged of the answers."""

from __future__ import annotations

import json
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from builders import record_of
from hypothesis import given, settings
from hypothesis import strategies as st

from mirage.data.lazy import sampled
from mirage.evaluation.attack import Rewrite
from mirage.evaluation.generate.base import Engine, OnAnswer
from mirage.evaluation.judge.base import Answered, Judge, Judgement
from mirage.evaluation.judge.kept import BLOCK
from mirage.evaluation.run import runner as asking
from mirage.evaluation.run.callbacks import OneWordAttack
from mirage.evaluation.run.counting import summarise
from mirage.evaluation.run.records import AnswerLog, read_records, write_records
from mirage.evaluation.run.runner import RankFailedError, ask, samples_fingerprint, weights_fingerprint
from mirage.images import FileImage
from mirage.schema import EvalSample, Record, Verdict

VERDICTS = list(Verdict)
ODD_TEXTS = ["", "two\nlines", 'a "quote" \\ and a tab\t', "caf\u00e9 \U0001f642", "\u2028\u2029\x85", "\r\n", "[1, 2]"]


# Answers that survive


def kept_in(path: Path, fingerprint: str = "f1", *answers: tuple[str, int, str]) -> dict[tuple[str, int], str]:
    """What a log held when it was opened, and then these answers."""
    with closing(AnswerLog(path, fingerprint)) as log:
        before = dict(log.known)
        for answer in answers:
            log.add(*answer)
    return before


@given(st.lists(st.text() | st.sampled_from(ODD_TEXTS), min_size=1, max_size=4), st.integers(1, 40))
@settings(max_examples=25)
def test_a_log_gives_back_what_was_added_but_for_a_line_that_was_cut(texts: list[str], cut: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log.jsonl"
        log = AnswerLog(path, "f1")
        whole = [path.stat().st_size]
        for shot, text in enumerate(texts):
            log.add("a b", shot, text)
            whole.append(path.stat().st_size)
        # without a close: the writer was killed, here in the middle of a line or even of a character
        end = max(whole[0], whole[-1] - cut)
        path.write_bytes(path.read_bytes()[:end])
        kept = {("a b", shot): text for shot, text in enumerate(texts) if whole[shot + 1] <= end}
        assert kept_in(path, "f1", ("c", 0, "half \ud800")) == kept
        assert kept_in(path) == kept | {("c", 0): "half ?"}


def test_nothing_is_taken_from_another_fingerprint_or_a_damaged_file(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    kept_in(path, "f1", ("first", 0, "kept"))
    good = path.read_text()
    head, line = good.splitlines()
    for damaged in ("", line + "\n", good.replace('"kept"]', '"kept"'), head + "\n{}\n" + line + "\n", head + "\n3\n"):
        path.write_text(damaged)
        assert kept_in(path) == {}
    path.write_text(good)
    assert kept_in(path, "f2") == {}
    assert kept_in(path) == {}  # and f2 has begun its own file


def test_records_round_trip_and_a_foreign_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "unsafe.jsonl"
    records = [
        record_of(f"q{k}", k, VERDICTS[k % 4], question=text, answer=text, reason=text, category=text or None, score=k / 3)
        for k, text in enumerate(ODD_TEXTS)
    ]  # fmt: skip
    write_records(path, records, {"fingerprint": "f1", "judge": "dice"})
    assert read_records(path) == ({"fingerprint": "f1", "judge": "dice"}, records)
    whole = path.read_text()
    assert len(whole.split("\n")) == len(records) + 2  # a line each
    good = json.loads(records[0].to_json())
    path.write_text(whole + json.dumps({**good, "answer": "half \ud800", "new": 1}) + "\n")
    assert read_records(path)[1][-1] == replace(records[0], answer="half ?")
    wrong = {name: json.dumps({**good, name: value}) for name, value in
             (("verdict", "safe"), ("shot", True), ("score", "0.5"), ("unsafe", 1), ("answer", None))}  # fmt: skip
    for says, line in {**wrong, "id": "{}", "the line": '{"id": 3', "the record": "[]"}.items():
        path.write_text(f"{whole}{line}\n")
        sentence = rf"unsafe\.jsonl, line {len(records) + 2}: {says} .*Evaluate the run again"
        with pytest.raises(ValueError, match=sentence):
            read_records(path)
    for content, sentence in (
        ("no header", "is not a records file"),
        ('{"probe_set": "unsafe"}\n', r"unsafe\.jsonl was written by an earlier mirage \(results schema 1\): eval"),
    ):
        path.write_text(content)
        with pytest.raises(ValueError, match=sentence):
            read_records(path)


# Asking


def samples(count: int) -> list[EvalSample]:
    return [
        EvalSample(
            id=f"p{k}", source="test", image=None, question=f"plain {k}", unsafe=True, category=f"c{k % 2}",
            rewrites=(f"first {k}", f"second {k}"),
        )
        for k in range(count)
    ]  # fmt: skip


class Echo(Engine):
    """Answers with the question; may stop after some answers, as a process does that is killed."""

    name = "echo"

    def __init__(self, dies_after: int | None = None) -> None:
        self.asked: list[tuple[str, int]] = []
        self.dies_after = dies_after

    def settings(self) -> dict[str, Any]:
        return {"engine": "echo"}

    def answers(self, samples: Sequence[EvalSample], on_answer: OnAnswer | None = None) -> list[list[str]]:
        answers = []
        for sample in samples:
            for shot, question in enumerate(sample.questions):
                if self.dies_after is not None and len(self.asked) >= self.dies_after:
                    raise ConnectionError("the engine is gone")
                self.asked.append((sample.id, shot))
                if on_answer is not None:
                    on_answer(sample.id, shot, f"you said: {question}")
            answers.append([f"you said: {question}" for question in sample.questions])
        return answers


class Dice(Judge):
    """A verdict that depends on the answer alone."""

    name = "dice"

    def judge(self, answered: Sequence[Answered]) -> list[Judgement]:
        return [Judgement(VERDICTS[sum(one.answer.encode()) % 4], one.answer[::-1], 0.5) for one in answered]


def asked(count: int, engine: Engine, judge: Judge | None = None, **more: Any) -> list[Record]:
    """The records of `count` questions; the answers are kept in `log_folder`, or nowhere that stays."""
    with tempfile.TemporaryDirectory() as folder:
        asking = {"eval_set": "unsafe", "fingerprint": "f1", "log_folder": Path(folder), **more}
        return ask(samples(count), engine, judge or Dice(), **asking)


def test_every_answer_is_judged_and_recorded_in_order() -> None:
    expected = []
    for sample in samples(3):
        for shot, question in enumerate(sample.questions):
            answer = f"you said: {question}"
            (judgement,) = Dice().judge([Answered(sample, question, answer)])
            said = {"question": question, "answer": answer, "category": sample.category, **judgement._asdict()}
            expected.append(record_of(sample.id, shot, **said))
    assert asked(3, Echo()) == expected


SHOTS = 3  # of each question, the plain one included


def test_an_interrupted_evaluation_asks_no_finished_question_twice(tmp_path: Path) -> None:
    with pytest.raises(ConnectionError):
        asked(5, Echo(dies_after=2 * SHOTS + 1), log_folder=tmp_path)  # two questions, and one answer of the third
    with pytest.raises(ConnectionError):  # other settings ask everything, and leave what is kept alone
        asked(5, other := Echo(dies_after=4 * SHOTS), log_folder=tmp_path, fingerprint="f2")
    assert len(other.asked) == 4 * SHOTS
    # an eval set whose name begins with that of another and a dot
    for name in ("unsafe.harder", "unsafe.f0"):
        with pytest.raises(ConnectionError):
            asked(5, Echo(dies_after=4), log_folder=tmp_path, eval_set=name)
    kept = {path.name for path in tmp_path.iterdir()}
    asked(5, Echo(), log_folder=tmp_path, eval_set="unsafe*")  # a pattern of file names
    assert {path.name for path in tmp_path.iterdir()} == kept and len(kept) == 4
    second = Echo()
    records = asked(5, second, log_folder=tmp_path)
    assert sorted(second.asked) == [(f"p{k}", shot) for k in (2, 3, 4) for shot in range(SHOTS)]
    assert records == asked(5, Echo())
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {name for name in kept if name.startswith((".unsafe.harder", ".unsafe.f0."))}, (
        "the records hold the answers now, and overtake other attempts at the same eval set"
    )


class Down(Dice):
    """A slow judge that fails when it has read so many answers."""

    one_by_one: ClassVar[bool] = True

    def __init__(self, dies_after: int = 10**6) -> None:
        self.read, self.dies_after = 0, dies_after

    def judge(self, answered: Sequence[Answered]) -> list[Judgement]:
        if self.read >= self.dies_after:
            raise ConnectionError("the judge is down")
        self.read += len(answered)
        return [Judgement(Verdict.REFUSED, one.answer) for one in answered]


def test_answers_and_verdicts_are_kept_when_the_judge_fails(tmp_path: Path) -> None:
    n, engine, judge = 60, Echo(), Down()
    for judged in (0, BLOCK):
        with pytest.raises(ConnectionError):
            asked(n, engine, Down(dies_after=judged), log_folder=tmp_path)
    assert asked(n, engine, judge, log_folder=tmp_path) == asked(n, Echo(), Down())
    assert len(engine.asked) == n * SHOTS and judge.read == n * SHOTS - BLOCK and not list(tmp_path.iterdir())


def on_every_rank(world: int, work: Callable[[int], Any], monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What `work(rank)` returned or raised, with one thread a rank and a gather that waits for all of them."""
    barrier = threading.Barrier(world, timeout=20)
    given: dict[int, Any] = {}
    own = threading.local()

    def gathered(mine: Any) -> list[Any]:
        given[own.rank] = mine
        barrier.wait()
        shares = [given[rank] for rank in range(world)]
        barrier.wait()
        return shares

    monkeypatch.setattr(asking, "gathered", gathered)

    def run(rank: int) -> Any:
        own.rank = rank
        return work(rank)

    with ThreadPoolExecutor(world) as pool:
        ended = [pool.submit(run, rank) for rank in range(world)]
    return [one.exception() or one.result() for one in ended]


def asked_by(engines: Sequence[Echo], count: int, folder: Path, patch: pytest.MonkeyPatch) -> list[Any]:
    """What every rank has, or raised, when each asks with its engine."""
    world = len(engines)
    asking = {"world_size": world, "log_folder": folder}
    return on_every_rank(world, lambda rank: asked(count, engines[rank], rank=rank, **asking), patch)


@pytest.mark.parametrize("count", [7, 1])
def test_ranks_share_the_questions_and_all_have_all_records(
    count: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    world = 3
    engines = [Echo() for _ in range(world)]
    assert asked_by(engines, count, tmp_path, monkeypatch) == [asked(count, Echo())] * world
    assert Counter(pair for engine in engines for pair in engine.asked) == Counter(
        (f"p{k}", shot) for k in range(count) for shot in range(SHOTS)
    )
    for engine in engines:  # a question and its rewrites stay together
        assert all(engine.asked.count((id, 0)) == engine.asked.count((id, 2)) for id, _ in engine.asked)
    assert not list(tmp_path.iterdir())


def test_one_rank_that_fails_ends_all_and_the_others_answers_are_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for result in asked_by([Echo(), Echo(dies_after=1)], 5, tmp_path, monkeypatch):
        assert isinstance(result, RankFailedError)
        assert "rank 1:" in str(result) and "the engine is gone" in str(result) and "rank 0:" not in str(result)
    again = [Echo(), Echo()]
    assert asked_by(again, 5, tmp_path, monkeypatch) == [asked(5, Echo())] * 2
    assert again[0].asked == [] and len(again[1].asked) == 2 * SHOTS
    (tmp_path / "file").write_text("where a folder should be")
    folders = (tmp_path, tmp_path / "file")
    work = lambda rank: asked(5, Echo(), rank=rank, log_folder=folders[rank], world_size=2, fingerprint="f2")
    results = on_every_rank(2, work, monkeypatch)
    assert all(isinstance(result, RankFailedError) and "rank 1:" in str(result) for result in results)


def test_what_one_rank_cannot_finish_ends_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def work(rank: int) -> list[Record]:
        def finish(records: list[Record]) -> None:
            if rank == 0:
                raise OSError(28, "No space left on device", "records/unsafe.jsonl")

        return asked(5, Echo(), rank=rank, world_size=2, log_folder=tmp_path, finish=finish)

    first, second = on_every_rank(2, work, monkeypatch)
    assert isinstance(first, OSError) and first.filename == "records/unsafe.jsonl"
    assert isinstance(second, RankFailedError) and "rank 0:" in str(second) and "No space left" in str(second)
    assert len(list(tmp_path.iterdir())) == 2, "no answer is lost"


def test_what_is_logged_are_the_rates_that_results_json_holds() -> None:
    records = asked(2, Echo()) + [record_of("p9", shot, Verdict.UNSCORED) for shot in range(SHOTS)]
    attack, counted = OneWordAttack("unsafe", Rewrite("what", shots=2), Dice()), summarise(records, unsafe=True)
    rates = {(arm, name): counted[arm][name]["rate"] for arm in ("before", "after") for name in ("asr", "rr", "ir")}
    assert attack.logged(counted) == {f"unsafe/{arm}/{name}": rate for (arm, name), rate in rates.items()}
    assert attack.logged(summarise(records[-SHOTS:], unsafe=True)) == {}, "of what was not scored there is no rate"


def test_a_word_that_nothing_can_mine_is_refused() -> None:
    data = SimpleNamespace(eval_samples=lambda _: samples(1))
    with pytest.raises(ValueError, match=r"attack.word is 'mined', and this OneWordAttack has no audit .* give a word"):
        OneWordAttack("unsafe", Rewrite("mined", shots=2), Dice()).prepare_samples(data)


# What is asked


def test_a_subset_is_of_questions_with_all_their_rewrites() -> None:
    everything = samples(40)
    some = sampled(everything, 12, seed=3)
    assert len(some) == 12 and all(sample in everything and len(sample.questions) == 3 for sample in some)
    assert [everything.index(sample) for sample in some] == sorted(everything.index(sample) for sample in some)
    assert sampled(everything, 12, seed=3) == some != sampled(everything, 12, seed=4)
    for limit in (None, 40, 41):
        assert sampled(everything, limit, seed=3) == everything


def test_fingerprints_follow_whatever_decides_an_answer() -> None:
    second = torch.nn.Linear(3, 2).to(torch.bfloat16)
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), second)
    before = weights_fingerprint(model)
    assert weights_fingerprint(model) == before
    with torch.no_grad():
        second.bias[0] += 1
    assert weights_fingerprint(model) != before
    base = samples(3)
    seen = {samples_fingerprint(base)}
    assert samples_fingerprint(samples(3)) in seen

    for change in (
        {"question": "other"}, {"rewrites": ("first 0", "other")}, {"rewrites": ("first 0",)},
        {"image": FileImage(Path(), "other.png")},
    ):  # fmt: skip
        seen.add(samples_fingerprint([replace(base[0], **change), *base[1:]]))
    assert len(seen | {samples_fingerprint(base[::-1])}) == 6
