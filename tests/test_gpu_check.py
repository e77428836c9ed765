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


def test_every_method_takes_two_steps(gpu_check: ModuleType, tmp_path: Path) -> None:
    assert gpu_check.main(["--tiny", "--out", str(tmp_path / "new" / "check.json")]) == 0
    report = json.loads((tmp_path / "new" / "check.json").read_text())
    cases = {(case["method"], case["form"]): case for case in report["cases"]}
    assert {method for method, _ in cases} == {"RMU", "NPO", "MixedSFT", "PosthocSFT", "UnsafeFilter"}
    for case in cases.values():
        assert len(case["seconds"]) == 2 and min(case["seconds"]) > 0 and case["tokens_per_second"] > 0
        assert case["finite"] and case["loss"][0] != case["loss"][1], "the first step changed the model"
        assert case["peak_gib"] > 0
    assert cases["RMU", "full"]["trainable"] == 2 * 32 * 48, "down_proj of layers 0 and 1"
    assert cases["UnsafeFilter", "lora"]["tokens_per_step"] * 2 == cases["NPO", "lora"]["tokens_per_step"] == 64
    assert cases["MixedSFT", "full"]["trainable"] > cases["MixedSFT", "lora"]["trainable"]


def test_the_large_shape_is_that_of_the_7b_model(gpu_check: ModuleType) -> None:
    shape = gpu_check.llava_1_5_7b()
    with torch.device("meta"):
        model = gpu_check.AutoModelForImageTextToText.from_config(shape.config)
    assert sum(parameter.numel() for parameter in model.parameters()) == 7_063_427_072
    assert shape.image_tokens == (336 // 14) ** 2


def test_a_case_that_fails_says_why_and_stops_no_other(
    gpu_check: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = gpu_check.step

    def fail(method: torch.nn.Module, *rest: object) -> torch.Tensor:
        if type(method).__name__ == "NPO":
            raise torch.OutOfMemoryError("out of memory\nat all")
        return step(method, *rest)

    monkeypatch.setattr(gpu_check, "step", fail)
    assert gpu_check.main(["--tiny", "--out", str(tmp_path / "check.json")]) == 1
    cases = json.loads((tmp_path / "check.json").read_text())["cases"]
    failed = [case for case in cases if "failed" in case]
    assert {case["method"] for case in failed} == {"NPO"} and "out of memory" in failed[0]["failed"]
    assert sum("tokens_per_second" in case for case in cases) == len(cases) - len(failed)


def test_without_a_gpu_it_says_so(gpu_check: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    assert gpu_check.main(["--out", str(tmp_path / "check.json")]) == 1
    assert "--tiny" in capsys.readouterr().err and not (tmp_path / "check.json").exists()
