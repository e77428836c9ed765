"""`mirage prepare`: harmful answers to unlearn and a retain set, from a source of unsafe questions."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from mirage.commands.arguments import ByHand, command_parser, keywords
from mirage.commands.outputs import check_file, check_folder
from mirage.prepare.answers import answer
from mirage.prepare.paraphrases import paraphrase
from mirage.prepare.preparation import prepare

_FURTHER: dict[str, Callable[..., None]] = {"paraphrases": paraphrase, "answers": answer}


def run(arguments: Sequence[str]) -> None:
    """Parses the arguments and prepares; before them, `paraphrases` or `answers` says that those are made instead."""
    if arguments and (make := _FURTHER.get(arguments[0])):
        making = keywords(make, f"prepare {arguments[0]}", arguments[1:])
        check_file(making["out"])
        return make(**making)
    by_hand: ByHand = {"--answers_from": {"nargs": "+", "required": True, "metavar": "WHO"}}
    parser = command_parser(prepare, "prepare", by_hand, skip={"settings"})
    given = parser.parse_args(list(arguments))
    check_folder(given.out)
    settings = json.loads(parser.dump(given, format="json", skip_none=False))
    del settings["out"]
    built = parser.instantiate_classes(given).as_dict()
    del built["config"]
    prepare(**built, settings=settings)
