"""Pages of hostile data: no tag of a text is alive, and a policy forbids what a text might smuggle in; so for every page there is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import write_rows
from hostile import TEXTS, live_markup

import rankery
from rankery.cli import main

MARKUP = [text for text in TEXTS if "<" in text or "&" in text or "script" in text]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Queries of markup; their names, and the file's, are too."""
    folder = tmp_path / "<img src=x onerror=alert(1)>"
    folder.mkdir()
    rows = [
        {
            "query": f"{text} {i}",
            "pos": [f"{text} sun {text}", text],
            "neg": [f"{other} sea" for other in MARKUP[:3]] + [text],
        }
        for i, text in enumerate(MARKUP * 2)
    ]
    return write_rows(folder / "<script>alert(1)<script>.jsonl", rows)


def test_pages_of_check_and_evaluate(data: Path, tmp_path: Path, bert: Path) -> None:
    assert main(["check", str(data), "--against", str(data), "--html", str(tmp_path / "check.html")]) == 1
    model = data.parent / "<b>model"
    rankery.CrossEncoder.from_pretrained(bert, seed=0).save_pretrained(model)
    words = ["--model", str(model), "--baseline", "bm25", "--data", str(data), "--output", str(tmp_path / "e")]
    assert main(["evaluate", *words]) == 0
    for page in (tmp_path / "check.html", tmp_path / "e" / "report.html"):
        words_of_page = page.read_text(encoding="utf-8")
        assert live_markup(words_of_page) is None
        assert words_of_page.count("&lt;script&gt;alert(1)") > 2, "the texts are there"


def test_page_of_calibrate(tmp_path: Path, bert: Path) -> None:
    """Labels that follow the scores, so that there is something to fit."""
    model = tmp_path / "<b onclick=alert(1)>"
    reranker = rankery.CrossEncoder.from_pretrained(bert, seed=0)
    reranker.save_pretrained(model)
    rows = []
    for i, text in enumerate(MARKUP * 2):
        texts = [f"{text} {word}" for word in ("sun", "sea", "moon", "tree", "rain", "bird")]
        scores = reranker.compute_score([(f"{text} {i}", one) for one in texts])
        hits = [
            {"content": one, "label": int(above)} for one, above in zip(texts, scores > scores.median(), strict=True)
        ]
        rows.append({"query": f"{text} {i}", "hits": hits})
    data = write_rows(tmp_path / "<script>alert(1)<script>.jsonl", rows)
    page = tmp_path / "c.html"
    assert main(["calibrate", "--model", str(model), "--data", str(data), "--html", str(page)]) == 0
    assert live_markup(page.read_text(encoding="utf-8")) is None
    assert "&lt;script&gt;alert(1)" in page.read_text(encoding="utf-8")


def test_pages_of_trainings(config: dict, tmp_path: Path) -> None:
    folder = tmp_path / "<img src=x onerror=alert(1)>"
    for name in ("<script>1", "<b>2"):
        rankery.train({**config, "output_dir": str(folder / name), "epochs": 1, "seed": len(name)})
    rankery.compare([folder / "<script>1", folder / "<b>2"], tmp_path / "compare.html")
    pages = [tmp_path / "compare.html", *folder.rglob("*.html")]
    assert len(pages) > 1
    for page in pages:
        assert live_markup(page.read_text(encoding="utf-8")) is None
    assert "&lt;script&gt;1" in pages[0].read_text(encoding="utf-8")
    assert json.loads((folder / "<b>2" / "run.json").read_text())
