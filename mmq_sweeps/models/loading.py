"""Load a model from its configuration, and verify its files, its family and the digest of its weights."""

from __future__ import annotations

import logging
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
import transformers
from safetensors import SafetensorError
from torch import Tensor, nn
from tqdm import tqdm  # type: ignore[import-untyped]
from transformers.utils import cached_file

from mmq_sweeps.identity.checkpoint import (
    QUANTIZATION_FILES,
    checkpoint_path,
    quantization_method,
    quantized_already,
)
from mmq_sweeps.identity.hub import absent, hub_options
from mmq_sweeps.models import experts
from mmq_sweeps.models.checkpoint_checks import check_family, check_files, check_folder, check_weights
from mmq_sweeps.models.device_map import (
    AUTO,
    check_room,
    choose_device,
    computing_device,
    locations,
    offloading_hooks,
    onloaded,
    read_max_memory,
)
from mmq_sweeps.models.offloaded import read_instead, replaced_by, replaced_parameters, replaced_slices
from mmq_sweeps.models.processors import load_processor, missing_package
from mmq_sweeps.models.shapes import Shape, build_on_meta, find_class, tied
from mmq_sweeps.models.weight_backup import room_aside

if TYPE_CHECKING:
    from mmq_sweeps.models.quantized.names import FittedCheckpoint

logger = logging.getLogger(__name__)
SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode, the processor of its inputs, and its configuration.

    ``stored`` says how a checkpoint that is quantized already is stored; None at full precision.
    """

    model: transformers.PreTrainedModel
    processor: Any
    config: Mapping[str, Any]
    stored: FittedCheckpoint | None = None

    @property
    def shape(self) -> transformers.PreTrainedModel:
        """A model of the same modules whose linears are plain: to find parts and to count; it may have no weights."""
        return self.model if self.stored is None else self.stored.model

    @property
    def device(self) -> torch.device:
        """Computing device; weights may lie elsewhere until they are needed."""
        return computing_device(self.model)

    def __post_init__(self) -> None:
        # Found now: a call of an offloaded module replaces its parameter, so that tied ones are no longer one object.
        object.__setattr__(self, "_tied", tied(self.model))

    def linear(self, name: str) -> nn.Linear | nn.Embedding:
        """Return the linear or embedding of this full name; TypeError if the module is something else."""
        module = self.model.get_submodule(name)
        if not isinstance(module, (nn.Linear, nn.Embedding)):
            raise TypeError(f"{name} is a {type(module).__name__}, not a linear")
        return module

    def sharing(self, name: str) -> tuple[str, ...]:
        """Return the full names of all modules with the weight of the linear ``name``, itself included."""
        tied: Mapping[str, tuple[str, ...]] = self._tied  # type: ignore[attr-defined]
        return tied.get(name, (name,))

    def weight(self, name: str) -> Tensor:
        """Return the weight ``[O, I]`` of a linear or embedding by its full name, read from its device, the CPU or the disk.

        ``PATH.gate_up_proj[3]`` is that of an expert in a tensor of many. Hold its module by ``onloaded`` to read several.
        """
        if (part := experts.parse(name)) is not None:
            away = bool(offloading_hooks(self.model.get_submodule(part.module)))
            with self.onloaded(part.module):
                own = experts.view(self.model, name).detach()
                # Not a view of the tensor of all experts, which would stay in memory with it.
                return own.clone(memory_format=torch.contiguous_format) if away else own.contiguous()
        linear = self.linear(name)
        with self.onloaded(name):
            return linear.weight.detach()

    @contextmanager
    def onloaded(self, path: str) -> Iterator[None]:
        """Hold the weights of the module at ``path`` on the computing device; on exit, return them to their place.

        Costs nothing if they are there anyway. Otherwise they are read once, however often the module runs meanwhile.
        """
        with ExitStack() as placed:
            for module in self.model.get_submodule(path).modules():
                placed.enter_context(onloaded(module))
            yield

    def to_device(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Move tensors to the computing device, floating ones in the model's dtype; other values are unchanged."""
        dtype = next(self.model.parameters()).dtype
        return {
            name: value.to(self.device, dtype if value.is_floating_point() else value.dtype)
            if isinstance(value, Tensor)
            else value
            for name, value in inputs.items()
        }

    @contextmanager
    def weights_replaced(
        self, weights: Mapping[str, Tensor], dense: Mapping[str, Tensor] = MappingProxyType({})
    ) -> Iterator[None]:
        """Run with ``weights`` ``{linear: [O, I]}`` in place; on exit restore the full-precision ones, bit for bit.

        ``dense`` are other parameters by full name, such as norms and biases, of modules that share them with no other.
        ``weights`` may compute values on access: they are requested singly, those of offloaded linears whenever the
        linear is brought to the computing device. A tied weight is replaced wherever it is used; a ValueError if it is
        given twice.
        """
        slices = experts.by_module(weights)
        holders = self._holders(name for name in weights if experts.parse(name) is None)
        # A weight by its place in the list: those of one name may lie both in memory and on disk.
        resident: list[tuple[str, Tensor]] = []
        with ExitStack() as undo:
            for name, linears in holders.items():
                there = {id(linear.weight): linear.weight for linear in linears if linear.weight.device.type != "meta"}
                resident += [(name, weight.detach()) for weight in there.values()]
                for linear in linears:
                    undo.enter_context(read_instead(linear, replaced_by(weights, name)))
            for path, names in slices.items():
                if offloading_hooks(module := self.model.get_submodule(path)):
                    undo.enter_context(read_instead(module, replaced_slices(module, names, weights)))
                else:
                    resident += [(name, experts.view(self.model, name).detach()) for name in names]
            for path in dict.fromkeys(name.rpartition(".")[0] for name in dense):
                if offloading_hooks(module := self.model.get_submodule(path)):
                    undo.enter_context(read_instead(module, replaced_parameters(path, dense)))
                else:
                    own = [name for name in dense if name.rpartition(".")[0] == path]
                    resident += [(name, self.model.get_parameter(name).detach()) for name in own]
            size = sum(weight.nbytes for _, weight in resident)
            aside = undo.enter_context(room_aside(size, self.config.get("offload_dir")))
            for place, (name, weight) in enumerate(resident):
                aside.keep(str(place), weight)
                undo.callback(aside.put_back, str(place), weight)
                with torch.no_grad():
                    weight.copy_(dense[name] if name in dense else weights[name])
            yield

    def _holders(self, names: Iterable[str]) -> dict[str, list[nn.Linear | nn.Embedding]]:
        """Return the modules that use each weight of ``names``; ValueError if two names are one weight."""
        holders: dict[str, list[nn.Linear | nn.Embedding]] = {}
        owner: dict[str, str] = {}
        for name in names:
            self.linear(name)
            for other in self.sharing(name):
                if owner.setdefault(other, name) != name:
                    raise ValueError(f"{owner[other]} and {name} are one weight, which cannot be replaced twice")
            modules = map(self.model.get_submodule, self.sharing(name))
            holders[name] = [module for module in modules if isinstance(module, (nn.Linear, nn.Embedding))]
        return holders


