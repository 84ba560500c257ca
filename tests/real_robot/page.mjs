// Drives the teleoperation page in a headless Chromium: node page.mjs FOLDER-OF-PACKAGES URL SCENARIO [PICTURE]
// Lines on stdin let it go on, lines on stdout say how far it is.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { createInterface } from "node:readline";

const [folder, url, scenario, picture] = process.argv.slice(2);
const require = createRequire(`${folder}/`);
const { default: chromium } = await import(require.resolve("@sparticuz/chromium"));
const { default: puppeteer } = await import(require.resolve("puppeteer-core"));
const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
const say = (word, more = {}) => console.log(JSON.stringify({ word, ...more }));
const wait = (ms) => new Promise((done) => setTimeout(done, ms));

const browser = await puppeteer.launch({ executablePath: await chromium.executablePath(), headless: "shell", args: chromium.args, acceptInsecureCerts: true });
const page = await browser.newPage();
page.on("pageerror", (error) => say("error", { text: String(error) }));
page.on("console", (message) => message.type() === "error" && say("error", { text: message.text() }));
await page.setViewport({ width: 960, height: 640 });

async function drag(name, dx, dy) {
  const [x, y] = await page.evaluate((n) => window.deft.gizmo.handle(n), name);
  await page.mouse.move(x, y);
  await page.mouse.down();
  await leading();
  for (let i = 1; i <= 25; i++) { await page.mouse.move(x + (dx * i) / 25, y + (dy * i) / 25); await wait(30); }
}

const way = (name) => page.evaluate((n) => { // on the screen, of an arrow, 90 pixels long
  const g = window.deft.gizmo, from = g.handle("ball"), to = g.handle(n), d = [to[0] - from[0], to[1] - from[1]], l = Math.hypot(...d);
  return [(90 * d[0]) / l, (90 * d[1]) / l];
}, name);
const leading = () => page.waitForFunction(() => window.deft.state().last.status.source === "human", { timeout: 30000 });
const enabled = (timeout = 30000) => page.waitForFunction(() => ["RUN", "PAUSE"].includes(window.deft.state().last.status.machine), { timeout });
const ready = () => page.waitForFunction(() => window.deft?.state().last?.arm && window.deft.state().hello, { timeout: 30000 });

const scenarios = {
  async mouse() {
    await page.goto(url);
    await ready();
    await page.keyboard.down("Space"); // ENABLE
    await enabled();
    await page.click("[data-press=START]");
    await drag("z", ...(await way("z")));
    await wait(600);
    if (picture) await page.screenshot({ path: picture, type: "png" });
    say("dragged", { state: await page.evaluate(() => window.deft.state()), pictures: await page.$$eval("#cameras img", (all) => all.length) });
    await lines.next();
    await page.mouse.up();
    await drag("rz", 60, 10);
    await wait(400);
    await page.mouse.up();
    say("turned");
    await lines.next();
    const slider = await (await page.$("#gripper input")).boundingBox();
    await page.mouse.move(slider.x + slider.width / 2, slider.y + slider.height / 2);
    await page.mouse.down();
    await page.mouse.move(slider.x + slider.width - 2, slider.y + slider.height / 2, { steps: 5 });
    await wait(1500);
    await page.mouse.up();
    await page.keyboard.up("Space");
    await page.click("[data-press=STOP]");
    await page.click("[data-press=SUCCESS]");
    say("stopped");
    await lines.next();
    await page.click("#estop");
    await wait(300);
    say("end");
    await lines.next();
  },
  async freeze() { // while everything is held, the page dies
    await page.goto(url);
    await ready();
    await page.keyboard.down("Space");
    await enabled();
    await drag("z", ...(await way("z")));
    say("dragged");
    await lines.next();
    await page.evaluate(() => { const end = Date.now() + 9000; while (Date.now() < end); });
    say("end");
  },
  async touch() { // a phone: one finger on ENABLE, another at the gizmo
    await page.setViewport({ width: 390, height: 780, isMobile: true, hasTouch: true });
    await page.goto(url);
    await ready();
    const box = await (await page.$("#enable")).boundingBox();
    let first = null;
    for (let tries = 0; !first; tries++) { // a slow machine may lose the page just now, and ENABLE with it
      first = await page.touchscreen.touchStart(box.x + 30, box.y + 20);
      try { await enabled(8000); } catch (error) { if (tries > 2) throw error; await first.end(); first = null; }
    }
    const [x, y] = await page.evaluate(() => window.deft.gizmo.handle("z")), [dx, dy] = await way("z");
    const second = await page.touchscreen.touchStart(x, y);
    await leading();
    for (let i = 1; i <= 25; i++) { await second.move(x + (dx * i) / 25, y + (dy * i) / 25); await wait(30); }
    await wait(400);
    say("dragged");
    await lines.next();
    await first.end();
    await second.end();
    say("end");
    await lines.next();
  },
  async xr() {
    await page.evaluateOnNewDocument(readFileSync(`${folder}/node_modules/iwer/build/iwer.min.js`, "utf8"));
    await page.evaluateOnNewDocument(() => {
      const device = (window.device = new IWER.XRDevice(IWER.metaQuest3));
      device.installRuntime({ forceInstall: true });
      device.position.set(0, 1.6, 0);
      device.controllers.right.position.set(0.2, 1.2, -0.3);
    });
    await page.goto(url);
    await ready();
    await page.waitForSelector("#xr:not([hidden])");
    await page.click("#xr");
    await wait(500);
    const move = async (dx, dy, dz) => {
      for (let i = 0; i < 25; i++) {
        await page.evaluate((d) => { const p = window.device.controllers.right.position; p.set(p.x + d[0] / 25, p.y + d[1] / 25, p.z + d[2] / 25); }, [dx, dy, dz]);
        await wait(40);
      }
    };
    await move(0, 0.1, 0); // nothing is squeezed
    say("free");
    await lines.next();
    await page.evaluate(() => window.device.controllers.right.updateButtonValue("squeeze", 1));
    await leading();
    await move(-0.08, 0, 0); // to the person's left: the robot's y
    await wait(500);
    say("dragged", await page.evaluate(() => ({ banner: document.getElementById("banner").textContent, ...window.deft.state() })));
    await lines.next();
    await page.evaluate(() => window.device.controllers.right.updateButtonValue("squeeze", 0));
    await wait(300);
    await page.evaluate(() => window.device.controllers.right.updateButtonValue("b-button", 1));
    await wait(500);
    say("end");
    await lines.next();
  },
};
await scenarios[scenario]();
await browser.close();
process.exit(0);
