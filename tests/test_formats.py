"""Files of another format than was asked for: one error each, that names the format and the way out, wherever lines are read."""

from __future__ import annotations

import csv
import gzip
import json
import shutil
from pathlib import Path

import pytest
from conftest import write_rows

import rankery
from rankery.checking.places import Files
from rankery.checking.scan import Scan
from rankery.cli import main
from rankery.data.lines import LONGEST_LINE
from rankery.data.records import LabelRange, check_records, read_records
from rankery.errors import PROBLEM_CHARACTERS, SHOWN_CHARACTERS, InputError, shown
from rankery.evaluation.measures import wanted
from rankery.evaluation.rerank import _check_requests
from rankery.evaluation.trec import TextFile, TrecFile
from rankery.mining.rows import read_corpus

ROWS = '{"query": "q", "pos": ["é"]}\n{"query": "r", "pos": ["b"], "neg": ["c"]}\n'
TREC = "q1 0 d1 1\nq1 0 d2 0\n"
CASES = {
    "UTF-16": (ROWS.encode("utf-16"), "is UTF-16; expected JSONL"),
    "UTF-16 of a PowerShell": (b"\xff\xfe" + ROWS.replace("\n", "\r\n").encode("utf-16-le"), "iconv -f UTF-16"),
    "UTF-16 without mark": (ROWS.encode("utf-16-le"), "is UTF-16 without a byte order mark"),
    "UTF-16, big end first": (ROWS.encode("utf-16-be"), "is UTF-16 without a byte order mark"),
    "UTF-32": (ROWS.encode("utf-32"), "is UTF-32"),
    "CSV": (b'query,content,label\n"q, r",a,1\n', "is CSV or other text that is no JSON.*read_csv"),
    "TSV": (b"query\tcontent\tlabel\nq\ta\t1\n", "is CSV"),
    "CSV with quotes": (b'"query","content"\n"q","a"\n', "is CSV"),
    "Parquet": (b"PAR1\x15\x04\x15\n\x00\x00PAR1", "is Parquet.*read_parquet"),
    "Arrow": (b"ARROW1\x00\x00\xff", "is Arrow"),
    "a spreadsheet": (b"PK\x03\x04\x14\x00\n\x00", "is a zip archive or a spreadsheet"),
    "gzip in gzip": (gzip.compress(gzip.compress(ROWS.encode())), "is gzip; expected"),
    "zstd": (b"\x28\xb5\x2f\xfd\x04\x00\n", "is zstd"),
    "a pickle": (b"\x80\x04\x95\x0a\x00", "is a pickle"),
    "zeros": (b"\x00" * 64 + b"\n", "is UTF-16 without|is a binary file"),
    "array": (f"[{ROWS.strip().replace(chr(10), ',')}]".encode(), r"is a JSON array.*jq -c '\.\[\]'"),
    "array over lines": (b'[\n {"query": "q",\n "pos": ["a"]}\n]\n', "is a JSON array"),
    "spread": (b'{\n "query": "q",\n "pos": ["a"]\n}\n', "is JSON that goes over several lines"),
    "spread, one key a line": (b'{"query": "q",\n "pos": ["a"]}\n', "is JSON that goes over several lines"),
    "CR alone": (ROWS.replace("\n", "\r").encode(), "lines end in CR alone.*tr "),
    "HTML": (b"<!doctype html>\n<html>\n", "is XML or HTML"),
    "a long line": (gzip.compress(b'{"query": "q", "pos": ["' + b"a" * (LONGEST_LINE + 9)), ":1: is longer than 64 MiB"),
    "a long second line": (
        gzip.compress(ROWS.encode() + b'{"query": "' + b"a" * (LONGEST_LINE + 9)),
        ":3: is longer than 64 MiB, the most that one line may hold; expected JSONL",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_one_error_that_names_format_and_way_out(tmp_path: Path, name: str) -> None:
    content, message = CASES[name]
    path = tmp_path / "data.jsonl"
    path.write_bytes(content)
    (tmp_path / "corpus.jsonl").write_bytes(content)
    readers = [lambda: check_records([path]), lambda: list(read_records([path])), lambda: _check_requests(path)]
    if name != "TSV":  # which is a form of its own there
        readers.append(lambda: TextFile(path))
    if name != "a long second line":
        readers.append(lambda: read_corpus([tmp_path / "corpus.jsonl"]))
    for read in readers if "long" not in name else readers[:1]:
        with pytest.raises(InputError, match=message) as caught:
            read()
        assert len(caught.value.problems) == 1
    said: list[str] = []
    if "long" not in name:
        Scan(Files(), LabelRange(), 0.0, 1000, None).read([path], said.append)
        assert len(said) == 1, "check says it, too, and counts no line as good"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (TREC.encode("utf-16"), "is UTF-16; expected lines of a TREC file"),
        (TREC.replace("\n", "\r").encode(), "lines end in CR alone"),
        (TREC.replace(" ", ",").encode(), "is CSV"),
        (b'{"q1": {"d1": 1}}\n', "is JSON; expected lines of a TREC file"),
        (b'[{"q1": {"d1": 1}}]\n', "is JSON"),
        (b"PAR1\x15\x04\n", "is Parquet"),
    ],
)
def test_trec_files_of_another_format(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "qrels").write_bytes(content)
    for kind in (TrecFile.qrels, TrecFile.run):
        with pytest.raises(InputError, match=message) as caught:
            kind(tmp_path / "qrels")
        assert len(caught.value.problems) == 1


