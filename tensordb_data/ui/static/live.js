// Rows that stay up to date: asked for every three seconds while somebody looks, and changed in place.
import { tellTimes } from "./main.js";

const policy = window.trustedTypes ? window.trustedTypes.createPolicy("tdb", { createHTML: (text) => text }) : { createHTML: (text) => text };
const least = 3000;

// Only what our own server has sent, in which every value is escaped, is made a document.
export function parse(text) {
  return new DOMParser().parseFromString(policy.createHTML(text), "text/html");
}

let tag = null;
let timer = null;

export async function poll(now = false) {
  clearTimeout(timer);
  if (document.hidden && !now) return; // it goes on when the page is looked at again
  let wait = least;
  if (now || tag !== null) {
    const began = performance.now();
    try {
      const headers = { Accept: "text/html", ...(tag ? { "If-None-Match": tag } : {}) };
      const answer = await fetch(location.href, { headers });
      if (answer.status === 200) {
        tag = answer.headers.get("ETag");
        update(await answer.text());
      }
    } catch {
      wait = 3 * least; // the server is away
    }
    wait = Math.max(wait, 20 * (performance.now() - began)); // a page that takes long is asked for less often
  } else tag = "";
  timer = setTimeout(poll, wait);
}

document.addEventListener("visibilitychange", () => !document.hidden && document.querySelector("[data-live]") && poll());

function update(text) {
  const fresh = parse(text);
  let added = 0;
  for (const part of document.querySelectorAll("[data-live]")) {
    const other = fresh.querySelector(`[data-live="${part.dataset.live}"]`);
    if (!other) continue;
    const known = new Map([...part.querySelectorAll("[data-key]")].map((row) => [row.dataset.key, row]));
    for (const row of other.querySelectorAll("[data-key]")) {
      const old = known.get(row.dataset.key);
      if (!old) added += 1;
      else renew(old, row);
    }
  }
  const notice = document.getElementById("new-rows");
  notice.hidden = !added;
  notice.querySelector("span").textContent = `${added} new,`;
  tellTimes();
}

function renew(old, row) {
  if (old.contains(document.activeElement) && document.activeElement.tagName !== "A") return;
  const checked = old.querySelector('input[type="checkbox"]')?.checked;
  const before = old.cloneNode(true);
  for (const time of before.querySelectorAll("time[datetime]")) time.textContent = time.title;
  if (before.innerHTML === row.innerHTML) return;
  old.replaceChildren(...document.importNode(row, true).childNodes);
  const box = old.querySelector('input[type="checkbox"]');
  if (box && checked !== undefined) box.checked = checked;
}

document.querySelector("#new-rows button").addEventListener("click", () => location.reload());