def load_model(config: Mapping[str, Any]) -> LoadedModel:
    """Load ``config`` of ``conf/model/*.yaml``; a ValueError names the setting that does not serve, and a remedy."""
    find_class(config)
    device = choose_device(config["device"])
    checkpoint, options = _source(config)
    try:
        values, _ = transformers.PretrainedConfig.get_config_dict(checkpoint, **options)
        if problem := quantized_already(config["checkpoint"], values, _folder(checkpoint, options)):
            raise ValueError(problem)
        check_family(config, values)
        stored = _quantized(config, checkpoint)
        # Before the weights, which take long: a package that it needs may be absent.
        processor = load_processor(checkpoint, options)
        with silent_bars() if stored is not None else nullcontext():
            model = _read_weights(config, checkpoint, options, values, device)
            if stored is not None:
                decompress(model)
    except SafetensorError as error:
        raise ValueError(f"model.checkpoint={config['checkpoint']}: cannot read its weights: {error}") from error
    except ImportError as error:
        if (problem := missing_package(error)) is None:
            raise
        raise ValueError(f"model.checkpoint={config['checkpoint']}: its model {problem}") from error
    except OSError as error:
        if options.get("local_files_only") and error.errno is None:  # not an error of the system
            raise ValueError(absent(config["checkpoint"], config["revision"])) from error
        raise
    return prepared(model, processor, config, stored)


def prepared(
    model: transformers.PreTrainedModel,
    processor: Any,
    config: Mapping[str, Any],
    stored: FittedCheckpoint | None = None,
) -> LoadedModel:
    """Return a model that transformers has loaded as tasks take it, with the generation settings that ``config`` allows."""
    if not config.get("inherit_generation"):
        _forget_generation(model)
    return LoadedModel(model.eval().requires_grad_(False), processor, config, stored)


def decompress(model: transformers.PreTrainedModel) -> None:
    """Turn linears of compressed-tensors into dense ones; otherwise ``generate`` of BLIP-2 and LLaVA fails on the first."""
    compressor = getattr(getattr(model, "hf_quantizer", None), "compressor", None)
    if compressor is not None:
        compressor.decompress_model(model)


