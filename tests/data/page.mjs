// Opens a page of data.view in a headless Chromium: node page.mjs FOLDER-OF-PACKAGES FILE [PICTURE]; JSON on stdout.
import { createRequire } from "node:module";

const [folder, file, picture] = process.argv.slice(2);
const require = createRequire(`${folder}/`);
const { default: chromium } = await import(require.resolve("@sparticuz/chromium"));
const { default: puppeteer } = await import(require.resolve("puppeteer-core"));
const browser = await puppeteer.launch({ executablePath: await chromium.executablePath(), headless: "shell", args: chromium.args });
const page = await browser.newPage(), errors = [], asked = [];
page.on("pageerror", (error) => errors.push(String(error)));
page.on("request", (r) => r.url().startsWith("data:") || asked.push(r.url()));
await page.setViewport({ width: 1100, height: 1400 });
await page.goto(`file://${file}`);
const look = () => page.evaluate(() => {
  const cursor = document.querySelector(".cursor"), canvas = document.querySelector("canvas");
  return {
    now: document.querySelector("output").textContent, cursor: Number(cursor.getAttribute("x1")),
    cloud: canvas && canvas.toDataURL(), points: canvas && Number(canvas.dataset.points),
    lines: Object.fromEntries([...document.querySelectorAll("svg")].map((s) => [s.dataset.key, s.querySelectorAll("polyline").length])),
    videos: [...document.querySelectorAll("video")].map((v) => [v.dataset.key, v.duration, v.videoWidth, v.currentTime]),
  };
});
const first = await look();
await page.evaluate(() => { const t = document.querySelector("#time"); t.value = 3; t.dispatchEvent(new Event("input")); });
const moved = await look();
if (picture) { await new Promise((done) => setTimeout(done, 1000)); await page.screenshot({ path: picture, fullPage: true }); }
const canvas = await page.$("canvas"), box = await canvas.boundingBox();
await page.mouse.move(box.x + 100, box.y + 100); await page.mouse.down(); await page.mouse.move(box.x + 180, box.y + 130); await page.mouse.up();
const turned = await look();
await page.click("#play");
await page.waitForFunction(() => Number(document.querySelector("#time").value) > 5, { timeout: 30000 });
console.log(JSON.stringify({ first, moved, turned, errors, asked }));
await browser.close();
