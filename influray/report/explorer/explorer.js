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

byId("facts").textContent = visible(headLine());
byId("footer").textContent = visible(`Made by influray from the run directory ${RUN.name}. ${DATA.live ? "The page talks to its own service only." : "The page needs no network."}`);
if (SELECTIONS.length) startControls();
startBalance();
startRows();
startCompare();
startAsk();
if (SELECTIONS.length) {
  // Drawings follow the texts and legends, whose heights they stand below.
  listeners.push(() => drawings.forEach((draw) => draw()));
  change({});
}
