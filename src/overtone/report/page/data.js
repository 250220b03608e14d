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

const opened = page.runs.map(() => null);
function openRun(number) {
  if (opened[number]) return opened[number];
  const from = page.runs[number];
  const run = { ...from, number, text: textOf(from.text), words: unpacked(from.words) };
  for (const name of ["frequency", "peak", "z_score", "full"]) run[name] = unpack(from[name]);
  for (const name of ["targets", "detection"]) run[name] = from[name] && unpack(from[name]);
  run.counterparts = from.counterparts.map((c) => ({ run: c.run, by_direction: c.by_direction && unpacked(c.by_direction), by_firing: c.by_firing && unpacked(c.by_firing) }));
  run.firstWord = starts(run.words.count);
  run.groups = run.targets && groupsOf(run.targets);
  run.truth = from.truth && unpacked(from.truth);
  if (run.truth) run.truth.feature_frequency = Float32Array.from(run.truth.feature, (i) => run.truth.frequency[i]);
  return (opened[number] = run);
}

const isPacked = (value) => value !== null && typeof value === "object" && "base64" in value;
const unpacked = (all) => Object.fromEntries(Object.entries(all).map(([name, value]) => [name, isPacked(value) ? unpack(value) : value]));

// What stands for a latent of a run in another: {latent, cosine, phi} by direction or by firing, if either is known.
const counterpart = (run, other) => run.counterparts.find((c) => c.run === other.number);
const alikeBy = (found, by) => (by === "by_firing" ? found.by_firing ?? found.by_direction : found.by_direction ?? found.by_firing);

// Different targets, the largest first, and which one each latent has.
function groupsOf(targets) {
  const values = [...new Set(targets)].sort((a, b) => b - a);
  const number = new Map(values.map((value, i) => [value, i]));
  return { values, of: Uint16Array.from(targets, (target) => number.get(target)) };
}

// The tokens that a latent fires on most, strongest first; where a truth is known, its nearest feature instead.
function topTokens(run, latent, most) {
  if (run.truth) return run.frequency[latent] > 0 ? [feature(run.truth.feature[latent])] : [];
  const numbers = run.words.word.subarray(run.firstWord[latent], Math.min(run.firstWord[latent + 1], run.firstWord[latent] + most));
  return Array.from(numbers, (n) => run.text.strings[n].trim());
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

// As it can be copied; `readable` is for the eye.
function number(value, digits = 3) {
  if (!Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(digits - 1).replace(/\.?0+e/, "e");
  return String(Number(value.toPrecision(digits + (size >= 1 ? 1 : 0))));
}

// A cosine or a correlation.
const alike = (value, digits = 2) => (Number.isFinite(value) ? value.toFixed(digits).replace(/^-(0\.0+)$/, "$1") : "–");

const readable = (value, digits) => inPowers(number(value, digits));
const inPowers = (text) => text.replace(/^(-?)(.*)e(.*)$/, (_, sign, size, power) => `${sign}${size === "1" ? "" : `${size}·`}10${raised(power)}`);
const raised = (power) => Array.from(power.replace("+", ""), (sign) => (sign === "-" ? "⁻" : "⁰¹²³⁴⁵⁶⁷⁸⁹"[sign])).join("");

// In per cent, however little, without an exponent.
function percent(value) {
  const least = Math.floor(Math.log10(Math.abs(100 * value)));
  return `${value && least < -3 ? (100 * value).toFixed(1 - least).replace(/0$/, "") : number(100 * value, 2)} %`;
}

const share = (value) => (value === 0 ? "never" : percent(value));
