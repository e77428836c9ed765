"""The parser of the commands that take classes (sources, judges) as arguments."""

from __future__ import annotations

import re
import sys
from difflib import get_close_matches
from inspect import signature
from typing import Any, NoReturn

from jsonargparse import ArgumentParser

# Imported so that arguments can name their classes without a path.
from mirage.data.sources.catalogue import SOURCES
from mirage.evaluation.catalogue import ENGINES, JUDGES

SOURCE, JUDGE, ENGINE = "data source", "judge", "engine"
KINDS: dict[str, tuple[type, ...]] = {SOURCE: SOURCES, JUDGE: JUDGES, ENGINE: ENGINES}
TAKES = {"data": SOURCE, "retain": SOURCE, "source": SOURCE, "judge": JUDGE, "against": JUDGE, "engine": ENGINE}
# What jsonargparse says around a fault: each class and each type that was tried, from the outermost to the fault.
_ABSTRACT = ("", "Source", "Judge", "Engine")
_AROUND = ("Does not validate against any of the Union subtypes", "Subtypes:", "Errors:")


class Parser(ArgumentParser):
    """Refuses a mistyped class with the nearest one that exists, in one sentence."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Prints what is wrong; exit status 2."""
        if not self.exit_on_error:  # the parser of one class: the whole command's parser knows for which argument
            super().error(message, ex)
        print(f"mirage: {explained(message)}", file=sys.stderr)
        sys.exit(2)


def explained(message: str) -> str:
    """The parser's message: the first fault in it, with the argument's whole name and with what it could be."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", message).strip()
    keys: list[str] = []
    cls, fault = "", ""
    for line in (line.strip().removeprefix("- ") for line in text.splitlines()):
        if around := re.match(r'Parser key "([\w.]+)":?\s*', line):
            keys.append(around[1])
            line = line[around.end() :]
        elif around := re.match(r"Problem with given class_path '(?:\w+\.)*(\w+)':?\s*", line):
            cls = around[1]
            line = line[around.end() :]
        if line and not line.startswith(_AROUND):
            fault = line
            break
    if not keys or not fault:
        return text
    argument, kind = "--" + ".".join(keys), TAKES.get(keys[-1].rsplit(".", 1)[-1])
    if wrong := re.fullmatch(r"Expected a dot import path string: (\S+)", fault):
        return f"{argument} {wrong[1]}: {_other_class(wrong[1], kind)}"
    if missing := re.fullmatch(r"the following arguments are required: ([\w., ]+)", fault):
        names = " and ".join(f"{argument}.{name}" for name in missing[1].split(", "))
        return f"{argument} {cls}: it needs more than its name. Give {names} as well."
    unknown = re.fullmatch(r"Option '([\w.]+)' is not accepted", fault)
    if kind and cls in _ABSTRACT and (unknown or fault.endswith("is abstract")):
        return f"{argument}: settings are given, and no class that they are of. {_there_are(kind)}"
    if unknown:
        return f"{argument}.{unknown[1]}: {_other_setting(cls, unknown[1])}"
    return f"{argument}: {fault}"


def _other_class(name: str, kind: str | None) -> str:
    """What a class's name could be instead, where a class of this kind is wanted."""
    others = next((other for other, found in KINDS.items() if name in {cls.__name__ for cls in found}), None)
    if kind and others:
        return f"this is a {others}, and the argument takes a {kind}. {_there_are(kind)}".replace(
            "a engine", "an engine"
        )
    return f"there is no such class. {_nearest(name, _names(kind)) or _there_are(kind)}"


def _names(kind: str | None) -> list[str]:
    found = KINDS[kind] if kind else [cls for of_kind in KINDS.values() for cls in of_kind]
    return sorted(cls.__name__ for cls in found)


def _there_are(kind: str | None) -> str:
    names = _names(kind)
    return f"There are {', '.join(names)}." if len(names) > 1 else f"There is {names[0]}."


def _other_setting(cls: str, name: str) -> str:
    """What a setting's name could be instead, among those of a class."""
    known = next((found for of_kind in KINDS.values() for found in of_kind if found.__name__ == cls), None)
    hint = _nearest(name, list(signature(known).parameters)) if known else ""
    return f"{cls or 'the class'} has no such setting. {hint}".rstrip()


def _nearest(name: str, known: list[str]) -> str:
    by_lower = {each.lower(): each for each in known}
    near = get_close_matches(name.lower(), list(by_lower), 1)
    return f"Did you mean {by_lower[near[0]]}?" if near else ""


def instantiated(parser: Parser, arguments: Any) -> Any:
    """The parsed arguments, with objects in place of classes and their settings."""
    return parser.instantiate_classes(parser.parse_args(list(arguments)))
