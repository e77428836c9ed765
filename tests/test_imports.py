"""The layers: who may import whom, what stays light, and what there is only once."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import mirage

# The layers of docs/architecture.md, lowest first. A module may import its own package and every layer below its own;
# packages that share a layer do not know each other, the ground modules do. What is in no layer is on top.
LAYERS = (
    ("errors", "fault_injection", "schema", "text", "stats", "losses", "batch", "atomic", "shapes", "json_file", "images"),
    ("models", "rewriting", "mini"),
    ("methods", "data", "checkpoint"),
    ("evaluation",),
    ("prepare", "audit", "report"),
)  # fmt: skip
LEVELS = {name: level for level, names in enumerate(LAYERS) for name in names}
GROUND, TOP = 0, len(LAYERS)

PACKAGE = Path(mirage.__file__).parent
FILES = {  # every module by its name without `mirage.`; the package itself is ``
    ".".join(part for part in file.relative_to(PACKAGE).with_suffix("").parts if part != "__init__"): file
    for file in sorted(PACKAGE.rglob("*.py"))
}
TREES = {module: ast.parse(file.read_text()) for module, file in FILES.items()}


def imports(module: str) -> Iterator[str]:
    """Every module that `module` imports, anywhere in it; for `from a import b` both `a` and `a.b`."""
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{module}:{node.lineno}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


OWN = {module: {name.removeprefix("mirage.") for name in imports(module)} & FILES.keys() for module in FILES}


def package_of(module: str) -> str:
    return module.split(".")[0]


def level_of(module: str) -> int:
    return LEVELS.get(package_of(module), TOP)


def test_the_list_of_layers_is_true() -> None:
    assert LEVELS.keys() <= FILES.keys()
    assert level_of("cli") == level_of("training") == level_of("commands.report") == TOP
    # the tree is read as it is: these edges are known to be there
    assert "losses" in OWN["methods.npo"] and "report.runs" in OWN["report.writing"]


def test_imports_point_one_way() -> None:
    wrong = [
        f"{module} imports {other}"
        for module, others in OWN.items()
        for other in sorted(others)
        if level_of(other) > level_of(module)
        or (level_of(other) == level_of(module) not in (GROUND, TOP) and package_of(other) != package_of(module))
    ]
    assert not wrong, "\n".join(wrong)


def test_only_its_source_knows_the_embedded_world() -> None:
    readers = {module for module, others in OWN.items() if any(package_of(other) == "mini" for other in others)}
    assert {module for module in readers if package_of(module) != "mini" and level_of(module) < TOP} == {
        "data.sources.mini"
    }


def test_a_method_is_known_by_its_own_file_and_the_list_alone() -> None:
    for module in FILES:
        if package_of(module) != "methods":
            assert not OWN[module] & {"methods.npo", "methods.rmu", "methods.sft"}, module
            names = {node.id for node in ast.walk(TREES[module]) if isinstance(node, ast.Name)}
            assert not names & {"NPO", "RMU", "MixedSFT", "PosthocSFT", "UnsafeFilter"}, module


def test_every_module_can_be_imported() -> None:
    names = {f"mirage.{module}".rstrip(".") for module in FILES if not module.endswith("__main__")}
    for name in names:
        importlib.import_module(name)
    assert names <= sys.modules.keys()


def test_reports_and_the_command_line_load_no_torch() -> None:
    reports = [module for module in FILES if package_of(module) == "report"]
    for module in reports:
        heavy = {name for name in imports(module) if package_of(name) in ("torch", "lightning")}
        assert not heavy, f"{module} imports {heavy}"  # not even in a function
    light = [
        "cli",
        "schema",
        "evaluation.run.counting",
        "evaluation.catalogue",
        "data.sources.catalogue",
        "commands.report",
        *reports,
    ]
    code = (
        "import importlib, sys\n"
        f"for name in {light!r}: importlib.import_module('mirage.' + name)\n"
        "print(sorted({'torch', 'lightning', 'transformers', 'datasets', 'torchmetrics'} & set(sys.modules)))\n"
        "import mirage.training\n"  # as light as Lightning lets it be: the rest comes when it is used
        "print(sorted({'peft', 'datasets', 'sklearn', 'tensorboard'} & set(sys.modules)))\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["[]", "[]"]


def test_no_module_is_a_drawer_for_all_sorts() -> None:
    drawers = {"utils", "util", "common", "helpers", "helper", "misc", "tools"}
    assert not [module for module in FILES if drawers & set(module.split("."))]


def test_labels_are_shifted_in_one_place() -> None:
    """`x[:, 1:]` of labels or targets stands once; nowhere is a model asked to shift them itself."""
    shifted = re.compile(r"([^\s(]*(?:label|target|ids|token)[^\s(]*?)\[[^\[\]]*, 1:[,\]]", re.IGNORECASE)
    shifts, given_away = [], []
    for module, tree in TREES.items():
        if package_of(module) != "mini":  # builds its checkpoint with the loss of transformers
            shifts += [(module, name) for name in shifted.findall(ast.unparse(tree))]
            calls = [
                node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) != "Batch"
            ]
            given_away += [
                f"{module}:{call.lineno}" for call in calls if "labels" in {key.arg for key in call.keywords}
            ]
    assert shifts == [("losses", "labels_BS")]
    assert not given_away
