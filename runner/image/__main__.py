"""`python -m runner.image build|push|ref`: the image for `launcher=sagemaker`, from this checkout to ECR.

    python -m runner.image build     build it with docker, podman or buildah
    python -m runner.image push      push it to ECR, and print the reference for launcher.image
    python -m runner.image ref       print the reference of the image that was pushed last

What follows `--` after build is passed on to the engine.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from runner.aws.image import note_pushed
from runner.errors import RunnerError
from runner.image.checkout import BASE_IMAGE, DOCKERFILE, checkout, default_tag
from runner.image.engine import ENGINES, Engine
from runner.image.registry import Repository, login_to
from runner.system.printable import log_to

log = logging.getLogger(__name__)

NAME = "lora-runner"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns 0 if it worked, else 1 after logging the reason."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    own, passed_on = (words[: words.index("--")], words[words.index("--") + 1 :]) if "--" in words else (words, [])
    options = _parse(own)
    log_to(sys.stderr, logging.INFO)
    try:
        if options.action == "build":
            _build(options, passed_on)
        elif options.action == "push":
            print(_push(options))
        else:
            print(Repository(options.repository, options.region).latest())
    except RunnerError as error:
        log.error("%s", error)
        return 1
    return 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m runner.image", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=("build", "push", "ref"))
    parser.add_argument(
        "--engine", choices=ENGINES, help="what builds and pushes; default: the first of these that is installed"
    )
    parser.add_argument("--repository", default=NAME, help=f"name of the image and of its repository ({NAME})")
    parser.add_argument(
        "--region", help="region of the repository; default: that of the environment or of the AWS profile"
    )
    parser.add_argument(
        "--base-image",
        default=BASE_IMAGE,
        metavar="IMAGE",
        help="image to build on; it has Python, and torch if possible",
    )
    parser.add_argument("--tag", help="default: the project's version and a hash of what goes into the image")
    return parser.parse_args(arguments)


def _build(options: argparse.Namespace, passed_on: Sequence[str]) -> None:
    root, engine = checkout(), Engine(options.engine)
    if wanted := login_to(options.base_image):
        registry, login = wanted
        engine.login(registry, login.user, login.password)
    engine.build(root, DOCKERFILE, _local(options), {"BASE_IMAGE": options.base_image}, passed_on)
    size = engine.size_bytes(_local(options))
    log.info("built: %s%s", _local(options), "" if size is None else f", {size / 1e9:.2f} GB")


def _push(options: argparse.Namespace) -> str:
    """Push the image that was built with the same options; returns its reference by digest."""
    local = _local(options)
    tag = local.rpartition(":")[2]
    repository = Repository(options.repository, options.region)
    address = repository.make()
    digest = repository.digest(tag)
    if digest is None:
        engine, login = Engine(options.engine), repository.login()
        engine.login(address.partition("/")[0], login.user, login.password)
        engine.push(local, f"{address}:{tag}")
        digest = repository.digest(tag)
    else:
        log.info("%s:%s already exists, and tags are not moved", address, tag)
    if digest is None:
        raise RunnerError(f"{address}:{tag} was pushed, and ECR does not know it; is this the registry of AWS?")
    reference = f"{address}@{digest}"
    note_pushed(repository.region, reference)
    return reference


def _local(options: argparse.Namespace) -> str:
    """The image's name on this machine."""
    return f"{options.repository}:{options.tag or default_tag(checkout(), options.base_image)}"


if __name__ == "__main__":
    sys.exit(main())
