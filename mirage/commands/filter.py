"""`mirage filter`: what a judge calls harmful in instruction data, listed with reasons, for the `Filtered` source."""

from __future__ import annotations

from collections.abc import Sequence

from mirage.commands.arguments import keywords
from mirage.commands.outputs import check_folder
from mirage.prepare.filtering import filter_data


def run(arguments: Sequence[str]) -> None:
    """Parses the arguments and filters."""
    given = keywords(filter_data, "filter", arguments)
    check_folder(given["out"])
    filter_data(**given)
