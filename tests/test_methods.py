"""The methods, trained on mini by the real Trainer: what changes, what must not, and what stops them."""

from __future__ import annotations

import gc
import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import lightning as L
import pytest
import torch
from builders import counted_calls
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from mirage import losses
from mirage.batch import Batch, Pair
from mirage.checkpoint.io import AtomicCheckpointIO
from mirage.data.collate import Collator
from mirage.data.module import AlignmentData
from mirage.data.sources.mini import Mini
from mirage.methods.base import AlignmentModule, LossTerms, NonFiniteLossError
from mirage.methods.npo import NPO
from mirage.methods.reference import as_reference, trainable_copies
from mirage.methods.rmu import RMU
from mirage.methods.sft import MixedSFT, PosthocSFT, UnsafeFilter
from mirage.models.activations import activations
from mirage.models.components import decoder_layers, unwrapped
from mirage.models.lora import LoraSettings
from mirage.schema import Example

pytestmark = pytest.mark.slow

MINI = "package:mirage.mini/checkpoint"
LAYER = 2  # of 4, so that RMU has a layer above to leave out
METHODS: dict[str, tuple[type[AlignmentModule], dict[str, Any]]] = {
    "mixed_sft": (MixedSFT, {}),
    "posthoc_sft": (PosthocSFT, {}),
    "unsafe_filter": (UnsafeFilter, {}),
    "npo": (NPO, {"beta": 0.5}),
    "rmu": (RMU, {"layer": LAYER, "steering_coefficient": 5.0}),
}
every_method = pytest.mark.parametrize("name", ["mixed_sft", "unsafe_filter", "npo", "rmu"])  # PosthocSFT is MixedSFT
full_and_lora = pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])


class Mistaken(Mini):
    """Mini whose retain answers belong to other questions, so that the retain term has something to learn."""

    def retain(self) -> Sequence[Example]:
        examples = super().retain()
        return [
            Example(source=item.source, image=item.image, prompt=item.prompt, answer=other.answer)
            for item, other in zip(examples, [*examples[1:], examples[0]], strict=True)
        ]


class Snapshots(Callback):
    """The weights at the start of every batch; as arrays, of which `WeightCopies` knows nothing."""

    def __init__(self) -> None:
        self._taken: list[dict[str, Any]] = []

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self._taken.append({name: weight.numpy().copy() for name, weight in weights_of(pl_module).items()})

    def at(self, batch: int) -> dict[str, Tensor]:
        """The weights at the start of a batch, counted from 0."""
        return {name: torch.from_numpy(array) for name, array in self._taken[batch].items()}


class WeightCopies(Callback):
    """Frozen weight matrices of which the training has made another copy, in whatever type."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.looked = 0
        self._earlier = {id(tensor): tensor for tensor in _tensors()}  # kept, so that no id is used again

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self.looked += 1
        frozen = {name: p.data for name, p in pl_module.named_parameters() if not p.requires_grad and p.ndim > 1}
        its = {tensor.data_ptr() for tensor in (*pl_module.parameters(), *pl_module.buffers())}
        others: dict[torch.Size, list[Tensor]] = {}
        for tensor in _tensors():
            if id(tensor) not in self._earlier and tensor.is_floating_point() and tensor.data_ptr() not in its:
                others.setdefault(tensor.shape, []).append(tensor.detach())
        for name, weight in frozen.items():
            if any(torch.equal(weight.to(other.dtype), other) for other in others.get(weight.shape, ())):
                self.names.add(name)

    on_train_batch_end = on_train_start  # type: ignore[assignment]


def _tensors() -> list[Tensor]:
    """Every tensor that is alive."""
    things = gc.get_objects()
    kinds = {kind for kind in set(map(type, things)) if issubclass(kind, Tensor)}  # a million things, a few kinds
    return [thing for thing in things if type(thing) in kinds]


class Run(NamedTuple):
    """A training that has been set up."""

    method: Any
    data: AlignmentData
    trainer: L.Trainer

    def fit(self, **given: Any) -> Run:
        self.trainer.fit(self.method, datamodule=self.data, **given)
        return self


def set_up(
    folder: Path, name: str | AlignmentModule, *, lora: bool = False, steps: int = 2, batch_size: int = 4,
    accumulate: int = 1, gamma: float = 1.5, callbacks: Sequence[Callback] = (), trainer: Mapping[str, Any] | None = None,
    **given: Any,
) -> Run:  # fmt: skip
    """A training of a few steps, by default of 4 unsafe and 6 retain examples; `trainer` is further settings of it."""
    L.seed_everything(3, verbose=False)
    method = name if isinstance(name, AlignmentModule) else made(name, lora=lora, **given)
    source = Mistaken(num_unsafe=14, num_safe=9, num_eval=4)
    data = AlignmentData(source, batch_size=batch_size, gamma=gamma, num_workers=0, method=method)
    fitter = L.Trainer(
        accelerator="cpu", devices=1, max_steps=steps, accumulate_grad_batches=accumulate, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
        num_sanity_val_steps=0, default_root_dir=folder, callbacks=list(callbacks), plugins=[AtomicCheckpointIO()],
        **(trainer or {}),
    )  # fmt: skip
    return Run(method, data, fitter)


@pytest.fixture
def training(tmp_path: Path) -> Callable[..., Run]:
    """`set_up` in the test's folder."""
    return partial(set_up, tmp_path)


