// Work that a view does again and again while it is on the page.

/** `work` at the start and then every so often until the stop: one at a time, and not while nobody sees the page. */
export function repeatedly(work, everyMs) {
  let timer = null;
  let isOn = false;
  let isBusy = false;
  async function turn() {
    clearTimeout(timer);
    if (isBusy) return;
    isBusy = true;
    try {
      await work();
    } finally {
      isBusy = false;
    }
    clearTimeout(timer);
    if (isOn && !document.hidden) timer = setTimeout(turn, everyMs);
  }
  document.addEventListener("visibilitychange", () => { if (isOn && !document.hidden) turn(); });
  return {
    start() { isOn = true; turn(); },
    stop() { isOn = false; clearTimeout(timer); },
  };
}
