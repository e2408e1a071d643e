"""The report: its numbers are the results', it needs no other file, and it answers to the reader."""

import base64
import dataclasses
import hashlib
import html
import io
import itertools
import json
import re
import shlex
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from flax import nnx
from helpers import raises_input_error
from networks import KINDS
from PIL import Image
from safetensors.numpy import save_file
from typer.testing import CliRunner

import jaxablate as ja
import jaxablate.cli
from jaxablate.charts import Line, LineChart, damage_chart, order_charts, score_chart, share_charts
from jaxablate.layer_analysis import damage_correlations
from jaxablate.report import networks_beside, write_comparison, write_report
from jaxablate.report._charts import svg_chart
from jaxablate.report._examples import Examples
from jaxablate.report._pictures import picture, weights_of
from jaxablate.report._sections import cards_of, meaning_of, sections_of
from jaxablate.report._summary import summarize_study

NAME = "3-layer-10-8-9"
QUESTIONS = [
    "What do the comparisons say?",
    "Did the networks learn?",
    "Where does the information sit?",
    "Does bias balancing soften the damage?",
    "Does the ranking matter within a layer?",
    "And over the whole network?",
    "Does a score predict the damage of one neuron?",
    "Which neurons are the most and the least informative?",
    "The numbers",
    "Origin of these results, and how to compute them again",
]


class Page(HTMLParser):
    """The elements of a page with their text, and the rows of its tables."""

    def __init__(self, path):
        super().__init__()
        self.elements, self.texts, self._open = [], {}, []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._open.append((tag, len(self.texts.setdefault(tag, []))))
        self.texts[tag].append("")
        if tag in ("meta", "link", "img"):
            self._open.pop()

    def handle_endtag(self, tag):
        while self._open and self._open.pop()[0] != tag:
            pass

    def handle_data(self, data):
        for tag, i in self._open:
            self.texts[tag][i] += data

    def rows(self):
        return [" ".join(text.split()) for text in self.texts["tr"]]


def charts(path):
    """Title, names of the curves and their data, of every chart of lines."""
    charts = []
    for text in re.findall(r'<figure class="chart">.*?</figure>', path.read_text(), re.DOTALL):
        data = re.search(r'<script type="application/json">(.*?)</script>', text, re.DOTALL)
        if data:
            names = re.findall(r"</svg>([^<]+)</button>", text)
            charts.append((re.search("<h3>(.*?)</h3>", text)[1], names, json.loads(data[1])))
    return charts


@pytest.fixture(scope="module")
def path(small_results, small_model, tmp_path_factory):
    return write_report(small_results, tmp_path_factory.mktemp("report") / "report.html", networks={NAME: small_model})


@pytest.fixture(scope="module")
def page(path):
    return Page(path)


def test_every_question_is_there_under_both_protocols(page):
    asked = [text for text in page.texts["h2"] if text in QUESTIONS]
    assert list(dict.fromkeys(asked)) == QUESTIONS
    assert sum(text == "The numbers" for text in asked) == 2
    assert sum(text == "Did the networks learn?" for text in asked) == 1
    assert {"Under the protocol “paper”", "Under the protocol “published”"} <= set(page.texts["h2"])


def test_it_needs_nothing_beside_it(page, path):
    for tag, attributes in page.elements:
        for name in ("src", "href"):
            assert attributes.get(name, "#").startswith(("data:", "#")), (tag, attributes)
    assert "default-src 'none'" in next(a["content"] for _, a in page.elements if "http-equiv" in a)
    ids = {attributes["id"] for _, attributes in page.elements if "id" in attributes}
    assert all(a["href"][1:] in ids for tag, a in page.elements if tag == "a")
    assert not re.search(r"@import|url\(", path.read_text())


def test_curves_hold_the_numbers_of_the_results(path, small_results):
    network = small_results[NAME].to_dataset()
    title = f"{NAME} network, layer 2: low and high values first, bias balanced"
    _, names, data = next(c for c in charts(path) if c[0] == title)
    random = "random (mean of 6)"
    names = [name.split(" (= ")[0] for name in names]  # some curves of small networks coincide, which their names say
    assert names == [random, *(f"{m}, {way} first" for way in ("low", "high") for m in ("entropy", "MI", "KL"))]
    accuracy = 100 * network["accuracy"].sel(scope="layer2", fill="mean")
    expected = {
        random: accuracy[:, (network["ranking"] == "random").values].mean(("seed", "ordering")),
        "MI, high first": accuracy.sel(ordering="mutual_information_high").mean("seed"),
        "KL, low first": accuracy.sel(ordering="kl_selectivity_low").mean("seed"),
    }
    for name, values in expected.items():
        np.testing.assert_allclose(data["series"][names.index(name)]["y"], values, atol=0.00501)
    assert data["x"] == network["step"].values.tolist()
    first = data["series"][0]
    assert all(low <= y <= high for low, y, high in zip(first["low"], first["y"], first["high"], strict=True))


def test_axes_of_whole_numbers_and_percent():
    half = np.full(2, 0.5)
    line = Line("line", 1, "", half, half - 0.5, half + 0.5, "interval")
    shares = LineChart("title", "subtitle", "x", "y", "About.", np.array([1, 2]), [line], percent=True)
    chart = svg_chart(shares)
    assert chart["about"] == "About."
    assert (chart["data"]["series"][0]["low"][0], chart["data"]["series"][0]["high"][0]) == (0, 100)
    assert chart["y_axis"].first > -0.1
    assert [label for _, label in chart["x_axis"].ticks] == ["1", "2"], "there is no epoch 1.5"


def test_violins_count_neurons_without_a_score_and_name_their_bound(small_results):
    network = small_results[f"published/{NAME}"].to_dataset().copy(deep=True)
    network["scores"].values[:] = 0.9
    network["scores"].values[0, 1, :3] = np.nan
    chart = svg_chart(score_chart("net", network, "mutual_information"))
    assert [violin["note"] for violin in chart["violins"]] == ["1.5 of 10 undefined", "", "1 of 9 constant"]
    position, name = chart["bound"]
    assert name == "ln 2: largest entropy of one bit"
    assert position == pytest.approx(chart["y_axis"].position(np.log(2)), abs=0.06)
    assert chart["y_axis"].first < np.log(2)
    assert chart["y_axis"].label == "H(T) + H(T|Y) (nats)"


