"""Write a user's own method and its yaml outside the package."""

from __future__ import annotations

from pathlib import Path


def write_method(folder: Path, name: str, at_three_bits: str) -> str:
    """Write round to nearest as the method ``name``, which runs the statement ``at_three_bits`` before it.

    Returns the override that lets Hydra find the yaml; ``folder`` has to be on PYTHONPATH.
    """
    (folder / f"{name}.py").write_text(
        "import os, signal\n"
        "from dataclasses import dataclass\n"
        "from pathlib import Path\n"
        "from mmq_sweeps.methods.rtn import RoundToNearest\n\n"
        "@dataclass(frozen=True)\n"
        f"class {name.title()}(RoundToNearest):\n"
        "    def quantize(self, weights, stats, format):\n"
        "        if format.bits == 3:\n"
        f"            {at_three_bits}\n"
        "        return super().quantize(weights, stats, format)\n"
    )
    (folder / "own" / "method").mkdir(parents=True)
    (folder / "own" / "method" / f"{name}.yaml").write_text(
        f"_target_: {name}.{name.title()}\ngroup_size: channel\nsymmetric: false\n"
    )
    return f"hydra.searchpath=['file://{folder}/own']"
