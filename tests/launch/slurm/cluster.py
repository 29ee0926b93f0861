"""A SLURM cluster on this machine, for the tests and for trying: nodes with GPUs that are device files and nothing else.

    python -m tests.launch.slurm.cluster up --root /tmp/mmq-slurm     prints the line that points SLURM's commands at it
    python -m tests.launch.slurm.cluster down --root /tmp/mmq-slurm

Everything it keeps lies under its root, its ports are free ports, and it ends only the daemons that it started. Its
partitions: ``gpu``, whose jobs go back to the queue when ``urgent`` needs their place; ``spare``, whose jobs are
cancelled then; ``urgent`` before both. Needs slurm-wlm, munge, slurmdbd and mariadb-server, and root for the GPUs' files.
"""

from __future__ import annotations

import argparse
import getpass
import json
import os
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

INSTALL = "apt-get update && apt-get install --no-install-recommends slurm-wlm munge slurmdbd mariadb-server"
PROGRAMS = ("sbatch", "slurmctld", "slurmd", "slurmdbd", "munged", "mariadbd", "mariadb-install-db")
# Name, tier, fate of its jobs when a higher tier needs their place, seconds from the signal to that.
PARTITIONS = (("gpu", 10, "REQUEUE", 20), ("spare", 10, "CANCEL", 0), ("urgent", 100, "OFF", 0))
ACCOUNT, OTHER_ACCOUNT, QOS, SMALL_QOS = "study", "teaching", "normal", "two_jobs"
# Device numbers of /dev/null for a GPU's file: slurmd sets CUDA_VISIBLE_DEVICES only if the file is a device.
NULL_DEVICE = os.makedev(1, 3)
# Under etc: the changes to slurm.conf from its usual state.
CHANGED = "changed.json"
QUOTED_LINES = 20
DAEMONS = ("munged", "mariadbd", "slurmdbd", "slurmctld")


