"""Input that no verb should trip over: malformed rows, TREC files, configurations and command lines, all from a seed.

    for case in cases(seed=1, count=300):
        assert (finding := verdict(case, home, model)) is None, f"{case}\\n{finding}"

The verdict of a case is a finding, or None: the command ended with 0 (check: or 1) and left results that can be read, or with 2 and
errors of one line each, none long, and then left every file and folder as it was. Anything else is one: another exception, a hang,
half a result, a page with a tag of a hostile text alive. All runs in one process. Cost: some 50 cases a second of configurations,
5 to 20 of commands on a tiny model.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import random
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from unittest import mock

from rankery.cli import main
from rankery.config import TrainConfig, dump_config, load_config, parse_overrides
from rankery.errors import PROBLEM_CHARACTERS, InputError

SECONDS = 60  # a case that takes longer hangs
WORDS = ["sun", "moon", "sea", "tree", "rain", "stone", "fish", "bird"]
TEXTS = [
    "", " ", "\x00", "\ud800", "é", "月亮", "\u202e", "a\rb", "a\nb", "a\tb", "=1+1", "\x1b[31m", "x" * 3000, "{}", "%s%n", "../../x", "-", "nan",
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "</style><script>", "</textarea>", "\"><b onmouseover='a'>", "javascript:alert(1)",
    "&lt;script&gt;", "[SEP]", "<s>", "\u2028", "\ufeff", "👩‍👩‍👧", "0" * 500,
]  # fmt: skip
VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2, 0.5, 1e300, -1e300, 10**25, float("nan"), float("inf"), [], {}, [[]], [None], {"a": 1}, [1, "a"],
    ["sea", "sun"], [0.5], [1, 0], "sea", [{"text": "sea"}], [True], *TEXTS,
]  # fmt: skip
KEYS = [
    "query", "pos", "neg", "pos_scores", "neg_scores", "pos_logits", "neg_logits", "content", "label", "hits", "documents", "id", "title", "text",
    "positive", "negatives", "hard_negatives", "scores", "Pos", "pos ", "neg_from", "score", "labels", "", "\ud800", "x" * 999, "_id",
]  # fmt: skip


@dataclass
class Case:
    """One command, or one configuration, and the files that it is given."""

    name: str
    words: list[str]
    files: dict[str, bytes] = field(default_factory=dict)


# What is malformed


LABELLED, REQUESTS, NAMED = (0, 1, 2, 3), (4,), (5,)  # forms of lines


def row(rng: random.Random, form: int) -> dict[str, Any]:
    """A line of a form, as it should be."""
    texts = [" ".join(rng.choices(WORDS, k=rng.randint(1, 5))) for _ in range(4)]
    query, number = f"{rng.choice(WORDS)} {rng.randint(0, 9)}", rng.randint(0, 10**6)
    forms: list[dict[str, Any]] = [
        {"query": query, "pos": texts[:1], "neg": texts[1:]},
        {"query": query, "pos": texts[:2], "pos_scores": [1, 0.25], "neg": texts[2:], "neg_scores": [0, 0.5]},
        {"query": query, "content": texts[0], "label": number % 2},
        {"query": query, "hits": [{"content": text, "label": i % 2} for i, text in enumerate(texts)]},
        {"query": query, "documents": texts},
        {"_id": f"{'qd'[number % 2]}{number % 12}", "text": texts[0], "title": texts[1]},
    ]
    return forms[form]


def odd_row(rng: random.Random, form: int) -> str:
    """A line with one thing or two wrong, or none."""
    value = row(rng, form)
    for _ in range(rng.choice([0, 1, 1, 2])):
        key = rng.choice([*value] * 3 + KEYS)
        action = rng.randrange(6)
        if action == 0:
            value.pop(key, None)
        elif action == 1 and isinstance(value.get(key), list) and value[key]:
            value[key][rng.randrange(len(value[key]))] = rng.choice(VALUES)
        elif action == 2 and isinstance(value.get(key), list):
            value[key] = value[key] * rng.randint(0, 3)
        elif action == 3:
            value[rng.choice(KEYS)] = value.get(key)
        else:
            value[key] = rng.choice(VALUES)
    text = json.dumps(value, ensure_ascii=rng.random() < 0.5)
    action = rng.randrange(14)
    if action == 0:
        text = text[:-1] + ", " + text[1:]  # every key twice
    elif action == 1:
        text = text[: rng.randrange(len(text))]
    elif action == 2:
        text = rng.choice(
            ["null", "[]", "1", '"a"', "{", "}", "[" * 5000, '{"a":' * 5000, "// a", "a,b,c", "NaN", "1" * 5000, "\x00"]
        )
    return text


def rows_file(rng: random.Random, forms: tuple[int, ...]) -> bytes:
    """JSONL of some lines of a form, of which one or a few may be odd; or something that is no JSONL."""
    form = rng.choice(forms)
    lines = [json.dumps(row(rng, form)) for _ in range(12)]
    for _ in range(rng.choice([0, 1, 1, 3])):
        lines[rng.randrange(12)] = odd_row(rng, form)
    return mangled("\n".join(lines).encode("utf-8", "surrogatepass") + b"\n", rng)


def trec_file(rng: random.Random, is_run: bool) -> bytes:
    """Judgements, or a run, of some queries, with something wrong in some lines."""
    lines = []
    for query in range(3):
        for document in range(4):
            fields = [f"q{query}", "0", f"d{4 * query + document}", str(rng.randint(0, 1))]
            if is_run:
                fields = [fields[0], "Q0", fields[2], str(document + 1), str(4 - document), "t"]
            if rng.random() < 0.02:
                fields[rng.randrange(len(fields))] = rng.choice(
                    ["", "1_0", "١", "nan", "-1", "1e999", "99999999999", "0x1", "a b", "\x00", "q0", "d0", "x" * 3000, "\ud800", "-0", "1.5", "é", "\u2028"]
                )  # fmt: skip
            if rng.random() < 0.01:
                fields = fields[: rng.randint(0, 3)]
            lines.append(rng.choice([" ", "\t"]).join(fields))
    if rng.random() < 0.2 and not is_run:
        lines = ["query-id\tcorpus-id\tscore", *("\t".join(line.split()[::2] + line.split()[3:]) for line in lines)]
    return mangled("\n".join(lines).encode("utf-8", "surrogatepass") + b"\n", rng)


def mangled(content: bytes, rng: random.Random) -> bytes:
    """A file's bytes, mostly as they are."""
    ways: list[Callable[[bytes], bytes]] = [
        lambda b: b.decode("utf-8", "ignore").encode("utf-16"),
        lambda b: b.decode("utf-8", "ignore").encode("utf-16-le"),
        lambda b: b.decode("utf-8", "ignore").encode("latin-1", "ignore") + b"\xe9\n",
        lambda b: b"\xef\xbb\xbf" + b,
        lambda b: b.replace(b"\n", b"\r"),
        lambda b: b.replace(b"\n", b"\r\n"),
        lambda b: b.replace(b"\n", b"\n\n \n"),
        lambda b: b[: rng.randrange(len(b))],
        lambda b: bytes(byte ^ (rng.random() < 0.01) * rng.randrange(256) for byte in b),
        lambda b: gzip.compress(b),
        lambda b: gzip.compress(b)[: rng.randrange(9, 60)],
        lambda b: gzip.compress(gzip.compress(b)),
        lambda b: gzip.compress(b) + b"garbage",
        lambda b: b"[" + b.strip().replace(b"\n", b",\n") + b"]",
        lambda b: b"query,content,label\n" + b,
        lambda b: b"PAR1" + rng.randbytes(200),
        lambda b: rng.randbytes(300),
        lambda b: b"",
        lambda b: b"\n \n",
        lambda b: b + b"\x00" * 100,
    ]
    return rng.choice(ways)(content) if rng.random() < 0.15 else content


