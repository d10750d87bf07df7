// The page: what people do becomes calls of the API, and its answers become what they see.

import { Api } from "./api.js";
import { maskPictures } from "./mask.js";
import { element, nameOf, showBundle, showObjects, showSteps, showStatus } from "./panels.js";
import { View } from "./view.js";

const COLOURS = [
  [57, 255, 20], [255, 176, 0], [0, 200, 255], [255, 79, 167], [170, 120, 255], [255, 240, 60], [255, 110, 60], [60, 230, 170],
];
const STEP_SHOWN = 520; // milliseconds for which each step of the model is shown at least

const $ = (id) => document.getElementById(id);
const api = new Api(askToken);
const view = new View($("canvas"), {
  click: (x, y, positive) => byHand("Click", { clicks: [{ x, y, positive }] }),
  box: (box) => byHand("Box", { box }),
  zoomed: (scale) => { $("zoom").textContent = `${Math.round(scale * 100)}%`; },
});

let bundles = [];
let image = null; // the server's answer of the open image
let source = null; // {content, name}: what was opened, to open it again with another bundle
let objects = new Map(); // by number: {number, answer, colour, visible, pictures, ...}
let current = null; // number of the object that clicks change
let run = null; // {stop, number} while the model works
let queue = Promise.resolve(); // clicks are sent one after the other
let pending = 0;
let last = null; // {what, seconds} of the last call

// Images

async function openImage(content, name, bundle) {
  if (run) run.stop();
  message(null);
  busy(1);
  try {
    const start = performance.now();
    const answer = await api.open(content, bundle || $("bundle").value, name);
    last = { what: "Open", seconds: (performance.now() - start) / 1000 };
    const picture = await pictureOf(content, answer);
    if (image) api.delete(`/v1/images/${image.image}`).catch(() => {});
    image = answer;
    source = { content, name };
    objects = new Map();
    current = null;
    $("empty").hidden = true;
    view.show(picture);
    chooseBundle(answer.bundle);
    hint("Click the object, drag a box around it, or type words. Right click removes.");
  } catch (error) {
    message(error);
  } finally {
    busy(-1);
    refresh();
  }
}

// What is drawn: the browser's own decoding where it agrees with the server's, else the server's.
async function pictureOf(content, answer) {
  try {
    const bitmap = await createImageBitmap(content);
    if (bitmap.width === answer.width && bitmap.height === answer.height) return bitmap;
  } catch {
    // the browser does not know this format
  }
  return createImageBitmap(await api.blob(`/v1/images/${answer.image}/picture`));
}

function openFile(file) {
  if (!file) return;
  const fits = bundles.find((each) => !each.words) || bundles[0];
  const chosen = bundles.find((each) => each.name === $("bundle").value);
  openImage(file, file.name || "pasted", chosen && !chosen.words ? chosen.name : fits.name);
}

async function openExample(example) {
  busy(1);
  try {
    const content = await api.blob(example.picture);
    await openImage(content, example.picture.split("/").pop(), example.bundle);
  } catch (error) {
    message(error);
  } finally {
    busy(-1);
  }
  showChips(example.expressions);
  if (example.credit) hint(example.credit);
}

// Objects by hand

function byHand(what, body) {
  if (!image) return;
  if (run) run.stop();
  pending += 1;
  queue = queue.then(async () => {
    busy(1);
    try {
      const start = performance.now();
      const known = current !== null && objects.has(current);
      const path = known ? `/objects/${current}/${body.box ? "box" : "clicks"}` : "/objects";
      const sent = known && body.box ? body.box : known ? { ...body, state: objects.get(current).answer.undoable } : body;
      const answer = await api.post(`/v1/images/${image.image}${path}`, sent);
      last = { what, seconds: (performance.now() - start) / 1000 };
      current = answer.object;
      message(null);
      hint(null);
      await update(answer);
    } catch (error) {
      message(error);
    } finally {
      pending -= 1;
      busy(-1);
      refresh();
    }
  });
}

async function history(way) {
  if (!image || current === null) return;
  if (run) run.stop();
  queue = queue.then(async () => {
    try {
      const { undoable } = objects.get(current).answer;
      hint(null);
      await update(await api.post(`/v1/images/${image.image}/objects/${current}/${way}`, { state: undoable }));
    } catch (error) {
      message(error);
    }
  });
}

// The model

async function segment(expression) {
  const bundle = bundles.find((each) => each.name === $("bundle").value);
  if (!image) return message({ message: "Open an image first.", hint: null });
  if (!bundle.takes_words) return message({ message: "This model takes clicks and boxes, not words.", hint: wordsHint() });
  await model("Segment", "/objects", { expression });
}

