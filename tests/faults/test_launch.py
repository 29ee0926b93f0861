"""Launching and watching: a fault stays with its cell, job or user, and the printed text is the intended text."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from omegaconf import DictConfig
from rich.console import Console

from launch import sweep_file
from launch.commands import logs
from launch.commands import status as status_verb
from launch.commands import store as store_verb
from launch.dispatch import slurm
from launch.monitor import state_table
from launch.monitor.sweep_state import SweepReader
from launch.slurm import jobs, scheduler
from launch.slurm.jobs import Submitted
from launch.slurm.scheduler import ClusterError, JobId, Queued
from launch.start import run_sweep
from mmq_sweeps.config.sweep import plan
from mmq_sweeps.errors import ConfigError, StoreError
from mmq_sweeps.identity.cell import digest
from mmq_sweeps.reporting import table
from mmq_sweeps.reporting.progress import Progress
from mmq_sweeps.store.attempts import CrashCounter
from mmq_sweeps.store.store import Store
from tests.conftest import SMALL
from tests.launch import cells as made
from tests.launch.stores import launched, worker

CELLS = made.grid(2, 3)
SLURM = "hydra_plugins.launch.slurm.SlurmLauncher"
HERE = {"_target_": "hydra_plugins.launch.local.LocalLauncher", "check": False}
# Characters that a shell or rich would interpret.
NASTY = "my runs/it's $HOME [front] :smile: #1"


def shown(store: Store, sweep_id: str) -> str:
    console = Console(width=100, force_terminal=False)
    with console.capture() as captured:
        state_table.show(SweepReader(store, sweep_id)(), console)
    return captured.get()


# Names of jobs


def test_a_task_of_an_array_is_named_by_array_and_task_and_a_single_job_by_its_number() -> None:
    own = {"SLURM_JOB_ID": "44", "SLURM_ARRAY_JOB_ID": "44", "SLURM_ARRAY_TASK_ID": "2"}
    assert str(JobId.here(own)) == "44_2"
    assert str(JobId.here({**own, "SLURM_JOB_ID": "46", "SLURM_ARRAY_TASK_ID": "0"})) == "44_0"
    assert str(JobId.here({"SLURM_JOB_ID": "45"})) == "45"
    assert JobId.here({}) is None
    assert [str(JobId.parse(text)) for text in ("44_2", "45")] == ["44_2", "45"]
    with pytest.raises(ValueError, match="invalid literal"):
        JobId.parse("44_[2-5]")
    assert sorted([JobId(44, 10), JobId(44, 9)]) == [JobId(44, 9), JobId(44, 10)]


def test_the_state_of_a_task_is_its_own_though_others_of_the_array_are_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, ...]] = []

    def answer(*command: str) -> str:
        asked.append(command)
        return (
            "JobId=44 ArrayJobId=44 ArrayTaskId=1 JobState=RUNNING Restarts=2\n"
            "JobId=45 ArrayJobId=44 ArrayTaskId=0 JobState=COMPLETED Restarts=0\n"
        )

    monkeypatch.setattr(scheduler, "run", answer)
    assert scheduler.job(JobId(44, 1)).state == "RUNNING"
    assert scheduler.job(JobId(44, 0)).state == "COMPLETED"
    scheduler.requeue(JobId(44, 1))
    assert [command[-1] for command in asked] == ["44_1", "44_0", "44_1"]
    with pytest.raises(ClusterError, match="told of 2 jobs, 0 of them 44_2"):
        scheduler.job(JobId(44, 2))


# A cell that cannot run


def statuses(folder: Path) -> dict[str, list[str]]:
    """Return the messages of failed cells by the cells' names; the list is empty for cells that are done."""
    found: dict[str, list[str]] = {}
    for record in Store.reading(folder).records():
        name = " ".join([record.names["model"], record.names["method"]])
        found.setdefault(name, []).extend([record.error["message"]] if record.error else [])
    return found


