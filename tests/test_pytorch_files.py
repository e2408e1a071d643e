"""Files of PyTorch networks that leave something open: settled by shapes and numbers, or refused, never guessed."""

import functools
import itertools
import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import raises_input_error
from safetensors.numpy import save_file
from typer.testing import CliRunner

import jaxablate as ja
from jaxablate.cli import app
from jaxablate.models import get_activation, load_pytorch
from jaxablate.models._pytorch import require_reference

pytestmark = pytest.mark.filterwarnings("ignore::jaxablate.models.AssumptionWarning")

WORDS = ("layer_one", "layer_two", "layer_three", "output")


def state(weights):
    """The state dict of linear maps [out, in] by name, with biases."""
    tensors = {f"{name}.weight": weight for name, weight in weights.items()}
    return tensors | {
        f"{name}.bias": np.linspace(-0.5, 0.5, len(weight), dtype=np.float32) for name, weight in weights.items()
    }


def write(path, weights):
    save_file(state(weights), path)
    return path


def network(names, sizes, seed=0):
    random = np.random.default_rng(seed)
    return {
        name: random.normal(0, 1 / n**0.5, (m, n)).astype(np.float32)
        for name, (n, m) in zip(names, itertools.pairwise(sizes), strict=True)
    }


def forward(weights, x):
    """ReLU between linear maps in the order of the mapping."""
    for i, weight in enumerate(weights.values()):
        x = (np.maximum(x, 0) if i else x) @ weight.T + np.linspace(-0.5, 0.5, len(weight), dtype=np.float32)
    return x


INPUTS = np.random.default_rng(1).normal(size=(50, 12)).astype(np.float32)


def test_equal_widths_and_names_in_words_are_refused(tmp_path):
    weights = network(WORDS, (12, 9, 9, 9, 5))
    path = write(tmp_path / "net.safetensors", weights)
    both = "layer_one, layer_(two|three), layer_(two|three), output"
    with raises_input_error(f"leave their order open, for example {both} or {both}; give the order .* layers"):
        load_pytorch(path, activation="relu")
    model = load_pytorch(path, activation="relu", layers=WORDS)
    np.testing.assert_allclose(model(INPUTS), forward(weights, INPUTS), atol=1e-5)
    for layers in ((*WORDS[:3], "head"), (*WORDS, "output"), ()):
        with raises_input_error("layers: expected modules of .*, each once"):
            load_pytorch(path, activation="relu", layers=layers)
    with raises_input_error("its linear maps do not form a network"):
        load_pytorch(path, activation="relu", layers=WORDS[::-1])
    # an autoencoder, or a decoder before an encoder
    names = ("encoder.0", "encoder.1", "decoder.0", "decoder.1")
    with raises_input_error("leave their order open"):
        load_pytorch(write(path, network(names, (12, 7, 4, 7, 12))), activation="relu")


@pytest.mark.parametrize(
    ("names", "sizes"),
    [
        (WORDS, (12, 9, 8, 7, 5)),  # only one order fits
        (("z", "a"), (12, 6, 5)),
        (("output", "hidden"), (12, 12, 5)),
        (("layers.2", "layers.10", "layers.20", "head"), (12, 12, 12, 12, 5)),
        (("fc1", "fc2", "out"), (12, 9, 9, 5)),
        (("encoder.0", "encoder.1", "decoder.0", "decoder.1"), (12, 7, 4, 7, 11)),
        (("net.0.lin", "net.1.lin", "net.2.lin"), (12, 12, 12, 12)),
    ],
)
def test_shapes_and_numbers_settle_the_order(tmp_path, names, sizes):
    weights = network(names, sizes)
    model = load_pytorch(write(tmp_path / "net.safetensors", weights), activation="relu")
    np.testing.assert_allclose(model(INPUTS), forward(weights, INPUTS), atol=1e-5)


@pytest.mark.parametrize("size", [2, 30])
def test_many_modules_of_one_shape_are_refused_at_once(tmp_path, size):
    letters = ["".join(pair) for pair in itertools.product("abcdef", repeat=2)][:size]
    path = write(tmp_path / "net.safetensors", network(letters, (12,) * (size + 1)))
    with raises_input_error("leave their order open"):
        load_pytorch(path, activation="relu")


def test_an_order_that_the_search_does_not_find(tmp_path):
    """Every chain of these modules ends before the last one: the file is refused, and not after hours."""
    letters = ["".join(pair) for pair in itertools.product("abcdef", repeat=2)][:20]
    weights = network(letters, (12,) * 21) | {"last": np.ones((3, 4), np.float32)}
    with raises_input_error("leave their order open; give the order"):
        load_pytorch(write(tmp_path / "net.safetensors", weights), activation="relu")


