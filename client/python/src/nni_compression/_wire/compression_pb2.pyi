from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import struct_pb2 as _struct_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

ACTIVATION_RELU: Activation
ACTIVATION_RELU6: Activation
ACTIVATION_UNSPECIFIED: Activation
ALGORITHM_KIND_PRUNER: AlgorithmKind
ALGORITHM_KIND_QUANTIZER: AlgorithmKind
ALGORITHM_KIND_UNSPECIFIED: AlgorithmKind
DATA_TYPE_BFLOAT16: DataType
DATA_TYPE_BIT: DataType
DATA_TYPE_BOOL: DataType
DATA_TYPE_FLOAT16: DataType
DATA_TYPE_FLOAT32: DataType
DATA_TYPE_FLOAT64: DataType
DATA_TYPE_INT16: DataType
DATA_TYPE_INT32: DataType
DATA_TYPE_INT64: DataType
DATA_TYPE_INT8: DataType
DATA_TYPE_UINT16: DataType
DATA_TYPE_UINT8: DataType
DATA_TYPE_UNSPECIFIED: DataType
DESCRIPTOR: _descriptor.FileDescriptor
FORMULA_AFFINE: Formula
FORMULA_DOREFA: Formula
FORMULA_UNSPECIFIED: Formula
REFRESH_ONCE: Refresh
REFRESH_ON_WEIGHT_CHANGE: Refresh
REFRESH_UNSPECIFIED: Refresh
REFRESH_WHEN_STALE: Refresh
ROUNDING_DOREFA: Rounding
ROUNDING_HALF_EVEN: Rounding
ROUNDING_TRUNCATE: Rounding
ROUNDING_UNSPECIFIED: Rounding
SESSION_STATE_ACTIVE: SessionState
SESSION_STATE_CLOSED: SessionState
SESSION_STATE_EXPIRED: SessionState
SESSION_STATE_UNSPECIFIED: SessionState
STATISTIC_KIND_FILTER_TAYLOR: StatisticKind
STATISTIC_KIND_INPUT_ABS_MAX: StatisticKind
STATISTIC_KIND_INPUT_ABS_SUM: StatisticKind
STATISTIC_KIND_INPUT_HISTOGRAM: StatisticKind
STATISTIC_KIND_INPUT_RANGE: StatisticKind
STATISTIC_KIND_INPUT_SECOND_MOMENT: StatisticKind
STATISTIC_KIND_INPUT_SQUARE_SUM: StatisticKind
STATISTIC_KIND_OUTPUT_HISTOGRAM: StatisticKind
STATISTIC_KIND_OUTPUT_RANGE: StatisticKind
STATISTIC_KIND_OUTPUT_SUM: StatisticKind
STATISTIC_KIND_OUTPUT_ZERO_COUNT: StatisticKind
STATISTIC_KIND_PARAMETER: StatisticKind
STATISTIC_KIND_SQUARED_GRADIENT: StatisticKind
STATISTIC_KIND_UNSPECIFIED: StatisticKind
STATISTIC_KIND_WEIGHT_GRADIENT: StatisticKind
TENSOR_ROLE_CODES: TensorRole
TENSOR_ROLE_COUNTS: TensorRole
TENSOR_ROLE_GRADIENT: TensorRole
TENSOR_ROLE_INPUT_RANGE: TensorRole
TENSOR_ROLE_MASK: TensorRole
TENSOR_ROLE_OPTIMIZER_STATE: TensorRole
TENSOR_ROLE_OUTPUT_RANGE: TensorRole
TENSOR_ROLE_RANGE: TensorRole
TENSOR_ROLE_SCALE: TensorRole
TENSOR_ROLE_STATISTIC: TensorRole
TENSOR_ROLE_UNSPECIFIED: TensorRole
TENSOR_ROLE_WEIGHT: TensorRole
TENSOR_ROLE_ZERO_POINT: TensorRole

class AddStatisticsRequest(_message.Message):
    __slots__ = ["chunks", "commits", "headers", "open"]
    class Open(_message.Message):
        __slots__ = ["session_id"]
        SESSION_ID_FIELD_NUMBER: _ClassVar[int]
        session_id: str
        def __init__(self, session_id: _Optional[str] = ...) -> None: ...
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    COMMITS_FIELD_NUMBER: _ClassVar[int]
    HEADERS_FIELD_NUMBER: _ClassVar[int]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    chunks: _containers.RepeatedCompositeFieldContainer[Chunk]
    commits: _containers.RepeatedCompositeFieldContainer[Commit]
    headers: _containers.RepeatedCompositeFieldContainer[TensorHeader]
    open: AddStatisticsRequest.Open
    def __init__(self, open: _Optional[_Union[AddStatisticsRequest.Open, _Mapping]] = ..., headers: _Optional[_Iterable[_Union[TensorHeader, _Mapping]]] = ..., chunks: _Optional[_Iterable[_Union[Chunk, _Mapping]]] = ..., commits: _Optional[_Iterable[_Union[Commit, _Mapping]]] = ...) -> None: ...

class AddStatisticsResponse(_message.Message):
    __slots__ = ["answers", "results"]
    ANSWERS_FIELD_NUMBER: _ClassVar[int]
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    answers: _containers.RepeatedCompositeFieldContainer[TensorAnswer]
    results: _containers.RepeatedCompositeFieldContainer[StatisticResult]
    def __init__(self, results: _Optional[_Iterable[_Union[StatisticResult, _Mapping]]] = ..., answers: _Optional[_Iterable[_Union[TensorAnswer, _Mapping]]] = ...) -> None: ...

class Algorithm(_message.Message):
    __slots__ = ["example", "kind", "name", "options", "reference", "refusal", "source", "summary"]
    EXAMPLE_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    example: _struct_pb2.Struct
    kind: AlgorithmKind
    name: str
    options: _containers.RepeatedCompositeFieldContainer[AlgorithmOption]
    reference: str
    refusal: str
    source: str
    summary: str
    def __init__(self, name: _Optional[str] = ..., kind: _Optional[_Union[AlgorithmKind, str]] = ..., summary: _Optional[str] = ..., reference: _Optional[str] = ..., options: _Optional[_Iterable[_Union[AlgorithmOption, _Mapping]]] = ..., example: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., source: _Optional[str] = ..., refusal: _Optional[str] = ...) -> None: ...

