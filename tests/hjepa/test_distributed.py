"""Two gloo processes against one: they run this file, and the tests look at what they wrote."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hjepa import distributed
from hjepa.contracts import Here, Pair, Spec
from hjepa.errors import Mistake
from hjepa.randomness import Key
from hjepa.schedules import Schedule
from hjepa_prevention.ema import Ema
from hjepa_prevention.sigreg import Sigreg
from hjepa_prevention.vicreg import Vicreg

OVERS = ("all", "step", "batch", "time")
PENALTIES = {f"vicreg-{over}": (Vicreg, {"over": over}) for over in OVERS}
PENALTIES |= {f"sigreg-{over}": (Sigreg, {"over": over, "slices": 32}) for over in OVERS}
PENALTIES |= {
    "vicreg-dimension": (Vicreg, {"covariance_by": "dimension", "projector": (9, 40)}),
    "sigreg-projected": (Sigreg, {"times_rows": False, "projector": (9, 3)}),
}


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return 0.7 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def own(whole: Tensor, first: int) -> Tensor:
    """This rank's rows, where the first of two has `first`; all of them where there is one rank."""
    return whole if distributed.world() == 1 else whole.split([first, len(whole) - first])[distributed.rank()]


def penalised(case: str, embeddings: Tensor, first: int) -> dict[str, Tensor]:
    """The loss of a batch and its gradients, as the mean over ranks."""
    torch.manual_seed(0)
    make, options = PENALTIES[case]
    model = nn.ModuleList([nn.Linear(5, 6), make(Spec(6), **options)])
    seen = model[0](own(embeddings, first))
    here = Here(lambda: None, lambda: None, lambda encoder: None, Key.of(0), Key.of(0, "frame", 3), 3)
    value = sum(model[1].terms(Pair(seen, seen, seen), here).values())
    value.backward()
    distributed.average_gradients(model.parameters())
    result = {f"gradient.{name}": parameter.grad for name, parameter in model.named_parameters()}
    return result | {"value": distributed.sum_ranks(value.detach()) / distributed.world()}


def penalties() -> dict[str, Tensor]:
    cases = {case: (drawn(6, 3, 2, 5), 3) for case in PENALTIES}
    results = {case: penalised(case, *batch) for case, batch in cases.items()}
    results |= {f"{case}-packed": penalised(case, drawn(7, 5), 5) for case in ("vicreg-all", "sigreg-all")}
    return {f"{case}/{name}": value for case, result in results.items() for name, value in result.items()}


def rows_used_differently() -> dict[str, Tensor]:
    """Each rank weighs all rows by its own weights."""
    x = own(torch.arange(14.0).view(7, 2), 5).clone().requires_grad_()
    rows = distributed.gather_rows(x)
    (rows * drawn(7, 2, seed=distributed.rank())).sum().backward()
    return {"rows": rows.detach(), "rows.gradient": x.grad / distributed.world()}


def gradients() -> dict[str, Tensor]:
    """One of float64, one that only rank 0 has, one that nobody has, one that is frozen; in small buckets."""
    distributed.BUCKET = 4
    parameters = [nn.Parameter(torch.zeros(3, 2)) for _ in range(4)] + [nn.Parameter(torch.zeros(2).double())]
    parameters[3].requires_grad_(False)
    rank = distributed.rank()
    parameters[0].grad = torch.full((3, 2), 1.0 + rank)
    parameters[1].grad = torch.full((3, 2), 6.0) if rank == 0 else None
    parameters[4].grad = torch.full((2,), 1e-12 * (1 + rank)).double()
    distributed.average_gradients(parameters)
    given = torch.tensor([p.grad is not None for p in parameters])
    return {"given": given} | {f"mean.{k}": p.grad for k, p in enumerate(parameters) if p.grad is not None}


def teacher() -> dict[str, Tensor]:
    torch.manual_seed(0)
    encoder = nn.Linear(5, 6)
    ema = Ema(Spec(6), momentum=Schedule.of(0.9))
    ema.bind(encoder)
    for step in range(5):
        encoder.zero_grad()
        encoder(own(drawn(8, 5, seed=step), 4)).square().mean().backward()
        distributed.average_gradients(encoder.parameters())
        with torch.no_grad():
            for parameter in encoder.parameters():
                parameter -= 0.1 * parameter.grad
        ema.after_step(step)
    return {f"teacher.{name}": value for name, value in ema.teacher.state_dict().items()}


