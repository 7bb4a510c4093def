"""Has the oracles: one step of each method, word for word from its paper's algorithm box.

Plain NumPy. Nothing here shares a name or a line with the library, so a mistake in its equations shows here. Every step

    p, state = method(t, p, g, state, lr=..., ...)

takes t = 1, 2, ..., leaves its arguments alone and returns new ones; hyperparameters bear torch.optim's names. Where
torch departs from the paper the docstring says so, and torch is followed. `maximize` negates g before anything else;
coupled decay is g + λp, decoupled decay is p - lr·λ·p of the old p.

Arrays are float64 or longdouble, and a step is computed in the precision it was given.
"""

import numpy as np


def numbers(p, *hyperparameters):
    """The hyperparameters in p's precision (at least float64), so that 1 - β and β^t are no less precise than p."""
    real = np.result_type(p, np.float64).type
    return [real(x) for x in hyperparameters]


def masked(u, g):
    """Liang et al. 2024, Algorithm 1: u where it agrees with g, more the fewer those are; as in the authors' code their
    share is taken for no less than 1/1000, where the paper adds 1 to their number."""
    agree = np.sign(u) * np.sign(g) > 0
    return u * agree / np.maximum(np.mean(agree, dtype=u.dtype), u.dtype.type(1) / 1000)


def adam(t, p, g, state, *, lr, betas, eps, weight_decay=0.0, amsgrad=False, maximize=False, eps_hat=False,
         cautious=False):  # fmt: skip
    """Kingma & Ba 2015, Algorithm 1; decay (not in the paper) is coupled.

    amsgrad: Reddi et al. 2018, Algorithm 2. As in torch, the maximum is over the biased v and both moments are then
    corrected as in Adam; the paper corrects neither.
    eps_hat: the other order of Kingma & Ba, end of section 2: lr·√(1 - β2^t)/(1 - β1^t) · m / (√v + eps).
    """
    lr, beta1, beta2, eps, weight_decay = numbers(p, lr, *betas, eps, weight_decay)
    g = (-g if maximize else g) + weight_decay * p
    m = beta1 * state["m"] + (1 - beta1) * g
    v = beta2 * state["v"] + (1 - beta2) * g**2
    new = {"m": m, "v": v}
    if amsgrad:
        v = new["vmax"] = np.maximum(state["vmax"], v)
    if eps_hat:
        lr_t = lr * np.sqrt(1 - beta2**t) / (1 - beta1**t)
        return p - lr_t * (masked(m, g) if cautious else m) / (np.sqrt(v) + eps), new
    m_hat = (masked(m, g) if cautious else m) / (1 - beta1**t)
    v_hat = v / (1 - beta2**t)
    return p - lr * m_hat / (np.sqrt(v_hat) + eps), new


def cautiously(p, update, decay):
    """L. Chen et al. 2025, Algorithm 1: λ·I(u ⊙ x >= 0) ⊙ x, for an update that is subtracted from x."""
    return np.where(np.sign(update) * np.sign(p) >= 0, decay, 0 * decay)


def adamw(t, p, g, state, *, lr, betas, eps, weight_decay=0.0, amsgrad=False, maximize=False, eps_hat=False,
          cautious_decay=False, cautious=False):  # fmt: skip
    """Loshchilov & Hutter 2019, Algorithm 2, lines 6-12, with η_t = 1 and, as in torch, λ scaled by lr."""
    moved, new = adam(t, p, g, state, lr=lr, betas=betas, eps=eps, amsgrad=amsgrad, maximize=maximize, eps_hat=eps_hat,
                      cautious=cautious)  # fmt: skip
    update = masked(new["m"], -g if maximize else g) if cautious else new["m"]  # of the same sign
    lr, weight_decay = numbers(p, lr, weight_decay)
    decay = lr * weight_decay * p
    return moved - (cautiously(p, update, decay) if cautious_decay else decay), new  # u has m's sign