def test_what_is_no_other_format(tmp_path: Path) -> None:
    """First lines that only look odd: a corpus of lists and strings, texts with CR, ids like marks, remarks on one line."""
    (tmp_path / "corpus").write_text('["a, b", "c"]\n"d, e"\n{"text": "f"}\n')
    assert read_corpus([tmp_path / "corpus"]) == ["a, b", "c", "d, e", "f"]
    (tmp_path / "texts").write_bytes(b"1\tone, two\r and\n2\tthree\r\n")
    assert TextFile(tmp_path / "texts")["1"] == "one, two\r and"
    (tmp_path / "qrels").write_text("BZh1 0 ORC,1 1\nPAR1 0 d2 1\n")
    assert list(TrecFile.qrels(tmp_path / "qrels")) == ["BZh1", "PAR1"]
    (tmp_path / "windows.jsonl").write_bytes(b"\xef\xbb\xbf" + ROWS.replace("\n", "\r\n").encode())
    assert check_records([tmp_path / "windows.jsonl"]).queries == 2
    path = tmp_path / "remark.jsonl"
    path.write_text(f"# made by hand, in a hurry\n{ROWS}")
    with pytest.raises(InputError, match=r"remark.jsonl:1: is not JSON"):
        check_records([path])
    path.write_bytes(ROWS.encode() + '{"query": "é", "pos": ["a"]}'.encode("latin-1"))
    with pytest.raises(InputError, match=r"remark.jsonl:3: is not UTF-8 .* at byte 12.*iconv"):
        check_records([path])


def test_judgements_as_beir_has_them(tmp_path: Path) -> None:
    rows = "query-id\tcorpus-id\tscore\n1\t31715818\t1\n1\t14717500\t2\n3\t5\t0\n"
    for name, content in (
        ("a", rows.encode()),
        ("b.gz", gzip.compress(rows.encode())),
        ("c", b"\xef\xbb\xbf" + rows.encode()),
    ):
        (tmp_path / name).write_bytes(content)
        file = TrecFile.qrels(tmp_path / name)
        assert {query: file[query] for query in file} == {"1": {"31715818": 1, "14717500": 2}, "3": {"5": 0}}
    (tmp_path / "a").write_text("1\t31715818\t1\n")  # three columns that nothing explains
    with pytest.raises(InputError, match="expected `query 0 document relevance`"):
        TrecFile.qrels(tmp_path / "a")
    (tmp_path / "a").write_text(rows + "1\t31715818\t1\n1 0 d 1\n")
    with pytest.raises(InputError, match=r"names 31715818 again|expected `query-id corpus-id score`"):
        TrecFile.qrels(tmp_path / "a")


