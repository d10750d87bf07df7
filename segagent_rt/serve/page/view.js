// The canvas: draws the image, masks, boxes and clicks; turns pointers into clicks, boxes and moves.

const POSITIVE = "#0084ff";
const NEGATIVE = "#ff2d2d";
const DRAG = 6; // screen pixels from which on a press is a drag
const GROW = 420; // milliseconds in which a new mask grows
const LEAST = 0.02;
const MOST = 32;

export class View {
  // handlers: {click(x, y, positive), box({x0, y0, x1, y1}), zoomed(scale)}, in pixels of the image.
  constructor(canvas, handlers) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.handlers = handlers;
    this.image = null;
    this.objects = []; // {pictures, previous, since, origin, visible, marks, boxes, current}
    this.opacity = 0.45;
    this.tool = "add";
    this.scale = 1;
    this.left = 0;
    this.top = 0;
    this.pointers = new Map();
    this.drag = null;
    this.pointer = null; // of the keyboard
    this.spaced = false;
    this.calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    new ResizeObserver(() => this.resized()).observe(canvas);
    this.listen();
  }

  show(image) {
    this.image = image;
    this.objects = [];
    this.pointer = null;
    this.fit();
  }

  fit() {
    if (!this.image) return;
    const { width, height } = this.size();
    const margin = 12;
    this.scale = Math.min((width - 2 * margin) / this.image.width, (height - 2 * margin) / this.image.height, MOST);
    this.scale = Math.max(this.scale, LEAST);
    this.left = (width - this.image.width * this.scale) / 2;
    this.top = (height - this.image.height * this.scale) / 2;
    this.fitted = true;
    this.changed();
  }

  zoom(factor, x, y) {
    const { width, height } = this.size();
    const [u, v] = [x ?? width / 2, y ?? height / 2];
    const scale = Math.min(MOST, Math.max(LEAST, this.scale * factor));
    this.left = u - ((u - this.left) * scale) / this.scale;
    this.top = v - ((v - this.top) * scale) / this.scale;
    this.scale = scale;
    this.fitted = false;
    this.changed();
  }

  move(dx, dy) {
    this.left += dx;
    this.top += dy;
    this.fitted = false;
    this.changed();
  }

  size() {
    return { width: this.canvas.clientWidth, height: this.canvas.clientHeight };
  }

  resized() {
    const ratio = devicePixelRatio || 1;
    const { width, height } = this.size();
    this.canvas.width = Math.max(1, Math.round(width * ratio));
    this.canvas.height = Math.max(1, Math.round(height * ratio));
    if (this.fitted) this.fit();
    else this.changed();
  }

  changed() {
    Object.assign(this.canvas.dataset, { scale: this.scale, left: this.left, top: this.top });
    this.handlers.zoomed(this.scale);
    this.redraw();
  }

  redraw() {
    if (this.waiting) return;
    this.waiting = requestAnimationFrame((now) => {
      this.waiting = null;
      if (this.draw(now)) this.redraw();
    });
  }

  // Returns whether something still moves.
  draw(now) {
    const { context, canvas } = this;
    const ratio = devicePixelRatio || 1;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, canvas.width, canvas.height);
    if (!this.image) return false;
    const { width, height } = this.image;
    context.setTransform(ratio * this.scale, 0, 0, ratio * this.scale, ratio * this.left, ratio * this.top);
    context.imageSmoothingEnabled = this.scale < 4;
    context.drawImage(this.image, 0, 0, width, height);
    let moving = false;
    for (const object of this.objects) if (object.visible) moving = this.drawMask(object, now) || moving;
    for (const object of this.objects) if (object.visible && object.current) moving = this.drawMarks(object, now) || moving;
    this.drawDrag();
    if (this.pointer && document.activeElement === canvas) this.drawPointer();
    return moving;
  }

  drawMask(object, now) {
    const share = this.calm ? 1 : Math.min(1, (now - object.since) / GROW);
    if (object.previous && share < 1) this.paintMask(object.previous, object.current);
    if (!object.pictures) return share < 1;
    const { context } = this;
    context.save();
    if (share < 1 && object.origin) {
      const [x, y] = object.origin;
      const reach = Math.hypot(this.image.width, this.image.height) * share * share;
      context.beginPath();
      context.arc(x, y, reach, 0, 2 * Math.PI);
      context.clip();
    }
    this.paintMask(object.pictures, object.current);
    context.restore();
    return share < 1;
  }

  paintMask(pictures, current) {
    const { context } = this;
    const { width, height } = this.image;
    context.globalAlpha = this.opacity;
    context.drawImage(pictures.fill, 0, 0, width, height);
    context.globalAlpha = this.opacity > 0 ? (current ? 1 : 0.6) : 0;
    context.drawImage(pictures.edge, 0, 0, width, height);
    context.globalAlpha = 1;
  }

  drawMarks(object, now) {
    const { context } = this;
    const unit = 1 / this.scale;
    for (const box of object.boxes) this.drawBox(box, box.by === "model" ? [6, 4] : []);
    let moving = false;
    object.marks.forEach((mark, at) => {
      const [x, y] = [mark.x + 0.5, mark.y + 0.5];
      const age = (now - object.since) / GROW;
      const colour = mark.positive ? POSITIVE : NEGATIVE;
      if (mark.fresh && age < 1 && !this.calm) {
        moving = true;
        context.beginPath();
        context.arc(x, y, (9 + 24 * age) * unit, 0, 2 * Math.PI);
        context.strokeStyle = colour;
        context.globalAlpha = 1 - age;
        context.lineWidth = 3 * unit;
        context.stroke();
        context.globalAlpha = 1;
      }
      context.beginPath();
      context.arc(x, y, 9 * unit, 0, 2 * Math.PI);
      context.fillStyle = colour;
      context.fill();
      context.lineWidth = 2 * unit;
      context.strokeStyle = "#fff";
      context.stroke();
      context.fillStyle = "#fff";
      context.font = `600 ${11 * unit}px system-ui, sans-serif`;
      context.textAlign = "center";
      context.textBaseline = "middle";
      context.fillText(String(at + 1), x, y + 0.5 * unit);
    });
    return moving;
  }

  drawBox(box, dashes) {
    const { context } = this;
    const unit = 1 / this.scale;
    const area = [box.x0, box.y0, box.x1 - box.x0 + 1, box.y1 - box.y0 + 1];
    context.setLineDash(dashes.map((each) => each * unit));
    context.lineWidth = 4 * unit;
    context.strokeStyle = "#fff";
    context.strokeRect(...area);
    context.lineWidth = 2 * unit;
    context.strokeStyle = POSITIVE;
    context.strokeRect(...area);
    context.setLineDash([]);
  }

  drawDrag() {
    if (this.drag?.kind === "box" && this.drag.far) this.drawBox(this.dragged(), [4, 3]);
  }

  drawPointer() {
    const { context } = this;
    const unit = 1 / this.scale;
    const [x, y] = [this.pointer.x + 0.5, this.pointer.y + 0.5];
    for (const [colour, thick] of [["#000", 4], ["#fff", 2]]) {
      context.strokeStyle = colour;
      context.lineWidth = thick * unit;
      context.beginPath();
      context.moveTo(x - 14 * unit, y);
      context.lineTo(x + 14 * unit, y);
      context.moveTo(x, y - 14 * unit);
      context.lineTo(x, y + 14 * unit);
      context.stroke();
    }
  }

  // Pixel of the image below a place on the screen; may lie outside.
  pixel(x, y) {
    return [Math.floor((x - this.left) / this.scale), Math.floor((y - this.top) / this.scale)];
  }

  inside(x, y) {
    return x >= 0 && y >= 0 && x < this.image.width && y < this.image.height;
  }

  dragged() {
    const clamp = (value, most) => Math.min(Math.max(value, 0), most - 1);
    const [ax, ay] = this.pixel(this.drag.x, this.drag.y);
    const [bx, by] = this.pixel(this.drag.toX, this.drag.toY);
    const { width, height } = this.image;
    return {
      x0: clamp(Math.min(ax, bx), width), y0: clamp(Math.min(ay, by), height),
      x1: clamp(Math.max(ax, bx), width), y1: clamp(Math.max(ay, by), height),
    };
  }

  listen() {
    const { canvas } = this;
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    canvas.addEventListener("pointerdown", (event) => this.pressed(event));
    canvas.addEventListener("pointermove", (event) => this.pointed(event));
    canvas.addEventListener("pointerup", (event) => this.released(event));
    canvas.addEventListener("pointercancel", (event) => this.forget(event));
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      if (!this.image) return;
      const lines = event.deltaMode === 1 ? 30 : 1;
      this.zoom(Math.exp(-event.deltaY * lines * 0.0015), event.offsetX, event.offsetY);
    }, { passive: false });
    canvas.addEventListener("keydown", (event) => this.typed(event));
    for (const kind of ["focus", "blur"]) canvas.addEventListener(kind, () => this.redraw());
  }

  pressed(event) {
    if (!this.image) return;
    this.canvas.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, [event.offsetX, event.offsetY]);
    this.pointer = null;
    if (this.pointers.size === 2) {
      this.drag = { kind: "pinch", ...this.pinch() };
      return;
    }
    const moves = this.tool === "pan" || this.spaced || event.button === 1;
    this.drag = {
      kind: moves ? "pan" : "box", button: event.button, far: false,
      x: event.offsetX, y: event.offsetY, toX: event.offsetX, toY: event.offsetY,
    };
  }

  pointed(event) {
    if (!this.pointers.has(event.pointerId) || !this.drag) return;
    const [beforeX, beforeY] = this.pointers.get(event.pointerId);
    this.pointers.set(event.pointerId, [event.offsetX, event.offsetY]);
    const { drag } = this;
    if (drag.kind === "pinch") {
      const now = this.pinch();
      this.move(now.x - drag.x, now.y - drag.y);
      this.zoom(now.apart / drag.apart, now.x, now.y);
      Object.assign(drag, now);
      return;
    }
    drag.toX = event.offsetX;
    drag.toY = event.offsetY;
    drag.far ||= Math.hypot(drag.toX - drag.x, drag.toY - drag.y) > DRAG;
    if (drag.kind === "pan") this.move(event.offsetX - beforeX, event.offsetY - beforeY);
    else if (drag.button === 0) this.redraw();
  }

  released(event) {
    const { drag } = this;
    this.forget(event);
    if (!drag || drag.kind !== "box") return;
    if (drag.far && drag.button === 0) {
      this.drag = drag;
      const box = this.dragged();
      this.drag = null;
      if (box.x1 > box.x0 && box.y1 > box.y0) this.handlers.box(box);
      return;
    }
    const [x, y] = this.pixel(drag.x, drag.y);
    if (drag.far || !this.inside(x, y)) return;
    if (drag.button === 2) this.handlers.click(x, y, false);
    else if (this.tool !== "box") this.handlers.click(x, y, this.tool !== "remove");
  }

  forget(event) {
    this.pointers.delete(event.pointerId);
    this.drag = null;
    this.redraw();
  }

  pinch() {
    const [[ax, ay], [bx, by]] = [...this.pointers.values()];
    return { x: (ax + bx) / 2, y: (ay + by) / 2, apart: Math.max(1, Math.hypot(ax - bx, ay - by)) };
  }

  typed(event) {
    const ways = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (!this.image || event.ctrlKey || event.metaKey) return;
    const { width, height } = this.image;
    if (ways[event.key]) {
      const [dx, dy] = ways[event.key];
      const far = event.altKey ? 1 : Math.max(1, Math.round(10 / this.scale));
      const from = this.pointer || { x: Math.floor(width / 2), y: Math.floor(height / 2) };
      const step = this.pointer ? far : 0;
      this.pointer = {
        x: Math.min(width - 1, Math.max(0, from.x + dx * step)),
        y: Math.min(height - 1, Math.max(0, from.y + dy * step)),
      };
      this.redraw();
      event.preventDefault();
    } else if (event.key === "Enter" && this.pointer) {
      this.handlers.click(this.pointer.x, this.pointer.y, !event.shiftKey);
      event.preventDefault();
    }
  }
}
