// The panels of a figure, drawn with Observable Plot: curves and points, bars with intervals, heat maps.

const EM = 12;
const FONT = { fontSize: `${EM}px`, fontFamily: "inherit", background: "none", overflow: "visible" };
// Cividis, sampled at ten places: bright is better.
const CIVIDIS = ["#00224e", "#123570", "#3b496c", "#575d6d", "#707173", "#8a8678", "#a59c74", "#c3b369", "#e1cc55", "#fee838"];

// Plot reports the datum under the pointer; the page's tip says it, and a click pins its cell.
function pointing(svg, say, pick) {
  let at = [0, 0];
  svg.addEventListener("pointermove", (event) => { at = [event.clientX, event.clientY]; if (svg.value) tell(say(svg.value), ...at); });
  svg.addEventListener("pointerenter", (event) => { at = [event.clientX, event.clientY]; });
  svg.addEventListener("input", () => { if (svg.value) tell(say(svg.value), ...at); else hush(); });
  svg.addEventListener("pointerleave", hush);
  // Plot would hold the point that is clicked, until the next click; here a click pins a cell.
  svg.addEventListener("pointerdown", (event) => event.stopPropagation(), true);
  if (pick) svg.addEventListener("click", () => { if (svg.value) pick(svg.value); });
  return svg;
}

function extent(values) {
  let low = Infinity, high = -Infinity;
  for (const value of values) if (number(value)) { low = Math.min(low, value); high = Math.max(high, value); }
  return [low, high];
}

function padded([low, high], share) {
  const room = (high - low) * share || Math.abs(high) * share || 1;
  return [low >= 0 && low - room < 0 ? 0 : low - room, high + room];
}

const yValues = (panel) => [...panel.series.flatMap((one) => [...one.y, ...(one.low || []), ...(one.high || [])]), panel.level];

function drawXY(panel, width, style, yDomain) {
  const points = panel.series.flatMap((one, order) => one.x.map((x, i) => ({
    x, y: one.y[i], low: one.low ? one.low[i] : null, high: one.high ? one.high[i] : null, order, line: one.line,
    faint: one.faint, style: style(one.style), text: one.names[i] || one.label || one.style,
  }))).filter((point) => number(point.y));
  const drawn = (test) => points.filter(test);
  const ink = (point) => colour(point.style);
  const both = [extent(points.map((point) => point.x)), yDomain];
  const ends = [Math.max(both[0][0], both[1][0]), Math.min(both[0][1], both[1][1])];
  const svg = Plot.plot({
    width, height: Math.min(380, Math.max(250, width * 0.62)), marginLeft: 52, marginBottom: 44, style: FONT,
    x: { domain: padded(both[0], 0.04), label: panel.x_label, labelAnchor: "center", labelArrow: "none", ticks: panel.ticks.length ? panel.ticks : Math.max(3, Math.floor(width / 90)), tickFormat: short },
    y: { domain: yDomain, label: panel.y_label, labelArrow: "none", grid: true, ticks: 5, tickFormat: short },
    symbol: { type: "identity" },
    marks: [
      panel.level === null || panel.level === undefined ? null : Plot.ruleY([panel.level], { stroke: "var(--quiet)", strokeDasharray: "2 4" }),
      panel.diagonal ? Plot.line([[ends[0], ends[0]], [ends[1], ends[1]]], { stroke: "var(--quiet)", strokeDasharray: "2 4" }) : null,
      Plot.link(drawn((point) => number(point.low) && number(point.high)), { x: "x", y1: "low", y2: "high", stroke: ink, strokeOpacity: 0.55 }),
      Plot.line(drawn((point) => point.line), { x: "x", y: "y", z: "order", stroke: ink, strokeWidth: 1.8 }),
      Plot.dot(points, { x: "x", y: "y", fill: ink, symbol: (point) => SYMBOLS[point.style % SYMBOLS.length], r: (point) => (point.faint ? 2.6 : 4), fillOpacity: (point) => (point.faint ? 0.45 : 1), className: "points" }),
      Plot.dot(points, Plot.pointer({ x: "x", y: "y", r: 8, stroke: "var(--ink)", maxRadius: 24 })),
    ],
    r: { type: "identity" }, opacity: { type: "identity" },
  });
  return pointing(svg, (point) => {
    const interval = number(point.low) ? ` [${short(point.low)}, ${short(point.high)}]` : "";
    return `${point.text}\n${panel.x_label} ${short(point.x)}, ${panel.y_label} ${fixed(point.y, 4)}${interval}`;
  });
}

