// Puts the page together: what people do on one side, what changes on the other.

import { byId, element } from "./dom.js";
import { WORDS, pictures } from "./drawings.js";
import { Gallery } from "./gallery.js";
import { Library } from "./library.js";
import { Panel } from "./panel.js";
import { People } from "./people.js";
import { dropped, isPicture } from "./pictures.js";
import { embedText } from "./server.js";
import { rank } from "./vectors.js";
import { Viewer } from "./viewer.js";

const PAUSE = 250; // milliseconds without a key after which words are searched by
const REDRAW = 300; // milliseconds between two looks at the people while photos come in
const SLICE = 100; // photos that are added before the page is drawn again
const DISTANCE = { trained: 0.5, untrained: 0.02 }; // cosine distance up to which two faces are one person

const library = new Library();
const viewer = new Viewer(library);
const gallery = new Gallery(byId("grid"), byId("more"), (photo, entries) => viewer.open(photo, entries));
const people = new People(byId("groups"), byId("people-count"), (faces) => narrow(faces && { faces }));
const panel = new Panel(library, change);

let view = null; // what the photos are narrowed to: {words, vector}, {faces}, {failed: true}, or null for all
let seed = 0; // of the generated pictures
let started = 0;
let peopleDue = 0;
let stateDue = 0;

// Photos come in.

async function add(files) {
  const { signal } = library.stopping; // a stop is also for those that are still to be added
  for (const [index, file] of files.entries()) {
    if (index && index % SLICE === 0) await new Promise((resolve) => setTimeout(resolve));
    library.add(file, file.webkitRelativePath || file.name, signal);
  }
  if (!files.length) byId("state").textContent = "There is no picture among these: JPEG, PNG, WebP and the like are.";
}

async function drop(event) {
  event.preventDefault();
  byId("veil").hidden = true;
  let found = 0;
  for await (const file of dropped(event.dataTransfer)) {
    found += 1;
    add([file]);
  }
  if (!found) add([]);
}

async function generate() {
  seed += 1;
  byId("chips").replaceChildren(
    element("span", { class: "unseen" }, "Words to try:"),
    ...WORDS.map((words) => element("button", { type: "button", onclick: () => say(words) }, words)),
  );
  byId("chips").hidden = false;
  for await (const { name, source } of pictures(seed)) library.add(source, name);
}

// Words are searched by.

let typing = 0;

function say(words) {
  byId("words").value = words;
  search();
}

async function search() {
  clearTimeout(typing);
  const words = byId("words").value.trim();
  if (!words) {
    if (view?.words) narrow(null);
    return;
  }
  try {
    const vector = await embedText(words, library.models.clip);
    if (byId("words").value.trim() === words) narrow({ words, vector });
  } catch (error) {
    byId("state").textContent = `Words cannot be searched by: ${error.message}`;
  }
}

function narrow(to) {
  view = to;
  if (!to?.words) byId("words").value = "";
  if (!to?.faces) people.release();
  showPhotos();
}

function entries() {
  const all = library.photos;
  if (view?.vector) return rank(view.vector, all);
  let some = all;
  if (view?.faces) some = [...new Set(view.faces.map((face) => face.photo))];
  if (view?.failed) some = all.filter((photo) => photo.state === "failed");
  return some.map((item) => ({ item, score: null }));
}

// Things change on the page.

function showPhotos() {
  const shown = entries();
  gallery.show(shown);
  const words = view?.words ? `best first for “${view.words}”` : "";
  const count = shown.length === 1 ? "1 photo" : `${shown.length} photos`;
  byId("photos-count").textContent = words || count;
  byId("all").hidden = !view;
  byId("failed").setAttribute("aria-pressed", String(Boolean(view?.failed)));
  if (words) byId("state").textContent = `${count}, ${words}.`;
}

function showState() {
  stateDue = 0;
  const total = library.photos.length;
  const { waiting, failed } = library.counts;
  byId("start").hidden = total > 0;
  byId("photos").hidden = total === 0;
  byId("add").hidden = total === 0;
  byId("words").disabled = total === 0;
  byId("stop").hidden = !waiting;
  byId("clear").hidden = Boolean(waiting);
  byId("failed").hidden = !failed;
  byId("failed").textContent = `${failed} failed`;
  byId("again").hidden = !failed || Boolean(waiting);
  byId("faces").hidden = !people.size;
  const bar = byId("bar");
  bar.hidden = !waiting;
  bar.setAttribute("aria-valuemax", total);
  bar.setAttribute("aria-valuenow", total - waiting);
  bar.style.setProperty("--done", total ? (total - waiting) / total : 0);
  if (total && !view?.words) byId("state").textContent = progress(total, waiting, failed);
}

