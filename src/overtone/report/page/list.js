// The list of latents: sorted and searched.
const state = { run: null, latent: 0, order: [], place: -1, sort: "z_score", falling: true };

function sortsOf(run) {
  const sorts = [
    ["z_score", "Z-score", run.z_score],
    ["frequency", "frequency", run.frequency],
    ["peak", "peak", run.peak],
    ["latent", "number", null],
  ];
  if (run.truth) sorts.push(...truthSorts(run));
  if (run.groups) sorts.push(["group", "group (target)", run.targets]);
  if (run.counterparts.length) {
    const near = nearness(run);
    if (near) sorts.push(["consistency", "nearest in the others", near]);
  }
  if (run.detection) sorts.push(["detection", "detection score", run.detection]);
  return sorts;
}

// The largest cosine with any atom of another dictionary, on average over them; null where there is no other of the same width.
function nearness(run) {
  const others = run.counterparts.filter((c) => c.by_direction && c.by_direction.cosine.some(Number.isFinite));
  if (!others.length) return null;
  return (run.near ??= Float32Array.from({ length: run.latents }, (_, m) => others.reduce((sum, c) => sum + c.by_direction.cosine[m], 0) / others.length));
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
    return words.every((one) => (run.truth && NAME_OF_FEATURE.test(one) ? one === feature(run.truth.feature[m]) : all.includes(one)));
  };
}

function arrange() {
  const { run } = state;
  const asked = byId("search").value.trim();
  const matches = matching(run, asked);
  const silent = byId("silent").checked || /^#?\d+$/.test(asked);
  const order = [];
  for (let m = 0; m < run.latents; m++) if ((silent || run.frequency[m] > 0) && matches(m)) order.push(m);
  ordered(order, run.sorts.find(([name]) => name === state.sort)[2], state.falling);
  state.order = order;
  state.place = order.indexOf(state.latent);
  const of = `of ${run.latents.toLocaleString("en")} latents`;
  byId("found").textContent = order.length ? `${order.length.toLocaleString("en")} ${of}` : `None ${of}: try another word.`;
  latentList.fill(order.length);
}

function rowElement(place) {
  const { run, order } = state;
  const m = order[place];
  const words = topTokens(run, m, 5).map(word).join(" · ");
  const near = run.truth ? `cosine ${alike(run.truth.cosine[m])}, in ${share(run.truth.feature_frequency[m])} of rows · ` : "";
  const note = notes.get(run, m);
  const label = !note && run.labels[m];
  const said = note || label || `${near}Z ${readable(run.z_score[m])} · peak ${readable(run.peak[m])}`;
  const option = make(
    "div",
    { id: `row-${m}`, className: "row", role: "option", "aria-selected": String(m === state.latent) },
    make("span", { className: "number" }, `#${m}`),
    make("bdi", { className: "words" }, words || "never fires"),
    make("span", { className: "frequency" }, share(run.frequency[m])),
    make("span", { className: "said" }, ...(label ? [badge("machine-made"), " "] : []), isolated(cut(visible(said), 80))),
  );
  option.addEventListener("click", () => go(m));
  return option;
}

const latentList = lister(byId("list"), byId("rows"), { element: rowElement, name: (place) => `row-${state.order[place]}`, move: step });
const paint = latentList.paint;

function go(latent) {
  location.hash = address(state.run.number, latent);
}

function step(by) {
  if (state.order.length) go(nextOf(state.order, state.place, by));
}

function listenToList() {
  byId("run").addEventListener("change", (event) => { location.hash = address(Number(event.target.value), 0); });
  byId("search").addEventListener("input", arrange);
  byId("silent").addEventListener("change", arrange);
  byId("sort").addEventListener("change", (event) => { state.sort = event.target.value; arrange(); });
  byId("direction").addEventListener("click", (event) => {
    state.falling = !state.falling;
    event.target.textContent = state.falling ? "largest first" : "smallest first";
    arrange();
  });
  byId("search").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && state.order.length) go(state.order[0]);
    if (event.key === "Escape") { event.target.value = ""; arrange(); event.target.blur(); }
  });
}