def configuration(rng: random.Random) -> bytes:
    """A training's YAML with some keys, of which some have values that they should not."""
    scalars = [
        "1", "0", "-1", "1:30", "010", "1_000", "yes", "no", "on", "~", "''", '"x"', "1e-4", "5e400", ".inf", ".nan", "0x1F", "1e5", "2024-01-01", "=", "<<",
        "[]", "{}", "[1, [2]]", "{a: 1}", "{a: 1, a: 2}", "[a, b]", "&x [*x]", "*nowhere", "&y 3", "!!python/object:os.system x", "!!float x", "!!binary x",
        "!!set {a}", "|\n  text", "x" * 2000, "9" * 5000, "\x00", "é", "'", "{", "[", "- a", "a: b: c", "[" * 300, "%", "@", "`", "{point_ce: 1}", "listwise_ce",
        "bf16", "true", "bert_encoder", "llm_decoder", "[x, y]", "{listwise_kl: 0}", "!", "!!int 1:30", "? a", "1.", ".5", "+7", "-0.0",
    ]  # fmt: skip
    keys = [*TrainConfig.model_fields]
    chosen = rng.sample(keys, rng.randint(0, 5)) + rng.choices(
        ["epoch", "learning_rate", "lr ", "", "1", "null", "[a]", "<<", "{a: b}", "é"], k=rng.randint(0, 1)
    )
    lines = ["model_name_or_path: m", "train_dataset: d.jsonl", "output_dir: o"][rng.random() < 0.1 :]
    lines += [f"{key}: {rng.choice(scalars)}" for key in chosen]
    rng.shuffle(lines)
    if rng.random() < 0.1:
        lines += rng.choice(
            [
                [
                    "a: &a [x,x,x,x,x,x]",
                    *(f"b{i}: &b{i} [{','.join([f'*b{i - 1}' if i else '*a'] * 9)}]" for i in range(9)),
                ],
                ["---", "a: 1"],
                ["- 1"],
            ]
        )
    content = "\n".join(lines).encode() + b"\n"
    return mangled(content, rng) if rng.random() < 0.3 else content


