import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import problems
import torch

from metajax.training.optimizer import adamw, learning_rate

PARAMS = {
    "dense": {"kernel": np.linspace(-1, 1, 6).reshape(2, 3), "bias": np.linspace(0.1, 0.3, 3)},
    "norm": {"scale": np.ones(3), "bias": np.zeros(3) + 0.2},
}


def test_the_schedule_rises_and_falls():
    schedule = learning_rate(2.0, num_steps=110, warmup_steps=10)
    steps = [0, 5, 10, 60, 110, 200]
    np.testing.assert_allclose([schedule(s) for s in steps], [0, 1, 2, 1, 0, 0], atol=1e-6)


def test_the_schedule_without_a_warm_up_starts_at_the_peak():
    schedule = learning_rate(2.0, num_steps=10, warmup_steps=0)
    np.testing.assert_allclose([schedule(s) for s in (0, 5, 10)], [2, 1, 0], atol=1e-6)


def test_ten_steps_agree_with_pytorch(x64):
    """Gradients of every size, so that clipping acts on some steps and not on others."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(10, 5, 2)) * np.logspace(-2, 3, 10)[:, None, None]
    schedule = learning_rate(0.1, num_steps=10, warmup_steps=3)

    optimizer = adamw(schedule, weight_decay=0.1, clip_norm=1.0)
    params = jax.tree.map(jnp.asarray, PARAMS)
    state = optimizer.init(params)

    def loss(params, x):
        hidden = x @ params["dense"]["kernel"] + params["dense"]["bias"]
        return ((hidden * params["norm"]["scale"] + params["norm"]["bias"]) ** 2).mean()

    @jax.jit
    def step(params, state, x):
        updates, state = optimizer.update(jax.grad(loss)(params, x), state, params)
        return jax.tree.map(jnp.add, params, updates), state

    theirs = jax.tree.map(lambda leaf: torch.tensor(leaf, requires_grad=True), PARAMS)
    kernel = theirs["dense"]["kernel"]
    others = [theirs["dense"]["bias"], theirs["norm"]["scale"], theirs["norm"]["bias"]]
    torch_optimizer = torch.optim.AdamW(
        [{"params": [kernel], "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    )
    norms = []
    for k in range(10):
        params, state = step(params, state, x[k])

        torch_optimizer.zero_grad()
        loss(theirs, torch.tensor(x[k])).backward()
        norms.append(torch.nn.utils.clip_grad_norm_([kernel, *others], 1.0).item())
        for group in torch_optimizer.param_groups:
            group["lr"] = float(schedule(k))
        torch_optimizer.step()

    assert min(norms) < 1 < max(norms)
    for name in ("dense", "norm"):
        for leaf, value in params[name].items():
            # PyTorch's clipping adds 1e-6 to the norm.
            np.testing.assert_allclose(value, theirs[name][leaf].detach().numpy(), rtol=2e-6)


def test_only_kernels_that_the_loss_sees_decay(x64):
    """Without gradients nothing else moves."""
    kernel = jnp.array([[2.0, -3.0]])
    layer = {"kernel": kernel, "bias": jnp.ones(2)}
    params = {
        "pooler": layer,
        "poolers": {"pooler": layer},
        "layers": {"norm": {"scale": jnp.ones(2), "bias": jnp.ones(2)}, "up": layer},
    }
    optimizer = adamw(0.1, weight_decay=0.5, clip_norm=1.0, fixed=("pooler/", "heads/"))
    still = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(still, optimizer.init(params), params)
    expected = {
        **still,
        "poolers": {"pooler": {**still["pooler"], "kernel": -0.05 * kernel}},
        "layers": {**still["layers"], "up": {**still["pooler"], "kernel": -0.05 * kernel}},
    }
    assert problems.relative_gap(updates, expected) < 1e-12
    everywhere = adamw(0.1, weight_decay=0.5, clip_norm=1.0)
    updates, _ = everywhere.update(still, everywhere.init(params), params)
    np.testing.assert_allclose(updates["pooler"]["kernel"], -0.05 * kernel, rtol=1e-12)


def test_learned_rates_have_a_learning_rate_of_their_own_and_do_not_decay():
    params = jax.tree.map(np.float32, {"params": PARAMS, "rates": PARAMS})
    grads = jax.tree.map(np.ones_like, params)

    def updates(**changes):
        optimizer = adamw(0.01, weight_decay=0.5, clip_norm=100.0, **changes)
        return optimizer.update(grads, optimizer.init(params), params)[0]

    found = updates(rates_factor=20.0)
    # Adam's first step is its rate.
    moved = jax.tree.map(lambda leaf: np.full_like(leaf, -20 * 0.01), PARAMS)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found["rates"], moved)
    for ours, theirs in zip(jax.tree.leaves(found["params"]), jax.tree.leaves(updates()["params"])):
        np.testing.assert_array_equal(ours, theirs)


def test_an_update_stores_the_gradient_once():
    """Clipping adds no second copy of it."""
    optimizer = adamw(0.1, weight_decay=0.1, clip_norm=1.0)
    params = {"kernel": jnp.ones((256, 256))}
    x = jnp.ones((8, 256))

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state):
        grads = jax.grad(lambda params: ((x @ params["kernel"]) ** 2).sum())(params)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    memory = step.lower(params, optimizer.init(params)).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 1.2 * params["kernel"].nbytes
