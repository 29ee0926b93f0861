"""Check a loaded model on real prepared inputs before its first cell: does it see its images, and is its output finite?

With transformers 5.23 a prompt with too few image placeholders raises nothing (huggingface/transformers#34223): the
image vanishes, or its features move to the next row of a batch, and every later result is that of a blind model. So a
task passes in how it prepares and runs its items, and this module runs a few: an item alone, the same text with another
image, and two items in a batch. Each problem is a sentence with its cause and remedy.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from PIL import Image, ImageOps, ImageStat
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mmq_sweeps.memory import ran_out_of_memory
from mmq_sweeps.models.device_map import onloaded
from mmq_sweeps.models.experts import module_of
from mmq_sweeps.models.loading import LoadedModel
from mmq_sweeps.models.logits import are_answers

# Relative distances of answers: at least between two images, and at most between an item alone and in a batch.
ANSWERS_ALIKE = 1e-4
BATCH_CHANGES = {"float32": 1e-2, "float16": 0.1, "bfloat16": 0.2}
# Bounds on the gain of contrast by preprocessing; normalising by a standard deviation of 0.25 gains 4.
LEAST_CONTRAST, MOST_CONTRAST = 0.05, 50.0
# Least share of the prepared values that depends on the image; a picture padded to a square may fill a small part.
LEAST_AREA = 0.01
# Least share of a prompt's own tokens that must be left; a processor may rewrite some text.
LEAST_TEXT = 0.9
# Names, and characters of a text, shown in a message.
SHOWN, SHORT = 3, 60


@dataclass(frozen=True, eq=False)
class Asked:
    """An item as a task asks it: ``image`` is a PIL image, ``text`` the prompt."""

    id: str
    image: Image.Image
    text: str


@dataclass(frozen=True)
class Asking:
    """A task's way of asking ``loaded``.

    ``prepare`` makes the model's inputs, a row per item; ``answer`` returns scores ``[B, K]`` for inputs on the device.
    ``prompted`` is true if texts are prompts: they contain image placeholders and must not be truncated. ``batched`` is
    true if the task runs several items at once.
    """

    loaded: LoadedModel
    prepare: Callable[[Sequence[Asked]], Mapping[str, Any]]
    answer: Callable[[Mapping[str, Any]], Tensor]
    prompted: bool
    batched: bool

    @property
    def checkpoint(self) -> str:
        return f"model.checkpoint={self.loaded.config['checkpoint']}"


def problems(
    asking: Asking, first: Asked, second: Asked, around: str, texts: Iterable[tuple[str, str]]
) -> Iterator[str]:
    """Yield problems in how the model answers ``first`` and ``second``, whose images differ if the data has two.

    ``texts`` are the prompts of all items, ``(id, text)``; ``around`` is the prompt without the data's text. Checks run
    in order from inputs to answers and end at the first that fails: a model that receives no image cannot tell two
    apart.
    """
    processor = asking.loaded.processor
    if absent := [name for name in ("tokenizer", "image_processor") if getattr(processor, name, None) is None]:
        yield (
            f"{asking.checkpoint}: its inputs are prepared by a {type(processor).__name__} without {' and '.join(absent)}; put "
            "the model's processor_config.json (or preprocessor_config.json) beside its weights"
        )
        return
    trial = _Trial(asking, first, second)
    checks: list[Callable[[], Iterable[str]]] = [
        lambda: _eaten(asking, first.image, around, texts),
        lambda: _kept(asking, [replace(first, text=around), first, second]) if asking.prompted else (),
        *(partial(check, trial) for check in (_pictures, _tokens, _places, _images, _batch)),
    ]
    for check in checks:
        found = list(check())
        yield from found
        if found:
            return


def _eaten(asking: Asking, image: Image.Image, around: str, texts: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Yield the first text with special tokens of the tokenizer that the prompt ``around`` it does not contain.

    A question about "<image>" would add an image placeholder; an end-of-text token would end the prompt.
    """
    special = _special_tokens(asking.loaded.processor)
    signs = {token[0]: around.count(token[0]) for token in special.values()}

    def count(text: str) -> int:
        ids = asking.prepare([Asked("", image, text)])["input_ids"]
        return int(torch.isin(ids, torch.tensor(list(special))).sum())

    def is_text(text: str) -> bool:
        expected = count(around)
        try:
            return count(text) == expected
        except ValueError:  # Some processors count the images of a text.
            return False

    for id, text in texts:
        if all(text.count(sign) <= usual for sign, usual in signs.items()):
            continue
        held = [token for token in special.values() if text.count(token) > around.count(token)]
        if held and not is_text(text):
            yield (
                f"task.data: the text of {id} holds {' and '.join(held)}, which the tokenizer of "
                f"{asking.loaded.config['checkpoint']} takes for no text; change it in the data, or leave the item out"
            )
            return