def test_the_order_of_definition_is_not_the_order_of_use(torch, tmp_path):
    nn = torch.nn

    class Net(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.last, self.second, self.first = nn.Linear(width, 5), nn.Linear(9, width), nn.Linear(12, 9)

        def forward(self, x):
            return self.last(torch.relu(self.second(torch.relu(self.first(x)))))

    net = Net(7)
    torch.save(net.state_dict(), tmp_path / "net.pt")
    model = load_pytorch(tmp_path / "net.pt", activation="relu")
    np.testing.assert_allclose(model(INPUTS), net(torch.tensor(INPUTS)).detach(), atol=1e-5)
    three = {name: nn.Linear(9, 9) for name in ("b", "a")}
    torch.save(nn.ModuleDict(three).state_dict(), tmp_path / "open.pt")
    with raises_input_error("leave their order open, for example b, a or a, b"):
        load_pytorch(tmp_path / "open.pt", activation="relu")


def test_a_torchscript_file_is_named(torch, tmp_path, recwarn):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "net.pt")
    before = len(recwarn)
    with raises_input_error(r"got a TorchScript program; save it by torch.save\(model.state_dict"):
        load_pytorch(tmp_path / "net.pt", activation="relu")
    assert len(recwarn) == before


def test_convolutions_of_one_shape(torch, tmp_path):
    nn = torch.nn
    convs = {name: nn.Conv2d(1, 1, 3, padding=1) for name in ("down", "up")}
    net = nn.Sequential(convs["down"], nn.ReLU(), convs["up"], nn.Flatten(), nn.Linear(16, 3))
    state = {f"{name}.{part}": tensor for name, conv in convs.items() for part, tensor in conv.state_dict().items()}
    torch.save({**state, "head.weight": net[4].weight, "head.bias": net[4].bias}, tmp_path / "net.pt")
    rngs, padding = nnx.Rngs(0), ((1, 1), (1, 1))
    ours = nnx.Sequential(
        nnx.Conv(1, 1, (3, 3), padding=padding, rngs=rngs),
        nnx.relu,
        nnx.Conv(1, 1, (3, 3), padding=padding, rngs=rngs),
        lambda x: x.reshape(len(x), -1),
        nnx.Linear(16, 3, rngs=rngs),
    )
    images = np.random.default_rng(0).random((6, 4, 4, 1)).astype(np.float32)
    with raises_input_error("leave their order open, for example down, up, head or up, down, head"):
        load_pytorch(tmp_path / "net.pt", ours, images=images)
    outputs = net(torch.tensor(images.transpose(0, 3, 1, 2))).detach().numpy()
    model = load_pytorch(
        tmp_path / "net.pt", ours, images=images, layers=("down", "up", "head"), reference=(images, outputs)
    )
    np.testing.assert_allclose(model(images), outputs, atol=1e-5)
    with raises_input_error("reference: the .* gives other outputs, by up to"):
        load_pytorch(
            tmp_path / "net.pt", ours, images=images, layers=("up", "down", "head"), reference=(images, outputs)
        )


def test_padding_with_strides(torch, tmp_path):
    nn = torch.nn
    net = nn.Sequential(nn.Conv2d(1, 2, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3))
    torch.save(net.state_dict(), tmp_path / "net.pt")
    images = np.random.default_rng(0).random((6, 8, 8, 1)).astype(np.float32)

    def ours(padding):
        rngs = nnx.Rngs(0)
        conv = nnx.Conv(1, 2, (3, 3), strides=2, padding=padding, rngs=rngs)
        return nnx.Sequential(conv, nnx.relu, lambda x: x.reshape(len(x), -1), nnx.Linear(32, 3, rngs=rngs))

    with raises_input_error(r"layer 0 \(Conv\): padding 'SAME' with strides pads other sides"):
        load_pytorch(tmp_path / "net.pt", ours("SAME"), images=images)
    model = load_pytorch(tmp_path / "net.pt", ours(((1, 1), (1, 1))), images=images)
    np.testing.assert_allclose(model(images), net(torch.tensor(images.transpose(0, 3, 1, 2))).detach(), atol=1e-5)


def test_images_with_their_channels_first_are_refused(tmp_path):
    path = write(tmp_path / "net.safetensors", network(("fc1", "fc2"), (784, 9, 5)))
    for shape in ((2, 1, 28, 28), (2, 4, 14, 14)):
        with raises_input_error("looks like PyTorch's .* channels last; pass images.transpose"):
            load_pytorch(path, activation="relu", images=np.zeros(shape, np.float32))
    assert load_pytorch(path, activation="relu", images=np.zeros((2, 28, 28, 1), np.float32)).hidden == (9,)
    assert load_pytorch(path, activation="relu", images=np.zeros((2, 14, 14, 4), np.float32)).hidden == (9,)


def test_the_activation_is_named(tmp_path):
    path = write(tmp_path / "net.safetensors", network(("fc1", "fc2"), (12, 9, 5)))
    with raises_input_error(
        "activation: the PyTorch file .* does not name its activation function; give one of sigmoid"
    ):
        load_pytorch(path)
    for wrong in ("swish", "relu:2", "elu:x", "elu:", "leaky_relu:inf", 3):
        with raises_input_error("activation: "):
            load_pytorch(path, activation=wrong)


