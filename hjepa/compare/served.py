"""Runs asked of the MLflow server: by id, by filter, to be read like any other; and the link that lays them side by side.

A run whose folder is here is read there. Of one that was trained elsewhere the server's journal is fetched, or, while it is
still trained, written anew from what the server has of it.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from hjepa.compare.digest import Digest
from hjepa.errors import Mistake
from hjepa.tracking.replica import RECORDS, Server, Target, connect, read_json

if TYPE_CHECKING:
    from mlflow.entities import Run

LINKED = 100
"""Runs in a link: MLflow's page has a colour and a column for each."""
LOCAL = "http://127.0.0.1:5000"
"""Where `mlflow ui` answers."""
_STATE = {"FINISHED": "done", "FAILED": "failed", "KILLED": "stopped"}


def looks_like_id(reference: str) -> bool:
    """Whether MLflow may have given this name."""
    return re.fullmatch(r"[0-9a-f]{32}", reference) is not None


def looks_like_filter(reference: str) -> bool:
    """Whether this can only be a condition."""
    return re.search(r"[=<>]|\b(I?LIKE|IN|IS)\b", reference) is not None


def with_id(run_id: str, root: Path) -> Path:
    """The folder of one run, or of a sweep."""
    for note in _notes(root):
        if read_json(note).get("mlflow_run_id") == run_id:
            return note.parent
    from mlflow.exceptions import MlflowException

    try:
        return _folder(_server(root), _server(root).client.get_run(run_id), {})
    except MlflowException as problem:
        raise Mistake(f"no run with the MLflow id {run_id}: {problem.message}") from None


def fitting(condition: str, root: Path) -> list[Path]:
    """The folders of all runs that fulfil a condition in MLflow's words, the oldest first; sweeps are no runs."""
    from mlflow.exceptions import MlflowException

    server = _server(root)
    here = {read_json(note).get("run_id"): note.parent for note in _notes(root)}
    found: list[Run] = []
    token = None
    try:
        while True:
            page = server.client.search_runs(
                [server.experiment], condition, order_by=["attributes.start_time ASC"], page_token=token, max_results=1000
            )
            found += page
            token = page.token
            if not token:
                break
    except MlflowException as problem:
        raise Mistake(f"MLflow does not understand {condition!r}: {problem.message}") from None
    folders = [_folder(server, run, here) for run in found if not _is_parent(run)]
    if not folders:
        raise Mistake(f"no run fulfils {condition!r} in the experiment {server.target.experiment!r} at {server.target.uri}")
    return folders


def link(runs: Sequence[Digest]) -> str | None:
    """MLflow's page that compares them; of many, evenly chosen ones. None where MLflow knows fewer than two at one address."""
    return _page("compare-runs", runs)


def curves_link(runs: Sequence[Digest]) -> str | None:
    """MLflow's page with their curves: how much spread every level has left."""
    shown = [f"collapse/{level}/std_ratio" for level in dict.fromkeys(level for run in runs for level in run.verdicts)]
    if not shown:
        return None
    layout = {"autosize": True, "xaxis": {}, "yaxis": {}}
    how: dict[str, Any] = {"plot_metric_keys": shown, "plot_layout": layout, "x_axis": "step", "y_axis_scale": "log"}
    how |= {
        "line_smoothness": 1,
        "show_point": False,
        "deselected_curves": [],
        "last_linear_y_axis_range": [],
    }  # all are asked for
    return _page("metric", runs, metric=shown[0], **how)


