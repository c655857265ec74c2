"""Importing agents' modules: what is found where, and what each failure says."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from paidonce.configuration.module_loading import load_modules
from paidonce_models.errors import ModuleNotLoadable


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current folder; what the test imports is forgotten afterwards."""
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = set(sys.modules)
    yield folder
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def message_of(name: str) -> str:
    with pytest.raises(ModuleNotLoadable) as caught:
        load_modules([name])
    return caught.value.message


def test_modules_of_the_current_folder_are_found_by_name_in_order(project: Path) -> None:
    (project / "loaded_first.py").write_text("order = 1\n")
    (project / "loaded_package").mkdir()
    (project / "loaded_package" / "agents.py").write_text("order = 2\n")
    modules = load_modules(["loaded_first", "loaded_package.agents"])
    assert [(module.__name__, module.order) for module in modules] == [
        ("loaded_first", 1),
        ("loaded_package.agents", 2),
    ]


def test_a_file_inside_the_current_folder_gets_the_same_name_as_by_import(project: Path) -> None:
    (project / "loaded_shop").mkdir()
    (project / "loaded_shop" / "agents.py").write_text("")
    assert load_modules(["loaded_shop/agents.py"])[0] is load_modules(["loaded_shop.agents"])[0]


def test_a_file_elsewhere_is_imported_by_its_own_name(project: Path) -> None:
    (project.parent / "loaded_elsewhere.py").write_text("")
    assert load_modules(["../loaded_elsewhere.py"])[0].__name__ == "loaded_elsewhere"


def test_an_absent_module_names_the_folders_and_the_nearest_name(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "loaded_agents.py").write_text("")
    monkeypatch.setenv("PYTHONPATH", "/srv/shared")
    message = message_of("loaded_agent")
    assert message.startswith(f"module 'loaded_agent' was not found: looked in {project}, /srv/shared and among")
    assert "did you mean 'loaded_agents'?" in message


def test_an_absent_part_of_a_dotted_name_is_named(project: Path) -> None:
    (project / "loaded_part").mkdir()
    (project / "loaded_part" / "__init__.py").write_text("")
    assert "module 'loaded_part.missing.deep' was not found (there is no 'loaded_part.missing')" in message_of(
        "loaded_part.missing.deep"
    )


def test_a_module_that_breaks_names_the_error_and_the_line(project: Path) -> None:
    (project / "loaded_broken.py").write_text("x = 1\n\ny = x / 0\n")
    message = message_of("loaded_broken")
    assert "was found but failed while it was imported: ZeroDivisionError: division by zero" in message
    assert f"{project}/loaded_broken.py:3" in message


def test_a_declaration_that_is_refused_names_the_line_of_the_module(project: Path) -> None:
    (project / "methods.py").write_text(
        "from paidonce import step\n\nclass Shop:\n    @step\n    def sell(self): ...\n"
    )
    with pytest.raises(ModuleNotLoadable, match=r": DeclarationError: step .* is a method") as caught:
        load_modules(["methods"])
    assert f"at {project}/methods.py:4;" in str(caught.value)


def test_a_missing_dependency_is_not_taken_for_a_missing_module(project: Path) -> None:
    (project / "loaded_needy.py").write_text("import no_such_dependency\n")
    message = message_of("loaded_needy")
    assert "was found but failed" in message
    assert f"{project}/loaded_needy.py:1; install 'no_such_dependency' in this environment" in message


def test_a_syntax_error_names_its_own_file_and_line(project: Path) -> None:
    (project / "loaded_typo.py").write_text("def f(:\n")
    assert f"SyntaxError: invalid syntax at {project}/loaded_typo.py:1" in message_of("loaded_typo")


def test_a_module_that_exits_is_reported(project: Path) -> None:
    (project / "loaded_exit.py").write_text("raise SystemExit(3)\n")
    assert "SystemExit: 3" in message_of("loaded_exit")


def test_a_file_whose_name_another_module_has_is_refused(project: Path) -> None:
    (project / "json.py").write_text("")
    assert "the name 'json' is already that of" in message_of("json.py")


@pytest.mark.parametrize("name", ["my-agents", "agents:research", "loaded..twice", ""])
def test_what_is_no_module_name_is_refused(name: str) -> None:
    assert "is not a module name" in message_of(name)


def test_a_file_that_cannot_be_a_module_is_refused(project: Path) -> None:
    (project / "my-agents.py").write_text("")
    assert "rename it" in message_of("my-agents.py")
    assert "there is no file" in message_of("absent.py")


