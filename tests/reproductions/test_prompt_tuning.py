"""Soft prompts stand where written ones stood; the library `peft` puts them there too."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

torch = pytest.importorskip("torch")

from reproductions.lab import seq_ops  # noqa: E402
from reproductions.lab.seeding import generator, init_model  # noqa: E402
from reproductions.lab.transformer import TinyGPT  # noqa: E402
from tests.reproductions.loading import load  # noqa: E402

if TYPE_CHECKING:
    from torch import Tensor

prompt_tuning = load("llm/efficient-finetuning/prompt-tuning.py")


def random_model(d: int = 16) -> TinyGPT:
    """A model of the tasks in float64, frozen, with random weights."""
    model = init_model(lambda: TinyGPT(seq_ops.VOCAB, d, 2, 4, seq_ops.CONTEXT), 0).double()
    frozen: TinyGPT = model.requires_grad_(requires_grad=False)
    return frozen


def task_data(n: int = 5, tasks: int = 3) -> Tensor:
    """Examples (tasks, n, 13)."""
    stacked: Tensor = torch.stack([seq_ops.examples(torch.full((n,), task), generator(task)) for task in range(tasks)])
    return stacked


def as_gpt2(model: TinyGPT, heads: int) -> Any:
    """The same function as a model of the library transformers, which `peft` can steer."""
    transformers = pytest.importorskip("transformers", reason='run `.venv/bin/pip install -e ".[peft]"`')
    V, d = model.token_embedding.weight.shape
    none = dict.fromkeys(["resid_pdrop", "embd_pdrop", "attn_pdrop"], 0.0)
    config = transformers.GPT2Config(
        vocab_size=V,
        n_positions=seq_ops.CONTEXT,
        n_embd=d,
        n_layer=len(model.blocks),
        n_head=heads,
        activation_function="gelu",
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        **none,
    )
    theirs = transformers.GPT2LMHeadModel(config).double().eval()
    ours = model.state_dict()
    mapped = {
        "transformer.wte.weight": ours["token_embedding.weight"],
        "transformer.wpe.weight": ours["position_embedding.weight"],
        "transformer.ln_f.weight": ours["ln_out.weight"],
        "transformer.ln_f.bias": ours["ln_out.bias"],
        "lm_head.weight": ours["head.weight"],
    }
    for i in range(len(model.blocks)):
        into, out = f"transformer.h.{i}", f"blocks.{i}"
        for kind in ("weight", "bias"):
            joined = torch.cat([ours[f"{out}.attn.{name}_proj.{kind}"] for name in "qkv"])
            mapped[f"{into}.attn.c_attn.{kind}"] = joined.t()  # their layers hold transposed weights
            mapped[f"{into}.attn.c_proj.{kind}"] = ours[f"{out}.attn.o_proj.{kind}"].t()
            mapped[f"{into}.mlp.c_fc.{kind}"] = ours[f"{out}.mlp.fc1.{kind}"].t()
            mapped[f"{into}.mlp.c_proj.{kind}"] = ours[f"{out}.mlp.fc2.{kind}"].t()
            for number in (1, 2):
                mapped[f"{into}.ln_{number}.{kind}"] = ours[f"{out}.ln{number}.{kind}"]
    theirs.load_state_dict(mapped)
    return theirs


def test_the_library_gives_the_same_logits_behind_the_same_vectors() -> None:
    peft = pytest.importorskip("peft", reason='run `.venv/bin/pip install -e ".[peft]"`')
    model, data = random_model(), task_data()[0]
    P = torch.randn(4, 16, generator=generator(1), dtype=torch.float64)
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    theirs = peft.get_peft_model(as_gpt2(model, 4), config).eval()
    theirs.prompt_encoder["default"].embedding.weight.data = P

    ours = prompt_tuning.prompted(model, P.expand(len(data), 4, 16), data)

    torch.testing.assert_close(ours, theirs(input_ids=data[:, :-1]).logits, atol=1e-10, rtol=0)


def test_a_soft_prompt_that_starts_from_a_written_one_gives_what_that_gives() -> None:
    model, data = random_model(), task_data()
    written = seq_ops.prompts()[[3, 8, 13]]
    soft = prompt_tuning.SoftPrompts(model.embed(written))

    for task, rows in enumerate(data):
        expected = model(seq_ops.with_prompt(written[task], rows))
        found = prompt_tuning.prompted(model, soft(torch.full((len(rows),), task)), rows)
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


def test_training_moves_every_prompt_and_not_the_model() -> None:
    settings = prompt_tuning.Settings(batch=2, soft_steps=30)
    model, data = random_model().float(), task_data()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    start = model.embed(seq_ops.prompts()[[3, 8, 13]])

    def loss(soft: Any) -> Tensor:
        tasks = torch.arange(3).repeat_interleave(data.shape[1])
        rows = data.flatten(0, 1)
        return seq_ops.answer_loss(prompt_tuning.prompted(model, soft(tasks), rows), rows)

    soft = prompt_tuning.tune_prompts(model, start, data, 3e-2, 0, settings)

    assert loss(soft) < loss(prompt_tuning.SoftPrompts(start)) - 0.1
    assert ((soft.P - start).abs().amax((1, 2)) > 0.1).all()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_prompt_learns_from_the_rows_of_its_own_task_only() -> None:
    model, data = random_model(), task_data()
    soft = prompt_tuning.SoftPrompts(model.embed(seq_ops.prompts()[[3, 8, 13]]))
    tasks = torch.tensor([0, 0, 2, 2])
    rows = data[tasks, [0, 1, 0, 1]]
    seq_ops.answer_loss(prompt_tuning.prompted(model, soft(tasks), rows), rows).backward()  # type: ignore[no-untyped-call]

    assert soft.P.grad[1].abs().max() == 0
    assert soft.P.grad[[0, 2]].abs().amax((1, 2)).min() > 0


def test_a_mixed_batch_is_compared_row_by_row() -> None:
    model, data = random_model(), task_data()
    soft = prompt_tuning.SoftPrompts(torch.randn(3, 4, 16, generator=generator(1), dtype=torch.float64))

    assert prompt_tuning.mixed_batch_difference(model, soft, data) < 1e-12

    def confused(tasks: Tensor) -> Tensor:
        """Gives every row the prompt of the first row's task."""
        prompt: Tensor = soft.P[tasks[:1]]
        return prompt.expand(len(tasks), -1, -1)

    assert prompt_tuning.mixed_batch_difference(model, confused, data) > 1e-3


def test_full_tuning_works_on_a_copy() -> None:
    settings = prompt_tuning.Settings(batch=4, full_steps=20)
    model, data = random_model().float(), task_data()[1]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    tuned = prompt_tuning.tune_all(model, seq_ops.prompts()[1], data, 1e-2, 0, settings)

    read = seq_ops.with_prompt(seq_ops.prompts()[1], data)
    assert seq_ops.answer_loss(tuned(read), data) < seq_ops.answer_loss(model(read), data) - 0.5
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
