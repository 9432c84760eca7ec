"use strict";

const SVG = "http://www.w3.org/2000/svg";
const read = (figure, kind) => JSON.parse(figure.querySelector(`script.${kind}`).textContent);
const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

const digits = (value, most) => Number(value.toPrecision(most));

function duration(us) {
  if (us < 1000) return `${us} us`;
  return us < 1e6 ? `${digits(us / 1e3, 4)} ms` : `${digits(us / 1e6, 5)} s`;
}

function draw(name, attributes, text = "") {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.textContent = text;
  return made;
}

/* The multiple of 1, 2 or 5 times a power of ten that is at least `least`. */
function roundStep(least) {
  const power = 10 ** Math.floor(Math.log10(least));
  return [1, 2, 5, 10].map((factor) => factor * power).find((step) => step >= least * (1 - 1e-9));
}

const tip = document.createElement("div");
tip.className = "tip";
tip.hidden = true;
tip.setAttribute("aria-hidden", "true");
document.body.append(tip);

function showTip(event, text) {
  tip.textContent = text;
  tip.hidden = false;
  const left = clamp(event.clientX + 14, 4, innerWidth - tip.offsetWidth - 8);
  const below = event.clientY + 18 + tip.offsetHeight < innerHeight;
  tip.style.left = `${left}px`;
  tip.style.top = `${event.clientY + (below ? 18 : -tip.offsetHeight - 10)}px`;
}

/* A span is [begin, duration, title, micro-batch, peer, note, depth], in us. */
class Timeline {
  constructor(figure) {
    this.data = read(figure, "timeline-data");
    this.scroller = figure.querySelector(".scroller");
    this.picture = figure.querySelector(".picture");
    this.labels = [...figure.querySelectorAll(".labels li")];
    this.details = figure.querySelector(".details");
    this.zoom = 1;
    this.row = -1;
    this.index = -1;
    this.axis = figure.querySelector(".axis");
    this.frame = draw("rect", { class: "chosen-span", visibility: "hidden" });
    this.picture.append(this.frame);
    this.scroller.addEventListener("keydown", (event) => this.onKey(event));
    this.scroller.addEventListener("pointermove", (event) => this.onMove(event));
    this.scroller.addEventListener("pointerleave", () => { tip.hidden = true; });
    this.scroller.addEventListener("click", (event) => this.onClick(event));
    for (const button of figure.querySelectorAll("[data-zoom]"))
      button.addEventListener("click", () => this.zoomBy(button.dataset.zoom));
  }

  spans(row = this.row) { return this.data.rows[row].spans; }

  describe(row, span) {
    const [begin, length, title, microBatch, peer, note] = span;
    const { rank, label, track } = this.data.rows[row];
    const parts = [`rank ${rank} (${label})${track === "host" ? "" : `, ${track}`}: ${this.data.titles[title]}`];
    if (microBatch >= 0) parts.push(`micro-batch ${microBatch}`);
    if (peer >= 0) parts.push(`from rank ${peer}`);
    if (note) parts.push(this.data.notes[note]);
    return `${parts.join(", ")}; ${duration(length)}, from ${duration(begin)} on`;
  }

  select(row, index) {
    this.row = row;
    this.index = index;
    const span = this.spans()[index], { row: height, axis, bars } = this.data.shape;
    const [top, size] = bars[span[6]], share = (us) => `${(100 * us) / this.data.duration}%`;
    const place = { x: share(span[0]), width: share(span[1]), y: axis + row * height + top, height: size, visibility: "visible" };
    for (const [name, value] of Object.entries(place)) this.frame.setAttribute(name, value);
    this.labels.forEach((each, at) => each.classList.toggle("chosen", at === row));
    this.labels[row].scrollIntoView({ block: "nearest", inline: "nearest" });
    this.show(span);
    this.details.textContent = this.describe(row, span);
  }

  /* Scrolls sideways until the span is in view. */
  show(span) {
    const width = this.picture.clientWidth, scale = width / this.data.duration, view = this.scroller.clientWidth;
    const left = span[0] * scale, right = (span[0] + span[1]) * scale;
    if (left < this.scroller.scrollLeft || right > this.scroller.scrollLeft + view)
      this.scroller.scrollLeft = left - view / 4;
  }

  /* The span of a row that covers a time, the innermost one; else the nearest. */
  at(row, time) {
    let found = -1, least = Infinity;
    this.spans(row).forEach(([begin, length], index) => {
      const distance = time < begin ? begin - time : Math.max(0, time - begin - length);
      if (distance <= least) [found, least] = [index, distance];
    });
    return { index: found, distance: least };
  }

  onKey(event) {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const actions = {
      ArrowRight: () => this.step(1), ArrowLeft: () => this.step(-1),
      ArrowDown: () => this.move(1), ArrowUp: () => this.move(-1),
      Home: () => this.jump(0), End: () => this.jump(-1),
      "+": () => this.zoomBy("in"), "=": () => this.zoomBy("in"), "-": () => this.zoomBy("out"), 0: () => this.zoomBy("all"),
      Enter: () => this.follow(),
    };
    const action = actions[event.key];
    if (!action) return;
    event.preventDefault();
    if (this.row < 0 && !"+=-0".includes(event.key)) this.select(this.firstRow(), 0);
    else action();
  }

