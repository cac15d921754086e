"""Every command and code block of the specification, with small models put in under the names of the large ones."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from conftest import ROOT, make_bert, make_decoder
from test_frame import run_block

BLOCKS = yaml.safe_load((ROOT / "tests" / "specification.yaml").read_text(encoding="utf-8"))
ENGINES = {"training_bert": "fsdp2", "distilling_bert": "fsdp2", "training_llm": "zero1"}


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    for name in ("config", "example_data", "logs"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "train_reranker.py", tmp_path)
    for name in ("BAAI/bge-reranker-base", "hfl/chinese-roberta-wwm-ext", "bge-reranker-m3-base"):
        make_bert(tmp_path / name, max_position_embeddings=512)
    for name in ("Qwen/Qwen2.5-1.5B", "Qwen2-1.5B-Instruct"):
        make_decoder(tmp_path / name, positions=512)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("name", BLOCKS["shell"])
def test_training_commands(workplace: Path, name: str) -> None:
    run_block(f"{BLOCKS['shell'][name]}wait $!", workplace, RANKERY_CPU_ENGINES="1")
    (log,) = (path.read_text() for path in (workplace / "logs").glob("*.log"))
    assert f"engine {ENGINES[name]}, 2 processes" in log
    assert (workplace / "output" / name / "model" / "rankery.json").is_file(), log


@pytest.mark.parametrize("name", BLOCKS["python"])
def test_prediction_code(workplace: Path, name: str) -> None:
    text = BLOCKS["python"][name]["text"]
    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    code = f"import torch\nfrom rankery import CrossEncoder, LLMDecoder\n{text.replace('cuda:0', device)}"
    (workplace / "snippet.py").write_text(code)
    printed = run_block("python snippet.py", workplace).stdout
    assert len(re.findall(r"tensor\(0\.\d+", printed)) == 2


def test_every_promise_names_a_test_that_is_there() -> None:
    page = (ROOT / "docs" / "specification.md").read_text(encoding="utf-8")
    named = re.findall(r"(test_\w+)\.py::(test_\w+)", page)
    assert len(named) >= 25
    for module, function in named:
        assert f"def {function}(" in (ROOT / "tests" / f"{module}.py").read_text(encoding="utf-8"), (
            f"{module}::{function}"
        )
