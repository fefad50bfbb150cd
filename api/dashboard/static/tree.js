// A volume's family: the volumes and snapshots that it came from and that came from it, with what each
// holds alone and shares.

import * as actions from "./actions.js";
import { data } from "./daemon.js";
import { h, show, size, time } from "./dom.js";

// Measuring is a walk over a volume's maps; one after the other.
const MOST_MEASURED = 100;

export class SnapshotTree {
  constructor(dashboard, id) {
    this.dashboard = dashboard;
    this.id = id;
    this.spaces = new Map();
    this.measuring = false;
    this.list = h("div", {});
    this.element = h("section", { "aria-label": "Snapshots and clones" },
      h("div", { class: "heading" },
        h("h2", {}, "Snapshots and clones"),
        h("button", { type: "button", onclick: () => this.#again() }, "Measure again")),
      this.list);
  }

  draw(overview) {
    this.overview = overview;
    this.family = familyOf(overview, this.id);
    show(this.list, this.family ? h("ul", { class: "tree" }, this.#item(this.family)) : "");
    this.#measure();
  }

  #again() {
    this.spaces.clear();
    this.draw(this.overview);
  }

  #item({ kind, node, key, name, below }) {
    const here = kind === "volume" && node?.id === this.id;
    const label = kind === "volume" && node && !here
      ? h("a", { href: `#/volume/${node.id}` }, name)
      : h("strong", { "aria-current": here ? "true" : null }, name);
    return h("li", {},
      h("div", { class: "node" }, label,
        h("span", {}, node ? `${kind}, ${time(node.created_at)}` : "a deleted volume"),
        node ? h("span", { class: "space" }, this.#spaceText(key)) : null,
        kind === "snapshot" ? this.#buttons(node) : null),
      below.length ? h("ul", {}, below.map((one) => this.#item(one))) : null);
  }

  #spaceText(key) {
    const space = this.spaces.get(key);
    if (space === undefined) return "measuring";
    if (space instanceof Error) return space.message;
    return `${size(space.exclusive_bytes)} alone, ${size(space.shared_bytes)} shared`;
  }

  #buttons(snapshot) {
    if (snapshot.tenant === null) return null;
    const { volumes } = this.overview;
    const origin = volumes.find((one) => one.id === snapshot.volume && one.status === "available");
    const button = (text, label, act, said) => h("button", {
      type: "button", "aria-label": label, onclick: () => this.dashboard.act(act, said),
    }, text);
    return h("span", { class: "buttons" },
      button("New volume", `New volume from ${snapshot.name}`,
        () => actions.createFrom(snapshot), "The volume is there."),
      origin ? button("Revert", `Revert ${origin.name} to ${snapshot.name}`,
        () => actions.revert(origin, snapshot), "The volume is reverted.") : null,
      button("Delete", `Delete snapshot ${snapshot.name}`,
        () => actions.deleteSnapshot(snapshot, this.overview.keep_seconds), "The snapshot is deleted."));
  }

  async #measure() {
    if (this.measuring) return;
    this.measuring = true;
    try {
      for (;;) {
        const next = wholeOf(this.family).find((one) => one.node && !this.spaces.has(one.key));
        if (!next || this.spaces.size >= MOST_MEASURED || !this.element.isConnected) return;
        const found = await data(`space?kind=${next.kind}&id=${next.node.id}`).catch((error) => error);
        this.spaces.set(next.key, found);
        show(this.list, h("ul", { class: "tree" }, this.#item(this.family)));
      }
    } finally {
      this.measuring = false;
    }
  }

  // Something has changed: what it shares has, too.
  forget() {
    this.spaces.clear();
  }
}

function wholeOf(item) {
  return item ? [item, ...item.below.flatMap(wholeOf)] : [];
}

// The oldest ancestor that is known, with all that came from it. null: there is no such volume.
function familyOf({ volumes, snapshots }, id) {
  const volumeOf = new Map(volumes.map((one) => [one.id, one]));
  const snapshotOf = new Map(snapshots.map((one) => [one.id, one]));
  if (!volumeOf.has(id)) return null;
  let oldest = id;
  for (const seen = new Set(); !seen.has(oldest); ) {
    seen.add(oldest);
    const origin = snapshotOf.get(volumeOf.get(oldest)?.from_snapshot);
    if (origin) oldest = origin.volume;
  }
  const volumeItem = (one) => ({
    kind: "volume", node: volumeOf.get(one), key: `volume-${one}`,
    name: volumeOf.get(one)?.name ?? `Volume ${one}`,
    below: snapshots.filter((found) => found.volume === one).map(snapshotItem),
  });
  const snapshotItem = (one) => ({
    kind: "snapshot", node: one, key: `snapshot-${one.id}`, name: one.name,
    below: volumes.filter((found) => found.from_snapshot === one.id).map((found) => volumeItem(found.id)),
  });
  return volumeItem(oldest);
}
