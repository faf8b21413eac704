"""Masks, tensors, layers, quantized tensors, configuration and errors, without a server."""

from __future__ import annotations

import copy
import pickle
import types
from typing import Any

import numpy as np
import pytest

import nni_compression as nc
from nni_compression._wire import compression_pb2 as pb
from nni_compression._wire import structs
from nni_compression.adapters.binding import Binding
from nni_compression.errors import code_from_number, make_error


class TestMask:
    @pytest.mark.parametrize("shape", [(1,), (7,), (8,), (9,), (3, 5, 2), (64,), (1000,)])
    def test_packs_and_unpacks_any_shape(self, shape: tuple[int, ...]) -> None:
        kept = np.random.default_rng(len(shape)).random(shape) < 0.4
        mask = nc.Mask.from_numpy(kept)
        np.testing.assert_array_equal(mask.to_numpy(), kept)
        assert mask.shape == shape
        assert mask.bits.size == (kept.size + 7) // 8
        assert mask.pruned == kept.size - kept.sum()
        assert mask.sparsity == pytest.approx(1 - kept.mean())

    def test_bit_0_of_byte_0_is_element_0(self) -> None:
        mask = nc.Mask(b"\x05\x01", (9,))
        assert np.flatnonzero(mask.to_numpy()).tolist() == [0, 2, 8]

    def test_takes_zeros_and_ones_of_any_type(self) -> None:
        assert nc.Mask.from_numpy([[1, 0], [0.0, 1.0]]).to_numpy().tolist() == [
            [True, False],
            [False, True],
        ]

    @pytest.mark.parametrize("bad", [[0, 2], [0.5, 1], [float("nan"), 1]])
    def test_refuses_other_numbers(self, bad: list[float]) -> None:
        with pytest.raises(nc.InvalidArgumentError, match="0 and 1"):
            nc.Mask.from_numpy(bad)

    @pytest.mark.parametrize("bits", [b"", b"\x01\x01"])
    def test_refuses_bits_that_do_not_fit_the_shape(self, bits: bytes) -> None:
        with pytest.raises(nc.InvalidArgumentError, match="bytes"):
            nc.Mask(bits, (5,))

    def test_refuses_bits_after_the_last_element(self) -> None:
        with pytest.raises(nc.InvalidArgumentError, match="after its last element"):
            nc.Mask(b"\x20", (5,))

    def test_is_equal_by_content_and_cannot_be_written(self) -> None:
        mask = nc.Mask.from_numpy([True, False])
        assert mask == nc.Mask.from_numpy([True, False])
        assert mask != nc.Mask.from_numpy([[True, False]])
        assert mask != nc.Mask.from_numpy([True, True])
        with pytest.raises(ValueError, match="read-only"):
            mask.bits[0] = 0

    def test_survives_copying_and_pickling(self) -> None:
        mask = nc.Mask.from_numpy([True, False, True])
        assert copy.deepcopy(mask) == mask
        assert pickle.loads(pickle.dumps(mask)) == mask


