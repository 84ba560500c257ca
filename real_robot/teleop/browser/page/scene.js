// The arm in WebGL: boxes, spheres, cylinders and capsules with one light; where it is, and as a ghost where it is asked to be.
import { add, cross, dot, lookAt, matmul, mul, norm, perspective, sub, unit } from "./maths.js";

const VERTEX = `
attribute vec3 at, normal;
uniform mat4 camera; uniform mat3 turned; uniform vec3 size, middle, place;
varying vec3 n; varying vec3 p;
void main() {
  p = turned * (at * size + middle) + place;
  n = turned * (normal / max(size, vec3(1e-5)));
  gl_Position = camera * vec4(p, 1.0);
}`;
const FRAGMENT = `
precision mediump float;
varying vec3 n; varying vec3 p;
uniform vec4 colour; uniform vec3 eye;
void main() {
  vec3 m = normalize(n);
  float light = 0.35 + 0.5 * max(0.0, dot(m, normalize(vec3(0.3, -0.5, 0.8)))) + 0.25 * max(0.0, dot(m, normalize(eye - p)));
  gl_FragColor = vec4(colour.rgb * light, colour.a);
}`;
const FOV = 0.75;

function box() {
  const out = [];
  for (let a = 0; a < 3; a++) for (const s of [-1, 1]) {
    const n = [0, 0, 0], u = [0, 0, 0], v = [0, 0, 0];
    n[a] = s; u[(a + 1) % 3] = 1; v[(a + 2) % 3] = s;
    for (const [i, j] of [[-1, -1], [1, -1], [1, 1], [-1, -1], [1, 1], [-1, 1]]) out.push(...add(n, add(mul(u, i), mul(v, j))), ...n);
  }
  return out;
}

function turned(profile, sides = 24) { // [radius, z, normal's radius, normal's z] along the z axis
  const out = [];
  const point = (k, i) => {
    const [r, z, nr, nz] = profile[k], a = (2 * Math.PI * i) / sides;
    return [r * Math.cos(a), r * Math.sin(a), z, nr * Math.cos(a), nr * Math.sin(a), nz];
  };
  for (let k = 0; k + 1 < profile.length; k++) for (let i = 0; i < sides; i++)
    for (const [dk, di] of [[0, 0], [0, 1], [1, 1], [0, 0], [1, 1], [1, 0]]) out.push(...point(k + dk, i + di));
  return out;
}

const sphere = turned([...Array(13).keys()].map((k) => { const a = Math.PI * (k / 12 - 0.5); return [Math.cos(a), Math.sin(a), Math.cos(a), Math.sin(a)]; }));
const cylinder = turned([[0, -1, 0, -1], [1, -1, 0, -1], [1, -1, 1, 0], [1, 1, 1, 0], [1, 1, 0, 1], [0, 1, 0, 1]]);

function grid() {
  const out = [];
  for (let i = -10; i <= 10; i++) for (const [a, b] of [[[i, -10], [i, 10]], [[-10, i], [10, i]]])
    out.push(a[0] / 10, a[1] / 10, 0, 0, 0, 1, b[0] / 10, b[1] / 10, 0, 0, 0, 1);
  return out;
}

export class Scene {
  constructor(canvas) {
    this.canvas = canvas;
    this.yaw = -0.9; this.pitch = 0.45; this.distance = 1.5; this.target = [0.1, 0, 0.25];
    const gl = (this.gl = canvas.getContext("webgl", { antialias: devicePixelRatio < 2 }));
    if (!gl) throw new Error("this browser has no WebGL");
    const program = (this.program = gl.createProgram());
    for (const [kind, text] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
      const shader = gl.createShader(kind);
      gl.shaderSource(shader, text); gl.compileShader(shader);
      if (!gl.getShaderParameter(shader, gl.COMPILE_STATUS)) throw new Error(gl.getShaderInfoLog(shader));
      gl.attachShader(program, shader);
    }
    gl.bindAttribLocation(program, 0, "at"); gl.bindAttribLocation(program, 1, "normal");
    gl.linkProgram(program); gl.useProgram(program);
    this.at = Object.fromEntries(["camera", "turned", "size", "middle", "place", "colour", "eye"].map((k) => [k, gl.getUniformLocation(program, k)]));
    this.shapes = {};
    for (const [name, data] of Object.entries({ box: box(), sphere, cylinder, grid: grid() })) {
      const buffer = gl.createBuffer();
      gl.bindBuffer(gl.ARRAY_BUFFER, buffer); gl.bufferData(gl.ARRAY_BUFFER, new Float32Array(data), gl.STATIC_DRAW);
      this.shapes[name] = { buffer, count: data.length / 6 };
    }
    gl.enableVertexAttribArray(0); gl.enableVertexAttribArray(1);
    gl.enable(gl.DEPTH_TEST); gl.enable(gl.BLEND); gl.blendFunc(gl.SRC_ALPHA, gl.ONE_MINUS_SRC_ALPHA);
    this.geoms = []; this.arm = this.goal = null;
  }

