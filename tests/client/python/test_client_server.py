"""The public API against a real server."""

from __future__ import annotations

import struct
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

import nni_compression as nc
from servers import ServerProcess

RANDOM = np.random.default_rng(3)


def normal(*shape: int) -> np.ndarray[Any, Any]:
    return RANDOM.normal(size=shape).astype(np.float32)


def layer(name: str = "fc", shape: tuple[int, ...] = (10, 20), **rest: Any) -> nc.Layer:
    return nc.Layer(name, "Linear", shape, **rest)


class TestBinding:
    def test_the_three_rules_of_nnis_overview(self, client: nc.Client) -> None:
        config_list = [
            {"sparsity": 0.8, "op_types": ["default"]},
            {"sparsity": 0.6, "op_names": ["op_name1", "op_name2"]},
            {"exclude": True, "op_names": ["op_name3"]},
        ]
        names = ["conv1", "op_name1", "op_name2", "op_name3"]
        layers = [nc.Layer(name, "Conv2d", (10, 10)) for name in names]
        layers.append(nc.Layer("norm", "BatchNorm2d", (10,)))
        with client.bind_model("level", config_list, layers, framework="pytorch") as session:
            plan = session.plan
            got = [(p.compressed, p.rule, dict(p.options)) for p in plan.layers.values()]
            assert got == [
                (True, 0, {"score": "magnitude", "schedule": "once", "sparsity": 0.8}),
                (True, 1, {"score": "magnitude", "schedule": "once", "sparsity": 0.6}),
                (True, 1, {"score": "magnitude", "schedule": "once", "sparsity": 0.6}),
                (False, 2, {}),
                (False, None, {}),
            ]
            assert plan.compressed == ("conv1", "op_name1", "op_name2") == tuple(plan.layers)[:3]
            assert plan.warnings == ()
            assert session.stale == set(plan.compressed)
            masks = session.calc_mask({name: normal(10, 10) for name in plan.compressed})
        assert [masks[name].pruned for name in plan.compressed] == [80, 60, 60]
        assert [masks[name].target_sparsity for name in plan.compressed] == [0.8, 0.6, 0.6]

    def test_the_plan_says_when_to_ask_again(self, client: nc.Client) -> None:
        def plan(algorithm: str, rule: dict[str, Any]) -> nc.Plan:
            with client.bind_model(algorithm, [rule], [layer()]) as session:
                return session.plan

        level = plan("level", {"sparsity": 0.5})
        assert (level.layers["fc"].refresh, level.needs_update_epoch) == ("once", False)
        agp = plan("agp", {"final_sparsity": 0.5, "end_epoch": 10})
        assert (agp.layers["fc"].refresh, agp.needs_update_epoch) == ("when_stale", True)
        assert agp.layers["fc"].options["frequency"] == 1
        qat = plan("qat", {"quant_start_step": 5, "quant_scheme": "per_channel_affine"})
        assert (qat.layers["fc"].refresh, qat.needs_step) == ("on_weight_change", True)
        assert qat.layers["fc"].range_per_channel
        assert plan("naive", {}).layers["fc"].step_inputs == ("range",)

    def test_warnings_name_what_matches_nothing(self, client: nc.Client) -> None:
        rules = [{"sparsity": 0.5}, {"sparsity": 0.2, "op_names": ["nowhere"]}]
        with client.bind_model("level", rules, [layer()]) as session:
            assert any("nowhere" in warning for warning in session.plan.warnings)

    def test_a_lease_is_given(self, client: nc.Client) -> None:
        with client.bind_model("level", [{"sparsity": 0.5}], [layer()], lease=1800) as session:
            assert session.lease == pytest.approx(1800)
            assert 0 < session.keep_alive() <= 1800

    @pytest.mark.parametrize("size", [1000, 20_000_000])
    def test_masks_given_at_binding_stand(self, client: nc.Client, size: int) -> None:
        kept = RANDOM.random(size) < 0.5
        with client.bind_model(
            "level", [{"sparsity": 0.2}], [layer(shape=(size,))], masks={"fc": kept}
        ) as session:
            assert session.stale == frozenset()
            mask = session.calc_mask({"fc": np.ones(size, np.float32)})["fc"]
            np.testing.assert_array_equal(mask.to_numpy(), kept)

    def test_training_resumes_at_an_epoch_and_a_step(self, client: nc.Client) -> None:
        rule = {"final_sparsity": 0.8, "end_epoch": 10}
        with client.bind_model("agp", [rule], [layer()], epoch=10, step=77) as session:
            assert (session.info().epoch, session.info().step) == (10, 77)
            assert session.calc_mask({"fc": normal(10, 20)})["fc"].pruned == 160

    def test_a_session_goes_on_with_what_another_one_remembered(self, client: nc.Client) -> None:
        rule = {"quant_types": ["weight", "output"]}
        session = client.bind_model("qat", [rule], [layer()])
        session.step(3, outputs={"fc": (-1.0, 5.0)})
        saved = session.step(4, outputs={"fc": (-3.0, 1.0)})
        memory = {"fc": saved.outputs["fc"].memory}
        assert set(memory["fc"]) == {"output_range"}
        session.step(5, outputs={"fc": (0.0, 100.0)})  # it moves on
        other = client.bind_model(
            "qat", [rule], [layer()], memory=memory, step=saved.step, step_applied=True
        )
        again = other.step(4, outputs={"fc": (0.0, 100.0)})
        assert again.outputs["fc"].range == saved.outputs["fc"].range
        assert again.outputs["fc"].scale == saved.outputs["fc"].scale
        for each in (session, other):
            each.close()

    @pytest.mark.parametrize(
        ("memory", "message"),
        [
            ({"scale": [1.0, 2.0]}, r"is \[1, 2\]; it must be one finite number"),
            ({"scale": [float("nan")]}, r"is \[nan\]; it must be one finite number"),
            ({"scales": [1.0]}, r"has \"scales\"; it must be one of scale"),
        ],
    )
    def test_what_no_session_remembers_is_refused_by_name(
        self, client: nc.Client, memory: Any, message: str
    ) -> None:
        with pytest.raises(nc.InvalidArgumentError, match=r"memory\[0\].*" + message):
            client.bind_model("naive", [{}], [layer()], memory={"fc": memory})

    def test_large_masks_are_stale_where_the_epoch_wants_more(self, client: nc.Client) -> None:
        """They travel after the binding, and what was told then is not the last word."""
        shape = (4096, 2304)
        rules = [{"final_sparsity": 0.8, "end_epoch": 10}]
        masks = {"fc": np.ones(shape, bool), "few": np.ones((4, 4), bool)}
        layers = [layer("fc", shape), layer("few", (4, 4))]
        with client.bind_model("agp", rules, layers, masks=masks, epoch=5) as session:
            assert session.stale == {"fc", "few"}
        with client.bind_model("agp", rules, layers, masks=masks, epoch=0) as session:
            assert session.stale == frozenset()


