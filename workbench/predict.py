"""What a trained model says of other data, from the weights that lie on the workers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import dask.array as da

    from workbench.run import Run


def predict(run: Run, x: Any, strategy: str = "data", batch_size: int | None = None) -> da.Array:
    """Return the outputs of the model of an ended ``run`` for the samples ``x``, lazily.

    Parameters
    ----------
    x:
        A dask array of samples (a numpy array or a tensor is one chunk), of any length; several in
        a tuple or a dict, as the workload of the run has them.
    strategy:
        ``"data"``: the run's weights go from the workers that hold them to those that need them,
        and never to the client. ``"spatial"`` or ``"auto"``: as :func:`workbench.apply`; the
        weights of a model that is laid out by tiles are read once by the client.
    batch_size:
        Samples in one pass of the model; as :func:`workbench.apply` if left out.

    Raises
    ------
    PlanError
        If the samples do not fit the model.
    RunError
        If the run has kept no weights.
    """
    from workbench.arrays.prediction import predicted_by

    return predicted_by(run, x, strategy, batch_size)
