// The learning curves.

function fillCurveChoice() {
  for (const each of new Set([split, "train"])) {
    if (!data.curves.some((curve) => curve.splits[each])) continue;
    for (const name of [metric, metric === "loss" ? "accuracy" : "loss"]) {
      byId("curve").append(element("option", { value: `${each} ${name}` }, `${each} ${name}`));
    }
  }
}

function drawCurves() {
  const [which, name] = byId("curve").value.split(" ");
  const shown = data.curves.filter((curve) => curve.splits[which]);
  const begun = new Set(data.table.rows.filter((row) => row.logs.length).map((row) => row.name));
  const note = [];
  if (data.curves.length < begun.size) {
    const of = `${data.curves.length} of ${begun.size.toLocaleString("en")} trials that began`;
    note.push(`Curves of ${of}: the best, an even choice of the others, none without metrics.`);
  }
  if (data.unread) note.push(`${plural(data.unread, "line")} of metrics could not be read.`);
  if (!shown.length) note.push("There are no metrics yet.");
  note.push("A click on a state hides its curves. Grey ones have no value.");
  byId("curves-note").textContent = note.join(" ");
  if (!shown.length) return;
  const colours = colouring();
  const whole = shown.every((curve) => curve.splits[which].epoch.every((each) => each !== null));
  const along = whole ? "epoch" : "step";
  const lines = [];
  const ends = {};
  // The better ones are drawn over the others.
  const sign = direction === "max" ? 1 : -1;
  const rank = (curve) => (curve.value === null ? -Infinity : sign * curve.value);
  for (const curve of [...shown].sort((a, b) => rank(a) - rank(b))) {
    const own = curve.splits[which];
    const [dash] = styleOf(curve.state);
    const about = `${linesOf(curve.text)}<br>trial ${curve.number}, ${curve.state}`;
    const texts = own[name].map(
      (value, at) => `${about}<br>${which} ${name} ${number(value)} at step ${own.step[at]}`,
    );
    lines.push({
      ...{ x: own[along], y: own[name], mode: "lines", legendgroup: curve.state },
      ...{ showlegend: false, hoverinfo: "text", hovertext: texts, opacity: 0.85 },
      line: { color: colour(curve.value, colours), dash, width: shown.length > 60 ? 1 : 1.6 },
    });
    const last = own[name].findLastIndex((value) => value !== null);
    if (last < 0) continue;
    ends[curve.state] ??= { x: [], y: [], hovertext: [], colours: [] };
    ends[curve.state].x.push(own[along][last]);
    ends[curve.state].y.push(own[name][last]);
    ends[curve.state].hovertext.push(texts[last]);
    ends[curve.state].colours.push(colour(curve.value, colours));
  }
  const marks = Object.entries(ends).map(([state, { colours: each, ...end }]) => ({
    ...{ ...end, mode: "markers", legendgroup: state, showlegend: false, hoverinfo: "text" },
    marker: { color: each, symbol: styleOf(state)[1], size: 8, line: { color: each, width: 2 } },
  }));
  const grey = colour(null, colours);
  const legend = inOrder(shown.map((curve) => curve.state)).map((state) => ({
    ...{ x: [null], y: [null], mode: "lines+markers", name: state, legendgroup: state },
    line: { color: grey, dash: styleOf(state)[0], width: 1.6 },
    marker: { color: grey, symbol: styleOf(state)[1], size: 8, line: { color: grey, width: 2 } },
  }));
  const scale = {
    ...{ x: [null], y: [null], mode: "markers", showlegend: false, hoverinfo: "skip" },
    marker: {
      ...{ color: [colours.low], cmin: colours.low, cmax: colours.high },
      ...{ colorscale: colours.scale, showscale: true, colorbar: bar(figure) },
    },
  };
  const type = byId("logarithmic").checked ? "log" : "linear";
  const made = layout({
    xaxis: { title: { text: along } },
    yaxis: { title: { text: `${which} ${name}` }, type },
    legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 },
    showlegend: true,
    height: 460,
  });
  Plotly.react("curves", [...lines, ...marks, ...legend, scale], made, config(...ZOOM));
}