def test_bands_lie_under_all_curves(path):
    figure = path.read_text().split(f"<h3>{NAME} network, layer 2: low and high")[1].split("</figure>")[0]
    assert figure.rindex('class="band ') < figure.index('<g class="series ')
    assert figure.count('class="band ') == figure.count('<g class="series ') == 7


def test_balancing_shows_both_fills(path, small_results):
    _, names, data = next(c for c in charts(path) if c[0].startswith(f"{NAME} network, layer 1: with"))
    orders, fills = ("random (mean of 6)", "MI, low first"), ("bias balanced", "zeros")
    assert names == [f"{order}; {fill}" for order in orders for fill in fills]
    network = small_results[NAME].to_dataset()
    selection = {"scope": "layer1", "ordering": "mutual_information_low", "fill": "zero"}
    expected = 100 * network["accuracy"].sel(selection).mean("seed")
    np.testing.assert_allclose(data["series"][3]["y"], expected, atol=0.00501)


def test_shares_of_layers_add_up(path):
    _, names, data = next(c for c in charts(path) if c[0] == f"{NAME} network: Entropy, low first")
    assert names == ["layer 1", "layer 2", "layer 3"]
    np.testing.assert_allclose(np.sum([series["y"] for series in data["series"]], axis=0), 100, atol=0.02)


def test_tables_hold_the_numbers_of_the_results(page, small_results):
    rows = page.rows()
    for protocol in ("paper", "published"):
        network = ja.results.select_protocol(small_results, protocol)[NAME].to_dataset()
        numbers = ""
        for fill in network["fill"].values:
            summary = ja.results.curve(network, scope="layer1", ranking="random", direction="", fill=str(fill))
            numbers += "".join(f"{100 * v:.2f}" for v in (summary.mean[3], summary.mean[6], summary.mean[1:].mean()))
        assert f"layer 1random3, 6{numbers}" in rows
    intact = 100 * small_results[NAME]["accuracy"].values[:, 0, 0, 0, 0].mean()
    assert f"{intact:.2f}%" in page.texts["p"]


def test_training_is_told_from_validation(path, small_results):
    network = small_results[NAME].to_dataset()
    _, names, data = next(c for c in charts(path) if c[0] == f"{NAME} network: training accuracy")
    assert names == ["training accuracy", "validation accuracy"]
    for split, series in zip(("train", "validation"), data["series"], strict=True):
        np.testing.assert_allclose(series["y"], 100 * network[f"{split}_accuracy"].mean("seed"), atol=0.00501)


def test_correlations_are_those_of_the_results(page, small_results):
    network = small_results[NAME].to_dataset()
    expected = damage_correlations(network).sel(score="kl_selectivity").mean("seed").values
    rows = [row for row in page.rows() if row.startswith("KL selectivity")]
    numbers = [[float(number) for number in re.findall(r"([+-]\d\.\d\d)(?: \[|$|(?=[+-]))", row)] for row in rows]
    assert any(len(row) == 4 and np.allclose(row, expected, atol=0.00501) for row in numbers), (numbers, expected)


def test_verdicts_are_those_of_the_claims(page, small_results):
    verdicts = ja.judge_claims(small_results)
    assert len(page.texts["summary"]) - 1 == len(verdicts)  # the last opens the configuration
    for way in ("holds", "does not hold", "undecided"):
        assert page.texts["summary"].count(way) == sum(verdict.verdict == way for verdict in verdicts)
    assert any(verdicts[0].effects[0].label in text for text in page.texts["li"])


def test_neurons_are_the_extremes_of_each_layer(page, small_results):
    network = small_results[NAME].to_dataset().isel(seed=0)
    scores = network["scores"].sel(score="mutual_information").values[network["layer"].values == 2]
    layer_rows = [row for row in page.rows() if row.startswith(("layer 2", "1 of 8", "8 of 8")) and "of 8" in row]
    assert f"{scores.max():.4f}" in next(row for row in layer_rows if "1 of 8" in row)
    assert f"{scores.min():.4f}" in next(row for row in layer_rows if "8 of 8" in row)
    neuron = 10 + int(scores.argmax())
    damage = 1000 * float(network["single_damage"][neuron])
    first = next(row for row in layer_rows if "1 of 8" in row)
    assert f"layer2/{scores.argmax()}, id {neuron} " in first.replace("class", " ")
    drops = 100 * network["single_class_drop"].values[neuron]
    largest = f"{drops.max():.1f} (class {drops.argmax()})" if drops.max() > 0 else "none"
    assert f"{damage:+.2f}{largest} class 0: {drops[0]:.1f}%" in first
    counts = network["joint_counts"].values[neuron]
    share = 100 * counts[4, 1] / counts[4].sum()
    assert f"class 4: {share:.1f}%" in page.texts["title"]


def test_pictures_are_of_the_weights(page, small_model, small_results):
    sources = [attributes["src"] for tag, attributes in page.elements if tag == "img"]
    assert len(sources) == 2 * 3 * 6  # protocols, layers, neurons
    for source in sources:
        assert Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))).size == (28, 28)
    first, second, _ = weights_of(small_model)
    assert weights_of(nnx.Linear(784, 10, rngs=nnx.Rngs(0))) is None
    network = small_results[NAME].to_dataset().isel(seed=0)
    scores = network["scores"].sel(score="mutual_information").values[network["layer"].values == 2]
    assert sources[6] == picture(second[scores.argmax()])
    assert sources[11] == picture(second[len(scores) - 1 - scores[::-1].argmin()])
    kernels = [np.asarray(stage.weights[0], np.float64) for stage in small_model.stages]
    np.testing.assert_array_equal(first[3], kernels[0][:, 3].reshape(28, 28))
    np.testing.assert_allclose(second[5].ravel(), kernels[0] @ kernels[1][:, 5], rtol=1e-12)
    assert picture(first[3]) != picture(-first[3])
    lit = np.zeros((28, 28))
    lit[3, 5] = 1.0
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture(lit).split(",")[1]))), int)
    assert pixels[3, 5, 2] > pixels[3, 5, 1]  # violet
    assert pixels[0].min() > 240  # white


def test_the_same_results_give_the_same_page(path, small_results, small_model, tmp_path):
    again = write_report(small_results, tmp_path / "again.html", networks={NAME: small_model})
    assert again.read_bytes() == path.read_bytes()


