"""Keeping the artifacts of a store within a bound: what was used longest ago goes first, what a running job needs stays."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path

from mmq_sweeps.store.atomic_files import Files, explained
from mmq_sweeps.store.kinds import ArtifactKind
from mmq_sweeps.store.locks import Artifact, Locks

KINDS = tuple(ArtifactKind)
GB = 10**9
# Down to this share of the bound, so that not every write has to evict.
SHARE_KEPT = 0.9
SCAN_SECONDS, SCAN_SHARE = 10.0, 20
# Removed together, so that the pins are read once for all of them.
BATCH = 64


@dataclass(frozen=True)
class Stored:
    """An artifact as it lies in the store; ``used`` is when it was last read or written, on the server's clock."""

    kind: str
    key: str
    size_bytes: int
    used: float


@dataclass(frozen=True)
class Evicted:
    """What an eviction did: artifacts removed, bytes freed, bytes left, and how many of those are pinned."""

    removed: tuple[Stored, ...]
    freed_bytes: int
    left_bytes: int
    pinned_bytes: int


@dataclass
class Usage:
    """What this process knows of the space in use: the last scan, and what it wrote since."""

    size_bytes: int = 0
    next_scan: float = 0.0
    told: bool = False


@dataclass(frozen=True)
class Eviction:
    files: Files
    locks: Locks
    max_bytes: int | None
    _usage: Usage = field(default_factory=Usage, compare=False, repr=False)

    def after_writing(self, size_bytes: int) -> Evicted | None:
        """Evict if the store has outgrown its bound, after ``size_bytes`` more were written by this process."""
        if self.max_bytes is None:
            return None
        self._usage.size_bytes += size_bytes
        if self._usage.size_bytes <= self.max_bytes and time.monotonic() < self._usage.next_scan:
            return None
        if self._scan() <= self.max_bytes:
            return None
        return self.evict(self.max_bytes)

    def room_for(self, size_bytes: int) -> bool:
        """Whether an artifact of this size fits, once what nobody needs has been evicted."""
        if self.max_bytes is None or self._usage.size_bytes + size_bytes <= self.max_bytes:
            return True
        if self._scan() + size_bytes <= self.max_bytes:
            return True
        if size_bytes > self.max_bytes:
            return False
        self.evict(self.max_bytes - size_bytes)
        return self._usage.size_bytes + size_bytes <= self.max_bytes

    def evict(self, max_bytes: int) -> Evicted | None:
        """Evict down to clearly less than ``max_bytes``; None where another process does so at this moment."""
        evicted = self.prune(int(max_bytes * SHARE_KEPT))
        if evicted is None:
            return None
        self._usage.size_bytes = evicted.left_bytes
        if self.max_bytes is not None and evicted.left_bytes > self.max_bytes and not self._usage.told:
            self._usage.told = True
            self.files.say(
                f"the artifacts in {self.files.root} take {evicted.left_bytes / GB:.2f} GB, more than store.max_gb="
                f"{self.max_bytes / GB:g}: running jobs need {evicted.pinned_bytes / GB:.2f} GB of them, and the rest is gone"
            )
        return evicted

    def prune(
        self,
        max_bytes: int,
        kinds: Sequence[str] = KINDS,
        choose: Callable[[Stored], bool] = lambda _: True,
        dry_run: bool = False,
    ) -> Evicted | None:
        """Remove chosen artifacts until ``max_bytes`` are left of all; None where another process evicts at this moment."""
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
        """What may be removed, in the order in which it is: by kind, then what was used longest ago."""
        pins = self.locks.pins()
        free = [one for one in stored if one.kind in kinds and not _pinned(one, pins) and choose(one)]
        return sorted(free, key=lambda one: (kinds.index(one.kind), one.used))

    def _remove(self, batch: Sequence[Stored]) -> list[Stored]:
        """Remove the artifacts of a batch that were not pinned in the meantime, and return those that were removed.

        Their markers are taken out of the way before the pins are read again: a job that pins and then finds an artifact is
        seen here, one that does not find it computes it.
        """
        removed = []
        for one in batch:
            # What a killed writer or eviction left has tensors without a marker.
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
        # Of a slow file server no more than a twentieth of the time is spent on scanning.
        self._usage.next_scan = ended + max(SCAN_SECONDS, SCAN_SHARE * (ended - started))
        return self._usage.size_bytes


def _pinned(one: Stored, pins: Collection[Artifact]) -> bool:
    """Whether an artifact is pinned; a pin without a number holds for every piece, ``KEY-NUMBER``, of what it names."""
    return (one.kind, one.key) in pins or (one.kind, one.key.rpartition("-")[0]) in pins


def _batches(candidates: Iterable[Stored], excess_bytes: float) -> Iterator[list[Stored]]:
    """The first candidates that make up the excess, a few at a time."""
    batch: list[Stored] = []
    for one in candidates:
        if excess_bytes <= 0:
            break
        batch.append(one)
        excess_bytes -= one.size_bytes
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def artifacts(root: Path) -> list[Stored]:
    """Every artifact of the bounded kinds, and of what there is of one that was not written completely."""
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
