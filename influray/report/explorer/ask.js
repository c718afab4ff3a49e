// The query box, and the explanation of a row: what only a service can answer.

const NO_HARM = "No row of the pool harms it: none has an influence below zero that is also below the pool's mean.";

async function explain(one, place) {
  show(place, h("p", { class: "soft" }, "Asking what it serves \u2026"));
  try {
    const found = await ask(`explain/${encodeURIComponent(one.id)}?${new URLSearchParams({ selection: chosen().name })}`);
    show(place, explanation(found));
  } catch (error) {
    show(place, h("p", { class: "missing" }, `No explanation: ${error.message}`));
  }
}

function explanation(found) {
  const parts = [];
  const ranks = Object.entries(found.selections ?? {});
  if (ranks.length) parts.push(h("p", {}, `Chosen by ${ranks.map(([name, rank]) => `${name} (rank ${count(rank)})`).join(", ")}.`));
  else parts.push(h("p", {}, "No selection chose it."));
  if (found.winner?.text) parts.push(h("h3", {}, `The target that won it: ${found.winner.id} (${found.winner.task})`), h("div", { class: "whole" }, h("p", { class: "text", dir: "auto" }, found.winner.text)));
  const tasks = found.tasks.filter((one) => one.z !== null).map((one) => [one.task, one.z]);
  if (tasks.length) parts.push(h("h3", {}, "Mean standardised influence on the tasks"), influenceBars(tasks));
  if (found.targets.length) {
    const columns = [{ label: "target", kind: "example-cell" }, { label: "task" }, { label: "standardised", numeric: true }];
    const lines = found.targets.map((one) => [h("div", {}, one.id, h("p", { class: "snippet", dir: "auto" }, beginning(one.text))), one.task, signed(one.z)]);
    parts.push(h("h3", {}, "Targets that it serves most"), table("Targets that the row serves", columns, lines));
  }
  if (found.neighbours?.length) {
    const columns = [{ label: "row", kind: "long" }, { label: "source", kind: "source" }, { label: "cosine", numeric: true }];
    const lines = found.neighbours.map((one) => [h("button", { type: "button", class: "open", click: () => openId(one.id) }, one.id), one.source || "(no source)", number(one.similarity)]);
    parts.push(h("h3", {}, `Most alike among the rows that ${found.selection} chose`), table("Nearest chosen rows", columns, lines));
  }
  return parts;
}

// Of a row that only its id is known of, the explanation brings the rest.
async function openId(id) {
  try {
    const found = await ask(`explain/${encodeURIComponent(id)}?${new URLSearchParams({ selection: chosen().name })}`);
    openRow({ ...found, selections: Object.keys(found.selections), task: found.winner?.task, target_id: found.winner?.id }, found);
  } catch (error) {
    show(byId("panel").querySelector(".served"), h("p", { class: "missing" }, `No explanation: ${error.message}`));
  }
}

function askLike(id) {
  byId("ask").scrollIntoView({ block: "start" });
  send({ like: id }, `rows like ${id}`);
}

async function send(question, what) {
  const button = byId("question").querySelector("button");
  button.disabled = true;
  byId("ask-status").textContent = visible(`Asking for ${what} \u2026`);
  show("ask-result");
  try {
    const found = await ask("query", { ...question, k: Number(byId("k").value) || 10 });
    byId("ask-status").textContent = visible(`Answered for ${what} in ${duration(found.seconds)}${found.exact === false ? "; approximate search" : ""}.`);
    show("ask-result", answer(found));
  } catch (error) {
    byId("ask-status").textContent = visible(`Not answered. ${error.message}`);
  }
  button.disabled = false;
}

function answer(found) {
  const rows = (name, list, none) => [h("h3", {}, name), list.length ? hits(name, list) : h("p", { class: "soft" }, none)];
  return [
    h("p", { class: "soft" }, [
      found.loss === null || found.loss === undefined ? "" : `loss of the answer ${number(found.loss, 3)}`,
      found.grad_norm === null || found.grad_norm === undefined ? "" : `gradient norm ${number(found.grad_norm, 3)}`,
      found.truncated ? "cut to the longest text that the model takes" : "",
      found.std ? `influence over the pool ${signed(found.mean, 4)} \u00b1 ${number(found.std, 4)}` : "",
    ].filter(Boolean).join(" \u00b7 ")),
    found.tokens?.length ? tokens(found.tokens) : null,
    ...rows("Most helpful", found.helpful ?? [], "None."),
    ...rows("Most harmful", found.harmful ?? [], NO_HARM),
  ];
}

function hits(name, list) {
  const columns = [{ label: "#", numeric: true }, { label: "example", kind: "example-cell" }, { label: "source", kind: "source wide" }, { label: "influence", numeric: true, kind: "wide" }, { label: "standardised", numeric: true }];
  return table(`${name} rows`, columns, list.map((one, i) => [
    count(i + 1),
    h("div", {}, h("button", { type: "button", class: "open", click: () => openRow(one) }, one.id), h("p", { class: "snippet", dir: "auto" }, beginning(one.text)),
      one.selections?.length ? h("p", { class: "soft small" }, `chosen by ${one.selections.join(", ")}`) : null),
    h("span", { dir: "auto" }, one.source || "(no source)"), number(one.influence, 4), signed(one.z),
  ]));
}

// A token is shaded by its part of the whole: help in one colour, harm in another; hover and table have its number.
function tokens(list) {
  const most = Math.max(...list.map((one) => Math.abs(one.influence)), 1e-30);
  const marks = list.map((one) => {
    const mark = h("span", { class: one.influence < 0 ? "token harm" : "token help", title: `${percent(one.share)} of the influence` }, one.text);
    mark.style.setProperty("--share", String(Math.abs(one.influence) / most));
    return mark;
  });
  const columns = [{ label: "token" }, { label: "influence", numeric: true }, { label: "share", numeric: true }];
  return h("div", {}, h("h3", {}, "Which tokens of the answer carry it"),
    h("p", { class: "legend" }, h("span", { class: "entry" }, key("help"), "for"), h("span", { class: "entry" }, key("harm"), "against")),
    h("p", { class: "tokens", dir: "auto" }, marks),
    h("details", { class: "numbers" }, h("summary", {}, "Numbers"), table("Tokens of the answer", columns, list.map((one) => [one.text, signed(one.influence, 4), percent(one.share)]))));
}

function startAsk() {
  if (!DATA.live) return;
  byId("question").addEventListener("submit", (event) => {
    event.preventDefault();
    send({ prompt: byId("prompt").value, answer: byId("answer").value, tokens: byId("tokens").checked }, "your question");
  });
}
