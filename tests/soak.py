"""Kills fits and validations of the mini setting at random, resumes them to their end, and compares what they leave.

`make soak N=200 MINUTES=60`, or `python tests/soak.py --kills 200`. Each run is struck one to four times: SIGKILL,
SIGTERM or SIGINT at a random moment of a random phase, on a random rank, or a disk that is full. What it leaves at its
end must be, bit for bit, what the same run leaves that nothing stopped: weights, optimizer, order of examples, records,
results, metrics. Prints a table of strikes by phase, and every difference; exit status 1 if there is one.

It touches nothing but its own processes and the folder that it works in.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import re
import resource
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "COLUMNS": "80"}

import torch
from children import phases

import mirage.training  # noqa: F401  once for all children, which are forked
from mirage.checkpoint.io import CheckpointError, read_checkpoint, resolve_checkpoint
from mirage.cli import with_shipped_configs

FULL = "full disk"
STRIKES = ("SIGKILL", "SIGTERM", "SIGINT", FULL)
STATUS = {"SIGKILL": {-9}, "SIGTERM": {143, -15}, "SIGINT": {130}, FULL: {1}}
PATIENCE = {"SIGKILL": 60.0, "SIGTERM": 10.0, "SIGINT": 10.0, FULL: 60.0}  # seconds until every rank has ended
HANG = 180.0  # seconds that one attempt may take in all
SAVES = "mirage.checkpoint.callback.AtomicCheckpoint"
UNEQUAL = {"seconds", "checkpoint"}  # of results.json: time, and a path


@dataclass(frozen=True)
class Variant:
    """One kind of run."""

    command: str
    config: str
    lora: bool
    ranks: int

    def __str__(self) -> str:
        return f"{self.command} {self.config}{' lora' if self.lora else ''}, {self.ranks} rank{'s' * (self.ranks > 1)}"

    @property
    def fit(self) -> Variant:
        """The fit whose checkpoint is validated."""
        return replace(self, command="fit")

    def arguments(self, folder: Path) -> list[str]:
        """A fit of four steps in two epochs, or the validation of its last checkpoint."""
        attacks = [
            {"class_path": "OneWordAttack", "init_args": {
                "eval_set": name, "attack": {"class_path": "Rewrite", "init_args": {"word": word, "shots": 1}},
                "judge": {"class_path": "Exact"}, "max_new_tokens": 5, "batch_size": 4}}
            for name, word in (("unsafe", "what's"), ("benign", "share"))
        ]  # fmt: skip
        recorded = {"class_path": "children.phases.Phases", "init_args": {"order": str(folder.parent / "order")}}
        settings = {
            "trainer.callbacks": [
                recorded, *attacks, {"class_path": SAVES, "init_args": {"every_n_steps": 1}}
            ],
            "trainer.default_root_dir": str(folder), "trainer.max_epochs": 2, "trainer.check_val_every_n_epoch": 1,
            "trainer.log_every_n_steps": 1, "trainer.enable_progress_bar": False, "trainer.accelerator": "cpu",
            "trainer.accumulate_grad_batches": 2, "data.source.init_args.num_unsafe": 8,
            "data.source.init_args.num_safe": 8, "data.source.init_args.num_mix": 0, "data.source.init_args.num_eval": 6,
            "data.batch_size": 2 // self.ranks, "data.gamma": 1, "data.num_workers": 0,
        }  # fmt: skip
        if self.lora:
            settings["model.init_args.lora"] = {"r": 4, "lora_dropout": 0.1}
        if self.ranks > 1:
            settings |= {"trainer.devices": self.ranks, "trainer.strategy": "ddp"}
        options = [
            f"--{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in settings.items()
        ]
        return with_shipped_configs([self.command, "--config", f"{self.config}.yaml", *options])


FITS = [Variant("fit", config, lora, ranks) for ranks in (1, 2) for config, lora in (("rmu", False), ("npo", True))]
VARIANTS = [*FITS, *(Variant("validate", fit.config, fit.lora, fit.ranks) for fit in (FITS[0], FITS[3]))]


class Strike(NamedTuple):
    """What shall happen to an attempt: `signal` in the `visit`-th time that `rank` is in `phase`, `after` seconds."""

    signal: str = ""
    rank: int = 0
    phase: str = ""
    visit: int = 0
    after: float = 0.0
    all_ranks: bool = False


@dataclass
class Ended:
    """How an attempt ended."""

    codes: list[int]
    phase: str  # in which it was struck; empty if it was not
    visits: Counter[str]  # of the struck rank
    seconds: dict[str, float] = field(default_factory=dict)  # in each phase together
    waited: float = 0.0  # from the strike to the end of the last rank
    fault: str = ""


def attempt(arguments: list[str], ranks: int, strike: Strike, log: Path) -> Ended:
    """One run of the command, struck or not, with every process of it gone at the end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pids: list[int] = []
    pipes: list[int] = []
    for rank in range(ranks):
        ours, theirs = os.pipe()
        if (pid := os.fork()) == 0:
            phases.run(arguments, theirs, log, rank, ranks, port)
        os.close(theirs)
        pids.append(pid)
        pipes.append(ours)
    ended, codes, unread = Ended([], "", Counter()), dict[int, int](), set(pipes)
    current, began, struck, patience = "", time.monotonic(), 0.0, HANG
    entered = began
    while len(codes) < ranks:
        due = not struck and strike.visit > 0 and (current, ended.visits[current]) == (strike.phase, strike.visit)
        if due:
            time.sleep(strike.after)
        for pipe in select.select(unread, [], [], 0 if due else 0.05)[0]:
            phases_seen = os.read(pipe, 65536).decode().splitlines()
            if not phases_seen:
                unread.remove(pipe)
            for phase in phases_seen if pipe == pipes[strike.rank] else ():
                moment = time.monotonic()
                ended.seconds[current] = ended.seconds.get(current, 0.0) + moment - entered
                current, entered = phase, moment
                ended.visits[phase] += 1
        if due:
            ended.phase, began, patience = current, time.monotonic(), PATIENCE[strike.signal]
            struck = began
            for rank, pid in enumerate(pids):
                if (strike.all_ranks or rank == strike.rank) and rank not in codes:
                    os.kill(pid, getattr(signal, strike.signal))
        for rank, pid in enumerate(pids):
            if rank not in codes and (status := os.waitpid(pid, os.WNOHANG))[0]:
                codes[rank] = os.waitstatus_to_exitcode(status[1])
        if time.monotonic() > began + patience and len(codes) < ranks:
            ended.fault = f"no end {patience:.0f} s after the {'strike' if struck else 'start'}"
            patience = math.inf
            for rank in set(range(ranks)) - codes.keys():
                os.kill(pids[rank], signal.SIGKILL)
    for pipe in pipes:
        os.close(pipe)
    ended.codes, ended.waited = [codes[rank] for rank in range(ranks)], time.monotonic() - struck if struck else 0.0
    if (strike.signal == "SIGKILL" and struck) or (strike.signal == FULL and any(ended.codes)):
        ended.phase = current  # the last that it could tell
    return ended


