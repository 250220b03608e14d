// What the address says is shown: #overview, #latents, #latent/RUN/LATENT. So every view can be linked to.
const THEMES = ["system", "light", "dark"];

function showTheme(theme) {
  if (theme === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  byId("theme").textContent = `Theme: ${theme}`;
}

function view(name) {
  for (const one of ["overview", "latents"]) {
    byId(`view-${one}`).hidden = one !== name;
    if (one === name) byId(`to-${one}`).setAttribute("aria-current", "page");
    else byId(`to-${one}`).removeAttribute("aria-current");
  }
}

function follow() {
  const [name, run, latent] = location.hash.slice(1).split("/");
  if (name === "main") return;
  if (name !== "latent" && name !== "latents") {
    view("overview");
    if (!byId("charts").childElementCount) overviewCharts();
    return;
  }
  view("latents");
  const chosen = Number(run);
  const moved = name === "latents" && state.run === null;
  chooseRun(name === "latent" && chosen in page.runs ? chosen : (state.run?.number ?? 0));
  const wanted = Number(latent);
  if (name === "latent" && Number.isInteger(wanted) && wanted >= 0 && wanted < state.run.latents) state.latent = wanted;
  else if (moved && state.order.length) state.latent = state.order[0];
  state.place = state.order.indexOf(state.latent);
  reveal();
  showLatent(state.run, state.latent);
}

function keys(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest?.("input, select, textarea")) return;
  if (byId("view-latents").hidden && event.key !== "/") return;
  const act = { j: () => step(1), k: () => step(-1), "/": searchAll, n: () => byId("note").focus() }[event.key];
  if (!act) return;
  event.preventDefault();
  act();
}

function searchAll() {
  if (byId("view-latents").hidden) location.hash = "#latents";
  // The view changes with the address, after this.
  setTimeout(() => byId("search").focus());
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
listenToTokens();
listenToList();
follow();
