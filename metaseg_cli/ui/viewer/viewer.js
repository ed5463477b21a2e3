import { PLANES, clamp, eachVoxel, placeOf, planeSize, voxelAt } from "./planes.js";
import { automaticWindow, blend, countFrom, grey, heat, isRim, reaches } from "./paint.js";
import { take, whenChanged } from "./store.js";

const KEYS = [
  ["Wheel, ↑ ↓", "next and previous slice of the plane under the pointer"],
  ["Page ↑ ↓", "ten slices"],
  ["Click, drag", "crosshair, in all planes"],
  ["Right drag", "window: across for contrast, up and down for brightness"],
  ["A", "automatic window"],
  ["Space (held)", "without overlay"],
  ["N, P", "next and previous lesion"],
  ["M", "outline, filled, both"],
  ["H", "probability as heat"],
  ["1 – 4", "sequence"],
  ["+, −, Ctrl wheel", "zoom at the crosshair; 0: whole slice"],
  ["Double click", "one plane alone, and back"],
  ["?", "these keys"],
];
const STYLES = ["both", "outline", "filled"];
const FADED = 0.4;
const viewers = new WeakMap();

function element(parent, tag, name, text = "") {
  const made = document.createElement(tag);
  if (name) made.className = name;
  made.textContent = text;
  parent.append(made);
  return made;
}

class Viewer {
  constructor(parent) {
    this.root = element(parent, "div", "metaseg-viewer");
    this.root.tabIndex = 0;
    this.root.dataset.testid = "viewer";
    this.root.dataset.state = "loading";
    this.root.setAttribute("role", "application");
    this.root.setAttribute("aria-label", "Viewer. Press ? for its keys.");
    this.planes = element(this.root, "div", "metaseg-planes");
    this.panes = Object.entries(PLANES).map(([name, plane]) => this.pane(name, plane));
    this.bar = element(this.root, "div", "metaseg-bar");
    this.where = element(this.bar, "span", "");
    this.marks = element(this.bar, "div", "metaseg-marks");
    this.marks.onclick = (event) => this.slideTo(event);
    this.button("Lesion ‹", "previous lesion (P)", () => this.nextLesion(-1));
    this.button("›", "next lesion (N)", () => this.nextLesion(1));
    this.heatButton = this.button("Heat", "probability as heat (H)", () => this.toggle("heat"));
    this.button("?", "list of keys", () => this.showKeys());
    const label = element(this.bar, "label", "", "Overlay ");
    this.slider = element(label, "input", "");
    Object.assign(this.slider, { type: "range", min: 0, max: 1, step: 0.05, value: FADED });
    this.slider.setAttribute("aria-label", "opacity of the overlay");
    this.slider.oninput = () => this.draw();
    this.live = element(this.root, "div", "metaseg-live");
    this.live.setAttribute("aria-live", "polite");
    Object.assign(this, { data: null, plane: "axial", hidden: false, heat: false, style: 0, channel: 0, zoom: 1 });
    this.listen();
  }

  pane(name, plane) {
    const pane = element(this.planes, "div", "metaseg-pane");
    const canvas = element(pane, "canvas", "");
    canvas.setAttribute("role", "img");
    const sides = [["top:2px;left:50%"], ["bottom:2px;left:50%"], ["left:4px;top:48%"], ["right:4px;top:48%"]];
    const letters = plane.letters.map((letter, i) => {
      const span = element(pane, "span", "", letter);
      span.style.cssText = sides[i];
      return span;
    });
    const note = element(pane, "span", "");
    note.style.cssText = "left:6px;top:4px";
    const scale = element(pane, "span", "");
    scale.style.cssText = "right:8px;bottom:4px;border-bottom:2px solid #f1f3f5;text-align:right";
    return { name, plane, pane, canvas, letters, note, scale, buffer: document.createElement("canvas") };
  }

  button(text, title, act) {
    const made = element(this.bar, "button", "", text);
    made.title = title;
    made.setAttribute("aria-label", title);
    made.onclick = act;
    return made;
  }

