"""AlignmentModule: everything that the methods share, so that a method is its equation and nothing else.

A step receives a `Pair` with gamma retain examples per unsafe example (`mirage.data.order` applies gamma); `loss_terms`
makes it one loss per example, and `losses.objective` the scalar to minimise.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from inspect import signature
from typing import Any, ClassVar, Literal, NamedTuple

import lightning as L
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from torchmetrics import MeanMetric

from mirage import losses
from mirage.batch import Batch, Pair, joined
from mirage.models.components import Component, choose_trainable, unwrapped
from mirage.models.load import load_model
from mirage.models.lora import LoraSettings, add_lora
from mirage.models.pretrained import Dtype, read_config
from mirage.models.processor import load_processor
from mirage.models.sharding import gathered, shard, whole
from mirage.models.threads import limit_threads

_FUSED = ("cpu", "cuda")  # where one kernel does AdamW: on a CPU, twenty times faster than the loop


class LossTerms(NamedTuple):
    """The two terms of the objective before they are summed; None where a step has no such examples."""

    unsafe_B: Tensor | None  # l_u of each unsafe example
    retain_B: Tensor | None  # l_r of each retain example


class NonFiniteLossError(FloatingPointError):
    """A loss or gradient was inf or nan; training stopped before the optimizer used it."""


class AlignmentModule(L.LightningModule, ABC):
    """Base of every method. A method defines `loss_terms`, and which answers its unsafe set needs.

    Args:
        pretrained: The starting model: a Hugging Face folder, or `package:<package>/<path>`.
        learning_rate: Peak learning rate of AdamW.
        weight_decay: Weight decay of AdamW.
        warmup_ratio: Share of all optimizer steps in which the learning rate rises to its peak.
        schedule: How the learning rate falls afterwards.
        lora: Train low-rank adapters instead of the weights themselves.
        train: Which components of the model are trained. The vision tower is frozen by default.
        dtype: Type of the weights. float32 with `trainer.precision: bf16-mixed` is the safe choice for full fine-tuning.
        attn_implementation: sdpa, eager or flash_attention_2; the model's default if not given.
        gradient_checkpointing: Recompute activations in the backward pass: less memory, about a third more time.
        revision: Branch, tag or commit, where the model is downloaded.
        allow_download: Let `pretrained` be a name on the Hugging Face Hub.
    """

    unsafe_answers: ClassVar[Literal["refusal", "harmful"] | None]
    """What the unsafe set's answers are: refusals to learn, harmful answers to unlearn, or no unsafe set at all."""

    merges_sides: ClassVar[bool] = True
    """False where unsafe and retain examples need forward passes of their own, of which a step may lack one."""

    strict_loading = False  # a checkpoint holds what was trained; the rest comes from `pretrained`

    def __init__(
        self,
        pretrained: str,
        learning_rate: float = 2e-5,
        weight_decay: float = 0.0,
        warmup_ratio: float = 0.03,
        schedule: Literal["cosine", "linear", "constant_with_warmup"] = "cosine",
        lora: LoraSettings | None = None,
        train: list[Component] | None = None,
        dtype: Dtype = "float32",
        attn_implementation: str | None = None,
        gradient_checkpointing: bool = False,
        revision: str | None = None,
        allow_download: bool = False,
    ) -> None:
        super().__init__()
        if not learning_rate > 0:
            raise ValueError(f"model.learning_rate is {learning_rate}: it must be above 0.")
        if not weight_decay >= 0:
            raise ValueError(f"model.weight_decay is {weight_decay}: it must be 0 or more.")
        if not 0 <= warmup_ratio < 1:
            raise ValueError(f"model.warmup_ratio is {warmup_ratio}: it must be 0 or more, and below 1.")
        self.pretrained, self.revision, self.allow_download = pretrained, revision, allow_download
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.warmup_ratio, self.schedule = warmup_ratio, schedule
        self.lora, self.train_components, self.dtype_name = lora, train or ["language", "projector"], dtype
        self.attn_implementation, self.gradient_checkpointing = attn_implementation, gradient_checkpointing
        self.model: Any = None
        # of every accumulated batch since the last optimizer step: side, example ids, losses (B,)
        self._window: list[tuple[str, tuple[str, ...], Tensor]] = []
        self._shown = torch.full((2,), torch.nan)
        self._held_out_loss = MeanMetric()

    @property
    def name(self) -> str:
        """The method's name in configs, logs and reports."""
        return type(self).__name__.lower()

    @abstractmethod
    def loss_terms(self, pair: Pair) -> LossTerms:
        """The method's equation: l_u of each unsafe example and l_r of each retain example."""

    @cached_property
    def processor(self) -> Any:
        """The model's processor; the data module uses the same object."""
        return load_processor(self.pretrained, revision=self.revision, allow_download=self.allow_download)

    @cached_property
    def context_length(self) -> int | None:
        """The longest sequence that the model was made for, in tokens, as its configuration says."""
        config = read_config(self.pretrained, revision=self.revision, allow_download=self.allow_download)
        return getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)

    def configure_model(self) -> None:
        """Loads the starting model (once) and decides what trains. Data have been checked by then."""
        if self.model is not None:
            return
        trainer = self._trainer
        if trainer is not None and isinstance(trainer.strategy, ModelParallelStrategy):
            for turn in range(trainer.strategy.num_processes):  # a machine holds one whole model at a time
                if turn == trainer.local_rank:
                    shard(self._loaded(), trainer.strategy.root_device, trainer.precision)
                trainer.strategy.barrier()
        else:
            self._loaded()
        model: Any = self.model
        if trainer is not None and trainer.strategy.root_device.type == "cpu":
            line = limit_threads(model)  # on every rank, before anything is computed
            if trainer.is_global_zero:
                print(line, flush=True)

    def _loaded(self) -> Any:
        model = load_model(
            self.pretrained,
            dtype=self.dtype_name,
            attn_implementation=self.attn_implementation,
            revision=self.revision,
            allow_download=self.allow_download,
            gradient_checkpointing=self.gradient_checkpointing,
        )
        self.adapt(model.train())
        return self.model

    def adapt(self, model: Any) -> None:
        """Takes the starting model: adds the adapters, if there are to be any, and freezes what does not train."""
        self.model = model
        if self.lora is not None:
            self.model = add_lora(model, self.lora, layers=self.trained_layers())
            if self.gradient_checkpointing:
                self.model.enable_input_require_grads()
        self.choose_trainable()

    def trained_layers(self) -> list[int] | None:
        """The decoder layers that are trained; None for all."""
        return None

    def choose_trainable(self) -> None:
        """Freezes every parameter that is not trained."""
        choose_trainable(self.model, components=self.train_components, layers=self.trained_layers())

    def answer_logits(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits and labels from the first answered position on: one forward pass, no logits for image tokens."""
        logits = self.model(**self.forward_inputs(batch), use_cache=False).logits
        return logits[:, -batch.logits_to_keep :], batch.labels[:, -batch.logits_to_keep :]

    def forward_inputs(self, batch: Batch) -> dict[str, Any]:
        """What the model's forward takes, and how many logits it shall keep if it can leave out the others."""
        can = "logits_to_keep" in signature(unwrapped(self.model).forward).parameters
        return {**batch.inputs, "logits_to_keep": batch.logits_to_keep} if can else {**batch.inputs}

    def merged(self, pair: Pair) -> Batch:
        """Both sides as one batch, unsafe first, so that a step is one forward and one backward pass."""
        if pair.unsafe is not None and pair.retain is not None:
            return joined(pair.unsafe, pair.retain, self.processor.tokenizer.pad_token_id)
        side = pair.unsafe or pair.retain
        assert side is not None
        return side

    def training_step(self, pair: Pair, batch_idx: int) -> Tensor:
        """`losses.objective` of this rank's examples: (sum of unsafe + sum of retain) / number of unsafe.

        A step without unsafe examples (`UnsafeFilter`) is divided by the number of retain examples.
        """
        terms = self.loss_terms(pair)
        for side, batch, value_B in zip(("unsafe", "retain"), (pair.unsafe, pair.retain), terms, strict=True):
            if batch is not None and value_B is not None:
                self._window.append((side, batch.example_ids, value_B.detach()))
        loss = losses.objective(*terms, pair.num_unsafe or len(pair.retain or ()))
        self._log_step(terms, loss)
        return loss

    @torch.no_grad()
    def _log_step(self, terms: LossTerms, loss: Tensor) -> None:
        """Logs the mean over all ranks of the objective and of each term; no host synchronisation."""
        zero = loss.new_zeros(())
        sums = [zero if value is None else value.sum() for value in terms]
        sizes = [loss.new_full((), 0 if value is None else len(value)) for value in terms]  # new_tensor would wait
        totals = torch.stack([*sums, *sizes, loss.detach()])
        if self.trainer.world_size > 1:
            totals = self.trainer.strategy.reduce(totals, reduce_op="sum")
        mean = totals[:2] / totals[2:4].clamp(min=1)
        # a step without retain examples (gamma below 1) shows the last value, not a zero that was never measured
        self._shown = torch.where(totals[2:4] > 0, mean, self._shown.to(mean.device))
        for side, value in zip(("unsafe", "retain"), self._shown, strict=True):
            if side == "retain" or self.unsafe_answers is not None:
                self.log(f"train/{side}", value, prog_bar=True, batch_size=1)
        self.log("train/loss", totals[4] / self.trainer.world_size, batch_size=1)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Stops all ranks before an optimizer step that a non-finite loss or gradient would spoil.

        The one host synchronisation of a step: without it the weights would be overwritten before the check.

        Raises:
            NonFiniteLossError: Naming step, rank, side and example ids.
        """
        gradients = [parameter.grad for parameter in self.parameters() if parameter.grad is not None]
        norm = whole(torch.nn.utils.get_total_norm(gradients, foreach=True)).to(self.device)
        finite = [value_B.isfinite().all() for _, _, value_B in self._window]
        if self.trainer.precision != "16-mixed":  # there, inf gradients are the scaler's business
            finite.append(norm.isfinite())
        broken_here = not bool(torch.stack(finite).all())
        if self.trainer.strategy.reduce_boolean_decision(broken_here, all=False):
            raise NonFiniteLossError(self._non_finite(broken_here))
        self._window.clear()
        self.log("train/grad_norm", norm)

    def _non_finite(self, broken_here: bool) -> str:
        """The message of the error: what is not finite, on which ranks."""
        broken = []
        for side, ids, value_B in self._window:
            if wrong := [id for id, is_finite in zip(ids, value_B.isfinite().tolist(), strict=True) if not is_finite]:
                broken.append(f"{side} loss of examples {', '.join(wrong)}")
        if not broken:
            every = [id for _, ids, _ in self._window for id in ids]
            broken = [f"gradient of a step with examples {', '.join(every[:20])}"]
        mine = f"rank {self.global_rank}: {'; '.join(broken)}" if broken_here else None
        where = ". ".join(line for line in gathered(mine) if line)
        return (
            f"Not finite in step {self.trainer.global_step}, {where}. Training stopped before the optimizer step; "
            "checkpoints already written are whole. Lower model.learning_rate or use a wider dtype."
        )

    def validation_step(self, item: tuple[Batch, Tensor] | None, batch_idx: int) -> None:
        """Cross entropy of held-out retain answers (nats per token); padding does not count."""
        if item is None:
            return
        batch, weight_B = item
        self._held_out_loss.update(losses.sft(*self.answer_logits(batch)), weight_B)
        self.log("val/retain", self._held_out_loss, batch_size=len(batch))

    test_step = validation_step

    def configure_optimizers(self) -> Any:
        """AdamW on what trains, with warm-up and decay over all optimizer steps."""
        from transformers import get_scheduler  # imports PEFT and more, half a second that an evaluation need not spend

        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(
            trained, lr=self.learning_rate, weight_decay=self.weight_decay, fused=trained[0].device.type in _FUSED
        )
        # A fused step could unscale gradients itself, and Lightning refuses to clip for such an optimizer. With this,
        # scaled gradients (16-mixed) are unscaled before they are clipped, as for every other optimizer.
        optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = get_scheduler(self.schedule, optimizer, round(self.warmup_ratio * steps), steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """A checkpoint holds what trains, and the buffers of the method."""
        names = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        names |= dict(self.named_buffers(recurse=False)).keys()
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {name: value for name, value in state.items() if name in names}
