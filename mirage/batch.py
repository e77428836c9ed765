"""What a training step receives: tensors and ids, no text and no pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mirage.losses import IGNORED


@dataclass(slots=True)  # not frozen: precision plugins rebuild batches field by field
class Batch:
    """Examples of one side, padded on the right. B examples, S positions.

    Args:
        inputs: What the model's forward takes: `input_ids` and `attention_mask` (B, S), `pixel_values`, ...
        labels: (B, S), the token at answered positions, `IGNORED` elsewhere.
        text_mask: (B, S), 1 at positions that are neither padding, nor image, nor the first token.
        example_ids: The examples' ids, for messages and for references kept by id.
        logits_to_keep: How many positions at the end hold everything that predicts an answer. Logits are needed there
            only, which leaves out the image tokens: 576 of about 620 in LLaVA-1.5.
        input_hashes: A hash of each example's tokens and picture, for what is kept on disk; not the same as its id,
            which knows a picture by its name.
    """

    inputs: dict[str, Tensor]
    labels: Tensor
    text_mask: Tensor
    example_ids: tuple[str, ...]
    logits_to_keep: int
    input_hashes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.example_ids)

    def to(self, device: Any, non_blocking: bool = False) -> Batch:
        """The same batch on another device."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory."""
        return self._each(lambda tensor: tensor.pin_memory())

    def _each(self, function: Any) -> Batch:
        inputs = {name: function(tensor) for name, tensor in self.inputs.items()}
        labels, text_mask = function(self.labels), function(self.text_mask)
        return Batch(inputs, labels, text_mask, self.example_ids, self.logits_to_keep, self.input_hashes)


class Pair(NamedTuple):
    """The two sides of a step. Either may be None: retain, for example, in some steps when gamma < 1."""

    unsafe: Batch | None
    retain: Batch | None

    @property
    def num_unsafe(self) -> int:
        """The number of unsafe examples: the divisor of the objective."""
        return len(self.unsafe) if self.unsafe is not None else 0


def joined(first: Batch, second: Batch, pad_id: int) -> Batch:
    """Both batches as one, so that a step needs one forward pass. Sequences and pictures are padded to a common shape."""
    fill = {"input_ids": pad_id}
    inputs = {
        name: _stacked(first.inputs.get(name), second.inputs.get(name), fill.get(name, 0))
        for name in (*first.inputs, *(name for name in second.inputs if name not in first.inputs))
    }
    labels = _stacked(first.labels, second.labels, IGNORED)
    longest = labels.shape[1]
    keep = longest - min(side.labels.shape[1] - side.logits_to_keep for side in (first, second))
    return Batch(
        inputs, labels, _stacked(first.text_mask, second.text_mask, 0), first.example_ids + second.example_ids, keep
    )


def _stacked(first: Tensor | None, second: Tensor | None, fill: int) -> Tensor:
    """Both along dimension 0; the others padded at their end. A side without the tensor (no pictures) adds nothing."""
    present = [tensor for tensor in (first, second) if tensor is not None]
    shape = [max(sizes) for sizes in zip(*(tensor.shape[1:] for tensor in present), strict=True)]
    padded = []
    for tensor in present:
        missing = [size - have for size, have in zip(shape, tensor.shape[1:], strict=True)]
        amounts = [amount for size in reversed(missing) for amount in (0, size)]
        padded.append(F.pad(tensor, amounts, value=fill) if any(missing) else tensor)
    return torch.cat(padded)
