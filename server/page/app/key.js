// Asks the server, and asks the person for an API key where the server wants one. The key stays in this tab.

import { byId } from "./dom.js";

const REFUSED = 401;

let key = sessionStorage.getItem("key") ?? "";
let asking = null; // the one question that all requests wait for
let declined = false;

export async function ask(path, options = {}) {
  for (;;) {
    const sent = key;
    const response = await fetch(path, sent ? { ...options, headers: { "x-api-key": sent } } : options);
    if (response.status !== REFUSED || declined) return response;
    if (sent === key) {
      asking ??= question(Boolean(sent)).finally(() => (asking = null));
      if (!(await asking)) return response;
    }
  }
}

// Returns whether a key was entered; who closes the question is not asked again until the page is opened anew.
function question(wrong) {
  const dialog = byId("key");
  byId("key-wrong").hidden = !wrong;
  byId("key-value").value = "";
  dialog.showModal();
  return new Promise((resolve) => {
    let entered = false;
    byId("key-form").onsubmit = (event) => {
      event.preventDefault();
      key = byId("key-value").value.trim();
      sessionStorage.setItem("key", key);
      entered = true;
      dialog.close();
    };
    dialog.onclose = () => {
      declined = !entered;
      resolve(entered);
    };
  });
}
