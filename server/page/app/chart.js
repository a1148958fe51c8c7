// The small chart: photos per second as a line, inputs per batch as points, one of each per second of the last minute.

import { drawn } from "./dom.js";

const SECONDS = 60;
const WIDTH = 300;
const HEIGHT = 96;
const ROOM = 8; // above the highest value

export class Chart {
  constructor(svg) {
    this.svg = svg;
    this.speeds = [];
    this.sizes = [];
    this.#draw();
  }

  // `size` is null for a second without batches.
  add(speed, size) {
    this.speeds = [...this.speeds, speed].slice(-SECONDS);
    this.sizes = [...this.sizes, size].slice(-SECONDS);
    this.#draw();
  }

  #draw() {
    const line = this.#points(this.speeds);
    const shapes = [];
    if (line.length > 1) {
      const path = line.map(([x, y]) => `${x},${y}`).join(" ");
      shapes.push(
        drawn("polygon", { class: "area", points: `${line[0][0]},${HEIGHT} ${path} ${WIDTH},${HEIGHT}` }),
        drawn("polyline", { class: "speed", points: path }),
      );
    }
    for (const [x, y] of this.#points(this.sizes)) {
      shapes.push(drawn("path", { class: "batch", d: `M${x} ${y}h0.01` })); // a round end of a line that is none
    }
    this.svg.replaceChildren(...shapes);
    const peak = Math.max(0, ...this.speeds);
    const largest = Math.max(0, ...this.sizes);
    this.svg.setAttribute(
      "aria-label",
      `In the last minute: at most ${peak.toFixed(0)} photos per second` +
        (largest ? `, batches of up to ${largest.toFixed(1)} inputs on average.` : "."),
    );
  }

  // Returns [x, y] of the values that are there; the newest is at the right edge.
  #points(values) {
    const highest = Math.max(1, ...values);
    const start = SECONDS - values.length;
    return values
      .map((value, index) => [
        ((start + index + 1) / SECONDS) * WIDTH,
        value === null ? null : HEIGHT - 2 - (value / highest) * (HEIGHT - ROOM - 2),
      ])
      .filter(([, y]) => y !== null)
      .map(([x, y]) => [x.toFixed(1), y.toFixed(1)]);
  }
}
