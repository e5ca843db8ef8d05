// The page of the web API: lists processes, keeps their figures live over the WebSocket, shows logs, starts and stops.
// It loads nothing from elsewhere, and puts text into the page as text only.
"use strict";

const byId = (id) => document.getElementById(id);
const rows = byId("processes").tBodies[0];
const processes = new Map();
const KEY = "weft-api-key";
let socket = null;
let logsOf = null;
let retryAfter = 500;

function headers(more) {
  const key = sessionStorage.getItem(KEY);
  return key ? { ...more, Authorization: `Bearer ${key}` } : { ...more };
}

// A key in base64url: what a WebSocket can carry beside its address, which would be logged.
function encoded(key) {
  return btoa(key).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

async function call(method, path) {
  const response = await fetch(path, { method, headers: headers() });
  const body = await response.json();
  if (response.status === 401) {
    askForKey(body.error.message);
  }
  if (!response.ok) {
    throw new Error(body.error.message);
  }
  return body;
}

function askForKey(why) {
  byId("refused").textContent = sessionStorage.getItem(KEY) ? why : "";
  byId("login").hidden = false;
}

function say(text) {
  byId("message").textContent = text;
  byId("message").hidden = text === "";
}

function element(name, text, className) {
  const made = document.createElement(name);
  made.textContent = text;
  if (className) {
    made.className = className;
  }
  return made;
}

function bytes(count) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (count >= 1024 && unit < units.length - 1) {
    count /= 1024;
    unit += 1;
  }
  return `${unit === 0 ? count : count.toFixed(1)} ${units[unit]}`;
}

function duration(milliseconds) {
  const seconds = Math.floor(milliseconds / 1000);
  const parts = [[86400, "d"], [3600, "h"], [60, "m"], [1, "s"]];
  const first = parts.findIndex(([size]) => seconds >= size);
  if (first < 0) {
    return "0s";
  }
  const [size, unit] = parts[first];
  const next = parts[first + 1];
  const rest = next ? `${Math.floor((seconds % size) / next[0])}${next[1]}` : "";
  return `${Math.floor(seconds / size)}${unit}${next ? ` ${rest}` : ""}`;
}

const RUNS = ["online", "starting", "stopping"];

function cells(process) {
  const runs = RUNS.includes(process.status);
  const uptime = runs && process.since ? duration(Date.now() - process.since) : "";
  return [
    [String(process.id), "number"],
    [process.name, ""],
    [process.status, process.status],
    [process.pid === null ? "" : String(process.pid), "number"],
    [process.port === null || process.port === undefined ? "" : String(process.port), "number"],
    [runs ? `${process.cpu.toFixed(1)} %` : "", "number"],
    [runs ? bytes(process.memory) : "", "number"],
    [uptime, "number"],
    [String(process.restarts ?? 0), "number"],
    [process.health ?? "", process.health ?? ""],
  ];
}

function actions(process) {
  const cell = document.createElement("td");
  const stopped = ["stopped", "errored"].includes(process.status);
  const names = stopped ? ["start", "logs"] : ["stop", "restart", "logs"];
  for (const name of names) {
    const button = element("button", name);
    button.type = "button";
    button.dataset.action = name;
    button.dataset.id = process.id;
    button.setAttribute("aria-label", `${name} ${process.name}`);
    cell.append(button);
  }
  return cell;
}

function row(process) {
  const made = document.createElement("tr");
  made.dataset.id = process.id;
  made.classList.toggle("chosen", logsOf === process.id);
  made.append(...cells(process).map(([text, className]) => element("td", text, className)), actions(process));
  return made;
}

function show(process) {
  const old = rows.querySelector(`tr[data-id="${process.id}"]`);
  const made = row(process);
  if (old === null) {
    const after = [...rows.rows].find((other) => Number(other.dataset.id) > process.id);
    rows.insertBefore(made, after ?? null);
  } else if (old.cells[2].textContent === process.status) {
    // The buttons stay the same ones, so that a click on one is not lost.
    cells(process).forEach(([text, className], at) => {
      old.cells[at].textContent = text;
      old.cells[at].className = className;
    });
  } else {
    old.replaceWith(made);
  }
  byId("empty").hidden = processes.size > 0;
}

function list(body) {
  processes.clear();
  for (const process of body.processes) {
    process.since = process.uptime > 0 ? Date.now() - process.uptime : null;
    processes.set(process.id, process);
  }
  rows.replaceChildren(...[...processes.values()].map(row));
  byId("empty").hidden = processes.size > 0;
}

let reading = null;

