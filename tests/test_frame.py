"""What ships around the code: launch files, recipes, example data, pages and their commands, pinned versions."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, make_bert, make_decoder, run_python
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import rankery
from rankery.config import load_config
from rankery.data.records import LabelRange, QueryRecord, read_records

EXAMPLES = ROOT / "example_data"
RANGES = {"multi_level.jsonl": LabelRange(0, 2), "hits.jsonl": LabelRange(0, 2)}
FENCE = re.compile(r"^```(bash|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#:]+)\)")  # of this repository
PAGES = [
    *(ROOT / name for name in ("README.md", "README_zh.md", "CONTRIBUTING.md")),
    *sorted([*(ROOT / "docs").glob("*.md"), *(ROOT / "examples").rglob("*.md")]),
]


def blocks(page: str) -> list[tuple[str, str]]:
    """(language, text) of the commands on a page."""
    return FENCE.findall((ROOT / page).read_text(encoding="utf-8"))


def project() -> dict:
    """[project] of pyproject.toml; its values are Python literals, and Python 3.10 has no TOML reader."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    lists = {
        name: ast.literal_eval(body)
        for name, body in re.findall(r"^([\w-]+) = (\[.*?\])$", text, re.MULTILINE | re.DOTALL)
    }
    extras = {
        name: lists[name] for name in ("demo", "wandb", "deepspeed", "peft", "qlora", "gguf", "embed", "bench", "dev")
    }
    return {"dependencies": lists["dependencies"], "extras": extras}


