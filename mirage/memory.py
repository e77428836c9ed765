"""How much memory a training step will take, before any weight is loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

GIB = 2**30
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
ADAMW_BYTES = 8  # two float32 moments for each trainable parameter

# What a decoder layer keeps of each token for its backward pass, as counted with saved-tensor hooks on Llama: so many
# times the hidden size (queries, keys, values, attention output, residuals), the feed-forward width (gate, up,
# activation, product), and the hidden size once more in float32 for each of its two norms.
KEPT_PER_HIDDEN = 8
KEPT_PER_INTERMEDIATE = 4
NORM_BYTES_PER_HIDDEN = 8
LOSS_BYTES_PER_LOGIT = 8  # a float32 copy and its gradient, beside the logits themselves


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryEstimate:
    """Memory of one device during a training step, in GiB, and the parameters it is for.

    Args:
        parameters: All parameters, shared ones counted once.
        trainable: Those that train.
        weights_gib: The model.
        gradients_gib: One gradient for each trainable parameter.
        optimizer_gib: The optimizer's state.
        activations_gib: What the backward pass needs of a forward pass through all decoder layers, and the logits.
    """

    parameters: int
    trainable: int
    weights_gib: float
    gradients_gib: float
    optimizer_gib: float
    activations_gib: float

    @property
    def total_gib(self) -> float:
        """The sum, without what the framework itself and fragmentation take."""
        return self.weights_gib + self.gradients_gib + self.optimizer_gib + self.activations_gib

    def __str__(self) -> str:
        share = 100 * self.trainable / max(self.parameters, 1)
        return (
            f"{self.trainable:,} of {self.parameters:,} parameters train ({share:.2f} %); memory per device about "
            f"{self.total_gib:.2f} GiB: weights {self.weights_gib:.2f}, gradients {self.gradients_gib:.2f}, "
            f"optimizer {self.optimizer_gib:.2f}, activations {self.activations_gib:.2f}"
        )


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """How many parameters train, and how many there are; shared ones count once."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return sum(size for size, trains in sizes if trains), sum(size for size, _ in sizes)


def read_config(pretrained: str, *, revision: str | None = None, allow_download: bool = False) -> PreTrainedConfig:
    """The configuration of a checkpoint; no weight is read and no code of its folder is run."""
    from transformers import AutoConfig

    from mirage.pretrained import resolve_pretrained

    where = resolve_pretrained(pretrained, allow_download)
    config = AutoConfig.from_pretrained(
        where, revision=revision or "main", local_files_only=not allow_download, trust_remote_code=False
    )
    return cast("PreTrainedConfig", config)


def meta_model(config: PreTrainedConfig) -> PreTrainedModel:
    """The model of a configuration on the meta device: every module and shape, no memory."""
    import torch
    from transformers import AutoModelForImageTextToText

    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config, trust_remote_code=False)  # type: ignore[no-untyped-call]
    return cast("PreTrainedModel", model)


def estimate(
    config: PreTrainedConfig,
    *,
    trainable: Callable[[PreTrainedModel], Any] | None = None,
    dtype: str,
    batch_tokens: int,
    gradient_checkpointing: bool = False,
    optimizer_bytes: int = ADAMW_BYTES,
    shards: int = 1,
) -> MemoryEstimate:
    """The memory that one training step takes on each device. Allocates nothing of the model's size.

    Args:
        config: The model's configuration, from `read_config`.
        trainable: Called with the model on the meta device to say what trains: `choose_trainable` or `add_lora`
            with its settings. None means that everything trains.
        dtype: Type of weights and gradients: float32, bfloat16, float16, or `auto` for the checkpoint's own.
        batch_tokens: Tokens in one forward pass on one device: batch size times length, image tokens included.
        gradient_checkpointing: Keep only the input of each decoder layer.
        optimizer_bytes: Bytes of optimizer state for each trainable parameter; 8 for AdamW in float32.
        shards: Over how many devices weights, gradients and optimizer are split (FSDP, ZeRO-3); 1 under DDP.
    """
    model = meta_model(config)
    if trainable is not None:
        trainable(model)
    trains, total = count_parameters(model)
    size = _bytes_of(config, dtype)
    return MemoryEstimate(
        parameters=total,
        trainable=trains,
        weights_gib=total * size / shards / GIB,
        gradients_gib=trains * size / shards / GIB,
        optimizer_gib=trains * optimizer_bytes / shards / GIB,
        activations_gib=batch_tokens * _activation_bytes_per_token(config, size, gradient_checkpointing) / GIB,
    )


def _bytes_of(config: PreTrainedConfig, dtype: str) -> int:
    if dtype != "auto":
        return BYTES[dtype]
    own = config.dtype or config.get_text_config(decoder=True).dtype
    return BYTES.get(str(own).removeprefix("torch."), 4)


def _activation_bytes_per_token(config: PreTrainedConfig, size: int, gradient_checkpointing: bool) -> int:
    text = config.get_text_config(decoder=True)
    hidden, layers = text.hidden_size, text.num_hidden_layers
    intermediate = getattr(text, "intermediate_size", None) or 4 * hidden
    layer = size * (KEPT_PER_HIDDEN * hidden + KEPT_PER_INTERMEDIATE * intermediate) + NORM_BYTES_PER_HIDDEN * hidden
    stack = layers * size * hidden + layer if gradient_checkpointing else layers * layer
    return int(stack + text.vocab_size * (size + LOSS_BYTES_PER_LOGIT))
