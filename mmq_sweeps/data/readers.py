"""The readers of this package, by the names that cell ids and records use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmq_sweeps.data.coco import CocoCaptions, CocoKarpathy
from mmq_sweeps.data.flickr30k import Flickr30k
from mmq_sweeps.data.gqa import Gqa
from mmq_sweeps.data.hub import HubData
from mmq_sweeps.data.scenes import Scenes
from mmq_sweeps.data.vqav2 import VqaV2

READERS: Mapping[str, Any] = {
    reader.known_as: reader for reader in (Scenes, CocoCaptions, CocoKarpathy, Flickr30k, VqaV2, Gqa, HubData)
}
