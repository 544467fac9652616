// A terminal: what the shell writes comes by polls that wait for it, what is typed goes by requests in order.
import { Terminal } from "./vendor/xterm.mjs";
import { FitAddon } from "./vendor/addon-fit.mjs";

const place = document.getElementById("terminal");
const status = document.getElementById("status");
const csrf = document.querySelector('meta[name="csrf"]').content;
const { from, nonce } = place.dataset;

// xterm.js adds style elements and style attributes; the page's policy wants the nonce of the former and no latter.
const createElement = document.createElement;
document.createElement = function (name, ...more) {
  const made = createElement.call(this, name, ...more);
  if (String(name).toLowerCase() === "style") made.nonce = nonce;
  return made;
};
const setAttribute = HTMLElement.prototype.setAttribute;
HTMLElement.prototype.setAttribute = function (name, value) {
  if (name === "style") this.style.cssText = value;
  else setAttribute.call(this, name, value);
};

const terminal = new Terminal({ cursorBlink: false, scrollback: 5000, fontSize: 14, lineHeight: 1.2, screenReaderMode: true, theme: { background: "#14181b" } });
const fit = new FitAddon();
terminal.loadAddon(fit);
terminal.open(place);

function post(what, body) {
  return fetch(`${from}/${what}`, { method: "POST", headers: { "X-CSRF-Token": csrf, "Content-Type": "application/octet-stream" }, body });
}

// What is typed while a request is on its way goes with the next one.
let waiting = [];
let sending = false;
async function send() {
  if (sending) return;
  sending = true;
  while (waiting.length) {
    const body = new Blob(waiting);
    waiting = [];
    const answer = await post("keys", body).catch((error) => ({ ok: false, text: async () => error.message }));
    if (!answer.ok) status.textContent = `Not sent: ${await answer.text()}`;
  }
  sending = false;
}
const encoder = new TextEncoder();
terminal.onData((text) => { waiting.push(encoder.encode(text)); send(); });
terminal.onBinary((text) => { waiting.push(Uint8Array.from(text, (one) => one.charCodeAt(0))); send(); });

// Tab belongs to the shell; this is the way out of the terminal for a keyboard.
const leave = document.getElementById("leave");
terminal.attachCustomKeyEventHandler((event) => {
  if (event.ctrlKey && event.altKey && event.key === "End") { leave.focus(); return false; }
  return true;
});
leave.addEventListener("click", () => leave.focus());

let sized = "";
function resize() {
  fit.fit();
  const size = `size?cols=${terminal.cols}&rows=${terminal.rows}`;
  if (size !== sized) { sized = size; post(size); }
}
let timer;
addEventListener("resize", () => { clearTimeout(timer); timer = setTimeout(resize, 200); });

async function follow() {
  let offset = 0;
  for (;;) {
    let answer;
    try {
      answer = await fetch(`${from}/output?from=${offset}`);
    } catch {
      status.textContent = "The server does not answer; trying again.";
      await new Promise((done) => setTimeout(done, 1000));
      continue;
    }
    if (!answer.ok) { status.textContent = await answer.text(); return; }
    status.textContent = "";
    terminal.write(new Uint8Array(await answer.arrayBuffer()));
    offset = Number(answer.headers.get("X-Next"));
    const end = answer.headers.get("X-End");
    if (end !== null) { status.textContent = `Ended: ${end}`; return; }
  }
}

resize();
follow();
terminal.focus();
