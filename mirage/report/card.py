"""The model card of an exported run: what it was made from and how, what was measured, what it is and is not for."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from mirage.report.markup import markdown_table
from mirage.report.runs import Run, load_run
from mirage.report.tables import attack_of, plain

TRAINER_KEYS = (
    "max_epochs", "max_steps", "precision", "devices", "num_nodes", "strategy", "accumulate_grad_batches",
    "gradient_clip_val",
)  # fmt: skip
LOADING_KEYS = {"pretrained", "revision", "allow_download", "attn_implementation"}

USE = """\
Research on and evaluation of safety alignment, and as a starting point for further work on it. Before serving it to
people, measure it on your own questions, with the attacks that you expect and with a judge that sees the picture."""

LIMITS = """\
- The figures hold for the questions, attacks and judge named here and for nothing else. A low attack success rate is no
  proof of safety: other attacks (other opening words, other languages, optimised suffixes, pictures) were not tried.
- An answer that is irrelevant counts neither as harm nor as help. Read the IR column beside the ASR column: unlearning
  can lower both harm and usefulness.
- The vision tower, and all that the section on training does not name, is that of the base model, with its faults, biases
  and licence. The licence of the base model and of the training data applies."""

WHOLE_USAGE = """\
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained("this folder")
processor = AutoProcessor.from_pretrained("this folder", backend="pil")"""

ADAPTER_USAGE = """\
from peft import PeftModel
from transformers import AutoModelForImageTextToText, AutoProcessor

base = AutoModelForImageTextToText.from_pretrained({base!r})
model = PeftModel.from_pretrained(base, "this folder")
processor = AutoProcessor.from_pretrained("this folder", backend="pil")"""


def model_card(
    settings: Mapping[str, Any],
    run: Path,
    *,
    name: str,
    adapter_only: bool,
    architecture: str,
    num_parameters: int,
    step: int,
) -> str:
    """README.md in Markdown, front matter included.

    Args:
        settings: The run's config.yaml.
        run: The run folder; its results.json is read if it is there.
        name: The model's name.
        adapter_only: Whether the folder holds adapters without their base.
        architecture: The class of the model, such as LlavaForConditionalGeneration.
        num_parameters: Its size, adapters included if they are not merged.
        step: How many optimizer steps it was trained for.

    Raises:
        ValueError: If results.json is damaged.
    """
    method = str(settings["model"]["class_path"]).rsplit(".", 1)[-1]
    given = dict(settings["model"]["init_args"])
    base = plain(str(given["pretrained"]))
    front = {
        "base_model": base,
        "library_name": "peft" if adapter_only else "transformers",
        "pipeline_tag": "image-text-to-text",
        "tags": ["safety", "vision-language", method.lower()],
    }
    revision = f", revision {plain(str(given['revision']))}" if given.get("revision") else ""
    size = f"{num_parameters:,} parameters{' with the adapters' if adapter_only else ''}"
    data = {key: value for key, value in (settings.get("data") or {}).items() if key != "num_workers"}
    trainer = settings.get("trainer") or {}
    training = {
        "method": {key: value for key, value in given.items() if key not in LOADING_KEYS},
        "trainer": {key: trainer[key] for key in TRAINER_KEYS if trainer.get(key) not in (None, -1)},
    }
    sections = [
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---",
        f"# {plain(name)}",
        f"{'LoRA adapters for a' if adapter_only else 'A'} vision-language model, aligned for safety with {method} by "
        f"mirage {_version()}.",
        f"## Base model\n\n`{base}`{revision} ({architecture}, {size}).",
        f"## Data\n\n{_block(data)}",
        f"## Training\n\n{method}, {step} optimizer steps, seed {settings.get('seed_everything')}.\n\n{_block(training)}",
        f"## Results\n\n{_results(load_run(run) if (run / 'results.json').is_file() else None, step)}",
        f"## How to use it\n\n```python\n{ADAPTER_USAGE.format(base=base) if adapter_only else WHOLE_USAGE}\n```",
        f"## Intended use\n\n{USE}",
        f"## Limits\n\n{LIMITS}",
    ]
    return "\n\n".join(sections) + "\n"


def _results(run: Run | None, step: int) -> str:
    if run is None:
        return "This run was not evaluated: nothing is known about its safety or its usefulness."
    lines = [markdown_table([run]).rstrip()]
    measured = run.results.get("step")
    if measured != step:
        lines.append(f"**Measured after {measured} optimizer steps; the weights here are those after {step}.**")
    lines += [
        f"Attack on {side} questions: {attack_of(summary)}. Judge: {plain(str(summary.get('judge')))}."
        for side in ("unsafe", "benign")
        if (summary := run.results.get(side))
    ]
    return "\n\n".join(lines)


def _without_none(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return [_without_none(item) for item in value] if isinstance(value, list) else value


def _block(values: Mapping[str, Any]) -> str:
    return f"```yaml\n{yaml.safe_dump(_without_none(values), sort_keys=False, width=110).rstrip()}\n```"


def _version() -> str:
    try:
        return version("safety-mirage")
    except PackageNotFoundError:
        return "(not installed)"