class AlgorithmOption(_message.Message):
    __slots__ = ["aliases", "default_value", "description", "name", "only_with", "range", "required", "type"]
    ALIASES_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_VALUE_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ONLY_WITH_FIELD_NUMBER: _ClassVar[int]
    RANGE_FIELD_NUMBER: _ClassVar[int]
    REQUIRED_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    aliases: _containers.RepeatedScalarFieldContainer[str]
    default_value: _struct_pb2.Value
    description: str
    name: str
    only_with: str
    range: str
    required: bool
    type: str
    def __init__(self, name: _Optional[str] = ..., type: _Optional[str] = ..., required: bool = ..., default_value: _Optional[_Union[_struct_pb2.Value, _Mapping]] = ..., range: _Optional[str] = ..., description: _Optional[str] = ..., aliases: _Optional[_Iterable[str]] = ..., only_with: _Optional[str] = ...) -> None: ...

class BindModelRequest(_message.Message):
    __slots__ = ["algorithm", "config_list", "epoch", "filter_groups", "framework", "labels", "layers", "lease", "masks", "memory", "request_id", "step", "step_applied", "vectors_need_filter"]
    class LabelsEntry(_message.Message):
        __slots__ = ["key", "value"]
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    ALGORITHM_FIELD_NUMBER: _ClassVar[int]
    CONFIG_LIST_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    FILTER_GROUPS_FIELD_NUMBER: _ClassVar[int]
    FRAMEWORK_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    MASKS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    STEP_APPLIED_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    VECTORS_NEED_FILTER_FIELD_NUMBER: _ClassVar[int]
    algorithm: str
    config_list: _containers.RepeatedCompositeFieldContainer[_struct_pb2.Struct]
    epoch: int
    filter_groups: _containers.RepeatedCompositeFieldContainer[FilterGroup]
    framework: str
    labels: _containers.ScalarMap[str, str]
    layers: _containers.RepeatedCompositeFieldContainer[Layer]
    lease: _duration_pb2.Duration
    masks: _containers.RepeatedCompositeFieldContainer[LayerMask]
    memory: _containers.RepeatedCompositeFieldContainer[LayerMemory]
    request_id: str
    step: int
    step_applied: bool
    vectors_need_filter: bool
    def __init__(self, request_id: _Optional[str] = ..., algorithm: _Optional[str] = ..., config_list: _Optional[_Iterable[_Union[_struct_pb2.Struct, _Mapping]]] = ..., layers: _Optional[_Iterable[_Union[Layer, _Mapping]]] = ..., framework: _Optional[str] = ..., labels: _Optional[_Mapping[str, str]] = ..., lease: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., masks: _Optional[_Iterable[_Union[LayerMask, _Mapping]]] = ..., epoch: _Optional[int] = ..., step: _Optional[int] = ..., memory: _Optional[_Iterable[_Union[LayerMemory, _Mapping]]] = ..., step_applied: bool = ..., vectors_need_filter: bool = ..., filter_groups: _Optional[_Iterable[_Union[FilterGroup, _Mapping]]] = ...) -> None: ...

class BindModelResponse(_message.Message):
    __slots__ = ["lease", "plan", "session_id", "stale_layers"]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    STALE_LAYERS_FIELD_NUMBER: _ClassVar[int]
    lease: _duration_pb2.Duration
    plan: Plan
    session_id: str
    stale_layers: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, session_id: _Optional[str] = ..., plan: _Optional[_Union[Plan, _Mapping]] = ..., lease: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., stale_layers: _Optional[_Iterable[str]] = ...) -> None: ...

class CalcMaskRequest(_message.Message):
    __slots__ = ["chunks", "commits", "headers", "open"]
    class Open(_message.Message):
        __slots__ = ["epoch", "session_id"]
        EPOCH_FIELD_NUMBER: _ClassVar[int]
        SESSION_ID_FIELD_NUMBER: _ClassVar[int]
        epoch: int
        session_id: str
        def __init__(self, session_id: _Optional[str] = ..., epoch: _Optional[int] = ...) -> None: ...
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    COMMITS_FIELD_NUMBER: _ClassVar[int]
    HEADERS_FIELD_NUMBER: _ClassVar[int]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    chunks: _containers.RepeatedCompositeFieldContainer[Chunk]
    commits: _containers.RepeatedCompositeFieldContainer[Commit]
    headers: _containers.RepeatedCompositeFieldContainer[TensorHeader]
    open: CalcMaskRequest.Open
    def __init__(self, open: _Optional[_Union[CalcMaskRequest.Open, _Mapping]] = ..., headers: _Optional[_Iterable[_Union[TensorHeader, _Mapping]]] = ..., chunks: _Optional[_Iterable[_Union[Chunk, _Mapping]]] = ..., commits: _Optional[_Iterable[_Union[Commit, _Mapping]]] = ...) -> None: ...

class CalcMaskResponse(_message.Message):
    __slots__ = ["answers", "chunks", "commits", "headers", "results"]
    ANSWERS_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    COMMITS_FIELD_NUMBER: _ClassVar[int]
    HEADERS_FIELD_NUMBER: _ClassVar[int]
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    answers: _containers.RepeatedCompositeFieldContainer[TensorAnswer]
    chunks: _containers.RepeatedCompositeFieldContainer[Chunk]
    commits: _containers.RepeatedCompositeFieldContainer[Commit]
    headers: _containers.RepeatedCompositeFieldContainer[TensorHeader]
    results: _containers.RepeatedCompositeFieldContainer[MaskResult]
    def __init__(self, results: _Optional[_Iterable[_Union[MaskResult, _Mapping]]] = ..., headers: _Optional[_Iterable[_Union[TensorHeader, _Mapping]]] = ..., chunks: _Optional[_Iterable[_Union[Chunk, _Mapping]]] = ..., commits: _Optional[_Iterable[_Union[Commit, _Mapping]]] = ..., answers: _Optional[_Iterable[_Union[TensorAnswer, _Mapping]]] = ...) -> None: ...

class Chunk(_message.Message):
    __slots__ = ["index", "offset", "payload"]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    index: int
    offset: int
    payload: bytes
    def __init__(self, index: _Optional[int] = ..., offset: _Optional[int] = ..., payload: _Optional[bytes] = ...) -> None: ...

