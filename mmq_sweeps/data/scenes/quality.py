"""Quick quality check of an embedded model on a few evaluation scenes, printed by the training script.

The figures of record come from the tasks (``conf/task/scenes_*.yaml``).
"""

from __future__ import annotations

from typing import Any

import torch

from mmq_sweeps.data.scenes.dataset import Scenes
from mmq_sweeps.models.loading import LoadedModel
from mmq_sweeps.models.retriever import Retriever


@torch.no_grad()
def answer_accuracy(model: Any, processor: Any, prompt: str, count: int = 300) -> float:
    """Return the share of the first ``count`` evaluation questions answered with the right word by greedy decoding."""
    asked = [(example.image, question) for example in Scenes("evaluation", count) for question in example.questions]
    right = 0
    for start in range(0, count, 100):
        batch = asked[start : min(start + 100, count)]
        inputs = processor(
            images=[image for image, _ in batch],
            text=[prompt.format(question=question.question) for _, question in batch],
            return_tensors="pt",
            padding=True,
            padding_side="left",
        )
        tokens = model.generate(**inputs, max_new_tokens=10, do_sample=False)[:, inputs["input_ids"].shape[1] :]
        answers = processor.batch_decode(tokens, skip_special_tokens=True)
        right += sum(answer.strip() == question.answer for answer, (_, question) in zip(answers, batch, strict=True))
    return right / count


@torch.no_grad()
def recalls(model: Any, processor: Any, count: int = 200, shortlist: int = 12) -> dict[str, float]:
    """Return recall@1 among ``count`` evaluation scenes and their texts, in both directions.

    Each direction is scored by the contrast alone and by matching within the contrast's ``shortlist``. Any of an
    image's five texts is right.
    """
    examples = list(Scenes("evaluation", count))
    said = [text for example in examples for text in example.references]
    owner = torch.arange(count).repeat_interleave(len(said) // count)
    retriever = Retriever(LoadedModel(model, processor, {}), processor.tokenizer.model_max_length)
    texts = retriever.tokenized(said)
    seen, looks = retriever.encode_images(retriever.pixels([example.image for example in examples]))
    cosines = torch.einsum("iqd,td->iqt", looks, retriever.encode_texts(texts)).amax(1)
    wanted = torch.zeros(cosines.shape, dtype=torch.bool)
    wanted.scatter_(1, cosines.topk(shortlist, dim=1).indices, True)
    wanted.scatter_(0, cosines.topk(shortlist, dim=0).indices, True)
    matched = torch.full_like(cosines, float("-inf"))
    for image in range(count):
        rows = wanted[image].nonzero()[:, 0]
        matched[image, rows] = cosines[image, rows] + retriever.match(seen[image], texts[rows])
    own = torch.arange(count)
    return {
        "texts found by contrast": (owner[cosines.argmax(1)] == own).float().mean().item(),
        "texts found by matching": (owner[matched.argmax(1)] == own).float().mean().item(),
        "images found by contrast": (cosines.argmax(0) == owner).float().mean().item(),
        "images found by matching": (matched.argmax(0) == owner).float().mean().item(),
    }
