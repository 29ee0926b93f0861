// A family's first screen: the answer within a budget as a sentence, its selectors, and the picture of quality against size.

// How many times the budget the exact bits must be to be told beside the paper's.
const MUCH_MORE = 1.1;

// The cells of a family that no other beats in both size and quality, from the smallest; all of those that tie,
// the one with fewer bits by the ``other`` count first.
function nonDominated(cells, size, score, other) {
  const order = [...cells].sort((a, b) => size(a) - size(b) || score(b) - score(a) || other(a) - other(b));
  const kept = [];
  let best = -Infinity, at = null;
  for (const cell of order) {
    const tied = kept.length && score(cell) === best && size(cell) === at;
    if (score(cell) > best || tied) { kept.push(cell); best = score(cell); at = size(cell); }
  }
  return kept;
}

class Family {
  constructor(place) {
    Object.assign(this, DATA.families[place]);
    this.place = place;
    this.metric = this.metrics[0];
    this.size = this.sizes[0];
    this.left = new Set();
    this.own = CELLS.id.map((_, cell) => cell).filter((cell) => of("family", cell) === place);
    this.limit = null;
  }

  value(cell) { return of(`metric.${this.metric.name}`, cell); }
  at(cell) { return sized(this.size.name, cell); }
  score(cell) { return this.metric.higher ? this.value(cell) : -this.value(cell); }
  get unit() { return this.size.unit; }
  get full() { return this.metric.full; }
  // One bit a weight, in the unit shown.
  get bit() { return this.size.name === "size_bytes" ? this.size.full / 1e6 / this.precision : 1; }
  get precision() { const bits = this.sizes.find((one) => one.name === "bpw_paper"); return (bits && bits.full) || 16; }

  // Select the cells that are shown, and their frontiers; keeps the budget near if the size changes.
  select() {
    this.shown = this.own.filter((cell) => number(this.value(cell)) && number(this.at(cell)) && !this.left.has(of("method", cell)));
    this.quantized = this.shown.filter((cell) => of("method", cell) !== "none");
    const frontier = (cells) => nonDominated(cells, (cell) => this.at(cell), (cell) => this.score(cell), (cell) => sized(this.size.name === "bpw_exact" ? "bpw_paper" : "bpw_exact", cell) ?? 0);
    this.frontier = frontier(this.shown);
    this.byMethod = this.methods.filter((name) => !this.left.has(name))
      .map((name) => ({ name, cells: frontier(this.quantized.filter((cell) => of("method", cell) === name)) })).filter((one) => one.cells.length);
    const [low, high] = extent((this.quantized.length ? this.quantized : this.shown).map((cell) => this.at(cell)));
    const span = high - low || high * 0.1 || 1;
    const power = 10 ** Math.floor(Math.log10(span / 60));
    this.step = [1, 2, 5, 10].map((one) => one * power).find((one) => one >= span / 100);
    const down = (value) => Math.floor(value / this.step + 1e-9) * this.step, up = (value) => Math.ceil(value / this.step - 1e-9) * this.step;
    // A ratio of sizes is as wide everywhere: few bits, where most is decided, get the room.
    this.range = [down(low * 0.97), up(high * 1.03)];
    if (this.limit === null) this.limit = [this.budget, 6, 8, up(low)].find((one) => one >= low);
    // The budget asked about fits, if all cells are smaller.
    if (this.size.name !== "size_bytes") this.range[1] = Math.max(this.range[1], this.limit);
    this.limit = Number(Math.min(Math.max(this.limit, this.range[0]), this.range[1]).toPrecision(10));
  }

  // Where a size lies on the axis, from 0 to 1, and a size as a whole number of steps.
  part(size) { return Math.log(size / this.range[0]) / Math.log(this.range[1] / this.range[0]); }
  stepped(size) { return Number((Math.round(size / this.step) * this.step).toPrecision(10)); }

  // The smallest budget, in steps, that a cell fits in.
  fitting(cell) { return this.stepped(Math.ceil(this.at(cell) / this.step - 1e-9) * this.step); }

  // The best cell of at most ``limit``: of those as good, the smallest.
  within(limit) {
    const fits = this.frontier.filter((cell) => this.at(cell) <= limit + 1e-9);
    const best = fits.at(-1);
    return best === undefined ? null : fits.find((cell) => this.score(cell) === this.score(best) && this.at(cell) === this.at(best));
  }

  // The smallest cell that keeps the share of full precision.
  keeping(share) {
    if (!(this.full > 0)) return null;
    const least = this.metric.higher ? share * this.full : -this.full / share;
    const found = this.frontier.find((cell) => this.score(cell) >= least);
    return found === undefined ? null : found;
  }

