"""The examples of docs/scoring.md run as they stand, and it names every metric."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from mmq_sweeps.metrics import metric_names

PAGE = (Path(__file__).parents[2] / "docs" / "scoring.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)


def test_the_first_example(capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(BLOCKS[0], "docs/scoring.md", "exec"), {})
    figures, difference = capsys.readouterr().out.splitlines()
    assert float(figures.split()[0]) > 0
    assert difference.startswith("PairedDifference(name='cider', value=-")


def test_adding_a_metric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    metric, use = BLOCKS[1:]
    path = tmp_path / re.match(r"# (\S+)\n", metric)[1]
    path.parent.mkdir()
    path.write_text(metric)
    monkeypatch.syspath_prepend(tmp_path)
    exec(compile(use, "docs/scoring.md", "exec"), {})
    printed = capsys.readouterr().out.strip()
    assert f"prints `{printed}`" in PAGE
    for name in [name for name in sys.modules if name.startswith("my_study")]:
        monkeypatch.delitem(sys.modules, name)


@pytest.mark.parametrize("name", metric_names())
def test_every_metric_is_described(name: str) -> None:
    stem, _, number = name.rpartition("_")
    described = {"5": f"{stem}_1`, `_5`", "10": f"{stem}_1`, `_5`, `_10`", "2": "bleu_4", "3": "bleu_4"}.get(
        number, name
    )
    assert f"`{described}" in PAGE
