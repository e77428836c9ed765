"""Where a model's files come from, and what can be wrong with them, without reading a weight."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from importlib import import_module, resources
from pathlib import Path
from typing import Any

from mirage.errors import ModelError

PACKAGE_PREFIX = "package:"
HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")
BIDIRECTIONAL = {"paligemma"}  # prefix language models: every position that is not marked as answer sees all others
TOKENIZER_FILES = ("tokenizer.json", "*.model", "vocab.json", "tekken.json")


def resolve_pretrained(pretrained: str, allow_download: bool = False) -> str:
    """The local folder that `pretrained` names, or the name itself where a download is allowed.

    Args:
        pretrained: A folder; or `package:<package>/<path>`, a folder inside an installed Python package; or, with
            `allow_download`, the name of a repository on the Hugging Face Hub.
        allow_download: Let transformers fetch what is not a local folder.

    Raises:
        ModelError: If there is no such folder and a download is not allowed.
    """
    name = str(pretrained)
    if name.startswith(PACKAGE_PREFIX):
        return str(_folder_in_package(name))
    folder = Path(name).expanduser()
    if folder.is_dir():
        return str(folder)
    if folder.is_file():
        raise ModelError(f"{name} is a file, not a model folder. Name the folder that holds its config.json.")
    if allow_download:
        return name
    remedy = "Name an existing folder."
    if HUB_NAME.fullmatch(name):  # judges and other models that are only asked have no allow_download
        remedy += (
            f" A model of that name on the Hugging Face Hub must be downloaded first (hf download {name} --local-dir DIR);"
            " that of a run is fetched if model.init_args.allow_download is true."
        )
    raise ModelError(f"There is no model folder {name}. {remedy}")


def _folder_in_package(name: str) -> Path:
    package, _, inner = name.removeprefix(PACKAGE_PREFIX).partition("/")
    if not package or not inner or ".." in Path(inner).parts or Path(inner).is_absolute():
        raise ModelError(
            f"{name} does not have the form {PACKAGE_PREFIX}<package>/<path inside it>. Write it that way."
        )
    try:
        import_module(package)
    except ImportError as error:
        raise ModelError(f"{name}: there is no installed package {package}. Install it or name a folder.") from error
    folder = Path(str(resources.files(package))) / inner
    if not folder.is_dir():
        raise ModelError(f"{name}: the package {package} holds no folder {inner}. Reinstall it or name another folder.")
    return folder


def check_pretrained(pretrained: str, allow_download: bool = False) -> None:
    """Guarantees that a local folder holds a complete vision-language checkpoint; reads no weights.

    All issues are reported together. A name that is to be downloaded is left to transformers.

    Raises:
        ModelError: With one line for each issue.
    """
    folder = Path(resolve_pretrained(pretrained, allow_download))
    if not folder.is_dir():
        return
    issues = [*_config_issues(folder), *_processor_issues(folder), *_weight_issues(folder)]
    if issues:
        raise ModelError("\n".join([f"{folder} cannot be used as a vision-language model:", *issues]))


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not valid JSON ({error}). Fetch the file again.") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} holds no JSON object. Fetch the file again.")
    return content


def _config_issues(folder: Path) -> Iterator[str]:
    from transformers import CONFIG_MAPPING, AutoConfig

    path = folder / "config.json"
    if (folder / "adapter_config.json").is_file():
        yield "adapter_config.json: this folder holds adapters, which may name another base model. Merge them into it."
    if not path.is_file():
        yield f"config.json is missing. Copy it from the model's repository into {folder}."
        return
    try:
        content = _read_object(path)
    except ModelError as error:
        yield str(error)
        return
    kind = content.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        runs_code = " It would need code from its folder, which is never run." if "auto_map" in content else ""
        yield (
            f"config.json: this version of transformers has no model type {kind!r}.{runs_code} "
            "Use a model that transformers itself implements."
        )
        return
    yield from _architecture_issues(kind)
    for kernel in _fetched_kernels(content):
        yield f"config.json: attn_implementation {kernel!r} would fetch code to run. Remove that line."
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # whatever a damaged config raises, it is the config that is damaged
        yield f"config.json: transformers refuses it ({first_line(error)}). Fetch the file again."
        return
    if config.is_encoder_decoder:
        yield f"config.json: {kind!r} is an encoder-decoder. Use a model that answers by continuing its prompt."


def _architecture_issues(kind: str) -> Iterator[str]:
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    )

    if kind in BIDIRECTIONAL:
        yield (
            f"config.json: {kind!r} reads its prompt in both directions, so an answer to be learned would see itself. "
            "Use a model that reads from left to right, such as LLaVA."
        )
    elif kind not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        lacking = "no vision tower" if kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES else "no language decoder"
        yield f"config.json: model type {kind!r} has {lacking}. Use a vision-language model, such as LLaVA."


def _fetched_kernels(content: dict[str, Any]) -> Iterator[str]:
    """Attention implementations named by a repository: transformers would fetch and run their code."""
    for key, value in content.items():
        if isinstance(value, dict):
            yield from _fetched_kernels(value)
        elif key.strip("_") == "attn_implementation" and is_fetched_kernel(value):
            yield str(value)


def is_fetched_kernel(attn_implementation: object) -> bool:
    """True if the name of an attention implementation is a repository on the Hub."""
    return isinstance(attn_implementation, str) and "/" in attn_implementation


def _processor_issues(folder: Path) -> Iterator[str]:
    if not any((folder / name).is_file() for name in ("processor_config.json", "preprocessor_config.json")):
        yield "processor_config.json (or preprocessor_config.json) is missing, so images cannot be prepared. Copy it."
    if not any(path.is_file() for pattern in TOKENIZER_FILES for path in folder.glob(pattern)):
        yield "tokenizer.json (or tokenizer.model) is missing, so text cannot be prepared. Copy it."
    has_template = any((folder / f"chat_template.{ending}").is_file() for ending in ("jinja", "json"))
    for name in ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json", "tokenizer.json"):
        if (folder / name).is_file():
            try:
                has_template |= bool(_read_object(folder / name).get("chat_template"))
            except ModelError as error:
                yield str(error)
    if not has_template:
        yield "no chat template: neither chat_template.jinja nor one in tokenizer_config.json. Copy or write one."


def _weight_issues(folder: Path) -> Iterator[str]:
    from safetensors import SafetensorError, safe_open

    index = folder / "model.safetensors.index.json"
    names = ["model.safetensors"]
    if index.is_file():
        try:
            names = sorted({str(name) for name in _read_object(index).get("weight_map", {}).values()})
        except (ModelError, AttributeError) as error:
            yield f"{index.name} is damaged ({error}). Fetch it again."
            return
        if not names or any(Path(name).name != name for name in names):
            yield f"{index.name} names no weight file inside the folder. Fetch it again."
            return
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            yield f"missing weight files: {', '.join(missing)}. Copy them into {folder}."
    elif not (folder / names[0]).is_file():
        other = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for path in folder.glob(pattern))
        pickled = f" {', '.join(other[:3])} can run code when opened and is not read." if other else ""
        yield f"{names[0]} is missing.{pickled} Save the weights as safetensors and put them into {folder}."
    for name in names:
        if (folder / name).is_file():
            try:
                with safe_open(folder / name, framework="pt"):  # reads and checks the header, no tensor
                    pass
            except (SafetensorError, OSError) as error:
                yield f"{name} is cut short or is not a safetensors file ({first_line(error)}). Fetch it again."


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the name of its class if it has none."""
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
