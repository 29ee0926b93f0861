"""Convert errors of Hydra's composition to a line per problem, with key, value and choices.

Hydra reports that a key could not be overridden, but no alternatives. So the configuration is composed again without the
failed override, and the keys found there are listed as choices.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException
from yaml import MarkedYAMLError, YAMLError

from mmq_sweeps.config.instantiate import READERS
from mmq_sweeps.config.overrides import APART, as_written
from mmq_sweeps.config.paths import conf_dir
from mmq_sweeps.config.widths import BITS_CHOICES
from mmq_sweeps.errors import ConfigError, StoreError, unknown
from mmq_sweeps.identity.cell import BLOCK_GROUPS, LAYER_KINDS
from mmq_sweeps.identity.declared import declared
from mmq_sweeps.identity.end_parts import END_PARTS

# Hints by the last part of a key.
HINTS = {
    "bits": BITS_CHOICES,
    "blocks": f"give a list of {', '.join(BLOCK_GROUPS)}.",
    "layers": f"give a list of {', '.join(LAYER_KINDS)}.",
}
# First words of Hydra's ValueErrors about the command line.
NO_OPTION = "Config group override must be a string"
ONE_OF_FLAGS = "Only one of --run"


def is_bad_input(error: BaseException) -> bool:
    """Return True if ``error`` is the user's mistake. Of ValueErrors, only Hydra's own about the command line count."""
    ours = isinstance(error, ConfigError | StoreError | HydraException | OmegaConfBaseException | YAMLError | OSError)
    return ours or str(error).startswith((NO_OPTION, ONE_OF_FLAGS, "The --resolve flag"))


def explain(error: BaseException, arguments: Sequence[str]) -> list[str]:
    """Format ``error`` as readable lines; ``arguments`` are the command line, or the overrides of a single job of a sweep."""
    if isinstance(error, ConfigError):
        return error.problems
    if isinstance(error, MissingConfigException):
        return [_missing_option(error)]
    if isinstance(error, OverrideParseException):
        return [_unreadable(error)]
    if isinstance(error, ConfigCompositionException):
        return [_composition(error, arguments)]
    if isinstance(error, OmegaConfBaseException):
        return [_unresolved(error)]
    if isinstance(error, MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return [f"{mark.name}: line {mark.line + 1}: is not YAML: {error.problem}"]
    if isinstance(error, OSError) and error.strerror:
        return [error.strerror if isinstance(error, StoreError) else _system(error)]
    if str(error).startswith(NO_OPTION):
        return [_no_option(arguments)]
    return [_first_line(error)]


def _unreadable(error: OverrideParseException) -> str:
    """Explain a syntax error in an override; Hydra's message only quotes its parser."""
    value = error.override.partition("=")[2]
    if "=" not in error.override and not error.override.startswith("~"):
        reason = "an override is KEY=VALUE"
    elif value.count("'") % 2 or value.count('"') % 2:
        reason = "a quotation mark is opened and not closed"
    elif any(value.count(opened) != value.count(closed) for opened, closed in ("[]", "{}", "()")):
        reason = "a bracket is opened and not closed, or closed and not opened"
    elif re.fullmatch(r"(choice|range|glob|interval)\(\s*\)", value):
        reason = "it names no value"
    elif "" in (part.strip() for part in value.split(",")):
        reason = "there is no value before or after a comma"
    elif re.search(r"\s[\w./@]+=", value):
        reason = "it holds a second override; give each as an argument of its own"
    else:
        reason = "put a value with special characters in quotes, KEY='VALUE', and the whole in quotes of the shell"
    return f"cannot read {error.override!r}: {reason}"


def _unresolved(error: OmegaConfBaseException) -> str:
    """Explain a broken interpolation, with the key that contains it."""
    key, reason = getattr(error, "full_key", None), _first_line(error)
    absent = re.match(r"Interpolation key '(.*)' not found", reason)
    if isinstance(error, InterpolationKeyError) and absent:
        reason = f"takes its value from {absent[1]!r}, and there is no such key"
    return f"{key}: {reason}" if key else reason


def _no_option(arguments: Sequence[str]) -> str:
    """Explain an override that gives a group a value other than the name of an option."""
    for argument, override in _parsed(arguments):
        if not override.key_or_group:
            return f"{argument}: an override is KEY=VALUE"
        options = _options(override.key_or_group, arguments)
        if options and not isinstance(override.value(), str | list):
            return f"{argument}: {unknown(f'option of {override.key_or_group}', override.value(), options)}"
    return "a group was given something that is not the name of an option."


def _system(error: OSError) -> str:
    """Explain an OSError of Hydra, which may write a sweep's folder without naming the file that failed."""
    where = f" {error.filename}" if error.filename else " a file of the sweep"
    return f"cannot use{where}: {error.strerror}. Choose another folder with store.dir=FOLDER, or make room"


def _missing_option(error: MissingConfigException) -> str:
    group, _, option = (error.missing_cfg_file or "").rpartition("/")
    if not group or not error.options:
        return _first_line(error)
    return f"{group}={option}: {unknown(f'option of {group}', option, error.options)}"


