// What all pages share: relative times, forms that send themselves, changes, keys, and rows that stay up to date.
import { poll } from "./live.js";
import { onKey } from "./keys.js";

const page = document.body.dataset.page;

export function say(text, fault = false) {
  const line = document.createElement("p");
  line.textContent = text;
  if (fault) line.className = "fault";
  document.getElementById("said").append(line);
  setTimeout(() => line.remove(), fault ? 15000 : 6000);
}

export async function post(address, body) {
  const here = new URL(location.href).searchParams.get("project");
  const csrf = document.querySelector('meta[name="csrf"]').content;
  const headers = { "Content-Type": "application/json", "X-CSRF": csrf };
  const query = here ? `?project=${encodeURIComponent(here)}` : "";
  const answer = await fetch(`./${address}${query}`, { method: "POST", headers, body: JSON.stringify(body) });
  const found = await answer.json().catch(() => ({ error: `${answer.status} ${answer.statusText}` }));
  if (!answer.ok) throw new Error(found.error);
  return found;
}

const steps = [[60, 1, "second"], [3600, 60, "minute"], [86400, 3600, "hour"], [2592000, 86400, "day"], [31536000, 2592000, "month"], [Infinity, 31536000, "year"]];
const words = new Intl.RelativeTimeFormat("en", { numeric: "always", style: "narrow" });

export function tellTimes(root = document) {
  for (const time of root.querySelectorAll("time[datetime]")) {
    const seconds = (Date.now() - Date.parse(time.dateTime)) / 1000;
    if (Number.isNaN(seconds)) continue;
    const [, unit, name] = steps.find(([most]) => Math.abs(seconds) < most);
    const text = Math.abs(seconds) < 1 ? "now" : words.format(-Math.round(seconds / unit), name);
    if (time.textContent !== text) time.textContent = text;
  }
}

for (const form of document.querySelectorAll("form[data-auto]")) {
  form.addEventListener("change", (event) => {
    if (event.target.dataset.here === undefined && event.target.tagName !== "TEXTAREA") form.requestSubmit();
  });
}

for (const box of document.querySelectorAll('textarea[name="q"]')) {
  box.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey) {
      event.preventDefault();
      box.form.requestSubmit();
    }
  });
}

document.addEventListener("click", async (event) => {
  const button = event.target.closest("button[data-post]");
  if (!button) return;
  button.disabled = true;
  try {
    say((await post(button.dataset.post, { id: button.dataset.id })).said);
    await poll(true);
  } catch (error) {
    say(error.message, true);
  }
  button.disabled = false;
});

document.addEventListener("click", (event) => {
  const code = event.target.closest(".copy");
  if (code) navigator.clipboard?.writeText(code.dataset.text ?? code.textContent).then(() => say("copied"), () => say("the browser did not copy", true));
});

document.addEventListener("keydown", onKey);
tellTimes();
setInterval(tellTimes, 10000);
if (document.querySelector("[data-live]")) poll();
const own = { runs: document.getElementById("plot") && "plot", data: "grid", sample: "sample" }[page];
const whole = own ? import(`./${own}.js`) : Promise.resolve(); // not awaited: those import from here
whole.then(() => (document.documentElement.dataset.ready = "1")); // from now on, keys and clicks do what they say
