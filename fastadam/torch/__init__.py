"""Drop-in optimizers for PyTorch: `opt = fastadam.torch.AdamW(model.parameters(), lr=3e-4)`.

Each is torch.optim's class of that name (Lion: torch has none) with one compiled walk over memory in place of its step.
Arguments, defaults, errors, param groups, hooks and state are torch's; state_dict goes both ways. Beside them:

max_norm: clip the gradients, after a GradScaler's unscaling, to this global L2 norm; a group's own limits that group's.
    By max_norm / norm: clip_grad_norm_ adds 1e-6 to the norm first.
ema_decay: keep exponential moving averages in the state, as "ema": a number, or a function of the step count.
copy_to: bfloat16 or float16 tensors, one per parameter; hold them rounded to nearest even, from now on, of parameters
    without a master from the update itself, as it was before these were rounded. add_param_group takes more of them.
skip_nonfinite: True leaves out a step whose gradients hold NaN or infinity, "raise" raises FloatingPointError.
stats: "group" or "tensor": report the norms of gradients, updates and parameters, and the largest update, of each.
moments: what slots rest in, "float32", "bfloat16" or "8bit"; see fastadam.Optimizer. In the state they are float32,
    bfloat16, or flat uint8 tensors: of each 1,024 elements in p's order in memory 1,024 codes, then 16 float32 scales;
    "strides" beside them says what that order is. SGD and Lion keep a "step" where random bits or a function need it.
    load_state_dict takes torch's state, too; to_torch_state gives it. "float64" for float64 parameters.
master: "remainder" or "float32": the other 16 bits of bfloat16 parameters, or a float32 copy that 16-bit parameters are
    rounded from, in the state under that name or "master". opt.refresh_master() once parameters were set from outside.
seed, index_offset: of stochastic rounding; neither is in state_dict. Each rank of FSDP2 counts its shards' elements
    from index_offset: give each another, such as rank * 2**40, or all round alike.
opt.replace(old, new, rows) puts a tensor of more rows or fewer in a parameter's place, its state following the rows:
what Gaussian splatting's densification does by torch.cat over the state's tensors, which is right here for all but
moments of 8 bits, whose flat blocks have no rows.
`opt.info` is a fastadam.StepInfo: what the last step found out. `with opt.averaged():` swaps the averages in.

A step changes memory where it lies: float32, float64 and complex tensors in any dense order of axes, on the CPU through
Numba, on CUDA devices through CuPy, FSDP2's DTensors through their local shards. What has gaps is copied in and out.
On CUDA devices whatever is bfloat16 needs ml_dtypes.
bfloat16 and float16 parameters have float32 state unless moments says otherwise, which load_state_dict leaves as it is.
Without a master bfloat16 is rounded stochastically: torch's own keep bfloat16 state and round to nearest.

What torch can and these refuse: differentiable=True, because autograd cannot follow; a parameter that is given twice,
or shares memory with another, because threads would step both at once; sparse gradients with SGD's momentum or weight
decay, which are not sparse; max_norm, skip_nonfinite and stats over DTensors or several devices, where a norm would be
that of a part; moments of 8 bits under sparse gradients, because 64 elements share a scale, and for DTensors, whose
shape the blocks have not; moments of 8 or 16 bits for complex parameters, because torch has no such tensors. Not built
yet: on CUDA sparse gradients under max_norm, skip_nonfinite and stats, and steps captured in a graph.
Hyperparameters are checked whenever they change, as torch checks them once, at construction.
With fused=True, where torch has that, a GradScaler leaves unscaling to the step, which does it as it reads: torch's
then leave p.grad unscaled, here it stays as it was. Without it the scaler unscales, so that gradients can be clipped
in between, as Lightning's gradient_clip_val does. NAdam's "mu_product" is float64 in the state, as it runs.
"""

from fastadam.torch.conversion import convert, load_state_from, to_torch_state
from fastadam.torch.methods import SGD, Adagrad, Adam, Adamax, AdamW, Lion, NAdam, RAdam, RMSprop, SparseAdam

__all__ = [
    "SGD",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Lion",
    "NAdam",
    "RAdam",
    "RMSprop",
    "SparseAdam",
    "convert",
    "load_state_from",
    "to_torch_state",
]
