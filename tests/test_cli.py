"""The command line as a user meets it: a run from end to end, two processes, and one sentence for bad input."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import build_refusal_classifier
from children.processes import run_command
from PIL import Image
from torch import Tensor

from mirage.batch import Pair
from mirage.checkpoint.io import read_checkpoint, resolve_checkpoint
from mirage.cli import main, sentence_of, training_usage, with_shipped_configs
from mirage.data.sources.catalogue import SOURCES
from mirage.evaluation.catalogue import BENCHMARKS
from mirage.methods.base import AlignmentModule
from mirage.methods.catalogue import METHODS
from mirage.schema import RESULTS_KEYS, Record
from mirage.training import run

SMALL = (
    "--data.source.init_args.num_unsafe=24", "--data.source.init_args.num_safe=24", "--data.batch_size=4",
    "--data.num_workers=0", "--trainer.enable_progress_bar=false", "--trainer.check_val_every_n_epoch=1",
)  # fmt: skip
CALLBACK = "--trainer.callbacks=OneWordAttack --trainer.callbacks.eval_set=unsafe"


def small_fit(config: str, root: Path, *extra: str, steps: int = 3) -> list[str]:
    """Arguments of a fit on mini that takes seconds."""
    arguments = ["fit", "--config", config, *SMALL, "--data.source.init_args.num_eval=7"]
    arguments += ["--trainer.max_epochs=1", f"--trainer.limit_train_batches={steps}"]
    return with_shipped_configs([*arguments, f"--trainer.default_root_dir={root}", *extra])


def results_of(root: Path) -> dict[str, Any]:
    return dict(json.loads((root / "results.json").read_text()))


def test_help_is_light() -> None:
    code = (
        "import sys, mirage.cli; mirage.cli.main(['--help']); mirage.cli.main(['fit', '--help']);"
        "assert not {'torch', 'lightning', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "rmu.yaml" in done.stdout and "mirage fit --config" in done.stdout


def test_help_names_every_method_source_and_benchmark() -> None:
    for classes in (METHODS, SOURCES, BENCHMARKS):
        assert ", ".join(sorted(cls.__name__ for cls in classes)) in training_usage("fit")


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

    # the checkpoint measures as the fit did, and without one validate measures the starting model
    evaluate = ["validate", *small_fit("npo.yaml", root)[1:]]
    assert run([*evaluate, "--ckpt_path=last"]) == 0
    again = results_of(root / "validate")
    assert again["unsafe"]["fingerprint"] == results["unsafe"]["fingerprint"]
    assert again["benign"] == results["benign"]
    assert (again["step"], again["epoch"]) == (results["step"], results["epoch"])
    # another attack: the starting model's figures in the checkpoint are not of this attack, so they are not shown
    other = [*CALLBACK.split(), "--trainer.callbacks.attack=OneWord", "--trainer.callbacks.attack.word=what's"]
    assert run([*evaluate, *other, "--trainer.callbacks.judge=Exact", "--ckpt_path=last"]) == 0
    strict = results_of(root / "validate")
    assert strict["unsafe"]["attack"]["kind"] == "one_word" and not strict["start"]
    assert run(evaluate) == 0
    start = results_of(root / "validate")
    assert start["unsafe"]["fingerprint"] == results["start"]["unsafe"]["fingerprint"]
    assert results_of(root) == results, "validate leaves the fit's results alone"

    # a second fit in the same folder loses nothing
    assert run(small_fit("npo.yaml", root, steps=1)) == 0
    assert results_of(root.with_name("npo.1")) == results


@pytest.mark.slow
def test_a_run_is_resumed_in_its_own_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "run"
    shorter = ["--data.max_length=35", "--data.skip_too_long=true"]
    assert run(small_fit("rmu.yaml", root, *shorter)) == 0
    first = results_of(root)
    assert first["data"]["skipped"]
    assert all("the limit is 35" in sentence for sentence in first["data"]["skipped"])
    assert run(small_fit("rmu.yaml", root, *shorter, "--trainer.max_epochs=2", "--ckpt_path=last")) == 0
    assert "held an earlier run" not in capsys.readouterr().out
    assert set(os.listdir(tmp_path)) == {"run", ".activation_cache"}
    second = results_of(root)
    assert (first["epoch"], second["epoch"]) == (0, 1)
    assert second["start"] == first["start"] and second["data"] == first["data"]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["mixed_sft", "rmu", "npo_crossed"])
def test_a_resumed_run_ends_as_an_uninterrupted_one(method: str, tmp_path: Path) -> None:
    straight, halves = tmp_path / "straight", tmp_path / "halves"
    assert run(small_fit(f"{method}.yaml", straight, "--trainer.max_epochs=2")) == 0
    middle = straight / "checkpoints" / "step-00000003.ckpt"
    assert run(small_fit(f"{method}.yaml", halves, "--trainer.max_epochs=2", f"--ckpt_path={middle}")) == 0
    ends = [read_checkpoint(resolve_checkpoint("last", root))["state_dict"] for root in (straight, halves)]
    torch.testing.assert_close(*ends, rtol=0, atol=0)
    for measured in ("unsafe", "benign", "utility", "start"):
        assert results_of(halves)[measured] == results_of(straight)[measured]


@pytest.mark.slow
def test_gradients_are_clipped_in_mixed_precision(tmp_path: Path) -> None:
    """Lightning refuses to clip for a fused AdamW, which would unscale gradients itself; in bfloat16 none are scaled."""
    root = tmp_path / "run"
    # so small a gradient changes nothing, at a learning rate that would otherwise leave no answer as it was
    clipped = ["--trainer.precision=bf16-mixed", "--trainer.gradient_clip_val=1e-14"]
    assert run(small_fit("mixed_sft.yaml", root, *clipped, "--model.init_args.learning_rate=0.01")) == 0
    results = results_of(root)
    assert results["unsafe"]["before"] == results["start"]["unsafe"]["before"]
    assert results["benign"]["before"] == results["start"]["benign"]["before"]


@pytest.mark.slow
def test_one_batch_is_fitted_again_and_again_in_bfloat16(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """RMU swaps in copies that were made before Lightning cast the model; Lightning replaces shuffling samplers."""
    seen: list[tuple[str, ...]] = []
    step = AlignmentModule.training_step

    def recorded(method: AlignmentModule, pair: Pair, batch_idx: int) -> Tensor:
        seen.append((pair.unsafe or pair.retain).example_ids)  # type: ignore[union-attr]
        return step(method, pair, batch_idx)

    monkeypatch.setattr(AlignmentModule, "training_step", recorded)
    overfit = ["--trainer.overfit_batches=3", "--trainer.max_epochs=2", "--trainer.accumulate_grad_batches=2"]
    assert run(small_fit("rmu.yaml", tmp_path / "run", *overfit, "--trainer.precision=bf16-true")) == 0
    assert len(seen) == 6 and len({*seen}) == 3 and seen[:3] == seen[3:]


@pytest.mark.slow
def test_two_processes_count_and_train_as_one(tmp_path: Path) -> None:
    """n = 7 is odd; batch 2 on two ranks is batch 4 on one."""
    for config in ("npo.yaml", "npo_crossed.yaml"):
        one, two = tmp_path / f"one.{config}", tmp_path / f"two.{config}"
        steps = ["--trainer.log_every_n_steps=1", "--trainer.accelerator=cpu"]
        assert run(small_fit(config, one, *steps)) == 0
        ddp = ["--trainer.devices=2", "--trainer.strategy=ddp", "--data.batch_size=2"]
        done = run_command(*small_fit(config, two, *steps, *ddp), ranks=2)
        assert done.returncode == 0, done.stderr[-3000:]
        first, second = results_of(one), results_of(two)
        assert second["world_size"] == 2
        for side in ("unsafe", "benign"):
            assert first["start"][side] == second["start"][side]
            assert first[side]["before"]["n"] == second[side]["before"]["n"] == 7
            assert first[side]["before"] == second[side]["before"] and first[side]["after"] == second[side]["after"]
        assert first["utility"]["mini"]["score"] == second["utility"]["mini"]["score"]
        ours, theirs = losses_in(one), losses_in(two)
        assert len(ours) == 3
        assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-5)


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
        (["--trainer.strategy=fsdp"], "trainer.strategy is fsdp, under which mirage neither"),
        (["--trainer.strategy=deepspeed_stage_3"], "Write `strategy: ModelParallelStrategy`"),
        (
            ["--trainer.strategy=ModelParallelStrategy", "--data.gamma=0.2"],
            "Raise data.batch_size to make it at least 1",
        ),
        (["--trainer.strategy=ModelParallelStrategy", "--trainer.precision=16-mixed"], "Use bf16-mixed or 32-true"),
        (["--data.max_length=20"], "the limit is 20. Raise data.max_length, set"),
        (["--model.init_args.layer=99"], "no decoder layer 99"),
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
    "command",
    [
        ["audit", "--data", "Mini", "--out"],
        ["filter", "--data", "Mini", "--out"],
        ["prepare", "--data", "Mini", "--answers_from", MINI, "--out"],
        ["mini", "build", "--out"],
        ["report", "RUN", "--out"],
        ["export", "RUN", "--to"],
        ["validate", "--config", "rmu.yaml", "--trainer.default_root_dir"],
        ["fit", "--config", "rmu.yaml", "--trainer.default_root_dir"],
    ],
    ids=lambda command: command[0],
)
@pytest.mark.parametrize("place", ["afile", "afile/x", "/proc/x"])
def test_an_output_that_cannot_be_written_is_one_sentence(
    command: list[str], place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for work in ("mirage.evaluation.generate.huggingface.HuggingFaceEngine.answers", "mirage.mini.build.build"):
        monkeypatch.setattr(work, lambda *_, **__: pytest.fail("the work was begun"))
    (tmp_path / "afile").touch()
    assert main([*command, place]) == 1
    (sentence,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("mirage: "))
    assert place.split("/x")[0] in sentence and sentence.endswith(f"Choose another {command[-1]}.")
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
        ("judge x --judge VLGuard", f"--judge VLGuard: it takes one of {JUDGES_ARE}"),
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
            "filter --out o --data Filtered --data.dropped x --data.source Nope",
            f"--data.source Nope: it takes one of {SOURCES_ARE}",
        ),
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
        (
            "fit --config rmu.yaml --trainer.max_epoch=1",
            "unrecognized arguments: --trainer.max_epoch=1. Did you mean trainer.max_epochs?",
        ),
        ("fit --config rmu.yaml --data.gamma=nan", "--data.gamma: it must be a number, not nan"),
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
        ("fit --config rmu.yaml --model.alfa=1", "--model (RMU): Option 'alfa' is not accepted. Did you mean alpha?"),
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