@pytest.mark.slow
def test_names_of_files_are_text(small_config, mnist5k, tmp_path):
    path = tmp_path / "<img src=x onerror=alert(1)>.npz"
    test = {"test_images": mnist5k.test.images[:200], "test_labels": mnist5k.test.labels[:200]}
    np.savez(path, train_images=mnist5k.train.images[:300], train_labels=mnist5k.train.labels[:300], **test)
    config = ja.StudyConfig(dataset=path, networks=((4,),), epochs=1, num_random_orders=2, steps=2)
    results = ja.run_study(config, run_dir=tmp_path / "run")
    networks, notes = networks_beside(results, tmp_path / "run")
    assert (list(networks), notes) == (["1-layer-4"], [])
    page = Page(write_report(results, tmp_path / "report.html", networks=networks))
    assert not any("onerror" in attributes for _, attributes in page.elements)
    assert any("Not judged" in text for text in page.texts["p"])
    program = page.texts["code"][-1]
    compile(program, "program", "exec")
    assert eval(program.split("config = ")[1].split("\n")[0], {"ja": ja}) == replace(config, dataset=path.name)


def test_networks_of_another_run_are_left_out(small_results, small_model, tmp_path):
    path = tmp_path / "networks" / f"{NAME}_seed0.safetensors"
    ja.save_model(small_model, path, {"training": json.dumps({"seed": 0, "data": {"other": "data"}})})
    networks, notes = networks_beside(small_results, tmp_path)
    assert networks == {}
    assert notes == [f"{path.name} belongs to another run than the results"]
    path.write_bytes(b"damaged")
    networks, notes = networks_beside(small_results, tmp_path)
    assert networks == {}
    assert "unreadable" in notes[0]


@pytest.mark.parametrize(
    ("name", "networks", "message"),
    [
        ("folder.html", {}, "got a folder"),
        ("report.pdf", {}, "ends in .html"),
        ("report.html", {"another": ja.MLP(784, (10,), 10, rngs=nnx.Rngs(0))}, "expected names among"),
        ("report.html", {NAME: ja.MLP(784, (10, 8, 2), 10, rngs=nnx.Rngs(0))}, r"layers of \[10, 8, 9\] neurons"),
    ],
)
def test_bad_input_is_refused(small_results, tmp_path, name, networks, message):
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(ja.InputError, match=message):
        write_report(small_results, tmp_path / name, networks=networks)
    assert [file.name for file in tmp_path.iterdir()] == ["folder.html"]


def test_scores_that_are_all_equal_or_undefined_are_drawn(small_results, tmp_path):
    results = small_results.copy(deep=True)
    scores = results[NAME]["scores"].values
    scores[:, 0], scores[:, 1] = 0.5, np.nan
    text = write_report(results, tmp_path / "report.html", verdicts=[]).read_text()
    assert "undefined for every neuron" in text
    assert not re.search(r"\bnan\b", html.unescape(text).replace(meaning_of("published"), ""), re.IGNORECASE)


def test_neurons_without_a_score_are_not_ranked(small_results, tmp_path):
    results = small_results.copy(deep=True)
    network = results[NAME]
    of_layer = np.flatnonzero(network["layer"].values == 2)
    network["scores"].values[0, 1, of_layer[:5]] = np.nan  # of mutual information
    network["joint_counts"].values[0, :, 7] = 0
    page = Page(write_report(results, tmp_path / "report.html", verdicts=[]))
    assert any("1 of 3" in text for text in page.rows())
    assert not any("undefined" in text for text in page.rows() if "of 3" in text)
    assert any("(5 neurons without it are not ranked)" in text for text in page.texts["caption"])
    assert "class 7: no images" in page.texts["title"]


@pytest.mark.slow
def test_words_are_true_of_other_studies(mnist5k, tmp_path):
    test = {"test_images": mnist5k.test.images[:200], "test_labels": mnist5k.test.labels[:200]}
    train = {"train_images": mnist5k.train.images[:300], "train_labels": mnist5k.train.labels[:300]}
    np.savez(tmp_path / "data.npz", **train, **test)
    config = ja.StudyConfig(
        dataset=tmp_path / "data.npz", networks=((4,),), epochs=1, num_random_orders=2, steps=2, quantizer="quantile:4",
        scores=("incoming_norm", "entropy"), extra_fills=("median", "class_mean", "resample"),
    )  # fmt: skip
    path = write_report(ja.run_study(config), tmp_path / "report.html")
    text = path.read_text()
    assert "mean of the neuron&#39;s code" in text
    assert "code is 1" not in text
    assert re.findall(r">([^<]*)</text>", text).count("incoming norm") == 2, (
        "which is not in nats: one violin, and one chart of damage"
    )
    assert "Entropy (nats)" in text
    figure = text.split("low first; resample")[0].rsplit('<figure class="chart">', 1)[1]
    looks = re.findall(r'<g class="series ([^"]*)"', figure)
    assert len(set(looks)) == len(looks) == 10
    assert re.search(r'<g class="series color1"><path class="line" d="M[^L]*h8"', text), "one epoch is still seen"
    page = Page(path)
    assert "Under the protocol “paper”" not in page.texts["h2"]
    published = ja.run_study(replace(config, protocols=("published",), quantizer="activation", extra_fills=()))
    page = Page(write_report(published, tmp_path / "report.html"))
    assert "Under the protocol “published”" in page.texts["h2"]
    assert any("mutual information is H(T) + H(T|Y); 0 log 0 is NaN" in text for text in page.texts["p"])


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.25, "0.2 s"), (3.4, "3 s"), (119.6, "120 s"), (1790, "30 min"), (3599, "1 h 0 min")]
)
def test_time_is_read_at_a_glance(small_results, seconds, words):
    results = small_results.copy()
    results.attrs["seconds"] = seconds
    assert cards_of(results)[-1][:2] == ("Time", words)


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("Chromium is not installed")
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=program, args=arguments)
        yield browser
        browser.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1200])
