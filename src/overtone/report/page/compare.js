// Two dictionaries beside each other: which latent of one stands for which of the other, and both on the same text.
const comparisonAddress = (left, right, latent) => `#compare/${left}/${right}${latent === undefined ? "" : `/${latent}`}`;
const pairs = { left: null, right: null, latent: -1, order: [], by: "by_direction", sort: "cosine", falling: true };
const PAIR_SORTS = [
  ["cosine", "cosine"],
  ["phi", "firing together (φ)"],
  ["frequency", "frequency on the left"],
  ["z_score", "Z-score on the left"],
];

const paired = () => alikeBy(counterpart(pairs.left, pairs.right), pairs.by);
const withCounterparts = () => page.runs.map((_, i) => openRun(i)).filter((run) => run.counterparts.length);

function choosePair(left, right) {
  const runs = withCounterparts();
  const one = runs.find((run) => run.number === left) ?? runs[0];
  const others = one.counterparts.map((c) => c.run);
  const two = openRun(others.includes(right) ? right : others[0]);
  if (pairs.left === one && pairs.right === two) return;
  Object.assign(pairs, { left: one, right: two });
  byId("left").replaceChildren(...runs.map((run) => make("option", { value: run.number, selected: run === one }, run.name)));
  byId("right").replaceChildren(...others.map((number) => make("option", { value: number, selected: number === two.number }, openRun(number).name)));
  arrangePairs();
}

function arrangePairs() {
  const { left } = pairs;
  const found = paired();
  const matches = matching(left, byId("pair-search").value.trim());
  const kept = [];
  for (let m = 0; m < left.latents; m++) if (left.frequency[m] > 0 && matches(m)) kept.push(m);
  pairs.order = ordered(kept, pairs.sort in found ? found[pairs.sort] : left[pairs.sort], pairs.falling);
  const both = found.cosine.some(Number.isFinite) ? pairs.order.filter((m) => found.cosine[m] > 0.9).length : null;
  byId("pairs-found").textContent = `${pairs.order.length.toLocaleString("en")} latents${both === null ? "" : `, ${both.toLocaleString("en")} with a cosine above 0.9`}`;
  pairList.fill(pairs.order.length);
}

function pairElement(place) {
  const m = pairs.order[place];
  const found = paired();
  const n = found.latent[m];
  const words = (run, latent) => topTokens(run, latent, 3).map(word).join(" · ") || "never fires";
  const row = make(
    "div",
    { id: `pair-${m}`, className: "row", role: "option", "aria-selected": String(m === pairs.latent) },
    make("span", { className: "number" }, `#${m}`),
    make("bdi", { className: "words" }, words(pairs.left, m)),
    make("span", { className: "frequency" }, `cos ${alike(found.cosine[m])} · φ ${alike(found.phi[m])}`),
    make("span", { className: "said" }, `#${n} `, make("bdi", {}, words(pairs.right, n))),
  );
  row.addEventListener("click", () => { location.hash = comparisonAddress(pairs.left.number, pairs.right.number, m); });
  return row;
}

const pairList = byId("pair-list") && lister(byId("pair-list"), byId("pair-rows"), {
  element: pairElement,
  name: (place) => `pair-${pairs.order[place]}`,
  move: stepPair,
});

function stepPair(by) {
  const { left, right, order, latent } = pairs;
  if (order.length) location.hash = comparisonAddress(left.number, right.number, nextOf(order, order.indexOf(latent), by));
}

// The codes of its counterpart in one of a latent's windows; of one by firing they are kept where it is another than by direction.
function besideOf(run, other, by, latent, window) {
  const found = counterpart(run, other);
  const same = by === "by_firing" && found.by_direction && found.by_direction.latent[latent] === found.by_firing?.latent[latent];
  const kept = alikeBy(partOf(run, latent).counterparts[run.counterparts.indexOf(found)], same ? "by_direction" : by);
  if (!kept) return null;
  const full = kept.full[placeIn(latent)];
  const codes = codesOf(kept, window.w, window.tokens.length, full);
  const peak = codes.reduce((best, code, i) => (Math.abs(code) > Math.abs(codes[best]) ? i : best), 0);
  return { example: { tokens: window.tokens, codes, peak: codes[peak] ? peak : -1 }, full };
}

function bothElement(run, other, by, latent, partner, window, swapped) {
  const mine = lineElement(window, run.full[latent]);
  const beside = besideOf(run, other, by, latent, window);
  // Shaded by what the counterpart reaches anywhere, so that a weak code looks weak.
  const theirs = lineElement(beside.example, Math.max(beside.full, other.full[partner]));
  if (beside.example.peak < 0) theirs[0].textContent = "–";
  const sides = [make("div", { className: "side" }, ...mine), make("div", { className: "side" }, ...theirs)];
  return make("li", { className: "both" }, ...(swapped ? sides.reverse() : sides));
}