async function refine() {
  if (current === null) return;
  const said = objects.get(current).answer.expression || $("expression").value.trim();
  await model("Refine", `/objects/${current}/refine`, { expression: said || null });
}

async function model(what, path, body) {
  if (run) run.stop();
  const control = new AbortController();
  const mine = {
    number: null,
    stop() {
      if (run === mine) run = null;
      control.abort();
      refresh();
    },
  };
  run = mine;
  message(null);
  hint("The model works. Click at any time to take over.");
  refresh();
  busy(1);
  let shown = Promise.resolve();
  try {
    const start = performance.now();
    const end = await api.steps(`/v1/images/${image.image}${path}`, body, control.signal, (answer) => {
      shown = shown.then(async () => {
        if (run !== mine) return;
        mine.number = answer.object;
        current = answer.object;
        await update(answer);
        await new Promise((resolve) => setTimeout(resolve, STEP_SHOWN));
      });
    });
    last = { what, seconds: (performance.now() - start) / 1000 };
    await shown;
    if (run === mine && end && end.object) {
      current = end.object;
      await update(end);
      if (end.pixels === null) message({ message: "The model found no mask for these words.", hint: null });
      else hint("Correct the mask with clicks, if it needs it.");
    }
  } catch (error) {
    if (error.name !== "AbortError" && run === mine) message(error);
  } finally {
    if (run === mine) run = null;
    busy(-1);
    refresh();
  }
}

async function score() {
  const object = objects.get(current);
  if (!object) return;
  busy(1);
  try {
    const said = object.answer.expression || $("expression").value.trim();
    const start = performance.now();
    const { rating } = await api.post(`/v1/images/${image.image}/objects/${current}/score`, { expression: said || null });
    last = { what: "Rate", seconds: (performance.now() - start) / 1000 };
    hint(rating === null ? "This model does not rate masks." : `The model rates this mask ${Math.round(rating * 100)}% for “${said}”.`);
  } catch (error) {
    message(error);
  } finally {
    busy(-1);
    refresh();
  }
}

// State of the page

async function update(answer) {
  const known = objects.get(answer.object);
  const object = known || { number: answer.object, visible: true, colour: COLOURS[(answer.object - 1) % COLOURS.length], count: 0 };
  const pictures = answer.mask && answer.mask.value ? await maskPictures(answer.mask.value, object.colour) : null;
  const base = answer.shown === null ? [] : answer.steps.slice(0, answer.shown + 1);
  const start = base.findLastIndex((step) => step.restarted);
  const steps = start > 0 ? base.slice(start) : base;
  const clicks = steps.filter((step) => step.click);
  const newest = steps.length ? steps[steps.length - 1] : null;
  const grown = steps.length > object.count;
  const point = newest && (newest.click || (newest.box && { x: (newest.box.x0 + newest.box.x1) / 2, y: (newest.box.y0 + newest.box.y1) / 2 }));
  Object.assign(object, {
    answer, previous: object.pictures, pictures, since: performance.now(), count: steps.length,
    origin: grown && point ? [point.x, point.y] : null,
    marks: clicks.map((step) => ({ ...step.click, fresh: grown && step === newest })),
    boxes: newest && newest.box ? [{ ...newest.box, by: newest.by }] : [],
  });
  objects.set(answer.object, object);
  refresh();
}

function refresh() {
  const object = objects.get(current) || null;
  if (!object) current = null;
  const bundle = bundles.find((each) => each.name === $("bundle").value);
  view.objects = [...objects.values()].map((each) => Object.assign(each, { current: each.number === current }));
  view.redraw();
  showObjects($("objects"), objects, current, { choose, toggle, remove });
  $("no-objects").hidden = objects.size > 0;
  $("selected").hidden = !object;
  if (object) showSteps($("steps"), object.answer);
  $("steps-title").textContent = object ? `Steps of “${nameOf(object)}”` : "Steps";
  $("undo").disabled = !object || !object.answer.undoable;
  $("redo").disabled = !object || !object.answer.redoable;
  $("segment").hidden = run !== null;
  $("stop").hidden = run === null;
  $("new").disabled = current === null;
  for (const id of ["refine", "score"]) {
    $(id).hidden = !bundle || !bundle.takes_words;
    $(id).disabled = run !== null || !object || object.answer.pixels === null;
  }
  for (const button of document.querySelectorAll("[data-save]")) button.disabled = !object || !object.answer.pixels;
  showStatus($("status"), image, last);
  if (bundle) showBundle($("facts"), $("vocabulary"), bundle);
  document.body.dataset.busy = run !== null || pending > 0 ? "yes" : "no";
}

