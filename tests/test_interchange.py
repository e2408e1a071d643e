"""Weights from PyTorch, and the layer sizes in a network's own file."""

import itertools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import logits64, raises_input_error
from safetensors.numpy import load_file, save_file

import jaxablate as ja
from jaxablate.models import load_pytorch

pytestmark = pytest.mark.filterwarnings("ignore::jaxablate.models.AssumptionWarning")

SHAPE = (10, 13, 3)  # height, width, channel: all different, so that none can stand for another
SUFFIXES = (".pt", ".pth", ".safetensors")


@pytest.fixture
def images():
    return np.random.default_rng(0).normal(size=(4, *SHAPE)).astype(np.float32)


def flatten(x):
    return x.reshape(len(x), -1)


def pool(x):
    return nnx.max_pool(x, (2, 2), strides=(2, 2))


def cnn(*behind, sites=False) -> nnx.Sequential:
    """Two convolutions, the second in two groups, and what follows them: maps of 3 x 4 with 8 channels."""
    rngs = nnx.Rngs(7)
    return nnx.Sequential(
        nnx.Conv(3, 6, (3, 3), padding=1, rngs=rngs),
        nnx.BatchNorm(6, rngs=rngs),
        nnx.relu,
        *([ja.Site("conv1")] if sites else []),
        pool,
        nnx.Conv(6, 8, (3, 3), padding="VALID", feature_group_count=2, use_bias=False, rngs=rngs),
        nnx.sigmoid,
        *behind,
    )


def torch_cnn(torch, *behind):
    nn = torch.nn
    convs = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 8, 3, groups=2, bias=False)
    net = nn.Sequential(convs[0], nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), convs[1], nn.Sigmoid(), *behind)
    return randomized(torch, net)


def randomized(torch, net):
    """The network in evaluation mode, with batch norms that do something."""
    generator = torch.Generator().manual_seed(3)
    for name, tensor in net.state_dict().items():
        if tensor.ndim == 1 and tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + (0.5 if name.endswith("var") else 0))
    return net.eval()


def saved(torch, state, path):
    from safetensors.torch import save_file

    (save_file if path.suffix == ".safetensors" else torch.save)(state, path)
    return path


def torch_logits(torch, net, images):
    """Logits of channels-last images, if they have channels."""
    tensor = torch.from_numpy(np.asarray(images))
    with torch.no_grad():
        return net(tensor.movedim(-1, 1) if tensor.ndim == 4 else tensor).numpy()


def logits(model, images):
    model = nnx.clone(model)
    model.eval()
    with jax.default_matmul_precision("highest"):
        return np.asarray(model(images))


def leaves(model):
    return jax.tree.leaves(nnx.state(model, (nnx.Param, nnx.BatchStat)))


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(("activation", "module"), [("relu", "ReLU"), ("sigmoid", "Sigmoid")])
def test_mlp_equals_pytorch(torch, tmp_path, suffix, activation, module):
    nn = torch.nn
    act = getattr(nn, module)
    net = nn.Sequential(nn.Flatten(), nn.Linear(20, 9), act(), nn.Linear(9, 7, bias=False), act(), nn.Linear(7, 5))
    path = saved(torch, net.state_dict(), tmp_path / f"net{suffix}")
    model = load_pytorch(path, activation=activation)
    images = np.random.default_rng(0).random((6, 4, 5)).astype(np.float32)
    assert isinstance(model, ja.MLP)
    assert (model.hidden, model.activation) == ((9, 7), activation)
    np.testing.assert_allclose(logits(model, images), torch_logits(torch, net, images), atol=1e-5)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_mlp_of_colour_images_equals_pytorch(torch, tmp_path, images, suffix):
    nn = torch.nn
    net = nn.Sequential(nn.Flatten(), nn.Linear(images[0].size, 9), nn.ReLU(), nn.Linear(9, 5))
    model = load_pytorch(
        saved(torch, net.state_dict(), tmp_path / f"net{suffix}"), activation="relu", images=images[:1]
    )
    np.testing.assert_allclose(logits(model, images), torch_logits(torch, net, images), atol=1e-5)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("sites", [False, True])