# The commands; MODEL, FOLDER and names of files are put in by `verdict`

NUMBERS = ["0", "1", "2", "-1", "0.5", "1.5", "nan", "inf", "x", "", "99999999999999999999", "1e3", "１", "1_0", "0x1"]
NAMES = [
    "MODEL",
    "FOLDER",
    "nowhere",
    "",
    ".",
    "/dev/null/x",
    "a.jsonl",
    "b.jsonl",
    "*.jsonl",
    "[",
    "x" * 5000,
    "\ud800",
    "-",
    "t.trec",
    "new/x",
]
MEASURES = [
    "nDCG@10", "nDCG@0", "RR@10 AP", "P(rel=2)@5", "P(rel=0)@5", "R@0", "x", "nDCG@", "", "Judged@0", "nDCG(dcg='exp-log2')", "ERR@20", "IPrec@2", "NumRet",
    "AP(rel=99999999999)", "RBP(p=2)", "nDCG@9999999999999", "Compat", "SetF(beta=1)", "((", "__import__('os')", "P@1 P@1",
]  # fmt: skip
OPTIONS: dict[str, dict[str, list[str]]] = {
    "check": {
        "--against": ["b.jsonl", *NAMES], "--max-len": NUMBERS, "--min-label": NUMBERS, "--max-label": NUMBERS, "--relevant-above": NUMBERS,
        "--max-texts": [*NUMBERS, "2000"], "--score-queries": NUMBERS, "--fix": ["out.jsonl", *NAMES], "--json": ["out.json", *NAMES],
        "--html": ["out.html", *NAMES], "--overwrite": [], "--prompt": ["x"],
    },
    "evaluate": {
        "--model": ["MODEL", *NAMES], "--baseline": ["bm25", "random", *NAMES], "--run": ["t.trec", "u.trec", *NAMES], "--qrels": ["t.trec", "u.trec", *NAMES],
        "--data": ["a.jsonl", "b.jsonl", *NAMES], "--queries": ["a.jsonl", *NAMES], "--documents": ["b.jsonl", *NAMES], "--output": ["out", *NAMES],
        "--measures": ["nDCG@10", *MEASURES], "--min-label": NUMBERS, "--relevant-above": NUMBERS, "--recall-at": NUMBERS, "--seed": NUMBERS, "--batch-size": NUMBERS,
        "--max-length": NUMBERS, "--reference": ["bm25", "BM25", *NAMES], "--processes": ["0", "-1", "99999", "x"], "--dtype": ["bfloat16", "int8"],
    },
    "rerank": {
        "--input": ["a.jsonl", "b.jsonl", *NAMES], "--output": ["out.jsonl", "out.jsonl.gz", *NAMES], "--top-k": NUMBERS, "--normalize": [], "--calibrated": [],
        "--overwrite": [], "--batch-size": NUMBERS, "--max-length": NUMBERS, "--device": ["cpu", "gpu", "cuda:9", ""],
    },
    "calibrate": {
        "--precision": NUMBERS, "--recall": NUMBERS, "--min-label": NUMBERS, "--relevant-above": NUMBERS, "--html": ["out.html", *NAMES], "--seed": NUMBERS,
        "--batch-size": NUMBERS,
    },
    "mine": {
        "--corpus": ["b.jsonl", *NAMES], "--by": ["bm25", *NAMES], "--negatives": NUMBERS, "--ranks": ["1-9", "9-1", "0-0", "x", "1-" + "9" * 30, "１-２"],
        "--pick": ["top", "x"], "--margin": NUMBERS, "--given": ["drop", "mine", "x"], "--min-label": NUMBERS, "--relevant-above": NUMBERS, "--seed": NUMBERS,
        "--overwrite": [], "--query-prefix": TEXTS, "--teacher": ["MODEL", *NAMES], "--teacher-margin": NUMBERS, "--store": ["out.sqlite", *NAMES],
    },
    "score": {
        "--weight": NUMBERS, "--temperature": NUMBERS, "--keep-lists": [], "--overwrite": [], "--max-length": NUMBERS, "--store": ["out.sqlite", *NAMES],
        "--processes": ["0", "99999"], "--prompt": ["x", "none"],
    },
    "compare": {"--output": ["out.html", *NAMES], "--overwrite": []},
    "train": {"--config": ["c.yaml", *NAMES], "--processes": ["0", "99999"], "--engine": ["x"]},
}  # fmt: skip
NEEDED = {
    "check": ["a.jsonl"], "evaluate": [], "rerank": ["--model", "MODEL", "--input", "a.jsonl"], "calibrate": ["--model", "MODEL", "--data", "a.jsonl"],
    "mine": ["--data", "a.jsonl", "--output", "out.jsonl"], "score": ["--model", "MODEL", "--data", "a.jsonl", "--output", "out.jsonl"], "compare": ["FOLDER", "nowhere"],
    "train": ["model_name_or_path=MODEL", "train_dataset=nowhere"],
}  # fmt: skip
USUAL = {
    "check": ["a.jsonl", "--json", "out.json", "--html", "out.html", "--fix", "out.jsonl"],
    "evaluate": ["--baseline", "bm25", "--data", "a.jsonl", "--output", "out"],
    "rerank": ["--model", "MODEL", "--input", "a.jsonl", "--output", "out.jsonl"],
    "calibrate": ["--model", "MODEL", "--data", "a.jsonl", "--html", "new/out.html"],
    "mine": ["--data", "a.jsonl", "--output", "new/out.jsonl", "--ranks", "1-9"],
    "score": ["--model", "MODEL", "--data", "a.jsonl", "--output", "new/out.jsonl"],
}