// Reads the list anew, once for however many reasons there are at once.
function refresh() {
  reading ??= call("GET", "/api/processes").then(list).catch((error) => say(error.message)).finally(() => {
    reading = null;
  });
  return reading;
}

function host(system) {
  const figures = [
    ["CPU", `${system.cpu.toFixed(1)} %`],
    ["memory", `${system.memory.usage_percent.toFixed(1)} % (${bytes(system.memory.used)})`],
    ["load", system.load.one.toFixed(2)],
  ];
  byId("host").replaceChildren(...figures.map(([name, value]) => {
    const pair = document.createElement("div");
    pair.append(element("dt", name), element("dd", value));
    return pair;
  }));
}

const told = {
  process_update(data) {
    const known = processes.get(data.id);
    // A new one, or another process of it: the list has what the message has not.
    if (!known || known.pid !== data.pid || known.status !== data.status) {
      refresh();
    }
    const { timestamp, ...figures } = data;
    processes.set(data.id, { restarts: 0, port: null, ...known, ...figures });
    show(processes.get(data.id));
  },
  health_update(data) {
    for (const process of processes.values()) {
      if (process.name === data.process) {
        process.health = data.status;
        show(process);
      }
    }
  },
  system_update: host,
  process_event: refresh,
};

function connection(text, className) {
  byId("connection").textContent = text;
  byId("connection").className = className;
}

function connect() {
  const key = sessionStorage.getItem(KEY);
  const url = new URL("/ws", location.href.replace(/^http/, "ws"));
  const opened = new WebSocket(url, key ? ["weft", `key.${encoded(key)}`] : ["weft"]);
  socket = opened;
  opened.onopen = () => {
    retryAfter = 500;
    connection("live", "live");
  };
  opened.onmessage = ({ data }) => {
    const message = JSON.parse(data);
    told[message.type]?.(message.data);
  };
  opened.onclose = () => {
    if (socket !== opened) {
      return;
    }
    connection("not connected", "lost");
    retryAfter = Math.min(retryAfter * 2, 10000);
    setTimeout(begin, retryAfter);
  };
}

async function begin() {
  try {
    list(await call("GET", "/api/processes"));
  } catch (error) {
    connection("not connected", "lost");
    if (byId("login").hidden) {
      say(error.message);
      setTimeout(begin, Math.min(retryAfter *= 2, 10000));
    }
    return;
  }
  say("");
  byId("login").hidden = true;
  connect();
}

async function logs() {
  const process = processes.get(logsOf);
  if (!process) {
    closeLogs();
    return;
  }
  const type = byId("stream").value;
  const path = `/api/logs/${encodeURIComponent(process.id)}?lines=200&type=${encodeURIComponent(type)}`;
  const pre = byId("logs").querySelector("pre");
  try {
    const body = await call("GET", path);
    const atEnd = pre.scrollTop + pre.clientHeight >= pre.scrollHeight - 4;
    byId("logs").querySelector("h2").textContent = `Logs of ${process.name}`;
    pre.replaceChildren(...body.logs.flatMap((line) => {
      const text = element("span", ` ${line.message}\n`, line.type);
      return [element("time", line.timestamp), text];
    }));
    if (atEnd) {
      pre.scrollTop = pre.scrollHeight;
    }
  } catch (error) {
    say(error.message);
  }
}

function closeLogs() {
  logsOf = null;
  byId("logs").hidden = true;
  rows.querySelector("tr.chosen")?.classList.remove("chosen");
}

async function act(button) {
  const id = Number(button.dataset.id);
  const action = button.dataset.action;
  if (action === "logs") {
    closeLogs();
    logsOf = id;
    rows.querySelector(`tr[data-id="${id}"]`)?.classList.add("chosen");
    byId("logs").hidden = false;
    await logs();
    return;
  }
  button.disabled = true;
  say("");
  try {
    await call("POST", `/api/processes/${id}/${action}`);
  } catch (error) {
    say(error.message);
  }
  button.disabled = false;
  await refresh();
}

rows.addEventListener("click", ({ target }) => {
  if (target instanceof HTMLButtonElement) {
    act(target);
  }
});
byId("close-logs").addEventListener("click", closeLogs);
byId("stream").addEventListener("change", logs);
byId("login").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(KEY, byId("key").value);
  byId("key").value = "";
  byId("login").hidden = true;
  begin();
});
setInterval(() => {
  if (logsOf !== null) {
    logs();
  }
  for (const process of processes.values()) {
    if (RUNS.includes(process.status)) {
      show(process);
    }
  }
}, 2000);
begin();
