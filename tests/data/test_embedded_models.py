"""The models that come with the package: their training, the effect of it, and their files."""

from __future__ import annotations

import configparser
import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoProcessor

from mmq_sweeps.config.model_catalog import read_model
from mmq_sweeps.data.scenes import Example, Scenes, tiny_blip2, tiny_blip2_itm, tiny_llava
from mmq_sweeps.data.scenes.network import IGNORED, Names, Recipe, smooth_patches
from mmq_sweeps.data.scenes.quality import answer_accuracy, recalls
from mmq_sweeps.data.scenes.scene import Words
from mmq_sweeps.data.scenes.tiny_blip2 import Captioner
from mmq_sweeps.data.scenes.tiny_blip2_itm import Retriever
from mmq_sweeps.data.scenes.tiny_llava import ANSWER, PREFIX, Answerer, pack, read
from mmq_sweeps.data.scenes.train import RECIPES, main, save, train
from mmq_sweeps.data.scenes.words import VOCABULARY, questions, references

ROOT = Path(__file__).parents[2]
EMBEDDED = ROOT / "mmq_sweeps" / "models" / "embedded"
SHORT: dict[str, Recipe] = {
    "tiny_blip2": Captioner(
        steps=12, batch=16, warmup=2, widths=tiny_blip2.Widths(width=32, vision=1, connector=1, language=1, queries=4)
    ),
    "tiny_blip2_itm": Retriever(
        steps=20, batch=8, warmup=2, widths=tiny_blip2_itm.Widths(width=32, vision=1, connector=1, queries=4)
    ),
    "tiny_llava": Answerer(
        steps=12, batch=8, questions=2, warmup=2, widths=tiny_llava.Widths(width=32, vision=1, language=1)
    ),
}


def load(name: str, folder: Path | None = None) -> tuple[Any, Any]:
    folder = folder or EMBEDDED / name
    model_class = getattr(transformers, read_model(name)["class_name"])
    return model_class.from_pretrained(folder, dtype=torch.float32).eval(), AutoProcessor.from_pretrained(folder)


@pytest.mark.parametrize("name", list(SHORT))
def test_training_learns_and_saves(name: str, tmp_path: Path) -> None:
    model, processor, losses = train(SHORT[name])
    assert sum(losses[-3:]) / 3 < losses[0] - 0.1
    save(model, processor, tmp_path)
    loaded, again = load(name, tmp_path)
    assert len(again.tokenizer) == len(processor.tokenizer)
    kept = model.state_dict()
    assert all(torch.equal(weight, kept[key]) for key, weight in loaded.state_dict().items())


@pytest.mark.parametrize("name", list(RECIPES))
def test_the_script_trains_the_model_that_it_is_asked_for_alike_each_time(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(RECIPES, name, SHORT[name])
    monkeypatch.setattr(type(SHORT[name]), "quality", lambda *_: {"right": 0.5})
    main([name, "--steps", "2", "--seed", "3", "--out", str(tmp_path / "out")])
    assert capsys.readouterr().out == "right 50.0%\n"
    expected = train(replace(SHORT[name], steps=2, seed=3))[0].state_dict()
    loaded = load(name, tmp_path / "out")[0].state_dict()
    assert all(torch.equal(weight, expected[key]) for key, weight in loaded.items())


def test_steps_and_seeds_out_of_range_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["tiny_llava", "--steps", "0", "--seed", "-1"])
    told = capsys.readouterr().err
    assert "--steps 0: choose 1 or more" in told
    assert "--seed -1: choose 0 or more" in told


def test_the_captioner_is_trained_as_it_was() -> None:
    """Compare with a digest from the code that trained the packaged model: the same batches mean the same weights."""
    recipe = replace(Captioner(), steps=4)
    digest = hashlib.sha256()
    for batch in recipe.batches(recipe.build()[1]):
        for tensor in (batch.pixels, batch.tokens, batch.mask, batch.labels):
            digest.update(tensor.numpy().tobytes())
    assert digest.hexdigest() == "038b56455e68799abbc5ccf76a7d3ffa4230f82247196e128667f126845859ea"


