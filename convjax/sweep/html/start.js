// The head of the page, and what is drawn when.

function drawHeader() {
  document.title = `${data.title}: ${objective}`;
  byId("title").textContent = data.title;
  const by = data.sampler ? ` by ${data.sampler}` : "";
  const seeds = `${plural(data.seeds, "seed")} each`;
  const pruned = data.pruner ? `, pruned by ${data.pruner}` : "";
  byId("what").textContent = `${objective}; ${plural(data.asked, "point")}${by}, ${seeds}${pruned}`;
  const { best, counts, times } = data;
  if (best) {
    const half = best.half === null ? "" : ` ± ${number(best.half)}`;
    byId("best").textContent = `${figure} ${number(best.mean)}${half}`;
    const missing = best.finished < best.asked ? ` of ${best.asked}` : "";
    const over = `mean over ${best.finished}${missing} seed${best.asked === 1 ? "" : "s"}`;
    const spread = best.half === null ? "" : " ± 95 % confidence interval";
    const point = Object.entries(best.point).map(([path, value]) => `${path}=${value}`);
    byId("point").textContent = `at ${point.join(", ")} (${over}${spread})`;
    // Lines break between flags, not within.
    for (const words of best.command.split(/ (?='?--config\.)/)) {
      byId("command").append(element("span", {}, words), " ");
    }
    byId("command").lastChild.remove();
    const others = best.others.map((seed) => `--config.seed=${seed}`);
    const more = others.length ? `; the others: ${others.join(", ")}` : "";
    byId("command-note").textContent = `It trains seed ${best.seed}${more}.`;
    byId("command-section").hidden = false;
  } else {
    byId("best").textContent = "no result yet";
  }
  for (const state of inOrder(Object.keys(counts))) {
    byId("states").append(element("li", {}, `${counts[state].toLocaleString("en")} ${state}`));
  }
  const spans = [`written ${times.written}`];
  if (times.began) spans.unshift(`began ${times.began}`);
  if (times.ended) {
    spans.splice(1, 0, `last trial ended ${times.ended}`);
    spans.push(`${duration(times.seconds)} of all attempts together`);
  }
  byId("times").textContent = spans.join("; ");
}

/** Copies the command, or selects it where the browser lets nobody copy. */
async function copy() {
  const range = document.createRange();
  range.selectNodeContents(byId("command"));
  getSelection().removeAllRanges();
  getSelection().addRange(range);
  try {
    await navigator.clipboard.writeText(data.best.command);
    byId("copied").textContent = "copied";
  } catch {
    byId("copied").textContent = "selected: press Ctrl+C";
  }
}

function drawPictures() {
  drawCurves();
  drawParallel();
  drawImportance();
  drawMap();
}

drawHeader();
fillCurveChoice();
fillMapChoice();
drawHead();
drawPictures();
drawRows();
byId("copy").addEventListener("click", copy);
for (const id of ["curve", "logarithmic"]) byId(id).addEventListener("change", drawCurves);
for (const id of ["across", "up"]) byId(id).addEventListener("change", drawMap);
byId("more").addEventListener("click", () => {
  sorting.all = true;
  drawRows();
});
dark.addEventListener("change", () => {
  drawPictures();
  drawRows();
});
byId("parallel").on?.("plotly_restyle", drawRows);
