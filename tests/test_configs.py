"""Every shipped config is read by the real command line, and the 7B ones train what the paper's rows train."""

from __future__ import annotations

import math
import re
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from builders import llava_1_5_7b, llava_1_5_13b, llava_next_34b, method_of
from lightning.pytorch.cli import LightningArgumentParser
from transformers import get_scheduler

from mirage.cli import configs_folder, main
from mirage.models.memory import count_parameters, estimate, meta_model, trains_as
from mirage.training import MirageCLI

pytestmark = pytest.mark.slow  # each config is read as a command line would, which takes seconds

METHODS = {
    "mixed_sft": "MixedSFT", "npo": "NPO", "posthoc_sft": "PosthocSFT", "rmu": "RMU", "unsafe_filter": "UnsafeFilter",
}  # fmt: skip
CROSSED = ["mixed_sft_crossed", "npo_crossed", "posthoc_sft_crossed", "rmu_crossed"]
MINI = [*METHODS, *CROSSED]
LARGE = ["llava15_7b/base", *(f"llava15_7b/{name}{form}" for name in METHODS for form in ("", "_lora"))]
LARGE += [f"llava15_7b/{name}" for name in CROSSED]
SMALL = [f"small_vlm/{name}{form}" for name in ("mixed_sft", "npo", "rmu") for form in ("", "_crossed")]
LARGER = {"llava15_13b/npo": llava_1_5_13b, "llava_next_34b/npo": llava_next_34b}
ADDED = ["llava15_7b/spavl", "llava15_7b/utility", "panel"]  # no whole config: given behind one
FOUND = sorted(str(path.relative_to(configs_folder()).with_suffix("")) for path in configs_folder().rglob("*.yaml"))


@pytest.mark.parametrize("target", ["table", "table-crossed"])
def test_make_reports_the_runs_that_it_trains(target: str, tmp_path: Path) -> None:
    """With a command that only notes how it is called."""
    (tmp_path / "bin").mkdir()
    (tmp_path / ".installed").touch()
    noting = tmp_path / "bin" / "mirage"
    noting.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\n')
    noting.chmod(0o755)
    makefile = Path(__file__).parent.parent / "Makefile"
    subprocess.run(["make", "-s", target, f"VENV={tmp_path}"], cwd=makefile.parent, check=True)
    *fits, report = (tmp_path / "calls").read_text().splitlines()
    trained = [fit.split("--trainer.default_root_dir ")[1] for fit in fits]
    assert len(trained) == (4 if target == "table" else 8)
    assert report.split(" --out ")[0].split() == ["report", *trained]


class Built(Exception):
    """Carries the command line's parser to the test before anything is parsed."""


@pytest.fixture(scope="module")
def parser() -> LightningArgumentParser:
    """The parser of `mirage fit`, built once: that takes a second, and reading a config a tenth."""

    def stop(cli: MirageCLI, parser: LightningArgumentParser, args: Any) -> None:
        raise Built(parser)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Built) as built_parser:
        patch.setattr(MirageCLI, "parse_arguments", stop)
        main(["fit"])
    return built_parser.value.args[0]


@pytest.fixture(scope="module")
def parsed(parser: LightningArgumentParser) -> dict[str, dict[str, Any]]:
    """Every config as `mirage fit` understands it, defaults filled in."""
    settings = {}
    for name in sorted({*FOUND} - {*ADDED}):
        given = parser.parse_args(["fit", "--config", str(configs_folder() / f"{name}.yaml")])
        settings[name] = yaml.safe_load(parser.dump(given, skip_none=False, skip_validation=True))["fit"]
    return settings


def short(name: str) -> str:
    return name.rpartition("/")[2].removesuffix("_lora").removesuffix("_crossed")


def at(settings: dict[str, Any], key: str) -> Any:
    for part in key.split("."):
        settings = settings[part]
    return settings


def test_all_configs_are_found() -> None:
    assert sorted([*MINI, *LARGE, *LARGER, *SMALL, *ADDED]) == FOUND and len(FOUND) == 35


def test_no_method_is_told_a_word_or_an_attack(parsed: dict[str, dict[str, Any]]) -> None:
    for name, settings in parsed.items():
        found = re.search(r"\b(what|share|word|attack|opener)", yaml.safe_dump(settings["model"]).lower())
        assert not found, f"{name}: {found}"


def test_every_config_is_read(parsed: dict[str, dict[str, Any]]) -> None:
    for name, settings in parsed.items():
        assert settings["model"]["class_path"].endswith(f".{METHODS.get(short(name), 'PosthocSFT')}"), name
        assert settings["trainer"]["default_root_dir"] == f"runs/{name}", "a folder for each"
        callbacks = settings["trainer"]["callbacks"]
        attacks = [each["init_args"]["attack"]["init_args"] for each in callbacks if "attack" in each["init_args"]]
        assert [attack["shots"] for attack in attacks] in ([3, 1], [3, 3, 1]), name


