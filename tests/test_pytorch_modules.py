"""Networks of PyTorch as people have them, in memory, in checkpoints and parametrized; and the way back."""

import functools
import importlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import raises_input_error
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

import jaxablate as ja
from jaxablate import from_pytorch, to_pytorch
from jaxablate.cli import app
from jaxablate.models import load_pytorch
from jaxablate.models._tensors import find_state_dict
from jaxablate.models._torch_modules import save_state_dict

pytestmark = pytest.mark.filterwarnings("ignore::jaxablate.models.AssumptionWarning")

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.random((9, 12, 14), dtype=np.float32)
COLOURS = RANDOM.normal(size=(9, 12, 14, 3)).astype(np.float32)
UNSEEN = {3: RANDOM.random((30, 12, 14), dtype=np.float32), 4: RANDOM.normal(size=(30, 12, 14, 3)).astype(np.float32)}


def logits(torch, net, images):
    """The outputs of a module of PyTorch for images with their channels last."""
    with torch.no_grad():
        return net(torch.tensor(images.transpose(0, 3, 1, 2).copy() if images.ndim == 4 else images)).numpy()


# State dicts: these need no PyTorch, the sources are NumPy.


def layer(out, inputs, seed=0):
    random = np.random.default_rng(seed)
    return random.normal(size=(out, inputs)).astype(np.float32), random.normal(size=out).astype(np.float32)


FIRST, HEAD = layer(6, 12, 1), layer(5, 6, 2)
INPUTS = RANDOM.normal(size=(20, 12)).astype(np.float32)
STATE = {"fc.weight": FIRST[0], "fc.bias": FIRST[1], "head.weight": HEAD[0], "head.bias": HEAD[1]}


def expected(weight=FIRST[0]):
    return np.maximum(INPUTS @ weight.T + FIRST[1], 0) @ HEAD[0].T + HEAD[1]


def prefixed(prefix):
    return {prefix + name: tensor for name, tensor in STATE.items()}


def test_a_state_dict_in_memory():
    for state in (STATE, {name: jnp.asarray(tensor) for name, tensor in STATE.items()}):
        np.testing.assert_allclose(load_pytorch(state, activation="relu")(INPUTS), expected(), atol=1e-5)
    for wrong in ([STATE], object(), 3):
        with raises_input_error("source: expected a path or a state dict, got .*; ja.from_pytorch takes modules"):
            load_pytorch(wrong, activation="relu")


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "model._orig_mod.module."])
def test_prefixes_of_wrappers(prefix):
    np.testing.assert_allclose(load_pytorch(prefixed(prefix), activation="relu")(INPUTS), expected(), atol=1e-5)


def test_checkpoints():
    """The only state dict in it, or that of the key."""
    rest = {"epoch": 3, "optimizer": {"state": {0: {"step": 1}}, "param_groups": [{"lr": 0.1}]}, "loss": {"train": 0.5}}
    ema = {name: 2 * tensor for name, tensor in STATE.items()}
    for key in ("model", "state_dict", "net"):
        model = load_pytorch({key: prefixed("net."), **rest}, activation="relu")
        np.testing.assert_allclose(model(INPUTS), expected(), atol=1e-5)
    both = {"model": STATE, "ema": ema, **rest}
    with raises_input_error("state_key: the PyTorch state dict has the state dicts 'model', 'ema', got None; choose"):
        load_pytorch(both, activation="relu")
    with raises_input_error("state_key: the PyTorch state dict is a state dict itself; leave it out"):
        load_pytorch(STATE, activation="relu", state_key="model")
    with raises_input_error("has the state dicts 'model', 'ema', got 'optimizer'"):
        load_pytorch(both, activation="relu", state_key="optimizer")
    for key, factor in (("model", 1), ("ema", 2)):
        kernel = load_pytorch(both, activation="relu", state_key=key).stages[0].linear.kernel[...]
        np.testing.assert_array_equal(kernel, factor * FIRST[0].T)
    assert find_state_dict("file", {0: STATE, 1: ema}, "1") is ema, "the command line has texts"
    with raises_input_error("expected a state dict, .* got 'epoch'"):
        load_pytorch(rest, activation="relu")


def test_a_file_of_tensors_alone_has_no_key(tmp_path):
    save_file(STATE, tmp_path / "net.safetensors")
    with raises_input_error("state_key: .*net.safetensors has tensors alone, and no keys above them; leave it out"):
        load_pytorch(tmp_path / "net.safetensors", activation="relu", state_key="model")


def unit(vector):
    return vector / np.linalg.norm(vector)


def parametrized():
    """A weight as the parametrizations of PyTorch store it, and the weight that it stands for."""
    weight, _ = FIRST
    mask = (RANDOM.random(weight.shape) < 0.5).astype(np.float32)
    rows, columns = np.linspace(1, 2, 6, dtype=np.float32)[:, None], np.linspace(1, 2, 12, dtype=np.float32)[None]
    u, v = unit(RANDOM.normal(size=6)).astype(np.float32), unit(RANDOM.normal(size=12)).astype(np.float32)
    by_rows = rows * weight / np.linalg.norm(weight, axis=1, keepdims=True)
    by_columns = columns * weight / np.linalg.norm(weight, axis=0, keepdims=True)
    spectral = weight / (u @ weight @ v)
    new = "fc.parametrizations.weight."
    return {
        "mask": ({"fc.weight_orig": weight, "fc.weight_mask": mask}, weight * mask),
        "weight norm": ({"fc.weight_g": rows, "fc.weight_v": weight}, by_rows),
        "weight norm of columns": ({"fc.weight_g": columns, "fc.weight_v": weight}, by_columns),
        "weight norm of all": ({"fc.weight_g": np.float32(3), "fc.weight_v": weight}, 3 * unit(weight)),
        "masked weight norm": (
            {"fc.weight_g": rows, "fc.weight_v_orig": weight, "fc.weight_v_mask": mask},
            rows * weight * mask / np.linalg.norm(weight * mask, axis=1, keepdims=True),
        ),
        "spectral norm": ({"fc.weight_orig": weight, "fc.weight_u": u, "fc.weight_v": v}, spectral),
        "new weight norm": ({new + "original0": rows, new + "original1": weight}, by_rows),
        "new spectral norm": ({new + "original": weight, new + "0._u": u, new + "0._v": v}, spectral),
    }


