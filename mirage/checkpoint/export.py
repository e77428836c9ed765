"""A finished run as a Hugging Face folder that needs nothing of mirage: whole weights, or the adapters alone."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from mirage.atomic import whole_folder
from mirage.checkpoint.io import CheckpointError, read_checkpoint, resolve_checkpoint
from mirage.checkpoint.resume import refuse_other_weights
from mirage.models.components import decoder_layers
from mirage.models.load import load_model
from mirage.models.lora import LoraSettings, add_lora
from mirage.models.pretrained import resolve_pretrained

# Copied from the starting model as they are: saving a processor anew would lose the parts that are not used here.
PROCESSOR_FILES = (
    "processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json", "chat_template.json",
    "chat_template.jinja", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "tekken.json", "*.model",
)  # fmt: skip
GENERATION_FILE = "generation_config.json"


def export(
    run: Path,
    settings: Mapping[str, Any],
    to: Path,
    card: Callable[[Any, int], str],
    *,
    ckpt: str = "last",
    adapter_only: bool = False,
    pretrained: str | None = None,
) -> Path:
    """`to`, now a Hugging Face folder with weights, processor, generation config and model card; whole or not at all.

    Args:
        run: The run folder, with its checkpoints.
        settings: Its config.yaml.
        to: The folder to write; it must be empty or not exist.
        card: Returns the text of README.md, of the model (with its adapters, or merged) and the optimizer steps that it
            was trained for; called before anything is written.
        ckpt: `last`, `best`, or a checkpoint file of the run.
        adapter_only: Write the LoRA adapters in PEFT's format, without the model they belong to.
        pretrained: Where the starting model is now, if it is not where config.yaml says.

    Raises:
        CheckpointError: If the checkpoint does not fit the model, or holds weights that are not finite.
        ValueError: If the settings name no starting model, training changed no weight, or there are no adapters.
    """
    match settings:
        case {"model": {"class_path": str(), "init_args": {"pretrained": str()} as method}}:
            method = {**method, "pretrained": pretrained or method["pretrained"]}
        case _:
            raise ValueError(f"The config.yaml of {run} names no method and starting model. Restore what fit wrote.")
    if adapter_only and not method.get("lora"):
        raise ValueError(f"{run} trained the weights themselves, not adapters. Leave out --adapter_only.")
    path = resolve_checkpoint(ckpt, run)
    checkpoint = read_checkpoint(path)
    state, step = checkpoint["state_dict"], int(checkpoint["global_step"])
    del checkpoint  # the optimizer's state is twice the size of what was trained
    model = _trained(method, state, path)
    if method.get("lora") and not adapter_only:
        model = model.merge_and_unload()
    text = card(model, step)
    size = sum(tensor.nbytes for tensor in model.parameters() if tensor.requires_grad or not adapter_only)
    with whole_folder(to, size) as folder:
        start = _starting_folder(method)
        if not adapter_only and (start / GENERATION_FILE).is_file():
            # copied below; saving would refuse files that older versions of transformers wrote
            model.generation_config = type(model.generation_config)()
        model.save_pretrained(folder)
        for pattern in (*PROCESSOR_FILES, GENERATION_FILE):
            for file in start.glob(pattern):
                shutil.copyfile(file, folder / file.name)
        (folder / "README.md").write_text(text, encoding="utf-8")
    return to


def _trained(method: Mapping[str, Any], state: Mapping[str, torch.Tensor], path: Path) -> Any:
    """The starting model with the weights of a checkpoint, in evaluation mode; adapters are not merged."""
    names = ("dtype", "attn_implementation", "revision", "allow_download")
    model: Any = load_model(method["pretrained"], **{name: method[name] for name in names if name in method})
    needed: set[str] = set()
    if lora := method.get("lora"):
        layers = decoder_layers(model)
        stack = next(re.escape(name) for name, part in model.named_modules() if part is layers)
        adapted = {int(layer) for name in state for layer in re.findall(rf"\.{stack}\.(\d+)\..*lora_A", name)}
        model = add_lora(model, LoraSettings(**lora), layers=sorted(adapted) or None)
        needed = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    weights = {name.removeprefix("model."): value for name, value in state.items() if name.startswith("model.")}
    start = model.state_dict()
    refuse_other_weights(weights, start, needed)
    if broken := [name for name, value in state.items() if not bool(value.isfinite().all())]:
        raise CheckpointError(
            f"{path}: {len(broken)} tensors hold inf or nan ({broken[0]}). Export an earlier checkpoint."
        )
    learned = any(not torch.equal(start[name], value.to(start[name])) for name, value in weights.items())
    model.load_state_dict(weights, strict=False)
    # adapters start at random values each time: only what they add to the weights is compared
    if not (_adapters_add(model) if lora else learned):
        raise ValueError(
            f"{path} holds the weights that the run started from: nothing was learned, so there is nothing to export. "
            "Check learning_rate and the number of steps."
        )
    return model.eval()


@torch.no_grad()
def _adapters_add(model: Any) -> bool:
    """True if merging the adapters would change any weight."""
    from peft.tuners.lora import LoraLayer

    layers: list[Any] = [layer for layer in model.modules() if isinstance(layer, LoraLayer)]
    weights = [(layer.get_base_layer().weight, layer.get_delta_weight("default")) for layer in layers]
    return any(not torch.equal(weight + added.to(weight), weight) for weight, added in weights)


def _starting_folder(method: Mapping[str, Any]) -> Path:
    where = Path(resolve_pretrained(method["pretrained"], bool(method.get("allow_download"))))
    if where.is_dir():
        return where
    from huggingface_hub import snapshot_download

    patterns = [*PROCESSOR_FILES, GENERATION_FILE]
    return Path(snapshot_download(str(method["pretrained"]), revision=method.get("revision"), allow_patterns=patterns))
