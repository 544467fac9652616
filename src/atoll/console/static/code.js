// Runs a cell and shows what comes of it: text as text, charts as images. Nothing of it becomes markup.
const form = document.getElementById("code");
const results = document.getElementById("results");

function show(text, kind) {
  const box = document.createElement("pre");
  box.className = `wrap ${kind}`;
  box.textContent = text;
  results.append(box);
}

function image(kind, data) {
  if (!/^[A-Za-z0-9+/=\s]*$/.test(data)) return;
  const shown = document.createElement("img");
  shown.alt = "Chart";
  shown.src = `data:${kind};base64,${data}`;
  results.append(shown);
}

function line(text) {
  const found = JSON.parse(text);
  if (found.type === "stdout") show(found.text, "");
  else if (found.type === "stderr") show(found.text, "warn");
  else if (found.type === "error") show(found.traceback || `${found.name}: ${found.value}`, "error");
  else if (found.type === "result") {
    if (found.png) image("image/png", found.png);
    else if (found.jpeg) image("image/jpeg", found.jpeg);
    else if (found.text) show(found.text, "");
  }
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  results.replaceChildren();
  const answer = await fetch(form.dataset.to, { method: "POST", body: new URLSearchParams(new FormData(form)) });
  if (!answer.ok) { show(await answer.text(), "error"); return; }
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    const lines = (rest + (value ?? "")).split("\n");
    rest = lines.pop();
    lines.filter(Boolean).forEach(line);
    if (done) return;
  }
});
