"""The config that a run left, and the data source and pictures that it names. Loads no model and no torch."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import yaml
from PIL.Image import Image

from mirage.data.base import Source
from mirage.data.sources.catalogue import SOURCES
from mirage.errors import DataError
from mirage.report.gallery import OpenPicture


def config_of(run: Path) -> dict[str, Any]:
    """The `config.yaml` in the run's folder, or in the one above it (for `<run>/validate`); plain values only.

    Raises:
        ValueError: If there is none, or it is not a config that `mirage fit` wrote.
    """
    file = next((file for file in (run / "config.yaml", run.parent / "config.yaml") if file.is_file()), None)
    if file is None:
        raise ValueError(f"{run} holds no config.yaml. Give the folder of a run of mirage fit, such as runs/rmu.")
    try:
        config = yaml.safe_load(file.read_bytes())
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{file} is not YAML ({reason}). Restore it.") from error
    if not isinstance(config, dict):
        raise ValueError(f"{file} holds no settings. Restore the file that mirage fit wrote.")
    return config


def source_of(run: Path, eval_set: str | None = None) -> Source:
    """The data source that the run's config describes: the evaluation set's own, if it has one, else that of the data.

    Only mirage's sources are built, by their names: a config may come from anywhere, and imports nothing here.

    Raises:
        ValueError: If there is no config, or it describes no source of mirage's.
    """
    config, described = config_of(run), None
    match config:
        case {"data": {"source": described}}:
            pass
    match config:
        case {"trainer": {"callbacks": [*callbacks]}}:
            for callback in callbacks:
                match callback:
                    case {"init_args": {"eval_set": name, "source": dict(own)}} if name == eval_set:
                        described = own
    return _built(described, f"The config.yaml of {run}")


def run_pictures(remedy: str = "") -> OpenPicture:
    """Opens the pictures of runs, from the sources that their configs describe.

    Args:
        remedy: What else to do where a source cannot be rebuilt, a sentence of the message.

    Raises:
        ValueError: When called, if the run's source cannot be rebuilt or has no such picture, or it cannot be used.
    """
    sources = cache(source_of)

    def open_picture(run: Path, eval_set: str, name: str) -> Image:
        try:
            source = sources(run, eval_set)
        except (ValueError, OSError) as error:
            raise ValueError(f"{error} {remedy}".rstrip()) from error
        if (picture := source.picture(name)) is None:
            raise ValueError(f"{source.name} has no picture of this name")
        return picture.open()

    return open_picture


def _built(described: Any, config: str) -> Source:
    known = {name: cls for cls in SOURCES for name in (cls.__name__, f"{cls.__module__}.{cls.__name__}")}
    described = {"class_path": described} if isinstance(described, str) else described
    match described:
        case {"class_path": str(path)} if path in known and isinstance(described.get("init_args") or {}, dict):
            settings = dict(described.get("init_args") or {})
        case _:
            raise ValueError(f"{config} names no data source of mirage's ({described}).")
    if "source" in settings:  # one that wraps another
        settings["source"] = _built(settings["source"], config)
    try:
        return known[path](**settings)
    except DataError:
        raise
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{config}: {path} of this mirage does not take the settings there ({error}).") from error
