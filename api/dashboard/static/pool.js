// The page of the pool: its room, who has how much of it, and its health.

import { change } from "./daemon.js";
import { Table, facts, h, show, size, time } from "./dom.js";
import { held, limitTenant } from "./limits.js";

// Snapshots that bockd backup keeps while it copies.
const BACKUP = "backup-in-progress-";

export class PoolPage {
  title = "Pool";

  constructor(dashboard) {
    this.dashboard = dashboard;
    this.bar = h("meter", { min: 0, "aria-label": "Used of the file system" });
    this.room = h("dl", {});
    this.health = h("dl", {});
    this.report = h("div", { role: "status" });
    this.tenants = new Table("Tenants", ["Tenant", "Volumes", "GiB", "Snapshots", "Limits of I/O", "What to do"]);
    this.damaged = new Table("Damaged blocks", ["Layer", "Offset", "Found", "Volumes", "Snapshots"]);
    this.backups = new Table("Backups", ["Directory", "As of", "State", "Written", "Left out"]);
    this.element = h("div", {},
      h("h1", {}, "Pool"),
      h("section", { "aria-label": "Space" }, h("h2", {}, "Space"), this.bar, this.room),
      h("section", { "aria-label": "Health" },
        h("div", { class: "heading" },
          h("h2", {}, "Health"),
          h("button", { type: "button", onclick: () => this.#check() }, "Check now")),
        this.report, this.health, this.damaged.element),
      this.backups.element,
      this.tenants.element);
  }

  async #check() {
    show(this.report, "Checking. This reads the whole index.");
    try {
      const found = await change("check", {});
      show(this.report, found.clean ? `The pool is whole: ${found.volumes} volumes, ${found.snapshots} `
        + `snapshots, ${found.layers} layers.` : h("ul", {}, found.problems.map((one) =>
        h("li", { class: "problem" }, one))));
    } catch (error) {
      show(this.report, error.message);
    }
  }

  draw({ pool, health, overview }) {
    if (pool) {
      this.bar.max = pool.size_bytes;
      this.bar.value = pool.size_bytes - pool.free_bytes;
      show(this.room, facts(room(pool)));
    }
    if (health && overview) {
      show(this.health, facts(told(health, overview)));
      const damaged = health.scrub?.damaged ?? [];
      this.damaged.element.hidden = !damaged.length;
      this.damaged.draw(damaged.map((one) => ({
        key: `${one.layer}-${one.offset_bytes}`,
        cells: [`${one.layer}`, `${one.offset_bytes}`, time(one.found_at), one.volumes.join(", "),
          one.snapshots.join(", ")],
      })));
      this.backups.element.hidden = !health.backups?.length;
      this.backups.draw((health.backups ?? []).map((one) => ({
        key: one.directory,
        cells: [one.directory, time(one.began_at), state(one), size(one.written_bytes), one.left_out.join(", ")],
      })));
    }
    if (overview) {
      this.tenants.draw(overview.tenants.map((one) => ({
        key: one.id,
        cells: [one.name, of(one.volumes, one.max_volumes), of(one.gigabytes, one.max_gigabytes),
          of(one.snapshots, one.max_snapshots), held(one) ?? "none", this.#limitButton(one)],
      })));
    }
  }

  // The button stays when the tenant is drawn anew: what it has then is looked up.
  #limitButton({ id, name }) {
    const tenant = () => this.dashboard.overview.tenants.find((one) => one.id === id);
    return h("button", {
      type: "button", "aria-label": `Limits of tenant ${name}`,
      onclick: () => this.dashboard.act(() => limitTenant(tenant()), `Tenant ${name} has these limits.`),
    }, "Limits");
  }

  drawLive() {}
}

const of = (used, most) => (most < 0 ? `${used}` : `${used} of ${most}`);

function room(pool) {
  return [
    ["Directory", pool.directory],
    ["Size", size(pool.size_bytes)],
    ["Used by the pool", size(pool.used_bytes)],
    ["Used by others", size(pool.others_bytes)],
    ["Free", size(pool.free_bytes)],
    ["Promised to volumes", size(pool.promised_bytes)],
    ["Data of volumes", size(pool.volumes_bytes)],
    ["Freed if all snapshots were deleted", size(pool.snapshots_bytes)],
    ["Freed if all images were deleted", size(pool.images_bytes)],
    ["Freed if the trash were emptied", size(pool.trash_bytes)],
    ["Files free", pool.files_free === null ? null : `${pool.files_free}`],
  ];
}

// Without an end it goes on, or was interrupted: then its directory has no backup.
const state = ({ finished_at }) => (finished_at === null ? "not finished" : `whole since ${time(finished_at)}`);

function lastBackup(backups) {
  const whole = backups.find((one) => one.finished_at !== null);
  return whole ? `${time(whole.began_at)}, in ${whole.directory}` : "none known";
}

function told({ daemon, scrub, gateways, backups }, { snapshots }) {
  const copying = snapshots.some((one) => one.pool_name.startsWith(BACKUP));
  return [
    ["Version", daemon.version],
    ["Kind of pool", daemon.driver],
    ["Fast lane", daemon.fast_lane],
    ["New data", daemon.new_data],
    ["Put off", daemon.waiting.length ? daemon.waiting.join("; ") : "nothing"],
    ["Backup", backups ? (copying ? "under way" : "none under way") : null],
    ["Last backup", backups ? lastBackup(backups) : null],
    ["Last verified", scrub ? (scrub.finished_at ? time(scrub.finished_at) : "not yet") : null],
    ["Verifying", scrub?.under_way ? `${scrub.leaves_done} of ${scrub.leaves_total} MiB` : null],
    ["Damaged blocks", scrub ? `${scrub.damaged.length}` : null],
    ["Gateways", gateways.length ? gateways.map((one) => one.name).join(", ") : null],
    ["NBD socket", daemon.nbd_socket],
    ["NBD over TCP", daemon.nbd_listen ?? "off"],
    ["Block storage API", daemon.api_listen ?? "off"],
    ["Files", daemon.mount ?? "off"],
  ];
}
