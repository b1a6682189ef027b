"""`python -m runner --help`, from directory listings alone: Hydra's own takes a second and reads worse."""

from __future__ import annotations

from textwrap import fill

from runner import HOME
from runner.schema import GROUPS

WIDTH = 100
"""Characters: a longer list goes on in the next line, below its beginning."""

USAGE = """\
Fine-tune a text-to-image model with LoRA: compose an experiment, run it, look at its report.

  python -m runner                                       the embedded demo
  python -m runner model=sdxl dataset=folder dataset.path=my_photos lora.rank=16
  python -m runner -m lora.rank=4,8,16 optimizer.lr=1e-4,3e-4        a sweep
  python -m runner launcher.dry_run=true ...             the plan, and nothing else
  python -m runner --cfg job ...                         the composed configuration

Groups, and what can be chosen in each (group=choice):
"""

ENDING = """
Every setting can be overridden as key=value; all of them, with units and defaults: docs/configuration.md.
Your own choices: --config-dir DIR, with DIR/<group>/<choice>.yaml.  Hydra's own flags: --hydra-help.
Results: outputs/<name>/<job id>/ and outputs/<name>/report.html (RUNNER_OUTPUTS moves them).

Beside it, each with a --help of its own (python -m runner.status ...):
  status   how far jobs are                     stop     end what runs elsewhere, after it has saved
  report   report.html anew, from folders       gallery  look at trainings and draw with them, in a browser
  clean    what could be freed, and free it     serve    answer prompts over HTTP, as on SageMaker
  track    log jobs anew to W&B                 image    the image for SageMaker
  doctor   what this machine has for trainings, and lacks
"""


def help_text() -> str:
    """The whole page."""
    width = max(map(len, GROUPS)) + 2
    recipes = sorted(file.stem for file in (HOME / "recipes").glob("*.yaml"))
    groups = {**{group: choices(group) for group in GROUPS}, "recipe": recipes}
    lines = [
        fill(f"  {group:<{width}}{', '.join(names)}", WIDTH, subsequent_indent=" " * (width + 2)) + "\n"
        for group, names in groups.items()
    ]
    return USAGE + "".join(lines) + ENDING


def choices(group: str) -> list[str]:
    """The choices of a group that come with the project."""
    return sorted(file.stem for file in (HOME / "conf" / group).glob("*.yaml"))
