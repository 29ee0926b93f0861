"""Actions of clusters on jobs: each hits the intended job, and whoever watches is told the reason."""

# ruff: noqa: F811 - fixtures are imported, and asked for by their names

from __future__ import annotations

import re
import shlex
from collections import Counter
from pathlib import Path

import pytest

from tests.launch.slurm.cluster import Cluster
from tests.launch.slurm.conftest import cluster, eventually, place, warm_workers  # noqa: F401
from tests.launch.slurm.places import LAUNCHER, SMALL, Eventually, Place, number_of, restarts, states

pytestmark = pytest.mark.slurm


def test_the_task_with_the_arrays_own_id_is_timed_out_preempted_and_cancelled_alone(
    cluster: Cluster, place: Place, eventually: Eventually, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    gate.mkdir()

    def let_pass(job: str, how: str = "one") -> None:
        (gate / "part").write_text(how)
        (gate / "part").rename(gate / job.partition("_")[2])

    grid = ("-m", "method=rtn", "component.vision.bits=2,3,4,5,6,7,8", "component.language.bits=2,3", *SMALL, *LAUNCHER)
    grid += ("task._target_=tests.launch.slurm.waiting.GatedTask", f"+task.gate={gate}")
    grid += ("hydra.launcher.cells_per_job=null", "hydra.launcher.jobs=3", "hydra.launcher.signal_seconds=60")
    place.run(*grid, "hydra.launcher.wait=false")
    jobs = place.jobs()
    eventually(lambda: all(place.at_work(job) for job in jobs), "all three tasks are in a cell")
    # Only now has each task a number of its own; the last to start keeps the array's.
    (own,) = [job for job in jobs if number_of(cluster, job) == job.partition("_")[0]]
    others = [job for job in jobs if job != own]
    # A GPU each, and two on a node: it has a node to itself, so that preempting it needs to touch no other.
    node = cluster.run("squeue", "-h", "-o", "%N", f"--job={own}").strip()

    let_pass(own)
    eventually(lambda: set(jobs[own]) & set(place.records()), "it has a cell done")
    # SLURM looks every half minute, and its signal comes a minute before the end: at its next look.
    ran = int(cluster.run("squeue", "-h", "-O", "TimeUsed", f"--job={own}").split(":")[0]) + 1
    cluster.run("scontrol", "update", f"JobId={own}", f"TimeLimit={ran + 1}")
    eventually(lambda: "SIGUSR2: stopping after the cells at hand" in place.log(own), "its time is over")
    let_pass(own)
    eventually(lambda: restarts(cluster, own) == 1, "it is put back into the queue")
    assert [restarts(cluster, job) for job in others] == [0, 0]
    cluster.run("scontrol", "update", f"JobId={own}", "TimeLimit=10")

    eventually(lambda: place.at_work(own), "it goes on")
    cluster.run("sbatch", "-p", "urgent", "-w", node, "--exclusive", "-o", "/dev/null", "--wrap=sleep 1")
    eventually(lambda: "SIGTERM: stopping after the cells at hand" in place.log(own), "it is preempted")
    let_pass(own)
    eventually(lambda: restarts(cluster, own) == 2, "it is put back into the queue again")

    eventually(lambda: place.at_work(own), "it goes on again")
    done = {cell: record["created"] for cell, record in place.records().items()}
    assert len(done) == 3
    assert set(done) <= set(jobs[own])
    cluster.run("scancel", own)
    eventually(lambda: states(cluster, own) == ["CANCELLED"], "it is cancelled")
    # SLURM calls the task cancelled while its supervisor still looks.
    eventually(
        lambda: "cancelled by hand: not put back into the queue" in place.log(own), "it says that it was cancelled"
    )

    for job in others:
        let_pass(job, "all")
    eventually(lambda: states(cluster, *others) == ["COMPLETED"] * 2, "the others end well")
    eventually(lambda: not cluster.run("squeue", "-h").strip(), "SLURM is done with all of them")
    assert [restarts(cluster, job) for job in (*others, own)] == [0, 0, 2]
    workers = Counter(one["job"] for one in place.workers())
    assert workers == {own: 3, **dict.fromkeys(others, 1)}
    assert {cell: record["created"] for cell, record in place.records().items()}.items() >= done.items()
    assert set(place.records()) == {*done, *(cell for job in others for cell in jobs[job])}

    for index in ("0", "1", "2", "single"):
        let_pass(f"_{index}", "all")
    place.run(*grid)
    assert len(place.records()) == 15
    again = {cell for job, cells in place.jobs().items() if job not in jobs for cell in cells}
    assert again == set(jobs[own]) - set(done)
    ended = Counter(
        line.split()[1]
        for log in place.store.glob("sweeps/*/logs/*.log")
        for line in log.read_text().splitlines()
        if " ended: " in line
    )
    assert set(ended.values()) == {1}
    assert len(ended) == 15


def test_a_job_in_the_queue_is_queued_and_one_that_no_worker_came_of_says_why(
    cluster: Cluster, place: Place, eventually: Eventually
) -> None:
    grid = ("-m", "method=rtn", "bits=2,3,4", *SMALL, *LAUNCHER, "hydra.launcher.cells_per_job=2")
    fails = 'hydra.launcher.setup=["echo no module named cuda/99 >&2", "exit 7"]'
    _, told = place.run(*grid, fails, "hydra.launcher.wait=false", "hydra.launcher.sbatch={hold: true}")
    jobs = place.jobs()
    # The printed command can be run as it is, though the store's folder has a space in its name.
    (watch,) = re.findall(r"python -m launch status .*? --watch", told)
    assert shlex.split(watch)[5] == str(place.store)

    shown, _ = place.run(*shlex.split(watch)[3:-1], module="launch")
    assert "jobs: 2 pending (JobHeldUser)" in shown
    assert "queued: no worker runs before SLURM starts a job" in shown
    assert "retry" not in shown

    cluster.run("scontrol", "release", *jobs)
    eventually(lambda: states(cluster, *jobs) == ["FAILED"] * 2, "both end in their first line")
    shown, _ = place.run("status", module="launch")
    first = sorted(jobs)[0]
    log = place.store.with_name("runs.jobs") / jobs_folder(place) / f"{first}_0_log.err"
    said = (
        f"jobs {', '.join(sorted(jobs))} ended (FAILED, exit status 7) with 4 cells that have not run; the end of {log}:\n"
        "    no module named cuda/99\n"
    )
    assert said in shown
    shown, _ = place.run("logs", jobs[first][0], module="launch")
    assert f"== job {first}: {log}\nno module named cuda/99\n" in shown

    # In the foreground the same is told at once, here of a node that has not the Python that was asked for.
    _, told = place.run(*grid, "hydra.launcher.python=/nowhere/python", status=1)
    assert "/nowhere/python" in told.split("ended (FAILED, exit status ")[1].split("the end of ")[1]
    assert "4 cells are missing; run the same command again to go on" in told


def jobs_folder(place: Place) -> str:
    (folder,) = place.folder.glob("runs.jobs/*")
    return folder.name