  share(cell) { return this.full > 0 ? this.value(cell) / this.full : null; }

  name(cell) {
    const places = new RegExp(` (?=(?:${this.parts.join("|")}) )`, "g");
    return of("cell", cell).replace(places, " / ").replace(" / ", " ");
  }

  interval(cell) { return (this.shares[this.metric.name] || {})[cell] || null; }

  ofFull(cell) {
    const share = of("method", cell) === "none" ? null : this.share(cell);
    if (share === null) return "";
    if (!this.metric.higher) return `${fixed(share, 2)} times full precision's`;
    const interval = this.interval(cell);
    const range = interval ? ` [${fixed(100 * interval[0], 1)}, ${fixed(100 * interval[1], 1)}]` : "";
    return `${percent(share)} of full precision${range}`;
  }

  // What one bit a weight more would bring.
  more(answer) {
    const next = this.within(this.limit + this.bit);
    const step = this.size.name === "size_bytes" ? `${megabytes(this.bit)} MB more (one bit a weight)` : "one bit more";
    if (next === answer || next === null) return `${step} buys nothing`;
    const gain = this.score(next) - this.score(answer);
    if (this.metric.higher && this.full > 0) return `${step} buys ${fixed((100 * gain) / this.full, 1)} points`;
    return `${step} ${this.metric.higher ? "buys" : "takes off"} ${figure(gain)}`;
  }

  sentence() {
    const at = this.size.name === "size_bytes" ? `Within ${short(this.limit)} MB` : `At ${short(this.limit)} ${this.unit}`;
    const answer = this.within(this.limit);
    if (answer === null) return { answer, parts: [[`${at} there is no cell; the smallest has ${figure(this.at(this.frontier[0]))} ${this.unit}.`, ""]] };
    const told = [`${this.metric.label} ${figure(this.value(answer))}`, this.ofFull(answer)];
    const bytes = of("size_bytes", answer);
    if (number(bytes)) told.push(`${megabytes(bytes / 1e6)} MB`);
    else told.push(`${figure(this.at(answer))} ${this.unit}`);
    // The paper's bits count no codebooks, scales and zeros, which may be much of a narrow linear.
    const exact = of("bpw_exact", answer);
    if (this.size.name === "bpw_paper" && number(exact) && exact > this.limit * MUCH_MORE) told.push(`${figure(exact)} exact bits`);
    const full = of("method", answer) === "none";
    return { answer, parts: [[`${at} take `, ""], [this.name(answer), "strong"], [`: ${told.filter(Boolean).join(", ")}`, ""], [full ? "." : `; ${this.more(answer)}.`, ""]] };
  }
}

const FAMILIES = (DATA.families || []).map((_, place) => new Family(place));