@pytest.mark.parametrize("name", parametrized())
def test_parametrized_weights_are_computed(name):
    parts, weight = parametrized()[name]
    state = {**{name: np.asarray(part) for name, part in parts.items()}, **STATE}
    del state["fc.weight"]
    if name.startswith("new"):
        with raises_input_error("the names of .* do not settle the parametrization; give a reference, or call torch"):
            load_pytorch(state, activation="relu")
    reference = (INPUTS, expected(weight)) if name.startswith("new") else None
    model = load_pytorch(state, activation="relu", reference=reference)
    np.testing.assert_allclose(model.stages[0].linear.kernel[...], weight.T, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(model(INPUTS), expected(weight), rtol=1e-4, atol=1e-4)


def test_names_that_do_not_settle_the_parametrization():
    """Two tensors may be any parametrization, and a square weight may be normed by its columns."""
    rest = {name: tensor for name, tensor in STATE.items() if name != "fc.weight"}
    new = {"fc.parametrizations.weight.original0": np.ones((6, 1), np.float32)}
    new["fc.parametrizations.weight.original1"] = FIRST[0]
    outputs = np.maximum(INPUTS @ (np.e * FIRST[0]).T + FIRST[1], 0) @ HEAD[0].T + HEAD[1]  # exp(g) v
    with raises_input_error("gives other outputs"):
        load_pytorch({**new, **rest}, activation="relu", reference=(INPUTS, outputs))
    square = {"a.weight_orig": np.eye(12, dtype=np.float32), "a.weight_u": INPUTS[0], "a.weight_v": INPUTS[1]}
    with raises_input_error("the names of a.weight_orig, .* do not settle the parametrization"):
        load_pytorch({**square, "b.weight": FIRST[0]}, activation="relu")


def test_unknown_parametrizations_are_refused():
    rest = {name: tensor for name, tensor in STATE.items() if name != "fc.weight"}
    with raises_input_error("parametrization other than weight norm and spectral norm; call .*remove_parametrizations"):
        load_pytorch({"fc.parametrizations.weight.original": FIRST[0], **rest}, activation="relu")
    parts = {"fc.weight_orig": FIRST[0], "fc.weight_mask": np.ones((5, 5), np.float32)}
    with raises_input_error(r"expected parts of one weight, got fc.weight_orig \(6, 12\), fc.weight_mask \(5, 5\)"):
        load_pytorch({**parts, **rest}, activation="relu")
    with raises_input_error("fc.weight and its parts fc.weight_orig, fc.weight_mask are both there"):
        load_pytorch({**parts, **STATE}, activation="relu")
    with raises_input_error("expected names that end in weight, bias, .* got 'fc.weight_orig'"):
        load_pytorch({"fc.weight_orig": FIRST[0], **rest}, activation="relu")


# Modules in memory.


def mlp(torch):
    nn = torch.nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.output, self.hidden = nn.Linear(9, 5), nn.Linear(168, 9)

        def forward(self, x):
            return self.output(torch.sigmoid(self.hidden(x.view(x.size(0), -1))))

    return Net(), IMAGES


def mlp_of_colours(torch):
    nn = torch.nn
    return nn.Sequential(nn.Flatten(), nn.Linear(504, 9), nn.GELU(), nn.Dropout(), nn.Linear(9, 5)), COLOURS


def functional_cnn(torch):
    nn, functional = torch.nn, torch.nn.functional

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.conv2 = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 6, 3)
            self.dropout, self.fc1, self.fc2 = nn.Dropout(0.5), nn.Linear(6 * 4 * 5, 8), nn.Linear(8, 5)

        def forward(self, x):
            x = functional.relu(self.conv2(functional.relu(self.conv1(x.unsqueeze(1)))))
            x = functional.dropout(functional.max_pool2d(x, 2), 0.3, training=self.training)
            x = functional.relu(self.fc1(self.dropout(torch.flatten(x, 1))))
            return functional.log_softmax(self.fc2(x), dim=1)

    return Net(), IMAGES


def sequential_cnn(torch, groups=2):
    nn = torch.nn
    net = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 6, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(6), nn.ELU(0.7)),
        nn.AvgPool2d(2, padding=1, count_include_pad=False),
        nn.Conv2d(6, 4, (3, 2), padding="same", groups=groups, dilation=(1, 2)),
        nn.LeakyReLU(0.2),
        nn.MaxPool2d(2, stride=1),
        nn.Flatten(),
        nn.BatchNorm1d(36),
        nn.Identity(),
        nn.Linear(36, 7),
        nn.Softplus(),
        nn.Linear(7, 5),
    )
    for part in net.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            part.running_mean.normal_()
            part.running_var.uniform_(0.5, 2)
            part.weight.data.uniform_(0.5, 2)
            part.bias.data.normal_()
    return net, COLOURS


def cnn_of_one_group(torch):
    return sequential_cnn(torch, groups=1)


def pooled_cnn(torch):
    nn = torch.nn
    pool = nn.AdaptiveAvgPool2d(1)
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.Hardtanh(), pool, nn.Flatten(), nn.Linear(6, 5)), COLOURS


def normed_mlp(torch):
    nn, utils = torch.nn, torch.nn.utils
    first, second = utils.parametrizations.weight_norm(nn.Linear(168, 9)), utils.spectral_norm(nn.Linear(9, 8))
    last = nn.Linear(8, 5)
    importlib.import_module("torch.nn.utils.prune").l1_unstructured(last, "weight", 0.4)
    return nn.Sequential(nn.Flatten(), first, nn.Tanh(), second, nn.Tanh(), last), IMAGES


def two_activations(torch):
    nn = torch.nn
    return nn.Sequential(
        nn.Flatten(), nn.Linear(168, 9), nn.ReLU(), nn.Linear(9, 8), nn.SiLU(), nn.Linear(8, 5)
    ), IMAGES


NETS = {
    each.__name__: each
    for each in (mlp, mlp_of_colours, functional_cnn, sequential_cnn, pooled_cnn, normed_mlp, two_activations)
}


