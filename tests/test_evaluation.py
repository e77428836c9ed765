"""Answers that survive an interruption, asking together, and counting once whatever the number of ranks."""

from __future__ import annotations

import json
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from builders import record_of

from mirage.evaluation.attack import Rewrite
from mirage.evaluation.generate.base import Engine, OnAnswer
from mirage.evaluation.judge.base import Answered, Judge, Judgement
from mirage.evaluation.judge.kept import BLOCK
from mirage.evaluation.run import runner as asking
from mirage.evaluation.run.callbacks import OneWordAttack
from mirage.evaluation.run.counting import question_verdict
from mirage.evaluation.run.records import AnswerLog, read_records, write_records
from mirage.evaluation.run.results import Results
from mirage.evaluation.run.runner import RankFailedError, ask, samples_fingerprint, subsample, weights_fingerprint
from mirage.images import FileImage
from mirage.schema import EvalSample, Record, Verdict

VERDICTS = list(Verdict)
ODD_TEXTS = [
    "",
    "two\nlines",
    'a "quote" \\ and a tab\t',
    "caf\u00e9 \U0001f642",
    "\u2028 and \u2029 and \x85",
    "\r\n",
    "[1, 2]",
]


# Answers that survive


def test_a_log_gives_back_what_was_added(tmp_path: Path) -> None:
    log = AnswerLog(tmp_path / "log.jsonl", "f1")
    for shot, text in enumerate(ODD_TEXTS):
        log.add("a b", shot, text)
    again = AnswerLog(tmp_path / "log.jsonl", "f1")  # without a close: the writer was killed
    assert [again.known["a b", shot] for shot in range(len(ODD_TEXTS))] == ODD_TEXTS
    again.add("c", 0, "more")
    again.close()
    assert len(AnswerLog(tmp_path / "log.jsonl", "f1").known) == len(ODD_TEXTS) + 1


