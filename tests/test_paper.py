"""`mirage paper`: the table's figures, what --dry-run says, and all rows on a tiny LLaVA, killed once and continued."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import yaml
from builders import put
from children.processes import run_command
from test_benchmarks import (
    ANNOTATIONS,
    QUESTIONS,
    TEXTS,
    TOKENS,
    problem,
    vizwiz_record,
    vqav2_annotations,
    vqav2_questions,
)
from test_sources import picture, safe, spavl_tables, unsafe, vlguard, write_lines

from mirage.cli import main
from mirage.paper.plan import planned, table

LAYERS = 16  # the row RMU-LoRA steers layer 15

# Small questions, batches and answers; everything else of the rows is as it is shipped.
OVERRIDES: dict[str, Any] = {
    "model": {"init_args": {"gradient_checkpointing": False}},
    "data": {"batch_size": 1, "gamma": 1.0, "max_length": 400, "num_workers": 0},
    "trainer": {
        "accelerator": "cpu", "devices": 1, "strategy": "auto", "precision": "32-true", "max_epochs": 1,
        "check_val_every_n_epoch": 1, "limit_train_batches": 1, "enable_progress_bar": False, "logger": False,
    },
    "callbacks": {"OneWordAttack": {"max_new_tokens": 3}, "Utility": {"max_new_tokens": 2}},
    "rows": {
        name + form: {"data": {"retain_size": 4}} | ({"model": {"init_args": {"lora": {"r": 8}}}} if form else {})
        for name in ("posthoc_sft", "npo", "rmu")
        for form in ("", "_lora")
    } | {name: {"model": {"init_args": {"lora": {"r": 8}}}} for name in ("unsafe_filter_lora", "mixed_sft_lora")},
}  # fmt: skip


def tiny_llava(folder: Path) -> Path:
    """A LLaVA checkpoint with as many decoder layers as the rows name."""
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    tiny_models.build("llava", folder)
    config = AutoConfig.from_pretrained(folder)
    config.text_config.num_hidden_layers = LAYERS
    torch.manual_seed(0)
    AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
    return folder


def official_files(data: Path) -> None:
    """A few records of our own in every official format that the rows read."""
    import datasets

    train = [*(safe(f"s{k}") for k in range(4)), *(unsafe(f"u{k}") for k in range(4))]
    (data / "vlguard").mkdir(parents=True)
    vlguard(data / "vlguard", train, [safe("t1"), safe("t2"), unsafe("v1"), unsafe("v2")])
    harmful = [{"id": f"u{k}/instruction", "answer": "With a crowbar."} for k in range(4)]
    write_lines(data / "vlguard" / "harmful_answers.jsonl", harmful)
    for name, columns in spavl_tables(data).items():
        if name != "train":
            features = datasets.Features({key: datasets.Image() if key == "image" else datasets.Value("string")
                                          for key in columns})  # fmt: skip
            (data / "spavl" / "test").mkdir(parents=True, exist_ok=True)
            rows = datasets.Dataset.from_dict(columns, features=features)
            rows.to_parquet(str(data / "spavl" / "test" / f"{name}-00000-of-00001.parquet"))
    said = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A door."}]
    mix = [{"id": str(k), "image": "coco/train2017/0.png", "conversations": said} for k in range(6)]
    for name in ("llava_v1_5_mix665k", "llava_v1_5_mix_clean"):
        put(data / "llava" / f"{name}.json", mix)
    for folder in (
        "coco/train2017",
        "gqa/images",
        "ocr_vqa/images",
        "textvqa/train_images",
        "vg/VG_100K",
        "vg/VG_100K_2",
    ):
        picture(data / "llava" / folder / "0.png")
    ten = ["yes"] * 10
    put(data / "vqav2" / QUESTIONS, vqav2_questions("val2014", (420, 42, "is it wet ?")))
    put(data / "vqav2" / ANNOTATIONS, vqav2_annotations(q420=("yes/no", ten)))
    picture(data / "vqav2" / "val2014" / "COCO_val2014_000000000042.jpg")
    asked = {"question_id": 1, "image_id": "003a", "question": "what brand ?", "answers": ten}
    put(data / "textvqa" / TEXTS, {"dataset_version": "0.5.1", "dataset_type": "val", "data": [asked]})
    tokens = [{"image_id": "003a", "ocr_tokens": ["LEVI'S"]}]
    put(data / "textvqa" / TOKENS, {"dataset_version": "0.2", "dataset_type": "val", "data": tokens})
    picture(data / "textvqa" / "train_images" / "003a.jpg")
    put(data / "scienceqa" / "problems.json", {"4": problem("Which is red?", ["sky", "rose"], 1, image="image.png")})
    put(data / "scienceqa" / "pid_splits.json", {"test": ["4"]})
    picture(data / "scienceqa" / "images" / "test" / "4" / "image.png")
    put(data / "vizwiz" / "val.json", [vizwiz_record(0, "other", 1, ten)])
    picture(data / "vizwiz" / "val" / "VizWiz_val_00000000.jpg")


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("paper")
    whole = tiny_llava(root / "models" / "llava-1.5-7b-hf")
    for name in ("llava-1.5-7b-before-tuning", "llava-1.5-7b-lora-hf"):
        (root / "models" / name).symlink_to(whole)
    official_files(root / "data")
    (root / "small.yaml").write_text(yaml.safe_dump(OVERRIDES))
    return root


def arguments(material: Path, *more: str) -> list[str]:
    folders = ["--models", str(material / "models"), "--data", str(material / "data"), "--out", str(material / "out")]
    return ["paper", *folders, "--overrides", str(material / "small.yaml"), *more]


def test_the_published_figures_are_those_of_the_poster() -> None:
    """They are shares of 442, 556 or 558, and 265 questions (795 rewrites), but for those that are known not to be."""

    def odd(at: int, *counts: int) -> list[float]:
        figures = [row["published"][at] for row in table()["rows"].values() if "published" in row]
        assert len(figures) == 12
        return [x for x in figures if not any(round(100 * round(x * n / 100) / n, 2) == x for n in counts)]

    assert [odd(0, 442), odd(1, 442)] == [[65.66, 1.29, 64.72, 4.56, 3.87], [12.92, 18.29, 11.14]]
    assert [odd(4, 556, 558), odd(5, 556, 558)] == [[], [7.56, 11.01]]
    assert [odd(2, 265), odd(3, 795), odd(6, 265), odd(7, 265)] == [[17.73], [37.73, 24.24], [], [19.24]]
    rows = [row["published"] for row in table()["rows"].values() if "published" in row]
    assert [round(sum(column), 2) for column in zip(*rows, strict=True)][8:] == [937.75, 690.56, 816.3, 618.48]
    of = table()["rows"]
    assert round(of["mixed_sft"]["published"][5] - of["rmu"]["published"][5], 2) == 84.20  # the abstract's


def test_a_dry_run_names_what_is_missing_and_what_it_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = ["--models", str(tmp_path / "m"), "--data", str(tmp_path / "d"), "--out", str(tmp_path / "out")]
    assert main(["paper", *folders, "--dry-run", "--rows", "base", "npo"]) == 0
    said = capsys.readouterr().out
    for name in ("m/llava-1.5-7b-hf/*.safetensors", "d/vlguard/test.json", "d/llava/vg/VG_100K_2",
                 "d/vizwiz/val.json", "d/spavl/test/harm-*.parquet"):  # fmt: skip
        assert str(tmp_path / name) in said
    assert "missing, needed by npo:\n  " + str(tmp_path / "d/vlguard/harmful_answers.jsonl") in said
    assert "from: hf download llava-hf/llava-1.5-7b-hf --local-dir " + str(tmp_path / "m/llava-1.5-7b-hf") in said
    row = next(line.split() for line in said.splitlines() if line.startswith(" npo"))
    # by hand: 2 epochs x 1,004 x 2 examples x 750 tokens x 8 operations x 7.06e9 over 40 % of 989 TFLOP/s; docs/cluster.md
    assert row == ["npo", "fit", "0.1", row[3], "16"] and 1 < float(row[3]) < 4
    assert not (tmp_path / "out").exists()
    assert main(["paper", *folders, "--rows", "npo"]) == 1
    told = capsys.readouterr()
    assert "npo: missing: " in told.err and "No row is finished" in told.out and "1 of 1 rows" in told.err
    assert main(["paper", *folders, "--rows", "nop"]) == 1 and "no row 'nop'" in capsys.readouterr().err


def test_overrides_lie_over_every_config(tmp_path: Path) -> None:
    text = {
        "trainer": {"devices": 2, "callbacks+": [{"class_path": "Timer", "init_args": {}}]},
        "data": {"source": {"class_path": "Jsonl", "init_args": {"root": "data/own"}}},
        "callbacks": {
            "OneWordAttack": {"judge": {"class_path": "Exact"}},
            "Utility": {"benchmark": {"init_args": {"limit": 7}}},
        },
    }  # fmt: skip
    (tmp_path / "over.yaml").write_text(yaml.safe_dump(text))
    rows = planned(tmp_path / "m", tmp_path / "d", tmp_path / "out", tmp_path / "over.yaml", released=True)
    assert len(rows) == 16 and [row.name for row in rows if row.trains] == [
        "rmu", "npo_lora", "rmu_lora", "mixed_sft_crossed", "posthoc_sft_crossed", "npo_crossed", "rmu_crossed",
    ]  # fmt: skip
    for row in rows:
        trainer, data = row.config["trainer"], row.config["data"]
        assert (trainer["devices"], trainer["accelerator"]) == (2, "gpu")
        assert data["source"]["init_args"] == {"root": str(tmp_path / "d/own")}, "another class: its own settings alone"
        attacks, benchmarks = trainer["callbacks"][:4], trainer["callbacks"][4:8]
        assert trainer["callbacks"][8]["class_path"] == "Timer"
        assert {each["init_args"]["judge"]["class_path"] for each in attacks} == {"Exact"}
        assert [each["init_args"]["benchmark"]["init_args"]["limit"] for each in benchmarks] == [7] * 4
        assert {each["init_args"]["when"] for each in benchmarks} == {"end"}
    assert rows[2].config["model"]["init_args"]["pretrained"] == str(tmp_path / "m/llava-1.5-7b-mixed-hf")
    for content, says in (
        ("callbacks: {OneWord: {limit: 1}}", "no row has a OneWord"), ("rows: {nop: {}}", "no row 'nop'"),
        ("- 1", "holds no settings"), ("model: 3", "does not go with the config of base"),
    ):  # fmt: skip
        (tmp_path / "over.yaml").write_text(content)
        with pytest.raises(ValueError, match=says):
            planned(tmp_path, tmp_path, tmp_path, tmp_path / "over.yaml")


def called_in_a_fork(arguments: Sequence[str], log: Path) -> tuple[int, str]:
    """As `mirage.paper.running.call`, by a process that does not import torch anew."""
    log.parent.mkdir(parents=True, exist_ok=True)
    done = run_command(*arguments)
    log.write_text(done.stdout + done.stderr)
    return done.returncode, done.stderr


@pytest.mark.slow
def test_twelve_rows_killed_once_and_continued_end_in_one_page(
    material: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [name for name, row in table()["rows"].items() if "published" in row]
    given = arguments(material, "--rows", *rows)
    out = material / "out"
    process = subprocess.Popen([sys.executable, "-m", "mirage", *given], start_new_session=True, env=os.environ | {
        "PYTHONPATH": os.pathsep.join(sys.path)})  # fmt: skip
    while process.poll() is None and not (out / "mixed_sft" / "config.yaml").exists():  # the third row has begun
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and not (out / "mixed_sft" / "results.json").exists()
    done = {file: file.stat().st_mtime_ns for file in out.rglob("results.json")}
    assert len(done) == 2

    monkeypatch.setattr("mirage.paper.running.call", called_in_a_fork)
    assert main(given) == 0
    said = capsys.readouterr().out
    assert [f"{name}: finished" in said for name in rows] == [True] * 2 + [False] * 10
    assert {file: file.stat().st_mtime_ns for file in done} == done
    results = json.loads((out / "mixed_sft" / "results.json").read_bytes())
    assert (results["method"], results["step"], results["planned_steps"]) == ("mixedsft", 1, 1)
    lines = [line.split(" | ") for line in (out / "table.md").read_text().splitlines() if " / " in line]
    cells = [line[1:] for line in lines if len(line) == 13][1:]
    assert len(cells) == 16
    ours, published = ([[cell.split(" / ")[at].rstrip(" |") for cell in row] for row in cells] for at in (0, 1))
    assert all("-" not in row for row in ours[:12]) and all({*row} == {"-"} for row in ours[12:])
    assert published[5][1] == "10.18" and {*published[12]} == {"-"}
    html = (out / "report.html").read_text()
    for part in (
        "Figure 1",
        "Figure 3",
        "Figure 4",
        "10.18",
        "LLaVA-1.5-7B-LoRA: Refusal of spavl_benign (RR)",
        "svg+xml;base64",
    ):
        assert part in html
    assert html.count("<svg") == 8

    again = {**OVERRIDES, "rows": {**OVERRIDES["rows"], "rmu": {**OVERRIDES["rows"]["rmu"], "seed_everything": 1}}}
    (material / "small.yaml").write_text(yaml.safe_dump(again))
    assert main(given) == 1
    told = capsys.readouterr()
    assert told.out.count(": finished") == 12 and told.err.count("finished with other settings") == 1
