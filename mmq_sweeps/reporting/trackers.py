"""Mirror records to a tracker: Weights & Biases, or none. A failing tracker causes a warning, never a failed cell."""

from __future__ import annotations

import json
import logging
import os
import shlex
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from mmq_sweeps.errors import one_of
from mmq_sweeps.identity.assignment import FULL_PRECISION_BITS, bits_label, mean_bits, part_order
from mmq_sweeps.identity.loads_in import joined
from mmq_sweeps.store.record import Record

OFFLINE, ONLINE, DISABLED = MODES = ("offline", "online", "disabled")
# Former names of W&B modes, which WANDB_MODE may still use.
FORMER_MODES = {"dryrun": OFFLINE, "run": ONLINE}
INIT_TIMEOUT_SECONDS = 60
# Key of a run's summary that contains the record as JSON.
RECORD = "record"
# Key of a run's configuration that says the bits of every quantized part in words.
ASSIGNED = "assigned"
# Client settings that identify a run. Cleared, so that WANDB_RUN_ID and the like cannot override a cell's own.
RUN_SETTINGS = (
    "sweep_id", "sweep_param_path", "launch", "run_id", "run_name", "run_group", "resume", "resume_from", "fork_from",
)  # fmt: skip
logger = logging.getLogger(__name__)
# File in the tracker's folder: project -> URL.
ADDRESSES = "projects.json"

# Items to show: id, image, references.
Samples = list[tuple[str, Any, list[str]]]
# Logs a finished or failed cell: record, items, and samples to show.
Log = Callable[[Record, list[dict[str, Any]], Samples], None]


class Tracker(Protocol):
    """Tracker: a frozen dataclass with the fields of its yaml in ``conf/tracker/``. ``samples``: items to show per cell."""

    samples: int

    def start(self, sweep: str, folder: Path) -> Log:
        """Start logging a sweep. ``folder`` is the tracker's folder inside the store."""
        ...


@dataclass(frozen=True)
class NoTracker:
    """Tracker that logs nothing."""

    samples: int = 0

    def start(self, sweep: str, folder: Path) -> Log:  # noqa: ARG002
        return lambda record, items, samples: None


@dataclass(frozen=True)
class WandbTracker:
    """Tracker with a W&B run per cell: run id = cell id, group = sweep, config = effective configuration.

    The run's summary has metrics and bits per weight. Files go to ``dir``, by default the tracker's folder in the store.
    """

    project: str = "mmq-sweeps"
    entity: str | None = None
    mode: str = OFFLINE
    samples: int = 16
    dir: str | None = None

    def __post_init__(self) -> None:
        if self.mode not in (*MODES, *FORMER_MODES):
            raise ValueError(f"mode={self.mode!r} (tracker.mode, or WANDB_MODE): {one_of(MODES)}")
        if self.samples < 0:
            raise ValueError(f"samples={self.samples!r}: choose 0 or more")

    def start(self, sweep: str, folder: Path) -> Log:
        if self.mode == DISABLED:
            return lambda record, items, samples: None
        try:
            import wandb
        except ImportError as error:
            logger.warning(
                "wandb cannot be imported (%s); cells are recorded in the store only. pip install wandb, or tracker=none",
                error,
            )
            return lambda record, items, samples: None
        return WandbSession(wandb, self, sweep, folder).log


class InitError(Exception):
    """Raised if W&B cannot start a run: no key, no server or no permission."""


