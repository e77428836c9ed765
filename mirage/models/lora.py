"""LoRA adapters in the language model, and the model with them switched off."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from mirage.errors import ModelError

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import nn

ALL_LINEAR = "all-linear"


@dataclass(kw_only=True)
class LoraSettings:
    """Low-rank adapters under PEFT's own names; biases are never trained.

    Args:
        r: Rank of the adapters, 8 to 128. Larger learns more and costs more memory.
        lora_alpha: Strength of the adapters relative to r; often r or 2 r.
        target_modules: Which linear layers of the language model get an adapter: `all-linear`, or a list of name
            endings such as [q_proj, v_proj]. Any other text is a regular expression for the whole name of a module,
            and reaches outside the language model too.
        lora_dropout: Probability of dropping an adapter's input while training, 0 to below 1.
    """

    r: int = 16
    lora_alpha: int = 32
    target_modules: list[str] | str = ALL_LINEAR
    lora_dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.r < 1:
            raise ValueError(f"lora.r is {self.r}. Choose a rank of at least 1.")
        if not self.lora_alpha > 0:
            raise ValueError(f"lora.lora_alpha is {self.lora_alpha}. Choose a number above 0.")
        if not 0 <= self.lora_dropout < 1:
            raise ValueError(f"lora.lora_dropout is {self.lora_dropout}. Choose a number from 0 to below 1.")
        if not self.target_modules:
            raise ValueError("lora.target_modules is empty. Name linear layers, or write all-linear.")


def add_lora(model: nn.Module, settings: LoraSettings, *, layers: Sequence[int] | None = None) -> PeftModel:
    """The model wrapped with new adapters, which alone train. Its logits equal the model's until they are trained.

    Args:
        model: A model without adapters; it is changed in place.
        settings: Rank, strength and targets.
        layers: Limit the adapters to these decoder layers.

    Raises:
        ModelError: If a target matches nothing.
    """
    from peft import LoraConfig, get_peft_model

    from mirage.models.components import unwrapped

    config = LoraConfig(
        r=settings.r,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=target_pattern(model, settings.target_modules, layers),
        bias="none",
    )
    with warnings.catch_warnings():
        # PEFT asks transformers a question under its old name
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        wrapped = get_peft_model(unwrapped(model), config, autocast_adapter_dtype=False)
    return cast("PeftModel", wrapped)


def target_pattern(model: nn.Module, targets: list[str] | str, layers: Sequence[int] | None = None) -> str:
    """A regular expression that PEFT matches against whole module names; it matches at least one linear layer.

    Raises:
        ModelError: If a target matches nothing; the message lists what there is.
    """
    from mirage.models.components import decoder_layers, ends_with, layer_of, linear_names

    stack = decoder_layers(model)
    inside = [name.partition(".")[2] for name in linear_names(stack)]  # "mlp.down_proj", once for each layer
    known = ", ".join(dict.fromkeys(inside))
    if isinstance(targets, str) and targets != ALL_LINEAR:
        every = linear_names(model)
        try:
            matched = any(re.fullmatch(targets, name) for name in every)
        except re.error as error:
            raise ModelError(
                f"lora.target_modules {targets!r} is not a regular expression ({error}). Correct it."
            ) from error
        if not matched:
            raise ModelError(
                f"lora.target_modules {targets!r} matches no linear layer. Names look like {every[0]} and {every[-1]}; "
                f"within a decoder layer: {known}."
            )
        return targets
    endings = sorted(set(inside)) if isinstance(targets, str) else list(targets)
    for ending in endings:
        if not any(ends_with(name, ending) for name in inside):
            raise ModelError(f"lora.target_modules: {ending!r} matches nothing. Choose from: {known}.")
    for index in layers or ():
        layer_of(model, index)
    (prefix,) = (name for name, part in model.named_modules() if part is stack)
    number = r"\d+" if layers is None else "|".join(str(index) for index in layers)
    words = "|".join(re.escape(ending) for ending in endings)
    return rf"{re.escape(prefix)}\.({number})\.(.*\.)?({words})"


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Within the block the model is its own starting point: adapters add nothing.

    Raises:
        ModelError: If the model has no adapters.
    """
    from peft import PeftModel

    if not isinstance(model, PeftModel):
        raise ModelError(f"{type(model).__name__} has no adapters to switch off. Add them with lora settings.")
    with model.disable_adapter():  # type: ignore[no-untyped-call]
        yield
