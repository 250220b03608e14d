// Dictionaries beside the features that their rows are known to be made of: v0, v1, … (TruthView in views.py).
const feature = (i) => `v${i}`;
const NAME_OF_FEATURE = /^v\d+$/;
const TERM = " + ";

// A row as the sum that it is, with the latent's own feature first, or said to be missing.
function sumAround(text, own) {
  const terms = text.split(TERM);
  const mine = terms.findIndex((term) => term.endsWith(`·${own}`));
  if (mine < 0) return `without ${own}: ${text}`;
  return [terms[mine], ...terms.slice(0, mine), ...terms.slice(mine + 1)].join(TERM);
}

const truthSorts = ({ truth }) => [
  ["feature_cosine", "cosine with its feature", truth.cosine],
  ["feature_frequency", "its feature's frequency", truth.feature_frequency],
  ["f1", "detects its feature (F1)", truth.f1],
];

function truthFacts({ truth }, latent) {
  return [
    ["nearest known feature", feature(truth.feature[latent])],
    ["cosine with it", alike(truth.cosine[latent], 3)],
    ["it occurs in", share(truth.feature_frequency[latent])],
    ["detects it (F1)", number(truth.f1[latent])],
  ];
}

// Where another latent's atom is nearer to the feature, a link to it.
function nearerElement(run, latent) {
  const own = run.truth?.feature[latent];
  if (own === undefined || run.truth.latent[own] === latent) return null;
  const nearer = run.truth.latent[own];
  const cosine = alike(run.truth.best[own], 3);
  return make("p", { className: "hint" }, `Nearer to ${feature(own)} is `, make("a", { href: address(run.number, nearer) }, `#${nearer}`), `: the largest cosine of any latent with it is ${cosine}.`);
}

// How many known features are found, whatever cosine one asks for; and by as many random atoms.
function recoveryCurve(runs) {
  const asked = Array.from({ length: 51 }, (_, i) => i / 50);
  const rate = (best) => asked.map((least) => best.filter((cosine) => cosine >= least).length / best.length);
  const found = runs.map((run) => ({ name: run.name, x: asked, y: rate(run.truth.best) }));
  const chance = new Map(runs.map((run) => [`${run.latents} random atoms`, { x: asked, y: rate(run.truth.best_random), chance: true }]));
  const series = [...found, ...[...chance].map(([name, line]) => ({ name, ...line }))];
  return curves("Known features found", series, ["cosine with the nearest latent, at least", "share found (FRR)"], {
    zero: true, note: "A feature counts as found from the cosine that one asks for; papers ask for 0.8 or 0.9.",
  });
}

// Which features are found: their largest cosine against how often they occur, where some are rarer than others.
function recoveryByFrequency(runs) {
  const rarest = Math.min(...runs.map(({ truth }) => truth.frequency.reduce((a, b) => Math.min(a, b))));
  const commonest = Math.max(...runs.map(({ truth }) => truth.frequency.reduce((a, b) => Math.max(a, b))));
  if (!(rarest > 0 && commonest > 1.1 * rarest)) return null;
  const clouds = runs.map(({ name, truth }) => ({ name, x: truth.frequency, y: truth.best }));
  return cloud("Known features by frequency", clouds, ["frequency (share of rows), logarithmic", "cosine with the nearest latent"], {
    note: "A dot is a known feature; lines are medians of tenths.", header: ["dictionary", "frequency from", "to", "features", "median cosine", "above 0.9"],
  });
}

function truthCharts(all) {
  const runs = all.filter((run) => run.truth);
  return runs.length ? [recoveryCurve(runs), recoveryByFrequency(runs)] : [];
}
