// What the address says is shown: #overview, #latents, #latent/RUN/LATENT, #compare/RUN/RUN/LATENT, #read/PASSAGE. So every view can be linked to.
const VIEWS = ["overview", "latents", "compare", "read"].filter((name) => byId(`view-${name}`));
const THEMES = ["system", "light", "dark"];

function showTheme(theme) {
  if (theme === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  byId("theme").textContent = `Theme: ${theme}`;
}

function view(name) {
  for (const one of VIEWS) {
    byId(`view-${one}`).hidden = one !== name;
    if (one === name) byId(`to-${one}`).setAttribute("aria-current", "page");
    else byId(`to-${one}`).removeAttribute("aria-current");
  }
}

function follow() {
  const [name, ...rest] = location.hash.slice(1).split("/");
  if (name === "main") return;
  hideTip();
  const shown = name === "latent" ? "latents" : VIEWS.includes(name) ? name : "overview";
  view(shown);
  const numbers = rest.map((part) => (part === "" ? NaN : Number(part)));
  if (shown === "overview" && !byId("charts").childElementCount) overviewCharts();
  if (shown === "latents") followLatent(name, ...numbers);
  if (shown === "compare") followPair(...numbers);
  if (shown === "read") followReading(...numbers);
}

function followLatent(name, chosen, wanted) {
  const moved = name === "latents" && state.run === null;
  chooseRun(name === "latent" && chosen in page.runs ? chosen : (state.run?.number ?? 0));
  if (name === "latent" && Number.isInteger(wanted) && wanted >= 0 && wanted < state.run.latents) state.latent = wanted;
  else if (moved && state.order.length) state.latent = state.order[0];
  state.place = state.order.indexOf(state.latent);
  latentList.reveal(state.place);
  showLatent(state.run, state.latent);
}

function keys(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest?.("input, select, textarea")) return;
  const comparing = byId("view-compare")?.hidden === false;
  if (byId("view-latents").hidden && !comparing && event.key !== "/") return;
  const [move, noting] = comparing ? [stepPair, "note-left"] : [step, "note"];
  const act = { j: () => move(1), k: () => move(-1), "/": searchAll, n: () => byId(noting).focus() }[event.key];
  if (!act) return;
  event.preventDefault();
  act();
}

function searchAll() {
  const comparing = byId("view-compare")?.hidden === false;
  if (byId("view-latents").hidden && !comparing) location.hash = "#latents";
  // The view changes with the address, after this.
  setTimeout(() => byId(comparing ? "pair-search" : "search").focus());
}

byId("theme").addEventListener("click", () => {
  const now = document.documentElement.dataset.theme ?? "system";
  const next = THEMES[(THEMES.indexOf(now) + 1) % THEMES.length];
  store("overtone-theme", next);
  showTheme(next);
});
byId("export").addEventListener("click", () => notes.export());
addEventListener("keydown", keys);
addEventListener("keydown", (event) => { if (event.key === "Escape") hideTip(); });
addEventListener("hashchange", follow);
const theme = stored("overtone-theme");
showTheme(THEMES.includes(theme) ? theme : "system");
notes.load();
for (const id of ["latent", "pair", "readers"]) if (byId(id)) listenToTokens(byId(id));
addEventListener("scroll", hideTip, { passive: true });
listenToList();
listenToPairs();
listenToReading();
follow();