class Disk:
    """A folder that can be full: a small file system of its own where one can be mounted, else a limit on each file."""

    def __init__(self, folder: Path, size: int) -> None:
        self.folder, self.mounted = folder, False
        folder.mkdir(parents=True)
        self.mounted = self._mount(f"size={size}")
        self.limit = size // 4  # the largest file of a run is a checkpoint, of which it keeps several

    def _mount(self, options: str) -> bool:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(self.folder)]
        return shutil.which("mount") is not None and subprocess.run(command, capture_output=True).returncode == 0

    def full(self) -> None:
        """Nothing more to do where a file system is mounted; else files are limited, of children as well."""
        if not self.mounted:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.limit, resource.RLIM_INFINITY))

    def freed(self) -> None:
        """There is room again."""
        if self.mounted:
            self._mount("remount,size=1g")
        else:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    def close(self) -> None:
        """The folder is gone."""
        if self.mounted:
            subprocess.run(["umount", str(self.folder)], check=True)
        shutil.rmtree(self.folder, ignore_errors=True)


# What a run leaves


def left_by(folder: Path, variant: Variant) -> dict[str, Any]:
    """Everything that must not depend on what stopped a run, by name, each value comparable."""
    run, left = folder / "run", {}
    measured = run / "validate" if variant.command == "validate" else run
    for file in sorted((measured / "records").glob("*.jsonl")):
        left[f"records/{file.name}"] = file.read_bytes()
    results = json.loads((measured / "results.json").read_bytes())
    left |= _flat("results", {name: value for name, value in results.items() if name not in UNEQUAL})
    left["answers kept"] = [file.name for file in (measured / "records").glob(".*")]
    if variant.command == "validate":
        return left
    left["metrics.csv"] = (run / "metrics.csv").read_bytes()
    checkpoint = resolve_checkpoint("last", run)
    left |= {"checkpoint": checkpoint.name, **_flat("checkpoint", read_checkpoint(checkpoint))}
    for rank in range(variant.ranks):
        order: dict[str, Any] = {}
        for line in (folder / f"order-{rank}.jsonl").read_text().splitlines():
            epoch, batch, *had = json.loads(line)
            # a batch that was trained on again had the same examples, and the same loss
            order[f"order, rank {rank}, epoch {epoch}, batch {batch}"] = had
            if order.setdefault(f"order, rank {rank}, epoch {epoch}, batch {batch}", had) != had:
                order[f"order, rank {rank}"] = "a batch was repeated otherwise"
        left |= order
    return left


