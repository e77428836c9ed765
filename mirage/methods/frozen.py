"""What never changes while a few layers train: computed once for each example and form, and kept on disk."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from hashlib import sha256
from importlib.metadata import version
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mirage.batch import Batch
from mirage.methods.reference import as_reference
from mirage.methods.tensor_store import TensorStore
from mirage.models.activations import activations, entering, starting_at
from mirage.models.components import decoder_layers, unwrapped
from mirage.schema import short_hash

_log = logging.getLogger(__name__)
_TOLERANCE = 1e-3  # relative; rounding is below it, and a model that needs more than what enters a layer far above


class Frozen(NamedTuple):
    """What a batch needs of the layers and weights that do not change; zero at positions that do not count."""

    entering_BSD: Tensor | None  # what enters the first trained layer; None: run the whole model
    reference_BSD: Tensor | None  # the steered layer's output under the starting weights; None for the unsafe side


class FrozenLayers:
    """The frozen part of a model in which some decoder layers up to `layer` train.

    Args:
        model: The model, with or without adapters.
        copies: Its starting weights where they train; None with adapters. See `as_reference`.
        first: The first decoder layer that trains; None if something before the layers trains too.
        layer: The decoder layer whose output the reference is.
    """

    def __init__(self, model: nn.Module, copies: dict[str, Tensor] | None, first: int | None, layer: int) -> None:
        self.model, self.copies, self.first, self.layer = model, copies, first, layer
        self.stores: dict[str, TensorStore] = {}
        """Where tensors are kept, for the sides of a pair of which they are."""
        self._depends_on = ""
        self._compared = False

    def keep(self, store: TensorStore, sides: Sequence[str], *facts: object) -> None:
        """Keeps what is computed for these sides in `store`.

        The store may hold tensors of other models and settings. `facts` decide the tensors besides weights,
        configuration, layers and inputs.
        """
        libraries = [version(name) for name in ("torch", "transformers")]
        self._depends_on = short_hash(self._weights(), self.first, self.layer, *libraries, *facts)
        self.stores = dict.fromkeys(sides, store)

    def of(self, batch: Batch, side: str, mask_BS: Tensor) -> Frozen:
        """What a batch of a side needs: read from its store, or computed and kept there.

        For `unsafe` nothing is computed that would not be kept. The reference counts where `mask_BS` is set.
        """
        store = self.stores.get(side)
        if store is None:
            return Frozen(None, self._reference(batch.inputs) if side == "retain" else None)
        masks = {"entering_BSD": batch.inputs["attention_mask"]}
        if side == "retain":
            masks["reference_BSD"] = mask_BS
        keys = [short_hash(self._depends_on, *masks, row) for row in batch.input_hashes]
        known = [each for key in keys if (each := store.get(key))]
        if len(known) == len(batch):
            read = {name: _padded([each[name] for each in known], mask) for name, mask in masks.items()}
            return Frozen(read["entering_BSD"], read.get("reference_BSD"))
        computed = self._computed(batch.inputs)
        if side in self.stores:
            for row, key in enumerate(keys):
                kept = {name: getattr(computed, name)[row, mask[row].bool()].cpu() for name, mask in masks.items()}
                store.put(key, kept)
        return computed

    def activations(
        self, inputs: Mapping[str, Any], entering_BSD: Tensor | None, *, stop: bool
    ) -> tuple[Tensor, Tensor | None]:
        """`activations` of the model at `layer`; with `entering_BSD` its frozen layers do not run."""
        if entering_BSD is None or self.first is None:
            return activations(self.model, inputs, self.layer, stop=stop)
        others = {name: value for name, value in inputs.items() if name != "pixel_values"}
        with starting_at(self.model, self.first, entering_BSD):
            return activations(self.model, others, self.layer, stop=stop)

    def _reference(self, inputs: Mapping[str, Any]) -> Tensor:
        with as_reference(self.model, self.copies):
            return activations(self.model, inputs, self.layer, stop=True)[0]

    def _computed(self, inputs: Mapping[str, Any]) -> Frozen:
        assert self.first is not None
        with as_reference(self.model, self.copies):
            with entering(self.model, self.first) as captured:
                reference_BSD, _ = activations(self.model, inputs, self.layer, stop=True)
            if not self._compared and "pixel_values" in inputs:
                self._compared = True
                again_BSD, _ = self.activations(inputs, captured[0], stop=True)
                counted = inputs["attention_mask"].bool()
                if (again_BSD - reference_BSD)[counted].norm() > _TOLERANCE * reference_BSD[counted].norm():
                    kind = type(unwrapped(self.model)).__name__
                    _log.warning(
                        "%s cannot be started at layer %d: its frozen layers run in each step.", kind, self.first
                    )
                    self.first, self.stores = None, {}
                    return Frozen(None, reference_BSD)
        return Frozen(captured[0], reference_BSD)

    def _weights(self) -> str:
        """A hash of the configuration and of the starting weights up to `layer`."""
        above = {id(weight) for part in decoder_layers(self.model)[self.layer + 1 :] for weight in part.parameters()}
        digest = sha256(unwrapped(self.model).config.to_json_string().encode())
        for name, weight in self.model.named_parameters():
            if id(weight) not in above and "lora_" not in name:
                start = weight if self.copies is None else self.copies.get(name, weight)
                digest.update(f"{name} {start.dtype} {list(start.shape)}".encode())
                digest.update(start.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()


def _padded(rows: Sequence[Tensor], mask_BS: Tensor) -> Tensor:
    """(B, S, D): the rows' positions where the mask is set, zeros elsewhere, on the mask's device."""
    counted_ND = torch.cat(list(rows))
    if mask_BS.is_cuda:
        counted_ND = counted_ND.pin_memory()
    counted_ND = counted_ND.to(mask_BS.device, non_blocking=True)
    empty_BSD = counted_ND.new_zeros(*mask_BS.shape, counted_ND.shape[-1])
    return empty_BSD.masked_scatter(mask_BS[..., None].bool(), counted_ND)  # without asking how many are set