def test_a_config_with_a_mistyped_key_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (configs_folder() / "llava15_7b/npo.yaml").read_text()
    (tmp_path / "wrong.yaml").write_text(text.replace("    beta:", "    betta:"))
    with pytest.raises(SystemExit) as ended:
        main(["fit", "--config", str(tmp_path / "wrong.yaml"), "--print_config"])
    assert ended.value.code == 2 and "'betta' is not accepted. Did you mean beta?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("names", "keys"),
    [
        (
            MINI,
            ["seed_everything", "model.init_args.pretrained", "data.source.class_path", "data.source.init_args.seed",
             "data.source.init_args.num_eval", "trainer.callbacks", "trainer.accelerator"],
        ),
        (
            LARGE,
            ["seed_everything", "model.init_args.weight_decay", "model.init_args.gradient_checkpointing",
             "model.init_args.allow_download", "model.init_args.attn_implementation", "data.source.class_path",
             "data.source.init_args.root", "data.pad_to_square", "data.num_workers", "trainer.callbacks",
             "trainer.devices", "trainer.precision", "trainer.accelerator", "trainer.num_nodes"],
        ),
        ([name for name in LARGE if name.endswith("_lora")], ["model.init_args.lora", "trainer.strategy"]),
    ],
    ids=["mini", "7b", "7b lora"],
)  # fmt: skip
def test_what_configs_share_is_equal(names: list[str], keys: list[str], parsed: dict[str, dict[str, Any]]) -> None:
    for key in keys:
        values = {yaml.safe_dump(at(parsed[name], key)) for name in names}
        assert len(values) == 1, f"{key}: {values}"


def test_a_crossed_config_trains_the_same_method_from_the_same_weights(parsed: dict[str, dict[str, Any]]) -> None:
    for name in (each for each in (*MINI, *LARGE, *SMALL) if each.endswith("_crossed")):
        crossed, plain = parsed[name], parsed[name.removesuffix("_crossed")]
        assert crossed["data"]["crossing"]["share"] == 0.95 and plain["data"]["crossing"] is None, name
        for key in ("model.class_path", "model.init_args.pretrained", "data.source.class_path"):
            assert at(crossed, key) == at(plain, key), f"{name}: {key}"


def test_a_row_and_its_lora_form_start_from_the_same_weights_and_see_the_same_data(
    parsed: dict[str, dict[str, Any]],
) -> None:
    before_tuning = ("mixed_sft", "unsafe_filter")
    for name in LARGE:
        start = parsed[name]["model"]["init_args"]["pretrained"]
        assert start == f"models/llava-1.5-7b-{'before-tuning' if short(name) in before_tuning else 'hf'}"
        if name.endswith("_lora"):
            full = parsed[name.removesuffix("_lora")]
            for key in ("data.source", "data.retain", "data.retain_size", "data.max_length"):
                assert at(parsed[name], key) == at(full, key), f"{name}: {key}"
            assert at(parsed[name], "data.gamma") == (1.2 if "rmu" in name else at(full, "data.gamma")), name
            assert full["model"]["init_args"]["lora"] is None


class Script(NamedTuple):
    """What a published script says, in the terms of a config."""

    learning_rate: float
    unsafe_per_step: int
    gamma: float
    planned: int  # steps that the cosine schedule spans, with 3 % of them for warm-up
    effective: int  # of which so many train
    settings: dict[str, Any]  # of the method


LORA = {"lora.r": 128, "lora.lora_alpha": 256, "lora.lora_dropout": 0.05, "lora.target_modules": "all-linear"}
UNLEARN = {"layer": 7, "train_layers": [5, 6, 7], "train_modules": ["mlp.down_proj"]}
PUBLISHED = {
    "npo": Script(5e-7, 8, 1, 250, 250, {"beta": 0.9, "length_normalized": True}),
    "npo_lora": Script(1.1e-5, 64, 1, 320, 320, {"beta": 0.7, "length_normalized": True, **LORA}),
    "rmu": Script(1e-6, 8, 1, 2500, 250, {"steering_coefficient": 10, "alpha": 1, **UNLEARN}),
    "rmu_lora": Script(1.1e-5, 64, 1.2, 320, 32, {"steering_coefficient": 10, "alpha": 0, "layer": 15, **LORA}),
    # 128 a step, of both kinds: one pass over 667,000 examples
    "mixed_sft": Script(2e-5, 8, 15, 5210, 5210, {}),
    "mixed_sft_lora": Script(2e-4, 8, 15, 5210, 5210, LORA),
}
UNSAFE = {"npo": 1004, "rmu": 1004, "mixed_sft": 1978}  # examples of VLGuard that are used


