// Keys: never with modifiers but shift, never where something is typed.
const handlers = new Map();

export function bind(key, handler) {
  handlers.set(key, handler);
}

let here = null;

export function items() {
  return [...document.querySelectorAll("main tbody tr[data-key], main .block .item")];
}

export function current() {
  return here;
}

function move(by) {
  const all = items();
  if (!all.length) return;
  here?.classList.remove("at");
  const at = all.indexOf(here);
  here = all[at < 0 ? 0 : Math.max(0, Math.min(all.length - 1, at + by))];
  here.classList.add("at");
  here.scrollIntoView({ block: "nearest" });
  here.querySelector("a")?.focus({ preventScroll: true });
}

function columns() {
  const grid = here?.closest(".grid");
  return grid ? getComputedStyle(grid).gridTemplateColumns.split(" ").length : 1;
}

bind("/", () => (document.querySelector('main textarea[name="q"], main input[name="words"]') ?? document.querySelector('header input[name="words"]')).focus());
bind("?", () => document.getElementById("keys").showModal());
bind("j", () => move(1));
bind("k", () => move(-1));
bind("ArrowDown", () => move(columns()));
bind("ArrowUp", () => move(-columns()));
bind("ArrowRight", () => (here?.closest(".grid") ? move(1) : false));
bind("ArrowLeft", () => (here?.closest(".grid") ? move(-1) : false));
bind("x", () => here?.querySelector('input[type="checkbox"]')?.click());
bind("Escape", () => history.length > 1 && document.body.dataset.page.match(/^(sample|set|job)$/) && history.back());

export function onKey(event) {
  if (event.ctrlKey || event.altKey || event.metaKey || event.defaultPrevented) return;
  const target = event.target;
  const typed = target.closest("input:not([type=checkbox]), textarea, select, [contenteditable]");
  if (typed) {
    if (event.key === "Escape") typed.blur();
    return;
  }
  if (document.querySelector("dialog[open]")) return;
  const handler = handlers.get(event.key);
  if (handler && handler(event) !== false) event.preventDefault();
}
