'use strict';
// The page: what was (/past, once), what is (/stream, a frame a second), and what cannot be known.
const $ = id => document.getElementById(id);
const HOUR = 3600, SLOT = 600, LOST_MS = 5000;
let past = null, status = null, frame = null, frameAt = 0, range = 3600, cursor = null, loading = false;

const span = s => {
  s = Math.max(0, s);
  if (s < 10) return (Math.round(s * 10) / 10) + ' s';
  if (s < 120) return Math.round(s) + ' s';
  if (s < 7200) return Math.floor(s / 60) + ' min';
  if (s < 172800) return Math.floor(s / 3600) + ' h ' + Math.floor(s / 60) % 60 + ' min';
  return Math.floor(s / 86400) + ' d ' + Math.floor(s / 3600) % 24 + ' h';
};
const bytes = n => n < 1000 ? n + ' B' : n < 1e6 ? (n / 1e3).toFixed(1) + ' kB' : (n / 1e6).toFixed(1) + ' MB';
const many = (n, noun) => n + ' ' + noun + (n === 1 ? '' : 's');
const WHO = {remote: 'the server', fallback: 'the Pi itself', 'fail-safe': 'the fail-safe', start: 'nobody yet'};
const unit = () => status && status.unit ? ' ' + status.unit : '';
const num = v => Math.abs(v) >= 100 ? Math.round(v) : Math.round(v * 10) / 10;

// A time of the boot clock on the wall clock of the Pi, shown in the viewer's zone; without a clock, how long ago.
function clock(bootS, withDay) {
  if (!frame || frame.clock !== 'synced') return frame ? span(frame.boot_s - bootS) + ' ago' : '';
  const when = new Date(Date.parse(frame.at) - (frame.boot_s - bootS) * 1000);
  const time = {hour: '2-digit', minute: '2-digit'};
  if (range <= HOUR || !withDay) time.second = '2-digit';
  if (withDay && range > HOUR) Object.assign(time, {weekday: 'short'});
  return when.toLocaleString([], time);
}

async function load() {
  if (loading) return;
  loading = true;
  try {
    const get = async path => {
      const answer = await fetch(path, {cache: 'no-store'});
      if (answer.status === 401) location.href = '/login';
      if (!answer.ok) throw new Error(path + ': ' + answer.status);
      return answer.json();
    };
    [past, status] = [await get('/past'), await get('/status')];
    document.title = status.device + ' · nightlight';
    $('device').textContent = status.device;
    listEvents(); listOutages(); draw();
  } catch (error) { past = null; } finally { loading = false; }
}

function connect() {
  const source = new EventSource('/stream');
  source.onmessage = message => take(JSON.parse(message.data));
  source.addEventListener('lost', () => lost('nightlight does not answer'));
  source.onerror = () => {
    lost('connection lost');
    // A browser gives up after some refusals; this does not.
    if (source.readyState === EventSource.CLOSED) setTimeout(connect, 2000);
  };
}

function lost(why) {
  const since = frameAt ? ', last heard ' + span((Date.now() - frameAt) / 1000) + ' ago' : '';
  $('live').textContent = why + since + '; trying again';
  $('live').className = 'lost';
  document.body.classList.add('stale');
}

function take(next) {
  const isNew = !frame || frame.run !== next.run;
  const ended = frame && frame.outages !== next.outages;
  frame = next; frameAt = Date.now();
  $('live').textContent = 'live'; $('live').className = '';
  document.body.classList.remove('stale');
  if (isNew || ended || !past) load();
  else { append(); for (const e of next.events) if (!past.events.some(o => o.number === e.number)) past.events.push(e); if (next.events.length) listEvents(); }
  show(); draw();
}