class TestMasks:
    def test_layers_of_every_size_come_back_in_one_stream(self, client: nc.Client) -> None:
        sizes = [1, 7, 8, 9, 1000, (1 << 18) - 1, 1 << 18, (1 << 18) + 1, 3_000_001, 5]
        weights = {f"l{i}": normal(size) for i, size in enumerate(sizes)}
        layers = [layer(name, weight.shape) for name, weight in weights.items()]
        with client.bind_model("level", [{"sparsity": 0.75}], layers) as session:
            masks = session.calc_mask(weights)
            calls = session.stats.calls
        assert calls == 1
        for name, weight in weights.items():
            mask = masks[name]
            assert mask.shape == weight.shape
            assert mask.pruned == int(weight.size * 0.75)
            if mask.pruned:
                kept = mask.to_numpy()
                assert np.abs(weight[~kept]).max() <= np.abs(weight[kept]).min()

    def test_a_thousand_small_layers_take_one_message(self, client: nc.Client) -> None:
        weights = {f"l{i}": normal(5) for i in range(1000)}
        layers = [layer(name, (5,)) for name in weights]
        with client.bind_model("level", [{"sparsity": 0.4}], layers) as session:
            assert {m.pruned for m in session.calc_mask(weights).values()} == {2}
            assert session.stale == frozenset()

    def test_the_first_weight_decides(self, client: nc.Client) -> None:
        with client.bind_model("level", [{"sparsity": 0.5}], [layer()]) as session:
            first = session.calc_mask({"fc": normal(10, 20)})
            other = client.join(session.id, route=session.route)
            assert session.calc_mask({"fc": normal(10, 20)}) == first
            assert other.calc_mask({"fc": normal(10, 20)}) == first

    def test_non_contiguous_read_only_and_big_endian_weights(self, client: nc.Client) -> None:
        weight = normal(20, 10)
        frozen = weight.copy()
        frozen.flags.writeable = False
        answers = []
        for given in (weight.T, np.ascontiguousarray(weight.T).astype(">f4"), frozen.T):
            with client.bind_model("level", [{"sparsity": 0.5}], [layer()]) as session:
                answers.append(session.calc_mask({"fc": given})["fc"])
        assert answers[0] == answers[1] == answers[2]

    def test_a_mask_of_the_trainers_own_is_in_force(self, client: nc.Client) -> None:
        kept = RANDOM.random((10, 20)) < 0.9
        rule = {"final_sparsity": 0.5, "end_epoch": 3}
        with client.bind_model("agp", [rule], [layer()], epoch=3) as session:
            given = session.set_mask({"fc": kept})["fc"]
            np.testing.assert_array_equal(given.to_numpy(), kept)
            grown = session.calc_mask({"fc": normal(10, 20)})["fc"]
            assert grown.pruned == 100
            assert not (grown.to_numpy() & ~kept).any()

    def test_an_epoch_that_is_not_the_sessions_is_refused(self, client: nc.Client) -> None:
        with client.bind_model("level", [{"sparsity": 0.5}], [layer()]) as session:
            with pytest.raises(nc.FailedPreconditionError, match="epoch"):
                session.calc_mask({"fc": normal(10, 20)}, epoch=1)
            session.update_epoch(1)
            mask = session.calc_mask({"fc": normal(10, 20)}, epoch=1)["fc"]
            assert mask.epoch == 1

    def test_checksums_are_accepted(self, server: ServerProcess) -> None:
        weights = {"fc": normal(10, 20), "big": normal(2_000_000)}
        layers = [layer(name, weight.shape) for name, weight in weights.items()]
        client = nc.Client(server.address, checksum=True)
        with client, client.bind_model("level", [{"sparsity": 0.5}], layers) as session:
            assert session.calc_mask(weights)["big"].pruned == 1_000_000


