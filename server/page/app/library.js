// The photos of this tab: what waits, what is done, what failed. Sends them to the server, a few at a time.
// Knows nothing of how they are shown: it dispatches "photo" whenever one changes, and "idle" when nothing is left to do.

import { Lanes } from "./lanes.js";
import { cut, prepare } from "./pictures.js";
import { look } from "./server.js";

const SENDING = 5; // requests at a time: a browser has six connections to a server, and words must not wait for photos
const DECODING = 2; // a photo takes its pixels in memory while it is decoded

export class Library extends EventTarget {
  constructor() {
    super();
    this.photos = [];
    this.counts = { waiting: 0, done: 0, failed: 0 };
    this.models = { clip: "demo", face: "demo" };
    this.finished = []; // when photos were done, in milliseconds: for the throughput of the last minute
    this.stopping = new AbortController();
    this.sending = new Lanes(SENDING);
    this.decoding = new Lanes(DECODING);
  }

  // `source` is a File or a Blob; one that comes after `signal` was aborted is not sent.
  add(source, name, signal = this.stopping.signal) {
    const photo = { name, source, state: "waiting", thumb: null, ratio: 1, vector: null, faces: [], error: null };
    this.photos.push(photo);
    this.counts.waiting += 1;
    this.#changed(photo);
    this.#send(photo, signal);
  }

  // Sends photos once more: after a failure, or to other models.
  again(photos) {
    for (const photo of photos) {
      forget(photo.faces);
      this.#becomes(photo, { state: "waiting", vector: null, faces: [], error: null });
      this.#changed(photo);
      this.#send(photo, this.stopping.signal);
    }
  }

  // Gives up what waits and what is on its way.
  stop() {
    this.stopping.abort(new Error("Stopped: it was not sent."));
    this.stopping = new AbortController();
  }

  clear() {
    this.stop();
    for (const photo of this.photos) {
      photo.turn = null;
      forget(photo.faces);
      if (photo.thumb) URL.revokeObjectURL(photo.thumb);
    }
    this.photos = [];
    this.counts = { waiting: 0, done: 0, failed: 0 };
  }

  faces() {
    return this.photos.flatMap((photo) => photo.faces);
  }

  async #send(photo, signal) {
    const turn = (photo.turn = {}); // what an earlier turn still brings, or one of a removed photo, counts no more
    let outcome;
    try {
      outcome = await this.sending.run(() => this.#seen(photo, signal));
      this.finished.push(performance.now());
    } catch (error) {
      outcome = { state: "failed", error: said(error) };
    }
    if (photo.turn !== turn) {
      forget(outcome.faces ?? []);
      return;
    }
    this.#becomes(photo, outcome);
    this.#changed(photo);
    if (!this.counts.waiting) this.dispatchEvent(new Event("idle"));
  }

  async #seen(photo, signal) {
    signal.throwIfAborted();
    const { body, thumb, canvas } = await this.decoding.run(() => prepare(photo.source));
    signal.throwIfAborted();
    if (thumb && !photo.thumb) {
      Object.assign(photo, { thumb: URL.createObjectURL(thumb), ratio: canvas.width / canvas.height });
      this.#changed(photo);
    }
    const { width, height, vector, faces } = await look(body, this.models, signal);
    const shown = faces.map(async (face) => {
      const picture = canvas && (await cut(canvas, face.box, canvas.width / width));
      return { ...face, photo, thumb: picture && URL.createObjectURL(picture) };
    });
    return { state: "done", width, height, ratio: width / height, vector, faces: await Promise.all(shown) };
  }

  #becomes(photo, outcome) {
    this.counts[photo.state] -= 1;
    Object.assign(photo, outcome);
    this.counts[photo.state] += 1;
  }

  #changed(photo) {
    this.dispatchEvent(new CustomEvent("photo", { detail: photo }));
  }
}

function forget(faces) {
  for (const face of faces) if (face.thumb) URL.revokeObjectURL(face.thumb);
}

function said(error) {
  return error instanceof TypeError ? "The server does not answer: see whether it runs." : error.message;
}
