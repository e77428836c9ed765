"""The code of the GPU check, on the CPU in a tiny shape."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

pytestmark = pytest.mark.slow

FILE = Path(__file__).parent.parent / "benchmarks" / "gpu_check.py"


@pytest.fixture(scope="module")
def gpu_check() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_check", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_check"] = module
    spec.loader.exec_module(module)
    return module


def test_every_method_takes_its_steps_in_every_variant(gpu_check: ModuleType, tmp_path: Path) -> None:
    """Plain steps of every method, and every variant of the two that differ in what they compute of a model."""
    file, trained = tmp_path / "new" / "check.json", []
    for chosen in (
        ["--methods", "NPO", "PosthocSFT", "UnsafeFilter", "--variants", "plain"],
        ["--methods", "RMU", "MixedSFT"],
    ):
        assert gpu_check.main(["--tiny", "--out", str(file), *chosen]) == 0
        *some, evaluated = json.loads(file.read_text())["cases"]
        trained += some
    cases = {(case["method"], case["form"], case["variant"]): case for case in trained}
    methods = ("RMU", "NPO", "MixedSFT", "PosthocSFT", "UnsafeFilter")
    assert {key[:2] for key in cases} == {(method, form) for method in methods for form in ("full", "lora")}
    for (_, _, variant), case in cases.items():
        if "liger" in variant:
            assert "GPU" in case["skipped"]
            continue
        assert len(case["seconds"]) == 5 and min(case["seconds"]) > 0 and case["peak_gib"] > 0
        if variant != "published":
            assert case["finite"] and case["loss"][0] != case["loss"][1], "the first step changed the model"
            assert case["tokens_per_second"] > 0 and case["mfu"] > 0
    assert {key[:2] for key in cases if key[2] == "published"} == {
        (method, form) for method in ("RMU", "NPO", "MixedSFT") for form in ("full", "lora")
    }
    for variant in ("selective", "compile"):  # the same steps, computed otherwise
        ours, plain = cases["MixedSFT", "full", variant], cases["MixedSFT", "full", "plain"]
        assert ours["operations"] == plain["operations"] and ours["loss"] == pytest.approx(plain["loss"], rel=0.02)
    assert cases["RMU", "full", "plain"]["trainable"] == 2 * 32 * 48, "down_proj of layers 0 and 1"
    filtered, npo = cases["UnsafeFilter", "lora", "plain"], cases["NPO", "lora", "plain"]
    assert filtered["tokens_per_step"] * 2 == npo["tokens_per_step"] == 64
    assert filtered["operations"] * 2 == npo["operations"], "a step of half the examples, whatever is recomputed"
    full, lora = cases["MixedSFT", "full", "plain"], cases["MixedSFT", "lora", "plain"]
    assert full["trainable"] > lora["trainable"] and full["operations"] > lora["operations"]
    assert min(evaluated["answers_per_second"].values()) > 0
    assert set(evaluated["shared_is_times_as_fast_as"]) == {"not_shared", "one_at_a_time"}


def test_the_large_shape_is_that_of_the_7b_model(gpu_check: ModuleType) -> None:
    shape = gpu_check.llava_1_5_7b()
    with torch.device("meta"):
        model = gpu_check.AutoModelForImageTextToText.from_config(shape.config)
    assert sum(parameter.numel() for parameter in model.parameters()) == 7_063_427_072
    assert shape.image_tokens == (336 // 14) ** 2


def test_a_case_that_fails_says_why_and_stops_no_other(
    gpu_check: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, cases = gpu_check.step, gpu_check.cases

    def fail(method: torch.nn.Module, *rest: object) -> torch.Tensor:
        if type(method).__name__ == "NPO":
            raise torch.OutOfMemoryError("out of memory\nat all")
        return step(method, *rest)

    monkeypatch.setattr(gpu_check, "step", fail)
    monkeypatch.setattr(gpu_check, "cases", lambda shape: [case for case in cases(shape) if case.form == "full"])
    chosen = ["--methods", "NPO", "MixedSFT", "--variants", "plain", "selective"]
    assert gpu_check.main(["--tiny", "--out", str(tmp_path / "check.json"), *chosen]) == 1
    results = json.loads((tmp_path / "check.json").read_text())["cases"]
    failed = [(case["method"], case["variant"]) for case in results if "out of memory" in case.get("failed", "")]
    assert failed == [("NPO", variant) for variant in ("plain", "selective")]
    ran = [(case["method"], case["variant"]) for case in results if "tokens_per_second" in case]
    assert ran == [("MixedSFT", variant) for variant in ("plain", "selective")]


def test_without_a_gpu_it_says_so(gpu_check: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    assert gpu_check.main(["--out", str(tmp_path / "check.json")]) == 1
    assert "--tiny" in capsys.readouterr().err and not (tmp_path / "check.json").exists()