def made(name: str, *, lora: bool = False, **given: Any) -> Any:
    """The method, its learning rate constant."""
    kind, extra = METHODS[name]
    settings = LoraSettings(r=4) if lora else None
    fixed = {"learning_rate": 1e-3, "warmup_ratio": 0.0, "schedule": "constant_with_warmup"}
    return kind(MINI, lora=settings, **{**fixed, **extra, **given})


def loaded(name: str, *, lora: bool = False, **given: Any) -> Any:
    """The method with its model, without a Trainer."""
    L.seed_everything(3, verbose=False)
    method = made(name, lora=lora, **given)
    method.configure_model()
    return method


def weights_of(method: Any) -> dict[str, Tensor]:
    """Copies of all parameters."""
    return {name: parameter.detach().clone() for name, parameter in method.named_parameters()}


def sides_of(method: Any) -> tuple[Batch, Batch]:
    """3 unsafe and 4 retain examples of mini; NPO gets a reference of -3, -4, -5 nats."""
    source, collate = Mistaken(num_unsafe=8, num_safe=8), Collator(method.processor)
    unsafe = collate(source.unsafe(method.unsafe_answers or "refusal")[:3])
    if isinstance(method, NPO):
        method.reference = {id: -3.0 - k for k, id in enumerate(unsafe.example_ids)}
    return unsafe, collate(source.retain()[:4])


def moved(method: Any) -> None:
    """Disturbs what trains, as training would."""
    with torch.no_grad():
        for parameter in filter(lambda parameter: parameter.requires_grad, method.parameters()):
            parameter.add_(torch.randn_like(parameter), alpha=0.05)


# What trains

LINEAR = r"(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"
EXPECTED = {
    # (RMU?, LoRA?) -> the names, of a LLaVA of 4 layers, that change
    (False, False): r"model\.(model\.(language_model|multi_modal_projector)\..*|lm_head\.weight)",
    (False, True): rf".*language_model\.layers\.[0-3]\.{LINEAR}\.lora_[AB]\.default\.weight",
    (True, False): r"model\.model\.language_model\.layers\.[012]\.mlp\.down_proj\.weight",
    (True, True): rf".*language_model\.layers\.[012]\.{LINEAR}\.lora_[AB]\.default\.weight",
}
COUNT = {(False, True): 4 * 7 * 2, (True, False): 3, (True, True): 3 * 7 * 2}


@pytest.mark.parametrize(
    ("name", "lora"),
    [("mixed_sft", False), ("unsafe_filter", True), ("npo", False), ("npo", True), ("rmu", False), ("rmu", True)],
)
def test_two_steps_change_exactly_what_should_learn_and_make_no_second_model(
    name: str, lora: bool, training: Callable[..., Run]
) -> None:
    snapshots, copies, construct = Snapshots(), WeightCopies(), LlavaForConditionalGeneration.__init__
    with mock.patch.object(
        LlavaForConditionalGeneration, "__init__", autospec=True, side_effect=construct
    ) as constructed:
        run = training(name, lora=lora, callbacks=[snapshots, copies]).fit()
    assert constructed.call_count == 1 and copies.looked == 3 and not copies.names
    before, after = snapshots.at(0), weights_of(run.method)
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    variant = (name == "rmu", lora)
    assert changed == {key for key in before if re.fullmatch(EXPECTED[variant], key)}
    assert changed and len(changed) == COUNT.get(variant, len(changed))
    assert any("vision_tower" in key for key in before)  # and it is not among them

    # a step is worth the unsafe mean and gamma times the retain mean
    logged = run.trainer.callback_metrics
    assert ("train/unsafe" in logged) is (name != "unsafe_filter")
    expected = (
        logged["train/unsafe"] + 1.5 * logged["train/retain"] if "train/unsafe" in logged else logged["train/retain"]
    )
    torch.testing.assert_close(logged["train/loss"], expected)


