// Head, foot and controls of the page, and its start.

function headLine() {
  return [
    DATA.live ? "live" : "static page",
    `model ${RUN.model}`,
    RUN.pool ? `pool of ${plural(RUN.pool.rows, "row")}, ${large(RUN.pool.tokens)} tokens` : "",
    TASKS.length ? `${plural(sum(RUN.tasks.map((task) => task.columns)), "target")} in ${plural(TASKS.length, "task")}` : "",
    SELECTIONS.length ? plural(SELECTIONS.length, "selection") : "",
  ].filter(Boolean).join(" \u00b7 ");
}

function startControls() {
  const options = SELECTIONS.map((one, s) => h("option", { value: String(s) }, one.name === one.method ? one.name : `${one.name} (${one.method})`));
  show("selection", options);
  show("against", h("option", { value: "-1" }, "nothing"), options.map((option) => option.cloneNode(true)));
  const budget = byId("budget");
  budget.max = String(Math.max(0, RUN.budgets.length - 1));
  budget.disabled = RUN.budgets.length < 2;
  byId("selection").addEventListener("change", (event) => change({ selection: Number(event.target.value) }));
  byId("against").addEventListener("change", (event) => change({ against: Number(event.target.value) }));
  budget.addEventListener("input", () => change({ budget: Number(budget.value) }));
  listeners.push(() => {
    byId("selection").value = String(state.selection);
    byId("against").value = String(state.against);
    budget.value = String(state.budget);
    const text = `${plural(budgetRows(), "row")}${RUN.pool ? `, ${percent(budgetRows() / RUN.pool.rows)} of the pool` : ""}`;
    byId("budget-text").textContent = text;
    budget.setAttribute("aria-valuetext", text);
  });
}

function startLeftOut() {
  const parts = [h("h3", {}, "Quarantined rows")];
  const found = RUN.quarantine;
  if (!found) parts.push(h("p", { class: "missing" }, "There is no quarantine file yet."));
  else if (!found.total) parts.push(h("p", {}, "Every row could be used."));
  else {
    const columns = [{ label: "reason", kind: "long" }, { label: "rows", numeric: true }, { label: "split" }, { label: "stage" }];
    parts.push(h("p", {}, `${plural(found.total, "row")} could not be used.`), table("Quarantined rows by reason", columns, found.groups.map(([split, stage, reason, rows]) => [reason, count(rows), split, stage])));
    if (found.more_groups) parts.push(h("p", { class: "soft" }, `and ${found.more_groups} more reasons.`));
    const places = found.first.map((one) => [`${one.file}${one.line === null ? "" : `:${one.line}`}`, one.id ?? ABSENT, one.stage, one.reason]);
    parts.push(h("details", { class: "numbers" }, h("summary", {}, `First ${plural(places.length, "row")}`), table("First quarantined rows", [{ label: "place", kind: "long" }, { label: "id", kind: "long" }, { label: "stage" }, { label: "reason", kind: "long" }], places)));
  }
  const out = RUN.left_out;
  parts.push(h("h3", {}, "Targets"));
  if (!out.total) parts.push(h("p", {}, TASKS.length ? "Every target takes part." : "There is no attribution matrix yet."));
  else {
    parts.push(h("p", {}, `${plural(out.total, "target")} without part, because the influence on them cannot be standardised.`),
      table("Targets that take no part", [{ label: "target", kind: "long" }, { label: "task" }, { label: "its column is" }], out.first.map((one) => [one.id, one.task, one.reason])));
    if (out.total > out.first.length) parts.push(h("p", { class: "soft" }, `and ${out.total - out.first.length} more.`));
  }
  show("quarantine-body", parts);
}

function startSteps() {
  const most = Math.max(1e-9, ...RUN.steps.map((step) => step.seconds ?? 0));
  const bar = (seconds) => g("svg", { class: "bullet c0", viewBox: "0 0 120 12", width: 120, height: 12, "aria-hidden": "true" }, g("rect", { class: "bar-mark", x: 0, y: 2, width: Math.max(1, ((seconds ?? 0) / most) * 120), height: 8, rx: 1.5 }));
  const columns = [{ label: "step" }, { label: "seconds", numeric: true }, { label: "" }, { label: "rows", numeric: true }, { label: "tokens", numeric: true }, { label: "rows/s", numeric: true }, { label: "tokens/s", numeric: true }, { label: "status" }];
  const lines = RUN.steps.map((step) => [step.name, duration(step.seconds), bar(step.seconds), step.rows === undefined ? "" : count(step.rows), step.tokens === undefined ? "" : large(step.tokens), step.rows_per_second === undefined ? "" : number(step.rows_per_second, 1), step.tokens_per_second === undefined ? "" : large(step.tokens_per_second), step.status]);
  const versions = Object.entries(RUN.versions).map(([name, version]) => `${name} ${version}`).join(", ");
  show("steps-body", lines.length ? table("Steps of the run", columns, lines) : h("p", {}, "No step is recorded yet."),
    h("p", { class: "soft" }, [versions, RUN.host.cpus ? `${plural(RUN.host.cpus, "CPU")}, ${RUN.host.system}` : ""].filter(Boolean).join(" \u00b7 ")));
}

byId("facts").textContent = visible(headLine());
byId("footer").textContent = visible(`Made by influray from the run directory ${RUN.name}. ${DATA.live ? "The page talks to its own service only." : "The page needs no network."}`);
if (SELECTIONS.length) startControls();
startBalance();
startRows();
startCompare();
startAsk();
startLeftOut();
startSteps();
if (SELECTIONS.length) {
  // Drawings follow the texts and legends, whose heights they stand below.
  listeners.push(() => drawings.forEach((draw) => draw()));
  change({});
}
