"""A finished run as a Hugging Face folder that needs nothing of mirage: whole weights, or the adapters alone."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentParser

from mirage.atomic import sync_folder
from mirage.checkpoint.io import CheckpointError, read_checkpoint, resolve_checkpoint
from mirage.checkpoint.resume import refuse_other_weights
from mirage.methods import AlignmentModule
from mirage.models.pretrained import resolve_pretrained
from mirage.report.card import model_card

# Copied from the starting model as they are: saving a processor anew would lose the parts that are not used here.
PROCESSOR_FILES = (
    "processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json", "chat_template.json",
    "chat_template.jinja", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "tekken.json", "*.model",
)  # fmt: skip
GENERATION_FILE = "generation_config.json"


class NothingToExport(ValueError):
    """The run has no weights that differ from those it started from, or none of the kind that was asked for."""


def export(
    run: Path, to: Path, *, ckpt: str = "last", adapter_only: bool = False, pretrained: str | None = None
) -> Path:
    """`to`, now a Hugging Face folder with weights, processor, generation config and model card; whole or not at all.

    Args:
        run: The run folder, with its config.yaml and checkpoints.
        to: The folder to write; it must be empty or not exist.
        ckpt: `last`, `best`, or a checkpoint file of the run.
        adapter_only: Write the LoRA adapters in PEFT's format, without the model they belong to.
        pretrained: Where the starting model is now, if it is not where config.yaml says.

    Raises:
        NothingToExport: If training changed no weight, or there are no adapters.
        CheckpointError: If the checkpoint does not fit the model, or holds weights that are not finite.
        ValueError: If `run` is no run folder, or `to` is not empty.
    """
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise ValueError(f"{to} exists and is not an empty folder. Choose another one for --to.")
    settings = read_settings(run)
    path = resolve_checkpoint(ckpt, run)
    if path.is_dir():
        raise CheckpointError(
            f"{path} is a folder, as DeepSpeed writes it. Make it one file first: docs/cluster.md says how."
        )
    checkpoint = read_checkpoint(path)
    state, step = checkpoint["state_dict"], int(checkpoint["global_step"])
    del checkpoint  # the optimizer's state is twice the size of what was trained
    method = built(settings, pretrained)
    if adapter_only and method.lora is None:
        raise NothingToExport(f"{run} trained the weights themselves, not adapters. Leave out --adapter_only.")
    method.configure_model()
    put_trained(method, state, path)
    model = method.model.eval()
    if method.lora is not None and not adapter_only:
        model = model.merge_and_unload()
    card = model_card(settings, run, name=to.name, adapter_only=adapter_only, model=model, step=step)
    size = sum(tensor.nbytes for tensor in model.parameters() if tensor.requires_grad or not adapter_only)
    with whole_folder(to, size) as folder:
        _save(method, model, folder, adapter_only)
        (folder / "README.md").write_text(card, encoding="utf-8")
    return to


def read_settings(run: Path) -> dict[str, Any]:
    """The config.yaml of a run, as it was used.

    Raises:
        ValueError: If there is none, or it is no config of mirage.
    """
    file = run / "config.yaml"
    if not file.is_file():
        raise ValueError(f"{run} holds no config.yaml. Give the folder of a run of mirage fit, such as runs/rmu.")
    try:
        settings = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not YAML ({str(error).splitlines()[0]}). Restore it.") from error
    model = settings.get("model") if isinstance(settings, dict) else None
    if not isinstance(model, dict) or "class_path" not in model:
        raise ValueError(f"{file} names no method (model.class_path). Restore the file that mirage fit wrote.")
    return dict(settings)


def built(settings: Mapping[str, Any], pretrained: str | None = None) -> AlignmentModule:
    """The method of a run, its model not loaded yet."""
    model = {"class_path": settings["model"]["class_path"], "init_args": dict(settings["model"]["init_args"])}
    if pretrained is not None:
        model["init_args"]["pretrained"] = pretrained
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(AlignmentModule, "model")
    method = parser.instantiate_classes(parser.parse_object({"model": model})).model
    assert isinstance(method, AlignmentModule)
    return method


def put_trained(method: AlignmentModule, state: Mapping[str, torch.Tensor], path: Path) -> None:
    """The method with the weights of a checkpoint, which have been compared with the starting ones.

    Raises:
        CheckpointError: If they do not fit, or are not finite.
        NothingToExport: If they are the starting ones.
    """
    refuse_other_weights(method, state)
    broken = [name for name, value in state.items() if not bool(value.isfinite().all())]
    if broken:
        raise CheckpointError(
            f"{path}: {len(broken)} tensors hold inf or nan ({broken[0]}). Export an earlier checkpoint."
        )
    trained = {name: parameter.detach() for name, parameter in method.named_parameters() if parameter.requires_grad}
    changed = any(not torch.equal(start, state[name].to(start)) for name, start in trained.items())
    method.load_state_dict(dict(state), strict=False)
    if method.lora is not None:  # adapters are drawn anew each time, so only what they add tells
        changed = _adapters_add(method.model)
    if not changed:
        raise NothingToExport(
            f"{path} holds the weights that the run started from: nothing was learned, so there is nothing to export. "
            "Check learning_rate and the number of steps."
        )


@torch.no_grad()
def _adapters_add(model: Any) -> bool:
    """True if merging the adapters would change any weight."""
    for part in model.modules():
        if callable(delta := getattr(part, "get_delta_weight", None)):
            weight = part.get_base_layer().weight
            if not torch.equal(weight + delta("default").to(weight), weight):
                return True
    return False


@contextmanager
def whole_folder(to: Path, size: int) -> Iterator[Path]:
    """A folder that takes the name `to` when the block ends, complete and on the disk; after an error nothing is left.

    Args:
        to: Must be an empty folder or not exist.
        size: Bytes that will be written; refused before the first one if the disk has less.
    """
    to.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(to.parent).free
    if size > free:
        raise ValueError(f"{to} needs {size / 1e9:.1f} GB and the disk has {free / 1e9:.1f} GB free. Make room first.")
    partial = to.with_name(f".{to.name}.{os.getpid()}.partial")
    partial.mkdir()
    try:
        yield partial
        for file in partial.rglob("*"):
            if file.is_file():
                file.chmod(partial.stat().st_mode & 0o666)  # safetensors writes for its owner alone
                with file.open("rb") as written:
                    os.fsync(written.fileno())
        sync_folder(partial)
        os.replace(partial, to)
        sync_folder(to.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _save(method: AlignmentModule, model: Any, folder: Path, adapter_only: bool) -> None:
    start = _starting_folder(method)
    own_generation = (start / GENERATION_FILE).is_file()
    if adapter_only:
        model.save_pretrained(folder)
        (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty form; ours takes its place
    else:
        if own_generation:  # copied below; saving would refuse files that older versions of transformers wrote
            model.generation_config = type(model.generation_config)()
        model.save_pretrained(folder)
    for pattern in (*PROCESSOR_FILES, GENERATION_FILE):
        for file in start.glob(pattern):
            shutil.copyfile(file, folder / file.name)


def _starting_folder(method: AlignmentModule) -> Path:
    where = Path(resolve_pretrained(method.pretrained, method.allow_download))
    if where.is_dir():
        return where
    from huggingface_hub import snapshot_download

    return Path(
        snapshot_download(
            str(method.pretrained), revision=method.revision, allow_patterns=[*PROCESSOR_FILES, GENERATION_FILE]
        )
    )