def test_turns_of_a_row_do_not_see_each_other() -> None:
    model, processor = SHORT["tiny_llava"].build()
    scenes = [Scenes("train", 3).scene(index) for index in range(3)]
    turns = [
        [(tiny_llava.CAPTION, references(scene)[1])]
        + [(ANSWER.format(question=asked.question), asked.answer) for asked in questions(scene)[:3]]
        for scene in scenes
    ]
    with torch.no_grad():
        together = pack(scenes, turns, processor)
        hidden = read(model, together)[0]
        for number in range(4):
            alone = pack(scenes, [[asked[number]] for asked in turns], processor)
            expected = read(model, alone)[0][alone.turns == 1]
            torch.testing.assert_close(hidden[together.turns == number + 1], expected)


def test_a_turn_is_what_the_processor_makes_of_the_prompt() -> None:
    """Training packs its rows itself: the model has to read the tokens that the processor will give it."""
    model, processor = SHORT["tiny_llava"].build()
    example, scene = Scenes("train", 1)[0], Scenes("train", 1).scene(0)
    asked = example.questions[3]
    batch = pack([scene], [[(ANSWER.format(question=asked.question), asked.answer)]], processor)
    text = f"{PREFIX}{ANSWER}".format(question=asked.question)
    inputs = processor(images=[example.image], text=[f"{text} {asked.answer}</s>"], return_tensors="pt")
    assert inputs.input_ids.tolist() == batch.tokens.tolist()
    torch.testing.assert_close(inputs.pixel_values, batch.pixels)
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, model.lm_head(read(model, batch)[0]))


def test_contrast_and_matching_are_the_model_s_own() -> None:
    model, processor = SHORT["tiny_blip2_itm"].build()
    examples = list(Scenes("train", 4))
    texts = [example.references[index] for index, example in enumerate(examples)]
    inputs = processor(images=[e.image for e in examples], text=texts, return_tensors="pt", padding=True)
    tokens = tiny_blip2_itm.tokenize(texts, processor.tokenizer)
    with torch.no_grad():
        seen = model.vision_model(inputs.pixel_values).last_hidden_state
        torch.testing.assert_close(tiny_blip2_itm.contrast(model, seen, tokens), model(**inputs).logits_per_image)
        matched = model(**inputs, use_image_text_matching_head=True).logits_per_image
        torch.testing.assert_close(tiny_blip2_itm.match(model, seen, tokens), matched)


def test_a_hard_negative_is_never_right_and_mostly_what_is_confused() -> None:
    similarity = torch.zeros(4, 8)
    similarity[0, 6] = similarity[3, 0] = 50
    images, texts = (rows.tolist() for rows in tiny_blip2_itm.hard_pairs(similarity, seed=1))
    assert images[:4] == texts[:4] == [0, 1, 2, 3]
    assert all(image != text % 4 for image, text in zip(images[4:12], texts[4:12], strict=True))
    assert (images[4], texts[4]) == (0, 6)
    assert (images[8], texts[8]) == (3, 0)
    assert list(zip(images[12:], texts[12:], strict=True)) == [(0, 8), (1, 9), (2, 10), (3, 11)]


def test_names_are_what_the_cells_show() -> None:
    tokenizer = SHORT["tiny_llava"].build()[1].tokenizer
    scenes = [Scenes("train", 30).scene(index) for index in range(30)]
    names = Names.of(scenes, tokenizer)
    shown = names.shown.view(30, 3, 3, 4)
    for scene, cells in zip(scenes, shown, strict=True):
        assert (cells[..., 0] != IGNORED).sum() == len(scene.shapes) + len(scene.dots)
        assert (cells[..., 1:] != IGNORED).all(-1).sum() == len(scene.shapes)
        for shape in scene.shapes:
            ids = [group[at] for group, at in zip(names.ids, cells[shape.row, shape.column].tolist(), strict=True)]
            assert tokenizer.decode(ids).split() == [shape.kind, shape.colour, shape.tone, shape.size]


def test_patch_filters_start_smooth() -> None:
    layer = torch.nn.Conv2d(3, 64, 16, 16)
    smooth_patches(layer)
    weight = layer.weight.detach()
    steps = (weight[..., 1:] - weight[..., :-1]).square().mean().sqrt()
    assert steps < 0.35 * weight.square().mean().sqrt()


def test_a_changed_scene_differs_in_one_word() -> None:
    words, data = Words(1), Scenes("train", 100)
    for index in range(100):
        scene = data.scene(index)
        before, after = (references(one)[0].split() for one in (scene, tiny_blip2_itm.change(scene, words)))
        differ = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
        # "one dot" becomes "two dots": there the count's word and the noun's ending change together.
        assert len([pair for pair in differ if pair not in (("dot", "dots"), ("dots", "dot"))]) == 1


