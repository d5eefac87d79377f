"""The walls of the house (docs/architecture.md): who owns which heavy library, and that imports go down only."""

from __future__ import annotations

import ast
import functools
import graphlib
import subprocess
import sys

import pytest

from hpsearch.resources import PACKAGE

OWNERS = {
    "optuna": ("hpsearch.search",),
    "sqlalchemy": ("hpsearch.search",),
    "fastapi": ("hpsearch.service",),
    "starlette": ("hpsearch.service",),
    "uvicorn": ("hpsearch.service",),
    "torch": ("hpsearch.finetune",),
    "torchvision": ("hpsearch.finetune",),
    "safetensors": ("hpsearch.finetune",),
    "sklearn": ("hpsearch.finetune",),
    "matplotlib": ("hpsearch.finetune",),
    "PIL": ("hpsearch.finetune", "hpsearch.tracking.registry", "hpsearch.tracking.served"),
    "mlflow": ("hpsearch.tracking",),
    "plotly": ("hpsearch.report",),
    "pandas": ("hpsearch.report", "hpsearch.tracking.registry", "hpsearch.tracking.served"),
    "scipy": ("hpsearch.report", "hpsearch.statistics"),
    "jinja2": ("hpsearch.report", "hpsearch.service"),
    "click": ("hpsearch.cli", "hpsearch.cli_service", "hpsearch.options"),
    "rich": ("hpsearch.terminal", "hpsearch.race", "hpsearch.printing", "hpsearch.cli", "hpsearch.service"),
    "yaml": ("hpsearch.yamlfile",),
    "pydantic": ("hpsearch.spec", "hpsearch.service"),
    "filelock": ("hpsearch.search.store", "hpsearch.machine", "hpsearch.finetune.shelf"),
    "pyarrow": ("hpsearch.finetune.manifests",),
    "psutil": ("hpsearch.machine",),
    "ray": ("hpsearch.executors.ray", "hpsearch.executors.actor", "hpsearch.executors.cluster"),
}
TYPES_ONLY = {  # may be named under TYPE_CHECKING
    (f"hpsearch.{name}", "optuna") for name in ("places", "reporting", "proving", "startup", "comparing")
}

# Floor 0 is the lowest; a module imports from floors below its own, or from its own room.
FLOORS = (
    (
        "hpsearch.core",
        "hpsearch.errors",
        "hpsearch.types",
        "hpsearch.protocols",
        "hpsearch.seeds",
        "hpsearch.resources",
        "hpsearch.machine",
        "hpsearch.devices",
        "hpsearch.faults",
        "hpsearch.keeping",
        "hpsearch.runtime",
        "hpsearch.control",
        "hpsearch.journal",
        "hpsearch.client",
        "hpsearch.dbfile",
        "hpsearch.provenance",
        "hpsearch.names",
        "hpsearch.other_names",
        "hpsearch.diagnosis",
        "hpsearch.statistics",
        "hpsearch.comparison",
        "hpsearch.verdict",
    ),
    ("hpsearch.recipes", "hpsearch.yamlfile"),
    ("hpsearch.portfolio", "hpsearch.space"),
    ("hpsearch.settings", "hpsearch.warm", "hpsearch.proof"),
    ("hpsearch.spec",),
    ("hpsearch.search", "hpsearch.finetune", "hpsearch.tracking", "hpsearch.report"),
    ("hpsearch.executors",),
    ("hpsearch.orchestrator",),
    ("hpsearch.proving", "hpsearch.startup", "hpsearch.places", "hpsearch.leftovers", "hpsearch.artifacts"),
    (
        "hpsearch.actions",
        "hpsearch.compared",
        "hpsearch.comparing",
        "hpsearch.delivery",
        "hpsearch.doctor",
        "hpsearch.publishing",
        "hpsearch.rebuilding",
        "hpsearch.replaying",
        "hpsearch.reporting",
    ),
    (
        "hpsearch.cli",
        "hpsearch.cli_service",
        "hpsearch.options",
        "hpsearch.service",
        "hpsearch.terminal",
        "hpsearch.printing",
        "hpsearch.summary",
        "hpsearch.race",
    ),
)
LOWEST = {
    "hpsearch.core": ("hpsearch.types",),
    "hpsearch.dbfile": ("hpsearch.errors",),
    "hpsearch.diagnosis": ("hpsearch.types",),
    "hpsearch.errors": (),
    "hpsearch.types": ("hpsearch.core", "hpsearch.errors"),
    "hpsearch.protocols": ("hpsearch.types", "hpsearch.errors"),
    "hpsearch.seeds": (),
    "hpsearch.provenance": (),
    "hpsearch.statistics": (),
    "hpsearch.comparison": ("hpsearch.types", "hpsearch.errors", "hpsearch.statistics"),
    "hpsearch.verdict": ("hpsearch.types", "hpsearch.statistics", "hpsearch.comparison"),
    "hpsearch.resources": ("hpsearch.errors",),
    "hpsearch.machine": ("hpsearch.errors",),
    "hpsearch.devices": ("hpsearch.errors", "hpsearch.machine"),
    "hpsearch.faults": (),
    "hpsearch.keeping": ("hpsearch.core", "hpsearch.types", "hpsearch.machine", "hpsearch.faults"),
    "hpsearch.names": ("hpsearch.errors",),
    "hpsearch.other_names": ("hpsearch.errors",),
    "hpsearch.runtime": ("hpsearch.types", "hpsearch.dbfile"),
    "hpsearch.control": ("hpsearch.types", "hpsearch.keeping"),
    "hpsearch.journal": ("hpsearch.types",),
    "hpsearch.client": ("hpsearch.errors",),
}
# Rooms that may use less than everything below them.
ONLY = {
    "hpsearch.executors": (
        "hpsearch.types",
        "hpsearch.protocols",
        "hpsearch.errors",
        "hpsearch.machine",
        "hpsearch.devices",
        "hpsearch.faults",
        "hpsearch.keeping",
        "hpsearch.runtime",
        "hpsearch.dbfile",
    ),
    "hpsearch.orchestrator": ("hpsearch.types", "hpsearch.protocols", "hpsearch.faults"),
}
BESIDE = {  # neighbours on one floor, one way only
    ("hpsearch.cli", "hpsearch.terminal"),
    ("hpsearch.cli", "hpsearch.summary"),
    ("hpsearch.cli", "hpsearch.race"),
    ("hpsearch.race", "hpsearch.terminal"),
    ("hpsearch.actions", "hpsearch.reporting"),
    ("hpsearch.comparing", "hpsearch.actions"),
    ("hpsearch.comparing", "hpsearch.compared"),
    ("hpsearch.summary", "hpsearch.terminal"),
    ("hpsearch.cli", "hpsearch.printing"),
    ("hpsearch.cli", "hpsearch.options"),
    ("hpsearch.cli", "hpsearch.cli_service"),
    ("hpsearch.cli_service", "hpsearch.options"),
    ("hpsearch.cli_service", "hpsearch.service"),
    ("hpsearch.service", "hpsearch.terminal"),
    ("hpsearch.service", "hpsearch.race"),  # what a comparison prints into its log
    ("hpsearch.delivery", "hpsearch.actions"),
    ("hpsearch.publishing", "hpsearch.actions"),
    ("hpsearch.publishing", "hpsearch.compared"),
}


