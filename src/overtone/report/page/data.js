// What Python wrote down (views.py), and text made safe to look at. Text from the data only ever becomes textContent.
const byId = (id) => document.getElementById(id);
const page = JSON.parse(byId("data").textContent);
const KINDS = { u8: Uint8Array, u16: Uint16Array, u32: Uint32Array, i16: Int16Array, f32: Float32Array };
const FULL = 32767;
const LONG = 48; // characters of a token that are shown at once

function unpack({ kind, base64 }) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return new KINDS[kind](bytes.buffer);
}

// Where each of some stretches begins, from their lengths; and where the last ends.
function starts(lengths) {
  const begin = new Uint32Array(lengths.length + 1);
  for (let i = 0; i < lengths.length; i++) begin[i + 1] = begin[i] + lengths[i];
  return begin;
}

// What is counted: tokens, or rows that have no text.
const UNIT = [...new Set(page.texts.map((text) => text.unit))].join(" or ");
const ONE = UNIT.replace(/s\b/g, "");

const texts = page.texts.map(() => null);
function textOf(number) {
  const { strings, tokens, unit } = page.texts[number];
  return (texts[number] ??= { strings, tokens: unpack(tokens), unit });
}

// Unpacked when it is first asked for: most of a page is never looked at.
function lazily(object, name, value) {
  Object.defineProperty(object, name, {
    configurable: true,
    get() {
      const made = value();
      Object.defineProperty(object, name, { value: made });
      return made;
    },
  });
}

const opened = page.runs.map(() => null);
function openRun(number) {
  if (opened[number]) return opened[number];
  const from = page.runs[number];
  const run = { ...from, number, text: textOf(from.text), top: [], bins: from.histogram.bins };
  for (const name of ["frequency", "peak", "z_score", "bin_width"]) run[name] = unpack(from[name]);
  for (const name of ["targets", "detection"]) run[name] = from[name] && unpack(from[name]);
  lazily(run, "histogram", () => unpack(from.histogram));
  for (const name of ["by_direction", "fired_together"]) lazily(run, name, () => unpacked(from[name]));
  run.counterparts = from.counterparts.map((c) => ({ run: c.run, by_direction: likeness(c.by_direction), by_firing: likeness(c.by_firing) }));
  lazily(run, "examples", () => {
    const e = unpacked(from.examples);
    e.firstWindow = starts(e.windows);
    e.firstEntry = starts(e.entries);
    return e;
  });
  run.groups = run.targets && groupsOf(run.targets);
  run.truth = from.truth && unpacked(from.truth);
  if (run.truth) run.truth.feature_frequency = Float32Array.from(run.truth.feature, (i) => run.truth.frequency[i]);
  return (opened[number] = run);
}

const isPacked = (value) => value !== null && typeof value === "object" && "base64" in value;
const unpacked = (all) => Object.fromEntries(Object.entries(all).map(([name, value]) => [name, isPacked(value) ? unpack(value) : value]));

// A latent of another dictionary for each, and its codes in each one's windows.
function likeness(from) {
  if (!from) return null;
  const { codes, ...rest } = from;
  const found = unpacked(rest);
  lazily(found, "codes", () => {
    if (!codes) return null;
    const e = unpacked(codes);
    e.firstEntry = starts(e.entries);
    return e;
  });
  return found;
}

// What stands for a latent of a run in another: {latent, cosine, phi} by direction or by firing, if either is known.
const counterpart = (run, other) => run.counterparts.find((c) => c.run === other.number);
const alikeBy = (found, by) => (by === "by_firing" ? found.by_firing ?? found.by_direction : found.by_direction ?? found.by_firing);

// Different targets, the largest first, and which one each latent has.
function groupsOf(targets) {
  const values = [...new Set(targets)].sort((a, b) => b - a);
  const number = new Map(values.map((value, i) => [value, i]));
  return { values, of: Uint16Array.from(targets, (target) => number.get(target)) };
}

