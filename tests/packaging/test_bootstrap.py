"""Setting up on a machine that lacks something says what to install, and installs nothing half."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

WITHOUT_PIP = f"""#!/bin/sh
case "$*" in
    *"import ensurepip"* | "-m pip"* | "-m ensurepip"*) exit 1 ;;
esac
exec {sys.executable} "$@"
"""


def set_up(venv: Path, programs: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the script with nothing on PATH but ``programs`` and what the shell needs."""
    dirname = shutil.which("dirname")
    assert dirname
    (programs / "dirname").symlink_to(dirname)
    return subprocess.run(
        ["/bin/sh", ROOT / "scripts" / "bootstrap", venv, "test"],
        env={**environment, "PATH": os.fspath(programs)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_machine_without_python_is_told_what_to_install(tmp_path: Path) -> None:
    done = set_up(tmp_path / "venv", tmp_path)
    assert done.returncode == 1
    assert "No Python 3.11 or newer was found" in done.stderr
    assert "sudo apt install python3 python3-venv" in done.stderr


def test_an_unsuitable_interpreter_is_refused_by_name(tmp_path: Path) -> None:
    done = set_up(tmp_path / "venv", tmp_path, PYTHON="/bin/false")
    assert done.returncode == 1
    assert "PYTHON=/bin/false is not a Python 3.11 or newer" in done.stderr


def test_a_python_without_ensurepip_and_pip_is_told_what_to_install(tmp_path: Path) -> None:
    python = tmp_path / "python3"
    python.write_text(WITHOUT_PIP)
    python.chmod(0o755)
    done = set_up(tmp_path / "venv", tmp_path)
    assert done.returncode == 1
    assert "it lacks ensurepip, and no pip could be borrowed" in done.stderr
    assert "sudo apt install python3-venv" in done.stderr
