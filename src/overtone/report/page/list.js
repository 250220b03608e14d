// The list of latents: sorted, searched, and drawn only where it is looked at.
const ROW = 52; // pixels, as in the style
const SPARE = 6; // rows drawn beyond the edges
const state = { run: null, latent: 0, order: [], place: -1, sort: "z_score", falling: true };

function sortsOf(run) {
  const sorts = [
    ["z_score", "Z-score", run.z_score],
    ["frequency", "frequency", run.frequency],
    ["peak", "peak", run.peak],
    ["latent", "number", null],
  ];
  if (run.groups) sorts.push(["group", "group (target)", run.targets]);
  if (run.counterparts.length) {
    const mean = new Float32Array(run.latents);
    for (const c of run.counterparts) c.cosine.forEach((cosine, m) => { mean[m] += cosine / run.counterparts.length; });
    sorts.push(["consistency", "nearest in the others", mean]);
  }
  if (run.detection) sorts.push(["detection", "detection score", run.detection]);
  return sorts;
}

function chooseRun(number) {
  const run = openRun(number);
  if (state.run === run) return;
  state.run = run;
  byId("run").value = String(number);
  run.sorts ??= sortsOf(run);
  const known = run.sorts.some(([name]) => name === state.sort);
  if (!known) state.sort = "z_score";
  byId("sort").replaceChildren(...run.sorts.map(([value, label]) => make("option", { value, selected: value === state.sort }, label)));
  arrange();
}

// What is searched: tokens and label of a latent, in small letters. Made once.
function haystack(run) {
  return (run.haystack ??= Array.from({ length: run.latents }, (_, m) => `${topTokens(run, m, 12).join(" ")} ${run.labels[m] ?? ""}`.toLowerCase()));
}

function matching(run, asked) {
  const byNumber = asked.match(/^#?(\d+)$/);
  const words = asked.toLowerCase().split(/\s+/).filter(Boolean);
  if (!words.length) return () => true;
  const hay = haystack(run);
  return (m) => {
    if (byNumber && Number(byNumber[1]) === m) return true;
    const all = `${hay[m]} ${notes.get(run, m).toLowerCase()}`;
    return words.every((one) => all.includes(one));
  };
}

function arrange() {
  const { run } = state;
  const asked = byId("search").value.trim();
  const matches = matching(run, asked);
  const silent = byId("silent").checked || /^#?\d+$/.test(asked);
  const order = [];
  for (let m = 0; m < run.latents; m++) if ((silent || run.frequency[m] > 0) && matches(m)) order.push(m);
  const values = run.sorts.find(([name]) => name === state.sort)[2];
  const sign = state.falling ? -1 : 1;
  // What was not measured comes last, whichever way.
  const key = values ? (m) => (Number.isFinite(values[m]) ? sign * values[m] : Infinity) : (m) => sign * m;
  const keys = new Float64Array(run.latents);
  for (const m of order) keys[m] = key(m);
  state.order = order.sort((a, b) => keys[a] - keys[b] || a - b);
  state.place = order.indexOf(state.latent);
  const of = `of ${run.latents.toLocaleString("en")} latents`;
  byId("found").textContent = order.length ? `${order.length.toLocaleString("en")} ${of}` : `None ${of}: try another word.`;
  byId("rows").style.height = `${order.length * ROW}px`;
  byId("list").scrollTop = 0;
  paint();
}

function rowElement(place) {
  const { run, order } = state;
  const m = order[place];
  const words = topTokens(run, m, 5).map(word).join(" · ");
  const said = notes.get(run, m) || run.labels[m] || `Z ${number(run.z_score[m])} · peak ${number(run.peak[m])}`;
  const option = make(
    "div",
    { id: `row-${m}`, className: "row", role: "option", "aria-selected": String(m === state.latent), "aria-setsize": String(order.length), "aria-posinset": String(place + 1) },
    make("span", { className: "number" }, `#${m}`),
    make("bdi", { className: "words" }, words || "never fires"),
    make("span", { className: "frequency" }, share(run.frequency[m])),
    make("bdi", { className: "said" }, cut(visible(said), 80)),
  );
  option.style.top = `${place * ROW}px`;
  option.addEventListener("click", () => go(m));
  return option;
}

function paint() {
  const list = byId("list");
  const first = Math.max(0, Math.floor(list.scrollTop / ROW) - SPARE);
  const last = Math.min(state.order.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW) + SPARE);
  byId("rows").replaceChildren(...Array.from({ length: Math.max(0, last - first) }, (_, i) => rowElement(first + i)));
  if (byId(`row-${state.latent}`)) list.setAttribute("aria-activedescendant", `row-${state.latent}`);
  else list.removeAttribute("aria-activedescendant");
}

function reveal() {
  const list = byId("list");
  if (state.place < 0) return paint();
  const top = state.place * ROW;
  if (top < list.scrollTop) list.scrollTop = top;
  else if (top + ROW > list.scrollTop + list.clientHeight) list.scrollTop = top + ROW - list.clientHeight;
  paint();
}

function go(latent) {
  location.hash = address(state.run.number, latent);
}

function step(by) {
  const { order, place } = state;
  if (!order.length) return;
  const next = place < 0 ? 0 : Math.min(order.length - 1, Math.max(0, place + by));
  go(order[next]);
}

function listenToList() {
  byId("list").addEventListener("scroll", paint, { passive: true });
  addEventListener("resize", paint);
  byId("run").addEventListener("change", (event) => { location.hash = address(Number(event.target.value), 0); });
  byId("search").addEventListener("input", arrange);
  byId("silent").addEventListener("change", arrange);
  byId("sort").addEventListener("change", (event) => { state.sort = event.target.value; arrange(); });
  byId("direction").addEventListener("click", (event) => {
    state.falling = !state.falling;
    event.target.textContent = state.falling ? "largest first" : "smallest first";
    arrange();
  });
  byId("list").addEventListener("keydown", (event) => {
    const rows = Math.max(1, Math.floor(byId("list").clientHeight / ROW) - 1);
    const by = { ArrowDown: 1, ArrowUp: -1, PageDown: rows, PageUp: -rows, Home: -Infinity, End: Infinity }[event.key];
    if (by === undefined) return;
    event.preventDefault();
    step(by);
  });
  byId("search").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && state.order.length) go(state.order[0]);
    if (event.key === "Escape") { event.target.value = ""; arrange(); event.target.blur(); }
  });
}