def rates(schedule: str, warmup: int, planned: int) -> list[float]:
    """The learning rate of each step as a share of its peak."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = get_scheduler(schedule, optimizer, warmup, planned)
    shares = []
    for _ in range(planned):
        shares.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return shares


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_7b_config_has_the_figures_of_the_published_script(name: str, parsed: dict[str, dict[str, Any]]) -> None:
    config, script = parsed[f"llava15_7b/{name}"], PUBLISHED[name]
    method, trainer, data = config["model"]["init_args"], config["trainer"], config["data"]
    assert method["learning_rate"] == script.learning_rate and method["weight_decay"] == 0
    assert {key: at(method, key) for key in script.settings} == script.settings
    assert data["batch_size"] * trainer["devices"] * trainer["num_nodes"] == script.unsafe_per_step
    assert data["gamma"] == script.gamma and trainer["gradient_clip_val"] is None
    assert short(name) == "mixed_sft" or data["retain_size"] == 2000
    steps = trainer["max_epochs"] * math.ceil(UNSAFE[short(name)] / script.unsafe_per_step)
    assert steps == pytest.approx(script.effective, rel=0.01)
    ours = rates(method["schedule"], round(method["warmup_ratio"] * steps), steps)
    theirs = rates("cosine", math.ceil(0.03 * script.planned), script.planned)[: script.effective]
    assert sum(ours) == pytest.approx(sum(theirs), rel=0.02), "as much is learned"


DOWN = 11008 * 4096
LANGUAGE = 2 * 32064 * 4096 + 32 * (4 * 4096**2 + 3 * DOWN + 2 * 4096) + 4096
PROJECTOR = 1024 * 4096 + 4096 + 4096**2 + 4096
ADAPTERS_OF_A_LAYER = 128 * (4 * (4096 + 4096) + 3 * (4096 + 11008))


def trained(name: str) -> int:
    """How many parameters the row's method trains, worked out by hand."""
    if name.removesuffix("_crossed").endswith("rmu"):
        return 3 * DOWN
    if name.endswith("_lora"):
        return (16 if "rmu" in name else 32) * ADAPTERS_OF_A_LAYER
    return LANGUAGE + PROJECTOR


@pytest.mark.parametrize("name", LARGE)
def test_the_7b_shapes_train_what_the_row_says(name: str, parsed: dict[str, dict[str, Any]]) -> None:
    method = method_of(parsed[name])
    model = meta_model(llava_1_5_7b())
    state = torch.get_rng_state()
    trains_as(method)(model)
    trains, total = count_parameters(model)
    assert trains == trained(name)
    vision = {parameter.requires_grad for key, parameter in model.named_parameters() if "vision" in key}
    assert vision == {False} and total > 7e9 and method.model is None
    assert torch.equal(torch.get_rng_state(), state), "an estimate draws no random numbers from the run"


@pytest.mark.parametrize(
    ("name", "language", "projector"),
    [
        # embeddings and head, layers of queries, keys, values, output, three feed-forward matrices and two norms, a norm
        (
            "llava15_13b/npo",
            2 * 32064 * 5120 + 40 * (4 * 5120**2 + 3 * 13824 * 5120 + 2 * 5120) + 5120,
            1024 * 5120 + 5120**2 + 2 * 5120,
        ),
        (
            "llava_next_34b/npo",
            2 * 64064 * 7168 + 60 * (2 * 7168**2 + 2 * 7168 * 1024 + 3 * 20480 * 7168 + 2 * 7168) + 7168,
            1024 * 7168 + 7168**2 + 2 * 7168 + 7168,  # and what stands at the end of each line of a picture
        ),
    ],
)
def test_larger_shapes_train_whole_and_are_split(
    name: str, language: int, projector: int, parsed: dict[str, dict[str, Any]]
) -> None:
    settings = parsed[name]
    assert settings["trainer"]["strategy"] == "ModelParallelStrategy" and settings["trainer"]["devices"] == 8
    needed = estimate(
        LARGER[name](), trainable=trains_as(method_of(settings)), dtype=settings["model"]["init_args"]["dtype"],
        batch_tokens=2 * {"llava15_13b/npo": 750, "llava_next_34b/npo": 3100}[name], gradient_checkpointing=True, shards=8,
    )  # fmt: skip
    assert needed.trainable == language + projector
    text = (Path(__file__).parents[1] / "docs/cluster.md").read_text()
    row = next(line for line in text.splitlines() if line.startswith(f"| `{name}`"))
    assert [cell.strip() for cell in row.split("|")[2:6]] == [f"{gib:.1f}" for gib in needed[2:]]


def test_the_hand_counts_are_those_that_are_published() -> None:
    assert round(3 * DOWN / 1e6, 1) == 135.3 and round(DOWN / 1e6, 1) == 45.1
    assert round(32 * ADAPTERS_OF_A_LAYER / 1e6) == 320
    assert round(PROJECTOR / 1e6) == 21
