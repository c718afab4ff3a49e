// What is shown, and the numbers of a selection at the budget that is shown.

const TASKS = RUN.tasks.map((task) => task.name);
const SELECTIONS = RUN.selections;
const listeners = [];

function spreadOf(selection) {
  return deviation(selection.at.aid.at(-1));
}

function deviation(values) {
  const mean = sum(values) / values.length;
  return Math.sqrt(sum(values.map((value) => (value - mean) ** 2)) / values.length);
}

// Beside the first selection of the config stands the one that serves the tasks most unevenly.
function startAgainst() {
  const others = SELECTIONS.map((_, s) => s).slice(1);
  if (!others.length || !TASKS.length) return others[0] ?? -1;
  return others.reduce((best, s) => (spreadOf(SELECTIONS[s]) > spreadOf(SELECTIONS[best]) ? s : best));
}

const state = { selection: 0, against: startAgainst(), budget: Math.max(0, RUN.budgets.length - 1) };

function change(changes) {
  Object.assign(state, changes);
  for (const listener of listeners) listener();
}

const chosen = () => SELECTIONS[state.selection];
const against = () => (state.against === state.selection ? undefined : SELECTIONS[state.against]);
const pair = () => [against(), chosen()].filter((one) => one);
const budgetRows = () => RUN.budgets[state.budget] ?? 0;
const sizeOf = (selection) => Math.min(budgetRows(), selection.examples);

// A selection smaller than the budget shows all of itself.
function at(selection, name) {
  const values = selection.at[name];
  return values[Math.min(state.budget, values.length - 1)];
}

function balanceOf(selection) {
  const aid = at(selection, "aid");
  const worst = Math.min(...aid);
  return {
    macro: sum(aid) / aid.length,
    worst,
    worstTask: TASKS[aid.indexOf(worst)],
    spread: deviation(aid),
    entropy: at(selection, "entropy"),
  };
}
