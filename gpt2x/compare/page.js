// The glue between the page's controls, its table (DataTables) and its plots (plotly). page.py made the data.
import DataTable, { set_or_remove_dark_class } from "datatables";

const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const element = (name, text, attributes = {}) => {
  const made = Object.assign(document.createElement(name), attributes);
  made.textContent = text; // never as markup: it may come from a run
  return made;
};

// ---- the table: the runs it shows are those of the curves and settings; means and importance come whole from page.py

let shown = data.runs.map((_, run) => run);
const headings = [...document.querySelectorAll("#table thead th")];
const table = new DataTable("#table", {
  columns: headings.map((heading) => ({ visible: heading.dataset.hidden === "0" })),
  order: [], // the rows come best first
  pageLength: 25,
  lengthMenu: [10, 25, 100, { label: "all", value: -1 }],
  scrollX: true,
  autoWidth: false,
  columnControl: [["search"]],
  layout: { topStart: ["pageLength", { buttons: [{ extend: "colvis", text: "Columns" }, { extend: "csv", text: "CSV" }] }] },
  language: { search: "Filter:", info: "_START_ to _END_ of _TOTAL_ runs", lengthMenu: "_MENU_ a page",
    infoFiltered: "(of _MAX_)", infoEmpty: "no runs", zeroRecords: "no run is like that" },
});
table.on("search", () => {
  const left = table.rows({ search: "applied" }).indexes().toArray().map((row) => data.order[row]).sort((a, b) => a - b);
  if (left.join() !== shown.join()) {
    shown = left;
    drawCurves();
    later("settings", drawSettings);
  }
});

// ---- looks

const PALETTE = ["#4269d0", "#d97706", "#e0484d", "#3a9d8f", "#3ca951", "#d6589f", "#8f63d2", "#5f9fd8", "#9c6b4e", "#7c8591"];
const SCALE = ["#2f7de1", "#8f6be0", "#d954a4", "#f08a24"].map((color, i) => [i / 3, color]); // seen on white and on black
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const config = { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d"],
  toImageButtonOptions: { format: "svg", filename: "gpt2x" } };
const layout = (more) => ({
  paper_bgcolor: css("--paper"), plot_bgcolor: css("--paper"), font: { color: css("--ink"), size: 13 },
  margin: { l: 60, r: 15, t: 30, b: 50 }, hovermode: "closest", hoverlabel: { namelength: -1 }, ...more,
});
const axisLook = (title, log) => ({ title: { text: title }, type: log ? "log" : "linear", gridcolor: css("--line"),
  zerolinecolor: css("--line"), automargin: true });

// ---- curves

const decoded = new Map();
function values(number) {
  if (!decoded.has(number)) {
    const bytes = Uint8Array.from(atob(data.arrays[number]), (character) => character.charCodeAt(0));
    decoded.set(number, new Float32Array(bytes.buffer));
  }
  return decoded.get(number);
}

/** Exponential moving average without the bias of its start; its half-life is a share of the curve. */
function smooth(curve, halfLife) {
  if (!halfLife) return curve;
  const decay = 0.5 ** (1 / (halfLife * curve.length));
  let sum = 0, weight = 0;
  return curve.map((value) => (sum = decay * sum + value) / (weight = decay * weight + 1));
}

/** What groups are called: their settings that differ among them, those with the most values first, as many as a legend holds. */
function namesOf(groups) {
  const names = Object.keys(groups[0]?.settings ?? {});
  const count = new Map(names.map((name) => [name, new Set(groups.map(({ settings }) => settings[name])).size]));
  const told = names.filter((name) => count.get(name) > 1).sort((a, b) => count.get(b) - count.get(a));
  return groups.map(({ settings, n }) => {
    const parts = told.filter((name) => settings[name] !== null).map((name) => `${name}=${settings[name]}`);
    return `${parts.slice(0, 4).join(", ") || "all runs"}${parts.length > 4 ? ", …" : ""} (${n})`;
  });
}

