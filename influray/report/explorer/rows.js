// The table of chosen rows, a page at a time: from the service, or from the sample that the page carries.

const PAGE = 25;
const asked = { text: "", source: "", task: "", sort: "rank", offset: 0 };
let again = null; // of how many variants of the run a row says in how many it is chosen
let turn = 0; // answers of the service that come after a newer question are dropped

async function ask(address, body) {
  const options = body ? { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) } : {};
  const answer = await fetch(address, { ...options, credentials: "same-origin" });
  const found = await answer.json().catch(() => ({}));
  if (answer.ok) return found;
  const detail = typeof found.detail === "string" ? found.detail : (found.error ?? JSON.stringify(found.detail ?? found));
  throw new Error(`${answer.status}: ${detail}`);
}

function sampled(selection) {
  return DATA.rows.selections[selection.name].rows.map(([row, merit, task, target, again], place) => ({ rank: place + 1, row, merit, task, target_id: target, chosen_in: again, ...DATA.rows.records[row] }));
}

const SORTED = {
  rank: (a, b) => a.rank - b.rank,
  merit: (a, b) => (b.merit ?? -Infinity) - (a.merit ?? -Infinity) || a.rank - b.rank,
  row: (a, b) => a.row - b.row,
  source: (a, b) => (a.source < b.source ? -1 : a.source > b.source ? 1 : a.rank - b.rank),
};

function pageOfSample() {
  const text = asked.text.toLowerCase();
  const found = sampled(chosen()).filter((one) =>
    one.rank <= budgetRows() && (!asked.source || one.source === asked.source) && (!asked.task || one.task === asked.task) &&
    (!text || one.id.toLowerCase().includes(text) || one.text.toLowerCase().includes(text)));
  found.sort(SORTED[asked.sort]);
  return { total: found.length, variants: DATA.rows.selections[chosen().name].variants, rows: found.slice(asked.offset, asked.offset + PAGE) };
}

async function pageOfRows() {
  if (!DATA.live) return pageOfSample();
  const address = new URLSearchParams({ ...asked, limit: PAGE, budget: sizeOf(chosen()) });
  return ask(`selection/${encodeURIComponent(chosen().name)}?${address}`);
}

async function showRows() {
  const mine = ++turn;
  byId("rows-table").setAttribute("aria-busy", "true");
  try {
    const page = await pageOfRows();
    if (mine === turn) showPage(page);
  } catch (error) {
    if (mine === turn) show("rows-status", `The rows could not be read: ${error.message}`);
  }
  if (mine === turn) byId("rows-table").removeAttribute("aria-busy");
}

const beginning = (text) => shorten(text.slice(0, 400).replace(/\s+/g, " "), 240);

function showPage({ total, variants, rows }) {
  again = variants;
  const merits = rows.some((one) => one.merit !== null);
  const order = (name, direction) => (asked.sort === name ? direction : null);
  const columns = [
    { label: "#", numeric: true, sort: order("rank", "ascending") },
    { label: "example", kind: "example-cell" },
    { label: "source", kind: "source wide", sort: order("source", "ascending") },
    { label: "won by", kind: "wide" },
    { label: merits ? "merit" : "", numeric: true, kind: "wide", sort: order("merit", "descending") },
    ...(variants ? [{ label: "chosen in", numeric: true, kind: "wide" }] : []),
  ];
  const lines = rows.map((one) => [
    count(one.rank),
    h("div", {}, h("button", { type: "button", class: "open", "data-row": one.row, click: () => openRow(one) }, one.id),
      h("p", { class: "snippet", dir: "auto" }, beginning(one.text)),
      h("p", { class: "narrow-meta" }, [one.source || "(no source)", one.task, one.merit === null ? "" : `merit ${number(one.merit)}`].filter(Boolean).join(" \u00b7 "))),
    h("span", { dir: "auto" }, one.source || "(no source)"),
    one.task || h("span", { class: "soft" }, ABSENT),
    one.merit === null ? "" : number(one.merit),
    ...(variants ? [`${count(one.chosen_in)} of ${count(variants)}`] : []),
  ]);
  show("rows-table", rows.length ? table(`Chosen rows of ${chosen().name}`, columns, lines) : h("p", { class: "missing" }, "No row fits."));
  const last = asked.offset + rows.length;
  byId("rows-status").textContent = total ? `Rows ${count(asked.offset + 1)} to ${count(last)} of ${count(total)}` : "No row fits";
  byId("page-text").textContent = total ? `Page ${count(Math.floor(asked.offset / PAGE) + 1)} of ${count(Math.ceil(total / PAGE))}` : "";
  byId("previous").disabled = asked.offset === 0;
  byId("next").disabled = last >= total;
}

