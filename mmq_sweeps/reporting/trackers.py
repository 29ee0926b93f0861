"""Mirrors of the store for people: Weights & Biases, or none. A tracker that fails costs a warning, never a cell."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from mmq_sweeps.errors import one_of
from mmq_sweeps.identity.cell import FULL_PRECISION_BITS
from mmq_sweeps.store.record import Record

OFFLINE, ONLINE, DISABLED = MODES = ("offline", "online", "disabled")
# What W&B called its modes before, and WANDB_MODE may still say.
FORMER_MODES = {"dryrun": OFFLINE, "run": ONLINE}
INIT_TIMEOUT_SECONDS = 60
# The key of a run's summary that holds the record as it is in the store.
RECORD = "record"
# The client's settings that say which run it logs. They are a cell's, whatever WANDB_RUN_ID and the like say.
RUN_SETTINGS = (
    "sweep_id", "sweep_param_path", "launch", "run_id", "run_name", "run_group", "resume", "resume_from", "fork_from",
)  # fmt: skip
# In the tracker's folder: the address of each project that was logged to.
ADDRESSES = "projects.json"

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
    """One W&B run a cell: run id = cell id, group = sweep, config = effective configuration, summary = metrics and bpw.

    Files lie in ``dir``, by default in the tracker's folder inside the store.
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

    def start(self, sweep: str, folder: Path, say: Callable[[str], None]) -> Log:
        if self.mode == DISABLED:
            return lambda record, items, samples: None
        try:
            import wandb
        except ImportError as error:
            say(
                f"warning: wandb cannot be imported ({error}); cells are recorded in the store only. "
                "pip install wandb, or tracker=none"
            )
            return lambda record, items, samples: None
        return WandbSession(wandb, self, sweep, folder, say).log


class InitError(Exception):
    """W&B did not begin a run: no key, no server, no permission."""


class WandbSession:
    """Logs the cells of a sweep to W&B."""

    def __init__(
        self,
        wandb: Any,
        tracker: WandbTracker,
        sweep: str,
        folder: Path,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._wandb, self._tracker, self._sweep, self._folder, self._say = wandb, tracker, sweep, folder, say
        self._mode = FORMER_MODES.get(tracker.mode, tracker.mode)
        self._files = Path(tracker.dir).absolute() if tracker.dir else folder
        for place in {folder, self._files}:
            place.mkdir(parents=True, exist_ok=True)
        # The images of tables wait for `wandb sync` in this folder; wandb's own default is the home directory.
        os.environ.setdefault("WANDB_DATA_DIR", str(self._files))
        self._shown = False
        if any(os.environ.get(name) for name in ("WANDB_SWEEP_ID", "WANDB_RUN_ID")):
            say(
                "warning: WANDB_SWEEP_ID and WANDB_RUN_ID are not used: a cell's run has the cell's id, its group is the sweep"
            )
        self._set_up()

    def _set_up(self) -> None:
        settings = self._wandb.setup(self._wandb.Settings(silent=True)).settings
        for name in RUN_SETTINGS:
            setattr(settings, name, False if name == "launch" else None)

    def log(self, record: Record, items: list[dict[str, Any]], samples: Samples) -> None:
        """Log one cell. What fails is said; without an answer of the server this cell and those to come are kept offline."""
        try:
            try:
                self.send(record, items, samples)
            except InitError as error:
                if self._mode != ONLINE:
                    raise
                # Waiting for the same server at every cell would cost a minute each.
                self._mode = OFFLINE
                # Its process holds the id of the run that it did not begin.
                self._wandb.teardown()
                self._set_up()
                self._say(
                    f"warning: W&B cannot be logged to ({error}); cells are kept offline from {record.id} on. Send what it "
                    f"lacks with: python -m analysis wandb-push --source {shlex.quote(str(self._folder.parent))}"
                )
                self.send(record, items, samples)
        except Exception as error:  # noqa: BLE001 - a mirror that breaks must not break the cell
            told = str(error) if isinstance(error, InitError) else _told(error)
            self._say(f"warning: W&B did not take cell {record.id} ({told}); its record is in the store")

    def send(self, record: Record, items: list[dict[str, Any]], samples: Samples) -> None:
        """Log one cell as a run, in the place of one with its id; InitError where W&B does not begin the run.

        Without images in ``samples`` the table has none.
        """
        run = self._begin(record)
        exit_code = 0 if record.done else 1
        try:
            if self._mode == ONLINE and not self._shown and run.project_url:
                self._show(run.project_url)
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
                config={**record.cell, "names": record.names},
                dir=self._files,
                # Not resumed: that would keep the summary of an earlier attempt beside this one's.
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

    def _show(self, url: str) -> None:
        """Say where the runs are, and note it for whoever asks later."""
        self._shown = True
        self._say(f"W&B: {url} (group {self._sweep})")
        path = self._folder / ADDRESSES
        with suppress(OSError):  # Only people miss it.
            path.write_text(json.dumps({**_addresses(path), self._tracker.project: url}, indent=1))

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
        if warnings := metric.get("warnings"):
            flat[f"{name}/warnings"] = "; ".join(warnings)
    # A number to filter by: above 0, something is said of this cell's figures.
    flat["warnings"] = sum(len(metric.get("warnings", ())) for metric in record.metrics.values())
    if record.size:
        flat |= {key: record.size["total"][key] for key in ("bpw_paper", "bpw_exact", "size_bytes")}
        for part, of_part in record.size["parts"].items():
            flat |= {f"{part}/{key}": of_part[key] for key in ("bpw_paper", "bpw_exact", "size_bytes")}
    return flat | {f"seconds/{stage}": seconds for stage, seconds in record.seconds.items()}


def _bits(record: Record) -> str:
    return " ".join(f"{part}={selection['bits']}" for part, selection in record.cell["parts"].items())


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def address(folder: Path, tracker: Mapping[str, Any]) -> str | None:
    """The page of the project that ``tracker``, the plain values of its yaml, logs to; None before a run was sent there.

    ``folder`` is the tracker's own inside the store.
    """
    url = _addresses(folder / ADDRESSES).get(tracker.get("project"))
    return url if isinstance(url, str) else None


def _addresses(path: Path) -> dict[Any, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
