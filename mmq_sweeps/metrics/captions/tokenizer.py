"""The PTB tokenizer as pycocoevalcap calls it, in a persistent Java process.

pycocoevalcap starts ``edu.stanford.nlp.process.PTBTokenizer -preserveLines -lowerCase`` on a file for every call. Here
the same program reads standard input. It flushes its output only when its buffers (two of 8 KiB) are full, so every
batch is followed by filler that pushes the answer out; markers around the batch separate the answer from the filler.

The lexer looks past the end of a line in a few places: ``plan b.`` becomes ``plan b`` if the next caption begins with
``A`` and ``plan b.`` otherwise. Such a caption ("open") is tokenized, and cached, together with the caption that
follows it; all others are cached by themselves.
"""

from __future__ import annotations

import functools
import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import accumulate
from pathlib import Path

from mmq_sweeps.metrics.captions.java import JavaProcess, per_process, run_once

TOKENIZER_VERSION = "pycocoevalcap-1.2-ptb"
PUNCTUATIONS = frozenset(
    ["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";"]
)

_MAIN = "edu.stanford.nlp.process.PTBTokenizer"
_COMMAND = ("-cp", "stanford-corenlp-3.4.1.jar", _MAIN, "-preserveLines", "-lowerCase")
_OPTIONS = ("-Dfile.encoding=UTF-8", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")  # quick to start, one thread
_MARKER = "mmqsweeps"
_REMEMBERED = 300_000
# May follow a caption without changing it. The quotes close an attribute that a caption left open (<a b='...), for
# whose end the lexer would read on; the letter behind each shows that it was no tag after all.
_NEUTRAL = "x 'x \"x"
_FILLER = (_NEUTRAL + " x" * 60 + "\n") * 320
# Characters besides \n at which the tokenizer begins a new line, which would shift the lines of all later captions.
_LINE_BREAKS = re.compile("[\n\r\u000b\u000c\u2028\u2029]")
_SIGN_IN_LAST_WORD = re.compile(r"[\W_]\w*$")
_APOSTROPHES = frozenset("'`\u00b4&\u0091\u0092\u2018\u2019\u201b")
# The lexer's lookahead behind a caption: text, nothing relevant, or the end of the file.
_Following = str | None
_NOTHING, _END_OF_FILE = "", None
_Key = tuple[str, _Following]


@dataclass
class PtbTokenizer:
    """Cached tokens of captions; see the module docstring for the influence of neighbouring captions."""

    process: JavaProcess
    _known: dict[_Key, str] = field(default_factory=dict, repr=False)
    _lock: threading.RLock = field(default_factory=threading.RLock, repr=False)

    def tokenize(self, captions: Sequence[str]) -> list[str]:
        """Return the tokens of each caption, joined by blanks, equal to pycocoevalcap's for this list.

        Raises JavaMissingError and JavaDiedError, see ``JavaProcess.exchange``.
        """
        keys = _keys([_LINE_BREAKS.sub(" ", caption) for caption in captions])
        with self._lock:
            if len(self._known) > _REMEMBERED:
                self._known.clear()
            self._learn([key for key in dict.fromkeys(keys) if key not in self._known])
            return [self._known[key] for key in keys]

    def _learn(self, keys: list[_Key]) -> None:
        together = [key for key in keys if key[1] is not _END_OF_FILE]
        answers = dict(zip(together, self._ask(together), strict=True))
        answers |= {key: self._ask_last(key) for key in keys if key not in answers}
        self._known.update((key, _drop_punctuation(line)) for key, line in answers.items())

    def _ask(self, keys: list[_Key]) -> list[str]:
        if not keys:
            return []
        blocks = [_block(key) for key in keys]
        lines = self._exchange([line for block in blocks for line in block])
        if len(lines) == sum(map(len, blocks)):
            starts = accumulate((len(block) for block in blocks[:-1]), initial=0)
            return [lines[start] for start in starts]
        if len(keys) > 1:  # some caption's tag swallowed a line break: find it
            half = len(keys) // 2
            return [*self._ask(keys[:half]), *self._ask(keys[half:])]
        return self._exchange([keys[0][0], _NEUTRAL])[:1]

    def _exchange(self, lines: list[str]) -> list[str]:
        text = "".join(f"{line}\n" for line in lines)
        marker = _MARKER
        while marker in text.lower():
            marker += "x"
        read = functools.partial(_between, f"{marker}begin", f"{marker}end")
        return self.process.exchange(f"{marker}begin\n{text}{marker}end\n{_FILLER}", read)

    def _ask_last(self, key: _Key) -> str:
        """Tokenize a caption that ends the file, in a new process.

        A persistent process never reaches the end of its input; very few captions depend on it.
        """
        process = self.process
        tokens = run_once(process.name, process.arguments, process.folder, key[0], process.timeout_seconds)
        return tokens.split("\n")[0]


def package_folder(*parts: str) -> Path:
    """Return a folder of the installed pycocoevalcap, found without importing it.

    Raises ModuleNotFoundError if it is not installed.
    """
    spec = find_spec("pycocoevalcap")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("Caption metrics use pycocoevalcap's programs: pip install pycocoevalcap")
    return Path(next(iter(spec.submodule_search_locations)), *parts)


@per_process
def shared_tokenizer() -> PtbTokenizer:
    """Return this process's tokenizer; a forked child gets its own."""
    return PtbTokenizer(JavaProcess("The PTB tokenizer", (*_OPTIONS, *_COMMAND), package_folder("tokenizer")))


def _keys(captions: list[str]) -> list[_Key]:
    """Pair each caption with the part of the next caption with text that the lexer may see."""
    keys: list[_Key] = []
    following: _Following = _END_OF_FILE
    for index in range(len(captions) - 1, -1, -1):
        caption = captions[index]
        keys.append((caption, _relevant(caption, following)))
        if caption.strip():
            following = caption
        elif following is _END_OF_FILE:
            following = _NOTHING  # a line break comes before the end
    return keys[::-1]


def _relevant(caption: str, following: _Following) -> _Following:
    words = caption.split()
    if not words or not _SIGN_IN_LAST_WORD.search(words[-1]):
        return _NOTHING
    if following is _END_OF_FILE and _APOSTROPHES.isdisjoint(words[-1]):
        return _NOTHING
    return following


def _block(key: _Key) -> list[str]:
    caption, following = key
    if following:
        return [caption, following, _NEUTRAL]
    return [caption, _NEUTRAL] if following == _NOTHING else [caption]


def _drop_punctuation(line: str) -> str:
    return " ".join(word for word in line.rstrip().split(" ") if word not in PUNCTUATIONS)


def _between(begin: str, end: str, lines: Iterator[str]) -> list[str]:
    while next(lines) != begin:
        pass
    return list(iter(lines.__next__, end))
