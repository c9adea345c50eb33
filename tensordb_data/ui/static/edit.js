// Changes of samples, with what is needed to undo the last one.
import { post, say } from "./main.js";

const dialog = document.getElementById("edit");
const sureAbove = 1000;
const titles = { tag: "Tag", untag: "Remove a tag", set: "Set a field" };

export class Edits {
  constructor(target, size, after) {
    Object.assign(this, { target, size, after, last: [] });
    dialog?.querySelector("form").addEventListener("submit", (event) => this.send(event));
  }

  open(action) {
    this.action = action;
    const n = this.size();
    dialog.querySelector("h2").textContent = titles[action];
    dialog.querySelector("#edit-what").textContent = `${n.toLocaleString("en").replaceAll(",", "\u202f")} ${n === 1 ? "sample" : "samples"}`;
    dialog.querySelector("#edit-field").hidden = action !== "set";
    dialog.querySelector("#edit-name").textContent = action === "set" ? "Value" : "Tag";
    dialog.querySelector("#edit-wrong").textContent = "";
    dialog.querySelector("#edit-sure").hidden = n <= sureAbove;
    dialog.querySelector("#edit-sure b").textContent = n;
    for (const name of ["value", "sure"]) dialog.querySelector(`[name="${name}"]`).value = "";
    dialog.showModal();
    dialog.querySelector('[name="value"]').focus();
  }

  async send(event) {
    if (event.submitter?.value === "cancel") return;
    event.preventDefault();
    const value = dialog.querySelector('[name="value"]').value;
    const wrong = dialog.querySelector("#edit-wrong");
    if (this.size() > sureAbove && dialog.querySelector('[name="sure"]').value !== String(this.size())) {
      wrong.textContent = `type ${this.size()} to change so many`;
      return;
    }
    const what = this.action === "set" ? { field: dialog.querySelector('[name="field"]').value, text: value } : { tags: [value.trim()] };
    try {
      const found = await post("edit", { action: this.action, ...what, ...this.target() });
      dialog.close();
      this.keep(found.undo);
      say(found.said);
      await this.after();
    } catch (error) {
      wrong.textContent = error.message;
    }
  }

  keep(undo) {
    this.last = undo;
    const button = document.querySelector('[data-do="undo"]');
    if (button) button.disabled = !undo.length;
  }

  async undo() {
    try {
      let n = 0;
      for (const body of this.last) n += (await post("edit", body)).changed;
      this.keep([]);
      say(`undone: ${n} ${n === 1 ? "sample" : "samples"}`);
      await this.after();
    } catch (error) {
      say(error.message, true);
    }
  }
}
