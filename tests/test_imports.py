"""The layers: who may import whom, what stays light, and what there is only once."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import mirage

PACKAGE = Path(mirage.__file__).parent

# The layers of docs/architecture.md, lowest first. A module may import its own package and every layer below its own;
# packages that share a layer do not know each other. What is in no layer is on top: commands, training, cli.
LAYERS: tuple[dict[str, tuple[str, ...]], ...] = (
    {
        "ground": (
            "errors", "fault_injection", "schema", "text", "stats", "losses", "batch", "atomic", "shapes", "json_file",
            "images",
        )
    },
    {"models": ("models",), "rewriting": ("rewriting",), "mini": ("mini",)},
    {"methods": ("methods",), "data": ("data",), "checkpoint": ("checkpoint",)},
    {"evaluation": ("evaluation",)},
    {"prepare": ("prepare",), "audit": ("audit",), "report": ("report",)},
)  # fmt: skip
PACKAGES = {package: modules for layer in LAYERS for package, modules in layer.items()}
BELOW = {
    package: {package, *(below for lower in LAYERS[:level] for below in lower)}
    for level, layer in enumerate(LAYERS)
    for package in layer
}
MINIS_READER = "data.sources.mini"  # the only module that knows the mini setting


def modules() -> dict[str, Path]:
    """Every module of the package by its name without `mirage.`; the package itself is ``."""
    found = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        parts = file.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


@cache
def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text())


def imports(file: Path) -> Iterator[str]:
    """Every module that `file` imports, anywhere in it; for `from a import b` both `a` and `a.b`."""
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{file}:{node.lineno}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_imports(file: Path) -> set[str]:
    """The modules of the package that `file` imports, without `mirage.`."""
    known = modules()
    names = {name.removeprefix("mirage.") for name in imports(file) if name.startswith("mirage.")}
    return {name for name in names if name in known}


def package_of(module: str) -> str:
    for package, members in PACKAGES.items():
        if any(module == member or module.startswith(f"{member}.") for member in members):
            return package
    return "top"


def test_the_list_of_layers_is_true() -> None:
    listed = {member for members in PACKAGES.values() for member in members}
    assert listed <= set(modules())
    assert package_of("cli") == package_of("training") == package_of("commands.report") == "top"
    # the tree is read as it is: these edges are known to be there
    assert "losses" in own_imports(modules()["methods.npo"])
    assert "report.runs" in own_imports(modules()["report.writing"])


def test_imports_point_one_way() -> None:
    wrong = [
        f"{module} ({package}) imports {other} ({package_of(other)})"
        for module, file in modules().items()
        if (package := package_of(module)) != "top"
        for other in sorted(own_imports(file))
        if package_of(other) not in BELOW[package] and other != ""
    ]
    assert not wrong, "\n".join(wrong)


def test_only_its_source_knows_the_embedded_world() -> None:
    readers = {
        module
        for module, file in modules().items()
        if package_of(module) in BELOW and package_of(module) != "mini"
        if any(package_of(other) == "mini" for other in own_imports(file))
    }
    assert readers == {MINIS_READER}


def test_a_method_is_known_by_its_own_file_and_the_list_alone() -> None:
    files = {"methods.npo", "methods.rmu", "methods.sft"}
    for module, file in modules().items():
        if package_of(module) == "methods":
            continue
        assert not own_imports(file) & files, module
        names = {node.id for node in ast.walk(tree(file)) if isinstance(node, ast.Name)}
        assert not names & {"NPO", "RMU", "MixedSFT", "PosthocSFT", "UnsafeFilter"}, module


def test_every_module_can_be_imported() -> None:
    names = [f"mirage.{module}" if module else "mirage" for module in modules()]
    for name in names:
        if not name.endswith("__main__"):
            importlib.import_module(name)
    assert set(names) <= {*sys.modules, "mirage.__main__"}


LIGHT = [
    "cli",
    "schema",
    "evaluation.run.counting",
    "evaluation.catalogue",
    "commands.report",
    *(name for name in modules() if package_of(name) == "report"),
]
HEAVY = ("torch", "lightning", "transformers", "datasets", "torchmetrics")


def test_reports_and_the_command_line_load_no_torch() -> None:
    for module in (name for name in modules() if package_of(name) == "report"):
        heavy = {name for name in imports(modules()[module]) if name.split(".")[0] in ("torch", "lightning")}
        assert not heavy, f"{module} imports {heavy}"  # not even in a function
    code = (
        "import importlib, sys\n"
        f"for name in {LIGHT!r}: importlib.import_module('mirage.' + name)\n"
        f"print(*(name for name in {HEAVY!r} if name in sys.modules))\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == []


def test_no_module_is_a_drawer_for_all_sorts() -> None:
    drawers = {"utils", "util", "common", "helpers", "helper", "misc", "tools"}
    assert not [module for module in modules() if drawers & set(module.split("."))]


def test_labels_are_shifted_in_one_place() -> None:
    """`x[:, 1:]` of labels or targets stands once; nowhere is a model asked to shift them itself."""
    shifts, given_away = [], []
    for module, file in modules().items():
        if package_of(module) == "mini":  # builds its checkpoint with the loss of transformers
            continue
        for node in ast.walk(tree(file)):
            if isinstance(node, ast.Subscript) and _drops_the_first_position(node.slice):
                name = ast.unparse(node.value)
                if any(word in name.lower() for word in ("label", "target", "ids", "token")):
                    shifts.append((module, name))
            elif isinstance(node, ast.Call) and any(keyword.arg == "labels" for keyword in node.keywords):
                given_away += [f"{module}:{node.lineno}"] if ast.unparse(node.func) != "Batch" else []
    assert shifts == [("losses", "labels_BS")]
    assert not given_away


def _drops_the_first_position(index: ast.expr) -> bool:
    parts = index.elts if isinstance(index, ast.Tuple) else []
    return any(
        isinstance(part, ast.Slice)
        and isinstance(part.lower, ast.Constant)
        and part.lower.value == 1
        and not part.upper
        for part in parts[1:]
    )
