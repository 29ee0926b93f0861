"""Import modules that commands import late: the embedded model's classes, which transformers reads on demand, and more."""

import importlib
from contextlib import suppress

import hypothesis  # noqa: F401 - it looks for references to its arguments, which are not found once they are frozen
from transformers import AutoProcessor, Blip2ForConditionalGeneration  # noqa: F401
from transformers.conversion_mapping import get_checkpoint_conversion_mapping

from tests import configurations
from tests.commands import keep_what_is_imported, write_without_waiting

# All but ``__main__``, which runpy runs anew.
LATE = [
    "antlr4.LL1Analyzer", "launch.dispatch.local", "launch.monitor.live_table", "launch.planning.plan_table",
    "launch.planning.preflight", "launch.plugin.launchers", "launch.plugin.sweeper", "mmq_sweeps.config.hydra_errors",
    "mmq_sweeps.config.overrides", "mmq_sweeps.data.scenes", "mmq_sweeps.metrics.captions.cider",
    "mmq_sweeps.reporting.versions", "mmq_sweeps.tasks.caption", "omegaconf._impl",
]  # fmt: skip
for name in LATE:
    importlib.import_module(name)
with suppress(ImportError):  # It needs an extra.
    import analysis.verbs  # noqa: F401

# The files that every command reads and compiles before its first line.
configurations.parse_once()
configurations.composed()
get_checkpoint_conversion_mapping("blip-2")
write_without_waiting()
keep_what_is_imported()
