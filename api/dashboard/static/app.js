// The dashboard: which page is shown, and how often the daemon is asked for what.

import { History, data, leave } from "./daemon.js";
import { h, visible } from "./dom.js";
import { PoolPage } from "./pool.js";
import { TrashPage } from "./trash.js";
import { VolumePage } from "./volume.js";
import { VolumesPage } from "./volumes.js";

const EACH_MS = { activity: 1000, overview: 4000, health: 10000, pool: 20000 };

class Dashboard {
  overview = null;
  health = null;
  pool = null;
  history = new History();

  constructor() {
    document.querySelector("header").hidden = false;
    this.main = document.getElementById("main");
    this.said = document.getElementById("said");
    this.#say("");
    document.getElementById("leave").addEventListener("click", () => this.#leave());
    window.addEventListener("hashchange", () => this.#route(true));
    this.#route(false);
    for (const [what, pause] of Object.entries(EACH_MS)) this.#watch(what, pause);
  }

  // Do something that a dialog asks for; `said` is told when it is done, with a button if that can be undone.
  // Resolves with whether it was.
  async act(act, said) {
    try {
      const done = await act();
      if (!done) return false;
      this.#say(said, done.undo);
      this.page.tree?.forget();
      await this.#take("overview", "?fresh=true");
      return true;
    } catch (error) {
      this.#say(error.message);
      return false;
    }
  }

  #say(text, undo) {
    const button = undo && h("button", {
      type: "button", onclick: () => this.act(undo.act, undo.said),
    }, "Undo");
    this.said.replaceChildren(visible(text), ...button ? [" ", button] : []);
  }

  #route(moved) {
    const volume = /^#\/volume\/(\d+)$/.exec(location.hash);
    if (volume) this.page = new VolumePage(this, Number(volume[1]));
    else if (location.hash === "#/pool") this.page = new PoolPage(this);
    else if (location.hash === "#/trash") this.page = new TrashPage(this);
    else this.page = new VolumesPage(this);
    this.main.replaceChildren(this.page.element);
    this.#draw();
    if (moved) this.main.focus();
  }

  #draw() {
    this.page.draw(this);
    document.title = `${visible(this.page.title)} - bockd`;
    for (const link of document.querySelectorAll("nav a")) {
      const here = link.hash === (location.hash || "#/");
      if (here) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
  }

  // Ask again and again, one at a time, while somebody sees the page.
  async #watch(what, pause) {
    let failed = false;
    for (;;) {
      if (!document.hidden) {
        try {
          await this.#take(what);
          if (failed) this.#say("");
          failed = false;
        } catch (error) {
          failed = true;
          this.#say(error.message);
        }
      }
      await new Promise((resolve) => { setTimeout(resolve, pause); });
    }
  }

  async #take(what, query = "") {
    const found = await data(what + query);
    if (what === "activity") this.history.add(found);
    else this[what] = found;
    this.#draw();
  }

  async #leave() {
    await leave();
    location.replace("/enter");
  }
}

new Dashboard();
