// The fleet: a line a device, what needs a person first.
"use strict";

const SHOWN = 1000;
const devices = new Map();
let curves = {};
let isDue = false;

function cell(row, text, label, className) {
  const made = element("td", text, className);
  if (label) made.dataset.label = label;
  row.append(made);
  return made;
}

function curve(text) {
  const svg = shape("svg", { class: "curve", viewBox: "0 0 48 36", preserveAspectRatio: "none", "aria-hidden": "true" });
  let path = "", isOpen = false;
  [...(text || "")].forEach((digit, x) => {
    if (digit === "-") { isOpen = false; return; }
    path += `${isOpen ? "L" : "M"}${x} ${35.5 - parseInt(digit, 36)}`;
    isOpen = true;
  });
  if (path) svg.append(shape("path", { class: "light", d: path }));
  return svg;
}

function row(line) {
  const made = element("tr");
  const link = element("a", line.device);
  link.href = "/device/" + encodeURIComponent(line.device);
  cell(made, null, null, "name").append(link);
  cell(made, line.needs.join(", "), null, "needs " + needsClass(line));
  cell(made, number(line.light), "light");
  cell(made).append(curve(curves[line.device]));
  cell(made, "LED " + ledWords(line), null, ledClass(line.led_on));
  cell(made, heard(line));
  for (const [key, label] of [["backlog", "backlog"], ["received", "received"], ["twice", "twice"], ["lost", "lost"], ["missing", "missing"]]) {
    cell(made, number(line[key]), label, "number");
  }
  cell(made, line.clock, "clock");
  cell(made, line.version, "version");
  return made;
}

function draw() {
  isDue = false;
  const wanted = byId("find").value.toLowerCase();
  const all = [...devices.values()].filter(line => line.device.toLowerCase().includes(wanted));
  all.sort((a, b) => b.urgency - a.urgency || (a.device < b.device ? -1 : 1));
  byId("lines").replaceChildren(...all.slice(0, SHOWN).map(row));
  const needy = all.filter(line => line.urgency >= 2).length;
  byId("summary").textContent = `${number(devices.size)} devices, ${number(needy)} need a person`;
  byId("more").textContent = all.length > SHOWN ? `${number(all.length - SHOWN)} more; find them by name` : "";
}

function drawSoon() {
  if (!isDue) { isDue = true; setTimeout(draw, 300); }
}

async function load() {
  try {
    const found = new Map();
    let next = "";
    while (next !== null) {
      const page = await ask("/api/devices?after=" + encodeURIComponent(next));
      for (const line of page.devices) found.set(line.device, line);
      next = page.next;
    }
    devices.clear();
    for (const [id, line] of found) devices.set(id, line);
    draw();
    curves = await ask("/api/curves");
    draw();
  } catch (error) {
    say(error.message, true);
  }
}

byId("find").addEventListener("input", drawSoon);
watch("/api/live", lines => { for (const line of lines) devices.set(line.device, line); drawSoon(); });
load();
setInterval(load, 60000);
