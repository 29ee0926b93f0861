"""Warnings about outputs and references that make a figure mean little.

Repeated outputs are compared with how often right outputs repeat: answers of yes and no are alike by nature.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from mmq_sweeps.metrics.result import Alike

# Smallest share of items that is worth a warning.
EMPTY = 0.05
SAME_CAPTION = 0.25
SAME_ANSWER = 0.9
SAME_FIRST = 0.5


def of_outputs(noun: str, outputs: Sequence[str], right: Sequence[str], least_same: float) -> tuple[str, ...]:
    """Warn about empty and identical ``outputs``, which are given tokenized or normalized.

    ``right`` holds one right output per item. Identical outputs are reported if all are identical and the right ones
    are not, or if their share is at least ``least_same`` and more than twice that of the commonest right output.
    """
    total = len(outputs)
    said = Counter(output for output in outputs if output.strip())
    empty = total - said.total()
    if total and empty == total:
        return (f"all {total} {noun} are empty",)
    told = (f"{empty} of {total} {noun} are empty",) if empty and empty >= EMPTY * total else ()
    if total < 2:
        return told
    same, expected = said.most_common(1)[0][1], Counter(right).most_common(1)[0][1]
    if same == total and expected < total:
        return (*told, f"all {total} {noun} are identical")
    if same >= max(2, least_same * total) and same > 2 * expected:
        return (*told, f"{same} of {total} {noun} are identical")
    return told


def alike(outputs: Sequence[str], right: Sequence[str]) -> Alike | None:
    """Return how alike ``outputs`` are, which are given tokenized or normalized; None without items.

    ``right`` holds one right output per item.
    """
    total = len(outputs)
    if not total:
        return None
    said = Counter(output for output in outputs if output.strip())
    commonest, same = said.most_common(1)[0] if said else ("", 0)
    expected = Counter(right).most_common(1)[0][1] / len(right) if right else 0.0
    return Alike((total - said.total()) / total, same / total, expected, commonest)


def of_first(queries: str, answer: str, first: Sequence[str], right: Sequence[str]) -> tuple[str, ...]:
    """Warn if many ``queries`` find the same ``answer`` first, as they all do if every pair has the same score.

    ``first`` holds the id that each query finds first, empty if none, and ``right`` a right id.
    """
    found = Counter(one for one in first if one)
    if len(first) < 2 or not found:
        return ()
    same, expected = found.most_common(1)[0][1], Counter(right).most_common(1)[0][1]
    if same < max(2, SAME_FIRST * len(first)) or same <= 2 * expected:
        return ()
    return (f"{same} of {len(first)} {queries} find the same {answer} first",)


def of_references(noun: str, references: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """Warn about items, each a ``noun``, with only empty references: no output can be right."""
    bare = sum(1 for given in references if not any(text.strip() for text in given))
    return (f"every reference of {bare} of {len(references)} {noun}s is empty",) if bare else ()


def of_kinds(kinds: Sequence[str]) -> tuple[str, ...]:
    """Warn about ``kinds`` with a single item among several items."""
    single = sorted(kind for kind, count in Counter(kinds).items() if count == 1)
    if not single or len(kinds) == 1:
        return ()
    if len(single) == 1:
        return (f"the figure of type {single[0]!r} is of one item",)
    return (f"the figures of {len(single)} types are of one item each ({', '.join(single)})",)


def of_scores(images: Sequence[bool], texts: Sequence[bool]) -> tuple[str, ...]:
    """Warn about NaN or infinite scores; ``True`` marks each image or text with such a score."""
    if not any(images) and not any(texts):
        return ()
    return (f"scores were not finite for {sum(images)} of {len(images)} images and {sum(texts)} of {len(texts)} texts",)


def of_logits(wrong: int, items: int) -> tuple[str, ...]:
    """Warn about items with NaN or infinite logits."""
    return (f"logits were not finite for {wrong} of {items} items",) if wrong else ()


def of_unparsed(unparsed: int, answers: int) -> tuple[str, ...]:
    """Warn about answers that name no option of a choice: they are wrong whatever the model meant."""
    return (f"{unparsed} of {answers} answers name no option",) if unparsed and unparsed >= EMPTY * answers else ()


def of_neither(neither: int, answers: int, taken: str) -> tuple[str, ...]:
    """Warn about answers that say neither yes nor no; ``taken`` says how they count."""
    if not neither or neither < EMPTY * answers:
        return ()
    return (f"{neither} of {answers} answers say neither yes nor no and {taken}",)


def of_left_out(left_out: int, items: int, reason: str) -> tuple[str, ...]:
    """Warn that a figure covers fewer items than requested."""
    return (f"{left_out} of {items} items were left out: {reason}",) if left_out else ()


def of_count(items: int) -> tuple[str, ...]:
    """Warn that a single item gives no interval."""
    return ("it is of one item, so its interval has no width",) if items == 1 else ()


def commonest(references: Sequence[Sequence[str]]) -> list[str]:
    """Return the most frequent reference of each item."""
    return [Counter(given).most_common(1)[0][0] for given in references]
