"""Record of the verified files that were unpacked from an archive or downloaded singly."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from mmq_sweeps.data.unpack import Unpacked, is_there
from mmq_sweeps.whole_files import write_whole

FOLDER = "manifests"


@dataclass(frozen=True)
class Manifest:
    """Verified ``files`` by path below the root; ``sha256`` is the archive's, ``published`` if known before download."""

    source: str
    size: int = 0
    sha256: str = ""
    published: bool = False
    files: Mapping[str, Unpacked] = field(default_factory=dict)

    def wrong(self, root: Path, read: bool = False) -> list[str]:
        """Return the files that are missing or differ in size; with ``read``, also those that differ in content."""
        return [place for place, file in self.files.items() if not is_there(root / place, file, read)]


def read_manifest(root: Path, name: str) -> Manifest | None:
    """Return the manifest of the archive ``name``; None if it is missing or unreadable."""
    try:
        content = json.loads(_path(root, name).read_text())
        files = {place: Unpacked(*entry) for place, entry in content.pop("files").items()}
        return Manifest(**content, files=files)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def write_manifest(root: Path, name: str, manifest: Manifest) -> None:
    content = asdict(manifest) | {"files": {place: [one.size, one.crc] for place, one in manifest.files.items()}}
    write_whole(_path(root, name), json.dumps(content, indent=0))


def recorded_sizes(root: Path) -> dict[str, int]:
    """Return the size in bytes of every file in any manifest below ``root``, by path below ``root``."""
    return {place: file.size for manifest in _all(root) for place, file in manifest.files.items()}


def _all(root: Path) -> Iterator[Manifest]:
    for path in sorted((root / FOLDER).glob("*.manifest.json")):
        found = read_manifest(root, path.name.removesuffix(".manifest.json"))
        if found is not None:
            yield found


def _path(root: Path, name: str) -> Path:
    return root / FOLDER / f"{name}.manifest.json"