def test_cnn_equals_pytorch(torch, tmp_path, images, suffix, sites):
    net = torch_cnn(torch, torch.nn.Flatten(), torch.nn.Linear(8 * 3 * 4, 5))
    local = cnn(flatten, nnx.Linear(8 * 3 * 4, 5, rngs=nnx.Rngs(0)), sites=sites)
    before = leaves(local)
    model = load_pytorch(saved(torch, net.state_dict(), tmp_path / f"net{suffix}"), local, images=images[:1])
    np.testing.assert_allclose(logits(model, images), torch_logits(torch, net, images), atol=1e-5)
    assert all(a is b for a, b in zip(before, leaves(local), strict=True))
    local.eval()
    assert nnx.graphdef(model) == nnx.graphdef(local), "the same layers, in evaluation mode"
    assert ("conv1" in str(nnx.graphdef(model))) == sites


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_cnn_with_named_modules(torch, tmp_path, images, suffix):
    """By name bn1 comes before conv1, and classifier before features; safetensors keep no other order."""
    net = torch_cnn(torch, torch.nn.Flatten(), torch.nn.Linear(8 * 3 * 4, 5))
    new = {"0": "features.conv1", "1": "features.bn1", "4": "features.conv2", "7": "classifier"}
    state = {f"{new[name.split('.')[0]]}.{name.split('.')[1]}": tensor for name, tensor in net.state_dict().items()}
    local = cnn(flatten, nnx.Linear(8 * 3 * 4, 5, rngs=nnx.Rngs(0)))
    model = load_pytorch(saved(torch, state, tmp_path / f"net{suffix}"), local, images=images)
    np.testing.assert_allclose(logits(model, images), torch_logits(torch, net, images), atol=1e-5)


SIZES = (96, 96), (96, 5), (8, 5)


def heads(torch):
    """Layers between maps of 3 x 4 with 8 channels and the logits: PyTorch's and jaxablate's."""
    nn, rngs = torch.nn, nnx.Rngs(1)
    norm, hidden, last, few = (nnx.BatchNorm(96, rngs=rngs), *(nnx.Linear(*n, rngs=rngs) for n in SIZES))
    pooled = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
    site = ja.Site("features")
    return {
        "norm": ((nn.Flatten(), nn.BatchNorm1d(96), nn.ReLU(), nn.Linear(96, 5)), (flatten, norm, nnx.relu, last)),
        "hidden": (
            (nn.Flatten(), nn.Sigmoid(), nn.Linear(96, 96), nn.ReLU(), nn.Linear(96, 5)),
            (flatten, nnx.sigmoid, site, hidden, nnx.relu, last),
        ),
        "joined": ((nn.ReLU(), nn.Flatten(), nn.Linear(96, 5)), (lambda x: flatten(nnx.relu(x)), last)),
        "dropout": (
            (nn.Dropout(), nn.Flatten(), nn.Linear(96, 5)),
            (nnx.Dropout(0.5), flatten, last),
        ),
        "turned": (
            (nn.Flatten(), nn.Linear(96, 5)),
            (lambda x: flatten(x.transpose(0, 3, 1, 2)), last),  # as Flax's own guide has it
        ),
        "mean": (pooled, (lambda x: x.mean(axis=(1, 2)), few)),
        "max": ((nn.AdaptiveMaxPool2d(1), *pooled[1:]), (lambda x: x.max(axis=(1, 2)), few)),
        "one place": (pooled, (lambda x: x.mean(axis=(1, 2), keepdims=True), flatten, few)),
        "nested": ((nn.Flatten(), nn.Sequential(nn.Linear(96, 5))), (flatten, nnx.Sequential(last))),
    }