function overview(host, data) {
  const family = FAMILIES[data.family];
  const sentence = element("p", { class: "answer", "aria-live": "polite" });
  const second = element("p", { class: "second quiet" });
  const plotted = element("div", { class: "picture", tabindex: 0, role: "group", "aria-label": `Quality against size of ${family.title}. Arrow keys go along the frontiers, Enter pins a cell, Escape leaves.` });
  const marks = element("div", { class: "marks", "aria-hidden": "true" });
  const slider = element("input", { type: "range", class: "budget", "aria-label": "Budget", min: 0, max: 1, step: 0.001 });
  const entry = element("input", { type: "number", "aria-label": "Budget", id: `budget${data.family}`, inputmode: "decimal" });
  const unit = element("span", { class: "unit" });
  const controls = element("div", { class: "controls" },
    choice("Metric", family.metrics, (one) => one.label, family.metric, (one) => { family.metric = one; update(true); }),
    choice("Size", family.sizes, (one) => one.label, family.size, (one) => { rescale(one); update(true); }),
    element("label", { for: `budget${data.family}` }, element("span", { text: "Budget" }), element("span", { class: "entry" }, entry, unit)));
  const chips = element("div", { class: "chips", role: "group", "aria-label": "Methods" });
  for (const name of family.methods) {
    const chip = element("button", { type: "button", class: "chip", "aria-pressed": "true", title: `Leave ${name} out, or take it in` }, symbol(name), name);
    chip.addEventListener("click", () => {
      const left = family.left.has(name);
      if (left) family.left.delete(name);
      else if (family.left.size + 1 < family.methods.length) family.left.add(name);
      else return;
      chip.setAttribute("aria-pressed", String(left));
      update(true);
    });
    chips.append(chip);
  }
  if (family.full !== null) chips.append(key({ kind: "dashed" }, "full precision"));
  host.append(sentence, second, controls, element("div", { class: "stage" }, plotted, marks), slider, chips);

  let scales = null, cursor = null, width = 0;
  // The same answer in another size: its own size, rounded up to a step.
  function rescale(size) {
    const answer = family.within(family.limit);
    family.size = size;
    family.limit = null;
    family.select();
    if (answer !== null && number(family.at(answer))) family.limit = family.fitting(answer);
  }

  function update(anew) {
    if (anew) { family.select(); cursor = null; }
    const { answer, parts } = family.sentence();
    sentence.replaceChildren(...parts.map(([text, tag]) => (tag ? element(tag, { text }) : text)));
    const warning = answer === null ? null : of(`warnings.${family.metric.name}`, answer);
    if (warning) sentence.append(" ", warningMark(warning));
    // Texts as a screen reader and a search find them: the sentence is one line.
    host.dataset.answer = answer === null ? "" : of("id", answer);
    const kept = family.keeping(family.keep);
    second.replaceChildren(...keeps(kept));
    [entry.min, entry.max, entry.step] = [...family.range, family.step].map((value) => String(Number(value.toPrecision(10))));
    if (entry !== document.activeElement || anew) entry.value = String(Number(family.limit.toFixed(6)));
    slider.value = String(family.part(family.limit));
    slider.setAttribute("aria-valuetext", `${short(family.limit)} ${family.unit}`);
    unit.textContent = family.unit;
    state.answers[data.family] = answer;
    if (anew && width) paint();
    overlay();
    changed("answer");
  }

  function keeps(kept) {
    if (family.full === null) return ["There is no cell at full precision, so what is kept of it is not known: run method=none."];
    if (!(family.full > 0)) return [];
    const asked = family.metric.higher ? percent(family.keep, 0) : `1 / ${short(family.keep)}`;
    if (kept === null || of("method", kept) === "none") return [`No quantized cell keeps ${asked} of full precision's ${figure(family.full)}.`];
    const button = element("button", { type: "button", class: "link", text: `${family.name(kept)}.`, onclick: () => { family.limit = family.fitting(kept); update(false); } });
    return [`Keeping ${asked} of full precision's ${figure(family.full)} takes ${figure(family.at(kept))} ${family.unit}: `, button];
  }

  const setLimit = (text) => {
    const value = Number(text);
    if (text === "" || !Number.isFinite(value)) return;
    family.limit = Math.min(Math.max(value, family.range[0]), family.range[1]);
    update(false);
  };
  slider.addEventListener("input", () => setLimit(family.stepped(family.range[0] * (family.range[1] / family.range[0]) ** slider.value)));
  // The slider's own steps are shares of the axis, which a budget in whole steps may not follow.
  slider.addEventListener("keydown", (event) => {
    const steps = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1, PageUp: 10, PageDown: -10 }[event.key];
    if (!steps) return;
    event.preventDefault();
    setLimit(family.stepped(family.limit + steps * family.step));
  });
  entry.addEventListener("input", () => setLimit(entry.value));
  entry.addEventListener("blur", () => { entry.value = String(Number(family.limit.toFixed(6))); });

  const describe = (cell) => {
    const figures = [`${family.metric.label} ${fixed(family.value(cell), 4)}`, family.ofFull(cell)].filter(Boolean).join(", ");
    const warning = of(`warnings.${family.metric.name}`, cell);
    return `${family.name(cell)}\n${figures}\n${fixed(family.at(cell), 3)} ${family.unit}${warning ? `\n! ${warning}` : ""}`;
  };

  // The cells at the same place, the answer first.
  function alike(cell) {
    const here = family.quantized.filter((other) => family.at(other) === family.at(cell) && family.value(other) === family.value(cell));
    const answer = state.answers[data.family];
    return here.includes(answer) ? [answer, ...here.filter((other) => other !== answer)] : here;
  }

  function paint() {
    const wide = width >= 700;
    const height = wide ? Math.max(300, Math.min(440, width * 0.38)) : 300;
    const margin = { left: 52, right: wide && family.full > 0 ? 58 : 14 };
    const frontier = family.byMethod.flatMap((one) => one.cells);
    const on = new Set(frontier);
    const others = family.quantized.filter((cell) => !on.has(cell));
    const bounds = (cell) => [of(`low.${family.metric.name}`, cell), of(`high.${family.metric.name}`, cell)];
    const yDomain = padded(extent([...family.quantized.map((cell) => family.value(cell)), family.full, ...frontier.flatMap(bounds)]), 0.03);
    const ink = (cell) => colour(styleOf(of("method", cell)));
    const place = { x: (cell) => family.at(cell), y: (cell) => family.value(cell) };
    const shape = (cell) => SYMBOLS[styleOf(of("method", cell)) % SYMBOLS.length];
    const known = frontier.filter((cell) => bounds(cell).every(number));
    const levels = [1, 0.98, 0.95, 0.9, 0.8, 0.6, 0.4, 0.2].map((share) => share * family.full).filter((value) => value >= yDomain[0]);
    const svg = Plot.plot({
      width, height, marginLeft: margin.left, marginRight: margin.right, marginTop: 22, marginBottom: 42, style: FONT,
      x: { type: "log", domain: family.range, label: family.unit, labelAnchor: "center", labelArrow: "none", ticks: sizeTicks(family.range, width - margin.left - margin.right), tickFormat: short },
      y: { domain: yDomain, label: null },
      r: { type: "identity" }, symbol: { type: "identity" },
      marks: [
        Plot.gridY({ ticks: 6, stroke: "var(--grid)", strokeOpacity: 1 }),
        Plot.axisY({ ticks: 6, label: family.metric.label, labelArrow: "none", tickSize: 0, tickFormat: short }),
        wide && family.full > 0 && family.metric.higher ? Plot.axisY(spread(levels, yDomain, height), { anchor: "right", label: "of full precision", labelArrow: "none", tickFormat: (value) => `${Math.round((100 * value) / family.full)} %`, tickSize: 4 }) : null,
        family.full === null ? null : Plot.ruleY([family.full], { stroke: "var(--quiet)", strokeDasharray: "2 4", strokeWidth: 1.5 }),
        Plot.dot(others, { ...place, fill: ink, fillOpacity: 0.32, r: 2.4, symbol: shape, className: "points others" }),
        Plot.link(known, { x: place.x, y1: (cell) => bounds(cell)[0], y2: (cell) => bounds(cell)[1], stroke: ink, strokeOpacity: 0.4 }),
        family.byMethod.map((one) => Plot.line(one.cells, { ...place, stroke: colour(styleOf(one.name)), strokeWidth: 2, curve: "step-after" })),
        Plot.dot(frontier, { ...place, fill: ink, r: 4.2, symbol: shape, stroke: "var(--ground)", strokeWidth: 0.8, className: "points" }),
        Plot.dot(family.quantized, Plot.pointer({ ...place, r: 9, stroke: "var(--ink)", strokeWidth: 1.5, maxRadius: 22 })),
      ],
    });
    svg.setAttribute("aria-hidden", "true");
    const inner = svg.scale("x"), tall = svg.scale("y");
    scales = { x: inner.apply, y: tall.apply, height, left: margin.left, right: width - margin.right, bottom: height - 42, top: 22 };
    plotted.replaceChildren(pointing(svg, (cell) => { const [first, ...more] = alike(cell); return describe(first) + (more.length ? `\nand ${more.length} more here` : ""); }, (cell) => pin(alike(cell)[0])));
    // The slider's thumb is right below the budget's line.
    slider.style.marginLeft = `${margin.left - THUMB / 2}px`;
    slider.style.width = `${width - margin.left - margin.right + THUMB}px`;
  }

  // The budget, the answer and the cell under the keyboard, over the picture: redrawn alone when they move.
  function overlay() {
    if (!scales) return;
    const ends = [scales.left, scales.right];
    const x = Math.min(Math.max(scales.x(family.limit), ends[0]), ends[1]);
    const drawn = [
      svgElement("rect", { class: "beyond", x, y: scales.top, width: Math.max(0, ends[1] - x), height: scales.bottom - scales.top }),
      svgElement("line", { class: "limit", x1: x, x2: x, y1: scales.top - 6, y2: scales.bottom }),
    ];
    const answer = state.answers[data.family];
    if (answer !== null && answer !== undefined) {
      const [px, py] = [scales.x(family.at(answer)), scales.y(family.value(answer))];
      drawn.push(svgElement("circle", { class: "mark halo", cx: px, cy: py, r: 10 }), svgElement("circle", { class: "mark", cx: px, cy: py, r: 10 }));
    }
    for (const [cell, kind] of [[cursor, "cursor"], [state.pinned, "pinned"]]) {
      if (cell === null || of("family", cell) !== data.family || !family.shown.includes(cell)) continue;
      drawn.push(svgElement("circle", { class: kind, cx: scales.x(family.at(cell)), cy: scales.y(family.value(cell)), r: 13 }));
    }
    const svg = svgElement("svg", { width, height: scales.height });
    svg.append(...drawn);
    marks.replaceChildren(svg);
  }

  // Left and right along a method's frontier, up and down between methods.
  plotted.addEventListener("keydown", (event) => {
    const rows = family.byMethod;
    if (!rows.length) return;
    const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    if (step) {
      event.preventDefault();
      let row = Math.max(0, rows.findIndex((one) => one.cells.includes(cursor)));
      if (cursor === null) cursor = state.answers[data.family] !== null && rows.some((one) => one.cells.includes(state.answers[data.family])) ? state.answers[data.family] : rows[0].cells[0];
      else if (step[1]) cursor = rows[row].cells[Math.min(Math.max(rows[row].cells.indexOf(cursor) + step[1], 0), rows[row].cells.length - 1)];
      else {
        row = (row + step[0] + rows.length) % rows.length;
        const at = family.at(cursor);
        cursor = rows[row].cells.reduce((best, cell) => (Math.abs(family.at(cell) - at) < Math.abs(family.at(best) - at) ? cell : best));
      }
      show();
    } else if (event.key === "Enter" && cursor !== null) { event.preventDefault(); pin(cursor, true); }
    else if (event.key === "Escape" && cursor !== null) { cursor = null; hush(); overlay(); }
  });
  plotted.addEventListener("blur", () => { if (cursor !== null) { cursor = null; hush(); overlay(); } });
  const spoken = element("span", { class: "unseen", "aria-live": "polite" });
  host.append(spoken);
  function show() {
    const box = plotted.getBoundingClientRect();
    spoken.textContent = describe(cursor);
    overlay();
    tell(describe(cursor), box.left + scales.x(family.at(cursor)), box.top + scales.y(family.value(cursor)));
  }

  listen((what) => { if (what === "pinned") overlay(); });
  update(true);
  responsive(plotted, (now) => { width = now; paint(); overlay(); });
}

