// Charts as SVG. Colours are classes, so that they follow the theme; every chart comes with its numbers as a table.
const SVG = "http://www.w3.org/2000/svg";
const BOX = { width: 520, height: 260, left: 72, right: 14, top: 14, bottom: 42 };

function draw(tag, attributes, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function scale(domain, range, logarithmic) {
  const place = logarithmic ? Math.log10 : (value) => value;
  const [low, high] = domain.map(place);
  const wide = high - low || 1;
  const at = (value) => range[0] + ((place(value) - low) / wide) * (range[1] - range[0]);
  return Object.assign(at, { ticks: logarithmic ? decades(domain) : steps(domain) });
}

function steps([low, high]) {
  const wide = high - low || 1;
  const power = 10 ** Math.floor(Math.log10(wide / 4));
  const step = power * [1, 2, 5, 10].find((m) => wide / (m * power) <= 5);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * wide; i++) found.push(i * step);
  return found;
}

function decades([low, high]) {
  const [first, last] = [Math.ceil(Math.log10(low) - 1e-9), Math.floor(Math.log10(high) + 1e-9)];
  const between = (parts) => {
    const found = [];
    for (let p = first - 1; p <= last; p++) for (const m of parts) found.push(m * 10 ** p);
    return found.filter((value) => value >= low * 0.999 && value <= high * 1.001);
  };
  // As few as there can be, but three.
  return [[1], [1, 2, 5], [1, 1.5, 2, 3, 5, 7]].map(between).find((found) => found.length > 2) ?? between([1, 1.5, 2, 3, 5, 7]);
}

// Of one axis: all as powers of ten where some are too small or too large to be written out.
function tickTexts(ticks) {
  const far = (value) => value !== 0 && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e6);
  return ticks.map((value) => (!ticks.some(far) || value === 0 || value === 1 ? number(value) : inPowers(value.toExponential(2).replace(/\.?0+e/, "e"))));
}

function axes(x, y, labels, yTexts = tickTexts(y.ticks)) {
  const { width, height, left, right, top, bottom } = BOX;
  const parts = [];
  y.ticks.forEach((value, i) => {
    parts.push(draw("line", { class: "grid", x1: left, x2: width - right, y1: y(value), y2: y(value) }));
    parts.push(draw("text", { class: "tick end", x: left - 7, y: y(value) + 4 }, yTexts[i]));
  });
  const xTexts = tickTexts(x.ticks);
  x.ticks.forEach((value, i) => parts.push(draw("text", { class: "tick middle", x: x(value), y: height - bottom + 16 }, xTexts[i])));
  parts.push(draw("text", { class: "axis middle", x: (left + width - right) / 2, y: height - 6 }, labels[0]));
  const turned = `rotate(-90 12 ${(top + height - bottom) / 2})`;
  parts.push(draw("text", { class: "axis middle", x: 12, y: (top + height - bottom) / 2, transform: turned }, labels[1]));
  return parts;
}

const across = () => [BOX.left, BOX.width - BOX.right];
const upwards = () => [BOX.height - BOX.bottom, BOX.top];

function chart(label, parts) {
  return draw("svg", { viewBox: `0 0 ${BOX.width} ${BOX.height}`, role: "img", "aria-label": label }, ...parts);
}

// A chart, its legend, a sentence about it and its numbers.
function figure(title, svg, { legend = [], note = "", header, rows }) {
  const numbers = make("details", {}, make("summary", {}, "Numbers"));
  // Made when it is looked at: most never are.
  numbers.addEventListener("toggle", () => numbers.append(numbersTable(title, header, rows)), { once: true });
  return make(
    "figure",
    {},
    make("figcaption", {}, make("h3", {}, title), note ? make("p", {}, note) : null),
    svg,
    legend.length ? make("ul", { className: "legend" }, ...legend.map(([name, of]) => make("li", { className: of }, isolated(name)))) : null,
    numbers,
  );
}

