// One device: facts, switch, plot, account, events.
"use strict";

const id = decodeURIComponent(location.pathname.split("/")[2]);
const api = "/api/devices/" + encodeURIComponent(id);
let span = "day";
let plottedAt = 0;

function showLine(line) {
  byId("needs").textContent = line.needs.join(", ");
  byId("needs").className = needsClass(line);
  const facts = [["light", number(line.light)], ["LED", ledWords(line)], ["heard of", heard(line)],
    ["backlog", number(line.backlog)], ["received", number(line.received)], ["twice", number(line.twice)],
    ["lost", number(line.lost)], ["missing", number(line.missing)], ["clock", line.clock || "not known"], ["version", line.version || "not known"]];
  byId("facts").replaceChildren(...facts.map(([name, value]) => {
    const fact = element("div");
    fact.append(element("small", name), element("span", value));
    return fact;
  }));
  for (const button of byId("switch").querySelectorAll("button")) {
    button.setAttribute("aria-pressed", String(line.switched ?? null) === button.dataset.to);
  }
}

function showAll(device) {
  showLine(device.line);
  byId("switch").hidden = !device.can_switch;
  byId("runs").replaceChildren(...device.runs.map(run => {
    const row = element("tr");
    row.append(element("td", run.run));
    for (const key of ["last", "received", "twice", "lost", "missing", "deleted"]) row.append(element("td", number(run[key]), "number"));
    return row;
  }));
  byId("events").replaceChildren(...device.events.map(event => {
    const row = element("tr");
    row.append(element("td", moment(event.ts), "faint"), element("td", event.words));
    return row;
  }));
}

function showPlot(plot) {
  const svg = byId("plot");
  const width = svg.clientWidth || 800, height = svg.clientHeight || 300, foot = 20, head = 16;
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  const count = plot.light.length, brightest = Math.max(1, ...plot.light.filter(light => light !== null));
  const x = n => n / count * width;
  const at = time => Math.min(width, Math.max(0, (Date.parse(time) - plot.from) / (plot.to - plot.from) * width));
  const y = light => height - foot - light / brightest * (height - foot - head);
  const parts = [];
  plot.led.forEach((on, n) => {
    if (on) parts.push(shape("rect", { class: "led", x: x(n), y: 0, width: width / count + .5, height: height - foot }));
  });
  for (const trouble of plot.troubles) {
    const from = at(trouble.from), isLoss = trouble.from === trouble.to;
    const mark = isLoss
      ? shape("line", { class: "loss", x1: from, x2: from, y1: 0, y2: height - foot })
      : shape("rect", { class: "band", x: from, y: 0, width: Math.max(1, at(trouble.to) - from), height: height - foot });
    const title = shape("title", {});
    title.textContent = `${trouble.what}, ${moment(trouble.from)}, ${trouble.lost} lost`;
    mark.append(title);
    parts.push(mark);
  }
  let path = "", isOpen = false;
  plot.light.forEach((light, n) => {
    if (light === null) { isOpen = false; return; }
    path += `${isOpen ? "L" : "M"}${x(n + .5)} ${y(light)}`;
    isOpen = true;
  });
  for (const share of [.5, 1]) {
    const height = y(brightest * share), label = shape("text", { x: 4, y: height - 3 });
    label.textContent = number(brightest * share);
    parts.push(shape("line", { class: "grid", x1: 0, x2: width, y1: height, y2: height }), label);
  }
  if (path) parts.push(shape("path", { class: "light", d: path }));
  [0, .5, 1].forEach((share, n) => {
    const label = shape("text", { x: share * width, y: height - 5, "text-anchor": ["start", "middle", "end"][n] });
    label.textContent = moment(plot.from + share * (plot.to - plot.from));
    parts.push(label);
  });
  svg.replaceChildren(...parts);
}

async function plot() {
  plottedAt = Date.now();
  for (const button of byId("spans").querySelectorAll("button")) button.setAttribute("aria-pressed", button.dataset.span === span);
  try { showPlot(await ask(`${api}/plot?span=${span}`)); } catch (error) { say(error.message, true); }
}

async function load() {
  try { showAll(await ask(api)); } catch (error) { say(error.message, true); }
}

byId("spans").addEventListener("click", event => {
  if (event.target.dataset.span) { span = event.target.dataset.span; plot(); }
});
byId("switch").addEventListener("click", async event => {
  if (!event.target.dataset.to) return;
  byId("switched").textContent = "...";
  const answer = await fetch(api + "/switch", {
    method: "POST", headers: { "content-type": "application/json" }, body: `{"led_on":${event.target.dataset.to}}`,
  });
  byId("switched").textContent = answer.ok ? "kept" : await answer.text();
  load();
});
watch("/api/live?device=" + encodeURIComponent(id), lines => {
  if (lines.length) showLine(lines[lines.length - 1]);
  if (Date.now() - plottedAt > 10000) { plot(); load(); }
});
document.title = `${id} - nightlight`;
byId("name").textContent = id;
byId("csv").href = api + "/records?format=csv";
byId("jsonl").href = api + "/records?format=jsonl";
addEventListener("resize", plot);
load();
plot();
