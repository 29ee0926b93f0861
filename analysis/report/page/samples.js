// Sample items: image, right answers, and what full precision and chosen cells said, with the words that differ marked.

const SAMPLES = {};
for (const data of DATA.drawn) if (data.kind === "samples") SAMPLES[data.family] = data;

const fullOf = (data) => { const found = Object.keys(data.said).map(Number).find((cell) => of("method", cell) === "none"); return found === undefined ? null : found; };

// The words of ``text`` with those that are no part of the longest common subsequence with ``base`` marked.
function marked(text, base) {
  const [a, b] = [text.split(/\s+/).filter(Boolean), base.split(/\s+/).filter(Boolean)];
  const length = Array.from({ length: a.length + 1 }, () => new Uint16Array(b.length + 1));
  for (let i = a.length - 1; i >= 0; i -= 1) for (let j = b.length - 1; j >= 0; j -= 1) length[i][j] = a[i] === b[j] ? length[i + 1][j + 1] + 1 : Math.max(length[i + 1][j], length[i][j + 1]);
  const out = [];
  const add = (tag, word) => { const last = out.at(-1); if (last && last.tag === tag) last.words.push(word); else out.push({ tag, words: [word] }); };
  let i = 0, j = 0;
  while (i < a.length || j < b.length) {
    if (i < a.length && j < b.length && a[i] === b[j]) { add("", a[i]); i += 1; j += 1; }
    else if (j < b.length && (i === a.length || length[i][j + 1] >= length[i + 1][j])) { add("del", b[j]); j += 1; }
    else { add("mark", a[i]); i += 1; }
  }
  return out.flatMap(({ tag, words }, place) => [place ? " " : "", tag ? element(tag, { text: words.join(" ") }) : words.join(" ")]);
}

function answerText(data, [place, score], base) {
  const text = data.texts[place];
  const shown = text.trim() === "" ? [element("em", { text: "(nothing)" })] : base === null ? [text] : marked(text, data.texts[base[0]]);
  return element("p", { class: "said" }, ...shown, number(score) ? element("span", { class: "score", text: fixed(score, 2) }) : null);
}

function card(item, answers) {
  return element("article", {},
    item.image ? element("img", { src: item.image, alt: item.id }) : null,
    element("div", {},
      element("p", { class: "quiet id", text: item.id }),
      item.asked ? element("p", {}, element("strong", { text: item.asked })) : null,
      item.right.length ? element("p", { class: "right" }, element("span", { class: "who", text: "right" }), `${item.right[0]}${item.right.length > 1 ? ` (and ${item.right.length - 1} more)` : ""}`) : null,
      ...answers));
}

// Answers of named cells, whose words are compared with the first's.
function compared(host, data) {
  host.classList.add("samples");
  host.append(...data.items.map((item, i) => card(item, data.names.map((name, place) => element("div", { class: place ? "one" : "one full" },
    element("span", { class: "who", text: name }), answerText(data, data.said[place][i], place ? data.said[0][i] : null))))));
}

function samples(host, data) {
  const family = FAMILIES[data.family];
  const full = fullOf(data);
  let drawn = "";
  function fill() {
    const wanted = [full, state.answers[data.family], family.keeping(family.keep), state.pinned];
    let cells = [...new Set(wanted.filter((cell) => number(cell) && data.said[cell]))];
    if (cells.length < 2) cells = [...new Set([...cells, ...data.chosen])].filter((cell) => data.said[cell]).slice(0, 4);
    if (cells.join() === drawn) return;
    drawn = cells.join();
    host.replaceChildren(...data.items.map((item, i) => card(item, cells.map((cell) => element("div", { class: cell === full ? "one full" : "one" },
      element("button", { type: "button", class: "who", text: role(cell), onclick: () => pin(cell) }),
      answerText(data, data.said[cell][i], cell === full || full === null ? null : data.said[full][i]))))));
  }
  const role = (cell) => (cell === full ? "full precision" : family.name(cell));
  listen(fill);
  fill();
}
