"""Check everything that needs only the configuration: choices, counts, metrics, parts and their selections."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, OmegaConfBaseException

from mmq_sweeps.config import widths
from mmq_sweeps.config.assignment import parts_of
from mmq_sweeps.config.paths import conf_dir
from mmq_sweeps.config.sample import sample_problems
from mmq_sweeps.config.schema import Config
from mmq_sweeps.config.widths import BITS_CHOICES, is_width
from mmq_sweeps.errors import one_of, unknown
from mmq_sweeps.identity.assignment import BLOCK_GROUPS, FULL_PRECISION_BITS, LAYER_KINDS
from mmq_sweeps.identity.cell import VISION_WEIGHT
from mmq_sweeps.identity.end_parts import END_PARTS
from mmq_sweeps.metrics import metric_names
from mmq_sweeps.metrics.names import judges

RETRY = ("failed", "all", "none")
OUTPUT = ("table", "json")
DEVICES = ("auto", "cpu", "cuda", "mps")
DEVICE_MAPS = ("auto", "cpu", "disk")
# A shorter lease is lost if the file server stalls briefly; a longer lease blocks a dead node's cells for over an hour.
LEASE_LIMITS = (2.0, 3600.0)
DTYPES = ("float32", "float16", "bfloat16")
# The input that metrics need, by kind of task. Tasks of users are checked when they are built.
SCORED = {"CaptionTask": "captions", "VqaTask": "answers", "BenchmarkTask": "answers", "RetrievalTask": "ranks"}
# Tasks that bring metrics of their own, and check their names before work starts; without any, all of them.
OWN_METRICS = ("LmmsEvalTask",)


def problems(config: Mapping[str, Any]) -> list[str]:
    """Return all problems of a resolved configuration that can be found without loading a model."""
    if untyped := _type_problems(config):
        return untyped  # The other checks rely on the types.
    known = [key.name for key in fields(Config)]
    found = [
        *(f"{key}: {unknown('key', key, known)}" for key in config if key not in known),
        *_choice_problems(config),
        *_count_problems(config),
        *_store_problems(config["store"]),
        *_view_problems(config["view"]),
        *_metric_problems(config["task"]),
        *sample_problems(config["task"]),
        *_class_problems(config["task"], config["model"]),
        *_infinite_problems(config),
    ]
    model, parts = config["model"], config["model"]["parts"]
    if not parts:
        example = "'model.parts.vision={module: [PATH], blocks: [PATH], attention: [NAME], mlp: [NAME]}'"
        return [*found, f"model.parts: {model['name']} names none; give its parts, for instance {example}"]
    found += [f"model.parts.{part}.blocks=[]: names no path." for part, where in parts.items() if not where["blocks"]]
    found += [problem for part in END_PARTS if (problem := _path_problem(f"model.{part}", model[part]))]
    known = parts_of(model)
    if config["method"]["_target_"] != "none" and not any(part in known for part in _selected(config["component"])):
        found.append(f"component: selects no part of {model['name']}. {one_of(known)}")
    for part, selection in config["component"].items():
        if part not in known:
            found += _absent_problems(part, selection, model["name"], known)
        found += selection_problems(part, selection, config["bits"])
    return found


def _selected(component: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the parts that a component selects; it names those at the ends at 16 bits, too, which selects nothing."""
    return [part for part, own in component.items() if part not in END_PARTS or own["bits"] != FULL_PRECISION_BITS]


def _path_problem(key: str, paths: Any) -> str | None:
    if paths is None or (isinstance(paths, list) and all(isinstance(path, str) for path in paths)):
        return None
    return f"{key}={paths!r}: give a list of paths, for instance {key}=[lm_head], or null if the model has none."


