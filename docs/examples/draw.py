"""Draw twelve scenes as PNG files, and write their captions and questions to scenes.json."""

import json
from pathlib import Path

from mmq_sweeps.data.scenes import Scenes

Path("scenes").mkdir(exist_ok=True)
scenes = []
for example in Scenes(split="evaluation", count=12):
    image = f"scenes/{example.id}.png"
    example.image.save(image)
    asked = [[one.question, one.answer] for one in example.questions]
    scenes.append({"image": image, "texts": example.references, "questions": asked})
Path("scenes.json").write_text(json.dumps(scenes))
