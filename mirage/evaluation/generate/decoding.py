"""Decoding of many rows at once over one key-value cache, and when such a cache may be shared.

Legend: P samples, R rows, L places in the cache, S tokens of a row's input. All padding is on the left. A row that shares
a sample's plain prompt sees only what its own prompt begins with, and its own suffix follows behind a masked gap:

    tokens     [pad pad prefix prefix prefix | plain plain | pad suffix suffix | answer ...]
    mask        0   0   1      1      1        0     0       0   1      1        1
    positions   0   0   0      1      2        0     0       0   3      4        5
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from inspect import signature
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import BatchFeature, DynamicCache, GenerationConfig, GenerationMixin
from transformers.cache_utils import DynamicLayer

from mirage.evaluation.generate.prompts import Split, Tokens
from mirage.models.sharding import is_sharded

COMPACT_BELOW = 0.85  # share of unfinished rows below which copying the cache costs less than carrying the others


class PreallocatedLayer(DynamicLayer):
    """A cache layer that is allocated once: the usual one copies all its tokens to append one.

    Args:
        extra: How many tokens will be appended to those that are put in first.
    """

    def __init__(self, extra: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.extra = extra

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Appends keys and values (R, heads, tokens, size), and returns all that are there."""
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._stores = [
                states.new_empty(*states.shape[:2], end + self.extra, states.shape[3])
                for states in (key_states, value_states)
            ]
        for store, states in zip(self._stores, (key_states, value_states), strict=True):
            store[:, :, start:end] = states
        self.keys, self.values = (store[:, :, :end] for store in self._stores)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps these rows only."""
        end, self._stores = self.get_seq_length(), [store[indices] for store in self._stores]
        self.keys, self.values = (store[:, :, :end] for store in self._stores)


def preallocated_cache(network: Any, extra: int) -> DynamicCache:
    """An empty cache that takes `extra` tokens more than are put into it first, without ever being copied."""
    cache = DynamicCache(config=network.config)
    cache.layers = [PreallocatedLayer(extra) for _ in cache.layers]
    return cache


def why_not_plain(network: Any) -> str:
    """Why a prompt is more than a sequence of tokens to this model, or an empty text if it is just that.

    A plain prompt is a sequence of tokens: positions count up by one, each token attends to all before it, and the
    cache keeps one key and one value for each. A class that prepares its positions (M-RoPE) or inputs (bidirectional
    prompts, cross attention) in a way of its own is not plain; nor is a cache with any other layer.
    """
    if getattr(network.config, "is_encoder_decoder", False):
        return "it has an encoder and a decoder"
    if not {"attention_mask", "position_ids", "past_key_values"} <= forward_names(network):
        return "it does not take positions or a cache"
    for method in (
        "prepare_inputs_for_generation",
        "_prepare_position_ids_for_generation",
        "_update_model_kwargs_for_generation",
        "_prepare_cache_for_generation",
    ):
        if getattr(type(network), method, None) is not getattr(GenerationMixin, method):
            return f"{type(network).__name__} has its own {method}"
    if {type(layer) for layer in DynamicCache(config=network.config).layers} != {DynamicLayer}:
        return "its cache does not keep every token (a sliding window, or another kind of state)"
    return ""


class Start(NamedTuple):
    """What decoding goes on from: R rows whose last S tokens have not been seen by the model yet."""

    ids: Tensor  # (R, S)
    mask: Tensor  # (R, L + S)
    cache: DynamicCache  # of L tokens, with room for more
    vision: dict[str, Any]  # the picture inputs that belong to `ids`


def full_start(network: Any, inputs: dict[str, Any], room: int) -> Start:
    """The start from whole prompts, with room in the cache for so many answer tokens."""
    inputs = fed(network, inputs)
    ids, mask = inputs.pop("input_ids"), inputs.pop("attention_mask")
    inputs.pop("token_type_ids", None)
    return Start(ids, mask, preallocated_cache(network, room), inputs)


def shared_starts(network: Any, cut: Split, chunks: Sequence[Sequence[int]], room: int) -> Iterator[Start]:
    """The start from the prompts of each chunk of rows, where `chunks` names each row's sample.

    The plain prompt of each sample, the picture included, is computed once.
    """
    plain = full_start(network, cut.inputs, 0)
    last_logits(network, plain)
    first = 0
    for samples in chunks:
        rows = slice(first, first + len(samples))
        ids, mask = cut.suffixes[rows].to(network.device), cut.suffix_mask[rows].to(network.device)
        which = torch.tensor(samples, device=network.device)
        cache = preallocated_cache(network, ids.shape[1] + room)
        for index, (keys, values, *_) in enumerate(plain.cache):
            cache.update(keys[which], values[which], index)
        prefix_mask = cut.prefix_mask.to(network.device)[which]
        yield Start(ids, torch.cat([prefix_mask, mask], dim=1), cache, {})
        first = rows.stop


def departs(network: Any, start: Start, called: Mapping[int, dict[str, Any]]) -> bool:
    """Whether some row of `start` has other logits than the model gives when called with that row's own inputs.

    A coarse net below `why_not_plain`: rounding passes, an unseen picture or miscounted places do not.
    """
    ours = last_logits(network, start)
    for row, inputs in called.items():
        theirs = network(**fed(network, inputs), use_cache=False).logits[0, -1]
        tolerance = 0.01 if theirs.dtype == torch.float32 else 0.1
        if not (ours[row] - theirs).abs().max() <= tolerance * theirs.abs().max():  # NaN departs too
            return True
    return False


def greedy(network: Any, start: Start, max_new_tokens: int, end_tokens: Collection[int]) -> list[Tokens]:
    """The most likely continuation of each row, up to and without an end token, for a plain network."""
    answers: list[Tokens] = [[] for _ in start.ids]
    rows = list(range(len(answers)))  # which answer stands in which row of the batch
    done: set[int] = set()
    for _ in range(max_new_tokens):
        chosen = last_logits(network, start).argmax(dim=-1)
        for row, token in zip(rows, chosen.tolist(), strict=True):  # the only host sync of a step
            if row in done or token in end_tokens:
                done.add(row)
            else:
                answers[row].append(token)
        alive = [place for place, row in enumerate(rows) if row not in done]
        if not alive:
            break
        ids, mask = chosen[:, None], torch.cat([start.mask, start.mask.new_ones(len(rows), 1)], dim=1)
        if len(alive) <= COMPACT_BELOW * len(rows):
            keep = torch.tensor(alive, device=mask.device)
            start.cache.batch_select_indices(keep)
            ids, mask, rows = ids[keep], mask[keep], [rows[place] for place in alive]
        start = Start(ids, mask, start.cache, {})
    return answers


def generated(
    network: Any, inputs: dict[str, Any], max_new_tokens: int, end_tokens: Collection[int], pad_token: int,
    temperature: float = 0.0,
) -> list[Tokens]:  # fmt: skip
    """What `greedy` gives, by the model's own `generate`: slower, and right for every model.

    With a temperature above 0, tokens are sampled from the whole distribution, with torch's global generators.
    """
    inputs, config = fed(network, inputs), network.generation_config
    sampling = {"temperature": float(temperature), "top_k": 0, "top_p": 1.0} if temperature > 0 else {}
    explicit = GenerationConfig(
        do_sample=temperature > 0, **sampling, max_new_tokens=max_new_tokens, eos_token_id=sorted(end_tokens),
        pad_token_id=pad_token, use_cache=True,
    )  # type: ignore[no-untyped-call]  # fmt: skip
    # generate() fills whatever is unset from the model's own config (a repetition penalty, say): swapped out
    network.generation_config = explicit
    try:
        output = network.generate(**inputs, generation_config=explicit, synced_gpus=False)  # `in_step` is for that
    finally:
        network.generation_config = config
    rows: list[Tokens] = output[:, inputs["input_ids"].shape[1] :].tolist()
    ends = [next((place for place, token in enumerate(row) if token in end_tokens), len(row)) for row in rows]
    return [row[:end] for row, end in zip(rows, ends, strict=True)]


def forward_names(network: Any) -> frozenset[str]:
    """The arguments that the model's forward names."""
    return frozenset(signature(type(network).forward).parameters)


