// The confusion matrix of each run that shows one.

function drawConfusion() {
  for (const place of document.querySelectorAll(".confusion")) {
    if (!place.clientWidth) continue; // Its run is hidden: it is drawn when it is chosen.
    const { confusion, classes } = data.runs[Number(place.dataset.run)];
    const sums = confusion.map((row) => row.reduce((sum, each) => sum + each, 0));
    const z = confusion.map((row, at) => row.map((each) => (sums[at] ? each / sums[at] : null)));
    const text = confusion.map((row, at) =>
      row.map((count, to) => {
        const share = sums[at] ? ` (${((100 * count) / sums[at]).toFixed(1)} %)` : "";
        const taken = `taken for ${plain(classes[to])}`;
        return `${plain(classes[at])}<br>${taken}: ${count} of ${sums[at]}${share}`;
      }),
    );
    const places = classes.map((_, at) => at);
    const most = isNarrow() ? 12 : 40;
    const every = Math.ceil(classes.length / most);
    const ticks = places.filter((at) => at % every === 0);
    const longest = isNarrow() ? 10 : 18;
    const short = (name) => (name.length > longest ? `${name.slice(0, longest - 1)}…` : name);
    const axis = {
      ...{ tickvals: ticks, ticktext: ticks.map((at) => plain(short(classes[at]))) },
      ...{ showgrid: false, zeroline: false, tickfont: { size: 11 } },
    };
    const gap = classes.length > 30 ? 0 : 1;
    const shows = classes.length <= 12 && !isNarrow();
    const trace = {
      ...{ type: "heatmap", x: places, y: places, z, hovertext: text, hoverinfo: "text" },
      ...{ colorscale: "Viridis", zmin: 0, zmax: 1, xgap: gap, ygap: gap, showscale: !isNarrow() },
      ...(shows ? { text: confusion, texttemplate: "%{text}" } : {}),
      colorbar: { ...bar(""), tickformat: ".0%" },
    };
    const side = Math.min(Math.max(place.clientWidth, 300), 620);
    const made = layout({
      xaxis: { ...axis, title: { text: "taken for", standoff: 6 }, tickangle: -50 },
      yaxis: { ...axis, title: { text: "is", standoff: 6 }, autorange: "reversed" },
      height: side,
      margin: { l: 40, r: 10, t: isNarrow() ? 8 : 28, b: 40 },
    });
    react(place, [trace], made);
  }
}
