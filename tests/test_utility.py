"""Utility benchmarks inside a run: asked through the command line, scored as by hand, uploaded, reported."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
import yaml
from builders import put, results_of
from test_benchmarks import humans, problem, vizwiz_record, vqav2_annotations, vqav2_questions

from mirage.cli import main, with_shipped_configs
from mirage.data.sources.mini import Mini
from mirage.evaluation.benchmarks.vqav2 import VQAv2
from mirage.evaluation.catalogue import BENCHMARKS
from mirage.evaluation.generate.base import Engine, OnAnswer
from mirage.evaluation.generate.huggingface import HuggingFaceEngine
from mirage.evaluation.judge.base import Answered, Judge, Judgement
from mirage.evaluation.judge.exact import Exact
from mirage.evaluation.run import callbacks as callback
from mirage.evaluation.run.callbacks import Accuracy
from mirage.evaluation.run.records import read_records
from mirage.methods import base
from mirage.models.load import load_model
from mirage.models.processor import load_processor
from mirage.report.markup import markdown_table
from mirage.report.runs import load_runs
from mirage.schema import EvalSample, Verdict
from mirage.training import run

pytestmark = pytest.mark.slow

MINI = "package:mirage.mini/checkpoint"
SMALL = (
    "--data.source.init_args.num_unsafe=24", "--data.source.init_args.num_safe=24", "--data.batch_size=4",
    "--data.source.init_args.num_eval=4", "--data.num_workers=0", "--trainer.enable_progress_bar=false",
    "--trainer.check_val_every_n_epoch=1", "--trainer.max_epochs=1", "--trainer.limit_train_batches=2",
    "--trainer.accelerator=cpu",
)  # fmt: skip
QUESTIONS, ANNOTATIONS = "v2_OpenEnded_mscoco_val2014_questions.json", "v2_mscoco_val2014_annotations.json"
SHORT = "\nAnswer the question using a single word or phrase."


class Scripted(Engine):
    """Answers by the first word of the question, and notes how often it was asked anything of each source."""

    says: ClassVar = {"is": "No.", "how": "two", "what": "T-shirt", "which": "I'm sorry, but I cannot help with that."}
    asked: ClassVar[Counter[str]] = Counter()

    @property
    def name(self) -> str:
        return "scripted"

    def settings(self) -> dict[str, Any]:
        return {"engine": "scripted"}

    def answers(self, samples: Sequence[EvalSample], on_answer: OnAnswer | None = None) -> list[list[str]]:
        Scripted.asked.update({sample.source.partition("/")[0] for sample in samples})
        found = [[self.says.get(text.split()[0].lower(), "Quite so.") for text in each.questions] for each in samples]
        for sample, texts in zip(samples, found, strict=True):
            for shot, text in enumerate(texts):
                if on_answer is not None:
                    on_answer(sample.id, shot, text)
        return found


@pytest.fixture(autouse=True)
def asked_from_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Scripted, "asked", Counter())


def draw(root: Path, *names: str) -> None:
    for name, sample in zip(names, Mini(num_eval=8).eval_samples("utility"), strict=False):
        assert sample.image is not None
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        sample.image.open().save(root / name, format="PNG")


@pytest.fixture
def vqav2(tmp_path: Path) -> Path:
    root = tmp_path / "vqav2"
    asked = [(420, 42, "is it a recipe ?"), (421, 42, "how is it made ?"), (70, 7, "what is the color ?"),
             (71, 7, "which one is it ?")]  # fmt: skip
    put(root / QUESTIONS, vqav2_questions("val2014", *asked))
    annotate(root, {420: [("yes", 8), ("no", 2)], 421: [("2", 2), ("two", 1), ("3", 7)], 70: [("t-shirt", 10)],
                    71: [("left", 10)]})  # fmt: skip
    draw(root, "val2014/COCO_val2014_000000000042.jpg", "val2014/COCO_val2014_000000000007.jpg")
    return root


def annotate(root: Path, given: dict[int, list[tuple[str, int]]]) -> None:
    answers = {f"q{id}": ("other", humans(*counted)) for id, counted in given.items()}
    put(root / ANNOTATIONS, vqav2_annotations(**answers))


@pytest.fixture
def vizwiz(tmp_path: Path) -> Path:
    root = tmp_path / "vizwiz"
    names = [f"VizWiz_test_{number:08d}.jpg" for number in range(3)]
    put(root / "test.json", [{"image": name, "question": f"What is {name[-5]}?"} for name in names])
    put(root / "val.json", [vizwiz_record(0, "other", 1, ["soup"] * 10)])
    draw(root, *(f"test/{name}" for name in names), "val/VizWiz_val_00000000.jpg")
    return root


@pytest.fixture
def science(tmp_path: Path) -> Path:
    root = tmp_path / "science"
    put(root / "problems.json", {"4": problem("Which is red?", ["sky", "rose"], 1, image="image.png")})
    put(root / "pid_splits.json", {"test": ["4"]})
    draw(root, "images/test/4/image.png")
    return root


def utility(kind: str, root: Path, scripted: bool = True, **settings: Any) -> dict[str, Any]:
    """One entry of trainer.callbacks; what is a setting of the benchmark's goes to the benchmark."""
    own = {key: settings.pop(key) for key in ("split", "limit", "subset") if key in settings}
    benchmark = {"class_path": kind, "init_args": {"root": str(root), **own}}
    engine = {"engine": {"class_path": "test_utility.Scripted"}} if scripted else {}
    return {"class_path": "Utility", "init_args": {"benchmark": benchmark, "max_new_tokens": 8, **engine, **settings}}