def test_in_a_browser(browser, path, width, scheme, small_results):
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page, complaints, requests = context.new_page(), [], []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(path.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth === 28)")
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 26)"}[scheme]

    figure = page.locator("figure.chart", has=page.locator(f"h3:has-text('{NAME} network, layer 2: low')")).first
    figure.scroll_into_view_if_needed()
    button, curve = figure.locator(".legend button").nth(2), figure.locator("g.series").nth(2)
    assert button.inner_text() == "MI, low first"
    assert curve.is_visible()
    box = figure.locator(":scope > svg").bounding_box()

    def read(fraction):
        """Read the values at this fraction of the picture's width."""
        page.mouse.move(box["x"] + fraction * box["width"], box["y"] + box["height"] / 2)
        return figure.locator(".readout")

    tooltip = read(432 / 440).inner_text()  # the right end of the axis: the last step
    accuracy = small_results[NAME]["accuracy"].sel(scope="layer2", fill="mean", ordering="mutual_information_low")
    assert tooltip.startswith("Ablated neurons: 6")
    assert f"MI, low first: {100 * float(accuracy[:, -1].mean()):.2f}%" in tooltip
    button.click()
    assert button.get_attribute("aria-pressed") == "false"
    assert not curve.is_visible()
    assert "MI, low first" not in read(72 / 440).inner_text()
    bands = figure.locator(".band")
    assert bands.nth(2).evaluate("of => getComputedStyle(of).display") == "none"
    assert bands.nth(1).evaluate("of => getComputedStyle(of).display") != "none"
    assert figure.locator(".readout").bounding_box()["y"] >= box["y"] + box["height"] - 1, "curves are not covered"
    assert "Ablated neurons: 0" in read(72 / 440).inner_text()
    button.click()
    assert curve.is_visible()
    figure.locator(":scope > svg").focus()
    for key in ("ArrowRight", "ArrowRight"):
        page.keyboard.press(key)
    assert figure.locator(".readout b").inner_text().startswith("Ablated neurons:")
    page.mouse.move(0, 0)
    assert complaints == []
    assert [url for url in requests if not url.startswith(("data:", "file:"))] == []
    context.close()


def test_values_stay_when_a_finger_is_lifted(browser, path):
    context = browser.new_context(viewport={"width": 390, "height": 800}, has_touch=True)
    page = context.new_page()
    page.goto(path.as_uri())
    figure = page.locator("figure.chart", has=page.locator(f"h3:has-text('{NAME} network, layer 2: low')")).first
    figure.locator(":scope > svg").tap()
    assert "MI, low first" in figure.locator(".readout").inner_text()
    figure.locator(".legend button").nth(2).tap()
    assert not figure.locator(".readout").is_visible(), "which would show what was hidden"
    figure.locator(":scope > svg").tap()
    assert "MI, low first" not in figure.locator(".readout").inner_text()
    context.close()


def test_it_prints(browser, path):
    page = browser.new_page()
    page.goto(path.as_uri())
    page.emulate_media(media="print")
    assert not page.locator("nav").is_visible()
    assert len(page.pdf()) > 100_000
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate("[...document.querySelectorAll('details')].every(of => of.open)")
    page.close()


# Settings of a study that only describe how it trains networks.
TRAINING = ("epochs", "batch size", "learning rate", "l2", "dropout", "batch norm", "label noise", "initial weights")


@pytest.fixture(scope="module")
def passed():
    """A config whose settings of training are its defaults, networks that were passed, and the results."""
    config = ja.StudyConfig(
        dataset="mnist5k", seeds=(4, 5), scores=("entropy",), quantizer="mean", num_random_orders=2, steps=2,
        extra_fills=("resample",),
    )  # fmt: skip
    networks = {"chain": [KINDS["chain"](seed) for seed in (0, 1)]}
    networks["mlp"] = [ja.MLP(784, (4, 3), 10, activation="relu", rngs=nnx.Rngs(seed)) for seed in (0, 1)]
    return config, networks, ja.run_study(config, networks)


def facts(page):
    """The rows of the table of the origin."""
    return next(text for text in page.texts["table"] if "matmul precision" in text)


def program_of(page):
    """The last program or command on the page, and the sentence before it."""
    return page.texts["pre"][-1], [text for text in page.texts["p"] if "computes the same results" in text][-1]


def run_program(program, networks, folder, monkeypatch):
    """Fill the placeholders of a program with networks, run it, and return its names."""
    for name, of_name in networks.items():
        values = "..." if isinstance(of_name, nnx.Module) else "[..., ...]"
        assert f"{name!r}: {values}" in program
        program = program.replace(f"{name!r}: {values}", f"{name!r}: given[{name!r}]")
    monkeypatch.chdir(folder)
    names = {"given": networks}
    exec(program, names)
    return names


@pytest.mark.slow
def test_nothing_is_said_of_a_training_that_the_study_did_not_do(passed, tmp_path):
    path = write_report(passed[2], tmp_path / "report.html", networks={"mlp": passed[1]["mlp"][0]}, verdicts=[])
    page, text = Page(path), path.read_text()
    for word in TRAINING:
        assert not re.search(rf"\b{word.replace(' ', '[ _]')}\b", text, re.IGNORECASE), word
    assert "Did the networks learn?" not in text
    assert "optax" not in text
    cards = [card for card in page.texts["p"] if "of the intact networks" in card]
    assert [card.split("; ", 1)[1] for card in cards] == [
        "first with 9 neurons, second with 7 neurons, NNX module Sequential; 1,000 test images; "
        "not trained by this study",
        "4 + 3 neurons, relu; 1,000 test images; not trained by this study",
    ]
    rows = facts(page)
    parameters = 784 * 9 + 9 + 9 * 7 + 7 + 7 + 7 + 7 * 10
    kind = "NNX module Sequential, not trained by this study"
    assert f"{kind}; neurons: first (9), second (7); parameters: {parameters:,}" in rows
    assert "activation function: relu" in rows
    assert "4, 5, of random orders, fills and scores; no network depends on them" in rows
    for name in ("chain", "mlp"):
        for number, checksum in enumerate(passed[2][name]["model_sha256"].values, 1):
            assert f"SHA-256 of the state of {name}, {number} of 2{checksum}" in rows
        assert any(text.startswith(f"{name} network, the first of 2: by") for text in page.texts["caption"])
    assert "Pictures: incoming weights" in text
    assert "Pictures: incoming weights" not in write_report(passed[2], path, verdicts=[]).read_text()


@pytest.mark.slow
def test_the_program_for_passed_networks_gives_the_same_results(passed, tmp_path, monkeypatch):
    config, networks, results = passed
    program, words = program_of(Page(write_report(results, tmp_path / "page.html", verdicts=[])))
    assert "first replace ... in the lines marked as placeholders" in words
    assert "# placeholders: your networks" in program
    names = run_program(program, networks, tmp_path, monkeypatch)
    settings = {name: getattr(names["config"], name) for name in vars(config)}
    assert settings == vars(config) | {"networks": ()}
    for name in networks:
        again, before = names["results"][name].to_dataset(), results[name].to_dataset()
        assert again.identical(before)
    assert (tmp_path / "report.html").exists()


