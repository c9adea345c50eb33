// The page of a sample: slices of its arrays, changes, and the samples beside it.
import { bind } from "./keys.js";
import { Edits } from "./edit.js";

for (const image of document.querySelectorAll("img[data-blob]")) {
  const name = CSS.escape(image.dataset.blob);
  const slice = document.querySelector(`[data-slice="${name}"]`);
  const channel = document.querySelector(`[data-channel="${name}"]`);
  const show = () => {
    const address = new URL(image.src);
    if (slice) address.searchParams.set("slice", slice.value);
    if (channel?.value) address.searchParams.set("channel", channel.value);
    else address.searchParams.delete("channel");
    image.src = address;
    if (slice) slice.closest("p").querySelector("output").textContent = slice.value;
  };
  slice?.addEventListener("input", show);
  channel?.addEventListener("change", show);
}

const id = document.querySelector("h1[data-id]").dataset.id;
for (const [key, name] of [["j", "behind"], ["ArrowRight", "behind"], ["k", "before"], ["ArrowLeft", "before"]]) {
  bind(key, () => document.getElementById(name)?.click());
}

if (document.getElementById("edit")) {
  const edits = new Edits(() => ({ ids: [id] }), () => 1, () => renew());
  const doing = { tag: () => edits.open("tag"), untag: () => edits.open("untag"), label: () => edits.open("set"), undo: () => edits.undo() };
  for (const button of document.querySelectorAll("main [data-do]")) button.addEventListener("click", doing[button.dataset.do]);
  bind("t", doing.tag);
  bind("l", doing.label);
}

async function renew() {
  const { parse } = await import("./live.js");
  const answer = await fetch(location.href, { headers: { Accept: "text/html" } });
  const fresh = parse(await answer.text()).querySelector(".sides table");
  if (fresh) document.querySelector(".sides table").replaceWith(document.importNode(fresh, true));
}