def command(rng: random.Random) -> list[str]:
    """A verb with a few options, of which some have values that they should not."""
    verb = rng.choice([*OPTIONS])
    words = [] if rng.random() < 0.05 else list(NEEDED[verb])
    for name in rng.choices([*OPTIONS[verb]], k=rng.randint(0, 4)):
        values = OPTIONS[verb][name]
        words += [name, rng.choice(values[:1] * 5 + values)] if values else [name]
    if rng.random() < 0.1:
        words.insert(
            rng.randrange(len(words) + 1),
            rng.choice(["--no-such", "-x", "--", "=", "--model", "a=b", "\ud800", "--help=1"]),
        )
    return [verb, *words]


def cases(seed: int, count: int) -> Iterator[Case]:
    """So many cases: a third of odd files before usual commands, of TREC files, of odd commands, of configurations."""
    for number in range(count):
        rng = random.Random(f"{seed} {number}")
        kind = ("rows", "command", "configuration", "rows", "trec", "overrides")[number % 6]
        words = command(rng)
        if kind == "rows":
            verb = rng.choice([*USUAL])
            words = [verb, *USUAL[verb]]
        elif kind == "trec":
            texts = ["--baseline", "bm25", "--queries", "a.jsonl", "--documents", "b.jsonl"]
            words = ["evaluate", "--run", "t.trec", "--qrels", "u.trec", *rng.choice([[], texts])]
        elif kind == "overrides":
            lines = configuration(rng).decode("utf-8", "ignore").splitlines()
            words = [line.replace(": ", "=", 1) for line in lines]
        forms = NAMED if kind == "trec" else REQUESTS if words[:1] == ["rerank"] else LABELLED
        files = {"a.jsonl": rows_file(rng, forms), "b.jsonl": rows_file(rng, forms), "c.yaml": configuration(rng)}
        files |= {"t.trec": trec_file(rng, rng.random() < 0.95), "u.trec": trec_file(rng, rng.random() < 0.05)}
        yield Case(f"{seed}/{number} {kind}", words, files)


# The verdict


def verdict(case: Case, home: Path, model: Path) -> str | None:
    """What is wrong with how a case ended; None: nothing. `home` is an empty folder, which is empty again after."""
    if "configuration" in case.name or "overrides" in case.name:
        return _of_configuration(case, home)
    folder = home / "model"
    shutil.copytree(model, folder)
    for name, content in case.files.items():
        (home / name).write_bytes(content)
    words = [{"MODEL": "model", "FOLDER": "."}.get(word, word) for word in case.words]
    words = [word.replace("=MODEL", "=model") for word in words]
    before = _contents(home)
    try:
        with contextlib.chdir(home) if sys.version_info >= (3, 11) else _chdir(home):
            status, said = _ended(words)
        if isinstance(status, str):
            return status
        after = _contents(home)
        return _of_status(status, words, said, before, after) or _of_results(home, {*after} - {*before})
    finally:
        for path in home.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _of_status(status: int, words: list[str], said: str, before: dict[str, str], after: dict[str, str]) -> str | None:
    """Whether the status, what was said and what was left agree."""
    verb = words[0]
    if status not in (0, 2) and not (status == 1 and verb == "check"):
        return f"status {status}: {said[-500:]}"
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    if status == 2 and not lines and "usage: " not in said and verb != "check":
        return f"no error is said: {said[-300:]!r}"
    if any(len(line) > PROBLEM_CHARACTERS + 9 for line in lines):
        return f"an error of {max(map(len, lines))} characters"
    if status == 2 and verb != "check" and before != after:
        return f"left after an error: {sorted(before.items() ^ after.items())[:4]}"
    changed = [name for name in before if after.get(name) != before[name]]
    if status == 2 and lines and before != after:
        return f"left after an error: {sorted(before.items() ^ after.items())[:4]}"
    allowed = {"model/rankery.json"} if verb == "calibrate" else set(changed) if "--overwrite" in words else set()
    return f"changed: {changed}" if {*changed} - allowed else None


def _of_results(home: Path, new: set[str]) -> str | None:
    for name in sorted(new):
        path = home / name
        if path.suffix == ".html" and (alive := live_markup(path.read_text(encoding="utf-8"))):
            return f"{name}: {alive}"
        if path.suffix in (".json", ".jsonl"):
            whole = path.read_text(encoding="utf-8")
            texts = [whole] if path.suffix == ".json" else filter(None, whole.split("\n"))
            for text in texts:  # NaN in a key that is kept stays what it was
                try:
                    json.loads(text)
                except ValueError as error:
                    return f"{name}: {error}: {text[:80]!r}"
        if ".tmp-" in name:
            return f"left: {name}"
    return None


def _of_configuration(case: Case, home: Path) -> str | None:
    path, again = home / "c.yaml", home / "again.yaml"
    path.write_bytes(case.files["c.yaml"])
    try:
        with _limited():
            overrides = "overrides" in case.name
            found = load_config(None, parse_overrides(case.words)) if overrides else load_config(path)
            again.write_text(dump_config(found), encoding="utf-8")
            return None if load_config(again) == found else "what is written is read back to something else"
    except InputError as error:
        longest = max(map(len, error.problems))
        return f"a problem of {longest} characters" if longest > PROBLEM_CHARACTERS else None
    except BaseException:
        return traceback.format_exc()[-1500:]
    finally:
        path.unlink()
        again.unlink(missing_ok=True)


def _ended(words: list[str]) -> tuple[int | str, str]:
    """(status, or a traceback; what was said) of a command that reads nothing from standard input."""
    out, err = io.TextIOWrapper(io.BytesIO(), "utf-8", "backslashreplace"), io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        mock.patch.object(sys, "stdin", io.TextIOWrapper(io.BytesIO())),
    ):
        try:
            with _limited():
                return main(words), err.getvalue()
        except SystemExit as end:
            return (end.code if isinstance(end.code, int) else 1), err.getvalue()
        except BaseException:
            return traceback.format_exc()[-1500:], err.getvalue()


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    def hangs(*_: object) -> None:
        raise TimeoutError(f"hangs: more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def _chdir(folder: Path) -> Iterator[None]:
    import os

    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def _contents(folder: Path) -> dict[str, str]:
    """Name -> digest of all that is below a folder."""
    return {
        path.relative_to(folder).as_posix(): hashlib.blake2b(path.read_bytes()).hexdigest()
        if path.is_file()
        else "folder"
        for path in folder.rglob("*")
    }


def live_markup(page: str) -> str | None:
    """A tag or attribute in a page that a browser would run or load; None: nothing, and a policy forbids it."""
    found: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            if tag in ("script", "img", "iframe", "object", "embed", "form", "base", "textarea", "b", "audio", "video"):
                found.append(tag)
            for name, value in attrs:
                if name.startswith("on") or (
                    (value or "").strip().lower().startswith(("javascript:", "http", "//")) and name in ("href", "src")
                ):
                    found.append(f"{tag} {name}={value}")
                if name == "http-equiv" and value == "Content-Security-Policy":
                    policies.append(dict(attrs)["content"] or "")

    policies: list[str] = []
    Reader().feed(page)
    if not policies or "default-src 'none'" not in policies[0]:
        return f"the policy is {policies}"
    return f"alive: {found[0]}" if found else None
