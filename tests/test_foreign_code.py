"""No code of a checkpoint runs, and nobody is asked whether it may: trust_remote_code is said in every call that opens something."""

from __future__ import annotations

import ast
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from rankery import InputError
from rankery.models.opening import open_reranker

OPENS = re.compile(r"^(Auto\w+|\w*auto_class\w*|SentenceTransformer|AutoPeft\w*)$")
METHODS = ("from_pretrained", "from_config")


def opening_calls(tree: ast.AST) -> list[ast.Call]:
    """Calls of loaders of transformers and sentence-transformers; our own classes refuse code by default."""
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        call = node.func
        if isinstance(call, ast.Name) and call.id == "SentenceTransformer":
            found.append(node)
        if isinstance(call, ast.Attribute) and call.attr in METHODS:
            owner = call.value.func if isinstance(call.value, ast.Call) else call.value
            name = owner.id if isinstance(owner, ast.Name) else getattr(owner, "attr", "")
            if OPENS.match(name):
                found.append(node)
    return found


def says_trust(call: ast.Call) -> bool:
    """By name, or in hub options, which hold it."""
    hubs = [ast.unparse(key.value) for key in call.keywords if key.arg is None]
    return any(key.arg == "trust_remote_code" for key in call.keywords) or any(hub.endswith("hub") for hub in hubs)


def test_every_call_that_opens_something_says_whether_code_may_run() -> None:
    calls, silent = 0, []
    for file in sorted((ROOT / "src").rglob("*.py")):
        for call in opening_calls(ast.parse(file.read_text(encoding="utf-8"))):
            calls += 1
            if not says_trust(call):
                silent.append(f"{file.relative_to(ROOT)}:{call.lineno}")
    assert calls > 10, "the test sees the calls"
    assert not silent


def test_the_walk_finds_a_silent_call() -> None:
    (call,) = opening_calls(ast.parse("AutoModel.from_pretrained(name, dtype=x)"))
    assert not says_trust(call)
    (call,) = opening_calls(ast.parse("_auto_class(head).from_pretrained(name, **source.base_hub)"))
    assert says_trust(call)


def test_code_of_a_folder_does_not_run(bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where standard input would say yes."""
    folder = Path(shutil.copytree(bert, tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    names = {"AutoConfig": "own.Config", "AutoModelForSequenceClassification": "own.Model", "AutoModel": "own.Model"}
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "own", "auto_map": names}))
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nraise SystemExit(7)\n")
    (tmp_path / "stdin").write_text("y\n" * 9)
    with (tmp_path / "stdin").open() as answers:
        monkeypatch.setattr(sys, "stdin", answers)
        with pytest.raises(InputError, match="contains custom code"):
            open_reranker(folder)
    assert not (tmp_path / "ran").exists()


def test_bounds_are_of_loaders_that_refuse_code() -> None:
    """peft 0.20 and sentence-transformers 6.0 were the first; what is installed refuses."""
    text = (ROOT / "pyproject.toml").read_text()
    assert set(re.findall(r'"(peft[^"]*)"', text)) == {"peft>=0.20"}
    assert set(re.findall(r'"(sentence-transformers[^"]*)"', text)) == {"sentence-transformers>=6.0"}
    auto = pytest.importorskip("peft.auto")
    assert not auto.check_import_allowlist(auto.get_default_import_allowlist(), "os")
    misc = pytest.importorskip("sentence_transformers.util.misc")
    with pytest.raises(ValueError, match="trust_remote_code"):
        misc.import_module_class("os.path.Join", "some/folder")
