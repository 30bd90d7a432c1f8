// Which view is on the page: what stands behind the # of the address says so, so that views can be linked and reloaded.

import { $ } from "./dom.js";

const views = {};
let current = null;

/** Add a view by name: `enter` is told what the address says whenever that changes, `leave` when another view comes. */
export function addView(view, { enter, leave = () => {} }) {
  views[view] = { enter, leave };
}

/** Show what the address names, now and whenever it changes. */
export function startViews() {
  window.addEventListener("hashchange", show);
  show();
}

function show() {
  const said = new URLSearchParams(location.hash.slice(1));
  const wanted = views[said.get("view")] ? said.get("view") : "users";
  if (current !== wanted) {
    if (current) views[current].leave();
    current = wanted;
    for (const view of Object.keys(views)) $(`view-${view}`).hidden = view !== wanted;
    for (const link of document.querySelectorAll("#views a")) {
      if (link.dataset.view === wanted) {
        link.setAttribute("aria-current", "page");
        link.scrollIntoView({ block: "nearest", inline: "nearest" });
      } else link.removeAttribute("aria-current");
    }
  }
  views[wanted].enter(said);
}