@pytest.mark.slow
def test_the_program_for_data_in_memory_gives_the_same_results(mnist5k, tmp_path, monkeypatch):
    config = ja.StudyConfig(scores=("entropy",), quantizer="mean", num_random_orders=1, steps=1)
    model, test = KINDS["chain"](), mnist5k.test
    data = ja.Dataset.from_arrays(test.images, test.labels)
    results = ja.run_study(config, {"chain": model}, data=data)
    program, _ = program_of(Page(write_report(results, tmp_path / "page.html")))
    assert "\ndata = ...  # placeholder: your dataset" in program
    neurons = np.ones((1, results["chain"].sizes["neuron"]), bool)
    intact = ja.evaluate_masks(model, neurons, data.test.images, data.test.labels)
    assert f"'chain': ...,  # NNX module Sequential; {int(intact[0])} correct" in program
    given = {"chain": model, "data": data}
    program = program.replace("data = ...", "data = given['data']")
    monkeypatch.chdir(tmp_path)
    names = {"given": given}
    exec(program.replace("'chain': ...", "'chain': given['chain']"), names)
    assert names["results"]["chain"].to_dataset().identical(results["chain"].to_dataset())


def test_a_page_names_files_whose_names_are_no_utf8(small_results, tmp_path):
    """As from old archives: Python stands for the byte E9 by a lone surrogate."""
    results = small_results.copy()
    config = json.loads(results.attrs["config"]) | {"dataset": "donn\udce9es.npz"}
    results.attrs = results.attrs | {"config": json.dumps(config)}
    page = write_report(results, tmp_path / "page.html", verdicts=[]).read_text()
    assert r"donn\udce9es.npz" in html.unescape(page)


def test_the_page_says_how_passed_data_were_split(mnist5k, tmp_path):
    """The split seed of the settings does not count then."""
    np.savez(tmp_path / "pair.npz", X=np.asarray(mnist5k.test.images[:600]), y=np.asarray(mnist5k.test.labels[:600]))
    data = ja.load_dataset(tmp_path / "pair.npz", seed=7)
    config = ja.StudyConfig(scores=("entropy",), num_random_orders=1, steps=1)
    results = ja.run_study(config, {"mine": ja.MLP(784, (5,), 10, rngs=nnx.Rngs(0))}, data=data)
    ja.results.save_results(results, tmp_path / "results.nc")
    loaded = ja.results.load_results(tmp_path / "results.nc")
    text = write_report(loaded, tmp_path / "page.html").read_text()
    assert "images X and labels y, split at random into three splits by seed 7" in text
    assert "split_seed" not in text
    assert "data = ...  # placeholder: your dataset" in html.unescape(text)


def test_networks_and_scores_of_the_page_are_the_users(mnist5k, tmp_path, monkeypatch):
    monkeypatch.setitem(ja.scores.SCORES, "range", lambda evidence: np.ptp(evidence.activations, axis=0))
    images, labels = mnist5k.test.images[:300], mnist5k.test.labels[:300]
    data = ja.Dataset.from_arrays(images, labels)
    model, second = (ja.MLP(784, (5,), 10, rngs=nnx.Rngs(seed)) for seed in (0, 1))
    kernels, biases = zip(*(map(np.asarray, stage.weights) for stage in model.stages), strict=True)
    tanh = ja.models.from_arrays(kernels, biases, activation="tanh")
    config = ja.StudyConfig(scores=("range",), num_random_orders=1, steps=1)
    results = ja.run_study(config, {"mine": model}, data=data)
    path = tmp_path / "page.html"
    program, _ = program_of(Page(write_report(results, path, networks={"mine": model}, data=data)))
    assert "\nja.scores.SCORES['range'] = ...  # placeholder: your score\n" in program
    with raises_input_error("networks: the checksum of mine differs from that in the results"):
        write_report(results, path, networks={"mine": second}, data=data)
    with raises_input_error(
        r"mine has \d+ of \d+ correct .*, and \d+ in the results; its arrays are the same, so pass the"
    ):
        write_report(results, path, networks={"mine": tanh}, data=data)


