"""Runs asked of MLflow itself: by id, by condition, here or trained elsewhere; and the links to its pages."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from mirrors import noted
from recorded import DEAD, sweep_folder, trained, trial

from hjepa import cli, tracking
from hjepa.compare import gather, served
from hjepa.compare.digest import Digest
from hjepa.errors import Mistake
from hjepa.journal import Journal


@pytest.fixture
def runs(mlflow_run: tuple[Path, Journal, Any], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two runs that MLflow has, and a sweep."""
    root = mlflow_run[0].parent / "runs"
    root.mkdir()
    shutil.copy(root.parent / "mlflow.db", root / "mlflow.db")
    monkeypatch.chdir(root.parent)
    trial(sweep_folder(root / "s-sweep"), 0, DEAD)
    for folder in (trained(root / "alive"), trained(root / "dead", DEAD), root / "s-sweep"):
        assert tracking.main([str(folder)]) == 0
    return root


def test_runs_are_found_by_what_mlflow_knows_of_them(runs: Path) -> None:
    dead = noted(runs / "dead")["mlflow_run_id"]
    assert [run.path for run in gather([dead]).runs] == [runs / "dead"]
    told = gather([noted(runs / "s-sweep")["mlflow_run_id"]])
    assert (told.sweep, [run.name for run in told.runs]) == (runs / "s-sweep", ["0"])
    assert [run.name for run in gather(["tags.`hjepa.verdict.frame` != 'healthy'"]).runs] == ["0", "dead"]
    assert [run.name for run in gather(["metrics.`collapse/frame/std_ratio` > 0.5"]).runs] == ["alive"]
    with pytest.raises(Mistake, match="no run with the MLflow id 00"):
        gather(["0" * 32])
    with pytest.raises(Mistake, match="MLflow does not understand"):
        gather(["verdict is bad = 3"])
    with pytest.raises(Mistake, match="no run fulfils"):
        gather(["params.seed = '7'"])
    _trained_elsewhere(runs, dead)


def _trained_elsewhere(runs: Path, dead: str) -> None:
    """The folder is not here: what the server was sent says the same, with its journal or without."""
    here = gather(["dead"]).runs[0]
    shutil.rmtree(runs / "dead")
    journal = next(runs.glob(f"mlartifacts/{dead}/artifacts/journal.jsonl"))
    for fetched in (gather([dead]).runs[0], (journal.unlink(), gather([dead]).runs[0])[1]):
        assert fetched.path != here.path
        assert (fetched.verdicts, fetched.state, fetched.study) == (here.verdicts, here.state, here.study)
        assert fetched.metrics == here.metrics
        assert fetched.curve("collapse/frame/rank") == here.curve("collapse/frame/rank")
        assert fetched.mirrored["mlflow_run_id"] == dead


def test_the_command_uploads_and_prints_the_link(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (runs / "s-sweep" / "compare" / "index.html").unlink()
    cli.compare(["s-sweep", "alive"], out=runs / "there", as_json=True)
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["run"] for row in told["runs"]] == ["0", "alive"]
    words = parse_qs(urlsplit(told["mlflow"]).fragment.partition("?")[2])
    ids = [noted(runs / name)["mlflow_run_id"] for name in ("s-sweep/trials/0", "alive")]
    assert json.loads(words["runs"][0]) == ids
    assert json.loads(words["experiments"][0]) == [noted(runs / "alive")["experiment_id"]]
    parent = noted(runs / "s-sweep")["mlflow_run_id"]
    page = runs / "mlartifacts" / parent / "artifacts" / "compare" / "index.html"
    before = page.stat().st_mtime_ns
    cli.compare(["s-sweep"])
    said = capsys.readouterr().err
    assert page.stat().st_mtime_ns > before
    assert f"/runs/{parent}\n" in said
    assert (runs / "s-sweep" / "compare" / "index.html").exists()


def known(number: int, uri: str = "http://here:5000/") -> Digest:
    run = Digest(Path(), str(number), verdicts={"frame": "healthy"})
    run.__dict__["mirrored"] = {"mlflow_run_id": f"{number:032x}", "experiment_id": "1", "uri": uri}
    return run


def test_links_are_for_what_one_server_has_and_no_longer_than_a_page_can_show() -> None:
    few = served.link([known(1), known(2), known(3, "sqlite:///elsewhere")])
    assert few is not None
    assert few.startswith("http://here:5000/#/compare-runs?runs=%5B%22000")
    assert few.endswith("&experiments=%5B%221%22%5D")
    many = served.link([known(number) for number in range(1000)])
    assert many is not None
    assert many.count("%22") // 2 - 1 == served.LINKED
    assert served.link([known(1)]) is None
    curves = served.curves_link([known(1), known(2)])
    assert curves is not None
    assert json.loads(parse_qs(curves)["plot_metric_keys"][0]) == ["collapse/frame/std_ratio"]


def test_what_a_reference_can_be() -> None:
    assert served.looks_like_id("0123456789abcdef" * 2)
    assert not served.looks_like_id("collapse-2")
    assert served.looks_like_filter("params.seed = '0'")
    assert served.looks_like_filter("tags.x LIKE 'a%'")
    assert not served.looks_like_filter("runs/lively-study")
