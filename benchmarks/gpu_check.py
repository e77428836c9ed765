"""Training steps of every method, and evaluation, on a model of LLaVA-1.5-7B's shape with random weights.

    python benchmarks/gpu_check.py --out gpu_check.json           # one GPU; no file is read, nothing is downloaded
    python benchmarks/gpu_check.py --out tiny.json --tiny         # the same code on the CPU in seconds

For each method, full and LoRA: tokens/s, peak memory, and model FLOP utilisation (MFU), the operations that the step needs
(recomputation not counted) over the machine's own rate of bfloat16 matrix products; plain, with selective instead of full
checkpointing, with `torch.compile` of the decoder layers, and with Liger's kernels (`pip install safety-mirage[gpu]`). The
published step of `training_speed.py` stands beside NPO, RMU and Mixed-SFT: one after the other, since a GPU does not hold
both; `make bench-train` lets them take turns. At the end answers/s of evaluation, with prefix sharing, without, and one
question at a time, which take turns. Seconds are medians of 5 after warm-up.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import math
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parent))  # where this is not run as a script

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.checkpoint import create_selective_checkpoint_contexts
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForImageTextToText, CLIPVisionConfig, LlamaConfig, LlavaConfig

from mirage import losses
from mirage.atomic import write_text
from mirage.batch import Batch, Pair
from mirage.evaluation.generate.huggingface import HuggingFaceEngine
from mirage.losses import IGNORED
from mirage.methods.base import AlignmentModule
from mirage.methods.npo import NPO
from mirage.methods.rmu import RMU
from mirage.methods.sft import MixedSFT, PosthocSFT, UnsafeFilter
from mirage.models.components import decoder_layers, language_model
from mirage.models.lora import LoraSettings
from mirage.models.memory import GIB, count_parameters, estimate, trains_as
from mirage.models.processor import load_processor
from mirage.schema import EvalSample

WARM_UP, STEPS = 2, 5
VARIANTS = ("plain", "selective", "compile", "liger", "compile, liger")
METHODS = ("RMU", "NPO", "MixedSFT", "PosthocSFT", "UnsafeFilter")
PUBLISHED = {"NPO": "npo", "RMU": "rmu", "MixedSFT": "mixed_sft"}  # the cases of training_speed.py
# What selective checkpointing keeps: the results of matrix products and attention, which cost most to compute again.
KEPT = [
    torch.ops.aten.mm.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
]


class Shape(NamedTuple):
    """A model, and how long its sequences are."""

    config: Any  # LlavaConfig, whose parts are typed as dictionaries
    image_tokens: int
    question: int  # tokens
    answer: int
    batch_size: int  # examples of each set in a step
    lora: LoraSettings
    rmu_layer: int


def llava_1_5_7b() -> Shape:
    """LLaVA-1.5-7B and sequences such as VLGuard's."""
    text = LlamaConfig(
        vocab_size=32064, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32,
        max_position_embeddings=4096, pad_token_id=0,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, image_size=336,
        patch_size=14, projection_dim=768,
    )  # fmt: skip
    config = LlavaConfig(text_config=text, vision_config=vision, image_token_id=32000)  # type: ignore[call-arg]
    lora = LoraSettings(r=128, lora_alpha=256, lora_dropout=0.05)
    return Shape(config, image_tokens=576, question=50, answer=90, batch_size=4, lora=lora, rmu_layer=7)


def tiny() -> Shape:
    """The same architecture in 50 thousand parameters."""
    text = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2, pad_token_id=0
    )
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14,
        projection_dim=16,
    )  # fmt: skip
    config = LlavaConfig(text_config=text, vision_config=vision, image_token_id=60)  # type: ignore[call-arg]
    lora = LoraSettings(r=2, lora_alpha=4)
    return Shape(config, image_tokens=4, question=5, answer=6, batch_size=2, lora=lora, rmu_layer=1)


class Case(NamedTuple):
    """One method in one form, and what builds it."""

    method: str
    form: str  # full or lora
    build: Callable[..., AlignmentModule]


def cases(shape: Shape) -> list[Case]:
    """Every method, full and LoRA. RMU trains three matrices; the others all, where memory allows, or adapters."""
    layers = list(range(shape.rmu_layer + 1))

    def rmu(pretrained: str, lora: LoraSettings | None = None, **kwargs: Any) -> RMU:
        return RMU(pretrained, layer=shape.rmu_layer, train_layers=layers if lora else None, lora=lora, **kwargs)

    forms: list[tuple[str, str, Callable[..., AlignmentModule]]] = [
        ("RMU", "full", rmu), ("RMU", "lora", rmu), ("NPO", "lora", NPO), ("MixedSFT", "lora", MixedSFT),
        ("PosthocSFT", "lora", PosthocSFT), ("UnsafeFilter", "lora", UnsafeFilter), ("MixedSFT", "full", MixedSFT),
        ("NPO", "full", NPO), ("PosthocSFT", "full", PosthocSFT), ("UnsafeFilter", "full", UnsafeFilter),
    ]  # fmt: skip
    return [Case(*form) for form in forms]


