// The grid of photos: one tile each, in the order it is told, with its faces, its score and what went wrong.
// A single stop for the tab key; the arrow keys move within.

import { element } from "./dom.js";

const PAGE = 240; // tiles shown before somebody asks for more

export class Gallery {
  // `open` is called with a photo and what is shown now.
  constructor(list, more, open) {
    this.list = list;
    this.more = more;
    this.open = open;
    this.tiles = new WeakMap();
    this.shown = [];
    this.there = new Set(); // the photos of these
    this.limit = PAGE;
    list.addEventListener("keydown", (event) => this.#move(event));
    more.addEventListener("click", () => {
      this.limit += PAGE;
      this.show(this.shown, false);
    });
  }

  // `entries` are [{item: photo, score}], score null where there is none.
  show(entries, fromTheStart = true) {
    if (fromTheStart) this.limit = PAGE;
    this.shown = entries;
    this.there = new Set(entries.map(({ item }) => item));
    const visible = entries.slice(0, this.limit);
    const tiles = visible.map(({ item, score }) => {
      const tile = this.#tile(item);
      tile.score = score;
      this.update(item);
      return tile.place;
    });
    this.list.replaceChildren(...tiles);
    this.more.hidden = entries.length <= this.limit;
    this.#stopAt(tiles[0]?.firstChild);
  }

  // Adds a photo behind those that are shown.
  append(photo) {
    this.shown.push({ item: photo, score: null });
    this.there.add(photo);
    if (this.shown.length > this.limit) {
      this.more.hidden = false;
      return;
    }
    const { place, button } = this.#tile(photo);
    this.update(photo);
    this.list.append(place);
    if (this.shown.length === 1) this.#stopAt(button);
  }

  shows(photo) {
    return this.there.has(photo);
  }

  // Draws a photo's tile anew.
  update(photo) {
    const tile = this.tiles.get(photo);
    if (!tile) return;
    tile.place.style.setProperty("--ratio", photo.ratio.toFixed(4));
    tile.button.className = `tile ${photo.state}`;
    tile.button.setAttribute("aria-label", told(photo, tile.score));
    tile.button.replaceChildren(
      photo.thumb ? element("img", { src: photo.thumb, alt: "" }) : element("span", { class: "name" }, photo.name),
      ...faceBoxes(photo),
    );
    if (tile.score !== null) tile.button.append(element("span", { class: "score" }, tile.score.toFixed(2)));
    if (photo.error) tile.button.append(element("span", { class: "error" }, photo.error));
  }

  #tile(photo) {
    let tile = this.tiles.get(photo);
    if (!tile) {
      const button = element("button", { type: "button", tabindex: "-1", onclick: () => this.open(photo, this.shown) });
      tile = { button, place: element("li", {}, button), score: null };
      this.tiles.set(photo, tile);
    }
    return tile;
  }

  #stopAt(button) {
    if (!button) return;
    for (const other of this.list.querySelectorAll('[tabindex="0"]')) other.tabIndex = -1;
    button.tabIndex = 0;
  }

  #move(event) {
    const buttons = [...this.list.querySelectorAll("button")];
    const at = buttons.indexOf(document.activeElement);
    if (at < 0) return;
    const to = {
      ArrowLeft: () => at - 1,
      ArrowRight: () => at + 1,
      ArrowUp: () => vertical(buttons, at, -1),
      ArrowDown: () => vertical(buttons, at, 1),
      Home: () => 0,
      End: () => buttons.length - 1,
    }[event.key];
    const next = to && buttons[to()];
    if (!next) return;
    event.preventDefault();
    this.#stopAt(next);
    next.focus();
  }
}

// Returns elements that lie over a photo's faces, in shares of the element that they are put into.
export function faceBoxes(photo) {
  return photo.faces.map(({ box, score }) => {
    const top = box.y1 / photo.height;
    const node = element("span", { class: top < 0.1 ? "face low" : "face" }, element("span", {}, score.toFixed(3)));
    node.style.left = `${(100 * box.x1) / photo.width}%`;
    node.style.top = `${100 * top}%`;
    node.style.width = `${(100 * (box.x2 - box.x1)) / photo.width}%`;
    node.style.height = `${(100 * (box.y2 - box.y1)) / photo.height}%`;
    return node;
  });
}

function told(photo, score) {
  const parts = [photo.name];
  if (photo.state === "waiting") parts.push("waiting");
  if (photo.error) parts.push(`failed: ${photo.error}`);
  if (photo.faces.length) parts.push(photo.faces.length === 1 ? "1 face" : `${photo.faces.length} faces`);
  if (score !== null) parts.push(`score ${score.toFixed(2)}`);
  return parts.join(", ");
}

// Returns the index of the tile in the row above or below that is nearest.
function vertical(buttons, at, direction) {
  const own = buttons[at].getBoundingClientRect();
  const middle = own.left + own.width / 2;
  let best = at;
  let least = Infinity;
  for (let i = at + direction; i >= 0 && i < buttons.length; i += direction) {
    const box = buttons[i].getBoundingClientRect();
    const apart = direction > 0 ? box.top - own.top : own.top - box.top;
    if (apart < 4) continue; // the same row
    if (apart > 2 * own.height + 40) break;
    const off = Math.abs(box.left + box.width / 2 - middle) + apart;
    if (off < least) [best, least] = [i, off];
  }
  return best;
}
