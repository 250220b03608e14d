// One latent: what it fires on, how strongly, and what is near it.
const address = (run, latent) => `#latent/${run}/${latent}`;
const tip = byId("tip");

function showTip(token) {
  if (!token.isConnected) return; // what it was on has just been drawn anew
  const { text, code, latent } = token.told;
  const more = isLong(text) ? ` (${text.length.toLocaleString("en")} characters; Enter or a click shows or hides them)` : "";
  tip.replaceChildren(make("strong", {}, number(code, 5)), latent === undefined ? " on " : ` of #${latent} on `, isolated(shown(text).short || "an empty token"), more);
  tip.hidden = false;
  const at = token.getBoundingClientRect();
  const left = Math.min(Math.max(8, at.left), innerWidth - tip.offsetWidth - 8);
  const below = at.bottom + 6 + tip.offsetHeight < innerHeight;
  tip.style.left = `${Math.max(8, left)}px`;
  tip.style.top = `${below ? at.bottom + 6 : Math.max(8, at.top - tip.offsetHeight - 6)}px`;
  token.setAttribute("aria-describedby", "tip");
}

function hideTip() {
  tip.hidden = true;
  document.querySelector("[aria-describedby=tip]")?.removeAttribute("aria-describedby");
}

const isLong = (text) => shown(text).short !== shown(text).whole;

// A long token is cut, and shown whole when it is asked for.
function toggle(token) {
  const { text } = token.told;
  if (!isLong(text)) return;
  token.told.whole = !token.told.whole;
  token.firstChild.nodeValue = token.told.whole ? shown(text).whole : shown(text).short;
}

function tokenElement(text, code, full, strongest) {
  const active = code !== 0;
  const element = make(active ? "mark" : "span", { className: strongest ? "token strongest" : "token" }, shown(text).short);
  element.told = { text, code };
  if (active) {
    element.style.setProperty("--share", (0.12 + 0.88 * Math.abs(code / full)).toFixed(3));
    if (code < 0) element.classList.add("negative");
    element.append(make("span", { className: "sr" }, ` (${number(code, 5)}) `));
  }
  // One stop of the Tab key for each example; arrows go on from there. A token that is cut can be reached, too.
  if (active || isLong(text)) element.tabIndex = strongest ? 0 : -1;
  return element;
}

function lineElement({ tokens, codes, peak }, full) {
  const line = make("p", { dir: "auto" });
  tokens.forEach((text, i) => line.append(tokenElement(text, codes[i], full, i === peak)));
  return [make("span", { className: "code" }, number(codes[peak], 3)), line];
}

const exampleElement = (example, full) => make("li", {}, ...lineElement(example, full));

function examplesElement(title, note, examples, full) {
  if (!examples.length) return null;
  const list = make("ol", { className: "examples" }, ...examples.map((example) => exampleElement(example, full)));
  return make("section", {}, make("h3", {}, title), make("p", { className: "hint" }, note), list);
}

function nearElement(title, run, { k, latent, nearness }, of, note) {
  const first = placeIn(of) * k;
  const items = Array.from({ length: k }, (_, i) => first + i).filter((i) => nearness[i] > 0);
  if (!items.length) return null;
  return linksElement(title, note, items.map((i) => [run, latent[i], nearness[i]]));
}

function linksElement(title, note, near) {
  const links = near.map(([run, latent, nearness]) => {
    const words = topTokens(run, latent, 4).map(word).join(" · ");
    const link = make("a", { href: address(run.number, latent) }, isolated(`#${latent}`), " ", make("bdi", { className: "words" }, words || "never fires"));
    return make("li", {}, make("span", { className: "code" }, alike(nearness)), link);
  });
  return make("section", {}, make("h3", {}, title), make("p", { className: "hint" }, note), make("ul", { className: "near" }, ...links));
}

function lensElement(run, latent) {
  const { lens } = partOf(run, latent);
  if (!lens) return null;
  const sides = ["Promotes", "Suppresses"].map((title, i) =>
    make("div", {}, make("h4", {}, title), make("ul", { className: "chips" }, ...lens[placeIn(latent)][i].map((token) => make("li", {}, isolated(word(token)))))));
  return make("section", {}, make("h3", {}, "Next tokens (logit lens)"), make("div", { className: "pair" }, ...sides));
}

function factsElement(run, latent) {
  const facts = [
    ["fires on", share(run.frequency[latent])],
    ["peak pre-activation", readable(run.peak[latent])],
    ["Z-score", readable(run.z_score[latent])],
  ];
  if (run.truth) facts.unshift(...truthFacts(run, latent));
  if (run.groups) facts.push(["group", `${run.groups.of[latent] + 1} of ${run.groups.values.length}, target ${share(run.targets[latent])}`]);
  if (run.detection && Number.isFinite(run.detection[latent])) facts.push(["detection", number(run.detection[latent])]);
  return make("dl", { className: "facts" }, ...facts.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value))));
}

function noteElement(run, latent, id = "note", label = "Your note") {
  const area = make("textarea", { id, rows: 2, value: notes.get(run, latent), placeholder: "What does it stand for?" });
  area.addEventListener("input", () => notes.set(run, latent, area.value));
  return make("div", { className: "noting" }, make("label", { htmlFor: id }, isolated(label)), area);
}