class TestQuantization:
    @pytest.mark.parametrize("algorithm", ["naive", "qat", "dorefa"])
    @pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
    def test_the_reply_forms_agree(self, client: nc.Client, algorithm: str, dtype: str) -> None:
        weight = normal(300, 40).astype(dtype)
        layers = [layer(shape=(300, 40), dtype=dtype)]
        with client.bind_model(algorithm, [{}], layers) as session:
            codes = session.quantize_weight({"fc": weight})["fc"]
            values = session.quantize_weight({"fc": weight}, reply="values")["fc"]
            parameters = session.quantize_weight({"fc": weight}, reply="parameters")["fc"]
        assert codes.codes is not None
        assert codes.values is None
        assert codes.codes.shape == codes.shape == (300, 40)
        assert values.codes is None
        assert values.values is not None
        assert values.values.dtype == dtype
        np.testing.assert_array_equal(codes.dequantize().astype(dtype), values.values)
        assert parameters.codes is None
        assert parameters.values is None
        for other in (values, parameters):
            assert (other.bits, other.scale, other.zero_point) == (
                codes.bits,
                codes.scale,
                codes.zero_point,
            )

    def test_per_channel_scales_come_as_arrays(self, client: nc.Client) -> None:
        rule = {"quant_scheme": "per_channel_symmetric", "quant_bits": 12}
        layers = [layer("first", (6, 50)), layer("last", (50, 6), channel_axis=1)]
        weight = normal(6, 50)
        with client.bind_model("qat", [rule], layers) as session:
            q = session.quantize_weight({"first": weight, "last": weight.T})
            p = session.quantize_range(
                {"first": np.stack([weight.min(axis=1), weight.max(axis=1)])}
            )["first"]
        for answer, axis in ((q["first"], 0), (q["last"], 1)):
            assert answer.channel_axis == axis
            assert isinstance(answer.scale, np.ndarray)
            assert (answer.scale.shape, answer.scale.dtype) == ((6,), np.float32)
            assert answer.codes is not None
            assert answer.codes.dtype == np.int16
        np.testing.assert_array_equal(q["first"].codes, q["last"].codes.T)
        np.testing.assert_array_equal(q["first"].dequantize(), q["last"].dequantize().T)
        np.testing.assert_array_equal(p.scale, q["first"].scale)

    @pytest.mark.parametrize("algorithm", ["naive", "qat"])
    def test_a_range_gives_the_weights_parameters(self, client: nc.Client, algorithm: str) -> None:
        weight = normal(10, 20)
        answers = []
        for ask in (
            lambda s: s.quantize_weight({"fc": weight})["fc"],
            lambda s: s.quantize_range({"fc": (weight.min(), weight.max())})["fc"],
            lambda s: s.step(1, {"fc": (weight.min(), weight.max())}).parameters["fc"],
        ):
            with client.bind_model(algorithm, [{}], [layer()]) as session:
                answers.append(ask(session))
        assert len({(a.scale, a.zero_point, a.formula, a.rounding) for a in answers}) == 1
        assert isinstance(answers[0].scale, float)
        assert isinstance(answers[0].zero_point, int)

    def test_before_the_start_step_weights_pass_unchanged(self, client: nc.Client) -> None:
        with client.bind_model("qat", [{"quant_start_step": 3}], [layer()]) as session:
            q = session.quantize_weight({"fc": normal(10, 20)})["fc"]
            assert q.unquantized
            assert (q.scale, q.codes, q.bits) == (None, None, None)
            assert session.quantize_range({"fc": (0, 1)})["fc"].unquantized
            assert session.step(2) == frozenset()
            assert session.step(3) == {"fc"} == session.stale
            assert not session.quantize_weight({"fc": normal(10, 20)}, step=3)["fc"].unquantized
            assert session.stale == frozenset()
            with pytest.raises(nc.FailedPreconditionError, match="step"):
                session.quantize_weight({"fc": normal(10, 20)}, step=4)

    def test_a_repeated_step_changes_nothing(self, client: nc.Client) -> None:
        with client.bind_model("naive", [{}], [layer()]) as session:
            first = session.step(5, {"fc": (-1, 1)})
            again = session.step(5, {"fc": (-100, 100)})
            earlier = session.step(4, {"fc": (-100, 100)})
            assert first.step == again.step == earlier.step == 5
            scales = {r.parameters["fc"].scale for r in (first, again, earlier)}
            assert len(scales) == 1
            assert session.step(6, {"fc": (-2, 2)}).parameters["fc"].scale == 2 * scales.pop()

    def test_a_pruner_does_not_quantize_nor_a_quantizer_prune(self, client: nc.Client) -> None:
        weights = {"fc": normal(10, 20)}
        with client.bind_model("level", [{"sparsity": 0.5}], [layer()]) as pruner:
            with pytest.raises(nc.FailedPreconditionError, match="level"):
                pruner.quantize_weight(weights)
            assert pruner.stale == {"fc"}
        with client.bind_model("naive", [{}], [layer()]) as quantizer:
            with pytest.raises(nc.FailedPreconditionError, match="naive"):
                quantizer.calc_mask(weights)
            assert quantizer.stale == {"fc"}

    def test_an_unknown_reply_is_refused(self, client: nc.Client) -> None:
        session = client.bind_model("naive", [{}], [layer()])
        with session, pytest.raises(nc.InvalidArgumentError, match="reply is 'bits'"):
            session.quantize_weight({"fc": normal(10, 20)}, reply="bits")


