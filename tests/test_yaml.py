"""Configurations mean what they say, and cost what their text costs."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from rankery.config import load_config, parse_overrides
from rankery.config_yaml import MOST_BYTES, Dumper, Loader, parse_yaml
from rankery.errors import InputError

REQUIRED = "model_name_or_path: m\ntrain_dataset: d\noutput_dir: o\n"
BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join([f'*{chr(97 + i)}'] * 10)}]\n" for i in range(9)
)
MERGES = "a: &a {x: 1}\n" + "".join(
    f"b{i}: &b{i} {{<<: [{', '.join([f'*b{i - 1}' if i else '*a'] * 9)}]}}\n" for i in range(12)
)


@pytest.mark.parametrize(
    "word", ["1:30", "1:30.5", "010", "-010", "1_000", "1_0.5", "yes", "on", "0b1", "0o7", "2024-01-01", "=", "1e٥"]
)
def test_words_that_other_readers_take_for_numbers(word: str) -> None:
    """1:30 was 90, and 010 is 8 to some and 10 to others: they are words, so a key that wants a number refuses them."""
    assert yaml.load(f"a: {word}", Loader) == {"a": word}
    assert parse_overrides([f"batch_size={word}"]) == {"batch_size": word}


@pytest.mark.parametrize(
    ("word", "value"),
    [("0", 0), ("-7", -7), ("+7", 7), ("0x1F", 31), ("1.", 1.0), (".5", 0.5), ("-1.5", -1.5), ("5e-5", 5e-5), ("1.5E3", 1500.0), ("~", None), ("true", True)],
)  # fmt: skip
def test_what_numbers_are(word: str, value: object) -> None:
    found = yaml.load(f"a: {word}", Loader)["a"]
    assert (found, type(found)) == (value, type(value))


@given(st.text(st.sampled_from("0123456789:_.eE+-xobn~=<*&yYsNO '\"#\n"), max_size=9))
@settings(max_examples=200, deadline=None)
def test_what_is_written_is_read_back_by_us_and_by_others(word: str) -> None:
    written = yaml.dump({"a": [word]}, Dumper=Dumper)
    assert yaml.load(written, Loader) == yaml.safe_load(written) == {"a": [word]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "c.yaml: stands for .* values or more"),
        (MERGES, "c.yaml: stands for"),
        ("a: &a [*a]\n", "c.yaml: stands for"),
        ("a: " + "[" * 50_000, "c.yaml: is nested too deeply"),
        ("a: " + "{b: " * 50_000, "c.yaml: is nested too deeply"),
        ("- " * 50_000, "c.yaml: is nested too deeply"),
        (REQUIRED + "# " + "x" * MOST_BYTES, "c.yaml: is larger than 1 MiB"),
        (REQUIRED + "loss_type: {point_ce: 1, point_ce: 2}\n", "c.yaml:4: point_ce is set twice"),
        (REQUIRED + "lr: 1:30\n", r"c.yaml:4: lr is '1:30'; Input should be a valid number"),
        (REQUIRED + "num_workers: 99999\n", "c.yaml:4: num_workers is 99999; Input should be less than or equal to 256"),
        (REQUIRED + f"lr_groups: {['x' * 400] * 400}\n", "c.yaml:4: lr_groups is .* valid dictionary"),
        ("? [a]\n: b\n", "c.yaml:1: is not YAML"),
        ("a: b\n---\nc: d\n", "c.yaml:2: is not YAML"),
        ("a: \0\n", "c.yaml: is not YAML"),
    ],
)  # fmt: skip
def test_hostile_files(tmp_path: Path, text: str, message: str) -> None:
    """A bomb of 445 bytes ran for minutes."""
    (tmp_path / "c.yaml").write_text(text)
    begun = time.process_time()
    with pytest.raises(InputError, match=message) as caught:
        load_config(tmp_path / "c.yaml")
    assert time.process_time() - begun < 2
    assert max(map(len, caught.value.problems)) < 600


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("loss_type={a: " + "[" * 9999, "command line: loss_type is .*, which is n"),
        ("lr_groups={a: &a [1], b: &b [*a, *a], c: [*b, *d]}", "which is not YAML"),
        ("lr=&a [*a]", "command line: lr is '&a .*', which stands for"),
        ("loss_type={point_ce: 1, point_ce: 2}", "command line: loss_type is .*, which sets point_ce twice"),
    ],
)
def test_hostile_words(word: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_overrides([word])


def test_aliases_of_a_plain_kind_are_read() -> None:
    assert parse_yaml("a: &x [1, 2]\nb: *x\nc: {<<: {d: 1}, e: 2}", "here")[1] == {
        "a": [1, 2],
        "b": [1, 2],
        "c": {"d": 1, "e": 2},
    }
