// A text token by token, with every active latent of every dictionary: passages of the page, or (where it is served) one of yours.
const reading = { text: null, at: -1, chosen: new Map() };
const MOST = 12; // latents listed

// {tokens, runs: [{run, first, latent, code}]}: entries first[i] to first[i + 1] are those of token i.
function readingOf(tokens, parts) {
  return { tokens, runs: parts.map(([run, { active, latent, code }]) => ({ run, first: starts(unpack(active)), latent: unpack(latent), code: unpack(code) })) };
}

// The runs of each text that have passages, and the passages: as many for each.
const shelves = page.texts.map((_, text) => page.runs.map((run, i) => [run, i]).filter(([run]) => run.text === text && run.passages));
function passage(text, number) {
  const { start, length } = shelves[text][0][0].passages;
  const begin = unpack(start)[number];
  const { strings, tokens } = textOf(text);
  const words = Array.from(tokens.subarray(begin, begin + length[number]), (n) => strings[n]);
  return readingOf(words, shelves[text].map(([run, i]) => [openRun(i), run.passages.codes[number]]));
}

const passages = shelves.flatMap((runs, text) => (runs.length ? runs[0][0].passages.length.map((_, number) => [text, number]) : []));

// How strong a code is for its latent: its share of the largest that the page knows.
const strength = (run, latent, code) => Math.min(1, Math.abs(code) / (run.full[latent] || Math.abs(code)));

function entriesAt(part, token) {
  const found = [];
  for (let i = part.first[token]; i < part.first[token + 1]; i++) found.push([part.latent[i], part.code[i]]);
  return found;
}

// The code that shades a token: of the chosen latent, or the strongest of all.
function shading(part, token) {
  const chosen = reading.chosen.get(part.run.number);
  let best = { latent: chosen, code: 0, share: 0 };
  for (const [latent, code] of entriesAt(part, token)) {
    if (chosen !== undefined && latent !== chosen) continue;
    const share = strength(part.run, latent, code);
    if (share >= best.share) best = { latent, code, share };
  }
  return best;
}

function readToken(part, token) {
  const text = reading.text.tokens[token];
  const { latent, code, share: strong } = shading(part, token);
  const active = code !== 0;
  // Nearly every token has some latent near its largest code: of the strongest of all, only those that stand out are to be seen.
  const depth = reading.chosen.has(part.run.number) ? strong : strong ** 4;
  const element = make(active ? "mark" : "span", { className: "token pick", tabIndex: token === Math.max(0, reading.at) ? 0 : -1, role: "button", "aria-pressed": String(token === reading.at) }, shown(text).short || "∅");
  element.told = { text, code, latent };
  if (active) element.style.setProperty("--share", (0.06 + 0.94 * depth).toFixed(3));
  if (code < 0) element.classList.add("negative");
  element.addEventListener("click", () => pick(token, part.run.number));
  element.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    pick(token, part.run.number);
  });
  return element;
}

// The latents of the picked token, or of all of the text, strongest first.
function strongestOf(part) {
  const sums = new Map();
  const tokens = reading.at < 0 ? reading.text.tokens.map((_, i) => i) : [reading.at];
  for (const token of tokens) {
    for (const [latent, code] of entriesAt(part, token)) {
      const [sum, most] = sums.get(latent) ?? [0, 0];
      sums.set(latent, [sum + strength(part.run, latent, code), Math.abs(code) > Math.abs(most) ? code : most]);
    }
  }
  return [...sums].sort((a, b) => b[1][0] - a[1][0]);
}

function activeElement(part) {
  const found = strongestOf(part);
  const items = found.slice(0, MOST).map(([latent, [, code]]) => {
    const chosen = reading.chosen.get(part.run.number) === latent;
    const shade = make("button", { type: "button", "aria-pressed": String(chosen), "aria-label": `Shade by #${latent} of ${part.run.name}` }, chosen ? "shaded" : "shade");
    shade.addEventListener("click", () => choose(part.run.number, chosen ? undefined : latent));
    return make("li", {}, make("span", { className: "code" }, number(code, 3)), make("a", { href: address(part.run.number, latent) }, `#${latent} `, ...saidElements(part.run, latent, 4)), shade);
  });
  const whole = reading.at < 0;
  const said = whole ? "Most active in this text" : "Active on the chosen token";
  const count = whole ? `${found.length} latents fire somewhere in it.` : `${found.length} latents fire here.`;
  return make("div", {}, make("h4", {}, said), make("p", { className: "hint" }, count), make("ul", { className: "near" }, ...items));
}

function readerElement(part) {
  const { run } = part;
  const chosen = reading.chosen.get(run.number);
  const line = make("p", { className: "reading", dir: "auto" }, ...reading.text.tokens.map((_, token) => readToken(part, token)));
  const by = make("input", { type: "number", min: 0, max: run.latents - 1, value: chosen ?? "", id: `by-${run.number}`, placeholder: "strongest" });
  by.addEventListener("change", () => choose(run.number, by.value === "" || !(Number(by.value) < run.latents) ? undefined : Math.max(0, Math.floor(Number(by.value)))));
  return make("section", { className: "card", id: `reader-${run.number}` },
    make("h3", {}, isolated(run.name)),
    make("label", { className: "check" }, "Shade by latent # ", by),
    line, activeElement(part));
}

function pick(token, run) {
  reading.at = reading.at === token ? -1 : token;
  showReading();
  byId(`reader-${run}`).querySelectorAll(".pick")[token].focus();
}

function choose(run, latent) {
  if (latent === undefined) reading.chosen.delete(run);
  else reading.chosen.set(run, latent);
  showReading();
}

function showReading() {
  hideTip();
  byId("readers").replaceChildren(...reading.text.runs.map(readerElement));
}

function openReading(text) {
  Object.assign(reading, { text, at: -1 });
  showReading();
}

function followReading(number) {
  if (!passages.length) return;
  const kept = Number.isInteger(number) && number >= 0 && number < passages.length;
  if (!kept && reading.text) return;
  const wanted = kept ? number : 0;
  byId("passage").value = String(wanted);
  openReading(passage(...passages[wanted]));
}

function listenToReading() {
  if (!byId("passage")) return;
  byId("passage").replaceChildren(...passages.map(([text, number], i) => {
    const { tokens } = passage(text, number);
    return make("option", { value: i }, `${i + 1}: ${cut(visible(tokens.slice(0, 16).join("")).trim(), 60)}`);
  }));
  byId("passage").addEventListener("change", (event) => { location.hash = `#read/${event.target.value}`; });
  for (const [id, by] of [["passage-back", -1], ["passage-on", 1]]) {
    byId(id).addEventListener("click", () => {
      const next = (Number(byId("passage").value) + by + passages.length) % passages.length;
      location.hash = `#read/${next}`;
    });
  }
}