@pytest.mark.parametrize("name", NETS)
def test_a_module_and_back(torch, name):
    """Outputs for images that the conversion has not seen, in both directions."""
    net, images = NETS[name](torch)
    net.train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    model = from_pytorch(net, images)
    assert isinstance(model, ja.MLP) == ("mlp" in name)
    assert all(part.training for part in net.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    unseen = UNSEEN[images.ndim]
    torch_outputs = logits(torch, net.eval(), unseen)
    np.testing.assert_allclose(model(unseen), torch_outputs, rtol=1e-5, atol=1e-5)
    assert np.ptp(torch_outputs, axis=0).min() > 1e-3
    np.testing.assert_allclose(logits(torch, to_pytorch(model, images), unseen), torch_outputs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("make", [mlp, mlp_of_colours, cnn_of_one_group, two_activations])
def test_a_pruned_module_goes_back(torch, make):
    net, images = make(torch)
    model = from_pytorch(net, images)
    sites = ja.from_module(model, images)
    keep = np.arange(sites.spec.num_neurons) % 3 > 0
    fill = None if make is cnn_of_one_group else np.asarray(ja.mean_activations(model, images))
    small = to_pytorch(ja.prune(model, keep, fill, images=images), images)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in net.parameters())
    unseen = UNSEEN[images.ndim]
    outputs = {str(c): lambda outputs, labels, c=c: outputs[:, c] for c in range(5)}
    masked = ja.evaluate_masks(sites, keep[None], unseen, np.zeros(30, int), fill, outcomes=outputs)
    sums = np.stack([np.asarray(masked[str(c)])[0] for c in range(5)])
    np.testing.assert_allclose(logits(torch, small, unseen).mean(axis=0), sums, rtol=1e-4, atol=1e-4)


def refused(torch):
    """(module, images, message)."""
    nn, functional = torch.nn, torch.nn.functional

    class Net(nn.Module):
        def __init__(self, forward):
            super().__init__()
            self.a, self.b, self.function = nn.Linear(168, 168), nn.Linear(168, 5), forward

        def forward(self, x):
            return self.function(self, x.flatten(1))

    def chain(*layers):
        return nn.Sequential(nn.Flatten(), *layers, nn.Linear(168, 5))

    nan = chain()
    nan[1].weight.data[0, 0] = float("nan")
    one_by_one = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1, padding_mode="circular"))
    return {
        "a residual sum": (Net(lambda net, x: net.b(x + net.a(x))), IMAGES, "chain of layers, but 'add' does not"),
        "a loop over data": (Net(lambda net, x: net.b(x if x.sum() > 0 else -x)), IMAGES, "torch.fx cannot trace it"),
        "a constant added": (Net(lambda net, x: net.b(x + 1)), IMAGES, "add: this operation cannot be converted"),
        "a parameter read": (Net(lambda net, x: net.b(x @ net.a.weight)), IMAGES, "a chain of layers, but"),
        "two outputs": (Net(lambda net, x: (net.b(x), x)), IMAGES, "images|one tensor"),
        "the wrong output": (Net(lambda net, x: (net.b(x), net.a(x))[1]), IMAGES, "a chain of layers|last layer"),
        "softmax": (chain(nn.Softmax(dim=1)), IMAGES, "without its softmax, since outcomes take logits"),
        "ReLU6": (chain(nn.ReLU6()), IMAGES, r"ReLU6\(\) cannot be converted|torch.fx"),
        "a layer norm": (chain(nn.LayerNorm(168)), IMAGES, "cannot be converted|chain"),
        "softplus of another beta": (chain(nn.Softplus(beta=2)), IMAGES, "Softplus.* cannot be converted"),
        "rows of a map": (nn.Sequential(nn.Conv2d(3, 2, 1), nn.Linear(14, 5)), COLOURS, "Linear.* cannot be converted"),
        "circular padding": (one_by_one, COLOURS, "Conv2d.*circular.* cannot be converted"),
        "a rounded pool": (nn.Sequential(nn.MaxPool2d(5, ceil_mode=True)), COLOURS, "MaxPool2d.* cannot be converted"),
        "an uneven pool": (nn.Sequential(nn.AdaptiveAvgPool2d(5)), COLOURS, "AdaptiveAvgPool2d.* cannot be converted"),
        "a batch norm without statistics": (
            chain(nn.BatchNorm1d(168, track_running_stats=False)), IMAGES, "BatchNorm1d.* cannot be converted",
        ),
        "a transposed map": (Net(lambda net, x: net.b(x.t().t())), IMAGES, "t: this operation cannot be converted"),
        "no weights": (nn.Sequential(nn.Flatten(), nn.ReLU()), IMAGES, "none of its layers has weights"),
        "a shape of rows": (nn.Sequential(nn.Flatten(0, 1)), IMAGES, "only flattening to .example, feature. and"),
        "NaN weights": (nan, IMAGES, "finite"),
        "channels first": (pooled_cnn(torch)[0], COLOURS.transpose(0, 3, 1, 2), "looks like PyTorch's"),
        "other images": (mlp(torch)[0], COLOURS, "gets .* and raises RuntimeError: .*; pass images"),
        "a state dict": (chain().state_dict(), IMAGES, "expected a torch.nn.Module, got OrderedDict; load_pytorch"),
        "no images": (chain(), np.zeros((0, 12, 14)), "images: expected"),
        "another function": (Net(lambda net, x: net.b(functional.celu(x))), IMAGES, "celu: this operation cannot"),
    }  # fmt: skip


def test_modules_that_are_refused(torch):
    for name, (module, images, message) in refused(torch).items():
        with raises_input_error(message):
            print(name)
            from_pytorch(module, images)


def test_what_forward_hides_is_found(torch):
    """A hook changes the outputs, and no layer shows it."""
    for kind in ("hook", "pre-hook", "inner hook", "patched forward"):
        net, images = mlp(torch)
        if kind == "pre-hook":
            net.register_forward_pre_hook(lambda module, inputs: (inputs[0].clamp(max=0.9),))
        elif kind == "patched forward":
            net.hidden.forward = lambda x: x[:, :9]
        else:
            part = net if kind == "hook" else net.hidden
            part.register_forward_hook(lambda module, inputs, outputs: outputs.clamp(max=99))
        with raises_input_error("has a hook or a forward of its own, which its layers do not show"):
            from_pytorch(net, images)


def test_parameters_without_values_are_refused(torch):
    images = np.zeros((3, 4), np.float32)
    lazy = torch.nn.Sequential(torch.nn.LazyLinear(5), torch.nn.ReLU(), torch.nn.LazyLinear(2))
    meta = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.ReLU(), torch.nn.Linear(5, 2)).to("meta")
    for net in (lazy, meta):
        with raises_input_error("0.weight has no values yet; initialise the module first"):
            from_pytorch(net, images)


