// The playground's maps in the page: five maps with one zoom and one pointer, the list of methods, downloads.
//
// The kernel sends numbers (trait `pixels`, float32) and what they mean (trait `scene`); colours, zoom, hover and the path over flow time
// need no kernel. Readings belong to the kernel: a click asks for a change by a message; a drag sets the trait `drag`, of which the page
// keeps at most the newest unsent while an answer is under way, so that a long drag leaves no queue.

const TOUCH = 9; // pixels around a reading that count as the reading
const STILL = 4; // pixels a pointer may move and still click
const MOST = 16; // largest zoom
const GREY = [190, 190, 190];
const HELP =
  "Click a map to add a reading, a reading to remove it; drag one to move it. Zoom: Ctrl and wheel, or + \u2212 0; drag an empty place " +
  "to pan. Keyboard: arrows move a cross, Enter adds or removes, M picks up and puts down.";

const make = (tag, className, parent, text) => {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text) node.textContent = text;
  parent?.append(node);
  return node;
};
const floats = (view) => new Float32Array(view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength));
const short = (v) => (Number.isFinite(v) ? String(Number(v.toPrecision(3))).replaceAll("-", "\u2212") : "\u2013");
const clamp = (v, low, high) => Math.min(Math.max(v, low), high);

class Maps {
  constructor(model, el) {
    this.model = model;
    this.window = { u: 0, v: 0, size: 1 }; // the part of a map that is shown, in fractions of it
    this.cross = null; // where the keyboard is, in sites
    this.held = null; // the reading under the pointer or in hand: {index, x, y, gesture}
    this.gesture = 0;
    this.frame = -1;
    this.build(el);
    this.resize = new ResizeObserver(() => this.draw());
    this.resize.observe(this.grid);
    this.listen();
    this.receive();
  }

  build(el) {
    this.root = make("div", "sf-maps", el);
    this.root.dataset.lmSuppressShortcuts = "true"; // JupyterLab's keys are ours while the maps have the focus
    this.grid = make("div", "sf-grid", this.root);
    this.grid.tabIndex = 0;
    this.grid.setAttribute("role", "application");
    this.panels = [];
    this.board = make("section", "sf-board");
    const tools = make("div", "sf-tools", this.root);
    for (const [words, label, act] of [
      ["\u2212", "zoom out", () => this.zoom(0.5)],
      ["+", "zoom in", () => this.zoom(2)],
      ["whole map", "show the whole map", () => this.zoom(0)],
    ]) {
      const button = make("button", "sf-button", tools, words);
      button.setAttribute("aria-label", label);
      button.title = label;
      button.onclick = act;
    }
    this.player = make("span", "sf-player", tools);
    this.play = make("button", "sf-button", this.player, "\u25b6 path");
    this.play.setAttribute("aria-label", "play the path over flow time");
    this.time = make("input", "", this.player);
    Object.assign(this.time, { type: "range", min: 0, step: 1 });
    this.time.setAttribute("aria-label", "flow time");
    this.clock = make("span", "", this.player);
    this.say = make("span", "sf-say", tools, HELP);
    this.say.setAttribute("aria-live", "polite");
  }

  listen() {
    this.handlers = {
      "change:serial": () => this.receive(),
      "change:board": () => this.list(),
      "change:busy": () => this.wait(),
      "msg:custom": (message, buffers) => this.save(message, buffers),
    };
    for (const [name, handler] of Object.entries(this.handlers)) this.model.on(name, handler);
    this.grid.addEventListener("keydown", (event) => this.key(event));
    this.time.oninput = () => this.seek(Number(this.time.value));
    this.play.onclick = () => this.run();
  }

  close() {
    for (const [name, handler] of Object.entries(this.handlers)) this.model.off(name, handler);
    this.resize.disconnect();
    clearInterval(this.running);
  }

  // ---- from the kernel ----

  receive() {
    this.scene = this.model.get("scene");
    const { rows, columns, panels } = this.scene;
    if (!rows) return;
    const data = floats(this.model.get("pixels")), sites = floats(this.model.get("sites")), channels = this.scene.channels;
    const count = sites.length / (2 + channels);
    this.sites = Array.from({ length: count }, (_, i) => [sites[2 * i], sites[2 * i + 1]]);
    this.values = Array.from({ length: count }, (_, i) => sites.slice(2 * count + channels * i, 2 * count + channels * (i + 1)));
    let from = 0;
    this.data = panels.map(({ channels: c }) => (c ? data.subarray(from, (from += rows * columns * c)) : null));
    this.path = this.scene.times.length ? data.subarray(from) : null;
    clearInterval(this.running);
    this.player.hidden = !this.path;
    this.frame = -1;
    if (this.path) {
      this.time.max = this.scene.times.length - 1;
      this.time.value = this.time.max;
      this.clock.textContent = `t = 1 of ${this.scene.times.length - 1} steps`;
    }
    this.fill();
    this.grid.setAttribute("aria-label", `${this.scene.words}. ${HELP}`);
    this.draw();
    this.list();
    this.wait();
    Object.assign(this.root.dataset, { serial: this.model.get("serial"), count, title: panels[2].title });
  }

