"""Files written tensor by tensor, in any order, can be read by safetensors."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from mmq_sweeps.export.writer import DTYPES, INDEX, SINGLE, WeightFiles
from tests.export.cells import header

SHAPES = st.lists(st.integers(0, 5), max_size=3).map(tuple)
SPECS = st.dictionaries(
    st.text("ab.é_1", min_size=1, max_size=6), st.tuples(st.sampled_from([*DTYPES]), SHAPES), min_size=1
)


def filled(spec: tuple[torch.dtype, tuple[int, ...]]) -> torch.Tensor:
    dtype, shape = spec
    return torch.randint(0, 2, shape).to(dtype)


def write(folder: Path, tensors: dict[str, torch.Tensor], shard_bytes: int) -> None:
    specs = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    names = list(tensors)
    random.Random(0).shuffle(names)
    with WeightFiles(folder, specs, shard_bytes) as files:
        for name in names:
            files.write(name, tensors[name])


@given(specs=SPECS, shard_bytes=st.integers(1, 200))
@settings(max_examples=40, deadline=None)
def test_safetensors_reads_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, specs: dict, shard_bytes: int
) -> None:
    folder = tmp_path_factory.mktemp("written")
    tensors = {name: filled(spec) for name, spec in specs.items()}
    write(folder, tensors, shard_bytes)
    read: dict[str, torch.Tensor] = {}
    for path in folder.glob("*.safetensors"):
        own = load_file(path)
        for name, about in header(path).items():
            # Readers map tensors, which therefore lie at multiples of their width.
            assert about["data_offsets"][0] % own[name].element_size() == 0
        read |= own
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor)
    if not (folder / SINGLE).exists():
        index = json.loads((folder / INDEX).read_text())
        assert index["weight_map"].keys() == tensors.keys()
        assert all(name in header(folder / file) for name, file in index["weight_map"].items())


def test_a_tensor_that_is_not_as_announced_is_refused(tmp_path: Path) -> None:
    specs = {"a": (torch.float32, (2,)), "b": (torch.int32, (1,))}
    with pytest.raises(ValueError, match=r"the header says torch\.float32"), WeightFiles(tmp_path, specs) as files:
        files.write("a", torch.zeros(3))


def test_a_tensor_that_was_never_written_is_told(tmp_path: Path) -> None:
    files = WeightFiles(tmp_path, {"a": (torch.float32, (2,))})
    with pytest.raises(ValueError, match="lacks 1 tensors, such as a"), files:
        pass


def test_a_tensor_is_written_once(tmp_path: Path) -> None:
    with WeightFiles(tmp_path, {"a": (torch.bool, ())}) as files:
        files.write("a", torch.tensor(True))
        with pytest.raises(ValueError, match="a is written twice"):
            files.write("a", torch.tensor(True))
