// The map of the selection: AID and THI by task, the flow from sources to tasks, distributions of influence.

const half = (values) => values.map((value) => value / 2);

function tiles() {
  const [before, after] = against() ? [balanceOf(against()), balanceOf(chosen())] : [null, balanceOf(chosen())];
  const tile = (name, what, read, note = () => "") =>
    h("div", { class: "tile" },
      h("p", { class: "what" }, name),
      h("p", { class: "value" }, before ? h("span", { class: "before" }, read(before), h("span", { class: "hidden" }, " becomes ")) : null, before ? h("span", { class: "arrow", "aria-hidden": "true" }, " \u2192 ") : null, h("b", {}, read(after))),
      h("p", { class: "note" }, note(after) || what));
  show("tiles",
    tile("Worst task", "", (one) => signed(one.worst), (one) => (before && before.worstTask !== one.worstTask ? `${before.worstTask} \u2192 ${one.worstTask}` : one.worstTask)),
    tile("Spread over tasks", "standard deviation of AID; smaller is more even", (one) => number(one.spread)),
    tile("Mean over tasks", "macro AID", (one) => signed(one.macro)),
    tile("Evenness of THI", "entropy of the shares, 1 = all tasks alike", (one) => number(one.entropy)));
}

function aidFigure(width) {
  const shown = pair();
  const band = 26 * shown.length + 8;
  const every = shown.flatMap((one) => [...at(one, "targets"), ...at(one, "aid").flatMap((mean, t) => [mean - at(one, "std")[t], mean + at(one, "std")[t]])]);
  const marks = ticks(Math.min(0, ...every), Math.max(0, ...every), width < NARROW ? 5 : 9);
  const plot = bands(width, TASKS, band, marks, (value) => number(value, decimals(marks[1] - marks[0])), "");
  shown.forEach((one, k) => {
    const [aid, std, targets] = [at(one, "aid"), at(one, "std"), at(one, "targets")];
    TASKS.forEach((task, t) => {
      const y = plot.top(t) + 4 + 26 * k + 13;
      const own = RUN.targets.map((target, j) => [target, targets[j]]).filter(([target]) => target.task === t);
      plot.parts.push(g("g", { class: one.style },
        g("title", {}, `${task}, ${one.name}: AID ${signed(aid[t])} \u00b1 ${number(std[t])} over ${plural(RUN.tasks[t].used, "target")}`),
        own.map(([, value]) => line(plot.x(value), y - 5, plot.x(value), y + 5, "target")),
        line(plot.x(aid[t] - std[t]), y, plot.x(aid[t] + std[t]), y, "inner"),
        g("circle", { class: k === shown.length - 1 ? "mark" : "mark hollow", cx: plot.x(aid[t]), cy: y, r: 5 })));
    });
  });
  return figure(width, plot.height, `AID by task for ${shown.map((one) => one.name).join(" and ")}; the numbers follow as a table`, plot.parts);
}

function aidTable() {
  const shown = pair();
  const columns = [{ label: "task" }, { label: "targets", numeric: true }, ...shown.flatMap((one) => [{ label: `${one.name}: AID`, numeric: true }, { label: "deviation over targets", numeric: true }, { label: "THI", numeric: true }])];
  return table("AID and THI by task", columns, TASKS.map((task, t) => [task, count(RUN.tasks[t].used), ...shown.flatMap((one) => [signed(at(one, "aid")[t]), number(at(one, "std")[t]), percent(at(one, "thi")[t] / sizeOf(one))])]));
}

function thiFigure(width) {
  const shown = pair();
  const kind = document.querySelector("input[name=thi]:checked").value;
  const shares = shown.map((one) => at(one, kind).map((rows) => rows / sizeOf(one)));
  const marks = ticks(0, Math.max(...shares.flat()), width < NARROW ? 4 : 8);
  const plot = bands(width, TASKS, 16 * shown.length + 8, marks, (value) => percent(value, 0), "");
  shown.forEach((one, k) => {
    TASKS.forEach((task, t) => {
      const y = plot.top(t) + 4 + 16 * k;
      plot.parts.push(g("g", { class: one.style },
        g("title", {}, `${task}, ${one.name}: ${plural(at(one, kind)[t], "row")}, ${percent(shares[k][t])}`),
        g("rect", { class: "bar-mark", x: plot.x(0), y: y + 2, width: Math.max(0, plot.x(shares[k][t]) - plot.x(0)), height: 12, rx: 1.5 })));
      plot.parts.push(label(plot.x(shares[k][t]) + 5, y + 12, percent(shares[k][t], 0), "axis on", "start"));
    });
  });
  plot.parts.push(line(plot.x(1 / TASKS.length), 0, plot.x(1 / TASKS.length), plot.bottom, "rule"));
  return figure(width, plot.height, "Share of the chosen rows by task; the table above has the numbers", plot.parts);
}