def _kept(asking: Asking, asked: Sequence[Asked]) -> Iterator[str]:
    """Check that the bare prompt, first of ``asked``, has no unknown tokens, and that no prompt is truncated."""
    tokenizer = asking.loaded.processor.tokenizer
    special = {*_special_tokens(asking.loaded.processor), getattr(asking.loaded.model.config, "image_token_id", None)}

    def tokens(ids: Iterable[int]) -> list[int]:
        return [id for id in ids if id not in special]

    for one in asked:
        found = tokens(asking.prepare([one])["input_ids"][0].tolist())
        whole = tokens(tokenizer(one.text, truncation=False)["input_ids"])
        unknown = sum(id == _unknown(tokenizer) for id in whole) if one is asked[0] else 0
        if unknown or len(found) < LEAST_TEXT * len(whole):
            what = f"{unknown} are unknown" if unknown else f"only {len(found)} are left"
            yield (
                f"{asking.checkpoint}: of the {len(whole)} tokens of the prompt {_short(one.text)} {what} to the model; choose "
                "another prompt (model.prompts), or take the tokenizer that belongs to these weights"
            )
            return


def _special_tokens(processor: Any) -> dict[int, str]:
    """Return the tokens, by id, that ``processor`` treats as more than text, except the unknown token."""
    tokenizer = processor.tokenizer
    added = getattr(tokenizer, "added_tokens_decoder", {})
    ids = {*tokenizer.all_special_ids, *(id for id, token in added.items() if token.special)}
    return {id: tokenizer.convert_ids_to_tokens(id) for id in sorted(ids - {_unknown(tokenizer)})}


def _unknown(tokenizer: Any) -> int | None:
    """Return the unknown token's id; None if another special token has it too, as in byte-level tokenizers."""
    others = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    return None if tokenizer.unk_token_id in others else tokenizer.unk_token_id


class _Trial:
    """Two items, with their prepared inputs and their answers alone cached.

    ``others`` are ``first``'s text with two other images: ``second``'s, and ``first``'s inverted, which differs even if
    the items' images are equal.
    """

    def __init__(self, asking: Asking, first: Asked, second: Asked) -> None:
        self.asking, self.first, self.second = asking, first, second
        again = second if second.text == first.text else replace(second, text=first.text)
        self.others = (again, replace(first, image=ImageOps.invert(first.image.convert("RGB"))))
        self._inputs: dict[Asked, Mapping[str, Any]] = {}
        self._answers: dict[Asked, tuple[Tensor, Filled]] = {}

    def inputs(self, asked: Asked) -> Mapping[str, Any]:
        if asked not in self._inputs:
            with _naming(asked):
                self._inputs[asked] = self.asking.prepare([asked])
        return self._inputs[asked]

    def answer(self, asked: Asked) -> tuple[Tensor, Filled]:
        if asked not in self._answers:
            inputs = self.inputs(asked)
            with _naming(asked):
                self._answers[asked] = _answered(self.asking, inputs)
        return self._answers[asked]


@contextmanager
def _naming(asked: Asked) -> Iterator[None]:
    """Name the item in the error of a model or processor that cannot take it."""
    try:
        yield
    except _Misplaced:
        raise
    except Exception as error:
        if ran_out_of_memory(error):
            raise
        raise ValueError(f"item {asked.id!r} ({_short(asked.text)}) cannot be asked: {error}") from error


