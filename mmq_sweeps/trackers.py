"""Mirrors of the store for people: Weights & Biases, or none. A tracker that fails costs a warning, never a cell."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from mmq_sweeps.cell import FULL_PRECISION_BITS
from mmq_sweeps.errors import one_of
from mmq_sweeps.record import Record

MODES = ("offline", "online")
INIT_TIMEOUT_SECONDS = 60
# The key of a run's summary that holds the record as it is in the store.
RECORD = "record"

# The id, image and references of items to show.
Samples = list[tuple[str, Any, list[str]]]
# Logs one finished or failed cell: its record, its items and the samples to show.
Log = Callable[[Record, list[dict[str, Any]], Samples], None]


class Tracker(Protocol):
    """A frozen dataclass whose fields are those of its yaml in ``conf/tracker/``."""

    samples: int

    def start(self, sweep: str, folder: Path, say: Callable[[str], None]) -> Log:
        """Begin a sweep: ``folder`` is the tracker's own inside the store, ``say`` takes warnings."""
        ...


@dataclass(frozen=True)
class NoTracker:
    """Records stay in the store, and nowhere else."""

    samples: int = 0

    def start(self, sweep: str, folder: Path, say: Callable[[str], None]) -> Log:  # noqa: ARG002
        return lambda record, items, samples: None


@dataclass(frozen=True)
class WandbTracker:
    """One W&B run a cell: run id = cell id, group = sweep, config = effective configuration, summary = metrics and bpw."""

    project: str = "mmq-sweeps"
    entity: str | None = None
    mode: str = "offline"
    samples: int = 16

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mode={self.mode!r}: {one_of(MODES)}")
        if self.samples < 0:
            raise ValueError(f"samples={self.samples!r}: choose 0 or more")

    def start(self, sweep: str, folder: Path, say: Callable[[str], None]) -> Log:
        try:
            import wandb
        except ImportError as error:
            say(
                f"warning: wandb cannot be imported ({error}); cells are recorded in the store only. "
                "pip install wandb, or tracker=none"
            )
            return lambda record, items, samples: None
        folder.mkdir(parents=True, exist_ok=True)
        # The images of tables wait for `wandb sync` in this folder; wandb's own default is the home directory.
        os.environ.setdefault("WANDB_DATA_DIR", str(folder))
        session = _WandbSession(wandb, self, sweep, folder, say)
        return session.log


@dataclass
class _WandbSession:
    wandb: Any
    tracker: WandbTracker
    sweep: str
    folder: Path
    say: Callable[[str], None]
    unreachable: bool = False

    def log(self, record: Record, items: list[dict[str, Any]], samples: Samples) -> None:
        try:
            self._log(record, items, samples, "offline" if self.unreachable else self.tracker.mode)
        except Exception as error:  # noqa: BLE001 - a mirror that breaks must not break the cell
            self.say(
                f"warning: W&B did not take cell {record.id} ({type(error).__name__}: {_first_line(error)}); "
                "its record is in the store"
            )
            if self.tracker.mode == "online" and not self.unreachable:
                # Waiting for the same server at every cell would cost a minute each.
                self.unreachable = True
                runs = f"{self.folder}/wandb/offline-run-*"
                self.say(f"warning: the cells to come are kept offline; upload them with: wandb sync {runs}")

    def _log(self, record: Record, items: list[dict[str, Any]], samples: Samples, mode: str) -> None:
        run = self.wandb.init(
            project=self.tracker.project,
            entity=self.tracker.entity,
            mode=mode,
            id=record.id,
            name=f"{record.names['model']} {record.names['method']} {_bits(record)}".strip(),
            group=self.sweep,
            config={**record.cell, "names": record.names},
            dir=self.folder,
            resume="allow" if mode == "online" else None,
            reinit="finish_previous",
            settings=self.wandb.Settings(
                silent=True,
                console="off",
                disable_git=True,
                disable_code=True,
                x_disable_stats=True,
                init_timeout=INIT_TIMEOUT_SECONDS,
            ),
        )
        exit_code = 0 if record.done else 1
        try:
            run.summary.update(summary(record))
            if samples and items:
                run.log({"samples": self._table(record, items, samples)})
        finally:
            run.finish(exit_code=exit_code)

    def _table(self, record: Record, items: list[dict[str, Any]], samples: Samples) -> Any:
        metrics = list(record.metrics)
        by_id = {item["id"]: item for item in items}
        rows = [
            [item_id, self.wandb.Image(image), by_id[item_id]["prediction"], "\n".join(references)]
            + [by_id[item_id]["scores"].get(name) for name in metrics]
            for item_id, image, references in samples
            if item_id in by_id
        ]
        return self.wandb.Table(columns=["id", "image", "prediction", "references", *metrics], data=rows)


def summary(record: Record) -> dict[str, Any]:
    """What a tracker shows of a cell, flat: metrics with intervals, bits per weight, size, seconds, status.

    The record itself is with it as text, so that it can be read back exactly: W&B makes ``4.0`` of a summary a ``4``.
    """
    flat: dict[str, Any] = {"status": record.status, **record.names, RECORD: record.to_json()}
    for part in record.cell.get("model", {}).get("parts", ()):
        # The configuration has only quantized parts: a panel of bits would lack full precision.
        flat[f"{part}/bits"] = record.cell["parts"].get(part, {}).get("bits", FULL_PRECISION_BITS)
    if record.error:
        flat["error"] = f"{record.error['class']}: {record.error['message']}"
    for name, metric in record.metrics.items():
        flat[name] = metric["value"]
        flat[f"{name}_low"], flat[f"{name}_high"] = metric["interval"]
        flat |= {f"{name}/{kind}": value for kind, value in metric.get("by_type", {}).items()}
    if record.size:
        flat |= {key: record.size["total"][key] for key in ("bpw_paper", "bpw_exact", "size_bytes")}
        for part, of_part in record.size["parts"].items():
            flat |= {f"{part}/{key}": of_part[key] for key in ("bpw_paper", "bpw_exact", "size_bytes")}
    return flat | {f"seconds/{stage}": seconds for stage, seconds in record.seconds.items()}


def _bits(record: Record) -> str:
    return " ".join(f"{part}={selection['bits']}" for part, selection in record.cell["parts"].items())


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]