def test_a_cell_that_cannot_run_fails_alone_with_its_sentence(
    composed: Callable[..., DictConfig], tmp_path: Path
) -> None:
    common = (*SMALL, "task.limit=4", f"store.dir={tmp_path / 'runs'}", "bits=4")
    configs = [
        composed("method=rtn", "method.group_size=32", *common),
        composed("method=uniform", *common),
        composed("method=hqq", "method.group_size=48", *common),
        composed("method=rtn", "model.name=lost", "model.class_name=NoSuchModel", *common),
        composed("method=rtn", "model.name=elsewhere", "model.parts.language.module=[nowhere]", *common),
    ]
    assert run_sweep(configs, launcher=HERE) == 1
    found = statuses(tmp_path / "runs")
    assert found["tiny_blip2 none"] == found["tiny_blip2 rtn"] == found["tiny_blip2 uniform"] == []
    (uneven,) = found["tiny_blip2 hqq"]
    assert "group_size=48 does not divide 64 input columns" in uneven
    for model, word in (("lost", "NoSuchModel"), ("elsewhere", "nowhere")):
        # The cell and its full-precision baseline, which fails for the same reason.
        (message,) = found[f"{model} rtn"]
        assert word in message
        assert found[f"{model} none"] == [message]


def test_a_model_whose_loading_kills_its_processes_fails_its_own_cells(
    composed: Callable[..., DictConfig], tmp_path: Path
) -> None:
    common = (*SMALL, "task.limit=4", f"store.dir={tmp_path / 'runs'}", "bits=4", "method=rtn")
    configs = [composed(*common), composed("model.name=huge", "model.dtype=bfloat16", *common)]
    sweep = plan(configs)
    huge = [cell for cell in sweep.cells if cell.names["model"] == "huge"]
    assert len({digest(cell.model) for cell in huge}) == 1
    store = Store.open(tmp_path / "runs")
    # As four processes leave it that were killed while they loaded the model for its first cell.
    died = [{"host": "node1", "process": number, "begun": ""} for number in range(4)]
    for cell in huge:
        store.note(CrashCounter.of_work(store, f"{sweep.id}-load-{cell.id}").name, {"unended": died})
    assert run_sweep(configs, launcher=HERE) == 1
    found = statuses(tmp_path / "runs")
    assert found["tiny_blip2 none"] == found["tiny_blip2 rtn"] == []
    for name in ("huge none", "huge rtn"):
        (message,) = found[name]
        assert "model=huge: the process that loaded it was killed 4 times, as by a lack of memory" in message


def test_with_the_check_a_cell_that_cannot_run_keeps_all_from_running(
    composed: Callable[..., DictConfig], tmp_path: Path
) -> None:
    common = (*SMALL, f"store.dir={tmp_path / 'runs'}", "bits=4", "method=rtn")
    configs = [composed(*common), composed("method.group_size=48", *common)]
    with pytest.raises(ConfigError, match="group_size=48 does not divide 64 input columns"):
        run_sweep(configs, launcher={**HERE, "check": True})
    store = Store.reading(tmp_path / "runs")
    assert store.records() == []
    now = SweepReader(store, sweep_file.find(store.root))()
    assert (now.count("refused"), now.count("queued"), now.ended) == (3, 0, True)
    assert all("group_size=48 does not divide" in problem for problem in now.refused)


# Jobs in the queue, and those that ended too soon


@pytest.fixture
def submitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Store, str, dict[JobId, Queued]]:
    """Return a store and a sweep of two jobs, and the queue, which is empty."""
    store = Store.open(tmp_path / "runs")
    sweep_id = launched(store, made.sweep(CELLS), groups=2, launcher=SLURM)
    ids = [cell.id for cell in CELLS]
    for task, cells in enumerate((ids[:4], ids[4:])):
        jobs.note(
            store, sweep_id, Submitted(JobId(44, task), tuple(cells), f"2026-01-31T12:00:0{task}", tmp_path / "logs")
        )
    queue: dict[JobId, Queued] = {}
    monkeypatch.setattr(scheduler, "queued", lambda name: dict(queue) if name == f"mmq-{sweep_id}" else {})
    monkeypatch.setattr(scheduler, "ended_as", lambda asked: dict.fromkeys(asked, "FAILED, exit status 7"))
    return store, sweep_id, queue