@pytest.mark.parametrize("number", ["1_0", "١", "１", "true", "0x1", "1e1", "9999999999", "2000000", "9" * 5000])
def test_relevance_is_a_number_as_other_programs_read_it(tmp_path: Path, number: str) -> None:
    """trec_eval reads ten digits as 0, and ends the process at twenty."""
    (tmp_path / "qrels").write_text(f"q 0 a 1\nq 0 d {number}\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"qrels:2: .* with a whole number as relevance"):
        TrecFile.qrels(tmp_path / "qrels")


@pytest.mark.parametrize("number", ["1_0.5", "١.٥", "nan", "inf", "-infinity", "1e999", "0x1p3", "1,5"])
def test_scores_are_numbers_as_other_programs_read_them(tmp_path: Path, number: str) -> None:
    (tmp_path / "run").write_text(f"q Q0 a 1 .5 t\nq Q0 d 2 {number} t\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"run:2: .* with a finite number as score"):
        TrecFile.run(tmp_path / "run")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"_id": True, "text": "a"}, "both strings"),
        ({"id": 1.5, "text": "a"}, "both strings"),
        ({"id": "\ud800", "text": "a"}, "both strings"),
        ({"id": "1", "text": "a", "title": 7}, '"title" is a number'),
    ],
)
def test_texts_by_ids_that_are_none(tmp_path: Path, row: dict, message: str) -> None:
    (tmp_path / "texts").write_text(json.dumps(row) + "\n")
    with pytest.raises(InputError, match=message):
        TextFile(tmp_path / "texts")


@pytest.mark.parametrize("key", ["positive", "positives", "posn", "Positive-Passages"])
@pytest.mark.parametrize("holds", ["b", ["b"]])
def test_names_that_other_tools_have_for_positives(tmp_path: Path, key: str, holds: object) -> None:
    path = write_rows(tmp_path / "data.jsonl", [{"query": "q", "neg": ["a"], key: holds}])
    with pytest.raises(InputError, match=f'data.jsonl:1: has the key "{key}" and no "pos"; expected "pos"'):
        check_records([path])


@pytest.mark.parametrize(
    ("key", "holds", "meant"),
    [
        ("negative", "b", "neg"),
        ("negatives", ["b"], "neg"),
        ("hard_negatives", ["b"], "neg"),
        ("hard_negative_ctxs", [{"text": "b"}], "neg"),
        ("scores", [0.5], "pos_scores"),
        ("labels", [1], "pos_scores"),
        ("Positive_Scores", [0.5], "pos_scores"),
    ],
)
def test_names_that_other_tools_have(tmp_path: Path, key: str, holds: object, meant: str) -> None:
    path = write_rows(tmp_path / "data.jsonl", [{"query": "q", "pos": ["a"], key: holds}])
    with pytest.raises(InputError, match=f'data.jsonl:1: has the key "{key}" and no "{meant}"'):
        check_records([path])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"query": "q", "pos": null, "neg": ["a"]}', '"pos" is null; expected a list of strings, or no such key'),
        ('{"query": "q", "pos": ["a"], "neg": null}', '"neg" is null'),
        ('{"query": "q", "pos": ["a"], "pos": ["b"]}', "it has the key 'pos' twice"),
        ('{"query": "q", "hits": [{"content": "a", "label": 1, "label": 0}]}', "it has the key 'label' twice"),
        ('{"query": "q", "content": "a", "label": 1, "neg": ["b"]}', "has keys of several forms"),
        ('{"query": "q", "hits": [{"content": "a", "label": 1}], "pos": ["b"]}', "has keys of several forms"),
    ],
)
def test_nothing_is_left_out_in_silence(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "data.jsonl").write_text(f'{{"query": "q", "pos": ["a"]}}\n{line}\n')
    with pytest.raises(InputError, match=f"data.jsonl:2: .*{message}"):
        check_records([tmp_path / "data.jsonl"])


