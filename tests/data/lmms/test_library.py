"""Importing and running lmms-eval changes settings of the process, which are all restored afterwards."""

from __future__ import annotations

import os
import random
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from mmq_sweeps.data.lmms import library
from mmq_sweeps.data.lmms.documents import LmmsDocuments
from tests.data.lmms.folders import needs_lmms_eval


def state() -> list[object]:
    numbers = random.getstate()[1][:3], np.random.get_state()[1][:3].tolist()
    return [ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters), dict(os.environ), numbers, list(sys.path)]


@needs_lmms_eval
def test_reading_documents_changes_nothing_for_others(tasks: Path, capfd: pytest.CaptureFixture[str]) -> None:
    import datasets

    before = [*state(), datasets.config.HF_HUB_OFFLINE, datasets.are_progress_bars_disabled()]
    library.load_task.cache_clear()
    documents = list(LmmsDocuments("mine", "test_split", include_path=str(tasks)))
    assert all(document.image_count == 1 for document in documents)
    assert [*state(), datasets.config.HF_HUB_OFFLINE, datasets.are_progress_bars_disabled()] == before
    assert capfd.readouterr() == ("", "")


def test_what_its_code_sets_is_undone_and_there_again_when_it_runs(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "_ENVIRONMENT", {})
    monkeypatch.setenv("MMQ_OLD", "old")
    before = state()
    with library.contained():
        ImageFile.LOAD_TRUNCATED_IMAGES = True
        warnings.filterwarnings("ignore")
        warnings.warn("of its own", stacklevel=1)
        os.environ |= {"MMQ_NEW": "1", "MMQ_OLD": "2"}
        random.seed(0)
        np.random.seed(0)
        sys.path.insert(0, "/somewhere")
        print("a line")  # noqa: T201
    assert state() == before
    assert capfd.readouterr() == ("", "")
    with library.contained():
        assert (os.environ["MMQ_NEW"], os.environ["MMQ_OLD"]) == ("1", "2")
    assert state() == before


def test_half_a_picture_is_refused_elsewhere(tmp_path: Path) -> None:
    Image.effect_noise((64, 64), 50).save(tmp_path / "whole.png")
    whole = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    with library.truncated_allowed(), Image.open(tmp_path / "half.png") as image:
        image.load()
    with Image.open(tmp_path / "half.png") as image, pytest.raises(OSError, match="truncated"):
        image.load()
