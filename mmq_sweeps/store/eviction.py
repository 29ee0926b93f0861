"""Evict artifacts to keep a store within ``max_gb``: cheapest kind first, then LRU; pinned artifacts stay."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path

from mmq_sweeps.store.atomic_files import Files, explained
from mmq_sweeps.store.kinds import ArtifactKind
from mmq_sweeps.store.locks import Artifact, Locks

logger = logging.getLogger(__name__)

KINDS = tuple(ArtifactKind)
GB = 10**9
# Evict down to this share of the bound, so that not every write has to evict.
SHARE_KEPT = 0.9
# Scan at most every SCAN_SECONDS, or every SCAN_SHARE times the duration of a scan if that is longer.
SCAN_SECONDS, SCAN_SHARE = 10.0, 20
# Artifacts removed per reading of the pins.
BATCH = 64


@dataclass(frozen=True)
class Stored:
    """Artifact on disk. ``used`` is the time of the last read or write, on the server's clock."""

    kind: str
    key: str
    size_bytes: int
    used: float


@dataclass(frozen=True)
class Evicted:
    """Result of an eviction: artifacts removed, bytes freed, bytes left, and pinned bytes."""

    removed: tuple[Stored, ...]
    freed_bytes: int
    left_bytes: int
    pinned_bytes: int


@dataclass
class Usage:
    """Estimate of the space in use: the last scan plus everything this process has written since.

    ``told`` is True once the user was warned that the pinned artifacts alone exceed the bound.
    """

    size_bytes: int = 0
    next_scan: float = 0.0
    told: bool = False


