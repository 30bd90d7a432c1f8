// Small helpers to build elements. Text only ever enters the page as text nodes, never as markup.

export const $ = (id) => document.getElementById(id);

/** Make an element; properties starting with "--" become CSS variables, functions become listeners. */
export function el(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("--")) node.style.setProperty(name, value);
    else if (name === "width" || name === "left") node.style[name] = value;
    else if (typeof value === "function") node.addEventListener(name, value);
    else if (value !== null && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

/** A readable hue for a small integer: neighbours are far apart on the colour wheel. */
export const hue = (code) => Math.round((code * 137.508) % 360);
