// What all of the page's scripts use: the data, making elements, numbers as text, the tip, and what is pinned.

const DATA = JSON.parse(document.getElementById("data").textContent);

// A packed column is a list, a pool of distinct values with the place of every cell's, or words with those of every cell:
// analysis/report/packing.py, which says what signs stand for places.
const PLACE = {};
for (let code = 35, place = 0; code < 0x590; code += 1) if (code !== 60 && code !== 92 && !(code >= 127 && code <= 160)) PLACE[String.fromCharCode(code)] = place++;
function unpacked(column, count) {
  if (Array.isArray(column)) return column;
  const places = (signs) => Array.from(signs, (sign) => PLACE[sign]);
  if (column.words) return column.rows.split(" ").map((row) => (row ? places(row).map((place) => column.words[place]).join(column.cut) : null));
  if (!column.at) return Array(count).fill(column.pool[0]);
  return (typeof column.at === "string" ? places(column.at) : column.at).map((place) => column.pool[place]);
}
const CELLS = Object.fromEntries(Object.entries(DATA.cells || {}).map(([name, column]) => [name, unpacked(column, DATA.count)]));
const of = (name, cell) => (CELLS[name] ? CELLS[name][cell] : null);
const METHODS = [...new Set(CELLS.method || [])].filter((name) => name !== "none").sort();

function element(name, attributes, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (key === "text") made.textContent = value;
    else if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value === true) made.setAttribute(key, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

// Exact halves go to the even digit, as in the tables that are printed: 8.25 is 8.2 in both.
const fixed = (value, digits) => {
  const exact = value.toFixed(digits + 40), cut = exact.slice(0, digits ? -40 : -41);
  const text = /^50*$/.test(exact.slice(-40)) && Number(cut.at(-1)) % 2 === 0 ? cut : value.toFixed(digits);
  return digits ? text : Number(text).toLocaleString("en-US");
};
const short = (value) => String(Number(value.toPrecision(4)));
// A figure with as many digits as tell it from its neighbours.
const figure = (value) => (Math.abs(value) >= 100 ? fixed(value, 1) : Math.abs(value) >= 1 ? fixed(value, 2) : fixed(value, 3));
const megabytes = (value) => (value >= 100 ? fixed(value, 0) : value >= 0.1 ? fixed(value, 2) : short(value));
const percent = (share, digits = 1) => `${fixed(100 * share, digits)}\u00a0%`;
const number = (value) => value !== null && value !== undefined;

// Methods keep their colour and their symbol all over the page.
const COLOURS = 8;
const colour = (place) => `var(--c${place % COLOURS})`;
const SYMBOLS = ["circle", "square", "triangle", "diamond", "star", "cross", "wye"];
const styleOf = (method) => { const place = METHODS.indexOf(method); return place < 0 ? 0 : place; };

// The size in the unit that is shown: bytes as MB.
const sized = (name, cell) => { const value = of(name, cell); return number(value) && name === "size_bytes" ? value / 1e6 : value; };

const tip = document.getElementById("tip");
function tell(text, x, y) {
  tip.textContent = text;
  tip.hidden = false;
  const width = document.documentElement.clientWidth;
  const left = x + 14 + tip.offsetWidth > width - 4 ? x - 14 - tip.offsetWidth : x + 14;
  tip.style.left = `${Math.max(4, Math.min(left, width - tip.offsetWidth - 4))}px`;
  const above = y - tip.offsetHeight - 12;
  tip.style.top = `${above > 4 ? above : y + 18}px`;
}
const hush = () => { tip.hidden = true; };
window.addEventListener("scroll", hush, { passive: true });

// What several blocks show: the pinned cell, and each family's answer.
const state = { pinned: null, answers: {} };
const listeners = [];
const listen = (then) => listeners.push(then);
function changed(what) { for (const then of listeners) then(what); }

// Draw when shown, and again when the width changes; a frame later, since an observer must not change what it observes.
function responsive(host, draw) {
  let last = 0;
  const again = () => {
    const width = Math.floor(host.clientWidth);
    if (!width || width === last) return;
    last = width;
    draw(width);
  };
  new ResizeObserver(() => requestAnimationFrame(again)).observe(host);
  again();
}
