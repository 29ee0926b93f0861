"""The benchmarks' metrics equal lmms-eval's functions on the same answers, and their authors' code where those differ."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mmq_sweeps.metrics import AnswerScorer
from mmq_sweeps.metrics.answers import choice, mme, mmmu, pope
from mmq_sweeps.metrics.answers.ocrbench import FORMULAS
from tests.metrics.lmms import lmms

NUMBERS = st.one_of(
    st.integers(-2000, 200_000).map(str),
    st.floats(-1e4, 1e4).map(lambda number: f"{number:.2f}"),
    st.integers(-9_999_999, 9_999_999).map(lambda number: f"{number:,}"),
    st.floats(-200, 200).map(lambda number: f"{number:.1f}%"),
    st.sampled_from(["", "0", "-0", "0%", "5 %", "1e3", "nan", "inf", "-inf", "٣", "%", "1_000", "12%%"]),
)
TEXTS = st.one_of(
    NUMBERS, st.text(max_size=12), st.sampled_from(["Straße", "STRASSE", "naïve  café", "a dog\n", "İ", "two"])
)
COMPARED = settings(deadline=None, max_examples=150, derandomize=True)


def score(metric: str, right: Sequence[str], answer: str, **more: Any) -> float:
    """Return the score of a single answer to a single question."""
    told = {name: {"q": value} for name, value in more.items()}
    return AnswerScorer({"q": right}, [metric], **told).score({"q": answer})[metric].value


@COMPARED
@given(st.lists(TEXTS, min_size=1, max_size=3), TEXTS)
@example(["ab"], "abcd")
@example([""], "")
def test_anls_is_lmms_evals(right: list[str], answer: str) -> None:
    theirs = lmms("api.metrics").anls(right, [answer])["anls"]
    assert score("anls", right, answer) == pytest.approx(theirs, abs=1e-12)


@pytest.mark.parametrize(
    ("right", "answer", "expected"),
    [
        (["hello"], "hallo", 0.8),  # 1 of 5 letters
        (["Hello  World"], " hello world ", 1 - 0 / 13),
        (["abcd"], "ab", 0.5),  # half is kept, as the script of the competitions does; the paper says less than half
        (["abcde"], "ab", 0.0),
        (["no", "42 %"], "42 %", 1.0),
        ([""], "", 1.0),
    ],
)
def test_anls_by_hand(right: list[str], answer: str, expected: float) -> None:
    assert score("anls", right, answer) == pytest.approx(expected, abs=1e-12)


@COMPARED
@given(TEXTS, TEXTS)
@example("100", "105")
@example("100", "105.01")
@example("50%", "0.5")
@example("0", "0.0")
@example("-10", "-9.5")
@example("nan", "nan")
def test_relaxed_accuracy_is_lmms_evals(right: str, answer: str) -> None:
    theirs = lmms("tasks.chartqa.utils").chartqa_process_results({"type": "human_test", "answer": right}, [answer])
    assert score("relaxed_accuracy", [right], answer) == theirs["relaxed_overall"]


@COMPARED
@given(st.lists(TEXTS, min_size=1, max_size=3), TEXTS, st.booleans())
@example(["E = m c^2"], "so E=mc^2.", True)
@example(["E = m c^2"], "so e=mc^2.", True)
def test_ocrbench_is_lmms_evals_but_for_wide_letters(right: list[str], answer: str, formula: bool) -> None:
    util = lmms("tasks.ocrbench.utils")
    narrow = [util._fold_fullwidth_ascii(text) for text in (*right, answer)]
    *right, answer = narrow
    kind = FORMULAS if formula else "Doc-oriented VQA"
    document = {"dataset": "HME100k" if formula else "docVQA", "answer": right, "question_type": kind}
    theirs = util.ocrbench_process_results(document, [answer])["ocrbench_accuracy"]["score"]
    assert score("ocrbench", right, answer, types=kind) == theirs


def test_the_authors_of_ocrbench_tell_wide_letters_from_others() -> None:
    assert score("ocrbench", ["\uff21\uff22\uff23"], "abc") == 0.0
    assert score("ocrbench", ["\uff21\uff22\uff23"], "it says \uff41\uff42\uff43") == 1.0


@COMPARED
@given(
    st.lists(st.one_of(TEXTS, st.sampled_from(["red", "Let's go", "dogs", "dog's"])), min_size=4, max_size=10), TEXTS
)
@example(["dog's"] * 9 + ["the dogs"], "a dog 's")
@example(["1,000"] * 10, "1000")
def test_textvqa_accuracy_is_lmms_evals(right: list[str], answer: str) -> None:
    for task in ("textvqa", "vizwiz_vqa"):
        util = lmms(f"tasks.{task}.utils")
        document = {"answers": list(right), "question_id": 1}
        theirs = getattr(util, f"{task}_process_results")(document, [answer])["exact_match"]
        assert score("textvqa_accuracy", right, answer) == pytest.approx(theirs, abs=1e-12)


@pytest.mark.parametrize(
    ("right", "answer", "expected"),
    [
        (["unanswerable"] * 10, "Unanswerable.", 1.0),
        (["coca cola"] * 4 + ["coke"] * 6, "Coca-Cola", 1.0),
        (["Coca-Cola"] * 10, "Coca-Cola", 0.0),  # the annotators' answers stay as they are; lmms-eval: 1
        (["grey"] * 2 + ["gray"] * 8, "the grey", 0.6),
    ],
)
def test_vizwiz_accuracy_leaves_the_annotators_answers_alone(right: list[str], answer: str, expected: float) -> None:
    assert score("vizwiz_accuracy", right, answer) == pytest.approx(expected, abs=1e-12)


YES_NO = st.sampled_from(["yes", "no", "Yes", "No"])


def of_pope(asked: Sequence[tuple[str, str]]) -> dict[str, float]:
    right = {str(place): [wanted] for place, (wanted, _) in enumerate(asked)}
    names = ["pope_accuracy", "pope_precision", "pope_recall", "pope_f1", "pope_yes_ratio"]
    found = AnswerScorer(right, names).score({str(place): answer for place, (_, answer) in enumerate(asked)})
    return {name: result.value for name, result in found.items()}


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.lists(st.tuples(st.sampled_from(["yes", "no"]), YES_NO), min_size=1, max_size=12))
def test_pope_is_lmms_evals_for_answers_of_one_word(asked: list[tuple[str, str]]) -> None:
    util = lmms("tasks.pope.utils")
    ours = of_pope(asked)
    results = [
        util.pope_process_results({"answer": wanted, "question_id": place}, [answer])["pope_accuracy"]
        for place, (wanted, answer) in enumerate(asked)
    ]
    for name in ("accuracy", "precision", "recall", "f1"):
        theirs = getattr(util, f"pope_aggregate_{name if name != 'f1' else 'f1_score'}")(results)
        assert ours[f"pope_{name}"] == pytest.approx(theirs, abs=1e-12), name
    # lmms-eval's ratio is the share of questions whose right answer is yes, and ignores the model's answers.
    assert ours["pope_yes_ratio"] == pytest.approx(np.mean([answer.lower() == "yes" for _, answer in asked]), abs=1e-12)


@pytest.mark.parametrize(
    ("answer", "yes"),
    [
        ("Yes, there is a dog. No cat though.", True),  # the first sentence counts
        ("No, there is no dog", False),
        ("There is not a dog.", False),
        ("NO", True),  # as the authors' script, which knows No, no and not
        ("nothing", True),
        ("", True),
        ("I see,no dog", True),  # commas go, so the words are 'I', 'seeno' and 'dog'
    ],
)
def test_pope_reads_answers_as_its_authors_do(answer: str, yes: bool) -> None:
    assert pope.says_yes(answer) is yes


def test_answers_that_are_neither_yes_nor_no_are_told() -> None:
    result = AnswerScorer({"1": ["yes"], "2": ["no"]}, ["pope_f1"]).score({"1": "yes", "2": "a dog"})["pope_f1"]
    assert "1 of 2 answers say neither yes nor no and count as yes" in result.warnings
    assert result.value == pytest.approx(2 / 3)
    found = of_mme(["mme"], [("count", "0", "yes"), ("count", "0", "a dog")])["mme"]
    assert "1 of 2 answers say neither yes nor no and are wrong" in found.warnings
    assert found.value == 50.0


MME_ANSWERS = st.sampled_from(
    ["yes", "No", "Yes, it is", "no dog", "I think so", "", "None", "(yes)", "ye", "not yes", "maybe"]
)


def of_mme(names: Sequence[str], asked: Sequence[tuple[str, str, str]]) -> Mapping[str, Any]:
    """Make results of questions by kind, picture and answer; the first about each picture wants yes, the second no."""
    ids = [f"{place}" for place in range(len(asked))]
    scorer = AnswerScorer(
        {one: [("Yes", "No")[place % 2]] for place, one in enumerate(ids)},
        names,
        types={one: kind for one, (kind, _, _) in zip(ids, asked, strict=True)},
        groups={one: f"{kind}/{picture}" for one, (kind, picture, _) in zip(ids, asked, strict=True)},
    )
    return scorer.score({one: answer for one, (_, _, answer) in zip(ids, asked, strict=True)})


@settings(deadline=None, max_examples=40, derandomize=True)
@given(
    st.lists(
        st.tuples(st.sampled_from(["count", "OCR", "text_translation", "code_reasoning"]), MME_ANSWERS, MME_ANSWERS),
        max_size=8,
    )
)
def test_mme_is_lmms_evals(pictures: list[tuple[str, str, str]]) -> None:
    util = lmms("tasks.mme.utils")
    pictures = [("count", "yes", "no"), ("text_translation", "yes", ""), *pictures]
    asked = [(kind, str(place), answer) for place, (kind, *answers) in enumerate(pictures) for answer in answers]
    results: dict[str, list[Any]] = {}
    for place, (kind, picture, answer) in enumerate(asked):
        document = {"question_id": f"{kind}/{picture}", "category": kind, "answer": ("Yes", "No")[place % 2]}
        for name, result in util.mme_process_results(document, [answer]).items():
            results.setdefault(name, []).append(result)
    ours = of_mme(["mme", "mme_perception", "mme_cognition", "mme_accuracy", "mme_accuracy_plus"], asked)
    theirs = {kind: util.mme_aggregate_results(results[f"mme_{kind}_score"]) for kind in ("perception", "cognition")}
    for kind, value in theirs.items():
        assert ours[f"mme_{kind}"].value == pytest.approx(value, rel=1e-12, abs=1e-12)
        assert ours[f"mme_{kind}"].count == len(results[f"mme_{kind}_score"])
    assert ours["mme"].value == pytest.approx(sum(theirs.values()), rel=1e-12, abs=1e-12)
    assert sum(ours["mme"].by_type.values()) == pytest.approx(ours["mme"].value, rel=1e-12, abs=1e-12)
    right = [util.parse_pred_ans(answer) == ("yes", "no")[place % 2] for place, (_, _, answer) in enumerate(asked)]
    assert ours["mme_accuracy"].value == pytest.approx(np.mean(right), abs=1e-12)
    both = np.logical_and(right[0::2], right[1::2])
    assert ours["mme_accuracy_plus"].value == pytest.approx(both.mean(), abs=1e-12)


@pytest.mark.parametrize(
    ("answer", "said"), [("y", "other"), ("n.o", "other"), ("the answer is yes", "other"), ("NO!", "no")]
)
def test_mme_reads_answers_as_its_authors_do(answer: str, said: str) -> None:
    assert mme.said(answer) == said


def test_the_letter_a_is_an_answer_and_no_article() -> None:
    scorer = AnswerScorer(
        {"0": ["A"], "1": ["A"], "2": ["B"]}, ["choice_accuracy"], options=dict.fromkeys("012", ("a dog", "a cat"))
    )
    result = scorer.score({"0": "A", "1": "(A)", "2": " . "})["choice_accuracy"]
    assert result.alike is not None
    assert (result.alike.empty, result.alike.identical, result.alike.expected) == (1 / 3, 2 / 3, 2 / 3)
    assert not any("reference" in warning for warning in result.warnings)


def test_mme_needs_pairs_of_its_kinds() -> None:
    with pytest.raises(
        ValueError, match=r"mme is of two questions about each picture, and 1 of 2 have.*'count/1' with 1"
    ):
        of_mme(["mme"], [("count", "0", "yes"), ("count", "0", "no"), ("count", "1", "yes")])
    with pytest.raises(ValueError, match=r"mme: question '0': its kind is 'colour', which is none of MME's: existence"):
        of_mme(["mme"], [("colour", "0", "yes"), ("colour", "0", "no")])
    with pytest.raises(
        ValueError, match=r"mme_cognition is of other kinds than the 2 questions \(count\); leave it out"
    ):
        of_mme(["mme_cognition"], [("count", "0", "yes"), ("count", "0", "no")])


@pytest.mark.parametrize("metric", ["pope_accuracy", "pope_f1", "mme"])
def test_right_answers_that_are_neither_yes_nor_no_are_refused(metric: str) -> None:
    with pytest.raises(
        ValueError, match=f"{metric}: question 'q': its right answer is 'maybe', which is neither yes nor no"
    ):
        AnswerScorer({"q": ["maybe"]}, [metric], types={"q": "count"})


OPTIONS = ("a dog", "A cat", "two black cats", "none of the above")
LETTERS = "ABCD"
SAID = st.builds(
    str.format,
    st.sampled_from(
        ["{0}", "({0})", "{0}.", "{0}. {1}", "{0}: {1}", "The answer is {0}.", "Answer: ({0})", "{1}", "**{0}**",
         "I think {0} is right", "{0} or {2}", "It is {1}, not {2}", "{0}\n{1}", "the picture shows {1} and much more",
         "answer {2}, so {0}", " {0} "]
    ),
    st.sampled_from([*LETTERS, *LETTERS.lower(), "E"]),
    st.sampled_from([*OPTIONS, "A Dog", "nothing"]),
    st.sampled_from([*LETTERS, "e"]),
)  # fmt: skip


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"), ("b", "B"), ("(B)", "B"), ("B.", "B"), ("**B**", "B"), ("[b]", "B"), ("B. a dog", "B"), ("(B) a dog", "B"),
        ("B: a cat", "B"), ("The answer is B.", "B"), ("Answer: (b)", "B"), ("the correct answer is\n**B**.", "B"),
        ("The answer is B, not C.", "B"), ("A cat.", "B"), ("two black cats", "C"), ("It shows two black cats", "C"),
        ("I would choose B here", "B"), ("A or B", None), ("B C", None), ("A dog is what I see in it", "A"),
        ("A picture of something else entirely", None), ("E", None), ("E. none", None), ("", None), ("a dog or a cat", None),
        ("the answer is a dog", "A"), ("the answer is b.", "B"), ("answer: c", "C"), ("Answer is **d**", "D"),
        ("cats", None), ("bad", None), ("\uff22", None), ("option d", None), ("D", "D"),
        ("the cat is a cat", "B"), ("B\n\nBecause it is a cat and not a dog", "B"),
    ],
)  # fmt: skip
def test_what_an_answer_chooses(answer: str, letter: str | None) -> None:
    assert choice.letter_of(answer, OPTIONS) == letter


@COMPARED
@given(SAID, st.integers(0, 3))
def test_an_answer_that_lmms_eval_finds_right_for_scienceqa_is_right(answer: str, right: int) -> None:
    util = lmms("tasks.scienceqa.utils")
    theirs = util.sqa_process_results({"choices": list(OPTIONS), "answer": right}, [answer])["exact_match"]
    ours = score("choice_accuracy", [LETTERS[right]], answer.strip(), options=OPTIONS)
    text = answer.strip()
    if theirs or (len(text) >= 2 and text[0].isupper() and text[1] == "."):
        assert ours == theirs
    # Answers that lmms-eval cannot read are wrong there, even if they name the right option.


@COMPARED
@given(SAID)
def test_what_mmbench_infers_is_inferred(answer: str) -> None:
    """Our choice is the authors', if their matching finds an option without a language model, and no earlier rule decides."""
    theirs = lmms("tasks.mmbench.en_utils").mmbench_evaluator.can_infer(
        answer, dict(zip(LETTERS, OPTIONS, strict=True))
    )
    decided = choice._AHEAD.match(answer) or choice._equal(answer, OPTIONS) or "answer" in answer.lower()
    named = {choice._only_letter(answer, LETTERS), choice._only_text(answer, OPTIONS)} - {None}
    if len(named) == 2:
        assert decided or choice.letter_of(answer, OPTIONS) is None
    elif theirs and theirs in LETTERS and not decided:
        assert choice.letter_of(answer, OPTIONS) == theirs