const THUMB = 20;

// Levels far enough from each other that their labels do not touch.
function spread(levels, [low, high], height) {
  const kept = [];
  for (const level of levels) {
    const at = ((level - low) / (high - low)) * (height - 64);
    if (kept.every((other) => Math.abs(other.at - at) > 15)) kept.push({ level, at });
  }
  return kept.map((one) => one.level);
}

// Round sizes for a logarithmic axis, as many as have room.
function sizeTicks([low, high], room) {
  const power = Math.floor(Math.log10(low)), found = [];
  for (let exponent = power; 10 ** exponent <= high; exponent += 1) {
    for (const step of [10, 15, 20, 25, 30, 35, 40, 50, 60, 70, 80, 90]) {
      const value = Number((step * 10 ** (exponent - 1)).toPrecision(6)), at = (Math.log(value / low) / Math.log(high / low)) * room;
      if (value < low || value > high) continue;
      while (found.length && at - found.at(-1).at < 36 && step % 10 === 0 && !found.at(-1).round) found.pop();
      if (!found.length || at - found.at(-1).at >= 36) found.push({ value, at, round: step % 10 === 0 });
    }
  }
  for (const value of [12, 14, 16]) {
    const at = (Math.log(value / low) / Math.log(high / low)) * room;
    if (value >= low && value <= high && found.every((one) => Math.abs(one.at - at) >= 36)) found.push({ value, at, round: true });
  }
  return found.map((one) => one.value);
}