@pytest.mark.parametrize(
    "name", ["norm", "hidden", "joined", "dropout", "turned", "mean", "max", "one place", "nested"]
)
def test_features_of_maps_are_put_in_order(torch, tmp_path, images, name):
    torch_head, ours = heads(torch)[name]
    net = torch_cnn(torch, *torch_head)
    model = load_pytorch(saved(torch, net.state_dict(), tmp_path / "net.pt"), cnn(*ours), images=images[:1])
    np.testing.assert_allclose(logits(model, images), torch_logits(torch, net, images), atol=1e-5)


def test_lacking_weights_stand_for_nothing(torch, tmp_path, images):
    """A batch norm without scale and bias, a convolution without bias, where the model has them."""
    nn = torch.nn
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6, affine=False), nn.Flatten(), nn.Linear(528, 5)
    )
    rngs = nnx.Rngs(0)
    local = nnx.Sequential(
        nnx.Conv(3, 6, (3, 3), padding="VALID", bias_init=nnx.initializers.ones, rngs=rngs),
        nnx.BatchNorm(6, scale_init=nnx.initializers.zeros, bias_init=nnx.initializers.ones, rngs=rngs),
        flatten,
        nnx.Linear(528, 5, rngs=rngs),
    )
    path = saved(torch, randomized(torch, net).state_dict(), tmp_path / "net.pt")
    model = load_pytorch(path, local, images=images)
    np.testing.assert_allclose(logits(model, images), torch_logits(torch, net, images), atol=1e-5)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_weights_become_float32(torch, tmp_path, suffix, dtype):
    net = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.ReLU(), torch.nn.Linear(4, 3)).to(getattr(torch, dtype))
    rngs = nnx.Rngs(0)
    local = nnx.Sequential(nnx.Linear(6, 4, param_dtype=jnp.bfloat16, rngs=rngs), nnx.relu, nnx.Linear(4, 3, rngs=rngs))
    path = saved(torch, net.state_dict(), tmp_path / f"net{suffix}")
    for model in (load_pytorch(path, activation="relu"), load_pytorch(path, local)):
        assert {leaf.dtype for leaf in leaves(model)} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(model.layers[0].kernel[...], net[0].weight.detach().float().numpy().T)


def test_names_of_a_safetensors_file_count_by_number(tmp_path):
    """Without PyTorch: a file in its layout, of twelve layers; layers.10 comes after layers.9."""
    random = np.random.default_rng(0)
    sizes = (5, *random.permutation(np.arange(4, 15)).tolist(), 3)
    tensors = {}
    for i, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
        tensors[f"layers.{i}.weight"] = random.normal(size=(outputs, inputs)).astype(np.float32)
        tensors[f"layers.{i}.bias"] = random.normal(size=outputs).astype(np.float32)
    save_file(tensors, tmp_path / "net.safetensors")
    model = load_pytorch(tmp_path / "net.safetensors", activation="tanh")
    assert model.hidden == sizes[1:-1]
    images = random.normal(size=(6, 5)).astype(np.float32)
    outputs = images.astype(np.float64)
    for i in range(12):
        outputs = outputs @ tensors[f"layers.{i}.weight"].T.astype(np.float64) + tensors[f"layers.{i}.bias"]
        outputs = np.tanh(outputs) if i < 11 else outputs
    np.testing.assert_allclose(logits(model, images), outputs, atol=1e-5)
    np.testing.assert_allclose(logits64(model, images), outputs, atol=1e-12)


