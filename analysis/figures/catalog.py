"""Which figures there are, and what each shows of a table of cells."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pandas as pd

from analysis.cells import BITS, METRIC, Cells, assignment, part_order
from analysis.figures.plots import XY, Bars, Heatmap, Panel, Plot, Series, Space
from analysis.frontier import frontiers
from analysis.importance import importances
from analysis.sensitivity import WHOLE, Sensitivity, sensitivities
from mmq_sweeps.table import METRIC_LABELS

GROUPS, KINDS = ("front", "middle", "end"), ("attention", "mlp")
# What a figure needs besides cells is given by the whole family; a family that cannot show it is left out.
Maker = Callable[[str, Cells, str], Iterator[Panel]]


def figures(cells: Cells, metric: str | None = None, names: Sequence[str] = ()) -> list[Plot]:
    """The figures ``names`` (all if none) of every family that can show them, ``NAME-MODEL-TASK-SOURCE`` each.

    A ValueError names a figure that does not exist, or says that no cell can be shown.
    """
    unknown = set(names) - set(FIGURES)
    if unknown:
        raise ValueError(f"unknown figures {', '.join(sorted(unknown))}: choose {', '.join(FIGURES)}")
    done = cells.of(cells.frame[cells.frame["status"] == "done"])
    plots = []
    for title, family in done.families():
        measured = metric or (family.metrics or [""])[0]
        if measured not in family.metrics:
            continue
        for name in names or FIGURES:
            described, make = FIGURES[name]
            panels = list(make(title, family, measured))
            if panels:
                plots.append(Plot(f"{name}-{_slug(title)}", f"{described}: {title}", panels))
    if not plots:
        raise ValueError("no cell can be shown: there is no finished cell with this metric in the sources")
    return plots


def _slug(title: str) -> str:
    kept = "".join(letter if letter.isalnum() or letter in "_." else " " for letter in title)
    return "-".join(kept.replace("published", "").replace(".csv", "").split())


def tradeoff(_title: str, family: Cells, metric: str) -> Iterator[Panel]:
    found = frontiers(family, metric, by_method=True) if _methods(family) else []
    series = []
    for one in found:
        method = one.title.rsplit(", ", 1)[1]
        quantized = one.cells[one.cells["method"] != "none"]
        series.append(
            Series(
                "", quantized["bpw_paper"].tolist(), quantized[f"{METRIC}{metric}"].tolist(),
                names=[assignment(row) for _, row in quantized.iterrows()], line=False, faint=True, style=method,
            )
        )  # fmt: skip
        rows = one.rows
        series.append(
            Series(
                method, rows["bpw_paper"].tolist(), rows[f"{METRIC}{metric}"].tolist(),
                names=rows["assignment"].tolist(), style=method,
                **({"low": rows["low"].tolist(), "high": rows["high"].tolist()} if "low" in rows else {}),
            )
        )  # fmt: skip
    if series:
        full = next((one.full for one in found if one.full is not None), None)
        yield XY("", "bits per weight", _label(metric), series, level=full)


def parts(_title: str, family: Cells, metric: str) -> Iterator[Panel]:
    """Each part alone: a curve a method over the part's bits."""
    for told in _sensitivity(family, metric):
        whole = told.alone
        for name, everything in WHOLE.items():
            whole = whole[whole[name] == everything] if not whole.empty else whole
        for part in _in_order(whole, "part"):
            rows = whole[whole["part"] == part]
            series = [_curve(method, rows[rows["method"] == method], told) for method in _in_order(rows, "method")]
            yield _bits_panel(f"{part} alone", metric, series, told.full)


def groups(_title: str, family: Cells, metric: str) -> Iterator[Panel]:
    """Thirds of a part's blocks: a curve a block group."""
    yield from _narrowed(family, metric, "blocks", GROUPS, {"layers": WHOLE["layers"]})


def layers(_title: str, family: Cells, metric: str) -> Iterator[Panel]:
    """Attention and MLP of a part: a curve a layer kind."""
    yield from _narrowed(family, metric, "layers", KINDS, {"blocks": WHOLE["blocks"]})


def _narrowed(family: Cells, metric: str, by: str, choices: Sequence[str], held: dict[str, str]) -> Iterator[Panel]:
    for told in _sensitivity(family, metric):
        rows = told.alone
        if rows.empty or not rows[by].isin(choices).any():
            continue
        for name, value in held.items():
            rows = rows[rows[name] == value]
        for method in _in_order(rows, "method"):
            for part in _in_order(rows[rows["method"] == method], "part"):
                of_part = rows[(rows["method"] == method) & (rows["part"] == part)]
                shown = [choice for choice in (*choices, WHOLE[by]) if (of_part[by] == choice).any()]
                series = [
                    _curve("all" if choice == WHOLE[by] else choice, of_part[of_part[by] == choice], told)
                    for choice in shown
                ]
                yield _bits_panel(f"{part}, {method}", metric, series, told.full)


