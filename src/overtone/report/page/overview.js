// Charts of what dictionaries have to do with each other, and the overview with all of its charts.

// Explained variance against the L0 that was reached; a line joins those of one method. Drawn where L0 differ.
function frontier(runs) {
  const known = runs.filter(({ metrics: { l0, explained_variance: ev } }) => l0 > 0 && Number.isFinite(ev));
  const l0s = known.map((run) => run.metrics.l0);
  if (known.length < 2 || Math.max(...l0s) < 1.05 * Math.min(...l0s)) return null;
  const evs = known.map((run) => run.metrics.explained_variance);
  const room = 0.08 * (Math.max(...evs) - Math.min(...evs)) || 0.01;
  const wide = Math.max(...l0s) > 4 * Math.min(...l0s);
  const x = scale([Math.min(...l0s) / 1.1, Math.max(...l0s) * 1.1], across(), wide);
  const y = scale([Math.min(...evs) - room, Math.max(...evs) + room], upwards());
  const methods = [...new Set(known.map((run) => run.method ?? run.name))];
  const lines = methods.map((method) => {
    const own = known.filter((run) => (run.method ?? run.name) === method).sort((a, b) => a.metrics.l0 - b.metrics.l0);
    return draw("path", { class: "grid", fill: "none", d: own.map(({ metrics: m }, i) => `${i ? "L" : "M"}${x(m.l0)} ${y(m.explained_variance)}`).join("") });
  });
  const points = known.map((run, i) => draw("path", { class: `point s${i % 6}`, d: `M${x(run.metrics.l0)} ${y(run.metrics.explained_variance)}h0` }));
  const labels = [`active latents per ${ONE} (L0${wide ? ", logarithmic" : ""})`, "explained variance"];
  return figure("Explained variance against L0", chart("Explained variance against L0", [...axes(x, y, labels), ...lines, ...points]), {
    legend: known.map((run, i) => [run.name, `s${i % 6}`]), note: "Up and to the left is better.",
    header: ["dictionary", "L0", "explained variance"], rows: known.map((run) => [run.name, number(run.metrics.l0), number(run.metrics.explained_variance)]),
  });
}

const SCORES = [["frequency", `frequency (share of ${UNIT})`], ["peak", "peak pre-activation"], ["z_score", "Z-score"]];
const BANDS = 10;

// How near the other dictionaries come to every latent, against one of its scores, which can be chosen.
function consistency(runs) {
  const shown = runs.filter((run) => nearness(run));
  if (!shown.length) return null;
  const choice = make("select", { id: "against" }, ...SCORES.map(([value, label]) => make("option", { value }, label)));
  const label = make("label", { className: "check" }, "against ", choice);
  const drawn = () => scatter(shown, ...SCORES.find(([name]) => name === choice.value));
  const made = drawn();
  made.querySelector("figcaption").after(label);
  choice.addEventListener("change", () => {
    while (label.nextSibling) label.nextSibling.remove();
    made.append(...[...drawn().children].filter((part) => part.tagName !== "FIGCAPTION"));
  });
  return made;
}

function scatter(runs, score, label) {
  const clouds = runs.map((run) => {
    const near = nearness(run);
    const kept = Array.from({ length: run.latents }, (_, m) => m).filter((m) => run.frequency[m] > 0 && run[score][m] > 0 && Number.isFinite(near[m]));
    return { name: run.name, x: kept.map((m) => run[score][m]), y: kept.map((m) => near[m]) };
  });
  return cloud("Consistency: the nearest cosine in the other dictionaries", clouds, [`${label}, logarithmic`, "cosine"], {
    note: "A dot is a latent (those that fire); lines are medians of tenths.",
    header: ["dictionary", `${score} from`, "to", "latents", "median cosine", "above 0.9"],
  });
}

// Cosines against something above 0: series [{name, x, y}], a dot for each, and the medians of tenths as a line.
function cloud(title, series, labels, { note, header }) {
  const [low, high] = series.flatMap((s) => [...s.x]).reduce(([a, b], v) => [Math.min(a, v), Math.max(b, v)], [Infinity, -Infinity]);
  if (!(low < high)) return make("figure", {}, make("figcaption", {}, make("h3", {}, title)), make("p", { className: "note" }, "None to show."));
  const x = scale([low, high], across(), true);
  const y = scale([0, 1], upwards());
  const dots = series.map((s, i) => {
    const d = Array.from(s.x, (value, j) => `M${x(value).toFixed(1)} ${y(Math.max(0, s.y[j])).toFixed(1)}h0`).join("");
    return draw("path", { class: `dots s${i % 6}`, d });
  });
  const bands = series.map((s) => bandsOf(s.x, s.y));
  const lines = bands.map((some, i) => draw("path", { class: `line s${i % 6}`, d: some.map((b, j) => `${j ? "L" : "M"}${x(b.middle).toFixed(1)} ${y(b.median).toFixed(1)}`).join("") }));
  const rows = bands.flatMap((some, i) => some.map((b) => [series[i].name, number(b.from), number(b.to), b.count, number(b.median, 2), `${number(100 * b.near, 2)} %`]));
  return figure(title, chart(title, [...axes(x, y, labels), ...dots, ...lines]), {
    legend: series.map((s, i) => [s.name, `s${i % 6}`]), note, header, rows,
  });
}

// Tenths of some points by x: where they are, and their y.
function bandsOf(xs, ys) {
  const sorted = Array.from(xs, (_, j) => j).sort((a, b) => xs[a] - xs[b]);
  const wide = sorted.length / BANDS;
  return Array.from({ length: BANDS }, (_, b) => sorted.slice(Math.round(b * wide), Math.round((b + 1) * wide))).filter((some) => some.length).map((some) => {
    const cosines = some.map((j) => ys[j]).sort((a, b) => a - b);
    const [from, to] = [xs[some[0]], xs[some[some.length - 1]]];
    return { from, to, middle: xs[some[some.length >> 1]], count: some.length, median: quantile(cosines, 0.5), near: cosines.filter((c) => c > 0.9).length / some.length };
  });
}

function overviewCharts() {
  const runs = page.runs.map((_, i) => openRun(i));
  const recorded = runs.filter((run) => run.records.tokens.length > 1);
  const over = (name, of) => recorded.map((run) => ({ name: run.name, x: run.records.tokens.map((t) => t / 1000), y: run.records[name].map(of) }));
  const tokens = `thousand ${UNIT} seen`;
  const all = [
    ...truthCharts(runs),
    ...runs.filter((run) => run.groups && run.groups.values.length > 1).map(spectrum),
    frequencies(runs),
    frontier(runs),
    consistency(runs),
    curves("Reconstruction over training", over("explained_variance", (ev) => 1 - ev), [tokens, "variance unexplained"], { logarithmic: true }),
    curves("L0 over training", over("l0", (l0) => l0), [tokens, `active latents per ${ONE}`], { zero: true }),
    curves("Loss over training", over("loss", (loss) => loss), [tokens, "the method's own loss"], { logarithmic: true, note: "Methods have losses of their own; they compare only within one." }),
  ];
  byId("charts").replaceChildren(...all.filter((one) => one !== null));
}
