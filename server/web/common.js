// What both pages need: elements, numbers, times, the stream of changes. Texts of devices only ever become text.
"use strict";

const byId = id => document.getElementById(id);

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined && text !== null) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function shape(name, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

const number = value => value === null || value === undefined ? "" : value.toLocaleString("en", { maximumFractionDigits: 1 });

function ago(time) {
  const seconds = Math.max(0, (Date.now() - Date.parse(time)) / 1000);
  if (seconds < 90) return `${Math.round(seconds)} s ago`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min ago`;
  if (seconds < 172800) return `${Math.round(seconds / 3600)} h ago`;
  return `${Math.round(seconds / 86400)} d ago`;
}

const moment = time => new Date(time).toLocaleString();

function heard(line) {
  if (line.online === false) return `offline since ${line.since ? moment(line.since) : "it was first heard of"}`;
  return `${line.online ? "online, " : ""}${ago(line.last_seen)}`;
}

function ledClass(on) {
  return on === true ? "led-on" : on === false ? "led-off" : "led-unknown";
}

function ledWords(line) {
  const on = line.led_on === true ? "on" : line.led_on === false ? "off" : "not known";
  const by = line.switched !== undefined ? "by hand" : line.by ? `by ${line.by}` : "";
  return `${on} ${by}`.trim();
}

function needsClass(line) {
  return line.urgency >= 5 ? "bad" : line.urgency >= 2 ? "warn" : "faint";
}

async function ask(path) {
  const answer = await fetch(path, { cache: "no-store" });
  if (!answer.ok) throw new Error((await answer.text()).trim() || answer.statusText);
  return answer.json();
}

function say(text, bad) {
  const state = byId("state");
  state.textContent = text;
  state.className = bad ? "bad" : "faint";
}

// Calls `take` with the lines that change. A browser connects again by itself.
function watch(path, take) {
  const stream = new EventSource(path);
  stream.addEventListener("devices", event => take(JSON.parse(event.data)));
  stream.addEventListener("open", () => say("live"));
  stream.addEventListener("error", () => say("the server does not answer; what is shown may be old", true));
}
