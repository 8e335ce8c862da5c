// The space of a sweep: parallel coordinates and the importance of each parameter.

function drawParallel() {
  const values = data.points.map((point) => point.value);
  const without = data.asked - values.length;
  const left = without ? ` Left out: ${plural(without, "point")} without a result.` : "";
  if (!values.length) {
    byId("parallel-note").textContent = "No point has a result yet.";
    return;
  }
  if (!document.createElement("canvas").getContext("webgl")) {
    byId("parallel-note").textContent = "They need WebGL, which this browser does not have.";
    return;
  }
  byId("parallel-note").textContent =
    "A line is a point, the mean over its seeds. Draw along an axis to keep what crosses it, " +
    `here and in the table; click to undo.${left}`;
  const colours = colouring();
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const pad = low === high ? Math.abs(low) * 0.1 + 1e-9 : 0;
  const dimensions = data.axes.map((axis) => ({
    label: plain(axis.label),
    range: [axis.low, axis.high],
    values: axis.places,
    tickvals: axis.ticks.map(([place]) => place),
    ticktext: axis.ticks.map(([, text]) => short(text)), // Here Plotly reads no HTML.
  }));
  dimensions.push({ label: figure, range: [low - pad, high + pad], values, tickformat: ".4~g" });
  const trace = {
    ...{ type: "parcoords", dimensions, labelangle: dimensions.length > 6 ? -20 : 0 },
    line: {
      ...{ color: values, cmin: colours.low, cmax: colours.high, colorscale: colours.scale },
      ...{ showscale: false },
    },
  };
  byId("parallel").style.minWidth = `${dimensions.length * 120}px`;
  const top = dimensions.length > 6 ? 100 : 60;
  const longest = Math.max(...data.axes[0].ticks.map(([, text]) => short(text).length));
  const margin = { l: Math.max(70, 20 + 7 * longest), r: 70, t: top, b: 30 };
  Plotly.react("parallel", [trace], layout({ margin }), config());
}

/** The start of a long text. */
function short(text) {
  return text.length > 24 ? `${text.slice(0, 23)}…` : text;
}

/** The numbers of the trials of points that the parallel coordinates keep; null for all. */
function brushed() {
  const dimensions = byId("parallel").data?.[0].dimensions ?? [];
  const kept = dimensions.filter((each) => each.constraintrange);
  if (!kept.length) return null;
  const inside = (range, value) =>
    (Array.isArray(range[0]) ? range : [range]).some(([a, b]) => a <= value && value <= b);
  const points = data.points.filter((_, at) =>
    kept.every((each) => inside(each.constraintrange, each.values[at])),
  );
  return new Set(points.flatMap((point) => point.trials));
}

function drawImportance() {
  const { shares, points, fewest, enough } = data.importance;
  const entries = Object.entries(shares);
  const how = "by Optuna's PED-ANOVA: what sets the best tenth apart from all";
  const of = `of ${plural(points, "point")} that finished, seeds averaged`;
  if (!entries.length) {
    byId("importance-note").textContent =
      points < fewest
        ? `Too few to tell: ${plural(points, "point")} finished, and it takes ${fewest}.`
        : "The record does not say by what its parameters are varied.";
    return;
  }
  const none = entries.length > 1 && entries.every(([, share]) => share === entries[0][1]);
  const rough = points < enough ? ` A rough guess: ${enough} points or more tell it well.` : "";
  const unknown = data.axes.filter((axis) => !(axis.path in shares)).map((axis) => axis.path);
  const silent = unknown.length ? ` Nothing can be told of ${unknown.join(", ")}.` : "";
  byId("importance-note").textContent = none
    ? `The best tenth ${of}, is spread as all of them: nothing stands out.${silent}`
    : `The share of each parameter ${how} ${of}.${rough}${silent}`;
  const labels = Object.fromEntries(data.axes.map((axis) => [axis.path, axis.label]));
  const turned = entries.reverse();
  const trace = {
    ...{ type: "bar", orientation: "h", hoverinfo: "text", textposition: "auto" },
    x: turned.map(([, share]) => share),
    y: turned.map((_, at) => at),
    text: turned.map(([, share]) => `${(100 * share).toFixed(1)} %`),
    hovertext: turned.map(([path]) => plain(path)),
    marker: { color: colour(colouring().high, { ...colouring(), scale: accents() }) },
  };
  const made = layout({
    xaxis: { tickformat: ".0%", rangemode: "tozero" },
    yaxis: {
      tickvals: turned.map((_, at) => at),
      ticktext: turned.map(([path]) => plain(short(labels[path] ?? path))),
    },
    height: 100 + 36 * Math.max(entries.length, 2),
  });
  Plotly.react("importance", [trace], made, config());
}

function accents() {
  return dark.matches ? [[0, "#35b779"], [1, "#35b779"]] : [[0, "#2c728e"], [1, "#2c728e"]];
}