def nadam(t, p, g, state, *, lr, betas, eps, weight_decay=0.0, momentum_decay=4e-3, decoupled_weight_decay=False,
          maximize=False, cautious=False):  # fmt: skip
    """Dozat 2016, Algorithm 2, with the schedule μ_t = β1·(1 - ½·0.96^(t·momentum_decay)).

    Departs as torch does: m decays by β1, not μ_t; v_hat lacks the paper's factor β2; decay is coupled by default.
    mu_product is Π μ_i up to t. (torch keeps it in its default dtype: float32 unless told otherwise.)
    """
    lr, beta1, beta2, eps, weight_decay, psi = numbers(p, lr, *betas, eps, weight_decay, momentum_decay)
    g = -g if maximize else g
    if decoupled_weight_decay:
        p = p - lr * weight_decay * p
    else:
        g = g + weight_decay * p
    mu = beta1 * (1 - 0.5 * 0.96 ** (t * psi))
    mu_next = beta1 * (1 - 0.5 * 0.96 ** ((t + 1) * psi))
    mu_product = state["mu_product"] * mu
    m = beta1 * state["m"] + (1 - beta1) * g
    v = beta2 * state["v"] + (1 - beta2) * g**2
    m_hat = mu_next * m / (1 - mu_product * mu_next) + (1 - mu) * g / (1 - mu_product)
    m_hat = masked(m_hat, g) if cautious else m_hat
    v_hat = v / (1 - beta2**t)
    return p - lr * m_hat / (np.sqrt(v_hat) + eps), {"m": m, "v": v, "mu_product": mu_product}


def radam(t, p, g, state, *, lr, betas, eps, weight_decay=0.0, decoupled_weight_decay=False, maximize=False):
    """Liu et al. 2020, Algorithm 2.

    Departs as torch does: the step is adaptive once rho_t > 5, not 4; eps (not in the paper) joins √v before the bias
    correction; decay (not in the paper) is coupled unless told otherwise.
    """
    lr, beta1, beta2, eps, weight_decay = numbers(p, lr, *betas, eps, weight_decay)
    g = -g if maximize else g
    if decoupled_weight_decay:
        p = p - lr * weight_decay * p
    else:
        g = g + weight_decay * p
    m = beta1 * state["m"] + (1 - beta1) * g
    v = beta2 * state["v"] + (1 - beta2) * g**2
    m_hat = m / (1 - beta1**t)
    rho_inf = 2 / (1 - beta2) - 1
    rho = rho_inf - 2 * t * beta2**t / (1 - beta2**t)
    if rho > 5:
        length = np.sqrt(1 - beta2**t) / (np.sqrt(v) + eps)
        r = np.sqrt((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho))
        return p - lr * r * m_hat * length, {"m": m, "v": v}
    return p - lr * m_hat, {"m": m, "v": v}


def adamax(t, p, g, state, *, lr, betas, eps, weight_decay=0.0, maximize=False, eps_hat=False):
    """Kingma & Ba 2015, Algorithm 2; torch adds eps (not in the paper) to |g| inside the maximum, and coupled decay.

    eps_hat: Keras adds eps to the maximum where it divides.
    """
    lr, beta1, beta2, eps, weight_decay = numbers(p, lr, *betas, eps, weight_decay)
    g = (-g if maximize else g) + weight_decay * p
    m = beta1 * state["m"] + (1 - beta1) * g
    if eps_hat:
        u = np.maximum(beta2 * state["u"], np.abs(g))
        return p - lr / (1 - beta1**t) * m / (u + eps), {"m": m, "u": u}
    u = np.maximum(beta2 * state["u"], np.abs(g) + eps)
    return p - lr / (1 - beta1**t) * m / u, {"m": m, "u": u}


def adabelief(t, p, g, state, *, lr, betas, eps, weight_decay=0.0, decoupled_weight_decay=True, maximize=False):
    """Zhuang et al. 2020, Algorithm 2 of the main text: eps joins s at every step, so accumulates, and √s_hat as well.

    Without the projection, and without the rectification that the authors' code turns on by default. Decay (not in
    the paper) is decoupled unless told otherwise, as in the authors' code.
    """
    lr, beta1, beta2, eps, weight_decay = numbers(p, lr, *betas, eps, weight_decay)
    g = -g if maximize else g
    if decoupled_weight_decay:
        p = p - lr * weight_decay * p
    else:
        g = g + weight_decay * p
    m = beta1 * state["m"] + (1 - beta1) * g
    s = beta2 * state["s"] + (1 - beta2) * (g - m) ** 2 + eps
    m_hat = m / (1 - beta1**t)
    s_hat = s / (1 - beta2**t)
    return p - lr * m_hat / (np.sqrt(s_hat) + eps), {"m": m, "s": s}


