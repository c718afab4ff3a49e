"""report: the page over all that is committed."""

from __future__ import annotations

from influray.protocols import DamagedArtifact
from influray.steps.context import StepContext, StepResult
from influray.steps.step import Step
from influray.store.artifact import fingerprint
from influray.store.checks import set_aside


def report(context: StepContext) -> StepResult:
    """Write RUN/report/index.html and explorer.html from what is committed; a damaged audit is made again."""
    from influray.report.audit import audit, audit_path, read_audit
    from influray.report.page import write_report

    directory = context.directory
    try:
        read_audit(directory)
    except DamagedArtifact:
        set_aside(audit_path(directory))
        audit(directory.path)
    write_report(directory.path)
    steps = directory.read()["steps"]
    made = fingerprint({name: facts.get("fingerprint") for name, facts in steps.items() if name != "report"})
    return StepResult(made, skipped=False, artifacts=["report/index.html", "report/explorer.html"])


REPORT = Step("report", report, describe=lambda config: f"{config.run_dir}/report/index.html")
