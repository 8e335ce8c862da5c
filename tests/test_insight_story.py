"""The page of an explanation: what it says is what was computed, and it is safe and readable."""

import base64
import dataclasses
import io
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from browser import Scripts, needs_browser, opened
from PIL import Image

from convjax import run
from convjax.combine import loop, serial, stack
from convjax.config import Data, Experiment, Loss, Model, UserError
from convjax.data import Dataset
from convjax.flags import guard
from convjax.insight.explanation import pictures
from convjax.insight.explanation.attribution import gradient
from convjax.insight.explanation.story import findings as computed
from convjax.insight.explanation.story.chapters import chapters
from convjax.insight.explanation.story.explain import Options, pages_of
from convjax.insight.explanation.story.planned import planned
from convjax.layers import conv, dense, max_pool
from convjax.ops import flatten, global_avg_pool, relu
from convjax.runlog import RunLog
from convjax.trained import Trained
from convjax.training.feed import in_memory
from convjax.training.step import normalise
from experiments import explain as launcher

HOSTILE = "<img src=x onerror=alert(1)>"
CLASSES = ("dark", HOSTILE, "light")
FEW = Options(among=8, steps=2)


def greys(split, data_dir):
    """Dark, grey and light pictures, twelve of each split."""
    if split not in ("train", "test"):
        raise ValueError(f"there is no split {split!r}")
    draw = np.random.default_rng(len(split))
    labels = np.arange(12, dtype=np.int32) % 3
    light = labels[:, None, None, None] * 80 + draw.integers(0, 90, (12, 8, 8, 1))
    return Dataset(light.astype(np.uint8), labels, CLASSES)


def tiny(classes):
    return serial(
        *(conv(10, 3), relu, max_pool(2), conv(4, 3, padding="VALID"), relu),
        *(flatten, dense(classes)),
    )


def headless(classes):
    return serial(conv(classes, 3), relu, global_avg_pool)


def flat(classes):
    return serial(flatten, dense(8), relu, dense(classes))


def untrained(folder, network):
    """What `trained` gives, with random numbers in place of training."""
    data = in_memory(greys("test", None))
    net = network(len(CLASSES))
    params, state = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, *data.shape)))
    draw = np.random.default_rng(0)

    def drawn(leaf):
        scale = np.sqrt(2 / max(1, np.prod(leaf.shape[:-1])))
        return jnp.asarray(draw.normal(size=leaf.shape, scale=scale).astype(np.float32))

    params = jax.tree.map(drawn, params)
    config = Experiment(model=Model("tiny"), data=Data("greys"))
    prepare = normalise(np.array([0.4]), np.array([0.3]))
    model = (net, params, state, prepare, data.shape, CLASSES, {"test": data})
    return Trained(RunLog(folder), config, "newest", *model)


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """The pages of two images, of which the second is of the hostile class, and their findings."""
    model, kept = untrained(tmp_path_factory.mktemp("story"), tiny), []
    compute = computed.findings

    def keeping(*given, **options):
        kept.append((*given[:2], compute(*given, **options)))
        return kept[-1][2]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(computed, "findings", keeping)
        pages = list(pages_of(model, indices=[0, 1], options=FEW))
    return pages, kept


@pytest.fixture(scope="module")
def pages(told):
    return told[0]


@pytest.fixture(scope="module")
def found(told):
    return told[1][1]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run of one step."""
    folder = tmp_path_factory.mktemp("run")
    config = Experiment(
        epochs=1,
        batch_size=12,
        eval_batch_size=12,
        model=Model("test_insight_story:flat"),
        data=Data("test_insight_story:greys"),
    )
    with open(folder / "out", "w") as out:
        run.train(config, folder / "run", out=out)
    return folder / "run"


def text_of(page):
    """The page's text as one line."""
    body = re.sub(r"<style>.*?</style>", "", page.read_text(), flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]*>", " ", body).split())


# -- What is computed ------------------------------------------------------------------------------


def test_the_error_sends_back_the_gradient_of_the_cross_entropy(found):
    model, _, story = found
    image = model.prepare(jnp.asarray(story.pixels[None]))

    def loss(image):
        logits, _ = model.net.apply(model.params, model.state, image)
        return -jax.nn.log_softmax(logits)[0, 1]

    expected = np.asarray(jax.jit(jax.grad(loss))(image))
    np.testing.assert_allclose(story.error["images"], expected[0], atol=1e-6)
    np.testing.assert_allclose(story.norms["images"], np.linalg.norm(expected), rtol=1e-5)
    shares = np.asarray(jax.nn.softmax(model.logits(story.pixels[None]))[0])
    np.testing.assert_allclose(story.error["dense1"], shares - [0, 1, 0], atol=1e-6)


