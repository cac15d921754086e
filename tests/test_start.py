"""What is in the folder where a command is given is data: no file there is imported, by no process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import run_python

import rankery
from rankery.cli import main
from rankery.processes import MOST_PROCESSES

TRAPS = (
    "accelerate",
    "argparse",
    "torch",
    "torchrun",
    "typing",
    "yaml",
    "__future__",
    "rankery",
    "sitecustomize_",
    "numpy",
    "signal",
)


@pytest.fixture
def trapped(tmp_path: Path) -> Path:
    for name in TRAPS:
        (tmp_path / f"{name}.py").write_text(f"open('ran', 'a').write('{name} ')\nraise SystemExit(77)\n")
    return tmp_path


def ran(folder: Path, command: list[str]) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONSAFEPATH", "PYTHONPATH")}
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True, timeout=200
    )
    assert not (folder / "ran").exists(), (folder / "ran").read_text()
    return done


def test_nothing_of_the_current_folder_is_imported(trapped: Path) -> None:
    start = str(Path(rankery.__file__).with_name("start.py"))
    (trapped / "rankery.py").unlink()  # -m looks for rankery itself there, before anything of ours runs
    for command in ([start, "--version"], ["-m", "rankery.cli", "--version"]):
        done = ran(trapped, command)
        assert (done.returncode, done.stdout) == (0, f"rankery {rankery.__version__}\n"), done.stderr


@pytest.mark.slow
def test_nor_by_the_processes_of_a_launch(trapped: Path) -> None:
    """An accelerate.py in the current folder ran."""
    code = "import sys; sys.path.remove(''); from rankery.launcher import launch; sys.exit(launch(2, 'ddp', ['--version']))"
    done = ran(trapped, ["-c", code])
    assert (done.returncode, done.stdout.count("rankery ")) == (0, 2), done.stderr


def test_start_takes_its_own_folder_off_the_path() -> None:
    code = "import runpy, sys; sys.argv = ['s', '--version']\ntry: runpy.run_path(sys.argv[0] if 0 else START, run_name='__main__')\nexcept SystemExit: pass\nimport config"
    start = str(Path(rankery.__file__).with_name("start.py"))
    done = run_python(f"import sys; sys.path.insert(0, {os.path.dirname(start)!r}); START = {start!r}\n{code}")
    assert "No module named 'config'" in done.stderr


@pytest.mark.parametrize("count", ["99999", "0", "-1", str(MOST_PROCESSES + 1)])
@pytest.mark.parametrize("verb", [["train"], ["evaluate"], ["score", "--model", "m", "--data", "d", "--output", "o"]])
def test_as_many_processes_as_a_machine_lives_through(
    verb: list[str], count: str, capsys: pytest.CaptureFixture
) -> None:
    assert main([*verb, "--processes", count]) == 2
    assert capsys.readouterr().err == f"error: --processes is {count}; expected at least 1, and 256 at most\n"
