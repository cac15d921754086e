"""Configuration: order, strictness, messages, round trip; every recipe and launch file that ships."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from conftest import ROOT

from rankery.config import TrainConfig, dump_config, load_config, parse_overrides
from rankery.errors import InputError

REQUIRED = {"model_name_or_path": "m", "train_dataset": "t.jsonl", "output_dir": "o"}


def test_default_then_yaml_then_command_line(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("model_name_or_path: m\ntrain_dataset: t\noutput_dir: o\nlr: 5e-5\nepoch: 3\nval_dataset:\n")
    config = load_config(file, parse_overrides(["--epochs=4", "mixed_precision=no", "recall_at=[5, 20]"]))
    assert (config.lr, config.epochs, config.seed, config.val_dataset) == (5e-5, 4, 42, None)
    assert (config.mixed_precision, config.recall_at) == ("no", [5, 20])
    assert load_config(yaml.safe_load(dump_config(config))) == config
    with pytest.raises(ValueError, match="frozen"):
        config.lr = 1.0  # type: ignore[misc]


def test_empty_texts_of_the_command_line() -> None:
    given = parse_overrides(["no_word=", "seq=", "query_format=", "val_dataset="])
    assert given == {"no_word": "", "seq": "", "query_format": None, "val_dataset": None}


@pytest.mark.parametrize("key", ["train_dataset", "val_dataset", "lora_target_modules"])
def test_lists_on_the_command_line(key: str) -> None:
    """Of every key that takes a text or a list of texts; a text stands as it is."""
    wanted = {key: ["a", "b c"]} | ({"lora_rank": 8} if key == "lora_target_modules" else {})
    given = parse_overrides([f"{key}=[a, 'b c']"])
    assert getattr(load_config({**REQUIRED, **wanted}, given), key) == ["a", "b c"]
    assert parse_overrides([f"{key}=a: b"]) == {key: "a: b"}


def test_paths_and_tuples_from_python() -> None:
    config = load_config(
        {**REQUIRED, "train_dataset": [Path("a"), "b"]}, {"val_dataset": (Path("c"),), "recall_at": (5, 20)}
    )
    assert (config.train_dataset, config.val_dataset, config.recall_at) == (["a", "b"], ["c"], [5, 20])
    assert load_config({**REQUIRED, "val_dataset": ()}).val_dataset is None


def test_mappings_on_the_command_line() -> None:
    given = parse_overrides(["lr_groups={classifier: 1e-3, '^bert': 2e-5}", "loss_type={point_ce: 2}"])
    config = load_config(REQUIRED, given)
    assert config.lr_groups == {"classifier": 1e-3, "^bert": 2e-5}
    assert config.loss_type == {"point_ce": 2.0}


def test_yaml_booleans_do_not_eat_precision_no(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("model_name_or_path: m\ntrain_dataset: t\noutput_dir: o\nmixed_precision: no\n")
    assert load_config(file).mixed_precision == "no"


def test_all_problems_at_once_with_lines(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("model_name_or_path: m\noutput_dir: o\nnum_label: 2\nlr: -1\nlearning_rate: 3\nmodel_type: gpt\n")
    with pytest.raises(InputError) as caught:
        load_config(file, {"seed": "x"})
    text = str(caught.value)
    for expected in (
        f"{file}:3: unknown key num_label; did you mean num_labels?",
        f"{file}:5: unknown key learning_rate; did you mean lr?",
        f"{file}:4: lr is -1",
        f"{file}:6: model_type is 'gpt'",
        "command line: seed is 'x'",
        "train_dataset is not set",
    ):
        assert expected in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_label": 0}, "min_label is 0 and max_label 0"),
        (
            {"relevant_above": -0.5},
            "relevant_above is -0.5 with labels from 0 to 1; expected a number from min_label to",
        ),
        ({"relevant_above": 3, "max_label": 3}, "relevant_above is 3 with labels from 0 to 3"),
        ({"relevant_above": 0, "min_label": 1, "max_label": 3}, "relevant_above is 0 with labels from 1 to 3"),
        ({"relevant_above": float("nan")}, "relevant_above is nan"),
        ({"document_format": "d"}, "document_format is 'd'"),
        ({"special_token": "</s>"}, "bert_encoder does not use it"),
        ({"model_type": "llm_decoder", "no_word": " no"}, "no_word is ' no', but head is not yes_no"),
        (
            {"model_type": "llm_decoder", "head": "yes_no", "num_labels": 2, "max_label": 1},
            "a yes_no head gives one score",
        ),
        (
            {
                "model_type": "llm_decoder",
                "prompt": "qwen3-reranker",
                "head": "score",
                "seq": "",
                "query_format": "q: {}",
            },
            "prompt is qwen3-reranker, which sets query_format, seq, head too; leave them empty, or leave prompt out",
        ),
        (
            {"lora_rank": 8, "lora_merge": False, "save_dtype": "bf16"},
            "save_dtype is bf16, but lora_merge is false, and adapters are saved in fp32",
        ),
        ({"lora_alpha": 8}, "lora_alpha is 8, but lora_rank is empty"),
        ({"num_labels": 3}, "num_labels is 3"),
        ({"num_labels": 2, "loss_type": "point_mse"}, "with loss_type point_mse"),
        ({"resume": True, "overwrite": True}, "resume and overwrite are both true"),
        ({"lr_groups": {"(": 1e-3}}, "is no regular expression"),
        ({"epoch": 1, "epochs": 2}, "epoch and epochs are set; they are one key"),
    ],
)
def test_contradictions(change: dict, message: str) -> None:
    with pytest.raises(InputError, match=message.replace("(", r"\(").replace(")", r"\)")):
        load_config({**REQUIRED, **change})


def test_relevant_above_within_the_labels() -> None:
    for above in (1, 1.5, 2):
        assert (
            load_config({**REQUIRED, "min_label": 1, "max_label": 3, "relevant_above": above}).relevant_above == above
        )


def test_files_that_are_no_configuration(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    for text, message in (
        ("a: [", "is not YAML"),
        ("- 1", "holds no keys"),
        ("lr: 1\nlr: 2", "c.yaml:2: lr is set twice"),
        ("seed: 1\nlr: !!float x", "c.yaml:2: is not YAML: 'x' is no float"),
        ("lr: !!timestamp x", "c.yaml:1: is not YAML: 'x' is no timestamp"),
    ):
        file.write_text(text)
        with pytest.raises(InputError, match=message):
            load_config(file)
    with pytest.raises(InputError, match="cannot be read"):
        load_config(tmp_path / "nowhere.yaml")
    with pytest.raises(InputError, match="expected key=value"):
        parse_overrides(["lr"])
    with pytest.raises(InputError, match="command line: lr is '!!float x', which is not YAML: 'x' is no float"):
        parse_overrides(["lr=!!float x"])


def test_every_key_is_documented() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text()
    for name, info in TrainConfig.model_fields.items():
        assert info.description
        assert f"| `{name}` |" in page, f"docs/configuration.md lacks {name}: python docs/make_configuration.py"
        assert info.description in page


@pytest.mark.parametrize("name", ["training_bert.yaml", "training_listwise.yaml", "distilling_bert.yaml"])
def test_recipes_load(name: str) -> None:
    config = load_config(ROOT / "config" / name)
    assert (ROOT / str(config.train_dataset)).is_file()
    assert config.attention_dropout == 0


@pytest.mark.parametrize("path", sorted((ROOT / "config").glob("*.yaml")), ids=lambda path: path.name)
def test_launch_files_leave_training_to_the_configuration(path: Path) -> None:
    values = yaml.safe_load(path.read_text())
    if "distributed_type" not in values:
        return
    flat = {**values, **values.get("fsdp_config", {})}
    assert not [key for key in flat if "precision" in key or "accumulation" in key or "clipping" in key]
    if values["distributed_type"] == "FSDP":
        assert flat["fsdp_version"] == 2
        assert flat["fsdp_reshard_after_forward"] is True