/** Every curve of a metric that is to be seen: what it is called, its colour, its arrays, how many more lie under it. */
function curvesOf(metric) {
  const grouped = byId("color").value === "group";
  const visible = new Set(shown);
  const found = (grouped ? data.groups : data.labels)
    .map((group, i) => ({ group, label: group, color: PALETTE[i % PALETTE.length], curve: data.curves[metric][grouped ? "group" : "run"][i],
      there: grouped ? group.runs.some((run) => visible.has(run)) : visible.has(i) }))
    .filter(({ curve, there }) => curve && there);
  if (!grouped) return found;
  const names = namesOf(found.map(({ group }) => group));
  return found.map((one, i) => ({ ...one, label: names[i] }));
}

function drawCurve(side) {
  const metric = byId(side).value, axis = byId("axis").value, halfLife = Number(byId("smoothing").value);
  const logX = byId("log-x").checked, logY = byId("log-y").checked;
  const found = curvesOf(metric);
  const traces = found.flatMap(({ label, color, curve }, i) => {
    const x = values(curve.x[axis]), raw = values(curve.y), y = smooth(raw, halfLife);
    const mode = x.length === 1 ? "markers" : "lines";
    const common = { x, mode, legendgroup: String(i), hoverinfo: "skip", showlegend: false };
    const parts = [{ ...common, y, name: label, hoverinfo: undefined, showlegend: true, line: { color, width: 1.8 }, marker: { color },
      hovertemplate: "%{x:,.5~g}: %{y:.5~g}<extra>%{fullData.name}</extra>" }];
    if (curve.error !== undefined) {
      const error = smooth(values(curve.error), halfLife);
      const edge = { ...common, mode: "lines", line: { width: 0, color } };
      parts.unshift({ ...edge, y: y.map((value, j) => value - error[j]) },
        { ...edge, y: y.map((value, j) => value + error[j]), fill: "tonexty", fillcolor: color + "33" });
    } else if (halfLife && found.length <= 20) {
      parts.unshift({ ...common, y: raw, opacity: 0.25, line: { color, width: 1 } });
    }
    return parts;
  });
  const many = found.length > 20 || found.length < 2;
  const plot = byId(`${side}-plot`);
  plot.setAttribute("aria-label", `${metric} of ${found.length} curves by ${data.axes[axis]}; the table has the numbers`);
  return Plotly.react(plot, traces, layout({
    title: { text: found.length ? "" : "none of the runs in the table has it", font: { size: 14 } },
    showlegend: !many, legend: { orientation: "h", yref: "container", y: 0, yanchor: "bottom", font: { size: 11 }, maxheight: 0.3 },
    xaxis: axisLook(data.axes[axis], logX), yaxis: axisLook(metric, logY),
  }), config);
}
const drawCurves = () => byId("left") && Promise.all([drawCurve("left"), drawCurve("right")]);

// ---- settings against the metric, and which of them mattered

function drawSettings() {
  if (!data.parallel.length) return;
  const result = data.parallel.at(-1).values;
  const runs = shown.filter((run) => result[run] !== null && data.parallel.every((axis) => axis.values[run] !== null));
  const pick = (axis) => runs.map((run) => axis.values[run]);
  const plot = byId("settings-plot");
  plot.setAttribute("aria-label", `parallel coordinates of ${runs.length} runs; the table has the numbers`);
  plot.style.minWidth = `${Math.max(640, 110 * data.parallel.length)}px`;
  return Plotly.react(plot, [{
    type: "parcoords", labelangle: data.parallel.length > 6 ? -20 : 0, labelside: "top",
    line: { color: pick(data.parallel.at(-1)), colorscale: SCALE, showscale: true, 
      colorbar: { thickness: 12, tickvals: data.parallel.at(-1).tickvals, ticktext: data.parallel.at(-1).ticktext } },
    dimensions: data.parallel.map((axis) => ({ ...axis, values: pick(axis) })),
    unselected: { line: { color: css("--line"), opacity: 0.3 } },
    labelfont: { color: css("--ink") }, tickfont: { color: css("--ink"), size: 11 }, rangefont: { color: css("--soft"), size: 10 },
  }], layout({ margin: { l: 120, r: 40, t: data.parallel.length > 6 ? 110 : 70, b: 30 } }), config);
}