def batch(shape: Shape, device: torch.device, dtype: torch.dtype, seed: int) -> Batch:
    """Random questions and answers with a random picture each."""
    generator = torch.Generator().manual_seed(seed)
    text = shape.config.text_config
    rows, length = shape.batch_size, 1 + shape.image_tokens + shape.question + shape.answer
    ids = torch.randint(3, shape.config.image_token_id - 1, (rows, length), generator=generator)
    ids[:, 1 : 1 + shape.image_tokens] = shape.config.image_token_id
    labels = ids.clone()
    labels[:, : length - shape.answer] = IGNORED
    words = (ids != shape.config.image_token_id).long()
    words[:, 0] = 0
    side = shape.config.vision_config.image_size
    pixels = torch.randn(rows, 3, side, side, generator=generator).to(dtype)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}
    assert int(ids.max()) < text.vocab_size
    made = Batch(inputs, labels, words, tuple(f"{seed}/{row}" for row in range(rows)), shape.answer + 1)
    return made.to(device)


def built(case: Case, shape: Shape, device: torch.device, dtype: torch.dtype) -> AlignmentModule:
    """The method as in a run, except that its model is initialised on the device instead of read from files."""
    method = case.build("random weights", lora=shape.lora if case.form == "lora" else None, gradient_checkpointing=True)

    def initialised(*_: Any, **__: Any) -> Any:
        with device:
            model = AutoModelForImageTextToText.from_config(shape.config, dtype=dtype)
        model.activation_checkpointing_enable({"use_reentrant": False})
        return model

    with patch("mirage.methods.base.load_model", initialised), device:
        method.configure_model()
    method.__dict__["processor"] = SimpleNamespace(tokenizer=SimpleNamespace(pad_token_id=0))
    return method.to(device)


def run(
    case: Case, variant: str, shape: Shape, device: torch.device, dtype: torch.dtype, rate: float
) -> dict[str, Any]:
    """What steps of one method took, or why they were not run; `rate` is the machine's operations per second."""
    tokens = 2 * shape.batch_size * (1 + shape.image_tokens + shape.question + shape.answer)
    planned = case.build("random weights", lora=shape.lora if case.form == "lora" else None)
    needed = estimate(
        shape.config, trainable=trains_as(planned), dtype="bfloat16", batch_tokens=tokens, gradient_checkpointing=True,
    )  # fmt: skip
    about: dict[str, Any] = {**named(case, variant), "estimated_gib": round(needed.total_gib, 2)}
    if "liger" in variant and (device.type != "cuda" or find_spec("liger_kernel") is None):
        return {**about, "skipped": "needs a GPU and pip install safety-mirage[gpu]"}
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0] / GIB
        if free < 1.1 * needed.total_gib:
            return {**about, "skipped": f"needs about {needed.total_gib:.0f} GiB and {free:.0f} are free"}
    method = built(case, shape, device, dtype)
    pair = pair_for(method, shape, device, dtype)
    counted = operations(method, pair_for(method, shape._replace(batch_size=1), device, dtype)) * shape.batch_size
    trains, total = count_parameters(method.model)
    optimizer = torch.optim.AdamW(
        [parameter for parameter in method.parameters() if parameter.requires_grad], lr=1e-5,
        fused=device.type == "cuda",
    )  # fmt: skip
    with prepared(method.model, variant, device):
        seconds, peak, values = timed(lambda: step(method, pair, optimizer), device)
    seen = sum(int(side.inputs["attention_mask"].sum()) for side in (pair.unsafe, pair.retain) if side is not None)
    median = statistics.median(seconds)
    return {
        **about,
        "trainable": trains,
        "parameters": total,
        "seconds": seconds,
        "tokens_per_step": seen,
        "tokens_per_second": round(seen / median, 1),
        "operations": counted,
        "mfu": float(f"{counted / median / rate:.3g}"),
        "peak_gib": peak,
        "loss": values if all(math.isfinite(value) for value in values) else [str(value) for value in values],
        "finite": all(math.isfinite(value) for value in values),
    }