def test_a_half_line_is_dropped_wherever_it_was_cut(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log = AnswerLog(path, "f1")
    log.add("first", 0, "kept")
    whole = path.stat().st_size
    log.add("second", 1, "caf\u00e9 \U0001f642")
    log.close()
    written = path.read_bytes()
    for end in range(whole, len(written)):  # also in the middle of a character
        path.write_bytes(written[:end])
        resumed = AnswerLog(path, "f1")
        assert resumed.known == {("first", 0): "kept"}
        resumed.add("third", 0, "after")
        resumed.close()
        assert AnswerLog(path, "f1").known == {("first", 0): "kept", ("third", 0): "after"}


def test_nothing_is_taken_from_another_fingerprint_or_a_damaged_file(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log = AnswerLog(path, "f1")
    log.add("first", 0, "kept")
    log.close()
    good = path.read_text()
    head, line = good.splitlines()
    for damaged in ("", line + "\n", good.replace('"kept"]', '"kept"'), head + "\n{}\n" + line + "\n", head + "\n3\n"):
        path.write_text(damaged)
        assert AnswerLog(path, "f1").known == {}
    path.write_text(good)
    assert AnswerLog(path, "f2").known == {}
    assert AnswerLog(path, "f1").known == {}  # and f2 has begun its own file


def test_records_round_trip_and_a_foreign_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "unsafe.jsonl"
    records = [
        record_of(
            f"q{k}", k, VERDICTS[k % 4], question=text, answer=text, reason=text, category=text or None, score=k / 3
        )
        for k, text in enumerate(ODD_TEXTS)
    ]
    write_records(path, records, {"fingerprint": "f1", "judge": "dice"})
    assert read_records(path) == ({"fingerprint": "f1", "judge": "dice"}, records)
    whole = path.read_text()
    assert len(whole.split("\n")) == len(records) + 2  # a line each
    good = json.loads(records[0].to_json())
    for line, wrong in (
        ("{}", "id"), ('{"id": 3', "the line"), ("[]", "the record"), (json.dumps({**good, "verdict": "safe"}), "verdict"),
        (json.dumps({**good, "shot": True}), "shot"), (json.dumps({**good, "score": "high"}), "score"),
    ):  # fmt: skip
        path.write_text(f"{whole}{line}\n")
        with pytest.raises(
            ValueError, match=rf"unsafe\.jsonl, line {len(records) + 2}: {wrong} .*Evaluate the run again"
        ):
            read_records(path)
    path.write_text("no header")
    with pytest.raises(ValueError, match="is not a records file"):
        read_records(path)
    write_records(path, records, {"fingerprint": "f1", "probe_set": "unsafe"})
    with pytest.raises(
        ValueError, match=r"unsafe\.jsonl was written by an earlier mirage \(results schema 1\): evaluate"
    ):
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


def asked(count: int, engine: Engine, judge: Judge | None = None, **given: Any) -> list[Record]:
    """The records of `count` questions; the answers are kept in `log_folder`, or nowhere that stays."""
    with tempfile.TemporaryDirectory() as folder:
        settings = {"eval_set": "unsafe", "fingerprint": "f1", "log_folder": Path(folder), **given}
        return ask(samples(count), engine, judge or Dice(), **settings)


def test_every_answer_is_judged_and_recorded_in_order() -> None:
    records = asked(3, Echo())
    assert [(record.id, record.shot) for record in records] == [(f"p{k}", shot) for k in range(3) for shot in range(3)]
    for record, question in zip(records, (q for sample in samples(3) for q in sample.questions), strict=True):
        answer = f"you said: {question}"
        (judgement,) = Dice().judge([Answered(samples(1)[0], question, answer)])
        assert (record.question, record.answer) == (question, answer)
        assert (record.verdict, record.reason, record.score) == judgement
        assert (record.judge, record.unsafe, record.image) == ("dice", True, None)
        assert record.category == f"c{int(record.id[1:]) % 2}"


def test_an_interrupted_evaluation_asks_no_finished_question_twice(tmp_path: Path) -> None:
    first = Echo(dies_after=7)  # two questions of three answers, and one answer of the third
    with pytest.raises(ConnectionError):
        asked(5, first, log_folder=tmp_path)
    second = Echo()
    records = asked(5, second, log_folder=tmp_path)
    assert sorted(second.asked) == [(f"p{k}", shot) for k in (2, 3, 4) for shot in range(3)]
    assert records == asked(5, Echo())
    assert not list(tmp_path.iterdir())  # the records hold the answers now


def test_another_fingerprint_asks_everything_again(tmp_path: Path) -> None:
    with pytest.raises(ConnectionError):
        asked(4, Echo(dies_after=7), log_folder=tmp_path)
    engine = Echo()
    asked(4, engine, log_folder=tmp_path, fingerprint="f2")
    assert len(engine.asked) == 12


def test_answers_are_kept_when_the_judge_fails(tmp_path: Path) -> None:
    class Down(Dice):
        def judge(self, answered: Sequence[Answered]) -> list[Judgement]:
            raise ConnectionError("the judge is down")

    with pytest.raises(ConnectionError):
        asked(3, Echo(), Down(), log_folder=tmp_path)
    engine = Echo()
    assert asked(3, engine, log_folder=tmp_path) == asked(3, Echo())
    assert engine.asked == []


def test_an_attempt_with_other_settings_leaves_kept_answers_alone(tmp_path: Path) -> None:
    for fingerprint, count in (("f1", 5), ("f2", 1)):
        with pytest.raises(ConnectionError):
            asked(4, Echo(dies_after=count), fingerprint=fingerprint, log_folder=tmp_path)
    engine = Echo()
    shots = len(samples(1)[0].questions)
    asked(4, engine, log_folder=tmp_path)
    assert len(engine.asked) == (4 - 5 // shots) * shots, "whole questions of the first attempt are not asked again"
    assert not list(tmp_path.iterdir()), "what is finished needs no log, and overtakes what was not"


def test_the_verdicts_of_a_slow_judge_survive_with_the_answers(tmp_path: Path) -> None:
    class Slow(Dice):
        one_by_one: ClassVar[bool] = True

        def __init__(self, dies_after: int) -> None:
            self.read, self.dies_after = 0, dies_after

        def judge(self, answered: Sequence[Answered]) -> list[Judgement]:
            if self.read >= self.dies_after:
                raise ConnectionError("the judge is gone")
            self.read += len(answered)
            return [Judgement(Verdict.REFUSED, one.answer) for one in answered]

    n = 60
    shots = len(samples(1)[0].questions)
    with pytest.raises(ConnectionError):
        asked(n, Echo(), Slow(dies_after=BLOCK), log_folder=tmp_path)
    engine, judge = Echo(), Slow(dies_after=10**6)
    assert asked(n, engine, judge, log_folder=tmp_path) == asked(n, Echo(), Slow(10**6))
    assert engine.asked == [] and judge.read == n * shots - BLOCK and not list(tmp_path.iterdir())


def on_every_rank(world: int, work: Callable[[int], Any], monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What `work(rank)` returned or raised, with one thread a rank and a gather that waits for all of them."""
    barrier = threading.Barrier(world, timeout=20)
    given: dict[int, Any] = {}
    own = threading.local()

    def all_gather_object(shares: list[Any], mine: Any) -> None:
        given[own.rank] = mine
        barrier.wait()
        shares[:] = [given[rank] for rank in range(world)]
        barrier.wait()

    monkeypatch.setattr(asking.torch.distributed, "all_gather_object", all_gather_object)
    results: list[Any] = [None] * world

    def run(rank: int) -> None:
        own.rank = rank
        try:
            results[rank] = work(rank)
        except Exception as error:
            results[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    return results


@pytest.mark.parametrize("count", [7, 1])
@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_the_questions_and_all_have_all_records(
    count: int, world: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    engines = [Echo() for _ in range(world)]
    results = on_every_rank(
        world, lambda rank: asked(count, engines[rank], rank=rank, world_size=world, log_folder=tmp_path), monkeypatch
    )
    assert results == [asked(count, Echo())] * world
    assert Counter(pair for engine in engines for pair in engine.asked) == Counter(
        (f"p{k}", shot) for k in range(count) for shot in range(3)
    )
    for engine in engines:  # a question and its rewrites stay together
        assert all(engine.asked.count((id, 0)) == engine.asked.count((id, 2)) for id, _ in engine.asked)
    assert not list(tmp_path.iterdir())


def test_one_rank_that_fails_ends_all_and_the_others_answers_are_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    engines = [Echo(), Echo(dies_after=1)]
    results = on_every_rank(
        2, lambda rank: asked(5, engines[rank], rank=rank, world_size=2, log_folder=tmp_path), monkeypatch
    )
    for result in results:
        assert isinstance(result, RankFailedError)
        assert "rank 1:" in str(result) and "the engine is gone" in str(result) and "rank 0:" not in str(result)
    again = [Echo(), Echo()]
    results = on_every_rank(
        2, lambda rank: asked(5, again[rank], rank=rank, world_size=2, log_folder=tmp_path), monkeypatch
    )
    assert results == [asked(5, Echo())] * 2
    assert again[0].asked == [] and len(again[1].asked) == 6


def test_a_rank_that_cannot_write_its_log_ends_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "1").write_text("a file where a folder should be")
    results = on_every_rank(
        2, lambda rank: asked(5, Echo(), rank=rank, world_size=2, log_folder=tmp_path / str(rank)), monkeypatch
    )
    assert [type(result) for result in results] == [RankFailedError, RankFailedError]
    assert "rank 1:" in str(results[0])


# Counting once


class Data:
    """What callbacks ask of the data of a run: unsafe questions, without a language of their own."""

    rewriter, pad_to_square, seed, source = None, False, 0, SimpleNamespace(name="test")

    def __init__(self, count: int) -> None:
        self.samples = [replace(sample, rewrites=()) for sample in samples(count)]

    def eval_samples(self, eval_set: str) -> list[EvalSample]:
        return self.samples

    def summary(self) -> dict[str, Any]:
        return {"unsafe": len(self.samples)}


class Module:
    """What callbacks ask of a method; it keeps what is logged."""

    name, pretrained, processor = "rmu", "somewhere", None

    def __init__(self) -> None:
        self.model = torch.nn.Linear(2, 2).requires_grad_(False)
        for parameter in self.model.parameters():
            parameter.zero_()
        self.logged: dict[str, float] = {}

    def log(self, name: str, value: float, **_: Any) -> None:
        self.logged[name] = value


def evaluated(
    count: int, folder: Path, rank: int = 0, world_size: int = 1, word: str = "what"
) -> tuple[dict[str, Any], dict[str, float], Results]:
    """What a validation in a fit counts, logs and writes on this rank."""
    attack = OneWordAttack("unsafe", Rewrite(word, shots=2), Dice(), engine=Echo())
    trainer: Any = SimpleNamespace(
        global_rank=rank, world_size=world_size, is_global_zero=rank == 0, global_step=0, current_epoch=0, ckpt_path=None,
        sanity_checking=False, default_root_dir=folder, state=SimpleNamespace(fn="fit"), callbacks=[attack],
        datamodule=Data(count), estimated_stepping_batches=6.0,
        precision_plugin=SimpleNamespace(forward_context=nullcontext),
    )  # fmt: skip
    module: Any = Module()
    results = Results()
    attack.setup(trainer, module, "fit")
    attack.on_validation_epoch_end(trainer, module)
    results.on_validation_end(trainer, module)
    assert attack.current is not None
    return attack.current, module.logged, results


@pytest.mark.filterwarnings("ignore:.*dice left:UserWarning")
@pytest.mark.parametrize("count", [7, 2, 1])  # uneven shards; of one question the second rank has none
def test_two_ranks_count_as_one_process(count: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    alone, logged, _ = evaluated(count, tmp_path / "alone")
    first, second = on_every_rank(2, lambda rank: evaluated(count, tmp_path / "both", rank, 2), monkeypatch)
    assert first[:2] == second[:2] == (alone, logged)
    written = json.loads((tmp_path / "both" / "results.json").read_text())
    assert first[2].latest == written and second[2].latest is None and first[2].written == second[2].written
    assert written["unsafe"] == alone and (written["schema_version"], written["world_size"]) == (2, 2)
    _, records = read_records(tmp_path / "both" / "records" / "unsafe.jsonl")
    assert records == read_records(tmp_path / "alone" / "records" / "unsafe.jsonl")[1]
    for arm, shots in (("before", {0}), ("after", {1, 2})):
        verdicts: dict[str, list[Verdict]] = {}
        for record in records:
            if record.shot in shots:
                verdicts.setdefault(record.id, []).append(record.verdict)
        ended = Counter(question_verdict(each, unsafe=True) for each in verdicts.values())
        assert (alone[arm]["n"], alone[arm]["unscored"]) == (count, ended[Verdict.UNSCORED])
        for name, verdict in (("asr", Verdict.COMPLIED), ("rr", Verdict.REFUSED), ("ir", Verdict.IRRELEVANT)):
            scored = count - ended[Verdict.UNSCORED]
            assert alone[arm][name]["rate"] == (ended[verdict] / scored if scored else None)
            assert logged.get(f"unsafe/{arm}/{name}") == alone[arm][name]["rate"], "logged as it stands in results.json"


def test_no_question_and_a_word_that_nothing_can_mine_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="The eval_set 'unsafe' is empty"):
        evaluated(0, tmp_path)
    with pytest.raises(ValueError, match=r"attack.word is 'mined', and this OneWordAttack has no audit .* give a word"):
        evaluated(1, tmp_path, word="mined")


# What is asked


def test_a_subset_is_of_questions_with_all_their_rewrites() -> None:
    everything = samples(40)
    some = subsample(everything, 12, seed=3)
    assert len(some) == 12 and all(sample in everything and len(sample.questions) == 3 for sample in some)
    assert [everything.index(sample) for sample in some] == sorted(everything.index(sample) for sample in some)
    assert subsample(everything, 12, seed=3) == some != subsample(everything, 12, seed=4)
    for limit in (None, 40, 41):
        assert subsample(everything, limit, seed=3) == everything


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

    for changed in (
        base[::-1],
        [replace(base[0], question="other"), *base[1:]],
        [replace(base[0], rewrites=("first 0", "other")), *base[1:]],
        [replace(base[0], rewrites=("first 0",)), *base[1:]],
        [replace(base[0], image=FileImage(Path(), "other.png")), *base[1:]],
    ):
        seen.add(samples_fingerprint(changed))
    assert len(seen) == 6
