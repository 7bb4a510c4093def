"""Hugging Face's Trainer with our optimizer for torch's: mixed precision, clipping, accumulation, resumption."""

import pytest

torch = pytest.importorskip("torch", reason='needs PyTorch: pip install ".[trainers]"')
transformers = pytest.importorskip("transformers", reason='needs transformers: pip install ".[trainers]"')
pytest.importorskip("accelerate", reason='needs accelerate: pip install ".[trainers]"')

from torch.testing import assert_close  # noqa: E402

import fastadam.torch as fat  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # advice about telemetry, tokens and pinned memory
STEPS = 6


class Regression(torch.nn.Module):
    """A small model that returns its loss, as Trainer expects."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))

    def forward(self, x, labels):
        y = self.layers(x)
        return {"loss": torch.nn.functional.mse_loss(y, labels), "logits": y}


def examples():
    torch.manual_seed(1)
    x = torch.randn(96, 8)
    y = 3 * x.sum(1, keepdim=True) + torch.randn(96, 1)
    return [{"x": a, "labels": b} for a, b in zip(x, y, strict=True)]


def train(method, folder, resume=None, steps=STEPS, named=None, **asked):
    """The parameters after training with gradients of two batches each, clipped to 0.5, under a linear schedule."""
    model = Regression()
    opt = method(model.parameters(), lr=0.01, **(named or {}))
    schedule = torch.optim.lr_scheduler.LambdaLR(opt, lambda step: 1 - step / (2 * STEPS))
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), use_cpu=True, max_steps=steps, per_device_train_batch_size=8, max_grad_norm=0.5,
        gradient_accumulation_steps=2, save_steps=3, report_to="none", disable_tqdm=True, seed=3, logging_steps=100,
        **asked,
    )  # fmt: skip
    trainer = transformers.Trainer(model=model, args=arguments, train_dataset=examples(), optimizers=(opt, schedule))
    trainer.train(resume_from_checkpoint=resume)
    return [p.detach() for p in model.parameters()]


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("name", ["AdamW", "SGD"])
def test_the_only_line_that_changes(name, bf16, tmp_path):
    ours, theirs = (train(getattr(home, name), tmp_path / home.__name__, bf16=bf16) for home in (fat, torch.optim))
    assert not any(torch.equal(x, y) for x, y in zip(ours, Regression().parameters(), strict=True))
    assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("named", [{}, {"moments": "8bit", "ema_decay": 0.9}], ids=["float32", "8bit"])
def test_resumed_training_has_the_bits_of_one_that_went_on(named, tmp_path):
    whole = train(fat.AdamW, tmp_path / "whole", named=named, bf16=True)
    train(fat.AdamW, tmp_path / "half", named=named, steps=3, bf16=True)
    resumed = train(fat.AdamW, tmp_path / "half", named=named, resume=str(tmp_path / "half/checkpoint-3"), bf16=True)
    assert all(torch.equal(x, y) for x, y in zip(whole, resumed, strict=True))
