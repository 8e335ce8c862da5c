// What the charts of a report share: colours, and how a line is drawn.

// Okabe and Ito, 2008: told apart by colour-blind readers; those that stand out from each ground.
const COLOURS = {
  light: ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8a6d00", "#3b3b3b"],
  dark: ["#56b4e9", "#e69f00", "#2bc89b", "#e59bc5", "#f0e442", "#c9d1d9"],
};
const colour = (at) => {
  const all = COLOURS[dark.matches ? "dark" : "light"];
  return all[at % all.length];
};
const DASHES = { train: "dot", test: "solid", valid: "dash" };
const isNarrow = () => innerWidth < 600;
const several = data.runs.length > 1;

/** A colour with an opacity. */
function faded(hex, opacity) {
  const [red, green, blue] = [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
  return `rgba(${red},${green},${blue},${opacity})`;
}

/** A layout of a small chart with one text for all that is under the pointer. */
function small(more) {
  return layout({
    ...{ height: 280, margin: { l: 52, r: 12, t: isNarrow() ? 8 : 28, b: 40 } },
    ...{ hovermode: "x unified", showlegend: false },
    ...more,
  });
}

/** Buttons only under a pointer, and none where fingers would meet them. */
function react(place, traces, made) {
  const bar = isNarrow() ? { displayModeBar: false } : {};
  Plotly.react(place, traces, made, { ...config(...ZOOM), ...bar });
}

/** Round numbers for a logarithmic axis that spans these values: 1 and 3 of each power of ten. */
function decades(values) {
  const sizes = values.filter((value) => value > 0).map(Math.log10);
  const [low, high] = [Math.floor(Math.min(...sizes)), Math.ceil(Math.max(...sizes))];
  const wide = high - low > 4;
  const found = [];
  for (let power = low; power <= high; power += Math.ceil((high - low) / 6) || 1) {
    found.push(10 ** power, ...(wide ? [] : [3 * 10 ** power]));
  }
  const inside = found.filter((value) => value <= 10 ** high);
  return { tickvals: inside, ticktext: inside.map((value) => String(+value.toPrecision(1))) };
}