def test_cnn_equals_numpy(tmp_path):
    """Without PyTorch: convolution, batch norm and flattening as PyTorch defines them, in float64 loops."""
    random = np.random.default_rng(0)
    shapes = {
        "conv.weight": (4, 2, 3, 2), "conv.bias": (4,), "bn.weight": (4,), "bn.bias": (4,),
        "bn.running_mean": (4,), "bn.running_var": (4,), "fc.weight": (3, 4 * 4 * 4), "fc.bias": (3,),
    }  # fmt: skip
    tensors = {name: (random.random(shape) + 0.1).astype(np.float32) for name, shape in shapes.items()}
    save_file({**tensors, "bn.num_batches_tracked": np.array(7)}, tmp_path / "net.safetensors")
    images = random.normal(size=(2, 6, 5, 2)).astype(np.float32)
    rngs = nnx.Rngs(0)
    local = nnx.Sequential(
        nnx.Conv(2, 4, (3, 2), padding="VALID", rngs=rngs),
        nnx.BatchNorm(4, rngs=rngs),
        flatten,
        nnx.Linear(64, 3, rngs=rngs),
    )
    model = load_pytorch(tmp_path / "net.safetensors", local, images=images[:1])
    t = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}
    x = images.transpose(0, 3, 1, 2).astype(np.float64)
    maps = np.zeros((2, 4, 4, 4))
    for n, out, i, j in np.ndindex(*maps.shape):
        maps[n, out, i, j] = (x[n, :, i : i + 3, j : j + 2] * t["conv.weight"][out]).sum() + t["conv.bias"][out]
    scale = t["bn.weight"] / np.sqrt(t["bn.running_var"] + 1e-5)
    maps = (maps - t["bn.running_mean"][:, None, None]) * scale[:, None, None] + t["bn.bias"][:, None, None]
    np.testing.assert_allclose(logits(model, images), maps.reshape(2, -1) @ t["fc.weight"].T + t["fc.bias"], atol=1e-4)


def test_what_is_no_state_dict_is_refused(torch, tmp_path):
    net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
    torch.save(net, tmp_path / "module.pt")
    with raises_input_error(
        "module.pt: expected a state dict, got pickled objects, which are not read .* may run code"
    ):
        load_pytorch(tmp_path / "module.pt")
    torch.save(net.state_dict(), tmp_path / "net.pkl")
    with raises_input_error("expected .safetensors, .pt, .pth or .ckpt, got '.pkl'; rename it to .pt if"):
        load_pytorch(tmp_path / "net.pkl")
    torch.save({"loss": {"train": 0.1}, "epoch": 3}, tmp_path / "checkpoint.pt")
    with raises_input_error(
        r"got 'loss' \(dict\), 'epoch' \(int\); leave out the entries .* save model.state_dict\(\) by itself"
    ):
        load_pytorch(tmp_path / "checkpoint.pt")
    torch.save(torch.ones(3), tmp_path / "tensor.pt")
    with raises_input_error("which maps names to tensors, got a Tensor"):
        load_pytorch(tmp_path / "tensor.pt")
    for content in ("", "not a network"):
        (tmp_path / "text.pt").write_text(content)
        with raises_input_error(
            r"expected a zip archive, .* save it again by torch.save\(model.state_dict\(\), path\)"
        ):
            load_pytorch(tmp_path / "text.pt")
    torch.save({"0.weight": torch.ones(3, 4, dtype=torch.int8)}, tmp_path / "int.pt")
    with raises_input_error("expected floating numbers, got dtype int8 for '0.weight'"):
        load_pytorch(tmp_path / "int.pt")


def test_without_pytorch_a_pt_file_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "net.pt").write_text("whatever")
    with raises_input_error(".pt needs PyTorch, which is not installed; install torch, or save .* by safetensors"):
        load_pytorch(tmp_path / "net.pt")


def write(path, **shapes):
    """A safetensors file of ones; the underscores in the names stand for points."""
    save_file({name.replace("__", "."): np.ones(shape, np.float32) for name, shape in shapes.items()}, path)
    return path


def test_bad_files(tmp_path):
    path = tmp_path / "net.safetensors"
    with raises_input_error("expected a file, got none"):
        load_pytorch(path)
    path.write_text("not a network")
    with raises_input_error("expected safetensors, got an unreadable file"):
        load_pytorch(path)
    (tmp_path / "net.h5").write_text("")
    with raises_input_error("expected .safetensors, .pt, .pth or .ckpt, got '.h5'"):
        load_pytorch(tmp_path / "net.h5")
    write(path, a__weight=(3, 4), a__weight_mask=(3, 4))
    with raises_input_error("expected names that end in weight, bias, running_mean, running_var, got 'a.weight_mask'"):
        load_pytorch(path)
    write(path, a__weight=(3,), a__bias=(3,))
    with raises_input_error(r"got bias \(3,\), weight \(3,\) for module 'a'"):
        load_pytorch(path)
    write(path, a__weight=(3,), a__running_mean=(3,))
    with raises_input_error("or a batch norm with its running_mean and running_var, got"):
        load_pytorch(path)
    save_file({"a.weight": np.array([[1, np.nan]], np.float32)}, path)
    with raises_input_error("a.weight: expected finite numbers, got 1 NaN or infinite of 2"):
        load_pytorch(path)
    save_file({"a.weight": np.ones((2, 2), np.int32)}, path)
    with raises_input_error("expected floating numbers, got dtype int32 for 'a.weight'"):
        load_pytorch(path)


