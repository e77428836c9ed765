"""The model card of an exported run: what it was made from and how, what was measured, what it is and is not for.

Its text is `card.md.jinja`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from mirage import __version__
from mirage.report.markup import markdown_table, template
from mirage.report.runs import load_run, plain

TRAINER_KEYS = (
    "max_epochs", "max_steps", "precision", "devices", "num_nodes", "strategy", "accumulate_grad_batches",
    "gradient_clip_val",
)  # fmt: skip
LOADING_KEYS = {"pretrained", "revision", "allow_download", "attn_implementation"}


def model_card(
    settings: Mapping[str, Any],
    run: Path,
    *,
    name: str,
    adapter_only: bool,
    architecture: str,
    num_parameters: int,
    step: int,
    needs_torchvision: bool,
) -> str:
    """README.md in Markdown, front matter included.

    Args:
        settings: The run's config.yaml.
        run: The run folder; its results.json is read if it is there.
        name: The model's name.
        adapter_only: True if the folder holds adapters without their base.
        architecture: The class of the model, such as LlavaForConditionalGeneration.
        num_parameters: Its size, adapters included if they are not merged.
        step: How many optimizer steps it was trained for.
        needs_torchvision: True if its processor does.

    Raises:
        ValueError: If results.json is damaged.
    """
    method = str(settings["model"]["class_path"]).rsplit(".", 1)[-1]
    given = dict(settings["model"]["init_args"])
    trainer = settings.get("trainer") or {}
    training = {
        "method": {key: value for key, value in given.items() if key not in LOADING_KEYS},
        "trainer": {key: trainer[key] for key in TRAINER_KEYS if trainer.get(key) not in (None, -1)},
    }
    base = plain(str(given["pretrained"]))
    front = {
        "base_model": base,
        "library_name": "peft" if adapter_only else "transformers",
        "pipeline_tag": "image-text-to-text",
        "tags": ["safety", "vision-language", method.lower()],
    }
    evaluated = load_run(run) if (run / "results.json").is_file() else None
    # Markdown of values that were made plain before, so nothing is escaped
    return template("card.md.jinja").render(
        front=yaml.safe_dump(front, sort_keys=False), name=plain(name), base=base, adapter_only=adapter_only, method=method,
        revision=plain(str(given.get("revision") or "")), architecture=architecture, num_parameters=num_parameters,
        version=__version__, step=step, seed=settings.get("seed_everything"), training=_yaml(training),
        data=_yaml({key: value for key, value in (settings.get("data") or {}).items() if key != "num_workers"}),
        table=markdown_table([evaluated]).rstrip() if evaluated else "", results=evaluated.results if evaluated else {},
        needs_torchvision=needs_torchvision,
    )  # fmt: skip


def _yaml(values: Mapping[str, Any]) -> str:
    return yaml.safe_dump(_without_none(values), sort_keys=False, width=110)


def _without_none(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return [_without_none(item) for item in value] if isinstance(value, list) else value