class TestTensor:
    @pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
    def test_a_contiguous_array_is_not_copied(self, dtype: str) -> None:
        array = np.arange(6, dtype=dtype).reshape(2, 3)
        tensor = nc.Tensor.of(array, "w")
        assert (tensor.dtype, tensor.shape) == (dtype, (2, 3))
        array[0, 0] = 42
        assert np.frombuffer(tensor.data, dtype=dtype)[0] == 42

    def test_other_arrays_are_brought_into_c_order(self) -> None:
        array = np.arange(6, dtype=np.float32).reshape(2, 3).T
        tensor = nc.Tensor.of(array, "w")
        assert tensor.shape == (3, 2)
        assert np.frombuffer(tensor.data, np.float32).tolist() == [0, 3, 1, 4, 2, 5]

    def test_big_endian_arrays_are_turned(self) -> None:
        tensor = nc.Tensor.of(np.array([1.5], dtype=">f4"), "w")
        assert bytes(tensor.data) == np.array([1.5], dtype="<f4").tobytes()

    def test_a_scalar_keeps_its_empty_shape_for_the_server_to_judge(self) -> None:
        assert nc.Tensor.of(np.float32(1.0), "w").shape == ()

    def test_read_only_arrays_and_bytes_are_fine(self) -> None:
        array = np.ones(3, dtype=np.float32)
        array.flags.writeable = False
        assert len(nc.Tensor.of(array, "w").data) == 12
        assert len(nc.Tensor(b"\0" * 6, "bfloat16", (3,)).data) == 6

    @pytest.mark.parametrize("dtype", [np.int64, np.bool_, np.complex64, object])
    def test_other_dtypes_are_refused_by_name(self, dtype: Any) -> None:
        with pytest.raises(nc.InvalidArgumentError, match=r"weights\['a'\] has dtype"):
            nc.Tensor.of(np.ones(3, dtype=dtype), "weights['a']")

    def test_a_buffer_of_another_size_is_refused(self) -> None:
        with pytest.raises(nc.InvalidArgumentError, match="7 bytes"):
            nc.Tensor(b"1234567", "bfloat16", (3,))

    def test_a_buffer_that_is_not_contiguous_is_refused(self) -> None:
        with pytest.raises(nc.InvalidArgumentError, match="contiguous"):
            nc.Tensor(np.zeros((4, 4), np.uint16)[:, ::2], "bfloat16", (4, 2))


class TestLayer:
    def test_normalises_what_it_is_given(self) -> None:
        layer = nc.Layer("a", "Linear", np.array([3, 4]), np.dtype("float16"), aliases=["b"])
        assert (layer.shape, layer.dtype, layer.aliases) == ((3, 4), "float16", ("b",))
        assert nc.Layer("a", "Linear", (1,), "torch.bfloat16").dtype == "bfloat16"

    def test_refuses_a_dtype_that_cannot_travel(self) -> None:
        with pytest.raises(nc.InvalidArgumentError, match="dtype is float8"):
            nc.Layer("a", "Linear", (1,), "float8")

    def test_names_the_layer_that_cannot_be_sent(self) -> None:
        with pytest.raises(nc.InvalidArgumentError, match=r"layers\[2\]"):
            nc.Layer("a", "Linear", (2**63,)).to_wire("layers[2]")
        with pytest.raises(nc.InvalidArgumentError, match=r"layers\[2\].name"):
            nc.Layer("a\ud800", "Linear", (2,)).to_wire("layers[2]")


class TestPlan:
    def test_spreads_the_rules_over_the_layers(self) -> None:
        wire = pb.Plan(
            layers=[
                pb.LayerPlan(name="a", compressed=True, rule=1),
                pb.LayerPlan(name="b", compressed=False, rule=2),
                pb.LayerPlan(name="c"),
            ],
            rules=[
                pb.PlannedRule(
                    rule=1,
                    options=structs.to_struct({"quant_bits": 8, "x": 0.5}, "r"),
                    refresh=pb.REFRESH_ON_WEIGHT_CHANGE,
                    step_inputs=[pb.TENSOR_ROLE_RANGE],
                    range_per_channel=True,
                )
            ],
            warnings=["w"],
            needs_step=True,
        )
        plan = nc.Plan.from_wire(wire)
        assert plan.compressed == ("a",)
        assert plan.layers["a"] == nc.LayerPlan(
            "a", True, 1, {"quant_bits": 8, "x": 0.5}, "on_weight_change", ("range",), True
        )
        assert plan.layers["b"] == nc.LayerPlan("b", False, 2)
        assert plan.layers["c"] == nc.LayerPlan("c", False, None)
        assert (plan.warnings, plan.needs_step, plan.needs_update_epoch) == (("w",), True, False)


