"""Print the lowest versions that pyproject.toml allows, as constraints for pip (`make lowest`)."""

import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
extras = project["optional-dependencies"]
tested = ("test", "report", "gcs", "tensorboard", "wandb")
for requirement in [
    *project["dependencies"],
    *(line for extra in tested for line in extras[extra]),
]:
    if ">=" in requirement:
        print(requirement.partition("[")[0].partition(">")[0] + "==" + requirement.split(">=")[1])
