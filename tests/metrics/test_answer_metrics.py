"""VQA and GQA accuracy: the official normalization case by case, soft accuracy by hand, figures by kind of answer."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmq_sweeps.metrics import AnswerScorer
from mmq_sweeps.metrics.normalize import normalize_answer

# Written out from the rules of the official script, not made by ours: answer -> what is compared.
UNCHANGED = [
    "yes", "no", "red", "tennis racket", "2", "10", "11", "1990", "2.5", ".5", "10:30", "5:45 pm", "don't", "it's",
    "he's",
    "o'clock", "man's", "dogs'", "let's", "she's", "i'm", "100%", "$5", "#1", "a&b", "*", "~", "blue^2",
    "left|right",
    "", "eleven", "twelve", "hundred", "first", "once", "only", "lets", "shes", "were", "id", "ill", "well", "its",
    "wed",
    "café", "日本", "0", "anne", "theme", "at", "ands", "bones", "tend",
]  # fmt: skip
LOWER_CASE = {"Yes": "yes", "NO": "no", "Tennis Racket": "tennis racket", "I'M": "i'm", "ÉTÉ": "été", "PM": "pm"}
BLANKS = {
    " yes": "yes", "yes ": "yes", "  two  words ": "2 words", "yes\n": "yes", "red\nblue": "red blue",
    "red\tblue": "red blue",
    "\t no \n": "no", "a  b": "b", "\n": "", " ": "",
}  # fmt: skip
NUMBERS = {
    "none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7",
    "eight": "8", "nine": "9", "ten": "10", "Two": "2", "TEN": "10", "two dogs": "2 dogs", "one or two": "1 or 2",
    "no one": "no 1", "twenty one": "twenty 1", "none of them": "0 of them", "one.": "1", "two!": "2", "(three)": "3",
}  # fmt: skip
ARTICLES = {
    "a": "", "an": "", "the": "", "The": "", "a dog": "dog", "an apple": "apple", "the dog": "dog",
    "the the dog": "dog",
    "A man on a horse": "man on horse", "dog the": "dog", "a two": "2", "an the a": "", "in the 1 place": "in 1 place",
    "the u.s.": "us", "a.": "", "a-frame": "frame", "the-end": "end", "vitamin a": "vitamin",
}  # fmt: skip
CONTRACTIONS = {
    "aint": "ain't", "arent": "aren't", "cant": "can't", "couldve": "could've", "couldnt": "couldn't",
    "didnt": "didn't",
    "couldn'tve": "couldn't've", "couldnt've": "couldn't've", "doesnt": "doesn't", "dont": "don't", "hadnt": "hadn't",
    "hadnt've": "hadn't've", "hadn'tve": "hadn't've", "hasnt": "hasn't", "havent": "haven't", "hed": "he'd",
    "hed've": "he'd've", "he'dve": "he'd've", "hes": "he's", "howd": "how'd", "howll": "how'll", "hows": "how's",
    "isnt": "isn't", "itd": "it'd", "itd've": "it'd've", "it'dve": "it'd've", "itll": "it'll", "maam": "ma'am",
    "mightnt": "mightn't", "mightnt've": "mightn't've", "mightn'tve": "mightn't've", "mightve": "might've",
    "mustnt": "mustn't", "mustve": "must've", "neednt": "needn't", "notve": "not've", "oclock": "o'clock",
    "oughtnt": "oughtn't", "ow's'at": "'ow's'at", "'ows'at": "'ow's'at", "'ow'sat": "'ow's'at", "shant": "shan't",
    "shed've": "she'd've", "she'dve": "she'd've", "shouldve": "should've", "shouldnt": "shouldn't",
    "shouldnt've": "shouldn't've", "shouldn'tve": "shouldn't've", "somebody'd": "somebodyd",
    "somebodyd've": "somebody'd've", "somebody'dve": "somebody'd've", "somebodyll": "somebody'll",
    "somebodys": "somebody's", "someoned": "someone'd", "someoned've": "someone'd've", "someone'dve": "someone'd've",
    "someonell": "someone'll", "someones": "someone's", "somethingd": "something'd", "somethingd've": "something'd've",
    "something'dve": "something'd've", "somethingll": "something'll", "thats": "that's", "thered": "there'd",
    "thered've": "there'd've", "there'dve": "there'd've", "therere": "there're", "theres": "there's", "theyd": "they'd",
    "theyd've": "they'd've", "they'dve": "they'd've", "theyll": "they'll", "theyre": "they're", "theyve": "they've",
    "twas": "'twas", "wasnt": "wasn't", "wed've": "we'd've", "we'dve": "we'd've", "weve": "we've", "werent": "weren't",
    "whatll": "what'll", "whatre": "what're", "whats": "what's", "whatve": "what've", "whens": "when's",
    "whered": "where'd", "wheres": "where's", "whereve": "where've", "whod": "who'd", "whod've": "who'd've",
    "who'dve": "who'd've", "wholl": "who'll", "whos": "who's", "whove": "who've", "whyll": "why'll", "whyre": "why're",
    "whys": "why's", "wont": "won't", "wouldve": "would've", "wouldnt": "wouldn't", "wouldnt've": "wouldn't've",
    "wouldn'tve": "wouldn't've", "yall": "y'all", "yall'll": "y'all'll", "y'allll": "y'all'll",
    "yall'd've": "y'all'd've", "y'alld've": "y'all'd've", "y'all'dve": "y'all'd've", "youd": "you'd",
    "youd've": "you'd've", "you'dve": "you'd've", "youll": "you'll", "youre": "you're", "youve": "you've",
    "Dont know": "don't know", "they DONT": "they don't", "dont.": "don't",
    # the script looks for these with capitals, after lower case: it never finds them
    "Im": "im", "Ive": "ive", "I'dve": "i'dve",
}  # fmt: skip
SIGNS = {
    # alone or between letters: a blank
    "t-shirt": "t shirt", "black/white": "black white", "red,white": "red white", "a_b": "b", "x=y": "x y",
    "1+1": "1 1",
    "me@home": "me home", "why?": "why", "wow!": "wow", "(left)": "left", "[left]": "left", "{left}": "left",
    '"stop"': "stop", "<b>": "b", "a;b": "b", "back\\slash": "back slash", "`tick`": "tick", "yes?no": "yes no",
    "12-15": "12 15", "9/11": "9 11", "-5": "5", "?": "", "!!!": "", "to-day's": "to day's",
    # beside a blank anywhere in the answer: removed everywhere
    "red, white": "red white", "red , white": "red white", "red,white, blue": "redwhite blue", "t - shirt": "t shirt",
    "well-known - yes": "wellknown yes", "yes !": "yes", "yes! no!yes": "yes noyes", "( left )": "left",
    "this / that/these": "this thatthese", 'a "stop" sign': "stop sign",
    # the other signs still become blanks
    "red, black/white": "red black white", "t-shirt, hat": "t shirt hat",
    # a number with a comma: every sign is removed
    "1,000": "1000", "10,000 people": "10000 people", "1,000/2": "10002", "1,000-t-shirts": "1000tshirts",
    "1,000,000": "1000000", "1, 000": "1 000", "x,1": "x 1", "1,x": "1 x",
    # neither apostrophes, colons nor other signs are touched
    "5:30": "5:30", "dog's": "dog's", "50%": "50%", "r&b": "r&b", "#7": "#7",
}  # fmt: skip
FULL_STOPS = {
    "yes.": "yes", "u.s.": "us", "U.S.A.": "usa", "2.5": "2.5", "2.": "2", "a.m.": "am", "5 p.m.": "5 pm",
    "v2.0": "v2.0",
    "v2.x": "v2x", "...": "", "3.14.": "3.14", "1.a": "1a", ".": "", "mr. smith": "mr smith", "no.1": "no.1",
    "e.g.": "eg",
    "." * 40: "." * 8, "x" + "." * 33: "x.",
}  # fmt: skip
CASES = {
    **{answer: answer for answer in UNCHANGED},
    **LOWER_CASE, **BLANKS, **NUMBERS, **ARTICLES, **CONTRACTIONS, **SIGNS, **FULL_STOPS,
}  # fmt: skip


def test_there_are_enough_cases() -> None:
    assert len(CASES) >= 200


@pytest.mark.parametrize(("answer", "expected"), CASES.items(), ids=range(len(CASES)))
def test_normalization(answer: str, expected: str) -> None:
    assert normalize_answer(answer) == expected


@pytest.mark.parametrize(
    ("given_answers", "answer", "expected"),
    [
        (["yes"] * 10, "yes", 1.0),
        (["yes"] * 10, "Yes.", 1.0),
        (["yes"] * 10, "no", 0.0),
        (["yes"] * 1 + ["no"] * 9, "yes", 0.3),  # 9 annotators see one match: 9 * 1/3 / 10
        (["yes"] * 2 + ["no"] * 8, "yes", 0.6),  # (8 * 2/3 + 2 * 1/3) / 10
        (["yes"] * 3 + ["no"] * 7, "yes", 0.9),  # (7 * 1 + 3 * 2/3) / 10
        (["yes"] * 4 + ["no"] * 6, "yes", 1.0),
        (["t-shirt"] * 10, "t-shirt", 0.0),  # all alike: the annotators' answers are left as they are
        (["t-shirt"] * 9 + ["shirt"], "t-shirt", 1.0),  # else their signs go
        (["two"] * 9 + ["2"], "two", 0.3),  # but numbers are not folded: released annotations have digits
        ([""] * 10, "the", 1.0),
    ],
)
def test_soft_accuracy(given_answers: list[str], answer: str, expected: float) -> None:
    result = AnswerScorer({"q": given_answers}).score({"q": answer})["vqa_accuracy"]
    assert result.value == pytest.approx(expected, abs=1e-12)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sampled_from(["red", "blue", "green"]), min_size=10, max_size=10), st.sampled_from(["red", "blue"]))
def test_soft_accuracy_is_the_mean_over_subsets_of_nine(answers: list[str], answer: str) -> None:
    subsets = [answers[:i] + answers[i + 1 :] for i in range(10)]
    expected = sum(min(1.0, subset.count(answer) / 3) for subset in subsets) / 10
    result = AnswerScorer({"q": answers}).score({"q": answer})["vqa_accuracy"]
    assert result.value == pytest.approx(expected, abs=1e-12)


def test_figures_by_kind_of_answer() -> None:
    answers = {"1": ["yes"] * 10, "2": ["no"] * 10, "3": ["2"] * 10, "4": ["red"] * 9 + ["pink"]}
    types = {"1": "yes/no", "2": "yes/no", "3": "number", "4": "other"}
    result = AnswerScorer(answers, types=types).score({"1": "yes", "2": "yes", "3": "two", "4": "pink"})["vqa_accuracy"]
    assert result.per_item == pytest.approx({"1": 1.0, "2": 0.0, "3": 1.0, "4": 0.3})
    assert result.by_type == pytest.approx({"yes/no": 0.5, "number": 1.0, "other": 0.3})
    assert result.value == pytest.approx(0.575)


def test_gqa_is_exact_match_of_normalized_answers() -> None:
    answers = {"1": ["a dog"], "2": ["two"], "3": ["t-shirt"], "4": ["left"]}
    result = AnswerScorer(answers, ["gqa_accuracy"]).score({"1": "The dog.", "2": "2", "3": "t shirt", "4": "right"})
    assert result["gqa_accuracy"].per_item == {"1": 1.0, "2": 1.0, "3": 1.0, "4": 0.0}


def test_too_few_annotators_for_any_answer_to_be_right() -> None:
    with pytest.raises(ValueError, match=r"'q' has 1\. For one right answer use gqa_accuracy"):
        AnswerScorer({"q": ["yes"]})


def test_wrong_input_is_named() -> None:
    with pytest.raises(ValueError, match="'q' needs a list of at least one answer"):
        AnswerScorer({"q": "yes"}, ["gqa_accuracy"])
    with pytest.raises(ValueError, match="no answers"):
        AnswerScorer({}, ["gqa_accuracy"])
    with pytest.raises(ValueError, match="1 of 1 items have no type, for example 'q'"):
        AnswerScorer({"q": ["yes"]}, ["gqa_accuracy"], types={})
    with pytest.raises(ValueError, match="1 answers are for items that were not asked for, for example 'z'"):
        AnswerScorer({"q": ["yes"]}, ["gqa_accuracy"]).score({"q": "yes", "z": "no"})
    with pytest.raises(ValueError, match="'cider' needs captions; AnswerScorer has answers"):
        AnswerScorer({"q": ["yes"]}, ["cider"])