def test_what_the_run_minimised_is_told_where_it_is_no_plain_cross_entropy(found):
    model, plan, story = found
    smoothed = Loss("focal", label_smoothing=0.1)
    for loss, said in (
        (Loss(), ""),
        (Loss(label_smoothing=0.1), "targets smoothed by 0.1"),
        (smoothed, "the loss focal and targets smoothed by 0.1"),
    ):
        config = dataclasses.replace(model.config, loss=loss)
        own = dataclasses.replace(model, config=config)
        nothing = computed.Excited({}, story.pixels[:0])
        assert chapters(own, plan, story, nothing)["error"]["trained"] == said


def test_the_loss_of_a_class_that_is_out_of_the_question_is_the_gap_of_the_logits(found):
    model, plan, story = found
    nothing = computed.Excited({}, story.pixels[:0])
    far = story._replace(logits=np.array([900, 0, -5], np.float32))
    assert chapters(model, plan, far, nothing)["error"]["loss"] == "900.0"


def test_the_two_classes_are_the_vote_and_the_label_or_the_runner_up(found):
    model, plan, story = found
    order = [int(label) for label in np.argsort(-story.logits)]
    for label, expected in (
        (None, order[:2]),
        (order[0], order[:2]),
        (order[2], [order[0], order[2]]),
    ):
        with ThreadPoolExecutor(1) as workers:
            found = computed.findings(model, plan, story.pixels, label, workers=workers)
        assert list(found.classes) == expected


def test_votes_and_slopes_are_those_of_the_image(found):
    model, _, story = found
    logits = np.asarray(model.logits(story.pixels[None]))[0]
    np.testing.assert_allclose(story.logits, logits, atol=1e-6)
    for label in range(3):
        total = story.votes.of(label).astype(np.float64).sum() + story.votes.bias[label]
        np.testing.assert_allclose(total, logits[label], atol=1e-5)
    images = jnp.tile(model.prepare(jnp.asarray(story.pixels[None])), (2, 1, 1, 1))
    expected = gradient(model.net, model.params, model.state, images, jnp.array(story.classes))
    np.testing.assert_allclose(story.maps["gradient"], expected, atol=1e-6)
    np.testing.assert_allclose(
        story.places.sum((1, 2)) + story.votes.bias[list(story.classes)],
        logits[list(story.classes)],
        atol=1e-5,
    )


def test_a_pattern_chooses_the_convolutions_that_are_told_of(found):
    model, plan, _ = found
    assert [each.conv.path for each in plan.convs] == ["conv1", "conv2"]
    few = planned(model, most=1)
    assert ([each.conv.path for each in few.convs], few.left_out) == (["conv1"], ["conv2"])
    one = planned(model, "*2")
    assert ([each.conv.path for each in one.convs], one.left_out) == (["conv2"], ["conv1"])
    assert [call.path for call in plan.convs[0].after] == ["relu1", "max_pool1"]
    with pytest.raises(UserError, match="--layers=conf2 matches no convolution: did you mean"):
        planned(model, "conf2")


def test_of_a_deep_network_the_convolutions_with_windows_are_told_of(tmp_path):
    def deep(classes):
        blocks = [serial(conv(4, 1), relu, conv(4, 3), relu) for _ in range(7)]
        return serial(*blocks, global_avg_pool, dense(classes))

    plan = planned(untrained(tmp_path, deep))
    told = [each.conv.path for each in plan.convs]
    assert told == [f"serial{block}/conv2" for block in (1, 2, 3, 5, 6, 7)]
    assert len(plan.left_out) == 8


