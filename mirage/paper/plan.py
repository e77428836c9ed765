"""The rows of the paper's Table 1: what each runs, which files it needs, and what it will take. Loads no model."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from mirage.cli import configs_folder


class Row(NamedTuple):
    """One row of the table."""

    name: str
    trains: bool  # False: weights are evaluated as they are
    config: Mapping[str, Any]  # one whole config
    needs: Sequence[str]  # keys of `files` in rows.yaml that the config names

    @property
    def command(self) -> list[str]:
        """What `mirage` is called with, without its --config."""
        return ["fit", "--ckpt_path", "auto"] if self.trains else ["validate"]

    @property
    def run(self) -> Path:
        """The folder that its results.json is in."""
        folder = Path(self.config["trainer"]["default_root_dir"])
        return folder if self.trains else folder / "validate"

    def finished(self) -> bool:
        """True if all that the config measures stands in results.json, of the last step."""
        try:
            results = json.loads((self.run / "results.json").read_bytes())
        except (OSError, ValueError):
            return False
        callbacks = [each.get("init_args") or {} for each in self.config["trainer"]["callbacks"]]
        attacked = [each["eval_set"] for each in callbacks if "attack" in each and not each.get("optional")]
        scores = sum("benchmark" in each for each in callbacks)
        whole = all(results.get(name) for name in attacked) and len(results.get("utility") or ()) >= scores
        return whole and results["step"] >= (results["planned_steps"] or 0)


class Cost(NamedTuple):
    """What a row takes: GPU hours, and GiB of each device's memory. Estimates."""

    training_hours: float
    evaluation_hours: float
    gib: float


@cache
def table() -> dict[str, Any]:
    """rows.yaml."""
    content: dict[str, Any] = yaml.safe_load((files("mirage.paper") / "rows.yaml").read_text(encoding="utf-8"))
    return content


def planned(models: Path, data: Path, out: Path, overrides: Path | None = None, released: bool = False) -> list[Row]:
    """Every row, in the table's order.

    Args:
        models: Folder of the weights; it takes the place of `models/` in the configs.
        data: Folder of the data, in place of `data/`.
        out: Folder of the run folders.
        overrides: A YAML file that is laid over every config: settings as in a config, a list under `callbacks+` of
            `trainer` behind the others, and at its top `callbacks`, settings of every callback of a class, and `rows`,
            what lies over the config of one row besides.
        released: Evaluate the weights that others published for a row, where there are some, and train none.

    Raises:
        ValueError: If `overrides` is not such a file.
    """
    given, over = table(), {} if overrides is None else _read(overrides)
    of_row = over.pop("rows", None) or {}
    if unknown := [name for name in of_row if name not in given["rows"]]:
        raise ValueError(f"{overrides}: rows: there is no row {unknown[0]!r}. The rows are {', '.join(given['rows'])}.")
    rows = []
    for name, row in given["rows"].items():
        weights = (row.get("released") if released else None) or row.get("weights")
        names = ("base" if weights else row["config"], *given["evaluation"])
        parts = [_read(configs_folder() / "llava15_7b" / f"{each}.yaml") for each in names]
        try:
            config = _assembled([{"callbacks": given["callbacks"]}, *parts, over, of_row.get(name) or {}])
            if weights:
                config["model"]["init_args"]["pretrained"] = weights
            config["trainer"]["default_root_dir"] = str(out / name)
        except (AttributeError, KeyError, TypeError) as error:  # whatever a file may hold
            raise ValueError(f"{overrides} does not go with the config of {name} ({error!r}). Correct it.") from error
        needs: dict[str, None] = {}
        config = _located(config, {"models": models, "data": data}, needs)
        rows.append(Row(name, not weights, config, [path for path in needs if path in given["files"]]))
    return rows


def missing(rows: Sequence[Row], models: Path, data: Path) -> dict[Path, tuple[str, list[str]]]:
    """Each file that is not there -> where to get it, and which rows need it."""
    found: dict[Path, tuple[str, list[str]]] = {}
    for row in rows:
        for key in row.needs:
            entry = table()["files"][key]
            path = Path(_located(key, {"models": models, "data": data}, {}))
            how = entry["from"].format(path=path, models=models, data=data)
            for pattern in entry.get("holds", [""]):
                if not (any(path.glob(pattern)) if pattern else path.exists()):
                    found.setdefault(path / pattern, (how, []))[1].append(row.name)
    return found


