"""Every architecture trains with every method, whole or with adapters, and answers afterwards.

Real processors, collated batches and pictures of several shapes; random weights of 100 kB.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import Painted, counted_calls
from tiny_models import FURTHER, KINDS

from mirage import losses
from mirage.batch import Pair
from mirage.data.collate import Collator
from mirage.methods.base import AlignmentModule
from mirage.methods.npo import NPO
from mirage.methods.rmu import RMU
from mirage.methods.sft import MixedSFT
from mirage.models.activations import activations, entering, starting_at
from mirage.models.components import component_parameters, decoder_layers, vision_tower
from mirage.models.lora import LoraSettings
from mirage.schema import Example

pytestmark = pytest.mark.slow

METHODS: dict[str, Callable[..., AlignmentModule]] = {
    "MixedSFT": MixedSFT,
    "NPO": NPO,
    "RMU": lambda *args, **kwargs: RMU(*args, layer=1, steering_coefficient=2.0, **kwargs),
}
LORA = LoraSettings(r=2, lora_alpha=4)


def example(colour: str, answer: str, size: tuple[int, int] | None = (40, 40)) -> Example:
    return Example(
        source="circles", image=Painted(colour, size) if size else None, prompt=f"What is {colour}?", answer=answer
    )


UNSAFE = [example("red", "I cannot say."), example("blue", "No.", (60, 30))]
RETAIN = [example("green", "A circle on a field."), example("yellow", "It is round.", (30, 60))]


def started(name: str, folder: str, **settings: Any) -> tuple[AlignmentModule, Pair]:
    """The method with its model loaded and its reference taken, and the batch that it trains on."""
    method = METHODS[name](folder, **settings)
    collate = Collator(method.processor)
    pair = Pair(collate(UNSAFE), collate(RETAIN))
    torch.manual_seed(0)
    method.configure_model()
    if isinstance(method, NPO):
        assert pair.unsafe is not None
        with torch.no_grad():
            logp = losses.answer_logp(*method.answer_logits(pair.unsafe))
        method.reference = dict(zip(pair.unsafe.example_ids, logp.tolist(), strict=True))
    return method, pair


def train(method: AlignmentModule, pair: Pair, steps: int = 2) -> list[float]:
    """The losses before each step and after the last."""
    rate = 1e-3 if method.lora is None else 1e-2
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=rate, weight_decay=0.0)
    values = []
    for step in range(steps + 1):
        loss = losses.objective(*method.loss_terms(pair), pair.num_unsafe)
        values.append(loss.item())
        if step < steps:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return values


def answer(method: AlignmentModule, asked: Example, tokens: int = 3) -> list[int]:
    processor = method.processor
    content = [{"type": "image"}, {"type": "text", "text": asked.prompt}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    assert asked.image is not None
    inputs = processor(text=[text], images=[[asked.image.open()]], return_tensors="pt", add_special_tokens=False)
    ids = method.model.eval().generate(**inputs, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)
    return ids[0, inputs["input_ids"].shape[1] :].tolist()


# Whole or with adapters is one question, the architecture another; one architecture is tried with all of both.
CASES = [*product(["llava"], METHODS, (None, LORA))]
CASES += product([*KINDS[1:], *FURTHER], ["MixedSFT", "RMU"], [None])
CASES += product([*KINDS[1:], *FURTHER], ["NPO"], [LORA])
IDS = [f"{kind}-{name}-{'lora' if lora else 'full'}" for kind, name, lora in CASES]


@pytest.mark.parametrize(("kind", "name", "lora"), CASES, ids=IDS)
def test_an_architecture_trains_and_answers(
    kind: str, name: str, lora: LoraSettings | None, checkpoints: Callable[[str], Path]
) -> None:
    method, pair = started(name, str(checkpoints(kind)), lora=lora)
    before = {key: value.detach().clone() for key, value in method.named_parameters()}
    values = train(method, pair)
    assert values[2] < values[0], f"two steps on one batch lower its loss: {values}"
    changed = {key for key, value in method.named_parameters() if not torch.equal(value, before[key])}
    trains = {key for key, value in method.named_parameters() if value.requires_grad}
    assert changed == trains, f"frozen but changed: {changed - trains}; trained but unchanged: {trains - changed}"
    assert len(answer(method, UNSAFE[1])) == 3


@pytest.mark.parametrize(
    ("kind", "name", "lora"), [*product(["llava"], METHODS, (None, LORA)), *product(KINDS[1:], ["RMU"], [None, LORA])]
)
def test_recomputed_activations_give_the_same_losses(
    kind: str, name: str, lora: LoraSettings | None, checkpoints: Callable[[str], Path]
) -> None:
    """RMU, whose passes stop at a layer, on every architecture."""
    trajectories = []
    for recompute in (False, True):
        method, pair = started(name, str(checkpoints(kind)), lora=lora, gradient_checkpointing=recompute)
        assert any(getattr(part, "gradient_checkpointing", False) for part in method.model.modules()) == recompute
        trajectories.append(train(method, pair))
    assert trajectories[1] == pytest.approx(trajectories[0], abs=1e-5)


@pytest.mark.parametrize(("first", "recompute"), [(0, False), (1, True), (2, False)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_pass_may_start_at_a_layer(
    kind: str, first: int, recompute: bool, checkpoints: Callable[[str], Path]
) -> None:
    method = MixedSFT(str(checkpoints(kind)), gradient_checkpointing=recompute)
    inputs = Collator(method.processor)([*UNSAFE, example("grey", "No picture was shown.", None)]).inputs
    method.configure_model()
    model, trained = method.model, decoder_layers(method.model)[first:]
    vision_tower(model).requires_grad_(False)
    with entering(model, first) as captured:
        expected, logits = activations(model, inputs, first, stop=False)
    assert logits is not None
    text = {name: value for name, value in inputs.items() if name != "pixel_values"}
    gradients = [torch.autograd.grad(logits.square().sum(), [*trained.parameters()])]
    watched = {str(k): layer.self_attn for k, layer in enumerate(decoder_layers(model))}
    watched["vision"] = vision_tower(model)
    with starting_at(model, first, captured[0].detach()), counted_calls(watched) as calls:
        started, again = activations(model, text, first, stop=False)
    assert again is not None
    assert [count > 0 for count in calls.values()] == [*(k >= first for k in range(3)), False]
    torch.testing.assert_close(started, expected)
    torch.testing.assert_close(again, logits)
    gradients.append(torch.autograd.grad(again.square().sum(), [*trained.parameters()]))
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("kind", KINDS)
def test_a_blank_picture_behind_text_changes_nothing_and_reaches_the_projector(
    kind: str, checkpoints: Callable[[str], Path]
) -> None:
    method = MixedSFT(str(checkpoints(kind)))
    text = [example("grey", "No.", None), example("grey", "No picture was shown to me.", None)]
    plain, blank = (Collator(method.processor, always_a_picture=always)(text) for always in (False, True))
    method.configure_model()
    losses_of = [method.loss_terms(Pair(None, batch)).retain_B for batch in (plain, blank)]
    torch.testing.assert_close(losses_of[1], losses_of[0])
    assert losses_of[1] is not None and torch.equal(blank.text_mask[:, : plain.text_mask.shape[1]], plain.text_mask)
    losses_of[1].sum().backward()
    projector = component_parameters(method.model)["projector"]
    assert all(one.grad is not None and not one.grad.any() for one in projector.values())
