"""A prefix stands for a written prompt, for embeddings, or for what the library `peft` puts there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

torch = pytest.importorskip("torch")

from reproductions.lab import seq_ops  # noqa: E402
from reproductions.lab.seeding import generator, init_model  # noqa: E402
from tests.reproductions.loading import load  # noqa: E402
from tests.reproductions.test_prompt_tuning import as_gpt2, random_model, task_data  # noqa: E402

if TYPE_CHECKING:
    from torch import Tensor

prefix_tuning = load("llm/efficient-finetuning/prefix-tuning.py")
WRITTEN = seq_ops.prompts()[[3, 8, 13]]


def text(model: Any, data: Tensor) -> Tensor:
    """Embeddings of examples (n, 13) behind the slots."""
    embedded: Tensor = prefix_tuning.positioned(model, data[:, :-1], seq_ops.SLOTS)
    return embedded


def test_the_forward_pass_is_that_of_the_model() -> None:
    model, read = random_model(), seq_ops.with_prompt(WRITTEN[0], task_data()[0])

    torch.testing.assert_close(
        prefix_tuning.forward(model, prefix_tuning.positioned(model, read)), model(read), atol=1e-12, rtol=0
    )


def test_the_keys_and_values_that_a_written_prompt_causes_stand_for_it() -> None:
    model, data = random_model(), task_data()[0]
    prefix = prefix_tuning.caused_by(model, WRITTEN[1])

    assert prefix.shape == (2, 2, 4, 16)
    found = prefix_tuning.forward(model, text(model, data), prefix.expand(len(data), *prefix.shape))
    expected = model(seq_ops.with_prompt(WRITTEN[1], data))
    torch.testing.assert_close(found, expected[:, seq_ops.SLOTS :], atol=1e-12, rtol=0)


def test_a_prefix_can_do_what_any_embeddings_can() -> None:
    model, data = random_model(), task_data()[0]
    P = torch.randn(len(data), 7, 16, generator=generator(1), dtype=torch.float64)
    keep: list[Tensor] = []
    expected = prefix_tuning.forward(model, torch.cat([P, text(model, data)], dim=1))
    prefix_tuning.forward(model, P, keep=keep)

    found = prefix_tuning.forward(model, text(model, data), torch.stack(keep, dim=1))

    torch.testing.assert_close(found, expected[:, 7:], atol=1e-12, rtol=0)


def test_the_library_gives_the_same_logits_behind_the_same_prefix() -> None:
    peft = pytest.importorskip("peft", reason='run `.venv/bin/pip install -e ".[peft]"`')
    model, data = random_model(), task_data()[0]
    start = torch.zeros(2, 2, 4, 16, dtype=torch.float64)
    ours = init_model(lambda: prefix_tuning.Prefix(start, d_z=16, hidden=12), 0).double()
    ours.mlp[2].weight.data = torch.randn(ours.mlp[2].weight.shape, generator=generator(1), dtype=torch.float64)
    ours.mlp[2].bias.data = torch.randn(ours.mlp[2].bias.shape, generator=generator(2), dtype=torch.float64)
    config = peft.PrefixTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=4, prefix_projection=True, encoder_hidden_size=12
    )
    theirs = peft.get_peft_model(as_gpt2(model, 4), config).double().eval()
    encoder = theirs.prompt_encoder["default"]
    encoder.embedding.weight.data = ours.Z.data
    encoder.transform.load_state_dict(ours.mlp.state_dict())

    found = prefix_tuning.forward(model, text(model, data), ours().expand(len(data), 2, 2, 4, 16))

    torch.testing.assert_close(found, theirs(input_ids=data[:, :-1]).logits, atol=1e-10, rtol=0)


def test_every_arm_starts_from_the_written_prompt_and_has_the_size_it_is_said_to_have() -> None:
    model, data, settings = random_model(), task_data(), prefix_tuning.Settings()
    prefixes = prefix_tuning.Prefixes(model, WRITTEN, settings).double()
    embeddings = prefix_tuning.Embeddings(model, WRITTEN, seq_ops.SLOTS)
    tasks = torch.arange(3).repeat_interleave(data.shape[1])
    rows = data.flatten(0, 1)
    expected = torch.cat([model(seq_ops.with_prompt(p, x)) for p, x in zip(WRITTEN, data, strict=True)])[:, -6:]

    for arm in (prefixes, embeddings):
        torch.testing.assert_close(arm(model, tasks, rows)[:, -6:], expected, atol=1e-6, rtol=0)
    many = prefix_tuning.Embeddings(model, WRITTEN, 4 * seq_ops.SLOTS)
    assert many.P[0].numel() == prefixes.each[0]().numel()
    assert torch.equal(many.P[:, -4:], embeddings.P)
    assert len(many.P[:, :-4].flatten(0, 1).unique(dim=0)) > 12


def test_tasks_keep_their_own_prefix_in_a_mixed_batch() -> None:
    model, data = random_model(), task_data()
    prefixes = prefix_tuning.Prefixes(model, WRITTEN, prefix_tuning.Settings()).double()
    tasks = torch.tensor([0, 0, 2, 2])
    rows = data[tasks, [0, 1, 0, 1]]
    seq_ops.answer_loss(prefixes(model, tasks, rows), rows).backward()  # type: ignore[no-untyped-call]

    assert prefixes.each[1].mlp[2].weight.grad.abs().max() == 0
    assert all(prefixes.each[task].mlp[2].weight.grad.abs().max() > 0 for task in (0, 2))


def test_training_goes_back_to_the_best_check_and_leaves_the_model_alone() -> None:
    model, data = random_model().float(), task_data(8)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    tasks, rows = torch.arange(3).repeat_interleave(8), data.flatten(0, 1)

    def tuned(lr: float, validation: Tensor) -> float:
        settings = prefix_tuning.Settings(batch=4, checks=4)
        arm = init_model(lambda: prefix_tuning.Prefixes(model, WRITTEN, settings), 0)
        start = seq_ops.answer_loss(arm(model, tasks, rows), rows).item()
        prefix_tuning.fit(arm, model, data, validation, lr, 40, 0, settings)
        return start - seq_ops.answer_loss(arm(model, tasks, rows), rows).item()

    assert tuned(1e-2, data) > 0.05
    assert tuned(30.0, data) >= 0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_full_tuning_works_on_a_copy() -> None:
    model, data = random_model().float(), task_data(8)[:1]
    arm = prefix_tuning.Whole(model, WRITTEN[0])
    before = model.head.weight.clone()
    prefix_tuning.fit(arm, model, data, data, 1e-2, 10, 0, prefix_tuning.Settings(batch=4, checks=2))

    assert torch.equal(model.head.weight, before)
    assert not torch.equal(arm.model.head.weight, before)
