// Tables that sort and filter. Only the rows in sight are in the document, so that thousands scroll as quickly as ten.

const ROW = 33, OVERSCAN = 12, PRINTED = 300, FEW = 60;
// Pixels of a text column at most: a cell's bits stand at the end of its name. On a phone texts take two lines, so that
// figures are in sight beside them.
const NARROW = document.documentElement.clientWidth < 480, WIDEST = NARROW ? 160 : 470;

const COLLATOR = new Intl.Collator("en", { numeric: true });
function compare(a, b) {
  if (a === b) return 0;
  return typeof a === "number" && typeof b === "number" ? a - b : COLLATOR.compare(String(a), String(b));
}
// The pixels that a text takes in a table.
const brush = document.createElement("canvas").getContext("2d");
function wideness(text, weight) {
  brush.font = `${weight} 13px ${getComputedStyle(document.body).fontFamily}`;
  return brush.measureText(text).width;
}
const blank = (value) => value === null || value === undefined || value === "";

function table(host, data) {
  const label = host.getAttribute("aria-label");
  const columns = data.all ? data.columns.filter((column) => CELLS[column.from]) : data.columns;
  const count = data.all ? CELLS.id.length : data.rows.length;
  const value = data.all ? (row, column) => of(columns[column].from, row) : (row, column) => data.rows[row][column];
  const cellOf = data.all ? (row) => row : (row) => (data.cells.length ? data.cells[row] : null);
  const warning = data.all
    ? (row, column) => (columns[column].from.startsWith("metric.") ? of(columns[column].from.replace("metric.", "warnings."), row) : null)
    : (row, column) => data.marks[`${row},${column}`];
  const texts = Array.from({ length: count }, (_, row) => columns.map((_, column) => value(row, column) ?? "").join(" ").toLowerCase());
  const format = (row, column) => { const found = value(row, column), { digits } = columns[column]; return blank(found) ? "" : typeof found === "number" && digits !== null ? fixed(found, digits) : String(found); };
  const picked = { order: Array.from({ length: count }, (_, row) => row), column: -1, up: true, words: [], chosen: {}, active: -1 };
  let kept = picked.order;

  const told = element("span", { class: "quiet", role: "status" });
  const scroll = element("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": `${label}: arrow keys choose a row, Enter pins its cell` });
  const head = element("tr");
  const body = element("tbody");
  const grid = element("table", { "aria-rowcount": count + 1 }, widths(), element("thead", {}, head), body);
  if (count > 20) host.append(controls());
  scroll.append(grid);
  host.append(scroll);

  // Columns keep their widths while rows come and go: those of their longest texts.
  function widths() {
    const group = element("colgroup");
    let whole = 0;
    columns.forEach((column, place) => {
      let longest = "";
      for (let row = 0; row < count; row += 1) {
        const shown = column.link || format(row, place) + (warning(row, place) ? "000" : "");
        if (shown.length > longest.length) longest = shown;
      }
      const heading = wideness(`${column.label} \u2195`, 600), words = column.label.split(" ").map((word) => wideness(word, 600));
      const least = NARROW ? Math.max(...words, heading / 2 + 12) : heading;
      const wide = Math.min(Math.max(least, wideness(longest, 400)), WIDEST) + (NARROW ? 20 : 26);
      whole += wide;
      group.append(element("col", { style: `width:${Math.round(wide)}px` }));
    });
    group.dataset.width = String(Math.round(whole));
    return group;
  }

  function controls() {
    const line = element("div", { class: "controls" });
    const input = element("input", { type: "search", placeholder: 'Filter: words, or "a phrase"', "aria-label": `Filter ${label}` });
    input.addEventListener("input", () => { picked.words = [...input.value.toLowerCase().matchAll(/"([^"]*)"|\S+/g)].map((found) => found[1] ?? found[0]); refilter(); });
    line.append(input);
    for (const name of data.filters) {
      const place = columns.findIndex((column) => column.label === name);
      if (place < 0) continue;
      const all = Array.from({ length: count }, (_, row) => value(row, place));
      const choices = [...new Set(all)].filter((one) => !blank(one)).sort(compare);
      if (choices.length < 2 && !(choices.length === 1 && all.some(blank))) continue;
      const select = element("select", { "aria-label": name }, element("option", { value: "", text: `${name}: any` }), ...choices.map((one) => element("option", { value: one, text: `${name}: ${one}` })));
      select.addEventListener("change", () => { picked.chosen[place] = select.value; refilter(); });
      line.append(select);
    }
    line.append(told);
    return line;
  }

  columns.forEach((column, place) => {
    const cell = element("th", { scope: "col", class: column.digits === null ? "" : "number" }, element("button", { type: "button", text: column.label }));
    cell.firstChild.addEventListener("click", () => {
      picked.up = picked.column === place ? !picked.up : true;
      picked.column = place;
      const keys = picked.order.map(() => null);
      for (const row of picked.order) keys[row] = value(row, place);
      // Missing values sort last in both directions.
      picked.order.sort((a, b) => blank(keys[a]) - blank(keys[b]) || (blank(keys[a]) ? 0 : picked.up ? compare(keys[a], keys[b]) : compare(keys[b], keys[a])) || a - b);
      head.querySelectorAll("th").forEach((other) => other.removeAttribute("aria-sort"));
      cell.setAttribute("aria-sort", picked.up ? "ascending" : "descending");
      refilter();
    });
    head.append(cell);
  });

  function refilter() {
    const chosen = Object.entries(picked.chosen).filter(([, one]) => one !== "");
    kept = picked.order.filter((row) => picked.words.every((word) => texts[row].includes(word)) && chosen.every(([place, one]) => String(value(row, place)) === one));
    picked.active = -1;
    scroll.scrollTop = 0;
    told.textContent = `${kept.length.toLocaleString("en-US")} of ${count.toLocaleString("en-US")}`;
    fill(true);
  }

  let drawn = [-1, -1];
  function fill(anew, all) {
    const tall = scroll.clientHeight || 700;
    all = all || kept.length <= FEW;
    const first = all ? 0 : Math.max(0, Math.floor(scroll.scrollTop / ROW) - OVERSCAN);
    const last = all ? Math.min(kept.length, PRINTED) : Math.min(kept.length, Math.ceil((scroll.scrollTop + tall) / ROW) + OVERSCAN);
    if (!anew && first >= drawn[0] && first - drawn[0] < OVERSCAN && last <= drawn[1]) return;
    drawn = [first, last];
    const rows = [];
    if (first) rows.push(gap(first));
    for (let place = first; place < last; place += 1) rows.push(line(place));
    if (last < kept.length && !all) rows.push(gap(kept.length - last));
    if (all && last < kept.length) rows.push(element("tr", {}, element("td", { colspan: columns.length, text: `and ${kept.length - last} more: filter the table before printing` })));
    body.replaceChildren(...rows);
  }
  const gap = (rows) => element("tr", { class: "gap", "aria-hidden": "true", style: `height:${rows * ROW}px` });

  function line(place) {
    const row = kept[place];
    const cell = cellOf(row);
    const made = element("tr", { "aria-rowindex": place + 2, class: [place === picked.active ? "active" : "", number(cell) ? "pins" : "", number(cell) && cell === state.pinned ? "chosen" : ""].join(" ").trim() || null });
    made.dataset.place = String(place);
    columns.forEach((column, at) => {
      const text = format(row, at);
      const shown = element("td", { class: column.digits === null ? null : "number" });
      if (text !== "") {
        if (column.link) shown.append(element("a", { href: text, rel: "noopener", text: column.link }));
        else if (NARROW && column.digits === null) shown.append(element("span", { class: "lines", text, title: text.length > 40 ? text : null }));
        else { shown.textContent = text; if (text.length > 40) shown.title = text; }
        const told = warning(row, at);
        if (told) shown.append(warningMark(told));
      }
      made.append(shown);
    });
    return made;
  }

  body.addEventListener("click", (event) => {
    const row = event.target.closest("tr[data-place]");
    if (!row || event.target.closest("a, .mark")) return;
    activate(Number(row.dataset.place));
    choose(false);
  });
  function choose(focus) { const cell = picked.active < 0 ? null : cellOf(kept[picked.active]); if (number(cell)) pin(cell, focus); }
  function activate(place) {
    picked.active = Math.min(Math.max(place, 0), kept.length - 1);
    const top = picked.active * ROW, room = scroll.clientHeight - 2 * ROW;
    if (top < scroll.scrollTop) scroll.scrollTop = top;
    else if (top > scroll.scrollTop + room) scroll.scrollTop = top - room;
    fill(true);
  }
  scroll.addEventListener("keydown", (event) => {
    if (event.target !== scroll) return;
    const page = Math.max(1, Math.floor(scroll.clientHeight / ROW) - 2);
    const to = { ArrowDown: picked.active + 1, ArrowUp: picked.active - 1, PageDown: picked.active + page, PageUp: picked.active - page, Home: 0, End: kept.length - 1 }[event.key];
    if (to !== undefined) { event.preventDefault(); activate(to); }
    else if (event.key === "Enter") choose(true);
  });
  let waiting = false;
  scroll.addEventListener("scroll", () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; fill(false); });
  }, { passive: true });
  new ResizeObserver(() => requestAnimationFrame(() => fill(false))).observe(scroll);
  window.addEventListener("beforeprint", () => fill(true, true));
  window.addEventListener("afterprint", () => fill(true));
  listen((what) => { if (what === "pinned") fill(true); });
  grid.style.minWidth = `${grid.querySelector("colgroup").dataset.width}px`;
  refilter();
}