@contextmanager
def silent_bars() -> Iterator[None]:
    """Show no progress bars of libraries that have no switch for them, as compressed-tensors."""
    original = tqdm.__init__

    def silent(bar: tqdm, *values: Any, **options: Any) -> None:
        original(bar, *values, **{**options, "disable": True})

    tqdm.__init__ = silent
    try:
        yield
    finally:
        tqdm.__init__ = original


def _quantized(config: Mapping[str, Any], checkpoint: Path | str) -> FittedCheckpoint | None:
    """Return how a folder that is quantized already is stored; a ValueError if it cannot be measured as it is."""
    if quantization_method(checkpoint) is None:
        return None
    # Slow imports, needed only for such a checkpoint.
    from mmq_sweeps.models.quantized.measuring import fit_checkpoint, problem

    fitted = fit_checkpoint(config)
    if (found := problem(config, fitted)) is not None:
        raise ValueError(found)
    own = fitted.checkpoint.values.get("dtype") or fitted.checkpoint.values.get("torch_dtype")
    if own is not None and own != config["dtype"]:
        logger.warning(
            "model.checkpoint=%s: is stored in %s and measured in %s; model.dtype=%s measures it as it is",
            config["checkpoint"], own, config["dtype"], own,
        )  # fmt: skip
    return fitted


def checkpoint_folder(config: Mapping[str, Any]) -> Path | None:
    """Return the folder with the checkpoint's files; for the hub, that of its cache."""
    checkpoint, options = _source(config)
    return _folder(checkpoint, options)


def _source(config: Mapping[str, Any]) -> tuple[Path | str, dict[str, Any]]:
    """Return the checkpoint's folder or hub name, and the options for ``from_pretrained``."""
    checkpoint, revision = checkpoint_path(config["checkpoint"]), config["revision"]
    if isinstance(checkpoint, Path):
        check_folder(checkpoint, revision)
        check_files(checkpoint, config)
        return checkpoint, {}
    return checkpoint, hub_options(checkpoint, revision)


def _folder(checkpoint: Path | str, options: Mapping[str, Any]) -> Path | None:
    """Return the checkpoint's folder; for the hub, the cache folder with its config.json or quantization files."""
    if isinstance(checkpoint, Path):
        return checkpoint
    found = [
        cached_file(checkpoint, name, _raise_exceptions_for_missing_entries=False, **options)
        for name in ("config.json", *QUANTIZATION_FILES)
    ]
    return next((Path(path).parent for path in found if path is not None), None)


def _read_weights(
    config: Mapping[str, Any],
    checkpoint: Path | str,
    options: Mapping[str, Any],
    values: Mapping[str, Any],
    device: torch.device,
) -> transformers.PreTrainedModel:
    """Read each weight once, straight to its location and in its final dtype."""
    model_class, dtype = find_class(config), getattr(torch, config["dtype"])
    placing: dict[str, Any] = {}
    if config.get("device_map") == AUTO:
        placing = {"device_map": AUTO, "max_memory": read_max_memory(config.get("max_memory"), config["device"])}
    else:
        skeleton = build_on_meta(config, Shape(values, ""))
        where = locations(skeleton, config.get("device_map"), device)
        check_room(skeleton, where, dtype, config["checkpoint"])
        if where != {"": "cpu"}:
            placing = {"device_map": where}
    if config.get("offload_dir") is not None:
        Path(config["offload_dir"]).mkdir(parents=True, exist_ok=True)
    with ExitStack() as cleaning:
        if placing:
            # Receives only weights loaded in another form than stored; others are read from the checkpoint.
            folder = tempfile.mkdtemp(dir=config.get("offload_dir"), prefix="mmq-offload-")
            cleaning.callback(shutil.rmtree, folder, ignore_errors=True)
            placing["offload_folder"] = folder
        model, info = model_class.from_pretrained(
            checkpoint,
            dtype=dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **placing,
            **options,
        )
        check_weights(config, values, info, strict=quantization_method(checkpoint) is not None)
        weakref.finalize(model, cleaning.pop_all().close)
    return model


def _forget_generation(model: transformers.PreTrainedModel) -> None:
    """Drop the checkpoint's generation settings but the ids of special tokens: the task sets everything else."""
    for module in model.modules():
        own = getattr(module, "generation_config", None)
        if isinstance(own, transformers.GenerationConfig):
            kept = {name: getattr(own, name, None) for name in SPECIAL_TOKENS}
            module.generation_config = transformers.GenerationConfig(**kept)
