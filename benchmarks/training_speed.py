"""A training step against the published code's, on the same weights and batches: seconds, operations, peak memory.

    python benchmarks/training_speed.py                   # on the CPU: a LLaVA of 32 layers and width 256
    python benchmarks/training_speed.py --shape wide      # on the CPU, for memory: weights outweigh activations, as in 7B
    python benchmarks/training_speed.py --shape 7b        # on a GPU: LLaVA-1.5-7B's shape, in bfloat16
    python benchmarks/training_speed.py --shape tiny      # the same code in seconds

The published step (Safety Mirage's trainer) is re-stated with plain transformers: two whole models; for NPO three passes
of the policy and two of the frozen model, for RMU whole passes that keep all hidden states, with retain batches of its
own for cross entropy; the loss of a whole batch from the model, with logits of every position. Mixed-SFT is compared with
Hugging Face's Trainer. Optimizer, batches, weights, adapters and recomputation are the same on both sides.

Each side has a process of its own, and they take turns. F is the operations of one forward pass of the whole model over
one batch. Memory is the peak above what the process had before it built its model; on a CPU only the wide shape shows what
is in use, the others also what the C library keeps for later. Nothing is asserted.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import patch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parent))  # where this is not run as a script, and in the processes of the sides

import torch
from gpu_check import Shape, llava_1_5_7b, peak_gib, tiny
from gpu_check import batch as random_batch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    Trainer,
    TrainingArguments,
)

from mirage import losses
from mirage.batch import Batch, Pair, joined
from mirage.methods.base import AlignmentModule
from mirage.methods.npo import NPO
from mirage.methods.rmu import RMU
from mirage.methods.sft import MixedSFT
from mirage.methods.tensor_store import TensorStore
from mirage.models.components import choose_trainable
from mirage.models.lora import LoraSettings, add_lora

Step = Callable[[], Tensor]
BETA, STEERING, PROJECTOR_TOO = 0.9, 10.0, ["language", "projector"]


def small() -> Shape:
    """As deep as LLaVA-1.5-7B, a sixteenth of its width, a quarter of its tokens; the head is as small a share."""
    text = LlamaConfig(
        vocab_size=2048, hidden_size=256, intermediate_size=688, num_hidden_layers=32, num_attention_heads=8,
        pad_token_id=0,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=64, intermediate_size=256, num_hidden_layers=24, num_attention_heads=4, image_size=168,
        patch_size=14, projection_dim=64,
    )  # fmt: skip
    config = LlavaConfig(text_config=text, vision_config=vision, image_token_id=2000)  # type: ignore[call-arg]
    lora = LoraSettings(r=8, lora_alpha=16)
    return Shape(config, image_tokens=144, question=13, answer=23, batch_size=2, lora=lora, rmu_layer=7)


def wide() -> Shape:
    """As deep as LLaVA-1.5-7B, 0.2 billion parameters, few tokens, recomputed: as there, memory is that of weights."""
    shape = small()
    text = LlamaConfig(
        vocab_size=4096, hidden_size=768, intermediate_size=2064, num_hidden_layers=32, num_attention_heads=8,
        pad_token_id=0,
    )  # fmt: skip
    vision = shape.config.vision_config
    config = LlavaConfig(text_config=text, vision_config=vision, image_token_id=4000)  # type: ignore[call-arg]
    return shape._replace(config=config)


SHAPES: dict[str, Callable[[], Shape]] = {"small": small, "wide": wide, "7b": llava_1_5_7b, "tiny": tiny}
RECOMPUTED = ("wide", "7b")  # activations of decoder layers
CASES = {"npo": "NPO", "rmu": "RMU", "rmu_without_ce": "RMU, fine_tuning_weight 0", "mixed_sft": "Mixed-SFT"}


class Job(NamedTuple):
    """One side of a case."""

    side: str  # published, mirage, or `mirage, no cache`
    case: str
    lora: bool
    shape: str
    device: str


class Context:
    """Batches, and models with the same random weights, for one side.

    Args:
        job: The side.
        folder: For files that last as long as its process.
    """

    def __init__(self, job: Job, folder: Path) -> None:
        self.folder = folder
        self.job, self.shape, self.device = job, SHAPES[job.shape](), torch.device(job.device)
        self.dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        self.recomputes = job.shape in RECOMPUTED
        self.forget, self.retain, self.other_retain = (
            replace(random_batch(self.shape, self.device, self.dtype, seed), input_hashes=(f"{seed}/0", f"{seed}/1"))
            for seed in range(3)
        )

    def model(self) -> Any:
        """A model in training mode."""
        torch.manual_seed(0)
        with self.device:
            model: Any = AutoModelForImageTextToText.from_config(self.shape.config, dtype=self.dtype)
        if self.recomputes:
            model.activation_checkpointing_enable({"use_reentrant": False})
        return model.train()

    def optimizer(self, model: Any) -> torch.optim.Optimizer:
        """AdamW over what trains."""
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        return torch.optim.AdamW(trained, lr=1e-6, fused=True)


def published(given: Context) -> Step:
    """The published step; for Mixed-SFT that of the Trainer."""
    case, shape = given.job.case, given.shape
    policy = given.model()
    frozen = copy.deepcopy(policy).eval().requires_grad_(False) if case != "mixed_sft" else None
    if given.job.lora:
        policy = add_lora(policy, shape.lora)
        if given.recomputes:
            policy.enable_input_require_grads()
    elif case.startswith("rmu"):
        steered = range(max(0, shape.rmu_layer - 2), shape.rmu_layer + 1)
        choose_trainable(policy, components=["language"], layers=steered, modules=["mlp.down_proj"])
    else:
        choose_trainable(policy, components=PROJECTOR_TOO)
    optimizer = given.optimizer(policy)
    target = STEERING * F.normalize(torch.rand(1, 1, shape.config.text_config.hidden_size), dim=-1)
    target = target.to(given.device, given.dtype)

    def output(model: Any, batch: Batch, **settings: Any) -> Any:
        return model(**batch.inputs, labels=batch.labels, use_cache=False, **settings)

    def cross_entropy(batch: Batch) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            reference = output(frozen, batch).loss
        return output(policy, batch).loss, reference

    def hidden(model: Any, batch: Batch) -> Tensor:
        states: Tensor = output(model, batch, output_hidden_states=True).hidden_states[shape.rmu_layer + 1]
        return states

    def npo() -> Tensor:
        (forget, before), (retain, retain_before) = cross_entropy(given.forget), cross_entropy(given.retain)
        loss = -(2 / BETA) * F.logsigmoid(BETA * (forget - before))
        loss = loss + (2 / BETA) * F.logsigmoid(BETA * (retain - retain_before))
        return loss + output(policy, given.other_retain).loss

    def rmu() -> Tensor:
        steered = hidden(policy, given.forget)
        with torch.no_grad():
            reference = hidden(frozen, given.retain)
        loss = F.mse_loss(steered, target.expand_as(steered)) + F.mse_loss(hidden(policy, given.retain), reference)
        return loss + output(policy, given.other_retain).loss if case == "rmu" else loss

    if case == "mixed_sft":
        backward = trainer_step(policy, joined(given.forget, given.retain, 0), given)
    else:
        backward = with_backward(npo if case == "npo" else rmu)
    return with_update(backward, optimizer)


def trainer_step(model: Any, batch: Batch, given: Context) -> Step:
    """Forward and backward pass of Hugging Face's Trainer."""
    folder, on_cpu = str(given.folder), given.device.type == "cpu"
    trainer = Trainer(model, TrainingArguments(folder, report_to="none", use_cpu=on_cpu, disable_tqdm=True))
    trainer.current_gradient_accumulation_steps = 1  # as its train() sets it
    return lambda: trainer.training_step(model, {**batch.inputs, "labels": batch.labels})