function flowTable() {
  const flow = at(chosen(), "flow");
  const columns = [{ label: "source" }, { label: "pool rows", numeric: true }, { label: "chosen", numeric: true }, ...TASKS.map((task) => ({ label: task, numeric: true }))];
  return table("Chosen rows by source and task", columns, RUN.sources.map((source, s) => [source.name || "(no source)", count(source.rows), count(sum(flow[s])), ...flow[s].map(count)]));
}

function histogram(task, t) {
  const [width, height, bottom] = [230, 116, 96];
  const edges = RUN.edges;
  const share = (bins) => bins.map((rows) => rows / Math.max(1, sum(bins)));
  const curves = [["cg", share(RUN.pool_bins[t])], ...pair().map((one) => [one.style, share(at(one, "bins")[t])])];
  const most = Math.max(...curves.flatMap(([, values]) => values));
  const x = (value) => 6 + ((value - edges[0]) / (edges.at(-1) - edges[0])) * (width - 12);
  const y = (value) => bottom - (value / most) * (bottom - 8);
  const steps = (values) => values.map((value, b) => `${x(edges[b]).toFixed(1)},${y(value).toFixed(1)} ${x(edges[b + 1]).toFixed(1)},${y(value).toFixed(1)}`).join(" ");
  const parts = curves.map(([style, values], k) => g("g", { class: style },
    k === 0 ? g("polygon", { class: "area", points: `${x(edges[0])},${bottom} ${steps(values)} ${x(edges.at(-1))},${bottom}` }) : g("polyline", { class: "curve", points: steps(values) })));
  const zero = edges[0] < 0 ? line(x(0), 4, x(0), bottom, "zero") : null;
  const ends = [label(x(edges[0]), bottom + 15, number(edges[0], 1), "axis", "start"), edges[0] < 0 ? label(x(0), bottom + 15, "0", "axis", "middle") : null, label(x(edges.at(-1)), bottom + 15, number(edges.at(-1), 1), "axis", "end")];
  const told = pair().map((one) => `${one.name} mean ${signed(at(one, "aid")[t])}`).join(", ");
  return h("figure", { class: "multiple" }, h("figcaption", {}, h("b", {}, task), " ", told),
    figure(width, height, `${task}: ${told}`, line(x(edges[0]), bottom, x(edges.at(-1)), bottom, "grid"), zero, parts, ends));
}

function startBalance() {
  if (!TASKS.length) {
    for (const id of ["balance", "flow", "influence"]) {
      show(id, byId(`${id}-h`), h("p", { class: "missing" }, "There is no attribution matrix with a target in use yet. To make it, run ", h("code", {}, "influray score CONFIG"), "."));
    }
    return;
  }
  drawing("aid-figure", aidFigure);
  drawing("thi-figure", thiFigure);
  drawing("flow-figure", (width) => flowFigure(width, chosen()));
  for (const box of document.querySelectorAll("input[name=thi]")) box.addEventListener("change", () => change({}));
  listeners.push(() => {
    const own = pair().map((one) => [one.style, `${one.name}, ${plural(sizeOf(one), "row")}`]);
    for (const place of document.querySelectorAll("[data-legend]")) legend(place, place.dataset.legend ? [["cg", "pool"], ...own] : own);
    tiles();
    show("aid-table", aidTable());
    show("flow-table", flowTable());
    show("bins-figure", TASKS.map(histogram));
    byId("flow-lead").textContent = visible(`Where the ${plural(sizeOf(chosen()), "row")} of ${chosen().name} come from, and on which task each has its highest mean influence.`);
  });
}
