"""The command line. Light by design: what a command needs is imported when that command runs."""

from __future__ import annotations

import errno
import importlib
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

# command -> (module, function, what it does); `fit` and its siblings are LightningCLI's
TRAINING = {
    "fit": "train a method, and attack the result at the end of every epoch",
    "validate": "evaluate a checkpoint, or without one the starting model",
    "test": "the same, under Lightning's other name",
}
COMMANDS = {
    "prepare": ("mirage.commands.prepare", "harmful answers to unlearn, and a retain set, from VLGuard or SPA-VL"),
    "filter": ("mirage.commands.filter", "list what a judge calls harmful in instruction data, for UnsafeFilter"),
    "export": ("mirage.commands.export", "a Hugging Face folder from a finished run: mirage export RUN --to DIR"),
    "audit": ("mirage.commands.audit", "how far words and form of a training set's questions give its labels away"),
    "judge": ("mirage.commands.judge", "score a finished run again with another judge, without generating"),
    "calibrate": ("mirage.commands.calibrate", "how far a judge agrees with another, or with labels"),
    "report": ("mirage.commands.report", "tables, curves and one HTML page from finished runs"),
    "mini": ("mirage.commands.mini", "build the embedded checkpoint: mirage mini build --out DIR"),
}

# What can be wrong with a path that was given, in better words than the system's where it has none.
_FILE, _FOLDER = "there is a file where a folder is needed", "there is a folder where a file is needed"
BAD_PATH = {
    errno.EEXIST: _FILE, errno.ENOTDIR: _FILE, errno.EISDIR: _FOLDER, errno.ENOENT: "", errno.EACCES: "",
    errno.EPERM: "", errno.EROFS: "", errno.ELOOP: "", errno.ENAMETOOLONG: "", errno.ENOTEMPTY: "",
}  # fmt: skip
DISK_FULL = {errno.ENOSPC, errno.EDQUOT}


def configs_folder() -> Path:
    """Where the shipped configs are: inside the installed package, or beside it in a checkout."""
    inside = Path(__file__).parent / "configs"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "configs"


def with_shipped_configs(arguments: Sequence[str]) -> list[str]:
    """The arguments, with the names of configs that are not in the current folder replaced by the shipped files."""
    replaced, before = [], ""
    for argument in arguments:
        option, equals, value = argument.partition("=")
        if option in ("--config", "-c") and equals:
            replaced.append(f"{option}={_config(value)}")
        else:
            replaced.append(_config(argument) if before in ("--config", "-c") else argument)
        before = argument
    return replaced


def _config(name: str) -> str:
    shipped = configs_folder() / name
    return str(shipped) if not Path(name).exists() and shipped.is_file() else name


def usage() -> str:
    """What `mirage --help` prints."""
    lines = ["usage: mirage COMMAND [options]", ""]
    lines += ["mirage aligns vision-language models for safety, then attacks them.", ""]
    texts = {**TRAINING, **{name: text for name, (_, text) in COMMANDS.items()}}
    lines += [f"  {name:<10} {text}" for name, text in texts.items()]
    configs = sorted(str(path.relative_to(configs_folder())) for path in configs_folder().rglob("*.yaml"))
    lines += ["", "first steps:", "  mirage fit --config rmu.yaml", "  mirage fit --config rmu.yaml --print_config", ""]
    lines += ["shipped configs: " + ", ".join(configs), "", "mirage COMMAND --help lists the options of a command."]
    return "\n".join(lines)


def subclasses(folder: str, *bases: str) -> str:
    """Names of the classes below mirage/`folder` that extend one of `bases`, read without importing them (and torch)."""
    texts = [file.read_text(encoding="utf-8") for file in (Path(__file__).parent / folder).rglob("*.py")]
    names = {name for text in texts for name in re.findall(rf"^class (\w+)\((?:{'|'.join(bases)})\)", text, re.M)}
    return ", ".join(sorted(names - set(bases)))


def training_usage(command: str) -> str:
    """What `mirage fit --help` prints: the few options that matter, at once. `--help-all` lists every one."""
    example = (configs_folder() / "rmu.yaml").read_text(encoding="utf-8")
    benchmarks = subclasses("evaluation/benchmarks", "Benchmark", "SoftAccuracy")
    return "\n".join(
        [
            f"usage: mirage {command} --config FILE [--ckpt_path last|best|FILE] [--SECTION.KEY VALUE ...]",
            "",
            f"mirage {command}: {TRAINING[command]}.",
            "",
            "  --config FILE           a whole config; several may be given, later ones win",
            "  --ckpt_path last        continue from (fit) or evaluate (validate) a checkpoint of this run folder",
            "  --seed_everything 0     seed of weights and data order",
            "  --model CLASS           " + subclasses("methods", "AlignmentModule"),
            "  --model.init_args.KEY   the method's settings; lora.r, lora.lora_alpha, ... for adapters",
            "  --data.source CLASS     " + subclasses("data/sources", "Source", "FileSource"),
            "  --data.KEY              gamma, batch_size, num_workers, max_length, pad_to_square, retain, ...",
            "  --trainer.KEY           Lightning's Trainer: devices, strategy, precision, max_epochs, ...",
            "  --trainer.callbacks     what is measured: OneWordAttack, Accuracy, and Utility with one of",
            f"                          {benchmarks} (llava15_7b/utility.yaml)",
            "  --print_config          the config with all defaults and overrides filled in",
            f"  --help-all              every option of mirage {command} (some seconds)",
            "  --model.help RMU        the settings of one class; --data.source.help Mini likewise",
            "",
            "a whole config (rmu.yaml):",
            "",
            *(f"    {line}" for line in example.splitlines()),
        ]
    )


def _run(command: str, rest: Sequence[str]) -> int:
    if command in COMMANDS:
        importlib.import_module(COMMANDS[command][0]).run(rest)
        return 0
    from mirage.training import run

    rest = ["--help" if argument == "--help-all" else argument for argument in rest]
    return run([command, *with_shipped_configs(rest)])


def sentence_of(error: ValueError | OSError) -> str | None:
    """What is wrong with the input, or None if the error is not the input's: a connection, a process, mirage itself."""
    if isinstance(error, ValueError) or (isinstance(error, FileNotFoundError) and error.errno is None):
        return str(error)
    path = error.filename2 or error.filename
    if error.errno in DISK_FULL:
        return f"{path or 'A file'} cannot be written ({error.strerror}). Free some space, and give the same command again."
    if error.errno in BAD_PATH and path is not None:
        reason = BAD_PATH[error.errno] or error.strerror
        return f"{path} cannot be read or written ({reason}). Correct the path or its rights, or choose another."
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit status: 0, or 1 after one sentence on standard error."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if arguments else 2
    command, *rest = arguments
    if command == "--version":
        from mirage import __version__

        print(f"mirage {__version__}")
        return 0
    if command in TRAINING and any(argument in ("-h", "--help") for argument in rest):
        print(training_usage(command))
        return 0
    if command in TRAINING or command in COMMANDS:
        try:
            return _run(command, rest)
        except (ValueError, OSError) as error:  # errors of the input: one sentence, no traceback
            sentence = sentence_of(error)
            if os.environ.get("MIRAGE_TRACEBACK") or sentence is None:
                raise
            print(f"mirage: {sentence}", file=sys.stderr)
            return 1
    from difflib import get_close_matches

    near = get_close_matches(command, [*TRAINING, *COMMANDS], 1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    print(f"mirage: there is no command {command!r}.{hint} mirage --help lists them.", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
