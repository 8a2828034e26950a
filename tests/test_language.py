"""Texts: every one is there in every language, is used, and takes the same values."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from string import Formatter

import pytest
from fake_comparison import row
from sentences import errors_of
from sentences import texts_of as strings_of

import workbench
from workbench.amdahl import fits
from workbench.catalogue import CATALOGUE
from workbench.errors import PlanError
from workbench.findings import findings, sameness
from workbench.strategies import OPTIONS, STRATEGIES
from workbench.ui import language, texts
from workbench.ui.language import LANGUAGES, speaking, texts_of, translate
from workbench.why import DOES, why

CHINESE = re.compile("[\u4e00-\u9fff]")
HOLES = re.compile("⟦\\d+⟧")
KNOWN = {"rank", "data", "sharded", "tensor", "spatial", "pipeline", "serial", "stage", "split"}
KNOWN |= {"accumulate", "balance", "measured", "Karp", "Flatt", "Python", "Transformer"}
KNOWN |= {"channel", "dtype", "inf", "float", "columns", "GPU"}
PACKAGE = Path(workbench.__file__).parent
SOURCES = "\n".join(
    path.read_text() for room in ("ui", "dashboard", "cli") for path in PACKAGE.glob(f"{room}/*.py")
)


def values(template: str) -> set[str]:
    return {name for _, name, _, _ in Formatter().parse(template) if name}


@pytest.mark.parametrize("code", LANGUAGES)
def test_every_language_has_every_text_with_the_same_values(code):
    english, other = texts_of("en"), texts_of(code)
    assert other.keys() == english.keys()
    assert {key for key in english if values(english[key]) != values(other[key])} == set()


def test_chinese_is_chinese():
    """All but names such as "rank" has letters of its own."""
    same = {k for k, v in texts_of("zh").items() if not re.search(r"[\u4e00-\u9fff]", v)}
    ranks = {"timeline.rank", "traffic.rank", "cut.some_ranks"}
    assert same <= {*ranks, "row.threads", "placement.one"}


def test_every_text_that_the_sources_name_is_there():
    named = set(re.findall(r"""\btext\(\s*["'](\w+\.[\w. ]+)["']""", SOURCES))
    assert named - texts_of("en").keys() == set()
    assert len(named) > 60


def test_no_text_is_left_over():
    """A key is written whole somewhere, or begins as an f-string that is."""
    begun = {*re.findall(r'f"([\w.]+\.)\{', SOURCES), *re.findall(r'f"(\w+)\.\{', SOURCES)}
    figures = re.findall(r'"(figure\.)\{?', SOURCES) and ("figure.",)
    left = {
        key
        for key in texts_of("en")
        if f'"{key}"' not in SOURCES
        and f"'{key}'" not in SOURCES
        and not key.startswith(tuple(begun))
        and not key.startswith(tuple(figures))
    }
    assert left == set()


def test_registered_names_have_texts():
    assert {name for name in OPTIONS if not language.known(f"option.{name}")} == set()


PROOFS = (
    {"same_result": True, "max_difference": 3e-15},
    {"same_result": True, "max_difference": None},
    {"same_result": False, "max_difference": 0.2},
    {"same_result": True, "max_difference": 0.0, "proof": "in float64, without bf16"},
)


def sentences() -> list[str]:
    """Return what rooms below say where all goes well, in all its forms."""
    base = [row("serial", 1, 1, 0.08), row("serial", 1, 2, 0.05)]
    rows = [
        row("data=2", 2, 1, 0.02),
        row("data=2", 2, 1, 0.04, repeats=1),
        row("data=2", 2, 2, 0.045),
        row("tensor=2", 2, 1, 0.2, compute_share=0.1, comm_share=0.8),
        row("pipeline=2", 2, 1, 0.08, wait_share=0.5, compute_share=0.4),
        row("sharded=2", 2, 1, 2.5, optimizer_share=0.9, compute_share=0.0),
    ]
    told = [said for each in rows for said in findings([*base, each], 2)]
    told += findings([base[0], rows[0]], 2)
    told += [fit.sentence for fit in fits([row("data=2", 2, 1, 0.04, speedup=1.5)])]
    told += [said for each in rows for said in sameness([{**each, **proof} for proof in PROOFS])]
    for at_two, at_four in ((1.8, 3.5), (1.8, 2.0), (1.2, 3.5), (0.5, 0.4), (2.1, 4.2)):
        degrees = [row("data=2", 2, 1, 0.04, speedup=at_two), row("data=4", 4, 1, 0.04)]
        degrees[1]["speedup"] = at_four
        told += [fit.sentence for fit in fits(degrees)]
    for strategy in STRATEGIES.values():
        told += [strategy.family, strategy.title, strategy.summary, *strategy.remedies.values()]
    told += [text for entry in CATALOGUE.values() for text in (entry.title, entry.description)]
    return list(dict.fromkeys(told))


@pytest.mark.parametrize("sentence", sentences())
def test_what_rooms_below_say_is_said_in_chinese(sentence):
    with speaking("zh"):
        said = translate(sentence)
    english = re.findall(r"[A-Za-z]{3,}", said)
    assert set(english) <= KNOWN, said


def test_every_error_of_the_sources_is_said_in_chinese():
    """Each form of each sentence, found in the syntax of all sources, keeps all of its values."""
    said = [
        (f"{path.relative_to(PACKAGE)}:{line}", sentence)
        for path in sorted(PACKAGE.rglob("*.py"))
        for line, sentence in errors_of(path)
    ]
    assert len(said) > 380
    with speaking("zh"):
        translated = {(place, english): translate(english) for place, english in said}
    assert [
        key
        for key, other in translated.items()
        if not CHINESE.search(other)
        or sorted(HOLES.findall(other)) != sorted(HOLES.findall(key[1]))
    ] == []


def test_no_translated_sentence_is_left_over():
    """Every long piece of every template is in a text of the sources."""
    paths = list(PACKAGE.rglob("*.py"))
    said = [sentence for path in paths for _, sentence in errors_of(path)]
    texts = "\n".join([*said, *(text for path in paths for text in strings_of(path))])
    known = [
        english
        for name in ("errors", "data")
        for english in json.loads((language.FOLDER / f"zh.{name}.json").read_text("utf-8"))
    ]
    assert len(known) > 380
    assert [
        (english, piece)
        for english in known
        for piece in re.split(r"\{\w+\}", english)
        if len(piece) > 9 and piece.strip(" .").lower() not in texts.lower()
    ] == []


def test_values_that_are_sentences_are_translated_too():
    sentence = "The share code is refused: strategy: Strategy 'dta=2': 'dta' is not a strategy. "
    sentence += "There are: serial, data=N. Did you mean 'data'?"
    with speaking("zh"):
        assert translate(sentence) == (
            "分享码被拒绝：strategy：策略 'dta=2'：'dta' 不是策略。有：serial, data=N。"
            " 你是想写 'data' 吗？"
        )


@pytest.mark.parametrize("kind", DOES)
@pytest.mark.parametrize("axis", STRATEGIES)
@pytest.mark.parametrize(
    ("device", "cores", "reached"),
    [("cpu", 2, "25% of what 2 cores"), ("cpu", 1, "50% of what 1 core"),
     ("cuda", 2, "25% of what 2 GPUs"), ("none", 2, "25% of what 2 cores")],
)  # fmt: skip
def test_why_this_speed_says_in_both_languages_what_to_change(
    device, cores, reached, axis, kind, monkeypatch
):
    """For every loss of every axis; where ranks are crowded, on GPUs, and without any advice."""
    if device == "none":
        device, advised = "cpu", {axis: replace(STRATEGIES[axis], remedies={})}
        monkeypatch.setattr("workbench.why.STRATEGIES", advised)
    nothing = {f"{kind}_share": 0.0 for kind in DOES}
    alone = row("serial", 1, 1, 2.4, device=device) | nothing | {"compute_share": 1.0}
    lost = {"compute_share": 0.2, f"{kind}_share": 1.0 if kind == "compute" else 0.8}
    english = why(
        row(f"{axis}=2", 2, 1, 4.8, device=device) | nothing | lost, alone, cores
    ).sentence
    assert english.startswith(f"{axis}=2 reaches {reached} can. Most is lost by {DOES[kind]}: ")
    assert re.search(r": [\d,]+ of 4,800 ms a step \(\d\d%\)\. [A-Z]", english), english
    with speaking("zh"):
        said = translate(english)
    assert re.search(
        r"每步 4,800 毫秒中占 [\d,]+ 毫秒（\d\d%）。(请减少|可以试试|这个策略)", said
    ), said
    assert not set(re.findall("[A-Za-z]{4,}", said)) - KNOWN, said


def test_what_code_mixes_and_what_to_write_instead_is_said_in_chinese():
    sentences = (
        "spatial=2 cuts dim 2 of the input, and Net.forward mixes its positions: sort over dim 2. "
        'Take sizes from x.shape. Or give fallback="gather", which runs that layer on the whole '
        "array on every rank.",
        "spatial=2: Net.forward draws random numbers (rand_like), and every rank draws others. Use "
        "nn.Dropout, which draws the same for every number of ranks.",
        "data=2 keeps 29.4 MiB on rank 0 (28.0 MiB of it activations), and memory_limit='1 MiB' "
        "allows 1.0 MiB; use memory_limit='29.7 MiB'.",
    )
    with speaking("zh"):
        for sentence in sentences:
            assert not re.search("[A-Za-z]{2,} [A-Za-z]{2,} [A-Za-z]{2,}", translate(sentence))


def test_a_sentence_that_is_not_known_stays_and_english_is_untouched():
    with speaking("zh"):
        for sentence in ("Nobody has said this before.", "Nobody: has said this before."):
            assert translate(sentence) == sentence
    assert translate("1 thread") == "1 thread"


def test_languages_are_chosen_by_argument_environment_and_locale(monkeypatch):
    for name in ("WORKBENCH_LANG", "LC_ALL", "LC_MESSAGES", "LANG"):
        monkeypatch.delenv(name, raising=False)
    assert language.preferred() == "en"
    monkeypatch.setenv("LANG", "zh_CN.UTF-8")
    assert language.preferred() == "zh"
    monkeypatch.setenv("WORKBENCH_LANG", "en")
    assert language.preferred() == "en"
    assert language.preferred("zh") == "zh"
    with pytest.raises(PlanError, match="no language 'fr'; there are: en, zh"):
        language.preferred("fr")


def test_numbers_and_nouns_agree():
    assert texts.count(1, "thread") == "1 thread"
    assert texts.count(1200, "step") == "1,200 steps"
    with speaking("zh"):
        assert texts.count(2, "thread") == "2 个线程"
