// The panels beside the image, made from the server's answers. Text goes in as text, never as HTML.

export function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key in made) made[key] = value;
    else made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
}

export function milliseconds(seconds) {
  const ms = seconds * 1000;
  return ms < 10 ? `${ms.toFixed(1)} ms` : ms < 10000 ? `${Math.round(ms)} ms` : `${seconds.toFixed(1)} s`;
}

export function percent(share) {
  return `${Math.round(share * 100)}%`;
}

export function nameOf(object) {
  return object.answer.expression || `Object ${object.number}`;
}

// handlers: {choose(number), toggle(number), remove(number)}
export function showObjects(list, objects, current, handlers) {
  list.replaceChildren(...[...objects.values()].map((object) => {
    const { number, answer, colour, visible } = object;
    const swatch = element("span", { className: "swatch" });
    swatch.style.background = `rgb(${colour.join(" ")})`;
    const name = element("button", { type: "button", className: "name", title: "Work on this object" },
      swatch, element("span", {}, nameOf(object)));
    name.setAttribute("aria-pressed", String(number === current));
    name.addEventListener("click", () => handlers.choose(number));
    const rating = answer.rating ?? answer.estimate;
    const rated = element("span", {
      className: "rating",
      title: answer.rating === null ? "The segmenter's estimate of the mask's IoU" : "The model's rating of the mask (predicted IoU)",
    }, rating === null ? "" : `${answer.rating === null ? "~" : ""}${percent(rating)}`);
    const eye = element("button", { type: "button", title: visible ? "Hide" : "Show", ariaLabel: visible ? "Hide" : "Show" },
      icon(visible ? "eye" : "eye-off"));
    eye.addEventListener("click", () => handlers.toggle(number));
    const bin = element("button", { type: "button", title: "Delete", ariaLabel: `Delete ${nameOf(object)}` }, icon("bin"));
    bin.addEventListener("click", () => handlers.remove(number));
    const row = element("li", { className: number === current ? "current" : "" }, name, rated, eye, bin);
    row.dataset.object = number;
    return row;
  }));
}

const PARTS = ["annotate", "segment"]; // they add up to a step; the others are inside of them

function stagesOf(seconds) {
  const whole = PARTS.filter((part) => part in seconds).map((part) => `${part} ${milliseconds(seconds[part])}`);
  const inner = Object.keys(seconds).filter((stage) => !PARTS.includes(stage));
  if (inner.length) whole.push(`of it ${inner.map((stage) => `${stage} ${milliseconds(seconds[stage])}`).join(", ")}`);
  return whole.join(" · ");
}

const STOPS = {
  accepted: "the model is content with the mask", "accepted unrated": "the click and the outline are certain",
  finished: "the model has nothing left to correct",
  malformed: "the reply could not be read", budget: "all clicks are used", unchanged: "the click changed nothing",
  "no gain": "further clicks did not help", "one-shot": "this model gives one box", deadline: "the time was up",
};

export function showSteps(list, answer) {
  let clicks = 0;
  list.replaceChildren(...answer.steps.map((step, at) => {
    let what = "Mask to start from";
    let dot = "dot";
    if (step.click) {
      clicks += 1;
      what = `Click ${clicks} at ${step.click.x}, ${step.click.y}${step.click.positive ? "" : ", removes"}`;
      dot = `dot ${step.click.positive ? "positive" : "negative"}`;
    } else if (step.box) {
      what = `Box ${step.box.x0}, ${step.box.y0} to ${step.box.x1}, ${step.box.y1}`;
      dot = "dot square";
    } else if (!step.has_mask) {
      what = "No click";
    }
    const spent = PARTS.reduce((sum, part) => sum + (step.seconds[part] || 0), 0);
    const who = step.by === "model" ? "model" : step.click || step.box ? "you" : "";
    const row = element("li", { className: at === answer.shown ? "shown" : "" },
      element("div", { className: "head" },
        element("span", {}, element("i", { className: dot }), what),
        element("b", {}, [who, milliseconds(spent)].filter(Boolean).join(" · "))));
    if (step.restarted) row.append(element("div", {}, "The first click was bad; this one replaces it."));
    if (step.rating !== null) row.append(element("div", {}, `Rated ${percent(step.rating)}`));
    if (step.reply) row.append(element("code", {}, step.reply.trim()));
    if (step.problem) row.append(element("div", {}, step.problem));
    const stages = stagesOf(step.seconds);
    if (stages) row.append(element("div", { className: "stages" }, stages));
    return row;
  }));
  if (answer.stop && STOPS[answer.stop]) {
    list.append(element("li", { className: "end" }, `Stopped: ${STOPS[answer.stop]}.`));
  }
}

function fillTable(table, rows) {
  table.replaceChildren(...rows.filter(([, value]) => value).map(([name, value]) =>
    element("tr", {}, element("td", {}, name), element("td", {}, value))));
}

// One line on the image and on how long things took; last: {what, seconds} of the last call.
export function showStatus(line, image, last) {
  const parts = image ? [
    `${image.width} × ${image.height}`,
    `read ${milliseconds(image.seconds.read || 0)}`,
    `encode, once, ${milliseconds(image.seconds.encode || 0)}`,
  ] : [];
  if (last) parts.push(`${last.what.toLowerCase()} ${milliseconds(last.seconds)} with the way to the server and back`);
  line.textContent = parts.join(" · ");
}

export function showBundle(table, vocabulary, bundle) {
  const rows = [["Bundle", `${bundle.name} (${bundle.digest})`], ["About", bundle.about], ["Use", bundle.use]];
  for (const [kind, part] of Object.entries(bundle.parts)) {
    const graphs = Object.entries(part.graphs).map(([role, at]) => `${role}: ${at.variant} on ${at.backend}`);
    rows.push([kind === "mllm" ? "Language model" : "Segmenter", `${part.family}. ${graphs.join(", ")}`]);
    rows.push(["Its licence", part.licence || "not stated in its manifest"]);
    rows.push(["Its training data", part.trained_on.join("; ")]);
  }
  if (bundle.endpoint) rows.push(["Language model", `${bundle.endpoint.model}, on another server`]);
  fillTable(table, rows);
  vocabulary.textContent = bundle.words ? `It knows these words: ${bundle.words.join(", ")}.` : "";
}