function choose(number) {
  current = number;
  refresh();
}

function toggle(number) {
  const object = objects.get(number);
  if (object) object.visible = !object.visible;
  refresh();
}

async function remove(number) {
  if (run && run.number === number) run.stop();
  try {
    await api.delete(`/v1/images/${image.image}/objects/${number}`);
    objects.delete(number);
  } catch (error) {
    message(error);
  }
  refresh();
}

function chooseBundle(name) {
  const bundle = bundles.find((each) => each.name === name);
  if (!bundle) return;
  $("bundle").value = name;
  $("use").textContent = bundle.use;
  $("expression").disabled = !bundle.takes_words;
  $("segment").disabled = !bundle.takes_words;
  $("expression").placeholder = bundle.takes_words
    ? bundle.words ? "Say what to cut out: the red circle" : "Say what to cut out: the mug on the left"
    : "This model takes clicks and boxes, not words";
  $("note").hidden = bundle.takes_words && !bundle.words;
  $("note").textContent = wordsHint();
  showChips([]);
  refresh();
}

function wordsHint() {
  return "Words on photos need an exported checkpoint (segagent-rt serve -b BUNDLE), or a model behind a server (--endpoint URL).";
}

function labelOf(bundle) {
  const takes = !bundle.takes_words ? "clicks and boxes" : bundle.words ? "coloured shapes" : "words, clicks and boxes";
  return `${bundle.name}: ${takes}`;
}

function showChips(expressions) {
  $("chips").replaceChildren(...(expressions || []).map((text) => {
    const chip = element("button", { type: "button" }, text);
    chip.addEventListener("click", () => {
      $("expression").value = text;
      segment(text);
    });
    return chip;
  }));
}

// Saving

async function save(kind) {
  const object = objects.get(current);
  if (!object) return;
  const stem = (source.name.replace(/\.[^.]*$/, "") || "image").replace(/[^\p{L}\p{N}._-]+/gu, "-");
  const one = `/v1/images/${image.image}/objects/${current}`;
  const [path, name] = {
    mask: [`${one}/mask`, `${stem}.${current}.mask.png`],
    cutout: [`${one}/cutout`, `${stem}.${current}.cutout.png`],
    results: [`/v1/images/${image.image}/results`, `${stem}.segagent.json`],
    coco: [`/v1/images/${image.image}/coco`, `${stem}.coco.json`],
  }[kind];
  try {
    const link = element("a", { href: URL.createObjectURL(await api.blob(path)), download: name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  } catch (error) {
    message(error);
  }
}

// Small things

let busyCount = 0;
function busy(change) {
  busyCount += change;
  $("busy").hidden = busyCount === 0;
}

function message(error) {
  const box = $("message");
  box.hidden = !error;
  if (!error) return;
  box.replaceChildren(sentence(error.message), ...(error.hint ? [element("small", {}, error.hint)] : []));
  hint(null);
}

function sentence(text) {
  const first = text.charAt(0).toUpperCase() + text.slice(1);
  return /[.!?]$/.test(first) ? first : `${first}.`;
}

let hintTimer = null;
function hint(text) {
  clearTimeout(hintTimer);
  $("hint").hidden = !text;
  $("hint").textContent = text || "";
  if (text) hintTimer = setTimeout(() => { $("hint").hidden = true; }, 7000);
}

function askToken() {
  return new Promise((resolve) => {
    const dialog = $("token-dialog");
    const done = () => {
      dialog.removeEventListener("close", done);
      resolve($("token").value);
    };
    dialog.addEventListener("close", done);
    if (!dialog.open) dialog.showModal();
  });
}

function chooseTool(tool) {
  view.tool = tool;
  $("canvas").dataset.tool = tool;
  for (const button of document.querySelectorAll("[data-tool]")) {
    if (button.id !== "canvas") button.setAttribute("aria-checked", String(button.dataset.tool === tool));
  }
}

function changeOpacity(value) {
  $("opacity").value = value;
  view.opacity = Number($("opacity").value) / 100;
  view.redraw();
}

function listen() {
  for (const id of ["open", "choose"]) $(id).addEventListener("click", () => $("file").click());
  $("file").addEventListener("change", () => {
    openFile($("file").files[0]);
    $("file").value = "";
  });
  addEventListener("paste", (event) => {
    const file = [...event.clipboardData.files].find((each) => each.type.startsWith("image/"));
    if (file) openFile(file);
  });
  const frame = document.body;
  frame.addEventListener("dragover", (event) => {
    event.preventDefault();
    $("frame").classList.add("over");
  });
  frame.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) $("frame").classList.remove("over");
  });
  frame.addEventListener("drop", (event) => {
    event.preventDefault();
    $("frame").classList.remove("over");
    openFile(event.dataTransfer.files[0]);
  });
  $("words").addEventListener("submit", (event) => {
    event.preventDefault();
    const said = $("expression").value.trim();
    if (said) segment(said);
  });
  $("stop").addEventListener("click", () => run && run.stop());
  $("bundle").addEventListener("change", () => {
    const name = $("bundle").value;
    chooseBundle(name);
    if (source) openImage(source.content, source.name, name);
  });
  for (const button of document.querySelectorAll("button[data-tool]")) button.addEventListener("click", () => chooseTool(button.dataset.tool));
  for (const button of document.querySelectorAll("[data-save]")) button.addEventListener("click", () => save(button.dataset.save));
  $("undo").addEventListener("click", () => history("undo"));
  $("redo").addEventListener("click", () => history("redo"));
  $("new").addEventListener("click", startNew);
  $("refine").addEventListener("click", refine);
  $("score").addEventListener("click", score);
  $("fit").addEventListener("click", () => view.fit());
  $("zoom-in").addEventListener("click", () => view.zoom(1.25));
  $("zoom-out").addEventListener("click", () => view.zoom(0.8));
  $("opacity").addEventListener("input", () => changeOpacity($("opacity").value));
  $("help").addEventListener("click", () => $("shortcuts").showModal());
  $("theme").addEventListener("click", () => {
    const root = document.documentElement;
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
    localStorage.setItem("segagent-theme", root.dataset.theme);
  });
  addEventListener("keydown", shortcut);
  addEventListener("keyup", (event) => { if (event.key === " ") space(false); });
  addEventListener("blur", () => space(false));
}