function numbersTable(title, header, rows) {
  const names = make("tr", {}, ...header.map((name) => make("th", { scope: "col" }, name)));
  const lines = rows.map((row) => make("tr", {}, ...row.map((value) => make("td", {}, String(value)))));
  const table = make("table", {}, make("thead", {}, names), make("tbody", {}, ...lines));
  return make("div", { className: "scroll", tabIndex: 0, role: "region", "aria-label": `Numbers: ${title}` }, table);
}

// Lines over x; series: [{name, x, y}].
function curves(title, series, labels, { logarithmic = false, zero = false, note = "" } = {}) {
  const ys = series.flatMap((s) => s.y).filter((value) => Number.isFinite(value) && (!logarithmic || value > 0));
  const xs = series.flatMap((s) => s.x);
  if (ys.length < 2) return null;
  const x = scale([0, Math.max(...xs)], across());
  const y = scale([zero ? 0 : Math.min(...ys), Math.max(...ys) * (zero ? 1.05 : 1)], upwards(), logarithmic);
  const lines = series.map((s, i) => {
    const points = s.x.map((value, j) => [value, s.y[j]]).filter(([, v]) => Number.isFinite(v) && (!logarithmic || v > 0));
    const path = points.map(([a, b], j) => `${j ? "L" : "M"}${x(a).toFixed(1)} ${y(b).toFixed(1)}`).join("");
    return draw("path", { class: `line s${i % 6}${s.chance ? " chance" : ""}`, d: path });
  });
  const rows = series.flatMap((s) => s.x.map((value, j) => [s.name, number(value), number(s.y[j])]));
  return figure(title, chart(title, [...axes(x, y, labels), ...lines]), {
    legend: series.map((s, i) => [s.name, `s${i % 6}${s.chance ? " chance" : ""}`]), note, header: ["dictionary", ...labels], rows,
  });
}

const quantile = (sorted, at) => sorted[Math.min(sorted.length - 1, Math.floor(at * sorted.length))];

// Every group's latents: middle half, all but the outer twentieths, median; and the target they are steered to.
function spectrum(run) {
  const groups = run.groups.values.map((target) => ({ target, reached: [] }));
  run.frequency.forEach((frequency, m) => groups[run.groups.of[m]].reached.push(frequency));
  groups.forEach((group) => group.reached.sort((a, b) => a - b));
  const lowest = groups.map((group) => quantile(group.reached, 0.05)).filter((f) => f > 0);
  const floor = Math.min(...run.groups.values, ...lowest) / 1.5;
  const ceiling = Math.max(...run.groups.values, ...groups.map((g) => quantile(g.reached, 0.95))) * 1.3;
  const x = Object.assign(scale([0.5, groups.length + 0.5], across()), { ticks: groups.map((_, i) => i + 1) });
  if (groups.length > 10) x.ticks = x.ticks.filter((i) => i === 1 || i % 5 === 0);
  const y = scale([floor, ceiling], upwards(), true);
  const wide = Math.min(26, (x(2) - x(1)) * 0.55);
  const shown = (value) => y(Math.max(value, floor));
  const parts = groups.flatMap(({ target, reached }, i) => {
    const q = [0.05, 0.25, 0.5, 0.75, 0.95].map((at) => shown(quantile(reached, at)));
    const [middle, left, right] = [x(i + 1), x(i + 1) - wide / 2, x(i + 1) + wide / 2];
    return [
      draw("line", { class: "whisker", x1: middle, x2: middle, y1: q[0], y2: q[4] }),
      draw("rect", { class: "box", x: left, width: wide, y: q[3], height: Math.max(1, q[1] - q[3]) }),
      draw("line", { class: "median", x1: left, x2: right, y1: q[2], y2: q[2] }),
      draw("line", { class: "target", x1: left - 4, x2: right + 4, y1: y(target), y2: y(target) }),
    ];
  });
  const title = `Frequencies against their targets: ${run.name}`;
  const labels = ["group, the most frequent first", `share of ${UNIT}`];
  return figure(title, chart(title, [...axes(x, y, labels, y.ticks.map(percent)), ...parts]), {
    legend: [["middle half of the group", "boxes"], ["its median", "medians"], ["target", "targets"]],
    note: "Measured on what the examples are from; targets are steered to on the rows trained on.",
    header: ["group", "target", "latents", "5 %", "median", "95 %", "never"],
    rows: groups.map(({ target, reached }, i) => [
      i + 1, share(target), reached.length, ...[0.05, 0.5, 0.95].map((at) => share(quantile(reached, at))), reached.filter((f) => !f).length,
    ]),
  });
}