def mirage(given: Context) -> Step:
    """This project's step, its reference and (unless the side says otherwise) its cache filled."""
    case, shape = given.job.case, given.shape
    settings: dict[str, Any] = {
        "gradient_checkpointing": given.recomputes,
        "lora": shape.lora if given.job.lora else None,
    }
    method: AlignmentModule
    if case.startswith("rmu"):
        layers = list(range(shape.rmu_layer + 1)) if given.job.lora else None  # as in configs/llava15_7b
        weight = float(case == "rmu")
        method = RMU("", layer=shape.rmu_layer, train_layers=layers, fine_tuning_weight=weight, **settings)
    else:
        method = NPO("", **settings) if case == "npo" else MixedSFT("", **settings)
    with patch("mirage.methods.base.load_model", lambda *_, **__: given.model()):
        method.configure_model()
    method.to(given.device)
    method.__dict__["processor"] = SimpleNamespace(tokenizer=SimpleNamespace(pad_token_id=0))
    if isinstance(method, NPO):
        method.reference = dict.fromkeys(given.forget.example_ids, -100.0)
    if isinstance(method, RMU) and given.job.side == "mirage":
        method.frozen.keep(TensorStore(given.folder / "cache", 2**40), ["unsafe", "retain"])
    pair = Pair(given.forget, given.retain)
    loss = lambda: losses.objective(*method.loss_terms(pair), len(given.forget))
    return with_update(with_backward(loss), given.optimizer(method))


