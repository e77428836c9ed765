"""Models are loaded here and nowhere else: complete, from safetensors, and without running code of their folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, cast

import torch

from mirage.errors import ModelError
from mirage.models.pretrained import check_pretrained, first_line, is_fetched_kernel, resolve_pretrained
from mirage.models.processor import load_processor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Dtype = Literal["float32", "bfloat16", "float16", "auto"]


def load_model(
    pretrained: str,
    *,
    dtype: Dtype = "float32",
    attn_implementation: str | None = None,
    revision: str | None = None,
    allow_download: bool = False,
    gradient_checkpointing: bool = False,
) -> PreTrainedModel:
    """The vision-language model of a checkpoint, on the CPU and in evaluation mode; no code of its folder is run.

    Args:
        pretrained: A folder, `package:<package>/<path>`, or a name on the Hub with `allow_download`.
        dtype: Type of the weights; `auto` is that of the checkpoint.
        attn_implementation: `sdpa`, `eager`, `flash_attention_2`; the model's default if None.
        revision: Branch, tag or commit, where it is downloaded.
        allow_download: Fetch what is not a local folder.
        gradient_checkpointing: Recompute activations in the backward pass: less memory, about a third more time.
            It works in training mode only (`model.train()`).

    Raises:
        ModelError: If the folder holds no complete vision-language model.
    """
    from transformers import AutoModelForImageTextToText

    if is_fetched_kernel(attn_implementation):
        raise ModelError(
            f"attn_implementation {attn_implementation!r} would fetch code to run. "
            "Choose sdpa, eager or another that is installed."
        )
    check_pretrained(pretrained, allow_download)
    where = resolve_pretrained(pretrained, allow_download)
    try:
        with _quiet():
            loaded: Any = AutoModelForImageTextToText.from_pretrained(
                where,
                revision=revision or "main",
                local_files_only=not allow_download,
                trust_remote_code=False,
                use_safetensors=True,
                dtype=dtype,
                attn_implementation=attn_implementation,
                output_loading_info=True,
            )
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # a damaged checkpoint raises anything from KeyError to SafetensorError
        raise ModelError(f"{where}: the model cannot be loaded ({first_line(error)}). Repair its files.") from error
    model, report = loaded
    _refuse_partial(where, report)
    if gradient_checkpointing:
        if not model.supports_gradient_checkpointing:
            raise ModelError(f"{where}: {type(model).__name__} cannot checkpoint. Set gradient_checkpointing to false.")
        model.activation_checkpointing_enable({"use_reentrant": False})
    return cast("PreTrainedModel", model)


def load_for_inference(pretrained: str, *, dtype: Dtype = "float32", device: str = "auto") -> tuple[Any, Any]:
    """A model that is only asked, and its processor: in evaluation mode, without gradients.

    Args:
        pretrained: A folder, or `package:<package>/<path>`.
        dtype: Type of the weights; `auto` is that of the checkpoint.
        device: Where the model is put, such as `cpu` or `cuda:1`; `auto` is a GPU where there is one.

    Raises:
        ModelError: If the folder holds no complete vision-language model with a usable processor.
    """
    processor = load_processor(pretrained)
    model: Any = load_model(pretrained, dtype=dtype)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return model.eval().requires_grad_(False).to(device), processor


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bar and no report while weights are loaded; what the report would say is raised instead."""
    from transformers.utils import logging

    bar, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _refuse_partial(where: str, report: Mapping[str, Any]) -> None:
    """Refuses a checkpoint that does not cover the model: transformers would fill the rest with random numbers."""
    for key, defect in (("missing_keys", "lacks"), ("mismatched_keys", "has the wrong shape for")):
        names = sorted(str(entry[0] if isinstance(entry, tuple) else entry) for entry in report.get(key, ()))
        if names:
            shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            raise ModelError(f"{where}: the checkpoint {defect} {shown}. Fetch weights that belong to its config.json.")