function drawImportance() {
  if (!data.importance) return;
  const { labels, mean, error } = data.importance;
  return Plotly.react(byId("importance-plot"), [{
    type: "bar", orientation: "h", y: labels, x: mean, marker: { color: PALETTE[0] },
    error_x: { type: "data", array: error, color: css("--soft") }, hovertemplate: "%{x:.3f}<extra>%{y}</extra>",
  }], layout({ height: 90 + 34 * labels.length, bargap: 0.35, yaxis: { automargin: true, autorange: "reversed" },
    xaxis: axisLook("share of the variance", false) }), config);
}

// ---- chosen runs side by side

const CHOSEN = Math.min(4, data.runs.length), FIRST = Math.min(3, data.runs.length);
for (let i = 0; i < CHOSEN; i++) {
  const label = element("label", `run ${i + 1}`), select = element("select", "", { id: `chosen-${i}` });
  select.append(element("option", "–", { value: "" }), ...data.order.map((run) => element("option", data.runs[run], { value: run })));
  select.value = i < FIRST ? data.order[i] : "";
  select.addEventListener("change", drawSide);
  label.append(select);
  byId("chosen").append(label);
}

function drawSide() {
  const runs = [...document.querySelectorAll("#chosen select")].filter(({ value }) => value !== "").map(({ value }) => Number(value));
  const rows = document.createElement("tbody"), head = document.createElement("thead");
  const addRow = (name, cells, look = "") => {
    const row = rows.insertRow();
    row.append(element("th", name, { scope: "row" }), ...cells.map((text) => {
      const cell = element("td", "", { className: look });
      cell.append(element("div", text ?? "", look ? { tabIndex: 0 } : {})); // a long text scrolls, also by keys
      return cell;
    }));
  };
  const heading = head.insertRow();
  heading.append(element("th", "", { scope: "col" }), ...runs.map((run) => element("th", data.runs[run], { scope: "col" })));
  heading.cells[0].append(element("span", "what", { className: "visually-hidden" }));
  for (const [name, of] of Object.entries(data.about)) if (runs.some((run) => of[run])) addRow(name, runs.map((run) => of[run]), name === "error" ? "text" : "");
  for (const [name, of] of Object.entries(data.settings)) {
    const cells = runs.map((run) => of[run]);
    if (new Set(cells).size > 1 || runs.length === 1) addRow(name, cells);
  }
  const texts = runs.map((run) => data.samples[run] ?? []);
  const prompts = [...new Set(texts.flat().map(({ prompt }) => prompt))];
  for (const prompt of prompts) {
    const answers = texts.map((of) => of.filter((sample) => sample.prompt === prompt));
    addRow(`prompt: ${JSON.stringify(prompt)}`,
      answers.map((of) => of.map(({ step, text }) => `${text}\n(step ${step})`).join("\n\n")), "text");
    if (answers.flat().some(({ reference }) => reference)) addRow("reference", answers.map((of) => of[0]?.reference), "text");
  }
  byId("side-table").style.setProperty("--columns", runs.length);
  byId("side-table").replaceChildren(head, rows);
}

// ---- all of it, and again where the colours change

for (const id of ["left", "right"]) byId(id)?.addEventListener("change", () => drawCurve(id));
for (const id of ["axis", "smoothing", "color", "log-x", "log-y"]) byId(id)?.addEventListener("change", drawCurves);
const waiting = new Map();
async function draw() {
  set_or_remove_dark_class();
  await drawCurves();
  for (const [id, drawIt] of [["settings", drawSettings], ["importance", drawImportance]]) later(id, drawIt);
}

/** What lies further down is drawn when it comes into sight. */
function later(id, drawIt) {
  waiting.get(id)?.disconnect();
  const observer = new IntersectionObserver(([{ isIntersecting }]) => {
    if (isIntersecting) {
      observer.disconnect();
      drawIt();
    }
  }, { rootMargin: "300px" });
  waiting.set(id, observer);
  observer.observe(byId(id));
}
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
drawSide();
draw().then(() => (document.documentElement.dataset.drawn = Math.round(performance.now())));