def _pictures(trial: _Trial) -> Iterator[str]:
    """Check that the image processor preserves contrast and prepares different images differently."""
    asking, first = trial.asking, trial.first
    processor = type(asking.loaded.processor.image_processor).__name__
    where = "in the checkpoint's processor_config.json or preprocessor_config.json"
    remedy = f"mend rescale_factor, image_mean and image_std {where}"
    spread = getattr(asking.loaded.processor.image_processor, "image_std", None) or ()
    spread = list(spread) if isinstance(spread, (list, tuple)) else [spread]
    if any(float(value) <= 0 for value in spread):
        yield f"{asking.checkpoint}: its {processor} divides pixels by image_std={spread}, which turns pictures round; {remedy}"
        return
    pixels = {asked: _pixels(trial.inputs(asked)) for asked in (first, *trial.others)}
    if not pixels[first]:
        yield f"{asking.checkpoint}: its processor prepares no pixel values for {first.id}, so the model sees no image"
        return
    if all(_same(pixels[first], pixels[other]) for other in trial.others):
        yield f"{asking.checkpoint}: its {processor} prepares {first.id} and {trial.second.id} alike; {remedy}"
        return
    if (area := _area(pixels[first], pixels[trial.others[-1]])) < LEAST_AREA:
        yield (
            f"{asking.checkpoint}: only {area:.2%} of the pixel values that its {processor} prepares depend on {first.id}, so "
            f"the model sees next to nothing; mend size and crop_size {where}"
        )
        return
    if wrong := _other_size(asking.loaded.model, pixels[first]):
        yield f"{asking.checkpoint}: its {processor} prepares images of {wrong}; mend size {where}"
        return
    richest = max(pixels, key=lambda asked: _contrast(asked.image))
    before = _contrast(richest.image)
    after = max(float(value.float().std()) for value in pixels[richest].values())
    if before and not LEAST_CONTRAST < after / before < MOST_CONTRAST:
        seen = "next to nothing" if after < before else "extremes only"
        yield (
            f"{asking.checkpoint}: its {processor} turns {richest.id}, whose values have a standard deviation of {before:.2g} "
            f"of their range, into pixel values with one of {after:.2g}, so the model sees {seen}; {remedy}"
        )


def _tokens(trial: _Trial) -> Iterator[str]:
    """Check that every token has an embedding, different texts differ, and the image has a placeholder."""
    asking, loaded = trial.asking, trial.asking.loaded
    if unplaced := _without_embedding(loaded):
        rows = loaded.model.get_input_embeddings().num_embeddings
        yield (
            f"{asking.checkpoint}: its tokenizer has {len(unplaced)} tokens beyond the {rows} rows of the model's embedding "
            f"({', '.join(repr(token) for token in unplaced[:SHOWN])}); take the tokenizer that belongs to these weights"
        )
        return
    first, second = trial.first, trial.second
    ids, other_ids = (trial.inputs(asked)["input_ids"] for asked in (first, second))
    if first.text != second.text and torch.equal(ids, other_ids):
        yield (
            f"{asking.checkpoint}: the texts of {first.id} and {second.id} become the same tokens, though one is "
            f"{_short(first.text)} and the other {_short(second.text)}; take the tokenizer that belongs to these "
            "weights, or raise the length that texts are cut to"
        )
    token = getattr(loaded.model.config, "image_token_id", None)
    if asking.prompted and token is not None and not int((ids == token).sum()):
        yield _misplaced(asking, first, "no image placeholder", "image features")


def _places(trial: _Trial) -> Iterator[str]:
    """Check that every image feature has a placeholder and every answer is finite."""
    for asked in (trial.first, trial.second):
        try:
            answer, _ = trial.answer(asked)
        except _Misplaced as error:
            yield _misplaced(
                trial.asking, asked, f"{error.places} image placeholders", f"{error.features} image features"
            )
            return
        if not bool(are_answers(answer).all()):
            yield _not_finite(trial.asking, trial.inputs(asked), asked.id)
            return


def _images(trial: _Trial) -> Iterator[str]:
    """Check that another image changes the answer to the same text."""
    answer, _ = trial.answer(trial.first)
    if all(_apart(trial.asking, answer, trial.answer(other)[0]) < ANSWERS_ALIKE for other in trial.others):
        yield (
            f"{trial.asking.checkpoint}: the model answers {_short(trial.first.text)} about {trial.first.id} and "
            f"{trial.second.id} alike, so it does not see its images; look whether the processor and the prompt hand them "
            "on, and whether the weights between vision and language are those of this checkpoint"
        )