def missing_programs() -> list[str]:
    """Return the programs that a cluster needs and this machine lacks."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    return [program for program in PROGRAMS if shutil.which(program, path=path) is None]


@dataclass
class Cluster:
    """A cluster whose nodes have ``gpus`` and ``cpus`` each; its state lies under ``root``, so processes may share it."""

    root: Path
    nodes: int = 2
    gpus: int = 2
    cpus: int = 8

    @property
    def environment(self) -> dict[str, str]:
        """Return the variables that make a command talk to this cluster."""
        return {"SLURM_CONF": str(self.root / "etc" / "slurm.conf")}

    @property
    def node_names(self) -> list[str]:
        return [f"node{number}" for number in range(1, self.nodes + 1)]

    def up(self) -> None:
        for folder in ("etc", "run", "log", "state", "tmp", "munge", *(f"spool/{name}" for name in self.node_names)):
            (self.root / folder).mkdir(parents=True, exist_ok=True)
        self.root.chmod(0o755)
        for folder in ("munge", "log"):
            (self.root / folder).chmod(0o700)
        self.down()
        self._start_munge()
        self._write_accounting_config()
        self._start_accounting()
        self.configure()
        for name in self.node_names:
            self.start_node(name)

    def down(self) -> None:
        """End every daemon of this root, nodes first."""
        if self._alive("slurmctld"):
            self.run("scancel", "--full", f"--user={getpass.getuser()}", check=False)
            self._wait(
                "jobs to end", lambda: not self.run("squeue", "-h", check=False).strip(), seconds=15, strict=False
            )
        for name in (*(f"slurmd.{node}" for node in self.node_names), *reversed(DAEMONS)):
            self._stop(name, signal.SIGTERM)

    def is_up(self) -> bool:
        return all(self._alive(name) for name in DAEMONS)

    def restore(self) -> None:
        """Make it as it was when it was started: no jobs, every node there, no changed settings."""
        self.run("scancel", "--full", f"--user={getpass.getuser()}", check=False)
        if json.loads((self.root / "etc" / CHANGED).read_text()):
            self.configure()
        for name in self.node_names:
            if not self._alive(f"slurmd.{name}"):
                self.start_node(name)
        self._wait("jobs to end", lambda: not self.run("squeue", "-h").strip())
        self._wait("nodes to tell of their GPUs", self._takes_jobs)

    def configure(self, **settings: str) -> None:
        """Start the controller, again if it runs, with ``settings`` in place of lines of slurm.conf with the same key."""
        self._stop("slurmctld", signal.SIGTERM)
        self._write_config(settings)
        self._daemon("slurmctld", "slurmctld")
        self._wait("slurmctld", lambda: "is UP" in self.run("scontrol", "ping", check=False))
        if any(self._alive(f"slurmd.{name}") for name in self.node_names):
            self._wait("nodes to tell of their GPUs", self._takes_jobs)

    def _takes_jobs(self) -> bool:
        """Return whether a job with a GPU could run: a new controller has yet to hear of the nodes' GPUs."""
        test = ["sbatch", "--test-only", "--gpus-per-node=1", "--wrap", "true"]
        environment = {**os.environ, **self.environment}
        return subprocess.run(test, env=environment, capture_output=True, timeout=60, check=False).returncode == 0

    def start_node(self, name: str) -> None:
        """Start a node's daemon; once more if the controller does not take it in, as happens on a busy machine."""
        for last in (False, True):
            self._daemon(f"slurmd.{name}", "slurmd", "-N", name)
            if self._wait(f"{name} to be idle", lambda: name in self.nodes_in("idle,mix,alloc"), strict=False):
                return
            if not last:
                self._stop(f"slurmd.{name}", signal.SIGTERM)
        raise RuntimeError(f"{name} was started twice and is not idle; the end of its log:\n{self._end_of_log(name)}")

    def _end_of_log(self, node: str) -> str:
        log = self.root / "log" / f"slurmd.{node}.log"
        return "\n".join(log.read_text(errors="replace").splitlines()[-QUOTED_LINES:]) if log.exists() else "(none)"

    def kill_node(self, name: str) -> None:
        """Kill the node's daemon and all processes under it, as a power failure does."""
        self._stop(f"slurmd.{name}", signal.SIGKILL)
        # Looked for again, since a process may have started others before it was killed.
        while running := self._running_on(name):
            for pid in running:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)

    def nodes_in(self, states: str) -> list[str]:
        return self.run("sinfo", "-h", "-N", "-p", "gpu", "-t", states, "-o", "%N", check=False).split()

    def run(self, *command: str, check: bool = True) -> str:
        """Run a SLURM command on this cluster and return its standard output."""
        environment = {**os.environ, **self.environment}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr or done.stdout}")
        return done.stdout

    # Configuration

    def _write_config(self, settings: Mapping[str, str]) -> None:
        host, run, log = socket.gethostname().split(".")[0], self.root / "run", self.root / "log"
        user = getpass.getuser()
        lines = {
            "ClusterName": "mmq",
            "SlurmctldHost": f"{host}(127.0.0.1)",
            "SlurmctldPort": str(self._port("slurmctld")),
            "SlurmUser": user,
            "SlurmdUser": user,
            "AuthType": "auth/munge",
            # cred_expire is also how long a requeued job waits before it may start; two minutes where nothing is said.
            "AuthInfo": f"socket={run}/munge.socket,cred_expire=5",
            "StateSaveLocation": f"{self.root}/state",
            "SlurmdSpoolDir": f"{self.root}/spool/%n",
            "SlurmctldPidFile": f"{run}/slurmctld.pid",
            "SlurmdPidFile": f"{run}/slurmd.%n.pid",
            "SlurmctldLogFile": f"{log}/slurmctld.log",
            "SlurmdLogFile": f"{log}/slurmd.%n.log",
            "ProctrackType": "proctrack/linuxproc",
            "TaskPlugin": "task/none",
            "MpiDefault": "none",
            "JobAcctGatherType": "jobacct_gather/none",
            "SelectType": "select/cons_tres",
            "SelectTypeParameters": "CR_Core_Memory",
            "SchedulerParameters": "sched_interval=1,bf_interval=1,batch_sched_delay=0,sched_min_interval=0",
            "ReturnToService": "2",
            "KillWait": "5",
            "MinJobAge": "300",
            "SlurmctldTimeout": "30",
            "SlurmdTimeout": "15",
            "JobRequeue": "1",
            "MaxArraySize": "1001",
            "DefMemPerCPU": "500",
            "GresTypes": "gpu",
            "PreemptType": "preempt/partition_prio",
            "PreemptMode": "REQUEUE",
            "SlurmdParameters": "config_overrides",
            "AccountingStorageType": "accounting_storage/slurmdbd",
            "AccountingStorageHost": "127.0.0.1",
            "AccountingStoragePort": str(self._port("slurmdbd")),
            "AccountingStoragePass": f"{run}/munge.socket",
            "AccountingStorageTRES": "gres/gpu",
            "AccountingStorageEnforce": "associations,limits,qos",
            **settings,
        }
        text = [f"{key}={value}" for key, value in lines.items()]
        for name in self.node_names:
            text.append(
                f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={self._port(name)} CPUs={self.cpus} Boards=1 "
                f"SocketsPerBoard=1 CoresPerSocket={self.cpus} ThreadsPerCore=1 RealMemory=64000 Gres=gpu:{self.gpus} "
                "Feature=small State=UNKNOWN"
            )
        for name, tier, mode, grace in PARTITIONS:
            default = "YES" if name == "gpu" else "NO"
            text.append(
                f"PartitionName={name} Nodes=ALL Default={default} MaxTime=INFINITE State=UP PriorityTier={tier} "
                f"PreemptMode={mode} GraceTime={grace}"
            )
        self._write("etc/slurm.conf", text)
        (self.root / "etc" / CHANGED).write_text(json.dumps(settings))
        self._write("etc/gres.conf", [self._gpu_files(name) for name in self.node_names if self.gpus])

    def _gpu_files(self, node: str) -> str:
        folder = self.root / "dev" / node
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(self.gpus):
            file = folder / f"nvidia{number}"
            if not file.exists():
                os.mknod(file, stat.S_IFCHR | 0o666, NULL_DEVICE)
        return f"NodeName={node} Name=gpu Flags=nvidia_gpu_env File={folder}/nvidia[0-{self.gpus - 1}]"

    def _write_accounting_config(self) -> None:
        run = self.root / "run"
        self._write(
            "etc/slurmdbd.conf",
            [
                "AuthType=auth/munge",
                f"AuthInfo=socket={run}/munge.socket",
                f"DbdHost={socket.gethostname().split('.')[0]}",
                "DbdAddr=127.0.0.1",
                f"DbdPort={self._port('slurmdbd')}",
                f"SlurmUser={getpass.getuser()}",
                f"PidFile={run}/slurmdbd.pid",
                f"LogFile={self.root}/log/slurmdbd.log",
                "StorageType=accounting_storage/mysql",
                "StorageHost=localhost",
                f"StorageUser={getpass.getuser()}",
                "StorageLoc=slurm_acct_db",
            ],
        )
        (self.root / "etc" / "slurmdbd.conf").chmod(0o600)

    def _write(self, name: str, lines: Sequence[str]) -> None:
        (self.root / name).write_text("".join(f"{line}\n" for line in lines))

    def _port(self, name: str) -> int:
        """Return a free port, which stays the same for a name."""
        file = self.root / "etc" / f"{name}.port"
        if not file.exists():
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                file.write_text(str(free.getsockname()[1]))
        return int(file.read_text())

    # Daemons

    def _start_munge(self) -> None:
        key = self.root / "munge" / "key"
        if not key.exists():
            key.write_bytes(secrets.token_bytes(1024))
            key.chmod(0o400)
        run, log = self.root / "run", self.root / "log"
        self._daemon(
            "munged", "munged", "--force", f"--key-file={key}", f"--socket={run}/munge.socket",
            f"--pid-file={run}/munged.pid", f"--log-file={log}/munged.log", f"--seed-file={self.root}/munge/seed",
        )  # fmt: skip

    def _start_accounting(self) -> None:
        data, run, log, user = self.root / "db", self.root / "run", self.root / "log", getpass.getuser()
        # Of its own: two that are installed at the same time in /tmp take each other's tables for theirs.
        temporary = f"--tmpdir={self.root}/tmp"
        if not data.exists():
            installed = self.root / "db.part"
            shutil.rmtree(installed, ignore_errors=True)
            with (log / "mariadb-install.log").open("w") as told:
                subprocess.run(
                    ["mariadb-install-db", "--no-defaults", f"--user={user}", f"--datadir={installed}", temporary,
                     "--skip-test-db", "--auth-root-authentication-method=normal"],
                    stdout=told, stderr=told, check=True,
                )  # fmt: skip
            installed.rename(data)
        self._daemon(
            "mariadbd", "mariadbd", "--no-defaults", f"--user={user}", f"--datadir={data}", f"--socket={run}/mysql.sock",
            f"--pid-file={run}/mariadbd.pid", temporary, "--skip-networking", "--innodb-buffer-pool-size=64M",
            "--innodb-lock-wait-timeout=900", "--innodb-flush-log-at-trx-commit=0", f"--log-error={log}/mariadbd.log",
            stays=True,
        )  # fmt: skip
        sql = ("mariadb", "--no-defaults", f"--socket={run}/mysql.sock", "-uroot", "-e")
        self._wait("mariadbd", lambda: "1" in self.run(*sql, "SELECT 1", check=False))
        self.run(*sql, "CREATE DATABASE IF NOT EXISTS slurm_acct_db")
        # Its commands look for a slurm.conf, which needs to say no more than where slurmdbd is.
        self._write_config({})
        self._daemon("slurmdbd", "slurmdbd")
        self._wait("slurmdbd", lambda: "normal" in self.run("sacctmgr", "-nP", "list", "qos", check=False))
        if "mmq" not in self.run("sacctmgr", "-nP", "list", "cluster"):
            self._add_accounts(user)

    def _add_accounts(self, user: str) -> None:
        """Add a user with two accounts and two qualities of service, of which the second takes two jobs at a time."""
        for entry in (
            ("cluster", "mmq"),
            ("account", ACCOUNT, "Cluster=mmq"),
            ("account", OTHER_ACCOUNT, "Cluster=mmq"),
            ("qos", SMALL_QOS, "MaxSubmitJobsPerUser=2"),
            ("user", user, f"Account={ACCOUNT},{OTHER_ACCOUNT}"),
        ):
            self.run("sacctmgr", "-i", "add", *entry)
        self.run("sacctmgr", "-i", "modify", "user", user, "set", f"qos={QOS},{SMALL_QOS}")
        self.run("sacctmgr", "-i", "modify", "user", user, "set", f"DefaultAccount={ACCOUNT}")

    def _daemon(self, name: str, program: str, *arguments: str, stays: bool = False) -> None:
        """Start a daemon; ``stays`` says that the program does not put itself into the background."""
        environment = {**os.environ, **self.environment, "MYSQL_UNIX_PORT": f"{self.root}/run/mysql.sock"}
        environment["PATH"] = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
        with (self.root / "log" / f"{name}.start").open("w") as told:
            started = subprocess.run(
                [*(("setsid", "--fork") if stays else ()), program, *arguments],
                env=environment, stdin=subprocess.DEVNULL, stdout=told, stderr=told, check=False,
            )  # fmt: skip
        if started.returncode:
            raise RuntimeError(f"{program} did not start: {(self.root / 'log' / f'{name}.start').read_text()}")

    def _pid(self, name: str) -> int | None:
        """Return the process of a daemon that this root started; None if another process has the number by now."""
        try:
            pid = int((self.root / "run" / f"{name}.pid").read_text())
            own = Path("/proc", str(pid))
            told = (own / "cmdline").read_bytes() + (own / "environ").read_bytes()
        except (OSError, ValueError):
            return None
        return pid if str(self.root).encode() in told else None

    def _alive(self, name: str) -> bool:
        return self._pid(name) is not None

    def _stop(self, name: str, how: signal.Signals) -> None:
        if pid := self._pid(name):
            os.kill(pid, how)
            if not self._wait(f"{name} to end", lambda: not self._alive(name), seconds=15, strict=False):
                os.kill(pid, signal.SIGKILL)
        (self.root / "run" / f"{name}.pid").unlink(missing_ok=True)

    def _running_on(self, node: str) -> list[int]:
        """Return the processes of the jobs on a node, and SLURM's watchers of them: all have the node's log open."""
        log = str(self.root / "log" / f"slurmd.{node}.log")
        return [
            int(own.name)
            for own in Path("/proc").glob("[0-9]*")
            if (_read(own / "comm").strip() == b"slurmstepd" and log in _open_files(own))
            or {f"SLURMD_NODENAME={node}", f"SLURM_CONF={self.environment['SLURM_CONF']}"} <= _environment(own)
        ]

    def _wait(self, what: str, done: Callable[[], bool], seconds: float = 60, strict: bool = True) -> bool:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if done():
                return True
            time.sleep(0.1)
        if strict:
            raise RuntimeError(f"waited {seconds:.0f} s for {what}; see {self.root}/log")
        return False


