"""Compare GPTQ's results with auto-gptq's own solver; sections of ``benchmarks/solvers.py``.

parity    codes and reconstruction error on the same grids, in single and double precision
groups    static groups against groups fitted during the solve, and against the library's grouping
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.timing import Section, correlated_inputs, progress, random_weight
from mmq_sweeps.methods.auto_gptq import codes_of, run
from mmq_sweeps.methods.base import LayerStats
from mmq_sweeps.methods.factor import factorize
from mmq_sweeps.methods.formats import Format, Grid
from mmq_sweeps.methods.gptq import GPTQ, solve_many

BITS = (2, 3, 4, 8)
GROUPS: tuple[int | str, ...] = ("channel", 128, 32)


@contextmanager
def in_double_precision() -> Iterator[None]:
    """Run the library in double precision: its ``.float()`` casts produce doubles inside the context."""
    single = Tensor.float
    Tensor.float = Tensor.double  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        Tensor.float = single  # type: ignore[method-assign]


def linear(weight: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight.clone(), requires_grad=False)
    return layer


def output_error(weight: Tensor, restored: Tensor, gram: Tensor) -> float:
    """Return the squared output error, averaged over tokens, in double precision."""
    difference = (weight - restored).double()
    return float(((difference @ gram.double()) * difference).sum())


def compare(weight: Tensor, gram: Tensor, format: Format, act_order: bool) -> tuple[float, float]:
    """Return the share of equal codes, and our output error over the library's, both on the library's own unrounded grids.

    Computed in the precision of ``weight`` ``[O, I]`` and ``gram`` ``[I, I]``, with the same damping and static groups.
    """
    restored, scale, zero = run(linear(weight), 2 * gram, format, act_order=act_order)
    grid = Grid(scale, zero, format)
    mine = solve_many([weight], factorize(gram, act_order=act_order), [format], grids=[[grid]])[0][0]
    equal = float((mine.codes == codes_of(restored, grid)).double().mean())
    return equal, output_error(weight, mine.dequantize(), gram) / output_error(weight, restored, gram)


def embedded_layers() -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield name, weight and Gram matrix of every linear of the embedded model's parts."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from mmq_sweeps.config import schema
    from mmq_sweeps.config.instantiate import build
    from mmq_sweeps.config.paths import conf_dir
    from mmq_sweeps.models.loading import load_model
    from mmq_sweeps.quantization.targets import find_parts

    schema.register()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config: Any = OmegaConf.to_container(compose("config"), resolve=True)
    loaded = load_model(config["model"])
    parts = find_parts(loaded.model, config["model"])
    task = build("task", config["task"])
    names = [name for part in parts.values() if not part.at_an_end for unit in part.units for name in unit.linears]
    rows: dict[str, list[Tensor]] = {name: [] for name in names}

    def keep(name: str) -> Any:
        return lambda _module, inputs: rows[name].append(inputs[0].flatten(0, -2))

    with ExitStack() as hooks:
        for name in names:
            hooks.callback(loaded.linear(name).register_forward_pre_hook(keep(name)).remove)
        for batch in task.calibration_batches(loaded, config["calibration"]):
            loaded.model(**loaded.to_device(batch), use_cache=False)
    for name in names:
        x = torch.cat(rows.pop(name))
        yield name, loaded.linear(name).weight.detach(), x.T @ x / len(x)


def correlated_layers() -> Iterator[tuple[str, Tensor, Tensor]]:
    for rows, columns in ((256, 128), (192, 512)):
        x = torch.cat(correlated_inputs(columns, 4, 512))[:, :].flatten(0, 1)
        yield f"random {rows}x{columns}", random_weight(rows, columns), x.T @ x / len(x)


def measure_parity(_pairs: int) -> dict[str, Any]:
    """Return the shares of equal codes and the ratios of output errors for every kind of layer and configuration."""
    rows = []
    layers = [("embedded", *layer[1:]) for layer in embedded_layers()]
    layers += [("random", *layer[1:]) for layer in correlated_layers()]
    for bits, group, symmetric, act_order in itertools.product(BITS, GROUPS, (False, True), (False, True)):
        format = Format(bits, group, symmetric)
        progress(f"parity: {format}, act_order={act_order}")
        for kind in ("embedded", "random"):
            fitting = [
                (weight, gram)
                for of_kind, weight, gram in layers
                if of_kind == kind and not (isinstance(group, int) and weight.shape[1] % group)
            ]
            sizes = [weight.numel() for weight, _ in fitting]
            single = [compare(weight, gram, format, act_order) for weight, gram in fitting]
            with in_double_precision():
                double = [compare(weight.double(), gram.double(), format, act_order) for weight, gram in fitting]
            rows.append(
                {
                    "bits": bits, "group_size": group, "symmetric": symmetric, "act_order": act_order,
                    "layers": kind, "count": len(fitting),
                    "least_equal_double": min(equal for equal, _ in double),
                    "equal_single": sum(size * equal for size, (equal, _) in zip(sizes, single, strict=True)) / sum(sizes),
                    "least_equal_single": min(equal for equal, _ in single),
                    "mean_error_ratio_single": statistics.mean(ratio for _, ratio in single),
                    "largest_error_ratio_single": max(ratio for _, ratio in single),
                }
            )  # fmt: skip
    return {"rows": rows}


def parity_lines(found: Mapping[str, Any]) -> Iterable[str]:
    yield "                                                      double         single          error, ours/theirs, single"
    yield "bits  group    symmetric  act_order  layers    count   equal   equal  worst layer     mean  worst layer"
    for row in found["rows"]:
        yield (
            f"{row['bits']:4}  {row['group_size']!s:7}  {row['symmetric']!s:9}  {row['act_order']!s:9}  "
            f"{row['layers']:8}  {row['count']:5}  {share(row['least_equal_double'])}  {share(row['equal_single'])}"
            f"  {share(row['least_equal_single']):>11}  {row['mean_error_ratio_single']:7.5f}  "
            f"{row['largest_error_ratio_single']:11.5f}"
        )


def share(value: float) -> str:
    """Format a share as ``all``, or as a percentage that never rounds up to 100."""
    return "   all" if value == 1 else f"{math.floor(1e4 * value) / 100:5.2f}%"


def measure_groups(_pairs: int) -> dict[str, Any]:
    """Compare ways of grouping by output error relative to our default, a geometric mean over the embedded model's linears."""
    layers = list(embedded_layers())
    rows = []
    for bits, group in itertools.product((2, 3, 4), (16, 32, 64)):
        format = Format(bits, group)
        progress(f"groups: {format}")
        ratios: dict[str, list[float]] = {}
        for _, weight, gram in layers:
            if weight.shape[1] % group or weight.shape[1] == group:
                continue
            ways = {
                "default": ours(weight, gram, format, act_order=True, static_groups=True),
                "static": ours(weight, gram, format, act_order=False, static_groups=True),
                "refit": ours(weight, gram, format, act_order=False, static_groups=False),
                "library": run(linear(weight), 2 * gram, format, act_order=False, static_groups=False)[0],
                "library_act_order": run(linear(weight), 2 * gram, format, act_order=True, static_groups=False)[0],
            }
            errors = {way: output_error(weight, restored, gram) for way, restored in ways.items()}
            for way, error in errors.items():
                ratios.setdefault(way, []).append(error / errors["default"])
        means = {way: statistics.geometric_mean(values) for way, values in ratios.items()}
        rows.append({"bits": bits, "group_size": group, "count": len(ratios["default"]), **means})
    return {"rows": rows}


def ours(weight: Tensor, gram: Tensor, format: Format, act_order: bool, static_groups: bool) -> Tensor:
    method = GPTQ(format.group_size, format.symmetric, act_order=act_order, static_groups=static_groups)
    stats = LayerStats(gram, gram.diagonal().sqrt(), 1)
    return method.quantize([weight], stats, format).weights[0].dequantize()


def groups_lines(found: Mapping[str, Any]) -> Iterable[str]:
    yield "output error over that of act_order=true static_groups=true, geometric mean over linears"
    yield "                     act_order=false                              library, static_groups=False"
    yield "bits  group  count   static_groups=true  static_groups=false      act_order=False  act_order=True"
    for row in found["rows"]:
        yield (
            f"{row['bits']:4}  {row['group_size']:5}  {row['count']:5}  {row['static']:19.3f}  {row['refit']:19.3f}  "
            f"{row['library']:19.3f}  {row['library_act_order']:14.3f}"
        )


SECTIONS: dict[str, Section] = {
    "parity": Section(measure_parity, parity_lines),
    "groups": Section(measure_groups, groups_lines),
}
