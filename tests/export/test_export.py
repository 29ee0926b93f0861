"""An exported folder equals the measured cell, or is not written at all."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmq_sweeps.errors import ConfigError
from mmq_sweeps.export import export as exporting
from mmq_sweeps.export import verify
from mmq_sweeps.export.choice import Asked
from mmq_sweeps.export.export import Exported
from mmq_sweeps.export.folder import folder_at
from mmq_sweeps.export.formats.compressed_tensors import CompressedTensors
from mmq_sweeps.export.source import Source
from mmq_sweeps.export.verify import VerificationError
from mmq_sweeps.export.writer import INDEX, WeightFiles, sha256
from mmq_sweeps.identity.checkpoint import checkpoint_path
from tests.commands import PROGRAM, Forked
from tests.conftest import command_environment
from tests.export.cells import MIXED, exported, header, measured
from tests.models.toys import write_checkpoint

AWQ = ("method=awq", "method.n_grid=4", "method.clip_steps=2")  # Few scales are tried: they need not be the best.


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return measured(tmp_path_factory.mktemp("mixed") / "runs", *MIXED)


@pytest.fixture(scope="module")
def mixed_out(mixed: Source, tmp_path_factory: pytest.TempPathFactory) -> tuple[Exported, Path]:
    """Export ``mixed`` alone into a folder, in several files, and verify it with its metrics."""
    out = tmp_path_factory.mktemp("exported") / "out"
    command = "python -m mmq_sweeps.export X --out out"
    with pytest.MonkeyPatch.context() as patch:
        return exported(mixed, out, patch, evaluate=True, shard_bytes=10**5, command=command), out


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name != "runs"]


def test_a_mix_of_widths_is_packed_and_verified(mixed: Source, mixed_out: tuple[Exported, Path]) -> None:
    done, out = mixed_out
    assert (done.choice.format.name, done.choice.why) == ("compressed-tensors", "")
    assert done.verified.metrics == {name: metric["value"] for name, metric in mixed.record.metrics.items()}
    index = json.loads((out / INDEX).read_text())["weight_map"]
    assert len(set(index.values())) > 1
    assert sum((out / name).stat().st_size for name in set(index.values())) == done.bytes
    assert "language_model.model.decoder.layers.0.fc1.weight_packed" in index
    assert leftovers(out.parent) == ["out"]


def test_files_beside_the_weights_are_the_checkpoints(mixed: Source, mixed_out: tuple[Exported, Path]) -> None:
    _, out = mixed_out
    checkpoint = checkpoint_path(mixed.model["checkpoint"])
    assert isinstance(checkpoint, Path)
    for path in checkpoint.iterdir():
        if path.name not in ("config.json", "model.safetensors"):
            assert (out / path.name).read_bytes() == path.read_bytes()
    own, new = (json.loads((folder / "config.json").read_text()) for folder in (checkpoint, out))
    del new["quantization_config"]
    assert new == own
    manifest = json.loads((out / "mmq_sweeps.json").read_text())
    assert manifest["record"]["id"] == mixed.record.id
    files = {path.name for path in out.iterdir()} - {"mmq_sweeps.json"}
    assert manifest["sha256"] == {name: sha256(out / name) for name in files}


def test_the_card_tells_what_was_measured(mixed: Source, mixed_out: tuple[Exported, Path]) -> None:
    card = (mixed_out[1] / "README.md").read_text()
    (name, metric), total = next(iter(mixed.record.metrics.items())), mixed.record.size["total"]
    low, high = metric["interval"]
    for said in (
        f"| {name} | {metric['value']:.4f} | {low:.4f} to {high:.4f} | {metric['count']} |",
        "| vision | 4 g16 |",
        f"{total['bpw_exact']:.4f}",
        f"{total['size_bytes']:,} bytes",
        "    python -m mmq_sweeps.export X --out out",
        "decompress_model(model)",
        "compressed-tensors 0.18 or later",
    ):
        assert said in card, said


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> Source:
    folder = tmp_path_factory.mktemp("language")
    return measured(folder / "runs", "method=gptq", "component=language", "component.language.bits=3")


@pytest.fixture(scope="module")
def language_out(language: Source, tmp_path_factory: pytest.TempPathFactory) -> tuple[Exported, Path]:
    out = tmp_path_factory.mktemp("exported") / "out"
    with pytest.MonkeyPatch.context() as patch:
        return exported(language, out, patch), out


def test_asymmetric_codes_take_a_bit_more_which_the_card_says(
    language: Source, language_out: tuple[Exported, Path]
) -> None:
    done, out = language_out
    assert done.choice.format.name == "compressed-tensors"
    extra = language.record.size["total"]["quantized_weights"] // 8
    assert f"{extra:,} bytes more than the exact size" in (out / "README.md").read_text()


def test_a_tied_head_is_parted_from_its_embeddings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = measured(
        tmp_path / "runs", "method=rtn", "component=head", "component.head.bits=4", "model.dtype=bfloat16"
    )
    exported(source, tmp_path / "out", monkeypatch, evaluate=True)
    names = header(tmp_path / "out" / "model.safetensors")
    assert "language_model.lm_head.weight_packed" in names
    assert names["language_model.model.decoder.embed_tokens.weight"]["dtype"] == "BF16"
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert not config["tie_word_embeddings"]
    assert not config["text_config"]["tie_word_embeddings"]
    assert "The head was tied" in (tmp_path / "out" / "README.md").read_text()


def test_llava_is_stored_by_its_names_with_embeddings_dense(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bits = ("component=vision", "component.embeddings.bits=3")
    source = measured(tmp_path / "runs", "model=tiny_llava", "task=scenes_vqa", *MIXED[:3], *bits)
    done = exported(source, tmp_path / "out", monkeypatch, evaluate=True)
    assert done.choice.format.name == "compressed-tensors"
    assert "The token embeddings (1 tensors) are stored dense" in (tmp_path / "out" / "README.md").read_text()
    checkpoint = checkpoint_path(source.model["checkpoint"])
    assert isinstance(checkpoint, Path)
    original, stored = (header(folder / "model.safetensors") for folder in (checkpoint, tmp_path / "out"))
    packed = {name.removesuffix("_packed") for name in stored if name.endswith(".weight_packed")}
    dense = {name for name in stored if ".weight_" not in name}
    assert packed
    assert packed | dense == original.keys()


def test_what_no_packed_format_holds_is_dequantized_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bits = ("component=vision", "component.vision.bits=4")
    source = measured(tmp_path / "runs", *AWQ, "method.fuse=false", *bits)
    done = exported(source, tmp_path / "out", monkeypatch, evaluate=True)
    assert done.choice.format.name == "dequantized"
    assert "input scales" in done.choice.why
    assert done.choice.why in (tmp_path / "out" / "README.md").read_text()


def check_folded(source: Source, out: Path) -> None:
    """Check that norms with a folded input scale differ from the checkpoint's."""
    checkpoint = checkpoint_path(source.model["checkpoint"])
    assert isinstance(checkpoint, Path)
    original, stored = (load_file(folder / "model.safetensors") for folder in (checkpoint, out))
    norms = [name for name in stored if "norm" in name]
    assert not all(torch.equal(original[name].to(stored[name].dtype), stored[name]) for name in norms)