class TestEpochs:
    def test_stale_layers_follow_the_schedule(self, client: nc.Client) -> None:
        rule = {"final_sparsity": 0.8, "start_epoch": 2, "end_epoch": 8, "frequency": 2}
        weight = np.arange(1, 201, dtype=np.float32).reshape(10, 20)
        with client.bind_model("agp", [rule], [layer()]) as session:
            assert session.stale == {"fc"}
            assert session.calc_mask({"fc": weight})["fc"].sparsity == 0
            seen = []
            for epoch in range(1, 12):
                if session.update_epoch(epoch):
                    assert session.stale == {"fc"}
                    seen.append((epoch, session.calc_mask({"fc": weight})["fc"].pruned))
                assert session.stale == frozenset()
                assert session.update_epoch(epoch) == frozenset()
            assert [epoch for epoch, _ in seen] == [4, 6]
            assert seen[-1] == (6, 160)
            assert session.update_epoch(3) == frozenset()
            assert session.calc_mask({"fc": weight})["fc"].pruned == 160

    @pytest.mark.parametrize("epoch", [-1, 2**63])
    def test_an_epoch_out_of_range_is_refused(self, client: nc.Client, epoch: int) -> None:
        with client.bind_model("level", [{"sparsity": 0.5}], [layer()]) as session:
            with pytest.raises(nc.InvalidArgumentError, match="epoch is"):
                session.update_epoch(epoch)
            with pytest.raises(nc.InvalidArgumentError, match="step is"):
                session.step(epoch)
            with pytest.raises(TypeError):
                session.update_epoch(1.5)  # type: ignore[arg-type]


