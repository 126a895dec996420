"use strict";
// Draws the page from the JSON in #contents. All texts are set as text, never as HTML.

const contents = JSON.parse(document.getElementById("contents").textContent);
const main = document.getElementById("main");
const dark = window.matchMedia("(prefers-color-scheme: dark)");
const SYMBOLS = ["circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "x"];
const COLOURS = 7;
// For backends that have the colour of another one.
const DASHES = ["solid", "dash", "dot", "dashdot"];
const PATTERNS = ["", "/", "x", "."];
const drawings = [];

function element(name, parent, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  if (parent) parent.append(made);
  return made;
}

// Plotly reads some tags in texts, so "<" must not reach it.
function plain(text) {
  return String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
}

function seconds(value) {
  if (value === null || value === undefined) return "-";
  if (Math.abs(value) >= 1) return `${Number(value.toPrecision(3))} s`;
  if (Math.abs(value) >= 1e-3) return `${Number((1e3 * value).toPrecision(3))} ms`;
  return value === 0 ? "0 s" : `${Number((1e6 * value).toPrecision(3))} µs`;
}

function colourOf(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function layout(more) {
  const axis = { gridcolor: colourOf("--line"), zerolinecolor: colourOf("--line"), automargin: true };
  const narrow = window.innerWidth < 640;
  return {
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: colourOf("--text"), family: "system-ui, sans-serif", size: narrow ? 11 : 13 },
    margin: { l: narrow ? 48 : 64, r: 12, t: 28, b: 48 },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: colourOf("--soft"), activecolor: colourOf("--text") },
    legend: { orientation: "h", y: narrow ? -0.3 : -0.2 },
    hovermode: "closest",
    ...more,
    xaxis: { ...axis, ...(more.xaxis || {}) },
    yaxis: { ...axis, ...(more.yaxis || {}) },
  };
}

