"""The parser of commands that take classes (sources, judges, methods) as arguments, and its one-sentence errors."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from inspect import signature
from typing import Any, ClassVar, NoReturn

from jsonargparse import ArgumentParser

# Imported so that arguments can name their classes without a path.
from mirage.data.sources.catalogue import SOURCES
from mirage.evaluation.catalogue import ATTACKS, BENCHMARKS, ENGINES, JUDGES

Kinds = Mapping[str, tuple[type, ...]]
SOURCE, JUDGE, ENGINE, ATTACK, BENCHMARK = "data source", "judge", "engine", "attack", "benchmark"
KINDS: Kinds = {SOURCE: SOURCES, JUDGE: JUDGES, ENGINE: ENGINES, ATTACK: ATTACKS, BENCHMARK: BENCHMARKS}
# The last part of an argument's name -> the kind of class that it takes.
TAKES = {
    "data": SOURCE, "retain": SOURCE, "source": SOURCE, "judge": JUDGE, "against": JUDGE, "engine": ENGINE,
    "attack": ATTACK, "benchmark": BENCHMARK, "model": "method", "callbacks": "callback",
}  # fmt: skip
# What jsonargparse says around a problem: each class and each type that was tried, from the outermost to the problem.
_ABSTRACT = ("", "Source", "Judge", "Engine")
_AROUND = (
    "Does not validate against any of the Union subtypes", "Subtypes:", "Errors:", "Expected a path but",
    "Not a valid subclass", "Expected a <class 'list'>", "Expected a <class 'NoneType'>",
)  # fmt: skip


class Explaining:
    """A parser that refuses a mistyped key or class in one sentence, with the nearest name that exists."""

    kinds: ClassVar[Kinds] = KINDS
    exit_on_error: bool

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Prints what is wrong; exit status 2."""
        if not self.exit_on_error:  # the parser of one class: the whole command's parser knows for which argument
            super().error(message, ex)  # type: ignore[misc]
        print(f"mirage: {explained(message, self.kinds, self.keys())}", file=sys.stderr)
        sys.exit(2)

    def keys(self) -> set[str]:
        """The keys of the options, without what stands before their last dot."""
        subcommands = getattr(getattr(self, "_subcommands_action", None), "_name_parser_map", {})
        actions = [action for parser in (self, *subcommands.values()) for action in parser._actions]
        return {action.dest.rpartition(".")[2] for action in actions}


class Parser(Explaining, ArgumentParser):
    """The parser of a command."""


def explained(message: str, kinds: Kinds = KINDS, keys: Iterable[str] = ()) -> str:
    """The parser's message: the first problem in it, with the argument's whole name and with what it could be.

    Args:
        message: What jsonargparse says.
        kinds: The classes that an argument may name, by kind.
        keys: Known options, for the hint at a mistyped one; without them there is no hint.
    """
    text = re.sub(r"\x1b\[[0-9;]*m", "", message).strip()
    path: list[str] = []
    cls, problem = "", ""
    for line in (line.strip().removeprefix("- ") for line in text.splitlines()):
        if around := re.match(r'Parser key "([\w.]+)":?\s*', line):
            path.append(around[1])
            line = line[around.end() :]
        elif around := re.match(r"Problem with given class_path '(?:\w+\.)*(\w+)':?\s*", line):
            cls = around[1]
            line = line[around.end() :]
        if line and not line.startswith(_AROUND):
            problem = line
            break
    if not problem:
        return text
    argument, kind = "--" + ".".join(path), TAKES.get(".".join(path).rpartition(".")[2], "")
    if not path:
        return problem if text.startswith(_AROUND) else text + _nearest_key(text, kinds, set(keys))
    if wrong := re.fullmatch(r"Expected a dot import path string: (\S+)", problem):
        return f"{argument} {wrong[1]}: {_other_class(wrong[1], kind, kinds)}"
    if missing := re.fullmatch(r"the following arguments are required: ([\w., ]+)", problem):
        names = " and ".join(f"{argument}.{name}" for name in missing[1].split(", "))
        return f"{argument} {cls}: it needs more than its name. Give {names} as well."
    unknown = re.fullmatch(r"Option '([\w.]+)' is not accepted", problem)
    if kind in kinds and cls in _ABSTRACT and (unknown or problem.endswith("is abstract")):
        return f"{argument}: settings are given, and no class that they are of. {_there_are(kind, kinds)}"
    if unknown:
        known = next((each for of_kind in kinds.values() for each in of_kind if each.__name__ == cls), None)
        hint = _nearest(unknown[1], signature(known).parameters) if known else ""
        return f"{argument}.{unknown[1]}: {cls or 'the class'} has no such setting. {hint}".rstrip()
    return f"{argument}: {problem}"


def _nearest_key(text: str, kinds: Kinds, keys: set[str]) -> str:
    """A hint at the key or setting that a name in the message may have meant."""
    bases = {base for of_kind in kinds.values() for cls in of_kind for base in cls.__mro__} if keys else set()
    known = keys.union(*(getattr(vars(base).get("__init__"), "__annotations__", {}) for base in bases))
    named = re.findall(r"[Kk]ey '([\w.]+)'|--([\w.]+)|[Oo]ption '?([\w.]+)", text)
    last = [next(filter(None, groups)).rpartition(".")[2] for groups in named]
    hints = [hint for name in last if keys and name not in known and (hint := _nearest(name, known))]
    return "".join(f"\n{hint}" for hint in dict.fromkeys(hints))


def _other_class(name: str, kind: str, kinds: Kinds) -> str:
    """What a class's name could be instead, where a class of this kind is wanted."""
    other = next((other for other, known in kinds.items() if name in {cls.__name__ for cls in known}), None)
    if kind in kinds and other:
        return f"this is {_a(other)}, and the argument takes {_a(kind)}. {_there_are(kind, kinds)}"
    return f"there is no such class. {_nearest(name, _names(kind, kinds)) or _there_are(kind, kinds)}"


def _a(kind: str) -> str:
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"


def _names(kind: str, kinds: Kinds) -> list[str]:
    known = kinds[kind] if kind in kinds else [cls for of_kind in kinds.values() for cls in of_kind]
    return sorted(cls.__name__ for cls in known)


def _there_are(kind: str, kinds: Kinds) -> str:
    names = _names(kind, kinds)
    return f"There are {', '.join(names)}." if len(names) > 1 else f"There is {names[0]}."


def _nearest(name: str, known: Iterable[str]) -> str:
    by_lower = {each.lower(): each for each in known}
    near = get_close_matches(name.lower(), sorted(by_lower), 1)
    return f"Did you mean {by_lower[near[0]]}?" if near else ""


def instantiated(parser: Parser, arguments: Iterable[str]) -> Any:
    """The parsed arguments, with objects in place of classes and their settings."""
    return parser.instantiate_classes(parser.parse_args(list(arguments)))
