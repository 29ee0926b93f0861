"""Evaluate an exported checkpoint on the scenes of draw.py, by transformers alone: ``python reload.py FOLDER``."""

import json
import sys
from pathlib import Path

import torch
import transformers
from PIL import Image
from pycocoevalcap.cider.cider import Cider

folder = sys.argv[1]
name = json.loads(Path(folder, "config.json").read_text())["architectures"][0]
model, info = getattr(transformers, name).from_pretrained(folder, output_loading_info=True)
assert not any(info.values()), info
model.hf_quantizer.compressor.decompress_model(model)
processor = transformers.AutoProcessor.from_pretrained(folder)
scenes = json.loads(Path("scenes.json").read_text())


def inputs(images, texts, side):
    opened = [[Image.open(image)] for image in images]
    return processor(images=opened, text=texts, padding=True, padding_side=side, return_tensors="pt")


def answers(images, prompts):
    asked = inputs(images, prompts, "left")
    tokens = model.generate(**asked, max_new_tokens=40)[:, asked["input_ids"].shape[1] :]
    return processor.batch_decode(tokens, skip_special_tokens=True)


def words(text):
    return " ".join(word for word in text.split() if word.isalpha())


@torch.no_grad()
def captions():
    said = answers([scene["image"] for scene in scenes], [""] * len(scenes))
    right = {place: [words(text) for text in scene["texts"]] for place, scene in enumerate(scenes)}
    return "cider", Cider().compute_score(right, {place: [words(text)] for place, text in enumerate(said)})[0]


@torch.no_grad()
def questions():
    asked = [(scene["image"], *one) for scene in scenes for one in scene["questions"]]
    prompt = "USER: <image>\n{}\nAnswer the question using a single word or phrase. ASSISTANT:"
    said = answers([image for image, *_ in asked], [prompt.format(question) for _, question, _ in asked])
    return "gqa_accuracy", sum(text.strip() == right for text, (*_, right) in zip(said, asked, strict=True)) / len(
        asked
    )


@torch.no_grad()
def retrieval():
    texts = [text for scene in scenes for text in scene["texts"]]
    scores = []
    for scene in scenes:
        pairs = inputs([scene["image"]] * len(texts), texts, "right")
        matching = model(**pairs, use_image_text_matching_head=True).logits_per_image[:, 1]
        scores.append(matching + model(**pairs, use_image_text_matching_head=False).logits_per_image[0])
    best = torch.stack(scores).argmax(dim=1)
    own = best.div(len(texts) // len(scenes), rounding_mode="floor") == torch.arange(len(scenes))
    return "text_recall_at_1", own.float().mean().item()


tasks = {"Blip2ForConditionalGeneration": captions, "LlavaForConditionalGeneration": questions}
metric, value = tasks.get(name, retrieval)()
print(f"{folder}: {metric} {value:.4f}")  # noqa: T201
