"""``python -m mmq_sweeps.models``: its figures by hand, its errors, and a yaml of one's own."""

from __future__ import annotations

import json
import re
import runpy
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from mmq_sweeps.config.model_catalog import model_names
from mmq_sweeps.config.paths import conf_dir
from mmq_sweeps.execution.executor import quiet_libraries
from mmq_sweeps.identity.end_parts import END_PARTS
from mmq_sweeps.models.__main__ import main
from mmq_sweeps.models.loading import silent_bars
from mmq_sweeps.models.shapes import CONFIGS
from tests.models.quantized.folders import EMBEDDED, LANGUAGE, VISION, as_gptq, compress, scheme, small_llama
from tests.models.test_shapes import BY_HAND

ROOT = Path(__file__).parents[2]
TOTAL = 3_744_679_936
CHOICES = ("blip2_opt_2_7b", "--bits", "vision=3", "connector=4", "language=8")


def test_an_assignment_by_hand(capsys: pytest.CaptureFixture[str]) -> None:
    main([*CHOICES, "--json"])
    told = json.loads(capsys.readouterr().out)
    vision, connector, language = BY_HAND["blip2_opt_2_7b"].values()
    weights = vision + connector + language
    assert (told["total"]["parameters"], told["total"]["quantized_weights"]) == (TOTAL, weights)
    paper_bits = 3 * vision + 4 * connector + 8 * language + 16 * (TOTAL - weights)
    assert told["total"]["bpw_paper"] == paper_bits / TOTAL
    # A row of a weight has a scale of 16 bits and a zero as wide as a code; all rows here fill whole bytes.
    vision_rows = 39 * (3 * 1408 + 1408 + 6144 + 1408)
    connector_rows = 12 * (4 * 768 + 3072 + 768) + 6 * 4 * 768
    language_rows = 32 * (4 * 2560 + 10240 + 2560)
    grids = vision_rows * (16 + 3) + connector_rows * (16 + 4) + language_rows * (16 + 8)
    assert told["total"]["bpw_exact"] == (paper_bits + grids) / TOTAL
    assert told["total"]["size_bytes"] == (paper_bits + grids) // 8
    assert told["parts"]["language"]["bpw_paper"] < 8.5


def test_a_part_left_out_stays_at_full_precision(capsys: pytest.CaptureFixture[str]) -> None:
    main(["llava_1_5_7b", "--bits", "language=4", "--group-size", "128", "--json"])
    told = json.loads(capsys.readouterr().out)
    assert told["bits"] == {"vision": 16, "language": 4, "embeddings": 16, "head": 16}
    assert told["parts"]["vision"]["bpw_exact"] == 16
    weights = BY_HAND["llava_1_5_7b"]["language"]
    per_weight = 4 + (16 + 4) / 128
    parameters = told["total"]["parameters"]
    expected = (per_weight * weights + 16 * (parameters - weights)) / parameters
    assert told["total"]["bpw_exact"] == pytest.approx(expected, rel=1e-12)