  listen() {
    this.root.onkeydown = (event) => this.key(event);
    this.root.onkeyup = (event) => event.key === " " && this.hide(false);
    for (const each of this.panes) {
      each.canvas.onwheel = (event) => this.wheel(event, each);
      each.canvas.onpointerdown = (event) => this.press(event, each);
      each.canvas.onpointermove = (event) => this.move(event, each);
      each.canvas.onpointerup = () => (this.drag = null);
      each.canvas.onpointerenter = () => this.choose(each.name);
      each.canvas.ondblclick = () => this.alone(each);
      each.canvas.oncontextmenu = (event) => event.preventDefault();
    }
    const resized = new ResizeObserver(() => this.draw());
    resized.observe(this.planes);
    const stop = whenChanged(() => this.refresh());
    // The slider belongs to Streamlit, which tells Python when it is let go: until then the page shows a preview.
    const watcher = new MutationObserver(() => this.watchThreshold());
    watcher.observe(document.body, { subtree: true, attributes: true, attributeFilter: ["aria-valuenow", "aria-valuetext"] });
    this.end = () => {
      resized.disconnect();
      watcher.disconnect();
      stop();
      document.body.classList.remove("metaseg-preview");
      this.root.remove();
    };
  }

  update(data) {
    const other = !this.data || this.data.scan !== data.scan;
    const moved = other || this.data.focus !== data.focus;
    this.data = data;
    this.typed = null;
    if (other) {
      Object.assign(this, { window: null, zoom: 1, channel: data.channel, at: data.shape.map((n) => n >> 1) });
      this.planes.classList.toggle("alone", data.picture);
      this.choose("axial");
    }
    if (moved && data.focus) this.goTo(data.focus);
    else this.refresh();
    this.watchThreshold();
  }

  goTo(number) {
    const lesion = this.data.lesions.find((each) => each.number === number);
    if (lesion) this.at = [...lesion.at];
    this.refresh();
  }

  nextLesion(step) {
    const numbers = this.data.lesions.map((each) => each.number);
    if (!numbers.length) return;
    const now = numbers.indexOf(this.lesion);
    this.lesion = numbers[(now < 0 ? (step > 0 ? 0 : numbers.length - 1) : now + step + numbers.length) % numbers.length];
    this.goTo(this.lesion);
    this.live.textContent = `lesion ${this.lesion} of ${numbers.length}`;
  }

  watchThreshold() {
    const thumb = document.querySelector('.st-key-threshold :is([role="slider"], input[type="range"])');
    const value = Number(thumb?.getAttribute("aria-valuenow") ?? thumb?.getAttribute("aria-valuetext") ?? NaN);
    const typed = Number.isFinite(value) && this.data && Math.abs(value - this.data.slider) > 1e-6 ? value : null;
    if (typed === this.typed) return;
    this.typed = typed;
    this.refresh();
  }

  refresh() {
    if (!this.data) return;
    const { slots, scan, mask } = this.data;
    this.images = slots.images.map((slot) => take(slot, scan));
    this.probability = take(slots.probability, scan);
    this.mask = take(slots.mask, mask);
    if (this.images.every(Boolean) && !this.window) this.window = this.automatic();
    this.draw();
  }

  automatic() {
    return automaticWindow(this.images[this.data.colours ? 0 : this.channel].values);
  }

  get preview() {
    return this.typed !== null || !this.mask;
  }

  // What is drawn over voxel i: the number of a region, or 0.
  over(i) {
    if (this.preview) return reaches(this.probability.values[i], this.typed ?? this.data.threshold) ? this.data.index : 0;
    return this.mask.values[i];
  }

  draw() {
    if (!this.data || !this.images?.every(Boolean) || !this.probability) return;
    for (const each of this.panes) if (each.pane.offsetParent) this.drawPane(each);
    this.describe();
  }