def test_a_module_with_the_name_of_an_installed_package_is_reported_with_both_files(
    project: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    installed = project.parent / "lib" / "site-packages"
    (installed / "agents_sdk").mkdir(parents=True)
    (installed / "agents_sdk" / "__init__.py").write_text("class Agent: ...\n")
    monkeypatch.syspath_prepend(str(installed))
    (project / "agents_sdk.py").write_text("")
    load_modules(["agents_sdk.py"])
    (line,) = [record.getMessage() for record in caplog.records if "agents_sdk" in record.getMessage()]
    assert str(project / "agents_sdk.py") in line and str(installed / "agents_sdk" / "__init__.py") in line
    assert "rename it" in line
    del sys.modules["agents_sdk"]
    (project / "agents_sdk.py").write_text("from agents_sdk import Agent\n")
    message = message_of("agents_sdk")
    assert str(installed) in message and str(project / "agents_sdk.py") in message


def test_a_module_that_python_has_imported_already_is_no_module_of_the_project(project: Path) -> None:
    (project / "types.py").write_text("")
    (project / "redis.py").write_text("")
    for name in ("types", "redis"):
        message = message_of(name)
        assert str(project / f"{name}.py") in message and "rename it" in message
    assert "types.py" in message_of("types.py")


def test_a_file_beside_the_agents_that_the_worker_would_import_is_reported(
    project: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (project / "celery.py").write_text("")
    (project / "mine.py").write_text("")
    (project / "random_name_of_nothing.py").write_text("")
    load_modules(["mine"])
    (line,) = [record.getMessage() for record in caplog.records]
    assert str(project / "celery.py") in line and "site-packages" in line


@pytest.fixture
def installed(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package `agents_sdk` with a class `Agent`, behind the project on the path."""
    folder = project.parent / "lib" / "site-packages"
    (folder / "agents_sdk").mkdir(parents=True)
    (folder / "agents_sdk" / "__init__.py").write_text("class Agent: ...\n")
    monkeypatch.setattr(sys, "path", [*sys.path, str(folder)])
    return folder


@pytest.mark.parametrize("own", ["agents_sdk.py", "agents_sdk/__init__.py"])
def test_a_shadow_that_the_users_module_imports_is_reported(
    own: str, project: Path, installed: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (project / own).parent.mkdir(exist_ok=True)
    (project / own).write_text("")
    (project / "helping.py").write_text("")
    (project / "mine.py").write_text("import agents_sdk, helping\n")
    load_modules(["mine"])
    (line,) = [record.getMessage() for record in caplog.records]
    assert str(project / own) in line and str(installed / "agents_sdk" / "__init__.py") in line


def test_a_shadow_beside_a_module_elsewhere_is_reported_too(
    project: Path, installed: Path, caplog: pytest.LogCaptureFixture
) -> None:
    elsewhere = project.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "agents_sdk.py").write_text("")
    (elsewhere / "mine.py").write_text("import agents_sdk\n")
    load_modules([str(elsewhere / "mine.py")])
    (line,) = [record.getMessage() for record in caplog.records]
    assert str(elsewhere / "agents_sdk.py") in line and str(installed) in line


def test_what_is_imported_from_where_it_is_installed_is_no_shadow(
    project: Path, installed: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (project / "helping.py").write_text("")
    (project / "mine.py").write_text("import agents_sdk, helping\n")
    load_modules(["mine"])
    assert caplog.records == []


def test_an_attribute_that_a_shadow_has_not_names_the_shadow(project: Path, installed: Path) -> None:
    (project / "agents_sdk.py").write_text("")
    (project / "mine.py").write_text("import agents_sdk\nagents_sdk.Agent()\n")
    message = message_of("mine")
    assert "has no attribute 'Agent'" in message and str(project / "agents_sdk.py") in message
    assert str(installed) in message and "rename it" in message


def test_an_import_that_fails_for_a_shadow_says_so(project: Path) -> None:
    (project / "tabnanny.py").write_text("")
    (project / "uses_it.py").write_text("from tabnanny import check\n")
    message = message_of("uses_it")
    assert "cannot import name 'check'" in message and str(project / "tabnanny.py") in message
    assert "rename it" in message
    sys.modules.pop("tabnanny", None)


def test_a_project_that_is_installed_as_well_shadows_nothing(
    project: Path, installed: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for place in (project, installed):
        (place / "our_shop.py").write_text("PRICE = 1\n")
    (project / "mine.py").write_text("import our_shop\n")
    load_modules(["mine"])
    assert caplog.records == []
