"""The normalization of short answers by the VQA authors' evaluation script (Antol et al., arXiv 1505.00468).

Reproduces the script step by step, oddities included, because published accuracies contain them: a sign is removed if
it stands beside a blank anywhere in the answer, or if a number with a comma occurs, and becomes a blank otherwise; at
most 32 full stops are removed; ``somebody'd`` loses its apostrophe.
"""

from __future__ import annotations

import re

_SIGNS = ';/[]"{}()=+\\_-><@`,?!'
_NUMBER_WITH_COMMA = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"\.(?!\d)")
_WORD = re.compile(r"\w+")
_FULL_STOPS_REMOVED = 32  # the script passes re.UNICODE, which is 32, as the count of ``sub``
_ARTICLES = frozenset(["a", "an", "the"])
_NUMBERS = {"none": "0", "zero": "0"} | {
    word: str(number)
    for number, word in enumerate(
        ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"), start=1
    )
}
# A contraction is restored if it lacks one of its apostrophes. Unlisted contractions are left alone, as in the script.
_CONTRACTIONS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd
    he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've
    needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've
    somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll
    that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've
    weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll
    why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
""".split()  # noqa: SIM905 (a list literal would be a page long)


def _without_one_apostrophe(word: str) -> list[str]:
    return [word[:i] + word[i + 1 :] for i, sign in enumerate(word) if sign == "'"]


_RESTORED = {short: word for word in _CONTRACTIONS for short in _without_one_apostrophe(word)}
_RESTORED["somebody'd"] = "somebodyd"


def normalize_answer(answer: str) -> str:
    """Normalize an answer as the script compares it: lower case, no signs, no articles, numbers as digits."""
    return fold_words(strip_signs(on_one_line(answer)))


def words_of_answer(answer: str) -> str:
    """Normalize an answer to tell whether it is empty or like another.

    Unlike ``normalize_answer`` it keeps the option ``A``, which is no article.
    """
    return normalize_answer(answer) or ("a" if _WORD.findall(answer.lower()) == ["a"] else "")


def on_one_line(answer: str) -> str:
    """Apply the script's preparation: line breaks and tabs become blanks, and the ends are stripped."""
    return answer.replace("\n", " ").replace("\t", " ").strip()


def strip_signs(answer: str) -> str:
    """Apply the script's first step; before March 2021, the only step applied to the annotators' answers."""
    removed = bool(_NUMBER_WITH_COMMA.search(answer))
    stripped = answer
    for sign in _SIGNS:
        beside_blank = f"{sign} " in answer or f" {sign}" in answer
        stripped = stripped.replace(sign, "" if removed or beside_blank else " ")
    return _FULL_STOP.sub("", stripped, count=_FULL_STOPS_REMOVED)


def fold_words(answer: str) -> str:
    """Apply the script's second step: lower case, number words as digits, no articles, restored contractions."""
    words = [_NUMBERS.get(word, word) for word in answer.lower().split()]
    return " ".join(_RESTORED.get(word, word) for word in words if word not in _ARTICLES)
