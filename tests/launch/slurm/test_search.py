"""A search whose batches are jobs of a real SLURM."""

from __future__ import annotations

import json

import pytest

from tests.launch.slurm.places import LAUNCHER, SMALL, Place

SEARCH = (
    "-m", "hydra/sweeper=budget", "hydra.sweeper.max_bpw=6", "hydra.sweeper.items=16", "hydra.sweeper.candidates=2",
    "method=rtn", "bits=3,8", *SMALL, *LAUNCHER,
)  # fmt: skip


@pytest.mark.usefixtures("cluster")
def test_batches_are_jobs_and_the_same_command_goes_on(place: Place) -> None:
    _, told = place.run(*SEARCH, "hydra.launcher.wait=false")
    assert "run the same command again to go on when they have ended" in told
    (path,) = place.store.glob("sweeps/*/search.json")
    assert json.loads(path.read_text())["state"] == "halted"

    answer, told = place.run(*SEARCH, "--json")
    assert "was begun before; it goes on" in told
    found = json.loads(answer)
    records = place.records()
    assert all(record["hardware"]["scheduler"]["job"] in place.jobs() for record in records.values())
    assert found["answers"][0]["cell"] in records
    assert found["answers"][0]["bpw"] <= 6