def one_by_itself() -> dict[str, Tensor]:
    """What rank 0 computes while the other goes on: it would wait for an answer, or take another's."""
    result = {}
    if distributed.rank() == 0:
        with distributed.alone():
            x = drawn(3, 2)
            result = {"alone.rows": distributed.gather_rows(x), "alone.sum": distributed.sum_ranks(x.sum())}
    together = distributed.sum_ranks(torch.ones(()))
    return result | {"together": together}


def everything() -> dict[str, Tensor]:
    return penalties() | rows_used_differently() | gradients() | teacher() | one_by_itself()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    folder = tmp_path_factory.mktemp("ranks")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, str(folder)]
    processes = [subprocess.Popen([*command, str(rank)], env=environment) for rank in range(2)]
    assert [process.wait(120) for process in processes] == [0, 0]
    return [load_file(folder / f"{rank}.safetensors") for rank in range(2)]


@pytest.fixture(scope="module")
def alone() -> dict[str, Tensor]:
    return penalties()


@pytest.mark.parametrize("case", [*PENALTIES, "vicreg-all-packed", "sigreg-all-packed"])
def test_the_mean_over_ranks_is_the_loss_of_the_whole_batch(
    case: str, alone: dict[str, Tensor], ranks: list[dict[str, Tensor]]
) -> None:
    """P15, the gradient of every parameter included."""
    expected = {name: value for name, value in alone.items() if name.startswith(f"{case}/")}
    assert len(expected) >= 3
    for name, value in expected.items():
        for rank in ranks:
            torch.testing.assert_close(rank[name], value, rtol=1e-5, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")


def test_a_row_gets_the_gradient_of_every_rank_that_used_it(ranks: list[dict[str, Tensor]]) -> None:
    for rank in ranks:
        assert torch.equal(rank["rows"], torch.arange(14.0).view(7, 2))
    mean = (drawn(7, 2, seed=0) + drawn(7, 2, seed=1)) / 2
    torch.testing.assert_close(torch.cat([rank["rows.gradient"] for rank in ranks]), mean)


def test_gradients_become_their_mean_over_ranks(ranks: list[dict[str, Tensor]]) -> None:
    for rank in ranks:
        assert rank["given"].tolist() == [True, True, False, False, True]
        assert rank["mean.0"].eq(1.5).all()
        assert rank["mean.1"].eq(3).all()
        torch.testing.assert_close(rank["mean.4"], torch.full((2,), 1.5e-12).double(), rtol=1e-6, atol=0)


def test_teachers_stay_equal_to_the_last_bit_and_are_those_of_one_process(ranks: list[dict[str, Tensor]]) -> None:
    """P25."""
    for name, value in teacher().items():
        assert torch.equal(ranks[0][name], ranks[1][name])
        torch.testing.assert_close(ranks[0][name], value, rtol=1e-5, atol=1e-6)


def test_one_process_may_compute_by_itself(ranks: list[dict[str, Tensor]]) -> None:
    assert torch.equal(ranks[0]["alone.rows"], drawn(3, 2)) and torch.equal(ranks[0]["alone.sum"], drawn(3, 2).sum())
    assert [rank["together"].item() for rank in ranks] == [2, 2]


def test_one_process_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(3, 2, requires_grad=True)
    assert distributed.gather_rows(x) is x
    assert distributed.sum_ranks(x) is x
    parameter = nn.Parameter(torch.zeros(2))
    distributed.average_gradients([parameter])
    assert parameter.grad is None
    for size in (None, "1"):
        monkeypatch.delenv("WORLD_SIZE", raising=False)
        if size:
            monkeypatch.setenv("WORLD_SIZE", size)
        distributed.start()
        assert (distributed.world(), distributed.rank()) == (1, 0)
        distributed.stop()


def test_half_of_an_environment_is_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(Mistake, match=r"WORLD_SIZE is set but MASTER_ADDR, MASTER_PORT not: .* torchrun"):
        distributed.start()


def test_a_whole_environment_starts_the_group(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    monkeypatch.setattr(dist, "init_process_group", started.append)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    distributed.start()
    assert started == ["gloo"]


if __name__ == "__main__":
    folder, rank = Path(sys.argv[1]), int(sys.argv[2])
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    save_file({name: value.contiguous() for name, value in everything().items()}, folder / f"{rank}.safetensors")
    distributed.stop()
