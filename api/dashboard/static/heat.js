// The heat map of a volume: which regions its clients read and write, and how long ago.

import { data } from "./daemon.js";
import { h, show, size } from "./dom.js";

const COLUMNS = 64;
const EACH_MS = 1000;
const OLD_SECONDS = 300;
const NAMED = 5;

// What can be shown: how hot a region is, from 0 up, and the colour.
const KINDS = {
  reads: { text: "Reads", of: (map, at) => map.reads[at], colour: "--first" },
  writes: { text: "Writes", of: (map, at) => map.writes[at], colour: "--second" },
  age: {
    text: "Last used",
    of: ({ ages }, at) => (ages[at] === null ? 0 : Math.max(0, 1 - ages[at] / OLD_SECONDS)),
    colour: "--third",
  },
};

export class HeatMap {
  constructor(id) {
    this.id = id;
    this.map = null;
    this.choice = h("select", { id: "heat-kind", onchange: () => this.#draw() },
      Object.entries(KINDS).map(([kind, { text }]) => h("option", { value: kind }, text)));
    this.picture = h("canvas", { role: "img", width: COLUMNS, height: 1, "aria-label": "Heat map" });
    this.said = h("p", {});
    this.element = h("section", { "aria-label": "Heat map" },
      h("div", { class: "heading" },
        h("h2", {}, "Heat map"),
        h("span", {}, h("label", { for: "heat-kind" }, "Show "), this.choice)),
      this.picture, this.said);
    this.#watch();
  }

  // The daemon looks at requests as long as this asks.
  async #watch() {
    for (;;) {
      await new Promise((resolve) => { setTimeout(resolve, EACH_MS); });
      if (!this.element.isConnected) return;
      if (document.hidden) continue;
      try {
        this.map = await data(`heat?volume=${this.id}`);
        this.#draw();
      } catch (error) {
        show(this.said, error.message);
      }
    }
  }

  #draw() {
    const { map } = this;
    if (!map) return;
    const kind = KINDS[this.choice.value];
    const heats = map.reads.map((_, at) => kind.of(map, at));
    const hottest = Math.max(...heats);
    this.#paint(heats, hottest, getComputedStyle(document.body).getPropertyValue(kind.colour));
    const text = described(map, kind.text, heats, hottest);
    this.picture.setAttribute("aria-label", text);
    show(this.said, text);
  }

  #paint(heats, hottest, colour) {
    const { picture } = this;
    const columns = Math.min(COLUMNS, heats.length);
    picture.width = columns;
    picture.height = Math.ceil(heats.length / columns);
    const context = picture.getContext("2d");
    context.fillStyle = colour;
    heats.forEach((heat, at) => {
      if (!heat || !hottest) return;
      context.globalAlpha = 0.15 + 0.85 * Math.sqrt(heat / hottest);
      context.fillRect(at % columns, Math.floor(at / columns), 1, 1);
    });
  }
}

// In words: the hottest regions, for whoever does not see the picture, and for whoever looks for a number.
function described(map, text, heats, hottest) {
  const used = heats.filter((heat) => heat > 0).length;
  const each = `${heats.length} regions of ${size(map.region_bytes)}`;
  if (!hottest) return `${text}: none of ${each} since you watch.`;
  const first = heats
    .map((heat, at) => [heat, at])
    .filter(([heat]) => heat > 0)
    .sort(([one], [other]) => other - one)
    .slice(0, NAMED)
    .map(([, at]) => size(at * map.region_bytes))
    .join(", ");
  return `${text}: ${used} of ${each}, most from ${first} on.`;
}