def heatmaps(_title: str, family: Cells, metric: str) -> Iterator[Panel]:
    """Two parts against each other, the third at full precision or else at the most bits that it has in the cells."""
    for method in _methods(family):
        frame = family.frame[family.frame["method"].isin([method, "none"])]
        named = [part for part in family.parts if frame[f"{BITS}{part}"].nunique() > 1]
        for index, first in enumerate(named):
            for second in named[index + 1 :]:
                rest = [part for part in named if part not in (first, second)]
                held = frame
                for part in rest:
                    held = held[held[f"{BITS}{part}"] == held[f"{BITS}{part}"].max()]
                table = held.pivot_table(f"{METRIC}{metric}", f"{BITS}{second}", f"{BITS}{first}", aggfunc="mean")
                if min(table.shape) > 1:
                    fixed = "".join(f", {part} {int(held[f'{BITS}{part}'].max())}" for part in rest)
                    yield Heatmap(
                        f"{method}{fixed}", f"{first} bits", f"{second} bits",
                        [f"{width:g}" for width in table.columns], [f"{width:g}" for width in table.index],
                        table.to_numpy().tolist(), _label(metric),
                    )  # fmt: skip


def importance(_title: str, family: Cells, metric: str) -> Iterator[Panel]:
    try:
        found = importances(family, metric)
    except ValueError:
        return
    labels = sorted({str(part) for one in found for part in one.table.index}, key=part_order)
    groups = []
    for one in found:
        table = one.table.reindex(labels)
        method = one.title.rsplit(", ", 1)[1]
        groups.append(
            Series(method, range(len(labels)), table["mean"].tolist(), table["low"].tolist(), table["high"].tolist())
        )
    yield Bars("", "importance (of 100)", labels, groups)


def space(_title: str, family: Cells, metric: str) -> Iterator[Panel]:
    """Bits of three parts and the score that they come to."""
    if len(family.parts) != 3:
        return
    columns = [f"{BITS}{part}" for part in family.parts]
    for method in _methods(family):
        rows = family.frame[family.frame["method"].isin([method, "none"])]
        if all(rows[column].nunique() > 1 for column in columns):
            yield Space(
                method, (f"{family.parts[0]} bits", f"{family.parts[1]} bits", f"{family.parts[2]} bits"),
                [tuple(point) for point in rows[columns].to_numpy(dtype=float)],
                rows[f"{METRIC}{metric}"].tolist(), _label(metric), [assignment(row) for _, row in rows.iterrows()],
            )  # fmt: skip


def interaction(_title: str, family: Cells, metric: str) -> Iterator[Panel]:
    """Damage of two parts together against the sum of their damages alone; above the line they are worse together."""
    for told in _sensitivity(family, metric):
        if told.pairs.empty:
            continue
        pairs = told.pairs.assign(which=told.pairs["parts"].str.replace(r" \d+", "", regex=True))
        for method in _in_order(pairs, "method"):
            rows = pairs[pairs["method"] == method]
            series = [
                Series(
                    which, group["sum"].tolist(), group["together"].tolist(), names=group["parts"].tolist(), line=False
                )
                for which, group in rows.groupby("which", sort=False)
            ]
            yield XY(method, "sum of damages alone", f"damage together ({_label(metric)})", series, diagonal=True)


FIGURES: dict[str, tuple[str, Maker]] = {
    "tradeoff": ("Quality against bits per weight", tradeoff),
    "parts": ("One part at a time", parts),
    "groups": ("Block groups", groups),
    "layers": ("Layer kinds", layers),
    "heatmaps": ("Two parts against each other", heatmaps),
    "importance": ("Importance of the parts", importance),
    "space": ("Bits of all parts", space),
    "interaction": ("Do damages add up", interaction),
}


def _sensitivity(family: Cells, metric: str) -> list[Sensitivity]:
    try:
        return sensitivities(family, metric)
    except ValueError:
        return []


def _curve(label: str, rows: pd.DataFrame, told: Sensitivity) -> Series:
    rows = rows.groupby("bits", as_index=False).first().sort_values("bits")
    interval = (
        {"low": (told.full - rows["high"]).tolist(), "high": (told.full - rows["low"]).tolist()}
        if "low" in rows
        else {}
    )
    names = [f"{label} {bits} bits" for bits in rows["bits"]]
    return Series(label, rows["bits"].tolist(), (told.full - rows["damage"]).tolist(), names=names, **interval)


def _bits_panel(title: str, metric: str, series: Sequence[Series], full: float) -> XY:
    widths = sorted({float(width) for one in series for width in one.x})
    return XY(title, "bits", _label(metric), series, level=full, ticks=widths)


def _methods(family: Cells) -> list[str]:
    return [name for name in sorted(family.frame["method"].unique()) if name != "none"]


def _in_order(rows: pd.DataFrame, column: str) -> list[str]:
    if rows.empty:
        return []
    return sorted(rows[column].unique(), key=part_order if column == "part" else str)


def _label(metric: str) -> str:
    return METRIC_LABELS.get(metric, metric.replace("_", " "))