def hidden_differences(torch):
    """Modules that equal plain layers only for some images, or only in part."""
    nn, functional = torch.nn, torch.nn.functional

    class Clamped(nn.Linear):
        def forward(self, x):
            return super().forward(x).clamp(-3, 3)

    class Identity(nn.Identity):
        def forward(self, x):
            return x.clamp(-3, 3)

    class Slope(nn.LeakyReLU):
        def forward(self, x):
            return super().forward(x).clamp(max=3)

    class MonteCarlo(nn.Dropout):
        def forward(self, x):
            return functional.dropout(x, 0.5, True)

    class Net(nn.Module):
        def __init__(self, function):
            super().__init__()
            self.a, self.b, self.function = nn.Linear(168, 9), nn.Linear(9, 5), function

        def forward(self, x, flag=None):
            return self.function(self, x.flatten(1), flag)

    def plain(net, x, flag):
        return net.b(torch.relu(net.a(x)))

    def branch(net, x, flag):
        return plain(net, x, flag) if flag is None else plain(net, x.abs(), flag)

    def chain(layer, first=None):
        return nn.Sequential(nn.Flatten(), *([first] if first else []), nn.Linear(168, 9), layer, nn.Linear(9, 5))

    small = 0.01 * IMAGES
    return {
        "a layer that clamps": (chain(nn.ReLU(), Clamped(168, 168)), small),
        "an identity that clamps": (chain(Identity()), small),
        "a slope that clamps": (chain(Slope()), small),
        "dropout that stays on": (chain(nn.ReLU(), MonteCarlo()), 0 * IMAGES),
        "dropout as a function that stays on": (
            Net(lambda net, x, flag: plain(net, functional.dropout(x), flag)), 0 * IMAGES,
        ),
        "softplus of another threshold": (chain(nn.Softplus(1, 2.0)), small),
        "softplus as a function": (Net(lambda net, x, f: net.b(functional.softplus(net.a(x), 1, 2))), small),
        "half precision": (chain(nn.ReLU()).half(), IMAGES),
        "parallel": (nn.DataParallel(chain(nn.ReLU())), IMAGES),
        "compiled": (torch.compile(chain(nn.ReLU()), backend="eager"), IMAGES),
        "scripted": (torch.jit.script(chain(nn.ReLU())), IMAGES),
        "not initialised": (nn.Sequential(nn.Flatten(), nn.LazyLinear(5)), IMAGES),
        "on meta": (chain(nn.ReLU()).to("meta"), IMAGES),
        "NaN images": (chain(nn.ReLU()), IMAGES * np.nan),
        "a pair of images and labels": (chain(nn.ReLU()), (IMAGES, np.zeros(9))),
        "text": (chain(nn.ReLU()), "images"),
        "an assertion without text": (Net(lambda net, x, flag: 1 // 0), IMAGES),
        "convolutions alone": (nn.Sequential(nn.Conv2d(3, 2, 3)), COLOURS),
        "PReLU": (nn.PReLU(), IMAGES),
    }, {
        "a branch that is not taken": (Net(branch), IMAGES),
        "pooling of the size of the map": (
            nn.Sequential(nn.Conv2d(3, 4, 3), GlobalPool(torch), nn.Flatten(), nn.Linear(4, 5)), COLOURS,
        ),
        "a linear map alone": (nn.Linear(14, 5), IMAGES[:, 0]),
        "a window of NumPy": (
            nn.Sequential(nn.MaxPool2d(np.int64(2)), nn.Flatten(), nn.Linear(126, 5)), COLOURS,
        ),
        "a slope of NumPy": (chain(nn.LeakyReLU(np.float64(0.2))), IMAGES),
        "a large constant": (offset(torch, chain(nn.ReLU())), IMAGES),
    }  # fmt: skip


def offset(torch, net):
    net[-1].bias.data += 3000
    return net


def GlobalPool(torch):
    class Pool(torch.nn.Module):
        def forward(self, x):
            return torch.nn.functional.avg_pool2d(x, x.size()[2:])

    return Pool()


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning", "ignore::UserWarning")
def test_what_some_images_do_not_show(torch):
    refused, converted = hidden_differences(torch)
    for name, (net, images) in refused.items():
        print(name)
        with raises_input_error("PyTorch module|module: |images"):
            from_pytorch(net, images)
    for name, (net, images) in converted.items():
        print(name)
        unseen = 20 * np.random.default_rng(3).normal(size=(30, *images.shape[1:])).astype(np.float32)
        torch_outputs = logits(torch, net.eval(), unseen)
        np.testing.assert_allclose(from_pytorch(net, images)(unseen), torch_outputs, rtol=1e-4, atol=1e-2)


def test_one_image_is_enough_for_a_network_of_one_output(torch):
    """Its output may be nearly 0 by cancellation, and has no range over one image to compare rounding with."""
    for seed in range(40):
        torch.manual_seed(seed)
        layers = [torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 128), torch.nn.ReLU()]
        network, image = torch.nn.Sequential(*layers, torch.nn.Linear(128, 1)), torch.randn(1, 64)
        expected = network(image).detach().numpy()
        np.testing.assert_allclose(ja.from_pytorch(network, image.numpy())(image.numpy()), expected, atol=1e-6)


def test_another_default_device_of_pytorch(torch, tmp_path):
    network, images = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2)), np.eye(4)
    with torch.device("meta"):  # stands for any device other than the network's
        model = ja.from_pytorch(network, images)
        save_state_dict(model, tmp_path / "net.pt", np.eye(4, dtype=np.float32), None, {})
    expected = network(torch.tensor(images, dtype=torch.float32)).detach().numpy()
    np.testing.assert_allclose(model(images), expected, atol=1e-6)
    assert all(tensor.device.type == "cpu" for tensor in torch.load(tmp_path / "net.pt").values())


def test_a_module_for_one_number_of_examples_is_refused(torch):
    class Fixed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = torch.nn.Linear(12, 5), torch.nn.Linear(5, 3)

        def forward(self, x):
            return self.b(torch.relu(self.a(x.view(8, -1))))

    with raises_input_error(
        r"module Fixed takes \(8, 3, 4\), and raises RuntimeError: .* for \(16, 3, 4\); let it take"
    ):
        ja.from_pytorch(Fixed(), np.zeros((8, 3, 4), np.float32))


def test_references_of_other_forms(torch):
    x = torch.tensor(INPUTS)
    net = torch.nn.Sequential(torch.nn.Linear(12, 6), torch.nn.ReLU(), torch.nn.Linear(6, 5))
    for outputs in (net(x), net(x).detach(), net(x).detach().numpy()):  # the first requires a gradient
        load_pytorch(net.state_dict(), activation="relu", reference=(x, outputs))
    y = expected()
    for reference in ((INPUTS,), (INPUTS, y, y), {"inputs": INPUTS}, INPUTS, (INPUTS[:, :3], y), (INPUTS[0], y[0]),
                      (INPUTS[:0], y[:0]), (INPUTS, 0 * y), (INPUTS, None), ("inputs", "outputs")):  # fmt: skip
        with raises_input_error("reference"):
            load_pytorch(STATE, activation="relu", reference=reference)
    for options in ({"layers": True}, {"activation": ["relu"]}):
        with raises_input_error("layers|activation"):
            load_pytorch(STATE, **{"activation": "relu", **options})
    for tensor in (torch.ones(6, 12).to_sparse(), torch.ones(6, 12, device="meta")):
        with raises_input_error("expected plain tensors with all their numbers stored"):
            load_pytorch({**STATE, "fc.weight": tensor}, activation="relu")