Sweep = tuple[Store, str, dict[JobId, Queued]]


@pytest.mark.parametrize("reason", ["Resources", "Priority", "BeginTime", "QOSMaxJobsPerUserLimit"])
def test_cells_of_a_job_that_waits_are_queued_with_slurms_reason(submitted: Sweep, reason: str) -> None:
    store, sweep_id, queue = submitted
    queue |= {JobId(44, task): Queued(JobId(44, task), "PENDING", reason) for task in (0, 1)}
    text = shown(store, sweep_id)
    assert f"jobs: 2 pending ({reason})\nqueued: no worker runs before SLURM starts a job\n" in text
    assert "retry" not in text
    queue[JobId(44, 0)] = Queued(JobId(44, 0), "RUNNING", "None")
    text = shown(store, sweep_id)
    assert f"jobs: 1 running, 1 pending ({reason})\nno worker has begun; a job that runs starts its workers\n" in text


def test_a_job_that_ended_before_its_cells_is_quoted_with_its_log(submitted: Sweep) -> None:
    store, sweep_id, queue = submitted
    queue[JobId(44, 0)] = Queued(JobId(44, 0), "RUNNING", "None")
    log = store.root.parent / "logs" / "44_1_0_log.err"
    log.parent.mkdir()
    log.write_text(
        "x\n" * 99 + "bash: line 9: python: command not found\n\nsrun: error: node1: task 0: Exited with 127\n"
    )
    text = shown(store, sweep_id)
    assert f"job 44_1 ended (FAILED, exit status 7) with 4 cells that have not run; the end of {log}:\n" in text
    assert "    bash: line 9: python: command not found\n    srun: error: node1: task 0: Exited with 127\n" in text
    assert text.count("    x\n") == jobs.QUOTED_LINES - 2
    assert "44_0" not in text
    assert state_table.as_json(SweepReader(store, sweep_id)())["jobs"]["failed"][0]["log"] == str(log)
    # Another job has its cells by now.
    jobs.note(store, sweep_id, Submitted(JobId(50), tuple(cell.id for cell in CELLS[4:]), "2026-01-31T13", log.parent))
    queue[JobId(50)] = Queued(JobId(50), "PENDING", "Priority")
    assert "ended" not in shown(store, sweep_id).replace("% ended", "")


def test_jobs_that_failed_alike_are_told_together_and_one_without_a_log_names_the_folder(submitted: Sweep) -> None:
    store, sweep_id, _ = submitted
    folder = store.root.parent / "logs"
    assert (
        f"jobs 44_0, 44_1 ended (FAILED, exit status 7) with 8 cells that have not run and wrote nothing in {folder}"
        in (shown(store, sweep_id))
    )


