"""Where a model's files come from, and what can be wrong with them, without reading a weight."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from mirage.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

PACKAGE_PREFIX = "package:"
HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")
BIDIRECTIONAL = {"paligemma"}  # prefix language models: every position that is not marked as answer sees all others

Dtype = Literal["float32", "bfloat16", "float16", "auto"]
"""Type of a model's weights; `auto` is that of the checkpoint."""


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
    if allow_download and not folder.is_file():
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
    with suppress(ImportError, ValueError, TypeError):  # no such package, no name, or a module that is no package
        root = Path(str(resources.files(package)))
        if inner and (root / inner).is_dir() and (root / inner).resolve().is_relative_to(root.resolve()):
            return root / inner
    raise ModelError(
        f"{name} names no folder inside an installed package. Write {PACKAGE_PREFIX}<package>/<path inside it>."
    )


def check_pretrained(pretrained: str, allow_download: bool = False) -> None:
    """Guarantees that a local folder holds a complete vision-language checkpoint; reads no weights.

    All issues are reported together. A name that is to be downloaded is left to transformers.

    Raises:
        ModelError: With one line for each issue.
    """
    folder = Path(resolve_pretrained(pretrained, allow_download))
    if not folder.is_dir():
        return
    issues = [*_config_issues(folder), *_weight_issues(folder)]
    if issues:
        raise ModelError("\n".join([f"{folder} cannot be used as a vision-language model:", *issues]))


def _config_issues(folder: Path) -> Iterator[str]:
    if (folder / "adapter_config.json").is_file():
        yield "adapter_config.json: adapters may name another base model. Merge them into the model."
    try:
        content = _read_object(folder / "config.json")
    except ModelError as error:
        yield str(error)
        return
    kind = content.get("model_type")
    if reason := _why_unsuitable(folder, str(kind)):
        yield (
            f"config.json: model type {kind!r} {reason}. Use a vision-language model that transformers itself "
            "implements and that reads from left to right, such as LLaVA."
        )
    for kernel in _fetched_kernels(content):
        yield f"config.json: attn_implementation {kernel!r} would fetch code to run. Remove that line."


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{path.name} is missing. Copy it from the model's repository into {path.parent}.") from None
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path.name} is not valid JSON ({error}). Fetch it again.") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path.name} holds no JSON object. Fetch it again.")
    return content


def _why_unsuitable(folder: Path, kind: str) -> str:
    """Why a model of this type cannot be used; empty if it can."""
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    if kind not in CONFIG_MAPPING:
        return "is not known to this version of transformers, and code of a model's folder is never run"
    if kind in BIDIRECTIONAL:
        return "reads its prompt in both directions, so an answer to be learned would see itself"
    if kind not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        return "is no vision-language model"
    try:
        return "is an encoder-decoder" if read_config(str(folder)).is_encoder_decoder else ""
    except ModelError as error:
        return f"does not fit the rest of the file ({error})"


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


def _weight_issues(folder: Path) -> Iterator[str]:
    from safetensors import SafetensorError, safe_open

    index, names = folder / "model.safetensors.index.json", {"model.safetensors"}
    if index.is_file():
        try:
            names = {str(name) for name in _read_object(index)["weight_map"].values()}
        except (ModelError, KeyError, AttributeError):
            names = set()
        if not names or any(Path(name).name != name for name in names):
            yield f"{index.name} names no weight files inside the folder. Fetch it again."
            return
    for name in sorted(names):
        try:
            with safe_open(folder / name, framework="pt"):  # reads and checks the header, no tensor
                pass
        except FileNotFoundError:
            yield f"{name} is missing. Copy it; weights of other formats can run code and are not read."
        except (SafetensorError, OSError) as error:
            yield f"{name} is cut short or is not a safetensors file ({first_line(error)}). Fetch it again."


def read_config(pretrained: str, *, revision: str | None = None, allow_download: bool = False) -> PreTrainedConfig:
    """The configuration of a checkpoint; no weight is read and no code of its folder is run.

    Raises:
        ModelError: If there is none, or it is damaged.
    """
    from transformers import AutoConfig

    where = resolve_pretrained(pretrained, allow_download)
    with repairable(f"{where}: its configuration"):
        config = AutoConfig.from_pretrained(
            where, revision=revision or "main", local_files_only=not allow_download, trust_remote_code=False
        )
    return cast("PreTrainedConfig", config)


@contextmanager
def repairable(what: str) -> Iterator[None]:
    """Turns whatever a damaged file of a model raises within the block, which may be anything, into a ModelError."""
    try:
        yield
    except Exception as error:
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's; not imported here
            raise
        if isinstance(error, ImportError) and "torchvision" in str(error).lower():
            raise ModelError(
                f"{what} prepares pictures with torchvision, which is not installed: pip install torchvision, or this "
                "package with its extra, safety-mirage[vision]."
            ) from error
        if "trust_remote_code" in str(error):  # transformers advises to trust it
            raise ModelError(
                f"{what} is code in that folder, which mirage never runs. Use a model that transformers itself implements."
            ) from None
        raise ModelError(f"{what} cannot be loaded ({first_line(error)}). Repair its files.") from error


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the name of its class if it has none."""
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
