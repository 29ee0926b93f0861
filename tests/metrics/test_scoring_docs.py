"""The examples of docs/scoring.md run as they stand; its table of metrics is compared in tests/test_docs.py."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

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