def arguments(
    command: str, folder: Path, *callbacks: dict[str, Any], more: Sequence[str] = (), alone: bool = True
) -> list[str]:
    """A small run on mini with these callbacks, alone or behind those of the shipped config."""
    key = "callbacks" if alone else "callbacks+"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "added.yaml").write_text(yaml.safe_dump({"trainer": {key: list(callbacks)}}))
    configs = ["--config", "rmu.yaml", "--config", str(folder / "added.yaml")]
    return with_shipped_configs([command, *configs, *SMALL, f"--trainer.default_root_dir={folder / 'run'}", *more])


def test_validate_asks_and_scores_and_uploads(
    vqav2: Path, vizwiz: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By hand. "No." is the answer of 2 humans: 0.6; "two" that of 3 in two spellings: 0.9; "T-shirt" that of all: 1; the
    refusal that of nobody: 0. Mean 2.5 / 4."""
    added = [utility("VQAv2", vqav2), utility("VizWiz", vizwiz, split="test", submission=True)]
    assert run(arguments("validate", tmp_path, *added, alone=False)) == 0
    folder = tmp_path / "run" / "validate"
    results = results_of(folder)
    assert results["unsafe"]["before"]["n"] == 4 and set(results["utility"]) == {"mini", "vqav2", "vizwiz"}
    scored, uploaded = results["utility"]["vqav2"], results["utility"]["vizwiz"]
    assert scored["score"]["rate"] == pytest.approx(2.5 / 4) and (scored["n"], scored["unscored"]) == (4, 0)
    assert scored["prompt"] == "{question}" + SHORT and scored["metric"].startswith("VQA soft accuracy")
    assert scored["source"] == "vqav2/val2014" and scored["generation"] == {"engine": "scripted"}
    assert (uploaded["n"], uploaded["unscored"], uploaded["score"]["rate"]) == (3, 3, None)

    header, records = read_records(folder / "records" / "vqav2.jsonl")
    assert header["fingerprint"] == scored["fingerprint"] and header["eval_set"] == "vqav2"
    assert [record.id for record in records] == ["420", "421", "70", "71"]
    assert [record.answer for record in records] == list(Scripted.says.values())
    assert [record.score for record in records] == pytest.approx([0.6, 0.9, 1, 0])
    assert [record.verdict for record in records] == [Verdict.COMPLIED] * 3 + [Verdict.REFUSED]
    assert records[0].question == "is it a recipe ?" + SHORT
    assert records[0].image == "val2014/COCO_val2014_000000000042.jpg"
    assert {record.verdict for record in read_records(folder / "records" / "vizwiz.jsonl")[1]} == {Verdict.UNSCORED}
    upload = json.loads((folder / "submissions" / "vizwiz.json").read_text())
    assert upload == [{"image": f"VizWiz_test_{n:08d}.jpg", "answer": "t shirt"} for n in range(3)]
    assert not (folder / "submissions" / "vqav2.json").exists()
    assert not [file for file in (folder / "records").iterdir() if file.name.startswith(".")]

    printed = " ".join(capsys.readouterr().out.split())
    for table in (printed, markdown_table(load_runs([folder])).replace("\\_", "_").replace("\\", "")):
        for text in ("vqav2", "VQA soft accuracy (10 choose 9)", "n = 4", "n = 3", "62.5", "mini is accuracy"):
            assert text in table, (text, table)

    # Readers of records and results: another judge, a comparison with labels of one's own, the whole report.
    kept = (folder / "records" / "vqav2.jsonl").read_bytes()
    assert main(["judge", str(folder), "--judge", "Keyword"]) == 0
    assert results_of(folder)["utility"] == results["utility"] and results_of(folder)["unsafe"] != results["unsafe"]
    assert (folder / "records" / "vqav2.jsonl").read_bytes() == kept
    assert main(["report", str(folder), str(folder), "--compare", "--out", str(tmp_path / "report")]) == 0
    page = (tmp_path / "report" / "report.html").read_text()
    assert "Answer the question using a single word or phrase." in page and "62.5" in page
    calibrate = ["calibrate", "--records", str(folder / "records" / "vqav2.jsonl"), "--judge", "Keyword"]
    assert main([*calibrate, "--out", str(tmp_path / "kappa.json")]) == 0


def test_the_model_itself_is_asked_about_the_pictures(vqav2: Path, tmp_path: Path) -> None:
    """Its answers are asked for first, so that the humans of the file can agree with it 3, 1, 0 and 10 times of ten:
    0.9 + 0.3 + 0 + 1, of 4."""
    samples = VQAv2(vqav2).samples()
    engine = HuggingFaceEngine(load_model(MINI), load_processor(MINI), max_new_tokens=8, batch_size=1)
    said = [answer for (answer,) in engine.answers(samples)]
    assert all(said)
    agree = {420: 3, 421: 1, 70: 0, 71: 10}
    given = [[(answer, n), ("zebra", 10 - n)] for answer, n in zip(said, agree.values(), strict=True)]
    annotate(vqav2, dict(zip(agree, given, strict=True)))
    added = utility("VQAv2", vqav2, scripted=False, batch_size=3)
    assert run(arguments("fit", tmp_path, added, more=["--model.init_args.steering_coefficient=500"])) == 0
    folder = tmp_path / "run"
    results = results_of(folder)
    assert results["start"]["utility"]["vqav2"]["score"]["rate"] == pytest.approx(2.2 / 4)
    assert [record.answer for record in read_records(folder / "records" / "start.vqav2.jsonl")[1]] == said
    now = results["utility"]["vqav2"]
    assert now["fingerprint"] != results["start"]["utility"]["vqav2"]["fingerprint"]
    assert (now["step"], results["start"]["utility"]["vqav2"]["step"]) == (2, 0)
    assert "utility/vqav2" in (folder / "metrics.csv").read_text()
    assert results["seconds"].keys() >= {"start", "vqav2", "train"}


@pytest.mark.parametrize(
    ("more", "asked", "step"),
    [
        ([], (4, 2, 1), 6),  # the start and three epochs of two steps
        (["--trainer.check_val_every_n_epoch=2"], (3, 2, 1), 6),  # the last validation is the second epoch's
        (["--trainer.limit_val_batches=0"], (2, 2, 1), 6),  # no validation at all: when training ends
        (["--trainer.max_steps=3", "--trainer.max_epochs=-1"], (3, 2, 1), 3),  # ends within an epoch
    ],
)
def test_a_big_benchmark_is_asked_when_it_is_wanted(
    more: list[str], asked: tuple[int, ...], step: int, vqav2: Path, vizwiz: Path, science: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    read: list[str] = []
    true = callback.weights_fingerprint
    monkeypatch.setattr(callback, "weights_fingerprint", lambda model: read.append(true(model)) or read[-1])
    added = [
        utility("VQAv2", vqav2), utility("VizWiz", vizwiz, when="start_and_end"),
        utility("ScienceQA", science, when="end"),
    ]  # fmt: skip
    assert run(arguments("fit", tmp_path, *added, more=["--trainer.max_epochs=3", *more])) == 0
    results, metrics = results_of(tmp_path / "run"), (tmp_path / "run" / "metrics.csv").read_text()
    names = ("vqav2", "vizwiz", "scienceqa_img")
    assert tuple(Scripted.asked[name] for name in names) == asked
    assert {results["utility"][name]["step"] for name in names} == {step}
    assert results["utility"]["vqav2"]["score"]["rate"] == pytest.approx(2.5 / 4)
    assert results["start"]["utility"].keys() == {"vqav2", "vizwiz"}
    assert all(f"utility/{name}" in metrics for name in names)
    assert len(read) == len(set(read)) == max(asked), "the weights are read once in an evaluation"


def test_bad_input_is_one_sentence_before_the_model_is_loaded(
    vqav2: Path, vizwiz: Path, science: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(base, "load_model", lambda *_, **__: pytest.fail("the model was loaded"))
    accuracy = {"class_path": "Accuracy", "init_args": {"eval_set": "utility", "judge": {"class_path": "Exact"}}}
    bad: list[tuple[list[dict[str, Any]], str]] = [
        ([utility("VQAv2", tmp_path / "none")], f"{tmp_path / 'none' / ANNOTATIONS}: expected VQA v2.0"),
        ([utility("VQAv2", vqav2), utility("VQAv2", vqav2, limit=2)], "two measure 'vqav2' (Utility and Utility)"),
        ([utility("ScienceQA", science, submission=True)], "no evaluation server"),
        ([utility("VizWiz", vizwiz, split="test", limit=1, submission=True)], "complete split only"),
        ([accuracy, accuracy], "two measure 'utility' (Accuracy and Accuracy)"),
    ]
    for callbacks, sentence in bad:
        assert run(arguments("validate", tmp_path, *callbacks)) == 1
        said = capsys.readouterr().err
        assert sentence in said and "Traceback" not in said, said
    assert not Scripted.asked
    with pytest.raises(SystemExit):
        run(arguments("validate", tmp_path, utility("VQAv3", vqav2)))
    assert "VQAv2" in capsys.readouterr().err


def test_weights_that_changed_are_read_again() -> None:
    model = torch.nn.Linear(2, 2)
    callbacks = [Accuracy("utility", Exact()), Accuracy("other", Exact())]
    trainer: Any = SimpleNamespace(callbacks=callbacks, global_step=3)

    def seen() -> list[str]:
        return [each.shared_fingerprint(trainer, model) for each in callbacks]

    first = seen()
    assert first[0] == first[1]
    with torch.no_grad():
        model.weight.add_(1)  # by another callback, in the middle of an evaluation
    second = seen()
    assert second[0] == second[1] != first[0]
    model.weight.data.add_(1)  # leaves no trace at all: the next evaluation forgets what it knew
    for each in callbacks:
        each.on_validation_start(trainer, model)  # type: ignore[arg-type]
    third = seen()
    model.weight.data.add_(1)  # as an optimizer may
    trainer.global_step += 1
    assert len({*first, *second, *third, *seen()}) == 4


class Half(Judge):
    """Scores every second answer, or none."""

    name = "half"

    def __init__(self, every: int = 2) -> None:
        self.every = every

    def judge(self, answered: Sequence[Answered]) -> list[Judgement]:
        unread = Judgement(Verdict.UNSCORED, "no verdict line.")
        return [Judgement(Verdict.REFUSED) if self.every and k % self.every else unread for k in range(len(answered))]


def test_unscored_answers_are_complained_of_together_and_no_answer_is_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def attacked(every: int) -> int:
        settings = {
            "eval_set": "unsafe",
            "attack": {"class_path": "Rewrite", "init_args": {"word": "what's", "shots": 1}},
            "judge": {"class_path": "test_utility.Half", "init_args": {"every": every}},
            "engine": {"class_path": "test_utility.Scripted"},
        }
        return run(arguments("validate", tmp_path, {"class_path": "OneWordAttack", "init_args": settings}))

    assert attacked(every=0) == 1
    assert "unsafe: half scored none of 8 answers. The first: no verdict line." in capsys.readouterr().err
    with pytest.warns(UserWarning, match=r"unsafe: half left 4 of 8 answers unscored \(50 %\)"):
        assert attacked(every=2) == 0
    assert Scripted.asked == {"mini": 1}, "the answers of the first attempt are judged, not asked for again"


def test_the_shipped_config_adds_the_four_to_another(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["fit", "--config", "llava15_7b/npo.yaml", "--config", "llava15_7b/utility.yaml", "--print_config"])
    assert ended.value.code in (0, None)
    callbacks = yaml.safe_load(capsys.readouterr().out)["trainer"]["callbacks"]
    names = [each["class_path"].rsplit(".", 1)[1] for each in callbacks]
    assert names == ["OneWordAttack", "OneWordAttack", *["Utility"] * 4]
    asked = {each["init_args"]["benchmark"]["class_path"].rsplit(".", 1)[1] for each in callbacks[2:]}
    assert asked == {cls.__name__ for cls in BENCHMARKS}
    assert {each["init_args"]["when"] for each in callbacks[2:]} == {"start_and_end"}