// The seconds since the last sample are as this frame says.
function append() {
  const c = past.hour, sign = b => b === null ? '?' : b ? '1' : '0';
  const by = {remote: 'r', fallback: 'f', 'fail-safe': 'x'}[frame.by] || 's';
  const until = Math.floor(frame.boot_s) + 1;
  let missing = until - (c.from_s + c.led.length);
  if (missing > HOUR || missing < 0) { load(); return; }
  while (missing-- > 0) {
    c.light.push(frame.light); c.backlog.push(frame.backlog);
    c.led += sign(frame.led_on); c.by += by; c.link += sign(frame.link_up);
  }
  const over = c.led.length - HOUR;
  if (over > 0) {
    c.light.splice(0, over); c.backlog.splice(0, over); c.from_s += over;
    for (const k of ['led', 'by', 'link']) c[k] = c[k].slice(over);
  }
  const w = past.week;
  if (until > w.from_s + w.led.length * SLOT) load();
}

function row(name, text, bad) { return {name, text, bad}; }
function show() {
  const f = frame, on = f.led_on;
  $('lamp').className = 'lamp' + (on ? ' on' : on === null ? ' unknown' : '');
  const led = on === null ? 'not known' : on ? 'on' : 'off';
  $('lamp').setAttribute('aria-label', 'The LED is ' + led);
  $('led').textContent = 'LED ' + led + (f.led_ok ? '' : ', cannot be written') + ', by ' + (WHO[f.by] || f.by);
  $('why').textContent = f.why + ', for ' + span(f.led_since_s);
  $('light').textContent = f.light === null ? 'light not known' : 'light ' + num(f.light) + unit();
  $('rules').textContent = 'on below ' + f.on_below + ', off above ' + f.off_above + unit() + (f.mode === 'auto' ? '' : ', mode ' + f.mode);
  const rows = [
    row('Lease of the server', f.lease_left_s === null ? 'none runs' : span(f.lease_left_s) + ' left'),
    row('Link', f.link_up ? 'up' + (f.link_why ? ', but ' + f.link_why : '') : 'down: ' + f.link_why, !f.link_up),
    row('Broker', status ? status.broker : ''),
    row('Outage', f.outage_s === null ? 'none' : 'for ' + span(f.outage_s), f.outage_s !== null),
    row('Backlog', many(f.backlog, 'record') + (f.backlog && f.backlog_oldest_age_s !== null ? ', the oldest ' + span(f.backlog_oldest_age_s) + ' old' : '')),
    row('Store', f.store_ok ? 'takes records' : 'not to be written', !f.store_ok),
    row('Written to storage today', f.written_today_bytes === null ? 'not known' : bytes(f.written_today_bytes)),
    row('Clock', f.clock === 'synced' ? 'right' : 'not known to be right', f.clock !== 'synced'),
    row('Sensor', (status ? status.sensor : '') + (f.sensor_ok ? ', ok' : ': ' + f.sensor_why), !f.sensor_ok),
    row('Program', status ? 'nightlight ' + status.version : ''),
  ];
  const list = $('state');
  rows.forEach((r, i) => {
    let div = list.children[i];
    if (!div) { div = document.createElement('div'); div.append(document.createElement('dt'), document.createElement('dd')); list.append(div); }
    if (div.firstChild.textContent !== r.name) div.firstChild.textContent = r.name;
    if (div.lastChild.textContent !== r.text) div.lastChild.textContent = r.text;
    div.lastChild.className = r.bad ? 'bad' : '';
  });
}

function item(at, text, warns) {
  const li = document.createElement('li'), time = document.createElement('time'), span = document.createElement('span');
  time.textContent = clock(at); span.textContent = text; if (warns) span.className = 'warn';
  li.append(time, span);
  return li;
}
function listEvents() {
  past.events.splice(0, past.events.length - 100);
  $('events').replaceChildren(...past.events.slice().reverse().map(e => item(e.at_s, e.text, e.warns)));
}
function listOutages() {
  $('no-outage').hidden = past.outages.length > 0;
  $('outages').replaceChildren(...past.outages.slice().reverse().map(o => item(o.at_s - o.seconds,
    'the ' + o.cause + ' was away for ' + span(o.seconds) + ': ' + many(o.readings, 'reading') + ', ' + many(o.events, 'event') + ', ' +
    many(o.led_changes, 'LED change') + ', ' + (o.lost === null ? 'unknown how many lost (QoS 0)' : o.lost + ' lost') +
    (o.short_sessions ? ', ' + many(o.short_sessions, 'session') + ' did not hold' : '') + ' (' + o.why + ')')));
}