function startNew() {
  if (run) run.stop();
  current = null;
  hint("The next click or box makes a new object.");
  refresh();
}

function space(held) {
  view.spaced = held;
  $("canvas").classList.toggle("moving", held);
}

function shortcut(event) {
  if (document.querySelector("dialog[open]")) return;
  const typing = event.target.closest("input, select, textarea");
  const command = event.ctrlKey || event.metaKey;
  if (command && event.key.toLowerCase() === "z" && !(typing && typing.type === "text")) {
    history(event.shiftKey ? "redo" : "undo");
  } else if (command && event.key.toLowerCase() === "y") {
    history("redo");
  } else if (event.key === "Escape" && run) {
    run.stop();
  } else if (command || event.altKey || (typing && typing.type !== "range")) {
    return;
  } else {
    const opacity = Number($("opacity").value);
    const button = event.target.closest("button, a, summary");
    const actions = {
      a: () => chooseTool("add"), r: () => chooseTool("remove"), b: () => chooseTool("box"), h: () => chooseTool("pan"),
      n: startNew, v: () => toggle(current), 0: () => view.fit(), "+": () => view.zoom(1.25), "=": () => view.zoom(1.25),
      "-": () => view.zoom(0.8), "[": () => changeOpacity(opacity - 10), "]": () => changeOpacity(opacity + 10),
      "/": () => $("expression").focus(), "?": () => $("shortcuts").showModal(),
      delete: () => current !== null && remove(current),
      ...(button ? {} : { " ": () => space(true) }),
    };
    const action = actions[event.key.toLowerCase()];
    if (!action) return;
    action();
  }
  event.preventDefault();
}

async function start() {
  const theme = localStorage.getItem("segagent-theme");
  if (theme) document.documentElement.dataset.theme = theme;
  listen();
  chooseTool("add");
  try {
    bundles = await api.get("/v1/bundles");
    $("bundle").replaceChildren(...bundles.map((each) => element("option", { value: each.name }, labelOf(each))));
    chooseBundle(bundles[0].name);
    const examples = await api.get("/v1/examples");
    $("examples").replaceChildren(...examples.map((example) => {
      const button = element("button", { type: "button", title: example.about }, `Try the ${example.name}`);
      button.dataset.example = example.name;
      button.addEventListener("click", () => openExample(example));
      return button;
    }));
    document.body.dataset.ready = "yes";
  } catch (error) {
    message(error);
  }
}

start();