def launch_environment(name: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What `accelerate launch --config_file config/NAME` tells the processes that it starts."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    monkeypatch.setattr(os, "environ", dict(os.environ))
    parser = launch_command_parser()
    arguments = parser.parse_args(["--config_file", str(ROOT / "config" / name), "train_reranker.py"])
    arguments, _, _ = _validate_launch_command(arguments)
    assert arguments.num_processes == 2
    return prepare_multi_gpu_env(arguments)


@pytest.mark.parametrize(
    ("name", "layer"), [("default_fsdp.yaml", "BertLayer"), ("xlmroberta_default_config.yaml", "XLMRobertaLayer")]
)
def test_fsdp_files_shard(name: str, layer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = launch_environment(name, monkeypatch)
    assert environment["ACCELERATE_USE_FSDP"] == "true"
    assert environment["FSDP_VERSION"] == "2"
    assert environment["FSDP_RESHARD_AFTER_FORWARD"] == "true"
    assert environment["FSDP_AUTO_WRAP_POLICY"] == "TRANSFORMER_BASED_WRAP"
    assert environment["FSDP_TRANSFORMER_CLS_TO_WRAP"] == layer
    assert environment["ACCELERATE_MIXED_PRECISION"] == "no"  # nothing said: the configuration decides


def test_ddp_file_shards_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = launch_environment("ddp.yaml", monkeypatch)
    assert "ACCELERATE_USE_FSDP" not in environment
    assert environment["ACCELERATE_MIXED_PRECISION"] == "no"


@pytest.mark.parametrize("path", sorted((ROOT / "config").rglob("*.yaml")), ids=lambda path: path.name)
def test_every_yaml_file_is_a_launch_file_or_a_recipe(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "distributed_type" in yaml.safe_load(path.read_text(encoding="utf-8")):
        from accelerate.commands.config.config_args import load_config_from_file

        assert load_config_from_file(str(path)).num_processes == 2
        return
    config = load_config(path)
    monkeypatch.chdir(ROOT)
    labels = LabelRange(config.min_label, config.max_label)
    assert sum(1 for _ in read_records([str(config.train_dataset)], labels)) >= 16


def example(name: str) -> list[QueryRecord]:
    return list(read_records([EXAMPLES / name], RANGES.get(name)))


def pairs(name: str) -> set[tuple[str, str, float]]:
    return {
        (record.query, document, label)
        for record in example(name)
        for document, label in zip(record.documents, record.labels, strict=True)
    }


def test_example_data_have_something_to_rank() -> None:
    files = sorted(path.name for path in EXAMPLES.glob("*.jsonl"))
    assert files == [
        "binary.jsonl",
        "binary_dev.jsonl",
        "distillation.jsonl",
        "hits.jsonl",
        "lines.jsonl",
        "multi_level.jsonl",
    ]
    for name in files:
        labels: dict[str, set[float]] = {}
        for query, _, label in pairs(name):
            labels.setdefault(query, set()).add(label)
        assert all(len(found) > 1 for found in labels.values()), f"{name}: a query whose documents are all alike"
        assert len(pairs(name)) == sum(len(record.documents) for record in example(name)), f"{name}: a pair twice"
    assert {label for *_, label in pairs("multi_level.jsonl")} == {0.0, 1.0, 2.0}
    assert len({label for *_, label in pairs("distillation.jsonl")} - {0.0, 1.0}) > 10


def test_other_shapes_hold_a_part_of_the_same_data() -> None:
    assert pairs("lines.jsonl") < pairs("binary.jsonl")
    assert pairs("hits.jsonl") < pairs("multi_level.jsonl")


def test_example_dev_queries_and_documents_are_in_no_training_file() -> None:
    held_out = pairs("binary_dev.jsonl")
    for name in ("binary.jsonl", "multi_level.jsonl", "distillation.jsonl"):
        assert not {query for query, *_ in held_out} & {query for query, *_ in pairs(name)}
        assert not {document for _, document, _ in held_out} & {document for _, document, _ in pairs(name)}


def test_pages_link_to_what_exists() -> None:
    for page in PAGES:
        for target in LINK.findall(page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
    table = re.compile(r"^\|[^|]*\| (.+) \|$", re.MULTILINE)  # the columns "kept in" and "test"
    text = (ROOT / "docs/specification.md").read_text(encoding="utf-8")
    kept = {name for cell in table.findall(text) for name in re.findall(r"\b[\w/]+\.(?:py|jsonl|yaml)\b", cell)}
    assert len(kept) > 15
    places = (ROOT, ROOT / "src/rankery", ROOT / "tests")
    missing = [name for name in kept if not any((place / name).exists() for place in places)]
    assert not missing


def test_contributing_names_what_exists() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ((?:src|config|benchmarks|docs)\S*?)[, ]", text, re.MULTILINE)
    assert len(rows) >= 10
    assert not [row for row in rows if not (ROOT / row).exists()]


def test_both_readmes_have_the_same_commands() -> None:
    assert blocks("README.md") == blocks("README_zh.md")
    assert {language for language, _ in blocks("README.md")} == {"bash", "python"}


def test_configuration_page_is_what_the_program_says() -> None:
    spec = importlib.util.spec_from_file_location("make_configuration", ROOT / "docs/make_configuration.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    page = (ROOT / "docs/configuration.md").read_text(encoding="utf-8")
    assert page == module.page(), "run: python docs/make_configuration.py"


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    """A copy of what the commands name, with tiny models under the names of the real ones."""
    for name in ("config", "example_data", "logs"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "train_reranker.py", tmp_path)
    for name in ("BAAI/bge-reranker-base", "hfl/chinese-roberta-wwm-ext", "sentence-transformers/all-MiniLM-L6-v2"):
        make_bert(tmp_path / name, max_position_embeddings=512)
    for name in ("Qwen/Qwen2.5-1.5B", "Qwen/Qwen3-Reranker-0.6B"):
        make_decoder(tmp_path / name, positions=512)
    return tmp_path


def run_block(text: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {
        **os.environ, "OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        **environment,
    }  # fmt: skip
    done = subprocess.run(["bash", "-ec", text], cwd=folder, env=variables, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done


def test_readme_commands_run(workplace: Path) -> None:
    commands = [
        (language, text)
        for language, text in blocks("README.md")
        if not re.match(r"make|pip|accelerate", text) and "nohup" not in text
    ]
    assert len(commands) == 7
    printed = {}
    for language, text in commands:
        if language == "bash":
            printed[text] = run_block(text, workplace).stdout
        else:
            (workplace / "snippet.py").write_text(text, encoding="utf-8")
            printed[text] = run_block("python snippet.py", workplace).stdout
    for name in ("training_bert", "graded", "three_epochs", "distilled"):
        assert (workplace / "output" / name / "model" / "rankery.json").is_file()
    assert {path.name for path in (workplace / "output/evaluation").iterdir()} == {
        "evaluation.json",
        "metrics.json",
        "queries.csv",
        "report.html",
        "run.trec",
        "qrels.trec",
    }
    (evaluation,) = (output for text, output in printed.items() if text.startswith("rankery evaluate"))
    ranked = json.loads(evaluation.splitlines()[-1])
    assert [entry["index"] for entry in ranked["ranking"]] in ([0], [1])
    (prediction,) = (output for text, output in printed.items() if "CrossEncoder" in text)
    assert re.match(r"tensor\(0\.\d+\) tensor\(0\.\d+\)\n[01] ", prediction)


@pytest.mark.slow
def test_readme_launch_command_runs(workplace: Path) -> None:
    (text,) = (text for _, text in blocks("README.md") if "nohup" in text)
    run_block(f"{text}wait $!", workplace, RANKERY_CPU_ENGINES="1")
    log = (workplace / "logs/training_bert.log").read_text(encoding="utf-8")
    assert "engine fsdp2, 2 processes" in log
    assert "the launch file wraps XLMRobertaLayer; this model is made of BertLayer, which is wrapped instead" in log
    assert (workplace / "output/two_gpus/model/rankery.json").is_file(), log


@pytest.mark.slow
def test_commands_of_the_guides_run(workplace: Path) -> None:
    """docs/prompts.md, and of docs/engines.md those for one machine (test_launcher.py starts two)."""
    for page in ("docs/prompts.md", "docs/engines.md"):
        for language, text in blocks(page):
            if "num_machines" in text or "nnodes" in text:
                continue
            (workplace / "snippet.py").write_text(text, encoding="utf-8")
            shutil.rmtree(workplace / "output", ignore_errors=True)
            commands = ["python snippet.py"] if language == "python" else text.splitlines()
            for command in commands:
                shutil.rmtree(workplace / "output", ignore_errors=True)
                run_block(command, workplace, RANKERY_CPU_ENGINES="1")
    shutil.rmtree(workplace / "output")
    run_block("torchrun --nproc_per_node 2 train_reranker.py --config config/training_bert.yaml", workplace)
    assert (workplace / "output/training_bert/model/rankery.json").is_file()


def test_commands_of_the_check_guide_run(workplace: Path) -> None:
    """On the example data as it ships, which has nothing that matters."""
    for language, text in blocks("docs/check.md"):
        (workplace / "snippet.py").write_text(text, encoding="utf-8")
        run_block("python snippet.py" if language == "python" else text, workplace)
    assert (workplace / "output/check.html").is_file()
    assert (workplace / "output/clean.jsonl").read_bytes() == (EXAMPLES / "lines.jsonl").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", ["docs/calibration.md", "docs/evaluation.md", "docs/runs.md", "docs/training_report.md"]
)
def test_guides_whose_commands_follow_each_other(workplace: Path, page: str) -> None:
    """A tiny model learns its training data in a second, and nothing of other queries: it is calibrated on what it has seen."""
    shutil.copy(workplace / "example_data/binary.jsonl", workplace / "example_data/binary_dev.jsonl")
    for language, text in blocks(page):
        (workplace / "snippet.py").write_text(text, encoding="utf-8")
        text = text.replace("model_name_or_path=", "lr=1e-3 epochs=10 model_name_or_path=")
        run_block("python snippet.py" if language == "python" else text, workplace)


@pytest.mark.slow
def test_distillation_example_runs(workplace: Path) -> None:
    for language, text in blocks("examples/distill_llm_to_bert/README.md"):
        (workplace / "snippet.py").write_text(text, encoding="utf-8")
        run_block("python snippet.py" if language == "python" else text, workplace)
    for name in (
        "teacher_scores.jsonl",
        "python_scores.jsonl",
        "distilled/model/rankery.json",
        "comparison/comparison.json",
    ):
        assert (workplace / "output" / name).is_file()
    scored = (workplace / "output/teacher_scores.jsonl").read_bytes()
    assert scored == (workplace / "output/python_scores.jsonl").read_bytes()


@pytest.mark.slow
def test_commands_of_the_distillation_page_run(workplace: Path) -> None:
    for _, text in blocks("docs/distillation.md"):
        run_block(text, workplace)
    found = [
        json.loads((workplace / f"output/{name}/comparison.json").read_text()) for name in ("distil", "from_scores")
    ]
    assert ["teacher" in rows for rows in found] == [True, False]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["distilling_bert", "training_listwise"])
def test_recipe_runs(workplace: Path, recipe: str) -> None:
    run_block(f"rankery train --config config/{recipe}.yaml", workplace)
    assert (workplace / f"output/{recipe}/model/rankery.json").is_file()


def test_make_help_lists_the_targets() -> None:
    listed = {line.split()[0] for line in subprocess.check_output(["make", "help"], text=True, cwd=ROOT).splitlines()}
    assert {"demo", "test", "test-all", "engines", "bench", "clean", "help"} <= listed


@pytest.mark.parametrize("version", ["3.10", "3.11", "3.12"])
def test_constraints_pin_every_dependency_inside_its_range(version: str) -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {}
    for requirement in (Requirement(line) for line in lines if line and not line.startswith("#")):
        environment = {"python_version": version, "python_full_version": f"{version}.1"}
        if requirement.marker is None or requirement.marker.evaluate(environment):
            assert canonicalize_name(requirement.name) not in pinned, f"{requirement.name} twice"
            (exact,) = requirement.specifier
            assert exact.operator == "=="
            pinned[canonicalize_name(requirement.name)] = exact.version
    wanted = [Requirement(text) for text in sum(project()["extras"].values(), project()["dependencies"])]
    for requirement in wanted:
        if requirement.name != "rankery":
            assert pinned[canonicalize_name(requirement.name)] in requirement.specifier, str(requirement)


def test_every_dependency_has_its_reason() -> None:
    text = (ROOT / "docs/decisions.md").read_text(encoding="utf-8")
    chapter = text[text.index("## Dependencies") : text.index("### Extras")]
    reasons = {
        name.strip().lower() for line in re.findall(r"^### (.+)$", chapter, re.MULTILINE) for name in line.split(",")
    }
    assert reasons == {Requirement(dependency).name.lower() for dependency in project()["dependencies"]}
    table = text[text.index("### Extras") :]
    assert set(re.findall(r"^\| (\w+) \|", table, re.MULTILINE)) - {"extra"} == set(project()["extras"])


def test_help_waits_for_nothing() -> None:
    code = (
        "import sys, rankery.cli\nassert not {'torch', 'transformers', 'pydantic', 'numpy', 'yaml'} & set(sys.modules)"
    )
    assert run_python(code).returncode == 0
    done = run_python("from rankery.cli import main; main(['--help'])")
    assert {"train", "evaluate", "rerank", "demo"} <= set(done.stdout.split())


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted((ROOT / "src").rglob("*.py")), ids=lambda path: path.stem)
def test_every_module_imports_alone(path: Path) -> None:
    module = ".".join(path.relative_to(ROOT / "src").with_suffix("").parts).removesuffix(".__init__")
    done = run_python(f"import {module}")
    assert done.returncode == 0, done.stderr


def test_no_package_hides_a_function_of_its_name() -> None:
    """`import rankery.evaluation` puts the name `evaluation` into rankery: a package `evaluate` would replace the function."""
    assert not [name for name in rankery.__all__ if importlib.util.find_spec(f"rankery.{name}")]
