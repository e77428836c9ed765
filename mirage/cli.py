"""The command line. Light by design: what a command needs is imported when that command runs."""

from __future__ import annotations

import errno
import gc
import importlib
import os
import re
import select
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from textwrap import indent

from mirage.text import printable

# command -> what it does: `fit` and its siblings are LightningCLI's, the others modules of `mirage.commands`
TRAINING = {
    "fit": "train a method, and attack the result at the end of every epoch",
    "validate": "evaluate a checkpoint, or without one the starting model",
    "test": "the same, under Lightning's other name",
}
COMMANDS = {
    "prepare": "harmful answers to unlearn, and a retain set, from VLGuard or SPA-VL",
    "filter": "list what a judge calls harmful in instruction data, for UnsafeFilter",
    "export": "a finished run as a Hugging Face folder (--to DIR), or as logs for inspect view (--to inspect DIR)",
    "audit": "how far words and form of a training set's questions give its labels away",
    "judge": "score a finished run again with another judge, without generating",
    "stress": "a finished run under other words, forms, weights and carriers of harm",
    "calibrate": "how far a judge agrees with another, or with labels",
    "report": "tables, curves and one HTML page from finished runs",
    "paper": "the paper's table and figures by one command, or what it takes (--dry-run)",
    "mini": "build the embedded checkpoint: mirage mini build --out DIR",
}

DISK_FULL = {errno.ENOSPC, errno.EDQUOT}

USAGE = """usage: mirage COMMAND [options]

mirage aligns vision-language models for safety, then attacks them.

{commands}

first steps:
  mirage fit --config rmu.yaml
  mirage fit --config rmu.yaml --print_config

shipped configs: {configs}

mirage COMMAND --help lists the options of a command."""

TRAINING_USAGE = """usage: mirage {command} --config FILE [--ckpt_path last|best|auto|FILE] [--SECTION.KEY VALUE ...]

mirage {command}: {text}.

  --config FILE           a whole config; several may be given, later ones win
  --ckpt_path last        continue from (fit) or evaluate (validate) a checkpoint of this run folder
  --ckpt_path auto        fit: continue from the last checkpoint, or start without one (for jobs that are requeued)
  --seed_everything 0     seed of weights and data order
  --model CLASS           {methods}
  --model.init_args.KEY   the method's settings; lora.r, lora.lora_alpha, ... for adapters
  --data.source CLASS     {sources}
  --data.KEY              gamma, batch_size, num_workers, max_length, pad_to_square, retain, ...
  --trainer.KEY           Lightning's Trainer: devices, strategy, precision, max_epochs, ...
  --trainer.callbacks     what is measured: OneWordAttack, Accuracy, and Utility with one of
                          {benchmarks} (llava15_7b/utility.yaml)
  --print_config          the config with all defaults and overrides filled in
  --help-all              every option of mirage {command} (some seconds)
  --model.help RMU        the settings of one class; --data.source.help Mini likewise

a whole config (rmu.yaml):

{example}"""


def configs_folder() -> Path:
    """Where the shipped configs are: inside the installed package, or beside it in a checkout."""
    inside = Path(__file__).parent / "configs"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "configs"


def with_shipped_configs(arguments: Sequence[str]) -> list[str]:
    """The arguments, with the names of configs that are not in the current folder replaced by the shipped files."""
    replaced: list[str] = []
    for before, argument in zip(["", *arguments], arguments, strict=False):
        option, equals, name = argument.rpartition("=")
        shipped = configs_folder() / name
        named = option in ("--config", "-c") or before in ("--config", "-c")
        found = named and not Path(name).exists() and shipped.is_file()
        replaced.append(f"{option}{equals}{shipped}" if found else argument)
    return replaced


def usage() -> str:
    """What `mirage --help` prints."""
    configs = sorted(str(path.relative_to(configs_folder())) for path in configs_folder().rglob("*.yaml"))
    commands = [f"  {name:<10} {text}" for name, text in (TRAINING | COMMANDS).items()]
    return USAGE.format(commands="\n".join(commands), configs=", ".join(configs))


