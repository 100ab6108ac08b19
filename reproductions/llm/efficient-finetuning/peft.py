"""Hugging Face PEFT: our LoRA, rsLoRA and IA3 beside the library's (https://github.com/huggingface/peft).

Symbols: W0 frozen weight (d_out, d_in) · A (r, d_in), B (d_out, r) factors of LoRA's update · r rank ·
s scale of the update, alpha / r (LoRA) or alpha / sqrt(r) (rsLoRA) · l scaling vector of IA3
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reproductions.lab import Result
from reproductions.lab.digits import batches, invert, load, mirror, rotate, split
from reproductions.lab.seeding import generator, init_model
from reproductions.lab.training import accuracy, count_parameters, train
from reproductions.lab.transformer import TinyViT

LORA_LAYERS = ["patch_embedding", "q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2", "head"]  # all that are linear
IA3_LAYERS = ["k_proj", "v_proj", "fc2"]
FEED_FORWARD = ["fc2"]  # where IA3 rescales the input
NAMES = {"A": "lora_A.weight", "B": "lora_B.weight", "l": "ia3_l"}  # our symbols in the library's files
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"  # the files that loading an adapter needs
TASKS: dict[str, Callable[[Tensor], Tensor]] = {
    "rotated": lambda images: rotate(images, 90.0),
    "inverted": invert,
    "mirrored": mirror,
}


@dataclass(frozen=True)
class Settings:
    """Sizes and rates; lr_full and lr_lora are the best of five on pilot seeds 0-2, by mean validation accuracy."""

    base_steps: int = 300
    steps: int = 120
    compared_steps: int = 20
    batch: int = 64
    rank: int = 4
    alpha: float = 6.0  # so that alpha / r, alpha / sqrt(r), alpha, r and sqrt(r) are five numbers
    lr_base: float = 3e-3
    lr_full: float = 3e-3  # of 3e-4, 1e-3, 3e-3, 1e-2, 3e-2
    lr_lora: float = 1e-2  # of 1e-3, 3e-3, 1e-2, 3e-2, 1e-1
    lr_compared: float = 0.1
    held_out: str = "test"  # "validation" while choosing rates


SHORT = Settings(base_steps=2, steps=2, compared_steps=2)


class LoRALinear(nn.Module):
    """y = W0 x + s B A x (LoRA, Equation 3). B is random and not zero, which would hide every mistake."""

    def __init__(self, base: nn.Linear, rank: int, scale: float, gen: torch.Generator) -> None:
        super().__init__()
        self.base = base
        self.scale = scale
        d_in, d_out = base.in_features, base.out_features
        self.A = nn.Parameter(torch.randn(rank, d_in, generator=gen) / d_in**0.5)
        self.B = nn.Parameter(0.1 * torch.randn(d_out, rank, generator=gen))

    def forward(self, x: Tensor) -> Tensor:  # (..., d_in)
        y: Tensor = self.base(x) + self.scale * (x @ self.A.T @ self.B.T)  # (..., d_out)
        return y

    def merged(self) -> nn.Linear:
        """One plain layer with the weight W0 + s B A."""
        layer = copy.deepcopy(self.base)
        layer.weight.data += self.scale * self.B.data @ self.A.data
        return layer


class IA3Linear(nn.Module):
    """y = l * (W0 x), or y = W0 (l * x) in a layer marked as feed-forward (IA3, arXiv:2205.05638, Section 3.3).

    l is random and not one, which would hide every mistake.
    """

    def __init__(self, base: nn.Linear, gen: torch.Generator, *, feed_forward: bool) -> None:
        super().__init__()
        self.base = base
        self.feed_forward = feed_forward
        width = base.in_features if feed_forward else base.out_features
        self.l = nn.Parameter(1 + 0.5 * torch.randn(width, generator=gen))

    def forward(self, x: Tensor) -> Tensor:  # (..., d_in)
        y: Tensor = self.base(self.l * x) if self.feed_forward else self.l * self.base(x)  # (..., d_out)
        return y


def replace_layers(model: TinyViT, names: list[str], make: Callable[[str, Any], nn.Module]) -> TinyViT:
    """Freeze a copy and replace the layers of these names, as the library does with `target_modules`."""
    replaced = copy.deepcopy(model).requires_grad_(requires_grad=False)
    for path, layer in list(replaced.named_modules()):
        parent, _, name = path.rpartition(".")
        if name in names:
            setattr(replaced.get_submodule(parent), name, make(name, layer))
    return replaced


def with_lora(base: TinyViT, rank: int, scale: float, seed: int) -> TinyViT:
    """Our LoRA in a copy of the base; A and B depend on the seed, not on the scale."""
    gen = generator(seed, "lora")
    return replace_layers(base, LORA_LAYERS, lambda _, layer: LoRALinear(layer, rank, scale, gen))


def with_ia3(base: TinyViT, seed: int) -> TinyViT:
    """Our IA3 in a copy of the base: on keys, values and inside each MLP."""
    gen = generator(seed, "ia3")
    return replace_layers(
        base, IA3_LAYERS, lambda name, layer: IA3Linear(layer, gen, feed_forward=name in FEED_FORWARD)
    )


def our_adapter(model: nn.Module) -> dict[str, Tensor]:
    """What our model trains, under the names that it would have in a file of the library."""
    parts = [(name.rpartition("."), p) for name, p in model.named_parameters() if p.requires_grad]
    return {f"base_model.model.{path}.{NAMES[symbol]}": p for (path, _, symbol), p in parts}


def their_adapter(model: nn.Module) -> dict[str, Tensor]:
    """What the library's model trains; its files leave out the adapter's own name."""
    return {name.replace(".default", ""): p for name, p in model.named_parameters() if p.requires_grad}


def gap(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> float:
    """Largest absolute difference between tensors of one name.

    Raises:
        KeyError: if one side lacks a name.
    """
    names = ours.keys() | theirs.keys()
    return max(float((ours[name] - theirs[name].view_as(ours[name])).detach().abs().max()) for name in names)


def import_peft() -> Any:
    """The library, imported only when it is needed: it is an optional extra and takes seconds.

    Raises:
        RuntimeError: if it is missing; nothing can stand in for what is under test.
    """
    try:
        import peft
    except ImportError as error:
        raise RuntimeError("the library under test is missing: pip install 'genai-kb[peft]'") from error
    return peft


def library_configs(settings: Settings) -> dict[str, Any]:
    """What the library is told for each method."""
    peft = import_peft()
    lora = {"r": settings.rank, "lora_alpha": settings.alpha, "target_modules": LORA_LAYERS}
    return {
        "lora": peft.LoraConfig(**lora),
        "rslora": peft.LoraConfig(**lora, use_rslora=True),
        "ia3": peft.IA3Config(target_modules=IA3_LAYERS, feedforward_modules=FEED_FORWARD),
    }


def wrap(base: TinyViT, config: Any, seed: int, adapters: Sequence[str] = ("default",)) -> Any:
    """The library around a copy of the base, with adapters of these names; the seed decides where they start."""

    def build() -> Any:
        model = import_peft().get_peft_model(copy.deepcopy(base), config, adapter_name=adapters[0])
        for name in adapters[1:]:
            model.add_adapter(name, config)
        return model

    return init_model(build, seed, "library")


def twin(ours: TinyViT, base: TinyViT, config: Any, seed: int) -> Any:
    """The library around a copy of the base, with the values of our adapter in its own."""
    theirs = wrap(base, config, seed)
    values = their_adapter(theirs)
    with torch.no_grad():
        for name, value in our_adapter(ours).items():
            values[name].copy_(value.view_as(values[name]))
    return theirs


def respond(model: nn.Module, adapter: Mapping[str, Tensor], x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """The logits of x, and the gradient of their loss for each tensor of the adapter."""
    logits = model(x)  # (B, 10)
    gradients = torch.autograd.grad(F.cross_entropy(logits, y), list(adapter.values()))
    return {"logits": logits, **dict(zip(adapter, gradients, strict=True))}


def descend(model: nn.Module, x: Tensor, y: Tensor, order: list[Tensor], lr: float) -> None:
    """Plain gradient descent: Adam would divide the gradient's size away, and a wrong scale with it."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr)
    for i in order:
        optimizer.zero_grad()
        F.cross_entropy(model(x[i]), y[i]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def compare_lora(base: TinyViT, x: Tensor, y: Tensor, seed: int, settings: Settings) -> dict[str, float]:
    """Our LoRA beside the library's: outputs, gradients, training, merging, and a scale that is wrong by 1%."""
    rank, scale = settings.rank, settings.alpha / settings.rank
    ours, wrong = with_lora(base, rank, scale, seed), with_lora(base, rank, 1.01 * scale, seed)
    theirs = twin(ours, base, library_configs(settings)["lora"], seed)
    factors, their_factors = our_adapter(ours), their_adapter(theirs)
    metrics = {
        "peft_out_err": gap(respond(ours, factors, x, y), respond(theirs, their_factors, x, y)),
        "wrong_scale_err": gap({"logits": wrong(x)}, {"logits": theirs(x)}),
    }
    order = list(batches(len(x), settings.batch, settings.compared_steps, generator(seed, "compared")))
    for model in (ours, theirs):
        descend(model, x, y, order, settings.lr_compared)
    plain = replace_layers(ours, LORA_LAYERS, lambda _, layer: layer.merged())
    return metrics | {
        "peft_step_err": gap(factors, their_factors),
        "peft_merge_err": gap(plain.state_dict(), theirs.merge_and_unload().state_dict()),
    }


def compare_methods(base: TinyViT, x: Tensor, seed: int, settings: Settings) -> dict[str, float]:
    """Outputs with rsLoRA and IA3; numbers of trainable parameters with these and with LoRA."""
    rank, alpha = settings.rank, settings.alpha
    models = {
        "lora": with_lora(base, rank, alpha / rank, seed),
        "rslora": with_lora(base, rank, alpha / rank**0.5, seed),  # arXiv:2312.03732
        "ia3": with_ia3(base, seed),
    }
    err, count_diff = {}, []
    for method, config in library_configs(settings).items():
        ours, theirs = models[method], twin(models[method], base, config, seed)
        err[method] = gap({"logits": ours(x)}, {"logits": theirs(x)})
        reported, _ = theirs.get_nb_trainable_parameters()
        count_diff.append(abs(reported - count_parameters(ours, trainable_only=True)))
    return {"ia3_err": err["ia3"], "rs_err": err["rslora"], "count_diff": float(max(count_diff))}


def run(seed: int, settings: Settings = Settings()) -> Result:
    """Compare our layers with the library's, then give one base three tasks: by adapters, and by full copies."""
    config = library_configs(settings)["lora"]
    from safetensors.torch import load_file, save_file  # comes with the library

    images, labels = load()
    base_set, train_set, validation_set, test_set = split(seed, (800, 400, 97, 500))
    held_out = {"test": test_set, "validation": validation_set}[settings.held_out]

    def fit(model: nn.Module, x: Tensor, y: Tensor, lr: float, steps: int) -> None:
        """Train whatever is not frozen; every arm sees the same batches."""
        order = batches(len(x), settings.batch, steps, generator(seed, "batches"))
        train(model, lambda i: F.cross_entropy(model(x[i]), y[i]), order, lr, steps=steps, schedule="cosine")

    def score(model: nn.Module, task: str) -> float:
        with torch.no_grad():
            return accuracy(model(TASKS[task](images[held_out])), labels[held_out])

    base = init_model(lambda: TinyViT(classes=10), seed)
    fit(base, images[base_set], labels[base_set], settings.lr_base, settings.base_steps)
    y = labels[train_set]
    rotated = TASKS["rotated"](images[train_set])
    metrics = compare_lora(base, rotated, y, seed, settings) | compare_methods(base, rotated, seed, settings)

    full = {task: copy.deepcopy(base) for task in TASKS}
    tuned, restored = wrap(base, config, seed, list(TASKS)), wrap(base, config, seed, list(TASKS))
    for task, change in TASKS.items():
        fit(full[task], change(images[train_set]), y, settings.lr_full, settings.steps)
        tuned.set_adapter(task)
        fit(tuned, change(images[train_set]), y, settings.lr_lora, settings.steps)

    foreign, size = 0, {"adapter": 0, "full": 0}
    expected = our_adapter(with_lora(base, settings.rank, 1.0, seed))
    with TemporaryDirectory() as folder:
        tuned.save_pretrained(folder)
        for task in TASKS:
            saved, copied = Path(folder) / task, Path(folder) / f"{task}.safetensors"
            save_file(full[task].state_dict(), copied)
            foreign += len(load_file(saved / WEIGHTS).keys() - expected.keys())
            size["adapter"] += (saved / WEIGHTS).stat().st_size + (saved / CONFIG).stat().st_size
            size["full"] += copied.stat().st_size
            restored.load_adapter(saved, task, torch_device="cpu")

    acc: dict[str, dict[str, float]] = {"base": {}, "adapter": {}, "full": {}}
    for task in TASKS:
        restored.set_adapter(task)
        for arm, model in (("base", base), ("adapter", restored), ("full", full[task])):
            acc[arm][task] = score(model, task)
    mean = {arm: sum(by_task.values()) / len(TASKS) for arm, by_task in acc.items()}
    metrics |= {
        "foreign_tensors": float(foreign),
        "size_ratio": size["adapter"] / size["full"],
        "acc_peft": mean["adapter"],
        "acc_full": mean["full"],
        "acc_base": mean["base"],
    }
    disk = [{"panel": "disk", "arm": arm, "kilobytes": size[arm] / len(TASKS) / 1000} for arm in size]
    bars = [
        {"panel": "accuracy", "arm": arm, "task": task, "accuracy": acc[arm][task]} for arm in acc for task in TASKS
    ]
    return Result(metrics, [*disk, *bars])
