"use strict";
// Brings the parts of the page that live up to date, and leaves alone what people type, select or have focused.
const pauseMs = Number(document.documentElement.dataset.refresh) * 1000;

function isInUse() {
  const focused = document.activeElement;
  return document.hidden || (focused && focused !== document.body) || !window.getSelection().isCollapsed;
}

async function refresh() {
  let nextMs = pauseMs;
  if (!isInUse()) {
    try {
      const answer = await fetch(window.location.href, { headers: { Accept: "text/html" } });
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
      nextMs = Number(fresh.documentElement.dataset.refresh) * 1000 || pauseMs;
      for (const part of document.querySelectorAll("[data-live]")) {
        const newer = fresh.getElementById(part.id);
        if (newer && newer.innerHTML !== part.innerHTML) {
          part.replaceChildren(...newer.childNodes);
        }
      }
    } catch {
      // the service is away for a moment; what is shown stays
    }
  }
  window.setTimeout(refresh, nextMs);
}

window.setTimeout(refresh, pauseMs);