// Words that a scorer found for a latent, said to be so.
function labelElement(run, latent) {
  const label = run.labels[latent];
  if (!label) return null;
  return make("p", { className: "label" }, badge("machine-made label"), " ", isolated(visible(label)));
}

const badge = (said) => make("span", { className: "badge" }, said);

// A latent in a few words: its label, said to be machine-made, or else the tokens that it fires on most.
function saidElements(run, latent, most) {
  const label = run.labels[latent];
  if (label) return [badge("machine-made"), " ", make("bdi", { className: "words" }, cut(visible(label), 60))];
  return [make("bdi", { className: "words" }, topTokens(run, latent, most).map(word).join(" · ") || "never fires")];
}

// The latents of the other dictionaries that stand for this one, by direction or by firing, with links to see both in the same text.
function counterpartsElement(run, latent) {
  const items = run.counterparts.flatMap((c) => {
    const other = openRun(c.run);
    const ways = [["by_direction", "cosine"], ["by_firing", "phi"]].filter(([by]) => c[by]);
    const same = ways.length === 2 && c.by_direction.latent[latent] === c.by_firing.latent[latent];
    return (same ? ways.slice(0, 1) : ways).map(([by]) => {
      const found = c[by];
      const words = topTokens(other, found.latent[latent], 4).map(word).join(" · ") || "never fires";
      const link = make("a", { href: address(other.number, found.latent[latent]) }, isolated(`${other.name} #${found.latent[latent]}`), " ", make("bdi", { className: "words" }, words));
      const how = make("span", { className: "hint" }, ` cosine ${alike(found.cosine[latent])}, φ ${alike(found.phi[latent])} `);
      const beside = make("a", { href: comparisonAddress(run.number, other.number, latent), "aria-label": `Compare #${latent} with its counterpart in ${other.name}` }, "compare");
      return make("li", {}, make("span", {}, link, how, beside));
    });
  });
  if (!items.length) return null;
  const note = "The nearest by direction of the atoms, and the one that fires most as this does where that is another.";
  return make("section", {}, make("h3", {}, "In the other dictionaries"), make("p", { className: "hint" }, note), make("ul", { className: "near" }, ...items));
}

function showLatent(run, latent) {
  hideTip();
  const isWanted = () => state.run === run && state.latent === latent;
  const details = partOf(run, latent) ? detailElements(run, latent) : [awaited([[run, latent]], isWanted, () => showLatent(run, latent))];
  const parts = [
    make("h2", { id: "latent-title", tabIndex: -1 }, `Latent ${latent} `, make("small", {}, "of ", isolated(run.name))),
    labelElement(run, latent),
    factsElement(run, latent),
    nearerElement(run, latent),
    noteElement(run, latent),
    ...details,
  ];
  byId("latent").replaceChildren(...parts.filter((part) => part !== null));
}

function detailElements(run, latent) {
  const { strongest, sampled } = examplesOf(run, latent);
  const { by_direction, fired_together } = partOf(run, latent);
  const full = run.full[latent];
  return [
    strongest.length ? null : make("p", { className: "note" }, `It never fires on these ${run.text.unit}.`),
    examplesElement("Strongest", run.truth
      ? `Rows as the sums of known features that they are, ${feature(run.truth.feature[latent])} first where it is one of them; hover or focus a row for its exact code.`
      : "Hover or focus a token for its exact code; the arrow keys go from one that fires to the next.", strongest, full),
    examplesElement("A fair sample of all", "Drawn uniformly from all places where it fires, whatever the strength; strongest first.", sampled, full),
    histogram(run, latent),
    lensElement(run, latent),
    counterpartsElement(run, latent),
    make("div", { className: "pair" }, ...[
      nearElement("Nearest by direction", run, by_direction, latent, "Cosine of the atoms."),
      nearElement("Fires together with", run, fired_together, latent, `Correlation (φ) of firing, over ${run.text.unit}.`),
    ].filter((part) => part !== null)),
  ];
}

// Values on hover and focus, long tokens on a click, and arrows from token to token, anywhere below an element.
function listenToTokens(article) {
  const tokenAt = (event) => event.target.closest?.(".token");
  for (const begin of ["mouseover", "focusin", "click"]) article.addEventListener(begin, (event) => tokenAt(event) ? showTip(tokenAt(event)) : hideTip());
  article.addEventListener("mouseleave", hideTip);
  article.addEventListener("focusout", hideTip);
  article.addEventListener("click", (event) => tokenAt(event) && toggle(tokenAt(event)));
  article.addEventListener("keydown", (event) => {
    const token = tokenAt(event);
    if (token && event.key === "Enter") toggle(token);
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!token || !by) return;
    const stops = [...token.parentElement.querySelectorAll("[tabindex]")];
    const rightToLeft = getComputedStyle(token.parentElement).direction === "rtl";
    stops[stops.indexOf(token) + (rightToLeft ? -by : by)]?.focus();
    event.preventDefault();
  });
}