  firstRow() { return this.data.rows.findIndex((each) => each.spans.length); }

  step(by) { this.select(this.row, clamp(this.index + by, 0, this.spans().length - 1)); }

  jump(index) { this.select(this.row, index < 0 ? this.spans().length - 1 : 0); }

  move(by) {
    const [begin, length] = this.spans()[this.index];
    for (let row = this.row + by; row >= 0 && row < this.data.rows.length; row += by)
      if (this.spans(row).length) return this.select(row, this.at(row, begin + length / 2).index);
  }

  /* To the rank that sends what the span waits for, and what it did when the wait ended. */
  follow() {
    const [begin, length, , , peer] = this.spans()[this.index];
    const row = this.data.rows.findIndex((each) => each.rank === peer && each.spans.length);
    if (row >= 0) this.select(row, this.at(row, begin + length).index);
    else this.details.textContent = peer >= 0 ? `rank ${peer} is not shown` : "this span waits for no message";
  }

  zoomBy(way) {
    const centre = (this.scroller.scrollLeft + this.scroller.clientWidth / 2) / this.zoom;
    this.zoom = way === "all" ? 1 : clamp(this.zoom * (way === "in" ? 2 : 0.5), 1, 64);
    this.picture.style.width = `${100 * this.zoom}%`;
    this.drawAxis();
    this.scroller.scrollLeft = centre * this.zoom - this.scroller.clientWidth / 2;
    if (this.row >= 0 && way !== "all") this.show(this.spans()[this.index]);
  }

  drawAxis() {
    const { duration: whole, shape } = this.data, bottom = this.picture.getAttribute("height");
    const step = Math.max(1, roundStep(whole / (6 * this.zoom)));
    this.axis.replaceChildren();
    for (let at = 0; at <= whole; at += step) {
      const x = `${(100 * at) / whole}%`, anchor = at === 0 ? "start" : at > (1 - 0.05 / this.zoom) * whole ? "end" : "middle";
      this.axis.append(draw("line", { x1: x, x2: x, y1: shape.axis - 4, y2: bottom, class: "grid" }));
      this.axis.append(draw("text", { x, y: 14, "text-anchor": anchor }, at ? duration(at) : "0"));
    }
  }

  under(event) {
    const box = this.picture.getBoundingClientRect(), { row: height, axis } = this.data.shape;
    const row = Math.floor((event.clientY - box.top - axis) / height);
    if (row < 0 || row >= this.data.rows.length) return null;
    const perPixel = this.data.duration / box.width;
    const { index, distance } = this.at(row, (event.clientX - box.left) * perPixel);
    return index >= 0 && distance <= 3 * perPixel ? { row, index } : null;
  }

  onMove(event) {
    const found = this.under(event);
    if (found) showTip(event, this.describe(found.row, this.spans(found.row)[found.index]));
    else tip.hidden = true;
  }

  onClick(event) {
    const found = this.under(event);
    if (found) this.select(found.row, found.index);
  }
}

/* A bucket is [first step, last step, least, mean, largest]. */
class Curves {
  constructor(box) {
    this.data = read(box, "curves-data");
    this.slider = box.querySelector(".slider");
    this.output = box.querySelector(".at-step");
    this.figures = [...box.querySelectorAll(".chart")];
    this.slider.addEventListener("input", () => this.show(Number(this.slider.value)));
    for (const figure of this.figures)
      figure.querySelector("svg").addEventListener("pointermove", (event) => this.onMove(event));
    this.show(this.data.last);
  }

  static bucket(series, step) {
    return series.buckets.find((each) => step <= each[1]) ?? series.buckets.at(-1);
  }

  show(step) {
    this.slider.value = step;
    this.output.textContent = step.toLocaleString("en");
    const { first, last, left, right, charts } = this.data;
    const share = last > first ? (step - first) / (last - first) : 0.5;
    charts.forEach((chart, at) => {
      const figure = this.figures[at], line = figure.querySelector(".cursor"), width = figure.querySelector("svg").viewBox.baseVal.width;
      const x = width * (left + share * (right - left));
      line.setAttribute("x1", x);
      line.setAttribute("x2", x);
      figure.querySelectorAll(".reading").forEach((reading, number) => {
        reading.textContent = this.text(Curves.bucket(chart.series[number], step));
      });
    });
  }

  text([first, last, low, mean, high]) {
    const written = (value) => Math.abs(value) < 1e-4 ? String(digits(value, 4)) : value.toLocaleString("en", { maximumSignificantDigits: 4 });
    if (first === last || low === high) return written(mean);
    return `${written(mean)} (${written(low)} to ${written(high)} in steps ${first} to ${last})`;
  }

  onMove(event) {
    const box = event.currentTarget.getBoundingClientRect(), { first, last, left, right } = this.data;
    const share = ((event.clientX - box.left) / box.width - left) / (right - left);
    this.show(Math.round(first + clamp(share, 0, 1) * (last - first)));
  }
}

/* A link into a section that is folded away opens it. */
function openTarget() {
  const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (target instanceof HTMLDetailsElement) target.open = true;
}

document.querySelectorAll(".timeline").forEach((figure) => new Timeline(figure));
document.querySelectorAll(".curves").forEach((box) => new Curves(box));
addEventListener("hashchange", openTarget);
openTarget();
