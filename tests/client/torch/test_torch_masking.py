"""A masked weight is torch.where's, however it is computed."""

from __future__ import annotations

import copy
import io

import pytest

pytest.importorskip("torch")

import torch

from nni_compression.torch import LevelPruner, QATQuantizer, masking
from torch_helpers import LEVEL, QAT, Net, calls, images

INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
dtypes = pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64]
)


@pytest.fixture(params=[False, True], ids=["", "bits kept"])
def masked(request):
    """The function, for a mask of one use, or for one whose bits are kept."""

    def keeping(weight, mask, **options):
        masking.keep_bits(mask, weight)
        return masking.masked(weight, mask, **options)

    return keeping if request.param else masking.masked


def where(weight: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return torch.where(mask, weight, weight.new_zeros(()))


def some_mask(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1)) > 0.5


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(INTEGERS[tensor.element_size()])


@dtypes
def test_every_bit_is_that_of_where_whatever_the_values(masked, dtype):
    special = [0.0, -0.0, float("inf"), -float("inf"), float("nan"), -1.5, 1e-30, 7.0]
    weight = torch.tensor(special * 4, dtype=dtype)
    mask = torch.arange(32) // 8 % 2 == 0  # each value is kept, and pruned
    with torch.no_grad():
        assert torch.equal(bits(masked(weight, mask)), bits(where(weight, mask)))
    assert torch.equal(bits(masked(weight.requires_grad_(), mask)), bits(where(weight, mask)))


@pytest.mark.parametrize(
    "arrange",
    [
        lambda w: w,
        lambda w: w.contiguous(memory_format=torch.channels_last),
        lambda w: w.transpose(0, 1).contiguous().transpose(0, 1),
        lambda w: torch.cat([w, w], dim=3)[..., ::2],
        lambda w: w[:1].expand(6, 5, 3, 3),
    ],
    ids=["contiguous", "channels_last", "transposed", "strided", "expanded"],
)
def test_weights_may_lie_in_memory_in_any_order(masked, arrange):
    weight = arrange(torch.randn(6, 5, 3, 3))
    mask = some_mask(*weight.shape)
    result = masked(weight, mask)
    assert torch.equal(result, where(weight, mask))
    result.zero_()  # memory of its own
    assert weight.abs().sum() > 0


