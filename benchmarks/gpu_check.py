"""Two training steps of every method on a model of LLaVA-1.5-7B's shape with random weights: time, tokens/s, memory.

    python benchmarks/gpu_check.py --out gpu_check.json           # one GPU; no file is read, nothing is downloaded
    python benchmarks/gpu_check.py --out tiny.json --tiny         # the same code on the CPU in seconds

It says whether a machine can run the configs in `configs/llava15_7b`, and how fast; random weights learn nothing.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import platform
import resource
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, CLIPVisionConfig, LlamaConfig, LlavaConfig

from mirage import losses
from mirage.atomic import write_text
from mirage.batch import Batch, Pair
from mirage.losses import IGNORED
from mirage.methods.base import AlignmentModule
from mirage.methods.npo import NPO
from mirage.methods.rmu import RMU
from mirage.methods.sft import MixedSFT, PosthocSFT, UnsafeFilter
from mirage.models.lora import LoraSettings
from mirage.models.memory import GIB, count_parameters, estimate, trains_as

STEPS = 2


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
    """Every method. RMU trains three matrices; the others adapters, and some of them everything where memory allows."""
    layers = list(range(shape.rmu_layer + 1))

    def rmu(pretrained: str, lora: LoraSettings | None = None, **kwargs: Any) -> RMU:
        return RMU(pretrained, layer=shape.rmu_layer, train_layers=layers if lora else None, lora=lora, **kwargs)

    forms: list[tuple[str, str, Callable[..., AlignmentModule]]] = [
        ("RMU", "full", rmu), ("RMU", "lora", rmu), ("NPO", "lora", NPO), ("MixedSFT", "lora", MixedSFT),
        ("PosthocSFT", "lora", PosthocSFT), ("UnsafeFilter", "lora", UnsafeFilter), ("MixedSFT", "full", MixedSFT),
        ("NPO", "full", NPO),
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
        model.gradient_checkpointing_enable({"use_reentrant": False})
        return model

    with patch("mirage.methods.base.load_model", initialised), device:
        method.configure_model()
    method.__dict__["processor"] = SimpleNamespace(tokenizer=SimpleNamespace(pad_token_id=0))
    return method.to(device)


def run(case: Case, shape: Shape, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """What two steps of one method took, or why they were not run."""
    tokens = 2 * shape.batch_size * (1 + shape.image_tokens + shape.question + shape.answer)
    planned = case.build("random weights", lora=shape.lora if case.form == "lora" else None)
    needed = estimate(
        shape.config, trainable=trains_as(planned), dtype="bfloat16", batch_tokens=tokens, gradient_checkpointing=True
    )
    about: dict[str, Any] = {"method": case.method, "form": case.form, "estimated_gib": round(needed.total_gib, 2)}
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0] / GIB
        if free < 1.1 * needed.total_gib:
            return {**about, "skipped": f"needs about {needed.total_gib:.0f} GiB and {free:.0f} are free"}
        torch.cuda.reset_peak_memory_stats(device)
    method = built(case, shape, device, dtype)
    unsafe = batch(shape, device, dtype, 0) if method.unsafe_answers is not None else None
    pair = Pair(unsafe, batch(shape, device, dtype, 1))
    if isinstance(method, NPO):
        assert unsafe is not None
        with torch.no_grad():
            logp = losses.answer_logp(*method.answer_logits(unsafe))
        method.reference = dict(zip(unsafe.example_ids, logp.tolist(), strict=True))
    trains, total = count_parameters(method.model)
    optimizer = torch.optim.AdamW(
        [parameter for parameter in method.parameters() if parameter.requires_grad], lr=1e-5,
        fused=device.type == "cuda",
    )  # fmt: skip
    seconds, values = [], []
    for _ in range(STEPS):
        started = time.perf_counter()
        loss = step(method, pair, optimizer)
        values.append(float(loss))  # waits for the device
        seconds.append(time.perf_counter() - started)
    seen = sum(int(side.inputs["attention_mask"].sum()) for side in (pair.unsafe, pair.retain) if side is not None)
    return {
        **about,
        "trainable": trains,
        "parameters": total,
        "seconds": [round(value, 4) for value in seconds],
        "tokens_per_step": seen,
        "tokens_per_second": round(seen / seconds[-1], 1),  # of the last step: the first one warms up
        "peak_gib": round(peak_gib(device), 3),
        "loss": values if all(math.isfinite(value) for value in values) else [str(value) for value in values],
        "finite": all(math.isfinite(value) for value in values),
    }


def step(method: AlignmentModule, pair: Pair, optimizer: torch.optim.Optimizer) -> Tensor:
    """One step of training; the loss before it."""
    loss = losses.objective(*method.loss_terms(pair), pair.num_unsafe or len(pair.retain or ()))
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return loss.detach()


def peak_gib(device: torch.device) -> float:
    """Peak memory: on the device, or by this process so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / GIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB


def check(shape: Shape, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> dict[str, Any]:
    """The result of each case in turn; a case that fails says why and stops no other."""
    results = []
    for case in cases(shape):
        try:
            result = run(case, shape, device, dtype)
        except Exception as error:
            lines = str(error).splitlines()
            result = {"method": case.method, "form": case.form, "failed": f"{type(error).__name__}: {lines[:1]}"}
        results.append(result)
        print(json.dumps(result), flush=True)
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine() + " CPU",
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
    given = parser.parse_args(arguments)
    if not given.tiny and not torch.cuda.is_available():
        print("gpu_check: there is no GPU here. Use --tiny to try the same code on the CPU.", file=sys.stderr)
        return 1
    torch.manual_seed(0)
    report = check(tiny() if given.tiny else llava_1_5_7b(), torch.device("cpu" if given.tiny else "cuda"))
    write_text(given.out, json.dumps(report, indent=1) + "\n")
    bad = [case for case in report["cases"] if "failed" in case or case.get("finite") is False]
    print(f"{given.out}: {len(report['cases']) - len(bad)} of {len(report['cases'])} cases ran or were skipped")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
