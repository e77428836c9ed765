"""How much memory a training step will take, before any weight is loaded."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn

from mirage.errors import ModelError
from mirage.models.components import decoder_layers
from mirage.models.pretrained import first_line, read_config

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer
    from transformers import PreTrainedConfig, PreTrainedModel

GIB = 2**30
GATHERED_LAYERS = 2  # of split weights: the decoder layer that runs, and the one that is fetched meanwhile
GATHERED_BYTES = 2  # of each parameter while it is gathered, in bfloat16

# What a decoder layer keeps of each token for its backward pass, as counted with saved-tensor hooks on Llama: so many
# times the hidden size (queries, keys, values, attention output, residuals), the feed-forward width (gate, up,
# activation, product), and the hidden size once more in float32 for each of its two norms.
KEPT_PER_HIDDEN = 8
KEPT_PER_INTERMEDIATE = 4
NORM_BYTES_PER_HIDDEN = 8
LOSS_BYTES_PER_LOGIT = 8  # a float32 copy and its gradient, beside the logits themselves
SAMPLED = 8  # examples of each training set that are collated for the length of a batch


class MemoryEstimate(NamedTuple):
    """Memory of one device during a training step, in GiB, and the parameters it is for (shared ones counted once)."""

    parameters: int
    trainable: int
    weights_gib: float
    gradients_gib: float
    optimizer_gib: float
    activations_gib: float  # what the backward pass needs of all decoder layers, and the logits

    @property
    def total_gib(self) -> float:
        """The sum, without what the framework itself and fragmentation take."""
        return sum(self[2:])

    def __str__(self) -> str:
        parts = ", ".join(f"{name.removesuffix('_gib')} {gib:.2f}" for name, gib in list(self._asdict().items())[2:])
        return f"{_share(self.trainable, self.parameters)}; memory per device about {self.total_gib:.2f} GiB: {parts}"


def _share(trainable: int, parameters: int) -> str:
    return f"{trainable:,} of {parameters:,} parameters train ({100 * trainable / max(parameters, 1):.2f} %)"


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """How many parameters train, and how many there are; shared ones count once."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return sum(size for size, trains in sizes if trains), sum(size for size, _ in sizes)


def meta_model(config: PreTrainedConfig) -> PreTrainedModel:
    """The model of a configuration on the meta device: every module and shape, no memory."""
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
    shards: int = 1,
) -> MemoryEstimate:
    """The memory that one training step takes on each device. Allocates nothing of the model's size.

    Args:
        config: The model's configuration, from `read_config`.
        trainable: Called with the model on the meta device to say what trains: `choose_trainable` or `add_lora`
            with its settings. None means that everything trains.
        dtype: Type of weights and gradients: float32, bfloat16, float16, or `auto` for the checkpoint's.
        batch_tokens: Tokens in one forward pass on one device: batch size times length, image tokens included.
        gradient_checkpointing: Keep only the input of each decoder layer.
        shards: Over how many devices weights, gradients and optimizer are split (FSDP2); 1 under DDP. Two decoder
            layers, and all that is in none, are whole besides.
    """
    model = meta_model(config)
    if trainable is not None:
        trainable(model)
    trains, total = count_parameters(model)
    in_layers = count_parameters(decoder_layers(model))[1]
    text = config.get_text_config(decoder=True)
    name = str(config.dtype or text.dtype or "float32") if dtype == "auto" else dtype
    size: int = getattr(torch, name.removeprefix("torch.")).itemsize
    hidden, layers = text.hidden_size, text.num_hidden_layers
    gathered = total - in_layers + GATHERED_LAYERS * in_layers // layers if shards > 1 else 0
    intermediate = getattr(text, "intermediate_size", None) or 4 * hidden
    layer = size * (KEPT_PER_HIDDEN * hidden + KEPT_PER_INTERMEDIATE * intermediate) + NORM_BYTES_PER_HIDDEN * hidden
    kept = layers * size * hidden + layer if gradient_checkpointing else layers * layer
    return MemoryEstimate(
        parameters=total,
        trainable=trains,
        weights_gib=(total * size / shards + gathered * GATHERED_BYTES) / GIB,
        gradients_gib=trains * size / shards / GIB,
        optimizer_gib=trains * 2 * size / shards / GIB,  # AdamW's two moments, of the type of the weights
        activations_gib=batch_tokens * (kept + text.vocab_size * (size + LOSS_BYTES_PER_LOGIT)) / GIB,
    )


class MemoryLine(Callback):
    """Prints at the start of a fit, before any weight is loaded, what a step will take; and afterwards what trains."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Prints the estimate on rank 0. Lightning calls this after the data are set up and before the model is."""
        if stage != "fit" or not trainer.is_global_zero or pl_module.model is not None:
            return
        try:
            line = f"before loading: {self.estimated(trainer, pl_module)}"
        except ModelError:
            raise
        except Exception as error:  # an estimate is worth a line, and no run is lost for want of one
            line = f"no memory estimate ({first_line(error)})"
        print(line, flush=True)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints on rank 0 how many parameters of the loaded model train."""
        if trainer.is_global_zero:
            print(f"loaded: {_share(*count_parameters(pl_module))}", flush=True)

    def estimated(self, trainer: Any, method: Any) -> MemoryEstimate:
        """The estimate for this trainer, method and data."""
        return estimate(
            read_config(method.pretrained, revision=method.revision, allow_download=method.allow_download),
            trainable=trains_as(method),
            dtype=method.dtype_name,
            batch_tokens=self._batch_tokens(trainer.datamodule),
            gradient_checkpointing=method.gradient_checkpointing,
            shards=trainer.world_size if isinstance(trainer.strategy, ModelParallelStrategy) else 1,
        )

    def _batch_tokens(self, data: Any) -> int:
        """Tokens in a batch of the longest example among some of each set."""
        num_retain = math.ceil(data.gamma * data.batch_size) if len(data.unsafe_set) else data.batch_size
        tokens = 0
        for examples, count in ((data.unsafe_set, data.batch_size), (data.retain_set, num_retain)):
            if len(examples):
                stride = max(1, len(examples) // SAMPLED)
                some = [examples[k] for k in range(0, len(examples), stride)][:SAMPLED]
                tokens += count * int(data.collate(some).labels.shape[1])
        return tokens


def trains_as(method: Any) -> Callable[[PreTrainedModel], None]:
    """A function that makes of a model on the meta device what `method.configure_model` will make of the loaded one."""

    def choose(model: PreTrainedModel) -> None:
        try:
            with torch.device("meta"):  # new adapters too: no memory, and no random number is used up
                method.adapt(model)
        finally:
            method.model = None

    return choose