// The samples of the range: the hour by the second, more by ten minutes.
function samples() {
  if (!past) return null;
  const fine = range <= HOUR, c = fine ? past.hour : past.week;
  const until = c.from_s + c.led.length * c.step_s, n = Math.min(c.led.length, Math.ceil(range / c.step_s));
  return {c, n, first: c.led.length - n, from: until - range, until};
}

function draw() {
  const canvas = $('curve'), view = samples(), box = canvas.getBoundingClientRect();
  if (!view || !box.width) return;
  const scale = window.devicePixelRatio || 1, W = box.width, H = box.height;
  if (canvas.width !== Math.round(W * scale) || canvas.height !== Math.round(H * scale)) { canvas.width = Math.round(W * scale); canvas.height = Math.round(H * scale); }
  const g = canvas.getContext('2d'), css = getComputedStyle(document.documentElement), ink = name => css.getPropertyValue('--' + name).trim();
  g.setTransform(scale, 0, 0, scale, 0, 0); g.clearRect(0, 0, W, H);
  const fs = W > 1400 ? 16 : 12; g.font = fs + 'px system-ui, sans-serif'; g.textBaseline = 'middle';
  const left = fs * 4.6, right = W - 8, bands = ['LED', 'decides', 'link'], bh = fs * 1.7, gap = 5, axis = fs * 1.8, bk = Math.max(46, H * .14);
  const top = 10, bottom = H - axis - bk - gap - bands.length * (bh + gap) - 8;
  const {c, n, first, from, until} = view, x = at => left + (at - from) / range * (right - left);
  const xi = i => x(c.from_s + i * c.step_s);
  const value = v => v !== null && v !== undefined;
  // Light
  const high = c.light_high || c.light;
  let max = frame ? frame.off_above * 1.25 : 1, some = false;
  for (let i = first; i < first + n; i++) if (value(high[i])) { max = Math.max(max, high[i] * 1.05); some = true; }
  const y = v => bottom - Math.max(0, v) / max * (bottom - top);
  g.strokeStyle = ink('line'); g.lineWidth = 1; g.strokeRect(left + .5, top + .5, right - left - 1, bottom - top);
  g.fillStyle = ink('soft'); g.textAlign = 'right';
  g.fillText('0', left - 6, bottom - 6); g.fillText(num(max), left - 6, top + 7);
  if (frame) {
    g.setLineDash([7, 4]); g.strokeStyle = ink('rule'); g.fillStyle = ink('rule');
    const near = Math.abs(y(frame.on_below) - y(frame.off_above)) < fs;
    for (const [v, text] of [[frame.on_below, 'on <'], [frame.off_above, 'off >']]) {
      g.beginPath(); g.moveTo(left, y(v)); g.lineTo(right, y(v)); g.stroke();
      const shift = near ? (text[1] === 'n' ? fs * .6 : -fs * .6) : 0;
      g.fillText(num(v), left - 6, y(v) + shift);
      g.textAlign = 'left'; g.fillText(text + ' ' + num(v), left + 4, y(v) + (text[1] === 'n' ? fs * .7 : -fs * .7)); g.textAlign = 'right';
    }
    g.setLineDash([]);
  }
  g.strokeStyle = g.fillStyle = ink('light'); g.lineWidth = 2; g.lineJoin = 'round';
  g.save(); g.beginPath(); g.rect(left, top, right - left, bottom - top); g.clip(); g.beginPath();
  let pen = false;
  for (let i = first; i < first + n; i++) {
    if (!value(c.light[i])) { pen = false; continue; }
    const px = xi(i), py = y(value(high[i]) ? high[i] : c.light[i]);
    if (pen) g.lineTo(px, py); else g.moveTo(px, py);
    if (!pen) { g.lineTo(px + .5, py); pen = true; }
  }
  g.stroke();
  if (c.light_high) { g.globalAlpha = .35; for (let i = first; i < first + n; i++) if (value(c.light[i])) g.fillRect(xi(i), y(high[i]), Math.max(1, xi(1) - xi(0)), Math.max(1, y(c.light[i]) - y(high[i]))); g.globalAlpha = 1; }
  g.restore();
  g.fillStyle = ink('fg'); g.textAlign = 'left'; g.fillText('light' + unit(), left + 4, top + fs * .8);
  if (!some) { g.textAlign = 'center'; g.fillText('no reading yet', (left + right) / 2, (top + bottom) / 2); }
  // Bands: colour, pattern and letter, so that no eye needs all three.
  const looks = {
    LED: {k: 'led', 1: ['lamp', '', 'on'], 0: ['card', '', 'off']},
    decides: {k: 'by', r: ['server', '', 'S'], f: ['pi', '/', 'P'], x: ['safe', '|', '!'], s: ['blank', '', '']},
    link: {k: 'link', 1: ['up', '', 'up'], 0: ['down', '\\', 'x']},
  };
  bands.forEach((name, b) => {
    const look = looks[name], sign = c[look.k], t = bottom + 8 + b * (bh + gap);
    g.fillStyle = ink('fg'); g.textAlign = 'right'; g.fillText(name, left - 6, t + bh / 2);
    for (let i = first; i < first + n;) {
      let j = i; while (j < first + n && sign[j] === sign[i]) j++;
      const a = xi(i), w = Math.max(1, xi(j) - a), [colour, pattern, letter] = look[sign[i]] || ['blank', '', ''];
      g.fillStyle = ink(colour); g.fillRect(a, t, w, bh);
      if (pattern) {
        g.save(); g.beginPath(); g.rect(a, t, w, bh); g.clip(); g.strokeStyle = ink('card'); g.lineWidth = 2; g.beginPath();
        for (let p = a - bh; p < a + w + bh; p += 7) { const lean = pattern === '/' ? bh : pattern === '|' ? 0 : -bh; g.moveTo(p, t + bh); g.lineTo(p + lean, t); }
        g.stroke(); g.restore();
      }
      if (letter && w > fs * (letter.length + .6)) {
        g.textAlign = 'center'; g.font = 'bold ' + fs + 'px system-ui, sans-serif';
        const tw = g.measureText(letter).width + 6;
        g.fillStyle = ink('card'); g.fillRect(a + w / 2 - tw / 2, t + 2, tw, bh - 4);
        g.fillStyle = ink('fg'); g.fillText(letter, a + w / 2, t + bh / 2); g.font = fs + 'px system-ui, sans-serif';
      }
      i = j;
    }
    g.strokeStyle = ink('line'); g.lineWidth = 1; g.strokeRect(left + .5, t + .5, right - left - 1, bh - 1);
  });
  // Backlog
  const bt = bottom + 8 + bands.length * (bh + gap), bb = bt + bk;
  let most = 10; for (let i = first; i < first + n; i++) most = Math.max(most, c.backlog[i] || 0);
  g.fillStyle = ink('fg'); g.textAlign = 'right'; g.fillText('backlog', left - 6, bb - fs * .6); g.fillStyle = ink('soft'); g.fillText(most, left - 6, bt + fs * .6);
  g.fillStyle = ink('backlog'); g.beginPath(); g.moveTo(xi(first), bb);
  for (let i = first; i < first + n; i++) { const v = bb - (c.backlog[i] || 0) / most * (bk - 2); g.lineTo(xi(i), v); g.lineTo(xi(i + 1), v); }
  g.lineTo(xi(first + n), bb); g.fill();
  g.strokeStyle = ink('line'); g.strokeRect(left + .5, bt + .5, right - left - 1, bk - 1);
  // Time
  g.fillStyle = ink('soft'); g.textBaseline = 'top';
  const fit = Math.floor((right - left) / (fs * 7)), marks = {60: [6, 3, 2], 300: [5, 1], 3600: [6, 3, 2], 86400: [8, 6, 4, 2], 604800: [7, 1]}[range].find(m => m <= fit) || 1;
  for (let m = 0; m <= marks; m++) {
    const at = from + range * m / marks; g.textAlign = m === 0 ? 'left' : m === marks ? 'right' : 'center';
    const ago = until - at; g.fillText(m === marks ? 'now' : '-' + span(ago).replace(/ 0 (min|h)$/, ''), x(at), bb + 6);
  }
  if (cursor !== null) {
    const i = Math.min(first + n - 1, Math.max(first, cursor)); g.strokeStyle = ink('fg'); g.lineWidth = 1.5; g.beginPath(); g.moveTo(xi(i + .5), top); g.lineTo(xi(i + .5), bb); g.stroke();
    tell(c, i);
  }
}