def _swept_setting(override: str) -> str:
    """Explain a sweep over a setting of Hydra, such as the budgets of a search, which are a list."""
    key, _, values = override.partition("=")
    listed = f"; for a list of values give {key}=[{values}]" if re.fullmatch(r"[\w.,+-]+", values) else ""
    return f"{override}: a setting of Hydra has one value for all cells, so it cannot be swept{listed}"


def _composition(error: ConfigCompositionException, arguments: Sequence[str]) -> str:
    message = _first_line(error)
    if in_file := re.match(r"In '(.*?)': (.*)", message):
        return _in_file(in_file[1], in_file[2], error, arguments)
    if (added := re.search(r"To append to your default list use \+(\S+)", str(error))) is not None:
        return f"{added[1]}: this group is not in the defaults list; write +{added[1]}"
    if swept := re.match(r"Sweeping over Hydra's configuration is not supported : '(.*)'", message):
        return _swept_setting(swept[1])
    if message.startswith("Could not override '"):
        return _unknown_key(message.split("'")[1], arguments)
    if removed := re.match(r"Could not delete from config\. '(.*)' does not exist", message):
        return _unknown_key(removed[1], arguments)
    forced = re.match(r"force-add of config groups is not supported: '\+\+(.*)=", message)
    if twice := forced or re.match(r"(\S+) appears more than once in the final defaults list", message):
        return f"{twice[1]}: has an option already; write {twice[1]}=OPTION, without a +"
    if several := re.match(r"Multiple values for (\S+?)\. To override", message):
        if any(argument.startswith(f"+{several[1]}=") for argument in arguments):
            return f"{several[1]}: has an option already; write {several[1]}=OPTION, without a +"
        return f"{several[1]}: a yaml chooses it a second time; write 'override /{several[1]}: OPTION' in its defaults"
    if message.startswith("Error merging override "):
        return _wrong_value(message.removeprefix("Error merging override "), error, arguments)
    if message.startswith("Ambiguous value for argument '"):
        argument = message.split("'")[1]
        key, _, value = argument.partition("=")
        as_list = "" if _options(key, arguments) else f"; a list is {key}=[{value}]"
        return f"{argument}: several values are a sweep, which needs -m{as_list}"
    return message


def _in_file(name: str, message: str, error: BaseException, arguments: Sequence[str]) -> str:
    """Explain an error in the yaml ``name`` of a group, such as ``experiment/mine``."""
    causes = [cause for cause in _causes(error) if isinstance(cause, OmegaConfBaseException)]
    key = next((str(cause.full_key) for cause in causes if getattr(cause, "full_key", None)), "")
    group = name.partition("/")[0]
    if group == "experiment" and key.partition(".")[0] == group:
        return f"{name}.yaml: its first line has to be '# @package _global_', or its values do not reach the cell"
    if key and "not in" in str(causes[0]):
        return f"{name}.yaml: {_unknown_key(key, [one for one in arguments if group not in one.partition('=')[0]])}"
    reason = _first_line(causes[0]) if causes else message
    if "No match in the defaults list" in reason and (asked := re.search(r"Could not override '(.*?)'", reason)):
        groups = [name for name in _loader(arguments).list_groups("") if name != "hydra"]
        reason = unknown("group", asked[1], groups)
    if reason.startswith("Cannot merge"):
        reason = "has a list where there are fields, or fields where there is a list"
    return f"{name}.yaml: {f'{key}: ' if key else ''}{reason}"


def _wrong_value(override: str, error: BaseException, arguments: Sequence[str]) -> str:
    written = as_written([override])[0]
    key = written.partition("=")[0].lstrip("+~")
    if written != override:
        return _unknown_key(key, arguments)
    if override.startswith("+component."):
        return _unknown_key(key, [])
    hint = HINTS.get(key.rpartition(".")[2])
    # Inner exceptions still contain OmegaConf's placeholders ($VALUE); the outer exceptions have them filled in.
    causes = [str(cause).splitlines()[0] for cause in _causes(error) if isinstance(cause, OmegaConfBaseException)]
    reason = next((cause.rstrip(".") for cause in causes if "$" not in cause), "does not fit")
    if reason.endswith("is not Optional"):
        reason = "cannot be null"
    elif "is not a subclass of" in reason or reason.startswith("Cannot merge DictConfig"):
        return f"{override}: {_unknown_key(key, []).partition(': ')[2]}"
    return f"{override}: {reason}" + (f"; {hint}" if hint else "")


