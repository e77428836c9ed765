"""Counting over shards, answers that survive an interruption, and asking together."""

from __future__ import annotations

import json
import random
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from mirage.evaluation.generate.base import Engine, OnAnswer
from mirage.evaluation.judge.base import Answered, Judge, Judgement
from mirage.evaluation.judge.kept import BLOCK
from mirage.evaluation.run import runner as asking
from mirage.evaluation.run.counting import summarise
from mirage.evaluation.run.metrics import VerdictCounts
from mirage.evaluation.run.records import AnswerLog, read_records, sorted_by_sample, write_records
from mirage.evaluation.run.runner import RankFailedError, ask, samples_fingerprint, subsample, weights_fingerprint
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


def random_records(questions: int, shots: int, seed: int, unsafe: bool = True) -> list[Record]:
    draw = random.Random(seed)
    return [
        Record(
            id=f"q{k}", eval_set="unsafe", shot=shot, question="?", answer="!", judge="dice", unsafe=unsafe,
            verdict=draw.choices(VERDICTS, [4, 4, 1, 1])[0],
        )
        for k in range(questions)
        for shot in range(shots + 1)
    ]  # fmt: skip


def shots_of(records: Sequence[Record], id: str) -> list[Verdict]:
    return [record.verdict for record in records if record.id == id]


# Counting


@pytest.mark.parametrize("unsafe", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_metric_and_summary_count_the_same(unsafe: bool, seed: int) -> None:
    records = random_records(questions=random.Random(seed).randint(1, 60), shots=1 + seed % 3, seed=seed, unsafe=unsafe)
    metric = VerdictCounts(unsafe)
    for id in dict.fromkeys(record.id for record in records):
        metric.update(shots_of(records, id))
    rates, summary = metric.compute(), summarise(records, unsafe)
    for arm in ("before", "after"):
        for short in ("asr", "rr", "ir"):
            expected = summary[arm][short]["rate"]
            found = float(rates[f"{arm}/{short}"])
            assert found == pytest.approx(expected) if expected is not None else found != found
        assert int(metric.counts[("before", "after").index(arm)].sum()) == summary[arm]["n"]


class Ranks:
    """Metrics of several processes, each of which sees the others' counts as torchmetrics would gather them."""

    def __init__(self, world: int) -> None:
        self.metrics = [VerdictCounts(unsafe=True) for _ in range(world)]
        for metric in self.metrics:
            metric.distributed_available_fn = lambda: True  # type: ignore[method-assign]
            metric.dist_sync_fn = lambda *_, **__: [other.counts.clone() for other in self.local]

    def together(self) -> list[dict[str, float]]:
        self.local = [VerdictCounts(unsafe=True) for _ in self.metrics]
        for copy, metric in zip(self.local, self.metrics, strict=True):
            copy.counts = metric.counts.clone()
        return [{name: float(value) for name, value in metric.compute().items()} for metric in self.metrics]


@pytest.mark.filterwarnings("ignore:The ``compute`` method:UserWarning")  # an empty shard is no mistake here
@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("questions", [7, 1, 2])
def test_shards_add_up_to_the_whole_even_if_some_are_empty(questions: int, world: int) -> None:
    records = random_records(questions, shots=3, seed=questions)
    records = [replace(record, verdict=Verdict.COMPLIED) if record.id == "q0" else record for record in records]
    whole, ranks = VerdictCounts(unsafe=True), Ranks(world)
    for k in range(questions):
        whole.update(shots_of(records, f"q{k}"))
        ranks.metrics[k % world].update(shots_of(records, f"q{k}"))
    expected = {name: float(value) for name, value in whole.compute().items()}
    assert ranks.together() == [expected] * world


def test_counts_are_exact_where_float32_would_stand_still() -> None:
    ranks = Ranks(2)
    for metric in ranks.metrics:
        metric.counts = metric.counts + 2**24
        metric.update([Verdict.COMPLIED, Verdict.COMPLIED])
        assert metric.counts.dtype == torch.int64
    merged = sum(metric.counts for metric in ranks.metrics)
    assert merged[0].tolist() == [2 * 2**24 + 2 * (verdict is Verdict.COMPLIED) for verdict in VERDICTS]  # type: ignore[index]


def test_unscored_is_not_safe_and_nothing_scored_is_no_rate() -> None:
    metric = VerdictCounts(unsafe=True)
    metric.update([Verdict.UNSCORED, Verdict.REFUSED, Verdict.UNSCORED])
    assert all(value != value for value in metric.compute().values())  # nan
    metric.update([Verdict.REFUSED])  # not attacked
    rates = metric.compute()
    assert rates["before/rr"] == 1.0 and rates["before/asr"] == 0.0 and rates["after/rr"].isnan()


# Answers that survive


def test_a_log_gives_back_what_it_was_told(tmp_path: Path) -> None:
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
        replace(record, question=text, answer=text, reason=text, category=text or None, image=text or None)
        for record, text in zip(random_records(len(ODD_TEXTS), 0, seed=1), ODD_TEXTS, strict=True)
    ]
    write_records(path, records, {"fingerprint": "f1", "judge": "dice"})
    assert read_records(path) == ({"fingerprint": "f1", "judge": "dice"}, records)
    assert len(path.read_text().split("\n")) == len(records) + 2  # a line each
    for line in ("{}", '{"id": 3', "[]", json.dumps({**json.loads(records[0].to_json()), "verdict": "safe"})):
        with path.open("a") as file:
            file.write(line + "\n")
        with pytest.raises(ValueError, match=rf"unsafe\.jsonl, line {len(records) + 2}: .*Evaluate the run again"):
            read_records(path)
        write_records(path, records, {})
    path.write_text("no header")
    with pytest.raises(ValueError, match="is not a records file"):
        read_records(path)


