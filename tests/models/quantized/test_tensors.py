"""Headers are read as written, and a damaged file is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mmq_sweeps.models.quantized.tensors import read_tensors


def test_a_tensor_is_read_as_it_was_written(tmp_path: Path) -> None:
    values = {"a": torch.arange(6, dtype=torch.int64).reshape(2, 3), "b": torch.zeros(0), "c": torch.ones(5).bfloat16()}
    save_file(values, tmp_path / "model.safetensors")
    found = read_tensors(tmp_path)
    assert {name: (own.dtype, own.shape, own.size) for name, own in found.items()} == {
        "a": ("I64", (2, 3), 48),
        "b": ("F32", (0,), 0),
        "c": ("BF16", (5,), 10),
    }
    assert found["a"].read() == values["a"].numpy().tobytes()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is cut off or is no safetensors file"),
        (b"\xff" * 16, "is cut off or is no safetensors file"),
        ((2).to_bytes(8, "little") + b"[]", "cannot read its header"),
        ((7).to_bytes(8, "little") + b'{"a":1}', "cannot read its header"),
    ],
)
def test_a_damaged_header_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=rf"model.safetensors: {message}"):
        read_tensors(tmp_path)


def test_a_file_that_is_cut_off_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(4)}, path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="is cut off: its tensors end at byte"):
        read_tensors(tmp_path)


def test_a_shard_that_is_not_there_is_named(tmp_path: Path) -> None:
    save_file({"a": torch.ones(4)}, tmp_path / "model-00001-of-00002.safetensors")
    weight_map = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ValueError, match="says that b lies in model-00002-of-00002"):
        read_tensors(tmp_path)


def test_a_tensor_in_two_files_is_named(tmp_path: Path) -> None:
    for number in (1, 2):
        save_file({"a": torch.ones(4)}, tmp_path / f"model-0000{number}-of-00002.safetensors")
    with pytest.raises(ValueError, match="a lies both in"):
        read_tensors(tmp_path)


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model.bin is pickled"):
        read_tensors(tmp_path)


def test_a_folder_without_weights_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no weights"):
        read_tensors(tmp_path)
