// Two lists side by side: what stands in both, and where. Draws nothing.

/**
 * Each place of `list` with that of the same item in `other`.
 *
 * `moved` is by how many places it stands higher here than there; null where it is not there.
 */
export const places = (list, other) => list.map((item, place) => {
  const there = other.indexOf(item);
  return { item, rank: place + 1, there: there < 0 ? null : there + 1, moved: there < 0 ? null : there - place };
});

/** How many items are in both lists. */
export const common = (one, other) => one.filter((item) => other.includes(item)).length;

/** `list` with the entry at `from` at `to` instead. */
export function moved(list, from, to) {
  const rest = list.toSpliced(from, 1);
  return rest.toSpliced(to, 0, list[from]);
}
