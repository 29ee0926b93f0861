"""Metric names. Imports nothing heavy, so that configurations are checked before any work."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmq_sweeps.metrics.base import Metric

_PACKAGE = "mmq_sweeps.metrics"
_METRICS = {
    "cider": "captions.cider:Cider",
    "cider_d": "captions.cider:CiderD",
    "meteor": "captions.meteor:Meteor",
    **{f"bleu_{order}": f"captions.bleu:Bleu{order}" for order in (1, 2, 3, 4)},
    "rouge_l": "captions.rouge:RougeL",
    "spice": "captions.spice:Spice",
    **{f"recall_at_{k}": f"retrieval.recall:RecallAt{k}" for k in (1, 5, 10)},
    "recall_mean": "retrieval.recall:RecallMean",
    **{f"text_recall_at_{k}": f"retrieval.recall:TextRecallAt{k}" for k in (1, 5, 10)},
    **{f"image_recall_at_{k}": f"retrieval.recall:ImageRecallAt{k}" for k in (1, 5, 10)},
    "vqa_accuracy": "answers.vqa:VqaAccuracy",
    "vqa_accuracy_2021": "answers.vqa:VqaAccuracy2021",
    "textvqa_accuracy": "answers.vqa:TextVqaAccuracy",
    "vizwiz_accuracy": "answers.vqa:VizWizAccuracy",
    "gqa_accuracy": "answers.gqa:GqaAccuracy",
    "anls": "answers.anls:Anls",
    "relaxed_accuracy": "answers.relaxed:RelaxedAccuracy",
    "choice_accuracy": "answers.choice:ChoiceAccuracy",
    "choice_unparsed": "answers.choice:ChoiceUnparsed",
    "mmbench": "answers.mmbench:MmBench",
    "mmmu_accuracy": "answers.mmmu:MmmuAccuracy",
    "ocrbench": "answers.ocrbench:OcrBench",
    "pope_accuracy": "answers.pope:PopeAccuracy",
    "pope_precision": "answers.pope:PopePrecision",
    "pope_recall": "answers.pope:PopeRecall",
    "pope_f1": "answers.pope:PopeF1",
    "pope_yes_ratio": "answers.pope:PopeYesRatio",
    "mme": "answers.mme:Mme",
    "mme_perception": "answers.mme:MmePerception",
    "mme_cognition": "answers.mme:MmeCognition",
    "mme_accuracy": "answers.mme:MmeAccuracy",
    "mme_accuracy_plus": "answers.mme:MmeAccuracyPlus",
    "ece": "probability.confidence:Ece",
    "aurc": "probability.confidence:Aurc",
    "log_likelihood": "probability.likelihood:LogLikelihood",
}

# Metrics of answers that do not say of every answer whether it is right.
_NO_JUDGES = ("choice_unparsed", "pope_yes_ratio", "mme_perception", "mme_cognition")

# Attributes of a metric, see ``base.Metric``.
_PARTS = ("name", "needs", "higher_is_better", "prepare", "score", "aggregate")

# The ``needs`` of the metrics in each folder or module, available without importing them.
_NEEDS = {
    "captions": "captions",
    "answers": "answers",
    "retrieval": "ranks",
    "probability.confidence": "confidences",
    "probability.likelihood": "likelihoods",
}


def metric_names(needs: str | None = None) -> tuple[str, ...]:
    """Return the names that ``load_metric`` knows; it also accepts a dotted path ``package.module:Class``.

    ``needs`` restricts them to metrics that need ``captions``, ``answers``, ``confidences``, ``ranks`` or ``likelihoods``.
    """
    return tuple(name for name, path in _METRICS.items() if needs in (None, _needs(path)))


def judges(names: Iterable[str]) -> list[str]:
    """Return those of ``names`` whose scores say how right each answer is, by name: their order in a task has no meaning."""
    answers = metric_names("answers")
    return sorted(name for name in names if (name in answers and name not in _NO_JUDGES) or ":" in name)


def _needs(path: str) -> str:
    module = path.partition(":")[0]
    return _NEEDS.get(module) or _NEEDS[module.partition(".")[0]]


def check_metric_names(names: Iterable[str]) -> None:
    """Raise ValueError for the first unknown name, as ``load_metric`` would, without importing any metric."""
    for name in names:
        if ":" not in name and name not in _METRICS:
            raise ValueError(_unknown(name))


def load_metric(name: str) -> Metric:
    """Return the metric of this name, or an instance of the class at ``package.module:Class``.

    Classes are instantiated without arguments. Raises ValueError if there is no such metric, module or class, if the
    class lacks a part of a metric, or if its ``name`` is that of another metric of this package.
    """
    check_metric_names([name])
    path = name if ":" in name else f"{_PACKAGE}.{_METRICS[name]}"
    module, _, attribute = path.partition(":")
    try:
        imported = import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not (module == error.name or module.startswith(f"{error.name}.")):
            raise  # the metric's module is there; something that it imports is not
        raise ValueError(f"Metric {name!r}: there is no module {error.name!r}") from error
    if not hasattr(imported, attribute):
        raise ValueError(f"Metric {name!r}: module {module!r} has no {attribute!r}")
    metric: Metric = getattr(imported, attribute)()
    if missing := [part for part in _PARTS if not hasattr(metric, part)]:
        raise ValueError(f"Metric {name!r}: {attribute} has no {', '.join(missing)}; a metric has {', '.join(_PARTS)}")
    published = _METRICS.get(metric.name)
    if published is not None and path != f"{_PACKAGE}.{published}":
        raise ValueError(f"Metric {name!r}: its name {metric.name!r} is that of another metric; give it one of its own")
    return metric


def load_metrics(names: Iterable[str], scorer: str = "", has: Sequence[str] = ()) -> tuple[Metric, ...]:
    """Return the metrics of these names, each once; raises ValueError also if two have the same ``name``.

    With ``has``, the kinds of input that ``scorer`` has, raises ValueError for a metric that needs another.
    """
    asked = list(dict.fromkeys(names))
    metrics = tuple(map(load_metric, asked))
    first: dict[str, str] = {}
    for path, metric in zip(asked, metrics, strict=True):
        # Results are kept by name: one would stand for both.
        if first.setdefault(metric.name, path) != path:
            raise ValueError(
                f"Metrics {first[metric.name]!r} and {path!r} have the same name {metric.name!r}; choose one of them"
            )
    if has and (unfit := next((metric for metric in metrics if metric.needs not in has), None)):
        raise ValueError(f"Metric {unfit.name!r} needs {unfit.needs}; {scorer} has {has[0]}")
    return metrics


def _unknown(name: str) -> str:
    close = get_close_matches(name, _METRICS, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"Unknown metric {name!r}; choose {', '.join(_METRICS)}, or package.module:Class.{hint}"
