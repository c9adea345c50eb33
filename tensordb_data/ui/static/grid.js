// The page of a dataset: facets, thumbnails in one answer for a block, blocks as they are scrolled to, a selection.
import { say } from "./main.js";
import { parse } from "./live.js";
import { bind, items, current } from "./keys.js";
import { Edits } from "./edit.js";

const box = document.getElementById("samples");
const aside = document.getElementById("facets");
const selected = new Set();
let every = null; // how many there are, if all that match are selected
let last = null;

// Facets

async function loadFacets() {
  if (!aside.dataset.src) return;
  const answer = await fetch(aside.dataset.src, { headers: { Accept: "text/html" } });
  const text = await answer.text();
  const part = parse(text).querySelector(answer.ok ? "#part" : ".fault");
  aside.replaceChildren(...(answer.ok ? part.childNodes : [part]));
  aside.dataset.drawn = "1";
}

function filterNow() {
  try {
    return box.dataset.q ? JSON.parse(box.dataset.q) : {};
  } catch {
    return {};
  }
}

function go(filter) {
  const here = new URL(location.href);
  here.searchParams.delete("after");
  if (Object.keys(filter).length) here.searchParams.set("q", JSON.stringify(filter));
  else here.searchParams.delete("q");
  location.assign(here);
}

aside.addEventListener("click", (event) => {
  const link = event.target.closest("a[data-value]");
  if (!link || !(event.shiftKey || event.altKey)) return;
  event.preventDefault();
  const filter = filterNow();
  const field = link.dataset.field;
  const value = JSON.parse(link.dataset.value);
  const own = filter[field];
  const operator = event.altKey ? "$nin" : "$in";
  const listed = own && typeof own === "object" && Array.isArray(own[operator]) ? own[operator] : operator === "$in" && own !== undefined && (own === null || typeof own !== "object") ? [own] : [];
  const there = listed.some((each) => JSON.stringify(each) === JSON.stringify(value));
  const next = there ? listed.filter((each) => JSON.stringify(each) !== JSON.stringify(value)) : [...listed, value];
  if (next.length) filter[field] = { [operator]: next };
  else delete filter[field];
  go(filter);
});

let drag = null;

aside.addEventListener("pointerdown", (event) => {
  const bar = event.target.closest(".histogram a");
  if (bar && event.button === 0) drag = { first: bar, end: bar };
});
aside.addEventListener("pointermove", (event) => {
  const bar = drag && document.elementFromPoint(event.clientX, event.clientY)?.closest(".histogram a");
  if (!bar || bar.parentNode !== drag.first.parentNode) return;
  drag.end = bar;
  for (const each of range()) each.classList.add("within");
});
document.addEventListener("pointerup", () => {
  if (!drag || drag.first === drag.end) {
    drag = null;
    return;
  }
  const bars = range();
  const [low, high] = [bars[0], bars.at(-1)];
  const filter = filterNow();
  filter[low.parentNode.dataset.field] = { $gte: JSON.parse(low.dataset.low), [high.dataset.last ? "$lte" : "$lt"]: JSON.parse(high.dataset.high) };
  drag = null;
  go(filter);
});
aside.addEventListener("dragstart", (event) => event.preventDefault());

function range() {
  const all = [...drag.first.parentNode.querySelectorAll("a")];
  const ends = [all.indexOf(drag.first), all.indexOf(drag.end)].sort((a, b) => a - b);
  return all.filter((bar, place) => {
    bar.classList.remove("within");
    return place >= ends[0] && place <= ends[1];
  });
}

// Thumbnails: for each a length, a byte for its type, and its bytes

const types = ["", "image/jpeg", "image/png"];

