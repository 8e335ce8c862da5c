// The curves of training: each metric a chart, each run or split a line.

const splits = [...new Set(data.runs.flatMap((run) => Object.keys(run.curves)))];
// Test and valid before train, so that the colours of one run are the same on every page.
const ORDER = ["test", "train", "valid"];
splits.sort((a, b) => {
  const rank = (split) => (ORDER.includes(split) ? ORDER.indexOf(split) : ORDER.length);
  return rank(a) - rank(b) || (a < b ? -1 : 1);
});
const FORMATS = { accuracy: ".0%", images_per_second: ",~r" };
// What is known of training and of evaluations alike.
const SHARED = new Set(["loss", "accuracy"]);
const lineOf = (run, split) =>
  several
    ? { color: colour(run), dash: DASHES[split] ?? "dashdot", width: 2 }
    : { color: colour(splits.indexOf(split)), dash: "solid", width: 2 };

function drawLegend() {
  const item = (text, line) => {
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    const stroke = document.createElementNS("http://www.w3.org/2000/svg", "line");
    const dashes = { dot: "2 4", dash: "8 5", dashdot: "8 4 2 4" }[line.dash] ?? "";
    const set = { x1: 0, x2: 28, y1: 5, y2: 5, stroke: line.color, "stroke-width": 2.5 };
    for (const [name, value] of Object.entries({ ...set, "stroke-dasharray": dashes })) {
      stroke.setAttribute(name, value);
    }
    for (const [name, value] of [["width", 28], ["height", 10]]) svg.setAttribute(name, value);
    svg.append(stroke);
    return element("li", {}, svg, text);
  };
  const runs = several ? data.runs.map((run, at) => item(run.name, lineOf(at, "test"))) : [];
  const soft = getComputedStyle(document.documentElement).getPropertyValue("--soft").trim();
  const kinds = splits.map((split) =>
    item(split, several ? { ...lineOf(0, split), color: soft } : lineOf(0, split)),
  );
  byId("legend").replaceChildren(...runs, ...kinds);
  for (const swatch of document.querySelectorAll(".swatch")) {
    swatch.style.background = colour(Number(swatch.dataset.run));
  }
}

function drawCurves() {
  drawLegend();
  const along = byId("along").value;
  byId("curves-note").textContent = splits.length ? "" : "There are no metrics yet.";
  for (const box of document.querySelectorAll(".chart[data-metric]")) {
    const metric = box.dataset.metric;
    const traces = [];
    data.runs.forEach((run, at) => {
      for (const split of splits) {
        const curve = run.curves[split];
        // How fast evaluations are is another matter.
        if (!curve || (metric === "images_per_second" && split !== "train")) continue;
        if (curve[metric].every((value) => value === null)) continue;
        traces.push({
          ...{ x: curve[along], y: curve[metric], type: "scatter" },
          line: several && SHARED.has(metric) ? lineOf(at, split) : { ...lineOf(at, split), dash: "solid" },
          mode: curve[metric].length < 12 ? "lines+markers" : "lines",
          name: plain(several ? `${run.name}, ${split}` : split),
        });
      }
    });
    box.hidden = !traces.length;
    if (!traces.length) continue;
    const logarithmic = metric === "loss" && byId("logarithmic").checked;
    const made = small({
      xaxis: { title: { text: along === "seconds" ? "seconds" : along, standoff: 8 } },
      yaxis: {
        type: logarithmic ? "log" : "linear",
        tickformat: FORMATS[metric] ?? ".3~g",
        hoverformat: metric === "accuracy" ? ".2%" : ".4~g",
        rangemode: metric === "loss" || metric === "accuracy" ? "normal" : "tozero",
      },
    });
    react(box.lastElementChild, traces, made);
  }
}
