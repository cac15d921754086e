"""`rankery check`: every kind of finding is found where it was planted, and nowhere else."""

from __future__ import annotations

import gzip
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import SHARED, run_python, write_rows

import rankery
from rankery.checking.near import QUERIES, Look
from rankery.checking.report import Report
from rankery.checking.sketch import band_keys, jaccard, shingles
from rankery.checking.tables import Table, common
from rankery.checking.texts import SCRIPTS, characters, keys_of, main_scripts, normalise, rough_tokens
from rankery.cli import main
from rankery.errors import InputError


def clean_rows(count: int = 12, start: int = 0) -> list[dict]:
    """Nothing to find: every text is its own."""
    chooser = np.random.default_rng(start)

    def text(words: int) -> str:
        return " ".join(
            chooser.integers(97, 123, size, np.uint8).tobytes().decode() for size in chooser.integers(3, 9, words)
        )

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
    elif kind == "all_relevant":
        for row in rows:
            row |= {"pos": row["pos"] + row.pop("neg"), "pos_scores": [2, 1, 0, 0]}
        third["pos_scores"] = [2, 1, 1, 1]
        return {"max_label": 2}
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
    "empty_query", "empty_document", "duplicate_query", "repeated_document", "contradiction", "no_positive",
    "no_negative", "one_score", "near_query", "near_document", "shared_document", "cut_positive", "false_negative", "wrong_positive",
)  # fmt: skip
TOGETHER = {  # what cannot be planted alone
    "near_contradiction": {"near_contradiction", "near_document"},
    "different_labels": {"different_labels", "grades"},
    "all_relevant": {"all_relevant", "grades"},
    "label_range": {"label_range", "grades"},
    "mixed_labels": {"mixed_labels", "label_range", "grades"},
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
    assert (tmp_path / "again.jsonl.gz").read_bytes()[3] == 0, "no name of a file, which would differ each time"
    assert kinds(again) & (MENDED | {"leaked_query"}) == {"duplicate_query"}  # the two forms
    assert gzip.decompress((tmp_path / "again.jsonl.gz").read_bytes()) == (tmp_path / "clean.jsonl").read_bytes()


def test_fix_of_pairs_keeps_the_highest_label_of_any_line(tmp_path: Path) -> None:
    rows = [{"query": "q", "content": c, "label": v} for c, v in (("a", 0), ("b", 1), ("a", 1), ("A", 1), ("b", 0))]
    report = checked(tmp_path, rows, fix=tmp_path / "clean.jsonl")
    found = [json.loads(line) for line in (tmp_path / "clean.jsonl").read_text().splitlines()]
    assert found == [rows[1], rows[2]]
    assert report.fixed is not None
    assert report.fixed["lines"] == 2


def test_fix_holds_a_bounded_part_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not fit is written in several lines; no document is lost."""
    monkeypatch.setattr("rankery.checking.fix.HELD_CHARACTERS", 2000)
    rows = clean_rows(12)
    for i in range(6):
        rows[i + 6]["query"] = rows[i]["query"]
    report = checked(tmp_path, rows, fix=tmp_path / "clean.jsonl")
    found = [json.loads(line) for line in (tmp_path / "clean.jsonl").read_text().splitlines()]
    assert 6 < len(found) <= 12
    assert sorted(t for row in found for t in row["pos"] + row["neg"]) == sorted(
        t for row in rows for t in row["pos"] + row["neg"]
    )
    assert report.fixed is not None
    assert report.fixed["changes"]["times that queries in many lines were written before their last line"] > 0


def test_fix_writes_over_nothing(tmp_path: Path) -> None:
    data = write_rows(tmp_path / "data.jsonl", clean_rows())
    (tmp_path / "there.jsonl").write_text("mine")
    for target, options, message in (
        (data, {"overwrite": True}, "is one of the files"),
        (tmp_path / "there.jsonl", {}, "overwrite replaces it"),
        (tmp_path, {}, "is a folder"),
    ):
        with pytest.raises(InputError, match=message):
            rankery.check(data, fix=target, **options)  # type: ignore[arg-type]
    assert (tmp_path / "there.jsonl").read_text() == "mine"
    rankery.check(data, fix=tmp_path / "there.jsonl", overwrite=True)
    assert (tmp_path / "there.jsonl").read_bytes() == data.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.jsonl", "there.jsonl"]


def test_no_result_goes_over_data_or_another_result(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    data = write_rows(tmp_path / "data.jsonl", clean_rows())
    before = data.read_bytes()
    pipe, new = tmp_path / "pipe", tmp_path / "new"
    os.mkfifo(pipe)
    for words, message in (
        (["--json", str(data)], "data.jsonl: is one of the files"),
        (["--html", str(data)], "data.jsonl: is one of the files"),
        (["--json", str(new), "--html", str(tmp_path / "x" / ".." / "new")], "new: is to hold two results"),
        (["--fix", str(new), "--json", str(new)], "new: is to hold two results"),
        (["--fix", str(pipe)], "pipe: is no file that could be replaced"),
    ):
        assert main(["check", str(data), "--overwrite", *words]) == 2
        assert message in capsys.readouterr().err
    assert data.read_bytes() == before
    assert pipe.is_fifo()
    assert not new.exists()


def test_relevance_by_label_and_by_list(tmp_path: Path) -> None:
    """Documents in pos are relevant whatever the range; where labels are in pos and none in neg, the labels decide."""
    for options in ({"relevant_above": 1}, {"min_label": 1, "max_label": 5}, {"relevant_above": 2, "max_label": 3}):
        assert checked(tmp_path, clean_rows(), **options).findings == []
    rows = clean_rows()
    for row in rows:  # as `rankery mine` adds to graded labels
        row |= {"pos": row["pos"] + row["neg"][:2], "pos_scores": [2, 1, 0], "neg": row["neg"][2:]}
    rows[2]["pos_scores"] = [0, 0, 0]
    rows[6]["neg"].append(rows[6]["pos"][2].replace(" ", ", "))  # nearly one that is not relevant
    report = checked(tmp_path, rows, max_label=2)
    assert kinds(report) == {"no_positive", "near_document", "grades"}
    assert report.lengths is not None
    assert report.lengths.positives == 22
    assert checked(tmp_path, rows, relevant_above=1).lengths.positives == 11  # type: ignore[union-attr]
    for row in rows:  # a teacher's scores
        row |= {"pos_scores": [0.9, 0.5, 0.25], "neg_scores": [0.1] * len(row["neg"])}
    assert checked(tmp_path, rows).lengths.positives == 36  # type: ignore[union-attr]
    for options, message in (
        ({"relevant_above": -1}, r"relevant_above is -1; expected a number from min_label \(0\)"),
        ({"relevant_above": 2, "max_label": 2}, r"to below max_label \(2\)"),
        ({"relevant_above": math.nan}, "relevant_above is nan; expected a finite number"),
        ({"max_label": math.inf}, "max_label is inf; expected a finite number"),
    ):
        with pytest.raises(InputError, match=message):
            checked(tmp_path, rows, **options)


def test_the_range_that_is_advised_takes_all_labels(tmp_path: Path) -> None:
    """Also where there are so many labels that the histogram rounds them."""
    rows = clean_rows(400)
    labels = np.random.default_rng(0).normal(0, 300, (400, 4))
    for row, scores in zip(rows, labels.tolist(), strict=True):
        row |= {"pos": row["pos"] + row.pop("neg"), "pos_scores": scores}
    finding = checked(tmp_path, rows).finding("label_range")
    assert finding is not None
    assert finding.count == ((labels < 0) | (labels > 1)).sum()
    low, high = (float(word.split("=")[1]) for word in finding.advice.split()[-2:])
    assert (low, high) == (labels.min(), labels.max())
    assert checked(tmp_path, rows, min_label=low, max_label=high).problems == []


def test_scores_have_no_near_contradictions(tmp_path: Path) -> None:
    rows = clean_rows()
    for row in rows:
        text = row["pos"][0]
        row |= {"pos": [text, text + " more", *row.pop("neg")[:2]], "pos_scores": [0.0, 0.3, 0.5, 0.7]}
    assert kinds(checked(tmp_path, rows)) == {"near_document"}


def test_japanese_without_kana_is_no_other_script(tmp_path: Path) -> None:
    rows = [
        {
            "query": "富士山標高",
            "pos": ["富士山の高さは三千七百七十六メートルです。"],
            "neg": ["東京の地下鉄はとても便利です。"],
        }
    ]
    assert "other_script" not in kinds(checked(tmp_path, rows))
    rows[0]["query"] = "how high is it"
    assert "other_script" in kinds(checked(tmp_path, rows))


def test_logits_that_are_no_numbers_doubt_nothing(tmp_path: Path) -> None:
    rows = clean_rows()
    rows[2] |= {"pos_logits": [1.0], "neg_logits": [2.0, math.nan, math.nan]}
    assert checked(tmp_path, rows).findings == []


def test_joined_lines_have_a_score_for_each_document(tmp_path: Path) -> None:
    rows = [
        {"query": "q", "pos": [], "pos_scores": [], "neg": ["a"], "neg_from": ["given"], "id": 1},
        {"query": "q", "pos": ["b"], "neg": [], "neg_scores": [], "id": 2},
    ]
    for lines in (rows, rows[::-1]):
        checked(tmp_path, lines, fix=tmp_path / "clean.jsonl", overwrite=True)
        (found,) = [json.loads(line) for line in (tmp_path / "clean.jsonl").read_text().splitlines()]
        assert found == {"query": "q", "pos": ["b"], "neg": ["a"], "neg_from": ["given"], "id": lines[0]["id"]}
        assert rankery.check(tmp_path / "clean.jsonl").problems == []


def test_a_full_table_keeps_a_sample_that_estimates_well() -> None:
    """The same keys by any order and cut, and counts within four standard errors."""
    chooser = np.random.default_rng(0)
    keys = chooser.integers(0, 2**64, 50_000, dtype=np.uint64)
    keys = np.concatenate([keys, keys[:20_000]])
    places = np.arange(len(keys))
    found = []
    for order, cut in ((places, 7_000), (chooser.permutation(len(keys)), 333)):
        table = Table(4_000, {"first": ("int64", np.minimum), "times": ("uint32", np.add)})
        for start in range(0, len(keys), cut):
            part = order[start : start + cut]
            table.add(keys[part], first=places[part], times=np.ones(len(part)))
        rows = table.whole()
        assert len(rows["key"]) <= 4_000
        assert table.scale == 16
        spread = 4 * np.sqrt(50_000 * 15)
        assert abs(len(rows["key"]) * table.scale - 50_000) < spread
        assert abs((rows["times"] == 2).sum() * table.scale - 20_000) < spread
        assert (rows["first"] == table.find(rows["key"], "first", -1)).all()
        assert (keys[rows["first"]] == rows["key"]).all()
        found.append(rows)
    assert all((found[0][name] == found[1][name]).all() for name in found[0])
    other = Table(100_000, {"first": ("int64", np.minimum)})
    other.add(keys[:1000], first=places[:1000])
    here, there, scale = common(table, other)
    assert scale == 16
    assert (table.whole()["key"][here] == other.whole()["key"][there]).all()
    assert abs(len(here) * scale - 1000) < 4 * np.sqrt(1000 * 15)
    assert table.find(np.array([1, 2], dtype=np.uint64), "first", -1).tolist() == [-1, -1]


def test_more_texts_than_are_kept(tmp_path: Path) -> None:
    rows = clean_rows(2200)
    for i in range(0, 1600, 2):
        rows[i + 1]["query"] = rows[i]["query"]
        rows[i]["neg"].append(rows[i]["neg"][0])
    report = checked(tmp_path, rows, max_texts=1000)
    whole = checked(tmp_path, rows)
    assert "about" in str(report)
    assert report.scale == 16  # 8,800 documents: halved until at most 1,000 are left, 550 or so
    for kind, count in (("duplicate_query", 800), ("repeated_document", 800)):
        found, exact = report.finding(kind), whole.finding(kind)
        assert found is not None
        assert exact is not None
        assert found.is_estimate
        assert exact.count == count
        assert abs(found.count - count) < 4 * np.sqrt(count * report.scale)
    assert checked(tmp_path, rows, max_texts=1000).to_dict() == report.to_dict()
    with pytest.raises(InputError, match="a larger max_texts"):
        checked(tmp_path, rows, max_texts=1000, fix=tmp_path / "clean.jsonl")
    assert not (tmp_path / "clean.jsonl").exists()


def test_sketches_meet_as_often_as_they_should() -> None:
    """Pairs of a known similarity share a band with the probability 1 - (1 - s^3)^8, and are compared exactly."""
    chooser = np.random.default_rng(1)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz0123456789"))
    lefts = ["".join(chooser.choice(letters, 400)) for _ in range(300)]
    for changed in (20, 100):
        rights = [text[: 400 - changed] + "".join(chooser.choice(letters, changed)) for text in lefts]
        keys, runs = band_keys([*lefts, *rights], 5)
        assert (runs == 396).all()
        met = (keys[:300] == keys[300:]).any(axis=1).mean()
        similarity = (396 - changed) / (396 + changed)
        expected = 1 - (1 - similarity**3) ** 8
        assert abs(met - expected) < 4 * np.sqrt(expected * (1 - expected) / 300) + 0.01
        assert jaccard(shingles(lefts[0], 5), shingles(rights[0], 5)) == pytest.approx(similarity)
    keys, runs = band_keys(["abc", "", "!!!", lefts[0]], 5)
    assert runs.tolist() == [0, 0, 0, 396]


def test_what_is_nearly_equal() -> None:
    def near(left: str, right: str) -> bool:
        return Look(left, QUERIES).is_near(Look(right, QUERIES))

    assert near("What is Homebrew for Wii?", "what is homebrew for wii")
    assert near("blackpink壁纸全屏高清大图", "blackpink壁纸全屏高清图")
    assert not near("population of france in 2010", "population of france in 2011")
    assert not near("what are the symptoms of flu", "what are the symptoms of copd")
    assert not near("北京今天的天气怎么样呢", "南京今天的天气怎么样呢")
    assert near(
        "what is the the north american free trade agreement",
        "what is the purpose of north american free trade agreement",
    )
    assert near("who won the first superbowl", "who won the first super bowl")
    assert near("symptoms of hypertension in women", "symptoms of hypertention in women")
    assert not near("same text", "Same  text")
    assert not near("how tall is everest", "how far is the moon")


def test_texts() -> None:
    assert normalise(" Ｆｕｌｌ\u3000Width \n Straße ") == "full width strasse"
    assert normalise("C++") != normalise("C")
    assert len(set(keys_of(["a", "b", ""]).tolist())) == 3
    texts = ["how far is it", "月亮有多远", "カタカナと漢字", "привет", "สวัสดี", "3.14!", "", "한국어"]
    found = characters(texts)
    counts = found.script_counts()
    assert [SCRIPTS[i] for i in main_scripts(counts)] == [
        "Latin", "Han", "Japanese", "Cyrillic", "Thai", "none", "none", "Hangul",
    ]  # fmt: skip
    assert found.words().tolist() == [4, 0, 0, 1, 0, 2, 0, 1]
    assert rough_tokens(found, counts).tolist() == [6, 5, 7, 2, 6, 3, 0, 2]


@pytest.mark.parametrize("max_len", [None, 12])
def test_lengths_of_a_model_are_those_of_training(tmp_path: Path, config: dict, max_len: int | None) -> None:
    from rankery.data.encoding import encode, open_encoded
    from rankery.data.records import LabelRange

    folder = rankery.train(config, epochs=1, val_dataset=None)
    model = rankery.CrossEncoder.from_pretrained(folder, device="cpu")
    data = Path(config["train_dataset"])
    encode([data], model.tokenizer, model.template, LabelRange(), tmp_path / "cache")
    pairs = open_encoded(tmp_path / "cache", model.template, LabelRange(), [data])
    positive = np.asarray(pairs.arrays["label"]) > 0
    whole = (
        pairs.arrays["query_length"][pairs.arrays["pair_query"]]
        + pairs.arrays["document_length"]
        + model.template.specials
    )[positive]
    lengths = rankery.check(data, model=str(folder), max_len=max_len).lengths
    assert lengths is not None
    assert lengths.max_len == (max_len or config["max_len"])
    assert lengths.positives == positive.sum()
    assert lengths.cut == (whole > lengths.max_len).sum()
    assert (lengths.cut > 0) == (max_len is not None)
    assert lengths.quantiles["positives"][-1] == whole.max()


def test_lengths_of_models_that_rankery_did_not_save(bert: Path, llama: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "data.jsonl", clean_rows())
    for model, prompt, specials in ((bert, None, 3), (llama, "bge-reranker-v2-gemma", 20)):
        lengths = rankery.check(data, model=str(model), prompt=prompt).lengths
        assert lengths is not None
        assert lengths.max_len == 128
        assert lengths.quantiles["positives"][-1] > lengths.quantiles["documents"][-1] + specials
    with pytest.raises(InputError, match="no such folder"):
        rankery.check(data, model="./nowhere")
    with pytest.raises(InputError, match="max_len is 3"):
        rankery.check(data, model=str(bert), max_len=3)


def test_a_model_doubts_labels(tmp_path: Path, config: dict) -> None:
    """What a trained model doubts is what its own scores say, of the documents of the queries that it is shown."""
    folder = rankery.train(config, epochs=8, val_dataset=None)
    model = rankery.CrossEncoder.from_pretrained(folder)
    rows = [json.loads(line) for line in Path(config["train_dataset"]).read_text().splitlines()]
    for row in rows[:4]:  # swapped labels
        row["pos"], row["neg"][0] = [row["neg"][0]], row["pos"][0]
    expected = {"negatives": 0, "positives": 0}
    for row in rows:
        scores = model.compute_score([(row["query"], text) for text in row["pos"] + row["neg"]]).tolist()
        expected["negatives"] += sum(score > scores[0] for score in scores[1:])
        expected["positives"] += scores[0] < np.median(scores[1:])
    report = checked(tmp_path, rows, score_with=str(folder))
    found = {kind: report.finding(kind) for kind in ("false_negative_by_model", "wrong_positive_by_model")}
    assert {kind: finding.count if finding else 0 for kind, finding in found.items()} == {
        "false_negative_by_model": expected["negatives"], "wrong_positive_by_model": expected["positives"],
    }  # fmt: skip
    assert expected["negatives"] >= 4
    finding = checked(tmp_path, rows, score_with=str(folder), score_queries=5).finding("false_negative_by_model")
    assert finding is None or finding.of == 15
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(lines)[:-10])
    assert rankery.check(tmp_path / "cut.jsonl.gz", score_with=str(folder)).status == 2
    (tmp_path / "broken.jsonl").write_text("{")
    assert rankery.check(tmp_path / "broken.jsonl", score_with=str(folder)).status == 2
    scored = [{"query": "q", "pos": ["a", "b"], "pos_scores": [0.2, 0.7]}]
    with pytest.raises(InputError, match="relevant_above"):
        checked(tmp_path, scored, score_with=str(folder))


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    rows = clean_rows()
    data = str(write_rows(tmp_path / "data.jsonl", rows))
    assert main(["check", data]) == 0
    rows[3]["neg"].append(rows[3]["pos"][0])
    write_rows(tmp_path / "data.jsonl", rows)
    page, result = tmp_path / "report.html", tmp_path / "report.json"
    words = ["check", data, "--html", str(page), "--json", str(result), "--fix", str(tmp_path / "clean.jsonl")]
    assert main(words) == 1
    printed = capsys.readouterr().out
    assert "! 1 of 49 (2%) documents are both relevant and not relevant to the same query" in printed
    assert "data.jsonl:4" in printed
    found = json.loads(result.read_text())
    assert (found["status"], found["pairs"], found["findings"][0]["kind"]) == (1, 49, "contradiction")
    assert found["fixed"]["log"] == [
        f"{data}:4, document 5: documents left out: the same query has them with a higher label"
    ]
    assert rows[3]["pos"][0][:60] in page.read_text()
    assert main(words) == 2
    assert "is there already; --overwrite replaces it" in capsys.readouterr().err
    assert main([*words, "--overwrite"]) == 1


def test_who_reads_the_first_problems_only_still_gets_the_files(tmp_path: Path) -> None:
    data, result = tmp_path / "data.jsonl", tmp_path / "report.json"
    data.write_text('{"query": 1}\n' * 20_000)  # more than a pipe holds
    words = [sys.executable, "-m", "rankery.cli", "check", str(data), "--json", str(result)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    assert b"data.jsonl:1: " in process.stdout.readline()
    process.stdout.close()
    assert (process.wait(), process.stderr.read()) == (1, b"")
    process.stderr.close()
    assert json.loads(result.read_text())["problem_count"] == 40_000


def test_names_that_are_no_unicode(tmp_path: Path) -> None:
    data = os.fsencode(tmp_path / "n") + b"\xff.jsonl"
    write_rows(Path(os.fsdecode(data)), clean_rows())
    result, page = tmp_path / "report.json", tmp_path / "report.html"
    assert main(["check", os.fsdecode(data), "--json", str(result), "--html", str(page)]) == 0
    assert json.loads(result.read_text())["files"] == [os.fsdecode(data)]
    assert "n?.jsonl" in page.read_text()


def test_damaged_and_odd_files(tmp_path: Path) -> None:
    rows = clean_rows(300)
    whole = gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode())
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    report = rankery.check(tmp_path / "cut.jsonl.gz", fix=tmp_path / "clean.jsonl")
    assert report.status == 2
    assert "cannot be read" in report.problems[0]
    assert 0 < report.lines < 300
    assert len((tmp_path / "clean.jsonl").read_text().splitlines()) == report.lines
    (tmp_path / "blank.jsonl").write_text("\n \n")
    assert rankery.check(tmp_path / "blank.jsonl").problems[0].endswith('"content", "label"}]}')
    with pytest.raises(InputError, match="does not exist"):
        rankery.check(tmp_path / "nowhere.jsonl")
    with pytest.raises(InputError, match="max_label is not given; expected more than min_label"):
        rankery.check(tmp_path / "blank.jsonl", min_label=1)
    with pytest.raises(InputError, match="max_label is 0"):
        rankery.check(tmp_path / "blank.jsonl", max_label=0)


def test_no_model_and_no_torch_is_loaded_without_need(tmp_path: Path) -> None:
    data = write_rows(tmp_path / "data.jsonl", clean_rows())
    code = "import sys, rankery; print(rankery.check(sys.argv[1]).status); assert not {'torch', 'transformers'} & set(sys.modules)"
    done = run_python(code, str(data))
    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real data is not here")
def test_real_data() -> None:
    """What is known to be in real data, counted by other means."""
    report = rankery.check(
        SHARED / "t2ranking_sample/t2rank_100.jsonl", against=SHARED / "t2ranking_sample/t2rank_100.small.jsonl"
    )
    rows = [json.loads(line) for line in (SHARED / "t2ranking_sample/t2rank_100.jsonl").open(encoding="utf-8")]
    both = sum(len({normalise(t) for t in row["pos"]} & {normalise(t) for t in row["neg"]}) for row in rows)
    counts = {finding.kind: finding.count for finding in report.findings}
    assert counts["contradiction"] == both > 0
    assert counts["leaked_query"] == 11
    graded = rankery.check(SHARED / "mediqa2019_qa/train.jsonl", max_label=3)
    rows = [json.loads(line) for line in (SHARED / "mediqa2019_qa/train.jsonl").open(encoding="utf-8")]
    counts = {finding.kind: finding.count for finding in graded.findings}
    assert counts["no_positive"] == sum(max(row["pos_scores"]) == 0 for row in rows)
    assert counts["no_negative"] + counts["all_relevant"] == sum(min(row["pos_scores"]) > 0 for row in rows)