class CloseSessionRequest(_message.Message):
    __slots__ = ["session_id"]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    def __init__(self, session_id: _Optional[str] = ...) -> None: ...

class CloseSessionResponse(_message.Message):
    __slots__ = []
    def __init__(self) -> None: ...

class Commit(_message.Message):
    __slots__ = ["byte_length", "crc32", "index"]
    BYTE_LENGTH_FIELD_NUMBER: _ClassVar[int]
    CRC32_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    byte_length: int
    crc32: int
    index: int
    def __init__(self, index: _Optional[int] = ..., byte_length: _Optional[int] = ..., crc32: _Optional[int] = ...) -> None: ...

class ExportRequest(_message.Message):
    __slots__ = ["chunks", "commits", "headers", "open"]
    class Open(_message.Message):
        __slots__ = ["format", "options", "session_id"]
        FORMAT_FIELD_NUMBER: _ClassVar[int]
        OPTIONS_FIELD_NUMBER: _ClassVar[int]
        SESSION_ID_FIELD_NUMBER: _ClassVar[int]
        format: str
        options: _struct_pb2.Struct
        session_id: str
        def __init__(self, session_id: _Optional[str] = ..., format: _Optional[str] = ..., options: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ...) -> None: ...
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    COMMITS_FIELD_NUMBER: _ClassVar[int]
    HEADERS_FIELD_NUMBER: _ClassVar[int]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    chunks: _containers.RepeatedCompositeFieldContainer[Chunk]
    commits: _containers.RepeatedCompositeFieldContainer[Commit]
    headers: _containers.RepeatedCompositeFieldContainer[TensorHeader]
    open: ExportRequest.Open
    def __init__(self, open: _Optional[_Union[ExportRequest.Open, _Mapping]] = ..., headers: _Optional[_Iterable[_Union[TensorHeader, _Mapping]]] = ..., chunks: _Optional[_Iterable[_Union[Chunk, _Mapping]]] = ..., commits: _Optional[_Iterable[_Union[Commit, _Mapping]]] = ...) -> None: ...

class ExportResponse(_message.Message):
    __slots__ = ["answers", "chunks", "commits", "files"]
    ANSWERS_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    COMMITS_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    answers: _containers.RepeatedCompositeFieldContainer[TensorAnswer]
    chunks: _containers.RepeatedCompositeFieldContainer[Chunk]
    commits: _containers.RepeatedCompositeFieldContainer[Commit]
    files: _containers.RepeatedCompositeFieldContainer[FileHeader]
    def __init__(self, files: _Optional[_Iterable[_Union[FileHeader, _Mapping]]] = ..., chunks: _Optional[_Iterable[_Union[Chunk, _Mapping]]] = ..., commits: _Optional[_Iterable[_Union[Commit, _Mapping]]] = ..., answers: _Optional[_Iterable[_Union[TensorAnswer, _Mapping]]] = ...) -> None: ...

class FileHeader(_message.Message):
    __slots__ = ["byte_length", "index", "media_type", "name", "warnings"]
    BYTE_LENGTH_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    MEDIA_TYPE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    byte_length: int
    index: int
    media_type: str
    name: str
    warnings: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, index: _Optional[int] = ..., name: _Optional[str] = ..., byte_length: _Optional[int] = ..., media_type: _Optional[str] = ..., warnings: _Optional[_Iterable[str]] = ...) -> None: ...

class FilterGroup(_message.Message):
    __slots__ = ["members", "runs"]
    class Member(_message.Message):
        __slots__ = ["layer", "units"]
        LAYER_FIELD_NUMBER: _ClassVar[int]
        UNITS_FIELD_NUMBER: _ClassVar[int]
        layer: str
        units: _containers.RepeatedScalarFieldContainer[int]
        def __init__(self, layer: _Optional[str] = ..., units: _Optional[_Iterable[int]] = ...) -> None: ...
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    RUNS_FIELD_NUMBER: _ClassVar[int]
    members: _containers.RepeatedCompositeFieldContainer[FilterGroup.Member]
    runs: int
    def __init__(self, members: _Optional[_Iterable[_Union[FilterGroup.Member, _Mapping]]] = ..., runs: _Optional[int] = ...) -> None: ...

class FindWeightsRequest(_message.Message):
    __slots__ = ["fingerprints", "session_id"]
    FINGERPRINTS_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    fingerprints: _containers.RepeatedScalarFieldContainer[bytes]
    session_id: str
    def __init__(self, session_id: _Optional[str] = ..., fingerprints: _Optional[_Iterable[bytes]] = ...) -> None: ...

class FindWeightsResponse(_message.Message):
    __slots__ = ["may_have"]
    MAY_HAVE_FIELD_NUMBER: _ClassVar[int]
    may_have: _containers.RepeatedScalarFieldContainer[bool]
    def __init__(self, may_have: _Optional[_Iterable[bool]] = ...) -> None: ...

class GetSessionRequest(_message.Message):
    __slots__ = ["session_id"]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    def __init__(self, session_id: _Optional[str] = ...) -> None: ...

class GetSessionResponse(_message.Message):
    __slots__ = ["plan", "session"]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    plan: Plan
    session: Session
    def __init__(self, session: _Optional[_Union[Session, _Mapping]] = ..., plan: _Optional[_Union[Plan, _Mapping]] = ...) -> None: ...

class KeepAliveRequest(_message.Message):
    __slots__ = ["session_id"]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    def __init__(self, session_id: _Optional[str] = ...) -> None: ...

class KeepAliveResponse(_message.Message):
    __slots__ = ["lease"]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    lease: _duration_pb2.Duration
    def __init__(self, lease: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class Layer(_message.Message):
    __slots__ = ["aliases", "channel_axis", "dtype", "name", "needs_filter", "op_type", "op_type_bases", "shape"]
    ALIASES_FIELD_NUMBER: _ClassVar[int]
    CHANNEL_AXIS_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    NEEDS_FILTER_FIELD_NUMBER: _ClassVar[int]
    OP_TYPE_BASES_FIELD_NUMBER: _ClassVar[int]
    OP_TYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    aliases: _containers.RepeatedScalarFieldContainer[str]
    channel_axis: int
    dtype: DataType
    name: str
    needs_filter: bool
    op_type: str
    op_type_bases: _containers.RepeatedScalarFieldContainer[str]
    shape: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, name: _Optional[str] = ..., op_type: _Optional[str] = ..., dtype: _Optional[_Union[DataType, str]] = ..., shape: _Optional[_Iterable[int]] = ..., channel_axis: _Optional[int] = ..., aliases: _Optional[_Iterable[str]] = ..., op_type_bases: _Optional[_Iterable[str]] = ..., needs_filter: bool = ...) -> None: ...

