r"""Meta-train a policy on goals in the plane, so that it reaches a new goal after three steps.

Claim: after one policy-gradient step the return is level with the paper's -11.68. After two and
three steps it is above the paper's -3.33 and -3.23.
Paper: Finn, Abbeel & Levine 2017 (arXiv:1703.03400), section 5.3, figure 4, appendix A.2, table 4.
Command: XLA_FLAGS=--xla_cpu_multi_thread_eigen=false python -m experiments.navigation --seed 0 \
    --methods maml++ random
Hardware and time: one CPU core, 17 to 60 minutes while other jobs run.
Expect: with 40 trajectories maml++ has -11.77, -3.05 and -1.63. Without meta-learning: -124.89,
-41.28 and -36.48. logs/navigation.md has the other methods.

A point starts at the origin. Each task is a goal in the square [-0.5, 0.5]^2. The point does not
see the goal: it observes its position and chooses a velocity, clipped to 0.1 in each direction. The
reward is minus the distance to the goal. The paper says the squared distance, but the authors' code
(cbfinn/maml_rl, point_env_randgoal.py) uses the distance. Only this fits the paper's -40.41 before
adaptation: staying at the origin returns -38.3 with distances and -16.7 with squares. As in their
code, an episode ends after 100 steps, or when both coordinates are within 0.01 of the goal. The
policy has two hidden layers of 100 with ReLU, and is Gaussian with one deviation per direction.

Both loops use likelihood-ratio policy gradients (REINFORCE): trajectories are constants, and
nothing is differentiated through the dynamics. The meta-gradient includes how the sampled actions
depend on the parameters before adaptation (the low-variance curvature of Rothfuss et al. 2019,
arXiv:1810.06784). The paper's surrogate loses this term. Neither includes the effect of an action
on later positions: the unbiased estimate of it (DiCE, Foerster et al. 2018) was too noisy.

As in the paper: 20 trajectories per gradient in training and 40 in testing (here also 20), a linear
baseline on features of position and time, and half the rate after the first step of testing.
Different from the paper: Adam instead of TRPO; the baseline is fitted to the trajectories that it
is used on; a discount of 0.8 instead of 0.99, because the reward shows at once whether an action
was good; advantages are not divided by their deviation, so steps shrink near the goal, and rates
are 1 instead of 0.1; 40 tasks per step instead of 20; the deviation starts at 0.7 of the largest
velocity. "maml" is trained for one step, as in the paper, and "maml++" for three steps at once,
with learned rates.
"""

import argparse
import functools
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

import metajax
from experiments.numbers import check_numbers, steps_header
from metajax import Estimate, LossFn, MetaAlgorithm
from metajax.types import Key, Params, PyTree

SIZES = (2, 100, 100, 2)
DISCOUNT = 0.8
PAPER = {0: -40.41, 1: -11.68, 2: -3.33, 3: -3.23}


class Paths(NamedTuple):
    """B trajectories of T steps.

    Attributes:
        position: [T, B, 2] before each step.
        action: [T, B, 2] in units of the largest velocity, before clipping.
        reward: [T, B] zero after the end of an episode.
        alive: [T, B] bool, true while the episode runs.
    """

    position: jax.Array
    action: jax.Array
    reward: jax.Array
    alive: jax.Array


def init(rng: Key) -> Params:
    """Initialize a Gaussian policy: a network for the mean, and one deviation per direction."""
    draw = jax.nn.initializers.glorot_uniform()
    keys = jax.random.split(rng, len(SIZES) - 1)
    layers = [
        {"kernel": draw(key, (size_in, size_out)), "bias": jnp.zeros(size_out)}
        for key, size_in, size_out in zip(keys, SIZES, SIZES[1:])
    ]
    return {"layers": layers, "log_std": jnp.full(2, jnp.log(0.7))}