def adopt(t, p, g, state, *, lr, betas, eps, weight_decay=0.0, clip=True, decoupled_weight_decay=False,
          maximize=False):  # fmt: skip
    """Taniguchi et al. 2024, Algorithm 2, whose step 0 is t = 1 here; decay, which it lacks, is coupled by default."""
    lr, beta1, beta2, eps, weight_decay = numbers(p, lr, *betas, eps, weight_decay)
    g = -g if maximize else g
    if not decoupled_weight_decay:
        g = g + weight_decay * p
    if t == 1:
        return p, {"m": state["m"], "v": g**2}
    normalised = g / np.maximum(np.sqrt(state["v"]), eps)
    if clip:
        bound = numbers(p, t - 1)[0] ** 0.25
        normalised = np.minimum(np.maximum(normalised, -bound), bound)
    m = beta1 * state["m"] + (1 - beta1) * normalised
    if decoupled_weight_decay:
        p = p - lr * weight_decay * p
    return p - lr * m, {"m": m, "v": beta2 * state["v"] + (1 - beta2) * g**2}


def ademamix(t, p, g, state, *, lr, betas, alpha, eps, t_alpha=0, t_beta3=0, weight_decay=0.0, maximize=False):
    """Pagliardini et al. 2025, Algorithm 1 with the schedulers of its section 3, where β_start is β1; η is lr."""
    lr, beta1, beta2, beta3, alpha, eps, weight_decay = numbers(p, lr, *betas, alpha, eps, weight_decay)
    g = -g if maximize else g
    if t_alpha:
        alpha = np.minimum(t * alpha / t_alpha, alpha)
    if t < t_beta3:
        tau = numbers(p, t)[0] / t_beta3
        beta3 = np.minimum(
            np.exp(np.log(beta1) * np.log(beta3) / ((1 - tau) * np.log(beta3) + tau * np.log(beta1))), beta3
        )
    m1 = beta1 * state["m1"] + (1 - beta1) * g
    m2 = beta3 * state["m2"] + (1 - beta3) * g
    v = beta2 * state["v"] + (1 - beta2) * g**2
    m1_hat = m1 / (1 - beta1**t)
    v_hat = v / (1 - beta2**t)
    return p - lr * ((m1_hat + alpha * m2) / (np.sqrt(v_hat) + eps) + weight_decay * p), {"m1": m1, "m2": m2, "v": v}


def lion(t, p, g, state, *, lr, betas, weight_decay=0.0, maximize=False, cautious_decay=False, cautious=False):
    """Chen et al. 2023, Algorithm 2: β1 weighs the step, β2 the momentum that is kept; sign(0) = 0."""
    lr, beta1, beta2, weight_decay = numbers(p, lr, *betas, weight_decay)
    g = -g if maximize else g
    update = np.sign(beta1 * state["m"] + (1 - beta1) * g)
    update = masked(update, g) if cautious else update
    m = beta2 * state["m"] + (1 - beta2) * g
    decay = weight_decay * p
    return p - lr * (update + (cautiously(p, update, decay) if cautious_decay else decay)), {"m": m}


def lamb(t, p, g, state, *, lr, betas, eps, weight_decay=0.0, bias_correction=True, maximize=False):
    """You et al. 2020, Algorithm 2, with φ(x) = x, over one layer.

    As in the authors' code the ratio is 1 where p or the direction is 0, and moments may go without their correction.
    """
    lr, beta1, beta2, eps, weight_decay = numbers(p, lr, *betas, eps, weight_decay)
    g = -g if maximize else g
    m = beta1 * state["m"] + (1 - beta1) * g
    v = beta2 * state["v"] + (1 - beta2) * g**2
    m_hat, v_hat = (m / (1 - beta1**t), v / (1 - beta2**t)) if bias_correction else (m, v)
    direction = m_hat / (np.sqrt(v_hat) + eps) + weight_decay * p
    length, size = np.sqrt(np.sum(direction**2)), np.sqrt(np.sum(p**2))
    ratio = size / length if size > 0 and length > 0 else 1
    return p - lr * ratio * direction, {"m": m, "v": v}


