"""`rankery check`: every kind of finding is found where it was planted, and nowhere else."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from conftest import write_rows

import rankery
from rankery.checking.report import Report
from rankery.cli import main
from rankery.errors import InputError


def clean_rows(count: int = 12, start: int = 0) -> list[dict]:
    """Nothing to find: every text is its own."""
    chooser = np.random.default_rng(start)

    def text(words: int) -> str:
        letters = "abcdefghijklmnopqrstuvwxyz"
        return " ".join("".join(chooser.choice(list(letters), chooser.integers(3, 9))) for _ in range(words))

    return [{"query": text(6), "pos": [text(25)], "neg": [text(25), text(25), text(25)]} for _ in range(count)]


def kinds(report: Report) -> set[str]:
    return {finding.kind for finding in report.findings}


def checked(tmp_path: Path, rows: list[dict], **options: object) -> Report:
    return rankery.check(write_rows(tmp_path / "data.jsonl", rows), **options)  # type: ignore[arg-type]


def test_clean_data_has_no_findings(tmp_path: Path) -> None:
    other = write_rows(tmp_path / "other.jsonl", clean_rows(start=1))
    report = checked(tmp_path, clean_rows(), against=other)
    assert (report.status, report.findings, report.problems) == (0, [], [])
    assert (report.lines, report.queries, report.pairs, report.documents) == (12, 12, 48, 48)
    assert report.labels == [("0", 36), ("1", 12)]


def planted(kind: str, rows: list[dict]) -> dict:
    """Plants one finding of a kind in lines 3 and, where it takes two, 7; gives options."""
    third, seventh = rows[2], rows[6]
    if kind == "empty_query":
        third["query"] = " \n"
    elif kind == "empty_document":
        third["neg"][1] = "\t"
    elif kind == "duplicate_query":
        seventh["query"] = third["query"].upper() + " "
    elif kind == "repeated_document":
        third["neg"].append(third["neg"][0].title())
    elif kind == "contradiction":
        third["neg"].append(third["pos"][0])
    elif kind == "different_labels":
        third["pos_scores"] = [2, 1, 0, 0]
        third["pos"] += [third["pos"][0], *third.pop("neg")[:2]]
        return {"max_label": 2}
    elif kind == "no_positive":
        third["pos"] = []
    elif kind == "no_negative":
        third["neg"] = []
    elif kind == "one_score":
        for row in rows:
            row |= {"pos": row["pos"] + row.pop("neg"), "pos_scores": [0.9, 0.5, 0.25, 0.1]}
        third["pos_scores"] = [0.5] * 4
    elif kind == "label_range":
        for row in rows:
            row |= {"pos": row["pos"] + row.pop("neg"), "pos_scores": [1, 0, 0, 0]}
        third["pos_scores"][0] = 3
    elif kind == "mixed_labels":
        for row in rows[3:]:
            row |= {"pos": row["pos"] + row.pop("neg"), "pos_scores": [1, 0, 0, 0]}
        seventh["pos_scores"] = [2, 0, 0, 0]
    elif kind == "shared_document":
        seventh["neg"][0] = third["neg"][0]
    elif kind == "near_query":
        seventh["query"] = third["query"] + "?!"
    elif kind == "near_document":
        seventh["neg"][0] = third["neg"][1] + " once more"
    elif kind == "near_contradiction":
        third["neg"][2] = third["pos"][0].replace(" ", ", ")
    elif kind == "cut_positive":
        third["pos"][0] = " ".join([third["pos"][0], *(f"w{i}" for i in range(600))])
        for row in rows:
            row["neg"] = row["neg"][:2]
    elif kind == "false_negative":
        third |= {"pos_scores": [0.6], "neg_scores": [0.1, 0.9, 0.2]}
    elif kind == "wrong_positive":
        third["pos"].append("an entirely different text of some words that nobody has written before")
        third |= {"pos_logits": [4.0, -9.0], "neg_logits": [-3.0, -4.0, 1.0]}
    elif kind == "mixed_scripts_queries":
        third["query"] = "月亮离地球有多远呢请告诉我"
    elif kind == "other_script":
        third["pos"][0] = "月球与地球的平均距离约为三十八万公里。"
    return {}


ALONE = (
    "empty_query", "empty_document", "duplicate_query", "repeated_document", "contradiction", "different_labels", "no_positive",
    "no_negative", "one_score", "near_query", "near_document", "shared_document", "cut_positive", "false_negative", "wrong_positive",
    "label_range",
)  # fmt: skip
TOGETHER = {  # what cannot be planted alone
    "near_contradiction": {"near_contradiction", "near_document"},
    "mixed_labels": {"mixed_labels", "label_range"},
    "mixed_scripts_queries": {"mixed_scripts_queries", "other_script"},
    "other_script": {"other_script", "mixed_scripts_documents"},
}


@pytest.mark.parametrize("kind", [*ALONE, *TOGETHER])
def test_what_is_planted_is_found_and_nothing_else(tmp_path: Path, kind: str) -> None:
    rows = clean_rows()
    report = checked(tmp_path, rows, **planted(kind, rows))
    assert kinds(report) == TOGETHER.get(kind, {kind}), str(report)
    assert report.status == int(any(finding.matters for finding in report.findings))
    finding = report.finding(kind)
    assert finding is not None
    assert finding.count == (3 if kind == "mixed_labels" else 1)
    for example in finding.examples:
        lines = {int(where.rsplit(":", 1)[1]) for where in example.where}
        assert lines <= {3, 7}
        assert all(example.texts) or kind.startswith("empty")


def test_leaks_into_other_files(tmp_path: Path) -> None:
    rows, others = clean_rows(), clean_rows(8, start=1)
    others[0] = {
        "query": f" {rows[4]['query'].upper()}",
        "pos": [rows[4]["pos"][0], *others[0]["pos"]],
        "neg": others[0]["neg"],
    }
    others[1]["query"] = rows[5]["query"].replace(" ", "-")
    others[2]["neg"][0] = rows[7]["neg"][2]
    others[3]["neg"][1] = rows[8]["neg"][0] + " more"
    report = checked(tmp_path, rows, against=write_rows(tmp_path / "other.jsonl", others))
    found = {finding.kind: (finding.count, finding.of) for finding in report.findings}
    assert found == {
        "leaked_query": (1, 8), "leaked_pair": (1, 33), "near_leaked_query": (1, 8), "leaked_document": (2, 33),
        "near_leaked_document": (1, 33),
    }  # fmt: skip
    lines = {
        kind: [where.rsplit("/", 1)[1] for where in report.finding(kind).examples[0].where]
        for kind in found
        if "query" in kind
    }  # type: ignore[union-attr]
    assert lines == {
        "leaked_query": ["data.jsonl:5", "other.jsonl:1"],
        "near_leaked_query": ["data.jsonl:6", "other.jsonl:2"],
    }


def test_all_problems_of_all_lines_are_said(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    data = tmp_path / "data.jsonl"
    lines = [json.dumps(row) for row in clean_rows(60)]
    for at in range(0, 60, 2):
        lines[at] = ["[]", '{"query": 1, "pos": [2]}', "{"][at % 3]
    data.write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "empty.jsonl").touch()
    assert main(["check", str(data), str(tmp_path / "empty.jsonl")]) == 2
    printed = capsys.readouterr().out
    for at in range(60):
        assert (f"data.jsonl:{at + 1}: " in printed) == (at % 2 == 0)
    assert "empty.jsonl: is empty" in printed
    assert "41 problems in lines that cannot be read" in printed
    assert "30 queries" in printed


def test_pairs_of_one_query_in_any_order(tmp_path: Path) -> None:
    rows = [
        {"query": row["query"], "content": text, "label": int(text in row["pos"])}
        for row in clean_rows()
        for text in (*row["pos"], *row["neg"])
    ]
    order = np.random.default_rng(3).permutation(len(rows))
    assert checked(tmp_path, [rows[i] for i in order]).findings == []
    rows += [{**rows[9], "label": 1}, rows[20]]
    report = checked(tmp_path, rows)
    assert {finding.kind: finding.count for finding in report.findings} == {"contradiction": 1, "repeated_document": 1}
    lines = {
        finding.kind: [where.rsplit(":", 1)[1] for where in finding.examples[0].where] for finding in report.findings
    }
    assert lines == {"contradiction": ["10", "49"], "repeated_document": ["21", "50"]}


MENDED = {"empty_query", "empty_document", "duplicate_query", "repeated_document", "contradiction", "different_labels"}


def dirty(rows: list[dict]) -> list[dict]:
    """Everything that is mended, in rows of one form each."""
    rows[0]["query"] = "  "
    rows[1]["neg"][0] = " "
    rows[2] |= {"query": rows[3]["query"].title(), "pos_ids": [7], "neg_ids": [1, 2, 3], "id": "kept"}
    rows[3] |= {"pos_ids": [8], "neg_ids": [4, 5, 6]}
    rows[4]["neg"].append(rows[4]["neg"][1].upper())
    rows[5]["neg"].append(rows[5]["pos"][0])
    rows[6] = {
        "query": rows[6]["query"],
        "hits": [{"content": t, "label": i, "id": i} for i, t in enumerate(rows[6]["neg"])],
    }
    rows[6]["hits"].append({"content": rows[6]["hits"][2]["content"] + " ", "label": 1, "id": 9})
    rows[7]["query"] = rows[3]["query"] + " "
    rows[7] = {"query": rows[7]["query"], "hits": [{"content": "other form", "label": 1}]}
    return rows


def test_fix_mends_what_is_certain_and_says_so(tmp_path: Path) -> None:
    rows = dirty(clean_rows())
    data = tmp_path / "data.jsonl"
    lines = [json.dumps(row) + ("\r\n" if i == 8 else "\n") for i, row in enumerate(rows)]
    data.write_text("".join(lines) + "broken\n", encoding="utf-8", newline="")
    before = data.read_bytes()
    other = write_rows(tmp_path / "other.jsonl", [{**clean_rows(1, start=5)[0], "query": rows[9]["query"]}])
    report = rankery.check(data, against=other, fix=tmp_path / "clean.jsonl")
    assert data.read_bytes() == before
    assert report.fixed is not None
    assert report.fixed["changes"] == {
        "lines left out: cannot be read": 1,
        "lines left out: their query is empty": 1,
        "lines left out: their query is in the other files": 1,
        "documents left out: empty": 1,
        "documents left out: the same query has them already": 1,
        "documents left out: the same query has them with a higher label": 2,
        "lines joined with another of the same query": 1,
        "lines not joined with another of the same query: of another form": 1,
    }
    found = [json.loads(line) for line in (tmp_path / "clean.jsonl").read_text().splitlines()]
    assert len(found) == report.fixed["lines"] == 9
    assert report.fixed["pairs"] == sum(
        len(r.get("hits", [])) + len(r.get("pos", [])) + len(r.get("neg", [])) for r in found
    )
    assert rows[8] in found
    assert rows[11] in found
    (together,) = [row for row in found if row.get("id") == "kept"]
    assert together == {
        "query": rows[2]["query"], "id": "kept", "pos": rows[2]["pos"] + rows[3]["pos"], "neg": rows[2]["neg"] + rows[3]["neg"],
        "pos_ids": [7, 8], "neg_ids": [1, 2, 3, 4, 5, 6],
    }  # fmt: skip
    (hits,) = [row for row in found if row["query"] == rows[6]["query"]]
    assert [hit["id"] for hit in hits["hits"]] == [0, 1, 2]
    assert sum(report.fixed["changes"].values()) == len(report.fixed["log"])
    again = rankery.check(tmp_path / "clean.jsonl", against=other, fix=tmp_path / "again.jsonl.gz")
    assert kinds(again) & (MENDED | {"leaked_query"}) == {"duplicate_query"}  # the two forms
    assert gzip.decompress((tmp_path / "again.jsonl.gz").read_bytes()) == (tmp_path / "clean.jsonl").read_bytes()


def test_fix_of_pairs_keeps_the_highest_label_of_any_line(tmp_path: Path) -> None:
    rows = [{"query": "q", "content": c, "label": v} for c, v in (("a", 0), ("b", 1), ("a", 1), ("A", 1), ("b", 0))]
    report = checked(tmp_path, rows, fix=tmp_path / "clean.jsonl")
    found = [json.loads(line) for line in (tmp_path / "clean.jsonl").read_text().splitlines()]
    assert found == [rows[1], rows[2]]
    assert report.fixed is not None
    assert report.fixed["lines"] == 2


def test_fix_writes_over_nothing(tmp_path: Path) -> None:
    data = write_rows(tmp_path / "data.jsonl", clean_rows())
    (tmp_path / "there.jsonl").write_text("mine")
    for target, options, message in (
        (data, {"overwrite": True}, "is one of the files"),
        (tmp_path / "there.jsonl", {}, "--overwrite replaces it"),
        (tmp_path, {}, "is a folder"),
    ):
        with pytest.raises(InputError, match=message):
            rankery.check(data, fix=target, **options)  # type: ignore[arg-type]
    assert (tmp_path / "there.jsonl").read_text() == "mine"
    rankery.check(data, fix=tmp_path / "there.jsonl", overwrite=True)
    assert (tmp_path / "there.jsonl").read_bytes() == data.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.jsonl", "there.jsonl"]