function sharedElement(title, note, run, other, by, latent, partner, windows, swapped) {
  if (!windows.length || !besideOf(run, other, by, latent, windows[0])) return null;
  const items = windows.map((window) => bothElement(run, other, by, latent, partner, window, swapped));
  return make("section", {}, make("h3", {}, title), make("p", { className: "hint" }, note), make("ol", { className: "examples" }, ...items));
}

function sideElement(run, latent, id) {
  return make("div", { className: "card" },
    make("h3", {}, make("a", { href: address(run.number, latent) }, isolated(`${run.name} #${latent}`))),
    make("p", { className: "hint" }, make("bdi", {}, topTokens(run, latent, 6).map(word).join(" · ") || "never fires")),
    labelElement(run, latent), factsElement(run, latent), noteElement(run, latent, id, `Your note on ${run.name} #${latent}`));
}

function showPair() {
  hideTip();
  const { left, right, by, latent } = pairs;
  const found = paired();
  const partner = found.latent[latent];
  const other = by === "by_direction" ? found !== counterpart(left, right).by_firing && counterpart(left, right).by_firing : counterpart(left, right).by_direction;
  const wanted = [[left, latent], [right, partner]];
  const isWanted = () => pairs.left === left && pairs.right === right && pairs.by === by && pairs.latent === latent;
  const parts = [
    make("h2", { id: "pair-title", tabIndex: -1 }, `#${latent} and #${partner}`, make("small", {}, ` cosine ${alike(found.cosine[latent], 3)}, φ ${alike(found.phi[latent], 3)}`)),
    other && other.latent[latent] !== partner ? make("p", { className: "hint" }, by === "by_direction"
      ? `By firing, #${other.latent[latent]} is more alike (φ ${alike(other.phi[latent])}, cosine ${alike(other.cosine[latent])}).`
      : `By direction, #${other.latent[latent]} is nearer (cosine ${alike(other.cosine[latent])}, φ ${alike(other.phi[latent])}).`) : null,
    make("div", { className: "pair" }, sideElement(left, latent, "note-left"), sideElement(right, partner, "note-right")),
    ...(wanted.every(([run, m]) => partOf(run, m)) ? sharedElements(partner) : [awaited(wanted, isWanted, showPair)]),
  ];
  byId("pair").replaceChildren(...parts.filter((part) => part));
}

function sharedElements(partner) {
  const { left, right, by, latent } = pairs;
  const back = counterpart(right, left);
  const backBy = ["by_direction", "by_firing"].find((way) => back?.[way]?.latent[partner] === latent);
  const mine = examplesOf(left, latent);
  const theirs = backBy ? examplesOf(right, partner).strongest : [];
  const first = sharedElement(`Where #${latent} fires most`, `The same ${left.text.unit === "rows" ? "rows" : "text"} twice: on the left by one dictionary's latent, on the right by the other's.`, left, right, by, latent, partner, mine.strongest, false);
  return [
    first ?? make("p", { className: "note" }, "The two were not seen on the same text, so that only their atoms are compared."),
    sharedElement(`A fair sample of where #${latent} fires`, "Drawn uniformly from all places, whatever the strength; strongest first.", left, right, by, latent, partner, mine.sampled, false),
    backBy ? sharedElement(`Where #${partner} fires most`, "The strongest places of the latent on the right.", right, left, backBy, partner, latent, theirs, true)
      : make("p", { className: "hint" }, `#${partner} has another counterpart on the left: `, ...towards(right, left, partner)),
  ];
}

// A link to what stands for a latent on the other side.
function towards(run, other, latent) {
  const found = counterpart(run, other) && alikeBy(counterpart(run, other), pairs.by);
  if (!found) return ["none."];
  return [make("a", { href: comparisonAddress(run.number, other.number, latent) }, `#${found.latent[latent]}, by ${pairs.by === "by_firing" ? "firing" : "direction"}`), "."];
}

function followPair(left, right, latent) {
  choosePair(left, right);
  const wanted = Number.isInteger(latent) && latent >= 0 && latent < pairs.left.latents ? latent : pairs.order[0] ?? 0;
  pairs.latent = wanted;
  pairList.reveal(pairs.order.indexOf(wanted));
  showPair();
}

function listenToPairs() {
  if (!pairList) return;
  const again = () => { arrangePairs(); followPair(pairs.left.number, pairs.right.number, pairs.latent); };
  byId("pair-sort").replaceChildren(...PAIR_SORTS.map(([value, label]) => make("option", { value }, label)));
  byId("left").addEventListener("change", (event) => { location.hash = comparisonAddress(Number(event.target.value), pairs.left.number); });
  byId("right").addEventListener("change", (event) => { location.hash = comparisonAddress(pairs.left.number, Number(event.target.value)); });
  byId("pair-by").addEventListener("change", (event) => { pairs.by = event.target.value; again(); });
  byId("pair-sort").addEventListener("change", (event) => { pairs.sort = event.target.value; arrangePairs(); });
  byId("pair-search").addEventListener("input", arrangePairs);
  byId("pair-direction").addEventListener("click", (event) => {
    pairs.falling = !pairs.falling;
    event.target.textContent = pairs.falling ? "largest first" : "smallest first";
    arrangePairs();
  });
}
