"""Where does a training step of I-JEPA and of V-JEPA spend its time, and how does it compare with a plain one?

ViT-T/16 on pictures of 224 pixels, 4 targets, predictor 6 x 192; and on clips of 16 frames of 112 pixels, tubelets of 2, rotary
positions, two families of masks, predictor 12 x 384. The plain step is that of `plain_masked`, from the same weights, on the same
masks, whose sets are cut to one length, as it needs them; three losses in a row agree, so forward, backward, optimizer and teacher do.
`its own masks` is hjepa's step without that cut, which computes more; `shared context` that of a predictor that computes the context
once for all targets, which is another model. For the phases the parts are watched from outside. `kept` is what autograd keeps for the
backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import plain_masked as plain
from benchmarks.harness import Bench, Own, run
from benchmarks.penalties import kept
from benchmarks.step import Watch
from hjepa import flops, loading, registry, runs, study
from hjepa.contracts import Batch, Packed
from hjepa.nn import grid_positions, sincos
from hjepa.train import Trainer

PHASES = ("target", "context", "predictor", "backward", "gradient norm", "optimizer and teacher")
LR, MOMENTUM = 1e-4, 0.99
Masks = dict[str, list[Packed]]


class Case(NamedTuple):
    """One of the two models, at one size of batch."""

    name: str
    batch: int
    frames: int
    side: int
    encoder: dict[str, Any]
    predictor: dict[str, Any]
    masking: dict[str, Any]
    energy: str


IMAGE = {"name": "vit", "size": "tiny", "patch": 16}
CLIP = {**IMAGE, "tubelet": 2, "rotary": True}
FILL = {"name": "mask_tokens", "width": 192, "depth": 6, "heads": 3}
FILL_CLIP = {"name": "mask_tokens", "width": 384, "depth": 12, "heads": 12, "rotary": True}
CASES = (
    Case("I-JEPA, batch 16", 16, 1, 224, IMAGE, FILL, {"name": "multiblock"}, "smooth_l1"),
    Case("I-JEPA, batch 64", 64, 1, 224, IMAGE, FILL, {"name": "multiblock"}, "smooth_l1"),
    Case("V-JEPA, batch 4", 4, 16, 112, CLIP, FILL_CLIP, {"name": "multiblock3d"}, "l1"),
)
THIN = {"width": 24, "depth": 2, "heads": 2}
QUICK = (
    Case("I-JEPA", 3, 1, 96, {**IMAGE, **THIN}, {**FILL, **THIN}, {"name": "multiblock", "min_keep": 4}, "smooth_l1"),
    Case("V-JEPA", 2, 4, 64, {**CLIP, **THIN}, {**FILL_CLIP, **THIN}, {"name": "multiblock3d"}, "l1"),
)


def trainer(case: Case, folder: Path, device: torch.device, shared: bool) -> Trainer:
    plugins, name = registry.load(), f"{case.name} {shared}"
    level = {
        "name": "masked",
        "stride": case.frames,
        "encoder": case.encoder,
        "predictor": {**case.predictor, "shared_context": shared},
        "masking": case.masking,
        "energy": case.energy,
        "prevention": [{"name": "ema", "momentum": MOMENTUM}],
    }
    data = {"name": "arrays", "path": str(folder / f"{case.name}.npy"), "batch": case.batch}
    train = {"device": device.type, "optimizer": {"name": "adamw", "lr": LR}}
    written = study.parse({"data": {"seen": data}, "levels": {"part": level}, "train": train}, plugins, name)
    written.complain()
    return Trainer(written, runs.create(written, folder / name, plugins), plugins, print)


def pixels_of(case: Case, folder: Path) -> None:
    shape = (2 * case.batch + 8, case.frames, 3, case.side, case.side)
    np.save(folder / f"{case.name}.npy", np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))


# --- one side and the other -------------------------------------------------------------------------------------------


def cut(several: Sequence[Packed]) -> list[Packed]:
    """Each set to the length of the shortest: of the contexts, and of all targets."""
    context, *targets = several
    shortest = min(int(target.lengths.min()) for target in targets)
    return [_first(context, int(context.lengths.min())), *(_first(target, shortest) for target in targets)]


def _first(of: Packed, count: int) -> Packed:
    starts = of.lengths.cumsum(0) - of.lengths
    own = (starts[:, None] + torch.arange(count, device=starts.device)).flatten()
    return replace(of, values=of.values[own], positions=of.positions[own], lengths=torch.full_like(of.lengths, count))


@contextmanager
def masked_by(made: Trainer, masks: Masks) -> Iterator[None]:
    with patch.object(made.stack.levels["part"].masking, "sample", lambda key, valid=None: masks):
        yield


def masks_of(made: Trainer, batches: Mapping[str, Batch]) -> Masks:
    """Those that the next step draws."""
    masking, seen = made.stack.levels["part"].masking, []
    drawn = masking.sample

    def sample(key: Any, valid: Tensor | None = None) -> Masks:
        seen.append(drawn(key, valid))
        return seen[-1]

    with patch.object(masking, "sample", sample), torch.no_grad():
        made.stack(batches, 0)
    return seen[0]


def plain_of(case: Case, made: Trainer) -> plain.Plain:
    """The plain model with the same weights."""
    level = made.stack.levels["part"]
    encoder, predictor, device = level.encoder, level.predictor, made.device
    places = grid_positions(encoder.spec.grid, device)
    tables = [None if encoder.head else sincos(places, width) for width in (encoder.spec.width, predictor.width)]
    sizes = [
        (len(part.blocks), one.attention.heads)
        for part, one in ((encoder, encoder.blocks["block1"]), (predictor, predictor.blocks[0]))
    ]
    own = plain.Encoder(_patches(encoder, case), encoder.spec.width, *sizes[0], places, tables[0])
    fill = plain.Predictor(encoder.spec.width, predictor.width, *sizes[1], len(predictor.tokens), places, tables[1])
    _copied([(own.norm, encoder.norm), (fill.norm, predictor.norm), (fill.embed, predictor.embed), (fill.out, predictor.out)])
    for copies, blocks in ((own.blocks, encoder.blocks.values()), (fill.blocks, predictor.blocks)):
        for to, block in zip(copies, blocks, strict=True):
            _same_block(to, block)
    return plain.Plain(own.to(device), fill.to(device), case.energy == "smooth_l1", MOMENTUM, LR)


def _patches(encoder: Any, case: Case) -> nn.Module:
    """The embedding as a convolution of whole pictures or clips."""
    patch, frames = encoder.patch, encoder.embed.in_features // encoder.patch**2 // 3
    kind, size = (nn.Conv2d, (patch, patch)) if case.frames == 1 else (nn.Conv3d, (frames, patch, patch))
    found = kind(3, encoder.spec.width, size, stride=size)  # type: ignore[operator]
    weight = encoder.embed.weight.detach().view(-1, frames, 3, patch, patch).transpose(1, 2)
    found.weight.data.copy_(weight.reshape(found.weight.shape))
    found.bias.data.copy_(encoder.embed.bias)
    return found


def _same_block(to: plain.Block, block: Any) -> None:
    _copied(
        [
            (to.first, block.attention_norm.norm),
            (to.second, block.mlp_norm.norm),
            (to.attention.project, block.attention.project),
            (to.attention.out, block.attention.out),
            (to.mlp[0], block.mlp.layers[0]),
            (to.mlp[2], block.mlp.layers[2]),
        ]
    )


def _copied(pairs: Sequence[tuple[nn.Module, nn.Module]]) -> None:
    for to, module in pairs:
        to.load_state_dict(module.state_dict())


def indices(masks: Masks) -> plain.Families:
    return [
        (family[0].values.view(len(family[0].lengths), -1), [one.values.view(len(one.lengths), -1) for one in family[1:]])
        for family in masks.values()
    ]


# --- what is measured -------------------------------------------------------------------------------------------------


def phases(bench: Bench, made: Trainer, batches: Mapping[str, Batch], masks: Masks) -> Own:
    """Seconds of one step, by what it does."""
    watch, level = Watch(bench), made.stack.levels["part"]
    teacher = level.preventions.parts["ema"].teacher
    watched: list[tuple[Any, str, str]] = [
        (teacher, "forward", "target"),
        (level.encoder, "encode_kept", "context"),
        (level.predictor, "forward", "predictor"),
        (torch.Tensor, "backward", "backward"),
        (nn.utils, "get_total_norm", "gradient norm"),
        (made.optimizer.optimizer, "step", "optimizer and teacher"),
        (made.stack, "after_step", "optimizer and teacher"),
    ]
    with ExitStack() as patches, masked_by(made, masks):
        for owner, method, phase in watched:
            patches.enter_context(watch.method(owner, method, phase))
        with watch.phase("masks, energies and the rest"):
            made.step(0, batches)
    return Own({phase: watch.seconds[phase] for phase in (*PHASES, "masks, energies and the rest")})


def compare(bench: Bench, case: Case, folder: Path) -> None:
    pixels_of(case, folder)
    own = trainer(case, folder, bench.device, shared=False)
    _, batches = next(loading.batches(own.sources, range(1), 0, bench.device))
    masks = {family: cut(several) for family, several in masks_of(own, batches).items()}
    seen, families, other = batches["seen"]["frames"], indices(masks), plain_of(case, own)
    pixels = seen[:, 0] if case.frames == 1 else seen.transpose(1, 2)

    def step(made: Trainer, given: Masks | None) -> float:
        if given is None:
            return float(made.step(0, batches)["part"].terms["prediction"].detach())
        with masked_by(made, given):
            return step(made, None)

    agree(case.name, lambda: step(own, masks), lambda: other.step(pixels, families))
    cases: dict[str, Callable[[], object]] = {
        "equal": lambda: step(own, masks),
        "plain": lambda: other.step(pixels, families),
        "own": lambda: step(own, None),
        "phases": lambda: phases(bench, own, batches, masks),
    }
    told = {"equal": "step", "own": "step with its own masks"}
    if any(len(targets) > 1 for _, targets in families):
        shared = trainer(case, folder, bench.device, shared=True)
        cases["shared"], told["shared"] = lambda: step(shared, masks), "step with a shared context"
    rows = bench.rounds(cases, count=5)
    for which, what in told.items():
        bench.figure(f"{case.name}: {what}", "s", [row[which] for row in rows], [row["plain"] for row in rows])
    for phase in (*PHASES, "masks, energies and the rest"):
        bench.figure(f"{case.name}: of its own {phase}", "ms", [1e3 * row[phase] for row in rows])
    with masked_by(own, masks):
        work = flops.counted(lambda: own.forward_backward(0, batches)) / 1e9
        keeps = kept(lambda x: own.stack(batches, 0)["part"].terms["prediction"], seen)
    plain_work = flops.counted(lambda: other.loss(pixels, families).backward()) / 1e9
    bench.figure(f"{case.name}: work of a step", "GFLOP", [work], [plain_work])
    bench.figure(f"{case.name}: kept", "MB", [keeps], [kept(lambda x: other.loss(pixels, families), pixels)])
    rates = {"equal": work, "plain": plain_work}
    shares = [[100 * each / row[side] / row["gemm"] for row in rows] for side, each in rates.items()]
    bench.figure(f"{case.name}: share of the rate of a matrix product", "%", *shares, rate=True)


def agree(name: str, own: Callable[[], float], other: Callable[[], float]) -> None:
    """Three steps of each: the same loss, and then the same weights and the same teacher."""
    for count in range(3):
        losses = own(), other()
        assert abs(losses[0] - losses[1]) < (1e-5 if count == 0 else 1e-4), f"{name}: losses {losses} at step {count}"


def measure(bench: Bench) -> None:
    with TemporaryDirectory() as folder:
        for case in QUICK if bench.quick else CASES:
            compare(bench, case, Path(folder))


def main(arguments: Sequence[str] | None = None) -> None:
    run(__file__, str(__doc__), measure, arguments)


if __name__ == "__main__":
    main()