def published(case: Case, device: torch.device) -> dict[str, Any]:
    """What the published step takes for the same examples; no tokens/s, since it passes over some of them repeatedly."""
    from training_speed import Context, Job, published  # which imports this module

    shape = "7b" if device.type == "cuda" else "tiny"
    with tempfile.TemporaryDirectory() as folder:
        job = Job("published", PUBLISHED[case.method], case.form == "lora", shape, device.type)
        seconds, peak, _ = timed(published(Context(job, Path(folder))), device)
    return {**named(case, "published"), "seconds": seconds, "peak_gib": peak}


def named(case: Case, variant: str) -> dict[str, Any]:
    """What a result is of."""
    return {"method": case.method, "form": case.form, "variant": variant}


def pair_for(method: AlignmentModule, shape: Shape, device: torch.device, dtype: torch.dtype) -> Pair:
    """The examples of a step; NPO's reference is computed for them."""
    unsafe = batch(shape, device, dtype, 0) if method.unsafe_answers is not None else None
    if isinstance(method, NPO):
        assert unsafe is not None
        with torch.no_grad():
            logp = losses.answer_logp(*method.answer_logits(unsafe))
        method.reference = {**(method.reference or {}), **dict(zip(unsafe.example_ids, logp.tolist(), strict=True))}
    return Pair(unsafe, batch(shape, device, dtype, 1))


def operations(method: AlignmentModule, pair: Pair) -> int:
    """Operations of the matrix products in a forward and a backward pass, without recomputation."""
    layers = [part for part in method.modules() if getattr(part, "gradient_checkpointing", False)]
    for layer in layers:
        layer.gradient_checkpointing = False  # type: ignore[assignment]
    with FlopCounterMode(display=False) as counter:
        loss_of(method, pair).backward()  # type: ignore[no-untyped-call]
    method.zero_grad()
    for layer in layers:
        layer.gradient_checkpointing = True  # type: ignore[assignment]
    return counter.get_total_flops()


@contextmanager
def prepared(model: nn.Module, variant: str, device: torch.device) -> Iterator[None]:
    """The model as the variant has it; Liger's changes to the module of transformers last for the block."""
    from transformers.models.llama import modeling_llama

    if variant == "selective":
        kept = partial(create_selective_checkpoint_contexts, KEPT)
        enable: Any = model.activation_checkpointing_enable
        enable({"use_reentrant": False, "context_fn": kept})
    swapped = {name: getattr(modeling_llama, name) for name in ("apply_rotary_pos_emb", "LlamaRMSNorm", "LlamaMLP")}
    try:
        if "liger" in variant:
            from liger_kernel.transformers import apply_liger_kernel_to_llama

            apply_liger_kernel_to_llama(fused_linear_cross_entropy=False, model=language_model(model))
        if "compile" in variant:
            for layer in decoder_layers(model):
                layer.compile(backend="inductor" if device.type == "cuda" else "aot_eager")
        yield
    finally:
        for name, value in swapped.items():
            setattr(modeling_llama, name, value)
        torch.compiler.reset()


def timed(one_step: Callable[[], Tensor], device: torch.device) -> tuple[list[float], float, list[float]]:
    """Seconds of each step after warm-up, peak memory in GiB, and the losses of all steps."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seconds, values = [], []
    for _ in range(WARM_UP + STEPS):
        started = time.perf_counter()
        values.append(float(one_step()))  # waits for the device
        seconds.append(round(time.perf_counter() - started, 4))
    return seconds[WARM_UP:], round(peak_gib(device), 3), values


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of a large matrix product: what the utilisation is a share of."""
    side = 8192 if device.type == "cuda" else 256
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    seconds, _, _ = timed(lambda: (left @ right)[0, 0], device)
    return 2 * side**3 / max(statistics.median(seconds), 1e-4)