function choice(label, options, text, chosen, then) {
  if (options.length < 2) return null;
  const select = element("select", { "aria-label": label });
  options.forEach((option, place) => select.append(element("option", { value: place, text: text(option), selected: option === chosen })));
  select.addEventListener("change", () => then(options[Number(select.value)]));
  return element("label", {}, element("span", { text: label }), select);
}

function svgElement(name, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [attribute, value] of Object.entries(attributes)) made.setAttribute(attribute, value);
  return made;
}

// A method's symbol, as the pictures draw it.
function symbol(method) {
  const place = styleOf(method);
  const svg = Plot.plot({ width: 14, height: 14, margin: 0, axis: null, x: { domain: [0, 1] }, y: { domain: [0, 1] }, r: { type: "identity" }, symbol: { type: "identity" }, marks: [Plot.dot([[0.5, 0.5]], { r: 5, fill: colour(place), symbol: SYMBOLS[place % SYMBOLS.length] })] });
  svg.setAttribute("aria-hidden", "true");
  return svg;
}

function warningMark(text) {
  const mark = element("span", { class: "mark", role: "img", tabindex: 0, title: text, "aria-label": text, text: "!" });
  mark.addEventListener("pointerdown", (event) => tell(text, event.clientX, event.clientY));
  return mark;
}
