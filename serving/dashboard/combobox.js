// A field that suggests while one types: arrows choose, Enter takes, Escape closes.

import { el } from "./dom.js";
import { fail } from "./notice.js";

/**
 * Connect a field with its list.
 *
 * `find` gives the suggestions for a text, `draw` the content of one, `choose` is told which one was taken; `none` says
 * that there are none.
 */
export function connectCombobox(input, list, { find, draw, choose, none }) {
  let query = 0;
  let shown = 0;
  let found = [];

  const expand = (isOpen) => {
    list.hidden = !isOpen;
    input.setAttribute("aria-expanded", String(isOpen));
    if (!isOpen) input.removeAttribute("aria-activedescendant");
  };

  async function suggest() {
    const asked = ++query;
    const answer = await find(input.value.trim());
    if (asked !== query) return;
    shown = asked;
    found = answer;
    const options = found.map((each, place) =>
      el("li", { role: "option", id: `${list.id}-${place}`, "aria-selected": "false",
        mousedown: (event) => { event.preventDefault(); take(each); } }, ...draw(each)));
    list.replaceChildren(...(options.length ? options : [el("li", { class: "none" }, none)]));
    input.removeAttribute("aria-activedescendant");
    expand(true);
  }

  function take(each) {
    query++;
    expand(false);
    input.value = "";
    choose(each);
  }

  function move(event) {
    const options = [...list.querySelectorAll("[role=option]")];
    const current = options.findIndex((option) => option.getAttribute("aria-selected") === "true");
    if (event.key === "Enter") {
      event.preventDefault();
      if (list.hidden) suggest().catch(fail);
      else if (shown === query && found.length) take(found[Math.max(current, 0)]);  // else the list is that of an earlier text
    } else if (event.key === "Escape") {
      query++;
      expand(false);
    } else if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      event.preventDefault();
      if (list.hidden) return suggest().catch(fail);
      const next = options[(current + (event.key === "ArrowDown" ? 1 : -1) + options.length) % options.length];
      options.forEach((option) => option.setAttribute("aria-selected", String(option === next)));
      next?.scrollIntoView({ block: "nearest" });
      if (next) input.setAttribute("aria-activedescendant", next.id);
    }
  }

  input.addEventListener("input", () => suggest().catch(fail));
  input.addEventListener("click", () => { if (list.hidden) suggest().catch(fail); });
  input.addEventListener("blur", () => { query++; expand(false); });
  input.addEventListener("keydown", move);
}