def _batch(trial: _Trial) -> Iterator[str]:
    """Check that batched items, the shorter padded, see their own image and are answered as alone."""
    asking = trial.asking
    if not asking.batched:
        return
    both = (trial.first, trial.second)
    together, filled = _answered(asking, asking.prepare(both))
    alone = [trial.answer(asked) for asked in both]
    places = [sum(own.places) for _, own in alone]
    if asking.prompted and filled.places and places != filled.places:
        yield (
            f"{asking.checkpoint}: in a batch {both[0].id} and {both[1].id} hold {_listed(filled.places)} image "
            f"placeholders, alone {_listed(places)}, so features go to another row; set task.batch_size=1, or mend the "
            "checkpoint's processor_config.json"
        )
        return
    for asked, (own, _), row in zip(both, alone, together, strict=True):
        changed = _apart(asking, own, row[None])
        if not changed <= BATCH_CHANGES[asking.loaded.config["dtype"]]:
            yield (
                f"{asking.checkpoint}: in a batch {asked.id} is answered otherwise than alone (its scores change by "
                f"{changed:.2g} of their size), as if padding were text; set task.batch_size=1, or mend pad_token and "
                "padding_side in the checkpoint's tokenizer_config.json"
            )
            return


def _misplaced(asking: Asking, asked: Asked, places: str, features: str) -> str:
    processor = asking.loaded.processor
    token = getattr(processor, "image_token", None)
    token = getattr(token, "content", token) or "the image token"
    return (
        f"{asking.checkpoint}: the input of {asked.id} (task.prompt={_short(asked.text)}) holds {places}, and the model has "
        f"{features} to put there, so the image would be lost; give the prompt {token} as often as its "
        f"{type(processor).__name__} expects it, and mend num_query_tokens, patch_size or image_seq_length in the "
        "checkpoint's processor_config.json"
    )


def _not_finite(asking: Asking, inputs: Mapping[str, Any], item: str) -> str:
    loaded = asking.loaded
    dtype = loaded.config["dtype"]
    if bad := list(_weights_not_finite(loaded)):
        shown = ", ".join(bad[:SHOWN]) + (", ..." if len(bad) > SHOWN else "")
        remedy = (
            "choose model.dtype=float32 or bfloat16 if they are too large for float16, or get the checkpoint again"
            if dtype == "float16"
            else "get the checkpoint again"
        )
        return f"{asking.checkpoint}: {len(bad)} weights have values that are not finite in {dtype} ({shown}); {remedy}"
    where = _first_not_finite(asking, inputs)
    remedy = "choose model.dtype=float32 or bfloat16" if dtype == "float16" else "choose model.dtype=float32"
    if dtype == "float32":
        remedy = "the checkpoint does not work with this release of transformers, or its config.json is not its own"
    return (
        f"model.dtype={dtype}: at full precision the output of {where} is not finite for {item}, so every answer would be "
        f"empty; {remedy}"
    )


@torch.no_grad()
def _answered(asking: Asking, inputs: Mapping[str, Any]) -> tuple[Tensor, Filled]:
    with Filled() as filled:
        return asking.answer(asking.loaded.to_device(inputs)), filled


def _apart(asking: Asking, one: Tensor, other: Tensor) -> float:
    """Return the distance of two answers ``[1, K]``, relative to the first's norm or, for logits, its spread.

    Logits have no origin, so only their spread measures their size.
    """
    both = one.isfinite() & other.isfinite()
    one, other = one[both].double(), other[both].double()
    size = (one - one.mean()).norm().clamp_min(1e-12) if asking.prompted else one.norm().clamp_min(1.0)
    return float((one - other).norm() / size)