def test_watching_ends_when_all_jobs_have(
    submitted: Sweep, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store, sweep_id, queue = submitted
    queue[JobId(44, 0)] = Queued(JobId(44, 0), "RUNNING", "None")
    looks = iter(range(50))

    def pause(_: float) -> None:
        if next(looks) == 5:
            queue.clear()

    monkeypatch.setattr(jobs, "QUEUE_SECONDS", 0.0)
    monkeypatch.setattr(status_verb.time, "sleep", pause)
    asked = argparse.Namespace(max_bpw=None, store=store.root, sweep=sweep_id, watch=True, all=False, json=False)
    assert status_verb.run(asked) == 1
    assert "jobs 44_0, 44_1 ended" in capsys.readouterr().out


def test_a_machine_that_cannot_ask_slurm_says_so(submitted: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    store, sweep_id, _ = submitted

    def absent(_: str) -> dict[JobId, Queued]:
        raise ClusterError("squeue: No such file or directory")

    monkeypatch.setattr(scheduler, "queued", absent)
    text = shown(store, sweep_id)
    assert "jobs: squeue: No such file or directory\n" in text
    assert "whether jobs are queued is not known on this machine" in text


def test_jobs_of_the_same_sweep_in_another_store_are_not_this_ones(submitted: Sweep) -> None:
    store, sweep_id, queue = submitted
    queue[JobId(60)] = Queued(JobId(60), "RUNNING", "None")
    text = shown(store, sweep_id)
    assert "running," in text
    assert "jobs: all have ended" in text


# Commands and names as they were meant


def test_printed_commands_are_taken_by_a_shell_as_they_are(tmp_path: Path) -> None:
    store = Store.open(tmp_path / NASTY / "store")
    sweep_id = launched(store, made.sweep(CELLS))
    told = slurm._how_to_come_back(store, sweep_id)
    watch, rest = told.split(" shows them, ")
    cancel, _ = rest.split(" ends them, ")
    expected = ["--store", str(store.root), "--sweep", sweep_id]
    assert shlex.split(watch) == ["python", "-m", "launch", "status", *expected, "--watch"]
    assert shlex.split(cancel) == ["python", "-m", "launch", "cancel", *expected]
    (line,) = [line for line in shown(store, sweep_id).splitlines() if line.startswith("no worker runs; ")]
    assert shlex.split(line.removeprefix("no worker runs; "))[:8] == ["python", "-m", "launch", "retry", *expected]
    with pytest.raises(ConfigError) as error:
        logs.find(store, "zzz")
    listing = str(error.value).split("; ")[1].split(" lists")[0]
    assert shlex.split(listing) == ["python", "-m", "launch", "status", "--store", str(store.root), "--json"]


def test_the_command_of_a_sweep_is_recorded_as_it_was_typed() -> None:
    grid = ["-m", "bits=2,3", "component.language.blocks=[front]"]
    typed = sweep_file.typed(["/home/me/mmq/mmq_sweeps/__main__.py", *grid])
    assert shlex.split(typed) == ["python", "-m", "mmq_sweeps", *grid]
    assert shlex.split(sweep_file.typed(["/venv/bin/mmq-sweeps", *grid])) == ["/venv/bin/mmq-sweeps", *grid]


def test_names_and_commands_are_shown_as_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table, "FILE_WIDTH", 400)
    store = Store.open(tmp_path / NASTY, label="[bold]me :smile:")
    cells = made.grid(2, 3, model="[red]one[/red]", task=":bug: [x]")
    sweep = made.sweep(cells)
    sweep_id = launched(store, sweep)
    command = "python -m mmq_sweeps -m 'component.language.blocks=[front],[end]' model.name=:smile:"
    store.note(f"sweeps/{sweep_id}/sweep.json", {
        "command": command, "created": "2026-01-31T12:00", "directory": "/", "launcher": {"_target_": "Local"}, "redo": {},
        "plan": [[cell.id for cell in cells]], **sweep.to_json(),
    })  # fmt: skip
    worker(store, sweep_id, "[b]host", cell=cells[0].id, title="rtn [front] :smile: [/nothing]", job="[1]")
    status_verb._all(store, json_asked=False)
    assert command in capsys.readouterr().out
    text = shown(store, sweep_id)
    for name in ("[red]one[/red]", ":bug: [x]", "[b]host", "[front] :smile: [/nothing]", "[1]"):
        assert name in text
    with store.locks.lock("cells", "[i]x") as lock:  # type: ignore[union-attr]
        assert lock.held
        store_verb._list(argparse.Namespace(store=store.root, json=False))
    out = capsys.readouterr().out
    assert "locked: cells/[i]x by [bold]me :smile:" in out
    assert f"store: {store.root}" in out


def test_progress_shows_titles_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    title = "rtn [front] language 3 :smile: [/x]"
    with Progress(1) as progress:
        progress.begin(title)
        progress.stage("evaluate [all]", 1, 2)
        progress.finish(title, "cider 1.0")
    assert f"cell 1 of 1: {title}: cider 1.0\n" in capsys.readouterr().err
    # On a terminal, bars show the same text.
    console = Console(width=200, force_terminal=True, markup=False, emoji=False, highlight=False)
    progress.console = console
    with console.capture() as captured:
        console.print(progress.bars.get_renderable())
    assert f"cells · {title}" in captured.get()


def test_a_sweep_of_thousands_of_cells_is_told_in_a_few_lines(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "runs")
    cells = [made.cell(2, 3, bits % 7 + 2, task=f"task {bits}") for bits in range(3000)]
    sweep_id = launched(store, made.sweep(cells), groups=300)
    for cell in cells[:30]:
        store.save(made.record(cell))
    lines = shown(store, sweep_id).splitlines()
    assert lines[0] == f"sweep {sweep_id}: 3,000 cells: 2,970 queued, 0 running, 30 done, 0 failed (1 % ended)"
    assert len(lines) < 30


# A store of several users


@contextmanager
def another_user(group: int, number: int = 54321) -> Iterator[None]:
    """Take another user's rights inside, as a member of ``group`` only."""
    groups, own = os.getgroups(), os.getegid()
    os.setgroups([group])
    os.setegid(number)
    os.seteuid(number)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(own)
        os.setgroups(groups)


@pytest.fixture
def shared_folder() -> Iterator[Path]:
    """Make a folder that other users can reach, which pytest's own folders are not."""
    if os.getuid():
        pytest.skip("only root can act as two users: sudo .venv/bin/python -m pytest")
    folder = Path(tempfile.mkdtemp(prefix="mmq-shared-"))
    folder.chmod(0o755)
    before = os.umask(0o022)
    yield folder
    os.umask(before)
    shutil.rmtree(folder)


@pytest.mark.parametrize("mode", [0o2775, 0o775, 0o777])
def test_a_second_user_works_on_a_store_whose_folder_the_group_may_write_to(shared_folder: Path, mode: int) -> None:
    root, team = shared_folder / "runs", 54000
    root.mkdir()
    os.chown(root, -1, team)
    root.chmod(mode)
    first = Store.open(root)
    first.save(made.record(CELLS[0], "failed", error={"class": "OSError", "message": "", "traceback": ""}), [])
    sweep_id = launched(first, made.sweep(CELLS))
    lock = first.locks.lock("cells", CELLS[1].id)
    assert lock is not None
    lock.release()
    with first.locks.lock("cells", CELLS[2].id) as held, another_user(team):  # type: ignore[union-attr]
        assert held.held
        second = Store.open(root)
        second.save(made.record(CELLS[0]))
        launched(second, made.sweep(CELLS))
        assert second.locks.lock("cells", CELLS[2].id) is None
        with second.locks.lock("cells", CELLS[1].id) as own:  # type: ignore[union-attr]
            assert own.held
            second.save(made.record(CELLS[1]))
        worker(second, sweep_id, "second")
    assert all(cell.done for cell in Store.open(root).records())
    # And the first goes on where the second was.
    first.save(made.record(CELLS[1]))
    if mode != 0o777:
        with another_user(54001, 54322), pytest.raises(StoreError, match=r"docs/store\.md"):
            Store.open(root)


def test_a_store_of_one_user_stays_as_the_umask_has_it(shared_folder: Path) -> None:
    store = Store.open(shared_folder / "runs")
    store.save(made.record(CELLS[0]))
    modes = {path.stat().st_mode & 0o777 for path in store.root.rglob("*")}
    assert modes == {0o755, 0o644}
    with another_user(54000), pytest.raises(StoreError, match="let its owner share the store with your group"):
        Store.open(store.root)
