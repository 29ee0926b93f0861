// The pinned cell: its figures, its command, what it said, and its record.

const aside = document.getElementById("cell");
let opener = null;

function pin(cell, focus) {
  if (state.pinned === null) opener = document.activeElement;
  state.pinned = cell;
  hush();
  aside.replaceChildren(...cellContent(cell));
  aside.hidden = false;
  aside.scrollTop = 0;
  document.body.classList.add("pinned");
  if (focus) aside.focus({ preventScroll: true });
  changed("pinned");
}

function unpin() {
  if (state.pinned === null) return;
  const inside = aside.contains(document.activeElement);
  state.pinned = null;
  aside.hidden = true;
  document.body.classList.remove("pinned");
  if (inside && opener && opener.isConnected) opener.focus({ preventScroll: true });
  changed("pinned");
}
document.addEventListener("keydown", (event) => { if (event.key === "Escape") { unpin(); hush(); } });

// A text that is kept with ``{id}`` in place of the cell's own.
const written = (name, cell) => { const text = of(name, cell); return text && text.replaceAll("{id}", of("id", cell)); };

function cellContent(cell) {
  const place = of("family", cell);
  const family = number(place) ? FAMILIES[place] : null;
  const close = element("button", { type: "button", class: "close", "aria-label": "Close", text: "×", onclick: unpin });
  const heading = element("h2", { text: family ? family.name(cell) : of("cell", cell) });
  const where = family ? element("p", { class: "quiet", text: family.title }) : null;
  const url = of("url", cell);
  return [
    element("div", { class: "head" }, element("div", {}, heading, where), close),
    figures(cell, family),
    ...warningsOf(cell, family),
    ...copied("Measure it again", written("command", cell), "The records of this source do not say the command."),
    ...(exportOf(cell) ? copied("Write it as a checkpoint", exportOf(cell)) : []),
    url ? element("p", {}, element("a", { href: url, rel: "noopener", text: "Run in W&B" })) : null,
    ...said(cell, place),
    ...recordOf(cell),
  ].filter(Boolean);
}

function figures(cell, family) {
  const rows = [];
  for (const metric of family ? family.metrics : []) {
    const value = of(`metric.${metric.name}`, cell);
    if (!number(value)) continue;
    const [low, high] = [of(`low.${metric.name}`, cell), of(`high.${metric.name}`, cell)];
    rows.push([metric.label, fixed(value, 4), number(low) ? `[${fixed(low, 4)}, ${fixed(high, 4)}]` : ""]);
    if (metric.full > 0 && metric.higher) {
      const interval = (family.shares[metric.name] || {})[cell];
      rows.push(["of full precision", percent(value / metric.full), interval ? `[${fixed(100 * interval[0], 1)}, ${fixed(100 * interval[1], 1)}]` : ""]);
    }
  }
  if (number(of("flips", cell))) rows.push(["answers changed", percent(of("flips", cell)), `[${fixed(100 * of("flips_low", cell), 1)}, ${fixed(100 * of("flips_high", cell), 1)}]`]);
  for (const [name, label] of [["empty", "no answer"], ["same answer", "commonest answer"]]) if (of(name, cell)) rows.push([label, percent(of(name, cell)), ""]);
  for (const [name, label, digits] of [["bpw_paper", "bits per weight (paper)", 3], ["bpw_exact", "bits per weight (exact)", 3], ["size_bytes", "MB", 3]]) {
    const value = sized(name, cell);
    if (number(value)) rows.push([label, fixed(value, digits), ""]);
  }
  const loads = of("loads in", cell);
  if (loads) rows.push(["loads in", loads, ""]);
  return element("table", { class: "figures" }, element("tbody", {}, ...rows.map(([label, value, interval]) => element("tr", {}, element("th", { scope: "row", text: label }), element("td", { text: value }), element("td", { class: "quiet", text: interval })))));
}

function warningsOf(cell, family) {
  const told = (family ? family.metrics : []).map((metric) => [metric.label, of(`warnings.${metric.name}`, cell)]).filter((one) => one[1]);
  return told.map(([label, text]) => element("p", { class: "warning", text: `${label}: ${text}` }));
}

function copied(title, command, lacking) {
  if (!command) return lacking ? [element("h3", { text: title }), element("p", { class: "quiet", text: lacking })] : [];
  const code = element("code", { text: command });
  const button = element("button", { type: "button", class: "copy", text: "Copy" });
  button.addEventListener("click", async () => {
    // A page opened as a file may not be allowed to write to the clipboard: then the text is selected.
    try { await navigator.clipboard.writeText(command); button.textContent = "Copied"; } catch {
      getSelection().selectAllChildren(code);
      button.textContent = "Selected";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
  return [element("h3", { text: title }), element("div", { class: "command" }, code, button)];
}

function exportOf(cell) {
  const where = written("where", cell);
  const found = where && where.match(/^(.*)\/cells\/[^/]+\/record\.json$/);
  if (!found || of("status", cell) !== "done" || of("method", cell) === "none") return "";
  const quoted = /^[\w./-]+$/.test(found[1]) ? found[1] : `'${found[1].replaceAll("'", "'\\''")}'`;
  return `python -m mmq_sweeps.export ${of("id", cell)} --source ${quoted} --out checkpoint`;
}

function said(cell, place) {
  const data = SAMPLES[place];
  if (!data) return [];
  const own = data.said[cell], full = fullOf(data);
  if (!own) return [element("h3", { text: "Samples" }), element("p", { class: "quiet", text: "Its predictions are not on this page." })];
  const items = data.items.map((item, i) => element("li", {},
    item.image ? element("img", { src: item.image, alt: "" }) : null,
    element("div", {}, item.asked ? element("p", { class: "quiet", text: item.asked }) : null, answerText(data, own[i], full === cell || full === null ? null : data.said[full][i]))));
  return [element("h3", { text: "Samples" }), full === cell || full === null ? null : element("p", { class: "quiet" }, "Marked: other words than at full precision."), element("ul", { class: "said" }, ...items)].filter(Boolean);
}

function recordOf(cell) {
  const rows = [["id", of("id", cell)], ["status", of("status", cell)], ["error", of("error", cell)], ["measured", of("created", cell)], ["seconds", number(of("seconds", cell)) ? fixed(of("seconds", cell), 1) : null], ["record", written("where", cell)]];
  const listed = element("dl", { class: "record" }, ...rows.filter((row) => row[1]).flatMap(([label, text]) => [element("dt", { text: label }), element("dd", { text })]));
  const details = [["settings", "Model and task"], ["variant", "Method and calibration"], ["provenance", "Where it ran"]].map(([name, title]) => {
    const text = of(name, cell);
    if (!text || text === "{}") return null;
    return element("details", {}, element("summary", { text: title }), element("pre", { text: JSON.stringify(JSON.parse(text), null, 1).replace(/^[{}]\n?|\n?[{}]$/g, "").replaceAll('"', "") }));
  });
  return [element("h3", { text: "Record" }), listed, ...details];
}