@pytest.mark.parametrize(
    ("name", "module", "options"),
    [
        ("sigmoid", "Sigmoid", {}),
        ("relu", "ReLU", {}),
        ("tanh", "Tanh", {}),
        ("gelu", "GELU", {}),
        ("gelu_exact", "GELU", {}),
        ("gelu_tanh", "GELU", {"approximate": "tanh"}),
        ("silu", "SiLU", {}),
        ("leaky_relu", "LeakyReLU", {}),
        ("leaky_relu:0.2", "LeakyReLU", {"negative_slope": 0.2}),
        ("elu", "ELU", {}),
        ("elu:0.7", "ELU", {"alpha": 0.7}),
        ("softplus", "Softplus", {}),
        ("hardtanh", "Hardtanh", {}),
    ],
)
def test_every_activation_is_pytorchs(torch, tmp_path, name, module, options):
    nn = torch.nn
    net = nn.Sequential(nn.Linear(12, 9), getattr(nn, module)(**options), nn.Linear(9, 5))
    torch.save(net.state_dict(), tmp_path / "net.pt")
    model = load_pytorch(tmp_path / "net.pt", activation=name)
    with torch.no_grad():
        expected = net(4 * torch.tensor(INPUTS)).numpy()
    np.testing.assert_allclose(model(4 * INPUTS), expected, atol=2e-6 * np.abs(expected).max() + 1e-6)
    ja.save_model(model, tmp_path / "ours.safetensors")
    again = ja.load_model(tmp_path / "ours.safetensors").model
    np.testing.assert_array_equal(again(INPUTS), model(INPUTS))


def test_a_neuron_fires_where_its_pre_activation_is_positive():
    z = np.array([[-3.0, -0.5, -1e-3, 1e-3, 0.5, 3.0]], np.float32)
    for name in (*ja.models.ACTIVATIONS, "leaky_relu:0.3", "elu:2"):
        codes = ja.quantizers.default_quantizer(name)(get_activation(name)(jnp.asarray(z)))
        assert codes.tolist() == [[0, 0, 0, 1, 1, 1]], name


def test_a_reference(tmp_path):
    weights = network(("fc1", "fc2"), (12, 9, 5))
    path, outputs = write(tmp_path / "net.safetensors", weights), forward(weights, INPUTS)
    load_pytorch(path, activation="relu", reference=(INPUTS, outputs))
    with raises_input_error(
        "reference: the PyTorch file .*net.safetensors gives other outputs, by up to [0-9.]+ with the"
    ):
        load_pytorch(path, activation="gelu", reference=(INPUTS, outputs))
    with raises_input_error(r"reference: expected outputs \(50, 5\) for these inputs, got \(50,\)"):
        load_pytorch(path, activation="relu", reference=(INPUTS, outputs[:, 0]))
    with raises_input_error("reference outputs: expected finite numbers, got 250 NaN"):
        require_reference(f"PyTorch file {path}", load_pytorch(path, activation="relu"), INPUTS, outputs * np.nan)


@pytest.fixture
def colours(tmp_path):
    """A dataset of colour images, and a file whose network flattens them channel by channel."""
    random = np.random.default_rng(0)
    images, labels = random.random((60, 4, 4, 3)).astype(np.float32), np.arange(60) % 3
    np.savez(
        tmp_path / "data.npz",
        train_images=images, train_labels=labels, test_images=images, test_labels=labels,
        validation_images=images, validation_labels=labels,
    )  # fmt: skip
    weights = network(("one", "two", "three", "four"), (48, 9, 9, 9, 3))
    write(tmp_path / "net.safetensors", weights)
    outputs = forward(weights, images.transpose(0, 3, 1, 2).reshape(60, -1))
    np.savez(tmp_path / "reference.npz", inputs=images, outputs=outputs)
    return tmp_path, images, outputs


def test_colour_images_on_the_command_line(colours):
    folder, images, outputs = colours
    arguments = ["score", f"{folder}/net.safetensors", "--activation", "relu", "--dataset", f"{folder}/data.npz"]
    arguments += ["--out", f"{folder}/scores.csv", "--score", "mean_activation"]
    run = CliRunner().invoke(app, arguments)
    assert run.exit_code != 0
    assert "leave their order open" in run.output.replace("\n", " ")
    assert "--layers" in run.output
    settled = [*arguments, "--layers", "one,two,three,four", "--reference", f"{folder}/reference.npz"]
    run = CliRunner().invoke(app, settled)
    assert run.exit_code == 0, run.output
    assert "flattens images channel by channel" in " ".join(run.output.split())
    assert "no example of the dataset" not in run.output
    for scaled in (255 * images, images - 0.5):
        outputs_of_scaled = forward(
            network(("one", "two", "three", "four"), (48, 9, 9, 9, 3)), scaled.transpose(0, 3, 1, 2).reshape(60, -1)
        )
        np.savez(folder / "reference.npz", inputs=scaled, outputs=outputs_of_scaled)
        run = CliRunner().invoke(app, settled)
        assert run.exit_code == 0, run.output
        assert "--reference: its first input is no example of the dataset" in " ".join(run.output.split())
    np.savez(folder / "reference.npz", inputs=images, outputs=outputs + 0.5)
    run = CliRunner().invoke(app, settled)
    assert run.exit_code != 0
    assert "gives other outputs" in " ".join(run.output.split())
    np.savez(folder / "reference.npz", inputs=images)
    run = CliRunner().invoke(app, settled)
    assert "expected an .npz file with the arrays inputs and outputs" in " ".join(run.output.split())


