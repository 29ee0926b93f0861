"""Command line: compose the configuration with Hydra, run it, and print errors as a readable line per problem."""

from __future__ import annotations

import os
import sys
import warnings

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from launch.planning.structures import assignment_source
from launch.plugin import launchers
from launch.plugin.budget import check_multirun
from launch.plugin.compose import check_added, check_composed
from launch.plugin.sweeper import check_single
from launch.start import check_settings, start
from launch.sweep_file import typed
from mmq_sweeps.config import schema
from mmq_sweeps.config.hydra_errors import explain, is_bad_input
from mmq_sweeps.config.overrides import as_written, kept_apart, swept_with_group
from mmq_sweeps.config.paths import conf_dir
from mmq_sweeps.config.sweep import plan
from mmq_sweeps.errors import ConfigError, StoreError, output_may_close
from mmq_sweeps.reporting.progress import warnings_to
from mmq_sweeps.reporting.versions import told_versions

BAD_INPUT, INTERRUPTED = 2, 130
# Options that are written for overrides.
SHORT = {"--json": "output=json", "--dry-run": "hydra.launcher.dry_run=true"}


@hydra.main(config_path=str(conf_dir()), config_name="config", version_base="1.3")
def compose_and_run(config: DictConfig) -> None:
    """Plan and run the cell of ``config``; exit with a non-zero status if it fails or the input is bad."""
    try:
        check_composed(config, HydraConfig.get())
        check_multirun(HydraConfig.get(), sys.argv[1:])
        check_single(HydraConfig.get(), sys.argv[1:])
        check_added(GlobalHydra.instance().config_loader(), HydraConfig.get())
        settings = launchers.settings_of(HydraConfig.get().launcher)
        check_settings(settings)
        status = start(plan([config], assignment_source(HydraConfig.get())), settings, typed(sys.argv))
    except (ConfigError, StoreError, OmegaConfBaseException) as error:
        # Handled here, because Hydra prints a line of its own about an exception that leaves this function.
        tell(error)
        status = BAD_INPUT
    if status:
        raise SystemExit(status)


def tell(error: BaseException) -> None:
    """Write ``error`` to standard error, a line per problem."""
    sys.stderr.writelines(f"error: {line}\n" for line in explain(error, as_written(sys.argv[1:])))


def options_first(arguments: list[str]) -> list[str]:
    """Move overrides behind the options, because Hydra's parser rejects options between overrides."""
    given, left = get_args_parser().parse_known_args(arguments)
    if any(argument.startswith("-") for argument in left):
        return arguments  # Hydra reports the unknown option.
    overrides = [*given.overrides, *left]
    options = list(arguments)
    for override in overrides:
        options.remove(override)
    return [*options, *overrides]


def main() -> None:
    """Run ``sys.argv``. Exit status: 0 success, 1 a cell failed, 2 bad input, 130 interrupted."""
    if "--version" in sys.argv[1:]:
        sys.stdout.write(f"{told_versions()}\n")
        return
    given = [SHORT.get(argument, argument) for argument in sys.argv[1:]]
    arguments = kept_apart(options_first(given))
    sweeps = any(argument in ("-m", "--multirun") for argument in arguments)
    sys.argv[1:] = swept_with_group(arguments) if sweeps else arguments
    # Waiting OpenMP threads sleep instead of spinning; with spinning, a cell takes fifty times as long if all cores are busy
    # (docs/decisions.md). Torch reads this when it is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    wants_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    # Makes Hydra raise the exception to be explained below, instead of printing a chain of exceptions and exiting.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    schema.register()
    launchers.register()
    try:
        with warnings.catch_warnings(), warnings_to(), output_may_close():
            # check_composed reports it as an error.
            warnings.filterwarnings("ignore", "provider=hydra.searchpath")
            compose_and_run()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; finished cells are in the store, run the same command again to go on\n")
        raise SystemExit(INTERRUPTED) from None
    except (ConfigError, StoreError, HydraException, OmegaConfBaseException, YAMLError, OSError, ValueError) as error:
        if wants_traceback or not is_bad_input(error):
            raise
        tell(error)
        raise SystemExit(BAD_INPUT) from None


if __name__ == "__main__":
    main()
