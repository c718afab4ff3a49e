"""A comparison of selections as tables and figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from markupsafe import Markup

from influray.formatting import ABSENT, count, number, percent, signed, visible
from influray.report.compare import Comparison, Entry
from influray.report.data import Over, SelectionFacts, TaskBalance, Tuned, labelled
from influray.report.evaluations import BASE
from influray.report.figures import Series, dots, heat_map
from influray.report.selections import largest_sources
from influray.report.sheet import Figure, Section, Sheet, Table

SOURCES = 40  # rows of the table of sources; the rest is summed up


def compare_sheet(found: Comparison) -> Sheet:
    """Return the comparison under five headings; what is not there is left out."""
    sections = [
        Section("Results of fine-tuning", _result_figures(found), _results(found)),
        Section("Selections", (), (_sizes(found),)),
        Section("Balance", _balance_figures(found), _balance_tables(found)),
        Section("Overlap", _overlap_figures(found), _overlap_tables(found)),
        Section("Sources", (), (_sources(found),)),
    ]
    kept = tuple(section for section in sections if section.tables)
    notes = (*found.notes, *(one.own_budget for _, one in found.chosen if one.own_budget))
    return Sheet(f"{found.title}: selections compared", notes, kept)


def _sizes(found: Comparison) -> Table:
    rows = tuple(
        (label, one.method, count(one.examples), count(one.tokens), count(one.duplicates))
        for label, one in found.chosen
    )
    return Table("What was chosen", ("selection", "method", "examples", "tokens", "duplicates"), rows)


def _balance_tables(found: Comparison) -> tuple[Table, ...]:
    known = [(label, one.balance) for label, one in found.chosen if one.balance is not None]
    if not known:
        return ()
    columns = ("selection", "macro AID", "worst AID", "worst task", "spread", "THI entropy")
    rows = tuple(
        (label, signed(b.macro), signed(b.worst), b.worst_task, number(b.spread), number(b.entropy))
        for label, b in known
    )
    return (
        Table("Over the tasks", columns, rows),
        _by_task("AID by task, mean \u00b1 deviation over its targets", found.tasks, known, _aid),
        _by_task("THI by task, share of the rows", found.tasks, known, _thi),
        *_limited(found),
    )


def _limited(found: Comparison) -> tuple[Table, ...]:
    """Return what the selections are to tasks to protect and to avoid; one that seeks such a task has no number."""
    if not found.limited:
        return ()
    rows = tuple((task, role, *(_mean(one, task, role) for _, one in found.chosen)) for task, role in found.limited)
    heads = ("task", "role", *(label for label, _ in found.chosen))
    return (Table("Tasks to protect and to avoid, mean standardised influence", heads, rows),)


def _mean(one: SelectionFacts, task: str, role: str) -> str:
    limit = one.limited.get(task)
    return signed(limit.mean) if limit is not None and limit.role == role else ABSENT


def _by_task(
    title: str,
    tasks: Sequence[str],
    known: Sequence[tuple[str, TaskBalance]],
    cell: Callable[[TaskBalance, str], str],
) -> Table:
    rows = tuple((task, *(cell(b, task) if task in b.aid else ABSENT for _, b in known)) for task in tasks)
    return Table(title, ("task", *(label for label, _ in known)), rows)


def _aid(balance: TaskBalance, task: str) -> str:
    return f"{signed(balance.aid[task])} \u00b1{number(balance.aid_std[task])}"


def _thi(balance: TaskBalance, task: str) -> str:
    return percent(balance.thi_task[task] / sum(balance.thi_task.values()), 0)


def _overlap_tables(found: Comparison) -> tuple[Table, ...]:
    labels = [label for label, _ in found.chosen]
    if len(labels) < 2:
        return ()
    kinds = (("Overlap (Jaccard)", found.overlap.jaccard), ("Rank-biased overlap", found.overlap.ranked))
    return tuple(
        Table(
            title,
            ("selection", *labels),
            tuple((label, *(number(v) for v in line)) for label, line in zip(labels, values, strict=True)),
        )
        for title, values in kinds
    )


def _sources(found: Comparison) -> Table:
    """Shares of the sources, those with the largest share in any selection or the pool first."""
    sides = [(one.sources, one.examples) for _, one in found.chosen]
    sides = [*([] if found.pool is None else [(found.pool.sources, found.pool.rows)]), *sides]
    shown, rest = largest_sources(sides, SOURCES)
    rows = [
        (visible(source) or "(no source)", *(percent(counts.get(source, 0) / total) for counts, total in sides))
        for source in shown
    ]
    if rest:
        sums = [sum(counts.get(source, 0) for source in rest) / total for counts, total in sides]
        rows.append((f"{len(rest)} more sources", *(percent(value) for value in sums)))
    heads = ("source", *([] if found.pool is None else ["pool"]), *(label for label, _ in found.chosen))
    return Table("Share of each source", heads, tuple(rows))


def _results(found: Comparison) -> tuple[Table, ...]:
    tuned = [(entry, entry.tuned) for entry in found.entries if entry.tuned is not None]
    if not tuned:
        return ()
    columns = ("tuned on", "macro loss", "gain", "worst loss", "worst task", tuned[0][1].exact_name, "gain (points)")
    rows = tuple((entry.label, *_result(entry, one)) for entry, one in tuned)
    roles = dict.fromkeys((task, role) for _, one in tuned for task, role in one.roles.items())
    heads = ("tuned on", *(labelled(task, role) for task, role in roles))
    losses = tuple(
        (entry.label, *(number(one.loss[t].mean, 3) if one.roles.get(t) == role else ABSENT for t, role in roles))
        for entry, one in tuned
    )
    apart = (Table("Loss on tasks to protect and to avoid", heads, losses),) if roles else ()
    return (Table("Over the tests", columns, rows), *apart)


def _result(entry: Entry, one: Tuned) -> tuple[str, ...]:
    exact, gain = one.macro_exact, entry.exact_gain
    return (
        number(one.macro_loss.mean, 3),
        signed(entry.loss_gain, 3),
        number(one.loss[one.worst_loss_task].mean, 3),
        one.worst_loss_task,
        percent(exact.mean) if exact else ABSENT,
        signed(None if gain is None else 100 * gain, 1),
    )


def _balance_figures(found: Comparison) -> tuple[Figure, ...]:
    known = [(label, one, one.balance) for label, one in found.chosen if one.balance is not None]
    if not known:
        return ()
    tasks = found.tasks
    aid = dots(
        tasks,
        [_aid_series(label, one, balance, tasks) for label, one, balance in known],
        ident="aid",
        title="AID by task",
        axis="standard deviations of influence above the pool's mean",
        reference=0.0,
    )
    labels = [label for label, _, _ in known]
    shares = [{t: n / sum(b.thi_task.values()) for t, n in b.thi_task.items()} for _, _, b in known]
    thi = heat_map(
        tasks,
        labels,
        [[share.get(task) for share in shares] for task in tasks],
        [[percent(share.get(task), 0) for share in shares] for task in tasks],
        ident="thi",
        title="THI by task",
        full=0.5,
    )
    return (
        Figure("AID by task: the dot is the mean over the task's targets, the line one deviation around it.", aid),
        Figure("THI: share of the rows whose mean influence is highest on a task.", thi),
    )


def _aid_series(label: str, one: SelectionFacts, balance: TaskBalance, tasks: Sequence[str]) -> Series:
    mean = [balance.aid.get(task) for task in tasks]
    std = [balance.aid_std.get(task, 0.0) for task in tasks]
    low = [None if m is None else m - s for m, s in zip(mean, std, strict=True)]
    high = [None if m is None else m + s for m, s in zip(mean, std, strict=True)]
    return Series(label, one.style, mean, low, high)


def _overlap_figures(found: Comparison) -> tuple[Figure, ...]:
    labels = [label for label, _ in found.chosen]
    if len(labels) < 2:
        return ()
    kinds = (
        ("jaccard", "Overlap (Jaccard): records in both selections over records in either.", found.overlap.jaccard),
        ("ranked", "Rank-biased overlap: agreement of the orders of choice.", found.overlap.ranked),
    )
    return tuple(Figure(caption, overlap_map(labels, values, ident, caption)) for ident, caption, values in kinds)


def _result_figures(found: Comparison) -> tuple[Figure, ...]:
    tuned = [(entry.label, entry.tuned) for entry in found.entries if entry.tuned is not None]
    if not tuned:
        return ()
    loss, exact = result_dots(tuned)
    return (
        Figure("Answer loss on the test records of each task (lower is better).", loss),
        Figure(f"{tuned[0][1].exact_name.capitalize()} on the test records of each task (higher is better).", exact),
    )


def overlap_map(labels: Sequence[str], values: Sequence[Sequence[float]], ident: str, title: str) -> Markup:
    """Return the heat map of a matrix of likeness; that a selection equals itself needs no shade."""
    return heat_map(
        labels,
        labels,
        [[None if i == j else value for j, value in enumerate(line)] for i, line in enumerate(values)],
        [[number(value) for value in line] for line in values],
        ident=ident,
        title=title,
        full=1.0,
    )


def result_dots(tuned: Sequence[tuple[str, Tuned]]) -> tuple[Markup, Markup]:
    """Return the answer loss and the exact match of every task, of models by their labels."""
    tasks = list(dict.fromkeys(task for _, one in tuned for task in one.loss))
    scored = [task for task in tasks if any(task in one.exact for _, one in tuned)]
    loss = [_over_seeds(label, one, one.loss, tasks, 1.0) for label, one in tuned]
    exact = [_over_seeds(label, one, one.exact, scored, 100.0) for label, one in tuned]
    name = tuned[0][1].exact_name
    roles = {task: role for _, one in tuned for task, role in one.roles.items()}
    names, scored_names = ([labelled(task, roles.get(task)) for task in some] for some in (tasks, scored))
    return (
        dots(names, loss, ident="loss", title="Answer loss by task", axis="answer loss (nats)"),
        dots(scored_names, exact, ident="exact", title=f"{name.capitalize()} by task", axis=f"{name} (%)"),
    )


def _over_seeds(label: str, one: Tuned, values: Mapping[str, Over], tasks: Sequence[str], scale: float) -> Series:
    """Return one number a task, times `scale`: the mean over seeds, and the ends where there are several."""
    found = [values.get(task) for task in tasks]
    several = len(one.seeds) > 1
    return Series(
        label,
        one.style,
        [None if v is None else v.mean * scale for v in found],
        [None if v is None else v.low * scale for v in found] if several else (),
        [None if v is None else v.high * scale for v in found] if several else (),
        hollow=one.name == BASE,
    )