@pytest.mark.slow
def test_the_command_on_the_page_gives_the_same_results(small_data, tmp_path, monkeypatch):
    """From a PyTorch file whose name a shell would split, with options in any order."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    shapes = {"b.weight": (6, 784), "b.bias": (6,), "a.weight": (10, 6), "a.bias": (10,)}
    tensors = {name: random.normal(0, 0.1, shape).astype(np.float32) for name, shape in shapes.items()}
    save_file(tensors, "my net; $(x) 'y'.safetensors")
    options = ["--no-cache", "--steps", "50%", "--layers", "b,a", "--extra-fill", "resample", "--seed", "3"]
    options += ["--activation=tanh", "--dataset", str(small_data), "--score", "entropy", "--random-orders", "2"]
    line = ["ablate", *options, "--out", "curves.nc", "--report", "page.html", "my net; $(x) 'y'.safetensors"]
    assert CliRunner().invoke(jaxablate.cli.app, line).exit_code == 0
    page, results = Page(tmp_path / "page.html"), ja.results.load_results("curves.nc")
    command, words = program_of(page)
    assert "placeholder" not in words
    expected = [small_data.name if argument == str(small_data) else argument for argument in line]
    assert shlex.split(command) == ["jaxablate", *expected], "others may read it: no folder of this machine"
    assert str(small_data.parent) not in (tmp_path / "page.html").read_text()
    assert str(small_data.parent) not in json.dumps({str(name): str(value) for name, value in results.attrs.items()})
    Path(small_data.name).symlink_to(small_data)
    content = (tmp_path / "my net; $(x) 'y'.safetensors").read_bytes()
    rows = facts(page)
    for fact in (
        "my net; $(x) 'y'.safetensors", f"{len(content):,} bytes", hashlib.sha256(content).hexdigest(),
        "PyTorch state dict", "tanh, from --activation; the file does not name it", "b, a, from --layers",
        "not checked, since --reference was not given", "3, of random orders",
    ):  # fmt: skip
        assert fact in rows
    for word in TRAINING:
        assert word.replace(" ", "_") not in json.loads(results.attrs["config"])
    Path("curves.nc").unlink()
    assert CliRunner().invoke(jaxablate.cli.app, shlex.split(command)[1:]).exit_code == 0
    again = ja.results.load_results("curves.nc")
    (name,) = results.children
    assert again[name].to_dataset().identical(results[name].to_dataset())
    assert CliRunner().invoke(jaxablate.cli.app, ["report", "curves.nc"]).exit_code == 0
    assert program_of(Page(tmp_path / "report.html"))[0] == command, "also from the results"


@pytest.mark.slow
def test_trained_and_passed_networks_are_each_described(passed, small_results, small_model, tmp_path):
    """The API makes no such tree, but users can."""
    nodes = {NAME: small_results[NAME].to_dataset(), "chain": passed[2]["chain"].to_dataset()}
    root = xr.Dataset(attrs={**small_results.attrs, "config": json.dumps({"steps": 6, "l2": 0.5, "networks": [[8]]})})
    mixed = xr.DataTree.from_dict({"/": root, **nodes})
    page = Page(write_report(mixed, tmp_path / "report.html", networks={NAME: small_model}, verdicts=[]))
    cards = [card for card in page.texts["p"] if "of the intact networks" in card]
    assert ["not trained by this study" in card for card in cards] == [False, True]
    titles = [text for text in page.texts["h3"] if "training" in text]
    assert titles == [f"{NAME} network: training accuracy", f"{NAME} network: training loss"]
    assert f"network {NAME}trained by the study" in facts(page)
    assert "network chainNNX module Sequential, not trained by this study" in facts(page)
    assert f"The settings of training hold for {NAME} only." in page.texts["p"]
    trained, own = page.texts["pre"]
    assert "l2=0.5" in trained
    assert "l2" not in own
    assert "networks=()" in own
    assert "'chain': [..., ...]" in own


@pytest.mark.slow
def test_a_grid_of_passed_networks(passed, tmp_path, monkeypatch):
    config, networks, _ = passed
    grid = ja.run_study(replace(config, vary={"quantizer": ("mean", "positive")}), {"chain": networks["chain"]})
    assert "l2" not in json.loads(grid.attrs["config"])
    path = write_report(grid, tmp_path / "page.html")
    page, text = Page(path), path.read_text()
    for word in TRAINING:
        assert not re.search(rf"\b{word.replace(' ', '[ _]')}\b", text, re.IGNORECASE), word
    assert "2 of each kind, the same in each condition; not trained by this study" in page.texts["p"]
    assert "comparisons_paper.csv" not in text
    program, _ = program_of(page)
    again = run_program(program, {"chain": networks["chain"]}, tmp_path, monkeypatch)["results"]
    for name in ("quantizer=mean", "quantizer=positive"):
        assert again[name]["chain"].to_dataset().identical(grid[name]["chain"].to_dataset())


@pytest.mark.slow
def test_earlier_results_of_passed_networks_state_no_training(passed, tmp_path):
    """Results of earlier versions hold the settings of training, and lack kind and checksums."""
    earlier = passed[2].copy(deep=True)
    earlier.attrs["config"] = json.dumps({**json.loads(earlier.attrs["config"]), "l2": 0.5, "networks": [[200, 200]]})
    for node in earlier.children.values():
        del node.attrs["model"], node.attrs["num_parameters"], node["model_sha256"]
    ja.results.save_results(earlier, tmp_path / "earlier.nc")
    loaded = ja.results.load_results(tmp_path / "earlier.nc")
    text = write_report(loaded, tmp_path / "report.html", verdicts=[]).read_text()
    assert not re.search(r"\bl2\b", text)
    assert "unknown kind of network, not trained by this study" in text
    assert not any(difference.startswith("l2") for difference in ja.claims.departures_from_paper(loaded))


@pytest.mark.slow
def test_pictures_of_a_run_are_not_of_a_passed_network(passed, tmp_path):
    """A folder may hold a trained network of the same name, seed and widths."""
    results = passed[2]
    path = tmp_path / "networks" / "mlp_seed4.safetensors"
    training = {"data": json.loads(results.attrs["dataset_sha256"]), "seed": 4}
    ja.save_model(passed[1]["mlp"][1], path, {"training": json.dumps(training)})
    assert networks_beside(results, tmp_path) == ({}, [])


def test_the_summary_is_computed(path, page, small_results):
    network = small_results[NAME].to_dataset()
    text = next(text for text in page.texts["li"] if f"{NAME} networks classify" in text)
    intact = 100 * network["accuracy"].values[:, 0, 0, 0, 0]
    extent = f"from {intact.min():.1f}% to {intact.max():.1f}%"
    assert text.startswith(
        f"2 {NAME} networks classify {intact.mean():.1f}% of 1,000 test examples correctly, {extent}."
    )
    curves = network["accuracy"].sel(scope="network", fill="mean")[:, (network["ranking"] == "random").values].values
    below = 100 * (curves[..., :1] - curves) > 1 - 1e-9
    lost = np.where(below.any(axis=-1), below.argmax(axis=-1) - 1, 6).ravel()
    never = int((~below.any(axis=-1)).sum())
    median = int(np.sort(lost)[2])
    words = f"{median} of 27 neurons can be ablated before accuracy falls 1 point below that of the intact network"
    assert f"{words} (median of 6 curves, from {lost.min()} to {lost.max()}" in text
    assert (f"; {never} never fell that low in the 6 neurons" in text) == (never > 0)
    assert ("at least" in text) == (median == 6)
    compared = ja.results.compare_conditions(small_results).sel(condition="", network=NAME)
    chosen = [name for name in compared["comparison"].values if name.endswith(" - random")]
    assert not (compared.sel(comparison=chosen)["p_holm"] < 0.05).any(), "two networks prove nothing here"
    differences = compared["difference"].sel(comparison=chosen).values
    largest = differences[np.abs(differences).argmax()]
    assert f"no order differs significantly from random orders; the largest difference is {largest:+.1f} points" in text


def test_the_summary_names_orders_that_differ(small_results):
    network = small_results[NAME].to_dataset().copy(deep=True)
    many = xr.concat([network.isel(seed=0).assign_coords(seed=seed) for seed in range(6)], "seed")
    for name, attributes in ((name, network[name].attrs) for name in many.variables):
        many[name].attrs = attributes
    noise = np.random.default_rng(0).normal(0, 1e-3, many["accuracy"].shape)
    many["accuracy"] = many["accuracy"].transpose(*network["accuracy"].dims) * 0 + 0.5 + noise
    for ordering, shift in (("entropy_low", 0.1), ("kl_selectivity_high", -0.2)):
        many["accuracy"].loc[{"ordering": ordering, "scope": "network", "fill": "mean"}] += shift
    tree = xr.DataTree.from_dict({"/": xr.Dataset(attrs=small_results.attrs), NAME: many})
    (text,) = summarize_study(tree, "paper")
    assert re.search(
        r"entropy low first keeps the most accuracy \(\+10\.\d points from random orders, \+9\.9 to ", text
    )
    assert re.search(r"KL high first keeps the least \(-(19\.9|20\.\d) points", text)


def test_the_embedded_images_are_not_the_papers(page, passed, tmp_path):
    assert any("not the paper's numbers" in text for text in page.texts["p"])
    _, _, results = passed
    single = Page(write_report(results, tmp_path / "own.html"))
    assert not any("not the paper's numbers" in text for text in single.texts["p"]), "nobody expects them"
    assert not any("claims" in text or "comparisons say" in text for text in single.texts["h2"]), "no empty section"


def test_more_scores_than_fit_one_chart_take_two(small_results):
    network = small_results[NAME].to_dataset()
    assert [chart.subtitle for chart in order_charts("net", network, "layer1")] == [
        "low and high values first, bias balanced"
    ]
    more = network["scores"].sel(score=["entropy"]).assign_coords(score=["mine"])
    scores = xr.concat([network["scores"], more], "score")
    orderings = network.sel(ordering=["entropy_low", "entropy_high"])
    orderings = orderings.assign_coords(ordering=["mine_low", "mine_high"], ranking=("ordering", ["mine", "mine"]))
    four = xr.concat([network.drop_dims("score"), orderings.drop_dims("score")], "ordering", data_vars="minimal")
    four = four.assign(scores=scores).assign_attrs(network.attrs)
    low, high = order_charts("net", four, "layer1")
    assert (low.subtitle, high.subtitle) == ("low values first, bias balanced", "high values first, bias balanced")
    assert len({line.color for line in low.lines}) == 5
    assert low.lines[-1].name == "mine (= Entropy)", "the same order, so that one curve hides the other"


def test_texts_name_what_the_charts_show(small_results):
    """Abbreviations of scores that are drawn, and dashed lines only if a chart has them."""
    sections = {section.question: section.see for section in sections_of(small_results, "paper", {}, {}, first=True)}
    ranking, balancing = (sections[QUESTIONS[i]] for i in (4, 3))
    assert "dashed line of its colour" in ranking
    assert ranking.endswith("MI: mutual information, KL: KL selectivity.")
    assert balancing.endswith("MI: mutual information.")


@pytest.mark.slow
def test_texts_of_five_other_scores(five_scores):
    text = five_scores.read_text()
    assert "a score&#39;s line with low values first stays above random" in text
    assert "MI: mutual information" not in text
    assert "dashed line of its colour (" not in text


def test_shares_are_stacked(small_results):
    chart = svg_chart(share_charts(NAME, small_results[NAME].to_dataset())[0])
    edges = []
    for line in chart["series"]:
        points = np.array([point.split(",") for point in line["band"].strip("MZ").split("L")], float)
        count = len(points) // 2
        edges.append((points[:count, 1], points[count:, 1][::-1]))  # the upper edge, and the lower one
    bottom, top = (chart["y_axis"].position(share) for share in (0, 1))
    np.testing.assert_allclose(edges[0][1], bottom)
    for (upper, _), (_, lower) in itertools.pairwise(edges):
        np.testing.assert_array_equal(upper, lower)
    np.testing.assert_allclose(edges[-1][0], top, atol=0.06)


def test_points_are_scores_and_damage(small_results):
    network = small_results[NAME].to_dataset()
    chart = svg_chart(damage_chart(NAME, network, "entropy", slice(1)))
    points = [
        np.array([re.split("[,h]", point) for point in group["path"].split("M")[1:]], float)
        for group in chart["groups"]
    ]
    assert [len(p) for p in points] == [10, 8, 9]
    points, lengths = np.split(np.concatenate(points), [2], axis=1)
    assert (lengths > 0).all(), "a PDF has no square ends of a line without length"
    x = chart["x_axis"].position(network["scores"].sel(score="entropy").values[0])
    y = chart["y_axis"].position(network["single_damage"].values[0])
    np.testing.assert_allclose(points, np.stack([x, y], axis=1), atol=0.06)


def test_examples_have_the_highest_activations(small_results, small_model, mnist5k, tmp_path):
    networks = {NAME: small_model}
    text = write_report(small_results, tmp_path / "page.html", networks=networks, data=mnist5k).read_text()
    activations = np.concatenate(
        [np.asarray(a) for a in ja.record_activations(small_model, mnist5k.test.images)], axis=1
    )
    pattern = r"<td>layer\d/\d+, id (\d+)</td>.*?base64,([^\"]+)\"[^>]*>classes ([\d ]+)<"
    rows = [found.groups() for row in text.split("</tr>") if (found := re.search(pattern, row, re.DOTALL))]
    assert len(rows) == 2 * 18, "three neurons at each end of three layers, under two protocols"
    for neuron, strip, classes in rows:
        highest = np.argsort(-activations[:, int(neuron)], kind="stable")[:5]
        assert classes == " ".join(map(str, mnist5k.test.labels[highest]))
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(strip))), float)
        expected = 255 * np.concatenate(list(np.asarray(mnist5k.test.images[highest])), axis=1)
        np.testing.assert_allclose(pixels, expected, atol=1)
    changed = dataclasses.replace(mnist5k, source=dataclasses.replace(mnist5k.source, sha256={"a": "b"}))
    for arguments, message in (
        ({"data": mnist5k}, "data: without networks there are no activations"),
        ({"networks": networks, "data": changed}, "data: the checksums differ from mnist5k in the results"),
        ({"networks": networks, "data": mnist5k.test}, "data: expected a dataset"),
    ):
        with raises_input_error(message):
            write_report(small_results, tmp_path / "other.html", **arguments)
    assert not (tmp_path / "other.html").exists()


def test_rows_of_a_table_are_named_by_number():
    random = np.random.default_rng(0)
    images, labels = random.normal(size=(60, 4)).astype(np.float32), np.arange(60) % 3
    data = ja.Dataset.from_arrays(images, labels, test=(images[:30], labels[:30]))
    model = ja.MLP(4, (3,), 3, rngs=nnx.Rngs(0))
    examples = Examples(model, data).of_neuron(1)
    highest = np.argsort(-np.asarray(ja.record_activations(model, data.test.images)[0])[:, 1], kind="stable")[:5]
    classes = " ".join(str(labels[row]) for row in highest)
    assert examples == {"picture": "", "text": f"rows {', '.join(map(str, highest))}; classes {classes}"}


@pytest.fixture(scope="module")
def five_scores(mnist5k, tmp_path_factory):
    """The page of one network with five scores, complete curves and classes."""
    model = ja.train(mnist5k, (9, 7), epochs=2)[0]
    config = ja.StudyConfig(
        dataset="mnist5k", networks=(), steps="all", num_random_orders=3, by_class=True,
        scores=("entropy", "taylor", "class_selectivity", "activation_variance", "incoming_norm"),
    )  # fmt: skip
    results = ja.run_study(config, {"mine": model})
    return write_report(
        results, tmp_path_factory.mktemp("five") / "report.html", networks={"mine": model}, data=mnist5k
    )


CLIPPED = """() => [...document.querySelectorAll("figure.chart > svg")].flatMap(svg => {
  const frame = svg.getBoundingClientRect();
  return [...svg.querySelectorAll("text")].filter(text => {
    const box = text.getBoundingClientRect();
    return box.left < frame.left - 0.5 || box.right > frame.right + 0.5
      || box.top < frame.top - 0.5 || box.bottom > frame.bottom + 0.5;
  }).map(text => text.textContent);
})"""
OVERLAPPING = """() => [...document.querySelectorAll("figure.chart > svg")].flatMap(svg => {
  const boxes = [...svg.querySelectorAll("text")].map(text => [text.textContent, text.getBoundingClientRect()]);
  return boxes.flatMap(([a, p], i) => boxes.slice(i + 1).filter(([b, q]) =>
    p.left < q.right - 1 && q.left < p.right - 1 && p.top < q.bottom - 4 && q.top < p.bottom - 4).map(([b]) => [a, b]));
})"""
LOOKS = """() => [...document.querySelectorAll("figure.chart")].map(figure => {
  const looks = [...figure.querySelectorAll(".legend .series path")].map(path => {
    const style = getComputedStyle(path);
    return style.stroke + style.strokeDasharray + style.fill;
  });
  return [figure.querySelector("h3").textContent, looks.length, new Set(looks).size];
})"""


@pytest.mark.parametrize(("kind", "width"), [("five scores", 400), ("two networks of each kind", 1280)])
def test_layout_in_a_browser(browser, path, five_scores, width, kind):
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.goto((five_scores if kind == "five scores" else path).as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(CLIPPED) == []
    assert page.evaluate(OVERLAPPING) == []
    for title, curves, looks in page.evaluate(LOOKS):
        assert curves == looks, f"{title}: two curves look the same"
    figures = page.locator("figure.chart", has=page.locator(".readout"))
    for number in (0, figures.count() - 1):
        figure = figures.nth(number)
        figure.scroll_into_view_if_needed()
        before = page.evaluate("[scrollY, ...[...document.querySelectorAll('h2, figure')].map(e => e.offsetTop)]")
        box = figure.locator(":scope > svg").bounding_box()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        assert figure.locator(".readout").is_visible()
        assert before == page.evaluate(
            "[scrollY, ...[...document.querySelectorAll('h2, figure')].map(e => e.offsetTop)]"
        )
    page.close()


def test_accuracies_that_do_not_follow_from_the_counts_are_refused(small_results, tmp_path):
    name = next(iter(small_results.children))
    for variable, factor in (("accuracy", 100), ("correct", 2)):
        changed = small_results.copy(deep=True)
        changed[name][variable] = changed[name][variable] * factor
        with raises_input_error(f"results: the accuracy of {name} is not the fraction of correct predictions"):
            write_report(changed, tmp_path / "page.html")
        ja.results.save_results(changed, tmp_path / "changed.nc")
        with raises_input_error(f"changed.nc: the accuracy of {name} .*is not the fraction of correct predictions"):
            ja.results.load_results(tmp_path / "changed.nc")
    assert not (tmp_path / "page.html").exists()


def test_two_runs_are_compared_on_a_page(small_results, tmp_path):
    """Its numbers equal `ja.compare`; it names the settings that differ, and both origins."""
    second = small_results.copy(deep=True)
    config = json.loads(second.attrs["config"])
    second.attrs["config"] = json.dumps({**config, "l2": 0.25})
    for node in second.subtree:
        if "accuracy" in node.data_vars:
            node["correct"] = node["correct"] * 9 // 10  # -1 marks what was not evaluated, and stays
            node["accuracy"] = node["correct"].where(node["correct"] >= 0) / node.attrs["num_test_examples"]
    page = Page(write_comparison(small_results, second, tmp_path / "page.html", names=("<mine>", "other")))
    rows = [row.replace(" ", "") for row in page.rows()]
    assert f"l2{config['l2']}0.25" in rows
    assert not [row for row in rows if row.startswith("epochs")], "an equal setting"
    compared = ja.compare(small_results, second)
    for network in ("2-layer-12-10", NAME, f"published/{NAME}"):
        table = compared[network].to_dataset()
        cell = table.sel(scope="network", ordering="entropy_low", fill=table["fill"].values[1])
        text = "{:+.2f}[{:+.2f},{:+.2f}]".format(*(float(cell[name]) for name in ("difference", "low", "high")))
        assert f"entropylow{text}" in rows
        both = [(100 * tree[network]["accuracy"][:, 0, 0, 0, 0]).mean() for tree in (small_results, second)]
        assert any(row.startswith(f"{network}{both[0]:.2f}{both[1]:.2f}+") for row in rows)
    assert "<mine> minus other" in page.texts["h1"]
    titles = [title for title, *_ in charts(tmp_path / "page.html")]
    assert len([title for title in titles if title.startswith("other: ")]) == len(titles) / 2 > 0
    assert len([row for row in rows if row.startswith("SHA-256of")]) > 0


def test_pages_of_comparisons_that_make_no_sense_are_refused(small_results, tmp_path):
    with raises_input_error("names: expected two different texts"):
        write_comparison(small_results, small_results, tmp_path / "page.html", names=("a", "a"))
    with raises_input_error("by: unknown 'area'"):
        write_comparison(small_results, small_results, tmp_path / "page.html", by="area")
    assert not list(tmp_path.iterdir())


def test_the_command_writes_the_page_of_a_comparison(small_results, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        ja.results.save_results(small_results, tmp_path / name / "results.nc")
    command = ["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--report", str(tmp_path / "page.html")]
    assert CliRunner().invoke(jaxablate.cli.app, command).exit_code == 0
    assert "a minus b" in Page(tmp_path / "page.html").texts["h1"]
    assert "All settings are equal." in Page(tmp_path / "page.html").rows()
