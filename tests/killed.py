"""Run examples/train.py in forked processes that kill themselves at given moments, again and again until it is done.

    python tests/killed.py RANKS MOMENTS OPTION …

MOMENTS is a list in JSON, one for each attempt until the last, which nothing disturbs: such as "step 5", "write 2",
"fsync 2", "replace 2" (before it), "replaced 2" (after it), or "seconds 1.5" after the start. Where there are several
ranks the last one is killed in a step, rank 0 in a save, and then the others, as torchrun would. Prints how each
attempt ended.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any, NoReturn

NEEDED = (
    "torch._dynamo", "huggingface_hub.hf_api", "safetensors.torch", "einops._torch_specific", "tqdm",
    "sources", "running", "seqjepa.training", "seqjepa.evaluation", "torch.nn.parallel",
)  # fmt: skip
EXAMPLES = Path(__file__).parent.parent / "examples"


def die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def arm(moment: str) -> None:
    """Let this process die at the n-th time that it comes to a place."""
    from seqjepa.training import checkpoints

    place, _, number = moment.partition(" ")
    count = 0

    def due() -> bool:
        nonlocal count
        count += 1
        return count == int(number)

    if place == "seconds":
        threading.Timer(float(number), die).start()
    elif place == "step":
        import seqjepa.training

        seed_step = seqjepa.training.seed_step

        def seed(seed: int, step: int) -> None:
            if step == int(number):
                die()
            seed_step(seed, step)

        seqjepa.training.seed_step = seed
    elif place == "write":

        class Dying:
            """A file in whose middle the process dies."""

            def __init__(self, file: Any, dies: bool) -> None:
                self.file, self.left = file, 100_000 if dies else 1 << 60

            def write(self, data: Any) -> int:
                self.left -= len(data)
                if self.left < 0:
                    self.file.flush()
                    die()
                return int(self.file.write(data))

            def __getattr__(self, name: str) -> Any:
                return getattr(self.file, name)

            def __enter__(self) -> Dying:
                return self

            def __exit__(self, *_: object) -> None:
                self.file.close()

        hooks: Any = checkpoints
        hooks.open = lambda path, mode: Dying(open(path, mode), due())  # noqa: SIM115 it is one
    else:
        name = place.removesuffix("d")
        real = getattr(os, name)

        def hooked(first: Any, *rest: Any) -> None:
            counts = name == "fsync" or "step-" in str(rest)
            dies = counts and due()
            if dies and not place.endswith("d"):
                die()
            real(first, *rest)
            if dies:
                die()

        setattr(os, name, hooked)


def start(rank: int, ranks: int, port: int, moment: str | None, options: list[str]) -> int:
    process = os.fork()
    if process:
        return process
    if ranks > 1:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks))
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    mine = ranks - 1 if moment and moment.startswith("step") else 0
    if moment and rank == mine:
        arm(moment)
    sys.argv = [str(EXAMPLES / "train.py"), *options]
    code = 1
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        code = 1 if isinstance(end.code, str) else end.code or 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def attempt(ranks: int, moment: str | None, options: list[str]) -> list[int]:
    """The exit codes; when one rank ends with an error the others are killed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    alive = {start(rank, ranks, port, moment, options): rank for rank in range(ranks)}
    codes = [0] * ranks
    while alive:
        process, status = os.wait()
        if process not in alive:
            continue
        rank = alive.pop(process)
        codes[rank] = os.waitstatus_to_exitcode(status)
        if codes[rank]:
            time.sleep(0.1)
            for other in alive:
                os.kill(other, signal.SIGKILL)
    return codes


def main() -> None:
    ranks, moments, options = int(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3:]
    sys.path.insert(0, str(EXAMPLES))
    for needed in NEEDED:
        importlib.import_module(needed)  # once here, instead of in each child
    import torch

    torch.set_num_threads(1)
    for moment in [*moments, None]:
        codes = attempt(ranks, moment, options)
        print(json.dumps({"moment": moment, "codes": codes}), flush=True)
        if -signal.SIGKILL not in codes:
            sys.exit(max(codes))


if __name__ == "__main__":
    main()