def module_name(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def is_type_checking(node):
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def imports_of(module):
    """Every (imported module, whether for types only, whether at import time), wherever in the file it stands."""
    path = MODULES[module]
    found = []

    def visit(node, types_only, at_import):
        if isinstance(node, ast.Import):
            found.extend((alias.name, types_only, at_import) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                home = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
                base = ".".join([*home[: len(home) - node.level + 1], *([base] if base else [])])
            found.extend((f"{base}.{a.name}" if f"{base}.{a.name}" in MODULES else base, types_only, at_import) for a in node.names)
        below = types_only or is_type_checking(node)
        inside = at_import and not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for child in ast.iter_child_nodes(node):
            visit(child, below and not (is_type_checking(node) and child in node.orelse), inside)

    visit(ast.parse(path.read_text(encoding="utf-8")), False, True)
    return found


@functools.cache
def imports():
    """The imports of every module."""
    return {module: imports_of(module) for module in MODULES}


@functools.cache
def ours():
    """Of every module those that it imports of the package."""
    return {module: sorted({name for name, _, _ in found if name in MODULES}) for module, found in imports().items()}


def within(module, prefixes):
    return any(module == prefix or module.startswith(prefix + ".") for prefix in prefixes)


def room(module):
    """The room a module belongs to, and its floor."""
    return next((prefix, floor) for floor, rooms in enumerate(FLOORS) for prefix in rooms if within(module, [prefix]))


@pytest.mark.parametrize("library", OWNERS)
def test_a_heavy_library_is_imported_by_its_owner_only(library):
    trespassers = {
        module
        for module, found in imports().items()
        for name, types_only, _ in found
        if name.split(".")[0] == library and not within(module, OWNERS[library]) and not (types_only and (module, library) in TYPES_ONLY)
    }
    assert trespassers == set()


def test_every_module_stands_on_a_floor():
    assert [m for m in MODULES if m != "hpsearch" and not any(within(m, rooms) for rooms in FLOORS)] == []


def test_the_package_itself_imports_nothing_before_it_is_asked_for():
    assert [name for name, types_only, at_import in imports()["hpsearch"] if name in MODULES and at_import and not types_only] == []
    assert ours()["hpsearch"] == ["hpsearch.client"]


def test_imports_go_down_only():
    wrong = []
    for module in MODULES:
        if module == "hpsearch":
            continue
        home, floor = room(module)
        for name in ours()[module]:
            if name == "hpsearch":
                continue  # its version
            target, below = room(name)
            if target == home or (home, target) in BESIDE:
                continue
            allowed = LOWEST[home] if home in LOWEST else ONLY.get(home)
            if allowed is None and below >= floor:
                wrong.append(f"{module} imports {name}, which is not below it")
            if allowed is not None and target not in allowed:
                wrong.append(f"{module} imports {name}; it may import {allowed} only")
    assert wrong == []


def test_there_is_no_import_cycle():
    list(graphlib.TopologicalSorter(ours()).static_order())


def test_the_reader_of_imports_sees_those_inside_functions_and_for_types():
    found = imports()["hpsearch.reporting"]
    assert ("optuna.storages", True, True) in found
    assert ("pathlib", False, True) in found
    assert ("hpsearch.search.store", False, False) in found


@pytest.mark.process
@pytest.mark.parametrize("argument", ["import hpsearch.cli", "import hpsearch.cli; hpsearch.cli.main(['--help'], standalone_mode=False)"])
def test_the_command_line_loads_nothing_heavy(argument):
    heavy = {*OWNERS, "numpy", "markupsafe", "multiprocessing"} - {"click"}
    code = f"{argument}\nimport sys; print('loaded:', *sorted({heavy!r} & set(sys.modules)), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "loaded:"