function tell(c, i) {
  const who = {r: 'the server decides', f: 'the Pi decides by itself', x: 'fail-safe', s: 'nobody decides yet'}[c.by[i]] || 'not known';
  const light = c.light[i] === null || c.light[i] === undefined ? 'light not known' : 'light ' + num(c.light[i]) + (c.light_high ? ' to ' + num(c.light_high[i]) : '') + unit();
  const led = {1: 'LED on', 0: 'LED off'}[c.led[i]] || 'LED not known', link = {1: 'link up', 0: 'no link'}[c.link[i]] || 'link not known';
  $('told').textContent = clock(c.from_s + i * c.step_s, true) + ': ' + [light, led, who, link, 'backlog ' + c.backlog[i]].join(', ');
}

$('curve').addEventListener('pointermove', e => {
  const view = samples(); if (!view) return;
  const box = $('curve').getBoundingClientRect(), fs = box.width > 1400 ? 16 : 12, left = fs * 4.6;
  const at = view.from + (e.clientX - box.left - left) / (box.width - 8 - left) * range;
  cursor = Math.floor((at - view.c.from_s) / view.c.step_s); draw();
});
$('curve').addEventListener('pointerleave', () => { cursor = null; $('told').textContent = '\u00a0'; draw(); });
$('curve').addEventListener('focus', () => $('told').setAttribute('aria-live', 'polite'));
$('curve').addEventListener('blur', () => { $('told').setAttribute('aria-live', 'off'); cursor = null; draw(); });
$('curve').addEventListener('keydown', e => {
  const view = samples(), step = {ArrowLeft: -1, ArrowRight: 1, PageUp: -30, PageDown: 30}[e.key]; if (!view) return;
  const last = view.first + view.n - 1;
  if (step) cursor = Math.min(last, Math.max(view.first, (cursor === null ? last : cursor) + step));
  else if (e.key === 'Home') cursor = view.first; else if (e.key === 'End') cursor = last; else return;
  e.preventDefault(); draw();
});
for (const button of document.querySelectorAll('[data-range]')) button.addEventListener('click', () => {
  range = Number(button.dataset.range); cursor = null;
  for (const other of document.querySelectorAll('[data-range]')) other.setAttribute('aria-pressed', String(other === button));
  $('curve-title').textContent = 'The last ' + button.textContent; draw();
});
addEventListener('resize', draw);
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', draw);
// How long ago something was grows by itself.
setInterval(() => { if (past && frame && frame.clock !== 'synced') { listEvents(); listOutages(); } }, 5000);
setInterval(() => { if (frameAt && Date.now() - frameAt > LOST_MS) lost('nothing heard'); }, 1000);
load(); connect();
