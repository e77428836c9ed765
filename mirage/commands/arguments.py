"""The parser of the commands that take classes (sources, judges) as arguments."""

from __future__ import annotations

import re
import sys
from difflib import get_close_matches
from typing import Any, NoReturn

from jsonargparse import ArgumentParser

# Imported so that arguments can name their classes without a path.
from mirage.data.catalogue import SOURCES
from mirage.evaluation.catalogue import JUDGES
from mirage.evaluation.openai_engine import OpenAIEngine

CLASSES: tuple[type, ...] = (*SOURCES, *JUDGES, OpenAIEngine)


class Parser(ArgumentParser):
    """Refuses a mistyped class with the nearest one that exists, in one sentence."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Prints what is wrong; exit status 2."""
        print(f"mirage: {explained(message)}", file=sys.stderr)
        sys.exit(2)


def explained(message: str) -> str:
    """The parser's message; where it is about a class that does not exist, which one it could be."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", message).strip()
    key, value = re.search(r'Parser key "([\w.]+)"', text), re.search(r"dot import path string: ([\w.]+)", text)
    if key is None or value is None:
        return text
    names = {cls.__name__.lower(): cls.__name__ for cls in CLASSES}
    near = get_close_matches(value[1].lower(), list(names), 1)
    hint = f"Did you mean {names[near[0]]}?" if near else f"There are {', '.join(sorted(names.values()))}."
    return f"--{key[1]} {value[1]}: there is no such class. {hint}"


def instantiated(parser: Parser, arguments: Any) -> Any:
    """The parsed arguments, with objects in place of classes and their settings."""
    return parser.instantiate_classes(parser.parse_args(list(arguments)))
