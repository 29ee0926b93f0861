"""The synthetic scenes and the words for them."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import pytest
from PIL import Image

from mmq_sweeps.data.scenes import SPLITS, Example, Scenes, perfect_caption
from mmq_sweeps.data.scenes.render import render_array
from mmq_sweeps.data.scenes.scene import COLOURS, HUE_STEP, HUES, SIZES, TONES
from mmq_sweeps.data.scenes.tiny_blip2 import PROMPT
from mmq_sweeps.data.scenes.words import VOCABULARY, relation


def fingerprint(example: Example) -> str:
    """Return a digest of all fields of an example."""
    return hashlib.sha256(
        repr((example.id, example.references, example.questions)).encode() + example.image.tobytes()
    ).hexdigest()


def in_fresh_process(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def test_example_has_picture_and_texts() -> None:
    example = Scenes("evaluation", 3)[0]
    assert example.image.mode == "RGB"
    assert example.image.size == (48, 48)
    assert example.id == "evaluation-0-000000"
    assert len(example.questions) >= 5


def test_pictures_and_texts_are_the_same_everywhere() -> None:
    """The expected digest is fixed: every platform, Python and numpy must make the same bytes."""
    together = hashlib.sha256()
    for split in SPLITS:
        for example in Scenes(split, 20, seed=3):
            together.update(fingerprint(example).encode())
    assert together.hexdigest() == "f909342654689dd4a6b2907ee76216227e78ec6e16df0069ca03959d5fc435ef"


def test_a_fresh_process_draws_the_same() -> None:
    code = (
        "import hashlib; from mmq_sweeps.data.scenes import Scenes\n"
        "e = Scenes('train', 9, seed=5)[7]\n"
        "print(hashlib.sha256(repr((e.id, e.references, e.questions)).encode() + e.image.tobytes()).hexdigest())"
    )
    assert in_fresh_process(code) == fingerprint(Scenes("train", 9, seed=5)[7])


def test_import_needs_neither_torch_nor_transformers() -> None:
    code = "import sys, mmq_sweeps.data.scenes; print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    assert in_fresh_process(code) == "[]"


@pytest.mark.parametrize("split", SPLITS)
def test_a_smaller_count_is_a_prefix(split: str) -> None:
    few, many = Scenes(split, 10), Scenes(split, 40)
    assert [fingerprint(example) for example in few] == [fingerprint(many[i]) for i in range(10)]


def test_seeds_draw_different_scenes() -> None:
    assert Scenes("train", 20, seed=0).scene(0) != Scenes("train", 20, seed=1).scene(0)


def test_splits_are_disjoint_by_content_and_ids_unique() -> None:
    contents: dict[bytes, str] = {}
    pictures: dict[bytes, str] = {}
    ids = set()
    for split in SPLITS:
        for seed in (0, 1):
            data = Scenes(split, 150, seed)
            for index in range(len(data)):
                scene, picture = data.scene(index), render_array(data.scene(index)).tobytes()
                assert contents.setdefault(scene.digest(), split) == split
                assert pictures.setdefault(picture, split) == split
            ids |= {example.id for example in data}
            assert all(example.id.startswith(split) for example in data)
    assert len(ids) == 150 * 2 * len(SPLITS)


def test_a_scene_belongs_to_one_split_whatever_its_seed() -> None:
    """The scene's own digest decides the split, so a scene that comes up again is in the same split."""
    for split, digits in (("calibration", {8}), ("evaluation", {9}), ("train", set(range(8)))):
        data = Scenes(split, 50, seed=11)
        assert {int.from_bytes(data.scene(i).digest()[:8], "big") % 10 for i in range(50)} <= digits


def test_five_references_in_different_words() -> None:
    for example in Scenes("evaluation", 50):
        assert len(example.references) == len(set(example.references)) == 5
        assert len({reference.split()[0] for reference in example.references}) == 5
        assert max(len(reference.split()) for reference in example.references) <= 32


def test_perfect_caption_is_the_first_wording() -> None:
    data = Scenes("evaluation", 30)
    for index, example in enumerate(data):
        caption = perfect_caption(data.scene(index))
        assert caption == example.references[0]
        for shape in data.scene(index).shapes:
            for reference in example.references:
                assert f"{shape.size} {shape.tone} {shape.colour} {shape.kind}" in reference


def test_every_word_is_in_the_vocabulary() -> None:
    used = {
        word
        for example in Scenes("train", 300)
        for text in (*example.references, *(PROMPT.format(q.question) + " " + q.answer for q in example.questions))
        for word in text.split()
    }
    assert used <= set(VOCABULARY)


def test_answers_agree_with_the_scene() -> None:
    data = Scenes("evaluation", 60)
    for index, example in enumerate(data):
        scene = data.scene(index)
        by_kind = {shape.kind: shape for shape in scene.shapes}
        answers = {question.question: question.answer for question in example.questions}
        assert len(answers) == len(example.questions)
        numbers = ("zero", "one", "two", "three", "four", "five")
        assert numbers.index(answers["how many dots are there ?"]) == len(scene.dots)
        assert numbers.index(answers["how many shapes are there ?"]) == len(scene.shapes)
        for kind, shape in by_kind.items():
            assert answers[f"what color is the {kind} ?"] == shape.colour
            low, high = SIZES[answers[f"what size is the {kind} ?"]]
            assert low <= shape.radius <= high
        for question in example.questions:
            if question.kind == "comparison":
                one, other = (by_kind[word] for word in question.question.split() if word in by_kind)
                assert by_kind[question.answer] is (one if one.radius > other.radius else other)
            if question.kind == "relation":
                one, other = (by_kind[word] for word in question.question.split() if word in by_kind)
                assert (relation(one, other) in question.question) == (question.answer == "yes")


def test_shapes_look_as_they_are_called() -> None:
    data = Scenes("train", 200)
    for index in range(200):
        for shape in data.scene(index).shapes:
            centre = COLOURS.index(shape.colour) * HUE_STEP
            assert min((shape.hue - centre) % HUES, (centre - shape.hue) % HUES) < HUE_STEP // 2
            brightness, saturation = TONES[shape.tone]
            assert brightness[0] <= shape.brightness <= brightness[1]
            assert saturation[0] <= shape.saturation <= saturation[1]
            assert all(0 <= level <= 255 for level in shape.rgb)


def test_unknown_split_names_value_and_choices() -> None:
    with pytest.raises(ValueError, match=r"'test'.*train, calibration, evaluation"):
        Scenes("test")


@pytest.mark.parametrize("wrong", [-1, True, 1.5])
def test_count_and_seed_are_checked(wrong: object) -> None:
    with pytest.raises(ValueError, match="count="):
        Scenes("train", wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="seed="):
        Scenes("train", 1, wrong)  # type: ignore[arg-type]


def test_an_example_holds_no_pixels_so_that_many_fit_in_memory() -> None:
    example = Scenes("evaluation", 1)[0]
    assert not [value for value in vars(example).values() if isinstance(value, Image.Image)]
    assert example.image == example.image


def test_index_outside_is_an_error_and_negative_counts_from_the_end() -> None:
    data = Scenes("train", 4)
    assert fingerprint(data[-1]) == fingerprint(data[3])
    with pytest.raises(IndexError):
        data[4]
