// A line chart of the last two minutes. Its name says the latest figures, for whoever does not see it.

import { h, s } from "./dom.js";
import { History } from "./daemon.js";

const WIDTH = 360;
const HEIGHT = 120;

// Lines: [{name, of(sample), className}]; `format` makes a figure of a value.
export class Chart {
  constructor(title, lines, format) {
    this.title = title;
    this.lines = lines;
    this.format = format;
    this.top = h("span", { class: "top" });
    this.paths = lines.map((line) => s("polyline", { class: line.className }));
    this.picture = s("svg",
      { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" },
      s("line", { x1: 0, x2: WIDTH, y1: HEIGHT / 2, y2: HEIGHT / 2, class: "grid" }),
      this.paths);
    this.figures = lines.map(() => h("b"));
    this.element = h("figure", { class: "chart" },
      h("figcaption", {}, h("strong", {}, title), this.top),
      this.picture,
      h("p", { class: "legend", "aria-hidden": "true" }, lines.map((line, at) =>
        h("span", { class: line.className }, `${line.name} `, this.figures[at]))));
    this.draw([]);
  }

  draw(samples) {
    const values = this.lines.map((line) => samples.map(line.of));
    const highest = Math.max(0, ...values.flat());
    const latest = values.map((one) => this.format(one.at(-1) ?? 0));
    this.top.textContent = `up to ${this.format(highest)}`;
    this.paths.forEach((path, at) => path.setAttribute("points", points(values[at], highest)));
    this.figures.forEach((figure, at) => { figure.textContent = latest[at]; });
    const said = this.lines.map((line, at) => `${line.name} ${latest[at]}`).join(", ");
    this.picture.setAttribute("aria-label", `${this.title}: ${said}`);
  }
}

function points(values, highest) {
  const step = WIDTH / (History.KEPT - 1);
  const from = WIDTH - step * (values.length - 1);
  return values
    .map((value, at) => {
      const y = HEIGHT - 2 - (highest ? (value / highest) * (HEIGHT - 6) : 0);
      return `${(from + at * step).toFixed(1)},${y.toFixed(1)}`;
    })
    .join(" ");
}
