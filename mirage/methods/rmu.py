"""Representation misdirection for unlearning."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from mirage import losses
from mirage.batch import Batch, Pair
from mirage.errors import ModelError
from mirage.methods.base import AlignmentModule, LossTerms
from mirage.methods.frozen import FrozenLayers
from mirage.methods.reference import trainable_copies
from mirage.methods.tensor_store import TensorStore
from mirage.models.components import choose_trainable, layer_of, unwrapped
from mirage.models.sharding import is_sharded

Positions = Literal["answer", "text", "all"]


class RMU(AlignmentModule):
    """RMU: steers the activations of one layer to a fixed random target on harmful data and preserves them elsewhere.

    l_u = mean over positions of ||h_l(x) - c v||^2 on the unsafe set; l_r = w * cross entropy + alpha * mean over
    positions of ||h_l(x) - h_l,ref(x)||^2 on the retain set (Li et al. 2024, WMDP, arXiv 2403.03218, eq. 1 to 3).
    v = u / ||u||, u from U[0,1)^D. Both norms are divided by the width D here, as in the authors' code, so that c and
    alpha keep their usual size in wide models. Unlike there, padding and the first token never count, and v is part of
    the checkpoint. The published Safety Mirage code takes cross entropy and activations of two retain batches a step;
    here one serves both.

    Args:
        layer: The decoder layer whose output is steered, counted from 0.
        steering_coefficient: Length c of the target, a few times the usual length of an activation.
        alpha: Weight of the retain activations' distance to the reference.
        fine_tuning_weight: Weight w of the cross entropy on the retain set. With 0 (WMDP) no layer above `layer` runs.
        positions: Which positions are steered: those that predict the answer, all text, or everything but padding. On the
            retain set the same are kept near the reference, but for `answer`, where all text is: the question too.
        train_layers: Decoder layers that are trained; `layer` - 2 to `layer` by default.
        train_modules: Modules within those layers that are trained, by the end of their names.
        train_projector: Train the projector as well.
        vector_seed: Seed of the target's direction.
        cache: The most GiB that `.activation_cache`, beside the run's folder, may take: what enters the first trained layer
            and the reference's activations, each kept once for an example and form that is used again; or off. They are
            computed without dropout.
    """

    unsafe_answers, merges_sides = "harmful", False
    target: Tensor

    def __init__(
        self,
        pretrained: str,
        layer: int = 7,
        steering_coefficient: float = 10.0,
        alpha: float = 1.0,
        fine_tuning_weight: float = 1.0,
        positions: Positions = "answer",
        train_layers: list[int] | None = None,
        train_modules: list[str] | None = None,
        train_projector: bool = False,
        vector_seed: int = 0,
        cache: float | Literal[False] = 16.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(pretrained, **kwargs)
        if not steering_coefficient > 0:
            raise ValueError(f"model.steering_coefficient is {steering_coefficient}: it must be above 0.")
        if not alpha >= 0:
            raise ValueError(f"model.alpha is {alpha}: it must be 0 or more.")
        if not fine_tuning_weight >= 0:
            raise ValueError(f"model.fine_tuning_weight is {fine_tuning_weight}: it must be 0 or more.")
        if cache is not False and not cache > 0:
            raise ValueError(f"model.cache is {cache}: it must be a number of GiB above 0, or off.")
        self.layer, self.positions = layer, positions
        self.steering_coefficient, self.alpha = steering_coefficient, alpha
        self.fine_tuning_weight, self.cache = fine_tuning_weight, cache
        self.train_layers = train_layers or [index for index in range(layer - 2, layer + 1) if index >= 0]
        self.train_modules = train_modules or ["mlp.down_proj"]
        self.train_projector, self.vector_seed = train_projector, vector_seed
        self.reference: dict[str, Tensor] | None = None  # the starting weights of what trains; None with LoRA

    def loss_terms(self, pair: Pair) -> LossTerms:
        """l_u stops at the layer; one retain forward serves cross entropy and activations. Frozen layers run once."""
        unsafe_B = retain_B = None
        if pair.unsafe is not None:
            mask_BS = self._mask(pair.unsafe)
            entering, _ = self.frozen.of(pair.unsafe, "unsafe", mask_BS)
            hidden, _ = self.frozen.activations(pair.unsafe.inputs, entering, stop=True)
            unsafe_B = losses.rmu_forget(hidden, self.target, mask_BS) / hidden.shape[-1]
        if pair.retain is not None:
            retain_B = self._retain(pair.retain)
        return LossTerms(unsafe_B, retain_B)

    def _retain(self, batch: Batch) -> Tensor:
        mask_BS = self._mask(batch, "text" if self.positions == "answer" else self.positions)
        entering, reference = self.frozen.of(batch, "retain", mask_BS)
        assert reference is not None
        hidden, logits = self.frozen.activations(
            self.forward_inputs(batch), entering, stop=self.fine_tuning_weight == 0
        )
        kept_B = self.alpha * losses.rmu_retain(hidden, reference, mask_BS) / hidden.shape[-1]
        if logits is None:
            return kept_B
        fine_tuning_B = losses.sft(logits[:, -batch.logits_to_keep :], batch.labels[:, -batch.logits_to_keep :])
        return self.fine_tuning_weight * fine_tuning_B + kept_B

    def _mask(self, batch: Batch, positions: Positions | None = None) -> Tensor:
        positions = positions or self.positions
        if positions == "answer":
            return losses.answer_positions(batch.labels)
        if positions == "text":
            return batch.text_mask
        every = batch.inputs["attention_mask"].clone()
        every[:, 0] = 0
        return every

    def configure_model(self) -> None:
        """Loads the model, samples the target and copies what trains (LoRA needs no copies)."""
        if self.model is not None:
            return
        super().configure_model()
        model: Any = self.model
        width = unwrapped(model).config.get_text_config(decoder=True).hidden_size
        generator = torch.Generator().manual_seed(self.vector_seed)
        direction = torch.rand(width, generator=generator)
        self.register_buffer("target", self.steering_coefficient * direction / direction.norm())
        if self.lora is None:
            self.reference = trainable_copies(model)
        # with split weights a pass is a collective, and ranks may not skip one that others make
        never = self.train_projector or is_sharded(model)
        first = None if never else min(self.trained_layers())
        self.frozen = FrozenLayers(model, self.reference, first, self.layer)

    def on_fit_start(self) -> None:
        """Finds the cache, for the sides of which anything is used twice."""
        if self.cache is False or self.frozen.first is None:
            return
        trainer, data = self.trainer, self.trainer.datamodule  # type: ignore[attr-defined]
        batches = int(trainer.estimated_stepping_batches) * trainer.accumulate_grad_batches * trainer.world_size
        if sides := data.sides_used_again(batches):
            folder = Path(trainer.default_root_dir).absolute().parent / ".activation_cache"
            data.collate.hashes_inputs = True
            store = TensorStore(folder, self.cache * 2**30, writers=trainer.num_devices)
            images = self.processor.image_processor.to_json_string()
            self.frozen.keep(store, sides, images, self.positions, trainer.precision, self.device.type)

    def trained_layers(self) -> list[int]:
        """The layers to train: none comes after the steered one."""
        layer_of(self.model, self.layer)
        if max(self.train_layers) > self.layer:
            raise ModelError(
                f"model.train_layers holds {max(self.train_layers)}, which comes after the steered layer {self.layer}. "
                "Train layers up to the steered one."
            )
        return self.train_layers

    def choose_trainable(self) -> None:
        """Trains `train_modules` of `train_layers`, by default `mlp.down_proj` of three; with LoRA all adapters there."""
        choose_trainable(
            self.model,
            components=["language", "projector"] if self.train_projector else ["language"],
            layers=self.trained_layers(),
            modules=None if self.lora is not None else self.train_modules,
        )
