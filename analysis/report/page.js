"use strict";
// Draw the page's charts and tables from the data embedded in it.
(() => {
  const drawn = JSON.parse(document.getElementById("drawn").textContent);
  const tip = document.getElementById("tip");
  const DASHES = ["", "7 4", "9 3 2 3", "2 3", "12 4", "12 3 2 3", "1 3"];
  const NEAR = 18; // Pixels from a point within which the pointer selects it.
  const FIRST_ROWS = 100;

  function element(name, attributes, parent) {
    const svg = ["svg", "g", "path", "line", "rect", "circle", "text"].includes(name);
    const made = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
    for (const [key, value] of Object.entries(attributes || {})) {
      if (key === "text") made.textContent = value;
      else made.setAttribute(key, value);
    }
    if (parent) parent.append(made);
    return made;
  }

  const shown = (value, digits) =>
    value.toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits, useGrouping: digits === 0 });
  const short = (value) => String(Number(value.toPrecision(4)));

  function ticks(low, high, count) {
    const rough = (high - low) / count || 1;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((one) => one * power).find((one) => one >= rough * 0.999);
    const found = [];
    for (let value = Math.ceil(low / step - 1e-9) * step; value <= high + step * 1e-9; value += step) found.push(Number(value.toPrecision(10)));
    return found;
  }

  // Marker paths around (0, 0): circle, square, triangles, diamond, cross, x.
  const MARKERS = [
    (r) => `M${-r} 0a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${-2 * r} 0`,
    (r) => `M${-r} ${-r}h${2 * r}v${2 * r}h${-2 * r}z`,
    (r) => `M0 ${-1.2 * r}L${1.1 * r} ${0.8 * r}H${-1.1 * r}z`,
    (r) => `M0 ${-1.3 * r}L${1.3 * r} 0L0 ${1.3 * r}L${-1.3 * r} 0z`,
    (r) => `M0 ${1.2 * r}L${1.1 * r} ${-0.8 * r}H${-1.1 * r}z`,
    (r) => `M${-r} 0H${r}M0 ${-r}V${r}`,
    (r) => `M${-r} ${-r}L${r} ${r}M${-r} ${r}L${r} ${-r}`,
  ];
  const colour = (number) => `var(--c${number % 7})`;
  const marker = (number, radius) => MARKERS[number % 7](radius);

  function tell(text, x, y) {
    tip.textContent = text;
    tip.hidden = false;
    const width = document.documentElement.clientWidth;
    const left = Math.max(4, Math.min(x + 12, width - tip.offsetWidth - 4));
    tip.style.left = `${left + window.scrollX}px`;
    const above = y - tip.offsetHeight - 10;
    tip.style.top = `${(above > 0 ? above : y + 14) + window.scrollY}px`;
  }

  // Pointing at a chart shows the nearest of its points.
  function listen(svg, points) {
    const move = (event) => {
      const box = svg.getBoundingClientRect();
      const scale = svg.viewBox.baseVal.width / box.width;
      const x = (event.clientX - box.left) * scale, y = (event.clientY - box.top) * scale;
      let best = null, distance = NEAR ** 2, alike = 0;
      for (const point of points) {
        const d = point.box
          ? (x >= point.x && x < point.x + point.box[0] && y >= point.y && y < point.y + point.box[1] ? 0 : Infinity)
          : (point.x - x) ** 2 + (point.y - y) ** 2;
        if (d < distance) { best = point; distance = d; alike = 0; }
        else if (best && d === distance && point.x === best.x && point.y === best.y && point.text !== best.text) alike += 1;
      }
      if (best) tell(best.text + (alike ? `\nand ${alike} more here` : ""), event.clientX, event.clientY);
      else tip.hidden = true;
    };
    svg.addEventListener("pointermove", move);
    svg.addEventListener("pointerdown", move);
    svg.addEventListener("pointerleave", () => { tip.hidden = true; });
  }

  function frame(parent, panel, width, height, left) {
    const svg = element("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": panel.title || panel.y_label }, parent);
    return { svg, x0: left, x1: width - 12, y0: height - 44, y1: 12 };
  }

  function axes(area, panel, xs, ys, xAt, yAt) {
    for (const value of ys) {
      element("line", { class: "grid", x1: area.x0, x2: area.x1, y1: yAt(value), y2: yAt(value) }, area.svg);
      element("text", { x: area.x0 - 6, y: yAt(value) + 4, "text-anchor": "end", text: short(value) }, area.svg);
    }
    for (const value of xs) {
      element("line", { class: "axis", x1: xAt(value), x2: xAt(value), y1: area.y0, y2: area.y0 + 4 }, area.svg);
      element("text", { x: xAt(value), y: area.y0 + 17, "text-anchor": "middle", text: short(value) }, area.svg);
    }
    element("line", { class: "axis", x1: area.x0, x2: area.x1, y1: area.y0, y2: area.y0 }, area.svg);
    element("text", { x: (area.x0 + area.x1) / 2, y: area.y0 + 36, "text-anchor": "middle", text: panel.x_label || "" }, area.svg);
    const turned = `translate(13 ${(area.y0 + area.y1) / 2}) rotate(-90)`;
    element("text", { transform: turned, "text-anchor": "middle", text: panel.y_label || "" }, area.svg);
  }

  function range(panels) {
    const values = [];
    for (const panel of panels) {
      for (const one of panel.series) for (const list of [one.y, one.low || [], one.high || []]) values.push(...list.filter((v) => v !== null));
      if (panel.level !== null && panel.level !== undefined) values.push(panel.level);
    }
    let low = Infinity, high = -Infinity;
    for (const value of values) { low = Math.min(low, value); high = Math.max(high, value); }
    const room = (high - low) * 0.05 || Math.abs(high) * 0.05 || 1;
    return [low >= 0 && low - room < 0 ? 0 : low - room, high + room];
  }

  function drawXY(parent, panel, width, style, yRange) {
    const area = frame(parent, panel, width, Math.min(380, Math.max(250, width * 0.6)), 58);
    const xs = panel.series.flatMap((one) => one.x);
    let [xLow, xHigh] = [Math.min(...xs), Math.max(...xs)];
    const room = (xHigh - xLow) * 0.04 || 0.5;
    [xLow, xHigh] = [xLow - room, xHigh + room];
    const [yLow, yHigh] = yRange;
    const xAt = (v) => area.x0 + ((v - xLow) / (xHigh - xLow)) * (area.x1 - area.x0);
    const yAt = (v) => area.y0 - ((v - yLow) / (yHigh - yLow)) * (area.y0 - area.y1);
    const xTicks = panel.ticks.length ? panel.ticks : ticks(xLow, xHigh, Math.max(3, Math.floor(width / 90)));
    axes(area, panel, xTicks, ticks(yLow, yHigh, 5), xAt, yAt);
    if (panel.level !== null) element("line", { class: "level", x1: area.x0, x2: area.x1, y1: yAt(panel.level), y2: yAt(panel.level) }, area.svg);
    if (panel.diagonal) {
      const [from, to] = [Math.max(xLow, yLow), Math.min(xHigh, yHigh)];
      element("line", { class: "level", x1: xAt(from), y1: yAt(from), x2: xAt(to), y2: yAt(to) }, area.svg);
    }
    const points = [];
    for (const one of [...panel.series].sort((a, b) => b.faint - a.faint)) {
      const number = style(one.style);
      if (one.low && one.high) {
        one.x.forEach((x, i) => element("line", { x1: xAt(x), x2: xAt(x), y1: yAt(one.low[i]), y2: yAt(one.high[i]), stroke: colour(number), "stroke-opacity": 0.6 }, area.svg));
      }
      if (one.line && one.x.length > 1) {
        const path = one.x.map((x, i) => `${i ? "L" : "M"}${xAt(x).toFixed(1)} ${yAt(one.y[i]).toFixed(1)}`).join("");
        element("path", { d: path, fill: "none", stroke: colour(number), "stroke-width": 1.8, "stroke-dasharray": DASHES[number % 7] }, area.svg);
      }
      const radius = one.faint ? 2.6 : 4;
      one.x.forEach((x, i) => {
        if (one.y[i] === null) return;
        const [px, py] = [xAt(x), yAt(one.y[i])];
        element("path", {
          class: "point", d: marker(number, radius), transform: `translate(${px.toFixed(1)} ${py.toFixed(1)})`, stroke: colour(number),
          fill: number % 7 > 4 ? "none" : colour(number), opacity: one.faint ? 0.4 : 1,
        }, area.svg);
        const name = one.names[i] || one.label || one.style;
        points.push({ x: px, y: py, text: `${name}\n${panel.x_label} ${short(x)}, ${panel.y_label} ${shown(one.y[i], 4)}` });
      });
    }
    listen(area.svg, points);
  }

  function drawBars(parent, panel, width, style) {
    const area = frame(parent, panel, width, 270, 58);
    const [, high] = range([panel]);
    const yAt = (v) => area.y0 - (v / high) * (area.y0 - area.y1);
    const step = (area.x1 - area.x0) / panel.labels.length;
    axes(area, panel, [], ticks(0, high, 5), null, yAt);
    const thick = Math.min(56, (step * 0.8) / panel.series.length), points = [];
    panel.labels.forEach((label, j) => {
      const middle = area.x0 + step * (j + 0.5);
      element("text", { x: middle, y: area.y0 + 17, "text-anchor": "middle", text: label }, area.svg);
      panel.series.forEach((one, k) => {
        if (one.y[j] === null) return;
        const x = middle + (k - panel.series.length / 2) * thick, top = yAt(one.y[j]);
        element("rect", { class: "point", x: x + 1, y: top, width: thick - 2, height: Math.max(area.y0 - top, 1), fill: colour(style(one.style)) }, area.svg);
        let interval = "";
        if (one.low && one.low[j] !== null) {
          const at = x + thick / 2;
          element("path", { d: `M${at} ${yAt(one.low[j])}V${yAt(one.high[j])}M${at - 4} ${yAt(one.low[j])}h8M${at - 4} ${yAt(one.high[j])}h8`, stroke: "var(--ink)", "stroke-width": 1.5, fill: "none" }, area.svg);
          interval = ` (${shown(one.low[j], 1)} to ${shown(one.high[j], 1)})`;
        }
        points.push({ x, y: area.y1, box: [thick, area.y0 - area.y1], text: `${label}, ${one.label}\n${shown(one.y[j], 1)}${interval}` });
      });
    });
    listen(area.svg, points);
  }

  // Cividis, sampled at eleven points.
  const CIVIDIS = ["#00224e", "#123570", "#3b496c", "#575d6d", "#707173", "#8a8678", "#a59c74", "#c3b369", "#e1cc55", "#fee838"];

  // All heat maps of a figure share a scale: a small difference must not look like a large one.
  function scale(panels) {
    const values = panels.flatMap((panel) => (panel.values || []).flat()).filter((value) => value !== null);
    return [Math.min(...values), Math.max(...values)];
  }

  function drawHeatmap(parent, panel, width, [low, high]) {
    const named = panel.columns.some((column) => column.length > 4), left = named ? 96 : 58;
    const side = Math.min(named ? 74 : 46, (width - left - 12) / panel.columns.length), tall = Math.min(side, 34);
    const height = 12 + tall * panel.rows.length + 44;
    const area = frame(parent, panel, width, height, left);
    const points = [];
    panel.rows.forEach((row, i) => {
      const y = area.y0 - tall * (i + 1);
      element("text", { x: area.x0 - 6, y: y + tall / 2 + 4, "text-anchor": "end", text: row }, area.svg);
      panel.columns.forEach((column, j) => {
        const value = panel.values[i][j], x = area.x0 + side * j;
        if (value === null) return;
        // Bright is better.
        const share = panel.higher ? (value - low) / (high - low || 1) : (high - value) / (high - low || 1);
        element("rect", { class: "point", x, y, width: side - 1, height: tall - 1, fill: CIVIDIS[Math.min(9, Math.floor(share * 10))] }, area.svg);
        if (side > 34) element("text", { x: x + side / 2, y: y + tall / 2 + 4, "text-anchor": "middle", style: `fill:${share > 0.55 ? "#000" : "#fff"};font-size:11px`, text: Number(value.toPrecision(3)) }, area.svg);
        points.push({ x, y, box: [side, tall], text: `${panel.x_label} ${column}, ${panel.y_label} ${row}\n${panel.value_label} ${shown(value, 4)}` });
      });
    });
    panel.columns.forEach((column, j) => element("text", { x: area.x0 + side * (j + 0.5), y: area.y0 + 17, "text-anchor": "middle", text: column }, area.svg));
    element("text", { x: area.x0 + (side * panel.columns.length) / 2, y: area.y0 + 36, "text-anchor": "middle", text: panel.x_label }, area.svg);
    element("text", { transform: `translate(13 ${(area.y0 + 12) / 2}) rotate(-90)`, "text-anchor": "middle", text: panel.y_label }, area.svg);
    listen(area.svg, points);
  }

  function legend(parent, panels, style) {
    const labels = new Map();
    for (const panel of panels) for (const one of panel.series || []) if (one.label) labels.set(one.style, one.label);
    const level = panels.some((panel) => panel.level !== null && panel.level !== undefined);
    const added = panels.some((panel) => panel.diagonal);
    if (labels.size + level + added === 0) return;
    const line = element("div", { class: "legend" }, parent);
    const entry = (text, draw) => {
      const one = element("span", {}, line);
      draw(element("svg", { width: 30, height: 14, viewBox: "0 0 30 14", "aria-hidden": "true" }, one));
      one.append(text);
    };
    const bars = panels[0].kind === "bars";
    for (const [name, label] of labels) {
      const number = style(name);
      entry(label, (svg) => {
        if (bars) return element("rect", { x: 8, y: 1, width: 14, height: 12, fill: colour(number) }, svg);
        element("path", { d: "M0 7H30", stroke: colour(number), "stroke-width": 1.8, "stroke-dasharray": DASHES[number % 7] }, svg);
        return element("path", { d: marker(number, 4), transform: "translate(15 7)", stroke: colour(number), fill: number % 7 > 4 ? "none" : colour(number) }, svg);
      });
    }
    if (level) entry("full precision", (svg) => element("path", { class: "level", d: "M0 7H30" }, svg));
    if (added) entry("damages add up", (svg) => element("path", { class: "level", d: "M0 7H30" }, svg));
  }

  function chart(figure, data) {
    const numbers = new Map();
    const style = (name) => { if (!numbers.has(name)) numbers.set(name, numbers.size); return numbers.get(name); };
    for (const panel of data.panels) for (const one of panel.series || []) style(one.style);
    const grid = element("div", { class: data.panels.length === 1 ? "panels one" : "panels" }, figure);
    legend(figure, data.panels, style);
    const curves = data.panels.filter((panel) => panel.kind === "xy");
    const shared = curves.length && new Set(curves.map((panel) => panel.y_label)).size === 1 ? range(curves) : null;
    const hosts = data.panels.map((panel) => {
      const host = element("div", { class: "panel" }, grid);
      if (panel.title) element("h4", { text: panel.title }, host);
      return host;
    });
    let last = 0;
    const redraw = () => {
      const width = Math.floor(hosts[0].clientWidth);
      if (!width || width === last) return;
      last = width;
      data.panels.forEach((panel, i) => {
        hosts[i].querySelectorAll("svg").forEach((old) => old.remove());
        if (panel.kind === "xy") drawXY(hosts[i], panel, width, style, shared || range([panel]));
        else if (panel.kind === "bars") drawBars(hosts[i], panel, width, style);
        else drawHeatmap(hosts[i], panel, width, scale(data.panels));
      });
    };
    redraw();
    // Draw a frame later: a resize observer must not change the sizes that it observes.
    new ResizeObserver(() => requestAnimationFrame(redraw)).observe(grid);
  }

  function compare(a, b) {
    if (a === b) return 0;
    if (a === null || a === "") return 1;
    if (b === null || b === "") return -1;
    return typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
  }

  function table(host, data) {
    const texts = data.rows.map((row) => row.filter((value) => value !== null).join(" ").toLowerCase());
    const state = { order: data.rows.map((_, i) => i), column: -1, up: true, words: [], chosen: {}, all: false };
    const controls = element("div", { class: "controls" });
    const told = element("span", { class: "quiet", role: "status" });
    if (data.rows.length > 8) {
      const input = element("input", { type: "search", placeholder: 'Filter: words, or "a phrase"', "aria-label": `Filter ${host.getAttribute("aria-label")}` }, controls);
      input.addEventListener("input", () => { state.words = [...input.value.toLowerCase().matchAll(/"([^"]*)"|\S+/g)].map((found) => found[1] ?? found[0]); fill(); });
      for (const label of data.filters) {
        const index = data.columns.findIndex((column) => column.label === label);
        const choices = [...new Set(data.rows.map((row) => row[index]))].filter((value) => value !== null && value !== "").sort(compare);
        if (choices.length < 2 && !(choices.length === 1 && data.rows.some((row) => !row[index]))) continue;
        const select = element("select", { "aria-label": label }, controls);
        element("option", { value: "", text: `${label}: any` }, select);
        for (const choice of choices) element("option", { value: choice, text: `${label}: ${choice}` }, select);
        select.addEventListener("change", () => { state.chosen[index] = select.value; fill(); });
      }
      controls.append(told);
      host.append(controls);
    }
    const scroll = element("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": host.getAttribute("aria-label") }, host);
    const grid = element("table", {}, scroll);
    const head = element("tr", {}, element("thead", {}, grid));
    const body = element("tbody", {}, grid);
    const more = element("button", { type: "button" });
    more.addEventListener("click", () => { state.all = true; fill(); });
    data.columns.forEach((column, index) => {
      const cell = element("th", { scope: "col", class: column.digits === null ? "" : "number" }, head);
      element("button", { type: "button", text: column.label }, cell).addEventListener("click", () => {
        state.up = state.column === index ? !state.up : true;
        state.column = index;
        // Missing values sort last in both directions.
        state.order.sort((a, b) => {
          const [x, y] = [data.rows[a][index], data.rows[b][index]];
          const lacking = (x === null || x === "") - (y === null || y === "");
          return lacking || (state.up ? compare(x, y) : compare(y, x)) || a - b;
        });
        head.querySelectorAll("th").forEach((other) => other.removeAttribute("aria-sort"));
        cell.setAttribute("aria-sort", state.up ? "ascending" : "descending");
        fill();
      });
    });

    function fill() {
      const kept = state.order.filter((i) =>
        state.words.every((word) => texts[i].includes(word)) &&
        Object.entries(state.chosen).every(([index, value]) => value === "" || String(data.rows[i][index]) === value));
      const visible = state.all ? kept : kept.slice(0, FIRST_ROWS);
      const rows = document.createDocumentFragment();
      for (const i of visible) {
        const row = element("tr", {}, rows);
        data.columns.forEach((column, index) => {
          const value = data.rows[i][index];
          const cell = element("td", { class: column.digits === null ? "" : "number" }, row);
          if (value === null || value === "") return;
          if (column.link) element("a", { href: value, rel: "noopener", text: column.link }, cell);
          else cell.textContent = column.digits === null ? value : shown(value, column.digits);
          const warning = data.marks[`${i},${index}`];
          if (warning) {
            const mark = element("span", { class: "mark", role: "img", tabindex: 0, title: warning, "aria-label": warning, text: "!" }, cell);
            mark.addEventListener("pointerdown", (event) => tell(warning, event.clientX, event.clientY));
          }
        });
      }
      body.replaceChildren(rows);
      told.textContent = `${kept.length.toLocaleString("en-US")} of ${data.rows.length.toLocaleString("en-US")}`;
      if (visible.length < kept.length) { more.textContent = `Show all ${kept.length.toLocaleString("en-US")}`; scroll.after(more); }
      else more.remove();
    }
    fill();
  }

  for (const host of document.querySelectorAll("[data-drawn]")) {
    const data = drawn[Number(host.dataset.drawn)];
    (data.kind === "chart" ? chart : table)(host, data);
  }
})();