def test_linear_maps_that_make_no_network(tmp_path):
    path = write(tmp_path / "net.safetensors", a__weight=(3, 4), b__weight=(2, 5))
    with raises_input_error(
        r"its linear maps do not form a network \(stage 1: expected kernel \(3, 2\) .* got \(5, 2\)"
    ):
        load_pytorch(path, activation="relu")
    with raises_input_error("activation: unknown 'swish'"):
        load_pytorch(path, activation="swish")
    with raises_input_error("expected a kernel and a bias for each of two or more stages, got 1 and 1"):
        load_pytorch(write(path, a__weight=(3, 4)), activation="relu")
    with raises_input_error("expected a kernel and a bias for each of two or more stages, got 0 and 0"):
        load_pytorch(write(path, a__num_batches_tracked=(1,)), activation="relu")
    with raises_input_error(r"expected linear maps only, got weight \(3, 4, 2, 2\) for module 'a'; in Python, pass"):
        load_pytorch(write(path, a__weight=(3, 4, 2, 2), b__weight=(3, 2)), activation="relu")
    with raises_input_error(r"images: expected 4 pixels .* got shape \(1, 3, 5, 3\)"):
        load_pytorch(
            write(path, a__weight=(3, 4), b__weight=(2, 3)),
            activation="relu",
            images=np.zeros((1, 3, 5, 3), np.float32),
        )


def test_weights_that_do_not_fit_the_model(tmp_path):
    path, rngs = tmp_path / "net.safetensors", nnx.Rngs(0)
    plain = nnx.Sequential(nnx.Linear(4, 3, rngs=rngs), nnx.relu, nnx.Linear(3, 2, use_bias=False, rngs=rngs))
    good = {"a__weight": (3, 4), "a__bias": (3,), "b__weight": (2, 3)}
    assert load_pytorch(write(path, **good), plain).layers[0].kernel.shape == (4, 3)
    with raises_input_error(r"layer 2 \(Linear\) from module 'b' of .*: expected weight \(2, 3\), got \(2, 5\)"):
        load_pytorch(write(path, **{**good, "b__weight": (2, 5)}), plain)
    with raises_input_error(r"layer 0 \(Linear\) from module 'a' of .*: expected bias \(3,\), got \(4,\)"):
        load_pytorch(write(path, **{**good, "a__bias": (4,)}), plain)
    with raises_input_error(r"layer 2 \(Linear\) .*: the file has a bias, the layer has none; add it to the layer"):
        load_pytorch(write(path, **good, b__bias=(2,)), plain)
    with raises_input_error(r"expected 2 modules, one for each layer with weights, got 3 \(a, b, c\)"):
        load_pytorch(write(path, **good, c__weight=(2, 2)), plain)
    with raises_input_error(r"layer 2 \(Linear\) .*: expected the weights of a Linear, got weights of a Conv"):
        load_pytorch(write(path, **{**good, "b__weight": (2, 3, 1, 1)}), plain)
    convolving = nnx.Sequential(nnx.Conv(3, 6, (3, 2), feature_group_count=3, rngs=rngs))
    with raises_input_error(r"expected weight \(6, 1, 3, 2\), got \(6, 3, 3, 2\)"):
        load_pytorch(write(path, a__weight=(6, 3, 3, 2)), convolving)
    write(path, **good)
    with raises_input_error(r"layer 1 \(LayerNorm\): expected no weights, or an nnx.Linear, a 2-D nnx.Conv or an nnx."):
        load_pytorch(path, nnx.Sequential(plain.layers[0], nnx.LayerNorm(3, rngs=rngs), plain.layers[2]))
    with raises_input_error(r"layer 0 \(Conv\): expected no weights"):
        load_pytorch(path, nnx.Sequential(nnx.Conv(3, 6, (3,), rngs=rngs)))
    with raises_input_error("model: expected an nnx.Sequential or None, got MLP"):
        load_pytorch(path, ja.MLP(4, (3,), 2, rngs=rngs))