def schedule_free(t, y, u, state, lr, beta, weight_decay, warmup_steps, r, weight_lr_power):
    """Defazio et al. 2024, equations 6 to 8, for a direction u at y: the new y, and the state.

    Departs as the authors' package does: weights of the average are t^r times a power of the largest lr so far, not of
    this one, and no average moves before a weight is above 0. x is told from y = (1 - β)z + βx.
    """
    z, x = state["z"], (y - (1 - beta) * state["z"]) / beta
    gamma = lr * t / warmup_steps if t < warmup_steps else lr
    z = z - gamma * u - gamma * weight_decay * y
    lr_max = np.maximum(state["lr_max"], gamma)
    weight = numbers(y, t)[0] ** r * lr_max**weight_lr_power
    weight_sum = state["weight_sum"] + weight
    c = weight / weight_sum if weight_sum > 0 else 0
    x = (1 - c) * x + c * z
    return (1 - beta) * z + beta * x, {"z": z, "weight_sum": weight_sum, "lr_max": lr_max}


def schedulefreeadamw(t, p, g, state, *, lr, betas, eps, weight_decay=0.0, warmup_steps=0, r=0.0, weight_lr_power=2.0,
                      maximize=False):  # fmt: skip
    """Defazio et al. 2024, Algorithm 1; as in the package the second moment is corrected and γ is not. p is y."""
    lr, beta1, beta2, eps, weight_decay = numbers(p, lr, *betas, eps, weight_decay)
    g = -g if maximize else g
    v = beta2 * state["v"] + (1 - beta2) * g**2
    u = g / (np.sqrt(v / (1 - beta2**t)) + eps)
    y, new = schedule_free(t, p, u, state, lr, beta1, weight_decay, warmup_steps, r, weight_lr_power)
    return y, {**new, "v": v}


def schedulefreesgd(t, p, g, state, *, lr, momentum, weight_decay=0.0, warmup_steps=0, r=0.0, weight_lr_power=2.0,
                    maximize=False):  # fmt: skip
    """Defazio et al. 2024, equations 6 to 8. p is y."""
    lr, beta, weight_decay = numbers(p, lr, momentum, weight_decay)
    return schedule_free(t, p, -g if maximize else g, state, lr, beta, weight_decay, warmup_steps, r, weight_lr_power)


def lars(t, p, g, state, *, lr, momentum=0.9, weight_decay=0.0, trust_coefficient=1e-3, maximize=False):
    """You, Gitman & Ginsburg 2017, Algorithm 1, over one layer; as in timm the local rate is 1 where p or g is 0."""
    lr, momentum, weight_decay, eta = numbers(p, lr, momentum, weight_decay, trust_coefficient)
    g = -g if maximize else g
    size, slope = np.sqrt(np.sum(p**2)), np.sqrt(np.sum(g**2))
    local = eta * size / (slope + weight_decay * size) if size > 0 and slope > 0 else 1
    u = lr * local * (g + weight_decay * p)
    if momentum == 0:
        return p - u, {}
    m = momentum * state["m"] + u
    return p - m, {"m": m}


def stableadamw(t, p, g, state, *, lr, betas, eps, weight_decay=0.0, maximize=False):
    """Wortsman et al. 2023, Algorithm 2, over one layer."""
    lr, beta1, beta2, eps, weight_decay = numbers(p, lr, *betas, eps, weight_decay)
    g = -g if maximize else g
    beta1, beta2 = (beta * (1 - beta ** (t - 1)) / (1 - beta**t) for beta in (beta1, beta2))
    v = beta1 * state["m"] + (1 - beta1) * g
    u = beta2 * state["v"] + (1 - beta2) * g**2
    rms = np.sqrt(np.mean(g**2 / np.maximum(u, eps**2)))
    eta = lr / np.maximum(1, rms)
    return p - eta * weight_decay * p - eta * v / (np.sqrt(u) + eps), {"m": v, "v": u}


