"""Levels that fill in what is masked: images, clips with two families, clips below a forecast, text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import contract_lab as lab
import torch
import torch.nn.functional as F

from hjepa.contracts import Batch, Packed, States
from hjepa.nn.packing import row_keys, sets
from hjepa.train import Trainer

Trained = Callable[[str], Path]


def masks(of: Trainer, label: str, batch: Batch) -> dict[str, list[Packed]]:
    """What a level masks of a batch."""
    source = of.stack.nodes[label].source
    here = lab.here(of.stack, label, {source: batch})
    states: States = of.stack.levels[label].encode(here.below)
    valid = None if states.valid is None else states.valid.flatten(0, 1)
    return of.stack.levels[label].masking.sample(row_keys(here.key, states.time), valid)


def chosen(of: Packed, tokens: int) -> torch.Tensor:
    """(rows, N): which tokens are in the set of each row."""
    result = torch.zeros(len(of.lengths), tokens, dtype=torch.int64)
    result[of.row[sets(of)], of.values[:, 0]] += 1
    return result


def counted(calls: Counter[str], name: str) -> Callable[..., None]:
    def count(*seen: Any) -> None:
        calls[name] += 1

    return count


def test_contexts_differ_in_length_and_nothing_is_cut_or_padded(trained: Trained) -> None:
    made = lab.restored(trained("i_jepa"))
    context, *targets = masks(made, "part", lab.batches(made)["pictures"])["block"]
    assert len(set(context.lengths.tolist())) > 1
    assert len(targets) == 3 and all(target.lengths.tolist() == [4] * 4 for target in targets)
    hidden = sum(chosen(target, 16) for target in targets)
    assert torch.equal(chosen(context, 16), (hidden == 0).long())
    seen = made.stack.levels["part"].encoder.encode_kept(lab.here(made.stack, "part", lab.batches(made)).below, context)
    assert len(seen.values) == context.lengths.sum() and torch.equal(seen.positions, context.positions)


def test_a_mask_is_its_samples_own(trained: Trained) -> None:
    """P7: whatever is beside a sample in its batch, and in whatever order."""
    made = lab.restored(trained("masked_under_forecast"))
    batch = lab.batches(made)["video"]
    order = torch.tensor([2, 0])
    some = {name: tensor[order] for name, tensor in batch.items()}
    for whole, part in zip(masks(made, "clip", batch)["tube"], masks(made, "clip", some)["tube"], strict=True):
        rows = chosen(whole, 32).view(4, 4, 32)
        assert torch.equal(chosen(part, 32).view(2, 4, 32), rows[order])
        assert len(rows.flatten(0, 1).unique(dim=0)) > 4  # and each clip of a sample has its own


def test_what_is_masked_is_gone_before_anything_is_mixed(trained: Trained) -> None:
    made = lab.restored(trained("i_jepa"))
    encoder = made.stack.levels["part"].encoder
    below = lab.here(made.stack, "part", lab.batches(made)).below
    context, *targets = masks(made, "part", lab.batches(made)["pictures"])["block"]
    hidden = (sum(chosen(target, 16) for target in targets) > 0).view(4, 1, 1, 4, 4)
    noise = hidden.repeat_interleave(4, 3).repeat_interleave(4, 4) * torch.rand_like(below.maps[0])
    changed = replace(below, maps=(below.maps[0] + noise,))
    assert torch.equal(encoder.encode_kept(below, context).values, encoder.encode_kept(changed, context).values)
    assert not torch.allclose(encoder(below).tokens, encoder(changed).tokens)


def test_to_keep_everything_is_to_encode_everything(trained: Trained) -> None:
    made = lab.restored(trained("v_jepa"))
    encoder = made.stack.levels["part"].encoder
    below = lab.here(made.stack, "part", lab.batches(made)).below
    context, target = masks(made, "part", lab.batches(made)["clips"])["long"]
    index = torch.arange(32).repeat(4)
    everything = Packed(index[:, None], torch.full((4,), 32), context.positions[:1].expand(128, -1), context.row)
    kept = encoder.encode_kept(below, everything).values
    torch.testing.assert_close(kept.view(4, 1, 32, -1), encoder(below).tokens)
    assert torch.equal(chosen(context, 32) + chosen(target, 32), torch.ones(4, 32, dtype=torch.int64))


def test_the_teacher_looks_once_a_step_for_both_families(tmp_path: Path) -> None:
    made = lab.trainer("v_jepa", tmp_path / "run")
    level, calls = made.stack.levels["part"], Counter[str]()
    (teacher,) = (module for name, module in level.named_modules() if name.endswith("teacher"))
    teacher.register_forward_hook(counted(calls, "teacher"))
    level.encoder.register_forward_hook(counted(calls, "whole"))
    level.encoder.embed.register_forward_hook(counted(calls, "contexts"))
    level.predictor.register_forward_hook(counted(calls, "predictor"))
    made.monitor.look = lambda *seen, **more: made.look
    outcome = lab.steps(made, 1)[0]["part"]
    assert calls == {"teacher": 1, "contexts": 2, "predictor": 2}
    assert level.masking.families == ("short", "long")
    assert all(token.grad.abs().sum() > 0 for token in level.predictor.masked.values())
    assert outcome.energy.shape == outcome.trivial.shape == (4, 1)


def test_a_forecast_reads_the_pooled_clips(trained: Trained) -> None:
    made = lab.restored(trained("masked_under_forecast"))
    below = lab.here(made.stack, "course", lab.batches(made)).below
    assert below.tokens.shape == (4, 4, 32, 16) and below.time[0].tolist() == [1, 3, 5, 7]
    made.optimizer.optimizer.zero_grad()
    outcomes = made.stack(lab.batches(made), 0)
    outcomes["course"].terms["prediction"].backward()
    assert made.stack.levels["clip"].encoder.embed.weight.grad.abs().sum() > 0


def test_targets_are_the_mean_of_the_teachers_last_normed_layers(trained: Trained) -> None:
    made = lab.restored(trained("text"))
    level, batch = made.stack.levels["phrase"], lab.batches(made)
    here = lab.here(made.stack, "phrase", batch)
    (teacher,) = (module for name, module in level.named_modules() if name.endswith("teacher"))
    features = teacher(here.below, ("block2", "block3"))
    wanted = (F.layer_norm(features.layers["block2"], (16,)) + F.layer_norm(features.tokens, (16,))) / 2
    targets = level.targets(here)
    torch.testing.assert_close(targets.tokens, wanted)
    assert not targets.tokens.requires_grad


def test_words_that_are_not_there_are_neither_told_nor_shown(trained: Trained) -> None:
    made = lab.restored(trained("text"))
    batch = lab.batches(made)["phrases"]
    valid = batch["text_valid"]
    assert 0 < (~valid).sum() < valid.numel() / 2
    context, *targets = masks(made, "phrase", batch)["span"]
    assert torch.equal(chosen(context, 12) + (sum(chosen(t, 12) for t in targets) > 0).long(), valid.long())
    assert all(target.lengths.tolist() == [3] * 4 for target in targets)
    spoiled = {**batch, "text": torch.where(valid, batch["text"], 1 - batch["text"] % 2)}
    one, other = (made.stack({"phrases": given}, 0)["phrase"] for given in (batch, spoiled))
    assert torch.equal(one.energy, other.energy)


def test_a_condition_leads_what_is_filled_in(trained: Trained) -> None:
    made = lab.restored(trained("text"))
    batch = lab.batches(made)["phrases"]
    other = {**batch, "topic": batch["topic"].flip(0)}
    energies = [made.stack({"phrases": given}, 0)["phrase"].energy for given in (batch, other)]
    assert not torch.allclose(*energies)
