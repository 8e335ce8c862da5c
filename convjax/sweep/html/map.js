// Two parameters, or one and the objective.

const VALUE = -1;

function fillMapChoice() {
  const order = Object.keys(data.importance.shares);
  const rank = (axis) => (order.includes(axis.path) ? order.indexOf(axis.path) : order.length);
  const places = data.axes.map((_, at) => at);
  places.sort((a, b) => rank(data.axes[a]) - rank(data.axes[b]) || a - b);
  for (const id of ["across", "up"]) {
    for (const at of places) {
      byId(id).append(element("option", { value: at }, data.axes[at].path));
    }
  }
  byId("up").append(element("option", { value: VALUE }, figure));
  byId("across").value = places[0] ?? "";
  byId("up").value = places[1] ?? VALUE;
}

function drawMap() {
  if (!data.points.length || !data.axes.length) {
    byId("map-note").textContent = "No point has a result yet.";
    return;
  }
  const [x, y] = [data.axes[byId("across").value], data.axes[byId("up").value]];
  const colours = colouring();
  const values = data.points.map((point) => point.value);
  const axisOf = (axis) => ({
    title: { text: plain(axis.label) },
    range: [axis.low, axis.high],
    tickvals: axis.ticks.map(([place]) => place),
    ticktext: axis.ticks.map(([, text]) => plain(short(text))),
    showgrid: false,
    zeroline: false,
  });
  const texts = data.points.map((point) => {
    const half = point.half === null ? "" : ` ± ${number(point.half)}`;
    return `${linesOf(point.text)}<br>${figure} ${number(point.value)}${half}`;
  });
  const dots = {
    ...{ mode: "markers", hoverinfo: "text", hovertext: texts, showlegend: false },
    marker: {
      ...{ color: values, cmin: colours.low, cmax: colours.high, colorscale: colours.scale },
      ...{ size: 7, line: { color: dark.matches ? "#000000" : "#ffffff", width: 1 } },
    },
  };
  if (!y) {
    byId("map-note").textContent = "A dot is a point, the mean over its seeds; a bar is ± 95 %.";
    const halves = data.points.map((point) => point.half ?? 0);
    const error_y = { array: halves, thickness: 1, width: 2, color: "#8c959f" };
    const slice = { ...dots, x: x.places, y: values, error_y };
    const made = layout({ xaxis: axisOf(x), yaxis: { title: { text: figure } } });
    Plotly.react("map", [slice], made, config(...ZOOM));
    return;
  }
  byId("map-note").textContent =
    "A cell is the mean of the points in it, a dot one of them; nothing is known of an empty cell.";
  const { centres, z, text } = cells(x, y, values);
  const heat = {
    ...{ type: "heatmap", x: centres[0], y: centres[1], z, hovertext: text, hoverinfo: "text" },
    ...{ zmin: colours.low, zmax: colours.high, colorscale: colours.scale, opacity: 0.75 },
    ...{ colorbar: bar(figure), xgap: 1, ygap: 1, hoverongaps: false },
  };
  const made = layout({ xaxis: axisOf(x), yaxis: axisOf(y) });
  Plotly.react("map", [heat, { ...dots, x: x.places, y: y.places }], made, config(...ZOOM));
}

/** The means of what lies in each cell of two axes, null in an empty one, and where cells are. */
function cells(x, y, values) {
  // The upper end of a range is in its last cell.
  const count = (axis) => Math.round((axis.high - axis.low) / axis.size);
  const cell = (axis, place) =>
    Math.min(Math.floor((place - axis.low) / axis.size + 1e-9), count(axis) - 1);
  const centre = (axis) =>
    Array.from({ length: count(axis) }, (_, at) => axis.low + (at + 0.5) * axis.size);
  const grid = centre(y).map(() => centre(x).map(() => []));
  values.forEach((value, at) => grid[cell(y, y.places[at])][cell(x, x.places[at])].push(value));
  const mean = (inside) => inside.reduce((sum, each) => sum + each, 0) / inside.length;
  return {
    centres: [centre(x), centre(y)],
    z: grid.map((row) => row.map((inside) => (inside.length ? mean(inside) : null))),
    text: grid.map((row) =>
      row.map((inside) => `mean ${number(mean(inside))} of ${plural(inside.length, "point")}`),
    ),
  };
}
