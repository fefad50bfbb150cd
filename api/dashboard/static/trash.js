// The page of the trash: what was deleted and can be restored.

import * as actions from "./actions.js";
import { data } from "./daemon.js";
import { Table, h, show, size, time } from "./dom.js";

const TITLES = ["Deleted", "Kind", "Tenant", "Size", "Frees", "Deleted at", "Kept until", "What to do"];

export class TrashPage {
  title = "Trash";

  constructor(dashboard) {
    this.dashboard = dashboard;
    this.spaces = new Map();
    this.measuring = false;
    this.table = new Table("Trash", TITLES);
    this.none = h("p", {});
    this.element = h("div", {}, h("h1", {}, "Trash"), this.table.element, this.none);
  }

  draw({ overview }) {
    if (!overview) return;
    const { trash } = overview;
    const listed = trash.map((one) => one.id).join();
    if (listed !== this.listed) this.spaces.clear(); // what others share with it has changed
    this.listed = listed;
    const tenants = new Map(overview.tenants.map((one) => [one.id, one.name]));
    this.table.draw(trash.map((one) => ({ key: one.id, cells: this.#cells(one, tenants) })));
    show(this.none, trash.length ? "" : overview.keep_seconds
      ? "There is nothing in the trash."
      : "There is nothing in the trash, and what is deleted does not go there (trash.keep_hours).");
    this.#measure(trash);
  }

  drawLive() {}

  #cells(one, tenants) {
    const space = this.spaces.get(one.id);
    const button = (text, label, act, said) => h("button", {
      type: "button", "aria-label": label, onclick: () => this.dashboard.act(act, said),
    }, text);
    return [
      one.name,
      one.kind,
      tenants.get(one.tenant) ?? one.tenant,
      size(one.size_bytes),
      space === undefined ? "measuring" : space.message ?? size(space.exclusive_bytes),
      time(one.deleted_at),
      time(one.expires_at),
      h("span", { class: "buttons" },
        button("Restore", `Restore ${one.name}`, () => actions.restore(one), `${one.name} is back.`),
        button("Delete", `Delete ${one.name} for good`, () => actions.deleteForGood(one),
          `${one.name} is gone for good.`)),
    ];
  }

  // A walk over its maps each: one after the other.
  async #measure(trash) {
    if (this.measuring) return;
    this.measuring = true;
    try {
      for (const one of trash) {
        if (!this.element.isConnected || this.spaces.has(one.id)) continue;
        const query = `tenant=${encodeURIComponent(one.tenant)}&node=${one.id}`;
        this.spaces.set(one.id, await data(`trashed-space?${query}`).catch((error) => error));
        this.draw(this.dashboard);
      }
    } finally {
      this.measuring = false;
    }
  }
}