def test_rmu_trains_the_layers_and_modules_that_are_set(training: Callable[..., Run]) -> None:
    snapshots = Snapshots()
    run = training(
        "rmu", callbacks=[snapshots], train_layers=[1], train_modules=["q_proj", "up_proj"], train_projector=True
    ).fit()
    after = weights_of(run.method)
    changed = {key for key, value in snapshots.at(0).items() if not torch.equal(value, after[key])}
    assert {key.removeprefix("model.model.") for key in changed} == {
        "language_model.layers.1.self_attn.q_proj.weight", "language_model.layers.1.mlp.up_proj.weight",
        "multi_modal_projector.linear_1.weight", "multi_modal_projector.linear_1.bias",
        "multi_modal_projector.linear_2.weight", "multi_modal_projector.linear_2.bias",
    }  # fmt: skip


# What a method computes


def modules_of(method: Any) -> dict[str, torch.nn.Module]:
    """Every decoder layer, and the output head at last."""
    layers = {str(index): layer for index, layer in enumerate(decoder_layers(method.model))}
    return {**layers, "head": unwrapped(method.model).get_output_embeddings()}


@full_and_lora
def test_rmu_runs_no_layer_above_the_steered_one_for_the_unsafe_set(lora: bool) -> None:
    method = loaded("rmu", lora=lora)
    unsafe, retain = sides_of(method)
    # the reference stops too; one forward serves both retain terms
    for pair, expected in ((Pair(unsafe, None), [1, 1, 1, 0, 0]), (Pair(None, retain), [2, 2, 2, 1, 1])):
        with counted_calls(modules_of(method)) as calls:
            method.loss_terms(pair)
        assert list(calls.values()) == expected


@every_method
def test_a_step_is_one_forward_pass_and_its_terms_are_those_of_each_side_alone(name: str) -> None:
    method = loaded(name)
    unsafe, retain = sides_of(method)
    moved(method)
    with counted_calls(modules_of(method)) as calls:
        together = method.loss_terms(Pair(unsafe, retain))
    assert name == "rmu" or list(calls.values()) == [1] * 5
    assert [len(part) for part in together] == [3, 4]
    alone = method.loss_terms(Pair(unsafe, None)), method.loss_terms(Pair(None, retain))
    assert alone[0].retain_B is None and alone[1].unsafe_B is None
    torch.testing.assert_close(alone[0].unsafe_B, together.unsafe_B)
    torch.testing.assert_close(alone[1].retain_B, together.retain_B)


@pytest.mark.parametrize(("lora", "normalized"), [(False, False), (True, True)])
def test_npo_starts_at_2_ln_2_over_beta(lora: bool, normalized: bool, training: Callable[..., Run]) -> None:
    logged = training("npo", lora=lora, steps=1, length_normalized=normalized).fit().trainer.callback_metrics
    torch.testing.assert_close(logged["train/unsafe"], torch.tensor(2 * math.log(2) / 0.5), rtol=1e-5, atol=1e-5)


def test_npo_counts_whole_answers_or_means_of_their_tokens() -> None:
    method = loaded("npo")
    unsafe, _ = sides_of(method)
    moved(method)
    policy_B = losses.answer_logp(*method.answer_logits(unsafe))
    tokens_B = (unsafe.labels != losses.IGNORED).sum(1)
    reference_B = torch.tensor([-3.0, -4.0, -5.0])
    torch.testing.assert_close(method.loss_terms(Pair(unsafe, None)).unsafe_B, losses.npo(policy_B, reference_B, 0.5))
    method.length_normalized = True
    means = losses.npo(policy_B / tokens_B, reference_B / tokens_B, 0.5)
    torch.testing.assert_close(method.loss_terms(Pair(unsafe, None)).unsafe_B, means)
    del method.reference[unsafe.example_ids[1]]
    with pytest.raises(KeyError, match=unsafe.example_ids[1]):
        method.loss_terms(Pair(unsafe, None))