def _flat(name: str, value: Any) -> dict[str, Any]:
    """The leaves of nested lists and objects by their path; tensors as their bytes, nan as equal to itself."""
    if isinstance(value, torch.Tensor):
        return {name: (value.dtype, value.shape, value.contiguous().view(-1).view(torch.uint8).numpy().tobytes())}
    if isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {name: len(value)} | {k: v for key, each in items for k, v in _flat(f"{name}.{key}", each).items()}
    return {name: repr(value)}


def broken_in(run: Path) -> str:
    """What is not as it must be at any instant: checkpoints whole, `last` one of them, results whole or absent."""
    try:
        for file in run.glob("checkpoints/*.ckpt"):
            read_checkpoint(file)
        if (run / "checkpoints" / "last").exists():
            resolve_checkpoint("last", run)
        for file in run.rglob("results.json"):
            json.loads(file.read_bytes())
    except (CheckpointError, OSError, ValueError) as error:
        return str(error)
    return ""


# The soak


class Soak:
    """Strikes until there are enough of them, and what came of it."""

    def __init__(self, work: Path, seed: int, signals: Sequence[str], variants: Sequence[Variant]) -> None:
        self.work, self.signals, self.variants = work, signals, variants
        self.random = random.Random(seed)
        self.struck: Counter[tuple[str, str]] = Counter()  # (phase, strike)
        self.slowest: dict[str, float] = dict.fromkeys(STRIKES, 0.0)
        self.failures: list[str] = []
        self.straight: dict[Variant, tuple[Ended, dict[str, Any]]] = {}

    def reference(self, variant: Variant) -> None:
        """Runs it to its end, unstruck, and keeps what it left."""
        folder = self.work / "straight" / str(variant)
        folder.mkdir(parents=True)
        if variant.command == "validate":
            shutil.copytree(self.work / "straight" / str(variant.fit) / "run", folder / "run")
        ended = attempt(self.command(variant, folder), variant.ranks, Strike(), folder / "log")
        if any(ended.codes):
            raise SystemExit(f"{variant} fails when nothing strikes it: see {folder / 'log'}")
        self.straight[variant] = ended, left_by(folder, variant)

    def command(self, variant: Variant, folder: Path) -> list[str]:
        """The command as a job that is requeued gives it: every time the same."""
        resume = "last" if variant.command == "validate" else "auto"
        return [*variant.arguments(folder / "run"), f"--ckpt_path={resume}"]

    def aimed(self, variant: Variant, begun: bool) -> Strike:
        """A random strike, the likelier in a phase the fewer it had."""
        ended = self.straight[variant][0]
        name = self.random.choice([each for each in self.signals if each != FULL])
        known = [phase for phase in phases.PHASES if ended.visits[phase]]
        if begun and len(known) > 1:
            known = [phase for phase in known if phase != "starting evaluation"]  # only a new run has it
        hits = {phase: sum(self.struck[phase, each] for each in STRIKES) for phase in known}
        phase = self.random.choices(known, [1 / (1 + hits[phase]) ** 2 for phase in known])[0]
        visit = self.random.randint(1, math.ceil(ended.visits[phase] / (2 if begun else 1)))
        after = self.random.uniform(0, 0.8 * ended.seconds[phase] / ended.visits[phase])
        all_ranks = name == "SIGINT" or self.random.random() < 0.5  # Ctrl-C reaches all of a terminal
        return Strike(name, self.random.randrange(variant.ranks), phase, visit, after, all_ranks)

    def run(self, number: int) -> None:
        """One run, struck one to four times, resumed to its end and compared."""
        variant, folder = self.random.choice(self.variants), self.work / f"{number:04d}"
        straight = self.work / "straight"
        disk = None
        if FULL in self.signals and variant.command == "fit" and self.random.random() < 0.25:
            size = sum(file.stat().st_size for file in (straight / str(variant) / "run").rglob("*") if file.is_file())
            disk = Disk(folder / "run", int(size * self.random.uniform(0.05, 0.9)))
        folder.mkdir(parents=True, exist_ok=True)
        if variant.command == "validate":
            shutil.copytree(straight / str(variant.fit) / "run", folder / "run")
        history = [f"run {number} ({variant})"]
        try:
            for left in range(self.random.randint(1, 4), -1, -1):
                begun = (folder / "run" / "checkpoints" / "last").exists()
                full = disk is not None and len(history) == 1
                strike = Strike(FULL) if full else self.aimed(variant, begun) if left else Strike()
                ended = attempt(self.command(variant, folder), variant.ranks, strike, folder / f"log{len(history)}")
                if disk is not None:
                    disk.freed()
                if not any(ended.codes) and not ended.fault:  # to its end, perhaps before the strike
                    self.compare(variant, folder, history)
                    break
                history.append(f"{strike.signal or 'nothing'} in {ended.phase or 'no phase'} -> {ended.codes}")
                self.judge(strike, ended, folder, history)
        finally:
            if disk is not None:
                disk.close()

    def judge(self, strike: Strike, ended: Ended, folder: Path, history: list[str]) -> None:
        """Whether an attempt ended as it must, and left what it must."""
        log = (folder / f"log{len(history) - 1}").read_text(errors="replace")
        if ended.phase:
            self.struck[ended.phase, strike.signal] += 1
            self.slowest[strike.signal] = max(self.slowest[strike.signal], ended.waited)
        expected = STATUS.get(strike.signal, set()) | {0}  # 0: a rank may have come to its end just before
        every_rank = strike.all_ranks or strike.signal == FULL or len(ended.codes) == 1
        hit = ended.codes if every_rank else [ended.codes[strike.rank]]
        if ended.fault:
            self.fail(history, ended.fault, log)
        elif not expected.issuperset(hit):
            self.fail(history, f"exit status {ended.codes}, not {sorted(expected)}", log)
        elif every_rank and strike.signal != "SIGKILL" and "Traceback" in log:  # others lose their connection
            self.fail(history, "a traceback", log)
        if broken := broken_in(folder / "run"):
            self.fail(history, f"broken: {broken}")

    def compare(self, variant: Variant, folder: Path, history: list[str]) -> None:
        """Whether a run left what the one left that nothing struck."""
        straight, left = self.straight[variant][1], left_by(folder, variant)
        if other := [name for name in {**straight, **left} if straight.get(name) != left.get(name)]:
            self.fail(history, f"{len(other)} differences: {', '.join(other[:8])}")
        else:
            shutil.rmtree(folder, ignore_errors=True)

    def fail(self, history: Sequence[str], what: str, log: str = "") -> None:
        """Lists a failure, and goes on."""
        self.failures.append(f"{'; '.join(history)}: {what}")
        print(f"FAILED {self.failures[-1]}\n{log[-2000:]}", flush=True)

    def table(self) -> str:
        """Strikes by phase, in Markdown."""
        shown = [each for each in STRIKES if each in self.signals]
        lines = [f"| phase | {' | '.join(shown)} | all |", "|---|" + "---:|" * (len(shown) + 1)]
        for phase in (*phases.PHASES, "all"):
            counts = [
                sum(n for (at, by), n in self.struck.items() if phase in (at, "all") and by == each) for each in shown
            ]
            lines.append(f"| {phase} | {' | '.join(map(str, counts))} | {sum(counts)} |")
        return "\n".join(lines)


