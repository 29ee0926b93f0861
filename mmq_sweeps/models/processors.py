"""Load a checkpoint's processor, and name the packages that it lacks.

Only images and texts are studied here, so a processor whose only obstacle is its part for videos (which needs
torchvision) is built without that part.
"""

from __future__ import annotations

import importlib.util
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import transformers
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES
from transformers.processing_utils import ProcessorMixin
from transformers.video_processing_utils import VideoProcessorMixin

# Packages that some processors and models need beyond transformers, and the extra of setup.cfg that installs each.
EXTRAS = {"num2words": "smolvlm", "torchvision": "llama4", "timm": "gemma3n", "sentencepiece": "sentencepiece"}
VIDEOS = "video_processor"


class NoVideos(VideoProcessorMixin):  # type: ignore[misc]
    """Stand-in for a processor's part for videos; raises RuntimeError if called."""

    def __call__(self, *_: Any, **__: Any) -> Any:
        raise RuntimeError("this processor was built for images and texts; videos need torchvision")


class _TakesNoVideos:
    """Mixin that lets a processor class be built with ``NoVideos`` as its part for videos."""

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
        if argument_name == VIDEOS:
            return NoVideos
        return super().check_argument_for_proper_class(argument_name, argument)  # type: ignore[misc]


def load_processor(checkpoint: Path | str, options: dict[str, Any]) -> Any:
    """Return the processor of ``checkpoint``.

    A ValueError gives the command that installs a missing package, or says why the processor cannot be read. Code of the
    checkpoint's own is never run: without an option, transformers would ask and wait for an answer.
    """
    options = {**options, "trust_remote_code": False}
    try:
        processor_class = None if _installed("torchvision") else _class_with_videos(checkpoint, options)
        if processor_class is None:
            return transformers.AutoProcessor.from_pretrained(checkpoint, **options)
        return _without_videos(processor_class, checkpoint, options)
    except OSError:
        raise
    except Exception as error:
        if (problem := missing_package(error)) is None:
            problem = _unreadable(error)
        raise ValueError(f"model.checkpoint={checkpoint}: its processor {problem}") from error


def _unreadable(error: Exception) -> str:
    text = " ".join(str(error).split()) or "no reason given"
    if "trust_remote_code" in text:
        return "is code of the checkpoint's own, which is not run here; give a checkpoint of a class of transformers"
    return (
        f"cannot be read: {type(error).__name__}: {text}; look at its tokenizer.json, tokenizer_config.json and "
        "processor_config.json"
    )


def missing_package(error: Exception) -> str | None:
    """Return "needs ..." with the command that helps if ``error`` is due to an absent or broken package, else None."""
    if isinstance(error, ModuleNotFoundError) and error.name is not None:
        names = [error.name.split(".")[0]]
    else:
        text = str(error)
        names = re.findall(r"pip install ([A-Za-z0-9_-]+)", text)
        names += [name for name in EXTRAS if re.search(rf"\b{name}\b", text, flags=re.IGNORECASE)]
    for name in dict.fromkeys(names):
        if not _installed(name):
            return f"needs {name}, which is not installed; {_command(name)}"
        if name in EXTRAS and not isinstance(error, ValueError):
            return f"needs {name}, of which {_version(name)} does not work beside torch {_version('torch')}: {error}"
    return None


def _command(package: str) -> str:
    if package not in EXTRAS:
        return f"install it with pip install {package}"
    extra = EXTRAS[package]
    return (
        f"install it with pip install 'mmq-sweeps[{extra}]' (in a checkout: pip install -e '.[{extra}]'; the extra families "
        "has what any family needs)"
    )


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package.replace("-", "_")) is not None


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "an unknown version"


def _class_with_videos(checkpoint: Path | str, options: dict[str, Any]) -> type[ProcessorMixin] | None:
    """Return the class of the checkpoint's processor if transformers has it with a part for videos."""
    config, _ = transformers.PretrainedConfig.get_config_dict(checkpoint, **options)
    try:
        values, _ = ProcessorMixin.get_processor_dict(checkpoint, **options)
    except OSError:
        values = {}  # Older checkpoints have no such file.
    named = values.get("processor_class") or PROCESSOR_MAPPING_NAMES.get(config.get("model_type"))
    found: Any = getattr(transformers, named, None) if isinstance(named, str) else None
    is_class = isinstance(found, type) and issubclass(found, ProcessorMixin)
    return found if is_class and VIDEOS in found.get_attributes() else None


def _without_videos(processor_class: type[ProcessorMixin], checkpoint: Path | str, options: dict[str, Any]) -> Any:
    loaders = {
        "image_processor": transformers.AutoImageProcessor,
        "tokenizer": transformers.AutoTokenizer,
        "feature_extractor": transformers.AutoFeatureExtractor,
    }
    parts = {
        name: NoVideos() if name == VIDEOS else loaders[name].from_pretrained(checkpoint, **options)
        for name in processor_class.get_attributes()
    }
    values, _ = ProcessorMixin.get_processor_dict(checkpoint, **options)
    images_only: Any = type(processor_class.__name__, (_TakesNoVideos, processor_class), {})
    return images_only.from_args_and_dict(list(parts.values()), values)