@dataclass(frozen=True)
class Eviction:
    """Eviction policy of a store; ``max_bytes`` None means unbounded."""

    files: Files
    locks: Locks
    max_bytes: int | None
    _usage: Usage = field(default_factory=Usage, compare=False, repr=False)

    def after_writing(self, size_bytes: int) -> Evicted | None:
        """Evict if the store exceeds its bound, given that this process just wrote ``size_bytes`` more."""
        if self.max_bytes is None:
            return None
        self._usage.size_bytes += size_bytes
        return None if self._fits(0, self.max_bytes) else self.evict(self.max_bytes)

    def room_for(self, size_bytes: int) -> bool:
        """Return True if an artifact of this size fits, evicting unpinned artifacts if necessary."""
        if self.max_bytes is None or self._fits(size_bytes, self.max_bytes):
            return True
        if size_bytes > self.max_bytes:
            return False
        self.evict(self.max_bytes - size_bytes)
        return self._usage.size_bytes + size_bytes <= self.max_bytes

    def _fits(self, size_bytes: int, max_bytes: int) -> bool:
        """Return True if the artifacts and ``size_bytes`` more fit.

        Scans if the estimate is old, as it is in a new process, or says that they do not.
        """
        if self._usage.size_bytes + size_bytes <= max_bytes and time.monotonic() < self._usage.next_scan:
            return True
        return self._scan() + size_bytes <= max_bytes

    def evict(self, max_bytes: int) -> Evicted | None:
        """Evict down to 90 % of ``max_bytes``; return None if another process is evicting."""
        evicted = self.prune(int(max_bytes * SHARE_KEPT))
        if evicted is None:
            return None
        self._usage.size_bytes = evicted.left_bytes
        if self.max_bytes is not None and evicted.left_bytes > self.max_bytes and not self._usage.told:
            self._usage.told = True
            logger.warning(
                "the artifacts in %s take %.2f GB, more than store.max_gb=%g: running jobs need %.2f GB of them, and the rest "
                "is gone",
                self.files.root,
                evicted.left_bytes / GB,
                self.max_bytes / GB,
                evicted.pinned_bytes / GB,
            )
        return evicted

    def prune(
        self,
        max_bytes: int,
        kinds: Sequence[str] = KINDS,
        choose: Callable[[Stored], bool] = lambda _: True,
        dry_run: bool = False,
    ) -> Evicted | None:
        """Remove artifacts of ``kinds`` that ``choose`` accepts until all artifacts together fit in ``max_bytes``.

        Kinds go in the given order, within a kind the least recently used first. Returns None if another process is
        evicting. ``dry_run`` removes nothing and takes no lock.
        """
        lock = None if dry_run else self.locks.lock("evict", "artifacts")
        if lock is None and not dry_run:
            return None
        with lock or nullcontext():
            stored = artifacts(self.files.root)
            left = sum(one.size_bytes for one in stored)
            removed: list[Stored] = []
            for batch in _batches(self._candidates(stored, kinds, choose), left - max_bytes):
                removed += batch if dry_run else self._remove(batch)
            pins = self.locks.pins()
        freed = sum(one.size_bytes for one in removed)
        pinned = sum(one.size_bytes for one in stored if _pinned(one, pins))
        return Evicted(tuple(removed), freed, left - freed, pinned)

    def _candidates(
        self, stored: Iterable[Stored], kinds: Sequence[str], choose: Callable[[Stored], bool]
    ) -> list[Stored]:
        """Return the artifacts that may be removed, in order: by kind, then least recently used first."""
        pins = self.locks.pins()
        free = [one for one in stored if one.kind in kinds and not _pinned(one, pins) and choose(one)]
        return sorted(free, key=lambda one: (kinds.index(one.kind), one.used))

    def _remove(self, batch: Sequence[Stored]) -> list[Stored]:
        """Remove the artifacts of a batch that are still unpinned, and return them.

        Moves the markers away, then reads the pins again, and restores the markers of artifacts pinned meanwhile. Jobs pin
        first and look for the artifact second: a job that still found the marker has its pin seen here; a job that did not
        find it computes the artifact.
        """
        removed = []
        for one in batch:
            # A killed writer or eviction leaves tensors without a marker.
            with explained(self._marker(one)), suppress(FileNotFoundError):
                self._marker(one).replace(self._aside(one))
        pins = self.locks.pins()
        for one in batch:
            marker, aside = self._marker(one), self._aside(one)
            with explained(marker):
                if _pinned(one, pins):
                    with suppress(FileNotFoundError):
                        aside.replace(marker)
                    continue
                marker.with_suffix(".safetensors").unlink(missing_ok=True)
                aside.unlink(missing_ok=True)
                removed.append(one)
        return removed

    def _marker(self, one: Stored) -> Path:
        return self.files.root / "artifacts" / one.kind / f"{one.key}.json"

    def _aside(self, one: Stored) -> Path:
        return self.files.root / "tmp" / f"evicted.{one.kind}.{one.key}.json"

    def _scan(self) -> int:
        started = time.monotonic()
        self._usage.size_bytes = sum(one.size_bytes for one in artifacts(self.files.root))
        ended = time.monotonic()
        # On a slow file server, scanning takes at most a twentieth of the time.
        self._usage.next_scan = ended + max(SCAN_SECONDS, SCAN_SHARE * (ended - started))
        return self._usage.size_bytes


def _pinned(one: Stored, pins: Collection[Artifact]) -> bool:
    """Return True if an artifact is pinned; a pin on ``KEY`` covers all its pieces ``KEY-NUMBER``."""
    return (one.kind, one.key) in pins or (one.kind, one.key.rpartition("-")[0]) in pins


def _batches(candidates: Iterable[Stored], excess_bytes: float) -> list[list[Stored]]:
    """Return the first candidates that together cover ``excess_bytes``, up to ``BATCH`` at a time."""
    chosen: list[Stored] = []
    for one in candidates:
        if excess_bytes <= 0:
            break
        chosen.append(one)
        excess_bytes -= one.size_bytes
    return [chosen[start : start + BATCH] for start in range(0, len(chosen), BATCH)]


def artifacts(root: Path) -> list[Stored]:
    """Return every artifact of the bounded kinds, including remains of incomplete writes."""
    found: dict[Artifact, Stored] = {}
    for kind in KINDS:
        for path in (root / "artifacts" / kind).glob("*"):
            if path.suffix not in (".json", ".safetensors"):
                continue
            try:
                status = path.stat()
            except FileNotFoundError:
                continue
            before = found.get((kind, path.stem), Stored(kind, path.stem, 0, 0.0))
            found[kind, path.stem] = Stored(
                kind, path.stem, before.size_bytes + status.st_size, max(before.used, status.st_mtime)
            )
    return list(found.values())