def test_layers_leave_out_entries_that_are_no_layers(torch, tmp_path):
    nn = torch.nn
    net = nn.Sequential(nn.Linear(12, 9), nn.Tanh(), nn.Linear(9, 5))
    with torch.no_grad():
        expected = net(torch.tensor(INPUTS)).numpy()
    torch.save({**net.state_dict(), "log_std": torch.zeros(5), "steps": torch.tensor(3)}, tmp_path / "net.pt")
    model = load_pytorch(tmp_path / "net.pt", activation="tanh", layers=("0", "2"))
    np.testing.assert_allclose(model(INPUTS), expected, atol=1e-5)
    with raises_input_error("expected names that end in weight, bias, .*, got 'log_std'"):
        load_pytorch({**net.state_dict(), "log_std": torch.zeros(5)}, activation="tanh")
    with raises_input_error("net.pth.tar: expected .safetensors, .pt, .pth or .ckpt, got '.tar'; rename it to .pt"):
        (tmp_path / "net.pth.tar").write_bytes(b"")
        load_pytorch(tmp_path / "net.pth.tar", activation="tanh")
    (tmp_path / "net.pt").rename(tmp_path / "net.PTH")
    assert load_pytorch(tmp_path / "net.PTH", activation="tanh", layers=("0", "2")).hidden == (9,)


