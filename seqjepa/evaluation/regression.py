"""What a frozen representation knows of transformations: R² of a linear or MLP regression."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float, Int
from torch import Tensor

from seqjepa.evaluation._inputs import regression_inputs
from seqjepa.evaluation._regressors import L2_GRID, Asked, fit_regressors
from seqjepa.evaluation._scores import Regression, varying
from seqjepa.evaluation._statistics import Standardizer

__all__ = ["regression_r2"]


def regression_r2(
    train_x: Float[Tensor, "N D"],
    train_y: Float[Tensor, "N *K"],
    test_x: Float[Tensor, "M D"],
    test_y: Float[Tensor, "M *K"],
    *,
    hidden: Sequence[int] = (1024, 1024),
    l2: float | Sequence[float] = L2_GRID,
    max_epochs: int = 300,
    train_sources: Int[Tensor, "N"] | None = None,
    test_sources: Int[Tensor, "M"] | None = None,
    seed: int = 0,
) -> Regression:
    """Regress targets from features, and report R² on the test rows in both forms.

    Features and targets are standardised by the training rows.

    - `hidden=()`: ridge regression in closed form, `min_W mean_n ‖y_n − x_n W‖² + l2 ‖W‖²`. l2 is chosen by five folds
      of the training rows (whole sources where they are named): the least squared error on the rows held out. The fit
      is to all of them. The normal equations are in float64: squaring the features squares their condition number.
      scikit-learn's `Ridge(alpha=l2 · N)` is the same.
    - otherwise an MLP with ReLU, squared error, Adam at 1e-3, batches of 256, as in SIE (of small sets a fourteenth of
      the rows, 64 at least). A tenth of the training rows is held out; training stops when three rounds (each an
      epoch, or 64 steps) have not brought them 0.001 of R², and the averaged weights of the best round are kept. In
      float32: rounding is far below the noise of minibatches.

    An output that never varies, such as a turn about an axis that no view was turned about, has no R². It is left out,
    and named in `constant`.

    An MLP fits small sets of pairs by heart. Draw many pairs of views from each source, and name the sources.

    Args:
        train_x: (N, D): z of one view, or of two side by side for what leads from one to the other.
        train_y: (N, K) or (N,).
        test_x: (M, D).
        test_y: (M, K) or (M,).
        hidden: widths of the hidden layers; () is linear.
        l2: of the linear fit: one strength, or several to choose from. 0 is allowed where the features are independent.
        max_epochs: of the MLP, where it does not stop before; SIE's 300.
        train_sources: (N,) integers, the source of each row where a source has several rows or pairs; a source is then
            never on both sides of a split.
        test_sources: (M,) integers; the interval is then over sources.
        seed: of the split or the folds, the weights, the batches and the bootstrap.

    Returns:
        [`Regression`][seqjepa.evaluation.Regression].

    Raises:
        ValueError: shapes or devices that do not fit; NaN or infinity; no output that varies; too few rows to hold one
            out.
        TypeError: not floating point.

    Source:
        SIE (Garrido et al. 2023, arXiv 2302.10283) for the MLP and the pooled form; Ghaemi et al. 2025 (arXiv
        2505.03176) for the mean over outputs. SIE trains 300 epochs; early stopping departs from it, because
        without it small sets of pairs give R² below 0.

    Examples:
        >>> import torch
        >>> x = torch.randn(1200, 4, generator=torch.Generator().manual_seed(0))
        >>> y = (x[:, :1] * x[:, 1:2]).tanh()                                 # no linear map can tell
        >>> linear = regression_r2(x[:1000], y[:1000], x[1000:], y[1000:], hidden=())
        >>> mlp = regression_r2(x[:1000], y[:1000], x[1000:], y[1000:], hidden=(64, 64))
        >>> linear.mean < 0.1, mlp.mean > 0.7
        (True, True)
    """
    _, targets, _, actual = regression_inputs(train_x, train_y, test_x, test_y)
    varying(Standardizer(targets), actual)  # before a fit that takes long
    train, test = Asked(train_x, train_y, train_sources), Asked(test_x, test_y, test_sources)
    return fit_regressors([train], hidden=hidden, l2=l2, max_epochs=max_epochs, seed=seed)[0].read(test)