class LayerError(_message.Message):
    __slots__ = ["code", "message"]
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    code: int
    message: str
    def __init__(self, code: _Optional[int] = ..., message: _Optional[str] = ...) -> None: ...

class LayerMask(_message.Message):
    __slots__ = ["bits", "layer"]
    BITS_FIELD_NUMBER: _ClassVar[int]
    LAYER_FIELD_NUMBER: _ClassVar[int]
    bits: bytes
    layer: str
    def __init__(self, layer: _Optional[str] = ..., bits: _Optional[bytes] = ...) -> None: ...

class LayerMemory(_message.Message):
    __slots__ = ["layer", "memory"]
    LAYER_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    layer: str
    memory: _containers.RepeatedCompositeFieldContainer[Memory]
    def __init__(self, layer: _Optional[str] = ..., memory: _Optional[_Iterable[_Union[Memory, _Mapping]]] = ...) -> None: ...

class LayerParameters(_message.Message):
    __slots__ = ["error", "layer", "memory", "parameters", "range", "role", "unquantized"]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    LAYER_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    RANGE_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    UNQUANTIZED_FIELD_NUMBER: _ClassVar[int]
    error: LayerError
    layer: str
    memory: _containers.RepeatedCompositeFieldContainer[Memory]
    parameters: QuantizationParameters
    range: _containers.RepeatedScalarFieldContainer[float]
    role: TensorRole
    unquantized: bool
    def __init__(self, layer: _Optional[str] = ..., error: _Optional[_Union[LayerError, _Mapping]] = ..., unquantized: bool = ..., parameters: _Optional[_Union[QuantizationParameters, _Mapping]] = ..., role: _Optional[_Union[TensorRole, str]] = ..., range: _Optional[_Iterable[float]] = ..., memory: _Optional[_Iterable[_Union[Memory, _Mapping]]] = ...) -> None: ...

class LayerPlan(_message.Message):
    __slots__ = ["compressed", "name", "rule", "statistics"]
    COMPRESSED_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    RULE_FIELD_NUMBER: _ClassVar[int]
    STATISTICS_FIELD_NUMBER: _ClassVar[int]
    compressed: bool
    name: str
    rule: int
    statistics: _containers.RepeatedCompositeFieldContainer[PlannedStatistic]
    def __init__(self, name: _Optional[str] = ..., compressed: bool = ..., rule: _Optional[int] = ..., statistics: _Optional[_Iterable[_Union[PlannedStatistic, _Mapping]]] = ...) -> None: ...

class LayerReport(_message.Message):
    __slots__ = ["achieved_sparsity", "bits", "compressed", "elements", "input", "name", "op_type", "output", "rule", "stale", "statistics", "target_sparsity"]
    ACHIEVED_SPARSITY_FIELD_NUMBER: _ClassVar[int]
    BITS_FIELD_NUMBER: _ClassVar[int]
    COMPRESSED_FIELD_NUMBER: _ClassVar[int]
    ELEMENTS_FIELD_NUMBER: _ClassVar[int]
    INPUT_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    OP_TYPE_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    RULE_FIELD_NUMBER: _ClassVar[int]
    STALE_FIELD_NUMBER: _ClassVar[int]
    STATISTICS_FIELD_NUMBER: _ClassVar[int]
    TARGET_SPARSITY_FIELD_NUMBER: _ClassVar[int]
    achieved_sparsity: float
    bits: int
    compressed: bool
    elements: int
    input: QuantizationParameters
    name: str
    op_type: str
    output: QuantizationParameters
    rule: int
    stale: bool
    statistics: _containers.RepeatedCompositeFieldContainer[StatisticReport]
    target_sparsity: float
    def __init__(self, name: _Optional[str] = ..., op_type: _Optional[str] = ..., compressed: bool = ..., elements: _Optional[int] = ..., target_sparsity: _Optional[float] = ..., achieved_sparsity: _Optional[float] = ..., bits: _Optional[int] = ..., stale: bool = ..., rule: _Optional[int] = ..., output: _Optional[_Union[QuantizationParameters, _Mapping]] = ..., input: _Optional[_Union[QuantizationParameters, _Mapping]] = ..., statistics: _Optional[_Iterable[_Union[StatisticReport, _Mapping]]] = ...) -> None: ...

class ListAlgorithmsRequest(_message.Message):
    __slots__ = []
    def __init__(self) -> None: ...

class ListAlgorithmsResponse(_message.Message):
    __slots__ = ["algorithms", "server_version"]
    ALGORITHMS_FIELD_NUMBER: _ClassVar[int]
    SERVER_VERSION_FIELD_NUMBER: _ClassVar[int]
    algorithms: _containers.RepeatedCompositeFieldContainer[Algorithm]
    server_version: str
    def __init__(self, algorithms: _Optional[_Iterable[_Union[Algorithm, _Mapping]]] = ..., server_version: _Optional[str] = ...) -> None: ...

class ListSessionsRequest(_message.Message):
    __slots__ = ["include_ended", "labels", "page_size", "page_token"]
    class LabelsEntry(_message.Message):
        __slots__ = ["key", "value"]
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    INCLUDE_ENDED_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    include_ended: bool
    labels: _containers.ScalarMap[str, str]
    page_size: int
    page_token: str
    def __init__(self, labels: _Optional[_Mapping[str, str]] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., include_ended: bool = ...) -> None: ...

