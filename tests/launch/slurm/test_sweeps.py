"""Sweeps as jobs of a real SLURM that kills, requeues and preempts them: no computed result is ever lost."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest

from launch.slurm import scheduler as commands
from tests.commands import Forked
from tests.launch.slurm.cluster import QOS, SMALL_QOS, Cluster
from tests.launch.slurm.places import LAUNCHER, SMALL, Eventually, Place, restarts, states, waiting


def test_the_main_job_is_an_array_of_packed_jobs_and_each_has_a_gpu_of_its_own(
    cluster: Cluster, place: Place, eventually: Eventually
) -> None:
    grid = ("-m", "method=gptq,awq", "bits=2,3,4,8", *SMALL, *LAUNCHER)
    grid += ("hydra.launcher.cells_per_job=5", "hydra.launcher.sbatch={nodelist: node1}")
    table, told = place.run(*grid)
    assert len([line for line in table.splitlines() if line.startswith(("none", "gptq", "awq"))]) == 9
    assert "submitted 2 jobs for 9 cells" in told
    jobs = place.jobs()
    assert {job.partition("_")[2] for job in jobs} == {"0", "1"}
    assert len({job.partition("_")[0] for job in jobs}) == 1
    assert sorted(len(cells) for cells in jobs.values()) == [4, 5]
    seen = {record["id"]: record["hardware"]["scheduler"] for record in place.records().values()}
    assert len(seen) == 9
    for job, cells in jobs.items():
        assert {(seen[cell]["job"], seen[cell]["node"]) for cell in cells} == {(job, "node1")}
    gpus = [{seen[cell]["cuda_visible_devices"] for cell in cells} for cells in jobs.values()]
    assert sorted(gpus, key=str) == [{"0"}, {"1"}]
    eventually(lambda: states(cluster, *jobs) == ["COMPLETED"] * 2, "the jobs end well")

    again, told = place.run(*grid)
    assert again == table
    assert "submitted" not in told
    assert place.jobs() == jobs


@pytest.mark.usefixtures("cluster")
def test_workers_of_one_job_have_a_gpu_each(place: Place) -> None:
    packed = ("hydra.launcher.cells_per_job=10", "hydra.launcher.gpus_per_node=2", "hydra.launcher.workers_per_job=2")
    _, told = place.run("-m", "method=rtn", "bits=2,3,4,5", *SMALL, *LAUNCHER, *waiting(2), *packed)
    assert "submitted 1 job for 5 cells" in told
    (job,) = place.jobs()
    seen = [record["hardware"]["scheduler"] for record in place.records().values()]
    assert {one["job"] for one in seen} == {job}
    assert {one["cuda_visible_devices"] for one in seen} == {"0", "1"}
    assert sorted(one["gpus"] for one in place.workers()) == ["0", "1"]


def test_a_killed_worker_is_replaced_in_its_job(cluster: Cluster, place: Place, eventually: Eventually) -> None:
    command = place.start("-m", "method=rtn", "bits=2,3,4", *SMALL, *LAUNCHER, *waiting(3))
    # The worker has finished the first cell and is in the second.
    eventually(
        lambda: any(one["done"] == 1 and one["cell"] for one in place.workers()), "a worker is in its second cell"
    )
    (worker,) = place.workers()
    os.kill(worker["owner"]["pid"], signal.SIGKILL)
    told = command.communicate(timeout=240)
    assert command.returncode == 0, told
    (job,) = place.jobs()
    assert f"worker {worker['name']} died (SIGKILL); another takes its place" in place.log(job)
    records = place.records()
    assert len(records) == 4
    assert [len(record["attempts"]["reasons"]) for record in records.values() if record["attempts"]["reasons"]] == [1]
    eventually(lambda: states(cluster, job) == ["COMPLETED"], "the job ends well")


def test_preempted_jobs_go_on_later_whether_slurm_requeues_or_cancels_them(
    cluster: Cluster, place: Place, eventually: Eventually
) -> None:
    def start(partition: str, method: str) -> Forked:
        where = (f"hydra.launcher.partition={partition}", "hydra.launcher.cells_per_job=20")
        # Long enough that neither is through when the other has begun; afterwards there is no need to wait.
        wait = (*waiting(8), "+task.again=0")
        return place.start("-m", f"method={method}", "bits=2,3,4,5,6", *SMALL, *LAUNCHER, *where, *wait)

    # In `spare` there are five seconds between signal and end, which is less than a cell needs.
    running = [start("gpu", "rtn"), start("spare", "uniform")]
    eventually(lambda: len(place.jobs()) == 2, "both are submitted")
    gpu, spare = sorted(place.jobs(), key=lambda job: place.jobs()[job] != [], reverse=True)
    eventually(
        lambda: all(set(cells) & set(place.records()) for cells in place.jobs().values()), "both have cells done"
    )
    before = {cell: record["created"] for cell, record in place.records().items()}
    urgent = cluster.run(
        "sbatch", "--parsable", "-p", "urgent", "-N2", "--exclusive", "-o", "/dev/null", "--wrap=sleep 1"
    )
    for command in running:
        told = command.communicate(timeout=240)
        assert command.returncode == 0, told
    assert states(cluster, urgent.strip()) == ["COMPLETED"]
    for job in (gpu, spare):
        assert restarts(cluster, job) == 1
        assert "stopped by SIGTERM" in place.log(job)
    records = place.records()
    assert len(records) == 11  # Both share the cell at full precision.
    # Finished cells are not run again.
    assert before.items() <= {cell: record["created"] for cell, record in records.items()}.items()


def test_a_node_that_dies_loses_one_cell(cluster: Cluster, place: Place, eventually: Eventually) -> None:
    command = place.start(
        "-m", "method=rtn", "bits=2,3,4", *SMALL, *LAUNCHER, *waiting(3), "hydra.launcher.sbatch={nodelist: node1}"
    )
    eventually(
        lambda: any(one["done"] == 1 and one["cell"] for one in place.workers()), "a worker is in its second cell"
    )
    cluster.kill_node("node1")
    before = {cell: record["created"] for cell, record in place.records().items()}
    eventually(lambda: "node1" in cluster.nodes_in("down"), "SLURM notices")
    cluster.start_node("node1")
    told = command.communicate(timeout=240)
    assert command.returncode == 0, told
    (job,) = place.jobs()
    assert restarts(cluster, job) == 1
    records = place.records()
    assert len(records) == 4
    assert before.items() <= {cell: record["created"] for cell, record in records.items()}.items()


def test_whoever_submitted_may_leave_or_die(cluster: Cluster, place: Place, eventually: Eventually) -> None:
    grid = ("-m", "method=rtn", "bits=2,3,4", *SMALL, *LAUNCHER, "hydra.launcher.cells_per_job=2")
    # Held, so that the commands find known jobs in the queue.
    grid += ("hydra.launcher.sbatch={hold: true}",)
    leaves = place.start(*grid)
    eventually(lambda: len(place.jobs()) == 2, "it is submitted")
    jobs = place.jobs()
    leaves.send_signal(signal.SIGINT)
    _, told = leaves.communicate(timeout=240)
    assert leaves.returncode == 0, told
    assert "detached, the jobs go on; python -m launch status" in told

    found = "4 cells are in jobs that are queued or running already"
    dies = place.start(*grid)
    eventually(lambda: found in dies.told(), "it finds the jobs")
    dies.kill()
    dies.communicate()

    comes_back = place.start(*grid)
    eventually(lambda: found in comes_back.told(), "it finds them again")
    cluster.run("scontrol", "release", *jobs)
    table, told = comes_back.communicate(timeout=240)
    assert comes_back.returncode == 0, told
    assert len([line for line in table.splitlines() if line.startswith(("none", "rtn"))]) == 4
    assert place.jobs() == jobs


def test_the_same_command_right_after_scancel_waits_for_the_job_and_goes_on(
    cluster: Cluster, place: Place, eventually: Eventually
) -> None:
    grid = ("-m", "method=rtn", "bits=2,3", *SMALL, *LAUNCHER, "hydra.launcher.cells_per_job=10", *waiting(4))
    place.run(*grid, "hydra.launcher.wait=false")
    ((job, cells),) = place.jobs().items()
    eventually(lambda: place.at_work(job), "it is in a cell")
    cluster.run("scancel", job)
    assert cluster.run("squeue", "-h", "-r", "-o", "%i %T").split() == [job, "COMPLETING"]
    _, told = place.run(*grid)
    assert "waiting for jobs of this sweep that are ending" in told
    assert set(place.records()) == set(cells)
    assert len(place.jobs()) == 2


def test_arrays_are_no_longer_than_the_cluster_allows(cluster: Cluster, place: Place, eventually: Eventually) -> None:
    cluster.configure(MaxArraySize="11")
    grid = ("component.vision.bits=2,3,4,5,6", "component.language.bits=2,3,4,5,6,7,8,16")
    held = ("hydra.launcher.cells_per_job=1", "hydra.launcher.wait=false", "hydra.launcher.sbatch={hold: true}")
    _, told = place.run("-m", "method=rtn", *grid, *SMALL, *LAUNCHER, *held, "hydra.launcher.parallelism=6")
    assert "submitted 41 jobs in 4 arrays for 41 cells" in told
    jobs = place.jobs()
    arrays = sorted({job.partition("_")[0] for job in jobs}, key=int)
    assert [sum(job.startswith(f"{array}_") for job in jobs) for array in arrays] == [11, 11, 11, 8]
    # Six at once are split into two, two, one and one.
    assert [throttle(cluster, array) for array in arrays] == [2, 2, 1, 1]
    last = [f"{arrays[0]}_10", f"{arrays[3]}_7"]
    cluster.run("scontrol", "release", *last)
    eventually(
        lambda: set(place.records()) == {cell for job in last for cell in jobs[job]}, "the last of two arrays ran"
    )
    place.run("cancel", module="launch")
    eventually(lambda: not cluster.run("squeue", "-h").strip(), "nothing is left in the queue")


def test_fewer_at_once_than_arrays_follow_one_another(cluster: Cluster, place: Place) -> None:
    cluster.configure(MaxArraySize="3")
    held = ("hydra.launcher.cells_per_job=1", "hydra.launcher.wait=false", "hydra.launcher.sbatch={hold: true}")
    place.run("-m", "method=rtn", "bits=2,3,4,5,6,7", *SMALL, *LAUNCHER, *held, "hydra.launcher.parallelism=2")
    arrays = sorted({job.partition("_")[0] for job in place.jobs()}, key=int)
    assert len(arrays) == 3
    told = [cluster.run("scontrol", "show", "job", "--oneliner", array) for array in arrays]
    assert [f"Dependency=afterany:{arrays[0]}_" in one for one in told] == [False, False, True]


def throttle(cluster: Cluster, array: str) -> int:
    told = cluster.run("scontrol", "show", "job", "--oneliner", array)
    return int(told.split("ArrayTaskThrottle=")[1].split()[0])


def test_groups_are_joined_where_the_cluster_takes_few_jobs(cluster: Cluster, place: Place) -> None:
    held = ("hydra.launcher.cells_per_job=1", "hydra.launcher.wait=false", "hydra.launcher.sbatch={hold: true}")
    grid = ("-m", "method=rtn", "bits=2,3,4,5", *SMALL, *LAUNCHER, *held)
    _, told = place.run(*grid, f"hydra.launcher.qos={SMALL_QOS}")
    assert "the cluster takes 2 more jobs of yours: 5 groups of cells are joined into as many" in told
    assert sorted(len(cells) for cells in place.jobs().values()) == [2, 3]
    assert cluster.run("squeue", "-h", "-r", "-o", "%q").split() == [SMALL_QOS] * 2
    _, told = place.run(*grid[:2], "bits=6", *grid[3:], f"hydra.launcher.qos={SMALL_QOS}", status=2)
    assert "wait for some to end, or choose another hydra.launcher.account or hydra.launcher.qos" in told


FAILS_TWICE = """#!/bin/bash
# The first two submissions fail; asking what would be taken does not count.
case " $* " in *" --test-only "*) exec {sbatch} "$@" ;; esac
echo x >> {count}
if [ "$(wc -l < {count})" -le 2 ]; then
    {before}
    echo "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation" >&2
    exit 1