def policy(params: Params, position: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return mean [..., 2] and deviation [2] of the action at each position [..., 2]."""
    hidden = position
    for layer in params["layers"][:-1]:
        hidden = jax.nn.relu(hidden @ layer["kernel"] + layer["bias"])
    mean = hidden @ params["layers"][-1]["kernel"] + params["layers"][-1]["bias"]
    return mean, jnp.exp(params["log_std"])


def rollout(params: Params, goal: jax.Array, rng: Key, count: int, horizon: int) -> Paths:
    """Sample `count` trajectories of the policy from the origin to the goal [2]."""

    def step(
        carry: tuple[jax.Array, jax.Array], noise: jax.Array
    ) -> tuple[tuple[jax.Array, jax.Array], Paths]:
        position, alive = carry
        mean, std = policy(params, position)
        action = mean + std * noise
        moved = position + 0.1 * jnp.clip(action, -1, 1)
        reward = -jnp.linalg.norm(moved - goal, axis=-1) * alive
        arrived = jnp.all(jnp.abs(moved - goal) < 0.01, axis=-1)
        return (moved, alive & ~arrived), Paths(position, action, reward, alive)

    start = jnp.zeros((count, 2)), jnp.ones(count, bool)
    return jax.lax.scan(step, start, jax.random.normal(rng, (horizon, count, 2)))[1]


def advantages(paths: Paths) -> jax.Array:
    """Return advantages [T, B]: discounted future rewards minus a linear baseline."""

    def add(later: jax.Array, reward: jax.Array) -> tuple[jax.Array, jax.Array]:
        total = reward + DISCOUNT * later
        return total, total

    to_go = jax.lax.scan(add, jnp.zeros(paths.reward.shape[1]), paths.reward, reverse=True)[1]
    moment = jnp.arange(len(to_go))[:, None, None] / 100 * jnp.ones_like(paths.position[..., :1])
    powers = moment ** jnp.arange(4)
    features = jnp.concatenate([paths.position, paths.position**2, powers], axis=-1)
    seen = features * paths.alive[..., None]
    # Ridge regression, because features may be almost constant, for example time in short episodes.
    gram = jnp.einsum("tbi,tbj->ij", seen, seen) / paths.alive.sum() + 1e-5 * jnp.eye(8)
    moments = jnp.einsum("tbi,tb->i", seen, to_go) / paths.alive.sum()
    return (to_go - features @ jnp.linalg.solve(gram, moments)) * paths.alive


def loss_fn(
    params: Params,
    goal: jax.Array,
    rng: Key | None,
    *,
    trajectories: int = 20,
    horizon: int = 100,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Return a loss of value 0 whose gradient is the policy gradient for a goal [2].

    Each action's likelihood is divided by a constant of the same value. The first derivative is
    that of the log-likelihood. The second derivative has a term that the log-likelihood lacks: how
    the distribution of the sampled actions depends on the parameters.
    """
    assert rng is not None
    paths = jax.lax.stop_gradient(rollout(params, goal, rng, trajectories, horizon))
    log_likelihood = jax.scipy.stats.norm.logpdf(paths.action, *policy(params, paths.position))
    log_likelihood = log_likelihood.sum(-1)
    ratio = jnp.exp(log_likelihood - jax.lax.stop_gradient(log_likelihood))
    loss = -jnp.mean(ratio * jax.lax.stop_gradient(advantages(paths)))
    return loss, {"return": paths.reward.sum(0).mean()}


def goals(rng: Key, count: int) -> metajax.Task:
    """Sample goals [count, 2] from the unit square around the origin."""
    goal = jax.random.uniform(rng, (count, 2), minval=-0.5, maxval=0.5)
    return metajax.Task(support=goal, query=goal)


class Method(NamedTuple):
    """A way to train a policy, and how the policy is adapted.

    Attributes:
        algorithm: the algorithm that trains it, or a function of the outer step. None: no training.
        adapting: maps `(meta_params, loss_fn, k)` to the algorithm, and its meta_params, that takes
            k steps on a new goal.
    """

    algorithm: MetaAlgorithm | Callable[[jax.Array], MetaAlgorithm] | None
    adapting: Callable[[PyTree, LossFn, int], tuple[MetaAlgorithm, PyTree]]


def at_rate(rate: float) -> Callable[[PyTree, LossFn, int], tuple[MetaAlgorithm, PyTree]]:
    """Adapt with one rate, and with half of it after the first step, as in the paper."""
    halved = optax.schedules.piecewise_constant_schedule(rate, {1: 0.5})
    return lambda params, loss, k: (metajax.maml(loss, optax.sgd(halved), k), params)


def at_learned_rates(params: PyTree, loss: LossFn, k: int) -> tuple[MetaAlgorithm, PyTree]:
    """Adapt with the learned rates of the first k steps."""
    if k == 0:
        return metajax.maml(loss, optax.sgd(0.0), 0), params["params"]
    rates = jax.tree.map(lambda rate: rate[:k], params["rates"])
    return metajax.maml_plus_plus(loss, 1.0, k), params | {"rates": rates}


METHODS = {
    # It is tested after each step, so it is trained for each: the loss weights are not annealed.
    "maml++": Method(
        lambda step: metajax.maml_plus_plus(loss_fn, 1.0, 3, step=step, multi_step=10**9),
        at_learned_rates,
    ),
    "maml": Method(metajax.maml(loss_fn, optax.sgd(1.0), 1), at_rate(1.0)),
    "pretrained": Method(metajax.maml(loss_fn, optax.sgd(1.0), 0), at_rate(1.0)),
    "random": Method(None, at_rate(1.0)),
}


def train(method: Method, seed: int, num_steps: int, *, meta_batch_size: int = 40) -> PyTree:
    """Train a policy in one compiled loop."""
    init_key, goal_key, step_key = jax.random.split(jax.random.key(seed), 3)
    if method.algorithm is None:
        return init(init_key)
    rate = optax.schedules.linear_schedule(5e-3, 0.0, num_steps)
    outer = metajax.outer_loop(
        method.algorithm,
        optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate)),
        devices=jax.devices()[:1],
    )

    def step(state: metajax.OuterState, index: jax.Array) -> tuple[metajax.OuterState, None]:
        tasks = goals(jax.random.fold_in(goal_key, index), meta_batch_size)
        return outer.step(state, tasks)[0], None

    run = jax.jit(lambda state: jax.lax.scan(step, state, jnp.arange(num_steps))[0])
    return run(outer.init(init(init_key), step_key)).meta_params


