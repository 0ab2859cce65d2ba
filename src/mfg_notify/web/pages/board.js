// Keeps the board up to date. Everything from the stream is shown as text, never as markup.
"use strict";

const RETRY = 5000; // milliseconds before asking again for a stream that was refused
const SILENCE = 15000; // milliseconds without any event after which the exporter counts as lost
const ROW_INTERVAL = 1000; // milliseconds, at least, until the row that the address names is asked for again
const FIRST_ROWS = 5; // of a table on a phone; board.css hides the others
const SUPPLY = ["scarce", "limited", "moderate", "high", "abundant"];

const number = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const fine = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });
const clock = new Intl.DateTimeFormat([], { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
const calendar = new Intl.DateTimeFormat([], { dateStyle: "medium", timeStyle: "medium", hourCycle: "h23" });
const day = new Intl.DateTimeFormat([], { day: "numeric", month: "short" });
const still = matchMedia("(prefers-reduced-motion: reduce)");
const byId = (id) => document.getElementById(id);
const place = byId("state");
const pause = byId("pause");
const chosen = byId("player");

let stream = null;
let heard = null; // when the last event came
let latest = null; // the last snapshot
let lost = false;
let address = ""; // the last fragment of the page's address, except that of the link that skips to the board
let asked = 0; // when the row that it names was last asked for
let rows = new Map(); // table → key → row

// Invisible characters can reverse or hide the text around them, so their code points are shown instead.
const plain = (text) =>
  text.replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu, (mark) => `\\u{${mark.codePointAt(0).toString(16)}}`);

function element(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

// A name, isolated from the direction of the text around it. Long ones may break at underscores.
function label(text, name = "bdi") {
  const made = element(name);
  for (const part of plain(text).split(/(?<=_)/)) made.append(part, element("wbr"));
  return made;
}

function moment(microseconds, format) {
  const date = new Date(microseconds / 1000);
  const known = !Number.isNaN(date.getTime());
  const made = element("time", "", known ? format.format(date) : "–");
  if (known) made.dateTime = date.toISOString();
  return made;
}

// A time span that goes on: its text is brought up to date every second.
function span(microseconds) {
  const made = element("time");
  made.dataset.since = microseconds;
  made.title = calendar.format(new Date(microseconds / 1000));
  age(made);
  return made;
}

function age(made) {
  const seconds = Math.max(0, Math.floor(Date.now() / 1000 - made.dataset.since / 1e6));
  const units = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
  const first = units.findIndex(([size]) => seconds >= size);
  const two = first < 0 ? [[0, "s"]] : units.slice(first, first + 2).map(([size, unit], i) => [
    Math.floor((i ? seconds % units[first][0] : seconds) / size), unit,
  ]);
  const text = two.filter(([n], i) => n || !i).map(([n, unit]) => `${n}\u00a0${unit}`).join(" ");
  if (made.textContent !== text) made.textContent = text;
}

// What is shown in a cell, by the kind of its column.
const LOOKS = {
  number: (n) => [number.format(n)],
  percent: (n) => [`${number.format(n)} %`],
  share: (n) => [`${number.format(100 * n)} %`],
  time: (at) => [moment(at, { format: (date) => `${day.format(date)}, ${clock.format(date)}` })],
  age: (at) => [at === null ? "–" : span(at)],
  words: (text) => [label(text)],
  key: (text) => [label(text, "code")],
  pipeline(key) {
    const link = element("a");
    link.href = `#/pipeline/${encodeURIComponent(key)}`;
    link.append(label(key, "code"));
    return [link];
  },
  site: (text) => [text === "" ? "no name" : label(text)],
  supply(ordinal) {
    if (ordinal === null) return ["unknown"];
    const meter = element("span", `meter level-${ordinal}`);
    meter.setAttribute("aria-hidden", "true");
    for (let step = 0; step < SUPPLY.length; step++) meter.append(element("i"));
    return [meter, SUPPLY[ordinal - 1]];
  },
  change([before, after, remark]) {
    const shown = [];
    if (before !== null && before !== after) {
      const arrow = element("span", "", " → ");
      arrow.setAttribute("aria-hidden", "true");
      shown.push(label(before), arrow, element("span", "unseen", " to "));
    }
    if (after !== null) shown.push(label(after));
    if (remark) {
      const said = element("span", "remark");
      said.append(label(remark));
      shown.push(said);
    }
    return shown;
  },
};

function flash(cell) {
  if (!still.matches) cell.animate([{ backgroundColor: "var(--flash)" }, {}], { duration: 1200, easing: "ease-out" });
}

function makeRow(columns) {
  const row = element("tr");
  row.setAttribute("role", "row");
  for (const column of columns) {
    const heads = "head" in column.dataset;
    const cell = element(heads ? "th" : "td", column.dataset.kind ?? "");
    cell.setAttribute("role", heads ? "rowheader" : "cell");
    if (heads) cell.scope = "row";
    cell.dataset.label = column.textContent;
    row.append(cell);
  }
  row.shown = [];
  return row;
}

function fill(table, given, keyOf) {
  const columns = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  const before = rows.get(table);
  const now = new Map();
  for (const values of given) {
    const key = keyOf(values);
    const row = before?.get(key) ?? makeRow(columns);
    const fresh = row.shown.length === 0;
    columns.forEach((column, i) => {
      const value = JSON.stringify(values[i]);
      if (row.shown[i] === value) return;
      row.shown[i] = value;
      const look = LOOKS[column.dataset.kind] ?? ((text) => [label(text)]);
      row.cells[i].replaceChildren(...look(values[i]));
      row.cells[i].classList.toggle("none", values[i] === 0 || values[i] === "");
      if (!fresh) flash(row.cells[i]);
    });
    now.set(key, row);
  }
  before?.forEach((row, key) => now.has(key) || row.remove());
  let i = 0;
  for (const row of now.values()) {
    if (body.rows[i] !== row) body.insertBefore(row, body.rows[i] ?? null);
    i++;
  }
  rows.set(table, now);
  table.hidden = now.size === 0;
  more(table, now.size);
}

// Bars of equal width, for the eye; the number beside them says it in words.
function sparkline(bars) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const [low, high] = [Math.min(0, ...bars), Math.max(0, ...bars)];
  const scale = 20 / (high - low || 1);
  made.setAttribute("viewBox", `0 0 ${bars.length} 20`);
  made.setAttribute("preserveAspectRatio", "none");
  made.setAttribute("aria-hidden", "true");
  bars.forEach((n, i) => {
    const bar = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    for (const [name, value] of Object.entries({
      x: i + 0.1, width: 0.8, y: (high - Math.max(0, n)) * scale, height: Math.abs(n) * scale,
    })) bar.setAttribute(name, value);
    made.append(bar);
  });
  return made;
}

function showTrends(summary) {
  for (const cell of document.querySelectorAll("[data-trend]")) {
    const bars = summary[cell.dataset.trend];
    const text = JSON.stringify(bars);
    if (cell.dataset.shown === text) continue;
    cell.dataset.shown = text;
    cell.replaceChildren(number.format(bars.reduce((sum, n) => sum + n, 0)), sparkline(bars));
  }
}

// The players that the game has now; the choice stays as long as its player does.
function showPlayers(game) {
  const names = game.tables.players.map(([name]) => name);
  const known = [...chosen.options].slice(1).map((option) => option.value);
  if (JSON.stringify(names) === JSON.stringify(known)) return;
  const before = chosen.value;
  chosen.replaceChildren(chosen.options[0], ...names.map((name) => new Option(plain(name), name)));
  chosen.value = names.includes(before) ? before : "";
}

const isChosen = (player) => chosen.value === "" || player === chosen.value;

// On a phone a long table shows its first rows, and this button the others.
function more(table, length) {
  const section = table.closest("section");
  let button = section.querySelector("button.more");
  if (button === null) {
    button = element("button", "more");
    button.type = "button";
    button.addEventListener("click", () => {
      table.classList.toggle("open");
      more(table, table.tBodies[0].rows.length);
    });
    section.append(button);
  }
  const open = table.classList.contains("open");
  const text = open ? "Show fewer" : `Show all ${number.format(length)}`;
  if (button.textContent !== text) button.textContent = text;
  button.ariaExpanded = String(open);
  button.hidden = length <= FIRST_ROWS;
}

function note(table, text) {
  const section = table.closest("section");
  let found = section.querySelector("p.note");
  if (found === null) {
    found = element("p", "note");
    table.after(found);
  }
  found.textContent = text;
  found.hidden = text === "";
}

function showGame(game) {
  byId("game").hidden = game === null;
  if (game === null) return;
  for (const cell of document.querySelectorAll("[data-sum]")) {
    const text = number.format(game.summary[cell.dataset.sum]);
    if (cell.textContent === text) continue;
    if (cell.textContent !== "") flash(cell);
    cell.textContent = text;
  }
  showTrends(game.summary);
  showPlayers(game);
  for (const [name, rows] of Object.entries(game.tables)) {
    const given = rows.filter(([player]) => isChosen(player));
    const table = document.querySelector(`[data-table="${name}"]`);
    const keys = [...table.tHead.rows[0].cells].flatMap((column, i) => ("key" in column.dataset ? [i] : []));
    fill(table, given, (values) => JSON.stringify(keys.map((i) => values[i])));
    const more = game.left_out[name];
    table.closest("section").hidden = "optional" in table.dataset && given.length === 0;
    note(table, more ? `and ${number.format(more)} more` : given.length ? "" : "none");
  }
}

function showChanges(changes) {
  const table = document.querySelector('[data-table="changes"]');
  const given = changes.filter((line) => isChosen(line.player)).map((line) => [
    line.at, line.player, line.kind, line.subject, line.key, [line.before, line.after, line.remark], line.ship, line.id,
  ]);
  fill(table, given, (values) => values[7]);
  note(table, given.length ? "" : "none yet");
}

function showFacts(list, facts, looks) {
  list.replaceChildren(
    ...facts.map(([name, value, look]) => {
      const fact = element("div");
      const shown = element("dd");
      shown.append(...(value === null ? ["not known"] : looks[look](value)));
      fact.append(element("dt", "", name), shown);
      return fact;
    })
  );
}

function showExporter(facts) {
  showFacts(byId("exporter"), facts, {
    "": (n) => [number.format(n)],
    s: (n) => [n < 1 ? `${fine.format(1000 * n)} ms` : `${fine.format(n)} s`],
    at: (n) => [n > 0 ? moment(n * 1e6, calendar) : "never"],
  });
}

// The pipeline or task that the address names: #/pipeline/ID or #/task/ID.
function readAddress() {
  const [, kind, id] = /^#\/(pipeline|task)\/(.+)$/.exec(address) ?? [];
  if (kind === undefined) return null;
  try {
    return { kind, id: decodeURIComponent(id) };
  } catch (error) {
    if (!(error instanceof URIError)) throw error;
    return { kind, id }; // typed by hand, and not encoded
  }
}

function openRow() {
  address = location.hash;
  const row = readAddress();
  byId("row").hidden = row === null;
  if (row === null) return;
  byId("h-row").replaceChildren(row.kind === "task" ? "Task " : "Pipeline ", label(row.id, "code"));
  showRow(row.kind, { facts: [], changes: [] });
  askForRow();
}

async function askForRow() {
  asked = Date.now();
  const row = readAddress();
  if (row === null) return;
  const before = address;
  const answer = await fetch(`./-/board/row?${new URLSearchParams(row)}`).catch(() => null);
  const found = answer?.ok ? await answer.json() : null;
  // Another row may have been opened meanwhile. If the exporter does not answer, its state is shown anyway.
  if (found !== null && address === before) showRow(row.kind, found);
}

function showRow(kind, found) {
  const table = document.querySelector('[data-table="row"]');
  const text = JSON.stringify(found);
  if (table.dataset.shown === text) return;
  table.dataset.shown = text;
  const { facts, changes, complete_since: since } = found;
  showFacts(byId("row-facts"), facts, LOOKS);
  const given = changes.map((line) => [line.at, [line.before, line.after, line.remark], line.ship, line.id]);
  fill(table, given, (values) => values[3]);
  byId("row-note").replaceChildren(...(facts.length || since === undefined ? [] : [
    `Not known to this exporter: there is no such ${kind}, or it ended before `,
    ...(since === null ? ["this exporter counted anything."] : [moment(since, calendar), "."]),
  ]));
}

function showState() {
  let state = latest?.state ?? "waiting";
  let text = latest ? plain(latest.status_text) : "connecting to the exporter";
  text = text.charAt(0).toUpperCase() + text.slice(1);
  let at = latest?.known_at ?? null;
  if (state === "standby") text += "; its board has the numbers";
  else if (state === "live" && latest.ready) text = "Live";
  else if (state === "live") [state, text] = ["waiting", `Live, but ${plain(latest.status_text)}`];
  else if (latest) text = `Not live: ${plain(latest.status_text)}`;
  if (pause.ariaPressed === "true") {
    [state, text, at] = ["standby", "Paused", heard && heard * 1000];
  } else if (lost) {
    [state, text] = ["waiting", "No word from the exporter; trying again"];
    at ??= heard && heard * 1000;
  }
  if (at !== null && !/[.?!]$/.test(text)) text += ".";
  place.dataset.state = state;
  // Only if it has changed, because screen readers read it aloud.
  if (byId("status-text").textContent !== text) byId("status-text").textContent = text;
  const active = byId("active");
  const since = state === "live" ? latest?.active_at ?? null : null;
  if (active.dataset.at !== String(since)) {
    active.dataset.at = String(since);
    active.replaceChildren(...(since === null ? [] : ["The bot last changed something ", span(since), " ago."]));
  }
  const known = byId("known");
  if (known.dataset.at === String(at)) return;
  known.dataset.at = String(at);
  known.replaceChildren(...(at === null ? [] : ["The numbers were last known on ", moment(at, calendar), "."]));
}

function receive(message) {
  heard = Date.now();
  lost = false;
  if (message.type === "message") {
    latest = JSON.parse(message.data);
    show();
    showExporter(latest.exporter);
    document.querySelector(".version").textContent = latest.version;
    byId("rest").hidden = false;
  }
  if (Date.now() - asked >= ROW_INTERVAL) askForRow();
  showState();
}

function lose() {
  lost = true;
  showState();
}

function open() {
  close();
  stream = new EventSource("./-/board/stream");
  stream.addEventListener("message", receive);
  stream.addEventListener("heartbeat", receive);
  stream.addEventListener("error", () => {
    lose();
    // The browser reopens a stream that broke, but not one that was refused.
    if (stream?.readyState === EventSource.CLOSED) setTimeout(resume, RETRY);
  });
}

function close() {
  stream?.close();
  stream = null;
}

function resume() {
  if (document.hidden || pause.ariaPressed === "true") close();
  else open();
}

pause.addEventListener("click", () => {
  const paused = pause.ariaPressed !== "true";
  pause.ariaPressed = String(paused);
  resume();
  showState();
});
document.addEventListener("visibilitychange", resume);
function show() {
  showGame(latest.game);
  showChanges(latest.changes);
}

chosen.addEventListener("change", show);
addEventListener("hashchange", () => {
  if (location.hash === "#board") return;
  openRow();
  if (readAddress() !== null) byId("h-row").focus();
});
setInterval(() => {
  if (!document.hidden) document.querySelectorAll("[data-since]").forEach(age);
  if (stream && heard && Date.now() - heard > SILENCE) lose();
}, 1000);
pause.hidden = false;
byId("scriptless").hidden = true;
openRow();
resume();
