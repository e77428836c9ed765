"""Answers that survive an interruption, asking together, and counting once whatever the number of ranks."""

from __future__ import annotations

import json
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from builders import record_of

from mirage.data.lazy import sampled
from mirage.evaluation.attack import Rewrite
from mirage.evaluation.generate.base import Engine, OnAnswer
from mirage.evaluation.judge.base import Answered, Judge, Judgement
from mirage.evaluation.judge.kept import BLOCK
from mirage.evaluation.run import runner as asking
from mirage.evaluation.run.callbacks import OneWordAttack
from mirage.evaluation.run.counting import summarise
from mirage.evaluation.run.records import AnswerLog, read_records, write_records
from mirage.evaluation.run.results import Results
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


def test_a_log_gives_back_what_was_added(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log = AnswerLog(path, "f1")
    for shot, text in enumerate(ODD_TEXTS):
        log.add("a b", shot, text)
    # without a close: the writer was killed
    assert kept_in(path, "f1", ("c", 0, "half \ud800")) == {("a b", shot): text for shot, text in enumerate(ODD_TEXTS)}
    assert kept_in(path)["c", 0] == "half ?"


def test_a_half_line_is_dropped_wherever_it_was_cut(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    kept_in(path, "f1", ("first", 0, "kept"))
    whole = path.stat().st_size
    kept_in(path, "f1", ("second", 1, "caf\u00e9 \U0001f642"))
    written = path.read_bytes()
    for end in range(whole, len(written)):  # also in the middle of a character
        path.write_bytes(written[:end])
        assert kept_in(path, "f1", ("third", 0, "after")) == {("first", 0): "kept"}
        assert kept_in(path) == {("first", 0): "kept", ("third", 0): "after"}


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
    for line, wrong in (
        ("{}", "id"), ('{"id": 3', "the line"), ("[" * 10**5, "the line"), ("[]", "the record"),
        *((json.dumps({**good, name: value}), name) for name, value in (
            ("verdict", "safe"), ("shot", True), ("shot", "1"), ("score", "0.5"), ("unsafe", 1), ("answer", None),
        )),
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
    with pytest.raises(ValueError, match=r"unsafe\.jsonl was written by an earlier mirage \(results schema 1\): eval"):
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
    expected = []
    for sample in samples(3):
        for shot, question in enumerate(sample.questions):
            answer = f"you said: {question}"
            (judgement,) = Dice().judge([Answered(sample, question, answer)])
            said = {"question": question, "answer": answer, "category": sample.category, **judgement._asdict()}
            expected.append(record_of(sample.id, shot, **said))
    assert asked(3, Echo()) == expected


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


SHOTS = 3  # of each question, the plain one included


def test_an_interrupted_evaluation_asks_no_finished_question_twice(tmp_path: Path) -> None:
    with pytest.raises(ConnectionError):
        asked(5, Echo(dies_after=2 * SHOTS + 1), log_folder=tmp_path)  # two questions, and one answer of the third
    with pytest.raises(ConnectionError):  # other settings ask everything, and leave what is kept alone
        asked(5, other := Echo(dies_after=4 * SHOTS), log_folder=tmp_path, fingerprint="f2")
    assert len(other.asked) == 4 * SHOTS
    second = Echo()
    records = asked(5, second, log_folder=tmp_path)
    assert sorted(second.asked) == [(f"p{k}", shot) for k in (2, 3, 4) for shot in range(SHOTS)]
    assert records == asked(5, Echo())
    assert not list(tmp_path.iterdir()), "the records hold the answers now, and overtake other attempts"


def test_what_is_kept_of_an_eval_set_is_left_to_it(tmp_path: Path) -> None:
    """An eval set whose name begins with that of another and a dot, and one that is a pattern of file names."""
    for name in ("unsafe.harder", "unsafe.f0"):
        with pytest.raises(ConnectionError):
            asked(5, Echo(dies_after=4), log_folder=tmp_path, eval_set=name)
    kept = sorted(tmp_path.iterdir())
    asked(5, Echo(), log_folder=tmp_path)
    asked(5, Echo(), log_folder=tmp_path, eval_set="unsafe*")
    assert sorted(tmp_path.iterdir()) == kept and len(kept) == 2


@pytest.mark.parametrize("judged", [0, BLOCK])
def test_answers_and_verdicts_are_kept_when_the_judge_fails(judged: int, tmp_path: Path) -> None:
    n = 60
    with pytest.raises(ConnectionError):
        asked(n, Echo(), Down(dies_after=judged), log_folder=tmp_path)
    engine, judge = Echo(), Down()
    assert asked(n, engine, judge, log_folder=tmp_path) == asked(n, Echo(), Down())
    assert engine.asked == [] and judge.read == n * SHOTS - judged and not list(tmp_path.iterdir())


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

    def run(rank: int) -> Any:
        own.rank = rank
        return work(rank)

    with ThreadPoolExecutor(world) as pool:
        ended = [pool.submit(run, rank) for rank in range(world)]
    return [one.exception() or one.result() for one in ended]


def asked_by(engines: Sequence[Echo], count: int, folder: Path, patch: pytest.MonkeyPatch) -> list[Any]:
    """What every rank has, or raised, when each asks with its engine."""
    world = len(engines)
    settings = {"world_size": world, "log_folder": folder}
    return on_every_rank(world, lambda rank: asked(count, engines[rank], rank=rank, **settings), patch)


@pytest.mark.parametrize("count", [7, 1])
@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_the_questions_and_all_have_all_records(
    count: int, world: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
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
    settings = {"world_size": 2, "fingerprint": "f2"}
    work = lambda rank: asked(5, Echo(), rank=rank, log_folder=folders[rank], **settings)
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


# Counting once


def evaluated(
    count: int, folder: Path, rank: int = 0, world_size: int = 1, word: str = "what"
) -> tuple[dict[str, Any], dict[str, float], Results]:
    """What a validation in a fit counts, logs and writes on this rank."""
    attack = OneWordAttack("unsafe", Rewrite(word, shots=2), Dice(), engine=Echo())
    plain = [replace(sample, rewrites=()) for sample in samples(count)]
    data = SimpleNamespace(
        rewriter=None, pad_to_square=False, seed=0, source=SimpleNamespace(name="test"), eval_samples=lambda _: plain,
        summary=lambda: {"unsafe": count},
    )  # fmt: skip
    trainer: Any = SimpleNamespace(
        global_rank=rank, world_size=world_size, is_global_zero=rank == 0, global_step=0, current_epoch=0, ckpt_path=None,
        sanity_checking=False, default_root_dir=folder, state=SimpleNamespace(fn="fit"), callbacks=[attack],
        datamodule=data, estimated_stepping_batches=6.0, precision_plugin=SimpleNamespace(forward_context=nullcontext),
    )  # fmt: skip
    logged: dict[str, float] = {}
    module: Any = SimpleNamespace(
        name="rmu", pretrained="somewhere", processor=None, model=torch.nn.Identity(),
        log=lambda name, value, **_: logged.update({name: value}),
    )  # fmt: skip
    results = Results()
    attack.setup(trainer, module, "fit")
    attack.on_validation_epoch_end(trainer, module)
    results.on_validation_end(trainer, module)
    assert attack.current is not None
    return attack.current, logged, results


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
    counted = summarise(records, unsafe=True)
    assert alone == {**alone, **counted} and counted["before"]["n"] == counted["after"]["n"] == count
    rates = {
        f"unsafe/{arm}/{name}": alone[arm][name]["rate"] for arm in ("before", "after") for name in ("asr", "rr", "ir")
    }
    assert logged == {name: rate for name, rate in rates.items() if rate is not None}, "as they stand in results.json"


def test_no_question_and_a_word_that_nothing_can_mine_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="The eval_set 'unsafe' is empty"):
        evaluated(0, tmp_path)
    with pytest.raises(ValueError, match=r"attack.word is 'mined', and this OneWordAttack has no audit .* give a word"):
        evaluated(1, tmp_path, word="mined")


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