def test_records_stand_in_the_order_of_the_samples() -> None:
    records = random_records(4, 2, seed=0)
    shuffled = random.Random(1).sample(records, len(records))
    assert sorted_by_sample(shuffled, ["q2", "q0", "q3", "q1"]) == [
        record for id in ("q2", "q0", "q3", "q1") for record in records if record.id == id
    ]


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
        told = []
        for sample in samples:
            for shot, question in enumerate(sample.questions):
                if self.dies_after is not None and len(self.asked) >= self.dies_after:
                    raise ConnectionError("the engine is gone")
                self.asked.append((sample.id, shot))
                if on_answer is not None:
                    on_answer(sample.id, shot, f"you said: {question}")
            told.append([f"you said: {question}" for question in sample.questions])
        return told


class Dice(Judge):
    """A verdict that depends on the answer alone."""

    name = "dice"

    def judge(self, answered: Sequence[Answered]) -> list[Judgement]:
        return [Judgement(VERDICTS[sum(one.answer.encode()) % 4], one.answer[::-1]) for one in answered]


def asked(count: int, engine: Engine, **given: Any) -> list[Record]:
    return ask(samples(count), engine, Dice(), eval_set="unsafe", **{"fingerprint": "f1", **given})


def test_every_answer_is_judged_and_recorded_in_order() -> None:
    records = asked(3, Echo())
    assert [(record.id, record.shot) for record in records] == [(f"p{k}", shot) for k in range(3) for shot in range(3)]
    for record, question in zip(records, (q for sample in samples(3) for q in sample.questions), strict=True):
        answer = f"you said: {question}"
        verdict, reason = Dice().judge([Answered(samples(1)[0], question, answer)])[0]
        assert (record.question, record.answer, record.verdict, record.reason) == (question, answer, verdict, reason)
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
        ask(samples(3), Echo(), Down(), eval_set="unsafe", fingerprint="f1", log_folder=tmp_path)
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

    given = {"eval_set": "unsafe", "fingerprint": "f1", "log_folder": tmp_path}
    n = 60
    shots = len(samples(1)[0].questions)
    with pytest.raises(ConnectionError):
        ask(samples(n), Echo(), Slow(dies_after=BLOCK), **given)
    engine, judge = Echo(), Slow(dies_after=10**6)
    assert ask(samples(n), engine, judge, **given) == ask(
        samples(n), Echo(), Slow(10**6), eval_set="unsafe", fingerprint=""
    )
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

    class Drawn:
        name = "drawn"

        def open(self) -> Any:
            raise NotImplementedError

    for changed in (
        base[::-1],
        [replace(base[0], question="other"), *base[1:]],
        [replace(base[0], rewrites=("first 0", "other")), *base[1:]],
        [replace(base[0], rewrites=("first 0",)), *base[1:]],
        [replace(base[0], image=Drawn()), *base[1:]],
    ):
        seen.add(samples_fingerprint(changed))
    assert len(seen) == 6
