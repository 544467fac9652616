// What every page of the console does: ask before something is ended, and copy snippets.
"use strict";

document.addEventListener("submit", (event) => {
  const question = event.target.dataset.confirm;
  if (question && !confirm(question)) event.preventDefault();
});

document.addEventListener("click", async (event) => {
  const button = event.target.closest("button[data-copy]");
  if (!button) return;
  await navigator.clipboard.writeText(document.getElementById(button.dataset.copy).textContent);
  button.textContent = "Copied";
});

// An open form or a chosen text inside a part that is loaded anew every few seconds is left alone.
document.addEventListener("htmx:beforeRequest", (event) => {
  const part = event.target;
  const chosen = getSelection();
  if (document.hidden || part.contains(document.activeElement) || (chosen.toString() && part.contains(chosen.anchorNode)))
    event.preventDefault();
});