def test_each_call_of_a_stack_is_told_of_with_its_own_features_and_gradient(tmp_path):
    def stacked(classes):
        return serial(
            *(conv(4, 3), stack(2, serial(conv(4, 3), relu)), loop(2, conv(4, 3))),
            *(flatten, dense(classes)),
        )

    model = untrained(tmp_path, stacked)
    plan = planned(model)
    turns = ["stack1/body@1/conv1", "stack1/body@2/conv1", "loop1/body@1", "loop1/body@2"]
    assert [each.conv.path for each in plan.convs] == ["conv1", *turns]
    assert [call.path for call in plan.convs[2].after] == ["stack1/body@2/relu1"]
    assert [plan.fields[path].size for path in turns] == [(5, 5), (7, 7), (9, 9), (11, 11)]
    [pixels] = model.images([0])
    with ThreadPoolExecutor(1) as workers:
        found = computed.findings(model, plan, pixels, 0, workers=workers)

    def maps(shift):
        image = model.prepare(jnp.asarray(pixels[None]))
        x = conv(4, 3).apply(model.params["conv1"], {}, image)[0]
        for turn in range(2):
            stacked = model.params["stack1"]["body"]["conv1"]
            own = {name: leaf[turn] for name, leaf in stacked.items()}
            x = conv(4, 3).apply(own, {}, x)[0]
            x = relu(x + shift if turn else x)
        for _ in range(2):
            x = conv(4, 3).apply(model.params["loop1"]["body"], {}, x)[0]
        logits = x.reshape(1, -1) @ model.params["dense1"]["kernel"]
        return -jax.nn.log_softmax(logits + model.params["dense1"]["bias"][None])[0, 0], x

    slope, last = jax.jit(jax.grad(maps, has_aux=True))(jnp.zeros((1, 8, 8, 4)))
    np.testing.assert_allclose(found.error[turns[1]], slope[0], atol=1e-5)
    np.testing.assert_allclose(found.there[turns[3]], last[0], rtol=1e-4, atol=1e-4)
    nothing = computed.Excited({}, pixels[None][:0])
    told = chapters(model, plan, found, nothing)
    assert [each["path"] for each in told["convs"]] == ["conv1", *turns]
    assert told["repeated"]


# -- What the page says ----------------------------------------------------------------------------


def test_the_pages_lie_in_the_folder_of_the_run(found, pages):
    assert [page.relative_to(found[0].log.folder).as_posix() for page in pages] == [
        "explain/explain-0.html",
        "explain/explain-1.html",
    ]
    assert all(page.stat().st_size < 300_000 for page in pages)


def test_the_page_tells_loss_vote_features_and_what_is_kept(found, pages):
    _, _, story = found
    text = text_of(pages[1])
    shares = np.exp(story.logits - story.logits.max())
    loss = -np.log(shares[1] / shares.sum())
    assert f"the probability of the true class: {loss:.3f}" in text
    assert "10 features, each compared with patches of 3 x 3 pixels at 8 x 8 places" in text
    assert "Shown are the 8 that match best here. The first column is the feature itself." in text
    zeros = (story.there["relu1"] == 0).mean()
    assert (
        f"relu1 (relu) : {1 - zeros:.0%} of the numbers pass as they are, {zeros:.0%} bec" in text
    )
    assert "8 x 8 places become 4 x 4: it keeps 25% as many numbers" in text
    for label in story.classes:
        assert f"the logit {story.logits[label]:+.3f}, exactly" in text


def test_the_product_of_patch_and_feature_sums_to_the_best_match(found, pages):
    _, _, story = found
    best = story.there["conv1"].max()
    sums = re.search(
        r"sum to (\S+); with the bias (\S+) that is (\S+), the best", text_of(pages[1])
    )
    assert sums is not None
    total, bias, value = map(float, sums.groups())
    assert value == pytest.approx(best, abs=1e-3)
    assert total + bias == pytest.approx(value, abs=2e-3)


def test_a_class_with_a_hostile_name_stays_text(pages):
    for page in pages:
        tags = Scripts(page.read_text()).tags
        assert not [attrs for _, attrs in tags if "onerror" in attrs or attrs.get("src") == "x"]
        assert "&lt;img src=x onerror=alert(1)&gt;" in page.read_text()


def test_the_page_loads_nothing_and_may_not(pages):
    tags = Scripts(pages[0].read_text()).tags
    sources = [attrs[key] for _, attrs in tags for key in ("src", "href", "action") if key in attrs]
    assert sources
    assert all(source.startswith(("data:image/png", "#")) for source in sources)
    [policy] = [attrs["content"] for tag, attrs in tags if attrs.get("http-equiv")]
    assert "default-src 'none'" in policy
    assert "script" not in {tag for tag, _ in tags}


def test_a_network_without_dense_head_tells_why_its_votes_are_not_taken_apart(tmp_path):
    model = untrained(tmp_path, headless)
    [page] = pages_of(model, indices=[2], options=FEW._replace(steps=0, among=0))
    text = text_of(page)
    assert "cannot be taken apart exactly: the network does not end in a dense layer" in text
    assert "the places sum to" in text
    assert "that is the logit, exactly" in text  # The logits are means of the last maps.


def test_a_network_without_convolution_is_told_of_as_far_as_it_goes(tmp_path):
    model = untrained(tmp_path, flat)
    [page] = pages_of(model, indices=[2], options=FEW._replace(steps=0, among=0))
    text = text_of(page)
    assert "This network has no convolution that could be shown." in text
    assert "Not defined: the network has no convolution that puts out maps" in text
    assert "unit 3" in text


# -- Files -----------------------------------------------------------------------------------------


