// Other hands than the gizmo: a phone's turning, a headset's controllers. Both give poses in the robot's frame:
// x away from the person, y to the left, z up.
import { qaxis, qinv, qmul, turn } from "./maths.js";

// the gizmo's tool turned as the phone is; while `button` is held
export function phone(button, start, moved, stopped) {
  if (!("DeviceOrientationEvent" in window) || !navigator.maxTouchPoints) return;
  button.hidden = false;
  let now = null, from = null, held = false;
  const listen = () => window.addEventListener("deviceorientation", ({ alpha, beta, gamma }) => {
    if (alpha === null) return;
    const rad = Math.PI / 180; // turned about z, then x, then y (W3C)
    now = qmul(qmul(qaxis([0, 0, 1], alpha * rad), qaxis([1, 0, 0], beta * rad)), qaxis([0, 1, 0], gamma * rad));
    if (!held) return;
    from ??= { phone: now, pose: start() };
    if (from.pose) moved({ p: from.pose.p, q: qmul(qmul(now, qinv(from.phone)), from.pose.q) });
  });
  let listening = false;
  button.addEventListener("pointerdown", async () => {
    if (!listening) {
      const ask = DeviceOrientationEvent.requestPermission; // iOS
      if (ask && (await ask.call(DeviceOrientationEvent)) !== "granted") return;
      listening = true;
      listen();
    }
    held = true; from = null; button.classList.add("on");
  });
  for (const end of ["pointerup", "pointercancel", "pointerleave"]) button.addEventListener(end, () => {
    if (held) { held = false; button.classList.remove("on"); stopped(); }
  });
}

const XR_TO_ROBOT = [0.5, 0.5, -0.5, -0.5]; // x_robot = -z_xr, y_robot = -x_xr, z_robot = y_xr

// WebXR: squeeze = clutch and ENABLE, trigger closes the gripper, A or X: START and STOP in turns, B or Y: E-STOP
export async function headset(button, { hand, press, enable }) {
  if (!navigator.xr) return;
  const modes = [];
  for (const mode of ["immersive-ar", "immersive-vr"]) if (await navigator.xr.isSessionSupported(mode).catch(() => false)) modes.push(mode);
  if (!modes.length) return;
  button.hidden = false;
  let session = null;
  button.addEventListener("click", async () => {
    if (session) { session.end(); return; }
    session = await navigator.xr.requestSession(modes[0], { optionalFeatures: ["local-floor"] });
    const gl = document.createElement("canvas").getContext("webgl", { xrCompatible: true });
    await gl.makeXRCompatible?.();
    session.updateRenderState({ baseLayer: new XRWebGLLayer(session, gl) });
    const space = await session.requestReferenceSpace("local-floor").catch(() => session.requestReferenceSpace("local"));
    button.textContent = "leave XR";
    const down = {};
    let facing = null, recording = false, tracked = false;
    const once = (name, pressed, act) => { if (pressed && !down[name]) act(); down[name] = pressed; };
    session.addEventListener("end", () => { session = null; button.textContent = "enter XR"; hand(null); enable(false); });
    session.addEventListener("visibilitychange", () => { if (session?.visibilityState !== "visible") { hand(null); enable(false); } });
    const frame = (_, xr) => {
      if (!session) return;
      session.requestAnimationFrame(frame);
      gl.bindFramebuffer(gl.FRAMEBUFFER, session.renderState.baseLayer.framebuffer);
      gl.clear(gl.COLOR_BUFFER_BIT);
      const head = xr.getViewerPose(space);
      if (facing === null && head) facing = yaw(head.transform.orientation);
      const sources = [...session.inputSources].filter((s) => s.gripSpace && s.gamepad);
      const source = sources.find((s) => s.handedness === "right") || sources[0];
      const pose = source && xr.getPose(source.gripSpace, space);
      tracked ||= pose && !pose.emulatedPosition;
      const guessed = tracked && pose?.emulatedPosition; // it was seen before, and is not now
      if (!pose || guessed || facing === null) { hand(null); enable(false); return; }
      const b = source.gamepad.buttons, grip = b[1]?.value ?? 0;
      once("squeeze", grip > 0.5, () => enable(true));
      if (grip < 0.3) enable(false);
      once("a", b[4]?.pressed, () => { recording = !recording; press(recording ? "START" : "STOP"); });
      once("b", b[5]?.pressed, () => press("ESTOP"));
      hand({ ...inRobot(pose.transform, facing), grip, gripper: 1 - (b[0]?.value ?? 0) });
    };
    session.requestAnimationFrame(frame);
  });
}

const yaw = (o) => { const f = turn([o.w, o.x, o.y, o.z], [0, 0, -1]); return Math.atan2(-f[0], -f[2]); };

function inRobot({ position, orientation }, facing) {
  const back = qaxis([0, 1, 0], -facing); // the person looks along the robot's x when the session begins
  const p = turn(XR_TO_ROBOT, turn(back, [position.x, position.y, position.z]));
  const q = qmul(qmul(qmul(XR_TO_ROBOT, back), [orientation.w, orientation.x, orientation.y, orientation.z]), qinv(XR_TO_ROBOT));
  return { p, q };
}