class WandbSession:
    """Connection of a sweep to W&B."""

    def __init__(self, wandb: Any, tracker: WandbTracker, sweep: str, folder: Path) -> None:
        self._wandb, self._tracker, self._sweep, self._folder = wandb, tracker, sweep, folder
        self._mode = FORMER_MODES.get(tracker.mode, tracker.mode)
        self._files = Path(tracker.dir).absolute() if tracker.dir else folder
        for place in {folder, self._files}:
            place.mkdir(parents=True, exist_ok=True)
        # Stages the images of tables for `wandb sync`; wandb's default is the home directory.
        os.environ.setdefault("WANDB_DATA_DIR", str(self._files))
        # URL of the runs, once one is online.
        self._address: str | None = None
        if any(os.environ.get(name) for name in ("WANDB_SWEEP_ID", "WANDB_RUN_ID")):
            logger.warning(
                "WANDB_SWEEP_ID and WANDB_RUN_ID are not used: a cell's run has the cell's id, its group is the sweep"
            )
        self._set_up()

    def _set_up(self) -> None:
        settings = self._wandb.setup(self._wandb.Settings(silent=True)).settings
        for name in RUN_SETTINGS:
            setattr(settings, name, False if name == "launch" else None)

    def log(self, record: Record, items: list[dict[str, Any]], samples: Samples) -> None:
        """Log a cell; report failures instead of raising.

        If an online run cannot start, this cell and all later cells are logged offline.
        """
        known = self._address
        try:
            try:
                self.send(record, items, samples)
            except InitError as error:
                if self._mode != ONLINE:
                    raise
                # Retrying the server would cost a minute per cell.
                self._mode = OFFLINE
                # wandb's process still holds the id of the run that failed to start.
                self._wandb.teardown()
                self._set_up()
                logger.warning(
                    "W&B cannot be logged to (%s); cells are kept offline from %s on. Send what it lacks with: "
                    "python -m analysis wandb-push --source %s",
                    error,
                    record.id,
                    shlex.quote(str(self._folder.parent)),
                )
                self.send(record, items, samples)
            if self._address != known:
                logger.info("W&B: %s (group %s)", self._address, self._sweep)
        except Exception as error:  # noqa: BLE001 - a mirror that breaks must not break the cell
            told = str(error) if isinstance(error, InitError) else _told(error)
            logger.warning("W&B did not take cell %s (%s); its record is in the store", record.id, told)

    def send(self, record: Record, items: list[dict[str, Any]], samples: Samples) -> None:
        """Log a cell as a run, replacing any run with its id; raise InitError if W&B cannot start the run.

        The table of samples has images only if ``samples`` do.
        """
        run = self._begin(record)
        exit_code = 0 if record.done else 1
        try:
            if self._mode == ONLINE and self._address is None and run.project_url:
                self._address = run.project_url
                self._store_address()
            run.summary.update(summary(record))
            if samples and items:
                run.log({"samples": self._table(record, items, samples)})
        finally:
            run.finish(exit_code=exit_code)

    def _begin(self, record: Record) -> Any:
        try:
            return self._wandb.init(
                project=self._tracker.project,
                entity=self._tracker.entity,
                mode=self._mode,
                id=record.id,
                name=f"{record.names['model']} {record.names['method']} {_bits(record)}".strip(),
                group=self._sweep,
                config={**record.cell, "names": record.names, ASSIGNED: assigned(record)},
                dir=self._files,
                # Not resumed, which would mix in the summary of an earlier attempt.
                reinit="finish_previous",
                settings=self._wandb.Settings(
                    silent=True,
                    console="off",
                    disable_git=True,
                    disable_code=True,
                    x_disable_stats=True,
                    init_timeout=INIT_TIMEOUT_SECONDS,
                ),
            )
        except Exception as error:
            raise InitError(_told(error)) from error

    def _store_address(self) -> None:
        """Store the URL of the runs for ``address``."""
        path = self._folder / ADDRESSES
        with suppress(OSError):  # Only displayed.
            path.write_text(json.dumps({**_addresses(path), self._tracker.project: self._address}, indent=1))

    def _table(self, record: Record, items: list[dict[str, Any]], samples: Samples) -> Any:
        metrics = list(record.metrics)
        by_id = {item["id"]: item for item in items}
        rows = [
            [
                item_id,
                None if image is None else self._wandb.Image(image),
                by_id[item_id]["prediction"],
                "\n".join(references),
                *(by_id[item_id]["scores"].get(name) for name in metrics),
            ]
            for item_id, image, references in samples
            if item_id in by_id
        ]
        return self._wandb.Table(columns=["id", "image", "prediction", "references", *metrics], data=rows)


def summary(record: Record) -> dict[str, Any]:
    """Flatten a record for a tracker: metrics with intervals, bits per weight, size, seconds, status.

    Includes the record as JSON text, to be read back exactly: W&B turns a ``4.0`` in a summary into ``4``.
    """
    flat: dict[str, Any] = {"status": record.status, **record.names, RECORD: record.to_json()}
    sizes, selections = record.size.get("parts", {}) if record.size else {}, record.cell["parts"]
    # All parts of the model, since the configuration lists only the quantized ones.
    parts = dict.fromkeys([*record.cell.get("model", {}).get("parts", ()), *selections])
    for part in parts:
        bits = mean_bits(selections[part], sizes.get(part)) if part in selections else FULL_PRECISION_BITS
        flat |= {f"{part}/bits": bits} if bits is not None else {}
    if record.error:
        flat["error"] = f"{record.error['class']}: {record.error['message']}"
    for name, metric in record.metrics.items():
        flat[name] = metric["value"]
        flat[f"{name}_low"], flat[f"{name}_high"] = metric["interval"]
        flat |= {f"{name}/{kind}": value for kind, value in metric.get("by_type", {}).items()}
        if warnings := metric.get("warnings"):
            flat[f"{name}/warnings"] = "; ".join(warnings)
    if record.loads_in:
        flat["loads_in"] = joined(record.loads_in)
    # A count, to filter runs by.
    flat["warnings"] = sum(len(metric.get("warnings", ())) for metric in record.metrics.values())
    if record.size:
        flat |= {key: record.size["total"][key] for key in ("bpw_paper", "bpw_exact", "size_bytes")}
        for part, of_part in ((part, sizes[part]) for part in parts if part in sizes):
            flat |= {f"{part}/{key}": of_part[key] for key in ("bpw_paper", "bpw_exact", "size_bytes")}
    return flat | {f"seconds/{stage}": seconds for stage, seconds in record.seconds.items()}


def _bits(record: Record) -> str:
    return " ".join(f"{part}={label}" for part, label in assigned(record).items())


def assigned(record: Record) -> dict[str, str]:
    """Return the bits of every quantized part, for people."""
    selections = record.cell["parts"]
    return {part: bits_label(selections[part]) for part in sorted(selections, key=part_order)}


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def address(folder: Path, tracker: Mapping[str, Any]) -> str | None:
    """Return the URL of the project that ``tracker`` logs to; None before the first run was sent.

    ``tracker`` has the plain values of its yaml; ``folder`` is the tracker's folder inside the store.
    """
    url = _addresses(folder / ADDRESSES).get(tracker.get("project"))
    return url if isinstance(url, str) else None


def _addresses(path: Path) -> dict[Any, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
