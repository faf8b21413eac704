"""The client of the NNI compression service, on numpy.

A server compresses neural networks for trainers. A session is opened with an algorithm, a
config_list and the model's layers; it computes masks or quantized weights from weights.

>>> layers = [nc.Layer(name="fc", op_type="Linear", shape=(10, 20), dtype="float32")]
>>> config_list = [{"sparsity": 0.8, "op_types": ["default"]}]
>>> weight = np.random.default_rng(0).normal(size=(10, 20)).astype("float32")
>>> with client.bind_model("level", config_list, layers, framework="pytorch") as session:
...     mask = session.calc_mask({"fc": weight})["fc"]
>>> mask.sparsity, mask.to_numpy().dtype
(0.8, dtype('bool'))

Examples in this package have ``import numpy as np``, ``import nni_compression as nc`` and
``client = nc.Client()`` before them. `nni_compression.torch` and
`nni_compression.keras` are the adapters of PyTorch and Keras, `nni_compression.nni` is for searches
by tuners.
"""

# Before gRPC is imported.
from ._transport import fork_support  # noqa: F401  # isort: skip
from ._lifetime.local_server import local_server
from ._renamed import renamed as __getattr__  # noqa: F401
from ._transport.tls import Tls
from ._version import __version__
from .client import Client, server_address
from .errors import (
    AbortedError,
    AlreadyExistsError,
    CancelledError,
    CompressionError,
    DataLossError,
    DeadlineExceededError,
    FailedPreconditionError,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    ResourceExhaustedError,
    StatusCode,
    UnauthenticatedError,
    UnavailableError,
    UnimplementedError,
)
from .session import Session, StaleLayers, StepResult
from .sparse import load_sparse
from .values.filter_groups import FilterGroup
from .values.magnitudes import ArrayCounter, Counter, Threshold, mask_from_threshold
from .values.masks import Mask
from .values.parts import StatisticPart
from .values.plan import Layer, LayerPlan, Plan
from .values.quantization import QuantizedTensor
from .values.reports import (
    Algorithm,
    AlgorithmOption,
    LayerReport,
    SessionInfo,
    StatisticReport,
    StatisticSource,
)
from .values.statistics import Stats
from .values.tensors import Tensor

__all__ = [
    "AbortedError",
    "Algorithm",
    "AlgorithmOption",
    "AlreadyExistsError",
    "ArrayCounter",
    "CancelledError",
    "Client",
    "CompressionError",
    "Counter",
    "DataLossError",
    "DeadlineExceededError",
    "FailedPreconditionError",
    "FilterGroup",
    "InternalError",
    "InvalidArgumentError",
    "Layer",
    "LayerPlan",
    "LayerReport",
    "Mask",
    "NotFoundError",
    "PermissionDeniedError",
    "Plan",
    "QuantizedTensor",
    "ResourceExhaustedError",
    "Session",
    "SessionInfo",
    "StaleLayers",
    "StatisticPart",
    "StatisticReport",
    "StatisticSource",
    "Stats",
    "StatusCode",
    "StepResult",
    "Tensor",
    "Threshold",
    "Tls",
    "UnauthenticatedError",
    "UnavailableError",
    "UnimplementedError",
    "__version__",
    "load_sparse",
    "local_server",
    "mask_from_threshold",
    "server_address",
]
