"""Check the weights of vision tokens in methods' objectives, and which parts of a model they have an effect on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from mmq_sweeps.config.assignment import methods_of
from mmq_sweeps.identity.cell import VISION_TOKENS, VISION_WEIGHT
from mmq_sweeps.identity.end_parts import EMBEDDINGS, HEAD

CHOICES = "choose a number from 0 (text tokens only) to 1 (vision tokens only), or null for all tokens alike."


def weight_problems(config: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each ``vision_weight`` of an assigned configuration that is no weight."""
    found = [
        f"{key}.{VISION_WEIGHT}={weight!r}: {CHOICES}"
        for key, node in methods_of(config)
        if (weight := node.get(VISION_WEIGHT)) is not None and not _is_weight(weight)
    ]
    return list(dict.fromkeys(found))


def _is_weight(weight: Any) -> bool:
    return isinstance(weight, (int, float)) and not isinstance(weight, bool) and 0 <= weight <= 1


def vision_tokens(model: Mapping[str, Any]) -> dict[str, str]:
    """Return how vision tokens are told from text tokens, by part of ``model`` that sees both; the head sees the text's."""
    found = {
        part: where[VISION_TOKENS] for part, where in model["parts"].items() if where.get(VISION_TOKENS) is not None
    }
    if (text := _before_head(model)) in found:
        found[HEAD] = found[text]
    return found


def unnamed_problem(model: Mapping[str, Any], part: str, weight: float) -> str | None:
    """Return a sentence if ``part``, for which a ``weight`` is given, sees texts but its vision tokens are not named."""
    own = _before_head(model) if part == HEAD else part
    if part == EMBEDDINGS or part in vision_tokens(model) or not model["parts"].get(own, {}).get("masked"):
        return None
    return (
        f"method.{VISION_WEIGHT}={weight}: {model['name']} does not say which tokens of component.{part} are vision tokens; "
        f"add model.parts.{own}.{VISION_TOKENS}=image_token_id (or the field of its config.json with the id that stands for "
        f"the image in a text), or choose method.{VISION_WEIGHT}=null."
    )


def without_effect(config: Mapping[str, Any], parts: Iterable[str]) -> str | None:
    """Return a sentence that names those of the quantized ``parts`` on which a ``vision_weight`` has no effect."""
    model, component = config["model"], config["component"]
    given = [
        part for part in parts if (component[part].get("method") or config["method"]).get(VISION_WEIGHT) is not None
    ]
    alone = [part for part in given if part not in vision_tokens(model)]
    if not alone:
        return None
    return (
        f"method.{VISION_WEIGHT} has no effect on {', '.join(alone)} of {model['name']}, whose linears see tokens of one kind "
        "only; they are quantized once for all its values"
    )


def _before_head(model: Mapping[str, Any]) -> str | None:
    """Return the part whose output the head receives, as ``quantization/targets.py`` finds it."""
    texts = [part for part, where in model["parts"].items() if where.get("masked") is True]
    return "language" if "language" in model["parts"] else next(reversed(texts), None)
