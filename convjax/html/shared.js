// What all pages share. Texts of data are shown as text, never as HTML.

const data = JSON.parse(document.getElementById("data").textContent);
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

// -- Pictures -------------------------------------------------------------------------------------

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