@pytest.mark.parametrize("name", list(RECIPES))
def test_checkpoint_is_small_complete_and_in_the_wheel(name: str) -> None:
    files = list((EMBEDDED / name).iterdir())
    assert sum(file.stat().st_size for file in files) <= 16 * 2**20
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    patterns = config["options.package_data"]["mmq_sweeps.models"].replace(" ", "").split(",")
    packed = {path for pattern in patterns for path in EMBEDDED.parent.glob(pattern)}
    assert set(files) <= packed


@pytest.mark.parametrize("name", list(RECIPES))
def test_checkpoint_has_the_shape_of_its_recipe(name: str) -> None:
    fresh, processor = RECIPES[name].build()
    model, loaded = load(name)
    assert loaded.tokenizer.get_vocab() == processor.tokenizer.get_vocab()
    shapes = {key: weight.shape for key, weight in fresh.state_dict().items()}
    assert shapes == {key: weight.shape for key, weight in model.state_dict().items()}


@pytest.fixture(scope="module")
def captioner() -> tuple[Any, Any]:
    return load("tiny_blip2")


def write(loaded: tuple[Any, Any], examples: list[Example], texts: list[str]) -> list[str]:
    """Return the model's text after each prompt, about each example's image, greedily and in one batch."""
    model, processor = loaded
    inputs = processor(images=[e.image for e in examples], text=texts, return_tensors="pt", padding=True)
    out = model.generate(**inputs, max_new_tokens=40, do_sample=False)[:, inputs.input_ids.shape[1] :]
    return [text.strip() for text in processor.batch_decode(out, skip_special_tokens=True)]


@pytest.mark.parametrize(("name", "prompt"), [("tiny_blip2", ""), ("tiny_llava", PREFIX + tiny_llava.CAPTION)])
def test_scenes_are_captioned(name: str, prompt: str) -> None:
    examples = list(Scenes("evaluation", 20))
    captions = write(load(name), examples, [prompt] * 20)
    named = total = 0
    for caption, example in zip(captions, examples, strict=True):
        truth = set(example.references[0].split())
        named += len(truth & set(caption.split()))
        total += len(truth)
        assert caption.split()[0] == "a"
        assert caption.split()[-2:] == example.references[0].split()[-2:], "the number of dots"
    assert named / total > 0.85


def test_the_captioner_needs_no_text(captioner: tuple[Any, Any]) -> None:
    model, processor = captioner
    examples = list(Scenes("evaluation", 4))
    pixels = processor(images=[e.image for e in examples], return_tensors="pt").pixel_values
    tokens = model.generate(pixel_values=pixels, max_new_tokens=40, do_sample=False)
    captions = processor.batch_decode(tokens, skip_special_tokens=True)
    assert [caption.strip() for caption in captions] == write(captioner, examples, [""] * 4)


@pytest.mark.parametrize(("name", "least"), [("tiny_blip2", 0.6), ("tiny_llava", 0.85)])
def test_questions_are_answered(name: str, least: float) -> None:
    prompt = {"tiny_blip2": "Question: {question} Short answer:", "tiny_llava": PREFIX + ANSWER}[name]
    assert answer_accuracy(*load(name), prompt, count=150) > least


def test_texts_find_images_and_images_texts() -> None:
    found = recalls(*load("tiny_blip2_itm"), count=60, shortlist=6)
    assert found["texts found by matching"] >= 0.8
    assert found["images found by matching"] >= 0.8


@pytest.mark.parametrize("name", ["tiny_blip2", "tiny_llava"])
def test_padding_changes_no_text(name: str) -> None:
    loaded = load(name)
    ask, caption = {
        "tiny_blip2": ("Question: {question} Short answer:", ""),
        "tiny_llava": (PREFIX + ANSWER, PREFIX + tiny_llava.CAPTION),
    }[name]
    examples = list(Scenes("evaluation", 6))
    texts = [caption if i % 2 else ask.format(question=e.questions[i].question) for i, e in enumerate(examples)]
    single = [write(loaded, [e], [text])[0] for e, text in zip(examples, texts, strict=True)]
    assert write(loaded, examples, texts) == single


def test_every_word_of_a_prompt_is_known() -> None:
    tokenizer = load("tiny_llava")[1].tokenizer
    for text in (PREFIX + tiny_llava.CAPTION, (PREFIX + ANSWER).format(question=" ".join(VOCABULARY))):
        assert tokenizer.unk_token_id not in tokenizer(text).input_ids
