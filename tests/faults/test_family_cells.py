"""Families of models as whole cells, from checkpoints in folders: every yaml, every processor and its requirements."""

from __future__ import annotations

import configparser
import json
import re
import shutil
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmq_sweeps.config.model_catalog import model_names, read_model
from mmq_sweeps.config.sweep import Sweep, plan
from mmq_sweeps.execution import environment
from mmq_sweeps.execution.executor import execute
from mmq_sweeps.execution.session import Sessions
from mmq_sweeps.identity.checkpoint import checkpoint_path
from mmq_sweeps.methods.base import LayerStats
from mmq_sweeps.methods.formats import Format
from mmq_sweeps.methods.gptq import GPTQ
from mmq_sweeps.models import processors
from mmq_sweeps.models.loading import load_model
from mmq_sweeps.quantization.stored_units import load
from mmq_sweeps.reporting.progress import Progress
from mmq_sweeps.store.claims import Claims
from mmq_sweeps.store.record import Record
from mmq_sweeps.store.store import Store
from tests.models.other_toys import CHECKPOINTS, IDEFICS2_PARTS, T5_PART
from tests.models.toys import write_checkpoint, write_other_checkpoint


def sweep_of(composed: Any, name: str, checkpoint: Path, store: Path, *more: str) -> Sweep:
    """Plan full precision and 4 bits of all parts by GPTQ."""
    retrieves = name == "blip2_itm_vit_g"
    overrides = [
        f"model={name}", f"model.checkpoint={checkpoint}", f"store.dir={store}", "model.dtype=float32", "method=gptq",
        "bits=4", "component=all", "task.limit=2", "calibration.samples=4", "calibration.batch_size=2", "tracker=none",
        *(["task=scenes_retrieval", "task.shortlist=2"] if retrieves else ["task=scenes_vqa"]),
    ]  # fmt: skip
    return plan([composed(*overrides, *more)])


def run(sweep: Sweep, store: Path) -> list[Record]:
    records: list[Record] = []
    with Progress(len(sweep.cells)) as progress:
        execute(sweep.cells, sweep, Claims(Store.open(store)), progress, records.append)
    assert [record.error for record in records] == [None] * len(records)
    return records


def written(name: str, folder: Path) -> Path:
    write = write_other_checkpoint if name in CHECKPOINTS else write_checkpoint
    write(name, folder / "checkpoint")
    return folder / "checkpoint"


needs_num2words = pytest.mark.skipif(
    find_spec("num2words") is None, reason="needs num2words: pip install -c constraints.txt -e '.[test]'"
)