  drawPane(each) {
    const { shape } = this.data;
    const { plane, buffer } = each;
    const [rows, columns] = planeSize(plane, shape);
    Object.assign(buffer, { width: columns, height: rows });
    const context = buffer.getContext("2d");
    const picture = context.createImageData(columns, rows);
    const [low, high] = this.window;
    const numbers = new Uint8Array(rows * columns);
    const opacity = this.hidden ? 0 : Number(this.slider.value);
    const channels = this.data.colours ? this.images : [this.images[this.channel]];
    const { values } = this.probability;
    eachVoxel(plane, shape, this.at[plane.through], (place, voxel) => {
      for (let i = 0; i < 3; i++) picture.data[4 * place + i] = grey(channels[i % channels.length].values[voxel], low, high);
      picture.data[4 * place + 3] = 255;
      if (this.hidden) return;
      if (this.heat) {
        if (values[voxel] > 12) blend(picture.data, place, heat(values[voxel] / 255), opacity);
      } else numbers[place] = this.over(voxel);
    });
    if (!this.hidden) this.overlay(picture.data, numbers, rows, columns, opacity);
    context.putImageData(picture, 0, 0);
    this.show(each, rows, columns);
  }

  overlay(pixels, numbers, rows, columns, opacity) {
    const style = STYLES[this.style];
    for (let place = 0; place < numbers.length; place++) {
      if (!numbers[place]) continue;
      const { colour } = this.data.regions[numbers[place] - 1];
      const dashed = this.preview && (place + ((place / columns) | 0)) % 4 > 1;
      if (style !== "filled" && isRim(numbers, place, rows, columns) && !dashed) blend(pixels, place, colour, 0.95);
      else if (style !== "outline") blend(pixels, place, colour, opacity);
    }
  }

  // The part of the pane that the slice fills, in CSS pixels: true to the voxels' size, around the crosshair when zoomed.
  frame(each) {
    const { spacing, shape } = this.data;
    const [rows, columns] = planeSize(each.plane, shape);
    const [height, width] = [rows * spacing[each.plane.row], columns * spacing[each.plane.column]];
    const { clientWidth: w, clientHeight: h } = each.canvas;
    const unit = Math.min(w / width, h / height) * this.zoom;
    const [row, column] = placeOf(each.plane, shape, this.at);
    const free = (space, size, share) => (size <= space ? (space - size) / 2 : clamp(space / 2 - share * size, space - size, 0));
    const [left, top] = [free(w, width * unit, (column + 0.5) / columns), free(h, height * unit, (row + 0.5) / rows)];
    return { left, top, width: width * unit, height: height * unit, unit, rows, columns };
  }

  show(each, rows, columns) {
    const { canvas, plane, buffer } = each;
    const ratio = window.devicePixelRatio || 1;
    Object.assign(canvas, { width: canvas.clientWidth * ratio, height: canvas.clientHeight * ratio });
    const context = canvas.getContext("2d");
    const frame = this.frame(each);
    context.scale(ratio, ratio);
    context.imageSmoothingEnabled = frame.width / columns < 3;
    context.drawImage(buffer, frame.left, frame.top, frame.width, frame.height);
    const [row, column] = placeOf(plane, this.data.shape, this.at);
    const x = frame.left + ((column + 0.5) * frame.width) / columns;
    const y = frame.top + ((row + 0.5) * frame.height) / rows;
    if (!this.hidden) {
      context.strokeStyle = "rgba(120, 200, 255, 0.45)";
      context.beginPath();
      for (const [a, b, c, d] of [[x, 0, x, y - 8], [x, y + 8, x, 1e4], [0, y, x - 8, y], [x + 8, y, 1e4, y]]) {
        context.moveTo(a, b);
        context.lineTo(c, d);
      }
      if (!this.data.picture) context.stroke();
      this.numberLesions(context, each, frame);
    }
    this.label(each, frame);
  }

