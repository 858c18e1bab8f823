// Hash router (#/, #/requests/ID): views survive a reload and can be shared as links.

import { el } from "./dom.js";
import { showForgetButton } from "./key.js";
import { requestView } from "./request.js";
import { startView } from "./start.js";

const content = document.getElementById("content");
let leaving = new AbortController();
let first = true;

function show() {
  if (location.hash === "#content") return; // the skip link
  leaving.abort();
  leaving = new AbortController();
  const request = /^#\/requests\/([\w-]{1,64})$/.exec(location.hash);
  const view = request ? requestView(request[1], leaving.signal) : startView(leaving.signal);
  content.replaceChildren(view);
  const heading = content.querySelector("h1");
  document.title = "shrinkstream";
  if (!first) heading.focus({ preventScroll: true });
  first = false;
  scrollTo(0, 0);
}

// A file dropped outside the drop zone would navigate away.
for (const name of ["dragover", "drop"]) document.addEventListener(name, (event) => event.preventDefault());
addEventListener("unhandledrejection", (event) => {
  content.prepend(el("p", { class: "card bad", role: "alert" }, `Something went wrong: ${event.reason?.message ?? event.reason}`));
});
addEventListener("hashchange", show);
showForgetButton();
show();