def test_folded_input_scales_are_exported_in_norms_and_biases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bits = ("component=vision_language", "component.vision.bits=4", "component.language.bits=3")
    source = measured(tmp_path / "runs", *AWQ, *bits, "model.dtype=bfloat16")
    done = exported(source, tmp_path / "out", monkeypatch, evaluate=True)
    assert done.choice.format.name == "compressed-tensors"
    check_folded(source, tmp_path / "out")


def test_a_model_on_disk_gives_the_same_files(
    mixed: Source, mixed_out: tuple[Exported, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = mixed.sweep.configs[mixed.cell.id]
    sweep = replace(
        mixed.sweep, configs={mixed.cell.id: {**config, "model": {**config["model"], "device_map": "disk"}}}
    )
    exported(replace(mixed, sweep=sweep), tmp_path / "disk", monkeypatch, shard_bytes=10**5)
    kept, found = (
        {path.name: sha256(path) for path in folder.glob("*.safetensors")}
        for folder in (mixed_out[1], tmp_path / "disk")
    )
    assert len(kept) > 1
    assert found == kept


def test_a_wider_dtype_is_exact_dequantized(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = measured(tmp_path / "runs", *MIXED, "model.dtype=bfloat16")
    done = exported(source, tmp_path / "out", monkeypatch, asked=Asked(dtype="float32"))
    assert done.choice.format.name == "dequantized"
    assert {about["dtype"] for about in header(tmp_path / "out" / "model.safetensors").values()} == {"F32"}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "float32"
    card = (tmp_path / "out" / "README.md").read_text()
    assert "computes in float32, so its logits and metrics are not those that were measured" in card


def test_what_transformers_keeps_in_float32_is_exact_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bits = ("component=connector", "component.connector.bits=3")  # BLIP-2's Q-Former, in a model in halves.
    source = measured(tmp_path / "runs", "method=rtn", *bits, "model.dtype=float16")
    for dtype in (None, "float32"):
        out = tmp_path / str(dtype)
        exported(source, out, monkeypatch, asked=Asked(dtype=dtype), evaluate=dtype is None)
        names = header(out / "model.safetensors")
        stored = {one["dtype"] for name, one in names.items() if name.startswith("qformer") and "packed" not in name}
        assert "F32" in stored


@pytest.mark.parametrize("format", [None, "compressed-tensors"])
def test_a_dtype_that_is_not_exact_is_refused(
    mixed: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str | None
) -> None:
    with pytest.raises(ConfigError, match=r"--dtype bfloat16: .*measure the cell with model\.dtype=bfloat16"):
        exported(mixed, tmp_path / "out", monkeypatch, asked=Asked(format, "bfloat16"))
    assert leftovers(tmp_path) == []


def test_gptq_refuses_blip2(mixed: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"--format gptq .*use --format compressed-tensors"):
        exported(mixed, tmp_path / "out", monkeypatch, asked=Asked("gptq"))
    assert leftovers(tmp_path) == []


def test_evicted_units_are_computed_again_and_said(
    language: Source,
    language_out: tuple[Exported, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for path in (language.store.root / "artifacts" / "quantized").glob("*"):
        path.unlink()
    with caplog.at_level(logging.WARNING):
        exported(language, tmp_path / "after", monkeypatch, evaluate=True)
    assert "12 of 12 quantized units are no longer in the store" in caplog.text
    before, after = (load_file(folder / "model.safetensors") for folder in (language_out[1], tmp_path / "after"))
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert json.loads((tmp_path / "after" / "mmq_sweeps.json").read_text())["quantized_again"] == 12


def test_a_full_disk_leaves_nothing(mixed: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = WeightFiles.write

    def full(self: WeightFiles, name: str, tensor: torch.Tensor) -> None:
        if name.endswith("layers.3.fc1.bias"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written(self, name, tensor)

    monkeypatch.setattr(WeightFiles, "write", full)
    with pytest.raises(ConfigError, match=r"no room is left \(No space left on device\); make room"):
        exported(mixed, tmp_path / "out", monkeypatch)
    assert leftovers(tmp_path) == []


def test_a_disk_that_is_too_small_is_told_first(mixed: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=300_000))
    with pytest.raises(ConfigError, match=r"needs [1-9]\d*\.\d MB, and its disk has 0\.3 MB free"):
        exported(mixed, tmp_path / "out", monkeypatch)
    assert leftovers(tmp_path) == []


def flip_a_code(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["language_model.model.decoder.layers.0.fc1.weight_packed"][0, 0] ^= 1
    save_file(tensors, path, {"format": "pt"})


def change_a_bias(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["vision_model.encoder.layers.0.mlp.fc1.bias"] += 1
    save_file(tensors, path, {"format": "pt"})


def drop_a_bias(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    del tensors["vision_model.encoder.layers.0.mlp.fc1.bias"]
    save_file(tensors, path, {"format": "pt"})


def forget_a_group(folder: Path) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    del config["quantization_config"]["config_groups"]["group_0"]
    path.write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (flip_a_code, "are not those that were measured"),
        (change_a_bias, "its outputs are not those of the measured model: they differ by"),
        (drop_a_bias, "transformers does not load all of it"),
        (forget_a_group, "transformers does not load"),
    ],
)
def test_what_differs_is_found_and_leaves_nothing(
    mixed: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: object, told: str
) -> None:
    copied = exporting.write_config

    def write_config(checkpoint: Path, folder: Path, *more: object) -> None:
        copied(checkpoint, folder, *more)  # type: ignore[arg-type]
        damage(folder)  # type: ignore[operator]

    monkeypatch.setattr(exporting, "write_config", write_config)
    with pytest.raises(VerificationError, match=told):
        exported(mixed, tmp_path / "out", monkeypatch)
    assert leftovers(tmp_path) == []


def test_another_metric_than_the_records_is_found(
    mixed: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked = verify._check_metrics
    monkeypatch.setattr(verify, "_check_metrics", lambda expected, found: checked(dict.fromkeys(expected, 1.5), found))
    with pytest.raises(VerificationError, match=r"its cider is .*, and the record says 1\.5"):
        exported(mixed, tmp_path / "out", monkeypatch, evaluate=True)


def test_scales_that_a_format_does_not_hold_end_in_plain_weights(
    mixed: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tensors(*_: object) -> dict[str, torch.Tensor]:
        raise ValueError("a scale is not exact")

    monkeypatch.setattr(CompressedTensors, "tensors", tensors)
    done = exported(mixed, tmp_path / "out", monkeypatch)
    assert done.choice.format.name == "dequantized"
    assert done.choice.why.endswith("a scale is not exact")
    with pytest.raises(ConfigError, match=r"--format compressed-tensors: .* not exact; use --format dequantized"):
        exported(mixed, tmp_path / "other", monkeypatch, asked=Asked("compressed-tensors"))


HELD_UP = """
import sys, time
from pathlib import Path
from mmq_sweeps.export import __main__ as command
from mmq_sweeps.export.writer import WeightFiles

def write(self, name, tensor):
    Path("writing").touch()
    time.sleep(60)

WeightFiles.write = write
command.main(sys.argv[1:])
"""


def test_a_killed_export_leaves_no_folder_under_the_name(mixed: Source, tmp_path: Path) -> None:
    from launch import sweep_file
    from launch.planning.plan import make_plan

    store = mixed.store
    sweep_file.write(
        store, make_plan(mixed.sweep, lambda _: None, lambda _: None, {}, None), "python -m mmq_sweeps", {}
    )
    given = [mixed.record.id, "--source", str(store.root), "--out", str(tmp_path / "out")]
    process = Forked(PROGRAM, [HELD_UP, *given], tmp_path, command_environment())
    while not (tmp_path / "writing").exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    left = [name for name in leftovers(tmp_path) if name != "writing"]
    assert len(left) == 1
    assert left[0].startswith(".out.exporting-")


@pytest.mark.parametrize("name", ["**", "[a-"])
def test_any_name_of_a_folder_serves(tmp_path: Path, name: str) -> None:
    with folder_at(tmp_path / name) as folder:
        (folder / "file").touch()
    assert [path.name for path in (tmp_path / name).iterdir()] == ["file"]


def test_a_damaged_unit_is_computed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bits = ("component=vision", "component.vision.bits=4")
    source = measured(tmp_path / "runs", *AWQ, *bits)
    for path in (tmp_path / "runs" / "artifacts" / "quantized").glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:100])
    exported(source, tmp_path / "out", monkeypatch, evaluate=True)
    check_folded(source, tmp_path / "out")


def test_siglip_is_exported_dequantized(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checkpoint("paligemma2_3b", tmp_path / "paligemma")
    model = ("model=paligemma2_3b", f"model.checkpoint={tmp_path / 'paligemma'}", "model.revision=null")
    source = measured(tmp_path / "runs", *model, "task=scenes_vqa", "method=rtn", "bits=4")
    done = exported(source, tmp_path / "out", monkeypatch)
    assert done.choice.format.name == "dequantized"
    assert "(Siglip), so it cannot be packed" in done.choice.why
    assert source.record.loads_in == ["dequantized"]


def test_numbers_are_compared_beside_nan() -> None:
    nan = float("nan")
    one = [torch.tensor([1.0, nan])]
    assert verify._check_outputs([one], [[torch.tensor([1.0, nan])]]) == 1
    for other in ([2.0, nan], [1.0, 1.0], [nan, nan], [1.0]):
        with pytest.raises(VerificationError, match="not those of the measured model"):
            verify._check_outputs([one], [[torch.tensor(other)]])
    with pytest.raises(VerificationError, match=r"no output .* is a number"):
        verify._check_outputs([[torch.tensor([nan])]], [[torch.tensor([nan])]])
