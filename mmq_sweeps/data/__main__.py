"""``python -m mmq_sweeps.data prepare|check NAME --root DIR``: get a published data set, or report its state.

``python -m mmq_sweeps.data show PATH --split SPLIT`` shows the columns of any other one, of the Hub or in a folder.

Exit status 0: complete. 1: something is missing or could not be obtained. 2: bad usage. 130: stopped by Ctrl-C; run the
same command again to resume. Never prompts on the terminal.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmq_sweeps.data.catalog import SETS, DataSet
from mmq_sweeps.data.check import Draw, Report, check
from mmq_sweeps.data.prepare import DOWNLOADS, Order, Step, Watch, plan, prepare
from mmq_sweeps.errors import Parser, output_may_close

INCOMPLETE, STOPPED = 1, 130
_EVERYTHING = "all"


class Line:
    """Progress on standard error: current item, amount done and time left.

    On a terminal one line is rewritten in place; elsewhere a line is printed every half minute.
    """

    def __init__(self) -> None:
        self._name, self._began, self._first, self._last = "", 0.0, 0, 0.0
        self._rewrites = sys.stderr.isatty()

    def bytes(self, name: str, done: int, total: int | None) -> None:
        rate = self._rate(name, done)
        if rate is None:
            return
        text = (
            f"{name}: {done / 1e6:,.1f} MB" if total is None else f"{name}: {done / 1e6:,.1f} of {total / 1e6:,.1f} MB"
        )
        if rate > 0:
            text += f", {rate / 1e6:,.1f} MB/s"
            text += "" if total is None else f", {_duration((total - done) / rate)} left"
        self._show(text)

    def files(self, name: str, done: int, total: int) -> None:
        if self._rate(name + "/", done) is not None:
            self._show(f"{name}: {done:,} of {total:,} files")

    def end(self) -> None:
        """Clear the line, so that the next output starts on a clean one."""
        if self._rewrites and self._name:
            sys.stderr.write("\r\033[K")
            sys.stderr.flush()
        self._name = ""

    def _rate(self, name: str, done: int) -> float | None:
        """Return units per second since ``name`` began; None if the next update is not due yet."""
        now = time.monotonic()
        if name != self._name or done < self._first:
            self._name, self._began, self._first, self._last = name, now, done, 0.0 if self._rewrites else now
        if now - self._last < (0.2 if self._rewrites else 30):
            return None
        self._last = now
        return (done - self._first) / max(now - self._began, 1e-9)

    def _show(self, text: str) -> None:
        sys.stderr.write(f"\r{text}\033[K" if self._rewrites else f"{text}\n")
        sys.stderr.flush()


def _amount(size: float) -> str:
    """Format as ``815.6 MB``: decimal units, as disks and downloads are measured."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size:.0f} B"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="python -m mmq_sweeps.data", description="Published data sets: get one, or say what is there.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="{prepare,check,show}")
    for command, text in (("prepare", "download, verify and unpack what is missing"), ("check", "say what is there")):
        sub = commands.add_parser(command, help=text, description=text)
        sub.add_argument("name", metavar="NAME", choices=SETS, help=", ".join(SETS))
        sub.add_argument("--root", type=Path, required=True, metavar="DIR", help="the folder that has the data")
        sub.add_argument(
            "--calibration", type=_calibration, default=128, metavar="N",
            help="training images needed: so many, drawn with --seed, or all, or 0 (default: 128)",
        )  # fmt: skip
        sub.add_argument("--seed", type=_natural, default=0, metavar="N", help="seed of that draw (default: 0)")
        sub.add_argument("--decode", action="store_true", help="read every file that is needed and decode the images")
        sub.add_argument("--json", action="store_true", help="the report for a program")
        if command == "prepare":
            _add_prepare(sub)
    _add_show(commands)
    parsed = parser.parse_args(arguments)
    if parsed.command == "prepare":
        _check_usage(parser, parsed)
    return parsed


def _add_show(commands: Any) -> None:
    text = "show splits, columns and first row of a data set for HubData, downloading the split if need be"
    sub = commands.add_parser("show", help=text, description=text)
    sub.add_argument("path", metavar="PATH", help="a folder, or a name on the Hub")
    sub.add_argument("--split", required=True, metavar="SPLIT", help="such as test; without a range")
    sub.add_argument("--name", metavar="NAME", help="its configuration, or subfolder")
    sub.add_argument("--revision", metavar="COMMIT", help="of the Hub: 40 hexadecimal digits")


