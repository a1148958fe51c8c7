// One photo, large: its faces with their scores, what is known of it, and the photos most like it.

import { byId, element } from "./dom.js";
import { faceBoxes } from "./gallery.js";
import { rank } from "./vectors.js";

const SIMILAR = 8;

export class Viewer {
  constructor(library) {
    this.library = library;
    this.dialog = byId("viewer");
    this.frame = byId("frame");
    this.photo = null;
    this.entries = []; // what the arrows walk along
    byId("close").addEventListener("click", () => this.dialog.close());
    byId("previous").addEventListener("click", () => this.#step(-1));
    byId("next").addEventListener("click", () => this.#step(1));
    this.dialog.addEventListener("close", () => this.#release());
    this.dialog.addEventListener("click", (event) => {
      if (event.target === this.dialog) this.dialog.close(); // beside it
    });
    this.dialog.addEventListener("keydown", (event) => {
      if (event.key === "ArrowLeft") this.#step(-1);
      if (event.key === "ArrowRight") this.#step(1);
    });
  }

  open(photo, entries) {
    this.entries = entries.map(({ item }) => item);
    this.#show(photo);
    if (!this.dialog.open) this.dialog.showModal();
  }

  // Returns the photo before or behind the one that is shown, undefined if there is none.
  #beside(by) {
    const at = this.entries.indexOf(this.photo);
    return at < 0 ? undefined : this.entries[at + by];
  }

  #step(by) {
    const photo = this.#beside(by);
    if (photo) this.#show(photo);
  }

  #show(photo) {
    this.#release();
    this.photo = photo;
    byId("viewer-title").textContent = photo.name;
    // Not `disabled`: that would take the keyboard's focus away from whoever has just arrived at an end.
    byId("previous").setAttribute("aria-disabled", String(!this.#beside(-1)));
    byId("next").setAttribute("aria-disabled", String(!this.#beside(1)));
    this.frame.style.setProperty("--ratio", photo.ratio.toFixed(4));
    this.address = URL.createObjectURL(photo.source);
    const image = element("img", { src: this.address, alt: photo.name });
    image.addEventListener("error", () => image.replaceWith(element("p", { class: "note" }, "This browser cannot show it.")));
    this.frame.replaceChildren(image, ...faceBoxes(photo));
    byId("viewer-facts").textContent = facts(photo);
    this.#showSimilar(photo);
  }

  #showSimilar(photo) {
    const like = photo.vector ? rank(photo.vector, this.library.photos).filter(({ item }) => item !== photo) : [];
    byId("similar-part").hidden = !like.length;
    byId("similar").replaceChildren(
      ...like.slice(0, SIMILAR).map(({ item, score }) => {
        const button = element(
          "button",
          { type: "button", class: "tile", "aria-label": `${item.name}, ${score.toFixed(2)} alike` },
          item.thumb ? element("img", { src: item.thumb, alt: "" }) : element("span", { class: "name" }, item.name),
          element("span", { class: "score" }, score.toFixed(2)),
        );
        button.addEventListener("click", () => {
          this.#show(item);
          byId("viewer-title").focus(); // the button is gone
        });
        return element("li", {}, button);
      }),
    );
  }

  #release() {
    if (this.address) URL.revokeObjectURL(this.address);
    this.address = null;
  }
}

function facts(photo) {
  if (photo.error) return photo.error;
  if (photo.state !== "done") return "Waiting for the server.";
  const count = photo.faces.length;
  const faces = count === 0 ? "no face" : count === 1 ? "1 face" : `${count} faces`;
  return `${photo.width} × ${photo.height} pixels as sent, ${faces}, a vector of ${photo.vector.length} numbers`;
}
