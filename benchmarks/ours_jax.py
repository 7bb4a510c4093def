"""Makes the contestant fastadam.jax: optax's form and calls, with another transformation."""

from .peers import Optax


class FastadamJax(Optax):
    """Is fastadam.jax under jit, parameters and state donated."""

    name, install, needs = "fastadam.jax", "pip install 'fastadam[jax]'", ("optax", "jax")
    peer, needs_wall = False, False
    on_request = "is timed by the suite jax"

    @staticmethod
    def transform(method, values):
        """Return fastadam.jax's transformation for a method with these hyperparameters."""
        import fastadam.jax

        if method == "SGD":
            return fastadam.jax.sgd(values["lr"], values["momentum"] or None, values["nesterov"])
        told = {"eps"} if method == "Adam" else {"eps", "weight_decay"} if method == "AdamW" else {"weight_decay"}
        return getattr(fastadam.jax, method.lower())(values["lr"], *values["betas"], **{k: values[k] for k in told})
