// Notes stay in this browser, under the dictionary's own weights; where it keeps nothing, until the page is closed.
const STORED = "overtone-notes";

function stored(name) {
  try {
    return localStorage.getItem(name);
  } catch {
    return null;
  }
}

function store(name, value) {
  try {
    localStorage.setItem(name, value);
    return true;
  } catch {
    return false;
  }
}

const notes = {
  all: new Map(),
  load() {
    try {
      this.all = new Map(Object.entries(JSON.parse(stored(STORED) ?? "{}")).filter(([, text]) => typeof text === "string"));
    } catch {
      this.all = new Map();
    }
    this.tell(true);
  },
  get(run, latent) {
    return this.all.get(`${run.key}/${latent}`) ?? "";
  },
  set(run, latent, text) {
    if (text) this.all.set(`${run.key}/${latent}`, text);
    else this.all.delete(`${run.key}/${latent}`);
    this.tell(store(STORED, JSON.stringify(Object.fromEntries(this.all))));
    paint();
  },
  here() {
    return page.runs.flatMap(({ name, key }) =>
      [...this.all].filter(([at]) => at.startsWith(`${key}/`)).map(([at, note]) => ({ run: name, weights: key, latent: Number(at.slice(key.length + 1)), note })));
  },
  tell(kept) {
    const count = this.here().length;
    byId("kept").textContent = kept ? `${count} kept in this browser` : `${count}, which this browser does not keep: export them`;
    byId("export").disabled = !count;
  },
  export() {
    const text = JSON.stringify({ format: "overtone-notes", version: 1, title: page.title, notes: this.here() }, null, 2);
    const url = URL.createObjectURL(new Blob([text], { type: "application/json" }));
    make("a", { href: url, download: "notes.json" }).click();
    setTimeout(() => URL.revokeObjectURL(url), 1000);
  },
};