def _pixels(inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the prepared images: every floating tensor but masks, because families name them differently."""
    return {
        name: value
        for name, value in inputs.items()
        if isinstance(value, Tensor) and value.is_floating_point() and "mask" not in name
    }


def _same(some: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> bool:
    return all(name in others and torch.equal(value, others[name]) for name, value in some.items())


def _area(some: Mapping[str, Tensor], inverted: Mapping[str, Tensor]) -> float:
    """Return the largest share of values that differ between the pixels of an image and of the same image inverted."""
    shares = [
        float((value != inverted[name]).float().mean())
        for name, value in some.items()
        if name in inverted and value.shape == inverted[name].shape
    ]
    return max(shares, default=1.0)


def _other_size(model: nn.Module, pixels: Mapping[str, Tensor]) -> str | None:
    """Describe a mismatch of image and model size that would silently crop the position table, as BLIP's is; else None."""
    for module in model.modules():
        table, size = getattr(module, "position_embedding", None), getattr(module, "image_size", None)
        if isinstance(table, nn.Parameter) and isinstance(size, int):
            shapes = {tuple(value.shape[-2:]) for value in pixels.values() if value.dim() == 4} - {(size, size)}
            return next((f"{height} x {width} pixels for a model of {size} x {size}" for height, width in shapes), None)
    return None


def _contrast(image: Image.Image) -> float:
    """Return the standard deviation of an image's values as a share of their possible range."""
    return max(ImageStat.Stat(image.convert("RGB")).stddev) / 255


def _without_embedding(loaded: LoadedModel) -> list[str]:
    """Return tokens of ordinary text whose ids lie beyond the embedding; special tokens need no row."""
    tokenizer, embedding = loaded.processor.tokenizer, loaded.model.get_input_embeddings()
    if not isinstance(embedding, nn.Embedding):
        return []
    special = {*tokenizer.all_special_ids, *getattr(tokenizer, "added_tokens_decoder", {})}
    beyond = [
        (id, token)
        for token, id in tokenizer.get_vocab().items()
        if id >= embedding.num_embeddings and id not in special
    ]
    return [token for _, token in sorted(beyond)]


def _weights_not_finite(loaded: LoadedModel) -> Iterator[str]:
    for path, module in loaded.model.named_modules():
        with onloaded(module):
            for name, parameter in module.named_parameters(recurse=False):
                if not bool(parameter.isfinite().all()):
                    yield f"{path}.{name}" if path else name


def _first_not_finite(asking: Asking, inputs: Mapping[str, Any]) -> str:
    """Return the path of the module that is first to return a value that is not finite, or "the model"."""
    found: list[str] = []

    def note(path: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            tensor = output[0] if isinstance(output, tuple) and output else output
            if isinstance(tensor, Tensor) and tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                found.append(path)

        return hook

    with ExitStack() as hooks:
        for path, module in asking.loaded.model.named_modules():
            hooks.callback(module.register_forward_hook(note(path)).remove)
        _answered(asking, inputs)
    return next(filter(None, found), "the model")  # the path of the model itself is empty


def _short(text: str) -> str:
    return repr(text if len(text) <= SHORT else f"{text[:SHORT]}...")


def _listed(numbers: Sequence[int]) -> str:
    return " and ".join(map(str, numbers))


class _Misplaced(ValueError):
    """The number of places for image features is not that of the features."""

    def __init__(self, places: int, features: int) -> None:
        super().__init__(f"{places} image placeholders for {features} image features")
        self.places, self.features = places, features


class Filled(TorchFunctionMode):
    """Counter of image features written into embedded text: ``places`` ``[B]`` is their number per row.

    Every family of transformers writes them by ``masked_scatter``, which silently accepts too few places. Most families
    compare the sums over a batch first; BLIP-2 does not. A wrong number raises ``_Misplaced``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.places: list[int] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(function, "__name__", "") == "masked_scatter":
            self._note(*args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))

    def _note(self, embedded: Tensor, mask: Tensor, source: Tensor) -> None:
        if embedded.dim() != 3 or not embedded.is_floating_point():
            return
        rows = mask.any(dim=-1).sum(dim=-1).tolist()
        features = source.numel() // embedded.shape[-1]
        if sum(rows) != features:
            raise _Misplaced(sum(rows), features)
        self.places = [sum(pair) for pair in zip(self.places, rows, strict=True)] if self.places else rows


@contextmanager
def called(model: nn.Module, names: Collection[str]) -> Iterator[set[str]]:
    """Collect those of ``names`` whose modules run inside the context; experts run together."""
    reached: set[str] = set()
    by_module: dict[str, list[str]] = {}
    for name in names:
        by_module.setdefault(module_of(name), []).append(name)

    def note(own: list[str]) -> Callable[[nn.Module, Any], None]:
        return lambda _module, _inputs: reached.update(own)

    with ExitStack() as hooks:
        for path, own in by_module.items():
            hooks.callback(model.get_submodule(path).register_forward_pre_hook(note(own)).remove)
        yield reached
