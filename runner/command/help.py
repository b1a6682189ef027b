"""`python -m runner --help`, from directory listings alone: Hydra's own takes a second and reads worse."""

from __future__ import annotations

from textwrap import fill

from runner import HOME
from runner.schema import GROUPS

WIDTH = 100
"""Characters per line: a longer list continues on the next line, aligned with its start."""

USAGE = """\
Fine-tune a text-to-image model with LoRA: compose an experiment, run it, read its report.

  python -m runner                                       the embedded demo
  python -m runner model=sdxl dataset=folder dataset.path=my_photos lora.rank=16
  python -m runner -m lora.rank=4,8,16 optimizer.lr=1e-4,3e-4        a sweep
  python -m runner launcher.dry_run=true ...             print the plan and stop
  python -m runner --cfg job ...                         print the composed configuration

Groups and their choices (group=choice):
"""

ENDING = """
Override any setting with key=value; docs/configuration.md lists them all, with units and defaults.
Your own choices: --config-dir DIR, with DIR/<group>/<choice>.yaml.  Hydra's own flags: --hydra-help.
Results: outputs/<name>/<job id>/ and outputs/<name>/report.html (RUNNER_OUTPUTS moves them).

Other commands, each with its own --help (python -m runner.status ...):
  status   show the progress of jobs            stop     stop what runs elsewhere, after it has saved
  report   rebuild report.html from folders     gallery  browse trainings and draw with them, in a browser
  clean    show what could be freed, free it    serve    answer prompts over HTTP, as on SageMaker
  track    log jobs to W&B again                image    build and push the image for SageMaker
  doctor   check what this machine has for training, and what it lacks
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
