// How weights and gradients of each layer were spread, over time.

const BANDS = [[1, 9], [2, 8], [3, 7], [4, 6]]; // places of percentiles, after the root mean square
const MOST_ROWS = 60; // of the overview; of deeper networks it shows the kernels
const spreadOf = () => data.runs[Number(byId("spread-run").value)].spreads;

function fillSpreadChoice() {
  const known = data.runs
    .map((run, at) => [run.name, at])
    .filter(([, at]) => data.runs[at].spreads.step.length);
  byId("spreads").hidden = !known.length;
  byId("spread-run-label").hidden = !several;
  byId("spread-run").replaceChildren(
    ...known.map(([name, value]) => element("option", { value }, name)),
  );
  if (known.length) fillLeafChoice();
}

function fillLeafChoice() {
  const paths = Object.keys(spreadOf().leaves);
  const before = byId("leaf").value;
  byId("leaf").replaceChildren(...paths.map((path) => element("option", { value: path }, path)));
  const kernel = paths.find((path) => path.endsWith("kernel")) ?? paths[0];
  byId("leaf").value = paths.includes(before) ? before : kernel;
}

function drawSpreads() {
  if (byId("spreads").hidden) return;
  const { step, epoch, leaves } = spreadOf();
  const x = epoch.every((each) => each !== null) ? epoch : step;
  const label = x === epoch ? "epoch" : "step";
  const { weights, gradients } = leaves[byId("leaf").value];
  const axis = { title: { text: label, standoff: 8 } };
  const at = (rows, place) => rows.map((row) => row?.[place] ?? null);
  const main = colour(0);
  const bands = BANDS.flatMap(([low, high]) => {
    const none = { line: { width: 0 }, type: "scatter", mode: "lines", hoverinfo: "skip" };
    return [
      { ...none, x, y: at(weights, low) },
      { ...none, x, y: at(weights, high), fill: "tonexty", fillcolor: faded(main, 0.16) },
    ];
  });
  const line = (name, y, color) => ({
    ...{ x, y, name, type: "scatter", mode: x.length < 12 ? "lines+markers" : "lines" },
    line: { color, width: 2 },
  });
  react("weights", [...bands, line("median", at(weights, 5), main)], small({ xaxis: axis }));
  const sizes = [["greatest", 3], ["root mean square", 2], ["mean", 1]].map(([name, place], n) =>
    line(name, at(gradients, place).map((value) => value || null), colour(n)),
  );
  drawOverview(x, label, leaves);
  const told = sizes.flatMap((each) => each.y);
  const isTold = told.some((value) => value > 0);
  byId("gradients").hidden = !isTold;
  byId("gradients-note").textContent = isTold
    ? "Of the step before each evaluation: how large its numbers are."
    : "No size of this gradient is known: there was no evaluation yet, or it was zero.";
  const zeros = at(gradients, 4).filter((share) => share > 0.001);
  byId("spreads-note").textContent = zeros.length
    ? `Up to ${(100 * Math.max(...zeros)).toFixed(1)} % of this layer's gradient is exactly zero.`
    : "";
  if (!isTold) return;
  const exponent = { type: "log", hoverformat: ".3~g", ...decades(told) };
  const legend = { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 };
  const made = small({ xaxis: axis, yaxis: exponent, showlegend: true, legend });
  react("gradients", sizes, { ...made, margin: { ...made.margin, t: 36 } });
}

/** Every layer a row, from the first at the top; its colour says how large its numbers are. */
function drawOverview(along, label, leaves) {
  const kind = byId("overview-of").value;
  const place = kind === "gradients" ? 2 : 0;
  const all = Object.keys(leaves);
  const kernels = all.filter((path) => path.endsWith("kernel"));
  const paths = all.length > MOST_ROWS && kernels.length ? kernels : all;
  const rows = paths.map((path) => leaves[path][kind].map((row) => row?.[place] ?? null));
  // Before the first step there is no gradient.
  const kept = along.map((_, n) => n).filter((n) => rows.some((row) => row[n] !== null));
  const isTold = rows.some((row) => row.some((value) => value > 0));
  const which = paths.length < all.length ? `Kernels alone, of ${all.length} arrays.` : "";
  byId("overview-note").textContent = isTold ? which : "Of these no size is known yet.";
  byId("overview").hidden = !isTold;
  if (!isTold) return;
  const x = kept.map((n) => along[n]);
  const z = rows.map((row) => kept.map((n) => (row[n] > 0 ? Math.log10(row[n]) : null)));
  const told = paths.map((path, at) =>
    kept.map((n) => {
      const value = rows[at][n]?.toExponential(2) ?? "unknown";
      return `${plain(path)}<br>${label} ${+along[n].toPrecision(4)}: ${value}`;
    }),
  );
  const longest = isNarrow() ? 16 : 32;
  const short = (text) => (text.length > longest ? `…${text.slice(1 - longest)}` : text);
  const marks = decades(rows.flat());
  const trace = {
    ...{ type: "heatmap", x: x.map((_, n) => n), y: paths.map((_, n) => n), z, hovertext: told },
    ...{ hoverinfo: "text", colorscale: "Viridis", hoverongaps: false, ygap: 1 },
    colorbar: { ...bar(""), ...marks, tickvals: marks.tickvals.map(Math.log10) },
  };
  const every = Math.max(1, Math.ceil(x.length / (isNarrow() ? 3 : 10)));
  const ticks = x.map((_, n) => n).filter((n) => n % every === 0);
  const made = layout({
    xaxis: {
      ...{ title: { text: label }, tickvals: ticks, showgrid: false, zeroline: false },
      ...{ ticktext: ticks.map((n) => String(+x[n].toPrecision(2))), tickangle: 0 },
    },
    yaxis: {
      ...{ tickvals: paths.map((_, n) => n), ticktext: paths.map((path) => plain(short(path))) },
      ...{ autorange: "reversed", showgrid: false, zeroline: false, tickfont: { size: 11 } },
    },
    height: 90 + (paths.length > MOST_ROWS ? 12 : 18) * Math.max(paths.length, 4),
    margin: { l: 40, r: 10, t: isNarrow() ? 10 : 28, b: 45 },
  });
  react("overview", [trace], made);
}
