"use strict";
// What all parts of the page share. All texts of the record are shown as text.

const data = JSON.parse(document.getElementById("data").textContent);
const { direction, split, metric } = data.objective;
const figure = `${split} ${metric}`;
const objective = `${direction} ${figure}`;
const byId = (id) => document.getElementById(id);
const dark = matchMedia("(prefers-color-scheme: dark)");
// Plotly's own choice of buttons has one that sends the picture's data to its makers.
const config = (...buttons) => ({
  ...{ responsive: true, displaylogo: false, plotlyServerURL: "", showSendToCloud: false },
  modeBarButtons: [["toImage", ...buttons]],
});
const ZOOM = ["zoom2d", "pan2d", "resetScale2d"];

// -- Texts and numbers -----------------------------------------------------------------------------

/** A number with four digits, or a dash. */
function number(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  return size !== 0 && (size < 1e-3 || size >= 1e5) ? value.toExponential(3) : value.toFixed(4);
}

/** A text as Plotly shows it as it is: it reads some HTML in its labels. */
function plain(text) {
  return String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}

/** A point as Plotly shows it: a line for each value. */
const linesOf = (text) => plain(text).replaceAll(", ", "<br>");

/** Seconds as a person says them. */
function duration(seconds) {
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  if (seconds < 3600) return `${(seconds / 60).toFixed(1)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}

function plural(count, word) {
  return `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;
}

/** A new element with properties and children; a child that is a text stays text. */
function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

// -- Colours ---------------------------------------------------------------------------------------

// Parts of viridis that stand out from the page; the best stands out most.
const scales = {
  light: [[0, "#a8db34"], [0.33, "#2fb47c"], [0.66, "#2c728e"], [1, "#440154"]],
  dark: [[0, "#5d4c9e"], [0.33, "#31888e"], [0.66, "#35b779"], [1, "#fde725"]],
};

/** From the worst to the best: ends for colours, and Plotly's scale between the two. */
function colouring() {
  const values = [...data.points, ...data.curves].map((each) => each.value);
  const sorted = values.filter((value) => value !== null).sort((a, b) => a - b);
  const scale = scales[dark.matches ? "dark" : "light"];
  if (!sorted.length) return { low: 0, high: 1, scale };
  // A few that went astray would leave one colour for all others.
  const share = sorted.length < 20 ? 0 : 0.05;
  const at = (part) => sorted[Math.round(part * (sorted.length - 1))];
  const [low, high] = direction === "max" ? [at(share), at(1)] : [at(0), at(1 - share)];
  const turned = scale.map(([place, colour]) => [1 - place, colour]).reverse();
  const pad = low === high ? 1e-6 + Math.abs(low) * 1e-6 : 0;
  return { low: low - pad, high: high + pad, scale: direction === "max" ? scale : turned };
}

/** The colour of a value; grey for none. */
function colour(value, { low, high, scale }) {
  if (value === null) return dark.matches ? "#7d8590" : "#8c959f";
  const place = Math.min(Math.max((value - low) / (high - low), 0), 1);
  const above = scale.findIndex(([end]) => end >= place);
  const [[start, from], [end, to]] = [scale[Math.max(above - 1, 0)], scale[above]];
  const part = end > start ? (place - start) / (end - start) : 0;
  const mixed = [1, 3, 5].map((digit) => {
    const [a, b] = [from, to].map((each) => parseInt(each.slice(digit, digit + 2), 16));
    return Math.round(a + part * (b - a)).toString(16).padStart(2, "0");
  });
  return `#${mixed.join("")}`;
}

/** What all pictures share. */
function layout(more) {
  const style = getComputedStyle(document.documentElement);
  const [card, text, line] = ["--card", "--text", "--line"].map((name) =>
    style.getPropertyValue(name).trim(),
  );
  const axis = { gridcolor: line, zerolinecolor: line, linecolor: line, automargin: true };
  const made = {
    paper_bgcolor: card,
    plot_bgcolor: card,
    font: { color: text, size: 12, family: "system-ui, sans-serif" },
    margin: { l: 50, r: 20, t: 36, b: 45 },
    hoverlabel: { align: "left", namelength: -1 },
    height: 420,
    ...more,
  };
  made.xaxis = { ...axis, ...more.xaxis };
  made.yaxis = { ...axis, ...more.yaxis };
  return made;
}

const bar = (title) => ({ title: { text: title, side: "right" }, thickness: 12, outlinewidth: 0 });

// -- States ----------------------------------------------------------------------------------------

const styles = {
  finished: ["solid", "circle"],
  running: ["dot", "circle-open"],
  waiting: ["dot", "circle-open-dot"],
  pruned: ["dash", "square-open"],
  failed: ["longdash", "x"],
  diverged: ["longdashdot", "triangle-up"],
  out_of_memory: ["dashdot", "cross"],
  hung: ["dashdot", "hourglass"],
  killed: ["dashdot", "star"],
  disk_full: ["dashdot", "bowtie"],
  interrupted: ["dot", "diamond-open"],
};
const styleOf = (state) => styles[state] ?? ["dashdot", "asterisk-open"];
/** Each of the states once, those of `styles` first. */
function inOrder(states) {
  const all = new Set([...Object.keys(styles), ...states]);
  return [...all].filter((each) => states.includes(each));
}
