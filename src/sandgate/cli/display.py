"""A node's status for people and for programs."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from sandgate.settings import Settings
from sandgate.supervisor.processes import ProcessId
from sandgate.supervisor.status import NodeStatus
from sandgate.templates.definition import TemplateError
from sandgate.templates.store import read_manifests


def status_data(settings: Settings, found: NodeStatus) -> dict[str, Any]:
    """What `status --json` prints. Holds no secret."""
    data: dict[str, Any] = {
        "state": str(found.state),
        "problems": list(found.problems),
        "data_dir": str(settings.data_dir),
    }
    try:
        data["templates"] = sorted(read_manifests(settings.data_dir))
    except TemplateError as error:
        data["templates"] = []
        data["problems"].append(str(error))
    if found.supervisor is not None:
        data["supervisor"] = {
            "pid": found.supervisor.pid,
            "uptime": round(found.supervisor.uptime(), 1),
        }
    if found.record is not None:
        record = found.record
        data |= {
            "version": record.version,
            "domain": record.domain,
            "listen": str(record.listen),
            "https_port": record.https_port,
            "sandboxes": found.sandboxes,
            "components": [
                {
                    "name": component.name,
                    "pid": component.pid,
                    "restarts": component.restarts,
                    "uptime": _uptime(component.pid),
                }
                for component in record.components
            ],
        }
    return data


def show_status(data: dict[str, Any]) -> None:
    """Print it as a table."""
    console = Console(highlight=False)
    overview = Table.grid(padding=(0, 2))
    overview.add_row("state", data["state"])
    if "domain" in data:
        overview.add_row("version", data["version"])
        overview.add_row("API", f"https://api.{data['domain']}")
        overview.add_row("sandboxes", f"https://<port>-<id>.{data['domain']}")
        overview.add_row("listens on", f"{data['listen']}:{data['https_port']}")
        count = data["sandboxes"]
        overview.add_row("running", "unknown" if count is None else f"{count} sandboxes")
    overview.add_row("data", data["data_dir"])
    overview.add_row("templates", ", ".join(data["templates"]) or "none; run `make install`")
    console.print(overview)
    for problem in data["problems"]:
        console.print(f"problem: {problem}", markup=False)
    if "components" not in data:
        return
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for title in ("process", "pid", "up", "restarts"):
        table.add_column(title)
    rows = [{"name": "supervisor", "restarts": 0, **data["supervisor"]}, *data["components"]]
    for row in rows:
        table.add_row(
            row["name"], str(row["pid"] or "-"), _duration(row["uptime"]), str(row["restarts"])
        )
    console.print(table)


def _uptime(pid: int | None) -> float | None:
    process = ProcessId.of(pid) if pid is not None else None
    return round(process.uptime(), 1) if process is not None else None


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
