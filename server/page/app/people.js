// The people: groups of faces that are alike, as a row of round pictures. A group that is pressed narrows the photos.

import { element } from "./dom.js";
import { Groups } from "./vectors.js";

const SHOWN = 60;

export class People {
  // `chosen` is called with the faces of a group, or with null when none is pressed any more.
  constructor(list, count, chosen) {
    this.list = list;
    this.count = count;
    this.chosen = chosen;
    this.groups = new Groups(0.5);
    this.pressed = null; // a face of the group that is pressed: groups change, faces stay
  }

  add(faces) {
    for (const face of faces) this.groups.add(face);
  }

  // Groups all faces anew, at another distance or because some went.
  regroup(faces, distance) {
    this.groups = new Groups(distance);
    this.add(faces);
  }

  get size() {
    return this.groups.items.length;
  }

  release() {
    this.pressed = null;
    this.show();
  }

  show() {
    const groups = this.groups.lists();
    const several = groups.filter((faces) => faces.length > 1);
    const once = groups.length - several.length;
    const parts = [several.length === 1 ? "1 person seen more than once" : `${several.length} seen more than once`];
    if (once) parts.push(`${once} seen once`);
    this.count.textContent = parts.join(", ");
    const focused = this.list.contains(document.activeElement) && document.activeElement.dataset.face;
    this.list.replaceChildren(...groups.slice(0, SHOWN).map((faces, index) => this.#person(faces, index)));
    if (focused) this.list.querySelector(`[data-face="${focused}"]`)?.focus();
  }

  #person(faces, index) {
    const best = faces.reduce((one, other) => (other.score > one.score ? other : one));
    const pressed = faces.includes(this.pressed);
    const photos = new Set(faces.map((face) => face.photo)).size;
    const words = photos === 1 ? "1 photo" : `${photos} photos`;
    const press = () => {
      this.pressed = pressed ? null : best;
      this.show();
      this.chosen(pressed ? null : faces);
    };
    const picture = best.thumb
      ? element("img", { src: best.thumb, alt: "", width: 76, height: 76 })
      : element("span", {}, best.photo.name);
    return element(
      "li",
      {},
      element(
        "button",
        {
          type: "button",
          "aria-pressed": String(pressed),
          "aria-label": `Person ${index + 1}, ${words}`,
          "data-face": this.groups.items.indexOf(faces[0]),
          onclick: press,
        },
        picture,
        words,
      ),
    );
  }
}