  fill() {
    while (this.panels.length < this.scene.panels.length) {
      const figure = make("figure", "sf-panel");
      const title = make("figcaption", "", figure), canvas = make("canvas", "", figure), scale = make("div", "sf-scale", figure);
      const panel = { figure, title, canvas, low: make("span", "", scale), bar: make("i", "", scale), high: make("span", "", scale) };
      panel.picture = document.createElement("canvas");
      this.panels.push(panel);
      this.grid.append(figure);
      this.point(canvas);
    }
    this.grid.append(this.board);
    this.panels.forEach((panel, i) => {
      const about = this.scene.panels[i], limits = this.scene.limits[about.kind], colour = about.channels === 3;
      panel.title.textContent = about.title;
      panel.canvas.setAttribute("aria-hidden", "true");
      panel.low.textContent = colour ? "" : short(Math.abs(limits[0]) < 1e-6 * limits[1] ? 0 : limits[0]);
      panel.high.textContent = colour ? "colour" : `${short(limits[1])} ${this.scene.unit}`;
      panel.bar.style.background = colour ? "none" : `linear-gradient(90deg, ${this.scene.scales[about.kind].join(", ")})`;
      this.paint(panel.picture, about, this.data[i]);
    });
  }

  paint(picture, about, values) {
    const { rows, columns } = this.scene;
    Object.assign(picture, { width: columns, height: rows });
    const image = new ImageData(columns, rows), out = image.data;
    if (values) {
      const table = this.table(about.kind), [low, high] = this.scene.limits[about.kind], step = 255 / (high - low || 1);
      for (let i = 0; i < rows * columns; i++) {
        const v = values[about.channels * i];
        let rgb = GREY;
        if (Number.isFinite(v)) {
          rgb = about.channels === 3 ? [0, 1, 2].map((c) => 255 * values[3 * i + c]) : table[clamp(Math.round((v - low) * step), 0, 255)];
        }
        out.set([rgb[0], rgb[1], rgb[2], 255], 4 * i);
      }
    }
    picture.getContext("2d").putImageData(image, 0, 0);
  }

  table(kind) {
    this.tables ??= {};
    return (this.tables[kind] ??= (() => {
      const stops = this.scene.scales[kind].map((c) => c.match(/\d+/g).map(Number));
      return Array.from({ length: 256 }, (_, i) => {
        const at = (i / 255) * (stops.length - 1), k = Math.min(Math.floor(at), stops.length - 2);
        return stops[k].map((c, j) => c + (at - k) * (stops[k + 1][j] - c));
      });
    })());
  }

  list() {
    const rows = this.model.get("board"), best = Math.max(...rows.map((row) => row.psnr ?? -Infinity)), scale = Math.max(best, 1);
    this.board.replaceChildren(make("h4", "", null, this.scene?.board ?? ""));
    const list = make("div", "sf-list", this.board);
    for (const row of rows) {
      const button = make("button", row.chosen ? "sf-row sf-chosen" : "sf-row", list);
      make("span", "sf-name", button, row.name);
      const bar = make("span", "sf-bar", button);
      make("i", "", bar).style.width = `${clamp((100 * (row.psnr ?? 0)) / scale, 0, 100)}%`;
      make("span", "sf-db", button, row.psnr == null ? row.why || "\u2026" : row.psnr.toFixed(1));
      button.setAttribute("aria-label", `${row.name}: ${row.psnr == null ? row.why || "not yet" : `${row.psnr.toFixed(1)} dB`}; show it`);
      button.onclick = () => this.model.send({ do: "method", name: row.method });
    }
  }

  wait() {
    const words = this.model.get("busy");
    this.root.classList.toggle("sf-busy", Boolean(words));
    this.root.dataset.busy = words;
    this.say.textContent = words || HELP;
  }