def test_the_share_of_answers_that_choose_nothing_is_told() -> None:
    answers = {str(place): ["A"] for place in range(20)}
    scorer = AnswerScorer(answers, ["choice_accuracy", "choice_unparsed"], options=dict.fromkeys(answers, OPTIONS))
    said = dict.fromkeys(answers, "A") | {"3": "who knows"}
    found = scorer.score(said)
    assert (found["choice_accuracy"].value, found["choice_unparsed"].value) == (0.95, 0.05)
    assert "1 of 20 answers name no option" in found["choice_accuracy"].warnings
    assert "1 of 20 answers name no option" not in scorer.score(dict.fromkeys(answers, "B"))["choice_accuracy"].warnings


@pytest.mark.parametrize(
    ("right", "options", "message"),
    [
        ("E", OPTIONS, "its right answer is 'E', which is no letter of its 4 options, A to D"),
        ("b", OPTIONS, "its right answer is 'b', which is no letter"),
        ("1", OPTIONS, "its right answer is '1', which is no letter"),
        ("", OPTIONS, "its right answer is '', which is no letter"),
        ("A", ("one",), "it has 1 options to choose from"),
        ("A", tuple(map(str, range(27))), "it has 27 options, and there are 26 letters"),
    ],
)
@pytest.mark.parametrize("metric", ["choice_accuracy", "mmmu_accuracy"])
def test_choices_that_cannot_be_scored_are_refused(
    metric: str, right: str, options: Sequence[str], message: str
) -> None:
    with pytest.raises(ValueError, match=f"{metric}: question 'q': {message}"):
        AnswerScorer({"q": [right]}, [metric], options={"q": options})


