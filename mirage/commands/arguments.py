"""Parsers of commands: options and help from a function's signature and docstring, and errors in one sentence."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from inspect import signature
from typing import Any, ClassVar, NoReturn

from jsonargparse import ArgumentParser

# Imported so that arguments can name their classes without a path.
from mirage.data.sources.catalogue import SOURCES
from mirage.evaluation.catalogue import ATTACKS, BENCHMARKS, ENGINES, JUDGES
from mirage.text import printable

ByHand = Mapping[str, dict[str, Any]]
Choices = Mapping[str, tuple[type, ...]]
# The last part of an argument's name -> the classes that it takes.
CHOICES: Choices = {
    "data": SOURCES, "retain": SOURCES, "source": SOURCES, "judge": JUDGES, "against": JUDGES, "engine": ENGINES,
    "attack": ATTACKS, "benchmark": BENCHMARKS,
}  # fmt: skip
# What jsonargparse says around a problem: each type that was tried.
_AROUND = (
    "Does not validate against any of the Union subtypes", "Subtypes:", "Errors:", "Expected a path but",
    "Not a valid subclass", "Expected a <class 'list'>", "Expected a <class 'NoneType'>",
)  # fmt: skip
_TYPES = {
    "int": "a whole number", "float": "a number", "bool": "true or false", "str": "a text", "list": "a list",
    "dict": "a mapping", "NoneType": "null",
}  # fmt: skip


class Explaining:
    """A parser that refuses a mistyped key or class in one sentence, with the nearest name that exists."""

    choices: ClassVar[Choices] = CHOICES
    exit_on_error: bool

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """As the parser's; no option is completed from its beginning."""
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Prints what is wrong; exit status 2."""
        if not self.exit_on_error:  # the parser of one class: the whole command's parser knows for which argument
            super().error(message, ex)  # type: ignore[misc]
        subcommands = getattr(getattr(self, "_subcommands_action", None), "_name_parser_map", {})
        actions = [action for parser in (self, *subcommands.values()) for action in parser._actions]
        sentence = explained(message, self.choices, [action.dest for action in actions])
        print(f"mirage: {printable(sentence)}", file=sys.stderr)
        sys.exit(2)


class Parser(Explaining, ArgumentParser):
    """The parser of a command."""


def command_parser(
    function: Callable[..., None], command: str, by_hand: ByHand | None = None, skip: Iterable[str] = ()
) -> Parser:
    """A parser whose options are the parameters of a function, and whose help is its docstring.

    Args:
        function: What the command calls.
        command: Its name.
        by_hand: For parameters that are no plain option: what `add_argument` takes, by the argument's name there.
        skip: Parameters that are no options at all.
    """
    by_hand, text = by_hand or {}, function.__doc__ or ""
    documented = dict(re.findall(r"^ {8}(\w+): (.+(?:\n {12}.+)*)", text, re.MULTILINE))
    parser = Parser(prog=f"mirage {command}", description=text.partition("\n\n    Args:")[0])
    parser.add_argument("--config", action="config", help="A YAML file with these options.")
    for name, settings in by_hand.items():
        parser.add_argument(name, help=" ".join(documented[name.lstrip("-")].split()), **settings)
    parser.add_function_arguments(function, skip={*skip, *(name.lstrip("-") for name in by_hand)}, as_group=False)
    return parser


def instantiated(parser: Parser, arguments: Iterable[str]) -> Any:
    """The parsed arguments, with objects in place of classes and their settings."""
    return parser.instantiate_classes(parser.parse_args(list(arguments)))


def keywords(
    function: Callable[..., None],
    command: str,
    arguments: Iterable[str],
    by_hand: ByHand | None = None,
    skip: Iterable[str] = (),
) -> dict[str, Any]:
    """What a command calls its function with, by the command's arguments (see `command_parser`)."""
    given: dict[str, Any] = instantiated(command_parser(function, command, by_hand, skip), arguments).as_dict()
    del given["config"]
    return given


def explained(message: str, choices: Choices = CHOICES, keys: Iterable[str] = ()) -> str:
    """The parser's message: the first problem in it, with the argument's whole name and the nearest that exists.

    Any other error is returned as it is. `choices` are the classes that an argument takes, by the last part of its name,
    and `keys` the names of the parser's options.
    """
    text = re.sub(r"\x1b\[[0-9;]*m", "", message).strip()
    path: list[str] = []
    cls = problem = ""
    lines = [line.strip().removeprefix("- ") for line in text.splitlines()]
    innermost = 0
    for at, line in enumerate(lines):
        if key := re.match(r'Parser key "([\w.]+)":?\s*', line):
            path.append(key[1])
            innermost = at
            line = line[key.end() :]
        elif named := re.match(r"Problem with given class_path '(?:\w+\.)*(\w+)':?\s*", line):
            cls, line = named[1], line[named.end() :]
        if line and not line.startswith(_AROUND):
            problem = _wrong_value(line, lines[innermost:])
            break
    if not path:
        option = re.search(r"^(?:unrecognized arguments: --|.* option ')([\w.]+)", text)
        return (problem if text.startswith(_AROUND) else text) + (_nearest(option[1], keys) if option else "")
    argument = ".".join(path)
    classes = {each.__name__: each for each in choices.get(argument.rpartition(".")[2], ())}
    bases = {base.__name__ for each in classes.values() for base in each.__mro__} - classes.keys()
    if classes and (wrong := re.fullmatch(r"Expected a dot import path string: (\S+)", problem)):
        return f"--{argument} {wrong[1]}: it takes one of {', '.join(classes)}{_nearest(wrong[1], classes)}"
    if cls in bases:  # settings without the class that they are of
        return f"--{argument}: name its class too, one of {', '.join(classes)}."
    option = re.fullmatch(r"Option '([\w.]+)' is not accepted", problem)
    inherited = classes[cls].__mro__[:-1] if cls in classes else ()
    hint = _nearest(option[1], {name for base in inherited for name in signature(base).parameters}) if option else ""
    return f"--{argument}{cls and f' ({cls})'}: {problem}{hint}"


def _wrong_value(problem: str, lines: Sequence[str]) -> str:
    """What a value must be, by every type that was tried, and what it is; any other problem as it is."""
    if not problem.startswith(("Expected a <class", "Expected a typing", "Given value type")):
        return problem
    said = problem if "Got value" in problem else "\n".join(lines)
    tried, given = re.split(r"(?:\. Got|^Given) value: ", said, maxsplit=1, flags=re.MULTILINE)
    legal = [_TYPES.get(name, name) for name in re.findall(r"^Expected a <class '(\w+)'>", tried, re.MULTILINE)]
    legal += [f"one of {names}" for names in re.findall(r"^Expected a typing\.Literal\[(.*)\]", tried, re.MULTILINE)]
    return f"it must be {' or '.join(legal)}, not {given.splitlines()[0]}" if legal else problem


def _nearest(name: str, known: Iterable[str]) -> str:
    """A hint at the known name that was meant."""
    by_lower = {each.lower(): each for each in known}
    near = get_close_matches(name.lower(), sorted(by_lower), 1)
    return f". Did you mean {by_lower[near[0]]}?" if near else ""
