// Keys: never with modifiers but shift, never where something is typed.
const handlers = new Map();

export function bind(key, handler) {
  handlers.set(key, handler);
}

let at = -1;

function rows() {
  return [...document.querySelectorAll("main tbody tr[data-key]")];
}

function move(by) {
  const all = rows();
  if (!all.length) return;
  all[at]?.classList.remove("at");
  at = Math.max(0, Math.min(all.length - 1, at + by));
  all[at].classList.add("at");
  all[at].scrollIntoView({ block: "nearest" });
  all[at].querySelector("a")?.focus({ preventScroll: true });
}

bind("/", () => (document.querySelector('main textarea[name="q"], main input[name="words"]') ?? document.querySelector('header input[name="words"]')).focus());
bind("?", () => document.getElementById("keys").showModal());
bind("j", () => move(1));
bind("k", () => move(-1));
bind("ArrowDown", () => move(1));
bind("ArrowUp", () => move(-1));
bind("x", () => rows()[at]?.querySelector('input[type="checkbox"]')?.click());
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