def _add_prepare(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--images", type=Path, metavar="PATH", help="flickr30k: the folder or archive that you were given")
    sub.add_argument(
        "--mirror", default="", metavar="URL", help="has every file by its name, instead of the official place"
    )
    sub.add_argument(
        "--url", action="append", default=[], metavar="FILE=URL", help="another address of one file; may be repeated"
    )
    sub.add_argument("--keep-archives", action="store_true", help=f"in DIR/{DOWNLOADS}, after unpacking")
    sub.add_argument("--dry-run", action="store_true", help="say what would be done, and with what sizes")


def _check_usage(parser: Parser, parsed: argparse.Namespace) -> None:
    one = SETS[parsed.name]
    if parsed.images is not None and not one.by_hand:
        names = ", ".join(name for name, other in SETS.items() if other.by_hand)
        parser.error(f"--images is for {names}; {one.name}'s images are downloaded")
    known = [archive.file for archive in (*one.archives, *one.training)]
    for argument in parsed.url:
        file, separator, url = argument.partition("=")
        if not separator or file not in known or not _is_web(url):
            parser.error(f"--url {argument}: is not FILE=URL with http:// or https:// and one of {', '.join(known)}")
    if parsed.mirror and not _is_web(parsed.mirror):
        parser.error(f"--mirror {parsed.mirror}: does not begin with http:// or https://")


def _is_web(url: str) -> bool:
    return url.startswith(("http://", "https://"))


def _natural(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 0")
    return int(text)


def _calibration(text: str) -> int | None:
    return None if text == _EVERYTHING else _natural(text)


def run(options: argparse.Namespace, line: Line) -> int:
    if options.command == "show":
        from mmq_sweeps.data.hub import show
        from mmq_sweeps.data.hub.source import Place

        for text in show.lines(Place(options.path, options.name, options.revision, options.split)):
            sys.stdout.write(f"{text}\n")
        return 0
    one, root = SETS[options.name], options.root.expanduser()
    draw = Draw(options.calibration, options.seed)

    def say(text: str) -> None:
        line.end()
        # With --json, standard output carries only the report.
        (sys.stderr if options.json else sys.stdout).write(f"{text}\n")
        (sys.stderr if options.json else sys.stdout).flush()

    if options.command == "prepare":
        urls = dict(argument.split("=", 1) for argument in options.url)
        order = Order(one, root, draw, options.images, options.mirror, urls, options.keep_archives, options.decode)
        say(f"{one.title}\nterms: {one.terms}")
        for text in describe_plan(order, plan(order)):
            say(text)
        if options.dry_run:
            return 0
        prepare(order, Watch(say, line.bytes, line.files))
    report = check(one, root, draw, options.decode, lambda done, total: line.files("decoding", done, total))
    line.end()
    if options.json:
        sys.stdout.write(f"{json.dumps(report.as_json(), indent=1)}\n")
    else:
        sys.stdout.write("\n".join(describe_report(one, report, options)) + "\n")
    return 0 if report.complete else INCOMPLETE


def describe_plan(order: Order, steps: Sequence[Step]) -> list[str]:
    """Describe each archive with its size in one line, then the total to download."""
    told = []
    for step in steps:
        about = "" if step.archive.sha256 else "about "
        state = {"there": "there", "unpack": "downloaded, to unpack", "download": f"to download from {step.url}"}[
            step.state
        ]
        told.append(f"  {step.archive.file}  {about}{_amount(step.archive.size)}  {state}")
    if order.draw.count and order.set.singles:
        told.append(
            f"  {order.set.training_split}: {order.draw.count} single images drawn with seed {order.draw.seed} "
            f"(all of them, {_amount(sum(archive.size for archive in order.set.training))}: --calibration all)"
        )
    if order.images is None and order.set.by_hand and not (order.root / order.set.by_hand_folder).is_dir():
        told.append(f"  {order.set.by_hand}")
    told.append(f"to download: {_amount(sum(step.missing for step in steps))}")
    return told


def describe_report(one: DataSet, report: Report, options: argparse.Namespace) -> list[str]:
    told = [f"{report.name} in {report.root}"] + [f"  {part.describe()}" for part in report.parts]
    if report.complete:
        return [*told, "complete" + (", every image decodes" if report.decoded else "")]
    by_hand = [one.by_hand] if one.by_hand and any(part.wrong for part in report.parts) else []
    calibration = _EVERYTHING if options.calibration is None else options.calibration
    root = shlex.quote(str(report.root))
    return [
        *told,
        *by_hand,
        f"not complete; to get what is missing: python -m mmq_sweeps.data prepare {report.name} --root {root} "
        f"--calibration {calibration} --seed {options.seed}" + (" --decode" if report.decoded else ""),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status."""
    options = parse(arguments)
    line = Line()
    try:
        with output_may_close():
            return run(options, line)
    except KeyboardInterrupt:
        line.end()
        sys.stderr.write("stopped; what has arrived is kept, run the same command again to go on\n")
        return STOPPED
    except (ValueError, OSError) as error:
        line.end()
        sys.stderr.write(f"error: {error}\n")
        return INCOMPLETE


if __name__ == "__main__":
    sys.exit(main())