def test_entries_that_layers_leave_out_are_named(tmp_path):
    """A mask among them would not be applied."""
    weights = state(network(("fc1", "fc2"), (12, 9, 5)))
    masks = {"mask_fc1": np.ones((9, 12), np.float32), "critic.weight": np.ones((9, 12), np.float32)}
    left_out = "layers leaves out mask_fc1, critic.weight; multiply a mask among them into its weights"
    with pytest.warns(ja.models.AssumptionWarning, match=left_out):
        load_pytorch({**weights, **masks}, activation="relu", layers=("fc1", "fc2"))
    reference = INPUTS, forward(network(("fc1", "fc2"), (12, 9, 5)), INPUTS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_pytorch({**weights, **masks}, activation="relu", layers=("fc1", "fc2"), reference=reference)


def test_numbers_against_the_order_of_definition_leave_the_order_open():
    """As in a decoder whose layers are numbered upwards and applied downwards."""
    weights = state(network(("stem", "dec3", "dec2", "dec1", "head"), (12, 9, 9, 9, 9, 5)))
    with raises_input_error("leave their order open, for example stem, dec1, .*, head or stem, dec3, dec2, dec1, head"):
        load_pytorch(weights, activation="relu")
    named = sorted(weights)  # as many tools save them; then the numbers alone say something
    with pytest.warns(ja.models.AssumptionWarning, match="assumed stem, dec1, dec2, dec3, head in this order"):
        load_pytorch({name: weights[name] for name in named}, activation="relu")


def test_the_parameters_of_an_activation_are_named():
    weights = state(network(("fc1", "fc2"), (12, 9, 5)))
    for name, words in {
        "hardtanh": r"hardtanh \(from -1 to 1\)", "leaky_relu": r"leaky_relu \(slope 0.01\)", "elu": r"elu \(alpha 1\)",
        "softplus": r"softplus \(beta 1\)", "gelu": r"gelu \(exact form\)", "leaky_relu:0.2": "leaky_relu:0.2",
        "gelu_tanh": r"gelu_tanh \(approximation by tanh\)", "relu": "relu",
    }.items():  # fmt: skip
        with pytest.warns(ja.models.AssumptionWarning, match=f"with {words} between them"):
            load_pytorch(weights, activation=name)


def test_a_reference_of_lower_precision(torch):
    net = torch.nn.Sequential(torch.nn.Linear(12, 64), torch.nn.ReLU(), torch.nn.Linear(64, 5))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = net(torch.tensor(INPUTS)).float().numpy()
    with raises_input_error("gives other outputs, .*, or compute the reference in float32, without TF32 and autocast"):
        load_pytorch(net.state_dict(), activation="relu", reference=(INPUTS, outputs))


def test_a_reference_after_a_softmax_is_named(torch):
    nn = torch.nn
    net = nn.Sequential(nn.Linear(12, 9), nn.Tanh(), nn.Linear(9, 5))
    with torch.no_grad():
        logits = net(torch.tensor(INPUTS))
    for name in ("log_softmax", "softmax", "sigmoid"):
        outputs = getattr(torch, name)(logits, *([1] * (name != "sigmoid"))).numpy()
        with raises_input_error(
            f"reference: its outputs are the {name} of what the PyTorch state dict gives; give the"
        ):
            load_pytorch(net.state_dict(), activation="tanh", reference=(INPUTS, outputs))
    with raises_input_error("gives other outputs, by up to .*; check activation, layers"):
        load_pytorch(net.state_dict(), activation="tanh", reference=(INPUTS, logits.numpy()[::-1]))


def test_the_two_forms_of_gelu_are_told_apart(torch):
    """They differ by less than what a reference allows for rounding, and change a few predictions."""
    nn = torch.nn
    for form, right, wrong in (("none", "gelu", "gelu_tanh"), ("tanh", "gelu_tanh", "gelu")):
        hidden = [nn.Linear(12, 64), nn.GELU(form), nn.Linear(64, 64), nn.GELU(form)]
        net = nn.Sequential(*hidden, nn.Linear(64, 5))
        with torch.no_grad():
            reference = 50 * INPUTS, net(torch.tensor(50 * INPUTS)).numpy()
        model = load_pytorch(net.state_dict(), activation=right, reference=reference)
        np.testing.assert_allclose(model(reference[0]), reference[1], atol=1e-4)
        with raises_input_error("with the other form of GELU, so use the other one of 'gelu'"):
            load_pytorch(net.state_dict(), activation=wrong, reference=reference)
        function = jax.nn.gelu if right == "gelu" else functools.partial(jax.nn.gelu, approximate=False)
        sizes, rngs = [(12, 64), (64, 64), (64, 5)], nnx.Rngs(0)
        layers = [each for n, m in sizes for each in (nnx.Linear(n, m, rngs=rngs), function)]
        with raises_input_error("with the other form of GELU"):
            load_pytorch(net.state_dict(), nnx.Sequential(*layers[:-1]), images=INPUTS, reference=reference)


def test_examples_of_two_axes_keep_their_order(torch, tmp_path):
    """Windows [time, channel] and [channel, time] have as many numbers."""
    random, nn = np.random.default_rng(0), torch.nn
    windows, labels = random.normal(size=(60, 9, 16)).astype(np.float32), np.arange(60) % 5
    net = nn.Sequential(nn.Flatten(), nn.Linear(144, 8), nn.ReLU(), nn.Linear(8, 5))
    with torch.no_grad():
        outputs = net(torch.tensor(windows)).numpy()
    state = net.state_dict()
    referred = load_pytorch(state, activation="relu", reference=(windows, outputs))
    ja.save_model(referred, tmp_path / "net.safetensors")
    other = windows.transpose(0, 2, 1)
    for network in (referred, ja.from_pytorch(net, windows), ja.load_model(tmp_path / "net.safetensors").model):
        np.testing.assert_allclose(network(windows), outputs, atol=1e-5)
        np.testing.assert_allclose(network(windows.reshape(60, -1)), outputs, atol=1e-5)
        with raises_input_error(r"made for images \[example, 9, 16\], got shape \(60, 16, 9\); transpose"):
            ja.single_ablation(network, other, labels)
    volumes = np.zeros((2, 4, 4, 3, 3), np.float32)
    with pytest.warns(ja.models.AssumptionWarning, match=r"nothing else; examples of shape \(4, 4, 3, 3\) flattened"):
        load_pytorch(state, activation="relu", images=volumes)
    split = {"images": other, "labels": labels}
    arrays = {f"{name}_{key}": array for name in ("train", "test", "validation") for key, array in split.items()}
    np.savez(tmp_path / "data.npz", **arrays)
    torch.save(state, tmp_path / "net.pt")
    arguments = ["score", f"{tmp_path}/net.pt", "--activation", "relu", "--dataset", f"{tmp_path}/data.npz"]
    run = CliRunner().invoke(app, [*arguments, "--out", f"{tmp_path}/scores.csv", "--score", "mean_activation"])
    assert run.exit_code == 0, run.output
    assert "and flattens examples of shape (16, 9) with their axes in this order" in " ".join(run.output.split())
    np.savez(tmp_path / "reference.npz", inputs=windows, outputs=outputs)
    run = CliRunner().invoke(app, [*arguments, "--out", "x.csv", "--reference", f"{tmp_path}/reference.npz"])
    assert run.exit_code != 0
    assert "made for images [example, 9, 16], got shape (1, 16, 9)" in " ".join(run.output.split())


def test_what_a_state_dict_leaves_open_is_said(tmp_path):
    """In Python too: the order, the activation function, and that nothing else is between the layers."""
    weights = network(("fc1", "fc2", "fc3"), (12, 9, 9, 5))
    path, outputs = write(tmp_path / "net.safetensors", weights), forward(weights, INPUTS)
    assumed = r"assumed fc1, fc2, fc3 in this order with relu between them, and nothing else; images flattened with"
    with pytest.warns(ja.models.AssumptionWarning, match=assumed):
        load_pytorch(path, activation="relu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_pytorch(path, activation="relu", reference=(INPUTS, outputs))
    chain = nnx.Sequential(
        *(part for n, m in ((12, 9), (9, 9), (9, 5)) for part in (nnx.Linear(n, m, rngs=nnx.Rngs(0)), nnx.relu))
    )
    small = nnx.Sequential(nnx.Linear(12, 9, rngs=nnx.Rngs(0)), nnx.relu, nnx.Linear(9, 5, rngs=nnx.Rngs(0)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_pytorch(path, chain)  # shapes settle the order
        load_pytorch(write(tmp_path / "two.safetensors", network(("a", "b"), (12, 9, 5))), small)
    twice = nnx.Sequential(
        *(part for n, m in ((12, 9), (9, 9), (9, 9), (9, 5)) for part in (nnx.Linear(n, m, rngs=nnx.Rngs(0)), nnx.relu))
    )
    four = write(tmp_path / "four.safetensors", network(("fc1", "fc2", "fc3", "fc4"), (12, 9, 9, 9, 5)))
    with pytest.warns(ja.models.AssumptionWarning, match="assumed fc1, fc2, fc3, fc4 in this order, although shapes"):
        load_pytorch(four, twice)


def test_numbers_that_leave_no_room_for_an_activation_are_refused(tmp_path):
    sizes = (12, 9, 8, 5)
    path = write(tmp_path / "net.safetensors", network(("net.0", "net.1", "net.3"), sizes))
    with raises_input_error("no activation function is between 'net.0' and 'net.1', but between others; convert the"):
        load_pytorch(path, activation="relu")
    # a list of modules, whose activation functions are in the code; and gaps of dropout
    for names in (("net.0", "net.1", "net.2"), ("net.0", "net.2", "net.5"), ("a.0", "a.1", "b.3")):
        load_pytorch(write(tmp_path / "net.safetensors", network(names, sizes)), activation="relu")


def test_modules_without_a_place_are_left_out(tmp_path):
    """A head for another task, which `layers` does not name."""
    weights = network(("fc1", "fc2"), (12, 9, 5))
    path = write(tmp_path / "net.safetensors", {**weights, **network(("aux",), (9, 3))})
    with raises_input_error("do not form a network .*; name the modules of the network in order by layers"):
        load_pytorch(path, activation="relu")
    model = load_pytorch(path, activation="relu", layers=("fc1", "fc2"))
    np.testing.assert_allclose(model(INPUTS), forward(weights, INPUTS), atol=1e-5)
    chain = nnx.Sequential(nnx.Linear(12, 9, rngs=nnx.Rngs(0)), nnx.relu, nnx.Linear(9, 5, rngs=nnx.Rngs(0)))
    with raises_input_error("expected 2 modules, .* got 3 .*; name the modules of the network in order by layers"):
        load_pytorch(path, chain)
    same = load_pytorch(path, chain, layers=("fc1", "fc2"))
    np.testing.assert_allclose(same(INPUTS), forward(weights, INPUTS), atol=1e-5)


def test_a_model_with_one_object_in_two_places():
    """Weights that differ would overwrite each other; equal weights come from a shared layer."""
    rngs = nnx.Rngs(0)
    shared = nnx.Linear(12, 12, rngs=rngs)
    model = nnx.Sequential(shared, nnx.relu, shared, nnx.relu, nnx.Linear(12, 5, rngs=rngs))
    weights = network(("0", "2", "4"), (12, 12, 12, 5))
    with raises_input_error("the same object in another place, but the weights of '0' and '2' differ"):
        load_pytorch(state(weights), model)
    weights["2"] = weights["0"]
    np.testing.assert_allclose(load_pytorch(state(weights), model)(INPUTS), forward(weights, INPUTS), atol=1e-5)


@pytest.mark.parametrize(
    "checkpoint",
    [
        lambda raw, ema: {"model": {**raw, "extra": {"version": 2}}, "ema": ema},
        lambda raw, ema: {"state_dict": {"net": raw, "loss": {}}, "ema": ema},
        lambda raw, ema: {"models": [raw], "teacher": ema},
    ],
    ids=["an entry that is no tensor", "one level deeper", "a list"],
)
def test_other_weights_of_a_checkpoint_are_not_passed_over(checkpoint):
    raw, ema = (network(("fc1", "fc2"), (12, 9, 5), seed) for seed in (0, 1))
    loaded = checkpoint(state(raw), state(ema))
    with raises_input_error("has weights in '.*' too, which are no state dicts; choose one of '(ema|teacher)'"):
        load_pytorch(loaded, activation="relu")
    model = load_pytorch(loaded, activation="relu", state_key=[*loaded][1])
    np.testing.assert_allclose(model(INPUTS), forward(ema, INPUTS), atol=1e-5)


@pytest.mark.filterwarnings("default::jaxablate.models.AssumptionWarning")
@pytest.mark.parametrize(
    "model",
    [{"0.weight_v": np.ones((9, 12)), "epoch": 1}, [np.ones((9, 12))], [("fc1", np.ones((9, 12)))], object()],
    ids=["a weight norm and an epoch", "a list", "a list of pairs", "an object"],
)
def test_the_entry_of_a_checkpoint_is_named(model):
    """The only state dict may be that of another network, if the first one is there in another form."""
    ema = network(("fc1", "fc2"), (12, 9, 5))
    with pytest.warns(ja.models.AssumptionWarning) as caught:
        load_pytorch({"model": model, "ema": state(ema), "epoch": 3}, activation="relu")
    assert "read the network from 'ema', not from 'model'; state_key" in str(caught[0].message)
    with pytest.warns(ja.models.AssumptionWarning) as caught:
        load_pytorch({"model": state(ema), "epoch": 3, "rng": np.zeros(8, np.uint8)}, activation="relu")
    assert len(caught) == 1, "numbers leave nothing open"


def test_the_facts_of_a_file_have_the_entry_that_was_read(torch, tmp_path):
    split = {"images": INPUTS, "labels": np.arange(len(INPUTS)) % 5}
    arrays = {f"{name}_{key}": array for name in ("train", "test", "validation") for key, array in split.items()}
    np.savez(tmp_path / "data.npz", **arrays)
    weights = state(network(("fc1", "fc2"), (12, 9, 5)))
    tensors = {name: torch.tensor(np.asarray(array)) for name, array in weights.items()}
    torch.save({"model": tensors, "ema": {"shadow_params": [*tensors.values()]}}, tmp_path / "net.pt")
    arguments = ["score", f"{tmp_path}/net.pt", "--activation", "relu", "--dataset", f"{tmp_path}/data.npz"]
    run = CliRunner().invoke(app, [*arguments, "--out", f"{tmp_path}/x.csv", "--score", "mean_activation", "--json"])
    assert run.exit_code == 0, run.output
    note = "read the network from 'model', not from 'ema'"
    assert note in " ".join(run.stderr.split())
    assert note in json.loads(run.stdout)["file"]["notes"]


@pytest.mark.parametrize("dtype", [np.float32, bool])
def test_masks_of_any_dtype_are_applied(dtype):
    weights = network(("fc1", "fc2"), (12, 9, 5))
    mask = np.random.default_rng(2).random((9, 12)) < 0.5
    tensors = state(weights)
    tensors |= {"fc1.weight_orig": tensors.pop("fc1.weight"), "fc1.weight_mask": mask.astype(dtype)}
    weights["fc1"] = weights["fc1"] * mask
    np.testing.assert_allclose(load_pytorch(tensors, activation="relu")(INPUTS), forward(weights, INPUTS), atol=1e-5)


def test_numbers_that_contradict_the_shapes(tmp_path):
    """The shapes decide alone, if they do."""
    names = ("dec3", "dec1", "dec2", "dec0")
    with raises_input_error("leave their order open, for example dec3, dec., dec., dec0"):
        load_pytorch(state(network(names, (12, 8, 8, 8, 5))), activation="relu")
    weights = network(names, (12, 9, 8, 7, 5))
    np.testing.assert_allclose(
        load_pytorch(state(weights), activation="relu")(INPUTS), forward(weights, INPUTS), atol=1e-5
    )


def test_optimizers_and_callbacks_of_a_checkpoint_are_no_networks():
    weights = network(("fc1", "fc2"), (12, 9, 5))
    states = {0: {"step": np.ones(()), "exp_avg": np.ones((9, 12))}}
    loaded = {
        "model": state(weights), "optimizer": {"state": states, "param_groups": [{"lr": 0.1, "params": [0]}]},
        "callbacks": {"early": {"best_score": np.ones(())}}, "epoch": 3, "rng_state": np.zeros(8, np.uint8),
    }  # fmt: skip
    np.testing.assert_allclose(load_pytorch(loaded, activation="relu")(INPUTS), forward(weights, INPUTS), atol=1e-5)


@pytest.mark.filterwarnings("default::jaxablate.models.AssumptionWarning")
def test_the_order_of_batch_norms_of_one_size_is_an_assumption():
    rngs, random = nnx.Rngs(0), np.random.default_rng(0)
    model = nnx.Sequential(
        nnx.Linear(12, 7, rngs=rngs), nnx.BatchNorm(7, rngs=rngs), nnx.relu,
        nnx.Linear(7, 7, use_bias=False, rngs=rngs), nnx.BatchNorm(7, rngs=rngs), nnx.relu, nnx.Linear(7, 3, rngs=rngs),
    )  # fmt: skip
    weights = state(network(("fc1", "fc3"), (12, 7, 3))) | {"fc2.weight": random.random((7, 7), np.float32)}
    for i in (1, 2):
        parts = {"weight": 1, "bias": 0, "running_mean": i, "running_var": 2}
        weights |= {f"bn{i}.{part}": np.full(7, value, np.float32) for part, value in parts.items()}
    with pytest.warns(ja.models.AssumptionWarning, match="bn1.*bn2.*although shapes allow another"):
        load_pytorch(weights, model, layers=("fc1", "bn1", "fc2", "bn2", "fc3"))


def test_shared_layers_of_a_safetensors_file(torch, tmp_path):
    """`safetensors.torch.save_model` writes a shared tensor once, and its other names into the header."""
    from safetensors.torch import save_model

    shared = torch.nn.Linear(12, 12)
    net = torch.nn.Sequential(shared, torch.nn.ReLU(), shared, torch.nn.ReLU(), torch.nn.Linear(12, 3))
    save_model(net, str(tmp_path / "tied.safetensors"))
    model = load_pytorch(tmp_path / "tied.safetensors", activation="relu")
    assert model.hidden == (12, 12)
    with torch.no_grad():
        np.testing.assert_allclose(model(INPUTS), net(torch.tensor(INPUTS)), atol=1e-6)


def test_a_network_is_read_in_evaluation_mode(torch):
    net = torch.nn.Sequential(torch.nn.Linear(12, 7), torch.nn.BatchNorm1d(7), torch.nn.ReLU(), torch.nn.Linear(7, 3))
    net(torch.tensor(INPUTS) * 3)
    net.eval()
    rngs = nnx.Rngs(0)
    chain = nnx.Sequential(
        nnx.Linear(12, 7, rngs=rngs), nnx.BatchNorm(7, rngs=rngs), nnx.relu, nnx.Linear(7, 3, rngs=rngs)
    )
    model = load_pytorch(net.state_dict(), chain)
    with torch.no_grad():
        np.testing.assert_allclose(model(INPUTS), net(torch.tensor(INPUTS)), atol=1e-6)


def test_a_reference_of_equal_numbers_shows_nothing(tmp_path):
    weights = network(("fc1", "fc2"), (12, 9, 5))
    path, zeros = write(tmp_path / "net.safetensors", weights), np.zeros((1, 12), np.float32)
    with raises_input_error("reference: expected inputs that differ, got equal numbers; give real examples"):
        load_pytorch(path, activation="relu", reference=(zeros, forward(weights, zeros)))


def test_layers_without_a_bias_stay_without(torch, tmp_path):
    """The class of the network would not take a bias that its state dict did not have."""
    net = torch.nn.Sequential(
        torch.nn.Linear(12, 8, bias=False), torch.nn.ReLU(), torch.nn.Linear(8, 6, bias=False), torch.nn.ReLU(),
        torch.nn.Linear(6, 3),
    )  # fmt: skip
    torch.save(net.state_dict(), tmp_path / "net.pt")
    arrays = {f"{s}_{k}": v for s in ("train", "test") for k, v in (("images", INPUTS), ("labels", np.arange(50) % 3))}
    np.savez(tmp_path / "data.npz", **arrays)
    options = ["--dataset", str(tmp_path / "data.npz"), "--activation", "relu", "--score", "incoming_norm"]
    for fill, names in (("zero", {"4.bias"}), ("mean", {"2.bias", "4.bias"})):
        out = tmp_path / f"{fill}.pt"
        arguments = [str(tmp_path / "net.pt"), *options, "--fill", fill, "--out", str(out)]
        result = CliRunner().invoke(app, ["prune", *arguments])
        assert result.exit_code == 0, result.output
        assert {name for name in torch.load(out) if name.endswith("bias")} == names


def test_files_of_other_frameworks_are_refused(tmp_path):
    tensors = {"0.weight": np.ones((4, 5), np.float32), "2.weight": np.ones((3, 4), np.float32)}
    save_file(tensors, tmp_path / "net.safetensors", metadata={"format": "mlx"})
    with raises_input_error("its metadata say that mlx wrote it, which stores weights in another layout; save "):
        ja.models.load_pytorch(tmp_path / "net.safetensors", activation="relu")
    save_file(tensors, tmp_path / "net.safetensors", metadata={"format": "pt"})
    assert ja.models.load_pytorch(tmp_path / "net.safetensors", activation="relu").hidden == (4,)


def test_a_part_of_a_sharded_network_is_refused(tmp_path):
    tensors = {"0.weight": np.ones((4, 5), np.float32), "2.weight": np.ones((3, 4), np.float32)}
    save_file(tensors, tmp_path / "model-00001-of-00002.safetensors")
    with raises_input_error("its name says that it is part 1 of 2; join the tensors of all parts in one state dict"):
        ja.models.load_pytorch(tmp_path / "model-00001-of-00002.safetensors", activation="relu")
    save_file(tensors, tmp_path / "model-00001-of-00001.safetensors")
    assert ja.models.load_pytorch(tmp_path / "model-00001-of-00001.safetensors", activation="relu").hidden == (4,)
