"""Counts in words."""

from __future__ import annotations

import numpy as np
import pytest

from mmq_sweeps.reporting.counts import are, counted, out_of


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (counted(1, "cell"), "1 cell"),
        (counted(0, "cell"), "0 cells"),
        (counted(np.int64(1_500_000), "item"), "1,500,000 items"),
        (counted(2.5, "bit"), "2.5 bits"),
        (counted(1.0, "bit"), "1 bit"),
        (counted(2, "cell has", "cells have"), "2 cells have"),
        (out_of(1, 1, "cell", "has", "have"), "1 of 1 cell has"),
        (out_of(1_200, 4_000, "cell", "has", "have"), "1,200 of 4,000 cells have"),
        (f"{are(1)}, {are(0)}", "is, are"),
    ],
)
def test_nouns_and_verbs_agree_with_their_count(told: str, expected: str) -> None:
    assert told == expected
