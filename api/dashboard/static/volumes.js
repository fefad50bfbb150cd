// The first page: all volumes, and what they do together.

import { createVolume } from "./actions.js";
import { Chart } from "./chart.js";
import { Table, count, h, latency, rate, show, size } from "./dom.js";
import { limitTexts } from "./limits.js";

const TITLES = [
  "Volume", "Tenant", "Size", "Status", "Clients", "Reading", "Writing", "IOPS", "p99", "Held to", "Attached to",
];

export class VolumesPage {
  title = "Volumes";

  constructor(dashboard) {
    this.dashboard = dashboard;
    this.throughput = throughput("Throughput");
    this.iops = iops("Requests per second");
    this.table = new Table("Volumes", TITLES);
    this.none = h("p", {});
    this.trouble = h("div", { role: "alert" });
    this.element = h("div", {},
      h("div", { class: "heading" },
        h("h1", {}, "Volumes"),
        h("button", { type: "button", class: "main", onclick: () => this.#create() }, "New volume")),
      this.trouble,
      h("div", { class: "charts" }, this.throughput.element, this.iops.element),
      this.table.element,
      this.none);
  }

  #create() {
    this.dashboard.act(() => createVolume(this.dashboard.overview.tenants), "The volume is there.");
  }

  draw({ overview, history }) {
    if (!overview) return;
    const tenants = new Map(overview.tenants.map((one) => [one.id, one.name]));
    this.table.draw(overview.volumes.map((one) => ({
      key: one.id, cells: cells(one, tenants, history.now("volume", one.id)),
    })));
    show(this.none, overview.volumes.length ? "" : "There is no volume yet.");
    const broken = overview.volumes.filter((one) => one.error);
    show(this.trouble,
      overview.damaged.map((one) => h("p", { class: "problem" }, one)),
      broken.map((one) => h("p", { class: "problem" }, `${one.name}: ${one.error}`)));
    this.drawLive({ history });
  }

  drawLive({ history }) {
    this.throughput.draw(history.total);
    this.iops.draw(history.total);
  }
}

function cells(volume, tenants, now) {
  return [
    h("a", { href: `#/volume/${volume.id}` }, volume.name),
    volume.tenant === null ? "nobody" : tenants.get(volume.tenant) ?? volume.tenant,
    size(volume.size_bytes),
    status(volume),
    `${now?.connections ?? volume.connections}`,
    now ? rate(now.readBytes) : "-",
    now ? rate(now.writtenBytes) : "-",
    now ? count(now.reads + now.writes) : "-",
    now ? latency(now.p99) : "-",
    heldTo(volume),
    volume.server ? `${volume.server} ${volume.device}` : "-",
  ];
}

// What slows a volume on purpose.
function heldTo({ limits, profile }) {
  return [...limitTexts(limits), ...profile ? [`as ${profile}`] : []].join("; ") || "-";
}

export const status = (volume) => h("span", { class: `status ${volume.status}` }, volume.status);

export const throughput = (title) => new Chart(title, [
  { name: "reading", of: (one) => one.readBytes, className: "first" },
  { name: "writing", of: (one) => one.writtenBytes, className: "second" },
], rate);

export const iops = (title) => new Chart(title, [
  { name: "reads", of: (one) => one.reads, className: "first" },
  { name: "writes", of: (one) => one.writes, className: "second" },
], count);

export const latencies = (title) => new Chart(title, [
  { name: "p50", of: (one) => one.p50, className: "first" },
  { name: "p99", of: (one) => one.p99, className: "second" },
  { name: "p99.9", of: (one) => one.p999, className: "third" },
], latency);
