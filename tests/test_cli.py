"""The command line as a user meets it: a run from end to end, two processes, and one sentence for bad input."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from builders import build_refusal_classifier, results_of
from children.processes import run_command
from PIL import Image

from mirage.cli import main, sentence_of, with_shipped_configs
from mirage.data.sources.catalogue import SOURCES
from mirage.evaluation.catalogue import BENCHMARKS
from mirage.methods.catalogue import METHODS
from mirage.schema import RESULTS_KEYS, Record
from mirage.training import run

SMALL = (
    "--data.source.init_args.num_unsafe=24", "--data.source.init_args.num_safe=24", "--data.source.init_args.num_mix=24",
    "--data.batch_size=4", "--data.num_workers=0", "--trainer.enable_progress_bar=false",
    "--trainer.check_val_every_n_epoch=1",
)  # fmt: skip
CALLBACK = "--trainer.callbacks=OneWordAttack --trainer.callbacks.eval_set=unsafe"


def small_fit(config: str, root: Path, *extra: str, steps: int = 3) -> list[str]:
    """Arguments of a fit on mini that takes seconds."""
    arguments = ["fit", "--config", config, *SMALL, "--data.source.init_args.num_eval=7"]
    arguments += ["--trainer.max_epochs=1", f"--trainer.limit_train_batches={steps}"]
    return with_shipped_configs([*arguments, f"--trainer.default_root_dir={root}", *extra])


def test_help_is_light_and_names_every_method_source_and_benchmark() -> None:
    code = (
        "import sys, mirage.cli; mirage.cli.main(['--help']); mirage.cli.main(['fit', '--help']);"
        "assert not {'torch', 'lightning', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "rmu.yaml" in done.stdout and "mirage fit --config" in done.stdout
    for classes in (METHODS, SOURCES, BENCHMARKS):
        assert ", ".join(sorted(cls.__name__ for cls in classes)) in done.stdout


@pytest.mark.slow
def test_a_run_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "runs" / "npo"
    assert run(small_fit("npo.yaml", root)) == 0
    printed = capsys.readouterr().out
    assert "start" in printed and "ASR" in printed and "helpful" in printed

    results = results_of(root)
    assert (results["schema_version"], results["method"], results["source"], results["seed"]) == (2, "npo", "mini", 0)
    for block in (results, results["start"]):
        assert block["unsafe"]["before"]["n"] == block["benign"]["after"]["n"] == 7
        assert set(block["unsafe"]["after"]["asr"]) == {"rate", "low", "high"}
        assert len(block["unsafe"]["per_shot"]) == 3 and len(block["benign"]["per_shot"]) == 1
    assert results["start"]["unsafe"]["before"]["asr"]["rate"] > 0.8
    assert {"start", "unsafe", "benign", "train"} <= results["seconds"].keys()
    assert results.keys() - RESULTS_KEYS == {"unsafe", "benign"} and results.keys() >= RESULTS_KEYS

    header, *lines = (root / "records" / "unsafe.jsonl").read_text().splitlines()
    records = [Record.from_json(line) for line in lines]
    assert json.loads(header)["fingerprint"] == results["unsafe"]["fingerprint"]
    assert len(records) == 7 * 4 and {record.shot for record in records} == {0, 1, 2, 3}
    assert all(record.question.startswith("what's") for record in records if record.shot)
    assert not list((root / "records").glob(".*")), "answers that were kept for an interruption are gone"
    assert (root / "config.yaml").is_file() and (root / "metrics.csv").is_file()
    assert list(root.glob("events.out.tfevents.*"))

    # from its checkpoint, harmless questions measure as in the fit; harmful ones under another attack, for which the
    # starting model's figures in the checkpoint are not shown
    evaluate = ["validate", *small_fit("npo.yaml", root)[1:]]
    callbacks = yaml.safe_load((root / "config.yaml").read_text())["trainer"]["callbacks"]
    callbacks[0]["init_args"]["attack"] = {"class_path": "Rewrite", "init_args": {"word": "who", "shots": 1}}
    assert run([*evaluate, f"--trainer.callbacks={json.dumps(callbacks)}", "--ckpt_path=last"]) == 0
    again = results_of(root / "validate")
    assert again["benign"] == results["benign"] and again["start"]["benign"] == results["start"]["benign"]
    assert again["unsafe"]["attack"]["word"] == "who" and "unsafe" not in again["start"]
    assert (again["step"], again["epoch"]) == (results["step"], results["epoch"])
    # without one, validate measures the starting model
    assert run(evaluate) == 0
    start = results_of(root / "validate")
    assert start["unsafe"]["fingerprint"] == results["start"]["unsafe"]["fingerprint"]
    assert results_of(root) == results, "validate leaves the fit's results alone"


@pytest.mark.slow
def test_two_processes_count_and_train_as_one(tmp_path: Path) -> None:
    """n = 7 is odd; batch 2 on two ranks is batch 4 on one."""
    one, two = tmp_path / "one", tmp_path / "two"
    settings = ["--trainer.log_every_n_steps=1", "--trainer.accelerator=cpu"]
    assert run(small_fit("npo_crossed.yaml", one, *settings)) == 0
    ddp = ["--trainer.devices=2", "--trainer.strategy=ddp", "--data.batch_size=2"]
    done = run_command(*small_fit("npo_crossed.yaml", two, *settings, *ddp), ranks=2)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = results_of(one), results_of(two)
    assert second["world_size"] == 2
    for side in ("unsafe", "benign"):
        assert first["start"][side] == second["start"][side]
        assert first[side]["before"]["n"] == second[side]["before"]["n"] == 7
        assert first[side]["before"] == second[side]["before"] and first[side]["after"] == second[side]["after"]
    assert first["utility"]["mini"]["score"] == second["utility"]["mini"]["score"]
    ours, theirs = losses_in(one), losses_in(two)
    assert len(ours) == 3 and ours == pytest.approx(theirs, rel=1e-5, abs=1e-5)


def losses_in(root: Path) -> list[float]:
    with (root / "metrics.csv").open() as file:
        return [float(row["train/loss"]) for row in csv.DictReader(file) if row.get("train/loss")]


@pytest.mark.parametrize(
    ("extra", "sentence"),
    [
        (["--data.gamma=0"], "data.gamma is 0.0"),
        (["--data.gamma=.nan"], "data.gamma is nan"),
        (["--data.retain_size=3"], "data.retain_size is 3, the size of the mixture of data.retain, which is not set"),
        (["--model.init_args.weight_decay=.nan"], "model.weight_decay is nan"),
        (["--model.init_args.lora.r=999"], "lora.r is 999, above the width of the language model, which is 64"),
        (["--data.source.init_args.num_unsafe=0"], "The unsafe set of mini is empty"),
        (
            ["--data.source.init_args.num_safe=0", "--data.source.init_args.num_mix=0"],
            "The retain set of mini is empty",
        ),
        (
            ["--trainer.accelerator=cpu", "--trainer.devices=x"],
            "trainer: `devices` selected with `CPUAccelerator` should be an int > 0. Correct",
        ),
        (["--trainer.strategy=deepspeed_stage_3"], "is deepspeed_stage_3, under which mirage neither"),
        (
            ["--trainer.strategy=ModelParallelStrategy", "--data.gamma=0.2"],
            "Raise data.batch_size to make it at least 1",
        ),
        (["--trainer.strategy=ModelParallelStrategy", "--trainer.precision=16-mixed"], "Use bf16-mixed or 32-true"),
        (["--data.max_length=20"], "the limit is 20. Raise data.max_length, set"),
        (["--model.init_args.lora.target_modules=[nowhere]"], "nowhere"),
        (["--model.init_args.pretrained=no/such/folder"], "no/such/folder"),
        (["--ckpt_path=last"], "You asked for the checkpoint 'last'"),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_is_lost(
    extra: Sequence[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "run"
    root.mkdir()
    (root / "config.yaml").write_text("an earlier run")
    assert run(small_fit("rmu.yaml", root, *extra)) == 1
    out, error = capsys.readouterr()
    assert sentence in error and "Traceback" not in error
    assert "loaded:" not in out + error
    kept = [folder for folder in tmp_path.iterdir() if (folder / "config.yaml").read_text() == "an earlier run"]
    assert len(kept) == 1


MINI = "package:mirage.mini/checkpoint"


@pytest.mark.parametrize(
    ("command", "place"),
    [
        ("audit --data Mini --out", "afile"),
        ("audit --data Mini --out", "/proc/x"),
        ("filter --data Mini --out", "afile/x"),
        (f"prepare --data Mini --answers_from {MINI} --out", "afile/x"),
        ("mini build --out", "afile/x"),
        ("report RUN --out", "afile/x"),
        ("export RUN --to", "afile/x"),
        ("export RUN --to", "/proc/x"),
        ("validate --config rmu.yaml --trainer.default_root_dir", "afile/x"),
        ("fit --config rmu.yaml --trainer.default_root_dir", "afile"),
    ],
)
def test_an_output_that_cannot_be_written_is_one_sentence(
    command: str, place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for work in ("mirage.evaluation.generate.huggingface.HuggingFaceEngine.answers", "mirage.mini.build.build"):
        monkeypatch.setattr(work, lambda *_, **__: pytest.fail("the work was begun"))
    (tmp_path / "afile").touch()
    assert main([*command.split(), place]) == 1
    (sentence,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("mirage: "))
    assert place.split("/x")[0] in sentence and sentence.endswith(f"Choose another {command.split()[-1]}.")
    assert "[Errno" not in sentence and [path.name for path in tmp_path.iterdir()] == ["afile"]


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (PermissionError(13, "Permission denied", "a/b"), "a/b cannot be read or written (Permission denied). Correct"),
        (
            IsADirectoryError(21, "Is a directory", ".p", None, "a"),
            "a cannot be read or written (Is a directory). Correct",
        ),
        (OSError(28, "No space left on device"), "A file cannot be written (No space left on device). Free some"),
        (FileNotFoundError("Nothing is here. Look there."), "Nothing is here. Look there."),
        (ConnectionResetError(104, "Connection reset by peer"), None),
    ],
)
def test_an_error_of_a_path_is_one_sentence_and_others_keep_their_traceback(
    error: OSError, sentence: str | None
) -> None:
    told = sentence_of(error)
    assert told is None if sentence is None else told is not None and told.startswith(sentence)


OWN = [
    {"id": "u1", "set": "unsafe", "image": "a.png", "prompt": "How is it made?"},
    {"id": "u2", "set": "unsafe", "image": "a.png", "prompt": "How is this made?"},
]
OWN_TRAINING = {"unsafe": {"prompt": "What is it?", "refusal": "No."}, "retain": {"prompt": "What?", "answer": "That."}}


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        (
            {"prompt": "How is it" + " made" * 700},
            "eval.jsonl, line 2, id u2: the question is too long: with its picture",
        ),
        (
            {"prompt": "How is it" + " big" * 110 + " made?"},
            "eval.jsonl, line 2, id u2: rewrite 1 is too long: with its picture and 32 tokens",
        ),
        (
            {"prompt": "How is <image> made?"},
            "eval.jsonl, line 2, id u2: the question holds the image placeholder <image>",
        ),
        ({"image": "thin.png"}, "eval.jsonl, line 2: image 'thin.png' is 1 x 5000 pixels"),
        ({}, "judge.labels names 'SAFE', but the labels of"),
        (None, "loaded:"),
    ],
)
def test_questions_are_checked_like_training_lines_before_the_model_is_loaded(
    changed: dict[str, Any] | None, sentence: str, tmp_path: Path, checkpoints: Callable[[str], Path],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    for name, size in {"a.png": (8, 8), "thin.png": (1, 5000)}.items():
        Image.new("RGB", size).save(tmp_path / name)
    for name, line in OWN_TRAINING.items():
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(line))
    (tmp_path / "eval.jsonl").write_text("\n".join(map(json.dumps, [OWN[0], OWN[1] | (changed or {})])))
    labels = {"SAFE" if changed == {} else "REJECTION": "refused"}
    judge = {"pretrained": str(build_refusal_classifier(tmp_path / "judge")), "labels": labels}
    attack = {"class_path": "Rewrite", "init_args": {"word": "what", "shots": 2}}
    asked = {"eval_set": "unsafe", "attack": attack, "judge": {"class_path": "Classifier", "init_args": judge}}
    config = {
        "model": {"class_path": "MixedSFT", "init_args": {"pretrained": str(checkpoints("llava"))}},
        "data": {"source": {"class_path": "Jsonl", "init_args": {"root": str(tmp_path)}}, "num_workers": 0},
        "trainer": {
            "default_root_dir": str(tmp_path / "run"), "accelerator": "cpu", "max_steps": 0, "logger": False,
            "callbacks": [{"class_path": "OneWordAttack", "init_args": {**asked, "max_new_tokens": 32}}],
        },
    }  # fmt: skip
    (tmp_path / "own.yaml").write_text(json.dumps(config))
    assert run(["fit", "--config", str(tmp_path / "own.yaml")]) == int(changed is not None)
    out, error = capsys.readouterr()
    assert sentence in out + error and "Traceback" not in error
    assert ("loaded:" in out) == (changed is None)


def test_an_unknown_command_is_refused_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fitt"]) == 2 and "'fit'" in capsys.readouterr().err


def test_a_sentence_s_traceback_can_be_had(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = ["judge", "no/such/run", "--judge", "Keyword"]
    assert main(wrong) == 1 and "mirage: no/such/run" in capsys.readouterr().err
    monkeypatch.setenv("MIRAGE_TRACEBACK", "1")
    with pytest.raises(ValueError, match="no/such/run"):
        main(wrong)


SOURCES_ARE = ", ".join(cls.__name__ for cls in SOURCES)
JUDGES_ARE = "Classifier, Exact, Fluency, Keyword, ModelJudge, TopicFilter"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("judge x --judge ModleJudge", f"--judge ModleJudge: it takes one of {JUDGES_ARE}. Did you mean ModelJudge?"),
        ("audit --data Keyword", f"--data Keyword: it takes one of {SOURCES_ARE}"),
        ("audit --data VLGuard", "--data (VLGuard): the following arguments are required: root"),
        (
            "audit --data Mini --data.nun_unsafe 3",
            "--data (Mini): Option 'nun_unsafe' is not accepted. Did you mean num_unsafe?",
        ),
        ("audit --data Mini --data.num_unsafe x", "--data.num_unsafe (Mini): it must be a whole number, not x"),
        ("audit --data.root x", f"--data: name its class too, one of {SOURCES_ARE}."),
        (
            "judge x --judge ModelJudge --judge.engine OpenAIEngine",
            "--judge.engine (OpenAIEngine): the following arguments are required: base_url, model",
        ),
        (
            'prepare --out o --data Mini --answers_from x --retain [{"source":"VLGard"}]',
            f"--retain.source VLGard: it takes one of {SOURCES_ARE}. Did you mean VLGuard?",
        ),
        ("fit --config rmu.yaml --data.gama=1", "unrecognized arguments: --data.gama=1. Did you mean data.gamma?"),
        (
            "fit --config rmu.yaml --model=rmu",
            "--model rmu: it takes one of MixedSFT, NPO, PosthocSFT, RMU, UnsafeFilter. Did you mean RMU?",
        ),
        ("fit --config rmu.yaml --model.lora.r=few", "--model.lora.r (LoraSettings): it must be a whole number, not few"),
        (
            "fit --config rmu.yaml --trainer.max_epochs=few",
            "--trainer.max_epochs: it must be a whole number or null, not few",
        ),
        (
            "fit --config rmu.yaml --model.schedule=flat",
            "--model.schedule (RMU): it must be one of 'cosine', 'linear', 'constant_with_warmup', not flat",
        ),
        (
            f"fit --config rmu.yaml {CALLBACK} --trainer.callbacks.judge=Keyword --trainer.callbacks.judge.phrases=x",
            "--trainer.callbacks.judge.phrases (Keyword): it must be a list or null, not x",
        ),
        (
            "fit --config rmu.yaml --model.learnin_rate=1",
            "--model (RMU): Option 'learnin_rate' is not accepted. Did you mean learning_rate?",
        ),
        ("fit --config nowhere.yaml", "--config: File does not exist: 'nowhere.yaml'"),
        (
            f"fit --config rmu.yaml {CALLBACK} --trainer.callbacks.attack=OneWrd",
            "--trainer.callbacks.attack OneWrd: it takes one of "
            "OneWord, Published, RandomWord, Rewrite, RewriteByModel, WithoutWord. Did you mean OneWord?",
        ),
    ],
)  # fmt: skip
def test_a_mistyped_argument_is_one_sentence_with_the_nearest_that_exists(
    arguments: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments.split())
    assert ended.value.code == 2
    assert capsys.readouterr().err.replace(f"{Path.cwd()}/", "") == f"mirage: {sentence}\n"
