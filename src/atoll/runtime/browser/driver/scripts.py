"""What is run in pages. The attribute names and the numbering of elements are BrowserGym's: agents know them.

Everything runs in a world of its own beside the page's, so that a page cannot change what our code calls.
"""

MARK = r"""
async (parentBid) => {
  const markable = new Set(["input", "textarea", "select", "button", "a", "iframe", "video", "li", "td", "option"]);
  const state = globalThis.__marks ??= {next: 0, frame: 0};
  const letters = "abcdefghijklmnopqrstuvwxyz";
  const frameName = (n) => {
    let name = letters[n % 26];
    for (n = Math.floor(n / 26); n > 0; n = Math.floor((n - 1) / 26)) name += letters[(n - 1) % 26].toUpperCase();
    return name;
  };
  const all = [];
  const walk = (root) => {
    for (const element of root.querySelectorAll("*")) {
      all.push(element);
      if (element.shadowRoot) walk(element.shadowRoot);
    }
  };
  walk(document);
  const waiting = new Set(all);
  let settled;
  const seen = new Promise((resolve) => { settled = resolve; });
  const observer = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      entry.target.setAttribute("browsergym_visibility_ratio", Math.round(entry.intersectionRatio * 100) / 100);
      waiting.delete(entry.target);
    }
    if (waiting.size === 0) settled();
  });
  const atPoint = (x, y) => {
    let found = null;
    for (let root = document; root;) {
      const next = root.elementFromPoint(x, y);
      if (!next || next === found) break;
      found = next;
      root = next.shadowRoot;
    }
    return found;
  };
  const used = new Set();
  const buttons = [];
  for (const element of all) {
    element.setAttribute("browsergym_visibility_ratio", 0);
    observer.observe(element);
    if (typeof element.value !== "undefined" && typeof element.value !== "object" && element.type !== "file") {
      element.setAttribute("value", element.value);
    }
    if (typeof element.checked === "boolean") element.toggleAttribute("checked", element.checked);
    let bid = element.getAttribute("bid");
    if (bid === null || used.has(bid)) {
      const isFrame = ["iframe", "frame"].includes(element.tagName.toLowerCase());
      bid = parentBid + (isFrame ? frameName(state.frame++) : String(state.next++));
      element.setAttribute("bid", bid);
    }
    used.add(bid);
    // Elements without a role or name are left out of the accessibility tree unless they are described.
    for (const name of ["aria-roledescription", "aria-description"]) {
      element.setAttribute(name, `browsergym_id_${bid} ${element.getAttribute(name) ?? ""}`);
    }
    element.setAttribute("browsergym_set_of_marks", "0");
    const box = element.getBoundingClientRect();
    const hit = atPoint((box.left + box.right) / 2, (box.top + box.bottom) / 2);
    const mine = hit && (hit === element || element.contains(hit));
    const marked = markable.has(element.tagName.toLowerCase()) || element.onclick != null ||
      (mine && getComputedStyle(element).cursor === "pointer");
    if (!mine || !marked || box.width * box.height < 20 || buttons.some((button) => button.contains(element))) continue;
    let parent = element.parentElement;
    if (parent && parent.tagName === "SPAN" && parent.children.length === 1 && parent.getAttribute("role") &&
        parent.getAttribute("browsergym_set_of_marks") === "1") continue;
    element.setAttribute("browsergym_set_of_marks", "1");
    if (element.matches('button, a, input[type="button"], div[role="button"]')) buttons.push(element);
    for (; parent; parent = parent.parentElement) {
      if (parent.getAttribute("browsergym_set_of_marks") === "1") parent.setAttribute("browsergym_set_of_marks", "0");
    }
  }
  if (waiting.size > 0) await Promise.race([seen, new Promise((resolve) => setTimeout(resolve, 1000))]);
  observer.disconnect();
}
"""

UNMARK = r"""
() => {
  const walk = (root) => {
    for (const element of root.querySelectorAll("*")) {
      for (const name of ["aria-roledescription", "aria-description"]) {
        const rest = (element.getAttribute(name) ?? "").replace(/^browsergym_id_\S+ ?/, "");
        if (rest) element.setAttribute(name, rest); else element.removeAttribute(name);
      }
      if (element.shadowRoot) walk(element.shadowRoot);
    }
  };
  walk(document);
}
"""

FOCUSED = r"""
() => {
  let element = document.activeElement;
  while (element?.shadowRoot?.activeElement) element = element.shadowRoot.activeElement;
  return element;
}
"""

HIT = r"""
function (hit) {
  if (!hit) return "nothing";
  for (let node = hit; node; node = node.parentNode ?? node.host) if (node === this) return "";
  const label = hit.closest?.("label");
  if (label && label.control === this) return "";
  return `<${hit.tagName?.toLowerCase() ?? hit.nodeName}>`;
}
"""

STATE = r"""
function () {
  const box = this.getBoundingClientRect();
  const style = getComputedStyle(this);
  return {
    visible: box.width > 0 && box.height > 0 && style.visibility !== "hidden",
    disabled: this.matches?.(":disabled") ?? false,
    checked: this.checked ?? (this.getAttribute("aria-checked") === "true"),
    connected: this.isConnected,
    tag: this.tagName?.toLowerCase(),
    type: this.type ?? "",
    readonly: this.readOnly ?? false,
    box: [box.x, box.y, box.width, box.height],
  };
}
"""

PREPARE_FILL = r"""
function (value) {
  const tag = this.tagName.toLowerCase();
  if (tag === "input") {
    const type = this.type.toLowerCase();
    if (["checkbox", "radio", "button", "submit", "reset", "image", "file", "hidden"].includes(type)) {
      return `Error: Input of type "${type}" cannot be filled`;
    }
    if (type === "number" && value !== "" && isNaN(Number(value))) {
      return "Error: Cannot type text into input[type=number]";
    }
    if (["color", "date", "time", "datetime-local", "month", "range", "week"].includes(type)) {
      this.focus();
      this.value = value;
      if (this.value !== value) return "Error: Malformed value";
      this.dispatchEvent(new Event("input", {bubbles: true, composed: true}));
      this.dispatchEvent(new Event("change", {bubbles: true}));
      return "done";
    }
    this.focus();
    this.select();
    return "";
  }
  if (tag === "textarea") {
    this.focus();
    this.setSelectionRange(0, this.value.length);
    return "";
  }
  if (this.isContentEditable) {
    this.focus();
    const range = document.createRange();
    range.selectNodeContents(this);
    const selection = getSelection();
    selection.removeAllRanges();
    selection.addRange(range);
    return "";
  }
  return "Error: Element is not an <input>, <textarea>, <select> or [contenteditable] and does not have a role " +
    "allowing [aria-readonly]";
}
"""

SELECT = r"""
function (names) {
  if (this.tagName.toLowerCase() !== "select") return "Error: Element is not a <select> element";
  const label = (option) => option.label.trim().replace(/\s+/g, " ");
  const left = new Set(names);
  const chosen = [];
  for (const option of this.options) {
    const match = names.find((name) => name === option.value || name === label(option));
    if (match !== undefined && left.has(match)) {
      chosen.push(option);
      left.delete(match);
      if (!this.multiple) break;
    }
  }
  if (this.multiple ? left.size > 0 : names.length > 0 && chosen.length === 0) return "did not find some options";
  this.focus();
  for (const option of this.options) option.selected = chosen.includes(option);
  this.dispatchEvent(new Event("input", {bubbles: true, composed: true}));
  this.dispatchEvent(new Event("change", {bubbles: true}));
  return "";
}
"""