def late_problems(config: Mapping[str, Any]) -> list[str]:
    """Return the problems of the selections that an assignment's file gave."""
    if config["assignment"] is None:
        return []
    found = [
        problem
        for part, selection in config["component"].items()
        for problem in selection_problems(part, {"bits_at": {}, **selection}, config["bits"])
    ]
    return [f"assignment={config['assignment']}: {problem}" for problem in found]


def _absent_problems(part: str, selection: Mapping[str, Any], model: str, known: list[str]) -> list[str]:
    """Refuse a part that the model lacks, unless it may be absent: a sweep may have other models that have it.

    Embeddings and head are selected by name only, and then have to be there.
    """
    named = part in END_PARTS and (selection["bits_at"] or selection["bits"] != FULL_PRECISION_BITS)
    if selection["if_present"] and not named:
        return []
    given = f".{part}.bits={selection['bits']}" if selection["if_present"] else ""
    return [f"component{given}: {unknown('part', part, known)[:-1]}, the parts of {model}."]


def _type_problems(config: Mapping[str, Any]) -> list[str]:
    """Check the types of nodes that the schema leaves untyped because a class is built from them."""
    task = config["task"]
    found = []
    for key, node in (("task", task), ("method", config["method"]), ("tracker", config["tracker"])):
        if not isinstance(node.get("_target_"), str):
            found.append(f"{key}._target_={node.get('_target_')!r}: give the dotted path of a class.")
    data = task.get("data", {})
    if not isinstance(data, Mapping):
        found.append(f"task.data={data!r}: give its fields one by one, for instance task.data.root=FOLDER.")
    elif data and not isinstance(data.get("_target_"), str):
        found.append(f"task.data._target_={data.get('_target_')!r}: give the dotted path of a class.")
    metrics = task.get("metrics")
    if metrics is not None and not (isinstance(metrics, list) and all(isinstance(name, str) for name in metrics)):
        found.append(f"task.metrics={metrics!r}: give a list of names, for instance task.metrics=[cider].")
    return found


def _choice_problems(config: Mapping[str, Any]) -> list[str]:
    chosen = (
        ("retry", config["retry"], RETRY),
        ("output", config["output"], OUTPUT),
        ("model.device", config["model"]["device"].split(":")[0], DEVICES),
        ("model.dtype", config["model"]["dtype"], DTYPES),
    )
    found = [
        f"{key}={value}: {unknown('choice', value, choices)}" for key, value, choices in chosen if value not in choices
    ]
    device_map = config["model"]["device_map"]
    if device_map is not None and not isinstance(device_map, Mapping) and device_map not in DEVICE_MAPS:
        choices = unknown("choice", device_map, DEVICE_MAPS)
        found.append(f"model.device_map={device_map}: {choices[:-1]}, or {{MODULE: DEVICE, ...}}.")
    max_memory = config["model"]["max_memory"]
    if max_memory is not None and not isinstance(max_memory, Mapping):
        found.append(
            f"model.max_memory={max_memory}: give what each place may hold, for instance {{0: 20GB, cpu: 40GB}}."
        )
    if not is_width(config["bits"]):
        found.append(f"bits={config['bits']}: {BITS_CHOICES}")
    return found


def _count_problems(config: Mapping[str, Any]) -> list[str]:
    counts = {
        "retries": config["retries"],
        "calibration.samples": config["calibration"]["samples"],
        "calibration.batch_size": config["calibration"]["batch_size"],
        "task.batch_size": config["task"].get("batch_size", 1),
    }
    if config["task"].get("limit") is not None:
        counts["task.limit"] = config["task"]["limit"]
    return [
        f"{key}={value!r}: choose a whole number above 0."
        for key, value in counts.items()
        if isinstance(value, bool) or not isinstance(value, int) or value < 1
    ]


def _infinite_problems(config: Mapping[str, Any]) -> list[str]:
    """Refuse numbers that no id can hold; a ``vision_weight`` is refused with its range."""
    leaves = (leaf for name in ("method", "component", "task", "model") for leaf in _leaves(config[name], name))
    return [
        f"{key}={value}: choose a finite number."
        for key, value in leaves
        if isinstance(value, float) and not math.isfinite(value) and not key.endswith(f".{VISION_WEIGHT}")
    ]