const CONFIG = { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d"] };

// Draws now, and again when the colours of the page change.
function draw(parent, make, className) {
  const place = element("div", parent, undefined, `picture ${className || ""}`);
  const drawing = { place, make };
  drawings.push(drawing);
  redraw(drawing);
  return drawing;
}

function redraw(drawing) {
  const { data, more } = drawing.make();
  Plotly.react(drawing.place, data, layout(more), CONFIG);
}

dark.addEventListener("change", () => drawings.forEach(redraw));

function choice(parent, name, options, change) {
  const label = element("label", parent, `${name} `);
  const select = element("select", label);
  options.forEach(([value, text]) => {
    const option = element("option", select, text);
    option.value = value;
  });
  select.addEventListener("change", () => change(select.value));
  return select;
}

function looks(section) {
  return Object.fromEntries(section.backends.map((backend) => [backend.name, backend]));
}

function marker(backend, above) {
  const symbol = SYMBOLS[(backend.style + Math.floor(backend.style / COLOURS)) % SYMBOLS.length];
  return { symbol: above ? above.map((one) => (one ? `${symbol}-open` : symbol)) : symbol, size: 9 };
}

function table(parent, columns, rows) {
  const made = element("table", element("div", parent, undefined, "scroll"));
  const head = element("tr", element("thead", made));
  const body = element("tbody", made);
  const lines = rows.map((cells) => {
    const line = element("tr", body);
    cells.forEach((cell) => element("td", line, cell.text, cell.verdict || ""));
    return { line, cells };
  });
  columns.forEach((column, at) => {
    const button = element("button", element("th", head), column);
    button.type = "button";
    button.addEventListener("click", () => {
      const order = button.dataset.order === "up" ? "down" : "up";
      head.querySelectorAll("button").forEach((other) => delete other.dataset.order);
      button.dataset.order = order;
      const sign = order === "up" ? 1 : -1;
      const key = ({ cells }) => cells[at].value ?? null;
      lines.sort((a, b) => {
        const [one, other] = [key(a), key(b)];
        if (one === null && other === null) return sign * a.cells[at].text.localeCompare(b.cells[at].text);
        if (one === null || other === null) return one === null ? 1 : -1;
        return sign * (one - other);
      });
      lines.forEach(({ line }) => body.append(line));
    });
  });
}

function latencies(parent, section) {
  const look = looks(section);
  const keys = Object.keys(section.curves).filter((key) => section.curves[key].lines.some((l) => l.x.length));
  if (!keys.length) return;
  element("h3", parent, "Latency over load");
  const bar = element("div", parent, undefined, "choices");
  let chosen = keys[0];
  let scale = "linear";
  const drawing = draw(parent, () => ({
    data: section.curves[chosen].lines.map((line) => ({
      name: plain(line.backend),
      x: line.x,
      y: line.y,
      mode: "lines+markers",
      line: { color: look[line.backend].colour },
      marker: marker(look[line.backend], line.above),
      error_y: {
        type: "data",
        symmetric: false,
        array: line.y.map((y, i) => (line.high[i] === null ? 0 : line.high[i] - y)),
        arrayminus: line.y.map((y, i) => (line.low[i] === null ? 0 : y - line.low[i])),
        thickness: 1.2,
        visible: line.high.some((high) => high !== null),
      },
      text: line.y.map((y, i) => `${seconds(y)} ${line.marks[i]}`),
      hovertemplate: "%{x}: %{text}<extra>%{fullData.name}</extra>",
    })),
    more: {
      xaxis: { title: { text: plain(section.axis) } },
      yaxis: { title: { text: plain(`${section.curves[chosen].title} (s)`) }, type: scale, rangemode: "tozero" },
    },
  }));
  choice(bar, "figure", keys.map((key) => [key, section.curves[key].title]), (key) => { chosen = key; redraw(drawing); });
  choice(bar, "scale", [["linear", "linear"], ["log", "logarithmic"]], (value) => { scale = value; redraw(drawing); });
  element("p", parent, "Open markers: above capacity. Bars: 95% intervals over seeds. The notes at the top explain the signs.", "soft");
}

function spreads(parent, section) {
  if (!section.spread.length) return;
  const look = looks(section);
  const names = { jct: "JCT", ttft: "TTFT", normalized_latency: "JCT / token" };
  element("h3", parent, "Distribution over requests");
  const bar = element("div", parent, undefined, "choices");
  let level = section.spread.length - 1;
  let metric = "jct";
  const cdf = draw(parent, () => ({
    data: section.spread[level].cdf[metric].map((line) => ({
      name: plain(line.backend), x: line.x, y: line.y, mode: "lines",
      line: { color: look[line.backend].colour, shape: "hv", dash: DASHES[look[line.backend].repeat % DASHES.length] },
      text: line.x.map(seconds),
      hovertemplate: "%{y:.0%} within %{text}<extra>%{fullData.name}</extra>",
    })),
    more: {
      xaxis: { title: { text: `${names[metric]} (s)` }, type: "log", dtick: "D2" },
      yaxis: { title: { text: "requests" }, tickformat: ".0%", range: [0, 1.02] },
    },
  }));
  element("h3", parent, "Latency by output length");
  const lengths = draw(parent, () => ({
    data: section.spread[level].lengths.map((line) => ({
      type: "bar", name: plain(line.backend), x: line.buckets, y: line[metric === "ttft" ? "jct" : metric],
      marker: {
        color: look[line.backend].colour,
        pattern: { shape: PATTERNS[look[line.backend].repeat % PATTERNS.length] },
      },
      text: line.count.map((count) => `${count} requests`),
      textposition: "none",
      hovertemplate: "%{x} tokens: %{y:.3s}s, %{text}<extra>%{fullData.name}</extra>",
    })),
    more: {
      barmode: "group",
      xaxis: { title: { text: "output tokens" }, type: "category", categoryorder: "array", categoryarray: buckets(section.spread[level].lengths) },
      yaxis: { title: { text: `mean ${names[metric === "ttft" ? "jct" : metric]} (s)` }, type: "log", dtick: "D2" },
    },
  }));
  const both = () => { redraw(cdf); redraw(lengths); };
  const select = choice(bar, "load", section.spread.map((one, at) => [at, one.load]), (at) => { level = Number(at); both(); });
  select.value = level;
  choice(bar, "figure", Object.entries(names), (value) => { metric = value; both(); });
}

function buckets(lines) {
  const seen = [...new Set(lines.flatMap((line) => line.buckets))];
  return seen.sort((a, b) => parseInt(a, 10) - parseInt(b, 10));
}

function timelines(parent, section) {
  if (!section.runs.length) return;
  element("h3", parent, "Requests over time");
  const bar = element("div", parent, undefined, "choices");
  const under = element("div");
  const beside = element("div");
  let run = section.runs[0];
  const segments = (from, to) => {
    const x = [], y = [], text = [];
    run.scheduled.forEach((_, at) => {
      if (from[at] === null || to[at] === null) return;
      const said = describe(run, at);
      x.push(from[at], to[at], null);
      y.push(at, at, null);
      text.push(said, said, null);
    });
    return { x, y, text };
  };
  const line = (name, colour, from, to) => ({
    name, type: "scatter", mode: "lines", line: { color: colour, width: 3 }, ...segments(from, to),
    hovertemplate: "%{text}<extra></extra>",
  });
  const paused = () => {
    const x = [], y = [], text = [];
    run.pauses.forEach(([at, from, to]) => {
      x.push(from, to, null);
      y.push(at, at, null);
      text.push(...Array(3).fill(describe(run, at)));
    });
    return {
      name: "preempted", type: "scatter", mode: "lines", line: { color: "#D55E00", width: 3 }, x, y, text,
      hovertemplate: "%{text}<extra></extra>",
    };
  };
  const drawing = draw(parent, () => ({
    data: [
      line("waits to run", "#E69F00", run.scheduled, run.prefill.map((at, i) => (at === null ? run.first[i] : at))),
      line("prefill", "#009E73", run.prefill, run.first),
      line("decode", "#0072B2", run.first.map((at, i) => (run.outcome[i] ? null : at)), run.last),
      paused(),
      line("failed or rejected", "#9b1c1c",
        run.outcome.map((said, i) => (said ? run.first[i] ?? run.scheduled[i] : null)), run.finished),
    ].filter((one) => one.x.length),
    more: {
      xaxis: { title: { text: "seconds" } },
      yaxis: { title: { text: "requests in order of arrival" }, autorange: "reversed" },
      dragmode: "zoom",
    },
  }), "tall");
  const show = () => { redraw(drawing); server(beside, run); users(under, run); };
  choice(bar, "run", section.runs.map((one, at) => [at, `${one.name} ${one.marks}`]), (at) => { run = section.runs[at]; show(); });
  element("p", parent, "Drag to zoom, double-click to see all. A preempted request is queued, or its KV is on the host or in transfer. Point at a request to see its seconds in each state.", "soft");
  parent.append(beside, under);
  server(beside, run);
  users(under, run);
}

// What the server itself reported during the run.
function server(parent, run) {
  drawings.filter((one) => parent.contains(one.place)).forEach((one) => drawings.splice(drawings.indexOf(one), 1));
  parent.replaceChildren();
  const groups = Object.keys(run.server.groups);
  if (!groups.length) return;
  element("h3", parent, "What the server reported meanwhile");
  const bar = element("div", parent, undefined, "choices");
  let chosen = groups[0];
  const drawing = draw(parent, () => ({
    data: Object.entries(run.server.groups[chosen]).map(([name, values]) => ({
      name, x: run.server.at, y: values, mode: "lines", line: { shape: "hv" }, connectgaps: false,
    })),
    more: {
      xaxis: { title: { text: "seconds" } },
      yaxis: { title: { text: chosen }, rangemode: "tozero" },
      showlegend: true,
    },
  }));
  choice(bar, "figure", groups.map((group) => [group, group]), (value) => { chosen = value; redraw(drawing); });
}

function describe(run, at) {
  const parts = [
    `request ${at}: ${run.tokens[at]} tokens`,
    run.first[at] === null ? "no token" : `TTFT ${seconds(run.first[at] - run.scheduled[at])}, JCT ${seconds(run.last[at] - run.scheduled[at])}`,
  ];
  Object.entries(run.states).forEach(([state, values]) => {
    if (values[at] !== null) parts.push(`${state} ${seconds(values[at])}`);
  });
  if (run.outcome[at]) parts.push(run.outcome[at]);
  return parts.map(plain).join("<br>");
}

function users(parent, run) {
  parent.replaceChildren();
  if (!run.users.length) return;
  element("h3", parent, "Users");
  const rows = run.users.filter((row) => row.user);
  table(parent, ["user", "requests", "output tokens", "mean JCT / token", "mean TTFT"], rows.map((row) => [
    { text: row.user, value: null },
    { text: String(row.requests), value: row.requests },
    { text: String(row.tokens), value: row.tokens },
    { text: seconds(row.normalized_latency), value: row.normalized_latency },
    { text: seconds(row.ttft), value: row.ttft },
  ]));
  const fairness = run.users.find((row) => !row.user).fairness;
  if (fairness !== null) element("p", parent, `Jain's index of the users' JCT / token: ${fairness.toFixed(3)} (1: equal).`, "soft");
}

function settings(parent, section) {
  element("h3", parent, "Settings and machines");
  section.settings.forEach((backend) => {
    const details = element("details", parent);
    element("summary", details, backend.backend);
    const made = element("table", element("div", details, undefined, "scroll"), undefined, "plain");
    backend.items.forEach(([key, value]) => {
      const row = element("tr", made);
      element("td", row, key);
      element("td", row, value);
    });
  });
}

function show(section) {
  const parent = element("section", main);
  element("h2", parent, section.title);
  const list = element("ul", parent, undefined, "notes");
  [...section.notes].sort((a, b) => b.warns - a.warns)
    .forEach((note) => element("li", list, note.text, note.warns ? "warns" : ""));
  element("pre", parent, section.headline.join("\n"), "headline");
  element("h3", parent, "Figures");
  element("p", parent, `Ratios are to ${section.baseline} under the same load. Click a heading to sort.`, "soft");
  table(parent, section.table.columns, section.table.rows);
  section.slos.forEach((slo) => {
    element("h3", parent, `SLO ${slo.slo}`);
    table(parent, ["backend", "met up to", "ratio", "verdict"], slo.rows.map((row) => [
      { text: row.backend }, { text: row.met + (row.above ? " ▲" : "") }, { text: row.ratio }, { text: row.verdict },
    ]));
  });
  latencies(parent, section);
  spreads(parent, section);
  timelines(parent, section);
  settings(parent, section);
}

document.getElementById("loading").remove();
element("h1", main, contents.title);
element("p", main, contents.made, "soft");
contents.sections.forEach(show);
const meanings = element("section", main);
element("h2", meanings, "What the figures mean");
contents.definitions.forEach(({ name, definition }) => {
  const line = element("p", meanings);
  element("strong", line, `${name}: `);
  line.append(definition);
});
document.documentElement.dataset.ready = "yes";