LONG = "x" * 200_000


@pytest.mark.parametrize(
    "line",
    [
        json.dumps({"query": LONG}),
        json.dumps({LONG: "q", "query": "q"}),
        json.dumps({"query": [LONG], "pos": [LONG]}),
        json.dumps({"query": "q", "pos": LONG}),
        json.dumps({"query": "q", "pos": ["a"], "pos_scores": [LONG]}),
        json.dumps({"query": "q", "pos": ["a"], f"neg{'_' * 99_999}": ["b"]}),
        json.dumps({f"k{i}": i for i in range(9999)}),
        f'{{"query": "q", "{LONG}": 1, "{LONG}": 1}}',
        f"# {LONG}",
        LONG,
    ],
)
def test_an_error_never_carries_a_data_set(tmp_path: Path, line: str) -> None:
    """An error of 178,090 characters was seen."""
    for name in ("rows", "texts", "qrels", "corpus"):
        (tmp_path / name).write_text(f'{{"query": "q", "pos": ["a"]}}\n{line}\n' if name == "rows" else f"{line}\n")
    for read in (
        lambda: check_records([tmp_path / "rows"]),
        lambda: TextFile(tmp_path / "texts"),
        lambda: TrecFile.qrels(tmp_path / "qrels"),
        lambda: read_corpus([tmp_path / "corpus"]),
        lambda: _check_requests(tmp_path / "corpus"),
    ):
        with pytest.raises(InputError) as caught:
            read()
        assert max(map(len, caught.value.problems)) < PROBLEM_CHARACTERS / 2


def test_values_are_cut_wherever_they_are_shown() -> None:
    """By `shown`; what gets past it, another library's message say, by InputError itself, which keeps beginning and end."""
    for value in ("a" * 10**6, b"a" * 10**6, ["a" * 99] * 10**5, {str(i): i for i in range(10**5)}, 10**5000, range(5)):
        assert len(shown(value)) <= SHOWN_CHARACTERS
    assert shown("a" * 79) == repr("a" * 79)[:77] + "..."
    assert [shown(value) for value in ("a", 5, None, [1, "b"])] == ["'a'", "5", "None", "[1, 'b']"]
    (problem,) = InputError(f"data.jsonl:7: {LONG}; expected less").problems
    assert len(problem) <= PROBLEM_CHARACTERS
    assert problem.startswith("data.jsonl:7: xxx")
    assert problem.endswith("xxx; expected less")
    assert str(InputError("a\x1b[2J\x07b\né")) == "a\\x1b[2J\\x07b\né", "a terminal obeys no message"


@pytest.mark.parametrize(
    "text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "  =1", "\xa0=1", "＝1+1", "|cmd", "%0A"]
)
def test_a_spreadsheet_runs_no_text(tmp_path: Path, text: str) -> None:
    data = write_rows(
        tmp_path / "d.jsonl", [{"query": text, "pos": [text], "neg": ["b"]}, {"query": "c", "pos": ["c"], "neg": ["d"]}]
    )
    rankery.evaluate(baselines="random", data=data, output=tmp_path / "e")
    with (tmp_path / "e" / "queries.csv").open(encoding="utf-8", newline="") as file:
        _, first, second = csv.reader(file)
    assert (first[1], second[1]) == (f"'{text}", "c")
    assert all(not cell.lstrip().startswith(("=", "+", "@", "|")) for row in (first, second) for cell in row)