function about(one, name = chosen().name) {
  const where = SELECTIONS.filter((selection) => DATA.rows && DATA.rows.selections[selection.name].rows.some(([row]) => row === one.row)).map((selection) => selection.name);
  const facts = [
    ["source", one.source || "(no source)"],
    ["row of the pool", count(one.row)],
    one.rank ? ["chosen", `${count(one.rank)} of ${count(chosen().examples)} by ${name}`] : null,
    one.merit !== null && one.merit !== undefined ? ["merit when chosen", number(one.merit, 3)] : null,
    again && one.chosen_in ? ["chosen in", `${count(one.chosen_in)} of ${count(again)}: this run, other seeds, halves of the targets`] : null,
    one.task ? ["won by", one.target_id ? `${one.task}, target ${one.target_id}` : one.task] : null,
    one.influence !== undefined ? ["influence", number(one.influence, 4)] : null,
    one.norm !== undefined && one.norm !== null ? ["norm of its gradient", number(one.norm, 3)] : null,
    one.z !== undefined && one.z !== null ? ["standardised", signed(one.z)] : null,
    where.length > 1 ? ["chosen by", where.join(", ")] : null,
  ].filter(Boolean);
  return h("dl", { class: "facts" }, facts.flatMap(([term, value]) => [h("dt", {}, term), h("dd", { dir: "auto" }, value)]));
}

// `known` is the service's explanation where it has been asked for already.
function openRow(one, known) {
  const panel = byId("panel");
  const served = h("div", { class: "served" });
  show(panel,
    h("div", { class: "panel-head" }, h("h2", { id: "panel-h", dir: "auto", tabindex: "-1" }, one.id), h("button", { type: "button", class: "close", "aria-label": "Close", click: () => panel.close() }, "\u00d7")),
    about(one),
    h("h3", {}, "Text"),
    h("div", { class: "whole", tabindex: "0", role: "region", "aria-label": "Text of the row" }, h("p", { class: "text", dir: "auto" }, one.text)),
    one.cut ? h("p", { class: "soft" }, `Only the beginning is shown; influray inspect CONFIG --row ${one.row} prints all of it.`) : null,
    served,
    DATA.live ? h("p", {}, h("button", { type: "button", class: "like", click: () => { panel.close(); askLike(one.id); } }, "Ask which rows are like it")) : null);
  if (!panel.open) panel.showModal();
  byId("panel-h").focus();
  panel.scrollTop = 0;
  if (known) show(served, explanation(known));
  else if (DATA.live) explain(one, served);
  else if (one.tasks?.length) show(served, h("h3", {}, "Mean standardised influence on the tasks"), influenceBars(one.tasks));
}

function influenceBars(pairs) {
  const most = Math.max(...pairs.map(([, value]) => Math.abs(value)), 1e-9);
  const width = 150;
  const bar = (value) => {
    const long = (Math.abs(value) / most) * (width / 2 - 2);
    return g("svg", { class: "diverging", viewBox: `0 0 ${width} 14`, width, height: 14, "aria-hidden": "true" },
      g("rect", { class: value < 0 ? "bar-mark harm" : "bar-mark help", x: value < 0 ? width / 2 - long : width / 2, y: 2, width: long, height: 10 }), line(width / 2, 0, width / 2, 14, "zero"));
  };
  return table("Influence of the row", [{ label: "task" }, { label: "influence", numeric: true }, { label: "" }], pairs.map(([task, value]) => [task, signed(value), bar(value)]));
}

function startRows() {
  if (!SELECTIONS.length) {
    show("rows", byId("rows-h"), h("p", { class: "missing" }, "There is no selection yet. To make it, run ", h("code", {}, "influray select CONFIG"), "."));
    return;
  }
  let waiting = 0;
  const again = (changes) => {
    Object.assign(asked, { offset: 0, ...changes });
    return showRows();
  };
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  byId("search").addEventListener("input", (event) => {
    clearTimeout(waiting);
    waiting = setTimeout(() => again({ text: event.target.value }), DATA.live ? 250 : 80);
  });
  for (const name of ["source", "task", "sort"]) byId(name).addEventListener("change", (event) => again({ [name]: event.target.value }));
  for (const [id, step] of [["previous", -PAGE], ["next", PAGE]]) {
    byId(id).addEventListener("click", async () => {
      await again({ offset: Math.max(0, asked.offset + step) });
      byId("rows-h").scrollIntoView({ block: "start" });
    });
  }
  let filled = "";
  listeners.push(() => {
    const one = chosen();
    if (filled !== one.name) {
      const options = (names, any) => [h("option", { value: "" }, any), ...names.map((name) => h("option", { value: name }, name))];
      show("source", options(Object.keys(one.sources).filter(Boolean).sort(), `all ${Object.keys(one.sources).length} sources`));
      show("task", options(Object.keys(one.winners), Object.keys(one.winners).length ? "all tasks" : "none named"));
      byId("task").disabled = !Object.keys(one.winners).length;
      Object.assign(asked, { source: "", task: "" });
      filled = one.name;
    }
    const carried = DATA.live ? one.examples : DATA.rows.selections[one.name].rows.length;
    byId("rows-lead").textContent = visible(carried < one.examples
      ? `This page carries the first ${count(carried)} of the ${plural(one.examples, "row")} that ${one.name} chose; a served page has them all.`
      : `All ${plural(one.examples, "row")} that ${one.name} chose, up to the budget. Choose one to read it.`);
    again({});
  });
}