async function loadThumbs(block) {
  const tiles = [...block.querySelectorAll(".tile")];
  if (!box.dataset.picture || !tiles.length || block.dataset.drawn) return;
  block.dataset.drawn = "1";
  const ids = tiles.map((tile) => tile.dataset.id).join("&id=");
  const answer = await fetch(`${box.dataset.thumbs}&id=${ids}`);
  if (!answer.ok) {
    say((await answer.json()).error, true);
    return;
  }
  const data = await answer.arrayBuffer();
  const view = new DataView(data);
  let at = 0;
  for (const tile of tiles) {
    const length = view.getUint32(at, true);
    const type = types[view.getUint8(at + 4)];
    const image = tile.querySelector("img");
    if (type) {
      image.src = URL.createObjectURL(new Blob([new Uint8Array(data, at + 5, length)], { type }));
      image.onload = () => image.classList.toggle("small", image.naturalWidth < 64);
    } else if (length) tile.title = new TextDecoder().decode(new Uint8Array(data, at + 5, length));
    at += 5 + length;
  }
}

// Blocks: those far out of sight keep their height only

const kept = new WeakMap();
const watcher = new IntersectionObserver(
  (entries) => {
    for (const { target, isIntersecting } of entries) {
      if (isIntersecting) {
        if (kept.has(target)) {
          target.style.removeProperty("height");
          target.classList.remove("gap");
          target.append(kept.get(target));
          kept.delete(target);
          mark(target);
        }
        loadThumbs(target);
      } else if (target.offsetHeight && !kept.has(target) && target.querySelector(".tile")) {
        target.style.height = `${target.offsetHeight}px`;
        target.classList.add("gap");
        for (const image of target.querySelectorAll("img[src]")) {
          URL.revokeObjectURL(image.src);
          image.removeAttribute("src");
        }
        delete target.dataset.drawn;
        const away = document.createDocumentFragment();
        away.append(...target.childNodes);
        kept.set(target, away);
      }
    }
  },
  { rootMargin: "1200px 0px" },
);

function blocks() {
  return [...box.querySelectorAll(".block")];
}

let loading = false;

async function more() {
  const end = blocks().at(-1);
  const next = end?.dataset.next;
  if (!next || loading) return;
  loading = true;
  const note = document.getElementById("more");
  note.textContent = "looking…";
  try {
    const answer = await fetch(`${box.dataset.more}&after=${encodeURIComponent(next)}`, { headers: { Accept: "text/html" } });
    const found = parse(await answer.text());
    if (!answer.ok) throw new Error(found.querySelector(".fault")?.textContent ?? "this did not work");
    const block = document.importNode(found.querySelector(".block"), true);
    const empty = !block.querySelector(".item");
    const stuck = empty && block.dataset.looked === end.dataset.looked && block.dataset.next === next;
    if (empty) Object.assign(end.dataset, { next: stuck ? "" : block.dataset.next, looked: block.dataset.looked });
    else {
      box.append(block);
      watcher.observe(block);
      mark(block);
    }
    const looked = Number(block.dataset.looked);
    note.textContent = stuck ? "to look further takes too long; an index would help" : block.dataset.next ? `looked through ${(100 * looked).toFixed(1)} %` : "";
    loading = false;
    if (block.dataset.next && !stuck && note.getBoundingClientRect().top < innerHeight + 800) await more();
  } catch (error) {
    note.textContent = error.message;
  }
  loading = false;
}

// The selection

function mark(root = document) {
  for (const item of root.querySelectorAll(".item[data-id]")) {
    const here = every !== null || selected.has(item.dataset.id);
    item.classList.toggle("chosen", here);
    const check = item.querySelector('input[type="checkbox"]');
    if (check) check.checked = here;
  }
}

function told() {
  const n = every ?? selected.size;
  document.getElementById("selected").textContent = n ? `${n.toLocaleString("en").replaceAll(",", "\u202f")} selected${every === null ? "" : ": all that match"}` : "nothing is selected";
  for (const button of document.querySelectorAll("#selection [data-do]")) {
    if (!["all", "undo"].includes(button.dataset.do)) button.disabled = !n || (button.dataset.do === "ids" && every !== null);
  }
}