@pytest.mark.parametrize("positions", ["answer", "text", "all"])
def test_rmu_steers_the_positions_that_are_set(positions: str) -> None:
    method = loaded("rmu", positions=positions)
    unsafe, retain = sides_of(method)
    pair = Pair(unsafe, retain)
    image = method.processor.image_token_id
    hidden_BSD, _ = activations(method.model, unsafe.inputs, LAYER, stop=True)
    distance_BS = (hidden_BSD - method.target).square().mean(-1)  # over the width, as in the authors' code
    for row, ids in enumerate(unsafe.inputs["input_ids"].tolist()):
        labels = unsafe.labels[row].tolist()
        length = int(unsafe.inputs["attention_mask"][row].sum())
        chosen = {
            "answer": [k for k in range(length - 1) if labels[k + 1] != losses.IGNORED],
            "text": [k for k in range(1, length) if ids[k] != image],
            "all": list(range(1, length)),
        }[positions]
        torch.testing.assert_close(method.loss_terms(pair).unsafe_B[row], distance_BS[row, chosen].mean())
    # nothing to keep yet; afterwards there is
    torch.testing.assert_close(method.loss_terms(pair).retain_B, losses.sft(*method.answer_logits(retain)))
    moved(method)
    assert (method.loss_terms(pair).retain_B > losses.sft(*method.answer_logits(retain)) + 1e-4).all()


def test_rmu_weighs_cross_entropy_and_without_it_stops_at_the_layer() -> None:
    method = loaded("rmu")
    unsafe, retain = sides_of(method)
    moved(method)
    terms, calls = {}, {}
    for weight in (0.0, 1.0, 3.0):
        method.fine_tuning_weight = weight
        with counted_calls(modules_of(method)) as calls[weight]:
            terms[weight] = method.loss_terms(Pair(unsafe, retain)).retain_B
    assert list(calls[0.0].values())[-2:] == [0, 0] and list(calls[1.0].values())[-2:] == [1, 1]
    torch.testing.assert_close(terms[1.0] - terms[0.0], losses.sft(*method.answer_logits(retain)))
    torch.testing.assert_close(terms[3.0] - terms[1.0], 2 * (terms[1.0] - terms[0.0]))


def test_the_target_is_a_positive_direction_of_the_given_length() -> None:
    targets = [loaded("rmu", vector_seed=seed).target for seed in (0, 0, 1)]
    assert torch.equal(targets[0], targets[1]) and not torch.equal(targets[0], targets[2])
    torch.testing.assert_close(targets[2].norm(), torch.tensor(5.0))
    assert (targets[2] >= 0).all()


# The reference


@full_and_lora
def test_the_reference_is_the_starting_model_to_the_bit_after_2_steps(lora: bool, training: Callable[..., Run]) -> None:
    start = loaded("rmu", lora=lora)
    _, batch = sides_of(start)
    expected, _ = activations(start.model.eval(), batch.inputs, LAYER, stop=True)
    method = training("rmu", lora=lora).fit().method
    with as_reference(method.model, method.reference):
        reference, _ = activations(method.model, batch.inputs, LAYER, stop=True)
    assert torch.equal(reference, expected)
    policy, _ = activations(method.model, batch.inputs, LAYER, stop=True)
    assert not torch.allclose(policy, expected)  # swapped back
    if not lora:
        starting = weights_of(start)
        assert len(method.reference) == 3
        assert all(torch.equal(copy, starting[f"model.{name}"]) for name, copy in method.reference.items())


@full_and_lora
def test_npos_reference_comes_from_the_starting_model_and_stays(lora: bool, training: Callable[..., Run]) -> None:
    run = training("npo", lora=lora, learning_rate=1e-2).fit()
    start = loaded("npo")
    start.model.eval()
    examples = list(run.data.unsafe_set)
    with torch.no_grad():
        batch = run.data.collate(examples)
        logps = losses.answer_logp(*start.answer_logits(batch))
        now = losses.answer_logp(*run.method.answer_logits(batch))
    assert list(run.method.reference) == [item.id for item in examples] == list(batch.example_ids)
    reference = torch.tensor([*run.method.reference.values()])
    torch.testing.assert_close(reference, logps, rtol=1e-4, atol=1e-4)
    assert (reference - now).abs().max() > 0.1


def test_starting_weights_go_back_even_if_the_forward_fails() -> None:
    method = loaded("rmu")
    reference = trainable_copies(method.model)
    moved(method)
    before = weights_of(method)
    with pytest.raises(RuntimeError, match="in between"), as_reference(method.model, reference):
        raise RuntimeError("in between")
    assert all(torch.equal(value, before[name]) for name, value in weights_of(method).items())
    assert method.model.training