def families() -> list[str]:
    """Return the models whose yamls differ in more than their names and checkpoints."""
    found: dict[str, str] = {}
    for name in model_names():
        if not name.startswith("tiny_"):
            rest = {
                key: value for key, value in read_model(name).items() if key not in ("name", "checkpoint", "revision")
            }
            found.setdefault(json.dumps(rest, sort_keys=True), name)
    return list(found.values())


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=needs_num2words if name.startswith("smolvlm") else ()) for name in families()],
)
def test_every_model_yaml_is_built_and_run_from_a_checkpoint_of_its_family(
    name: str, composed: Any, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    full, quantized = run(sweep_of(composed, name, written(name, tmp_path), store), store)
    assert full.size["total"]["bpw_paper"] == 16
    for own in read_model(name)["parts"]:
        assert quantized.size["parts"][own]["quantized_weights"] > 0


def test_the_record_and_a_warning_count_the_experts_that_no_calibration_token_reached(
    composed: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The router's logits are a, a, -a, -a, 0 and 0, so the last two experts are never among the highest two."""
    checkpoint, store = written("qwen3_vl_30b_a3b", tmp_path), tmp_path / "store"
    weights = load_file(checkpoint / "model.safetensors")
    routers = [name for name in weights if name.endswith("mlp.gate.weight")]
    assert len(routers) == 3
    for name in routers:
        row = weights[name][0]
        weights[name] = torch.stack([row, row, -row, -row, 0 * row, 0 * row])
    save_file(weights, checkpoint / "model.safetensors", {"format": "pt"})
    full, quantized = run(sweep_of(composed, "qwen3_vl_30b_a3b", checkpoint, store), store)
    assert "experts_without_tokens" not in full.notes
    assert quantized.notes["experts_without_tokens"] == {f"language.{block}.mlp": 2 for block in range(3)}
    assert "2 of 6 experts of language.0.mlp" in caplog.text
    assert "met no calibration token and are rounded to nearest" in caplog.text


def custom(parts: Mapping[str, Mapping[str, Any]], class_name: str, prompt: str) -> list[str]:
    """Return the overrides of a model without a yaml, with all of its parts quantized."""
    return [
        f"model.class_name={class_name}",
        f"model.prompts.question='{prompt}'",
        "model.generation.question={num_beams: 1, max_new_tokens: 4}",
        *(f"~model.parts.{name}" for name in ("vision", "connector", "language") if name not in parts),
        *(f"model.parts.{name}={json.dumps(where)}".replace('"', "") for name, where in parts.items()),
        *(f"~component.{name}" for name in ("vision", "connector", "language") if name not in parts),
    ]


FLAN_T5 = custom({"language": T5_PART}, "Blip2ForConditionalGeneration", "Question: {question} Answer:")
IDEFICS2 = custom(IDEFICS2_PARTS, "Idefics2ForConditionalGeneration", "<image>{question}")


def test_an_encoder_decoder_is_run_and_calibrated_with_the_answers_for_its_decoder(
    composed: Any, tmp_path: Path
) -> None:
    """The encoder reads the question, the decoder its start token and the answer but for its last token."""
    store = tmp_path / "store"
    sweep = sweep_of(composed, "custom", written("flan_t5", tmp_path), store, *FLAN_T5)
    _, quantized = run(sweep, store)
    encoder, decoder = 4 * 32 * 32 + 3 * 32 * 48, 8 * 32 * 32 + 3 * 32 * 48
    assert quantized.size["parts"]["language"]["quantized_weights"] == 2 * (encoder + decoder)

    session = Sessions(sweep, Store.open(store)).open(sweep.cells[-1])
    samples = list(session.task.examples.drawn(sweep.cells[-1].calibration))
    batches = list(session.task.calibration_batches(session.loaded, {**sweep.cells[-1].calibration, "batch_size": 2}))
    told = [
        row[mask.bool()].tolist()
        for batch in batches
        for row, mask in zip(batch["decoder_input_ids"], batch["decoder_attention_mask"], strict=True)
    ]
    items = [session.task.items_of(sample) for sample in samples]
    answers = [own[place % len(own)].references[0] for place, own in enumerate(items)]
    tokens = [session.loaded.processor.tokenizer(answer)["input_ids"] for answer in answers]
    assert told == [[0, *answer[:-1]] for answer in tokens]


def test_a_decoder_is_calibrated_behind_its_quantized_encoder_if_asked(composed: Any, tmp_path: Path) -> None:
    """The model's computation between encoder and decoder is repeated with the encoder quantized."""
    store = tmp_path / "store"
    more = ("method.sequential=true", "bits=2", "calibration.batch_size=4")
    sweep = sweep_of(composed, "custom", written("flan_t5", tmp_path), store, *FLAN_T5, *more)
    session = Sessions(sweep, Store.open(store)).open(sweep.cells[-1])
    requests = session.requests(sweep.cells[-1])
    assert not session.compute(requests, Progress(1))
    found = {name: weight.dequantize() for name, weight in load(requests, session.store)[0].weights.items()}
    name = "language_model.decoder.block.0.layer.1.EncDecAttention.k"
    encoder = {name: weight for name, weight in found.items() if ".encoder." in name}
    (batch,) = session.task.calibration_batches(session.loaded, {**sweep.cells[-1].calibration, "batch_size": 4})
    solved = []
    for before in ({}, encoder):
        seen: list[Tensor] = []
        linear = session.loaded.linear(name)
        handle = linear.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0]))
        with session.loaded.weights_replaced(before), torch.no_grad():
            session.loaded.model(**batch, use_cache=False)
        handle.remove()
        x = seen[0][batch["attention_mask"].bool()].double()
        stats = LayerStats((x.T @ x / len(x)).float(), x.abs().mean(dim=0).float(), len(x))
        solved.append(GPTQ().quantize([linear.weight], stats, Format(2)).weights[0].dequantize())
    assert (solved[1] - found[name]).abs().lt(1e-6).float().mean() > 0.99
    assert (solved[0] - found[name]).abs().lt(1e-6).float().mean() < 0.99