function pick(item, through) {
  if (!item?.dataset.id) return;
  const all = items();
  const [from, to] = [all.indexOf(last), all.indexOf(item)];
  const on = !selected.has(item.dataset.id) || every !== null;
  every = null;
  if (through && from >= 0) {
    for (const each of all.slice(Math.min(from, to), Math.max(from, to) + 1)) selected.add(each.dataset.id);
  } else if (on) selected.add(item.dataset.id);
  else selected.delete(item.dataset.id);
  last = item;
  mark();
  told();
}

function clear() {
  selected.clear();
  every = null;
  last = null;
  mark();
  told();
}

async function count() {
  const answer = await fetch(document.getElementById("count").dataset.src);
  const found = await answer.json();
  if (!answer.ok) throw new Error(found.error);
  return found.count;
}

const edits = new Edits(() => (every !== null ? { all: { dataset: box.dataset.dataset || null, q: box.dataset.q, count: every } } : { ids: [...selected] }), () => every ?? selected.size, reload);

async function reload() {
  // The tiles are read again where they are: those that no longer match stay until the page is loaded anew.
  let after = new URL(location.href).searchParams.get("after");
  for (const block of blocks()) {
    const address = box.dataset.more + (after ? `&after=${encodeURIComponent(after)}` : "");
    const answer = await fetch(address, { headers: { Accept: "text/html" } });
    const fresh = new Map([...parse(await answer.text()).querySelectorAll(".item[data-id]")].map((item) => [item.dataset.id, item]));
    for (const item of (kept.get(block) ?? block).querySelectorAll(".item[data-id]")) {
      const other = fresh.get(item.dataset.id);
      const [old, now] = [item.querySelector(".caption"), other?.querySelector(".caption")];
      if (old && now) old.replaceWith(document.importNode(now, true));
      else if (other && item.tagName === "TR") item.replaceChildren(...document.importNode(other, true).childNodes);
    }
    after = block.dataset.next;
    if (!after) break;
  }
  mark();
  await loadFacets();
}

const doing = {
  all: async () => {
    try {
      every = await count();
      selected.clear();
      mark();
      told();
    } catch (error) {
      say(error.message, true);
    }
  },
  none: clear,
  tag: () => edits.open("tag"),
  untag: () => edits.open("untag"),
  label: () => edits.open("set"),
  undo: () => edits.undo(),
  ids: () => copy(JSON.stringify([...selected])),
};

document.getElementById("selection")?.addEventListener("click", (event) => {
  const name = event.target.closest("button[data-do]")?.dataset.do;
  if (name) doing[name]();
});

box?.addEventListener("click", (event) => {
  if (event.target.matches('.item input[type="checkbox"]')) pick(event.target.closest(".item"), event.shiftKey);
});

function copy(text) {
  navigator.clipboard ? navigator.clipboard.writeText(text).then(() => say("copied"), () => say(text)) : say(text);
}

async function told_by(button) {
  const answer = await fetch(button.dataset.src);
  const found = await answer.json();
  if (!answer.ok) throw new Error(found.error);
  return found;
}

document.getElementById("copy-link")?.addEventListener("click", () => copy(location.href));
for (const [id, use] of [
  ["copy-python", (found) => copy(found.python)],
  ["explain", (found) => say(Object.entries(found).map(([name, value]) => `${name}: ${value}`).join(", "))],
  ["count", (found) => say(`${found.count.toLocaleString("en").replaceAll(",", "\u202f")} samples, counted`)],
]) {
  const button = document.getElementById(id);
  button?.addEventListener("click", async () => {
    try {
      use(await told_by(button));
    } catch (error) {
      say(error.message, true);
    }
  });
}

if (document.getElementById("selection")) {
  bind("x", (event) => pick(current(), event.shiftKey));
  bind("X", () => pick(current(), true));
  bind("Escape", clear);
  if (document.getElementById("edit")) {
    bind("t", () => (every ?? selected.size) && doing.tag());
    bind("l", () => (every ?? selected.size) && doing.label());
  }
}

loadFacets();
if (box) {
  for (const block of blocks()) watcher.observe(block);
  new IntersectionObserver((entries) => entries.some((entry) => entry.isIntersecting) && more(), { rootMargin: "800px 0px" }).observe(document.getElementById("more"));
}
told();
