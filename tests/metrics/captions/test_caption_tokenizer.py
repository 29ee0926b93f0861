"""Tokens equal pycocoevalcap's for any list of captions, although each caption is tokenized once."""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmq_sweeps.metrics.captions import tokenizer as tokenizer_module
from mmq_sweeps.metrics.captions.tokenizer import shared_tokenizer
from tests.metrics.conftest import NASTY, Pycoco

ENDS = [
    "plan b.", "the U.S.", "p.m.", "the dog's", "I don't", "it's", "etc.", "no.", "nos.", "Mr.", "St.", "OK!", "Yahoo!",
    "y'", "'tis", "--", "...", "..", ".", "'", '"', "``", "<br", "( 650 )", "1/2", "+", "$", "#", "&", "&amp", "-LRB-",
    "'s", "'90", "'em", "ol'", "v.", "J.", "a b.c.", "Co.", "Jr.", "Ph.D.", "fig.", "ca.", "pp.", "10:", "10.", "10,",
    "a_", "@a", "a*", "~", "=", "l'", "O'", "n't", "gim", "lem", "Pty.", "Ltd.", "U.S.-U.K.", "!?", "…", "`", "\\",
    "/", "|||", "(123) 456", "a\u00ad", "we'll", "we're", "A.", "I.", "i.", "", "  ",
]  # fmt: skip
STARTS = [
    "A man",
    "the",
    "5",
    "magazine",
    "'s",
    "s",
    "'",
    "A",
    "na",
    "456-7890",
    "1/2",
    ".",
    "It is",
    "Mr. X",
    "<b>",
    " A",
]


def check(captions: list[str], pycoco: Pycoco) -> None:
    expected = pycoco.tokens({str(i): [caption] for i, caption in enumerate(captions)})
    assert shared_tokenizer().tokenize(captions) == [expected[str(i)][0] for i in range(len(captions))]


def test_every_awkward_end_before_every_awkward_start(pycoco: Pycoco) -> None:
    check([text for end in ENDS for start in STARTS for text in (end, start)], pycoco)


@pytest.mark.parametrize("seed", range(2))
def test_any_order(seed: int, pycoco: Pycoco) -> None:
    captions = ENDS + STARTS + [caption for caption in NASTY if "never closed" not in caption]
    check(random.Random(seed).sample(captions, len(captions)), pycoco)


@pytest.mark.parametrize("last", ["we'll", "'90", "plan b.", ""])
def test_the_last_caption_ends_the_file(last: str, pycoco: Pycoco) -> None:
    check(["A dog.", last], pycoco)


@settings(deadline=None, max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\x0b\x0c\u2028\u2029<"), max_size=30),
        min_size=20,
        max_size=60,
    )
)
def test_any_text(pycoco: Pycoco, captions: list[str]) -> None:
    check([*captions, "the end"], pycoco)


def test_a_caption_is_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = shared_tokenizer()
    captions = ["a brown dog", "A cat sleeps.", "A cat sleeps.", "the end"]
    first = tokenizer.tokenize(captions)
    monkeypatch.setattr(type(tokenizer.process), "exchange", lambda *_: pytest.fail("asked again"))
    assert tokenizer.tokenize(captions) == first


def test_markers_of_the_exchange_in_captions() -> None:
    captions = ["mmqsweepsend", "MMQSWEEPSXBEGIN", "mmqsweepsxxxend mmqsweepsbegin"]
    assert shared_tokenizer().tokenize(captions) == [caption.lower() for caption in captions]


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_module, "_REMEMBERED", 50)
    tokenizer = tokenizer_module.PtbTokenizer(shared_tokenizer().process)
    for batch in range(10):
        captions = [f"caption {i} of {batch}." for i in range(20)]
        assert tokenizer.tokenize(captions) == [caption[:-1] for caption in captions]
        assert len(tokenizer._known) <= 50 + 20


def test_a_swallowed_line_break_among_many_captions() -> None:
    captions = [f"a dog number {i}." for i in range(400)]
    captions[100:102] = ["<a b='x", "y'> a cat"]
    tokens = shared_tokenizer().tokenize(captions)
    assert tokens[99] == "a dog number 99"
    assert tokens[101].endswith("a cat")
    assert tokens[102:] == [f"a dog number {i}" for i in range(102, 400)]


def test_many_long_captions_do_not_block() -> None:
    captions = [f"{i} " + "word " * 500 for i in range(2000)]
    assert shared_tokenizer().tokenize(captions) == [caption.strip() for caption in captions]