class TestConfig:
    def test_json_goes_there_and_back(self) -> None:
        rule = {
            "sparsity": 0.8,
            "exclude": True,
            "op_types": ["default", "Conv2d"],
            "quant_bits": {"weight": 8},
            "nothing": None,
            "empty": [],
            "nested": {"a": [{"b": {}}]},
        }
        assert structs.from_struct(structs.to_struct(rule, "r")) == rule

    def test_numpy_numbers_tuples_nan_and_infinity_pass(self) -> None:
        rule = {
            "a": np.float32(0.5),
            "b": np.int64(3),
            "c": np.bool_(True),
            "d": ("x",),
            "e": float("inf"),
        }
        back = structs.from_struct(structs.to_struct(rule, "r"))
        assert back == {"a": 0.5, "b": 3, "c": True, "d": ["x"], "e": float("inf")}
        assert isinstance(back["c"], bool)
        nan = structs.from_struct(structs.to_struct({"n": float("nan")}, "r"))["n"]
        assert nan != nan

    @pytest.mark.parametrize(
        ("rule", "message"),
        [
            ({"a": [1, object()]}, r"r\.a\[1\] is <object"),
            ({"a": {"b": {1}}}, r"r\.a\.b is \{1\} \(set\)"),
            ({"a": b"x"}, r"r\.a is b'x'"),
            ({"a": 2**60}, r"r\.a is 1152921504606846976"),
            ({"a": "\ud800"}, r"r\.a is .*Unicode"),
            ({1: 2}, "a key of r is 1"),
            ([1], "it must be a dict"),
        ],
    )
    def test_what_json_cannot_hold_is_refused_by_its_path(self, rule: Any, message: str) -> None:
        with pytest.raises(nc.InvalidArgumentError, match=message):
            structs.to_struct(rule, "r")


class TestQuantizedTensor:
    def test_affine_codes_become_values_in_float32(self) -> None:
        codes = np.array([0, 100, 255], dtype=np.uint8)
        q = nc.QuantizedTensor(bits=8, formula="affine", scale=0.1, zero_point=42, codes=codes)
        expected = (codes.astype(np.int32) - 42).astype(np.float32) * np.float32(0.1)
        assert q.dequantize().dtype == np.float32
        np.testing.assert_array_equal(q.dequantize(), expected)

    def test_per_channel_numbers_follow_the_channel_axis(self) -> None:
        q = nc.QuantizedTensor(
            bits=8,
            formula="affine",
            scale=np.array([1, 10, 100], np.float32),
            zero_point=np.array([0, 1, 2], np.int32),
            channel_axis=1,
            codes=np.array([[1, 2, 3], [4, 5, 6]], np.uint8),
        )
        np.testing.assert_array_equal(q.dequantize(), [[1, 10, 100], [4, 40, 400]])

    def test_dorefa_codes_become_values_in_minus_one_to_one(self) -> None:
        q = nc.QuantizedTensor(bits=2, formula="dorefa", codes=np.array([0, 1, 2, 3], np.uint8))
        np.testing.assert_allclose(q.dequantize(), [-1, -1 / 3, 1 / 3, 1], rtol=1e-6)

    def test_16_bit_codes_are_exact(self) -> None:
        codes = np.array([0, 65535], np.uint16)
        q = nc.QuantizedTensor(bits=16, formula="affine", scale=1.0, zero_point=65535, codes=codes)
        np.testing.assert_array_equal(q.dequantize(), [-65535, 0])

    def test_there_are_no_values_without_codes(self) -> None:
        with pytest.raises(nc.FailedPreconditionError, match="quant_start_step"):
            nc.QuantizedTensor(unquantized=True).dequantize()
        with pytest.raises(nc.FailedPreconditionError, match="codes"):
            nc.QuantizedTensor(bits=8, formula="affine", scale=1.0, zero_point=0).dequantize()


