// The table of all trials.

const FIRST = 200;
const columns = [
  { title: "number", of: (row) => row.number, number: true },
  { title: "state", of: (row) => row.state, kind: "whole" },
  { title: figure, of: (row) => row.value, number: true, show: number },
  ...data.table.paths.map((path, at) => ({
    title: data.axes.find((axis) => axis.path === path)?.label ?? path,
    hint: path,
    of: (row) => row.point[at],
    show: (value) => (typeof value === "number" ? String(+value.toPrecision(5)) : value),
  })),
  { title: "seed", of: (row) => row.seed, number: true },
  { title: "attempts", of: (row) => row.logs.length, cell: attempts },
  { title: "run", of: (row) => row.name, cell: folder },
  { title: "cause", of: (row) => row.causes.join("; "), kind: "cause" },
];
const sorting = { column: columns[0], down: false, all: false };

function attempts(row) {
  const links = row.logs.map((log, at) =>
    log ? element("a", { href: log, title: "its log" }, `${at + 1}`) : `${at + 1}`,
  );
  return element("td", { className: "whole" }, ...links.flatMap((link) => [link, " "]));
}

function folder(row) {
  const name = row.folder ? element("a", { href: row.folder }, row.name) : row.name;
  return element("td", { className: "whole" }, name);
}

function drawHead() {
  for (const column of columns) {
    const button = element("button", { type: "button", title: column.hint ?? "" }, column.title);
    const head = element("th", { className: column.number ? "number" : "" }, button);
    button.addEventListener("click", () => {
      sorting.down = sorting.column === column && !sorting.down;
      sorting.column = column;
      drawRows();
    });
    column.head = head;
    byId("head").append(head);
  }
}

function compare(a, b) {
  if (typeof a === "number" && typeof b === "number") return a - b;
  if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
  return String(a).localeCompare(String(b));
}

function drawRows() {
  const { column, down, all } = sorting;
  const kept = brushed();
  const rows = data.table.rows.filter((row) => !kept || kept.has(row.number));
  const [there, missing] = [[], []];
  for (const row of rows) (column.of(row) === null ? missing : there).push(row);
  there.sort((a, b) => (down ? -1 : 1) * compare(column.of(a), column.of(b)));
  const sorted = [...there, ...missing];
  const shown = all ? sorted : sorted.slice(0, FIRST);
  for (const each of columns) each.head.removeAttribute("aria-sort");
  column.head.setAttribute("aria-sort", down ? "descending" : "ascending");
  byId("rows").replaceChildren(
    ...shown.map((row) => element("tr", {}, ...columns.map((each) => cellOf(each, row)))),
  );
  byId("table-note").textContent = kept
    ? `${rows.length} of ${plural(data.table.rows.length, "trial")}, as drawn above`
    : `${plural(rows.length, "trial")}; links lead to each attempt's log and to the run's folder`;
  byId("more").hidden = shown.length === sorted.length;
  byId("more").textContent = `show all ${sorted.length.toLocaleString("en")}`;
}

function cellOf(column, row) {
  if (column.cell) return column.cell(row);
  const value = column.of(row);
  const text = column.show ? column.show(value) : value;
  const isNumber = column.number || typeof value === "number";
  return element("td", { className: isNumber ? "number" : (column.kind ?? "") }, text ?? "–");
}