def test_all_models(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--json"])
    told = json.loads(capsys.readouterr().out)
    assert [model["model"] for model in told] == model_names()
    for model in told:
        with_blocks = [part for name, part in model["parts"].items() if name not in END_PARTS]
        assert sum(part["parameters"] for part in with_blocks) <= model["parameters"]
        assert all(0 < part["quantizable_weights"] < part["parameters"] for part in with_blocks)
        ends = [part for name, part in model["parts"].items() if name in END_PARTS]
        assert ends
        assert all(part["quantizable_weights"] == part["parameters"] for part in ends)
        assert all((part["parameters"] == 0) is ("tied_to" in part) for part in ends)
    table = runpy.run_path(str(ROOT / "docs" / "tables.py"))
    assert table["updated"]("models", table["models"](told)) == (table["TABLES"] / "models.csv").read_text()


def test_qwen_at_four_widths(capsys: pytest.CaptureFixture[str]) -> None:
    """Language 3, vision 4, embeddings and head 8: 3.81 bits per weight by the study's formula."""
    main(["qwen2_5_vl_7b", "--bits", "language=3", "vision=4", "embeddings=8", "head=8", "--json"])
    told = json.loads(capsys.readouterr().out)
    assert told["bits"] == {"vision": 4, "language": 3, "embeddings": 8, "head": 8}
    table = 152064 * 3584
    assert {told["parts"][part]["quantized_weights"] for part in END_PARTS} == {table}
    language, vision, parameters = 6_525_288_448, 629_964_800, 8_292_166_656
    rest = parameters - language - vision - 2 * table
    expected = (3 * language + 4 * vision + 8 * 2 * table + 16 * rest) / parameters
    assert told["total"]["bpw_paper"] == expected
    assert round(expected, 2) == 3.81


def test_a_tied_head_is_counted_once(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {}
    for part, other in (END_PARTS, reversed(END_PARTS)):
        main(["qwen2_5_vl_3b", "--bits", f"{part}=4", "--json"])
        told = json.loads(capsys.readouterr().out)
        assert told["parts"][other] == {
            **told["parts"][part], "parameters": 0, "quantized_weights": 0, "size_bytes": 0, "tied_to": part,
        }  # fmt: skip
        assert told["total"]["quantized_weights"] == told["parts"][part]["parameters"] == 151936 * 2048
        sizes[part] = told["total"]
    assert sizes["head"] == sizes["embeddings"]


def printed(capsys: pytest.CaptureFixture[str]) -> str:
    return "".join(f"{line.rstrip()}\n" for line in capsys.readouterr().out.splitlines())


def test_models_for_a_person(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmq_sweeps.models.__main__.model_names", lambda: ["blip2_opt_2_7b", "qwen3_vl_30b_a3b"])
    main([])
    assert (
        printed(capsys)
        == """\
                                                quantizable             all
model                       blocks  linears         weights      parameters
───────────────────────────────────────────────────────────────────────────
blip2_opt_2_7b                                                3,744,679,936
  vision          ViT           39      156     984,023,040     985,952,256
  connector       Q-Former      12       96     104,988,672     105,137,664
  language        LLM           32      192   2,516,582,400   2,651,596,800
  embeddings                     1        1     128,696,320     128,696,320
  head            tied           1        1               0               0
qwen3_vl_30b_a3b                                             31,070,754,032
  vision          ViT           27      108     411,070,464     538,631,408
  language        LLM           48   12,480  29,896,998,912  30,220,957,696
  embeddings                     1        1     311,164,928     311,164,928
  head                           1        1     311,164,928     311,164,928
"""
    )


def test_the_documentation_shows_an_assignment_s_size_and_names_all_models(capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs" / "models.md").read_text()
    main([*CHOICES])
    assert f"```sh\npython -m mmq_sweeps.models {' '.join(CHOICES)}\n```\n\n```text\n{printed(capsys)}```\n" in page
    assert all(f"`{path.stem}`" in page for path in CONFIGS.glob("*"))


@pytest.fixture(scope="module")
def compressed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("models") / "compressed"
    with quiet_libraries(), silent_bars():
        return compress(EMBEDDED / "tiny_blip2", out, scheme(VISION, 4, 32), scheme(LANGUAGE, 3))


def test_a_folder_for_a_person(capsys: pytest.CaptureFixture[str], compressed: Path) -> None:
    main([str(compressed)])
    table, below = printed(capsys).replace(str(compressed), "DIR").split("DIR: ")
    assert (
        table
        == """\
                                                                     quantized      bpw      bpw  size
part                  bits    group  zeros  format          linears    weights    paper    exact    MB
──────────────────────────────────────────────────────────────────────────────────────────────────────
vision      ViT          4       32  no     pack-quantized       24    294,912   4.7587   5.7052   0.2
connector   Q-Former    16                                                      16.0000  16.0000   0.3
language    LLM          3  channel  no     pack-quantized       36    294,912   3.6436   4.0149   0.2
embeddings              16                                                      16.0000  16.0000   0.0
head        tied        16                                                      16.0000  16.0000   0.0

all                                                                    589,824   6.3453   6.8864   0.7
"""
    )
    assert f"```text\nDIR: {below}```\n" in (ROOT / "docs" / "models.md").read_text()


def test_a_folder_for_a_program(capsys: pytest.CaptureFixture[str], compressed: Path) -> None:
    main([str(compressed), "--json"])
    told = json.loads(capsys.readouterr().out)
    assert {name: [(own["bits"], own["group_size"], own["linears"]) for own in part["stored"]]
            for name, part in told["parts"].items()} == {
        "vision": [(4, 32, 24)], "connector": [], "language": [(3, "channel", 36)], "embeddings": [], "head": [],
    }  # fmt: skip
    assert told["faults"] == []
    assert told["loads_in"]["transformers"] == {"loads": True, "needs": ["compressed-tensors>=0.18"], "reasons": []}
    assert told["loads_in"]["vllm"]["loads"] is False
    weights = 2 * 294_912
    assert told["total"]["quantized_weights"] == weights
    assert (
        told["total"]["bpw_paper"]
        == (3.5 * weights + 16 * (told["total"]["parameters"] - weights)) / (told["total"]["parameters"])
    )


def test_a_part_of_several_widths_has_a_row_for_each(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with quiet_libraries(), silent_bars():
        own = [
            scheme("re:.*vision.*fc1$", 4, 32),
            scheme("re:.*vision.*fc2$", 8),
            scheme("re:^language_projection$", 5),
        ]
        folder = compress(EMBEDDED / "tiny_blip2", tmp_path / "it", *own)
    main([str(folder)])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    start = next(number for number, line in enumerate(lines) if line[:2] == ["vision", "ViT"])
    assert [line[:3] for line in lines[start + 1 : start + 3]] == [["4", "32", "no"], ["8", "channel", "no"]]
    outside = next(number for number, line in enumerate(lines) if line == ["outside"])
    assert lines[outside + 1][:5] == ["5", "channel", "no", "pack-quantized", "1"]


def test_a_model_that_no_yaml_has_is_shown_as_a_whole(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = as_gptq(small_llama(tmp_path / "llama"), tmp_path / "it", lambda name: None if "head" in name else 4)
    main([str(folder)])
    shown = capsys.readouterr().out
    assert re.search(r"linears *\n +4 +32 +no +gptq +14 ", shown)
    assert "a LlamaForCausalLM by gptq (quantization_config in config.json)" in shown
    assert "yes, with optimum and gptqmodel (optimum not installed, gptqmodel not installed)" in shown


def test_a_folder_at_full_precision_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    main([str(EMBEDDED / "tiny_llava")])
    assert "a LlavaForConditionalGeneration at full precision; its files hold 2," in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["./absent"], "absent: is not a folder"),
        (["."], "holds no config.json, so it is no checkpoint"),
        (
            [str(EMBEDDED / "tiny_llava"), "--bits", "vision=3"],
            "--bits: .* is a checkpoint, which is shown as it is stored",
        ),
    ],
)
def test_a_folder_that_cannot_be_shown_is_a_line(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(f"^error: .*{message}", line)


def test_in_an_empty_folder(command: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = command(*CHOICES, module="mmq_sweeps.models")
    assert (done.returncode, done.stderr) == (0, "")
    assert "6.8711   6.8790" in done.stdout
    wrong = command("blip2_op", module="mmq_sweeps.models")
    assert (wrong.returncode, wrong.stdout, wrong.stderr.count("\n")) == (2, "", 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["blip2"], "Unknown model 'blip2'.*Choose .*llava_1_5_7b"),
        (
            ["llava_1_5_7b", "--bits", "connector=3"],
            "Unknown part 'connector'.*Choose vision, language, embeddings or head",
        ),
        (["llava_1_5_7b", "--bits", "vision=9"], "vision=9: choose 2 to 8, or 16"),
        (["llava_1_5_7b", "--bits", "vision=1"], "vision=1: choose 2 to 8, or 16"),
        (["llava_1_5_7b", "--bits", "vision=three"], "vision=three: choose 2 to 8, or 16"),
        (["llava_1_5_7b", "--bits", "vision=³"], "vision=³: choose 2 to 8, or 16"),
        (["llava_1_5_7b", "--bits", "vision"], "vision: is not PART=BITS"),
        (["llava_1_5_7b", "--bits", "vision=3", "vision=4"], "vision is given twice"),
        (["llava_1_5_7b", "--bits"], "--bits: expected at least one argument"),
        (["--bits", "vision=3"], "--bits needs a model. Choose "),
        (["llava_1_5_7b", "--bits", "vision=3", "--group-size", "row"], "--group-size row: .*tensor, channel or"),
        (["llava_1_5_7b", "--group-size", "0"], "--group-size 0: .*tensor, channel or"),
        (
            ["llava_1_5_7b", "--bits", "vision=3", "--group-size", "96"],
            r"--group-size: group_size=96 does not divide 1024 .*k_proj\)",
        ),
        (
            ["qwen2_5_vl_3b", "--bits", "embeddings=8", "head=4"],
            "component.embeddings and component.head: of qwen2_5_vl_3b they are one weight .* choose one, it quantizes both",
        ),
        (["absent.yaml"], "absent.yaml: is not a file"),
        (["llava_1_5_7b", "more"], "unrecognized arguments: more"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    told = capsys.readouterr()
    assert (stopped.value.code, told.out, told.err.count("\n")) == (2, "", 1)
    assert re.search(message, told.err)


@pytest.fixture
def own_yaml(tmp_path: Path) -> Path:
    """Write a yaml outside ``conf/model``, of a checkpoint in a folder that has no weights yet."""
    checkpoint = tmp_path / "my_blip2"
    checkpoint.mkdir()
    shutil.copy(CONFIGS.parent / "embedded" / "tiny_blip2" / "config.json", checkpoint)
    text = (conf_dir() / "model" / "tiny_blip2.yaml").read_text()
    lines = [line for line in text.splitlines() if not line.startswith(("name:", "checkpoint:"))]
    path = tmp_path / "my_blip2.yaml"
    path.write_text("\n".join([*lines, "name: my_blip2", f"checkpoint: {checkpoint}"]))
    return path


def test_a_yaml_of_one_s_own(own_yaml: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(own_yaml), "--json"])
    own = json.loads(capsys.readouterr().out)
    main(["tiny_blip2", "--json"])
    embedded = json.loads(capsys.readouterr().out)
    assert own["model"] == "my_blip2"
    assert own["parts"] == embedded["parts"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("checkpoint: some/where", "its shape is not known without a folder as model.checkpoint, not some/where or "),
        ("checkpoint: ./nowhere", "its shape is not known without .*nowhere/config.json or .*configs/my_blip2.json"),
        ("class_name: Blip7", "model.class_name=Blip7: transformers .* has no such class"),
        ("class_name: [", "my_blip2.yaml: while parsing"),
        ("colour: red", "my_blip2.yaml: .*colour"),
        ("checkpoint: ???", "my_blip2.yaml: .*checkpoint"),
    ],
)
def test_a_yaml_that_does_not_serve(
    line: str, message: str, own_yaml: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = line.partition(":")[0]
    kept = [one for one in own_yaml.read_text().splitlines() if not one.startswith(f"{key}:")]
    own_yaml.write_text("\n".join([*kept, line]))
    with pytest.raises(SystemExit):
        main([str(own_yaml)])
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert re.search(message, told)