def judge(
    method: Method, meta_params: PyTree, k: int, trajectories: int, episodes: int, seed: int
) -> Estimate:
    """Return the mean return after k steps, on new goals that are the same for all methods."""
    loss = functools.partial(loss_fn, trajectories=trajectories)
    algorithm, meta_params = method.adapting(meta_params, loss, k)
    goal_key, key = jax.random.split(jax.random.fold_in(jax.random.key(seed), 2017))
    result = metajax.evaluate(algorithm, meta_params, goals(goal_key, episodes), key)
    return Estimate(*result.query_aux["return"])


def main(arguments: list[str] | None = None) -> None:
    """Train with each method, and print the returns next to the paper's."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--episodes", type=int, default=1000, help="number of goals to test on")
    parser.add_argument("--trajectories", type=int, nargs="+", default=[20, 40], help="a step")
    settings = parser.parse_args(arguments)
    check_numbers(
        parser,
        settings.seed,
        steps=settings.steps,
        episodes=settings.episodes,
        trajectories=min(settings.trajectories),
    )
    print(f"{'return':<12}{'trajectories':>12}{steps_header(PAPER)}{'training':>12}")
    for name in settings.methods:
        began, method = time.perf_counter(), METHODS[name]
        meta_params = jax.block_until_ready(train(method, settings.seed, settings.steps))
        seconds = f"{time.perf_counter() - began:.0f} s"
        for trajectories in settings.trajectories:
            row = ""
            for k in PAPER:
                returns = judge(
                    method, meta_params, k, trajectories, settings.episodes, settings.seed
                )
                row += f"{f'{returns.mean:.2f} ± {returns.ci95:.2f}':>16}"
            print(f"{name:<12}{trajectories:>12}{row}{seconds:>12}", flush=True)
    print(f"{'the paper':<12}{40:>12}" + "".join(f"{value:>16.2f}" for value in PAPER.values()))


if __name__ == "__main__":
    main()
