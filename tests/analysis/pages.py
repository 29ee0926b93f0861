"""Read a report's page back, as its scripts do."""

from __future__ import annotations

import json
import re
from typing import Any

from analysis.report.packing import SIGNS


def unpacked(column: Any, count: int) -> list[Any]:
    """Unpack a packed column as page/base.js does."""
    if isinstance(column, list):
        return column
    if "words" in column:
        rows = [[column["words"][SIGNS.index(sign)] for sign in row] for row in column["rows"].split(" ")]
        return [column["cut"].join(row) or None for row in rows]
    at = column.get("at", [0] * count)
    places = [SIGNS.index(sign) for sign in at] if isinstance(at, str) else at
    return [column["pool"][place] for place in places]


def columns_of(page: str) -> dict[str, list[Any]]:
    """Return the columns of all cells, by name."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    data = json.loads(found[1])
    return {name: unpacked(column, data["count"]) for name, column in data["cells"].items()}
