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
  const labels = [`active latents per token (L0${wide ? ", logarithmic" : ""})`, "explained variance"];
  return figure("Explained variance against L0", chart("Explained variance against L0", [...axes(x, y, labels), ...lines, ...points]), {
    legend: known.map((run, i) => [run.name, `s${i % 6}`]), note: "Up and to the left is better.",
    header: ["dictionary", "L0", "explained variance"], rows: known.map((run) => [run.name, number(run.metrics.l0), number(run.metrics.explained_variance)]),
  });
}

const SCORES = [["frequency", "frequency (share of tokens)"], ["peak", "peak pre-activation"], ["z_score", "Z-score"]];
const BANDS = 10;

// How near the other dictionaries come to every latent, against one of its scores, which can be chosen.
function consistency(runs) {
  const shown = runs.filter((run) => nearness(run));
  if (!shown.length) return null;
  const made = make("div", {});
  const choice = make("select", { id: "against" }, ...SCORES.map(([value, label]) => make("option", { value }, label)));
  const again = () => made.replaceChildren(scatter(shown, ...SCORES.find(([name]) => name === choice.value)));
  choice.addEventListener("change", again);
  again();
  made.firstChild.className = "bare";
  return make("figure", {}, make("label", { className: "check" }, "Consistency against ", choice), made);
}

function scatter(runs, score, label) {
  const parts = runs.map((run) => Array.from({ length: run.latents }, (_, m) => m).filter((m) => run.frequency[m] > 0 && run[score][m] > 0 && Number.isFinite(nearness(run)[m])));
  const of = (i) => parts[i].map((m) => runs[i][score][m]);
  const [low, high] = parts.reduce(([least, most], _, i) => of(i).reduce(([a, b], v) => [Math.min(a, v), Math.max(b, v)], [least, most]), [Infinity, -Infinity]);
  const title = "Consistency: the nearest cosine in the other dictionaries";
  if (!(low < high)) return make("figure", {}, make("p", { className: "note" }, "No latent to show."));
  const x = scale([low, high], across(), true);
  const y = scale([0, 1], upwards());
  const dots = parts.map((kept, i) => {
    const d = kept.map((m) => `M${x(runs[i][score][m]).toFixed(1)} ${y(Math.max(0, nearness(runs[i])[m])).toFixed(1)}h0`).join("");
    return draw("path", { class: `dots s${i % 6}`, d });
  });
  const bands = parts.map((kept, i) => bandsOf(kept, runs[i], score));
  const lines = bands.map((some, i) => draw("path", { class: `line s${i % 6}`, d: some.map((b, j) => `${j ? "L" : "M"}${x(b.middle).toFixed(1)} ${y(b.median).toFixed(1)}`).join("") }));
  const rows = bands.flatMap((some, i) => some.map((b) => [runs[i].name, number(b.from), number(b.to), b.count, number(b.median, 2), `${number(100 * b.near, 2)} %`]));
  return figure(title, chart(title, [...axes(x, y, [`${label}, logarithmic`, "cosine"]), ...dots, ...lines]), {
    legend: runs.map((run, i) => [run.name, `s${i % 6}`]),
    note: "A dot is a latent (those that fire); lines are medians of tenths.",
    header: ["dictionary", `${score} from`, "to", "latents", "median cosine", "above 0.9"], rows,
  });
}

// Tenths of some latents by a score: where they are, and how near the others come to them.
function bandsOf(kept, run, score) {
  const sorted = [...kept].sort((a, b) => run[score][a] - run[score][b]);
  const wide = sorted.length / BANDS;
  return Array.from({ length: BANDS }, (_, b) => sorted.slice(Math.round(b * wide), Math.round((b + 1) * wide))).filter((some) => some.length).map((some) => {
    const cosines = some.map((m) => nearness(run)[m]).sort((a, b) => a - b);
    const [from, to] = [run[score][some[0]], run[score][some[some.length - 1]]];
    return { from, to, middle: run[score][some[some.length >> 1]], count: some.length, median: quantile(cosines, 0.5), near: cosines.filter((c) => c > 0.9).length / some.length };
  });
}

function overviewCharts() {
  const runs = page.runs.map((_, i) => openRun(i));
  const recorded = runs.filter((run) => run.records.tokens.length > 1);
  const over = (name, of) => recorded.map((run) => ({ name: run.name, x: run.records.tokens.map((t) => t / 1000), y: run.records[name].map(of) }));
  const tokens = "thousand tokens seen";
  const all = [
    ...runs.filter((run) => run.groups && run.groups.values.length > 1).map(spectrum),
    frequencies(runs),
    frontier(runs),
    consistency(runs),
    curves("Reconstruction over training", over("explained_variance", (ev) => 1 - ev), [tokens, "variance unexplained"], { logarithmic: true }),
    curves("L0 over training", over("l0", (l0) => l0), [tokens, "active latents per token"], { zero: true }),
    curves("Loss over training", over("loss", (loss) => loss), [tokens, "the method's own loss"], { logarithmic: true, note: "Methods have losses of their own; they compare only within one." }),
  ];
  byId("charts").replaceChildren(...all.filter((one) => one !== null));
}
