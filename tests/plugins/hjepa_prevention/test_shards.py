"""One, two and four gloo processes: forks of one process each run a share of the batch, and the tests look at what they wrote."""

from __future__ import annotations

import multiprocessing
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
from hjepa.contracts import Here, Pair, Spec, States
from hjepa.randomness import Key
from hjepa_prevention.barlow import Barlow
from hjepa_prevention.dino import Dino
from hjepa_prevention.hinge import Hinge
from hjepa_prevention.infonce import Infonce
from hjepa_prevention.inverse_dynamics import InverseDynamics
from hjepa_prevention.sigreg import Sigreg
from hjepa_prevention.temporal_similarity import TemporalSimilarity
from hjepa_prevention.vicreg import Vicreg
from hjepa_prevention.wmse import Wmse

WORLDS = (2, 4)
WIDTH = 6
CASES = {
    f"{kind.__name__}-{over}": (kind, {"over": over, **options})
    for kind, options in (
        (Vicreg, {"inv": 2.0}),
        (Sigreg, {"slices": 32}),
        (Barlow, {}),
        (Infonce, {"symmetric": True, "negatives": "both"}),
        (Wmse, {"shrink": 0.1}),
    )
    for over in ("all", "step", "batch", "time")
} | {
    "Vicreg-projected": (Vicreg, {"projector": (9, 40), "covariance_by": "dimension", "inv": 25.0}),
    "Infonce-queue": (Infonce, {"queue": 40, "projector": (9, 5)}),
    "Wmse-parts": (Wmse, {"size": 8, "partitions": 2, "normalise": False}),
    "Hinge": (Hinge, {"projector": (9, 5)}),
    "Dino": (Dino, {"prototypes": 12, "projector": (9, 5), "centring": 0.5}),
    "InverseDynamics": (InverseDynamics, {"hidden": 8}),
    "TemporalSimilarity": (TemporalSimilarity, {}),
}
PACKED = ("Vicreg-all", "Sigreg-all", "Barlow-all", "Infonce-all", "Infonce-queue", "Wmse-all", "Wmse-parts", "Hinge", "Dino")
"""Those that rows of different number on each rank are tried with as well."""


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return 0.7 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def own(whole: Tensor, packed: bool) -> Tensor:
    """The rows of this rank: as many as those of any other, unless they are packed."""
    world, rank = distributed.world(), distributed.rank()
    if not packed:
        return whole.chunk(world)[rank]
    ends = [0, *(3 * (k + 1) + k for k in range(world - 1)), len(whole)]
    return whole[ends[rank] : ends[rank + 1]]


def penalised(case: str, packed: bool = False) -> dict[str, Tensor]:
    """A step, three where something is kept: the mean over ranks of each value, the gradients of the last, and what is kept."""
    torch.manual_seed(0)
    kind, options = CASES[case]
    model = nn.ModuleList([nn.Linear(5, WIDTH), nn.Linear(5, WIDTH), kind(Spec(WIDTH, grid=(2,), actions=3), **options)])
    follow = getattr(model[2], "after_step", None)
    result = {}
    for step in range(3 if follow else 1):
        model.zero_grad()
        value = sum(model[2].terms(*given(model, packed, step)).values())
        value.backward()
        distributed.average_gradients(model.parameters())
        result[f"value.{step}"] = distributed.sum_ranks(value.detach()) / distributed.world()
        if follow:
            torch.no_grad()(follow)(step)
    result |= {f"gradient.{name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
    return result | {f"kept.{name}": value.float() for name, value in model[2].state_dict().items()}


def given(model: nn.ModuleList, packed: bool, step: int) -> tuple[Pair, Here]:
    """This rank's share of what two encoders make of the batch of a step."""
    shape = (17, 5) if packed else (8, 3, 2, 5)
    prediction, target = (model[k](own(drawn(*shape, seed=10 * step + k), packed)) for k in (0, 1))
    actions = None if packed else own(drawn(8, 2, 3, seed=step + 7), packed)
    states = States(target, torch.zeros(target.shape[:2], dtype=torch.int64), actions=actions)
    here = Here(lambda: states, lambda: states, lambda encoder: None, Key.of(0), Key.of(0, "frame", step), step)
    return Pair(prediction, target, target), here


def everything() -> dict[str, Tensor]:
    results = {case: penalised(case) for case in CASES} | {f"{case}-packed": penalised(case, packed=True) for case in PACKED}
    return {f"{case}/{name}": value.contiguous() for case, result in results.items() for name, value in result.items()}


def rank_of(folder: Path, rank: int, world: int) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store{world}", rank=rank, world_size=world)
    save_file(everything(), folder / f"{world}.{rank}.safetensors")
    distributed.stop()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Tensor]]]:
    folder = tmp_path_factory.mktemp("ranks")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, __file__, str(folder)], env=environment, check=True, timeout=240)
    return {world: [load_file(folder / f"{world}.{rank}.safetensors") for rank in range(world)] for world in WORLDS}


@pytest.fixture(scope="module")
def alone() -> dict[str, Tensor]:
    return everything()


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("case", [*CASES, *(f"{case}-packed" for case in PACKED)])
def test_shards_do_together_what_one_process_does(
    case: str, world: int, alone: dict[str, Tensor], ranks: dict[int, list[dict[str, Tensor]]]
) -> None:
    """P15: the mean over ranks of the values, the gradient of every parameter, queues and centres."""
    expected = {name: value for name, value in alone.items() if name.startswith(f"{case}/")}
    assert sum("gradient" in name for name in expected) >= 2
    for rank in ranks[world]:
        assert {name for name in rank if name.startswith(f"{case}/")} == set(expected)
        for name, value in expected.items():
            torch.testing.assert_close(rank[name], value, rtol=2e-4, atol=2e-5, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("case", ["Infonce-queue", "Dino", "Infonce-queue-packed", "Dino-packed"])
def test_what_is_kept_is_equal_on_all_ranks(case: str, world: int, ranks: dict[int, list[dict[str, Tensor]]]) -> None:
    """P25."""
    names = [name for name in ranks[world][0] if name.startswith(f"{case}/kept.")]
    assert any(name.endswith((".queue", ".centre")) for name in names)
    for rank in ranks[world][1:]:
        for name in names:
            assert torch.equal(rank[name], ranks[world][0][name]), name


if __name__ == "__main__":
    torch.set_num_threads(1)
    forks = multiprocessing.get_context("fork")  # before anything is computed: torch is imported once
    for size in WORLDS:
        processes = [forks.Process(target=rank_of, args=(Path(sys.argv[1]), rank, size)) for rank in range(size)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        if any(process.exitcode for process in processes):
            sys.exit(1)