MOST = 1_000_000


@settings(deadline=None, max_examples=30, derandomize=True)
@given(
    st.lists(
        st.tuples(st.integers(2, 4), st.lists(st.sampled_from(["B", "A.", "(A)", "A", "A"]), min_size=4, max_size=4)),
        min_size=1,
        max_size=5,
    )
)
@pytest.mark.filterwarnings("ignore")
def test_mmbench_is_lmms_evals_circular_evaluation(questions: list[tuple[int, list[str]]]) -> None:
    rows = [
        (place + MOST * order, count, said[order])
        for place, (count, said) in enumerate(questions)
        for order in range(count)
    ]
    theirs = lmms("tasks.mmbench.en_utils").mmbench_evaluator.eval_result(
        [
            {"index": index, "prediction": said, "answer": "A", "category": "c", "question": "", "hint": ""}
            | {letter: OPTIONS[place] if place < count else float("nan") for place, letter in enumerate(LETTERS)}
            for index, count, said in rows
        ],
        "static",
    )[0]
    scorer = AnswerScorer(
        {str(index): ["A"] for index, *_ in rows},
        ["mmbench"],
        options={str(index): OPTIONS[:count] for index, count, _ in rows},
    )
    result = scorer.score({str(index): said for index, _, said in rows})["mmbench"]
    assert result.value == pytest.approx(theirs, abs=1e-12)
    assert not any("fewer orders" in warning for warning in result.warnings)


