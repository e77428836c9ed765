"""Logs for Inspect: what its own API reads back is what the run's records and results say."""

from __future__ import annotations

import base64
import io
import math
import shutil
import sys
from itertools import count
from pathlib import Path
from typing import Any

import builders
import inspect_ai.log
import pytest
from builders import record_of, results_of
from inspect_ai.log import EvalSample, list_eval_logs, read_eval_log, resolve_sample_attachments
from PIL import Image

from mirage.cli import main
from mirage.evaluation.run.records import read_records
from mirage.schema import Judgement, Record, Verdict

C, R, I, U = Verdict.COMPLIED, Verdict.REFUSED, Verdict.IRRELEVANT, Verdict.UNSCORED  # noqa: E741
# Every verdict of a question, plain and of its rewrites, by eval set; `typed` is a set with a source of its own.
SHOTS = {
    "unsafe": [(R, R, C), (U, R, I), (C, U, R), (R, I, I)],
    "typed": [(R, C, R), (U, U, U), (I, R, U)],
    "benign": [(C, R), (C, C), (U, I)],
}
IDS = ["a/1", "../b", "ü c", 'd"<b>']


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run whose eval sets have pictures in two folders; one picture is missing, and one question has none."""
    names = [None, "p1.png", "gone.png", "p1.png"]
    records = {
        side: [
            record_of(
                id, shot, verdict, eval_set=side, judge="keyword", unsafe=side != "benign", image=image, category="cat",
                question=f"{side} question {id}, form {shot}", answer=f"an answer, {verdict} <b>", reason=f"why {verdict}",
                other_judges={"exact": Judgement(R, "said no")},
            )
            for id, image, shots in zip(IDS, names, sets, strict=False)
            for shot, verdict in enumerate(shots)
        ]
        for side, sets in SHOTS.items()
    }  # fmt: skip
    folder = builders.write_run(tmp_path / "run", records, {"unsafe": records["unsafe"]}, versions={"torch": "2"})
    sources = []
    for name, colour in (("data", "red"), ("own", "blue")):
        (root := tmp_path / name).mkdir()
        Image.new("RGB", (1000, 500), colour).save(root / "p1.png")
        sources.append({"class_path": "Jsonl", "init_args": {"root": str(root)}})
    callback = {"class_path": "OneWordAttack", "init_args": {"eval_set": "typed", "source": sources[1]}}
    builders.put(folder / "config.yaml", {"data": {"source": sources[0]}, "trainer": {"callbacks": [None, callback]}})
    return folder


def forms_of(sample: EvalSample) -> list[tuple[str, str, Any]]:
    """What the transcript shows of each form: question, answer, score."""
    calls, scores = ([each for each in sample.events if each.event == kind] for kind in ("model", "score"))
    return [
        (call.input[0].content[-1].text, call.output.completion, score.score.value)
        for call, score in zip(calls, scores, strict=True)
    ]


def same(value: Any, verdict: Verdict) -> bool:
    """Whether a score says what a verdict does: an answer without a verdict is NaN, which metrics leave out."""
    return math.isnan(value) if verdict is U else bool(value == verdict.value)


def test_inspect_reads_back_the_records_and_the_figures(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(run), "--to", "inspect", str(tmp_path / "logs")]) == 0
    printed = capsys.readouterr().out
    assert "harmful" in printed and "'gone.png' is missing" in printed and "form 0" not in printed
    files = {Path(info.name).stem: info for info in list_eval_logs(str(tmp_path / "logs"))}
    assert files.keys() == {"unsafe", "typed", "benign", "start.unsafe"}
    results = results_of(run)
    for stem, info in files.items():
        log, side = read_eval_log(info), stem.removeprefix("start.")
        block = (results["start"] if stem != side else results)[side]
        _, records = read_records(run / "records" / f"{stem}.jsonl")
        by_id: dict[str, list[Record]] = {}
        for record in records:
            by_id.setdefault(record.id, []).append(record)
        assert log.status == "success" and (log.eval.task, log.eval.model) == (side, "run" if stem == side else "start")
        assert bool(log.eval.tags) == (side != "benign") == ("harmful" in log.eval.metadata.get("warning", ""))
        assert log.results and log.samples
        expected = {"before": block["before"], "after": block["after"]}
        expected |= {f"shot {shot}": each for shot, each in enumerate(block["per_shot"], start=1)}
        assert [score.name for score in log.results.scores] == list(expected)
        for score, rates in zip(log.results.scores, expected.values(), strict=True):
            assert (score.scored_samples, score.unscored_samples) == (rates["n"] - rates["unscored"], rates["unscored"])
            assert score.metrics.keys() == rates.keys()
            for name, rate in rates.items():
                metric = score.metrics[name]
                if not isinstance(rate, dict):
                    assert metric.value == rate
                elif rate["rate"] is None:
                    assert math.isnan(metric.value)
                else:
                    told = {**metric.metadata, "rate": metric.value}
                    assert told == {**rate, "interval": "Wilson, 95 %"}
            verdicts = [sample.scores[score.name].value for sample in log.samples]  # the rates can be counted from them
            scored = [value for value in verdicts if not (isinstance(value, float) and math.isnan(value))]
            assert len(scored) == score.scored_samples
            if scored:
                assert score.metrics["asr"].value == scored.count("complied") / len(scored)
        assert sorted(str(sample.id) for sample in log.samples) == sorted(by_id)
        for sample in log.samples:
            plain, *rewrites = shots = by_id[str(sample.id)]
            forms = forms_of(resolve_sample_attachments(sample, "full"))
            assert [form[:2] for form in forms] == [(each.question, each.answer) for each in shots]
            assert all(same(form[2], each.verdict) for form, each in zip(forms, shots, strict=True))
            assert sample.target == ("complied" if side == "benign" else "refused")
            assert (sample.messages[0].content[-1].text, sample.messages[1].text) == (plain.question, plain.answer)
            for name, each in [("before", plain), *((f"shot {each.shot}", each) for each in rewrites)]:
                score = sample.scores[name]
                assert same(score.value, each.verdict) and score.answer == each.answer
                assert each.reason in score.explanation and (each.question in score.explanation) == (each.shot > 0)
                assert score.metadata["other_judges"]["exact"]["reason"] == "said no"
            assert sample.scores["after"] in [sample.scores[f"shot {each.shot}"] for each in rewrites]


def test_pictures_are_those_of_each_eval_set_and_a_missing_one_leaves_its_name(run: Path, tmp_path: Path) -> None:
    assert main(["export", str(run), "--to", "inspect", str(tmp_path / "logs")]) == 0
    for stem, colour in (("unsafe", (254, 0, 0)), ("start.unsafe", (254, 0, 0)), ("typed", (0, 0, 254))):
        log = read_eval_log(str(tmp_path / "logs" / f"{stem}.eval"), resolve_attachments="full")
        by_id = {sample.id: sample for sample in log.samples}
        without, shown, gone = [by_id[id].input[0].content for id in IDS[:3]]
        assert [part.type for part in without] == ["text"]
        assert [part.type for part in gone] == ["text", "text"] and "gone.png" in gone[0].text
        kind, _, data = shown[0].image.partition(";base64,")
        picture = Image.open(io.BytesIO(base64.b64decode(data)))
        assert kind == "data:image/jpeg" and picture.size == (640, 320) and picture.getpixel((9, 9)) == colour
        calls = [each for each in by_id[IDS[1]].events if each.event == "model"]
        assert [call.input[0].content[0].image for call in calls] == [shown[0].image] * 3


def test_what_cannot_be_exported_is_refused_and_nothing_is_left(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(run, "bare", ignore=shutil.ignore_patterns("*.jsonl"))
    before = sorted(tmp_path.rglob("*"))

    def refused(arguments: str, said: str) -> None:
        assert main(["export", *arguments.split()]) == 1
        assert said in capsys.readouterr().err
        assert sorted(tmp_path.rglob("*")) == before

    refused("run --to inspect data", "data exists and is not an empty folder")
    refused("bare --to inspect logs", "holds no records")
    refused("run --to inspect logs --judge dice", "none of its judges")
    refused("run --to inspect", "names no method")  # the model, to a folder of this name
    with pytest.raises(SystemExit):
        main(["export", "run", "--to", "inspect", "logs", "--ckpt", "last"])
    assert "ckpt" in capsys.readouterr().err
    calls, write = count(), inspect_ai.log.write_eval_log

    def fail(*arguments: Any) -> None:
        if next(calls) == 2:
            raise OSError(28, "No space left on device", "logs")
        write(*arguments)

    monkeypatch.setattr(inspect_ai.log, "write_eval_log", fail)
    refused("run --to inspect logs", "No space left")
    monkeypatch.setitem(sys.modules, "inspect_ai.log", None)
    refused("run --to inspect logs", "pip install 'safety-mirage[inspect]'")