def with_backward(loss: Step) -> Step:
    """A forward and a backward pass."""

    def step() -> Tensor:
        value = loss()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    return step


def with_update(backward: Step, optimizer: torch.optim.Optimizer) -> Step:
    """A whole step: forward, backward, clipping, AdamW."""
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def step() -> Tensor:
        loss = backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def serve(job: Job, pipe: Any) -> None:
    """What the process of one side does."""
    with tempfile.TemporaryDirectory() as folder:
        answer(Context(job, Path(folder)), pipe)


def answer(given: Context, pipe: Any) -> None:
    """Builds one side, and answers each word of the pipe: `step` with seconds, `end` with operations in F, and GiB."""
    before = 0.0 if given.device.type == "cuda" else peak_gib(given.device)
    step = (published if given.job.side == "published" else mirage)(given)
    step()  # fills the cache and the optimizer's state
    pipe.send("ready")
    while pipe.recv() == "step":
        started = time.perf_counter()
        float(step())  # waits for the device
        pipe.send(time.perf_counter() - started)
    peak = peak_gib(given.device) - before
    with FlopCounterMode(display=False) as counter:
        step()
    with FlopCounterMode(display=False) as whole, torch.no_grad():
        given.model()(**given.forget.inputs, use_cache=False)
    pipe.send((counter.get_total_flops() / whole.get_total_flops(), peak))


def measure(case: str, lora: bool, shape: str, device: str, rounds: int) -> None:
    """Prints the case: one line for the published step, one for each of this project's."""
    sides = ["published", "mirage", *(["mirage, no cache"] if case.startswith("rmu") else [])]
    context, pipes, children = get_context("forkserver"), {}, []
    context.set_forkserver_preload(["mirage.methods.rmu", "mirage.methods.npo", "transformers.trainer"])
    for side in sides:
        pipes[side], theirs = context.Pipe()
        children.append(context.Process(target=serve, args=(Job(side, case, lora, shape, device), theirs)))
        children[-1].start()
        theirs.close()  # so that the end of a process is seen
        pipes[side].recv()
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(rounds):
        for side, pipe in pipes.items():
            pipe.send("step")
            seconds[side].append(pipe.recv())
    counted = {}
    for side, pipe in pipes.items():
        pipe.send("end")
        counted[side] = pipe.recv()
    for child in children:
        child.join()
    print(f"\n{CASES[case]}, {'LoRA' if lora else 'full'}")
    for side in sides:
        operations, gib = counted[side]
        line = f"  {side:17} {statistics.median(seconds[side]):8.3f} s  {operations:5.2f} F  {gib:6.2f} GiB"
        if side != "published":
            ratios = [theirs / ours for theirs, ours in zip(seconds["published"], seconds[side], strict=True)]
            line += (
                f"   {statistics.median(ratios):.2f}x ({min(ratios):.2f} to {max(ratios):.2f}) as fast,"
                f" {gib / counted['published'][1]:.2f} of the memory"
            )
        print(line, flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures each case and prints it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--forms", nargs="+", choices=["full", "lora"], default=["full", "lora"])
    parser.add_argument("--rounds", type=int, default=5, help="steps of each side; the median counts")
    args = parser.parse_args(arguments)
    device = "cuda" if args.shape == "7b" else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no GPU here. Use --shape small.")
    where = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    if args.shape == "wide":  # the sides return what they free at once, which takes time: their peak is what is in use
        os.environ["MALLOC_MMAP_THRESHOLD_"] = str(2**18)
    print(f"{args.shape} shape on {where}; {args.rounds} rounds; median seconds of a step, operations, peak memory")
    for case in args.cases:
        for form in args.forms:
            try:
                measure(case, form == "lora", args.shape, device, args.rounds)
            except EOFError:
                print(f"\n{CASES[case]}, {form}: a side ended early, see above (a GPU holds all of them at once)")


if __name__ == "__main__":
    main()
