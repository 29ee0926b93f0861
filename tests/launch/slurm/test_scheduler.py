"""The requests of ``launch.slurm.scheduler`` to a real SLURM, and its reading of the answers."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from launch.slurm import cluster as offers
from launch.slurm import scheduler as commands
from launch.slurm.scheduler import ClusterError, Job, JobId
from mmq_sweeps.errors import ConfigError
from mmq_sweeps.reporting.progress import warnings_to
from tests.commands import run_forked
from tests.launch.slurm.cluster import ACCOUNT, INSTALL, OTHER_ACCOUNT, QOS, SMALL_QOS, Cluster


def submit(*flags: str, script: str = "sleep 60") -> JobId:
    return JobId.parse(commands.run("sbatch", "--parsable", "--output=/dev/null", *flags, f"--wrap={script}").strip())


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("partition", "gpx", "Did you mean gpu? Choose gpu, spare or urgent."),
        ("partition", "gpu,nights", "hydra.launcher.partition=nights: "),
        ("account", "studi", f"Did you mean {ACCOUNT}?"),
        ("qos", "high", f"Choose {QOS} or {SMALL_QOS}."),
        ("constraint", "small&a100*2", "Unknown feature 'a100'. Choose small."),
    ],
)
@pytest.mark.usefixtures("cluster")
def test_what_the_cluster_lacks_is_told_with_the_choices(key: str, value: str, told: str) -> None:
    (problem,) = offers.problems({key: value})
    assert problem.startswith(f"hydra.launcher.{key}=")
    assert told in problem


@pytest.mark.usefixtures("cluster")
def test_what_the_cluster_has_is_no_problem() -> None:
    asked = {"partition": "gpu,spare", "account": OTHER_ACCOUNT, "qos": SMALL_QOS, "constraint": "[small*2]"}
    assert offers.problems(asked) == []
    assert offers.problems(dict.fromkeys(asked)) == []


def test_sbatch_is_asked_without_submitting(cluster: Cluster) -> None:
    assert offers.would_take(["--partition=gpu", "--gpus-per-node=2"]) is None
    assert "not available" in (offers.would_take(["--gpus-per-node=3"]) or "")
    assert cluster.run("squeue", "-h") == ""


@pytest.mark.usefixtures("cluster")
def test_limits_are_read() -> None:
    assert offers.max_array_size() == 1001
    assert commands.kill_wait_seconds() == 5
    assert offers.submit_limit(ACCOUNT, None) is None
    assert offers.submit_limit(ACCOUNT, SMALL_QOS) == 2
    job = submit(f"--qos={SMALL_QOS}")
    assert offers.submit_limit(ACCOUNT, SMALL_QOS) == 1
    commands.cancel([job])


@pytest.mark.usefixtures("cluster")
def test_tasks_of_an_array_are_seen_one_by_one_and_cancelled_alone(eventually: Callable[..., None]) -> None:
    array = submit("--array=0-9", "--job-name=mmq-one", "--comment=token").number
    other = submit("--job-name=mmq-other")
    ids = {JobId(array, index) for index in range(10)}
    assert set(commands.queued("mmq-one")) == ids
    assert commands.commented("token") == [array]
    eventually(lambda: commands.queued("mmq-one")[JobId(array, 0)].state == "RUNNING", "a task runs")
    # Ended and never seen jobs are let be.
    commands.cancel([JobId(array, 0), JobId(array, 9), JobId(999999), JobId(999999, 1)])
    left = ids - {JobId(array, 0), JobId(array, 9)}
    eventually(lambda: set(commands.queued("mmq-one")) == left, "two tasks have ended")
    assert set(commands.queued("mmq-other")) == {other}
    commands.cancel_arrays([array, other.number])
    eventually(lambda: not commands.queued("mmq-one"), "all have ended")


@pytest.mark.usefixtures("cluster")
def test_a_requeued_job_is_told_from_one_that_a_person_cancelled(eventually: Callable[..., None]) -> None:
    # Deaf to TERM, so that there is time to look while it is being ended.
    job = submit("--requeue", script="trap '' TERM; sleep 60 & wait; sleep 60")
    eventually(lambda: commands.job(job).state == "RUNNING", "it runs")
    assert not commands.job(job).cancelled(0)
    commands.requeue(job)
    assert commands.job(job).restarts == 1
    assert not commands.job(job).cancelled(0)
    eventually(lambda: commands.job(job).state == "RUNNING", "it runs again")
    commands.cancel([job])
    assert commands.job(job).ending
    assert commands.job(job).cancelled(1)


def job_that_ended(**told: object) -> Job:
    usual = {"state": "COMPLETING", "restarts": 0, "preempted": False, "seconds_left": 0.0, "seconds_over": -60.0}
    return Job(**{**usual, **told})  # type: ignore[arg-type]


def test_only_a_person_cancels() -> None:
    assert job_that_ended().cancelled(0)
    assert job_that_ended(state="CANCELLED").cancelled(0)
    assert not job_that_ended(state="RUNNING").cancelled(0)
    assert not job_that_ended(preempted=True).cancelled(0)
    assert not job_that_ended(seconds_over=0.0).cancelled(0)
    assert not job_that_ended(restarts=1).cancelled(0)
    assert not job_that_ended(state="NODE_FAIL").cancelled(0)


@pytest.mark.usefixtures("cluster")
def test_a_job_that_is_unknown_is_an_error() -> None:
    with pytest.raises(ClusterError, match="Invalid job id"):
        commands.job(JobId(999999))


def test_a_machine_without_slurm_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="has no sbatch; run the command on a login node of the cluster, or choose"):
        offers.require()


def test_without_slurm_its_tests_are_skipped_with_the_command_that_installs_it(tmp_path: Path) -> None:
    root = Path(__file__).parents[3]
    # Its own settings: not those of CI, which takes no skip, nor a worker's of this run.
    environment = {key: value for key, value in os.environ.items() if key != "CI" and not key.startswith("PYTEST_")}
    arguments = ["-n", "0", "--assert=plain", "-p", "no:cacheprovider", f"{Path(__file__)}", "-k", "limits_are_read"]
    done = run_forked("pytest", arguments, root, {**environment, "PATH": str(tmp_path)})
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 skipped" in done.stdout
    assert INSTALL in done.stdout.replace("\n", "")


def test_a_busy_cluster_is_asked_again_and_a_refusal_is_not() -> None:
    told: list[str] = []
    answers = iter(
        [ClusterError("sbatch: Socket timed out"), ClusterError("sbatch: Zero Bytes were transmitted"), "42"]
    )

    def attempt() -> str:
        answer = next(answers)
        if isinstance(answer, ClusterError):
            raise answer
        return answer

    with warnings_to(told.append):
        assert commands.patiently(attempt, [0, 0, 0]) == "42"
    assert [text.split(";")[0] for text in told] == [
        "warning: sbatch: Socket timed out",
        "warning: sbatch: Zero Bytes were transmitted",
    ]
    for message in ("Invalid qos specification", "Job violates accounting/QOS policy (job submit limit)"):
        answers = iter([ClusterError(message), "too late"])
        with pytest.raises(ClusterError, match=re.escape(message)):
            commands.patiently(attempt, [0])
    answers = iter([ClusterError("Unable to contact slurm controller")] * 3)
    with pytest.raises(ClusterError, match="Unable to contact"):
        commands.patiently(attempt, [0, 0])


@pytest.mark.parametrize(
    ("text", "minutes"),
    [(90, 90), ("90", 90), ("1:30", 2), ("1:30:00", 90), ("2-12", 3600), ("2-12:30", 3630), ("2-12:30:01", 3631)],
)
def test_times_are_read_as_sbatch_reads_them(text: object, minutes: int) -> None:
    assert commands.minutes(text) == minutes


@pytest.mark.parametrize("text", ["", "soon", "4h", "-1", 0, True, "0", "1:2:3:4"])
def test_other_times_are_errors(text: object) -> None:
    with pytest.raises(ValueError, match=f"^{text}$"):
        commands.minutes(text)


def test_a_command_that_cannot_be_started_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ClusterError, match="no-such-command"):
        commands.run("no-such-command")

    def slow(*_: object, **__: object) -> None:
        raise subprocess.TimeoutExpired("squeue", 60)

    monkeypatch.setattr(subprocess, "run", slow)
    with pytest.raises(ClusterError, match="squeue did not answer"):
        commands.run("squeue")