fi
exec {sbatch} "$@"
"""


@pytest.mark.parametrize("taken", [False, True], ids=["and nothing was taken", "though its job was taken"])
def test_a_login_node_that_fails_twice_is_asked_again(
    cluster: Cluster, place: Place, tmp_path: Path, taken: bool
) -> None:
    sbatch, count = shutil.which("sbatch"), tmp_path / "count"
    before = f'{sbatch} "$@" > /dev/null' if taken else ":"
    wrapper = tmp_path / "bin" / "sbatch"
    wrapper.parent.mkdir()
    wrapper.write_text(FAILS_TWICE.format(sbatch=sbatch, count=count, before=before))
    wrapper.chmod(0o755)
    place.environment["PATH"] = f"{wrapper.parent}{os.pathsep}{os.environ['PATH']}"
    held = ("hydra.launcher.wait=false", "hydra.launcher.sbatch={hold: true}", "hydra.launcher.cells_per_job=1")
    _, told = place.run("-m", "method=rtn", "bits=3", *SMALL, *LAUNCHER, *held)
    assert told.count("Socket timed out on send/recv operation; trying again in") == 2
    assert "submitted 2 jobs for 2 cells" in told
    assert len(count.read_text().splitlines()) == 3
    # A job that nobody knows of would find nothing to do.
    assert set(cluster.run("squeue", "-h", "-r", "-o", "%i").split()) == set(place.jobs())


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        (
            "partition=gpx",
            "hydra.launcher.partition=gpx: Unknown partition 'gpx'. Did you mean gpu? Choose gpu, spare or",
        ),
        ("account=studi", "hydra.launcher.account=studi: Unknown account 'studi'. Did you mean study?"),
        ("qos=high", f"hydra.launcher.qos=high: Unknown qos 'high'. Choose {QOS} or {SMALL_QOS}."),
        ("gpus_per_node=9", "sbatch says: allocation failure: Requested node configuration is not available"),
        ("time=soon", "hydra.launcher.time=soon: choose minutes"),
    ],
)
@pytest.mark.usefixtures("cluster")
def test_what_cannot_be_is_told_before_any_work(place: Place, setting: str, told: str) -> None:
    _, error = place.run("-m", "method=rtn", "bits=3", *SMALL, *LAUNCHER, f"hydra.launcher.{setting}", status=2)
    assert told in error
    assert not place.store.exists()


def test_a_machine_without_slurm_is_told_before_any_work(place: Place, tmp_path: Path) -> None:
    place.environment["PATH"] = str(tmp_path)
    _, error = place.run("-m", "method=rtn", "bits=3", *SMALL, *LAUNCHER, status=2)
    assert "hydra/launcher=slurm: this machine has no sbatch; run the command on a login node of the cluster" in error
    assert not place.store.exists()


def test_a_folder_that_slurm_would_rename_is_an_error(cluster: Cluster, place: Place) -> None:
    _, error = place.run("-m", "method=rtn", "bits=3", *SMALL, *LAUNCHER, "hydra.launcher.folder=100%j", status=2)
    assert "SLURM replaces % and \\ in names of files" in error
    assert commands.queued("anything") == {}
    assert cluster.run("squeue", "-h") == ""
