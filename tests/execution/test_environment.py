from __future__ import annotations

import pytest

from mmq_sweeps.execution import environment


def test_a_job_of_slurm_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "SLURM_JOB_ID",
        "SLURM_ARRAY_JOB_ID",
        "SLURM_ARRAY_TASK_ID",
        "SLURMD_NODENAME",
        "CUDA_VISIBLE_DEVICES",
        "SLURM_RESTART_COUNT",
    ):
        monkeypatch.delenv(name, raising=False)
    assert "scheduler" not in environment.hardware()
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURMD_NODENAME", "node2")
    assert environment.hardware()["scheduler"] == {"job": "17", "node": "node2", "restarts": 0}
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "15")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    assert environment.hardware()["scheduler"] == {
        "job": "15_3", "node": "node2", "cuda_visible_devices": "1", "restarts": 2,
    }  # fmt: skip


def test_what_is_told_is_the_caller_s_own() -> None:
    environment.versions()["torch"] = "changed"
    environment.hardware()["gpus"].append("changed")
    assert environment.versions()["torch"] != "changed"
    assert "changed" not in environment.hardware()["gpus"]