def fed(network: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs that the model's forward names, on its device, the real-valued ones in its dtype.

    Tokenizers add inputs, such as token types, that many models do not know.
    """
    known = forward_names(network).intersection(inputs)
    return dict(BatchFeature({name: inputs[name] for name in known}).to(network.device, network.dtype))


def last_logits(network: Any, start: Start) -> Tensor:
    """The logits after the last token of each row (R, vocabulary); the cache grows by `start.ids`."""
    ids, mask, cache, vision = start
    positions = ((mask.cumsum(dim=-1) - 1) * mask)[:, -ids.shape[1] :]
    last_only = {"logits_to_keep": 1} if "logits_to_keep" in forward_names(network) else {}
    if ids.shape[1] == 1 and network.config.get_text_config(decoder=True)._attn_implementation == "sdpa":
        # one token attends to all that are there; given in two dimensions, the mask's values would be read on the host
        mask = mask.bool()[:, None, None, :]
    output = network(
        input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True,
        **last_only, **vision,
    )  # fmt: skip
    logits: Tensor = output.logits[:, -1]
    return logits


@contextmanager
def answering(network: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients inside; afterwards each module's own mode again (a frozen tower stays frozen).

    Within autocast, the low-precision copies of the weights are kept until the block ends. Lightning enters autocast
    without its cache: right for training, where a forward pass uses each weight once, but an answer of 256 tokens would
    cast the whole model 256 times. The copies take half the memory of float32 weights. No weight may change within the
    block. Answers are the same.
    """
    training = [module for module in network.modules() if module.training]
    cached, frozen = torch.is_autocast_cache_enabled(), list[nn.Parameter]()
    # split weights are gathered in low precision already, and copies would be whole
    if torch.is_autocast_enabled(next(network.parameters()).device.type) and not is_sharded(network):
        frozen = [parameter for parameter in network.parameters() if not parameter.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(True)  # autocast keeps the copies of such parameters only
    network.eval()
    torch.set_autocast_cache_enabled(True)
    try:
        with torch.no_grad():
            yield
    finally:
        torch.set_autocast_cache_enabled(cached)
        torch.clear_autocast_cache()
        for parameter in frozen:
            parameter.requires_grad_(False)
        for module in training:
            module.training = True
