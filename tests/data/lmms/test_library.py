"""What lmms-eval changes in a process when it is imported and run is undone."""

from __future__ import annotations

import json
from pathlib import Path

from tests.commands import run_forked
from tests.conftest import command_environment
from tests.data.lmms.folders import needs_lmms_eval

PROGRAM = """
import json, logging, os, random, sys, warnings
import numpy, datasets
from PIL import ImageFile
from mmq_sweeps.data.lmms.documents import LmmsDocuments

def state():
    return {
        "truncated": ImageFile.LOAD_TRUNCATED_IMAGES,
        "warnings": [str(one) for one in warnings.filters],
        "environment": dict(os.environ),
        "drawn": [random.getstate()[1][:3], numpy.random.get_state()[1][:3].tolist()],
        "path": list(sys.path),
        "handlers": [str(one) for one in logging.getLogger().handlers],
        "offline": datasets.config.HF_HUB_OFFLINE,
        "bars": datasets.are_progress_bars_disabled(),
    }

folder, out = sys.argv[1:]
before = state()
documents = list(LmmsDocuments("mine", "test_split", include_path=folder))
images = [document.images for document in documents]
after = state()
with open(out, "w") as file:
    json.dump({"count": len(documents), "imported": "lmms_eval" in sys.modules, "before": before, "after": after}, file)
"""


@needs_lmms_eval
def test_an_import_changes_nothing_for_others(tasks: Path, tmp_path: Path) -> None:
    out = tmp_path / "state.json"
    done = run_forked("-c", [PROGRAM, str(tasks), str(out)], tmp_path, command_environment())
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    found = json.loads(out.read_text())
    assert found["imported"]
    assert found["count"] > 1
    # Of modules that are imported on the way, such as urllib3's, which add what they ignore.
    ignored = [one for one in found["after"].pop("warnings") if one not in found["before"]["warnings"]]
    assert not any("'ignore', None, <class 'Warning'>, None, 0" in one for one in ignored)
    del found["before"]["warnings"]
    assert found["after"] == found["before"]