@full_and_lora
def test_a_reference_has_no_dropout(lora: bool) -> None:
    method = loaded("rmu", lora=lora)
    _, batch = sides_of(method)
    perceptron: Any = decoder_layers(method.model)[0].mlp
    perceptron.act_fn = torch.nn.Sequential(perceptron.act_fn, torch.nn.Dropout(0.5))

    def hidden() -> Tensor:
        return activations(method.model, batch.inputs, LAYER, stop=True)[0]

    with as_reference(method.model, method.reference):
        assert torch.equal(hidden(), hidden())
    assert not torch.equal(hidden(), hidden())  # the policy has


def test_bf16_autocast_does_not_mix_policy_and_reference() -> None:
    method = loaded("rmu")
    pair = Pair(*sides_of(method))
    moved(method)
    exact = method.loss_terms(pair)
    with MixedPrecision("bf16-mixed", "cpu").forward_context():
        mixed = method.loss_terms(pair)
    # weights cast for the one and kept for the other would be off by 0.14 here, rounding is by 0.01
    torch.testing.assert_close(mixed.unsafe_B, exact.unsafe_B, rtol=0, atol=0.05)
    torch.testing.assert_close(mixed.retain_B, exact.retain_B, rtol=0, atol=0.05)
    gradients = torch.autograd.grad(mixed.retain_B.sum(), list(filter(lambda p: p.requires_grad, method.parameters())))
    assert all(gradient.abs().sum() > 0 for gradient in gradients)


def test_gradients_are_clipped_in_mixed_precision(training: Callable[..., Run]) -> None:
    """Lightning refuses to clip for a fused AdamW, which would unscale gradients itself; in bfloat16 none are scaled."""
    snapshots, clipped = Snapshots(), {"precision": "bf16-mixed", "gradient_clip_val": 1e-14}
    after = weights_of(training("mixed_sft", callbacks=[snapshots], trainer=clipped).fit().method)
    # AdamW's steps are of the size of the learning rate, 1e-3, unless a gradient is far below its epsilon
    assert max((after[name] - before).abs().max() for name, before in snapshots.at(0).items()) < 1e-6


class Seen(Callback):
    """The unsafe examples of every batch."""

    def __init__(self) -> None:
        self.ids: list[tuple[str, ...]] = []

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Pair, *_: Any) -> None:
        assert batch.unsafe is not None
        self.ids.append(batch.unsafe.example_ids)


def test_the_same_batches_are_fitted_again_and_again_in_bfloat16(training: Callable[..., Run]) -> None:
    """RMU swaps in copies that were made before Lightning cast the model; Lightning replaces shuffling samplers."""
    seen, overfit = Seen(), {"precision": "bf16-true", "overfit_batches": 3}
    training("rmu", steps=4, accumulate=2, callbacks=[seen], trainer=overfit).fit()
    assert len(seen.ids) == 6 and len({*seen.ids}) == 3 and seen.ids[:3] == seen.ids[3:]


# A step does not depend on how it is cut


@pytest.mark.parametrize(
    ("name", "lora"), [("mixed_sft", True), ("unsafe_filter", False), ("npo", False), ("rmu", False)]
)
def test_a_batch_of_4_trains_as_2_accumulated_batches_of_2(
    name: str, lora: bool, training: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    def plain_descent(self: AlignmentModule) -> torch.optim.Optimizer:
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=self.learning_rate)

    # AdamW would hide a gradient of the wrong size
    monkeypatch.setattr(AlignmentModule, "configure_optimizers", plain_descent)
    ends, start = [], weights_of(loaded(name, lora=lora))
    for batch_size, accumulate in ((4, 1), (2, 2)):
        run = training(
            name, lora=lora, steps=2, batch_size=batch_size, accumulate=accumulate, gamma=0.7, learning_rate=0.05
        )  # 2 or 3 retain examples for 4 unsafe ones, 1 or 2 for 2
        ends.append(weights_of(run.fit().method))
        assert run.trainer.global_step == 2
    way = torch.cat([(ends[0][key] - start[key]).flatten() for key in start]).abs()
    apart = torch.cat([(ends[0][key] - ends[1][key]).flatten() for key in start]).abs()
    assert way.max() > 1e-4 and apart.max() <= 1e-3 * way.max() and apart.mean() <= 1e-3 * way.mean()


# A loss that is not finite