  numberLesions(context, each, frame) {
    if (this.preview) return; // numbers are of the lesions that Python has counted
    const at = this.at[each.plane.through];
    context.font = "bold 12px sans-serif";
    for (const lesion of this.data.lesions) {
      if (at < lesion.box[each.plane.through][0] || at >= lesion.box[each.plane.through][1]) continue;
      const corner = [0, 1, 2].map((axis) => lesion.box[axis][1] - 1);
      if (each.plane.flipped) corner[each.plane.row] = lesion.box[each.plane.row][0];
      const [row, column] = placeOf(each.plane, this.data.shape, corner);
      const x = frame.left + ((column + 1) * frame.width) / frame.columns + 2;
      const y = frame.top + ((row + 1) * frame.height) / frame.rows + 10;
      context.fillStyle = "#000";
      context.fillText(lesion.number, x + 1, y + 1);
      context.fillStyle = "#fff";
      context.fillText(lesion.number, x, y);
    }
  }

  label(each, frame) {
    const { plane, letters, note, scale, canvas } = each;
    const [n, count] = [this.at[plane.through] + 1, this.data.shape[plane.through]];
    for (const letter of letters) letter.hidden = !this.data.oriented;
    note.textContent = count > 1 ? `${each.name} ${n}/${count}` : "";
    canvas.setAttribute("aria-label", `${each.name} slice ${n} of ${count}`);
    const length = [1, 2, 5, 10, 20, 50, 100, 200].filter((mm) => mm * frame.unit < canvas.clientWidth / 3).pop() ?? 1;
    scale.textContent = `${length} ${this.data.unit}`;
    scale.style.width = `${length * frame.unit}px`;
  }

  describe() {
    const { plane } = this.panes.find((each) => each.name === this.plane);
    const { data } = this;
    const preview = this.preview;
    const threshold = preview ? this.typed ?? data.threshold : data.threshold;
    const [n, count] = [this.at[plane.through] + 1, data.shape[plane.through]];
    const voxels = preview ? countFrom(this.probability.values, threshold) : data.voxels;
    Object.assign(this.root.dataset, { plane: this.plane, slice: n, slices: count, threshold, voxels });
    Object.assign(this.root.dataset, { lesions: data.lesions.length, state: preview ? "preview" : "final" });
    // The table counts what was found at the threshold before: grey until Python has counted again.
    document.body.classList.toggle("metaseg-preview", preview);
    const [z, y, x] = this.at;
    const value = this.valueAt(z, y, x);
    const mm = data.unit === "mm" && count > 1 ? ` (${(this.at[plane.through] * data.spacing[plane.through]).toFixed(1)} mm)` : "";
    this.where.textContent = `${count > 1 ? `slice ${n}/${count}${mm} · ` : ""}value ${value}${preview ? " · preview" : ""}`;
    this.heatButton.setAttribute("aria-pressed", this.heat);
    this.markSlices(plane, count, n);
  }

  valueAt(z, y, x) {
    const [, height, width] = this.data.shape;
    const shown = this.data.colours ? this.images : [this.images[this.channel]];
    const i = (z * height + y) * width + x;
    return shown.map(({ values, low, step }) => Number((low + step * values[i]).toPrecision(4))).join(" ");
  }

  markSlices(plane, count, n) {
    this.marks.replaceChildren();
    this.marks.hidden = count === 1;
    for (const lesion of this.data.lesions) {
      const mark = element(this.marks, "i", "");
      mark.style.left = `${(100 * (lesion.at[plane.through] + 0.5)) / count}%`;
      mark.title = `lesion ${lesion.number}`;
    }
    element(this.marks, "b", "").style.left = `${(100 * (n - 0.5)) / count}%`;
  }

  slideTo(event) {
    const { plane } = this.panes.find((each) => each.name === this.plane);
    const count = this.data.shape[plane.through];
    this.step(Math.floor((event.offsetX / this.marks.clientWidth) * count) - this.at[plane.through]);
  }

  choose(name) {
    this.plane = name;
    for (const each of this.panes) each.pane.classList.toggle("chosen", each.name === name);
    if (this.images?.every(Boolean) && this.probability) this.describe();
  }

  step(by) {
    const { plane } = this.panes.find((each) => each.name === this.plane);
    const axis = plane.through;
    this.at[axis] = clamp(this.at[axis] + by, 0, this.data.shape[axis] - 1);
    this.draw();
  }

