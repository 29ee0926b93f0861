"""``python -m mmq_sweeps.export check DIR``: a sound export passes, and every fault is a line and a status of 1."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mmq_sweeps.export.__main__ import main
from tests.models.quantized.folders import (
    EMBEDDED,
    as_gptq,
    edit,
    flip_a_byte,
    rewrite,
    small_llama,
)

FC1 = "language_model.model.decoder.layers.0.fc1"


@pytest.fixture
def checked(capsys: pytest.CaptureFixture[str]) -> Callable[[Path], tuple[int, dict[str, str]]]:
    """Return ``checked(folder)``, which returns the exit status, and each check's line by its name."""

    def run(folder: Path) -> tuple[int, dict[str, str]]:
        with pytest.raises(SystemExit) as ended:
            main(["check", str(folder)])
        lines = capsys.readouterr().out.splitlines()
        return int(ended.value.code or 0), {line.split()[1]: line for line in lines}

    return run


Checked = Callable[[Path], tuple[int, dict[str, str]]]


def with_checksums(folder: Path) -> Path:
    """Add the checksums that an export has."""
    sums = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    (folder / "mmq_sweeps.json").write_text(json.dumps({"schema": 1, "sha256": sums}))
    return folder


def test_a_folder_of_compressed_tensors_passes(packed_blip2: Path, checked: Checked) -> None:
    status, lines = checked(packed_blip2)
    assert status == 0, lines
    assert list(lines) == ["checksums", "tensors", "names", "loading"]
    assert all(line.startswith("ok ") for line in lines.values())
    assert "60 quantized linears (36 pack-quantized 3, 24 pack-quantized 4)" in lines["tensors"]
    assert "2 targets name the quantized linears of Blip2ForConditionalGeneration and nothing else" in lines["names"]
    assert "no mmq_sweeps.json" in lines["checksums"]


def test_a_folder_at_full_precision_passes(checked: Checked) -> None:
    status, lines = checked(EMBEDDED / "tiny_llava")
    assert status == 0, lines
    assert "0 quantized linears (all at full precision)" in lines["tensors"]


def test_a_flipped_byte_shows_in_checksums_and_nowhere_else(packed_copy: Path, checked: Checked) -> None:
    with_checksums(packed_copy)
    assert checked(packed_copy)[0] == 0
    flip_a_byte(packed_copy / "model.safetensors")
    status, lines = checked(packed_copy)
    assert status == 1
    assert lines["checksums"].startswith("failed")
    assert "model.safetensors is not as mmq_sweeps.json says" in lines["checksums"]
    assert all(lines[name].startswith("ok") for name in ("tensors", "names"))


def test_files_that_are_listed_and_not_there_and_the_other_way_round(packed_copy: Path, checked: Checked) -> None:
    with_checksums(packed_copy)
    (packed_copy / "tokenizer_config.json").unlink()
    shutil.copy(packed_copy / "model.safetensors", packed_copy / "other.safetensors")
    status, lines = checked(packed_copy)
    assert status == 1
    assert "tokenizer_config.json is listed and not there" in lines["checksums"]
    assert "other.safetensors is not listed" in lines["checksums"]
    assert "lies both in model.safetensors and in other.safetensors" in lines["tensors"]


def test_checksums_that_cannot_be_read_are_a_fault(packed_copy: Path, checked: Checked) -> None:
    (packed_copy / "mmq_sweeps.json").write_text('{"schema": 1}')
    status, lines = checked(packed_copy)
    assert status == 1
    assert "failed  checksums  mmq_sweeps.json has none that can be read" in lines["checksums"]


def test_a_target_that_matches_nothing_is_named(packed_copy: Path, checked: Checked) -> None:
    edit(
        packed_copy,
        lambda own: own["quantization_config"]["config_groups"]["group_0"].update(targets=["re:^encoder.*"]),
    )
    status, lines = checked(packed_copy)
    assert status == 1
    assert "24 linears are stored quantized, and no target names them" in lines["names"]
    assert "1 targets match no module of Blip2ForConditionalGeneration (re:^encoder.*)" in lines["names"]
    assert "transformers does not load all of it" in lines["loading"]


def test_a_missing_scale_is_named_by_both(packed_copy: Path, checked: Checked) -> None:
    rewrite(
        packed_copy, lambda weights: {name: value for name, value in weights.items() if name != f"{FC1}.weight_scale"}
    )
    status, lines = checked(packed_copy)
    assert status == 1
    assert f"1 weights are missing, which a loader draws at random ({FC1}.weight_scale)" in lines["names"]
    assert f"missing_keys: {FC1}.weight_scale" in lines["loading"]


def test_a_tied_head_that_is_quantized_is_told(packed_copy: Path, checked: Checked) -> None:
    head = "language_model.lm_head"
    rewrite(
        packed_copy,
        lambda weights: {
            **weights,
            f"{head}.weight_packed": torch.zeros(82, 6, dtype=torch.int32),
            f"{head}.weight_scale": torch.ones(82, 1),
            f"{head}.weight_shape": torch.tensor([82, 64]),
        },
    )
    edit(packed_copy, lambda own: own["quantization_config"].update(ignore=[]))
    edit(packed_copy, lambda own: own["quantization_config"]["config_groups"]["group_1"]["targets"].append(head))
    status, lines = checked(packed_copy)
    assert status == 1
    assert (
        f"1 quantized linears are tied to another module, which cannot be loaded so: untie them ({head})"
        in (lines["names"])
    )


def test_a_weight_that_is_no_number_is_named(packed_copy: Path, checked: Checked) -> None:
    def spoil(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        weights[f"{FC1}.weight_scale"][3] = torch.nan
        return weights

    rewrite(packed_copy, spoil)
    status, lines = checked(packed_copy)
    assert status == 1
    assert f"not every value is a finite number ({FC1}.weight" in lines["loading"]
    assert lines["names"].startswith("ok")


def test_a_file_that_is_cut_off_ends_the_checks(packed_copy: Path, checked: Checked) -> None:
    path = packed_copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    status, lines = checked(packed_copy)
    assert status == 1
    assert list(lines) == ["checksums", "tensors"]
    assert "is cut off" in lines["tensors"]


def test_a_package_that_is_missing_is_named_with_its_command(tmp_path: Path, checked: Checked) -> None:
    folder = as_gptq(small_llama(tmp_path / "llama"), tmp_path / "it", lambda name: None if "head" in name else 4)
    status, lines = checked(folder)
    assert status == 1
    assert lines["names"].startswith("ok")
    assert "takes packages that are not installed: pip install optimum gptqmodel" in lines["loading"]


def test_a_class_that_transformers_lacks_is_named(packed_copy: Path, checked: Checked) -> None:
    edit(packed_copy, lambda own: own.update(architectures=["Blip9"]))
    assert "model.class_name=Blip9" in checked(packed_copy)[1]["tensors"]
    edit(packed_copy, lambda own: own.pop("architectures"))
    assert "config.json names no class in architectures" in checked(packed_copy)[1]["tensors"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent", None, "absent: is not a folder"),
        ("empty", "", "empty: holds no config.json, so it is no checkpoint"),
        ("broken", "{", "config.json: is not JSON"),
        ("listed", "[]", "config.json: is not a mapping"),
    ],
)
def test_bad_input_is_a_line_and_a_status_of_two(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: str | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).mkdir()
    if content:
        (tmp_path / name / "config.json").write_text(content)
    with pytest.raises(SystemExit) as ended:
        main(["check", str(tmp_path / name)])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line