@pytest.mark.parametrize("verb", ["rerank", "score", "mine", "check"])
def test_no_result_lies_in_the_folder_of_a_model(
    verb: str, bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    data = str(write_rows(tmp_path / "d.jsonl", [{"query": "a", "pos": ["b"], "documents": ["b"]}]))
    inside = str(bert / "below" / "x.jsonl")
    words = {
        "rerank": ["--model", str(bert), "--input", data, "--output", inside],
        "score": ["--model", str(bert), "--data", data, "--output", inside],
        "mine": ["--teacher", str(bert), "--data", data, "--output", inside],
        "check": ["--model", str(bert), data, "--json", inside],
    }[verb]
    assert main([verb, *words]) == 2
    assert f"output is {inside}, inside the folder of the model {bert}" in capsys.readouterr().err
    assert not Path(inside).parent.exists()


def test_rerank_replaces_nothing_unasked(bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    source = write_rows(tmp_path / "q.jsonl", [{"query": "sun", "documents": ["sea", "sun"]}])
    model, target = tmp_path / "model", tmp_path / "new" / "r.jsonl"
    rankery.CrossEncoder.from_pretrained(bert, seed=0).save_pretrained(model)
    words = ["rerank", "--model", str(model), "--input", str(source), "--output", str(target)]
    assert main([*words, "--calibrated"]) == 2
    assert "the model has no calibration" in capsys.readouterr().err
    (tmp_path / "empty.jsonl").touch()
    assert main(["rerank", "--model", str(model), "--input", str(tmp_path / "empty.jsonl"), "--calibrated"]) == 2
    assert "the model has no calibration" in capsys.readouterr().err
    source.write_text(source.read_text() + "{}\nx\n")
    assert main(words) == 2
    assert [line.split(" ")[1] for line in capsys.readouterr().err.splitlines()] == [f"{source}:2:", f"{source}:3:"]
    assert not target.parent.exists(), "nothing stays of what failed"
    source.write_text(source.read_text().partition("\n")[0])
    assert main(words) == 0
    target.write_text("mine")
    assert main(words) == 2
    assert f"{target}: is there already; --overwrite replaces it" in capsys.readouterr().err
    assert target.read_text() == "mine"
    assert main([*words, "--overwrite"]) == 0
    assert json.loads(target.read_text())["ranking"]


def test_calibrate_learns_from_no_label_that_the_model_has_not(bert: Path, tmp_path: Path) -> None:
    rankery.CrossEncoder.from_pretrained(bert, seed=0).save_pretrained(tmp_path / "model")
    rows = [
        {"query": f"sun {i}", "hits": [{"content": "sun", "label": 1}, {"content": "sea", "label": -3 * (i == 2)}]}
        for i in range(4)
    ]
    data, contract = write_rows(tmp_path / "d.jsonl", rows), (tmp_path / "model" / "rankery.json").read_bytes()
    with pytest.raises(InputError, match=r"d.jsonl:3: label is -3; expected a number from 0 to 1, .* set min_label"):
        rankery.calibrate(tmp_path / "model", data, html=tmp_path / "new" / "page.html")
    rows[2]["hits"][1]["label"], rows[3]["hits"][0]["label"] = 0, 4
    write_rows(data, rows)
    with pytest.raises(InputError, match=r"d.jsonl:4: label is 4; expected a number from 0 to 1"):
        rankery.calibrate(tmp_path / "model", data, html=tmp_path / "new" / "page.html")
    assert (tmp_path / "model" / "rankery.json").read_bytes() == contract
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["nDCG@0", "P@0", "R@0", "AP@0", "Judged@0", "Success@0", "nDCG@99999999999", "IPrec@1.5", "ERR@20", "nDCG(gains={0:1,1:99999999999})@5", "nDCG(dcg='x')", "x" * 9999, "((((", "NumRet", "P(rel=0)@5"])  # fmt: skip
def test_measures_that_trec_eval_would_end_the_process_at(name: str) -> None:
    """It did, at nDCG@0; ERR wants a program that is not everywhere."""
    if name == "ERR@20" and shutil.which("perl"):
        pytest.skip("perl is there, which computes it")
    with pytest.raises(InputError, match="expected names such as nDCG@10") as caught:
        wanted([name])
    assert len(caught.value.problems[0]) < 300
