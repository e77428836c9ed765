"""Models are loaded here and nowhere else: complete, from safetensors, and without running code of their folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch

from mirage.errors import ModelError
from mirage.models.pretrained import (
    Dtype,
    check_pretrained,
    is_fetched_kernel,
    read_config,
    repairable,
    resolve_pretrained,
)
from mirage.models.processor import TextProcessor, load_processor
from mirage.text import first_names

if TYPE_CHECKING:
    from transformers import PreTrainedModel


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
        raise ModelError(f"attn_implementation {attn_implementation!r} would fetch code to run. Choose sdpa or eager.")
    check_pretrained(pretrained, allow_download)
    where = resolve_pretrained(pretrained, allow_download)
    given = {"dtype": dtype, "attn_implementation": attn_implementation, "revision": revision or "main"}
    model = _loaded(AutoModelForImageTextToText, where, local_files_only=not allow_download, **given)
    if gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    return cast("PreTrainedModel", model)


def load_for_inference(
    pretrained: str, *, dtype: Dtype = "float32", device: str = "auto", text_alone: bool = False
) -> tuple[Any, Any]:
    """A model in a local folder that is only asked, and its processor: in evaluation mode, without gradients.

    Args:
        pretrained: A folder, or `package:<package>/<path>`; `dtype` as in `load_model`.
        device: Where the model is put, such as `cpu` or `cuda:1`; `auto` is a GPU where there is one.
        text_alone: A language model, which takes no pictures, will do.

    Raises:
        ModelError: If the folder holds no complete model with a usable processor.
    """
    from transformers import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
        AutoModelForCausalLM,
        AutoTokenizer,
    )

    where, kind = resolve_pretrained(pretrained), type(read_config(pretrained))
    model: Any
    if text_alone and kind in MODEL_FOR_CAUSAL_LM_MAPPING and kind not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        with repairable(f"{where}: the tokenizer"):
            tokenizer = AutoTokenizer.from_pretrained(where, local_files_only=True, trust_remote_code=False)
        model = _loaded(AutoModelForCausalLM, where, local_files_only=True, dtype=dtype)
        processor: Any = TextProcessor(tokenizer)
    else:
        model, processor = load_model(pretrained, dtype=dtype), load_processor(pretrained)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return model.eval().requires_grad_(False).to(device), processor


def _loaded(model_class: Any, where: str, **given: Any) -> Any:
    """The model, all of whose weights the checkpoint holds: transformers would fill the rest with random numbers."""
    with repairable(f"{where}: the model"), _quiet():
        model, report = model_class.from_pretrained(
            where,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **given,
        )
    unfit = sorted([*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])])
    if unfit:
        raise ModelError(
            f"{where}: the checkpoint lacks {first_names(unfit, 3)}, or has another shape there. "
            "Fetch weights that belong to its config.json."
        )
    return model


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