def test_gradients_of_any_order_and_of_either_mode_are_those_of_where(masked):
    weight = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    mask = some_mask(4, 5)
    assert torch.autograd.gradcheck(lambda w: masked(w, mask), (weight,), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(lambda w: masked(w, mask) ** 3, (weight,))


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_the_result_is_part_of_the_graph_only_where_gradients_are_computed(masked, context):
    weight = torch.randn(3, 4, requires_grad=True)
    mask = some_mask(3, 4)
    with context():
        result = masked(weight, mask)
        assert result.requires_grad == torch.is_grad_enabled()
        assert result.is_inference() == torch.is_inference_mode_enabled()
        assert torch.equal(result, where(weight, mask))


@pytest.mark.parametrize("sparse", [True, False])
def test_a_sparse_gradient_stays_sparse(masked, sparse):
    weight = torch.randn(6, 3, requires_grad=True)
    mask = some_mask(6, 3)
    rows = torch.tensor([4, 1, 4])
    result = torch.nn.functional.embedding(rows, masked(weight, mask, sparse=sparse), sparse=sparse)
    result.sum().backward()
    assert weight.grad.is_sparse == sparse
    expected = torch.zeros(6, 3)
    expected[1], expected[4] = mask[1].float(), 2 * mask[4].float()
    assert torch.equal(weight.grad.to_dense() if sparse else weight.grad, expected)


def test_a_trace_has_the_operation_and_not_its_result(masked):
    mask = some_mask(3, 4)
    traced = torch.jit.trace(lambda w: masked(w, mask), torch.randn(3, 4))
    other = torch.randn(3, 4)
    assert torch.equal(traced(other), where(other, mask))


@pytest.mark.skipif(not hasattr(torch, "func"), reason="torch.func came with PyTorch 2.0")
def test_transforms_of_functions_go_through(masked):
    mask = some_mask(3, 4)
    weights = torch.randn(2, 3, 4)
    mapped = torch.func.vmap(torch.func.grad(lambda w: (masked(w, mask) ** 2).sum()))(weights)
    assert torch.equal(mapped, 2 * where(weights, mask))


def test_kept_bits_are_for_weights_like_the_one_they_were_kept_for():
    mask = some_mask(6, 5, 3, 3)
    for weight in (
        torch.randn(6, 5, 3, 3),
        torch.randn(6, 5, 3, 3).contiguous(memory_format=torch.channels_last),
        torch.randn(6, 5, 3, 3, dtype=torch.float64),
        torch.randn(6, 5, 3, 3).half(),
    ):
        other = weight.double() if weight.dtype == torch.float32 else weight.float()
        assert torch.equal(masking.masked(weight, mask), where(weight, mask))  # of those before
        masking.keep_bits(mask, weight)
        for each in (weight, other):
            result = masking.masked(each, mask)
            assert torch.equal(result, where(each, mask))
            assert result.stride() == each.stride()


def test_a_mask_that_is_written_to_has_other_bits(masked):
    weight, mask = torch.randn(4, 5), some_mask(4, 5)
    masked(weight, mask)
    mask[1] = False
    assert torch.equal(masked(weight, mask), where(weight, mask))
    mask.logical_not_()
    assert torch.equal(masking.masked(weight, mask), where(weight, mask))


@pytest.mark.skipif(torch.__version__ < "2", reason="fake tensors could not be mixed with others")
def test_a_pass_with_fake_tensors_leaves_no_bits_without_values():
    from torch._subclasses.fake_tensor import FakeTensorMode

    weight, mask = torch.randn(4, 5), some_mask(4, 5)
    with FakeTensorMode(allow_non_fake_inputs=True):
        masking.keep_bits(mask, weight)
        assert masking.masked(weight, mask).shape == weight.shape
    assert torch.equal(masking.masked(weight, mask), where(weight, mask))
    masking.keep_bits(mask, weight)
    assert torch.equal(masking.masked(weight, mask), where(weight, mask))


@pytest.mark.parametrize("strategy", ["reverse-mode", "forward-mode"])
def test_many_gradients_are_computed_at_once(masked, strategy):
    mask, weight = some_mask(5), torch.randn(5)

    def cubes(values):
        return masked(values, mask) ** 3

    (gradients,) = torch.autograd.grad(
        cubes(weight.requires_grad_()), weight, torch.eye(5), is_grads_batched=True
    )
    expected = torch.diag(3 * where(weight.detach(), mask) ** 2)
    assert torch.allclose(gradients, expected)
    found = torch.autograd.functional.jacobian(
        cubes, weight.detach(), vectorize=True, strategy=strategy
    )
    assert torch.allclose(found, expected)


@pytest.mark.parametrize("first", [True, False], ids=["before", "after"])
@pytest.mark.parametrize(("make", "rules"), [(LevelPruner, LEVEL), (QATQuantizer, QAT)])
def test_a_pass_without_values_leaves_the_answers(client, make, rules, first):
    compressor = make(rules, client=client)
    model = compressor(Net()).eval()
    output = model(images()) if first else None
    twin = copy.deepcopy(model).to("meta")
    assert twin(images().to("meta")).device.type == "meta"
    twin.to_empty(device="cpu").load_state_dict(model.state_dict())
    if hasattr(torch, "func"):
        parameters = {key: value.to("meta") for key, value in model.state_dict().items()}
        asked = calls(compressor)
        torch.func.functional_call(model, parameters, (images().to("meta"),))
        assert calls(compressor) == asked
    assert output is None or torch.equal(model(images()), output)
    assert torch.equal(twin(images()), model(images()))
    masks = getattr(compressor, "masks", {})
    assert all(mask.any() and not mask.all() for mask in masks.values())


def test_masks_that_are_saved_or_copied_are_bools_and_no_more(client):
    pruner = LevelPruner(LEVEL, client=client)
    model = pruner(Net())
    model(images())
    for mask in (*pruner.masks.values(), model.fc1.weight_mask):
        assert not vars(mask)
    file, plain = io.BytesIO(), io.BytesIO()
    torch.save(pruner.masks, file)
    torch.save({name: mask.clone() for name, mask in pruner.masks.items()}, plain)
    assert len(file.getvalue()) == len(plain.getvalue())


def test_a_mask_that_is_written_to_is_in_force(client):
    pruner = LevelPruner(LEVEL, client=client)
    model = pruner(Net())
    model(images())
    model.fc1.weight_mask[3] = False
    assert not model.fc1.weight[3].any()
    assert not pruner.masks["fc1"][3].any()