def cost(row: Row) -> Cost:
    """GPU hours and memory, by operations over the assumed rates of rows.yaml and by `mirage.models.memory`.

    A token costs 2 operations for each parameter in a forward pass and again for the gradient that is passed back, once
    more where activations are recomputed, and 2 for each trained parameter. RMU, which stops at a layer, takes less.
    Answers are counted at their full length, so evaluation takes less too.
    """
    from jsonargparse import ArgumentParser
    from transformers import LlamaConfig, LlavaConfig

    import mirage.methods.catalogue  # noqa: F401  # names the classes
    from mirage.methods.base import AlignmentModule
    from mirage.models.memory import estimate, trains_as
    from mirage.models.pretrained import read_config

    assumed, data, trainer = table()["estimate"], row.config["data"], row.config["trainer"]
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(AlignmentModule, "model")
    method = parser.instantiate_classes(parser.parse_object({"model": row.config["model"]})).model
    shapes: Any = LlavaConfig(text_config=LlamaConfig(vocab_size=32064))  # LLaVA-1.5-7B's
    if Path(method.pretrained).is_dir():
        shapes = read_config(method.pretrained)
    devices = int(trainer["devices"]) * trainer.get("num_nodes", 1)
    retain = math.ceil(data["gamma"] * data["batch_size"])
    unsafe = 0 if method.unsafe_answers is None else data["batch_size"]
    memory = estimate(
        shapes, trainable=trains_as(method), dtype=method.dtype_name,
        batch_tokens=assumed["tokens"] * (unsafe + retain), gradient_checkpointing=method.gradient_checkpointing,
        shards=devices if trainer["strategy"] == "ModelParallelStrategy" else 1,
    )  # fmt: skip
    flops = assumed["tflops"] * 1e12 * 3600  # of an hour
    evaluation = sum(_evaluations(row)) * 2 * memory.parameters / flops
    if not row.trains:
        return Cost(0, evaluation, memory.weights_gib)
    if unsafe:
        kind = data["source"]["init_args"].get("unsafe_set", "instruction")
        examples = assumed["unsafe"][kind] * (1 + data["gamma"])
    else:
        examples = assumed["retain"]
    tokens = trainer["max_epochs"] * examples * assumed["tokens"]
    operations = tokens * 2 * ((2 + method.gradient_checkpointing) * memory.parameters + memory.trainable)
    return Cost(operations / flops / assumed["training"], evaluation, memory.total_gib)


def _evaluations(row: Row) -> Iterator[float]:
    """Of each callback, the tokens of its questions and answers, each divided by the assumed use of the device."""
    assumed, trainer = table()["estimate"], row.config["trainer"]
    epochs = max(trainer["max_epochs"] // trainer.get("check_val_every_n_epoch", 1), 1)
    for settings in (callback.get("init_args") or {} for callback in trainer["callbacks"]):
        if benchmark := settings.get("benchmark"):
            key, limit, answers, times = benchmark["class_path"], benchmark["init_args"].get("limit"), 1, 1
        elif "attack" in settings:  # plainly and under attack; the starting model, and after each validation epoch
            answers, times = 1 + settings["attack"]["init_args"]["shots"], 1 + epochs if row.trains else 1
            key, limit = settings["eval_set"], settings.get("limit")
        else:
            continue
        questions = min(assumed["questions"].get(key, 0), limit or math.inf)
        written = answers * settings["max_new_tokens"] / assumed["generating"]
        yield times * questions * (assumed["prompt_tokens"] / assumed["training"] + written)


def _read(file: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(file.read_bytes())
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"{file} cannot be read as YAML ({' '.join(str(error).split())}). Correct it.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds no settings. Write them as in a config of mirage fit.")
    return content


def _assembled(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One config of several parts, `callbacks` laid over the callbacks of each class."""
    config: dict[str, Any] = {}
    for part in parts:
        config = _laid_over(config, part)
    for cls, settings in config.pop("callbacks").items():
        found = [each for each in config["trainer"]["callbacks"] if each["class_path"] == cls]
        if not found:
            raise ValueError(f"callbacks of the overrides: no row has a {cls}. Name a class such as OneWordAttack.")
        for each in found:
            each["init_args"] = _laid_over(each["init_args"], settings)
    return config


def _laid_over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of `above` in those of `below`; a list under `name+` goes behind `name`'s."""
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        if key.endswith("+"):
            result[key[:-1]] = [*(result.get(key[:-1]) or ()), *value]
        elif (
            isinstance(old, dict)
            and isinstance(value, dict)
            and value.get("class_path") in (None, old.get("class_path"))
        ):
            result[key] = _laid_over(old, value)
        else:
            result[key] = value
    return result


def _located(value: Any, where: Mapping[str, Path], found: dict[str, None]) -> Any:
    """The settings with the folders of `where` in place of their names, as paths begin; `found` receives these paths."""
    if isinstance(value, Mapping):
        return {key: _located(each, where, found) for key, each in value.items()}
    if isinstance(value, list):
        return [_located(each, where, found) for each in value]
    first, slash, rest = value.partition("/") if isinstance(value, str) else ("", "", "")
    if not slash or first not in where:
        return value
    found[value] = None
    return str(where[first] / rest)
