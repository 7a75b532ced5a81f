"""What a causal aggregator saves: a state for every length, imagining K steps ahead, and a stream without an end.

The paper's aggregator and a CausalAggregator of the same size take turns in one process, on encoded views, without
gradient. On a CPU the time is that of the process, which other programs on the machine do not change.

    python benchmarks/sequences.py                     # the paper's width on one thread, or on the GPU
    python benchmarks/sequences.py --sources 64        # more sources at a time
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from seqjepa import ActionEmbedder, CausalAggregator, ConditionedPredictor, SeqJEPA, SequenceAggregator

WINDOW = 32


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Time of one call: of the process on a CPU, by the wall on a GPU, its queue included."""
    if device.type != "cuda":
        start = time.process_time()
        work()
        return time.process_time() - start
    torch.cuda.synchronize(device)
    start = time.perf_counter()
    work()
    torch.cuda.synchronize(device)
    return time.perf_counter() - start


def in_turns(works: list[Callable[[], object]], rounds: int, device: torch.device) -> list[float]:
    """The median time of each piece of work, in turns, after a round of warm-up, in ms."""
    times = [[seconds(work, device) for work in works] for _ in range(rounds + 1)][1:]
    return [1e3 * statistics.median(column) for column in zip(*times, strict=True)]


def model(aggregator: nn.Module, device: torch.device) -> SeqJEPA:
    """The paper's model of encoded views, D = 512 and E = 128, around an aggregator."""
    embedder, predictor = ActionEmbedder(4), ConditionedPredictor(640, 128, 512)
    return SeqJEPA(nn.Identity(), embedder, aggregator, predictor).to(device).eval()


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sources", type=int, default=8, help="sources at a time, B")
    parser.add_argument("--lengths", type=int, nargs="+", default=[4, 8, 32, 100], help="views of a source, T")
    parser.add_argument("--ahead", type=int, nargs="+", default=[1, 4, 16, 64], help="imagined steps, K")
    parser.add_argument("--stream", type=int, nargs="+", default=[10, 100, 1000], help="views of a stream until then")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device, b = torch.device(args.device), args.sources
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    print(f"{name}, {args.threads} CPU threads, torch {torch.__version__}, B = {b}, S = 640, three layers\n")
    paper, causal = model(SequenceAggregator(640), device), model(CausalAggregator(640), device)

    def row(label: str, work: Callable[[SeqJEPA], object]) -> None:
        first, second = in_turns([partial(work, paper), partial(work, causal)], args.rounds, device)
        print(f"| {label} | {first:.1f} | {second:.1f} | {first / second:.1f} |", flush=True)

    def sequence(t: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.randn(b, t, 512, device=device), torch.randn(b, t - 1, 128, device=device)

    print("| | the paper's, ms | causal, ms | ratio |\n|---|---|---|---|")
    for t in args.lengths:
        z, e = sequence(t)
        row(f"one state, T = {t}", partial(SeqJEPA.aggregate, z=z, e=e))
    for t in args.lengths:
        z, e = sequence(t)
        row(f"a state for every length, T = {t}", partial(SeqJEPA.aggregate_prefixes, z=z, e=e))
    z, e = sequence(3)
    for k in args.ahead:
        future = torch.randn(b, k, 4, device=device)
        row(f"imagining, T = 3, K = {k}", partial(SeqJEPA.imagine_from, z=z, e=e, future_actions=future))

    print(f"\n| views so far | a step, window {WINDOW}, ms | a step, no window, ms |\n|---|---|---|")
    for views in args.stream:
        tokens = torch.randn(b, views + 2, 640, device=device)
        steps: list[Callable[[], object]] = []
        for window in (WINDOW, None):
            aggregator = CausalAggregator(640, window=window).to(device).eval()
            _, cache = aggregator.step(tokens[:, :views], tokens[:, views], None)
            steps.append(partial(aggregator.step, tokens[:, views], tokens[:, views + 1], cache))
        print(
            f"| {views} | " + " | ".join(f"{ms:.1f}" for ms in in_turns(steps, args.rounds, device)) + " |", flush=True
        )


if __name__ == "__main__":
    main()