# The first three pad images of unequal size, the fourth packs them, the last makes them equal.
@pytest.mark.parametrize("name", ["idefics2", "idefics3_8b", "internvl3_2b", "qwen2_5_vl_3b", "llava_1_5_7b"])
def test_the_calibration_batch_size_changes_no_code_though_images_have_unequal_sizes(
    name: str, composed: Any, tmp_path: Path
) -> None:
    checkpoint = written(name, tmp_path)
    own = ("custom", *IDEFICS2) if name == "idefics2" else (name,)
    found = []
    for size in (1, 4):
        store = tmp_path / f"by_{size}"
        more = (*own[1:], "task.data._target_=tests.models.unequal.UnequalScenes", f"calibration.batch_size={size}")
        sweep = sweep_of(composed, own[0], checkpoint, store, *more)
        session = Sessions(sweep, Store.open(store)).open(sweep.cells[-1])
        assert not session.compute(session.requests(sweep.cells[-1]), Progress(1))
        files = sorted((store / "artifacts" / "quantized").glob("*.safetensors"))
        found.append({f"{path.stem} {key}": tensor for path in files for key, tensor in load_file(path).items()})
    codes = [key for key in found[0] if key.endswith(":codes")]
    assert codes
    assert found[0].keys() == found[1].keys()
    assert sum(int((found[0][key] != found[1][key]).sum()) for key in codes) == 0


# Requirements of processors.


def test_a_package_that_a_processor_needs_is_named_with_its_command_before_weights_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.models.smolvlm.processing_smolvlm.num2words", None)
    monkeypatch.setattr(processors, "_installed", lambda package: False)
    checkpoint = written("smolvlm2_2_2b", tmp_path)
    (checkpoint / "model.safetensors").write_bytes(b"not read")
    config = {**read_model("smolvlm2_2_2b"), "checkpoint": str(checkpoint), "dtype": "float32"}
    with pytest.raises(ValueError, match=r"its processor needs num2words.* pip install 'mmq-sweeps\[smolvlm\]'"):
        load_model(config)


OWN_CODE = {"auto_map": {"AutoProcessor": "own.Own"}, "processor_class": "Own"}


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("tokenizer.json", None, "cannot be read: ValueError: Couldn't instantiate the backend tokenizer"),
        ("tokenizer.json", "{}", "cannot be read: KeyError: 'added_tokens'; look at its tokenizer.json"),
        ("processor_config.json", OWN_CODE, "is code of the checkpoint's own"),
    ],
)
def test_a_processor_that_cannot_be_read_is_an_error_of_one_line_without_a_question(
    file: str, content: str | dict[str, Any] | None, message: str, tmp_path: Path
) -> None:
    config = read_model("tiny_llava")
    folder = shutil.copytree(checkpoint_path(config["checkpoint"]), tmp_path / "copy")
    path = folder / file
    if content is None:
        path.unlink()
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(json.loads(path.read_text()) | content))
    with pytest.raises(ValueError, match=f"^model.checkpoint={folder}: its processor ") as error:
        load_model({**config, "checkpoint": str(folder), "revision": None})
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ImportError("Gemma3nModel requires the timm library. You can install it: `pip install timm`"), r"needs timm.*gemma3n"),
        (ValueError("None could be imported. Missing optional dependencies: torchvision."), r"needs torchvision.*llama4"),
        (ModuleNotFoundError("No module named 'absent.inner'", name="absent.inner"), "needs absent, .* pip install absent"),
        (RuntimeError("shapes do not fit"), None),
        (ValueError("a torch device"), None),
    ],
)  # fmt: skip
def test_absent_packages_are_read_from_the_libraries_errors(
    error: Exception, told: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processors, "_installed", lambda package: False)
    found = processors.missing_package(error)
    assert found is None if told is None else re.match(told, str(found))


def test_a_package_that_is_there_and_does_not_work_is_named_with_both_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processors, "_installed", lambda package: True)
    told = processors.missing_package(RuntimeError("operator torchvision::nms does not exist"))
    assert told is not None
    assert re.match(r"needs torchvision, of which .* does not work beside torch \d", told)


def test_every_package_that_is_named_is_in_an_extra_and_in_the_one_for_all_families() -> None:
    config = configparser.ConfigParser()
    config.read(Path(__file__).parents[2] / "setup.cfg")
    extras = config["options.extras_require"]
    for package, extra in processors.EXTRAS.items():
        assert re.search(rf"^{package}\b", extras[extra], flags=re.MULTILINE)
        assert re.search(rf"^{package}\b", extras["families"], flags=re.MULTILINE)


def test_the_record_has_the_versions_of_what_changes_pixels_and_tokens() -> None:
    assert {"torchvision", "pillow", "tokenizers", "sentencepiece", "transformers"} <= environment.versions().keys()
