"use strict";
(() => {
  const SHOWN = 12;
  const NAMESPACE = document.querySelector("svg")?.namespaceURI;

  /* The legends: a button shows and hides what has its key, in its chart or, outside of charts, on the page. */
  for (const button of document.querySelectorAll(".toggle")) {
    const within = button.closest("figure") ?? document;
    const targets = [...within.querySelectorAll("[data-key]")].filter(
      (element) => element.dataset.key === button.dataset.toggles);
    const each = (name, on) => targets.forEach((target) => target.classList.toggle(name, on));
    button.addEventListener("click", () => {
      const hidden = button.getAttribute("aria-pressed") === "true";
      button.setAttribute("aria-pressed", String(!hidden));
      each("hidden", hidden);
    });
    for (const [event, on] of [["pointerenter", true], ["pointerleave", false], ["focus", true], ["blur", false]])
      button.addEventListener(event, () => {
        within.querySelectorAll("svg:not(.key)").forEach((svg) => svg.classList.toggle("focusing", on));
        each("focused", on);
      });
  }

  /* The read-out: the values of all visible lines at the step nearest to the pointer. */
  const transformed = ([kind, , , unit], value) =>
    kind === "log" ? Math.log10(value) : kind === "symlog" ? Math.asinh(value / unit) : value;
  const position = (axis, value) => {
    const [low, high] = [transformed(axis, axis[1]), transformed(axis, axis[2])];
    return (transformed(axis, value) - low) / (high - low);
  };
  const format = (value, percent) => {
    if (percent) return `${Number((100 * value).toPrecision(3))} %`;
    const size = Math.abs(value);
    const text = size !== 0 && (size < 1e-3 || size >= 1e7) ? value.toExponential(2) : Number(value.toPrecision(4));
    return typeof text === "number" ? text.toLocaleString("en", {maximumFractionDigits: 8}) : text;
  };
  const nearest = (points, place, x) => {
    let best = null;
    for (const point of points) if (!best || Math.abs(place(point[0]) - x) < Math.abs(place(best[0]) - x)) best = point;
    return best;
  };

  class ReadOut {
    constructor(figure) {
      this.figure = figure;
      this.data = JSON.parse(figure.dataset.chart);
      [this.left, this.right, this.top, this.bottom, this.width] = this.data.edges;
      this.svg = figure.querySelector("svg:not(.key)");
      this.x = null;
      this.box = document.createElement("div");
      this.box.className = "readout";
      this.box.hidden = true;
      figure.append(this.box);
      this.layer = document.createElementNS(NAMESPACE, "g");
      this.svg.append(this.layer);
      this.svg.addEventListener("pointermove", (event) => this.follow(event));
      this.svg.addEventListener("pointerdown", (event) => this.follow(event));
      this.svg.addEventListener("pointerleave", () => this.hide());
      this.svg.addEventListener("blur", () => this.hide());
      this.svg.addEventListener("keydown", (event) => this.walk(event));
    }
    place(x) { return this.left + position(this.data.x, x) * (this.right - this.left); }
    visible() {
      const hidden = new Set([...this.svg.querySelectorAll("g.hidden")].map((group) => group.dataset.key));
      return this.data.lines.filter(([key]) => !hidden.has(key));
    }
    follow(event) {
      const area = this.svg.getBoundingClientRect();
      const x = (event.clientX - area.left) / area.width * this.width;
      const all = this.visible().flatMap(([, , points]) => points);
      const point = nearest(all, (value) => this.place(value), x);
      if (point) this.show(point[0]); else this.hide();
    }
    walk(event) {
      const way = {ArrowLeft: -1, ArrowRight: 1}[event.key];
      if (event.key === "Escape") this.hide();
      if (!way) return;
      event.preventDefault();
      const xs = [...new Set(this.visible().flatMap(([, , points]) => points.map(([x]) => x)))].sort((a, b) => a - b);
      const now = this.x === null ? (way > 0 ? -1 : xs.length) : xs.findIndex((x) => x >= this.x);
      if (xs.length) this.show(xs[Math.min(Math.max(now + way, 0), xs.length - 1)]);
    }
    show(x) {
      this.x = x;
      const rows = [];
      const reach = (this.right - this.left) / 40;
      for (const [key, label, points] of this.visible()) {
        const point = nearest(points, (value) => this.place(value), this.place(x));
        if (point && Math.abs(this.place(point[0]) - this.place(x)) <= reach) rows.push([key, label, point]);
      }
      rows.sort((a, b) => b[2][1] - a[2][1]);
      this.draw(x, rows);
      this.write(x, rows);
    }
    draw(x, rows) {
      const shape = (name, attributes) => {
        const element = document.createElementNS(NAMESPACE, name);
        for (const [attribute, value] of Object.entries(attributes)) element.setAttribute(attribute, value);
        return element;
      };
      const at = this.place(x);
      this.layer.replaceChildren(
        shape("line", {class: "cursor", x1: at, x2: at, y1: this.top, y2: this.bottom}),
        ...rows.map(([key, , [px, py]]) => shape("circle", {
          class: this.style(key), r: 3.5, cx: this.place(px),
          cy: this.bottom - position(this.data.y, py) * (this.bottom - this.top)})));
    }
    style(key) {
      const group = [...this.svg.querySelectorAll("g[data-key]")].find((one) => one.dataset.key === key);
      return group.querySelector("path").getAttribute("class").replace("faint", "");
    }
    write(x, rows) {
      const line = (name, text, value) => {
        const row = document.createElement("div");
        const label = document.createElement("span");
        const strong = document.createElement("b");
        label.textContent = text;
        strong.textContent = value;
        if (name) row.className = name;
        row.append(label, strong);
        return row;
      };
      const shown = rows.slice(0, SHOWN).map(([key, label, [, y]]) =>
        line(`swatch ${this.style(key)}`, label, format(y, this.data.percent)));
      const more = rows.length > SHOWN ? [line("", `and ${rows.length - SHOWN} more`, "")] : [];
      this.box.replaceChildren(line("head", this.data.name, format(x, false)), ...shown, ...more);
      this.box.hidden = false;
      const area = this.svg.getBoundingClientRect(), frame = this.figure.getBoundingClientRect();
      const at = area.left - frame.left + this.place(x) / this.width * area.width;
      const right = at + 14 + this.box.offsetWidth <= frame.width;
      const left = right ? at + 14 : Math.max(at - 14 - this.box.offsetWidth, 0);
      this.box.style.left = `${Math.max(Math.min(left, frame.width - this.box.offsetWidth), 0)}px`;
      this.box.style.top = `${area.top - frame.top + 8}px`;
    }
    hide() {
      this.x = null;
      this.box.hidden = true;
      this.layer.replaceChildren();
    }
  }
  document.querySelectorAll("figure[data-chart]").forEach((figure) => new ReadOut(figure));

  /* Sortable tables: numbers as numbers; cells without a value always last. */
  const compare = (a, b, way) => {
    if (a === "" || b === "") return a === b ? 0 : a === "" ? 1 : -1;
    const numbers = [Number(a), Number(b)];
    return way * (numbers.some(Number.isNaN) ? a.localeCompare(b, "en", {numeric: true}) : numbers[0] - numbers[1]);
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.querySelectorAll("th")];
    heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
      const way = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      heads.forEach((other) => other.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", way > 0 ? "ascending" : "descending");
      const value = (row) => row.cells[column].dataset.sort;
      const rows = [...table.tBodies[0].rows].sort((a, b) => compare(value(a), value(b), way));
      table.tBodies[0].append(...rows);
    }));
  }
})();
