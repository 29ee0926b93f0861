"""A headless Chromium for tests of pages: its console log, its network requests, and the layout that it renders."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
ARGUMENTS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--window-size=1280,900",
)  # fmt: skip
# The contrast of every text with its background (WCAG 2.2, 1.4.3), and the texts with less than 4.5.
FAINT_TEXTS = """
const linear = (x) => (x / 255 <= .04045 ? x / 255 / 12.92 : ((x / 255 + .055) / 1.055) ** 2.4);
const luminance = ([r, g, b]) => .2126 * linear(r) + .7152 * linear(g) + .0722 * linear(b);
// Painted, since a colour may be said in any colour space.
const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true }), seen = new Map();
const parse = (text) => {
  if (!seen.has(text)) {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = text;
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, alpha] = canvas.getImageData(0, 0, 1, 1).data;
    seen.set(text, [r, g, b, alpha / 255]);
  }
  return seen.get(text);
};
const behind = (element) => {
  for (let e = element; e; e = e.parentElement) {
    const c = parse(getComputedStyle(e).backgroundColor);
    if (c[3] > 0.99) return c;
  }
  return [255, 255, 255];
};
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), faint = [];
let texts = 0;
while (walker.nextNode()) {
  const element = walker.currentNode.parentElement, text = walker.currentNode.data.trim();
  if (!text || ["SCRIPT", "STYLE"].includes(element.tagName) || !element.getClientRects().length) continue;
  // On a heat map's square the text's colour is chosen by that of the square.
  if (element.closest("[class^=onsquare]")) continue;
  const style = getComputedStyle(element), drawn = element.namespaceURI.endsWith("svg");
  const a = luminance(parse(drawn ? style.fill : style.color)), b = luminance(behind(element));
  const contrast = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
  texts += 1;
  if (contrast < 4.5 || parseFloat(style.fontSize) < 11) faint.push([text.slice(0, 40), contrast, style.fontSize]);
}
return [texts, faint];
"""


@contextmanager
def chromium(profile: Path) -> Iterator[Any]:
    """Start a browser with a ``profile`` of its own; skip the test if the distribution's packages are not installed."""
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("needs a browser: apt-get install chromium chromium-driver")
    from selenium import webdriver
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    options = Options()
    options.binary_location = CHROMIUM
    for argument in (*ARGUMENTS, f"--user-data-dir={profile}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    try:
        # Ends the browser's own start page.
        driver.get("about:blank")
        yield driver
    finally:
        driver.quit()


def show(driver: Any, page: Path, width: int = 1280, scheme: str = "light") -> None:
    """Open ``page`` in a window ``width`` pixels wide, in a ``light`` or ``dark`` colour scheme.

    Afterwards the logs hold the messages and requests of this page alone.
    """
    _forget(driver)
    screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    preferred = [{"name": "prefers-color-scheme", "value": scheme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": preferred})
    driver.get(page.as_uri())


def _forget(driver: Any) -> None:
    for log in ("performance", "browser"):
        driver.get_log(log)


def asked(driver: Any) -> list[str]:
    """Return the addresses that the page requested, without those embedded in the page."""
    events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    addresses = [
        event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"
    ]
    return [address for address in addresses if not address.startswith("data:")]