  // a model's geom as pieces: unit shape, half sizes, where its middle is in the geom's frame
  setGeoms(geoms) {
    this.geoms = geoms.map(({ shape, size, middle, rgba }) => {
      const [a, b, c] = size;
      const pieces = shape === "box" ? [["box", [a, b, c], middle]]
        : shape === "ellipsoid" ? [["sphere", [a, b, c], middle]]
        : shape === "sphere" ? [["sphere", [a, a, a], middle]]
        : [["cylinder", [a, a, b], middle]];
      if (shape === "capsule") for (const s of [-b, b]) pieces.push(["sphere", [a, a, a], [0, 0, s]]);
      return { pieces, rgba };
    });
  }

  get eye() {
    const c = Math.cos(this.pitch);
    return add(this.target, mul([c * Math.cos(this.yaw), c * Math.sin(this.yaw), Math.sin(this.pitch)], this.distance));
  }

  orbit(dx, dy) {
    this.yaw -= dx * 0.008;
    this.pitch = Math.min(1.5, Math.max(-0.3, this.pitch + dy * 0.008));
  }

  zoom(factor) { this.distance = Math.min(6, Math.max(0.3, this.distance * factor)); }

  draw() {
    const { gl, canvas } = this, ratio = Math.min(devicePixelRatio || 1, 2);
    const w = Math.round(canvas.clientWidth * ratio), h = Math.round(canvas.clientHeight * ratio);
    if (canvas.width !== w || canvas.height !== h) { canvas.width = w; canvas.height = h; }
    gl.viewport(0, 0, w, h); gl.clearColor(0.08, 0.09, 0.11, 1); gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    this.matrix = matmul(perspective(FOV, w / Math.max(h, 1), 0.02, 30), lookAt(this.eye, this.target, [0, 0, 1]));
    gl.uniformMatrix4fv(this.at.camera, false, this.matrix); gl.uniform3fv(this.at.eye, this.eye);
    this.#piece("grid", gl.LINES, [1, 1, 1], [0, 0, 0], [1, 0, 0, 0, 1, 0, 0, 0, 1], [0, 0, 0], [0.35, 0.4, 0.47, 1]);
    if (this.arm) this.#robot(this.arm, null);
    if (this.goal) { gl.depthMask(false); this.#robot(this.goal, [0.29, 0.62, 1, 0.25]); gl.depthMask(true); }
  }

  #robot(poses, colour) {
    this.geoms.forEach(({ pieces, rgba }, i) => {
      const m = poses.slice(12 * i, 12 * i + 12);
      if (m.length < 12) return;
      const columns = [m[0], m[3], m[6], m[1], m[4], m[7], m[2], m[5], m[8]];
      for (const [shape, size, middle] of pieces) this.#piece(shape, this.gl.TRIANGLES, size, middle, columns, m.slice(9), colour || rgba);
    });
  }

  #piece(shape, mode, size, middle, columns, place, colour) {
    const { gl, at } = this, { buffer, count } = this.shapes[shape];
    gl.bindBuffer(gl.ARRAY_BUFFER, buffer);
    gl.vertexAttribPointer(0, 3, gl.FLOAT, false, 24, 0); gl.vertexAttribPointer(1, 3, gl.FLOAT, false, 24, 12);
    gl.uniformMatrix3fv(at.turned, false, columns); gl.uniform3fv(at.size, size); gl.uniform3fv(at.middle, middle);
    gl.uniform3fv(at.place, place); gl.uniform4fv(at.colour, colour);
    gl.drawArrays(mode, 0, count);
  }

  // a point of the robot's frame to CSS pixels; null behind the eye
  project(p) {
    const m = this.matrix, v = [0, 1, 3].map((r) => m[r] * p[0] + m[4 + r] * p[1] + m[8 + r] * p[2] + m[12 + r]);
    if (v[2] <= 0) return null;
    return [((v[0] / v[2] + 1) / 2) * this.canvas.clientWidth, ((1 - v[1] / v[2]) / 2) * this.canvas.clientHeight];
  }

  // the line of sight through CSS pixels
  ray(x, y) {
    const z = unit(sub(this.target, this.eye)), right = unit(cross(z, [0, 0, 1])), up = cross(right, z);
    const t = Math.tan(FOV / 2), w = this.canvas.clientWidth, h = this.canvas.clientHeight;
    const d = add(z, add(mul(right, ((2 * x) / w - 1) * t * (w / h)), mul(up, (1 - (2 * y) / h) * t)));
    return { eye: this.eye, way: unit(d), view: z };
  }

  // metres at p that appear as one CSS pixel
  pixel(p) { return (2 * Math.tan(FOV / 2) * Math.max(0.05, dot(sub(p, this.eye), unit(sub(this.target, this.eye))))) / this.canvas.clientHeight; }

  lookOver(poses) {
    const points = [];
    for (let i = 9; i < poses.length; i += 12) points.push(poses.slice(i, i + 3));
    const middle = mul(points.reduce(add, [0, 0, 0]), 1 / points.length);
    this.target = middle;
    this.distance = Math.max(0.6, 5 * Math.max(...points.map((p) => norm(sub(p, middle)))));
  }
}
