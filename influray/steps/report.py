"""report: the page over all that is committed."""

from __future__ import annotations

from influray.steps.context import StepContext, StepResult
from influray.store.artifact import fingerprint


def report(context: StepContext) -> StepResult:
    """Write RUN/report/index.html and explorer.html from what is committed."""
    from influray.report.page import write_report

    write_report(context.directory.path)
    steps = context.directory.read()["steps"]
    made = fingerprint({name: facts.get("fingerprint") for name, facts in steps.items() if name != "report"})
    return StepResult(made, skipped=False)
