// Details of latents, some latents at a time (part_json in views.py): in this file, or in files beside it that are read when first looked at.
const { key: KEY, folder: FOLDER } = byId("data").dataset;
const parts = new Map();
const loading = new Map();

const partName = (run, latent) => `${run.number}-${Math.floor(latent / page.part)}`;

// What is known of a latent's details; undefined where they have yet to be read.
function partOf(run, latent) {
  const name = partName(run, latent);
  const within = byId(`part-${name}`);
  if (within) {
    parts.set(name, openPart(within.textContent));
    within.remove();
  }
  return parts.get(name);
}

// In a folder: once they are there, or it is known that they are not. A file may be put back and asked for again.
function readPart(run, latent) {
  const name = partName(run, latent);
  if (!loading.has(name)) loading.set(name, loaded(name).finally(() => loading.delete(name)));
  return loading.get(name);
}

function loaded(name) {
  const file = `${FOLDER}/${name}.js`;
  return new Promise((resolve, reject) => {
    const script = make("script", { src: file });
    script.addEventListener("load", () => (parts.has(name) ? resolve() : reject(new Error(`The file ${file} is of another report than this page`))));
    script.addEventListener("error", () => reject(new Error(`The file ${file} cannot be read`)));
    script.addEventListener("load", () => script.remove());
    document.head.append(script);
  });
}

// What those files call.
function arrived(key, name, text) {
  if (key === KEY) parts.set(name, openPart(text));
}

function openPart(text) {
  const { counterparts, lens, ...rest } = JSON.parse(text);
  const part = { lens, counterparts: counterparts.map((c) => ({ by_direction: entriesOf(c.by_direction), by_firing: entriesOf(c.by_firing) })) };
  for (const name of ["by_direction", "fired_together"]) part[name] = unpacked(rest[name]);
  Object.assign(part, { bins: rest.histogram.bins, histogram: unpack(rest.histogram), bin_width: unpack(rest.bin_width) });
  part.examples = entriesOf(rest.examples);
  part.examples.firstWindow = starts(part.examples.windows);
  return part;
}

function entriesOf(from) {
  if (!from) return null;
  const entries = unpacked(from);
  entries.firstEntry = starts(entries.entries);
  return entries;
}

const placeIn = (latent) => latent % page.part;

// The codes of one window, of `full` times 1/FULL; entries: {firstEntry, place, code}.
function codesOf(entries, w, length, full) {
  const codes = new Float64Array(length);
  for (let i = entries.firstEntry[w]; i < entries.firstEntry[w + 1]; i++) codes[entries.place[i]] = (entries.code[i] / FULL) * full;
  return codes;
}

// One window: its tokens, the latent's code on each, and the place of its strongest.
function windowOf(run, latent, w) {
  const e = partOf(run, latent).examples;
  const numbers = run.text.tokens.subarray(e.start[w], e.start[w] + e.length[w]);
  const tokens = Array.from(numbers, (n) => (run.truth ? sumAround(run.text.strings[n], feature(run.truth.feature[latent])) : run.text.strings[n]));
  return { tokens, codes: codesOf(e, w, e.length[w], run.full[latent]), peak: e.peak[w], w };
}

function examplesOf(run, latent) {
  const e = partOf(run, latent).examples;
  const first = e.firstWindow[placeIn(latent)];
  const all = Array.from({ length: e.windows[placeIn(latent)] }, (_, i) => windowOf(run, latent, first + i));
  const strongest = e.strongest[placeIn(latent)];
  return { strongest: all.slice(0, strongest), sampled: all.slice(strongest) };
}

// In place of details that are not there: that they are coming, or why they are not; `again` draws once they have come.
function awaited(wanted, isWanted, again) {
  const note = make("p", { className: "note", role: "status" }, "Reading …");
  Promise.all(wanted.map(([run, latent]) => readPart(run, latent))).then(
    () => isWanted() && again(),
    (error) => { note.textContent = `${error.message}: the details of this latent are missing. Keep ${FOLDER} beside this page, or write the report again.`; });
  return note;
}
