// What the server is doing: throughput and batch sizes of the moment, models to choose from, models in memory.

import { Chart } from "./chart.js";
import { byId, element } from "./dom.js";
import { batches, parse } from "./metrics.js";
import { metrics, models } from "./server.js";

const SECOND = 1000;
const MODELS_EVERY = 3; // seconds
const WINDOW = 2 * SECOND; // over which the throughput is counted
const KINDS = { visual: "search, photos", textual: "search, words", detection: "faces, found", recognition: "faces, told apart" };

export class Panel {
  // `chosen` is called with {clip, face} when somebody chooses other models.
  constructor(library, chosen) {
    this.library = library;
    this.chart = new Chart(byId("chart"));
    this.last = null;
    this.known = null;
    this.seconds = 0;
    for (const id of ["clip", "face"]) {
      byId(id).addEventListener("change", () => chosen({ clip: byId("clip").value, face: byId("face").value }));
    }
  }

  async start() {
    await this.#models();
    this.#prefer();
    setTimeout(() => this.#tick(), SECOND);
  }

  // Begins with the models that this server was started for, where it has more than the demo in memory.
  #prefer() {
    const other = (kind) => this.known?.loaded.find((model) => model.kind === kind && model.name !== "demo")?.name;
    this.library.models = { clip: other("visual") ?? "demo", face: other("recognition") ?? "demo" };
    byId("clip").value = this.library.models.clip;
    byId("face").value = this.library.models.face;
  }

  // Whether the chosen face model tells people apart.
  get facesUntrained() {
    const face = this.known?.known["facial-recognition"].find(({ name }) => name === this.library.models.face);
    return face?.untrained ?? false;
  }

  async #tick() {
    if (!document.hidden) await this.#look();
    setTimeout(() => this.#tick(), SECOND); // and not before: a busy server is not asked twice at a time
  }

  async #look() {
    const now = performance.now();
    const recent = (this.library.finished = this.library.finished.filter((at) => now - at < WINDOW));
    const speed = recent.length / (WINDOW / SECOND);
    byId("speed").textContent = speed < 10 ? speed.toFixed(1).replace(".0", "") : speed.toFixed(0);
    byId("waiting").textContent = this.library.counts.waiting;
    this.chart.add(speed, await this.#batch());
    if (++this.seconds % MODELS_EVERY === 0) await this.#models();
  }

  // Returns the mean of inputs per batch since the last look, null where there were none.
  async #batch() {
    let total;
    try {
      total = batches(parse(await metrics()));
    } catch {
      return null; // the server may be starting anew: the next second tells
    }
    const { last } = this;
    this.last = total;
    if (!last || total.batches <= last.batches) return null;
    const mean = (total.inputs - last.inputs) / (total.batches - last.batches);
    byId("batch").textContent = mean.toFixed(1);
    return mean;
  }

  async #models() {
    try {
      this.known = await models();
    } catch (error) {
      byId("loaded").replaceChildren(element("li", {}, `The server cannot be asked: ${error.message}`));
      return;
    }
    const loaded = new Set(this.known.loaded.map(({ name }) => name));
    options(byId("clip"), this.known.known.clip, loaded, this.library.models.clip);
    options(byId("face"), this.known.known["facial-recognition"], loaded, this.library.models.face);
    byId("models-note").hidden = !this.known.untrained;
    byId("models-note").textContent = "All models but demo have random weights on this server: it is set up for load tests.";
    this.#showLoaded();
  }

  #showLoaded() {
    const list = byId("loaded");
    if (list.contains(document.activeElement)) return; // somebody reads a reason
    const open = new Set([...list.querySelectorAll("details[open]")].map((node) => node.dataset.model));
    const rows = this.known.loaded.map((model) => {
      const key = `${model.name} ${model.kind} ${model.device}`;
      const megabytes = (model.bytes / 1e6).toFixed(model.bytes < 1e7 ? 1 : 0);
      return element(
        "li",
        {},
        element("div", { class: "model" }, element("strong", {}, model.name), element("span", { class: "soft" }, `${megabytes} MB`)),
        element("div", { class: "soft" }, KINDS[model.kind] ?? model.kind),
        element(
          "details",
          { class: "soft", "data-model": key, open: open.has(key) },
          element("summary", {}, `${model.device}, ${model.backend} ${model.precision}`),
          model.reason,
        ),
      );
    });
    list.replaceChildren(...(rows.length ? rows : [element("li", { class: "soft" }, "None yet: a model is loaded when it is first used.")]));
  }
}

// Fills a choice with the models that are loaded, and then all others; left alone while nothing changes.
function options(select, models, loaded, chosen) {
  const there = models.filter(({ name }) => loaded.has(name));
  const others = models.filter(({ name }) => !loaded.has(name));
  const key = there.map(({ name }) => name).join();
  if (select.dataset.loaded === key) return;
  select.dataset.loaded = key;
  const group = (label, list) => element("optgroup", { label }, ...list.map(({ name }) => element("option", {}, name)));
  select.replaceChildren(
    ...(there.length ? [group("In memory", there)] : []),
    group(there.length ? "Loaded when first used" : "All", others),
  );
  select.value = chosen;
}
