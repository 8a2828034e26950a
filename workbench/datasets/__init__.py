"""Real data as lazy dask arrays: the client knows sizes only, chunks are made on the workers."""

from workbench.datasets.cifar import cifar10
from workbench.datasets.dataset import Dataset
from workbench.datasets.digits import digits
from workbench.datasets.idx import mnist
from workbench.datasets.opening import Arrays, dataset
from workbench.datasets.photos import photos
from workbench.datasets.text import text

__all__ = ["Arrays", "Dataset", "cifar10", "dataset", "digits", "mnist", "photos", "text"]
