"""Answers per second of mirage's own generation against one question at a time, in the same run.

    python benchmarks/evaluation_speed.py --model DIR --root VLGUARD [--n 16 --shots 3 --max-new-tokens 24]

Both answer the same plain questions and rewrites of VLGuard's test set with the same weights, greedily. "One at a time"
is the `generate` of transformers with its cache, batch 1, nothing shared. CPU seconds stand beside the clock's: they
depend less on what else the machine is doing. The two take turns, ours three times; its median counts.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

from mirage.data.sources.vlguard import VLGuard
from mirage.evaluation.attack import Rewrite
from mirage.evaluation.generate.huggingface import HuggingFaceEngine
from mirage.models.load import load_model
from mirage.models.processor import load_processor
from mirage.schema import EvalSample

Answers = list[list[str]]


class Timed(NamedTuple):
    """Answers, and the seconds that they took."""

    answers: Answers
    clock_s: float
    cpu_s: float


def timed(ask: Callable[[], Answers]) -> Timed:
    """What `ask` returns, with its time."""
    clock, cpu = time.perf_counter(), time.process_time()
    answers = ask()
    return Timed(answers, time.perf_counter() - clock, time.process_time() - cpu)


def one_at_a_time(
    model: Any, processor: Any, samples: Sequence[EvalSample], max_new_tokens: int, end_tokens: list[int]
) -> Answers:
    """The answers as a plain loop over transformers gives them."""
    model.eval()
    answers: Answers = []
    for sample in samples:
        answers.append([])
        for question in sample.questions:
            picture = [{"type": "image", "image": sample.image.open()}] if sample.image is not None else []
            message = {"role": "user", "content": [*picture, {"type": "text", "text": question}]}
            inputs = processor.apply_chat_template(
                [message], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
            ).to(model.device, model.dtype)
            output = model.generate(
                **inputs, max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=end_tokens,
                pad_token_id=processor.tokenizer.pad_token_id,
            )  # fmt: skip
            text = processor.tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            answers[-1].append(text.strip())
    return answers


def main() -> None:
    """Measures both and prints them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a Hugging Face folder")
    parser.add_argument("--root", type=Path, required=True, help="VLGuard's folder, with test.json")
    parser.add_argument("--n", type=int, default=16, help="how many questions (half unsafe, half benign)")
    parser.add_argument("--shots", type=int, default=3, help="rewrites of each question")
    parser.add_argument("--max-new-tokens", type=int, default=24)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--at-least", type=float, default=0.0, help="exit with 1 if the speed-up is below this")
    args = parser.parse_args()

    model = load_model(args.model, dtype=args.dtype).to(args.device)
    processor = load_processor(args.model)
    source, attack = VLGuard(args.root), Rewrite("what", args.shots)
    half = args.n // 2
    samples = [
        *attack.on(source.eval_samples("unsafe")[: args.n - half]),
        *attack.on(source.eval_samples("benign")[:half]),
    ]
    engine = HuggingFaceEngine(model, processor, max_new_tokens=args.max_new_tokens, batch_size=args.batch_size)
    end_tokens = engine.settings()["end_tokens"]
    engine.answers(samples[:1])
    one_at_a_time(model, processor, samples[:1], 2, end_tokens)

    runs: list[Timed] = []
    parts: list[Timed] = []
    third = -(-len(samples) // 3)
    for start in range(0, len(samples), third):  # in turns, so that a machine that slows down slows both
        runs.append(timed(lambda: engine.answers(samples)))
        part = samples[start : start + third]
        parts.append(
            timed(lambda part=part: one_at_a_time(model, processor, part, args.max_new_tokens, end_tokens))  # type: ignore[misc]
        )
    ours = sorted(runs, key=lambda run: run.clock_s)[len(runs) // 2]
    theirs = Timed(
        [own for part in parts for own in part.answers], sum(p.clock_s for p in parts), sum(p.cpu_s for p in parts)
    )
    pairs = [
        pair for own, other in zip(ours.answers, theirs.answers, strict=True) for pair in zip(own, other, strict=True)
    ]
    equal = sum(own == other for own, other in pairs)
    speedup = theirs.clock_s / ours.clock_s
    print(
        f"{args.model}, {args.dtype} on {args.device}, {torch.get_num_threads()} threads; {len(samples)} questions with "
        f"{args.shots} rewrites each, {len(pairs)} answers of at most {args.max_new_tokens} tokens"
    )
    for name, measured in (("one at a time", theirs), (f"mirage, batch {args.batch_size}", ours)):
        print(
            f"{name:>20}: {len(pairs) / measured.clock_s:7.2f} answers/s  {measured.clock_s:7.1f} s  "
            f"{measured.cpu_s:7.1f} CPU s"
        )
    print(f"{'speed-up':>20}: {speedup:7.2f} x  ({theirs.cpu_s / ours.cpu_s:.2f} x in CPU seconds)")
    print(f"{'agreement':>20}: {equal} of {len(pairs)} answers equal ({100 * equal / len(pairs):.2f} %)")
    if speedup < args.at_least:
        sys.exit(f"The speed-up is {speedup:.2f}, below {args.at_least}.")


if __name__ == "__main__":
    main()