const HALF_DECADES = Array.from({ length: 13 }, (_, i) => 10 ** (i / 2 - 6));

// How many latents fire how often, a line for each dictionary.
function frequencies(runs) {
  const counts = runs.map((run) => HALF_DECADES.slice(1).map((end, i) =>
    run.frequency.reduce((sum, f) => sum + (f >= HALF_DECADES[i] && (f < end || end === 1)), 0) / run.latents));
  const kept = HALF_DECADES.map((_, i) => i).filter((i) => i < 12 && counts.some((c) => c[i]));
  if (!kept.length) return null;
  const [first, last] = [kept[0], kept[kept.length - 1] + 1];
  const x = scale([HALF_DECADES[first], HALF_DECADES[last]], across(), true);
  const y = scale([0, Math.max(...counts.flat()) * 1.05], upwards());
  const lines = counts.map((c, i) => {
    let path = `M${x(HALF_DECADES[first])} ${y(0)}`;
    for (let b = first; b < last; b++) path += `V${y(c[b]).toFixed(1)}H${x(HALF_DECADES[b + 1]).toFixed(1)}`;
    return draw("path", { class: `line s${i % 6}`, d: `${path}V${y(0)}` });
  });
  const dead = (run) => run.frequency.filter((f) => !f).length;
  const dense = (run) => run.frequency.filter((f) => f > 0.1).length;
  const note = runs.map((run) => `${run.name}: ${dead(run)} of ${run.latents} never fire, ${dense(run)} fire on more than 10 % of ${UNIT}`).join(" · ");
  return figure("How often latents fire", chart("How often latents fire", [...axes(x, y, [`share of ${UNIT} (half decades)`, "share of latents"], y.ticks.map(percent)), ...lines]), {
    legend: runs.map((run, i) => [run.name, `s${i % 6}`]), note,
    header: ["dictionary", "from", "to", "latents"],
    rows: runs.flatMap((run, i) => counts[i].slice(first, last).map((c, b) => [run.name, number(HALF_DECADES[first + b]), number(HALF_DECADES[first + b + 1]), Math.round(c * run.latents)])),
  });
}

// The sizes of a latent's codes.
function histogram(run, latent) {
  const { bins, histogram: sizes, bin_width } = partOf(run, latent);
  const counts = Array.from(sizes.subarray(placeIn(latent) * bins, (placeIn(latent) + 1) * bins));
  const most = Math.max(...counts);
  if (!most) return null;
  const wide = bin_width[placeIn(latent)];
  const last = counts.findLastIndex((count) => count > 0) + 1;
  const x = scale([0, last * wide], across());
  const y = (count) => upwards()[0] + (Math.log1p(count) / Math.log1p(most)) * (upwards()[1] - upwards()[0]);
  y.ticks = [1, 10, 100, 1e3, 1e4, 1e5, 1e6].filter((value) => value <= most);
  const bars = counts.slice(0, last).map((count, i) =>
    draw("rect", { class: "bar", x: x(i * wide) + 0.5, width: Math.max(0.5, x(wide) - x(0) - 1), y: y(count), height: y(0) - y(count) }));
  return figure("Sizes of its codes", chart("Sizes of its codes", [...axes(x, y, ["code", `${UNIT} (logarithmic)`]), ...bars]), {
    header: ["from", "to", UNIT], rows: counts.slice(0, last).map((count, i) => [number(i * wide), number((i + 1) * wide), count]),
  });
}
