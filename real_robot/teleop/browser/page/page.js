// The page: its connection, its buttons, its panel.
import { Gizmo } from "./gizmo.js";
import { headset, phone } from "./hands.js";
import { Scene } from "./scene.js";

const $ = (id) => document.getElementById(id);
const BEAT = 200, HAND = 16; // ms
const scene = new Scene($("scene")), gizmo = new Gizmo($("gizmo"), scene, () => say_hand());
let socket = null, hello = null, last = null, delay = null, seen = false, slider = false;
let xr = null, turned = null; // poses of other hands than the gizmo's, while they are there
const enabling = new Set(); // what holds ENABLE: the button, the space bar, the headset's squeeze

function send(message) { if (socket?.readyState === WebSocket.OPEN) socket.send(JSON.stringify(message)); }
const press = (button) => send({ type: "press", button });

function enable(who, on) {
  const before = enabling.size > 0;
  on ? enabling.add(who) : enabling.delete(who);
  if (before !== enabling.size > 0) press(before ? "DISABLE" : "ENABLE");
  $("enable").classList.toggle("on", enabling.size > 0);
}

function let_go() {
  gizmo.release();
  xr = turned = null; slider = false;
  for (const who of [...enabling]) enable(who, false);
}

let stale = true; // what is drawn
let led = false; // whether the last message said that something is held
function say_hand() {
  const held = gizmo.held || slider || turned, pose = xr || turned || gizmo.pose;
  if (!pose || !(held || xr || led)) return;
  led = Boolean(held || xr);
  // one squeeze is ENABLE and clutch: the clutch closes when the robot is enabled, not before
  const machine = last?.status.machine, grip = xr && (!machine || machine === "RUN" || machine === "PAUSE") ? xr.grip : 0;
  const gripper = xr ? xr.gripper : slider ? Number($("gripper").querySelector("input").value) : null;
  send({ type: "hand", p: pose.p, q: pose.q, grip: held ? 1 : grip, gripper });
}

function connect() {
  socket = new WebSocket(new URL("ws", location.href.replace(/^http/, "ws")));
  socket.binaryType = "arraybuffer";
  socket.onopen = () => { delay = null; };
  socket.onmessage = ({ data }) => (typeof data === "string" ? heard(JSON.parse(data)) : picture(data));
  socket.onclose = () => {
    let_go();
    hello = null;
    banner("connection lost: the robot is released", "bad");
    setTimeout(connect, 500);
  };
}

function heard(message) {
  if (message.type === "hello") {
    hello = message;
    scene.setGeoms(hello.geoms);
    $("gripper").hidden = !hello.gripper;
    $("enable").querySelector("small").textContent = hello.enable === "latch" ? "press again to disable" : "hold, or hold the space bar";
    return;
  }
  last = message;
  stale = true;
  if (message.beat) delay = performance.now() - message.beat;
  if (message.arm) {
    scene.arm = message.arm.poses; scene.goal = message.goal.poses;
    gizmo.follow(message.goal.tool);
    if (!seen) { seen = true; scene.lookOver(message.arm.poses); }
    const input = $("gripper").querySelector("input");
    if (!slider && hello?.gripper) input.value = message.opening;
    if (hello?.gripper) $("gripper").querySelector("output").textContent = `${Math.round(message.q.at(-1) * 100)} %`;
  }
  if (hello) panel(message);
}

function banner(text, kind = "") { $("banner").textContent = text; $("banner").className = kind; }

