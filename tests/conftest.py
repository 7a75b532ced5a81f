"""Shared settings: deterministic draws, one thread a worker, no network; GPU tests are skipped without a GPU."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

# One thread for BLAS too, here and in every process that a test starts: with two on each of two busy cores, threads
# spin while they wait for one another, and scikit-learn's fits take twenty times as long. Read when NumPy is imported.
os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1", HF_HUB_OFFLINE="1")

import hypothesis
import pytest
import torch

# A shell that starts the tests in the background has them ignore Ctrl-C, and all that they start: tests are about it.
signal.signal(signal.SIGINT, signal.default_int_handler)

hypothesis.settings.register_profile(
    "seqjepa",
    deadline=None,
    derandomize=True,
    max_examples=25,
    suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.data_too_large],
)
hypothesis.settings.load_profile("seqjepa")


class TorchRandom:
    """torch's generator under hypothesis: every example starts from a seed, so what it finds it finds again."""

    def seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    def getstate(self) -> torch.Tensor:
        return torch.get_rng_state()

    def setstate(self, state: torch.Tensor) -> None:
        torch.set_rng_state(state)


TORCH_RANDOM = TorchRandom()  # hypothesis keeps a weak reference only
hypothesis.register_random(TORCH_RANDOM)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(params=["device", "dtype"])
def torch_defaults(request: pytest.FixtureRequest) -> Callable[[], AbstractContextManager[None]]:
    """A block under another default of torch: a device ("meta" stands in for a GPU), then a dtype."""

    @contextmanager
    def block() -> Iterator[None]:
        if request.param == "device":
            with torch.device("meta"):
                yield
            return
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(torch.float32)

    return block


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
