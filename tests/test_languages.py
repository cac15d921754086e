"""`rankery check`, languages: what is said is right, on sentences of this file, real data and texts of no language."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np
import pytest
from conftest import SHARED, run_python, write_rows

import rankery
from rankery.checking.languages import FEWEST, LETTERS, reader
from rankery.checking.report import Report

ENGLISH = """
The ferry leaves the harbour every morning at seven, unless the wind is too strong.
A good bread needs little more than flour, water, salt and a great deal of patience.
Nobody could explain why the lights in the old theatre had been burning all night.
The committee will publish its findings before the end of the summer.
Children under the age of six travel free of charge on all buses and trams.
After the storm, hundreds of trees were lying across the roads of the valley.
She learned to play the violin when she was four and never stopped practising.
The museum keeps one of the largest collections of medieval maps in the world.
Wash the vegetables, cut them into small pieces and fry them in hot oil.
The patient should drink plenty of water and stay in bed for a few days.
Our neighbours have been trying to sell their house for more than a year.
Most of the energy that the town consumes comes from a nuclear power station.
The river freezes in winter, and people walk across it to the other side.
You can change your password at any time in the settings of your account.
The professor asked his students to read the first three chapters again.
Prices have risen faster than wages during the last ten years.
An engine of this kind burns less fuel but is more expensive to repair.
The judge decided that the contract was not valid without a second signature.
Whales are mammals: they breathe air and feed their young with milk.
The new bridge shortened the way to the airport by twenty minutes.
"""
GERMAN = """
Der Zug nach Hamburg fährt heute wegen einer Störung leider erst um halb neun ab.
Wer im Garten Tomaten ziehen will, braucht vor allem Sonne und ein wenig Geduld.
Die Gemeinde hat beschlossen, das alte Schwimmbad im nächsten Jahr zu schließen.
Nach dem Essen gingen wir noch eine Stunde am Ufer des Sees spazieren.
Das Gericht hob das Urteil auf und verwies die Sache an die Vorinstanz zurück.
Für den Teig werden Mehl, Zucker, Butter und zwei Eier miteinander verrührt.
Meine Großmutter erzählte uns abends oft Geschichten aus ihrer Kindheit.
Der Schlüssel liegt unter der Fußmatte, falls du früher nach Hause kommst.
Im Winter bleiben viele Pässe in den Alpen wegen der Lawinengefahr gesperrt.
Die Studie zeigt, dass Kinder sich beim Spielen besser konzentrieren können.
Bitte füllen Sie das Formular vollständig aus und schicken Sie es an uns zurück.
Er hatte sein ganzes Leben lang davon geträumt, einmal das Meer zu sehen.
Ohne gültigen Fahrausweis wird ein erhöhtes Entgelt von sechzig Euro fällig.
Der Arzt empfahl ihr, jeden Tag mindestens eine halbe Stunde zu laufen.
Die Wohnung liegt im dritten Stock und hat einen kleinen Balkon nach Süden.
Wenn es morgen regnet, verschieben wir den Ausflug auf das nächste Wochenende.
Das Museum ist montags geschlossen, der Eintritt für Kinder ist frei.
Seit die Fabrik stillgelegt wurde, ziehen immer mehr junge Leute fort.
Man darf die Batterie nicht ins Feuer werfen oder mit Gewalt öffnen.
Die Forscher fanden im Boden Spuren einer Siedlung aus der Bronzezeit.
Unser Hund bellt jedes Mal, wenn jemand an der Haustür klingelt.
Die Regierung will die Steuern auf kleine Einkommen im Herbst senken.
Vor dem Streichen muss die Wand gründlich gereinigt und getrocknet werden.
Sie hat ihre Brille schon wieder irgendwo im Büro liegen lassen.
Der Film erzählt von zwei Brüdern, die sich nach zwanzig Jahren wiedersehen.
Wir suchen zum ersten Mai eine zuverlässige Aushilfe für unsere Bäckerei.
Die Brücke wurde im Krieg zerstört und danach nie wieder aufgebaut.
Bei hohem Fieber sollte man viel trinken und sich möglichst schonen.
Der Redner bedankte sich bei allen, die zum Gelingen des Festes beigetragen hatten.
Das Wasser des Brunnens ist so klar, dass man bis auf den Grund sehen kann.
"""
FRENCH = """
Le train pour Lyon partira avec une demi-heure de retard à cause de la neige.
Il faut laisser reposer la pâte pendant une nuit avant de la mettre au four.
La mairie a décidé de fermer la piscine municipale pendant tout l'été.
Personne ne savait pourquoi les volets de cette maison restaient toujours fermés.
Les enfants jouaient dans la cour pendant que leurs parents préparaient le repas.
Le médecin lui a conseillé de marcher au moins une heure par jour.
Cette année, les vendanges ont commencé deux semaines plus tôt que d'habitude.
Vous pouvez modifier votre mot de passe à tout moment dans les paramètres.
La cour d'appel a confirmé le jugement rendu en première instance.
Elle avait appris le piano avec sa tante, qui habitait au bord de la mer.
Les chercheurs ont découvert les restes d'un village datant de l'âge du fer.
Nous cherchons un appartement lumineux avec trois chambres et un balcon.
Le pont a été détruit pendant la guerre, puis reconstruit dix ans après.
Quand il pleut, les rues du vieux quartier se transforment en ruisseaux.
Le gouvernement veut réduire les impôts des familles les plus modestes.
Mon grand-père gardait ses outils dans une cabane au fond du jardin.
La bibliothèque est ouverte tous les jours, sauf le lundi et les jours fériés.
Ajoutez les oignons, puis laissez cuire à feu doux pendant vingt minutes.
On entendait au loin les cloches de l'église sonner pour le mariage.
Le moteur consomme moins d'essence, mais son entretien coûte plus cher.
Les voyageurs doivent présenter une pièce d'identité au moment de l'embarquement.
Il avait oublié ses lunettes sur la table et ne pouvait plus rien lire.
La plupart des habitants travaillent dans la grande usine près du fleuve.
Cet hiver, les loups sont descendus jusqu'aux premières maisons du village.
Le film raconte l'amitié entre un vieux pêcheur et un jeune étranger.
Si la fièvre ne baisse pas au bout de trois jours, il faut consulter.
Je ne comprends pas pourquoi tu refuses encore de lui parler au téléphone.
Le marché se tient chaque samedi matin sur la place devant la gare.
Les prix du pain et du lait ont beaucoup augmenté ces derniers mois.
Avant de partir, n'oublie pas d'éteindre la lumière et de fermer la porte à clé.
"""
POLISH = """
Pociąg do Krakowa odjedzie dzisiaj z półgodzinnym opóźnieniem z powodu śniegu.
Przed pieczeniem ciasto powinno odpocząć w lodówce przynajmniej przez godzinę.
Rada miasta postanowiła zamknąć stary basen na czas nieokreślony.
Nikt nie wiedział, dlaczego okna tego domu zawsze były zasłonięte.
Dzieci bawiły się na podwórku, a rodzice przygotowywali obiad.
Lekarz poradził jej, żeby codziennie chodziła na długie spacery.
W tym roku zbiory jabłek zaczęły się dwa tygodnie wcześniej niż zwykle.
Hasło można zmienić w każdej chwili w ustawieniach swojego konta.
Sąd uchylił wyrok i przekazał sprawę do ponownego rozpoznania.
Moja babcia mieszkała nad morzem i uczyła nas grać na pianinie.
Naukowcy odkryli ślady osady, która istniała tu przed tysiącem lat.
Szukamy jasnego mieszkania z trzema pokojami i niewielkim balkonem.
Most został zniszczony podczas wojny, a potem odbudowany.
Kiedy pada deszcz, ulice starego miasta zamieniają się w strumienie.
Rząd chce obniżyć podatki dla rodzin o najniższych dochodach.
Dziadek trzymał swoje narzędzia w drewnianej szopie za domem.
Biblioteka jest czynna codziennie oprócz poniedziałków i świąt.
Dodaj cebulę i duś wszystko na małym ogniu przez dwadzieścia minut.
Z daleka słychać było dzwony kościoła, w którym odbywał się ślub.
Ten silnik zużywa mniej paliwa, ale jego naprawa jest droższa.
Podróżni muszą okazać dokument tożsamości przed wejściem na pokład.
Zapomniał okularów i nie mógł przeczytać ani jednego słowa.
Większość mieszkańców pracuje w dużej fabryce nad rzeką.
Tej zimy wilki podeszły aż pod pierwsze domy we wsi.
Film opowiada o przyjaźni starego rybaka i młodego cudzoziemca.
Jeżeli gorączka nie spadnie po trzech dniach, należy iść do lekarza.
Nie rozumiem, dlaczego wciąż nie chcesz z nim porozmawiać.
Targ odbywa się w każdą sobotę rano na placu przed dworcem.
Ceny chleba i mleka bardzo wzrosły w ostatnich miesiącach.
Zanim wyjdziesz, nie zapomnij zgasić światła i zamknąć drzwi na klucz.
"""
RUSSIAN = """
Поезд на Москву отправится сегодня с опозданием из-за сильного снегопада.
Перед выпечкой тесто должно постоять в холодильнике не меньше часа.
Никто не знал, почему окна этого дома всегда были закрыты ставнями.
Дети играли во дворе, пока родители готовили ужин на летней кухне.
Врач посоветовал ей каждый день гулять хотя бы полчаса.
В этом году урожай яблок начали собирать на две недели раньше.
Вы можете изменить свой пароль в любое время в настройках.
Моя бабушка жила у моря и учила нас играть на пианино.
Учёные обнаружили следы поселения, которому больше тысячи лет.
Мост был разрушен во время войны, а потом построен заново.
Когда идёт дождь, улицы старого города превращаются в ручьи.
Библиотека открыта ежедневно, кроме понедельника и праздничных дней.
"""
UKRAINIAN = """
Потяг до Києва сьогодні вирушить із запізненням через сильний снігопад.
Перед випіканням тісто має постояти в холодильнику щонайменше годину.
Ніхто не знав, чому вікна цього будинку завжди були зачинені.
Діти гралися на подвір'ї, поки батьки готували вечерю.
Лікар порадив їй щодня гуляти хоча б півгодини.
Цього року врожай яблук почали збирати на два тижні раніше.
Ви можете змінити свій пароль будь-коли в налаштуваннях.
Моя бабуся жила біля моря і вчила нас грати на піаніно.
Вчені виявили сліди поселення, якому понад тисячу років.
Міст було зруйновано під час війни, а потім збудовано знову.
Коли йде дощ, вулиці старого міста перетворюються на струмки.
Бібліотека відчинена щодня, крім понеділка та святкових днів.
"""
SENTENCES = {
    "English": ENGLISH, "German": GERMAN, "French": FRENCH, "Polish": POLISH, "Russian": RUSSIAN, "Ukrainian": UKRAINIAN,
}  # fmt: skip


def sentences(language: str) -> list[str]:
    return SENTENCES[language].strip().split("\n")


def rows_of(documents: list[str]) -> list[dict]:
    return [
        {"query": f"query {i}", "pos": [first], "neg": [second]}
        for i, (first, second) in enumerate(zip(documents[::2], documents[1::2], strict=True))
    ]


def checked(tmp_path: Path, rows: list[dict], **options: object) -> Report:
    return rankery.check(write_rows(tmp_path / "data.jsonl", rows), **options)  # type: ignore[arg-type]


def notes(report: Report) -> list[str]:
    return [finding.kind for finding in report.findings if finding.kind.startswith("other_language")]


def test_a_language_that_is_said_is_right() -> None:
    language_of = reader()
    for language in SENTENCES:
        found = [found for found in map(language_of, sentences(language)) if found is not None]
        said = [name for _, name, is_sure in found if is_sure]
        assert set(said) == {language}
        least = 0.4 if language == "Russian" else 0.7
        assert said.count(language) >= least * len(sentences(language)), language


def test_texts_of_no_language_have_none() -> None:
    language_of, chooser = reader(), np.random.default_rng(0)
    texts = [base64.b64encode(chooser.bytes(90)).decode() for _ in range(100)]
    texts += [chooser.bytes(90).hex() for _ in range(100)]
    for letters in ("ACGT", "abcdefghijklmnopqrstuvwxyz"):
        texts += [
            " ".join("".join(chooser.choice(list(letters), 6)) for _ in range(20))
            for _ in range(100)
        ]  # fmt: skip
    texts += [
        ", ".join(
            f"{first} {last}" for first in ("Ann", "Paul") for last in ("Miller", "Novak", "Rossi", "Weber", "Silva")
        )
    ]
    assert {found[2] for text in texts if (found := language_of(text)) is not None} == {False}


def test_only_the_letters_of_a_script_count() -> None:
    language_of = reader()
    german = sentences("German")[0]
    assert language_of(german + " 月亮离地球有多远呢 Поезд") == language_of(german)
    assert language_of("月亮离地球有多远呢请告诉我" * 6 + german) is None  # a Chinese text
    assert language_of(german[:LETTERS]) is None
    assert language_of("") is None


def test_other_languages_are_found_with_their_places(tmp_path: Path) -> None:
    documents = [*sentences("English"), *sentences("German")[:8], *sentences("French")[:8], *sentences("Polish")[: FEWEST - 1], *sentences("Russian")[:2]]  # fmt: skip
    report = checked(tmp_path, rows_of(documents))
    assert notes(report) == ["other_language_documents"]
    finding = report.finding("other_language_documents")
    assert finding is not None
    assert (finding.matters, finding.is_estimate, finding.of, report.status) == (False, False, len(documents), 0)
    assert 12 <= finding.count <= 16
    assert "French" in finding.what
    assert "German" in finding.what
    assert "(most common is English)" in finding.what
    assert "Polish" not in finding.what
    for example in finding.examples:
        at = int(example.where[0].rsplit(":", 1)[1])
        assert example.texts[0][:60] in {text[:60] for text in documents[2 * at - 2 : 2 * at]}
        assert example.texts[0][:60] in {text[:60] for text in sentences("German")}


def test_queries_and_cyrillic(tmp_path: Path) -> None:
    queries = [*sentences("Russian"), *sentences("Ukrainian")[:9]]
    rows = [{"query": query, "pos": [f"yes {i}"], "neg": [f"no {i}"]} for i, query in enumerate(queries)]
    report = checked(tmp_path, rows)
    assert notes(report) == ["other_language_queries"]
    finding = report.finding("other_language_queries")
    assert finding is not None
    assert "Ukrainian (most common is Russian)" in finding.what
    assert finding.of == sum(sum(map(str.isalpha, query)) >= LETTERS for query in queries)


def test_one_language_has_no_note(tmp_path: Path) -> None:
    for language in SENTENCES:
        assert notes(checked(tmp_path, rows_of(sentences(language)))) == []
    two_scripts = [*sentences("English"), *sentences("Russian")]
    assert notes(checked(tmp_path, rows_of(two_scripts))) == []


def test_a_sample_says_so_and_is_scaled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    english, german = sentences("English"), sentences("German")
    documents = [f"{a} {b}" for a in english for b in english] + [f"{a} {b}" for a in german for b in german[:4]]
    whole = checked(tmp_path, rows_of(documents)).finding("other_language_documents")
    monkeypatch.setattr("rankery.checking.languages.SAMPLE", 200)
    report = checked(tmp_path, rows_of(documents))
    part = report.finding("other_language_documents")
    assert whole is not None
    assert part is not None
    assert (whole.is_estimate, part.is_estimate, whole.of) == (False, True, len(documents))
    assert part.of == pytest.approx(whole.of, rel=0.02)
    assert part.count == pytest.approx(whole.count, rel=0.4)
    assert f"- about {part.count:,} of {part.of:,}" in str(report)


def test_nothing_is_loaded_for_other_scripts(tmp_path: Path) -> None:
    rows = [{"query": f"月亮离地球有多远{i}", "pos": [f"三十八万公里{i}"], "neg": [f"不知道{i}"]} for i in range(9)]
    code = "import sys, rankery; rankery.check(sys.argv[1]); assert 'py3langid' not in sys.modules"
    done = run_python(code, str(write_rows(tmp_path / "data.jsonl", rows)))
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real data is not here")
def test_real_data_has_one_language_a_script(tmp_path: Path) -> None:
    for name, highest in (
        ("wikiqa/train", 1),
        ("mediqa2019_qa/train", 3),
        ("rag_retrieval_formats/pointwise_reranker_train_data", 2),
    ):
        assert notes(rankery.check(SHARED / f"{name}.jsonl", max_label=highest)) == [], name
    rows = [json.loads(line) for line in (SHARED / "wikiqa/dev.jsonl").open(encoding="utf-8")]
    for row, text in zip(rows, sentences("German"), strict=False):
        row["pos"][0] = text
    finding = checked(tmp_path, rows).finding("other_language_documents")
    assert finding is not None
    assert finding.what.endswith("German (most common is English)")
    assert 24 <= finding.count <= 30