def read_safetensors(path: Path) -> dict[str, tuple[str, list[int], bytes]]:
    """name -> dtype, shape, bytes; a reader written from the format's description."""
    import json

    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    header.pop("__metadata__", None)
    data = raw[8 + length :]
    return {
        name: (entry["dtype"], entry["shape"], data[slice(*entry["data_offsets"])])
        for name, entry in header.items()
    }


class TestExport:
    def test_pruned_weights_and_what_else_belongs_in(
        self, client: nc.Client, tmp_path: Path
    ) -> None:
        weights = {"fc": normal(10, 20), "big": normal(1_500_000)}
        layers = [layer(name, weight.shape) for name, weight in weights.items()]
        bias = normal(10)
        with client.bind_model("level", [{"sparsity": 0.5}], layers) as session:
            masks = session.calc_mask(weights)
            paths = session.export(tmp_path / "new" / "out", {**weights, "fc.bias": bias})
        assert [path.name for path in paths] == ["model.safetensors"]
        stored = read_safetensors(paths[0])
        assert set(stored) == {"fc", "big", "fc.bias"}
        for name, weight in weights.items():
            dtype, shape, raw = stored[name]
            assert (dtype, shape) == ("F32", list(weight.shape))
            expected = np.where(masks[name].to_numpy(), weight, np.float32(0))
            assert raw == expected.tobytes()
        assert stored["fc.bias"][2] == bias.tobytes()
        assert [path.name for path in paths[0].parent.iterdir()] == ["model.safetensors"]

    def test_masks_in_both_forms(self, client: nc.Client, tmp_path: Path) -> None:
        with client.bind_model("level", [{"sparsity": 0.5}], [layer()]) as session:
            mask = session.calc_mask({"fc": normal(10, 20)})["fc"]
            paths = session.export(tmp_path, format="masks")
        assert sorted(path.name for path in paths) == [
            "masks.packed.safetensors",
            "masks.safetensors",
        ]
        _, shape, plain = read_safetensors(tmp_path / "masks.safetensors")["fc"]
        assert shape == [10, 20]
        assert plain == mask.to_numpy().astype(np.uint8).tobytes()
        _, _, packed = read_safetensors(tmp_path / "masks.packed.safetensors")["fc"]
        assert packed == mask.bits.tobytes()

    def test_quantized_weights_are_their_values(self, client: nc.Client, tmp_path: Path) -> None:
        weight = normal(10, 20)
        with client.bind_model("qat", [{}], [layer()]) as session:
            expected = session.quantize_weight({"fc": weight})["fc"].dequantize()
            (path,) = session.export(tmp_path, {"fc": weight})
        assert read_safetensors(path)["fc"][2] == expected.tobytes()

    def test_what_cannot_be_exported_says_why_and_leaves_nothing(
        self, client: nc.Client, tmp_path: Path
    ) -> None:
        weight = normal(10, 20)
        with client.bind_model("level", [{"sparsity": 0.5}], [layer()]) as session:
            with pytest.raises(nc.FailedPreconditionError, match="fc"):
                session.export(tmp_path, {"fc": weight})
            session.calc_mask({"fc": weight})
            with pytest.raises(nc.InvalidArgumentError, match="tflite.*safetensors"):
                session.export(tmp_path, {"fc": weight}, format="tflite")
            with pytest.raises(nc.InvalidArgumentError, match="fc"):
                session.export(tmp_path)
            with pytest.raises(nc.InvalidArgumentError, match="fc"):
                session.export(tmp_path, {"fc": weight[:5]})
            with pytest.raises(nc.InvalidArgumentError, match="colour"):
                session.export(tmp_path, {"fc": weight}, options={"colour": "red"})
            (tmp_path / "out").write_text("a file")
            with pytest.raises(OSError, match="out"):
                session.export(tmp_path / "out", {"fc": weight})
        assert [path.name for path in tmp_path.iterdir()] == ["out"]


