// All selections beside each other, at the budget that is chosen.

function compareTable() {
  const tuned = Object.keys(RUN.tuned).length > 0;
  const exact = Object.values(RUN.tuned).some((one) => one.exact !== null);
  const columns = [
    { label: "selection" }, { label: "method" },
    ...(tuned ? [{ label: "tuned: loss", numeric: true }] : []), ...(exact ? [{ label: Object.values(RUN.tuned)[0].metric, numeric: true }] : []),
    { label: "rows", numeric: true }, { label: "of the pool", numeric: true },
    ...(TASKS.length ? [{ label: "mean AID", numeric: true }, { label: "worst task", numeric: true }, { label: "", kind: "soft" }, { label: "spread", numeric: true }, { label: "evenness of THI", numeric: true }] : []),
  ];
  const lines = SELECTIONS.map((one, s) => {
    const balance = TASKS.length ? balanceOf(one) : null;
    const result = RUN.tuned[one.name];
    return [
      h("button", { type: "button", class: "open", "aria-pressed": String(s === state.selection), click: () => { change({ selection: s }); byId("compare-table").querySelectorAll("button")[s].focus(); } }, key(one.style), one.name),
      one.method, ...(tuned ? [number(result?.loss, 3)] : []), ...(exact ? [percent(result?.exact)] : []),
      `${count(sizeOf(one))}${sizeOf(one) < budgetRows() ? " (all)" : ""}`, percent(sizeOf(one) / RUN.pool.rows),
      ...(balance ? [signed(balance.macro), signed(balance.worst), balance.worstTask, number(balance.spread), number(balance.entropy)] : []),
    ];
  });
  for (const name of ["full", "base"]) {
    const result = RUN.tuned[name];
    if (!result) continue;
    const whole = name === "full";
    lines.push([whole ? "full pool" : "before tuning", "", number(result.loss, 3), ...(exact ? [percent(result.exact)] : []), whole ? count(RUN.pool.rows) : "", "", ...(TASKS.length ? ["", "", "", "", ""] : [])]);
  }
  const limited = SELECTIONS.flatMap((one) => Object.entries(one.roles).map(([task, limit]) => `${one.name} ${signed(limit.mean)} on ${task} (${limit.role})`));
  return [table("Selections at this budget", columns, lines), limited.length ? h("p", { class: "soft" }, `Mean influence of whole selections on tasks that are not sought, and that no figure here holds: ${limited.join(", ")}.`) : null, tuned ? h("p", { class: "soft" }, "Loss and matches are those of models tuned on whole selections, whatever the budget above.") : null];
}

// A shade behind a share: strong where it is large. Numbers keep their contrast at its strongest.
function shaded(value, text) {
  const cell = h("span", { class: "shade" }, text);
  cell.style.setProperty("--share", String(Math.max(0, Math.min(1, value))));
  return cell;
}

function overlapTable() {
  const columns = [{ label: "" }, ...SELECTIONS.map((one) => ({ label: one.name, numeric: true }))];
  return table("Jaccard overlap of the selections", columns, SELECTIONS.map((a, i) => [
    h("span", {}, key(a.style), a.name),
    ...SELECTIONS.map((b, j) => {
      const both = RUN.shared[i][j][state.budget];
      const value = both / (sizeOf(a) + sizeOf(b) - both);
      return i === j ? h("span", { class: "soft" }, ABSENT) : shaded(0.7 * value, number(value));
    }),
  ]));
}

function sourcesTable() {
  const columns = [{ label: "source" }, { label: "pool", numeric: true }, ...SELECTIONS.map((one) => ({ label: one.name, numeric: true }))];
  const flows = SELECTIONS.map((one) => at(one, "flow"));
  return table("Shares of the sources", columns, RUN.sources.map((source, s) => {
    const share = source.rows / RUN.pool.rows;
    return [source.name || "(no source)", percent(share), ...SELECTIONS.map((one, i) => {
      const mine = sum(flows[i][s]) / sizeOf(one);
      return shaded(mine, percent(mine));
    })];
  }));
}

function startCompare() {
  if (!SELECTIONS.length) {
    show("compare", byId("compare-h"), h("p", { class: "missing" }, "There is no selection yet."));
    return;
  }
  if (TASKS.length) {
    drawing("budget-figure", (width) => linesFigure(width, SELECTIONS.map((one) => ({
      name: one.name, style: one.style, points: one.at.aid.map((aid, m) => [RUN.budgets[m], Math.min(...aid)]).filter(([rows]) => rows >= Math.min(TASKS.length, one.examples)),
    })), budgetRows()));
  }
  listeners.push(() => {
    show("compare-table", compareTable());
    show("overlap-table", overlapTable());
    if (TASKS.length) show("sources-table", sourcesTable());
  });
}