@pytest.mark.slow
def test_images_are_asked_for_only_where_they_count(tmp_path, images):
    linear = nnx.Linear(96, 5, rngs=nnx.Rngs(0))
    weights = {"a__weight": (6, 3, 3, 3), "b__weight": (8, 3, 3, 3), "c__weight": (5, 96)}
    norm = {f"n__{part}": (6,) for part in ("weight", "bias", "running_mean", "running_var")}
    path = write(tmp_path / "net.safetensors", **weights, **norm)
    with raises_input_error(r"images: layer 6 may flatten .* layer 7 \(Linear"):
        load_pytorch(path, cnn(flatten, linear))
    with raises_input_error(r"images: with shape \(1, 10, 13, 4\), layer 0 gets \(1, 10, 13, 4\) and raises"):
        load_pytorch(path, cnn(flatten, linear), images=np.zeros((1, 10, 13, 4), np.float32))
    with raises_input_error(r"images: with shape \(4, 13, 13, 3\), layer 7 gets \(1, 128\) and raises"):
        load_pytorch(path, cnn(flatten, linear), images=np.zeros((4, 13, 13, 3), np.float32))
    for joined in (lambda x: flatten(nnx.sigmoid(x)), lambda x: flatten(x[:, :2, :2])):
        with raises_input_error("layer 6: expected only to flatten maps .* put the flattening into a separate layer"):
            load_pytorch(path, cnn(joined, linear), images=images)
    with raises_input_error(
        r"layer 6: expected to keep the channels as the last .* \(1, 8, 3, 4\) from \(1, 3, 4, 8\)"
    ):
        load_pytorch(path, cnn(lambda x: x.transpose(0, 3, 1, 2), flatten, linear), images=images)
    with raises_input_error(r"layer 6: expected to keep the channels .* got shape \(1, 12, 8\)"):
        load_pytorch(path, cnn(lambda x: x.reshape(len(x), -1, 8), flatten, linear), images=images)
    with raises_input_error("layer 7: expected to keep the 96 flattened features"):
        load_pytorch(path, cnn(flatten, lambda x: x[:, ::2], linear), images=images)
    rngs = nnx.Rngs(0)
    by_place = nnx.Sequential(pool, nnx.Conv(3, 6, (3, 3), rngs=rngs), nnx.relu, nnx.Linear(6, 5, rngs=rngs))
    assert load_pytorch(write(path, a__weight=(6, 3, 3, 3), b__weight=(5, 6)), by_place)(images).shape == (4, 5, 6, 5)


def test_layer_sizes_in_a_network_file(tmp_path):
    model, path = ja.MLP(9, (4, 3), 2, rngs=nnx.Rngs(0)), tmp_path / "model.safetensors"
    ja.save_model(model, path, {"note": "x"})
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        header = file.metadata()
    assert header["layer_sizes"] == "[9, 4, 3, 2]"
    assert ja.load_model(path).metadata == {"note": "x"}
    tensors = load_file(path)
    save_file(tensors, path, {**header, "layer_sizes": "[9, 4, 4, 2]"})
    with raises_input_error(r"expected layer sizes \[9, 4, 4, 2\] as in its header, got weights of \[9, 4, 3, 2\]"):
        ja.load_model(path)
    save_file(tensors, path, {name: text for name, text in header.items() if name != "layer_sizes"})
    older = ja.load_model(path)
    assert (older.model.hidden, older.metadata) == ((4, 3), {"note": "x"})