  save(message, buffers) {
    if (message.do !== "save") return;
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([buffers[0]], { type: message.type }));
    link.download = message.name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  }

  // ---- drawing ----

  draw() {
    if (!this.scene?.rows) return;
    const { rows, columns } = this.scene, ratio = window.devicePixelRatio || 1;
    for (const [i, panel] of this.panels.entries()) {
      const { canvas, picture } = panel, width = Math.floor(panel.figure.clientWidth);
      if (!width) return;
      const height = Math.round((width * rows) / columns);
      if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
        Object.assign(canvas, { width: Math.round(width * ratio), height: Math.round(height * ratio) });
        Object.assign(canvas.style, { width: `${width}px`, height: `${height}px` });
      }
      const pen = canvas.getContext("2d"), { u, v, size } = this.window;
      pen.setTransform(ratio, 0, 0, ratio, 0, 0);
      pen.clearRect(0, 0, width, height);
      pen.imageSmoothingEnabled = false;
      if (this.data[i]) pen.drawImage(picture, u * columns, v * rows, size * columns, size * rows, 0, 0, width, height);
      this.dots(pen, i, width, height);
      if (this.cross) this.hair(pen, width, height);
    }
  }

  dots(pen, index, width, height) {
    const large = !this.data[index], table = this.table("field"), [low, high] = this.scene.limits.field;
    this.sites.forEach((site, i) => {
      const at = this.held?.index === i && this.held.moved ? [this.held.x, this.held.y] : site, [x, y] = this.place(at, width, height);
      pen.beginPath();
      pen.arc(x, y, large ? 4.5 : index === 0 ? 3 : 2, 0, 2 * Math.PI);
      const v = this.values[i], rgb = v.length === 3 ? Array.from(v, (c) => 255 * clamp(c, 0, 1)) : table[clamp(Math.round((255 * (v[0] - low)) / (high - low || 1)), 0, 255)];
      pen.fillStyle = large ? `rgb(${rgb.map(Math.round).join(",")})` : "white";
      pen.fill();
      pen.lineWidth = 1;
      pen.strokeStyle = large && !this.dark() ? "#333" : large ? "#ddd" : "black";
      pen.stroke();
    });
  }

  dark() {
    const [r, g, b] = (getComputedStyle(this.root).color.match(/\d+/g) ?? [0, 0, 0]).map(Number);
    return r + g + b > 380; // light letters: a dark page
  }

  hair(pen, width, height) {
    const [x, y] = this.place(this.cross, width, height);
    for (const [colour, line] of [["white", 3], ["black", 1]]) {
      pen.strokeStyle = colour;
      pen.lineWidth = line;
      pen.beginPath();
      for (const [a, b, c, d] of [[x - 9, y, x - 3, y], [x + 3, y, x + 9, y], [x, y - 9, x, y - 3], [x, y + 3, x, y + 9]]) pen.moveTo(a, b), pen.lineTo(c, d);
      pen.stroke();
    }
  }

  // ---- between sites in [-1, 1]^2 and pixels; outer nodes have half a step of room around them ----

  room() {
    return [1 + 1 / (this.scene.columns - 1), 1 + 1 / (this.scene.rows - 1)];
  }

  place([x, y], width, height) {
    const [rx, ry] = this.room(), { u, v, size } = this.window;
    return [(((x / rx + 1) / 2 - u) / size) * width, (((y / ry + 1) / 2 - v) / size) * height];
  }

  site(event, canvas) {
    const box = canvas.getBoundingClientRect(), [rx, ry] = this.room(), { u, v, size } = this.window;
    const along = (part, from, r) => clamp((2 * (from + part * size) - 1) * r, -1, 1);
    return [along((event.clientX - box.left) / box.width, u, rx), along((event.clientY - box.top) / box.height, v, ry)];
  }

  near(event, canvas) {
    const box = canvas.getBoundingClientRect(), away = this.sites.map((site) => {
      const [x, y] = this.place(site, box.width, box.height);
      return Math.hypot(event.clientX - box.left - x, event.clientY - box.top - y);
    });
    const least = Math.min(...away, Infinity);
    return least <= TOUCH ? away.indexOf(least) : -1;
  }

  zoom(factor, centre = [0.5, 0.5]) {
    const now = this.window, size = factor ? clamp(now.size / factor, 1 / MOST, 1) : 1;
    this.look(now.u + centre[0] * (now.size - size), now.v + centre[1] * (now.size - size), size);
  }

  look(u, v, size = this.window.size) {
    this.window = { u: clamp(u, 0, 1 - size), v: clamp(v, 0, 1 - size), size };
    this.root.dataset.zoom = 1 / size;
    this.draw();
  }

  // ---- pointer and keyboard ----

  point(canvas) {
    let press = null;
    canvas.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      canvas.setPointerCapture(event.pointerId);
      press = { x: event.clientX, y: event.clientY, index: this.near(event, canvas), window: this.window, moved: false };
      if (press.index >= 0) this.grab(press.index);
    });
    canvas.addEventListener("pointermove", (event) => {
      this.tell(this.site(event, canvas));
      if (!press) return void (canvas.style.cursor = this.near(event, canvas) >= 0 ? "grab" : "crosshair");
      press.moved ||= Math.hypot(event.clientX - press.x, event.clientY - press.y) > STILL;
      if (!press.moved) return;
      if (this.held) return this.carry(this.site(event, canvas));
      const box = canvas.getBoundingClientRect(), { u, v, size } = press.window;
      this.look(u - (size * (event.clientX - press.x)) / box.width, v - (size * (event.clientY - press.y)) / box.height);
    });
    canvas.addEventListener("pointerup", (event) => {
      if (!press) return;
      const { index, moved } = press, [x, y] = this.site(event, canvas);
      press = null;
      if (this.held && moved) return this.drop();
      this.held = null;
      if (!moved) this.model.send(index >= 0 ? { do: "remove", index } : { do: "add", x, y });
    });
    canvas.addEventListener("pointercancel", () => ((press = null), (this.held = null), this.draw()));
    canvas.addEventListener("pointerleave", () => this.wait());
    canvas.addEventListener("wheel", (event) => {
      if (!event.ctrlKey && !event.metaKey) return;
      event.preventDefault();
      const box = canvas.getBoundingClientRect();
      this.zoom(event.deltaY < 0 ? 1.25 : 0.8, [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height]);
    }, { passive: false });
  }

  grab(index) {
    this.held = { index, x: this.sites[index][0], y: this.sites[index][1], gesture: `${Date.now()}-${++this.gesture}`, moved: false };
  }

  carry([x, y]) {
    Object.assign(this.held, { x, y, moved: true });
    const { index, gesture } = this.held;
    this.model.set("drag", { index, x, y, gesture });
    this.model.save_changes();
    this.draw();
  }

  drop() {
    const { index, x, y, gesture } = this.held;
    this.model.send({ do: "drop", index, x, y, gesture });
    this.sites[index] = [x, y];
    this.held = null;
    this.draw();
  }

  key(event) {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    const act = { "+": () => this.zoom(2), "-": () => this.zoom(0.5), 0: () => this.zoom(0), Enter: () => this.press(), " ": () => this.press(), m: () => this.lift() };
    if (event.target !== this.grid || (!step && !act[event.key])) return;
    event.preventDefault();
    event.stopPropagation();
    if (!step) return act[event.key]();
    const far = (event.shiftKey ? 5 : 1) * 2, cross = this.cross ?? [0, 0];
    const along = (i, count) => clamp(Math.round((cross[i] + 1 + (far * step[i]) / (count - 1)) * (count - 1) / 2) * 2 / (count - 1) - 1, -1, 1);
    this.cross = [along(0, this.scene.columns), along(1, this.scene.rows)];
    if (this.held) this.carry(this.cross);
    this.tell(this.cross);
    this.draw();
  }

  under() {
    const [a, b] = this.cross ?? [9, 9];
    return this.sites.findIndex(([x, y]) => Math.abs(x - a) < 1 / this.scene.columns && Math.abs(y - b) < 1 / this.scene.rows);
  }

  press() {
    if (this.held) return this.drop();
    if (!this.cross) return;
    const index = this.under();
    this.model.send(index >= 0 ? { do: "remove", index } : { do: "add", x: this.cross[0], y: this.cross[1] });
  }

  lift() {
    if (this.held) return this.drop();
    if (this.under() >= 0) this.grab(this.under());
  }

  tell([x, y]) {
    const { rows, columns, panels } = this.scene;
    const at = Math.round(((y + 1) / 2) * (rows - 1)) * columns + Math.round(((x + 1) / 2) * (columns - 1));
    const parts = panels.map((panel, i) => (panel.channels === 1 && this.data[i] ? `${panel.short} ${short(this.data[i][at])}` : ""));
    this.say.textContent = [`s\u2081 ${short(x)}, s\u2082 ${short(y)}`, ...parts.filter(Boolean)].join(" \u00b7 ");
  }

  // ---- the path over flow time ----

  seek(frame) {
    const { rows, columns, times, panels } = this.scene, size = rows * columns * panels[2].channels;
    this.frame = frame;
    this.time.value = frame;
    this.clock.textContent = `t = ${short(times[frame])} of ${times.length - 1} steps`;
    this.paint(this.panels[2].picture, panels[2], this.path.subarray(frame * size, (frame + 1) * size));
    this.root.dataset.frame = frame;
    this.draw();
  }

  run() {
    clearInterval(this.running);
    const last = this.scene.times.length - 1;
    let frame = 0;
    this.seek(0);
    this.running = setInterval(() => (frame >= last ? clearInterval(this.running) : this.seek(++frame)), clamp(3000 / (last + 1), 60, 400));
  }
}

export default {
  render({ model, el }) {
    const maps = new Maps(model, el);
    return () => maps.close();
  },
};
