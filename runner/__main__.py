"""`python -m runner`: Hydra composes what the command line says, and only here."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

from runner import HOME
from runner.errors import Defect, Detached, Interrupted, RunnerError, SettingsError
from runner.system.printable import log_to, printable


def main() -> None:
    """Run the command line; exits with 0, 1 (a job failed), 2 (nothing was started), 130 (interrupted)."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        from runner.command.help import help_text

        sys.stdout.write(help_text())
        return
    # By default Hydra prints its own errors one at a time and ends the process; make it raise them instead.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        _compose_and_launch()
    except SettingsError as error:
        _end(str(error), code=2)
    except Interrupted as error:
        _end(str(error), code=130)
    except KeyboardInterrupt:  # while nothing was training: before it, or while writing the report
        _end("interrupted: run the same command again to go on", code=130)
    except Detached as error:
        sys.stdout.write(printable(f"{error}\n"))
    except RunnerError as error:
        _end(str(error), code=1)
    except Defect as error:
        raise (error.__cause__ or error) from None
    except OSError as error:
        places = "outputs (RUNNER_OUTPUTS), caches (RUNNER_CACHE) and data must be folders that can be used"
        _end(f"{error}; {places}", code=2)


def _compose_and_launch() -> None:
    import hydra
    from hydra._internal.utils import get_args_parser
    from hydra.errors import HydraException
    from omegaconf import DictConfig
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    from runner.command.typed import flags_first

    sys.argv[1:], wrong_flags = flags_first(sys.argv[1:])
    options = get_args_parser().parse_args(sys.argv[1:])
    if options.info is None:  # which Hydra logs through its own handler
        log_to(sys.stdout, logging.INFO)
    _refuse_folder(options.config_dir)
    if wrong_flags:
        from runner.command.diagnose import diagnose

        raise diagnose(sys.argv[1:], None, wrong_flags)
    failure: list[RunnerError | OSError] = []

    @hydra.main(version_base=None, config_path=str(HOME / "conf"), config_name="config")
    def compose(config: DictConfig) -> None:
        from runner.command.entry import single

        try:
            single(config)
        except (RunnerError, OSError) as error:  # raised in here, Hydra would print its own line about it
            failure.append(error)

    try:
        compose()
    # A file that chooses itself recurses without end, and lists cannot remove an item by its number.
    except (HydraException, OmegaConfBaseException, ValueError, YAMLError, RecursionError, TypeError) as error:
        if isinstance(error, RunnerError):
            raise
        from runner.command.diagnose import diagnose

        raise diagnose(sys.argv[1:], error) from error
    if failure:
        raise failure[0]


def _refuse_folder(folder: str | None) -> None:
    # If the folder does not exist, Hydra would warn in its own way, with a line of its source, before it fails; and of
    # two files with the same name it silently uses ours.
    if folder is None:
        return
    if not Path(folder).is_dir():
        choice = Path(folder) / "lora" / "mine.yaml"
        raise SettingsError(
            f"--config-dir {folder}: there is no such folder, nothing was started; give the folder that holds your "
            f"own choices, such as {choice} for lora=mine"
        )
    own = [(file, file.relative_to(HOME / "conf")) for file in (HOME / "conf").rglob("*.yaml")]
    own += [(file, Path("recipe") / file.name) for file in (HOME / "recipes").glob("*.yaml")]
    places = [(file, Path(folder) / name) for file, name in own]
    if taken := sorted(str(place) for file, place in places if place.is_file() and not place.samefile(file)):
        raise SettingsError(
            f"--config-dir {folder}: {', '.join(taken)}: not read, because choices that come with this program have "
            "the same names, and nothing was started; rename these files"
        )


def _end(message: str, *, code: int) -> None:
    sys.stderr.write(printable(message) + "\n")
    sys.exit(code)


if __name__ == "__main__":
    main()