def _store_problems(store: Mapping[str, Any]) -> list[str]:
    found = []
    if not store["dir"].strip():
        found.append(f"store.dir={store['dir']!r}: choose a folder, for instance store.dir=runs.")
    if store["max_gb"] is not None and not 0 < store["max_gb"] < math.inf:
        found.append(f"store.max_gb={store['max_gb']:g}: choose a number of gigabytes above 0, or null for no bound.")
    if not LEASE_LIMITS[0] <= store["lease_seconds"] <= LEASE_LIMITS[1]:
        low, high = LEASE_LIMITS
        found.append(f"store.lease_seconds={store['lease_seconds']:g}: choose {low:g} to {high:g} seconds.")
    return found


def _view_problems(view: Mapping[str, Any]) -> list[str]:
    budget = view["max_bpw"]
    if budget is None or 0 < budget < math.inf:
        return []
    return [f"view.max_bpw={budget:g}: choose a number of bits above 0, or null for no budget."]


def _metric_problems(task: Mapping[str, Any]) -> list[str]:
    metrics = task.get("metrics")
    if task["_target_"].rpartition(".")[2] in OWN_METRICS and not task.get("teacher_forced"):
        return []
    if not metrics:
        return [f"task.metrics={metrics}: selects no metric. {one_of(_metrics_of(task))}"]
    # A user's metric is written module:Class and is resolved when the task is built.
    named = [name for name in metrics if ":" not in name]
    found = [
        f"task.metrics: {unknown('metric', name, _metrics_of(task))}" for name in named if name not in metric_names()
    ]
    fitting = set(metrics) <= set(_metrics_of(task)) | set(metrics).difference(named)
    if fitting and set(metrics) & set(metric_names("confidences")) and not judges(metrics):
        choices = one_of([name for name in metric_names("answers") if judges([name])])
        found.append(f"task.metrics=[{','.join(metrics)}]: needs a metric that says which answers are right. {choices}")
    return found + [
        f"task.metrics: {name} is no metric of task={task['name']}. {one_of(_metrics_of(task))}"
        for name in named
        if name in metric_names() and name not in _metrics_of(task)
    ]