class ListSessionsResponse(_message.Message):
    __slots__ = ["next_page_token", "sessions"]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    next_page_token: str
    sessions: _containers.RepeatedCompositeFieldContainer[Session]
    def __init__(self, sessions: _Optional[_Iterable[_Union[Session, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class ListTenantsRequest(_message.Message):
    __slots__ = []
    def __init__(self) -> None: ...

class ListTenantsResponse(_message.Message):
    __slots__ = ["tenants"]
    TENANTS_FIELD_NUMBER: _ClassVar[int]
    tenants: _containers.RepeatedCompositeFieldContainer[TenantUse]
    def __init__(self, tenants: _Optional[_Iterable[_Union[TenantUse, _Mapping]]] = ...) -> None: ...

class MagnitudeCounts(_message.Message):
    __slots__ = ["rounds"]
    class Round(_message.Message):
        __slots__ = ["counts", "digits", "prefix"]
        COUNTS_FIELD_NUMBER: _ClassVar[int]
        DIGITS_FIELD_NUMBER: _ClassVar[int]
        PREFIX_FIELD_NUMBER: _ClassVar[int]
        counts: _containers.RepeatedScalarFieldContainer[int]
        digits: _containers.RepeatedScalarFieldContainer[int]
        prefix: int
        def __init__(self, prefix: _Optional[int] = ..., digits: _Optional[_Iterable[int]] = ..., counts: _Optional[_Iterable[int]] = ...) -> None: ...
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    rounds: _containers.RepeatedCompositeFieldContainer[MagnitudeCounts.Round]
    def __init__(self, rounds: _Optional[_Iterable[_Union[MagnitudeCounts.Round, _Mapping]]] = ...) -> None: ...

class MaskResult(_message.Message):
    __slots__ = ["achieved_sparsity", "answers", "epoch", "error", "layer", "target_sparsity", "threshold"]
    ACHIEVED_SPARSITY_FIELD_NUMBER: _ClassVar[int]
    ANSWERS_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    LAYER_FIELD_NUMBER: _ClassVar[int]
    TARGET_SPARSITY_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    achieved_sparsity: float
    answers: int
    epoch: int
    error: LayerError
    layer: str
    target_sparsity: float
    threshold: Threshold
    def __init__(self, answers: _Optional[int] = ..., layer: _Optional[str] = ..., error: _Optional[_Union[LayerError, _Mapping]] = ..., target_sparsity: _Optional[float] = ..., achieved_sparsity: _Optional[float] = ..., epoch: _Optional[int] = ..., threshold: _Optional[_Union[Threshold, _Mapping]] = ...) -> None: ...

class Memory(_message.Message):
    __slots__ = ["name", "values"]
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    name: str
    values: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, name: _Optional[str] = ..., values: _Optional[_Iterable[float]] = ...) -> None: ...

class Plan(_message.Message):
    __slots__ = ["layers", "needs_step", "needs_update_epoch", "rules", "warnings"]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    NEEDS_STEP_FIELD_NUMBER: _ClassVar[int]
    NEEDS_UPDATE_EPOCH_FIELD_NUMBER: _ClassVar[int]
    RULES_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    layers: _containers.RepeatedCompositeFieldContainer[LayerPlan]
    needs_step: bool
    needs_update_epoch: bool
    rules: _containers.RepeatedCompositeFieldContainer[PlannedRule]
    warnings: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, layers: _Optional[_Iterable[_Union[LayerPlan, _Mapping]]] = ..., rules: _Optional[_Iterable[_Union[PlannedRule, _Mapping]]] = ..., warnings: _Optional[_Iterable[str]] = ..., needs_update_epoch: bool = ..., needs_step: bool = ...) -> None: ...

class PlannedRule(_message.Message):
    __slots__ = ["joint", "options", "range_group_size", "range_per_channel", "refresh", "remembers_more", "rule", "step_inputs", "takes_counts"]
    JOINT_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    RANGE_GROUP_SIZE_FIELD_NUMBER: _ClassVar[int]
    RANGE_PER_CHANNEL_FIELD_NUMBER: _ClassVar[int]
    REFRESH_FIELD_NUMBER: _ClassVar[int]
    REMEMBERS_MORE_FIELD_NUMBER: _ClassVar[int]
    RULE_FIELD_NUMBER: _ClassVar[int]
    STEP_INPUTS_FIELD_NUMBER: _ClassVar[int]
    TAKES_COUNTS_FIELD_NUMBER: _ClassVar[int]
    joint: bool
    options: _struct_pb2.Struct
    range_group_size: int
    range_per_channel: bool
    refresh: Refresh
    remembers_more: bool
    rule: int
    step_inputs: _containers.RepeatedScalarFieldContainer[TensorRole]
    takes_counts: bool
    def __init__(self, rule: _Optional[int] = ..., options: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., refresh: _Optional[_Union[Refresh, str]] = ..., step_inputs: _Optional[_Iterable[_Union[TensorRole, str]]] = ..., range_per_channel: bool = ..., range_group_size: _Optional[int] = ..., remembers_more: bool = ..., joint: bool = ..., takes_counts: bool = ...) -> None: ...

class PlannedStatistic(_message.Message):
    __slots__ = ["activation", "kind", "shape"]
    ACTIVATION_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    activation: Activation
    kind: StatisticKind
    shape: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, kind: _Optional[_Union[StatisticKind, str]] = ..., shape: _Optional[_Iterable[int]] = ..., activation: _Optional[_Union[Activation, str]] = ...) -> None: ...

class QuantizationParameters(_message.Message):
    __slots__ = ["bits", "channel_axis", "code_max", "code_min", "formula", "group_size", "rounding", "scale", "zero_point"]
    BITS_FIELD_NUMBER: _ClassVar[int]
    CHANNEL_AXIS_FIELD_NUMBER: _ClassVar[int]
    CODE_MAX_FIELD_NUMBER: _ClassVar[int]
    CODE_MIN_FIELD_NUMBER: _ClassVar[int]
    FORMULA_FIELD_NUMBER: _ClassVar[int]
    GROUP_SIZE_FIELD_NUMBER: _ClassVar[int]
    ROUNDING_FIELD_NUMBER: _ClassVar[int]
    SCALE_FIELD_NUMBER: _ClassVar[int]
    ZERO_POINT_FIELD_NUMBER: _ClassVar[int]
    bits: int
    channel_axis: int
    code_max: int
    code_min: int
    formula: Formula
    group_size: int
    rounding: Rounding
    scale: _containers.RepeatedScalarFieldContainer[float]
    zero_point: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, formula: _Optional[_Union[Formula, str]] = ..., rounding: _Optional[_Union[Rounding, str]] = ..., bits: _Optional[int] = ..., code_min: _Optional[int] = ..., code_max: _Optional[int] = ..., scale: _Optional[_Iterable[float]] = ..., zero_point: _Optional[_Iterable[int]] = ..., channel_axis: _Optional[int] = ..., group_size: _Optional[int] = ...) -> None: ...