def answers_per_second(shape: Shape, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Answers/s to questions with three rewrites each: prefixes shared, not shared, and one question at a time."""
    from evaluation_speed import one_at_a_time

    processor = load_processor("package:mirage.mini/checkpoint")  # its tokens, at the size of this model's pictures
    config, tokenizer = copy.deepcopy(shape.config), processor.tokenizer
    vision, side = config.vision_config, config.vision_config.image_size
    config.image_token_id = tokenizer.convert_tokens_to_ids(processor.image_token)
    config.text_config.vocab_size = max(config.text_config.vocab_size, len(tokenizer))
    processor.patch_size = vision.patch_size
    processor.image_processor.size = {"height": side, "width": side}
    processor.image_processor.crop_size = {"height": side, "width": side}
    with device:
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype).eval()
    num_samples, max_new_tokens = (32, 64) if device.type == "cuda" else (3, 4)
    picture = SimpleNamespace(name="", open=lambda: Image.new("RGB", (side, side), "navy"))
    texts = tuple(f"{opening} is the colour of the square?" for opening in ("Which", "What", "Share what", "Say what"))
    samples = [
        EvalSample(id=str(k), source="", image=picture, question=texts[0], unsafe=False, rewrites=texts[1:])
        for k in range(num_samples)
    ]

    def engine(share_prefix: bool) -> HuggingFaceEngine:
        return HuggingFaceEngine(
            model, processor, max_new_tokens=max_new_tokens, batch_size=64, share_prefix=share_prefix
        )

    end_tokens = engine(True).settings()["end_tokens"]
    asks: dict[str, tuple[int, Callable[[], Any]]] = {
        "shared": (num_samples, lambda: engine(True).answers(samples)),
        "not_shared": (num_samples, lambda: engine(False).answers(samples)),
        "one_at_a_time": (1, lambda: one_at_a_time(model, processor, samples[:1], max_new_tokens, end_tokens)),
    }
    rates: dict[str, list[float]] = {name: [] for name in asks}
    for number in range(1 + STEPS):
        for name, (asked, ask) in asks.items():
            started = time.perf_counter()
            ask()
            if number:  # the first round warms up
                rates[name].append(asked * len(texts) / (time.perf_counter() - started))
    ratio = {
        name: round(statistics.median(map(lambda own, other: own / other, rates["shared"], rates[name])), 2)
        for name in ("not_shared", "one_at_a_time")
    }
    return {
        "answers_per_second": {name: round(statistics.median(values), 2) for name, values in rates.items()},
        "shared_is_times_as_fast_as": ratio,
        "max_new_tokens": max_new_tokens,
    }


def loss_of(method: AlignmentModule, pair: Pair) -> Tensor:
    """The objective of a step."""
    return losses.objective(*method.loss_terms(pair), pair.num_unsafe or len(pair.retain or ()))


def step(method: AlignmentModule, pair: Pair, optimizer: torch.optim.Optimizer) -> Tensor:
    """One step of training; the loss before it."""
    loss = loss_of(method, pair)
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return loss.detach()


def peak_gib(device: torch.device) -> float:
    """Peak memory: on the device, or by this process so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / GIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB


def check(
    shape: Shape,
    device: torch.device,
    methods: Sequence[str],
    variants: Sequence[str],
    dtype: torch.dtype = torch.bfloat16,
) -> dict[str, Any]:
    """The result of each case in turn; a case that fails says why and stops no other."""
    results: list[dict[str, Any]] = []

    def attempt(about: dict[str, Any], measure: Callable[[], dict[str, Any]]) -> None:
        try:
            result = measure()
        except Exception as error:
            result = {**about, "failed": f"{type(error).__name__}: {str(error).splitlines()[:1]}"}
        results.append(result)
        print(json.dumps(result), flush=True)
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()

    rate = matrix_rate(device, dtype)
    for case in (each for each in cases(shape) if each.method in methods):
        for variant in variants:
            attempt(named(case, variant), partial(run, case, variant, shape, device, dtype, rate))
        if case.method in PUBLISHED:
            attempt(named(case, "published"), partial(published, case, device))
    attempt({"evaluation": "hf"}, lambda: {"evaluation": "hf", **answers_per_second(shape, device, dtype)})
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine() + " CPU",
        "date": date.today().isoformat(),
        "matrix_tflops": round(rate / 1e12, 2),
        "dtype": str(dtype).removeprefix("torch."),
        "steps": STEPS,
        "batch_size": shape.batch_size,
        "versions": {name: version(name) for name in ("torch", "transformers", "peft")},
        "cases": results,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the check and writes its JSON; 1 if a case failed or there is no GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write.")
    parser.add_argument("--tiny", action="store_true", help="A tiny shape on the CPU.")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS)
    given = parser.parse_args(arguments)
    if not given.tiny and not torch.cuda.is_available():
        print("gpu_check: there is no GPU here. Use --tiny to try the same code on the CPU.", file=sys.stderr)
        return 1
    torch.manual_seed(0)
    shape, device = (tiny(), "cpu") if given.tiny else (llava_1_5_7b(), "cuda")
    report = check(shape, torch.device(device), given.methods, given.variants)
    write_text(given.out, json.dumps(report, indent=1) + "\n")
    bad = [case for case in report["cases"] if "failed" in case or case.get("finite") is False]
    print(f"{given.out}: {len(report['cases']) - len(bad)} of {len(report['cases'])} cases ran or were skipped")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