class TestErrors:
    @pytest.mark.parametrize("code", list(nc.StatusCode))
    def test_each_code_has_its_exception(self, code: nc.StatusCode) -> None:
        error = make_error(code, "what went wrong")
        assert isinstance(error, nc.CompressionError)
        assert (error.code, error.message, str(error)) == (code, "what went wrong", error.message)
        assert error.code == code.name

    @pytest.mark.parametrize(
        ("error", "builtin"),
        [
            (nc.InvalidArgumentError, ValueError),
            (nc.NotFoundError, KeyError),
            (nc.DeadlineExceededError, TimeoutError),
            (nc.UnavailableError, ConnectionError),
            (nc.PermissionDeniedError, PermissionError),
            (nc.UnimplementedError, NotImplementedError),
        ],
    )
    def test_builtin_bases_catch_them(
        self, error: type[nc.CompressionError], builtin: type[Exception]
    ) -> None:
        with pytest.raises(builtin) as raised:
            raise error("it's there")
        assert str(raised.value) == "it's there"

    def test_numbers_are_those_of_google_rpc(self) -> None:
        assert code_from_number(3) is nc.StatusCode.INVALID_ARGUMENT
        assert code_from_number(16) is nc.StatusCode.UNAUTHENTICATED
        assert code_from_number(99) is nc.StatusCode.UNKNOWN

    def test_survive_pickling_with_their_layers(self) -> None:
        error = make_error(nc.StatusCode.NOT_FOUND, "m")
        error.errors = {"a": make_error(nc.StatusCode.DATA_LOSS, "n")}
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is nc.NotFoundError
        assert (str(again), again.errors["a"].code) == ("m", "DATA_LOSS")


class TestAddress:
    def test_comes_from_the_argument_the_environment_or_the_default(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("NNI_COMPRESSION_SERVER", "there:1")
        assert nc.Client("here:2").server == "here:2"
        assert nc.Client().server == "there:1"
        monkeypatch.setenv("NNI_COMPRESSION_SERVER", "")
        assert nc.Client().server == "127.0.0.1:50051"
        monkeypatch.delenv("NNI_COMPRESSION_SERVER")
        assert nc.server_address() == "127.0.0.1:50051"

    def test_a_pickled_client_takes_its_settings_along(self) -> None:
        client = nc.Client("here:2", timeout=5, checksum=True, keep_alive=False, route="r")
        again = pickle.loads(pickle.dumps(client))
        assert again.server == "here:2"
        assert again.__reduce__() == client.__reduce__()

    @pytest.mark.parametrize("route", ["", "x" * 65, "a\nb", "ü"])
    def test_a_route_that_cannot_be_metadata_is_refused(self, route: str) -> None:
        with pytest.raises(nc.InvalidArgumentError, match="route is"):
            nc.Client("here:2", route=route)


def test_a_step_result_is_a_frozenset_that_survives_pickling() -> None:
    result = nc.StepResult(["a", "b"], 7, {"a": nc.QuantizedTensor(bits=8)})
    assert result == {"a", "b"}
    assert isinstance(result, frozenset)
    again = pickle.loads(pickle.dumps(result))
    assert (again, again.step, again.parameters["a"].bits) == (result, 7, 8)


def test_an_adapter_that_sends_no_gradients_refuses_an_algorithm_that_asks_for_them() -> None:
    layer = types.SimpleNamespace(step_inputs=("gradient",), statistics={})
    tracker: Any = types.SimpleNamespace(
        status={"fc": None}, plan=types.SimpleNamespace(layers={"fc": layer})
    )
    backend: Any = types.SimpleNamespace(why_no_statistic=lambda weight, kind: "which is not sent")
    bound = nc.Layer("fc", "Linear", (2, 2))
    weight: Any = types.SimpleNamespace(name="fc", token=lambda: 0, layer=lambda: bound)
    with pytest.raises(nc.InvalidArgumentError, match="the gradient of layer 'fc'"):
        Binding(tracker, [weight], backend)
