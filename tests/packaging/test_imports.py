"""Modules of ours are imported by name, never by a string that no checker and no rename sees."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "paidonce_models": ROOT / "models" / "paidonce_models",
    "paidonce": ROOT / "orchestrator" / "paidonce",
    "paidonce_workers": ROOT / "workers" / "paidonce_workers",
}
IMPORTERS = {"import_module", "__import__", "symbol_by_name", "find_spec", "load_module", "run_path"}
USERS_MODULES = {
    "orchestrator/paidonce/configuration/module_loading.py": "imports what PAIDONCE_AGENTS names",
    "orchestrator/paidonce/configuration/module_shadows.py": "looks which file such a name means",
    "orchestrator/paidonce/values/class_names.py": "finds the classes of users' values and errors",
}
RUNS_A_MODULE = {"-m", "-A", "--app"}


def modules() -> dict[str, Path]:
    """Every module of ours by its dotted name."""
    found = {}
    for folder in PACKAGES.values():
        for file in folder.rglob("*.py"):
            parts = file.relative_to(folder.parent).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    assert len(found) > 300
    return found


MODULES = modules()


def docstrings(tree: ast.AST) -> set[ast.AST]:
    """Strings that are statements: of modules, classes and functions, and below constants."""
    return {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}


def names_a_module(text: str) -> bool:
    """Whether the text, or what stands in it before a colon or a last dot, is a module of ours with a dot."""
    if not re.fullmatch(r"[a-z_]+(\.\w+)+(:\w+)?", text):
        return False
    module = text.partition(":")[0]
    return module in MODULES or (module.rpartition(".")[0] in MODULES and module.rpartition(".")[2][:1].isupper())


def called(node: ast.Call) -> str:
    """The last name of what is called."""
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def imports_by_string(tree: ast.AST, file: str) -> Iterator[tuple[int, str]]:
    """Line and text of each place that imports, or names for an import, a module by a string."""
    passed_over = docstrings(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            if called(node) in IMPORTERS and file not in USERS_MODULES:
                yield node.lineno, f"{called(node)}()"
            elif called(node) == "getLogger":
                passed_over.update(node.args)
        elif isinstance(node, ast.List | ast.Tuple):
            for before, after in zip(node.elts, node.elts[1:], strict=False):
                if (
                    isinstance(before, ast.Constant)
                    and before.value in RUNS_A_MODULE
                    and isinstance(after, ast.Constant)
                    and str(after.value).partition(".")[0] in PACKAGES
                ):
                    yield after.lineno, f"{before.value} {after.value}"
    for node in ast.walk(tree):
        text = node.value if isinstance(node, ast.Constant) and node not in passed_over else None
        if isinstance(text, str) and names_a_module(text):
            yield getattr(node, "lineno", 0), repr(text)


def test_no_module_of_ours_is_imported_by_a_string() -> None:
    found = []
    for path in MODULES.values():
        file = path.relative_to(ROOT).as_posix()
        found += [f"{file}:{line}: {what}" for line, what in imports_by_string(ast.parse(path.read_text()), file)]
    assert not found, (
        "import the module at the top and pass the class, or derive the string from it (module.__name__): "
        + "; ".join(found)
    )


@pytest.mark.parametrize(
    "code",
    [
        "import importlib\nimportlib.import_module('x')",
        "__import__('x')",
        "from kombu.utils.imports import symbol_by_name\nsymbol_by_name('x')",
        "import importlib.util\nimportlib.util.find_spec('x')",
        "class App:\n    amqp_cls = 'paidonce.broker.redis_transport:PaidonceAMQP'",
        "consumer = 'paidonce_workers.delivery.consumer.Consumer'",
        "PROGRAM = 'paidonce_workers.isolation.body_process'",
        "arguments = ['python', '-m', 'paidonce_workers.isolation.body_process']",
        "arguments = ('-m', 'celery', '-A', 'paidonce_workers', 'worker')",
    ],
)
def test_each_way_to_import_by_a_string_is_seen(code: str) -> None:
    assert list(imports_by_string(ast.parse(code), "f.py"))


@pytest.mark.parametrize(
    "code",
    [
        "from paidonce.broker import celery_app\narguments = ['-m', celery_app.__name__]",
        '"""Runs ``python -m`` this module."""\nQUEUE = "paidonce.default"\nFILE = "paidonce.yaml"',
        "import logging\nlogging.getLogger('paidonce.settings')",
        "import subprocess\nsubprocess.run(['python', '-m', 'celery'])",
    ],
)
def test_other_strings_are_left_alone(code: str) -> None:
    assert not list(imports_by_string(ast.parse(code), "f.py"))


def test_every_exception_is_still_needed() -> None:
    for file in USERS_MODULES:
        assert any(name in (ROOT / file).read_text() for name in IMPORTERS), file
