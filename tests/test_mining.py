"""Mining: what may become a negative, what is written, retrievers of each kind, a teacher, and real data where it is present."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from conftest import SHARED, make_bert, make_data, make_decoder, words, write_rows
from hypothesis import given, settings
from hypothesis import strategies as st
from test_frame import ROOT, blocks, run_block

import rankery
from rankery import CrossEncoder, InputError, train
from rankery.cli import main
from rankery.data.files import written_whole
from rankery.data.records import read_records
from rankery.evaluation.retrieval import Bm25, bm25_tokens, embed, top
from rankery.mining.mine import mine
from rankery.mining.retrievers import Bm25Retriever, EmbeddingRetriever, Encoder
from rankery.mining.rows import read_corpus
from rankery.mining.select import Candidate, Found, Rules, accepted, candidates, plain


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# Selection.

TEXTS = [f"document {i // 2}{'.' * (i % 2)}" for i in range(40)]  # each twice, but for a full stop
lists = st.lists(st.permutations(range(40)), min_size=1, max_size=3)


def found_of(orders: list[list[int]], positive: float | None = None) -> dict[str, Found]:
    falling = np.arange(40, 0, -1, dtype=np.float32)
    return {f"r{i}": Found(np.array(order), falling, positive) for i, order in enumerate(orders)}


@given(lists, st.integers(1, 30), st.integers(0, 20), st.sets(st.integers(0, 19)), st.booleans(), st.integers(0, 3))
@settings(max_examples=150, deadline=None)
def test_candidates_are_new_allowed_and_inside_the_window(
    orders: list[list[int]], first: int, more: int, forbidden: set[int], at_random: bool, seed: int
) -> None:
    rules = Rules(first, first + more, None, at_random, seed)
    banned = {f"document {i}" for i in forbidden}
    found = candidates("query", found_of(orders), TEXTS.__getitem__, banned, rules)
    texts = [plain(TEXTS[one.document]) for one in found]
    assert len(set(texts)) == len(texts)
    assert not set(texts) & banned
    for one in found:
        assert first <= one.rank <= first + more
        assert orders[int(one.source[1:])][one.rank - 1] == one.document
    inside = {plain(TEXTS[i]) for order in orders for i in order[first - 1 : first + more]}
    assert set(texts) == inside - banned, "nothing that may be a candidate is missing"
    again = candidates("query", found_of(orders), TEXTS.__getitem__, banned, rules)
    assert again == found


@given(lists, st.booleans())
@settings(max_examples=50, deadline=None)
def test_retrievers_take_turns(orders: list[list[int]], at_random: bool) -> None:
    found = candidates("query", found_of(orders), TEXTS.__getitem__, (), Rules(1, 20, None, at_random))
    names = list(found_of(orders))
    # As long as none has run dry, each round has every retriever once, in order.
    assert [one.source for one in found[: len(names)]] == names
    if not at_random:
        for name in names:
            ranks = [one.rank for one in found if one.source == name]
            assert ranks == sorted(ranks)


def test_random_picks_depend_on_the_query_its_documents_and_the_seed() -> None:
    order = [list(range(40))]

    def ranks(query: str, seed: int, texts: list[str] = TEXTS) -> list[int]:
        return [one.rank for one in candidates(query, found_of(order), texts.__getitem__, (), Rules(1, 40, seed=seed))]

    assert ranks("a", 1) == ranks("a", 1)
    assert len({tuple(ranks(query, seed)) for query in "abc" for seed in range(3)}) == 9
    firsts = Counter(ranks(f"query {i}", 0)[0] for i in range(2000))
    assert len(firsts) > 30, "every place of the window may come first"


def test_margin_is_a_share_of_the_positives_score() -> None:
    left_out: Counter[str] = Counter()
    found = found_of([list(range(40))], positive=20.0)  # scores fall from 40 by 1
    rules = Rules(1, 40, 0.25, at_random=False)
    kept = candidates("q", found, str, (), rules, left_out)
    assert [one.rank for one in kept] == list(range(26, 41))  # 15 and below
    assert left_out["margin"] == 25
    below = found_of([list(range(40))], positive=-8.0)
    assert candidates("q", below, str, (), rules) == []  # -10 and below
    assert len(candidates("q", found, str, (), Rules(1, 40, None, False))) == 40


@given(st.lists(st.lists(st.booleans(), max_size=12), max_size=6), st.integers(1, 5))
@settings(max_examples=100, deadline=None)
def test_a_teacher_is_asked_for_no_more_than_needed(good: list[list[bool]], wanted: int) -> None:
    orders = [[Candidate(i, "r", i + 1) for i in range(len(row))] for row in good]
    asked: Counter[int] = Counter()

    def passes(some: list[tuple[int, Candidate]]) -> list[bool]:
        asked.update(query for query, _ in some)
        return [good[query][one.document] for query, one in some]

    chosen = accepted(orders, wanted, passes)
    for query, row in enumerate(good):
        right = [i for i, is_good in enumerate(row) if is_good]
        assert [one.document for one in chosen[query]] == right[:wanted]
        last_needed = right[wanted - 1] + 1 if len(right) >= wanted else len(row)
        assert asked[query] == last_needed


def test_plain_texts() -> None:
    assert plain("The  SUN, is\nhot.") == plain("the sun is hot")
    assert plain("ﬁne Ｔext") == plain("fine text")
    assert plain("月亮。") == plain("月亮")
    assert plain("sun") != plain("suns")
    assert plain("?!") != plain("...")


# Retrieval.


@given(st.lists(st.integers(0, 5), max_size=30), st.integers(0, 35))
@settings(max_examples=100, deadline=None)
def test_top_is_the_start_of_a_stable_sort(scores: list[int], k: int) -> None:
    values = np.array(scores, dtype=np.float32)
    assert top(values, k).tolist() == np.argsort(-values, kind="stable")[:k].tolist()


def test_bm25_scores_other_texts_as_its_own() -> None:
    documents = [words(i, 1 + i % 9) for i in range(60)] + ["", "月亮离地球有多远", "地球"]
    index = Bm25(documents)
    for query in ("sun moon sun", "月亮和地球", "nothing", ""):
        assert index.score_texts(query, documents) == pytest.approx(index.scores(query), rel=1e-5)
    assert index.score_texts("sun", ["sun sun and others"])[0] > 0
    empty = Bm25(["", "?"])
    assert empty.scores("sun").tolist() == empty.score_texts("sun", ["sun", ""]).tolist() == [0.0, 0.0]


def test_bm25_finds_what_shares_a_word_best_first() -> None:
    documents = [words(i, 4 + i % 7) for i in range(50)]
    (found,) = Bm25Retriever(documents).search(["sun moon"], 10, [["sun", "stone"]])
    assert all({"sun", "moon"} & set(documents[i].split()) for i in found.documents)
    scores = Bm25(documents).scores("sun moon")
    assert found.documents.tolist() == np.argsort(-scores, kind="stable")[:10].tolist()
    assert found.scores.tolist() == scores[found.documents].tolist()
    assert found.positive == pytest.approx(float(Bm25(documents).score_texts("sun moon", ["sun"])[0]))
    (nothing,) = Bm25Retriever(documents).search(["unheard"], 10, None)
    assert len(nothing.documents) == 0


def test_bm25_reads_scripts_without_spaces() -> None:
    documents = ["地球到月亮的距离约三十八万公里。", "凿子要在平石上磨。", "ラーメンの作り方", "東京の地下鉄"]
    first = [
        next(Bm25Retriever(documents).search([query], 1, None)).documents.tolist()
        for query in ("月亮离地球多远", "怎样磨凿子", "美味しいラーメン", "地下鉄の駅")
    ]
    assert first == [[0], [1], [2], [3]]
    assert bm25_tokens("สวัสดี") == [*"สวัสดี", "สว", "วั", "ัส", "สด", "ดี"]


def test_signs_of_a_word_do_not_cut_it() -> None:
    for text in ("हिन्दी में प्रश्न का उत्तर", "தமிழ் மொழி", "שָׁלוֹם עולם", "مُحَمَّد علي", "cafe\u0301 x"):
        assert bm25_tokens(text) == text.split()
    assert bm25_tokens("हिन्दी। ठीक") == ["हिन्दी", "ठीक"]


def test_embeddings_find_the_nearest(bert: Path) -> None:
    documents = [words(i, 3 + i % 9) for i in range(40)]
    queries = [words(i, 2) for i in range(7)]
    texts = [[words(i, 4), words(i + 1, 4)] for i in range(7)]
    retriever = EmbeddingRetriever(documents, Encoder(str(bert), "sun ", "moon "))
    products = embed([f"sun {q}" for q in queries], bert) @ embed([f"moon {d}" for d in documents], bert).T
    for i, found in enumerate(retriever.search(queries, 5, texts)):
        assert found.scores == pytest.approx(np.sort(products[i])[::-1][:5], abs=1e-5)
        own = embed([f"sun {queries[i]}"], bert) @ embed([f"moon {text}" for text in texts[i]], bert).T
        assert found.positive == pytest.approx(own.max(), abs=1e-5)


@pytest.fixture(scope="module")
def sentence_model(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny BERT as a sentence-transformers model with prompts."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    transformer = Transformer(str(bert), max_seq_length=64)
    model = SentenceTransformer(
        modules=[transformer, Pooling(transformer.get_embedding_dimension(), "mean")],
        prompts={"query": "sun ", "document": "moon "},
        device="cpu",
    )
    folder = tmp_path_factory.mktemp("sentence") / "model"
    model.save_pretrained(str(folder))
    return folder


def test_sentence_transformers_models_use_their_prompts(sentence_model: Path, bert: Path) -> None:
    encoder = Encoder(str(sentence_model), device="cpu")
    assert encoder.queries(["star sea"]) == pytest.approx(embed(["sun star sea"], bert), abs=1e-5)
    assert encoder.documents(["star"]) == pytest.approx(embed(["moon star"], bert), abs=1e-5)


def test_models_that_embed_nothing(
    sentence_model: Path, bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    CrossEncoder.from_pretrained(bert, seed=1).save_pretrained(tmp_path / "reranker")
    (tmp_path / "empty").mkdir()
    for name, message in (
        ("reranker", "holds a reranker"),
        ("empty", "no config.json in it"),
        ("nowhere", "there is no such folder"),
    ):
        with pytest.raises(InputError, match=message):
            Encoder(str(tmp_path / name))
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(InputError, match=r"needs sentence-transformers, which is not installed.*rankery\[embed\]"):
        Encoder(str(sentence_model))
    assert Encoder(str(bert)).queries(["sun"]).shape == (1, 32)


# Files.


def corpus_of(path: Path, count: int = 80) -> Path:
    return write_rows(path, [{"id": i, "text": f"{words(i, 3 + i % 9)} {i}"} for i in range(count)])


def mined(tmp_path: Path, lines: list[dict], **options: object) -> list[dict]:
    data = write_rows(tmp_path / "lines.jsonl", lines)
    out = tmp_path / "mined.jsonl"
    mine(
        data,
        out,
        corpus=corpus_of(tmp_path / "corpus.jsonl"),
        overwrite=True,
        **{"ranks": (1, 30), "negatives": 2, **options},
    )
    return rows(out)


def test_lines_keep_what_they_came_with(tmp_path: Path) -> None:
    (row,) = mined(tmp_path, [{"id": 7, "query": "sun", "pos": ["sun a"], "pos_scores": [0.5], "neg": ["sea"]}])
    assert {key: row[key] for key in ("id", "query", "pos", "pos_scores")} == {
        "id": 7, "query": "sun", "pos": ["sun a"], "pos_scores": [0.5],
    }  # fmt: skip
    assert row["neg"][0] == "sea"
    assert len(row["neg"]) == 3
    assert row["neg_from"][0] == "given"
    assert all(re.fullmatch(r"bm25:\d+", origin) for origin in row["neg_from"][1:])
    assert "neg_scores" not in row
    graded = {"query": "sun", "pos": ["sun a", "sun b"], "pos_scores": [2, 1], "neg": ["sea"], "neg_scores": [0.2]}
    (row,) = mined(tmp_path, [{**graded, "neg_ids": [4], "pos_logits": [3.5, 2], "neg_logits": [-1]}])
    assert row["neg_scores"] == [0.2, 0.0, 0.0]
    assert not {"neg_ids", "pos_logits", "neg_logits"} & row.keys()
    (row,) = mined(tmp_path, [graded], relevant_above=1, given="drop")
    assert (row["pos"], row["pos_scores"], row["neg_scores"]) == (["sun a"], [2], [0.0, 0.0])


def test_other_shapes_become_lists(tmp_path: Path) -> None:
    pairs = [
        {"query": "sun", "content": "sun a", "label": 1},
        {"query": "moon", "hits": [{"content": "moon a", "label": 2}, {"content": "sea", "label": 0}], "id": 3},
        {"query": "sun", "content": "sand", "label": 0},
    ]
    sun, moon = mined(tmp_path, pairs)
    assert (sun["pos"], sun["neg"][:1], sun["neg_from"][:1]) == (["sun a"], ["sand"], ["given"])
    assert "pos_scores" not in sun
    assert (moon["id"], moon["pos"], moon["pos_scores"], moon["neg"][:1]) == (3, ["moon a"], [2], ["sea"])
    assert moon["neg_scores"] == [0, 0.0, 0.0]
    assert "hits" not in moon
    assert train_reads(tmp_path / "mined.jsonl") == [4, 4]


def train_reads(path: Path) -> list[int]:
    from rankery.data.records import LabelRange

    return [len(record.documents) for record in read_records([path], LabelRange(0, 2))]


def test_mined_data_may_be_mined_again(tmp_path: Path) -> None:
    lines = mined(tmp_path, [{"query": "sun", "pos": ["sun a"]}])
    (again,) = mined(tmp_path, lines, ranks=(1, 60))
    assert again["neg"][:2] == lines[0]["neg"]
    assert again["neg_from"][:2] == lines[0]["neg_from"]
    assert len(set(again["neg"])) == 4


def test_no_labelled_document_in_any_spelling(tmp_path: Path) -> None:
    """Nor a positive of another line that asks the same, nor the query itself."""
    texts = ["sun sun", "sun moon", "sun star", "sun rain", "sun snow", "sun wind"]
    corpus = write_rows(tmp_path / "c.jsonl", [{"text": text} for text in texts])
    data = write_rows(
        tmp_path / "d.jsonl",
        [
            {"query": "Sun rain", "pos": ["SUN  moon!"], "neg": ["sun, star"]},
            {"query": "sun rain?", "pos": ["sun snow"]},
        ],
    )
    out = tmp_path / "o.jsonl"
    for kept, first, second in (
        ("keep", {"sun, star", "sun sun", "sun wind"}, {"sun sun", "sun wind"}),
        ("drop", {"sun sun", "sun wind"}, {"sun sun", "sun wind"}),
        ("mine", {"sun sun", "sun wind", "sun star"}, {"sun sun", "sun wind", "sun star"}),
    ):
        result = mine(data, out, corpus=corpus, ranks=(1, 9), given=kept, overwrite=True)
        assert [set(row["neg"]) for row in rows(out)] == [first, second]
        assert result.short == 2
        assert result.left_out["forbidden"] == (6 if kept == "mine" else 8)


def test_queries_without_positives_stay_as_they_are(tmp_path: Path) -> None:
    lines = [{"query": "sun", "pos": [], "neg": ["sea"]}, {"query": "moon", "pos": ["moon a"]}]
    data = write_rows(tmp_path / "lines.jsonl", lines)
    result = mine(data, tmp_path / "o.jsonl", corpus=corpus_of(tmp_path / "c.jsonl"), ranks=(1, 9))
    first, second = rows(tmp_path / "o.jsonl")
    assert first == {**lines[0], "neg_from": ["given"]}
    assert len(second["neg"]) == 7
    assert result.without_positive == 1
    assert "1 queries have no relevant document" in str(result)
    # Also where the given documents of other queries go; and every line can be read again.
    graded = {"query": "star", "pos": ["star a", "star b"], "pos_scores": [1, 0], "pos_ids": [1, 2]}
    lines += [graded, {"query": "rain", "hits": [{"content": "rain a", "label": 1}]}]
    lines += [{"query": "wind", "content": text, "label": 0} for text in ("wind a", "wind b")]
    data = write_rows(tmp_path / "lines.jsonl", lines)
    for kept in ("drop", "mine"):
        result = mine(data, tmp_path / "o.jsonl", ranks=(1, 9), given=kept, relevant_above=1, overwrite=True)
        found = rows(tmp_path / "o.jsonl")
        assert found[0] == first
        assert {key: found[2][key] for key in graded} == graded
        assert [(row["pos"], row["neg"]) for row in found[3:]] == [([], ["rain a"]), ([], ["wind a", "wind b"])]
        assert result.without_positive == 4
        assert train_reads(tmp_path / "o.jsonl")[0] == 1


def test_every_shape_of_a_corpus(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text(
        '{"text": "a"}\n{"document": "b", "title": "x"}\n{"id": 1, "text": "c"}\n"d"\n["e", "a"]\n{"text": " "}\n'
        '{"query": "q", "pos": ["f"], "neg": ["g"]}\n{"query": "q", "documents": ["h"]}\n'
    )
    (tmp_path / "d.jsonl.gz").write_bytes(gzip.compress(b'{"text": "i"}\n'))
    assert read_corpus([path, tmp_path / "d.jsonl.gz"]) == list("abcdefghi")


def test_all_problems_of_a_corpus_at_once(tmp_path: Path) -> None:
    path, empty = tmp_path / "c.jsonl", tmp_path / "e.jsonl"
    path.write_text('{"text": 1}\n{"title": "a"}\nx\n["a", 2]\n3\n{"text": "\\ud800"}\n{"text": "good"}\n')
    empty.write_text("")
    with pytest.raises(InputError) as caught:
        read_corpus([path, empty])
    assert [problem.split(": ")[0] for problem in caught.value.problems] == [
        *(f"{path}:{number}" for number in range(1, 7)), str(empty),
    ]  # fmt: skip


def test_the_same_bytes_from_the_same_seed(tmp_path: Path) -> None:
    data = make_data(tmp_path / "d.jsonl", 300)
    corpus = corpus_of(tmp_path / "c.jsonl", 400)
    out = [tmp_path / name for name in ("a.jsonl", "b.jsonl", "c2.jsonl", "d.jsonl.gz")]
    for path, seed in zip(out, (1, 1, 2, 1), strict=True):
        words = ["--data", str(data), "--corpus", str(corpus), "--output", str(path), "--seed", str(seed)]
        assert main(["mine", *words]) == 0
    first, second, other, packed = (path.read_bytes() for path in out)
    assert first == second == gzip.decompress(packed)
    assert first != other
    # A query's negatives do not depend on the others.
    half = tmp_path / "half.jsonl"
    half.write_bytes(b"".join(data.read_bytes().splitlines(keepends=True)[::2]))
    mine(half, tmp_path / "e.jsonl", corpus=corpus, seed=1)
    assert rows(tmp_path / "e.jsonl") == rows(out[0])[::2]


def test_what_is_written_trains(config: dict, tmp_path: Path) -> None:
    out = tmp_path / "mined.jsonl"
    result = rankery.mine(config["train_dataset"], out, ranks=(1, 20), negatives=3)
    assert result.negatives["bm25"] > 12
    assert train(config, train_dataset=str(out), loss_type="listwise_ce", epochs=1).is_dir()


def test_a_teacher_leaves_out_what_it_takes_for_relevant(bert: Path, tmp_path: Path) -> None:
    CrossEncoder.from_pretrained(bert, seed=3, max_len=48).save_pretrained(tmp_path / "teacher")
    teacher = CrossEncoder.from_pretrained(tmp_path / "teacher")
    data, corpus = make_data(tmp_path / "d.jsonl", 20), corpus_of(tmp_path / "c.jsonl", 200)
    options = {"corpus": corpus, "ranks": (1, 60), "negatives": 4, "given": "drop"}
    plainly = mine(data, tmp_path / "all.jsonl", **options)
    for margin in (0.0, 0.05):
        out, store = tmp_path / f"{margin}.jsonl", tmp_path / "scores.sqlite"
        result = mine(data, out, teacher=str(tmp_path / "teacher"), teacher_margin=margin, store=store, **options)
        assert result.left_out["teacher"] > 0
        for row in rows(out):
            scores = teacher.compute_score([(row["query"], text) for text in row["pos"] + row["neg"]]).sigmoid()
            count = len(row["pos"])
            assert (scores[count:] <= scores[:count].max() - margin + 1e-5).all()
        assert result.negatives["bm25"] + result.left_out["teacher"] >= plainly.negatives["bm25"] - result.short * 4
        again = tmp_path / "again.jsonl"
        mine(
            data,
            again,
            teacher=str(tmp_path / "teacher"),
            teacher_margin=margin,
            store=store,
            overwrite=True,
            **options,
        )
        assert again.read_bytes() == out.read_bytes()


def test_bm25_and_an_encoder_take_turns(bert: Path, tmp_path: Path) -> None:
    data, corpus = make_data(tmp_path / "d.jsonl", 20), corpus_of(tmp_path / "c.jsonl", 200)
    out = tmp_path / "o.jsonl"
    words = ["--data", str(data), "--corpus", str(corpus), "--output", str(out), "--by", "bm25", "--by", str(bert)]
    assert main(["mine", *words, "--ranks", "1-40", "--negatives", "6", "--given", "drop", "--margin", "0"]) == 0
    sources = Counter(origin.split(":")[0] for row in rows(out) for origin in row["neg_from"])
    assert set(sources) == {"bm25", bert.name}
    texts = [json.loads(line)["text"] for line in corpus.read_text().splitlines()]
    products = embed([row["query"] for row in rows(out)], bert) @ embed(texts, bert).T
    for row, scores in zip(rows(out), products, strict=True):
        for text, origin in zip(row["neg"], row["neg_from"], strict=True):
            source, rank = origin.split(":")
            if source == bert.name:
                assert (scores > scores[texts.index(text)] + 1e-6).sum() < int(rank)


def test_bad_input_is_said_before_anything_is_written(
    bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    data = make_data(tmp_path / "d.jsonl")
    out = tmp_path / "new" / "o.jsonl"

    def said(*words: str, output: Path = out, source: Path = data) -> str:
        assert main(["mine", "--data", str(source), "--output", str(output), *words]) == 2
        assert not out.parent.exists()
        return capsys.readouterr().err

    assert "ranks is '10'; expected the first and the last rank" in said("--ranks", "10")
    assert "ranks is 0-5" in said("--ranks", "0-5")
    assert "ranks is 9-5" in said("--ranks", "9-5")
    assert "margin is 1.0" in said("--margin", "1")
    assert "margin is nan" in said("--margin", "nan")
    assert "seed is -1" in said("--seed", "-1")
    assert "negatives is 0" in said("--negatives", "0")
    assert "each once" in said("--by", "bm25", "--by", "bm25")
    assert "store is set, but no teacher is" in said("--store", "x")
    assert "teacher_margin is set, but no teacher is" in said("--teacher-margin", "0.1")
    assert "prefix are for embedding models" in said("--query-prefix", "query: ")
    assert "relevant_above is -1; expected a number from min_label (0)" in said("--relevant-above", "-1")
    assert "relevant_above is nan" in said("--relevant-above", "nan")
    assert "relevant_above is -30; expected" in said("--min-label", "-20", "--relevant-above", "-30")
    assert "teacher_margin is 2.0" in said("--teacher", str(bert), "--teacher-margin", "2")
    assert "nowhere.jsonl: does not exist" in said("--corpus", "nowhere.jsonl")
    assert "which is the input" in said(output=data)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert "no file that could be replaced" in said("--overwrite", output=pipe)
    assert pipe.is_fifo()
    existing = write_rows(tmp_path / "there.jsonl", [])
    assert "there already" in said(output=existing)
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"query": "a", "pos": ["b"]}\n{"query": 3, "pos": ["b"]}\n{"query": "a"}\n')
    text = said(source=broken)
    assert f"{broken}:2:" in text
    assert f"{broken}:3:" in text
    none = write_rows(tmp_path / "none.jsonl", [{"query": "a", "neg": ["b"]}])
    assert "no positive anywhere" in said(source=none)


def test_nothing_half_written_is_left(tmp_path: Path) -> None:
    path = tmp_path / "o.jsonl"

    def write(error: BaseException) -> None:
        with written_whole(path) as file:
            file.write(b"half")
            raise error

    with pytest.raises(KeyboardInterrupt):
        write(KeyboardInterrupt())
    with pytest.raises(InputError, match=r"o\.jsonl: could not be written: No space left"):
        write(OSError("No space left on device"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "least"), [("wikiqa/train.jsonl", 6.9), ("t2ranking_sample/t2rank_100.jsonl", 6.9)])
def test_real_data(name: str, least: float, tmp_path: Path) -> None:
    path = SHARED / name
    if not path.is_file():
        pytest.skip(f"needs the shared data set {name}")
    result = mine(path, tmp_path / "o.jsonl", ranks=(1, 50))
    before, after = rows(path), rows(tmp_path / "o.jsonl")
    assert result.negatives.total() / len(before) > least
    index = Bm25([document for row in before for document in row["pos"] + row["neg"]])
    for old, new in list(zip(before, after, strict=True))[:100]:
        count = len(old["neg"])
        assert (new["query"], new["pos"], new["neg"][:count]) == (old["query"], old["pos"], old["neg"])
        assert not set(new["neg"][count:]) & {*old["pos"], *old["neg"]}
        assert (index.score_texts(new["query"], new["neg"][count:]) > 0).all()


@pytest.mark.slow
def test_commands_of_the_guide_run(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "example_data", tmp_path / "example_data")
    shutil.copytree(ROOT / "config", tmp_path / "config")
    make_bert(tmp_path / "BAAI/bge-reranker-base", max_position_embeddings=512)
    make_bert(tmp_path / "models/encoder", max_position_embeddings=512)
    make_decoder(tmp_path / "Qwen/Qwen3-Reranker-0.6B", positions=512)
    for language, text in blocks("docs/mining.md"):
        (tmp_path / "snippet.py").write_text(text, encoding="utf-8")
        run_block("python snippet.py" if language == "python" else text, tmp_path)
    assert len(list((tmp_path / "output").rglob("*.jsonl"))) >= 3
