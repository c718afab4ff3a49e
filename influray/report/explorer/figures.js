// Drawings: SVG made of the numbers, as wide as the place they stand in.

const LETTER = 6.6; // px of a letter of 12 px, wide ones included
const NARROW = 560;
const drawings = [];

// Draws into the element `id` whenever what is shown or the width changes.
function drawing(id, draw) {
  const place = byId(id);
  let last = 0;
  const again = () => {
    const width = Math.max(280, Math.min(1000, place.clientWidth));
    last = place.clientWidth;
    show(place, draw(width));
  };
  drawings.push(again);
  new ResizeObserver(() => {
    if (Math.abs(place.clientWidth - last) > 1) again();
  }).observe(place);
}

function figure(width, height, title, ...children) {
  return g("svg", { class: "figure", viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": title }, children);
}

function ticks(low, high, most = 6) {
  const raw = Math.max(1e-9, high - low) / most;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((size) => size >= raw * 0.999);
  const found = [];
  for (let value = Math.floor(low / step) * step; value < high + step * 0.999; value += step) found.push(Math.round(value / step) * step);
  return found.length > 1 ? found : [low, low + step];
}

const decimals = (step) => Math.max(0, Math.ceil(-Math.log10(step) - 1e-9) + (/^2\.5/.test(String(step / 10 ** Math.floor(Math.log10(step)))) ? 1 : 0));
const line = (x1, y1, x2, y2, kind) => g("line", { class: kind, x1, y1, x2, y2 });
const label = (x, y, text, kind, anchor, full) => g("text", { class: kind, x, y, "text-anchor": anchor }, full && full !== text ? g("title", {}, full) : null, text);

// Rows of a chart with names on the left, or above where there is little room.
function bands(width, names, band, marks, format, axis) {
  const narrow = width < NARROW;
  const left = narrow ? 16 : Math.min(200, Math.max(...names.map((name) => name.length)) * LETTER + 22);
  const head = narrow ? 20 : 0;
  const right = width - 44; // room for what is written after the longest bar
  const tall = band + head;
  const bottom = tall * names.length;
  const x = (value) => left + ((value - marks[0]) / (marks.at(-1) - marks[0])) * (right - left);
  const parts = [];
  names.forEach((name, r) => {
    if (r % 2 === 0) parts.push(g("rect", { class: "stripe", x: 0, y: r * tall, width, height: tall }));
  });
  for (const mark of marks) {
    parts.push(line(x(mark), 0, x(mark), bottom, mark === 0 ? "zero" : "grid"));
    parts.push(label(x(mark), bottom + 16, format(mark), "axis", "middle"));
  }
  // Names come after the grid so that no line runs through them.
  names.forEach((name, r) => {
    const text = shorten(name, narrow ? 40 : 26);
    parts.push(narrow ? label(4, r * tall + 15, text, "label under", "start", name) : label(left - 10, r * tall + tall / 2 + 4, text, "label", "end", name));
  });
  if (axis) parts.push(label((left + right) / 2, bottom + 36, axis, "axis", "middle"));
  return { x, parts, height: bottom + (axis ? 44 : 24), top: (r) => r * tall + head, left, right, bottom };
}

function legend(place, entries) {
  show(place, entries.map(([style, text]) => h("span", { class: "entry" }, key(style), text)));
}

function flowFigure(width, selection) {
  const flow = at(selection, "flow");
  const total = sizeOf(selection);
  const narrow = width < NARROW;
  const gutter = narrow ? 92 : 170;
  const gap = 15;
  const sources = RUN.sources.map((source, s) => ({ name: source.name || "(no source)", s, rows: sum(flow[s]) })).filter((one) => one.rows);
  const tasks = TASKS.map((name, t) => ({ name, t, rows: sum(flow.map((of) => of[t])) }));
  const most = Math.max(sources.length, tasks.length);
  const height = Math.max(300, 34 * most);
  const scale = (height - gap * most) / total;
  const placed = (nodes) => {
    const used = sum(nodes.map((node) => node.rows)) * scale + gap * nodes.length;
    let y = (height - used) / 2 + gap / 2;
    for (const node of nodes) {
      Object.assign(node, { y, tall: Math.max(1, node.rows * scale), next: y });
      y += node.rows * scale + gap;
    }
  };
  placed(sources);
  placed(tasks);
  const [x1, x2] = [gutter + 9, width - gutter - 9];
  const middle = (x1 + x2) / 2;
  const links = [];
  for (const source of sources) {
    for (const task of tasks) {
      const rows = flow[source.s][task.t];
      if (!rows) continue;
      const thick = rows * scale;
      const [a, b] = [source.next, task.next];
      source.next += thick;
      task.next += thick;
      const shape = `M${x1},${a}C${middle},${a} ${middle},${b} ${x2},${b}V${b + thick}C${middle},${b + thick} ${middle},${a + thick} ${x1},${a + thick}Z`;
      links.push(g("path", { class: `ribbon c${task.t % 6}`, d: shape }, g("title", {}, `${source.name} to ${task.name}: ${plural(rows, "row")}, ${percent(rows / total)}`)));
    }
  }
  const letters = Math.floor((gutter - 8) / (narrow ? 6 : LETTER));
  const node = (one, x, anchor, at_x, style) => [
    g("rect", { class: `node ${style}`, x, y: one.y, width: 9, height: one.tall }, g("title", {}, `${one.name}: ${plural(one.rows, "row")}`)),
    label(at_x, one.y + one.tall / 2 + 4, narrow ? shorten(one.name, letters) : `${shorten(one.name, letters - 7)} ${percent(one.rows / total, 0)}`, "label", anchor, `${one.name}: ${count(one.rows)}`),
  ];
  return figure(width, height, `Flow of the chosen rows of ${selection.name} from sources to tasks; the numbers follow as a table`,
    links,
    sources.flatMap((one) => node(one, x1 - 9, "end", gutter - 6, "cg")),
    tasks.flatMap((one) => node(one, x2, "start", width - gutter + 6, `c${one.t % 6}`)));
}

function linesFigure(width, curves, mark) {
  const values = curves.flatMap((curve) => curve.points.map((point) => point[1]));
  const across = ticks(0, RUN.budgets.at(-1), width < NARROW ? 4 : 8);
  const up = ticks(Math.min(0, ...values), Math.max(0, ...values), 5);
  const [left, right, top, height] = [46, width - 20, 12, 230];
  const x = (value) => left + (value / across.at(-1)) * (right - left);
  const y = (value) => top + (1 - (value - up[0]) / (up.at(-1) - up[0])) * height;
  const parts = [];
  for (const at of up) {
    parts.push(line(left, y(at), right, y(at), at === 0 ? "zero" : "grid"));
    parts.push(label(left - 7, y(at) + 4, number(at, decimals(up[1] - up[0])), "axis", "end"));
  }
  for (const at of across) parts.push(label(x(at), top + height + 18, large(at), "axis", "middle"));
  parts.push(label((left + right) / 2, top + height + 38, "rows chosen", "axis", "middle"));
  parts.push(line(x(mark), top, x(mark), top + height, "rule"));
  for (const curve of curves) {
    const path = curve.points.map(([a, b]) => `${x(a).toFixed(1)},${y(b).toFixed(1)}`).join(" ");
    const end = curve.points.findLast(([rows]) => rows <= mark) ?? curve.points[0];
    parts.push(g("g", { class: curve.style }, g("title", {}, curve.name), g("polyline", { class: "curve", points: path }), g("circle", { class: "mark", cx: x(end[0]), cy: y(end[1]), r: 4 })));
  }
  return figure(width, top + height + 46, "AID of the worst task at growing budgets; the table above has the numbers at the one that is chosen", parts);
}
