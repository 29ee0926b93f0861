"""Errors of composition, told in one line a problem, with the key, the value and the choices.

Hydra says that a key could not be overridden, not what could be; so the configuration is composed once more without the
override that failed, and its keys at that place are the choices.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mmq_sweeps.cell import BLOCK_GROUPS, LAYER_KINDS
from mmq_sweeps.errors import ConfigError, StoreError, unknown
from mmq_sweeps.paths import conf_dir
from mmq_sweeps.schema import BITS_CHOICES

# What a key of this name takes, wherever it lies.
HINTS = {
    "bits": BITS_CHOICES,
    "blocks": f"give a list of {', '.join(BLOCK_GROUPS)}.",
    "layers": f"give a list of {', '.join(LAYER_KINDS)}.",
}


def explain(error: BaseException, arguments: Sequence[str]) -> list[str]:
    """``error`` as lines for a person; ``arguments`` are those of the command line."""
    if isinstance(error, ConfigError):
        return error.problems
    if isinstance(error, MissingConfigException):
        return [_missing_option(error)]
    if isinstance(error, OverrideParseException):
        return [f"cannot read {error.override!r}: {_first_line(error)}"]
    if isinstance(error, ConfigCompositionException):
        return [_composition(error, arguments)]
    if isinstance(error, OSError) and error.strerror:
        return [error.strerror if isinstance(error, StoreError) else _system(error)]
    return [_first_line(error)]


def _system(error: OSError) -> str:
    """What Hydra's own writing of a sweep's folder meets: it does not say which file."""
    where = f" {error.filename}" if error.filename else " a file of the sweep"
    return f"cannot use{where}: {error.strerror}. Choose another folder with store.dir=FOLDER, or make room"


def _missing_option(error: MissingConfigException) -> str:
    group, _, option = (error.missing_cfg_file or "").rpartition("/")
    if not group or not error.options:
        return _first_line(error)
    return f"{group}={option}: {unknown(f'option of {group}', option, error.options)}"


def _composition(error: ConfigCompositionException, arguments: Sequence[str]) -> str:
    message = _first_line(error)
    if message.startswith("Could not override '"):
        return _unknown_key(message.split("'")[1], arguments)
    if message.startswith("Error merging override "):
        return _wrong_value(message.removeprefix("Error merging override "), error)
    if message.startswith("Ambiguous value for argument '"):
        argument = message.split("'")[1]
        key, _, value = argument.partition("=")
        return f"{argument}: several values are a sweep, which needs -m; a list is {key}=[{value}]"
    return message


def _wrong_value(override: str, error: BaseException) -> str:
    key = override.partition("=")[0].lstrip("+~")
    if override.startswith("+component."):
        return _unknown_key(key, [])
    hint = HINTS.get(key.rpartition(".")[2])
    # Inner exceptions still carry OmegaConf's placeholders ($VALUE), the outer ones the text made of them.
    causes = [str(cause).splitlines()[0] for cause in _causes(error) if isinstance(cause, OmegaConfBaseException)]
    reason = next((cause.rstrip(".") for cause in causes if "$" not in cause), "does not fit")
    return f"{override}: {reason}" + (f"; {hint}" if hint else "")


def _unknown_key(key: str, arguments: Sequence[str]) -> str:
    config = _composed_without(key, arguments)
    if config is None:
        return f"{key}: unknown key"
    node, path = config, ""
    for name in key.split("."):
        if isinstance(node, DictConfig) and name in node:
            if target := _stands_for(node, name):
                asked = target + key.removeprefix(f"{path}.{name}".lstrip("."))
                return f"{key}: {path}.{name} is that of the model; set {asked} instead"
            node, path = node[name], f"{path}.{name}".lstrip(".")
            continue
        if not isinstance(node, DictConfig) or not node:
            return f"{key}: {path} is a value, which has no fields"
        choices = sorted(str(choice) for choice in node if choice not in ("hydra", "_target_"))
        if not choices:
            return f"{key}: {path} has no fields"
        if path == "component" and name in config.model.parts:
            return (
                f"{key}: this component selects {', '.join(choices)}, not {name}; choose one that does, "
                f"for instance component=all or component={name}"
            )
        return f"{key}: {unknown('part' if path == 'component' else 'key', name, choices)}"
    return (
        f"{key}: has the fields {', '.join(map(str, node))}; set them one by one, and add another as +{key}.FIELD=VALUE"
    )


def _stands_for(node: DictConfig, name: str) -> str | None:
    """The key of the model that a field of the task takes its value from, as ``${model.generation.caption}`` does."""
    raw = OmegaConf.to_container(node, resolve=False)
    value = str(raw[name]) if isinstance(raw, dict) else ""
    return value[2:-1] if value.startswith("${model.") and value.endswith("}") else None


def _composed_without(key: str, arguments: Sequence[str]) -> DictConfig | None:
    """The configuration that the other arguments give; the defaults' where those fail as well."""
    others = [override for override in _overrides(arguments) if override.partition("=")[0].lstrip("+~") != key]
    GlobalHydra.instance().clear()
    for overrides in (others, []):
        try:
            with initialize_config_dir(str(conf_dir()), version_base="1.3"):
                return compose("config", overrides=overrides, return_hydra_config=key.startswith("hydra."))
        except (HydraException, OmegaConfBaseException):
            continue
    return None


def _overrides(arguments: Sequence[str]) -> list[str]:
    """Those of ``arguments`` that are overrides, a sweep taken at its first value."""
    found = []
    for argument in arguments:
        if argument.startswith("-") or "=" not in argument:
            continue
        try:
            parsed = OverridesParser.create().parse_override(argument)
        except OverrideParseException:
            continue
        found.append(_at_first_value(argument, parsed))
    return found


def _at_first_value(argument: str, override: Override) -> str:
    if not override.is_sweep_override():
        return argument
    return f"{override.get_key_element()}={next(iter(override.sweep_string_iterator()))}"


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause = error.__cause__ or error.__context__
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
