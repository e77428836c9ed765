"""From probes to answers. An engine asks a model every probe's plain question and all its rewrites.

Legend: P probes in a batch, R rows (one row = one question), L tokens of prefix, S tokens of suffix.
A row's prompt is `prefix + suffix`: the prefix (everything up to where the prompts of one probe first differ, image
included) is computed once per probe; the suffix is what the shots differ in.

    tokens     [pad pad prefix prefix prefix | pad suffix suffix | answer ...]
    mask        0   0   1      1      1        0   1      1        1
    positions   0   0   0      1      2        0   3      4        5
"""

from __future__ import annotations

import logging
import os.path
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from inspect import signature
from typing import TYPE_CHECKING, Any, NamedTuple

from mirage.schema import Probe

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import DynamicCache

log = logging.getLogger(__name__)

OnAnswer = Callable[[str, int, str], None]
"""Called with probe id, shot and text as soon as an answer is there, always from the thread that asked for it."""

Tokens = list[int]


class Engine(ABC):
    """Base of every engine: asks a model, changes nothing."""

    @property
    @abstractmethod
    def name(self) -> str:
        """The engine in one word, such as `hf`."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """All that decides what is answered and nothing that does not, as JSON values, for the fingerprint."""

    @abstractmethod
    def answers(self, probes: Sequence[Probe], on_answer: OnAnswer | None = None) -> list[list[str]]:
        """For each probe, in order, the answers to `probe.questions`: index = shot.

        What `on_answer` was told stays told: it is the work that is kept if the rest fails.
        """


def render_prompt(processor: Any, question: str, has_image: bool) -> str:
    """The text that the model is given for one question, by the processor's own chat template.

    Raises:
        ValueError: If the processor has no chat template, or the question holds the image placeholder itself.
    """
    placeholder = getattr(processor, "image_token", None)
    if isinstance(placeholder, str) and placeholder in question:
        raise ValueError(
            f"the question {question[:80]!r} holds the image placeholder {placeholder!r}, which would be read as a "
            "picture. Remove it from the data file."
        )
    if not (getattr(processor, "chat_template", None) or getattr(processor.tokenizer, "chat_template", None)):
        raise ValueError(
            f"{type(processor).__name__} has no chat template. Put a chat_template.jinja into the model's folder."
        )
    content = [{"type": "text", "text": question}]
    if has_image:
        content.insert(0, {"type": "image"})
    messages = [{"role": "user", "content": content}]
    prompt: str = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return prompt


class _Row(NamedTuple):
    """One question of a batch, ready to be asked."""

    probe: int  # index into the batch
    shot: int
    prompt: str


class _Split(NamedTuple):
    """One batch whose prompts have been cut where the shots of each probe begin to differ."""

    prefixes: list[Tokens]  # P
    suffixes: list[Tokens]  # R
    vision: dict[str, Any]  # the picture inputs of the P prefixes


class HuggingFaceEngine(Engine):
    """Answers greedily with a Hugging Face vision-language model, many questions at a time.

    Args:
        model: Any `AutoModelForImageTextToText`, PEFT-wrapped or not. Its weights and modes are left as they were.
        processor: Its processor, with a chat template.
        max_new_tokens: Longest answer, in tokens.
        batch_size: How many answers are written at the same time.
        share_prefix: Compute the picture and what stands before the question once for all shots of a probe, where
            the model allows it; false asks every shot in full.
    """

    def __init__(
        self, model: Any, processor: Any, *, max_new_tokens: int, batch_size: int, share_prefix: bool = True
    ) -> None:
        for name, value in (("max_new_tokens", max_new_tokens), ("batch_size", batch_size)):
            if value < 1:
                raise ValueError(f"generation.{name} is {value}: it must be at least 1.")
        self.model, self.processor = model, processor
        self.max_new_tokens, self.batch_size, self.share_prefix = max_new_tokens, batch_size, share_prefix
        self._noted: set[str] = set()

    @property
    def name(self) -> str:
        return "hf"

    def settings(self) -> dict[str, Any]:
        # batch_size and share_prefix are left out: they change the time, not the answers
        return {
            "engine": self.name,
            "decoding": "greedy",
            "max_new_tokens": self.max_new_tokens,
            "eos": sorted(_eos(self._network(), self.processor)),
            "dtype": str(self._network().dtype).removeprefix("torch."),
        }

    def answers(self, probes: Sequence[Probe], on_answer: OnAnswer | None = None) -> list[list[str]]:
        import torch

        answers: list[list[str]] = [[""] * len(probe.questions) for probe in probes]
        with _evaluating(self._network()), torch.no_grad():
            for indices in self._batches(probes):
                batch = [probes[index] for index in indices]
                for row, text in self._answer(batch):
                    answers[indices[row.probe]][row.shot] = text
                    if on_answer is not None:
                        on_answer(batch[row.probe].id, row.shot, text)
        return answers

    def _network(self) -> Any:
        """The transformers model itself: LoRA layers live inside it, so a PEFT wrapper is not needed to run it."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    def _batches(self, probes: Sequence[Probe]) -> Iterator[list[int]]:
        """Indices of probes of like length, longest first (so that memory runs out at once or never)."""

        def length(index: int) -> tuple[bool, int]:
            return probes[index].image is None, -max(map(len, probes[index].questions))

        batch: list[int] = []
        rows = 0
        for index in sorted(range(len(probes)), key=length):
            shots = len(probes[index].questions)
            mixed = bool(batch) and (probes[batch[0]].image is None) != (probes[index].image is None)
            if batch and (rows + shots > self.batch_size or mixed):
                yield batch
                batch, rows = [], 0
            batch.append(index)
            rows += shots
        if batch:
            yield batch

    def _answer(self, batch: Sequence[Probe]) -> Iterator[tuple[_Row, str]]:
        """The answers of one batch of probes that all have a picture or all have none."""
        has_image = batch[0].image is not None
        rows = [
            _Row(index, shot, render_prompt(self.processor, question, has_image))
            for index, probe in enumerate(batch)
            for shot, question in enumerate(probe.questions)
        ]
        images = [probe.image.open() if probe.image is not None else None for probe in batch]
        split = self._split(rows, images) if self.share_prefix and has_image and len(rows) > len(batch) else None
        if split is None:
            for start in range(0, len(rows), self.batch_size):
                chunk = rows[start : start + self.batch_size]
                yield from zip(chunk, self._texts(self._unshared(chunk, images)), strict=True)
        else:
            cache, mask = self._prefill(split)
            for start in range(0, len(rows), self.batch_size):
                chunk = rows[start : start + self.batch_size]
                suffixes = split.suffixes[start : start + self.batch_size]
                tokens = self._continue(cache, mask, [row.probe for row in chunk], suffixes)
                yield from zip(chunk, self._texts(tokens), strict=True)

    # --- the shared path

    def _split(self, rows: Sequence[_Row], images: Sequence[Any]) -> _Split | None:
        """The batch cut into prefixes and suffixes, or None where that cannot be shown to be right."""
        reason = unshareable(self._network())
        if reason:
            return self._note(reason)
        tokenizer = self.processor.tokenizer
        special = _add_special_tokens(tokenizer, rows[0].prompt)
        ids: list[Tokens] = tokenizer([row.prompt for row in rows], add_special_tokens=special)["input_ids"]
        inputs = self._encode([rows[[row.probe for row in rows].index(p)].prompt for p in range(len(images))], images)
        forward = signature(self._network().forward).parameters
        if any("token_type_ids" in key and key in forward for key in inputs):
            return self._note("its attention depends on token types")
        prefixes: list[Tokens] = []
        suffixes: list[Tokens] = []
        for index in range(len(images)):
            own = [tokens for row, tokens in zip(rows, ids, strict=True) if row.probe == index]
            # one token at least is left to the suffix: its logits are the first answer token
            common = min(len(os.path.commonprefix(own)), min(map(len, own)) - 1)
            if not common:
                return self._note("its chat template puts the question first")
            expanded = inputs["input_ids"][index][inputs["attention_mask"][index].bool()].tolist()
            tail = own[0][common:]
            if expanded[len(expanded) - len(tail) :] != tail or _holds_picture(own, common, self.processor):
                return self._note("its processor changes the prompt behind the picture")
            prefixes.append(expanded[: len(expanded) - len(tail)])
            suffixes.extend(tokens[common:] for tokens in own)
        vision = {key: value for key, value in inputs.items() if key in forward and key not in _TEXT_INPUTS}
        return _Split(prefixes, suffixes, vision)

    def _prefill(self, split: _Split) -> tuple[DynamicCache, Tensor]:
        """The cache of the P prefixes, and which of its positions are tokens."""
        from transformers import DynamicCache

        network = self._network()
        ids, mask = _left_padded(split.prefixes, network.device)
        cache = DynamicCache(config=network.config)
        _last_logits(network, ids, mask, _positions(mask), cache, _placed(split.vision, network))
        return cache, mask

    def _continue(
        self, prefix_cache: DynamicCache, prefix_mask: Tensor, probes: Sequence[int], suffixes: Sequence[Tokens]
    ) -> list[Tokens]:
        """The answers that continue `prefix of probes[r] + suffixes[r]` for each row r."""
        import torch
        from transformers import DynamicCache

        network = self._network()
        which = torch.tensor(probes, device=prefix_mask.device)
        ids, mask = _left_padded(suffixes, network.device)
        mask = torch.cat([prefix_mask[which], mask], dim=1)
        cache = DynamicCache(config=network.config)
        for index, layer in enumerate(prefix_cache.layers):
            cache.update(layer.keys[which], layer.values[which], index)
        return self._greedy(ids, mask, cache, {})

    # --- the unshared path

    def _unshared(self, rows: Sequence[_Row], images: Sequence[Any]) -> list[Tokens]:
        """The answers to full prompts, each with its own picture."""
        from transformers import DynamicCache

        network = self._network()
        inputs = self._encode([row.prompt for row in rows], [images[row.probe] for row in rows])
        if unshareable(network):
            return self._generate(inputs)
        forward = signature(network.forward).parameters
        vision = {key: value for key, value in inputs.items() if key in forward and key not in _TEXT_INPUTS}
        ids, mask = inputs["input_ids"].to(network.device), inputs["attention_mask"].to(network.device)
        return self._greedy(ids, mask, DynamicCache(config=network.config), _placed(vision, network))

    def _generate(self, inputs: dict[str, Any]) -> list[Tokens]:
        """The answers by the model's own `generate`: slower, and right for every model."""
        from transformers import GenerationConfig

        network = self._network()
        eos = _eos(network, self.processor)
        own = network.generation_config
        explicit = GenerationConfig(
            do_sample=False,
            max_new_tokens=self.max_new_tokens,
            eos_token_id=sorted(eos) or None,
            pad_token_id=self._pad(),
            bos_token_id=own.bos_token_id,
            use_cache=True,
        )
        # generate() fills whatever is unset from the model's own config (a repetition penalty, say): swapped out
        network.generation_config = explicit
        try:
            output = network.generate(**_placed(inputs, network), generation_config=explicit)
        finally:
            network.generation_config = own
        rows = output[:, inputs["input_ids"].shape[1] :].tolist()
        return [_until(row, eos) for row in rows]

    # --- both

    def _encode(self, prompts: Sequence[str], images: Sequence[Any]) -> dict[str, Any]:
        """The processor's inputs for these prompts, padded on the left."""
        if self.processor.tokenizer.pad_token_id is None:
            raise ValueError(
                f"{type(self.processor.tokenizer).__name__} has no pad token. Set one in tokenizer_config.json."
            )
        pictures = [[image] for image in images] if images and images[0] is not None else None
        encoded = self.processor(
            text=list(prompts),
            images=pictures,
            padding=True,
            padding_side="left",
            add_special_tokens=_add_special_tokens(self.processor.tokenizer, prompts[0]),
            return_tensors="pt",
        )
        return dict(encoded)

    def _greedy(self, ids: Tensor, mask: Tensor, cache: DynamicCache, vision: dict[str, Any]) -> list[Tokens]:
        """The most likely continuation of each row, without its end token."""
        import torch

        network, eos = self._network(), _eos(self._network(), self.processor)
        answers: list[Tokens] = [[] for _ in range(len(ids))]
        rows = list(range(len(ids)))  # which answer stands in which row of the batch
        done: set[int] = set()
        positions = _positions(mask)[:, -ids.shape[1] :]
        for step in range(self.max_new_tokens):
            chosen = _last_logits(network, ids, mask, positions, cache, vision if step == 0 else {}).argmax(dim=-1)
            for row, token in zip(rows, chosen.tolist(), strict=True):  # the only host sync of a step
                if row in done or token in eos:
                    done.add(row)
                else:
                    answers[row].append(token)
            alive = [place for place, row in enumerate(rows) if row not in done]
            if not alive or step + 1 == self.max_new_tokens:
                break
            ids, positions = chosen[:, None], positions[:, -1:] + 1
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            if len(alive) <= _COMPACT_BELOW * len(rows):
                keep = torch.tensor(alive, device=mask.device)
                cache.batch_select_indices(keep)
                ids, positions, mask = ids[keep], positions[keep], mask[keep]
                rows = [rows[place] for place in alive]
        return answers

    def _texts(self, tokens: Sequence[Tokens]) -> list[str]:
        texts: list[str] = self.processor.tokenizer.batch_decode(list(tokens), skip_special_tokens=True)
        return [text.strip() for text in texts]

    def _pad(self) -> int | None:
        pad: int | None = self.processor.tokenizer.pad_token_id
        return pad

    def _note(self, reason: str) -> None:
        if reason not in self._noted:
            self._noted.add(reason)
            log.info("%s: every shot is asked in full, because %s.", type(self._network()).__name__, reason)


_TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
_COMPACT_BELOW = 0.85  # share of unfinished rows under which copying the cache costs less than carrying the rest


def unshareable(network: Any) -> str:
    """Why a prefix cannot be shared between prompts, or an empty text if it provably can.

    It can if a prompt is nothing but a sequence of tokens: positions count up by one, each token attends to all
    before it, and the cache keeps one key and one value for each. A class that prepares its own positions (M-RoPE) or
    its own inputs (bidirectional prompts, cross attention) has left that path; so has a cache with any other layer.
    """
    from transformers import DynamicCache, GenerationMixin
    from transformers.cache_utils import DynamicLayer

    kind = type(network)
    if getattr(network.config, "is_encoder_decoder", False):
        return "it has an encoder and a decoder"
    if not {"input_ids", "attention_mask", "position_ids", "past_key_values"} <= set(signature(kind.forward).parameters):
        return "it does not take positions or a cache"
    for method in (
        "prepare_inputs_for_generation",
        "_prepare_position_ids_for_generation",
        "_update_model_kwargs_for_generation",
        "_prepare_cache_for_generation",
    ):
        if getattr(kind, method, None) is not getattr(GenerationMixin, method):
            return f"{kind.__name__} has its own {method}"
    layers = DynamicCache(config=network.config).layers
    if not layers or any(type(layer) is not DynamicLayer for layer in layers):
        return "its cache does not keep every token (a sliding window, or another kind of state)"
    return ""


