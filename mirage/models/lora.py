"""LoRA adapters in the language model."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, cast

from mirage.errors import ModelError
from mirage.models.components import decoder_layers, ends_with, layer_of, linear_names, unwrapped

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
        for name, is_legal, legal in (
            ("r", self.r >= 1, "at least 1"),
            ("lora_alpha", self.lora_alpha > 0, "above 0"),
            ("lora_dropout", 0 <= self.lora_dropout < 1, "at least 0 and below 1"),
            ("target_modules", bool(self.target_modules), "names of linear layers, or all-linear"),
        ):
            if not is_legal:
                raise ValueError(f"lora.{name} is {getattr(self, name)!r}: it must be {legal}.")


def add_lora(model: nn.Module, settings: LoraSettings, *, layers: Sequence[int] | None = None) -> PeftModel:
    """The model, changed in place, with new adapters in `layers` (by default all), which alone train.

    Its logits equal the model's until they are trained.

    Raises:
        ModelError: If a target matches nothing, or the rank is above the width of the language model.
    """
    from peft import LoraConfig, get_peft_model

    if settings.r > (width := unwrapped(model).config.get_text_config(decoder=True).hidden_size):
        raise ModelError(
            f"lora.r is {settings.r}, above the width of the language model, which is {width}: a larger rank adds "
            "nothing. Lower it."
        )
    given = asdict(settings) | {"target_modules": target_pattern(model, settings.target_modules, layers)}
    config = LoraConfig(**given, bias="none")
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
    stack = decoder_layers(model)
    inside = [name.partition(".")[2] for name in linear_names(stack)]  # "mlp.down_proj", once for each layer
    known = ", ".join(dict.fromkeys(inside))
    if isinstance(targets, str) and targets != ALL_LINEAR:
        every = linear_names(model)
        with suppress(re.error):
            if any(re.fullmatch(targets, name) for name in every):
                return targets
        raise ModelError(
            f"lora.target_modules {targets!r} is no regular expression that matches a linear layer. Names look like "
            f"{every[0]} and {every[-1]}; within a decoder layer: {known}."
        )
    endings = sorted(set(inside)) if isinstance(targets, str) else targets
    for ending in endings:
        if not any(ends_with(name, ending) for name in inside):
            raise ModelError(f"lora.target_modules: {ending!r} matches nothing. Choose from: {known}.")
    for index in layers or ():
        layer_of(model, index)
    (prefix,) = (name for name, part in model.named_modules() if part is stack)
    number = r"\d+" if layers is None else "|".join(str(index) for index in layers)
    words = "|".join(re.escape(ending) for ending in endings)
    return rf"{re.escape(prefix)}\.({number})\.(.*\.)?({words})"
