"""A seeded part of the malformed input of hostile.py: a clean error that leaves nothing, or a good result."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import FUZZ
from hostile import Case, cases, live_markup, verdict

import rankery

PART = 12  # cases of each test


@pytest.fixture(scope="module")
def saved(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    rankery.CrossEncoder.from_pretrained(bert, seed=0).save_pretrained(folder)
    return folder


@pytest.mark.fuzz
@pytest.mark.parametrize("seed", range(4 * FUZZ))
def test_a_clean_error_or_a_good_result(seed: int, saved: Path, tmp_path: Path) -> None:
    found = [(case.name, case.words, what) for case in cases(seed, PART) if (what := verdict(case, tmp_path, saved))]
    assert not found


def test_a_verdict_can_be_a_finding(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leftovers, changes, tracebacks and live tags are seen."""
    case = Case(
        "by hand",
        ["evaluate", "--baseline", "bm25", "--data", "a.jsonl"],
        {"a.jsonl": b'{"query": "q", "pos": ["a"], "neg": ["b"]}\n'},
    )
    assert verdict(case, tmp_path, saved) is None
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr("hostile.main", lambda words: Path("left.jsonl").write_text("{") and 2)
    assert "no error is said" in str(verdict(case, tmp_path, saved))
    monkeypatch.setattr("hostile.main", lambda words: Path("left.jsonl").write_text("{") and 0)
    assert "left.jsonl: Expecting" in str(verdict(case, tmp_path, saved))
    monkeypatch.setattr("hostile.main", lambda words: Path("a.jsonl").write_text("") or 0)
    assert verdict(case, tmp_path, saved) == "changed: ['a.jsonl']"
    monkeypatch.setattr("hostile.main", lambda words: 1 // 0)
    assert "ZeroDivisionError" in str(verdict(case, tmp_path, saved))
    policy = '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'">'
    assert live_markup(f"{policy}<p>&lt;script&gt;</p>") is None
    assert live_markup(f"{policy}<script>1</script>") == "alive: script"
    assert "onclick" in str(live_markup(f"{policy}<p onclick='x'>"))
    assert "the policy is []" in str(live_markup("<p></p>"))
