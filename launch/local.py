"""The default launcher: the cells of a sweep on this machine, one after the other in this process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from launch.plan import Plan
from mmq_sweeps.progress import Progress
from mmq_sweeps.store import Store


def dispatch(plan: Plan, store: Store, sweep_id: str, launcher: Mapping[str, Any]) -> bool:  # noqa: ARG001
    """Run the pending cells of ``plan``; true, since all have ended when this returns."""
    # Imports torch, which a sweep that only shows its table does not need.
    from mmq_sweeps.execute import execute

    with Progress(len(plan.sweep.cells)) as progress:
        progress.skip(plan.done)
        execute(
            plan.pending,
            plan.sweep,
            replace(store, say=lambda text: progress.say(f"warning: {text}")),
            progress,
            lambda record: None,
        )
    return True