class TestSessions:
    def test_a_session_is_listed_by_its_labels_until_it_is_closed(self, client: nc.Client) -> None:
        labels = {"nni_experiment": "e", "test": "listing"}
        before = datetime.now(timezone.utc)
        first = client.bind_model("level", [{"sparsity": 0.5}], [layer()], labels=labels)
        second = client.bind_model("naive", [{}], [layer()], labels={**labels, "nni_trial": "t"})
        assert [s.id for s in client.sessions(labels)] == [first.id, second.id]
        (info,) = client.sessions({"test": "listing", "nni_trial": "t"})
        assert (info.id, info.algorithm, info.state) == (second.id, "naive", "active")
        assert info.labels == {**labels, "nni_trial": "t"}
        assert abs((info.create_time - before).total_seconds()) < 60
        assert info.layers == ()
        first.close()
        assert [s.id for s in client.sessions(labels)] == [second.id]
        second.close()
        assert client.sessions(labels) == []

    def test_results_are_kept_with_a_session_also_after_its_end(self, client: nc.Client) -> None:
        labels = {"test": "results"}
        rules = [{"sparsity": 0.5, "op_names": ["fc"]}]
        with client.bind_model("level", rules, [layer()], labels=labels) as session:
            assert session.info().results == {}
            session.report(accuracy=0.75, loss=np.float32(0.5))
            session.report({"accuracy": 1, "top-1": 2.0})
            expected = {"accuracy": 1.0, "loss": 0.5, "top-1": 2.0}
            assert session.info().results == expected
            for wrong, message in (
                ({"loss": float("inf")}, r"results\['loss'\] is inf; it must be finite"),
                ({"x" * 65: 1.0}, "64"),
                ({"loss": "0.5"}, r"results\['loss'\] is '0.5'; it must be a number"),
                ({3: 1.0}, "must be a string"),
                ({str(i): float(i) for i in range(62)}, "at most 64"),
            ):
                with pytest.raises(nc.InvalidArgumentError, match=message):
                    session.report(wrong)  # type: ignore[arg-type]
            assert session.info().results == expected
        assert client.sessions(labels) == []
        (ended,) = client.sessions(labels, include_ended=True)
        assert (ended.id, ended.state, ended.results) == (session.id, "closed", expected)
        assert ended.config_list == ()
        report = client.session_info(session.id)
        assert report.results == expected
        assert report.config_list == (rules[0],)
        with pytest.raises(nc.FailedPreconditionError, match="before close"):
            session.report(accuracy=1.0)

    def test_listing_goes_through_all_pages(self, client: nc.Client) -> None:
        labels = {"test": "pages"}
        with ThreadPoolExecutor(4) as pool:
            bound = list(
                pool.map(
                    lambda _: client.bind_model(
                        "level", [{"sparsity": 0.5}], [layer()], labels=labels
                    ),
                    range(1005),
                )
            )
            found = client.sessions(labels)
            list(pool.map(nc.Session.close, bound))
        assert {s.id for s in found} == {s.id for s in bound}
        assert len(found) == 1005

    def test_reports_tell_how_far_each_layer_is_also_after_the_end(self, client: nc.Client) -> None:
        layers = [layer(), nc.Layer("other", "Softmax", (3,))]
        rules = [{"sparsity": 0.25, "op_types": ["default"]}]
        session = client.bind_model("level", rules, layers)
        assert [(r.name, r.stale) for r in session.info().layers] == [
            ("fc", True),
            ("other", False),
        ]
        weight = normal(10, 20)
        session.calc_mask({"fc": weight})
        live = session.info()
        report = live.layers[0]
        assert (report.achieved_sparsity, report.target_sparsity) == (0.25, 0.25)
        assert (report.elements, report.stale, report.rule, report.bits) == (200, False, 0, None)
        assert (live.layer_count, live.compressed_layer_count) == (2, 1)
        assert live.achieved_sparsity == 0.25
        assert live.received_bytes == weight.nbytes
        assert live.sent_bytes == 25
        assert live.state_bytes >= 25
        assert live.lease is not None
        session.close()
        ended = client.session_info(session.id)
        assert (ended.state, ended.lease) == ("closed", None)
        assert ended.layers[0].achieved_sparsity == 0.25
        with pytest.raises(nc.NotFoundError):
            client.join(session.id)

    def test_joining_takes_over_plan_and_staleness(self, client: nc.Client) -> None:
        with client.bind_model("level", [{"sparsity": 0.5}], [layer(), layer("b")]) as session:
            session.calc_mask({"fc": normal(10, 20)})
            joined = client.join(session.id, route=session.route)
            assert (joined.id, joined.plan) == (session.id, session.plan)
            assert joined.stale == {"b"} == session.stale

    def test_a_closed_session_is_gone_for_all(self, client: nc.Client, tmp_path: Path) -> None:
        session = client.bind_model("level", [{"sparsity": 0.5}], [layer()])
        joined = client.join(session.id)
        session.close()
        for call in (
            lambda: joined.calc_mask({"fc": normal(10, 20)}),
            lambda: joined.quantize_weight({"fc": normal(10, 20)}),
            lambda: joined.update_epoch(1),
            lambda: joined.step(1),
            lambda: joined.keep_alive(),
            lambda: joined.export(tmp_path),
        ):
            with pytest.raises(nc.NotFoundError, match=session.id):
                call()
        joined.close()

    def test_algorithms_list_their_options(self, client: nc.Client) -> None:
        algorithms = {algorithm.name: algorithm for algorithm in client.algorithms()}
        assert set(algorithms) >= {"level", "agp", "naive", "qat", "dorefa"}
        level = algorithms["level"]
        option = {option.name: option for option in level.options}["sparsity"]
        assert (level.kind, option.name, option.required, option.range) == (
            "pruner",
            "sparsity",
            True,
            "[0, 1]",
        )
        for algorithm in algorithms.values():
            with client.bind_model(algorithm.name, [algorithm.example], [layer()]) as session:
                assert session.plan.compressed == ("fc",)
        bits = {option.name: option for option in algorithms["qat"].options}["quant_bits"]
        assert (bits.default, bits.aliases) == (8, ("q_bits",))