def _read(path: Path) -> bytes:
    """Return the content of a file of a process; nothing once the process has ended."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _environment(process: Path) -> set[str]:
    return {os.fsdecode(entry) for entry in _read(process / "environ").split(b"\0")}


def _open_files(process: Path) -> set[str]:
    found = set()
    with suppress(OSError):
        for file in (process / "fd").iterdir():
            with suppress(OSError):  # Closed meanwhile, which says nothing of the others.
                found.add(str(file.readlink()))
    return found


def main() -> None:
    command = argparse.ArgumentParser(
        prog="python -m tests.launch.slurm.cluster", description=(__doc__ or "").splitlines()[0]
    )
    command.add_argument("verb", choices=["up", "down"])
    command.add_argument("--root", type=Path, default=Path("/tmp/mmq-slurm"))
    command.add_argument("--nodes", type=int, default=2)
    command.add_argument("--gpus", type=int, default=2, help="of each node")
    arguments = command.parse_args()
    if missing := missing_programs():
        raise SystemExit(f"no {', '.join(missing)}: {INSTALL}")
    cluster = Cluster(arguments.root.absolute(), arguments.nodes, arguments.gpus)
    if arguments.verb == "up":
        cluster.up()
        sys.stdout.write(f"export SLURM_CONF={cluster.environment['SLURM_CONF']}\n")
    else:
        cluster.down()


if __name__ == "__main__":
    main()