def _page(page: str, runs: Sequence[Digest], **told: Any) -> str | None:
    known = defaultdict(list)
    for run in runs:
        if run.mirrored:
            known[run.mirrored["uri"]].append(run.mirrored)
    uri, notes = max(known.items(), key=lambda pair: len(pair[1]), default=("", []))
    if len(notes) < 2:
        return None
    count = min(len(notes), LINKED)
    chosen = [notes[number * len(notes) // count] for number in range(count)]
    ids, places = [note["mlflow_run_id"] for note in chosen], sorted({note["experiment_id"] for note in chosen})
    # The pages want the runs first, and words as JSON where they are no plain choice.
    words = {"runs": json.dumps(ids), "experiments": json.dumps(places)}
    words |= {key: value if key.endswith(("axis", "scale")) else json.dumps(value) for key, value in told.items()}
    return f"{base(uri)}/#/{page}?" + "&".join(f"{key}={quote(value, safe='')}" for key, value in words.items())


def base(uri: str) -> str:
    """Where the pages of a server are."""
    return uri.rstrip("/") if uri.startswith("http") else LOCAL


def shown(runs: Sequence[Digest], sweep: Path | None, files: Iterable[Path]) -> Iterator[str]:
    """Gives the server what was drawn of a sweep, and says where all of it can be looked at."""
    note = read_json(sweep / "mlflow.json") if sweep else {}
    if sweep and "mlflow_run_id" in note:
        server = Server(Target.of(sweep), connect)
        try:
            for file in files:
                server.client.log_artifact(note["mlflow_run_id"], str(file), "compare")
        except Exception as problem:
            yield f"MLflow was not given the page: {problem}".splitlines()[0]
        yield f"sweep in MLflow: {base(note['uri'])}/#/experiments/{note['experiment_id']}/runs/{note['mlflow_run_id']}"
    address = link(runs)
    if address is not None:
        count = len([run for run in runs if run.mirrored])
        yield f"compare in MLflow{f' ({LINKED} of {count})' if count > LINKED else ''}: {address}"
        yield f"curves in MLflow: {curves_link(runs)}"
        if address.startswith(LOCAL):
            yield f"  after: mlflow ui --backend-store-uri {next(run.mirrored['uri'] for run in runs if run.mirrored)}"


@cache
def _fetched() -> tempfile.TemporaryDirectory[str]:
    """What was fetched lives as long as this process."""
    return tempfile.TemporaryDirectory(prefix="hjepa-")


def _server(root: Path) -> Server:
    target = Target.of(root.resolve() / "any")
    database = target.uri.removeprefix("sqlite:///")
    if database != target.uri and not os.path.exists(database):
        raise Mistake(f"there is no MLflow here to ask: no {database}, and MLFLOW_TRACKING_URI is not set")
    return Server(target, connect)


def _notes(root: Path) -> list[Path]:
    return [*root.resolve().glob("*/mlflow.json"), *root.resolve().glob("*/trials/*/mlflow.json")]


def _is_parent(run: Run) -> bool:
    return "hjepa.sweep" in run.data.tags and "mlflow.parentRunId" not in run.data.tags


def _folder(server: Server, run: Run, here: dict[Any, Path]) -> Path:
    """Where the run is, or a folder of this process with what the server has of it."""
    if (known := here.get(run.data.tags.get("hjepa.run_id"))) is not None:
        return known
    if _is_parent(run):
        raise Mistake(f"{run.info.run_name} is a sweep whose folder is not here: tags.mlflow.parentRunId = '{run.info.run_id}'")
    folder = Path(_fetched().name) / f"{(run.info.run_name or 'run').replace('/', '-')}-{run.info.run_id[:6]}"
    folder.mkdir(parents=True, exist_ok=True)
    there = {file.path for file in server.client.list_artifacts(run.info.run_id)}
    for name in {"resolved.yaml", "journal.jsonl"} & there:
        server.client.download_artifacts(run.info.run_id, name, str(folder))
    if "journal.jsonl" not in there:
        (folder / "journal.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in _remembered(server, run)))
    where = {"mlflow_run_id": run.info.run_id, "experiment_id": run.info.experiment_id, "uri": server.target.uri}
    (folder / "mlflow.json").write_text(json.dumps(where))
    return folder


def _remembered(server: Server, run: Run) -> list[dict[str, Any]]:
    """A journal of what the server was sent."""
    values: dict[int, dict[str, float]] = defaultdict(dict)
    for key in run.data.metrics:
        if key != RECORDS:
            for point in server.client.get_metric_history(run.info.run_id, key):
                values[point.step][key] = point.value
    prefix = "hjepa.verdict."
    verdicts = {key.removeprefix(prefix): words for key, words in run.data.tags.items() if key.startswith(prefix)}
    lines: list[dict[str, Any]] = [{"n": n, "step": step, "metrics": values[step]} for n, step in enumerate(sorted(values))]
    lines.append({"event": "verdicts", "verdicts": verdicts})
    outcome = run.data.tags.get("hjepa.outcome", _STATE.get(run.info.status))
    return lines + ([{"event": "finished", "outcome": outcome}] if run.info.status != "RUNNING" else [])
