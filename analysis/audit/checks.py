"""Audit cells for defects: cells that measured nothing, or something other than their record says.

Checks of every family of comparable cells:

- duplicated outputs: distinct outputs are counted by predictions if cells have them, else by scores;
- changed nothing: cells lower bits, yet answer, or score in every metric, exactly as full precision;
- not applied: a part's layer kind is counted as quantized but never changes a score, comparing cells that differ in nothing
  else, at every setting of the rest;
- do not tie: cells with the same assignment score differently;
- scatter: cells with every part at many bits should nearly tie, yet vary in a way that bits do not explain;
- identical answers: cells give many items the same answer, or none;
- no figure: finished cells lack the metric;
- fewer items: cells were measured on fewer items than others, or than requested; and cells with warnings;
- records differ: in images, processor or generation settings within the family;
- missing cells: assignments that a grid lacks.

Checks across families: full precision should score the same in every source, and copies of a cell should agree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from analysis.audit.answers import answers_of_rows, outputs, same_answers
from analysis.audit.finding import Finding, Told, labels, listed
from analysis.audit.records import copies, fewer_items, unlike_definitions, unlike_records, warned
from analysis.audit.settings import UNTOUCHED, effective, never_applied_in_any, scatter, ties, unchanged
from analysis.cells import Cells
from analysis.cells.columns import METRIC
from analysis.cells.selections import assignment
from analysis.measures.missing import gaps, unlike_baselines
from analysis.measures.quality import Quality
from mmq_sweeps.reporting.counts import are, counted
from mmq_sweeps.reporting.table import metric_label


def audit(cells: Cells, metric: str | None = None, say: Callable[[str], None] = lambda text: None) -> list[Finding]:
    """Return all findings in ``cells``, judging each family by ``metric``, by default its first.

    ``say`` receives the current family: reading the predictions of thousands of cells takes a while.
    """
    done = cells.finished
    found: list[Finding] = []
    measured = []
    for title, family in done.families():
        name = metric or family.first_metric
        if name in family.metrics:
            say(f"audit of {title}")
            found += [Finding(title, *finding) for finding in _of_family(family, name)]
            measured.append((title, family, name))
    for title, sentence in unlike_baselines(measured):
        found.append(Finding(title, "baselines differ", sentence, 0, len(done.frame)))
    found += [Finding(title, *finding) for title, finding in copies(cells)]
    return found


def _of_family(family: Cells, metric: str) -> Iterator[Told]:
    quality = Quality.of(family, metric)
    rows = family.frame[family.frame[quality.column].notna()].reset_index(drop=True)
    if len(rows) < len(family.frame):
        lacking = [assignment(row) for _, row in family.frame[family.frame[quality.column].isna()].iterrows()]
        have = f"{counted(len(lacking), 'cell has', 'cells have')} no {metric_label(metric)} and {are(len(lacking))} left out"
        yield "no figure", f"{have} of all other checks: {listed(lacking)}", len(lacking), len(family.frame)
    metrics = [name for name in family.metrics if rows[f"{METRIC}{name}"].notna().all()]
    score = quality.score(rows)
    settings, answers = effective(rows), answers_of_rows(family, rows)
    yield from outputs(rows, answers, metrics)
    yield from ties(settings, score, metric)
    idle = list(never_applied_in_any(family, rows, settings, metrics))
    several = settings.loc[settings["method"] != "", "method"].nunique() > 1
    for method, name, compared in idle:
        touched = int(((settings[name] != UNTOUCHED) & (settings["method"] == method)).sum())
        yield (
            "not applied",
            f"{name} is counted as quantized in {counted(touched, 'cell')}{f' of {method}' if several else ''} and never "
            f"changes {labels(metrics)} ({counted(compared, 'comparison')} of cells that differ in nothing else)",
            touched,
            len(rows),
        )
    yield from unchanged(rows, settings, answers, metrics, [(method, name) for method, name, _ in idle])
    yield from scatter(family, rows, rows[quality.column].to_numpy(dtype=np.float64), metric)
    yield from same_answers(rows, answers, family.metrics)
    yield from fewer_items(rows, family.metrics)
    yield from warned(rows, family.metrics)
    yield from unlike_records(rows)
    yield from unlike_definitions(rows, family.metrics)
    for one in gaps(family):
        yield "missing cells", one.sentence, len(one.missing), one.many