def test_mmbench_tells_of_orders_that_are_not_asked_and_of_ids_that_are_no_numbers() -> None:
    rows = {"7": ["A"], "1000007": ["B"], "8": ["A"]}
    scorer = AnswerScorer(rows, ["mmbench"], options={"7": OPTIONS[:2], "1000007": OPTIONS[:2], "8": OPTIONS})
    result = scorer.score({"7": "A", "1000007": "B", "8": "B"})["mmbench"]
    assert (result.value, result.per_item) == (0.5, {"7": 1.0, "1000007": 1.0, "8": 0.0})
    assert "1 of 2 questions are asked in fewer orders than they have options" in result.warnings
    with pytest.raises(ValueError, match=r"must be whole numbers as MMBench's index, and one is 'q'"):
        AnswerScorer({"q": ["A"]}, ["mmbench"], options={"q": OPTIONS})


@pytest.fixture
def unguessed(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str | None]:
    """Return lmms-eval's reading of MMMU choices, its authors', with None for a letter that it would draw at random."""
    module = lmms("tasks._task_utils.mmmu_mcq_utils")
    monkeypatch.setattr(module, "random", SimpleNamespace(choice=lambda letters: None))
    return lambda answer: module.parse_mmmu_multi_choice_response(
        answer, list(LETTERS), dict(zip(LETTERS, OPTIONS, strict=True))
    )


def test_choices_of_mmmu_are_read_as_lmms_eval_does(unguessed: Callable[[str], str | None]) -> None:
    @COMPARED
    @given(st.one_of(SAID, st.text(alphabet="ABCab (.)cat", max_size=10), TEXTS))
    @example("I see two black cats and a dog there")
    def compare(answer: str) -> None:
        assert mmmu.letter_of(answer, OPTIONS) == unguessed(answer)

    compare()


@COMPARED
@given(
    st.lists(TEXTS, min_size=1, max_size=2),
    st.one_of(TEXTS, st.builds("so x = {}, thus the answer is {}.\n{}".format, NUMBERS, NUMBERS, TEXTS)),
)
@example(["1000"], "The result is 1,000.004 dollars")
@example(["b"], "answer b or c")
def test_open_questions_of_mmmu_are_scored_as_lmms_eval_does(right: list[str], answer: str) -> None:
    util = lmms("tasks.mmmu.utils")
    theirs = util.eval_open(copy.copy(right), util.parse_open_response(answer))
    assert score("mmmu_accuracy", right, answer) == float(theirs)