def prodigy(t, p, g, state, *, lr, betas, eps, d0, beta3=None, weight_decay=0.0, decouple=True,
            use_bias_correction=False, safeguard_warmup=False, d_coef=1.0, growth_rate=None,
            maximize=False):  # fmt: skip
    """Mishchenko & Defazio 2024, Algorithm 4, over one layer; d and d_max of 0 stand for d0.

    Departs as the authors' package does: r and s without the factor (1 - √β2)·d0 that both have, √β2 may be another
    β3, γ may have Adam's correction and be left out of s, d_{k+1} in place of d_k beside ε, d_coef times the estimate,
    which once above d0 makes d grow by growth_rate at the most; where every s is 0 nothing is estimated.
    """
    lr, beta1, beta2, eps, weight_decay, d0, d_coef = numbers(p, lr, *betas, eps, weight_decay, d0, d_coef)
    root = np.sqrt(beta2) if beta3 is None else numbers(p, beta3)[0]
    d, d_max, r = (x for x in (state["d"] or d0, state["d_max"] or d0, state["d_numerator"]))
    gamma = lr * np.sqrt(1 - beta2**t) / (1 - beta1**t) if use_bias_correction else lr
    g = -g if maximize else g
    g = g if decouple else g + weight_decay * p
    m = beta1 * state["m"] + (1 - beta1) * d * g
    v = beta2 * state["v"] + (1 - beta2) * d**2 * g**2
    s = root * state["s"] + (1 if safeguard_warmup else gamma) * d**2 / d0 * g
    new = {"m": m, "v": v, "s": s, "p0": state["p0"], "d": d, "d_max": d_max, "d_numerator": r}
    if np.sum(np.abs(s)) > 0:
        r = new["d_numerator"] = root * r + gamma * d**2 / d0 * np.sum(g * (state["p0"] - p))
        estimate = d_coef * r / np.sum(np.abs(s))
        new["d_max"] = np.maximum(d_max, estimate)
        most = np.maximum(d, estimate) if d <= d0 else d
        new["d"] = new["d_max"] if growth_rate is None else np.minimum(new["d_max"], most * growth_rate)
    decay = weight_decay * p if decouple else 0 * p
    return p - gamma * d * (m / (np.sqrt(v) + new["d"] * eps) + decay), new


def sgd(t, p, g, state, *, lr, momentum=0.0, dampening=0.0, weight_decay=0.0, nesterov=False, maximize=False,
        lr_in_momentum=False):  # fmt: skip
    """Sutskever et al. 2013, equations 1-4, in torch's form.

    Departs as torch does: lr multiplies the step, not what momentum gathers; the first m is g itself, undampened;
    Nesterov's look-ahead is g + momentum·m.
    lr_in_momentum: the paper's own form, and Keras's: the velocity gathers -lr·g, and is added to p.
    """
    lr, momentum, dampening, weight_decay = numbers(p, lr, momentum, dampening, weight_decay)
    g = (-g if maximize else g) + weight_decay * p
    if momentum == 0:
        return p - lr * g, {}
    if lr_in_momentum:
        velocity = momentum * state["m"] - lr * ((1 - dampening) * g if t > 1 else g)
        return p + (momentum * velocity - lr * g if nesterov else velocity), {"m": velocity}
    m = momentum * state["m"] + (1 - dampening) * g if t > 1 else g
    return p - lr * (g + momentum * m if nesterov else m), {"m": m}


def rmsprop(t, p, g, state, *, lr, alpha, eps, weight_decay=0.0, momentum=0.0, centered=False, maximize=False,
            eps_hat=False):  # fmt: skip
    """Hinton 2012, lecture 6e; centered and with momentum: Graves 2013, equations 38-41.

    Departs as torch does: eps is outside the root, lr outside the momentum. Departs from torch too: the centered
    variance is clamped at 0, which rounding can undercut.
    eps_hat: Graves's form, with eps inside the root and lr inside the momentum, as in Keras.
    """
    lr, alpha, eps, weight_decay, momentum = numbers(p, lr, alpha, eps, weight_decay, momentum)
    g = (-g if maximize else g) + weight_decay * p
    v = alpha * state["v"] + (1 - alpha) * g**2
    new = {"v": v}
    if centered:
        mean = new["mean"] = alpha * state["mean"] + (1 - alpha) * g
        v = np.maximum(v - mean**2, 0)
    step = g / (np.sqrt(v + eps) if eps_hat else np.sqrt(v) + eps)
    if eps_hat:
        step = lr * step
    if momentum > 0:
        step = new["m"] = momentum * state["m"] + step
    return p - step if eps_hat else p - lr * step, new


