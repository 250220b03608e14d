// A text of yours, read by this page's own server (`overtone view`).
const MOST_ASKED = Number(byId("ask").dataset.most);
const told = (words) => { byId("answer").textContent = words; };

async function asked(text) {
  const response = await fetch("read", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ text }) });
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

async function readAsked() {
  const text = byId("asked").value;
  if (!text.trim()) return told("Write or paste some words first.");
  // In characters as Python counts them.
  const length = Array.from(text).length;
  if (length > MOST_ASKED) return told(`The text has ${length.toLocaleString("en")} characters, the limit is ${MOST_ASKED.toLocaleString("en")}; give less of it.`);
  byId("send").disabled = true;
  told("Reading …");
  try {
    const { tokens, runs } = await asked(text);
    byId("passage").value = "";
    openReading(readingOf(tokens, runs.map((codes, i) => [openRun(i), codes])));
    told(`${tokens.length.toLocaleString("en")} token${tokens.length === 1 ? "" : "s"}`);
  } catch (error) {
    told(error instanceof TypeError ? "The server does not answer; is `overtone view` still running?" : `Not read: ${error.message}`);
  } finally {
    byId("send").disabled = false;
  }
}

byId("ask").addEventListener("submit", (event) => { event.preventDefault(); readAsked(); });
byId("asked").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) readAsked();
});
