"""Ask a cluster for its offers and limits: partitions, accounts, features, the limits of arrays and of queued jobs."""

from __future__ import annotations

import getpass
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from functools import partial

from launch.slurm.scheduler import ClusterError, rows_of, run, setting
from mmq_sweeps.errors import ConfigError, unknown

# SLURM's default, used if scontrol does not report it.
MAX_ARRAY_SIZE = 1001


def require() -> None:
    """Raise a ``ConfigError`` if this machine lacks the SLURM commands to submit jobs."""
    for program in ("sbatch", "srun", "scontrol"):
        if shutil.which(program) is None:
            raise ConfigError(
                f"hydra/launcher=slurm: this machine has no {program}; run the command on a login node of the cluster, "
                "or choose hydra/launcher=local."
            )


def problems(asked: Mapping[str, str | None]) -> list[str]:
    """Return the requested resources (partition, account, qos, constraint) that this cluster lacks, with the choices.

    A cluster without accounting does not list accounts and qualities of service; there, sbatch decides.
    """
    choices: dict[str, Callable[[], list[str]]] = {
        "partition": _partitions,
        "account": partial(_of_user, "account"),
        "qos": partial(_of_user, "qos"),
    }
    found = []
    for key, names in choices.items():
        if asked.get(key) is None:
            continue
        known = names()
        # sbatch accepts several partitions and uses the first that is free.
        values = str(asked[key]).split(",") if key == "partition" else [str(asked[key])]
        found += [
            f"hydra.launcher.{key}={one}: {unknown(key, one, known)}" for one in values if known and one not in known
        ]
    if asked.get("constraint") is not None:
        features = _features()
        # Names between the operators &, |, [] and (), without counts such as *4. A name may begin with a digit: 2080ti.
        for name in re.findall(r"[^&|,\[\]()*\s]+", re.sub(r"\*\d+", "", str(asked["constraint"]))):
            if features and name not in features:
                found.append(f"hydra.launcher.constraint={asked['constraint']}: {unknown('feature', name, features)}")
    return found


def would_take(flags: Iterable[str]) -> str | None:
    """Return sbatch's objection to a job with ``flags``, or None; submits nothing."""
    try:
        run("sbatch", "--test-only", *flags, "--wrap=true")
    except ClusterError as error:
        return str(error).removeprefix("sbatch: ")
    return None


def max_array_size() -> int:
    """Return the maximum number of tasks in an array: their indices are below ``MaxArraySize``."""
    return setting("MaxArraySize", MAX_ARRAY_SIZE)


def submit_limit(account: str | None, qos: str | None) -> int | None:
    """Return how many more jobs the user may queue by the limits of association and QOS.

    None if there is no limit or the cluster keeps no accounts.
    """
    user = getpass.getuser()
    try:
        of_user = rows_of("sacctmgr", "-nP", "show", "assoc", f"user={user}", "format=account,maxsubmitjobs,defaultqos")
        of_quality = dict(rows_of("sacctmgr", "-nP", "show", "qos", "format=name,maxsubmitjobsperuser"))
    except ClusterError:
        return None
    default = next((row[2] for row in of_user if row[2] and account in (None, row[0])), "")
    limits = [row[1] for row in of_user if account in (None, row[0])] + [of_quality.get(qos or default, "")]
    numbers = [int(limit) for limit in limits if limit.isdigit()]
    if not numbers:
        return None
    queued = run("squeue", "-h", "-r", f"--user={user}", "-o", "%i").split()
    return max(0, min(numbers) - len(queued))


def _partitions() -> list[str]:
    return sorted(set(run("sinfo", "-h", "-a", "-o", "%R").split()))


def _features() -> list[str]:
    told = run("sinfo", "-h", "-a", "-o", "%f").split()
    return sorted({name for features in told for name in features.split(",") if name != "(null)"})


def _of_user(column: str) -> list[str]:
    """Return the names in a column of the user's associations; empty if the cluster keeps no accounts."""
    try:
        told = run("sacctmgr", "-nP", "show", "assoc", f"user={getpass.getuser()}", f"format={column}")
    except ClusterError:
        return []
    return sorted({name for line in told.splitlines() for name in line.split(",") if name})