def test_subclasses_of_layers_of_flax_are_refused(torch, tmp_path):
    class Clipped(nnx.Linear):
        def __call__(self, x):
            return jnp.clip(super().__call__(x), -3, 3)

    model = nnx.Sequential(Clipped(14, 5, rngs=nnx.Rngs(0)), nnx.relu)
    with raises_input_error(r"layer 0 \(Clipped\): expected a linear map"):
        to_pytorch(model, IMAGES[:, 0])
    with raises_input_error(r"layer 0 \(Clipped\): expected a linear map"):
        ja.save_model(model, tmp_path / "model.safetensors")


def test_images_with_their_channels_first_do_not_go_to_pytorch(torch):
    net, images = mlp_of_colours(torch)
    model = from_pytorch(net, images)
    with raises_input_error("looks like PyTorch's"):
        to_pytorch(model, images.transpose(0, 3, 1, 2))
    with raises_input_error("images: expected"):
        to_pytorch(model, images[:0])


def chains():
    """Networks that Flax trained; padding and functions that PyTorch has under other names."""
    rngs = nnx.Rngs(0)

    def conv(inputs, outputs, **options):
        return nnx.Conv(inputs, outputs, (3, 3), rngs=rngs, **options)

    def flat(x):
        return x.reshape(len(x), -1)

    max_pool = functools.partial(nnx.max_pool, window_shape=(2, 2))
    return {
        "SAME": nnx.Sequential(conv(3, 4), nnx.relu, flat, nnx.Linear(672, 5, rngs=rngs)),
        "SAME with strides": nnx.Sequential(conv(3, 4, strides=2), nnx.tanh, flat, nnx.Linear(168, 5, rngs=rngs)),
        "one side": nnx.Sequential(
            conv(3, 4, padding=((2, 0), (0, 1)), kernel_dilation=2, use_bias=False), jnp.tanh, max_pool,
            ja.Site("maps"), nnx.Dropout(0.5, rngs=rngs), flat, nnx.Linear(360, 5, rngs=rngs),
        ),
        "nested": nnx.Sequential(
            nnx.Sequential(conv(3, 4, padding=1), nnx.BatchNorm(4, rngs=rngs), jax.nn.gelu), flat,
            nnx.Linear(672, 5, use_bias=False, rngs=rngs),
        ),
    }  # fmt: skip


@pytest.mark.parametrize("name", chains())
def test_chains_of_flax_go_to_pytorch(torch, name):
    model = chains()[name]
    net = to_pytorch(model, COLOURS)
    model.eval()
    np.testing.assert_allclose(logits(torch, net, UNSEEN[4]), model(UNSEEN[4]), rtol=1e-5, atol=1e-5)


def test_an_mlp_goes_to_pytorch_with_all_its_parts(torch):
    model = ja.MLP(168, (9, 8), 5, activation="elu:0.5", dropout=0.2, batch_norm=True, rngs=nnx.Rngs(0))
    norm = model.stages[0].batch_norm
    norm.mean[...], norm.var[...] = jnp.linspace(-1, 1, 9), jnp.linspace(0.5, 2, 9)
    net = to_pytorch(model)
    kinds = [type(part).__name__ for part in net]
    assert kinds == ["Flatten", *["Linear", "BatchNorm1d", "ELU", "Dropout"] * 2, "Linear"]
    assert net[1].out_features == 9
    np.testing.assert_allclose(logits(torch, net, UNSEEN[3]), model(UNSEEN[3]), rtol=1e-5, atol=1e-5)


def test_what_does_not_go_to_pytorch(torch):
    rngs = nnx.Rngs(0)
    chain = nnx.Sequential(lambda x: x.reshape(len(x), -1)[:, ::-1], nnx.Linear(168, 5, rngs=rngs))
    with raises_input_error(r"layer 0 \(<lambda>\): expected a linear map, .* no other layer can be written down"):
        to_pytorch(chain, IMAGES)
    with raises_input_error(r"layer 1 \(LayerNorm\): expected a linear map"):
        to_pytorch(nnx.Sequential(nnx.Linear(14, 5, rngs=rngs), nnx.LayerNorm(5, rngs=rngs)), IMAGES)
    with raises_input_error("images: expected an example of what the model takes, got none"):
        to_pytorch(nnx.Sequential(nnx.Linear(14, 5, rngs=rngs)))
    for model in (ja.from_module(ja.MLP(4, (3,), 2, rngs=rngs), np.zeros((1, 4), np.float32)), nnx.relu, None):
        with raises_input_error("model: expected an MLP or an nnx.Sequential, got"):
            to_pytorch(model, IMAGES)


def test_without_pytorch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with raises_input_error("to_pytorch needs PyTorch, which is not installed; install torch"):
        to_pytorch(ja.MLP(4, (3,), 2, rngs=nnx.Rngs(0)))
    with raises_input_error("from_pytorch needs PyTorch, which is not installed"):
        from_pytorch(object(), IMAGES)


# Files and commands.


def test_files_of_chains(tmp_path):
    path = tmp_path / "chain.safetensors"
    for name, model in chains().items():
        if name != "one side":
            with raises_input_error(r"layer \d \(flat\): expected .* ja.models.flatten_images; no other layer"):
                ja.save_model(model, path)
        assert not path.exists()
        model = nnx.Sequential(
            *(ja.models.flatten_images if getattr(each, "__name__", "") == "flat" else each for each in model.layers)
        )
        ja.save_model(model, path, {"origin": "a test"}, curve=np.arange(3))
        saved = ja.load_model(path)
        model.eval()
        np.testing.assert_array_equal(saved.model(COLOURS), model(COLOURS))
        sizes = ja.from_module(saved.model, COLOURS).spec.sizes
        assert sizes == ja.from_module(model, COLOURS).spec.sizes == (4,)
        assert saved.metadata == {"origin": "a test"}
        np.testing.assert_array_equal(saved.arrays["curve"], np.arange(3))
        path.unlink()


def test_damaged_files_of_chains(tmp_path):
    path = tmp_path / "chain.safetensors"
    ja.save_model(nnx.Sequential(nnx.Linear(4, 3, rngs=nnx.Rngs(0)), nnx.relu), path)
    tensors = load_file(path)
    description = '[{"type": "linear", "in": 4, "out": %s, "bias": true}]'
    header = {"format": "jaxablate network 1"}
    for layers, message in (
        (description % 5, r"layer 0 kernel: expected shape \(4, 5\)"),
        ("[]", "arrays are not|weights"),
        ("[1]", "expected a description of layers"),
        ('[{"type": "system"}]', "expected a description of layers"),
        ('[{"type": "linear"}]', "expected a description of layers"),
        ("{", "arrays are not the weights of a whole network"),
    ):
        save_file(tensors, path, {**header, "layers": layers})
        if layers == "[]":
            continue
        with raises_input_error(message):
            ja.load_model(path)


