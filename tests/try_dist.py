"""Install each distribution of a folder in an empty environment, and try it (`make dist`).

It runs outside the repository, so that missing files are noticed.
"""

import subprocess
import sys
import tempfile
import venv
from pathlib import Path

LIBRARY = """
import pathlib, jax.numpy as jnp, optax, metajax
algorithm = metajax.maml(lambda p, b, rng: (jnp.mean((p * b - 1) ** 2), {}), optax.sgd(0.1), 2)
task = metajax.Task(jnp.ones(3), jnp.ones(3))
grads, info = algorithm.meta_grad(jnp.float32(0), task, None)
assert grads < 0, grads
assert "site-packages" in metajax.__file__, metajax.__file__
assert pathlib.Path(metajax.__file__).with_name("py.typed").is_file()
"""


def main() -> None:
    """Try the wheel and the sdist in the folder given on the command line."""
    files = sorted(Path(sys.argv[1]).resolve().glob("metajax-*"))
    assert len(files) == 2, (
        f"{sys.argv[1]}: holds {len(files)} distributions, not a wheel and an sdist"
    )
    for file in files:
        with tempfile.TemporaryDirectory() as scratch:
            venv.create(f"{scratch}/venv", with_pip=True)
            python = f"{scratch}/venv/bin/python"
            for command in (
                [python, "-m", "pip", "install", "--quiet", f"{file}[report]"],
                [python, "-c", LIBRARY],
                [f"{scratch}/venv/bin/metajax", "--help"],
                *([[f"{scratch}/venv/bin/metajax", "demo"]] if file.suffix == ".whl" else []),
            ):
                subprocess.run(command, check=True, cwd=scratch)
        print(f"{file.name}: works", flush=True)


if __name__ == "__main__":
    main()