def main() -> int:
    """Strikes as often as asked, or until time is up."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="folder for the runs; those that failed stay in it")
    parser.add_argument("--signals", nargs="+", choices=STRIKES, default=STRIKES)
    parser.add_argument("--only", default="", help="a pattern of the names of the runs, such as 'fit rmu'")
    parser.add_argument("--least", type=int, default=0, help="strikes that each phase must have had")
    given = parser.parse_args()
    work = given.work or Path(tempfile.mkdtemp(prefix="soak-"))
    chosen = [variant for variant in VARIANTS if re.search(given.only, str(variant))]
    soak, began = Soak(work.absolute(), given.seed, given.signals, chosen), time.monotonic()
    for variant in soak.variants:
        soak.reference(variant)
    number = 0
    while soak.struck.total() < given.kills and time.monotonic() < began + 60 * given.minutes:
        number += 1
        soak.run(number)
        print(f"{soak.struck.total()} strikes in {number} runs, {len(soak.failures)} failures", flush=True)
    minutes = f"{(time.monotonic() - began) / 60:.0f} minutes, seed {given.seed}"
    waits = ", ".join(f"{name} {soak.slowest[name]:.1f} s" for name in given.signals)
    print(f"\n{soak.table()}\n\n{soak.struck.total()} strikes in {number} runs, {minutes}.")
    print(f"Longest wait until every rank had ended: {waits}.")
    print(f"{len(soak.failures)} failures." + "".join(f"\n  {failure}" for failure in soak.failures))
    rare = [phase for phase in phases.PHASES if sum(soak.struck[phase, each] for each in STRIKES) < given.least]
    if rare:
        print(f"Struck fewer than {given.least} times: {', '.join(rare)}.")
    return int(bool(soak.failures or rare))


if __name__ == "__main__":
    sys.exit(main())
