"""Where a checkpoint lies and which weights it holds. Imports no torch: cells are named before any model is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from mmq_sweeps.identity.contents import content_digest, folder_digest

WEIGHT_FILES = ("*.safetensors", "pytorch_model*.bin")
PINNED = "sha256:"
# What ``from_pretrained`` never reads: texts and pictures for people, logs, and weights of other frameworks.
UNREAD = (
    ".md",
    ".png",
    ".jpg",
    ".jpeg",
    ".gif",
    ".webp",
    ".pdf",
    ".log",
    ".h5",
    ".msgpack",
    ".ot",
    ".onnx",
    ".gguf",
    ".pth",
)
UNREAD_NAMES = ("LICENSE", "LICENSE.txt", "NOTICE", "USE_POLICY", "requirements.txt", "README")


def checkpoint_path(checkpoint: str) -> Path | str:
    """A folder, where the checkpoint is one (``embedded/NAME`` comes with the package), else the name on the hub."""
    if checkpoint.startswith("embedded/"):
        return Path(__file__).resolve().parent / checkpoint
    looks_like_path = checkpoint.startswith((".", "/", "~")) or Path(checkpoint).exists()
    return Path(checkpoint).expanduser().absolute() if looks_like_path else checkpoint


def pinned_revision(config: Mapping[str, Any]) -> str | None:
    """The revision that names a model's weights: of a folder their digest, of the hub the commit.

    So a folder whose weights change is another model, and nothing that was computed with the old ones is used. A branch of
    the hub, or none, becomes the commit that it stands for: in the cache, else on the hub; if neither can be asked it
    stays as it is configured.
    """
    folder, revision = checkpoint_path(config["checkpoint"]), config["revision"]
    if not isinstance(folder, Path):
        return commit_of(folder, revision) or revision
    if revision is not None or not weight_files(folder):
        named: str | None = revision
        return named
    return PINNED + weights_digest(folder)


def files_digest(config: Mapping[str, Any]) -> str | None:
    """The digest of what a checkpoint's folder holds beside weights: configuration, processor, tokenizer, chat template ...

    Any file that is not known to be without effect counts. ``None`` for a checkpoint of the hub, whose commit names all of
    its files.
    """
    folder = checkpoint_path(config["checkpoint"])
    if not isinstance(folder, Path) or not folder.is_dir():
        return None
    files = other_files(folder)
    return folder_digest(folder, files) if files else None


def other_files(folder: Path) -> list[Path]:
    """The files of a checkpoint's folder that may change a result, weights aside; of its folders only chat templates'."""
    weights = set(weight_files(folder))
    inside = [*folder.iterdir(), *folder.glob("additional_chat_templates/*")]
    return sorted(path for path in inside if path.is_file() and path not in weights and not _without_effect(path))


def _without_effect(path: Path) -> bool:
    return path.name.startswith(".") or path.name in UNREAD_NAMES or path.suffix.lower() in UNREAD


@lru_cache(maxsize=64)
def commit_of(name: str, revision: str | None) -> str | None:
    """The commit that ``revision`` of a checkpoint of the hub stands for; ``None`` if it is neither cached nor to be had."""
    # Only those who name a checkpoint of the hub wait for this import.
    from mmq_sweeps.models.hub import cached_commit, current_commit

    return cached_commit(name, revision) or current_commit(name, revision)


def weight_files(folder: Path) -> list[Path]:
    return sorted(path for pattern in WEIGHT_FILES for path in folder.glob(pattern))


def weights_digest(folder: Path) -> str:
    """Sixteen hexadecimal digits for the contents of the folder's weight files; of one file, those of its SHA-256."""
    return content_digest(weight_files(folder))