@pytest.fixture
def data(tmp_path):
    random = np.random.default_rng(0)
    arrays = {}
    for split, size in (("train", 240), ("test", 40)):
        arrays[f"{split}_images"] = random.random((size, 12, 14, 3), dtype=np.float32)
        arrays[f"{split}_labels"] = np.arange(size) % 5
    np.savez(tmp_path / "colours.npz", **arrays)
    return tmp_path / "colours.npz", arrays


def run(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:mutual information")  # random labels tell nothing
def test_commands_take_cnns(data, tmp_path):
    path, arrays = data
    net = tmp_path / "cnn.safetensors"
    rngs = nnx.Rngs(0)
    model = nnx.Sequential(
        nnx.Conv(3, 4, (3, 3), padding="VALID", rngs=rngs), nnx.relu, ja.models.flatten_images,
        nnx.Linear(480, 6, rngs=rngs), nnx.relu, nnx.Linear(6, 5, rngs=rngs),
    )  # fmt: skip
    ja.save_model(model, net)
    options = ("--dataset", path, "--quantizer", "positive")
    run("score", net, *options, "--out", tmp_path / "scores.csv")
    assert len((tmp_path / "scores.csv").read_text().splitlines()) > 10
    run("ablate", net, *options, "--random-orders", 2, "--no-cache", "--out", tmp_path / "curves.nc")
    results = ja.results.load_results(tmp_path / "curves.nc")["cnn"].to_dataset()
    order = results["ablated"].sel(scope="layers/0").values[0, 0]
    counts = ja.cumulative_ablation(model, order[None, :4], arrays["test_images"], arrays["test_labels"], steps=4)
    np.testing.assert_array_equal(results["correct"].sel(scope="layers/0", fill="zero").values[0, 0][:5], counts[0])
    small_file = tmp_path / "small.safetensors"
    run("prune", net, *options, "--fill", "zero", "--keep-fraction", 0.5, "--out", small_file)
    small = ja.load_model(small_file).model
    assert ja.from_module(small, arrays["test_images"]).spec.sizes == (2, 3)


def first_weights_for_channels_first(weight):
    """A weight [out, feature] for features numbered [height, width, channel], with PyTorch's numbers instead."""
    return weight.reshape(len(weight), 12, 14, 3).transpose(0, 3, 1, 2).reshape(len(weight), -1)


def colour_state(tmp_path):
    """A state dict for flattened colour images, as PyTorch has it, and the network in NumPy's terms."""
    first, head = layer(6, 504, 3), layer(5, 6, 4)
    state = {"enc.weight": first_weights_for_channels_first(first[0]), "enc.bias": first[1]}
    state |= {"out.weight": head[0], "out.bias": head[1]}
    save_file({name: np.ascontiguousarray(tensor) for name, tensor in state.items()}, tmp_path / "net.safetensors")
    return ja.models.from_arrays([first[0].T, head[0].T], [first[1], head[1]], activation="relu")


@pytest.mark.filterwarnings("ignore:mutual information")  # random labels tell nothing
def test_a_pruned_state_dict_names_gelu_as_pytorch_does(data, tmp_path):
    path, _ = data
    colour_state(tmp_path)
    for name in ("gelu", "gelu_tanh"):
        command = ("prune", tmp_path / "net.safetensors", "--activation", name, "--dataset", path)
        output = run(*command, "--keep-fraction", 0.5, "--out", tmp_path / f"{name}.safetensors")
        form = {"gelu": "gelu (exact form)", "gelu_tanh": "gelu_tanh (approximation by tanh)"}[name]
        assert f"; {form} between its layers)" in output.replace("\n", " ")


@pytest.mark.filterwarnings("ignore:mutual information")  # random labels tell nothing
def test_a_pruned_state_dict_keeps_its_names_and_its_layout(data, tmp_path):
    path, arrays = data
    model = colour_state(tmp_path)
    command = ("prune", tmp_path / "net.safetensors", "--activation", "relu", "--dataset", path, "--keep-fraction", 0.5)
    output = run(*command, "--out", tmp_path / "small.safetensors")
    stated = "(PyTorch state dict; inputs [example, channel, height, width]; relu between its layers)"
    assert f"small.safetensors {stated}" in output.replace("\n", " ")
    tensors = load_file(tmp_path / "small.safetensors")
    assert {name: tensor.shape for name, tensor in tensors.items()} == {
        "enc.weight": (3, 504), "enc.bias": (3,), "out.weight": (5, 3), "out.bias": (5,),
    }  # fmt: skip
    small = ja.study.prune_by_score(model, ja.load_dataset(str(path)), keep_fraction=0.5).model
    flat = arrays["test_images"].transpose(0, 3, 1, 2).reshape(40, -1)
    outputs = np.maximum(flat @ tensors["enc.weight"].T + tensors["enc.bias"], 0)
    outputs = outputs @ tensors["out.weight"].T + tensors["out.bias"]
    np.testing.assert_allclose(outputs, small(arrays["test_images"]), rtol=1e-4, atol=1e-3)


def test_layers_that_take_another_axis_in_pytorch_are_refused(torch):
    tokens = nnx.Sequential(nnx.BatchNorm(4, use_running_average=True, rngs=nnx.Rngs(0)), ja.models.flatten_images)
    with raises_input_error(r"layer 0 \(batch_norm\): it takes the last axis of \(1, 7, 4\), where PyTorch takes"):
        to_pytorch(tokens, np.ones((2, 7, 4), np.float32))
    maps = nnx.Sequential(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), ja.models.flatten_images)
    with raises_input_error(r"layer 0 \(linear\): it takes the last axis of \(1, 5, 6, 3\), where PyTorch takes"):
        to_pytorch(maps, np.ones((2, 5, 6, 3), np.float32))


def test_an_mlp_of_color_images_keeps_its_layout(torch, data, tmp_path):
    """Images of another order of axes have as many pixels; the network refuses them."""
    _, arrays = data
    images = arrays["test_images"]
    first = images.transpose(0, 3, 1, 2).copy()
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(504, 6), torch.nn.ReLU(), torch.nn.Linear(6, 5))
    logits = net(torch.tensor(first)).detach().numpy()
    refused = r"made for images \[example, 12, 14, 3\], got shape \(40, 3, 12, 14\); transpose"
    model = ja.from_pytorch(net, images)
    ja.save_model(model, tmp_path / "net.safetensors")
    test = images, arrays["test_labels"]
    trained = ja.train(ja.Dataset.from_arrays(*test, test=test, validation=test), (6,), epochs=1)[0]
    referred = ja.models.load_pytorch(net.state_dict(), activation="relu", reference=(first, logits))
    with raises_input_error(r"made for images \[example, 3, 12, 14\], got shape \(40, 12, 14, 3\)"):
        ja.record_activations(referred, images)
    pruned = ja.prune(model, np.array([True, True, False, True, True, True]))
    for network in (model, ja.load_model(tmp_path / "net.safetensors").model, trained, pruned):
        assert network.image_shape == (12, 14, 3)
        assert network(images).shape == (40, 5)
        for call in (network, functools.partial(ja.single_ablation, network, labels=arrays["test_labels"])):
            with raises_input_error(refused):
                call(first)
    np.testing.assert_allclose(ja.to_pytorch(model)(torch.tensor(first)).detach(), logits, atol=1e-4)
    with pytest.warns(ja.models.AssumptionWarning, match=r"the 504 pixels of an example are an image \[12, 14, 3\]"):
        flat = ja.record_activations(model, images.reshape(40, -1))
    np.testing.assert_allclose(flat[0], ja.record_activations(model, images)[0], atol=1e-4)


