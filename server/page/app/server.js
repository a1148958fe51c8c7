// What the page asks the server: the same requests as any client of the protocol sends.
// Addresses are relative, so that the page also works behind a proxy that puts it into a folder.

import { ask } from "./key.js";
import { vector } from "./vectors.js";

const TRIES = 5; // of a request that the server says to send again

export async function embedText(text, model) {
  const answer = await predict({ clip: { textual: { modelName: model } } }, { text });
  return vector(answer.clip);
}

// Returns {width, height, vector, faces: [{box: {x1, y1, x2, y2}, score, vector}]}; boxes are in pixels of what was sent.
export async function look(image, models, signal) {
  const entries = {
    clip: { visual: { modelName: models.clip } },
    "facial-recognition": { detection: { modelName: models.face }, recognition: { modelName: models.face } },
  };
  const answer = await predict(entries, { image }, signal);
  return {
    width: answer.imageWidth,
    height: answer.imageHeight,
    vector: vector(answer.clip),
    faces: answer["facial-recognition"].map((face) => ({
      box: face.boundingBox,
      score: face.score,
      vector: vector(face.embedding),
    })),
  };
}

export async function models() {
  const response = await ask("models");
  if (!response.ok) throw new Error(await sentence(response));
  return response.json();
}

export async function metrics() {
  const response = await ask("metrics");
  if (!response.ok) throw new Error(await sentence(response));
  return response.text();
}

async function predict(entries, fields, signal) {
  for (let turn = 1; ; turn++) {
    const form = new FormData();
    form.append("entries", JSON.stringify(entries));
    for (const [name, value] of Object.entries(fields)) form.append(name, value);
    const response = await ask("predict", { method: "POST", body: form, signal });
    if (response.ok) return response.json();
    const after = Number(response.headers.get("Retry-After"));
    if (response.status !== 503 || !after || turn === TRIES) throw new Error(await sentence(response));
    await pause(after * 1000, signal);
  }
}

async function sentence(response) {
  const body = await response.text();
  try {
    return JSON.parse(body).detail;
  } catch {
    return `The server answered ${response.status} ${response.statusText}.`; // a proxy between us speaks otherwise
  }
}

function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, milliseconds);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    });
  });
}
