// Draw every block of the page; those behind a title that readers open are drawn when they do.

const BLOCKS = { overview, chart, bars, damages, changes, table, samples, compared };
function draw(host) {
  const data = DATA.drawn[Number(host.dataset.drawn)];
  BLOCKS[data.kind](host, data);
  delete host.dataset.drawn;
}
const drawIn = (root) => { for (const host of root.querySelectorAll("[data-drawn]")) if (host.closest("details:not([open])") === null) draw(host); };
drawIn(document);
for (const details of document.querySelectorAll("main details")) details.addEventListener("toggle", () => { if (details.open) drawIn(details); });