def test_chains_and_flat_examples_keep_their_layout(torch, data, tmp_path):
    images = data[1]["test_images"]
    first, labels, nn = images.transpose(0, 3, 1, 2).copy(), data[1]["test_labels"], torch.nn
    net = nn.Sequential(nn.Flatten(), nn.Linear(504, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 5)).eval()
    chain = ja.from_pytorch(net, images)
    ja.save_model(chain, tmp_path / "net.safetensors")
    for network in (chain, ja.load_model(tmp_path / "net.safetensors").model):
        assert ja.single_ablation(network, images, labels).shape == (6,)
        with raises_input_error(r"made for images \[example, 12, 14, 3\], got shape \(40, 3, 12, 14\); transpose"):
            ja.single_ablation(network, first, labels)
        with pytest.warns(
            ja.models.AssumptionWarning, match=r"the 504 pixels of an example are an image \[12, 14, 3\]"
        ):
            ja.single_ablation(network, images.reshape(40, -1), labels)
    net = nn.Sequential(nn.Linear(504, 6), nn.ReLU(), nn.Linear(6, 5))
    flat = first.reshape(40, -1)
    logits = net(torch.tensor(flat)).detach().numpy()
    referred = load_pytorch(net.state_dict(), activation="relu", reference=(flat, logits))
    for network in (ja.from_pytorch(net, flat), referred):
        np.testing.assert_allclose(network(flat), logits, atol=1e-4)
        with raises_input_error(r"made for images \[example, 504\], got shape \(40, 12, 14, 3\); flatten them in the"):
            ja.single_ablation(network, images, labels)


def test_layers_that_share_parameters_are_named(torch):
    nn = torch.nn

    class Repeated(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.inner, self.last = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x):
            x = torch.relu(self.first(x))
            for _ in range(2):
                x = torch.relu(self.inner(x))
            return self.last(x)

    images = np.random.default_rng(0).random((5, 6), np.float32)
    net = Repeated()
    with pytest.warns(ja.models.AssumptionWarning, match="the layers inner, inner share parameters; in the converted"):
        model = ja.from_pytorch(net, images)
    np.testing.assert_allclose(model(images), net(torch.tensor(images)).detach().numpy(), atol=1e-5)
    tied = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.BatchNorm1d(6, affine=False)).eval()
    ja.from_pytorch(tied, images)  # nothing is shared
    tied[2].weight = tied[0].weight
    with pytest.warns(ja.models.AssumptionWarning, match="the layers 0, 2 share parameters"):
        ja.from_pytorch(tied, images)


def test_an_averaged_module_is_named(torch):
    averaged = torch.optim.swa_utils.AveragedModel(torch.nn.Sequential(torch.nn.Linear(4, 2)))
    with raises_input_error("AveragedModel wraps another module; pass its attribute 'module'"):
        from_pytorch(averaged, np.ones((2, 4), np.float32))


def test_weights_of_the_network_itself_keep_their_names(tmp_path):
    """A module may have weights of its own, which have no prefix in its state dict."""
    small = ja.models.from_arrays([np.ones((12, 4)), np.ones((4, 3))], [np.ones(4), np.ones(3)], activation="relu")
    names = {"": ["weight", "bias"], "head": ["weight", "bias"]}
    images = np.ones((2, 12), np.float32)
    save_state_dict(small, tmp_path / "small.safetensors", images, names, {})
    assert set(load_file(tmp_path / "small.safetensors")) == {"weight", "bias", "head.weight", "head.bias"}


@pytest.mark.filterwarnings("ignore:mutual information")  # random labels tell nothing
def test_a_pruned_state_dict_loads_in_pytorch(torch, data, tmp_path):
    path, arrays = data
    colour_state(tmp_path)
    checkpoint = {"model": {k: torch.tensor(v) for k, v in load_file(tmp_path / "net.safetensors").items()}}
    torch.save({**checkpoint, "ema": checkpoint["model"]}, tmp_path / "net.ckpt")
    command = ("prune", tmp_path / "net.ckpt", "--activation", "relu", "--dataset", path, "--state-key", "model")
    run(*command, "--out", tmp_path / "small.pt")
    parts = {"enc": torch.nn.Linear(504, 4), "out": torch.nn.Linear(4, 5)}
    torch.nn.ModuleDict(parts).load_state_dict(torch.load(tmp_path / "small.pt", weights_only=True))
    flat = torch.tensor(arrays["test_images"].transpose(0, 3, 1, 2).reshape(40, -1))
    outputs = parts["out"](torch.relu(parts["enc"](flat))).detach().numpy()
    small = load_pytorch(tmp_path / "small.pt", activation="relu", images=arrays["test_images"])
    np.testing.assert_allclose(outputs, small(arrays["test_images"]), rtol=1e-4, atol=1e-3)
    # a file of jaxablate, whose modules have no names in PyTorch
    ja.save_model(small, tmp_path / "own.safetensors")
    run("prune", tmp_path / "own.safetensors", "--dataset", path, "--out", tmp_path / "own.pt")
    assert set(torch.load(tmp_path / "own.pt")) == {"1.weight", "1.bias", "3.weight", "3.bias"}


def test_options_that_a_file_of_jaxablate_answers(data, tmp_path):
    path, _ = data
    net = tmp_path / "net.safetensors"
    ja.save_model(nnx.Sequential(ja.models.flatten_images, nnx.Linear(504, 5, rngs=nnx.Rngs(0))), net)
    for option, message in (
        ("--activation", "is not the functions of its layers"),
        ("--layers", "whole network"),
        ("--state-key", "whole network"),
    ):
        arguments = ["score", str(net), "--dataset", str(path), option, "relu", "--out", "s.csv"]
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 1
        assert message in result.stderr.replace("\n", " ")