// The codes of one window, of `full` times 1/FULL; entries: {firstEntry, place, code}.
function codesOf(entries, w, length, full) {
  const codes = new Float64Array(length);
  for (let i = entries.firstEntry[w]; i < entries.firstEntry[w + 1]; i++) codes[entries.place[i]] = (entries.code[i] / FULL) * full;
  return codes;
}

// One window: its tokens, the latent's code on each, and the place of its strongest.
function windowOf(run, latent, w) {
  const e = run.examples;
  const numbers = run.text.tokens.subarray(e.start[w], e.start[w] + e.length[w]);
  const tokens = Array.from(numbers, (n) => (run.truth ? sumAround(run.text.strings[n], feature(run.truth.feature[latent])) : run.text.strings[n]));
  return { tokens, codes: codesOf(e, w, e.length[w], e.full[latent]), peak: e.peak[w], w };
}

function examplesOf(run, latent) {
  const e = run.examples;
  const first = e.firstWindow[latent];
  const all = Array.from({ length: e.windows[latent] }, (_, i) => windowOf(run, latent, first + i));
  return { strongest: all.slice(0, e.strongest[latent]), sampled: all.slice(e.strongest[latent]) };
}

// The tokens that a latent fires on most, by the sum of its codes there.
function topTokens(run, latent, most) {
  return (run.top[latent] ??= tokensByStrength(run, latent)).slice(0, most);
}

function tokensByStrength(run, latent) {
  if (run.truth) return run.frequency[latent] > 0 ? [feature(run.truth.feature[latent])] : [];
  const e = run.examples;
  const sums = new Map();
  for (let w = e.firstWindow[latent]; w < e.firstWindow[latent + 1]; w++) {
    const word = run.text.strings[run.text.tokens[e.start[w] + e.peak[w]]].trim();
    let code = 0;
    for (let i = e.firstEntry[w]; i < e.firstEntry[w + 1]; i++) if (e.place[i] === e.peak[w]) code = Math.abs(e.code[i]);
    sums.set(word, (sums.get(word) ?? 0) + code);
  }
  return [...sums].sort((a, b) => b[1] - a[1]).map(([word]) => word);
}

const NAMED = new Map([[10, "↵"], [9, "⇥"], [127, "␡"]]);
const HIDDEN = /[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Zl}\p{Zp}]/u;
const JOINERS = new Set([0x200c, 0x200d]); // they belong to the writing of some scripts, and to emoji

// Text as it can be looked at: characters that steer and do not show are shown as what they are.
function visible(text) {
  let shown = "";
  for (const character of text) {
    const code = character.codePointAt(0);
    if (!HIDDEN.test(character) || JOINERS.has(code)) shown += character;
    else if (NAMED.has(code)) shown += NAMED.get(code);
    else if (code < 32) shown += String.fromCodePoint(0x2400 + code);
    else shown += `⟨U+${code.toString(16).toUpperCase().padStart(4, "0")}⟩`;
  }
  return shown;
}

function cut(text, most = LONG) {
  if (text.length <= most) return text;
  const kept = Array.from(text.slice(0, 2 * most));
  return kept.length <= most && text.length <= 2 * most ? text : `${kept.slice(0, most).join("")}…`;
}

// As a token is shown: {whole, short}; the same strings come again and again.
const known = new Map();
function shown(text) {
  if (!known.has(text)) {
    const whole = visible(text);
    known.set(text, { whole, short: cut(whole) });
  }
  return known.get(text);
}

const word = (token) => shown(token.trim()).short || "␣";

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name in element && name !== "list") element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

const isolated = (text) => make("bdi", {}, text);

function number(value, digits = 3) {
  if (!Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(digits - 1).replace(/\.?0+e/, "e");
  return String(Number(value.toPrecision(digits + (size >= 1 ? 1 : 0))));
}

function share(value) {
  return value === 0 ? "never" : `${number(100 * value, 2)} %`;
}