def adagrad(t, p, g, state, *, lr, eps, lr_decay=0.0, weight_decay=0.0, initial_accumulator_value=0.0, maximize=False,
            eps_hat=False):  # fmt: skip
    """Duchi et al. 2011, Figure 1 (diagonal); torch adds lr_decay and coupled decay.

    initial_accumulator_value is where the sum starts, see `start`; the step itself does not use it.
    eps_hat: Keras adds eps inside the root.
    """
    lr, eps, lr_decay, weight_decay = numbers(p, lr, eps, lr_decay, weight_decay)
    g = (-g if maximize else g) + weight_decay * p
    total = state["sum"] + g**2
    root = np.sqrt(total + eps) if eps_hat else np.sqrt(total) + eps
    return p - lr / (1 + (t - 1) * lr_decay) * g / root, {"sum": total}


def muon(t, p, g, state, *, lr, weight_decay, momentum, nesterov=True, ns_coefficients=(3.4445, -4.775, 2.0315),
         ns_steps=5, eps=1e-7, adjust="original", maximize=False):  # fmt: skip
    """Jordan et al. 2024, with decoupled decay; adjust: Liu et al. 2025, section 2.2. One matrix, no element alone.

    Departs as torch does: the momentum is a mean, (1 - μ) times the paper's, which the iteration does not see.
    """
    lr, weight_decay, momentum, a, b, c, eps = numbers(p, lr, weight_decay, momentum, *ns_coefficients, eps)
    g = -g if maximize else g
    m = momentum * state["m"] + (1 - momentum) * g
    x = momentum * m + (1 - momentum) * g if nesterov else m
    rows, columns = x.shape
    x = x.T if rows > columns else x
    x = x / np.maximum(np.sqrt(np.sum(x**2)), eps)
    for _ in range(ns_steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    x = x.T if rows > columns else x
    ratio = numbers(p, max(1, rows / columns) if adjust == "original" else 0.04 * max(rows, columns))[0] ** 0.5
    return p - lr * weight_decay * p - lr * ratio * x, {"m": m}


ORACLES = {
    f.__name__: f
    for f in (adam, adamw, nadam, radam, adamax, adabelief, adopt, ademamix, lion, lamb, lars, stableadamw, prodigy,
              sgd, rmsprop, adagrad, schedulefreeadamw, schedulefreesgd)
}  # fmt: skip


def start(name, p, *, amsgrad=False, momentum=0.0, centered=False, initial_accumulator_value=0.0, **_):
    """The state before step 1: zeros, but for NAdam's product and Adagrad's sum. Takes all hyperparameters."""
    vmax = ["vmax"] if amsgrad else []
    mean = ["mean"] if centered else []
    m = ["m"] if momentum != 0 else []
    keys = {
        "adam": ["m", "v", *vmax],
        "adamw": ["m", "v", *vmax],
        "nadam": ["m", "v"],
        "radam": ["m", "v"],
        "adamax": ["m", "u"],
        "adabelief": ["m", "s"],
        "adopt": ["m", "v"],
        "ademamix": ["m1", "m2", "v"],
        "lion": ["m"],
        "lamb": ["m", "v"],
        "schedulefreeadamw": ["v"],
        "schedulefreesgd": [],
        "lars": m,
        "prodigy": ["m", "v", "s"],
        "stableadamw": ["m", "v"],
        "sgd": m,
        "rmsprop": ["v", *mean, *m],
        "adagrad": ["sum"],
    }
    state = {key: np.zeros_like(p) for key in keys[name]}
    if name == "nadam":
        (state["mu_product"],) = numbers(p, 1)
    if name.startswith("schedulefree"):
        state |= {"z": p.copy(), "weight_sum": numbers(p, 0)[0], "lr_max": numbers(p, 0)[0]}
    if name == "prodigy":
        state |= {"p0": p.copy(), **dict.fromkeys(("d", "d_max", "d_numerator"), numbers(p, 0)[0])}
    if name == "adagrad":
        state["sum"] += initial_accumulator_value
    return state
