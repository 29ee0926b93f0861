#!/usr/bin/env bash
# Guess: Pillow treats a picture's EXIF orientation alike in all formats: it leaves it to ImageOps.exif_transpose.
# Instead: a TIFF is turned on load (and its tag removed); JPEG, PNG and WebP with the same tag are not. The same photograph,
# converted without loss, reaches a model upright or lying on its side, with other sides' lengths.
# Seen with pillow 13.0.0. Concerns data sets of mixed formats, and comparisons of an image before and after conversion.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --no-deps pillow==13.0.0
cat > "$work/show.py" <<'P'
import io

from PIL import Image

picture = Image.new("RGB", (4, 2))
size = {}
for form in ("TIFF", "JPEG", "PNG", "WEBP"):
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    picture.save(file, form, exif=exif)
    loaded = Image.open(file)
    loaded.load()
    size[form] = loaded.size
    print(f"{form}: {picture.size} loads as {loaded.size}, orientation tag left: {loaded.getexif().get(0x0112)}")
assert size.pop("TIFF") == (2, 4), "TIFF files are no longer turned"
assert set(size.values()) == {(4, 2)}, "other formats are now turned too"
P
"$work/venv/bin/python" "$work/show.py"