function panel({ status: s, enabled }) {
  const held = gizmo.held || slider || turned || (xr && xr.grip > 0.5);
  if (!hello.lead) banner("another page leads: looking on");
  else if (held) banner(s.source === "human" || (enabled && !s.source) ? "you lead the robot" : "held, but not followed: let go, hold ENABLE, take hold", s.source === "human" ? "hand" : "");
  else banner(`${hello.name}: drag the gizmo`);
  const rows = [["state", s.machine, s.machine === "FAULT"], ["who leads", s.source], ["limits hit", s.limits?.join(", ") || (s.limits ? "none" : undefined), s.limits?.length],
    ["chunk age", s.chunk_age_s !== undefined ? `${s.chunk_age_s} s` : undefined], ["inference", s.inference_ms !== undefined ? `${s.inference_ms} ms` : undefined],
    ["tick late (p95)", s.late_ms !== undefined ? `${s.late_ms} ms` : undefined], ["page delay", delay !== null ? `${delay.toFixed(0)} ms` : undefined],
    ...Object.entries(s.rates || {}).map(([name, hz]) => [name, `${hz} Hz`, hz === 0])];
  $("status").replaceChildren(...rows.filter(([, value]) => value !== undefined).flatMap(([name, value, bad]) => {
    const dt = document.createElement("dt"), dd = document.createElement("dd");
    dt.textContent = name; dd.textContent = value; dd.className = bad ? "bad" : "";
    return [dt, dd];
  }));
  $("events").replaceChildren(...(s.events || []).map(([level, text]) => {
    const li = document.createElement("li");
    li.textContent = text; li.className = level >= 40 ? "error" : level >= 30 ? "warning" : "";
    return li;
  }));
}

const pictures = new Map();
function picture(data) {
  const name = last?.cameras[new Uint8Array(data)[0]];
  if (!name) return;
  if (!pictures.has(name)) {
    const figure = document.createElement("figure"), img = document.createElement("img"), text = document.createElement("figcaption");
    text.textContent = name; figure.append(img, text); $("cameras").append(figure);
    pictures.set(name, img);
  }
  const img = pictures.get(name), old = img.src;
  img.src = URL.createObjectURL(new Blob([data.slice(1)], { type: "image/jpeg" }));
  if (old) URL.revokeObjectURL(old);
}

function hold(element, down, up) {
  element.addEventListener("pointerdown", (e) => { if (e.isPrimary || e.pointerType === "touch") down(e); });
  for (const end of ["pointerup", "pointercancel", "pointerleave", "lostpointercapture"]) element.addEventListener(end, up);
}

for (const button of document.querySelectorAll("[data-press]")) button.addEventListener("click", () => press(button.dataset.press));
$("estop").addEventListener("pointerdown", () => { press("ESTOP"); let_go(); });
hold($("enable"), () => enable("button", hello?.enable === "latch" ? !enabling.has("button") : true), () => hello?.enable !== "latch" && enable("button", false));
addEventListener("keydown", (e) => { if (e.code === "Space") { e.preventDefault(); if (!e.repeat) enable("space", true); } });
addEventListener("keyup", (e) => { if (e.code === "Space") { e.preventDefault(); enable("space", false); } });
const input = $("gripper").querySelector("input");
hold(input, () => { slider = true; }, () => { slider = false; say_hand(); });
$("frame").addEventListener("click", () => { gizmo.inTool = !gizmo.inTool; $("frame").textContent = gizmo.inTool ? "tool frame" : "robot frame"; });
addEventListener("blur", let_go);
document.addEventListener("visibilitychange", () => document.hidden && let_go());
addEventListener("pagehide", () => { let_go(); socket?.close(); });

phone($("phone"), () => gizmo.pose && structuredClone(gizmo.pose), (pose) => { turned = pose; }, () => { turned = null; say_hand(); });
headset($("xr"), { press, enable: (on) => enable("xr", on), hand: (pose) => { xr = pose; say_hand(); } }); // once a frame of the headset

setInterval(() => send({ type: "beat", t: performance.now() }), BEAT);
setInterval(() => xr || say_hand(), HAND);
for (const act of ["pointermove", "pointerdown", "wheel", "resize", "click"]) addEventListener(act, () => { stale = true; });
(function frame() { // drawn when there is news only: a phone's battery, and a machine without a graphics card
  requestAnimationFrame(frame);
  if (!stale) return;
  stale = false;
  scene.draw();
  gizmo.draw();
})();
window.deft = { gizmo, scene, state: () => ({ hello, last, delay, enabled: enabling.size > 0, led }) };
connect();