class QuantizeResult(_message.Message):
    __slots__ = ["answers", "error", "layer", "memory", "parameters", "tensors", "unquantized"]
    ANSWERS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    LAYER_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    UNQUANTIZED_FIELD_NUMBER: _ClassVar[int]
    answers: int
    error: LayerError
    layer: str
    memory: _containers.RepeatedCompositeFieldContainer[Memory]
    parameters: QuantizationParameters
    tensors: int
    unquantized: bool
    def __init__(self, answers: _Optional[int] = ..., layer: _Optional[str] = ..., error: _Optional[_Union[LayerError, _Mapping]] = ..., unquantized: bool = ..., parameters: _Optional[_Union[QuantizationParameters, _Mapping]] = ..., tensors: _Optional[int] = ..., memory: _Optional[_Iterable[_Union[Memory, _Mapping]]] = ...) -> None: ...

class QuantizeWeightRequest(_message.Message):
    __slots__ = ["chunks", "commits", "headers", "open"]
    class Reply(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = []
    class Open(_message.Message):
        __slots__ = ["reply", "session_id", "step"]
        REPLY_FIELD_NUMBER: _ClassVar[int]
        SESSION_ID_FIELD_NUMBER: _ClassVar[int]
        STEP_FIELD_NUMBER: _ClassVar[int]
        reply: QuantizeWeightRequest.Reply
        session_id: str
        step: int
        def __init__(self, session_id: _Optional[str] = ..., reply: _Optional[_Union[QuantizeWeightRequest.Reply, str]] = ..., step: _Optional[int] = ...) -> None: ...
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    COMMITS_FIELD_NUMBER: _ClassVar[int]
    HEADERS_FIELD_NUMBER: _ClassVar[int]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    REPLY_CODES: QuantizeWeightRequest.Reply
    REPLY_PARAMETERS: QuantizeWeightRequest.Reply
    REPLY_UNSPECIFIED: QuantizeWeightRequest.Reply
    REPLY_VALUES: QuantizeWeightRequest.Reply
    chunks: _containers.RepeatedCompositeFieldContainer[Chunk]
    commits: _containers.RepeatedCompositeFieldContainer[Commit]
    headers: _containers.RepeatedCompositeFieldContainer[TensorHeader]
    open: QuantizeWeightRequest.Open
    def __init__(self, open: _Optional[_Union[QuantizeWeightRequest.Open, _Mapping]] = ..., headers: _Optional[_Iterable[_Union[TensorHeader, _Mapping]]] = ..., chunks: _Optional[_Iterable[_Union[Chunk, _Mapping]]] = ..., commits: _Optional[_Iterable[_Union[Commit, _Mapping]]] = ...) -> None: ...

class QuantizeWeightResponse(_message.Message):
    __slots__ = ["answers", "chunks", "commits", "headers", "results"]
    ANSWERS_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    COMMITS_FIELD_NUMBER: _ClassVar[int]
    HEADERS_FIELD_NUMBER: _ClassVar[int]
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    answers: _containers.RepeatedCompositeFieldContainer[TensorAnswer]
    chunks: _containers.RepeatedCompositeFieldContainer[Chunk]
    commits: _containers.RepeatedCompositeFieldContainer[Commit]
    headers: _containers.RepeatedCompositeFieldContainer[TensorHeader]
    results: _containers.RepeatedCompositeFieldContainer[QuantizeResult]
    def __init__(self, results: _Optional[_Iterable[_Union[QuantizeResult, _Mapping]]] = ..., headers: _Optional[_Iterable[_Union[TensorHeader, _Mapping]]] = ..., chunks: _Optional[_Iterable[_Union[Chunk, _Mapping]]] = ..., commits: _Optional[_Iterable[_Union[Commit, _Mapping]]] = ..., answers: _Optional[_Iterable[_Union[TensorAnswer, _Mapping]]] = ...) -> None: ...

class ReportResultsRequest(_message.Message):
    __slots__ = ["results", "session_id"]
    class ResultsEntry(_message.Message):
        __slots__ = ["key", "value"]
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    results: _containers.ScalarMap[str, float]
    session_id: str
    def __init__(self, session_id: _Optional[str] = ..., results: _Optional[_Mapping[str, float]] = ...) -> None: ...

class ReportResultsResponse(_message.Message):
    __slots__ = []
    def __init__(self) -> None: ...

class Session(_message.Message):
    __slots__ = ["achieved_sparsity", "algorithm", "compressed_layer_count", "compute_time", "config_list", "create_time", "disk_bytes", "epoch", "framework", "id", "labels", "last_call_time", "layer_count", "layers", "lease", "received_bytes", "results", "revision", "sent_bytes", "state", "state_bytes", "step", "tenant"]
    class LabelsEntry(_message.Message):
        __slots__ = ["key", "value"]
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class ResultsEntry(_message.Message):
        __slots__ = ["key", "value"]
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    ACHIEVED_SPARSITY_FIELD_NUMBER: _ClassVar[int]
    ALGORITHM_FIELD_NUMBER: _ClassVar[int]
    COMPRESSED_LAYER_COUNT_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_TIME_FIELD_NUMBER: _ClassVar[int]
    CONFIG_LIST_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    DISK_BYTES_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    FRAMEWORK_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    LAST_CALL_TIME_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    LAYER_COUNT_FIELD_NUMBER: _ClassVar[int]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_BYTES_FIELD_NUMBER: _ClassVar[int]
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    SENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    STATE_BYTES_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    achieved_sparsity: float
    algorithm: str
    compressed_layer_count: int
    compute_time: _duration_pb2.Duration
    config_list: _containers.RepeatedCompositeFieldContainer[_struct_pb2.Struct]
    create_time: _timestamp_pb2.Timestamp
    disk_bytes: int
    epoch: int
    framework: str
    id: str
    labels: _containers.ScalarMap[str, str]
    last_call_time: _timestamp_pb2.Timestamp
    layer_count: int
    layers: _containers.RepeatedCompositeFieldContainer[LayerReport]
    lease: _duration_pb2.Duration
    received_bytes: int
    results: _containers.ScalarMap[str, float]
    revision: int
    sent_bytes: int
    state: SessionState
    state_bytes: int
    step: int
    tenant: str
    def __init__(self, id: _Optional[str] = ..., algorithm: _Optional[str] = ..., framework: _Optional[str] = ..., labels: _Optional[_Mapping[str, str]] = ..., state: _Optional[_Union[SessionState, str]] = ..., create_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., last_call_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., lease: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., epoch: _Optional[int] = ..., step: _Optional[int] = ..., layer_count: _Optional[int] = ..., compressed_layer_count: _Optional[int] = ..., achieved_sparsity: _Optional[float] = ..., state_bytes: _Optional[int] = ..., received_bytes: _Optional[int] = ..., sent_bytes: _Optional[int] = ..., compute_time: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., layers: _Optional[_Iterable[_Union[LayerReport, _Mapping]]] = ..., tenant: _Optional[str] = ..., disk_bytes: _Optional[int] = ..., revision: _Optional[int] = ..., results: _Optional[_Mapping[str, float]] = ..., config_list: _Optional[_Iterable[_Union[_struct_pb2.Struct, _Mapping]]] = ...) -> None: ...

class SharedPlace(_message.Message):
    __slots__ = ["capacity", "offset", "region"]
    CAPACITY_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    REGION_FIELD_NUMBER: _ClassVar[int]
    capacity: int
    offset: int
    region: bytes
    def __init__(self, region: _Optional[bytes] = ..., offset: _Optional[int] = ..., capacity: _Optional[int] = ...) -> None: ...

class SideReply(_message.Message):
    __slots__ = ["code", "max_bytes", "max_regions", "message", "region"]
    CODE_FIELD_NUMBER: _ClassVar[int]
    MAX_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_REGIONS_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    REGION_FIELD_NUMBER: _ClassVar[int]
    code: int
    max_bytes: int
    max_regions: int
    message: str
    region: bytes
    def __init__(self, code: _Optional[int] = ..., message: _Optional[str] = ..., region: _Optional[bytes] = ..., max_regions: _Optional[int] = ..., max_bytes: _Optional[int] = ...) -> None: ...

class SideRequest(_message.Message):
    __slots__ = ["add_region", "drop_region", "hello"]
    class AddRegion(_message.Message):
        __slots__ = ["byte_length", "writable"]
        BYTE_LENGTH_FIELD_NUMBER: _ClassVar[int]
        WRITABLE_FIELD_NUMBER: _ClassVar[int]
        byte_length: int
        writable: bool
        def __init__(self, byte_length: _Optional[int] = ..., writable: bool = ...) -> None: ...
    class DropRegion(_message.Message):
        __slots__ = ["region"]
        REGION_FIELD_NUMBER: _ClassVar[int]
        region: bytes
        def __init__(self, region: _Optional[bytes] = ...) -> None: ...
    class Hello(_message.Message):
        __slots__ = ["metadata", "version"]
        METADATA_FIELD_NUMBER: _ClassVar[int]
        VERSION_FIELD_NUMBER: _ClassVar[int]
        metadata: _containers.RepeatedCompositeFieldContainer[SideRequest.Metadata]
        version: int
        def __init__(self, version: _Optional[int] = ..., metadata: _Optional[_Iterable[_Union[SideRequest.Metadata, _Mapping]]] = ...) -> None: ...
    class Metadata(_message.Message):
        __slots__ = ["key", "value"]
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    ADD_REGION_FIELD_NUMBER: _ClassVar[int]
    DROP_REGION_FIELD_NUMBER: _ClassVar[int]
    HELLO_FIELD_NUMBER: _ClassVar[int]
    add_region: SideRequest.AddRegion
    drop_region: SideRequest.DropRegion
    hello: SideRequest.Hello
    def __init__(self, hello: _Optional[_Union[SideRequest.Hello, _Mapping]] = ..., add_region: _Optional[_Union[SideRequest.AddRegion, _Mapping]] = ..., drop_region: _Optional[_Union[SideRequest.DropRegion, _Mapping]] = ...) -> None: ...

class StatisticPart(_message.Message):
    __slots__ = ["count", "exponent", "kind", "sequence", "source"]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    EXPONENT_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    count: int
    exponent: int
    kind: StatisticKind
    sequence: int
    source: int
    def __init__(self, kind: _Optional[_Union[StatisticKind, str]] = ..., source: _Optional[int] = ..., sequence: _Optional[int] = ..., count: _Optional[int] = ..., exponent: _Optional[int] = ...) -> None: ...

class StatisticReport(_message.Message):
    __slots__ = ["bytes", "kind", "sources"]
    class Source(_message.Message):
        __slots__ = ["count", "digest", "sequence", "source"]
        COUNT_FIELD_NUMBER: _ClassVar[int]
        DIGEST_FIELD_NUMBER: _ClassVar[int]
        SEQUENCE_FIELD_NUMBER: _ClassVar[int]
        SOURCE_FIELD_NUMBER: _ClassVar[int]
        count: int
        digest: bytes
        sequence: int
        source: int
        def __init__(self, source: _Optional[int] = ..., sequence: _Optional[int] = ..., digest: _Optional[bytes] = ..., count: _Optional[int] = ...) -> None: ...
    BYTES_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    SOURCES_FIELD_NUMBER: _ClassVar[int]
    bytes: int
    kind: StatisticKind
    sources: _containers.RepeatedCompositeFieldContainer[StatisticReport.Source]
    def __init__(self, kind: _Optional[_Union[StatisticKind, str]] = ..., sources: _Optional[_Iterable[_Union[StatisticReport.Source, _Mapping]]] = ..., bytes: _Optional[int] = ...) -> None: ...

class StatisticResult(_message.Message):
    __slots__ = ["answers", "count", "error", "known", "layer"]
    ANSWERS_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    KNOWN_FIELD_NUMBER: _ClassVar[int]
    LAYER_FIELD_NUMBER: _ClassVar[int]
    answers: int
    count: int
    error: LayerError
    known: bool
    layer: str
    def __init__(self, answers: _Optional[int] = ..., layer: _Optional[str] = ..., error: _Optional[_Union[LayerError, _Mapping]] = ..., known: bool = ..., count: _Optional[int] = ...) -> None: ...

class StepRequest(_message.Message):
    __slots__ = ["chunks", "commits", "headers", "open"]
    class Open(_message.Message):
        __slots__ = ["session_id", "step"]
        SESSION_ID_FIELD_NUMBER: _ClassVar[int]
        STEP_FIELD_NUMBER: _ClassVar[int]
        session_id: str
        step: int
        def __init__(self, session_id: _Optional[str] = ..., step: _Optional[int] = ...) -> None: ...
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    COMMITS_FIELD_NUMBER: _ClassVar[int]
    HEADERS_FIELD_NUMBER: _ClassVar[int]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    chunks: _containers.RepeatedCompositeFieldContainer[Chunk]
    commits: _containers.RepeatedCompositeFieldContainer[Commit]
    headers: _containers.RepeatedCompositeFieldContainer[TensorHeader]
    open: StepRequest.Open
    def __init__(self, open: _Optional[_Union[StepRequest.Open, _Mapping]] = ..., headers: _Optional[_Iterable[_Union[TensorHeader, _Mapping]]] = ..., chunks: _Optional[_Iterable[_Union[Chunk, _Mapping]]] = ..., commits: _Optional[_Iterable[_Union[Commit, _Mapping]]] = ...) -> None: ...

class StepResponse(_message.Message):
    __slots__ = ["masks", "parameters", "stale_layers", "step"]
    MASKS_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    STALE_LAYERS_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    masks: _containers.RepeatedScalarFieldContainer[int]
    parameters: _containers.RepeatedCompositeFieldContainer[LayerParameters]
    stale_layers: _containers.RepeatedScalarFieldContainer[str]
    step: int
    def __init__(self, step: _Optional[int] = ..., stale_layers: _Optional[_Iterable[str]] = ..., parameters: _Optional[_Iterable[_Union[LayerParameters, _Mapping]]] = ..., masks: _Optional[_Iterable[int]] = ...) -> None: ...

class TenantUse(_message.Message):
    __slots__ = ["calls", "disk_bytes", "memory_bytes", "sessions", "tenant", "uploads"]
    CALLS_FIELD_NUMBER: _ClassVar[int]
    DISK_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    UPLOADS_FIELD_NUMBER: _ClassVar[int]
    calls: int
    disk_bytes: int
    memory_bytes: int
    sessions: int
    tenant: str
    uploads: int
    def __init__(self, tenant: _Optional[str] = ..., sessions: _Optional[int] = ..., memory_bytes: _Optional[int] = ..., calls: _Optional[int] = ..., disk_bytes: _Optional[int] = ..., uploads: _Optional[int] = ...) -> None: ...

class TensorAnswer(_message.Message):
    __slots__ = ["answer", "index"]
    class Answer(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = []
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    ANSWER_HAVE: TensorAnswer.Answer
    ANSWER_SEND: TensorAnswer.Answer
    ANSWER_UNSPECIFIED: TensorAnswer.Answer
    INDEX_FIELD_NUMBER: _ClassVar[int]
    answer: TensorAnswer.Answer
    index: int
    def __init__(self, index: _Optional[int] = ..., answer: _Optional[_Union[TensorAnswer.Answer, str]] = ...) -> None: ...

class TensorHeader(_message.Message):
    __slots__ = ["answers", "byte_length", "digest", "dtype", "fingerprint", "index", "layer", "part", "result_place", "role", "shape", "shared_memory"]
    ANSWERS_FIELD_NUMBER: _ClassVar[int]
    BYTE_LENGTH_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    LAYER_FIELD_NUMBER: _ClassVar[int]
    PART_FIELD_NUMBER: _ClassVar[int]
    RESULT_PLACE_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    SHARED_MEMORY_FIELD_NUMBER: _ClassVar[int]
    answers: int
    byte_length: int
    digest: bytes
    dtype: DataType
    fingerprint: bytes
    index: int
    layer: str
    part: StatisticPart
    result_place: SharedPlace
    role: TensorRole
    shape: _containers.RepeatedScalarFieldContainer[int]
    shared_memory: SharedPlace
    def __init__(self, index: _Optional[int] = ..., layer: _Optional[str] = ..., role: _Optional[_Union[TensorRole, str]] = ..., dtype: _Optional[_Union[DataType, str]] = ..., shape: _Optional[_Iterable[int]] = ..., byte_length: _Optional[int] = ..., digest: _Optional[bytes] = ..., answers: _Optional[int] = ..., fingerprint: _Optional[bytes] = ..., shared_memory: _Optional[_Union[SharedPlace, _Mapping]] = ..., result_place: _Optional[_Union[SharedPlace, _Mapping]] = ..., part: _Optional[_Union[StatisticPart, _Mapping]] = ...) -> None: ...

class Threshold(_message.Message):
    __slots__ = ["key", "known_bits", "pruned", "ties"]
    KEY_FIELD_NUMBER: _ClassVar[int]
    KNOWN_BITS_FIELD_NUMBER: _ClassVar[int]
    PRUNED_FIELD_NUMBER: _ClassVar[int]
    TIES_FIELD_NUMBER: _ClassVar[int]
    key: int
    known_bits: int
    pruned: int
    ties: int
    def __init__(self, known_bits: _Optional[int] = ..., key: _Optional[int] = ..., ties: _Optional[int] = ..., pruned: _Optional[int] = ...) -> None: ...

class UpdateEpochRequest(_message.Message):
    __slots__ = ["epoch", "session_id"]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    session_id: str
    def __init__(self, session_id: _Optional[str] = ..., epoch: _Optional[int] = ...) -> None: ...

class UpdateEpochResponse(_message.Message):
    __slots__ = ["epoch", "masks", "stale_layers"]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    MASKS_FIELD_NUMBER: _ClassVar[int]
    STALE_LAYERS_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    masks: _containers.RepeatedScalarFieldContainer[int]
    stale_layers: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, epoch: _Optional[int] = ..., stale_layers: _Optional[_Iterable[str]] = ..., masks: _Optional[_Iterable[int]] = ...) -> None: ...

class DataType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = []

class TensorRole(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = []

class StatisticKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = []

class Refresh(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = []

class Activation(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = []

class Formula(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = []

class Rounding(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = []

class SessionState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = []

class AlgorithmKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = []
