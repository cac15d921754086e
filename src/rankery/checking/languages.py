"""Texts that are surely in another language than the most common one of their script, in a sample of the data.

    tables -> places of some texts -> their letters of one script -> py3langid -> finding

Contract: right rather than complete. Looked at are the SAMPLE distinct queries and as many documents of the smallest keys, the
same on every machine; counts are scaled to all. A finding wants FEWEST texts of LETTERS letters or more of a language whose
probability is SURE; which language is the most common is by the likeliest of every text, since some are harder to be sure of
than others. Languages that are easily taken for each other count as one. Cost: 0.7 s to load, 0.1 to 0.2 ms a text, one more pass
over the bytes; no memory. What was measured and rejected: docs/decisions.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from rankery.checking.findings import SHOWN, Draft
from rankery.checking.report import Finding
from rankery.checking.scan import Scan
from rankery.checking.texts import SCRIPTS, characters, main_scripts

SAMPLE = 4096  # queries, and documents
CHARACTERS = 600  # of a text, its beginning
LETTERS = 40
SURE = 0.99
FEWEST = 5  # texts in another language, so 0.1% of a full sample
KNOWN = (
    0.2  # share of texts that are surely in the most common language: with less, they may be in one that is not listed
)
LANGUAGES = {
    "English": "en", "German": "de", "French": "fr", "Spanish": "es", "Italian": "it", "Portuguese": "pt", "Dutch or Afrikaans": "nl af",
    "Polish": "pl", "Swedish": "sv", "Danish or Norwegian": "da no nn", "Finnish": "fi", "Estonian": "et", "Czech or Slovak": "cs sk",
    "Bosnian, Croatian or Serbian": "bs hr sr", "Slovenian": "sl", "Romanian": "ro", "Hungarian": "hu", "Turkish or Azerbaijani": "tr az",
    "Vietnamese": "vi", "Indonesian or Malay": "id ms", "Russian": "ru", "Ukrainian": "uk", "Belarusian": "be",
    "Bulgarian or Macedonian": "bg mk", "Kazakh": "kk", "Kyrgyz": "ky", "Tatar": "tt", "Mongolian": "mn",
}  # fmt: skip
NO_LANGUAGE = "zxx"  # codes, identifiers, random letters
READ = [SCRIPTS.index(name) for name in ("Latin", "Cyrillic")]


@dataclass
class Spoken:
    """Languages of the queries, or documents, of one script."""

    likeliest: Counter[str] = field(default_factory=Counter)
    sure: dict[str, list[int]] = field(default_factory=dict)  # language -> places

    def others(self) -> tuple[str, dict[str, list[int]]]:
        """The most common language, and the places of texts that are surely in another."""
        common, _ = self.likeliest.most_common(1)[0]
        if len(self.sure.get(common, ())) < KNOWN * self.likeliest.total():
            return common, {}
        return common, {name: at for name, at in self.sure.items() if name != common and len(at) >= FEWEST}


def language_drafts(scan: Scan) -> Iterator[Draft]:
    """Findings of queries and of documents, once some of their texts are read again."""
    if sum(int(counts[READ].sum()) for counts in scan.scripts.values()) < FEWEST:
        return
    tables = {"queries": scan.queries, "documents": scan.documents}
    places = {kind: set(table.whole()["first"][:SAMPLE].tolist()) for kind, table in tables.items()}
    found: dict[str, dict[int, Spoken]] = {kind: {script: Spoken() for script in READ} for kind in tables}
    language_of = reader()
    for place, record, index in scan.files.visit(set.union(*places.values()), scan.labels):
        for kind, text in (("queries", record.query), ("documents", record.documents[index])):
            looked = language_of(text) if place in places[kind] else None
            if looked is not None:
                script, language, is_sure = looked
                found[kind][script].likeliest[language] += 1
                if is_sure:
                    found[kind][script].sure.setdefault(language, []).append(place)
    for kind, table in tables.items():
        scale = table.scale * len(table.whole()["key"]) / max(1, len(places[kind]))
        yield from _draft(kind, [spoken for spoken in found[kind].values() if spoken.likeliest], scale)


def _draft(kind: str, scripts: list[Spoken], scale: float) -> Iterator[Draft]:
    parts: list[str] = []
    at: list[int] = []
    for spoken in scripts:
        common, others = spoken.others()
        if others:
            names = sorted(others, key=lambda name: (-len(others[name]), name))
            parts.append(f"{', '.join(names)} (most common is {common})")
            at += [place for name in names for place in others[name]]
    if parts:
        what = f"different {kind} of {LETTERS} letters or more are surely in another language: {'; '.join(parts)}"
        of = sum(spoken.likeliest.total() for spoken in scripts)
        finding = Finding(
            f"other_language_{kind}", False, round(len(at) * scale), round(of * scale), what, "", scale > 1
        )
        yield finding, [(place,) for place in sorted(at)[:SHOWN]], "query" if kind == "queries" else "document"


def reader() -> Callable[[str], tuple[int, str, bool] | None]:
    """A function of a text: index of its script in SCRIPTS, its likeliest language of LANGUAGES or "", whether that is sure; None for
    texts of other scripts and of fewer than LETTERS letters.
    """
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    names = {code: name for name, codes in LANGUAGES.items() for code in codes.split()}
    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    identifier.set_languages([*names, NO_LANGUAGE])

    def language_of(text: str) -> tuple[int, str, bool] | None:
        found = characters([text[:CHARACTERS]])
        counts = found.script_counts()
        script = int(main_scripts(counts)[0])
        if script not in READ or counts[0, script] < LETTERS:
            return None
        # Words of other scripts are no words of the language.
        kept = np.where((found.scripts == script) | (found.scripts == 0), found.codes, np.uint32(ord(" ")))
        shares: Counter[str] = Counter()
        for code, probability in identifier.rank(kept.astype("<u4").tobytes().decode("utf-32-le", "ignore")):
            shares[names.get(code, "")] += probability
        language, share = shares.most_common(1)[0]
        return script, language, bool(language) and share >= SURE

    return language_of