class Breaks(MixedSFT):
    """Makes one loss not finite, in one call of `loss_terms`."""

    def __init__(self, *, side: str, call: int, value: float) -> None:
        super().__init__(MINI, learning_rate=1e-3)
        self.side, self.call, self.value, self.calls, self.culprit = side, call, value, 0, ""

    def loss_terms(self, pair: Pair) -> LossTerms:
        terms = super().loss_terms(pair)
        if self.calls == self.call:
            self.culprit = getattr(pair, self.side).example_ids[1]
            values = getattr(terms, f"{self.side}_B")
            factors = torch.ones_like(values).index_fill(0, torch.tensor(1), self.value)
            terms = terms._replace(**{f"{self.side}_B": values * factors})
        self.calls += 1
        return terms


@pytest.mark.parametrize(("side", "place", "value"), [("unsafe", 0, math.nan), ("retain", 1, math.inf)])
def test_a_loss_that_is_not_finite_stops_before_the_step(
    side: str, place: int, value: float, training: Callable[..., Run]
) -> None:
    snapshots = Snapshots()
    method = Breaks(side=side, call=2 + place, value=value)  # in the second of the windows of two
    run = training(method, steps=3, batch_size=3, accumulate=2, callbacks=[snapshots])
    with pytest.raises(NonFiniteLossError) as caught:
        run.fit()
    message = f"Not finite in step 1, rank 0: {side} loss of examples {method.culprit}. Training stopped "
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)
    before, after = snapshots.at(2), weights_of(method)  # at the start of the second window
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert any(not torch.equal(snapshots.at(0)[name], before[name]) for name in before)  # the first one was taken


# A resumed run


@pytest.mark.parametrize("name", ["npo", "rmu"])
@full_and_lora
def test_a_resumed_run_keeps_the_reference_of_the_starting_model(
    name: str, lora: bool, training: Callable[..., Run], tmp_path: Path
) -> None:
    first = training(name, lora=lora, steps=1).fit()
    first.trainer.save_checkpoint(tmp_path / "one.ckpt")
    saved = torch.load(tmp_path / "one.ckpt", weights_only=True)["state_dict"]
    trained = {key for key, parameter in first.method.named_parameters() if parameter.requires_grad}
    assert set(saved) == trained | ({"target"} if name == "rmu" else set())
    # another seed: what is sampled at the start of a run must come from the checkpoint
    given: dict[str, Any] = {"vector_seed": 9} if name == "rmu" else {}
    resumed = training(name, lora=lora, steps=2, **given).fit(ckpt_path=str(tmp_path / "one.ckpt"))
    assert resumed.trainer.global_step == 2
    if name == "npo":
        assert resumed.method.reference == first.method.reference
        return
    start = loaded(name, **given)
    assert torch.equal(resumed.method.target, first.method.target) and not torch.equal(
        start.target, first.method.target
    )
    if not lora:
        starting, copies = weights_of(start), resumed.method.reference
        assert all(torch.equal(copy, starting[f"model.{key}"]) for key, copy in copies.items())
        assert not any(torch.equal(copy, saved[f"model.{key}"]) for key, copy in copies.items())


# Settings that cannot be


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("mixed_sft", {"learning_rate": 0.0}, "model.learning_rate is 0.0: it must be above 0"),
        ("mixed_sft", {"learning_rate": math.nan}, "model.learning_rate is nan: it must be above 0"),
        ("mixed_sft", {"warmup_ratio": 1.0}, "model.warmup_ratio is 1.0"),
        ("npo", {"beta": 0.0}, "model.beta is 0.0: it must be above 0"),
        ("rmu", {"steering_coefficient": -1.0}, "model.steering_coefficient is -1.0"),
        ("rmu", {"alpha": math.nan}, "model.alpha is nan"),
        ("rmu", {"fine_tuning_weight": -1.0}, "model.fine_tuning_weight is -1.0: it must be 0 or more"),
        ("rmu", {"layer": 7}, "has no decoder layer 7: it has 4. Choose a layer from 0 to 3"),
        ("rmu", {"layer": -1}, "has no decoder layer -1"),
        ("rmu", {"train_layers": [1, 3]}, "model.train_layers holds 3, which comes after the steered layer 2"),
        ("rmu", {"train_modules": ["mlp.down"]}, "has no module 'mlp.down'. Choose from"),
    ],
)
def test_settings_that_cannot_be_are_refused(name: str, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):  # a ModelError where it takes the model to know
        loaded(name, **wrong)
