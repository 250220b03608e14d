// A list of any length, of which only the rows that are looked at are drawn.
const ROW = 52; // pixels, as in the style
const SPARE = 6; // rows drawn beyond the edges

// `list` scrolls, `rows` holds what is drawn; `element(place)` makes a row, `name(place)` is its id, `move(by)` follows the keys.
function lister(list, rows, { element, name, move }) {
  let count = 0;
  let chosen = -1;
  const paint = () => {
    const first = Math.max(0, Math.floor(list.scrollTop / ROW) - SPARE);
    const last = Math.min(count, Math.ceil((list.scrollTop + list.clientHeight) / ROW) + SPARE);
    const shown = Array.from({ length: Math.max(0, last - first) }, (_, i) => {
      const row = element(first + i);
      row.style.top = `${(first + i) * ROW}px`;
      row.setAttribute("aria-setsize", String(count));
      row.setAttribute("aria-posinset", String(first + i + 1));
      return row;
    });
    rows.replaceChildren(...shown);
    if (chosen >= first && chosen < last) list.setAttribute("aria-activedescendant", name(chosen));
    else list.removeAttribute("aria-activedescendant");
  };
  list.addEventListener("scroll", paint, { passive: true });
  addEventListener("resize", paint);
  list.addEventListener("keydown", (event) => {
    const page = Math.max(1, Math.floor(list.clientHeight / ROW) - 1);
    const by = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity }[event.key];
    if (by === undefined) return;
    event.preventDefault();
    move(by);
  });
  return {
    paint,
    fill(length) {
      count = length;
      rows.style.height = `${length * ROW}px`;
      list.scrollTop = 0;
      paint();
    },
    reveal(place) {
      chosen = place;
      const top = place * ROW;
      if (place >= 0 && top < list.scrollTop) list.scrollTop = top;
      else if (place >= 0 && top + ROW > list.scrollTop + list.clientHeight) list.scrollTop = top + ROW - list.clientHeight;
      paint();
    },
  };
}

// The places of what is kept, by their values; what was not measured comes last, whichever way.
function ordered(kept, values, falling) {
  const sign = falling ? -1 : 1;
  const keys = new Float64Array(1 + kept.reduce((most, m) => Math.max(most, m), 0));
  for (const m of kept) keys[m] = values === null ? sign * m : Number.isFinite(values[m]) ? sign * values[m] : Infinity;
  return kept.sort((a, b) => keys[a] - keys[b] || a - b);
}

const nextOf = (order, place, by) => order[place < 0 ? 0 : Math.min(order.length - 1, Math.max(0, place + by))];