def training_usage(command: str) -> str:
    """What `mirage fit --help` prints: the few options that matter, at once. `--help-all` lists every one."""
    example = (configs_folder() / "rmu.yaml").read_text(encoding="utf-8")
    return TRAINING_USAGE.format(
        command=command, text=TRAINING[command], methods=subclasses("methods", "AlignmentModule"),
        sources=subclasses("data/sources", "Source", "FileSource", "SafetySet"), example=indent(example, "    "),
        benchmarks=subclasses("evaluation/benchmarks", "Benchmark", "SoftAccuracy"),
    )  # fmt: skip


def subclasses(folder: str, *bases: str) -> str:
    """Names of the classes below mirage/`folder` that extend one of `bases`, read without importing them (and torch)."""
    texts = [file.read_text(encoding="utf-8") for file in (Path(__file__).parent / folder).rglob("*.py")]
    names = {name for text in texts for name in re.findall(rf"^class (\w+)\((?:{'|'.join(bases)})\)", text, re.M)}
    return ", ".join(sorted(names - set(bases)))


def sentence_of(error: ValueError | OSError) -> str | None:
    """What is wrong with the input, or None if the error is of no path: a connection, a process, mirage itself."""
    if isinstance(error, ValueError) or (isinstance(error, FileNotFoundError) and error.errno is None):
        return printable(str(error))
    path = error.filename2 or error.filename
    if error.errno in DISK_FULL:
        return f"{path or 'A file'} cannot be written ({error.strerror}). Free some space, and give the same command again."
    remedy = "Correct the path or its rights, or choose another."
    return None if path is None else printable(f"{path} cannot be read or written ({error.strerror}). {remedy}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit status: 0, or 1 after one sentence on standard error.

    130 after Ctrl-C, and 141 (as of a process that SIGPIPE ended) if what reads the output has gone: `mirage ... | head`.
    """
    try:
        try:
            return command_status(arguments)
        finally:
            print(end="", flush=True)  # here, where an error can still be caught
    except KeyboardInterrupt:
        print("mirage: stopped.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        if not reader_is_gone():
            raise  # of another pipe
        return 141
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # rich makes it a plain exit
            return 141
        raise


def reader_is_gone() -> bool:
    """Whether standard output or standard error is a pipe that nobody reads; what is left for it is thrown away then."""
    gone = False
    for number in (1, 2):
        (pipe := select.poll()).register(number, 0)
        if any(event & select.POLLERR for _, event in pipe.poll(0)):
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)
            gone = True
    return gone


def command_status(arguments: Sequence[str] | None) -> int:
    """As `main`, which says what an interrupted command comes to."""
    command, *rest = (sys.argv[1:] if arguments is None else arguments) or [""]
    if command in ("", "-h", "--help", "help"):
        print(usage())
        return 0 if command else 2
    if command == "--version":
        from mirage import __version__

        print(f"mirage {__version__}")
        return 0
    if command not in TRAINING | COMMANDS:
        near = get_close_matches(command, [*TRAINING, *COMMANDS], 1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        print(f"mirage: there is no command {command!r}.{hint} mirage --help lists them.", file=sys.stderr)
        return 2
    if command in TRAINING and {"-h", "--help"} & {*rest}:
        print(training_usage(command))
        return 0
    try:
        if command in TRAINING:
            gc.disable()  # what is imported stays: looking for garbage in it takes a fifth of the time, ...
            from mirage.training import run

            gc.enable()
            gc.freeze()  # ... and would again at every collection of the run
            rest = ["--help" if argument == "--help-all" else argument for argument in rest]
            return run([command, *with_shipped_configs(rest)])
        importlib.import_module(f"mirage.commands.{command}").run(rest)
    except (ValueError, OSError) as error:  # errors of the input: one sentence, no traceback
        sentence = sentence_of(error)
        if os.environ.get("MIRAGE_TRACEBACK") or sentence is None:
            raise
        print(f"mirage: {sentence}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