function drawBars(panel, width) {
  const one = panel.series[0];
  const rows = panel.labels.map((label, i) => ({ label, value: one.y[i], low: one.low[i], high: one.high[i] }));
  const known = rows.filter((row) => number(row.low));
  const ink = colour(styleOf(one.style));
  const side = Math.min(96, Math.max(...panel.labels.map((label) => label.length)) * 7.2 + 14);
  const svg = Plot.plot({
    width, height: 34 * rows.length + 50, marginLeft: side, marginRight: 44, marginTop: 4, marginBottom: 44, style: FONT,
    x: { domain: [0, Math.max(...one.x)], label: panel.y_label, labelAnchor: "center", labelArrow: "none", ticks: 5, grid: true },
    y: { domain: panel.labels, label: null, padding: 0.28, tickSize: 0 },
    marks: [
      Plot.barX(rows, { y: "label", x: "value", fill: ink, fillOpacity: 0.8, className: "bar" }),
      Plot.link(known, { y: "label", x1: "low", x2: "high", stroke: "var(--ink)", strokeWidth: 1.5, className: "interval" }),
      Plot.tickX(known, { y: "label", x: "low", stroke: "var(--ink)", strokeWidth: 1.5, insetTop: 6, insetBottom: 6 }),
      Plot.tickX(known, { y: "label", x: "high", stroke: "var(--ink)", strokeWidth: 1.5, insetTop: 6, insetBottom: 6 }),
      Plot.text(rows, { y: "label", x: (row) => Math.max(row.value, row.high || 0), text: (row) => (number(row.value) ? fixed(row.value, 1) : ""), textAnchor: "start", dx: 7, fill: "var(--ink)" }),
      Plot.dot(rows, Plot.pointer({ y: "label", x: "value", r: 4, fill: "var(--ink)", maxRadius: Infinity })),
    ],
  });
  return pointing(svg, (row) => `${one.label}, ${row.label}\n${fixed(row.value, 1)} of 100${number(row.low) ? ` [${fixed(row.low, 1)}, ${fixed(row.high, 1)}]` : ""}`);
}

// Squares of a heat map; ``paint`` gives a value's fill and the colour of its text.
function drawHeatmap(panel, width, paint, digits, say, pick) {
  const squares = panel.rows.flatMap((row, i) => panel.columns.map((column, j) => ({ row, column, i, j, value: panel.values[i][j] }))).filter((one) => number(one.value));
  const named = panel.columns.some((column) => column.length > 4);
  const left = Math.min(width * 0.42, Math.max(...panel.rows.map((row) => row.length)) * 7.2 + 14 + (panel.y_label ? 18 : 0));
  const side = Math.min(named ? 84 : 64, (width - left - 8) / panel.columns.length);
  const svg = Plot.plot({
    width: left + side * panel.columns.length + 8, height: 30 * panel.rows.length + 52, marginLeft: left, marginRight: 8, marginTop: 8, marginBottom: 44, style: FONT,
    x: { domain: panel.columns, label: panel.x_label, labelAnchor: "center", tickSize: 0, padding: 0 },
    y: { domain: panel.higher || panel.y_label ? [...panel.rows].reverse() : panel.rows, axis: null, padding: 0 },
    marks: [
      // A name that is longer than its side goes on in a second line.
      Plot.axisY({ label: null, tickSize: 0, lineWidth: (left - 12) / EM }),
      Plot.cell(squares, { x: "column", y: "row", fill: (one) => paint(one.value)[0], inset: 0.75, className: "square" }),
      side < 30 ? null : Plot.text(squares, { x: "column", y: "row", text: (one) => fixed(one.value, digits).replace(/^-(0(\.0+)?)$/, "$1"), fill: (one) => paint(one.value)[1], fontSize: 11, fontVariant: "tabular-nums", className: "onsquare" }),
      Plot.cell(squares, Plot.pointer({ x: "column", y: "row", stroke: "var(--ink)", strokeWidth: 2, inset: 0.75, fill: "none", maxRadius: Infinity })),
    ],
  });
  return pointing(svg, say, pick);
}

