// What all parts of the page share.

const { direction, split, metric } = data.objective;
const figure = `${split} ${metric}`;
const objective = `${direction} ${figure}`;

/** A point as Plotly shows it: a line for each value. */
const linesOf = (text) => plain(text).replaceAll(", ", "<br>");

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
