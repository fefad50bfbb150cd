// The page of one volume: what it is, what it does now, its family of snapshots and clones.

import * as actions from "./actions.js";
import { facts, h, show, size, time } from "./dom.js";
import { HeatMap } from "./heat.js";
import { held, limitVolume, profileVolume } from "./limits.js";
import { SnapshotTree } from "./tree.js";
import { iops, latencies, status, throughput } from "./volumes.js";

// Each with the statuses in which it is allowed (null: all), and what is said afterwards.
const ACTIONS = [
  ["Snapshot", actions.takeSnapshot, ["available", "in-use", "maintenance"], "The snapshot is there."],
  ["Clone", actions.clone, ["available", "in-use", "maintenance"], "The clone is there."],
  ["Extend", actions.extend, ["available", "in-use"], "The volume has its new size."],
  ["Attach", actions.attach, ["available"], "The volume is attached."],
  ["Detach", actions.detach, ["in-use"], "The volume is detached."],
  ["Limits", limitVolume, null, "The volume has these limits."],
  ["Profile", profileVolume, null, "The volume is like that device."],
  ["Reopen", actions.reopen, ["error"], "The volume is open again."],
  ["Delete", actions.deleteVolume, ["available", "error", "error_deleting", "maintenance"],
    "The volume is deleted."],
];

export class VolumePage {
  constructor(dashboard, id) {
    this.dashboard = dashboard;
    this.id = id;
    this.title = `Volume ${id}`;
    this.heading = h("h1", {}, this.title);
    this.facts = h("dl", {});
    this.trouble = h("div", { role: "alert" });
    this.buttons = ACTIONS.map(([name, act, , said]) => h("button", {
      type: "button", onclick: () => this.#act(act, said),
    }, name));
    this.charts = [throughput("Throughput"), iops("Requests per second"), latencies("Latency")];
    this.heat = new HeatMap(id);
    this.tree = new SnapshotTree(dashboard, id);
    this.element = h("div", {},
      this.heading,
      this.trouble,
      h("div", { role: "toolbar", "aria-label": "What to do", class: "buttons" }, this.buttons),
      this.facts,
      h("div", { class: "charts" }, this.charts.map((chart) => chart.element)),
      this.heat.element,
      this.tree.element);
  }

  get #volume() {
    return this.dashboard.overview?.volumes.find((one) => one.id === this.id);
  }

  async #act(act, said) {
    const keepSeconds = this.dashboard.overview?.keep_seconds;
    const done = await this.dashboard.act(() => act(this.#volume, keepSeconds), said);
    if (done && !this.#volume) location.hash = "#/";
  }

  draw({ overview, history }) {
    if (!overview) return;
    const volume = this.#volume;
    this.title = volume ? volume.name : "No such volume";
    show(this.heading, this.title);
    show(this.trouble, troubles(volume).map((one) => h("p", { class: "problem" }, one)));
    this.buttons.forEach((button, at) => {
      const statuses = ACTIONS[at][2];
      button.hidden = !volume || volume.tenant === null || (statuses && !statuses.includes(volume.status));
    });
    show(this.facts, volume ? facts(told(volume, overview)) : []);
    this.tree.draw(overview);
    this.drawLive({ history });
  }

  drawLive({ history }) {
    for (const chart of this.charts) chart.draw(history.of("volume", this.id));
  }
}

function troubles(volume) {
  if (!volume) return ["There is no such volume, or it was deleted."];
  const unowned = volume.tenant === null
    ? `It belongs to no tenant: 'bock adopt volume ${volume.pool_name}' gives it to one.` : null;
  const kept = volume.cache?.trouble
    ? `Its writes do not get into the cluster, or it has no log: ${volume.cache.trouble}` : null;
  return [volume.error, volume.last_error, kept, unowned].filter((one) => one);
}

// What is in a gateway's write-back log alone; null: nothing is.
function unwritten(cache) {
  if (!cache?.dirty_at) return null;
  const much = cache.dirty_bytes === null ? "writes" : size(cache.dirty_bytes);
  const since = cache.dirty_since === null ? "" : ` since ${time(cache.dirty_since)}`;
  return `${much} at gateway ${cache.dirty_at}${since}`;
}

function told(volume, overview) {
  const tenant = overview.tenants.find((one) => one.id === volume.tenant);
  return [
    ["Status", status(volume)],
    ["Size", size(volume.size_bytes)],
    ["Tenant", tenant?.name ?? volume.tenant ?? "nobody"],
    ["Clients", `${volume.connections}`],
    ["Attached to", volume.server ? `${volume.server}, ${volume.device}` : "nothing"],
    ["Limits", held(volume) ?? "none"],
    ["Made to look like", volume.profile ?? "itself"],
    ["Held", volume.hold],
    ["Gateway", volume.gateway],
    ["Cache", volume.cache?.mode],
    ["Not in the cluster yet", unwritten(volume.cache)],
    ["Given up last", volume.cache?.discarded_at ? time(volume.cache.discarded_at) : null],
    ["Created", time(volume.created_at)],
    ["In the pool", `${volume.pool_name}, id ${volume.id}`],
    ["NBD", h("code", {}, volume.uri)],
  ];
}
