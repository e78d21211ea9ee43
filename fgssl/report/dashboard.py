"""The comparison as a W&B report: one section for each table, runs grouped by method; later calls refresh it."""

from collections.abc import Sequence
from typing import Any

from fgssl.errors import UserError
from fgssl.report.compare import Comparison
from fgssl.report.tables import markdown

TITLE = "fgssl compare"


def save_comparison(where: str, tables: Sequence[Comparison]) -> str:
    """Create or refresh the report.

    Args:
        where: ``project`` or ``entity/project`` of the runs.
        tables: Tables to show; W&B runs are found by the names of the run folders.

    Raises:
        UserError: W&B's library for reports is missing, or W&B refuses.
    """
    from fgssl.loggers import has_wandb_account

    sections = "; ".join(f"{table.title.split(':')[0]} ({_count(table)} runs)" for table in tables)
    if not has_wandb_account():
        return (
            f"W&B: offline, or no account (`wandb login`), so nothing was written. Online this creates or "
            f"refreshes the report '{TITLE}' in {where}, one section a table, with the table, bars and curves of its "
            f"runs, grouped by method: {sections}. Runs logged offline have to be sent first, by `wandb sync`."
        )
    try:
        import wandb_workspaces.reports.v2  # noqa: F401
    except ImportError as fault:
        raise UserError(f"--wandb needs W&B's library for reports ({fault}): pip install 'fgssl[reports]'.") from None
    import wandb

    named, _, project = where.rpartition("/")
    try:
        api = wandb.Api()
        entity = named or str(api.default_entity)
        earlier = [found.url for found in _reports(api, f"{entity}/{project}") if found.title == TITLE]
        report = build(entity, project, tables, earlier[0] if earlier else None)
        report.save()
    except Exception as fault:  # wandb raises many types of exception
        raise UserError(f"W&B refused the report in {where}: {fault}") from fault
    return f"W&B: {'refreshed' if earlier else 'created'} the report {report.url} ({sections})."


def _reports(api: Any, path: str) -> list[Any]:
    """Reports of a project; an empty list if the project does not exist."""
    try:
        return list(api.reports(path))
    except ValueError:
        return []


def build(entity: str, project: str, tables: Sequence[Comparison], url: str | None = None) -> Any:
    """Build the report, or rebuild the one at ``url``, without saving it."""
    import wandb_workspaces.reports.v2 as wr
    from wandb_workspaces.expr import Metric

    blocks: list[Any] = [wr.P("Written by `fgssl compare --wandb`, which replaces what is here.")]
    for table in tables:
        names = sorted(run.name for row in table.rows for run in row.runs)
        runs = wr.Runset(
            entity=entity, project=project, name=table.title.split(":")[0],
            filters=[Metric("Name").isin(names)], groupby=["Group"],
        )  # fmt: skip
        panels: list[Any] = [
            wr.BarPlot(title=f"test {metric}", metrics=[f"test/{metric}"], groupby_aggfunc="mean")
            for metric in table.metrics
        ]
        panels.append(wr.LinePlot(title=f"validation {table.metrics[0]}", x="epoch", y=[f"val/{table.metrics[0]}"]))
        panels.append(wr.LinePlot(title="training loss", x="epoch", y=["train/loss"], groupby_rangefunc="stddev"))
        panels.append(wr.LinePlot(title="images a second", x="epoch", y=["throughput/images_per_second"]))
        panels.append(wr.MediaBrowser(title="nearest neighbours", media_keys=["test/retrieval_grid"]))
        blocks += [wr.MarkdownBlock(markdown(table)), wr.PanelGrid(runsets=[runs], panels=panels)]
    report = wr.Report.from_url(url) if url else wr.Report(entity=entity, project=project, title=TITLE, width="fluid")
    report.blocks = blocks
    return report


def _count(table: Comparison) -> int:
    return sum(len(row.runs) for row in table.rows)