def _unknown_key(key: str, arguments: Sequence[str]) -> str:
    config = _composed_without(key, arguments)
    if config is None:
        return f"{key}: unknown key"
    choices_of = config.hydra.runtime.choices
    config = OmegaConf.masked_copy(
        config, [str(name) for name in config if name != "hydra" or key.startswith("hydra.")]
    )
    node, path = config, ""
    for name in key.split("."):
        if isinstance(node, DictConfig) and name in node:
            if target := _stands_for(node, name):
                asked = target + key.removeprefix(f"{path}.{name}".lstrip("."))
                return f"{key}: {path}.{name} is that of the model; set {asked} instead"
            node, path = node[name], f"{path}.{name}".lstrip(".")
            continue
        if not isinstance(node, DictConfig) or not node:
            empty = isinstance(node, DictConfig)
            return f"{key}: {path} has no fields; add one as +{key}=VALUE" if empty else f"{key}: {path} has no fields"
        choices = sorted(str(choice) for choice in node if choice not in ("hydra", "_target_"))
        # The fields of a group come from its chosen option.
        option = choices_of.get(path.replace(".", "/"))
        owner = f"{path.replace('.', '/')}={option}" if isinstance(option, str) and path != "component" else path
        if not choices:
            return f"{key}: {owner} has no fields"
        if path == "component" and name in config.model.parts:
            # Every component names those at the ends, at 16 bits.
            choices = [choice for choice in choices if choice not in END_PARTS]
            return (
                f"{key}: this component selects {', '.join(choices)}, not {name}; choose one that does, "
                f"for instance component=all or component={name}"
            )
        told = unknown("part" if path == "component" else "key", name, choices)
        if name in _fields_of_class(node):
            return f"{key}: {owner} does not have this field, though its class does; add it as +{key}=VALUE, or to the yaml"
        return f"{key}: {told}" if owner == path else f"{key}: {told[:-1]}, the fields of {owner}."
    if not isinstance(node, DictConfig):
        return f"{key}: is {'a list' if OmegaConf.is_list(node) else 'one value'}, as in {key}={_written(node)}"
    names = [name for name in map(str, node) if name not in APART.values()]
    return f"{key}: has the fields {', '.join(names)}; set them one by one, and add another as +{key}.FIELD=VALUE"


def _fields_of_class(node: DictConfig) -> Collection[str]:
    """Return the fields of the class that a node is made into; none if it is unknown."""
    try:
        target = str(OmegaConf.to_container(node, resolve=False)["_target_"])  # type: ignore[index,call-overload]
        return declared(READERS.get(target, target)).roles
    except (KeyError, ValueError, ImportError, AttributeError):
        return ()


def _written(value: Any) -> str:
    return f"[{','.join(map(str, value))}]" if OmegaConf.is_list(value) else str(value)


def _stands_for(node: DictConfig, name: str) -> str | None:
    """Return the key that a field refers to by an interpolation like ``${model.generation.caption}``, else None."""
    raw = OmegaConf.to_container(node, resolve=False)
    value = str(raw[name]) if isinstance(raw, dict) else ""
    return value[2:-1] if value.startswith("${model.") and value.endswith("}") else None


def _composed_without(key: str, arguments: Sequence[str]) -> DictConfig | None:
    """Compose without the overrides of ``key``, including the ``hydra`` node.

    Falls back to the defaults if the other overrides fail, too; returns None if even those fail.
    """
    others = [override for override in _overrides(arguments) if override.partition("=")[0].lstrip("+~") != key]
    for overrides in (others, []):
        try:
            return _loader(arguments).load_configuration("config", overrides, RunMode.RUN)
        except (HydraException, OmegaConfBaseException, YAMLError, ValueError):
            continue
    return None


def _loader(arguments: Sequence[str]) -> ConfigLoaderImpl:
    """Create a loader for the package's configuration and for the folder of ``--config-dir`` in ``arguments``."""
    search_path: ConfigSearchPathImpl = create_config_search_path(str(conf_dir()))  # type: ignore[assignment]
    given, _ = get_args_parser().parse_known_args(list(arguments))
    if given.config_dir is not None:
        folder = f"file://{Path(given.config_dir).absolute()}"
        search_path.prepend("command-line", folder, anchor=SearchPathQuery(provider="schema"))
    return ConfigLoaderImpl(search_path)


def _options(group: str, arguments: Sequence[str]) -> list[str]:
    """List the options of ``group``; empty if there is no such group."""
    loader = _loader(arguments)
    return loader.get_group_options(group) if loader.repository.group_exists(group) else []


def _parsed(arguments: Sequence[str]) -> Iterator[tuple[str, Override]]:
    """Yield the arguments that are overrides with valid syntax, each with its parsed form."""
    for argument in arguments:
        if argument.startswith("-") or "=" not in argument:
            continue
        try:
            yield argument, OverridesParser.create().parse_override(argument)
        except OverrideParseException:
            continue


def _overrides(arguments: Sequence[str]) -> list[str]:
    """Return the overrides among ``arguments``; sweeps are replaced by their first value, and the last of a key wins."""
    found: dict[str, str] = {}
    for argument, parsed in _parsed(arguments):
        if (first := _at_first_value(argument, parsed)) is not None:
            found[parsed.get_key_element()] = first
    return list(found.values())


def _at_first_value(argument: str, override: Override) -> str | None:
    if not override.is_sweep_override():
        return argument
    try:
        first = next(override.sweep_string_iterator(), None)
    except HydraException:  # Not enumerable, such as an interval.
        return None
    return None if first is None else f"{override.get_key_element()}={first}"


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause = error.__cause__ or error.__context__
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