// Digits that all squares of a figure are written with.
function digitsOf(maps) {
  const most = Math.max(...extent(maps.flatMap((panel) => panel.values.flat())).map(Math.abs));
  const whole = maps.every((panel) => panel.values.flat().every((value) => !number(value) || Number.isInteger(value)));
  return whole ? 0 : most >= 100 ? 0 : most >= 10 ? 1 : most >= 1 ? 2 : 3;
}

// All heat maps of a figure share a scale: a small difference must not look like a large one.
function cividis(panels) {
  const [low, high] = extent(panels.flatMap((panel) => panel.values.flat()));
  return (panel) => (value) => {
    const share = panel.higher ? (value - low) / (high - low || 1) : (high - value) / (high - low || 1);
    return [CIVIDIS[Math.min(9, Math.floor(share * 10))], share > 0.55 ? "#000" : "#fff"];
  };
}

const DRAW = {
  xy: (panel, width, shared) => drawXY(panel, width, shared.style, shared.range || padded(extent(yValues(panel)), 0.05)),
  heatmap: (panel, width, shared) => drawHeatmap(panel, width, shared.paint(panel), shared.digits,
    (one) => `${panel.title}\n${panel.x_label} ${one.column}, ${panel.y_label} ${one.row}\n${panel.value_label} ${fixed(one.value, 4)}`),
};

function key(shape, text) {
  const mark = element("span", { class: `key ${shape.kind || ""}`, "aria-hidden": "true" });
  mark.style.setProperty("--key", shape.colour || "var(--quiet)");
  return element("span", {}, mark, text);
}

function legend(panels, style) {
  const labels = new Map();
  for (const panel of panels) for (const one of panel.series || []) if (one.label) labels.set(one.style, one.label);
  const entries = [...labels].map(([name, label]) => key({ colour: colour(style(name)) }, label));
  if (panels.some((panel) => number(panel.level))) entries.push(key({ kind: "dashed" }, "full precision"));
  if (panels.some((panel) => panel.diagonal)) entries.push(key({ kind: "dashed" }, "damages add up"));
  return entries.length ? element("div", { class: "legend" }, ...entries) : null;
}

// A figure of several panels that share their styles, and their y axis if it shows the same quantity.
function chart(host, data) {
  const numbers = new Map(METHODS.map((name, place) => [name, place]));
  const named = data.panels.flatMap((panel) => (panel.series || []).map((one) => one.style));
  const fresh = [...new Set(named)].filter((name) => !numbers.has(name));
  const base = named.some((name) => numbers.has(name)) ? METHODS.length : 0;
  fresh.forEach((name, place) => numbers.set(name, base + place));
  const style = (name) => numbers.get(name);
  const curves = data.panels.filter((panel) => panel.kind === "xy");
  const alike = curves.length && new Set(curves.map((panel) => panel.y_label)).size === 1;
  const maps = data.panels.filter((panel) => panel.kind === "heatmap");
  const shared = { style, range: alike ? padded(extent(curves.flatMap(yValues)), 0.05) : null, paint: maps.length ? cividis(maps) : null, digits: maps.length ? digitsOf(maps) : 0 };
  const entries = legend(data.panels, style);
  if (entries) host.append(entries);
  const grid = element("div", { class: data.panels.length === 1 ? "panels one" : "panels" });
  host.append(grid);
  if (maps.length) host.append(ramp(maps));
  for (const panel of data.panels) {
    const inner = element("div", { class: "plot" });
    grid.append(element("div", { class: "panel" }, panel.title ? element("h5", { text: panel.title }) : null, inner));
    responsive(inner, (width) => inner.replaceChildren(DRAW[panel.kind](panel, width, shared)));
  }
}

function ramp(maps) {
  const [low, high] = extent(maps.flatMap((panel) => panel.values.flat()));
  const strip = element("span", { class: "ramp", "aria-hidden": "true" });
  const higher = maps[0].higher;
  strip.style.background = `linear-gradient(to right, ${(higher ? CIVIDIS : [...CIVIDIS].reverse()).join(",")})`;
  return element("div", { class: "legend" }, element("span", {}, `${maps[0].value_label} ${short(low)}`, strip, short(high)));
}

