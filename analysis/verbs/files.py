"""Write files whole or not at all, with errors that name the option."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd

from mmq_sweeps.reporting.table import line, output_console

WRITERS = {".parquet": "to_parquet", ".csv": "to_csv"}


def write_table(frame: pd.DataFrame, out: Path, what: str) -> None:
    """Write ``frame`` in the format of the name ``out``, and report the number of its rows, called ``what``."""
    with written(out) as temporary:
        getattr(frame, WRITERS[out.suffix])(temporary, index=False)
    line(output_console(), f"{len(frame)} {what}, {len(frame.columns)} columns: {out}")


@contextmanager
def written(out: Path) -> Iterator[Path]:
    """Give a temporary file beside ``out`` that replaces it once it is whole; errors name ``out``."""
    temporary = out.with_name(f"{out.stem}.{os.getpid()}{out.suffix}")
    with naming(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            temporary.replace(out)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def naming(out: Path) -> Iterator[None]:
    """Name ``out`` in errors of the system, of which those about a full disk name no file."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else error
        raise OSError(f"--out {out}: cannot be written: {reason}") from error
