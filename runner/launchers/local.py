"""`launcher=local`: each pack in processes of its own on this machine, so that a crash takes nothing else down."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from runner.job import State, read_manifest, state_of, update_manifest
from runner.plan import Pack, Plan
from runner.schema import LocalLauncher

log = logging.getLogger(__name__)

INTERRUPTED_CODE = 130


def check(settings: LocalLauncher) -> list[str]:
    """Whether the GPUs that are asked for are there."""
    if settings.device != "cuda":
        return []
    gpus = count_gpus()
    if gpus == 0:
        return ["launcher.device = 'cuda': this machine has no NVIDIA GPU; set launcher.device=cpu or auto"]
    if (settings.processes or 1) > gpus:
        return [f"launcher.processes = {settings.processes}: this machine has {gpus} GPUs; lower it"]
    return []


def launch(plan: Plan, settings: LocalLauncher) -> None:
    """Run every pack, `settings.concurrency` at a time, and wait for all of them."""
    alone = settings.concurrency == 1 or len(plan.packs) == 1
    running: set[subprocess.Popen[bytes]] = set()
    stopping = threading.Event()

    def stop(number: int, _frame: object) -> None:
        # Ctrl-C reaches the workers of a terminal by itself, a plain kill does not: pass it on once.
        if not stopping.is_set():
            stopping.set()
            log.info("stopping: every job saves a checkpoint first")
            for process in list(running):
                if number == signal.SIGTERM or not alone:
                    process.send_signal(signal.SIGTERM)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with ThreadPoolExecutor(settings.concurrency) as pool:
            for pack in plan.packs:
                pool.submit(_run, pack, settings, alone, running, stopping)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _run(
    pack: Pack,
    settings: LocalLauncher,
    alone: bool,
    running: set[subprocess.Popen[bytes]],
    stopping: threading.Event,
) -> None:
    if stopping.is_set():
        return
    processes = processes_of(pack, settings)
    command = worker_command([job.folder for job in pack.jobs], processes, settings.device)
    # Alone on the terminal, the worker shows its progress there; it always writes its log itself.
    quiet = None if alone else subprocess.DEVNULL
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=quiet,
        stderr=quiet,
        start_new_session=not alone,
        env=_environment(settings, processes),
    )
    running.add(process)
    try:
        code = process.wait()
    finally:
        running.discard(process)
    for job in pack.jobs:
        settle(job.folder, code)
        if not alone:
            log.info("%s  %s  %s", job.id, state_of(job.folder).value, " ".join(job.overrides))


def settle(folder: Path, code: int) -> None:
    """Give a job whose worker has ended the state that the worker could not write itself."""
    state = state_of(folder)
    if state is State.RUNNING:
        reason = f"the process was killed by signal {-code}" if code < 0 else f"the process ended with code {code}"
        if code == -signal.SIGKILL:
            reason += " (often: out of memory)"
        update_manifest(folder, state=State.FAILED, error=reason)
    elif state is State.PENDING and code not in (0, INTERRUPTED_CODE, -signal.SIGINT, -signal.SIGTERM):
        error = read_manifest(folder).get("error") or f"the process ended with code {code} before this job began"
        update_manifest(folder, state=State.FAILED, error=error)


def processes_of(pack: Pack, settings: LocalLauncher) -> int:
    """Over how many processes a pack is spread: as set, or every GPU that has work, or one."""
    if pack.processes is not None:
        return pack.processes
    if settings.device == "cpu":
        return 1
    return max(1, min(count_gpus(), *(job.experiment.batch_size for job in pack.jobs)))


def count_gpus() -> int:
    """GPUs that a process started here may use; asked of the driver, without importing torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([entry for entry in visible.split(",") if entry.strip() and entry.strip() != "-1"])
    try:
        answer = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return sum(line.startswith("GPU ") for line in answer.stdout.splitlines()) if answer.returncode == 0 else 0


def worker_command(folders: list[Path], processes: int, device: str) -> list[str]:
    """The command that trains the jobs in `folders`; the same in a container as here."""
    worker = ["-m", "runner.work", "--device", device, *map(str, folders)]
    if processes == 1:
        return [sys.executable, *worker]
    # Not `accelerate launch`: with --cpu it starts a single process whatever --num_processes says (1.15).
    distributed = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    return [sys.executable, *distributed, *worker]


def _environment(settings: LocalLauncher, processes: int) -> dict[str, str]:
    # A relative PYTHONPATH or an uninstalled checkout must stay importable from the worker.
    here = str(Path(__file__).resolve().parents[2])
    paths = [here, *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    # More threads than cores are many times slower than too few: they wait for each other spinning.
    threads = max(1, (os.cpu_count() or 1) // (settings.concurrency * processes))
    # GNU OpenMP's threads spin for milliseconds by default before they sleep: on cores that others use too, small
    # operations then take ten times as long and more. This many turns cost 5 % alone (both measured on two cores).
    defaults = {"OMP_NUM_THREADS": str(threads), "GOMP_SPINCOUNT": "30000", "TOKENIZERS_PARALLELISM": "false"}
    return defaults | os.environ | {"PYTHONPATH": os.pathsep.join(path for path in paths if path)}
