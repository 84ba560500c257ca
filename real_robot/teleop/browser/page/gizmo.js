// Three arrows, three rings and a ball at the tool: dragged, they say where it should go.
import { add, cross, dot, mul, norm, qaxis, qmul, sub, turn, unit } from "./maths.js";

const AXES = [[1, 0, 0], [0, 1, 0], [0, 0, 1]], COLOURS = ["#ff5d57", "#4fd070", "#4a9eff"], NAMES = ["x", "y", "z"];
const ARROW = 92, RING = 62, BALL = 11; // CSS pixels
const identity = [1, 0, 0, 0];

export class Gizmo {
  constructor(canvas, scene, moved) {
    this.canvas = canvas; this.scene = scene; this.moved = moved; // moved(held): the pose changed, or was let go
    this.pose = null; this.inTool = true; this.held = null; this.hover = null;
    this.pointers = new Map();
    canvas.addEventListener("pointerdown", (e) => this.#down(e));
    canvas.addEventListener("pointermove", (e) => this.#move(e));
    for (const end of ["pointerup", "pointercancel", "lostpointercapture"]) canvas.addEventListener(end, (e) => this.#up(e));
    canvas.addEventListener("wheel", (e) => { e.preventDefault(); scene.zoom(Math.exp(e.deltaY * 0.001)); }, { passive: false });
    canvas.addEventListener("contextmenu", (e) => e.preventDefault());
  }

  // where the tool is asked to be; a pose that is being dragged stays the person's
  follow(pose) { if (!this.held) this.pose = { p: [...pose.p], q: [...pose.q] }; }

  release() { if (this.held) { this.held = null; this.moved(false); } }

  axis(i) { return turn(this.inTool ? this.pose.q : identity, AXES[i]); }

  // CSS pixels where a handle can be taken: "x", "y", "z", "rx", "ry", "rz", "ball"
  handle(name) {
    const s = this.scene.pixel(this.pose.p);
    if (name === "ball") return this.scene.project(this.pose.p);
    const i = NAMES.indexOf(name.at(-1));
    return this.scene.project(name.length === 1 ? add(this.pose.p, mul(this.axis(i), 0.9 * ARROW * s)) : this.#ring(i, s)[3]);
  }

  #ring(i, s) {
    const u = this.axis((i + 1) % 3), v = this.axis((i + 2) % 3);
    return [...Array(37).keys()].map((k) => add(this.pose.p, mul(add(mul(u, Math.cos((k * Math.PI) / 18)), mul(v, Math.sin((k * Math.PI) / 18))), RING * s)));
  }

  draw() {
    const { canvas } = this, g = canvas.getContext("2d"), ratio = Math.min(devicePixelRatio || 1, 2);
    const w = Math.round(canvas.clientWidth * ratio), h = Math.round(canvas.clientHeight * ratio);
    if (canvas.width !== w || canvas.height !== h) { canvas.width = w; canvas.height = h; }
    g.setTransform(ratio, 0, 0, ratio, 0, 0); g.clearRect(0, 0, w, h);
    if (!this.pose) return;
    const s = this.scene.pixel(this.pose.p), centre = this.scene.project(this.pose.p), lit = this.held?.name || this.hover;
    if (!centre) return;
    g.lineCap = "round";
    AXES.forEach((_, i) => {
      this.#line(g, this.#ring(i, s), COLOURS[i], lit === "r" + NAMES[i] ? 5 : 2);
      const tip = add(this.pose.p, mul(this.axis(i), ARROW * s));
      this.#line(g, [this.pose.p, tip], COLOURS[i], lit === NAMES[i] ? 7 : 4);
      const end = this.scene.project(tip);
      if (end) this.#disc(g, end, 7, COLOURS[i]);
    });
    this.#disc(g, centre, BALL, lit === "ball" ? "#fff" : "#cfd8e3");
  }

  #line(g, points, colour, width) {
    g.beginPath(); g.strokeStyle = colour; g.lineWidth = width;
    points.map((p) => this.scene.project(p)).filter(Boolean).forEach(([x, y], k) => (k ? g.lineTo(x, y) : g.moveTo(x, y)));
    g.stroke();
  }

  #disc(g, [x, y], r, colour) { g.beginPath(); g.fillStyle = colour; g.arc(x, y, r, 0, 2 * Math.PI); g.fill(); }

  #pick(x, y, touch) {
    if (!this.pose) return null;
    const s = this.scene.pixel(this.pose.p), far = touch ? 26 : 12;
    const near = (points) => Math.min(...points.map((p) => this.scene.project(p)).filter(Boolean).map((c) => Math.hypot(c[0] - x, c[1] - y)), Infinity);
    if (near([this.pose.p]) < BALL + (touch ? 8 : 0)) return "ball";
    const found = [];
    NAMES.forEach((name, i) => {
      const along = [...Array(16).keys()].map((k) => add(this.pose.p, mul(this.axis(i), ((k + 3) / 18) * ARROW * s)));
      found.push([near(along) - 3, name], [near(this.#ring(i, s)), "r" + name]);
    });
    const [distance, name] = found.sort((a, b) => a[0] - b[0])[0];
    return distance < far ? name : null;
  }

  #down(e) {
    this.canvas.setPointerCapture(e.pointerId);
    this.pointers.set(e.pointerId, [e.offsetX, e.offsetY]);
    if (this.held || this.pointers.size > 1) return;
    const name = this.#pick(e.offsetX, e.offsetY, e.pointerType === "touch");
    if (!name) return;
    const i = NAMES.indexOf(name.at(-1));
    this.held = { name, id: e.pointerId, axis: name === "ball" ? null : this.axis(i), from: { p: [...this.pose.p], q: [...this.pose.q] } };
    this.held.grip = this.#grip(e.offsetX, e.offsetY);
    this.moved(true);
  }

  // where the line of sight meets what is held: metres along an arrow, radians about a ring, a point for the ball
  #grip(x, y) {
    const { eye, way, view } = this.scene.ray(x, y), { axis, from, name } = this.held, to = sub(from.p, eye);
    if (name === "ball" || name.length === 2) {
      const n = name === "ball" ? view : axis, fall = dot(way, n);
      if (Math.abs(fall) < 0.08) return null;
      const hit = add(eye, mul(way, dot(to, n) / fall));
      if (name === "ball") return hit;
      const u = unit(cross(Math.abs(axis[2]) < 0.9 ? [0, 0, 1] : [1, 0, 0], axis)), d = sub(hit, from.p);
      return Math.atan2(dot(d, cross(axis, u)), dot(d, u));
    }
    const b = dot(axis, way), slope = 1 - b * b;
    return slope < 0.01 ? null : (b * dot(to, way) - dot(to, axis)) / slope;
  }

  #move(e) {
    const before = this.pointers.get(e.pointerId), now = [e.offsetX, e.offsetY];
    if (!before) { this.hover = this.#pick(...now, false); return; }
    this.pointers.set(e.pointerId, now);
    if (this.held) { if (this.held.id === e.pointerId) this.#drag(...now); return; }
    if (this.pointers.size === 1) { this.scene.orbit(now[0] - before[0], now[1] - before[1]); return; }
    const other = [...this.pointers.entries()].find(([id]) => id !== e.pointerId)[1];
    this.scene.zoom(norm([before[0] - other[0], before[1] - other[1], 0]) / Math.max(1, norm([now[0] - other[0], now[1] - other[1], 0])));
  }

  #drag(x, y) {
    const { name, axis, from, grip } = this.held, now = this.#grip(x, y);
    if (grip === null || now === null) { this.held.grip ??= now; return; }
    if (name === "ball") this.pose.p = add(from.p, sub(now, grip));
    else if (name.length === 1) this.pose.p = add(from.p, mul(axis, now - grip));
    else this.pose.q = qmul(qaxis(axis, now - grip), from.q);
    this.moved(true);
  }

  #up(e) {
    this.pointers.delete(e.pointerId);
    if (this.held?.id === e.pointerId) this.release();
  }
}
