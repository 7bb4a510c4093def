"""Lightning's Trainer with our optimizer in place of torch's: mixed precision, clipping, accumulation, resumption."""

import copy

import pytest

torch = pytest.importorskip("torch", reason='needs PyTorch: pip install ".[trainers]"')
lightning = pytest.importorskip("lightning", reason='needs Lightning: pip install ".[trainers]"')

from lightning.pytorch.plugins.precision import MixedPrecision  # noqa: E402
from torch.testing import assert_close  # noqa: E402

import fastadam.torch as fat  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's advice about workers and loggers


class Model(lightning.LightningModule):
    """A small regression, stepped by the optimizer that `method` makes."""

    def __init__(self, method, named):
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))
        self._method, self._named = method, named

    def training_step(self, batch, number):
        x, y = batch
        return torch.nn.functional.mse_loss(self.layers(x), y)

    def configure_optimizers(self):
        opt = self._method(self.parameters(), lr=0.01, **self._named)
        return [opt], [torch.optim.lr_scheduler.StepLR(opt, 1, gamma=0.7)]


def batches():
    torch.manual_seed(1)
    x = torch.randn(64, 8)
    y = 3 * x.sum(1, keepdim=True) + torch.randn(64, 1)  # gradients beyond the limit at first
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=8)


def fit(method, folder, epochs=3, resume=None, **asked):
    """The model after training; asked: of the Trainer, and as `named` of the optimizer."""
    model = Model(method, asked.pop("named", {}))
    trainer = lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", devices=1, logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, default_root_dir=folder, **asked,
    )  # fmt: skip
    trainer.fit(model, batches(), ckpt_path=resume)
    return trainer, [p.detach() for p in model.parameters()]


def scaled():
    return {"plugins": [MixedPrecision("16-mixed", "cpu")]}  # Trainer would take bfloat16 on the CPU


PRECISIONS = {"32": dict, "bf16-mixed": lambda: {"precision": "bf16-mixed"}, "16-mixed": scaled}
CLIPPED = {"gradient_clip_val": 0.5, "accumulate_grad_batches": 2}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", ["AdamW", "SGD", "RMSprop"])
def test_the_only_line_that_changes(name, precision, tmp_path):
    """As with torch's optimizer of that name, to the roundings of 12 steps in another order."""
    ours, theirs = (
        fit(getattr(home, name), tmp_path, **CLIPPED, **PRECISIONS[precision]())[1] for home in (fat, torch.optim)
    )
    start = [p.detach() for p in Model(fat.AdamW, {}).parameters()]
    assert not any(torch.equal(x, y) for x, y in zip(ours, start, strict=True))
    assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_the_steps_own_unscaling_refuses_clipping_as_torchs_does(tmp_path):
    """fused=True leaves unscaling to the step, so Lightning could clip scaled gradients only: max_norm does it."""
    for home in (fat, torch.optim):
        with pytest.raises(RuntimeError, match="does not allow for gradient clipping"):
            fit(home.AdamW, tmp_path, named={"fused": True}, **CLIPPED, **scaled())
    _, ours = fit(fat.AdamW, tmp_path, named={"fused": True, "max_norm": 0.5}, accumulate_grad_batches=2, **scaled())
    _, theirs = fit(torch.optim.AdamW, tmp_path, **CLIPPED, **scaled())
    assert_close(ours, theirs, rtol=1e-3, atol=1e-4)  # clip_grad_norm_ adds 1e-6 to the norm


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("named", [{}, {"moments": "8bit", "ema_decay": 0.9}], ids=["float32", "8bit"])
def test_resumed_training_has_the_bits_of_one_that_went_on(named, precision, tmp_path):
    """From the checkpoint of an epoch, scheduler and scaler included."""
    asked = {"named": named, **CLIPPED}
    whole = fit(fat.AdamW, tmp_path, **copy.deepcopy(asked), **PRECISIONS[precision]())[1]
    trainer, _ = fit(fat.AdamW, tmp_path, epochs=2, **copy.deepcopy(asked), **PRECISIONS[precision]())
    trainer.save_checkpoint(tmp_path / "two.ckpt")
    resumed = fit(fat.AdamW, tmp_path, resume=tmp_path / "two.ckpt", **asked, **PRECISIONS[precision]())[1]
    assert all(torch.equal(x, y) for x, y in zip(whole, resumed, strict=True))