@contextmanager
def _evaluating(network: Any) -> Iterator[None]:
    """Evaluation mode inside, and each module's own mode again afterwards (a frozen tower stays frozen)."""
    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _eos(network: Any, processor: Any) -> frozenset[int]:
    """The tokens that end an answer: the model's own, and the tokenizer's."""
    found: set[int] = set()
    for value in (network.generation_config.eos_token_id, processor.tokenizer.eos_token_id):
        found.update([] if value is None else [value] if isinstance(value, int) else value)
    return frozenset(found)


def _add_special_tokens(tokenizer: Any, prompt: str) -> bool:
    """False if the chat template has written the opening token already: `apply_chat_template`'s own rule."""
    return not (tokenizer.bos_token is not None and prompt.startswith(tokenizer.bos_token))


def _holds_picture(prompts: Sequence[Tokens], start: int, processor: Any) -> bool:
    """Whether a picture's placeholder stands at or behind `start` in any of the prompts."""
    picture = getattr(processor, "image_token_id", None)
    return any(picture in tokens[start:] for tokens in prompts)


def _until(tokens: Tokens, eos: frozenset[int]) -> Tokens:
    return tokens[: next((place for place, token in enumerate(tokens) if token in eos), len(tokens))]


def _left_padded(rows: Sequence[Tokens], device: Any) -> tuple[Tensor, Tensor]:
    """Token ids and mask, both (rows, longest); a padded place holds token 0, which the mask hides."""
    import torch

    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    return ids.to(device), mask.to(device)


def _positions(mask: Tensor) -> Tensor:
    """The index of each token among its row's tokens; 0 where there is none."""
    return (mask.cumsum(dim=-1) - 1).clamp(min=0) * mask


def _placed(inputs: dict[str, Any], network: Any) -> dict[str, Any]:
    """The inputs on the model's device, the real-valued ones in its dtype."""
    import torch

    return {
        key: value.to(network.device, network.dtype if value.is_floating_point() else None)
        if isinstance(value, torch.Tensor)
        else value
        for key, value in inputs.items()
    }


def _last_logits(
    network: Any, ids: Tensor, mask: Tensor, positions: Tensor, cache: DynamicCache, vision: dict[str, Any]
) -> Tensor:
    """The logits after the last token of each row (rows, vocabulary); the cache grows by `ids`."""
    keep = {"logits_to_keep": 1} if "logits_to_keep" in signature(type(network).forward).parameters else {}
    output = network(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        **keep,
        **vision,
    )
    logits: Tensor = output.logits[:, -1]
    return logits