function progress(total, waiting, failed) {
  const done = total - waiting;
  const trouble = failed ? `, ${failed} failed` : "";
  if (!waiting) return `${total === 1 ? "1 photo" : `${total} photos`} done${trouble}.`;
  const seconds = (waiting * (performance.now() - started)) / 1000 / Math.max(1, done);
  const left = done > 4 ? `, about ${seconds < 90 ? `${Math.ceil(seconds)} s` : `${Math.ceil(seconds / 60)} min`} left` : "";
  return `${done} of ${total} done${left}${trouble}`;
}

function showPeople() {
  peopleDue = 0;
  byId("people").hidden = !people.size;
  people.show();
  byId("people-note").hidden = !panel.facesUntrained;
  byId("people-note").textContent =
    `${library.models.face} finds faces, but has not learned to tell people apart: ` +
    "it groups pictures that hardly differ. For your own photos choose another model under Server.";
}

function setDistance(distance) {
  byId("distance").value = distance;
  byId("distance-shown").textContent = Number(distance).toFixed(2);
  people.regroup(library.faces(), Number(distance));
  if (view?.faces) narrow(null);
  showPeople();
}

// Other models have other vectors: everything is looked at again.
function change(models) {
  const otherFaces = models.face !== library.models.face;
  library.stop();
  library.models = models;
  started = performance.now();
  library.again([...library.photos]);
  const usual = panel.facesUntrained ? DISTANCE.untrained : DISTANCE.trained;
  setDistance(otherFaces ? usual : people.groups.distance);
  narrow(null);
}

function clear() {
  library.clear();
  people.regroup([], people.groups.distance);
  byId("chips").hidden = true;
  byId("state").textContent = "";
  narrow(null);
  showPeople();
  showState();
  byId("choose").focus();
}

library.addEventListener("photo", ({ detail: photo }) => {
  if (library.photos.length === library.counts.waiting && !started) started = performance.now();
  if (photo.faces.length) {
    people.add(photo.faces);
    peopleDue ||= setTimeout(showPeople, REDRAW);
  }
  if (!view && !gallery.shows(photo)) gallery.append(photo);
  else gallery.update(photo);
  stateDue ||= requestAnimationFrame(showState); // once for all that change together
});
library.addEventListener("idle", () => {
  started = 0;
  if (view) showPhotos();
});

// People do things.

byId("choose").addEventListener("click", () => byId("files").click());
byId("add").addEventListener("click", () => byId("files").click());
byId("choose-folder").addEventListener("click", () => byId("folder").click());
byId("generate").addEventListener("click", generate);
for (const id of ["files", "folder"]) {
  byId(id).addEventListener("change", ({ target }) => {
    add([...target.files].filter(isPicture));
    target.value = ""; // the same files may be chosen again
  });
}
byId("search").addEventListener("submit", (event) => {
  event.preventDefault();
  search();
});
byId("words").addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(search, PAUSE);
});
byId("all").addEventListener("click", () => narrow(null));
byId("stop").addEventListener("click", () => library.stop());
byId("clear").addEventListener("click", clear);
byId("failed").addEventListener("click", () => narrow(view?.failed ? null : { failed: true }));
byId("again").addEventListener("click", () => {
  narrow(null);
  library.again(library.photos.filter((photo) => photo.state === "failed"));
});
byId("faces").addEventListener("click", () => {
  const hidden = byId("grid").classList.toggle("without-faces");
  byId("faces").setAttribute("aria-pressed", String(!hidden));
});
byId("distance").addEventListener("input", ({ target }) => {
  byId("distance-shown").textContent = Number(target.value).toFixed(2);
});
byId("distance").addEventListener("change", ({ target }) => setDistance(target.value));

function togglePanel(open) {
  byId("panel").hidden = !open;
  byId("toggle").setAttribute("aria-expanded", String(open));
  document.querySelector(".columns").classList.toggle("with-panel", open);
}
byId("toggle").addEventListener("click", () => togglePanel(byId("panel").hidden));
togglePanel(window.matchMedia("(min-width: 1000px)").matches);

addEventListener("keydown", (event) => {
  const writing = event.target.closest?.("input, select, dialog[open]");
  if (event.key === "/" && !writing) {
    event.preventDefault();
    byId("words").focus();
  }
});
addEventListener("dragover", (event) => {
  event.preventDefault();
  byId("veil").hidden = !event.dataTransfer.types.includes("Files");
});
addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) byId("veil").hidden = true;
});
addEventListener("drop", drop);

await panel.start();
setDistance(panel.facesUntrained ? DISTANCE.untrained : DISTANCE.trained);