// Damage: the more is lost, the hotter; better than full precision is cold. Ink stays legible on either.
function damages(host, data) {
  const most = Math.max(...data.panels.flatMap((panel) => panel.values.flat()).filter(number).map(Math.abs), 1e-9);
  const digits = Math.max(1, digitsOf(data.panels));
  const paint = (value) => {
    const share = Math.round(6 + 54 * Math.sqrt(Math.min(1, Math.abs(value) / most)));
    return [`color-mix(in oklab, var(${value < 0 ? "--cold" : "--hot"}) ${share}%, var(--ground))`, "var(--ink)"];
  };
  const grid = element("div", { class: "panels maps" });
  host.append(element("p", { class: "quiet", text: `${data.panels[0].value_label} if this alone is quantized, all else at full precision. Below zero: better than full precision.` }), grid);
  data.panels.forEach((panel, k) => {
    const inner = element("div", { class: "plot" });
    grid.append(element("div", { class: "panel" }, element("h5", { text: panel.title }), inner));
    const pick = (one) => { const cell = data.cells[k][one.i][one.j]; if (number(cell)) pin(cell); };
    responsive(inner, (width) => inner.replaceChildren(drawHeatmap(panel, width, paint, digits, (one) => data.notes[k][one.i][one.j], pick)));
  });
}

// Shares of answers that differ from full precision, split by what became of them. A name stands above its bar at any width.
function changes(host, data) {
  const rows = data.rows.map((row, place) => ({ ...row, place: String(place), other: Math.max(0, row.flips - row.lost - row.gained) }));
  const kinds = [["lost", data.words[0], "var(--hot)"], ["gained", data.words[1], "var(--c2)"], ["other", "no better, no worse", "var(--quiet)"]].filter(([name]) => rows.some((row) => row[name] > 0));
  const pieces = rows.flatMap((row) => kinds.map(([name, , ink]) => ({ row, ink, value: row[name] })));
  const most = Math.max(...rows.map((row) => row.high), 0.01);
  const inner = element("div", { class: "plot" });
  host.append(
    element("p", { class: "quiet", text: "Share of items that cells on the frontier answer otherwise than full precision does. A mean hides them: what is lost here cancels what is gained." }),
    element("div", { class: "legend" }, ...kinds.map(([, text, ink]) => key({ kind: "block", colour: ink }, text)), key({ kind: "whisker", colour: "var(--ink)" }, "95% interval")), inner);
  const longest = Math.max(...rows.map((row) => row.name.length));
  const say = (row) => `${row.name}\nchanges ${percent(row.flips)} of the answers [${fixed(100 * row.low, 1)}, ${fixed(100 * row.high, 1)}]\n${kinds.map(([name, text]) => `${percent(row[name])} ${text}`).join(", ")}`;
  responsive(inner, (width) => {
    // Room for the further lines of a name that is wider than the picture, of about seven pixels a letter.
    const extra = 15 * (Math.ceil((longest * 7) / (Math.min(width, 760) - 16)) - 1);
    const middle = 7 + extra / 2;
    const svg = Plot.plot({
      width: Math.min(width, 760), height: rows.length * (44 + extra) + 52, marginLeft: 12, marginRight: 64, marginTop: 2, marginBottom: 44, style: FONT,
      x: { domain: [0, most * 1.02], label: "answers changed", labelAnchor: "center", labelArrow: "none", ticks: Math.max(3, Math.floor(width / 110)), tickFormat: (value) => `${Math.round(100 * value)} %`, grid: true },
      y: { domain: rows.map((row) => row.place), axis: null, padding: 0 },
      marks: [
        Plot.barX(pieces, Plot.stackX({ x: "value", y: (piece) => piece.row.place, fill: "ink", fillOpacity: 0.85, insetTop: 22 + extra, insetBottom: 8 })),
        Plot.link(rows, { y: "place", x1: "low", x2: "high", stroke: "var(--ink)", strokeWidth: 1.5, dy: middle }),
        Plot.text(rows, { x: 0, y: "place", text: (row) => row.name, textAnchor: "start", dy: -9, lineWidth: (Math.min(width, 760) - 16) / EM, className: "name" }),
        Plot.text(rows, { x: "high", y: "place", text: (row) => percent(row.flips), textAnchor: "start", dx: 6, dy: middle }),
        Plot.dot(rows, Plot.pointer({ x: "flips", y: "place", r: 4, fill: "var(--ink)", dy: middle, maxRadius: Infinity })),
      ],
    });
    inner.replaceChildren(pointing(svg, say, (row) => pin(row.cell)));
  });
}

function bars(host, data) {
  const inner = element("div", { class: "plot" });
  host.append(inner);
  responsive(inner, (width) => inner.replaceChildren(drawBars(data.panel, width)));
}