def _metrics_of(task: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the metrics that fit the task; all metrics for a user's own task."""
    if task.get("teacher_forced"):
        return metric_names("likelihoods")
    needs = SCORED.get(task["_target_"].rpartition(".")[2])
    return metric_names(needs) + (metric_names("confidences") if needs == "answers" else ())


def _class_problems(task: Mapping[str, Any], model: Mapping[str, Any]) -> list[str]:
    """Check the model against the task's ``model_classes``.

    A task without them generates text, which needs a prompt instead; see ``unasked``.
    """
    classes = task.get("model_classes")
    if classes is None or model["class_name"] in classes:
        return []
    fitting = [name for name, other in _models().items() if other.get("class_name") in classes]
    return [
        f"task={task['name']}: {model['name']} is a {model['class_name']}, and this task needs "
        f"{' or '.join(classes)}. {one_of(f'model={name}' for name in fitting)}"
    ]


def without_value(config: DictConfig) -> str | None:
    """Return a message that lists the keys without a value; None if all have a value."""
    keys = sorted(key for key in OmegaConf.missing_keys(config) if not key.startswith("hydra."))
    if not keys:
        return None
    return f"{', '.join(keys)}: no value; give {' '.join(f'{key}=VALUE' for key in keys)}"


def unresolved(config: DictConfig) -> list[str]:
    """Return a sentence per key whose interpolation cannot be resolved, such as ``${bitz}``."""
    found = []
    leaves = dict(_leaves(OmegaConf.to_container(config, resolve=False), ""))
    for key, value in leaves.items():
        if not isinstance(value, str) or "${" not in value:
            continue
        if value[2:-1] in leaves and value[2:-1] != key:
            continue  # The referenced key is checked itself.
        try:
            OmegaConf.select(config, key, throw_on_resolution_failure=True)
        except InterpolationToMissingValueError:
            continue  # Reported by without_value.
        except (OmegaConfBaseException, RecursionError) as error:
            reason = (str(error).splitlines() or [""])[0]
            absent = re.match(r"Interpolation key '(.*)' not found", reason)
            found.append(f"{key}={value}: " + (f"there is no key {absent[1]!r}." if absent else reason))
    return found


def _leaves(node: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield the dotted key and value of every scalar below ``node``."""
    if isinstance(node, dict):
        for name, value in node.items():
            yield from _leaves(value, f"{path}.{name}".lstrip("."))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from _leaves(value, f"{path}[{index}]")
    else:
        yield path, node


def unasked(config: DictConfig) -> str | None:
    """Return a message if the task takes its prompt from a model that has none; None if all is well.

    Checked before the configuration is resolved, because resolving fails with a key that the user never wrote.
    """
    for key in ("prompt", "generation"):
        node = OmegaConf.to_container(config.task, resolve=False).get(key)  # type: ignore[union-attr]
        place = re.fullmatch(r"\$\{model\.(prompts|generation)\.(\w+)\}", str(node))
        if place is None or place[2] in config.model[place[1]]:
            continue
        group, kind = place[1], place[2]
        asked = [name for name, model in _models().items() if kind in (model.get(group) or {})]
        if not asked:
            continue
        return (
            f"task={config.task.name}: asks for a {place[2]}, and model={config.model.name} has no "
            f"model.{place[1]}.{place[2]}. {one_of(f'model={name}' for name in asked)}"
        )
    return None


def _models() -> dict[str, dict[str, Any]]:
    """Load every yaml of ``conf/model``, by name, unresolved."""
    paths = sorted((conf_dir() / "model").glob("*.yaml"))
    return {path.stem: OmegaConf.to_container(OmegaConf.load(path)) for path in paths}  # type: ignore[misc]


def selection_problems(part: str, selection: Mapping[str, Any], common: int | None) -> list[str]:
    """Return the problems of a part's selection; ``common`` is the width of parts without their own, checked elsewhere."""
    key, found = f"component.{part}", []
    if part in END_PARTS:
        if selection["bits_at"] or isinstance(selection["bits"], Mapping):
            found.append(f"{key}.bits={selection['bits_at'] or selection['bits']}: is one tensor; {BITS_CHOICES}")
        elif not is_width(selection["bits"]) and selection["bits"] != common:
            found.append(f"{key}.bits={selection['bits']}: {BITS_CHOICES}")
        for name, every in (("blocks", BLOCK_GROUPS), ("layers", LAYER_KINDS)):
            if list(selection[name]) != list(every):
                found.append(
                    f"{key}.{name}=[{', '.join(selection[name])}]: is one tensor, without {name}; leave it out."
                )
        return [*found, *_group_size_problems(key, selection["group_size"])]
    for name, choices in (("blocks", BLOCK_GROUPS), ("layers", LAYER_KINDS)):
        values = selection[name]
        if not values:
            found.append(f"{key}.{name}=[]: selects nothing. {one_of(choices)}")
        found += [f"{key}.{name}: {unknown(name[:-1], value, choices)}" for value in values if value not in choices]
        if len(set(values)) < len(values):
            found.append(
                f"{key}.{name}=[{', '.join(values)}]: names one twice, so its linears would be selected twice."
            )
    return [*found, *widths.problems(key, selection, common), *_group_size_problems(key, selection["group_size"])]


def _group_size_problems(key: str, size: Any) -> list[str]:
    problem = widths.group_size_problem(size)
    return [] if problem is None else [f"{key}.{problem}"]