def photo(path, size=(20, 30), mode="RGB"):
    draw = np.random.default_rng(1)
    shape = (*size, 3) if mode == "RGB" else size
    Image.fromarray(draw.integers(0, 255, shape).astype(np.uint8)).save(path)
    return str(path)


def test_a_file_of_another_size_is_stretched_and_the_page_says_so(found, tmp_path):
    out = tmp_path / "out"
    file = photo(tmp_path / "a shoe.png")
    options = FEW._replace(steps=0, among=0)
    [page] = pages_of(found[0], files=[file], out=out, options=options)
    assert page == out / "explain-a_shoe.html"
    text = text_of(page)
    assert "The file has 20 x 30 pixels: it was stretched to the 8 x 8" in text
    assert "Its true class is not known" in text
    assert "--labels=CLASS gives it" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--index=12", "--index=12: the split has images 0 to 11; give one of these"),
        ("--index=-1", "--index=-1: give whole numbers of 0 or more"),
        ("--index=one", "--index=one: give whole numbers"),
        ("--index=²", "--index=²: give whole numbers"),
        ("--images={folder}/none.png", "none.png: No such file or directory"),
        ("--images={folder}/text.png", "text.png is no JPEG, PNG, WEBP or BMP file"),
        ("--images={folder}/photo.png --labels=drak", "--labels has 'drak': did you mean 'dark'"),
        ("--images={folder}/photo.png --labels=dark,light", "--labels has 2 classes for 1 files"),
        ("--labels=dark", "--labels are those of --images"),
        ("--layers=dense*", "--layers=dense* matches no convolution"),
        ("--split=tset", "there is no split 'tset'"),
        ("--model=best", "has no best yet"),
        ("--among=-3", "--among=-3: give 0 or more images"),
        ("--out={folder}/text.png", "give another folder"),
    ],
)
def test_wrong_inputs_are_refused_in_one_line(words, message, workdir, tmp_path, capsys):
    photo(tmp_path / "photo.png")
    (tmp_path / "text.png").write_text("no image")
    argv = [word.format(folder=tmp_path) for word in words.split()]
    assert guard(launcher.main, ["explain", f"--workdir={workdir}", "--trust", *argv]) == 2
    told = capsys.readouterr().err
    assert message in told
    assert told.startswith("error: ")
    assert told.count("\n") == 1


def test_a_folder_without_a_run_is_refused(tmp_path, capsys):
    assert guard(launcher.main, ["explain", f"--workdir={tmp_path / 'none'}"]) == 2
    assert "does not exist" in capsys.readouterr().err


# -- Pictures --------------------------------------------------------------------------------------


def test_a_picture_holds_the_pixels_that_it_is_of():
    draw = np.random.default_rng(0)
    for shape in ((5, 4), (5, 4, 1), (5, 4, 3)):
        pixels = draw.integers(0, 256, shape).astype(np.uint8)
        uri = pictures.png(pixels)
        head, _, content = uri.partition(",")
        assert head == "data:image/png;base64"
        image = Image.open(io.BytesIO(base64.b64decode(content))).convert("RGB")
        expected = pixels if shape[2:] == (3,) else np.repeat(pixels.reshape(5, 4, 1), 3, -1)
        np.testing.assert_array_equal(np.asarray(image), expected)


def test_colours_are_those_of_matplotlib_and_zero_is_white():
    from matplotlib import colormaps

    low, middle, high = pictures.diverging(np.array([[-3.0, 0.0, 3.0]]))[0].astype(int)
    assert (np.abs(middle - 247) <= 5).all()
    assert low[0] > low[2]
    assert high[2] > high[0]
    found = pictures.sequential(np.array([[2.0, 4.0]]))[0] / 255
    np.testing.assert_allclose(
        found, [colormaps["viridis"](end)[:3] for end in (0.0, 1.0)], atol=0.01
    )
    same = pictures.sequential(np.full((2, 2), 7.0))
    assert (same == same[0, 0]).all()


# -- In a browser ----------------------------------------------------------------------------------


@needs_browser
@pytest.mark.parametrize(("width", "dark"), [(390, True), (1400, False)])
def test_the_page_opens_without_an_error_or_a_request_and_fits(pages, tmp_path, width, dark):
    script = """
      return [document.body.innerText, document.documentElement.scrollWidth,
        [...document.images].every((each) => each.complete && each.naturalWidth > 0),
        getComputedStyle(document.body).backgroundColor];
    """
    found = opened(tmp_path, {Path(pages[1]): script}, width, dark)[pages[1]]
    text, wide, drawn, back = found.told
    assert found.console == []
    assert [each for each in found.requests if not each.startswith("data:")] == []
    assert HOSTILE in text
    assert wide <= width
    assert drawn
    assert (max(map(int, re.findall(r"\d+", back)[:3])) < 100) == dark