  wheel(event, each) {
    event.preventDefault();
    this.choose(each.name);
    if (event.ctrlKey) this.zoomBy(event.deltaY < 0 ? 1.25 : 0.8);
    else this.step(Math.sign(event.deltaY));
  }

  zoomBy(factor) {
    this.zoom = clamp(this.zoom * factor, 1, 16);
    this.draw();
  }

  press(event, each) {
    this.root.focus({ preventScroll: true });
    this.choose(each.name);
    each.canvas.setPointerCapture(event.pointerId);
    this.drag = { button: event.button, x: event.clientX, y: event.clientY, window: this.window };
    this.move(event, each);
  }

  move(event, each) {
    if (!this.drag || !this.data) return;
    if (this.drag.button === 2) this.rewindow(event);
    else if (this.drag.button === 0) this.cross(event, each);
    this.draw();
  }

  rewindow(event) {
    const [low, high] = this.drag.window;
    const unit = (high - low) / 250;
    const half = Math.max(unit, (high - low) / 2 + (event.clientX - this.drag.x) * unit);
    const middle = (low + high) / 2 + (event.clientY - this.drag.y) * unit;
    this.window = [middle - half, middle + half];
  }

  cross(event, each) {
    const frame = this.frame(each);
    const column = Math.floor(((event.offsetX - frame.left) / frame.width) * frame.columns);
    const row = Math.floor(((event.offsetY - frame.top) / frame.height) * frame.rows);
    if (row < 0 || column < 0 || row >= frame.rows || column >= frame.columns) return;
    this.at = voxelAt(each.plane, this.data.shape, this.at, row, column);
  }

  alone(each) {
    if (this.data.picture) return;
    this.choose(each.name);
    this.planes.classList.toggle("alone");
    this.draw();
  }

  hide(hidden) {
    this.hidden = hidden;
    this.draw();
  }

  toggle(what) {
    this[what] = !this[what];
    this.draw();
  }

  showKeys() {
    if (this.keys) {
      this.keys.remove();
      this.keys = null;
      return;
    }
    this.keys = element(this.root, "div", "metaseg-keys");
    this.keys.onclick = () => this.showKeys();
    const table = element(this.keys, "table", "");
    for (const [key, what] of KEYS) {
      const row = element(table, "tr", "");
      element(row, "td", "", key);
      element(row, "td", "", what);
    }
  }

  key(event) {
    if (!this.data || event.target === this.slider || event.altKey || event.metaKey) return;
    const act = {
      ArrowUp: () => this.step(-1),
      ArrowDown: () => this.step(1),
      ArrowLeft: () => this.step(-1),
      ArrowRight: () => this.step(1),
      PageUp: () => this.step(-10),
      PageDown: () => this.step(10),
      " ": () => this.hide(true),
      a: () => ((this.window = this.automatic()), this.draw()),
      n: () => this.nextLesion(1),
      p: () => this.nextLesion(-1),
      h: () => this.toggle("heat"),
      m: () => ((this.style = (this.style + 1) % STYLES.length), this.draw()),
      "+": () => this.zoomBy(1.25),
      "=": () => this.zoomBy(1.25),
      "-": () => this.zoomBy(0.8),
      0: () => this.zoomBy(0),
      "?": () => this.showKeys(),
    }[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    const sequence = "1234".indexOf(event.key);
    if (act && !event.ctrlKey) act();
    else if (sequence >= 0 && sequence < this.images.length && !this.data.colours) this.switchTo(sequence);
    else return;
    event.preventDefault();
    event.stopPropagation(); // Streamlit has keys of its own
  }

  switchTo(sequence) {
    this.channel = sequence;
    this.window = this.automatic();
    this.draw();
  }
}

export default function viewer({ data, parentElement }) {
  let shown = viewers.get(parentElement);
  if (!shown) viewers.set(parentElement, (shown = new Viewer(parentElement)));
  shown.update(data);
  // A rerun of the page may mount the same element again at once: slice, window and zoom stay as they are.
  return () =>
    setTimeout(() => {
      if (parentElement.isConnected) return;
      shown.end();
      viewers.delete(parentElement);
    });
}