def test_a_pt_file_is_not_promised_without_pytorch(data, tmp_path, monkeypatch):
    colour_state(tmp_path)
    monkeypatch.setitem(sys.modules, "torch", None)
    arguments = [
        "prune",
        str(tmp_path / "net.safetensors"),
        "--activation",
        "relu",
        "--out",
        str(tmp_path / "small.pt"),
    ]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    assert "small.pt: needs PyTorch, which is not installed" in result.stderr.replace("\n", " ")


def test_a_state_dict_without_values_is_refused(torch, tmp_path):
    lazy = torch.nn.Sequential(torch.nn.LazyLinear(5), torch.nn.ReLU(), torch.nn.Linear(5, 2))
    with raises_input_error("0.weight has no values yet; run the network once"):
        load_pytorch(lazy.state_dict(), activation="relu")
    torch.save(lazy.state_dict(), tmp_path / "lazy.pt")
    with raises_input_error("no values yet; run the network once|parameters without values; run the network once"):
        load_pytorch(tmp_path / "lazy.pt", activation="relu")


def test_a_square_kernel_normed_by_its_columns_is_open(torch):
    layer = torch.nn.utils.spectral_norm(torch.nn.Conv2d(6, 6, 3), dim=1)
    images = torch.tensor(np.random.default_rng(0).normal(size=(5, 6, 6, 6)).astype(np.float32))
    for _ in range(20):
        layer(images)
    chain = nnx.Sequential(nnx.Conv(6, 6, (3, 3), padding="VALID", rngs=nnx.Rngs(0)))
    with raises_input_error("do not settle the parametrization; give a reference"):
        load_pytorch({f"0.{name}": value for name, value in layer.eval().state_dict().items()}, chain)


def test_another_default_dtype_of_pytorch(torch):
    model = ja.MLP(4, (3,), 2, rngs=nnx.Rngs(0))
    images = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    torch.set_default_dtype(torch.float64)
    try:
        net = to_pytorch(model)
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.no_grad():
        np.testing.assert_allclose(net(torch.tensor(images)), model(images), atol=1e-6)


def test_what_layers_compute_otherwise_is_not_written_down(tmp_path):
    """A file has weights and options, and no code and no precision."""

    class Doubled(nnx.Sequential):
        def __call__(self, x):
            return super().__call__(2 * x)

    class DoubledMLP(ja.MLP):
        def __call__(self, images):
            return super().__call__(2 * images)

    def product(a, b, dimensions, **options):
        return 2 * jax.lax.dot_general(a, b, dimensions, **options)

    rngs, path = nnx.Rngs(0), tmp_path / "net.safetensors"
    lora = ja.MLP(4, (3,), 2, rngs=rngs)
    lora.stages[0].linear = nnx.LoRALinear(4, 3, lora_rank=2, rngs=rngs)
    usual = nnx.Linear(3, 2, rngs=rngs)
    for model, message in (
        (Doubled(nnx.Linear(4, 3, rngs=rngs), nnx.relu, usual), "without a __call__ of its own, got Doubled"),
        (DoubledMLP(4, (3,), 2, rngs=rngs), "without a __call__ of its own, got DoubledMLP"),
        (lora, r"layer 1 \(LoRALinear\): expected a linear map"),
        (nnx.Sequential(nnx.Linear(4, 3, dot_general=product, rngs=rngs), nnx.relu, usual), "a product of its own"),
        (nnx.Sequential(nnx.Linear(4, 3, dtype=jnp.bfloat16, rngs=rngs), nnx.relu, usual), "another precision"),
        (nnx.Sequential(lambda x: jnp.maximum(x, 0), usual), "expected a linear map"),
    ):
        with raises_input_error(message):
            ja.save_model(model, path)
        assert not path.exists()
    ja.save_model(nnx.Sequential(nnx.Linear(4, 3, dtype=jnp.float32, rngs=rngs), nnx.relu, usual), path)


def test_a_function_that_keeps_positive_numbers_is_no_flattening(torch):
    net = nnx.Sequential(lambda x: jnp.maximum(x, 0), nnx.Linear(4, 2, rngs=nnx.Rngs(0)))
    with raises_input_error("expected a linear map"):
        to_pytorch(net, np.zeros((1, 4), np.float32))


@pytest.mark.parametrize("name", ["adaptive", "adaptive to 2", "function of the size"])
def test_adaptive_pooling_takes_images_of_any_size(torch, tmp_path, name):
    nn = torch.nn
    pool, units = {
        "adaptive": (nn.AdaptiveAvgPool2d(1), 1),
        "adaptive to 2": (nn.AdaptiveAvgPool2d(2), 4),
        "function of the size": (GlobalPool(torch), 1),
    }[name]
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), pool, nn.Flatten(), nn.Linear(4 * units, 5)).eval()
    ja.save_model(from_pytorch(net, COLOURS), tmp_path / "net.safetensors")
    model = ja.load_model(tmp_path / "net.safetensors").model
    larger = RANDOM.normal(size=(6, 20, 16, 3)).astype(np.float32)
    np.testing.assert_allclose(model(larger), logits(torch, net, larger), atol=1e-5)
    back = ja.to_pytorch(model, COLOURS)
    np.testing.assert_allclose(logits(torch, back, larger), logits(torch, net, larger), atol=1e-5)
    if units == 4:
        with raises_input_error(r"adaptive pooling to .2, 2. needs a height and a width that these numbers divide"):
            model(larger[:, 1:])


def test_images_whose_channels_may_be_first_or_last(torch):
    nn = torch.nn
    for shape, refusal in {
        (2, 5, 5): "looks like PyTorch's .example, channel, height, width.",
        (2, 5, 7): "may have the channels last or first, since the PyTorch module Sequential takes both",
    }.items():
        net = nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(shape)), 4), nn.ReLU(), nn.Linear(4, 3))
        images = RANDOM.random((9, *shape), dtype=np.float32)
        with raises_input_error(f"images: shape .* {refusal}"):
            from_pytorch(net, images)
        flat = from_pytorch(net, images.reshape(9, -1))
        expected = net(torch.tensor(images)).detach().numpy()
        np.testing.assert_allclose(flat(images.reshape(9, -1)), expected, atol=1e-5)


def test_layers_that_refuse_another_mode_do_not_change(torch):
    net = torch.nn.Sequential(*(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4), torch.nn.ReLU(), torch.nn.Linear(4, 2)))
    net[1].train = lambda mode=True: net[1]
    model = from_pytorch(net, IMAGES[:, :4, 0])
    assert not net[1].running_mean.any()
    assert net[1].training
    net[1].training = False
    np.testing.assert_allclose(model(IMAGES[:, :4, 0]), net(torch.tensor(IMAGES[:, :4, 0])).detach(), atol=1e-6)