def test_threads_share_a_client(client: nc.Client) -> None:
    weights = [normal(10, 20) for _ in range(8)]
    start = threading.Barrier(8)

    def work(weight: np.ndarray[Any, Any]) -> list[int]:
        start.wait()
        pruned = []
        for sparsity in (0.1, 0.5, 0.9):
            with client.bind_model("level", [{"sparsity": sparsity}], [layer()]) as session:
                pruned.append(session.calc_mask({"fc": weight})["fc"].pruned)
        return pruned

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, weights)) == [[20, 100, 180]] * 8


def test_tied_weights_are_one_layer_under_all_their_names(client: nc.Client) -> None:
    rules = [{"sparsity": 0.5, "op_names": ["decoder"]}]
    with client.bind_model("level", rules, [layer("encoder", aliases=["decoder"])]) as session:
        assert session.plan.compressed == ("encoder",)
        assert session.plan.warnings == ()


@pytest.mark.parametrize(
    ("flags", "offered"), [((), False), (("--noreflection",), False), (("--reflection",), True)]
)
def test_reflection_is_offered_by_flag(flags: tuple[str, ...], offered: bool) -> None:
    method = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
    list_services = b"\x3a\x01*"
    with ServerProcess(*flags) as server, grpc.insecure_channel(server.address) as channel:
        call = channel.stream_stream(method)(iter([list_services]), timeout=30)
        if not offered:
            with pytest.raises(grpc.RpcError) as raised:
                list(call)
            assert raised.value.code() == grpc.StatusCode.UNIMPLEMENTED
            return
        (answer,) = list(call)
        for service in ("nni.compression.v1.CompressionService", "grpc.health.v1.Health"):
            assert service.encode() in answer
