// Sliders over the latents of a model; the picture follows. `data` says what there is; a server or `nets.js` decodes.
"use strict";
function explorer(root, data) {
  const net = data.net ? ready(data.net) : null;
  const make = (name, attributes = {}, ...children) => {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) {
      if (key === "text") made.textContent = value;
      else if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
      else if (value !== false && value !== null && value !== undefined) made.setAttribute(key, value === true ? "" : value);
    }
    made.append(...children);
    return made;
  };
  const [channels, height, width] = data.shape;
  const canvas = make("canvas", { width, height, role: "img", "aria-label": "the decoded image" });
  const status = make("p", { class: "note", "aria-live": "polite" });
  const values = Float64Array.from(data.start);
  const follows = new Set(data.follow.map((level) => level.name));
  const rows = [];
  let from = Float64Array.from(values), to = null, busy = false, again = false, last = null;

  function draw(pixels) {
    const shown = canvas.getContext("2d").createImageData(width, height), colours = channels >= 3 ? [0, 1, 2] : [0, 0, 0];
    for (let i = 0; i < height * width; i++) {
      colours.forEach((c, k) => { shown.data[4 * i + k] = Math.round(255 * Math.min(1, Math.max(0, pixels[c * height * width + i]))); });
      shown.data[4 * i + 3] = 255;
    }
    canvas.getContext("2d").putImageData(shown, 0, 0);
  }

  async function decode() {
    if (net) return { pixels: decoded(net, data.columns.map(([, slider]) => values[slider])).data };
    const answer = await fetch("decode", {
      method: "POST", headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ values: Array.from(values), free: Array.from(follows) }),
    });
    const told = await answer.json();
    if (!answer.ok) throw new Error(told.error);
    return { pixels: weightsOf(told.pixels), values: told.values };
  }

  async function show() {
    if (busy) { again = true; return; }
    busy = true;
    const began = performance.now();
    try {
      const made = await decode();
      if (made.values) made.values.forEach((value, i) => { values[i] = value; });
      last = made.pixels;
      draw(last);
      status.textContent = `decoded in ${(performance.now() - began).toFixed(0)} ms`;
      root.dataset.shown = String(Number(root.dataset.shown || 0) + 1);
    } catch (error) {
      status.textContent = `not decoded: ${error.message}`;
    }
    rows.forEach((row) => row());
    busy = false;
    if (again) { again = false; show(); }
  }

  function set(wanted) { wanted.forEach((value, i) => { values[i] = value; }); show(); }

  function control(mover, i) {
    const id = `latent-${i}`, shown = make("output", { for: id });
    let input;
    if (mover.options) {
      input = make("select", { id }, ...mover.options.map((text, k) => make("option", { value: k, text })));
    } else {
      const step = mover.whole ? 1 : "any";
      input = make("input", { id, type: "range", min: mover.low, max: mover.high, step });
    }
    input.addEventListener("input", () => { values[i] = Number(input.value); show(); });
    rows.push(() => {
      input.value = values[i];
      input.disabled = follows.has(mover.level);
      shown.textContent = mover.options ? "" : mover.whole ? values[i] : values[i].toFixed(2);
    });
    const name = make("label", { for: id }, make("b", { text: mover.name }), " ", make("span", { class: "note", text: mover.note }));
    return make("div", { class: "slider" }, name, input, shown);
  }

  const way = make("input", { type: "range", min: 0, max: 1, step: "any", value: 0, id: "way", disabled: true });
  const goal = make("span", { class: "note", text: "choose its end among the images" });
  way.addEventListener("input", () => {
    const t = Number(way.value);
    set(data.movers.map((mover, i) => (mover.options || mover.whole ? (t < 0.5 ? from : to)[i] : from[i] + t * (to[i] - from[i]))));
  });
  let choosing = "start";
  const kinds = ["start", "end"].map((kind) => make("button", {
    type: "button", class: "choice", "aria-pressed": String(kind === "start"), text: kind === "start" ? "start from" : "go to",
    onclick: () => {
      choosing = kind;
      kinds.forEach((button, k) => button.setAttribute("aria-pressed", String((k === 0) === (kind === "start"))));
    },
  }));
  const images = data.images.map((image) => make("button", {
    type: "button", class: "thumb", title: image.name, "aria-label": image.name,
    onclick: () => {
      if (choosing === "start") { set(image.code); return; }
      from = Float64Array.from(values);
      to = Float64Array.from(image.code);
      way.disabled = false;
      way.value = 0;
      goal.textContent = `from what is shown to ${image.name}`;
    },
  }, make("img", { src: image.picture, alt: "", width, height })));

  const code = () => data.columns.map(([, slider, option]) => {
    if (option !== null) return Number(values[slider] === option);
    return data.movers[slider].whole ? values[slider] : values[slider].toPrecision(7);
  }).join(",");
  const line = make("textarea", { id: "code", readonly: true, rows: 3, "aria-label": "the code" });
  rows.push(() => { line.value = `${data.columns.map(([name]) => name).join(",")}\n${code()}`; });
  const copy = make("button", { type: "button", text: "copy the code", onclick: async () => {
    line.select();
    try { await navigator.clipboard.writeText(line.value); status.textContent = "copied: vae decode RUN - reads it"; }
    catch { status.textContent = "the code is marked: copy it with Ctrl-C"; }
  } });
  const reset = make("button", { type: "button", text: "back to the start", onclick: () => set(data.start) });
  const middle = make("button", { type: "button", text: "all at rest", onclick: () => set(data.rest) });

  const live = data.movers.map((mover, i) => [mover, i]);
  const shown = live.filter(([mover]) => !mover.dead), dead = live.filter(([mover]) => mover.dead);
  const boxes = data.follow.map((level) => {
    const box = make("input", { type: "checkbox", id: `follow-${level.name}`, checked: true });
    box.checked = true;
    box.addEventListener("change", () => { if (box.checked) follows.add(level.name); else follows.delete(level.name); show(); });
    return make("p", {}, box, " ", make("label", { for: `follow-${level.name}`, text: `${level.name} follows what is above it` }));
  });
  root.append(
    make("div", { class: "stage" },
      make("div", { class: "picture" }, canvas, status, make("p", {}, reset, " ", middle, " ", copy), line),
      make("div", { class: "sliders" }, ...boxes, ...shown.map((pair) => control(...pair)),
        ...(dead.length ? [make("details", {}, make("summary", { text: `${dead.length} inactive latents` }), ...dead.map((pair) => control(...pair)))] : []))),
    ...(images.length ? [make("h3", { text: "Images" }), make("p", {}, ...kinds, " ", way, " ", goal), make("div", { class: "thumbs" }, ...images)] : []),
  );
  root.values = values;
  root.pixels = () => Array.from(last);
  root.set = set;
  show();
}
function explore() {
  const root = document.getElementById("explorer");
  root.replaceChildren();
  explorer(root, JSON.parse(document.getElementById("data").textContent));
}
const opener = document.getElementById("open");  // in a report: weights are unpacked when somebody asks
if (opener) opener.addEventListener("click", explore); else explore();
