"""Where trials are stored: torn journals are mended, and a claim ends with its holder."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from sweeps import REGISTRY, quiet, states, until
from sweeps import done as done
from sweeps import postgres as postgres

from hjepa.errors import Mistake
from hjepa.sweep import Sweep, claims

# --- a torn journal ---------------------------------------------------------------------------------------------------


def test_a_journal_cut_at_every_byte_of_its_last_record_opens_and_goes_on(done: Sweep, tmp_path: Path):
    whole = (done.folder / "optuna.journal").read_bytes()
    start = whole.rfind(b"\n", 0, -1) + 1
    path = tmp_path / "optuna.journal"
    for end in range(start, len(whole) + 1):
        path.write_bytes(whole[:end])
        told = end == len(whole)
        assert _states(tmp_path) == ["COMPLETE", "COMPLETE", "COMPLETE" if told else "RUNNING"]
        storage, _ = claims.opened(tmp_path, None)
        storage.create_new_trial(0)
        assert _states(tmp_path) == ["COMPLETE", "COMPLETE", "COMPLETE" if told else "RUNNING", "RUNNING"], f"cut at {end}"


def _states(folder: Path) -> list[str]:
    storage, _ = claims.opened(folder, None)
    return [trial.state.name for trial in storage.get_all_trials(0)]


def test_a_journal_cut_anywhere_opens_and_goes_on(done: Sweep, tmp_path: Path):
    """Records of every kind, torn in the middle and at their end."""
    whole = (done.folder / "optuna.journal").read_bytes()
    path, end = tmp_path / "optuna.journal", 0
    for line in whole.splitlines(keepends=True):
        for cut in (end + len(line) // 2, end + len(line) - 1):
            path.write_bytes(whole[:cut])
            storage, _ = claims.opened(tmp_path, None)
            storage.create_new_study([], f"at {cut}")
            claims.opened(tmp_path, None)
            assert path.read_bytes().startswith(whole[:end])
        end += len(line)


def test_a_trial_whose_last_word_is_torn_is_told_again(done: Sweep, tmp_path: Path):
    folder = tmp_path / done.folder.name
    shutil.copytree(done.folder, folder)
    whole = (folder / "optuna.journal").read_bytes()
    (folder / "optuna.journal").write_bytes(whole[:-20])
    again = Sweep(folder, REGISTRY)
    again.work(3, quiet)
    assert states(again) == ["COMPLETE"] * 3
    assert [trial.values for trial in again.trials] == [trial.values for trial in done.trials]


@pytest.mark.parametrize("line", [b"nonsense\n", b"[1]\n", b"{}\n", b"\xff\xfe\n", b"17\n"])
def test_a_journal_with_another_line_before_its_end_is_one_mistake(line: bytes, done: Sweep, tmp_path: Path):
    first, *others = (done.folder / "optuna.journal").read_bytes().splitlines(keepends=True)
    path = tmp_path / "optuna.journal"
    path.write_bytes(b"".join([first, line, *others]))
    whole = path.read_bytes()
    with pytest.raises(Mistake, match=r"optuna\.journal: .*damaged"):
        claims.opened(tmp_path, None)
    assert path.read_bytes() == whole


# --- a database -------------------------------------------------------------------------------------------------------


def test_a_postgresql_claim_ends_with_its_holder(tmp_path: Path, postgres: str):
    (_, first), (_, second) = (claims.opened(tmp_path, postgres) for _ in range(2))
    assert first.take(3)
    assert not second.take(3)
    assert second.take(4)
    first._connection.invalidate()  # type: ignore[attr-defined]
    assert until(lambda: second.take(3), 10)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("nowhere", "a URL is needed"),
        ("postgresql://nobody@127.0.0.1:1/x", "the database cannot be used"),
        ("oracle+none://x", "--storage"),
    ],
)
def test_a_database_that_cannot_be_used_is_one_mistake(url: str, said: str, tmp_path: Path):
    pytest.importorskip("psycopg")
    with pytest.raises(Mistake, match=said):
        claims.opened(tmp_path, url)
