"""Figures equal those of torchmetrics on the same features, and their intervals equal those of resampled images."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load, save_file
from torch import Tensor, nn
from torchmetrics.functional.multimodal import clip_score
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance
from transformers import AutoModel, CLIPModel, Dinov2Model

from runner.errors import SettingsError
from runner.measures import distances, likeness
from runner.measures.interval import Figure, Resampling
from runner.measures.networks import Clip, Scripted, Vision, picture_network
from tests.measures.networks import (
    FEATURES,
    PROJECTED,
    Inception,
    save_clip,
    save_dino,
    save_dinov3_convnext,
    save_inception,
    save_swin,
)

CPU = torch.device("cpu")
USUAL = Resampling()


def features(count: int, width: int, *, seed: int, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed)) * scale + shift


def pictures(count: int, *, seed: int = 0, size: tuple[int, int] = (48, 40)) -> list[Image.Image]:
    dice = np.random.default_rng(seed)
    coarse = dice.integers(0, 256, (count, 6, 5, 3), dtype=np.uint8)
    return [Image.fromarray(each).resize(size, Image.Resampling.BICUBIC) for each in coarse]


def as_bytes(images: list[Image.Image]) -> Tensor:
    return torch.from_numpy(np.stack([np.asarray(each) for each in images])).permute(0, 3, 1, 2)


class Features(nn.Module):
    """The tests' network in the form that torchmetrics expects."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.seen, self.num_features = Scripted("", str(file), CPU), FEATURES

    def forward(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            found: Tensor = self.seen.network(images, return_features=True)
        return found.double()


def test_fid_and_kid_are_those_of_torchmetrics_with_the_same_network(tmp_path: Path) -> None:
    file = save_inception(tmp_path / "inception.pt")
    drawn, real = pictures(20, seed=1), pictures(20, seed=2, size=(40, 40))
    network = picture_network("features.inception", str(file), CPU)
    seen, seen_real = network.pictures(drawn), network.pictures(real)
    fid = FrechetInceptionDistance(feature=Features(file)).set_dtype(torch.float64)
    with pytest.warns(UserWarning, match="will save all extracted features"):
        kid = KernelInceptionDistance(feature=Features(file), subsets=1, subset_size=20)
    for metric in (fid, kid):  # networks and their bytes stay unchanged, the sums are in fp64
        metric.update(as_bytes(real), real=True)
        metric.update(as_bytes(drawn), real=False)
    assert distances.fid(seen, seen_real, USUAL).value == pytest.approx(float(fid.compute()), rel=1e-6)
    assert distances.kid(seen, seen_real, USUAL).value == pytest.approx(float(kid.compute()[0]), rel=1e-5)


@pytest.mark.parametrize(("drawn", "real", "width"), [(9, 12, 40), (30, 25, 6)])
def test_the_interval_of_fid_is_made_of_what_torchmetrics_says_of_repeated_images(
    drawn: int, real: int, width: int
) -> None:
    one, other = features(drawn, width, seed=1).double(), features(real, width, seed=2, scale=1.4, shift=0.3).double()
    weights = next(USUAL.weights(drawn, real))
    assert [float(each.sum()) for each in weights] == [drawn, real]
    repeated = [each.repeat_interleave(times.long(), dim=0) for each, times in zip((one, other), weights, strict=True)]
    metric = FrechetInceptionDistance(feature=distances.Given(width)).set_dtype(torch.float64)
    metric.update(repeated[1], real=True)
    metric.update(repeated[0], real=False)
    ours = distances.frechet_of_products(one @ one.T, other @ other.T, one @ other.T, *weights)
    assert ours == pytest.approx(float(metric.compute()), rel=1e-4)


def test_fid_of_a_moved_cloud_is_the_square_of_the_way() -> None:
    cloud = features(50, 8, seed=3)
    assert distances.fid(cloud, cloud + 0.5, USUAL).value == pytest.approx(8 * 0.25, rel=1e-4)
    assert distances.fid(cloud, cloud, USUAL).value == pytest.approx(0, abs=1e-5)
    few = features(12, 200, seed=3)
    same = distances.fid(few, few, USUAL)
    assert same.low == 0 <= same.value == pytest.approx(0, abs=1e-4)


def test_fid_of_few_images_is_too_high_and_kid_is_not() -> None:
    """Both sets come from one distribution: the functions' docstrings say which figure can be trusted."""
    fids, kids = {}, {}
    for count in (10, 160):
        pairs = [(features(count, 16, seed=2 * at), features(count, 16, seed=2 * at + 1)) for at in range(20)]
        fids[count] = np.mean([distances.fid(*pair, Resampling(count=2)).value for pair in pairs])
        kids[count] = np.mean([distances.kid(*pair, Resampling(count=2)).value for pair in pairs])
    spread = 0.1
    assert fids[10] > 5 * fids[160] > 0
    assert abs(kids[10]) < spread and abs(kids[160]) < spread


def test_fid_has_no_interval_only_where_both_sides_have_too_many_images_for_one() -> None:
    many = features(distances.MOST_TO_RESAMPLE + 1, 2, seed=0)
    quick = Resampling(count=2)
    assert distances.fid(many[:3], many, quick).low is not None
    assert distances.fid(many, many[:3], quick).low is not None
    assert distances.fid(many, many + 1, quick) == Figure(pytest.approx(2), None, None, len(many))


def test_a_pair_of_copies_of_one_image_does_not_count_in_kid() -> None:
    kernels = [torch.eye(4).double() * 1e9, torch.zeros(4, 4).double(), torch.zeros(4, 4).double()]
    twice, once = torch.tensor([2.0, 2.0, 0.0, 0.0]).double(), torch.ones(4).double()
    assert distances.discrepancy(*kernels, twice, once) == 0


def test_clip_scores_are_those_of_torchmetrics(tmp_path: Path) -> None:
    folder = save_clip(tmp_path / "clip")
    images, texts = pictures(5), ["a red house", "a yellow circle", "a house", "a star on a blue background", "a"]
    network = Clip("features.clip", str(folder), CPU)
    ours = likeness.text_score(network.pictures(images), network.texts(texts), USUAL)

    class Model(CLIPModel):
        """The features themselves, as torchmetrics expects, not an output that contains them."""

        def get_image_features(self, *given: object, **named: object) -> Tensor:
            return super().get_image_features(*given, **named).pooler_output

        def get_text_features(self, *given: object, **named: object) -> Tensor:
            return super().get_text_features(*given, **named).pooler_output

    class Processor:
        def __call__(self, images: list[Tensor] | None = None, text: list[str] | None = None, **how: object) -> object:
            if text is not None:
                return network.tokenizer(text, return_tensors="pt", padding=True)
            assert images is not None
            return network.processor(
                images=[Image.fromarray(each.permute(1, 2, 0).numpy()) for each in images], return_tensors="pt"
            )

    theirs = clip_score(
        [*as_bytes(images)], texts, model_name_or_path=lambda: (Model.from_pretrained(folder), Processor())
    ).detach()
    assert 100 * ours.value == pytest.approx(float(theirs), rel=1e-4)
    assert network.texts(["a " * 200]).shape == (1, PROJECTED), "a text beyond the network's context is cut off"


def test_the_features_of_dino_are_those_of_its_class_token(tmp_path: Path) -> None:
    folder, images = save_dino(tmp_path / "dino"), pictures(3)
    network = Vision("features.dino", str(folder), CPU)
    plain = Dinov2Model.from_pretrained(folder).eval()
    with torch.no_grad():
        wanted = plain(**network.processor(images=images, return_tensors="pt")).pooler_output
    torch.testing.assert_close(network.pictures(images), wanted)
    own = likeness.image_score(wanted[:1], wanted[:1], USUAL)
    assert own.value == pytest.approx(1)


@pytest.mark.parametrize("save", [save_swin, save_dinov3_convnext])
def test_the_features_of_a_network_without_a_class_token_are_the_mean_of_its_places(
    save: Callable[[Path], Path], tmp_path: Path
) -> None:
    """For the second network, the first token already is that mean, so it is used."""
    folder, images = save(tmp_path / "network"), pictures(3)
    network = Vision("features.dino", str(folder), CPU)
    plain = AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        wanted = plain(**network.processor(images=images, return_tensors="pt")).pooler_output
    torch.testing.assert_close(network.pictures(images), wanted)


def test_a_network_that_is_stored_in_half_precision_computes_in_whole(tmp_path: Path) -> None:
    """Both networks have the same weights, so only the arithmetic can differ."""
    for stored, make in ((save_dino(tmp_path / "dino"), Vision), (save_clip(tmp_path / "clip"), Clip)):
        half = AutoModel.from_pretrained(stored).half()
        half.save_pretrained(stored)
        seen = make("", str(stored), CPU)
        expected = make("", str(stored), CPU)
        expected.network.load_state_dict(half.float().state_dict())
        expected.network.float()
        assert seen.pictures(pictures(3)).equal(expected.pictures(pictures(3)))


def test_a_clip_sees_pictures_where_texts_do_not_matter(tmp_path: Path) -> None:
    clip = save_clip(tmp_path / "clip")
    seen = picture_network("features.inception", str(clip), CPU).pictures(pictures(3))
    assert seen.equal(Clip("features.clip", str(clip), CPU).pictures(pictures(3)))


def test_image_scores_are_means_over_all_pairs() -> None:
    drawn, real = features(4, 6, seed=4), features(3, 6, seed=5)
    cosines = [float(torch.cosine_similarity(one, other, dim=0)) for one in drawn for other in real]
    figure = likeness.image_score(drawn, real, USUAL)
    assert figure.value == pytest.approx(np.mean(cosines), rel=1e-5) and figure.n == 4
    assert figure.low < figure.value < figure.high  # type: ignore[operator]


def test_the_interval_of_a_mean_is_between_percentiles_of_resampled_means() -> None:
    scores = features(60, 1, seed=6).flatten()
    ours = likeness.mean_of(scores, Resampling(count=20_000))
    means = np.random.default_rng(1).choice(scores.double().numpy(), (20_000, len(scores))).mean(axis=1)
    # By chance alone, the ends of two such intervals differ by 0.0035 on average.
    assert (ours.low, ours.high) == pytest.approx(tuple(np.percentile(means, [2.5, 97.5])), abs=0.0105)


def test_intervals_are_the_same_at_every_call_and_wider_for_more_confidence() -> None:
    scores = features(30, 1, seed=7).flatten()
    usual, again = likeness.mean_of(scores, USUAL), likeness.mean_of(scores, USUAL)
    sure = likeness.mean_of(scores, Resampling(confidence=0.99))
    assert usual == again
    assert sure.low < usual.low < usual.value < usual.high < sure.high  # type: ignore[operator]


@pytest.mark.parametrize(
    "measure",
    [
        lambda one: likeness.mean_of(one[:, 0], USUAL),
        lambda one: likeness.image_score(one, features(5, 6, seed=1), USUAL),
    ],
)
def test_one_image_has_no_interval(measure: Callable[[Tensor], Figure]) -> None:
    figure = measure(features(1, 6, seed=8))
    assert (figure.low, figure.high, figure.n) == (None, None, 1)
    assert figure.as_data()["low"] is None


def test_kid_of_two_images_has_no_interval() -> None:
    """A resample of two images is both, or one of them twice, which has no pair: the interval would have no width."""
    for drawn, real in ((2, 2), (2, 30), (30, 2)):
        found = distances.kid(features(drawn, 8, seed=1), features(real, 8, seed=2), USUAL)
        assert (found.low, found.high) == (None, None)
    few = distances.kid(features(3, 8, seed=1), features(3, 8, seed=2), USUAL)
    assert few.low is not None and few.high is not None and few.low < few.high


def test_no_change_is_no_drift_and_pixels_count_as_shares_of_their_range() -> None:
    black, white = torch.zeros(2, 3, 4, 4), torch.ones(2, 3, 4, 4)
    assert likeness.pixel_drift(black, black, USUAL).value == 0
    assert likeness.pixel_drift(black, white, USUAL) == Figure(1.0, 1.0, 1.0, 2)
    half = torch.tensor([0.0, 1.0]).expand(2, 3, 4, 2).repeat(1, 1, 1, 2)
    assert likeness.pixel_drift(black, half, USUAL).value == pytest.approx(0.5**0.5), "the root of the mean square"
    seen = features(4, 6, seed=9)
    assert likeness.feature_drift(seen, 3 * seen, USUAL).value == pytest.approx(0, abs=1e-12)
    assert likeness.feature_drift(seen, -seen, USUAL).value == pytest.approx(2)


def test_networks_that_cannot_be_used_are_named_with_their_key(tmp_path: Path) -> None:
    text = tmp_path / "readme.pt"
    text.write_text("not a network")
    with pytest.raises(SettingsError, match=r"features.inception = .*readme.pt': is not a TorchScript file"):
        Scripted("features.inception", str(text), CPU)
    with pytest.raises(SettingsError, match=r"features.clip = .*: is a Dinov2Model, which does not encode texts"):
        Clip("features.clip", str(save_dino(tmp_path / "dino")), CPU)
    pickled = save_dino(tmp_path / "pickled")
    next(pickled.glob("*.safetensors")).unlink()
    torch.save({"weights": print}, pickled / "pytorch_model.bin")
    with pytest.raises(SettingsError, match=r"features.dino = .*pickled': has a pickled file that holds more than"):
        Vision("features.dino", str(pickled), CPU)
    with pytest.raises(SettingsError, match=r"features.dino = 'nobody/nothing': cannot be loaded"):
        Vision("features.dino", "nobody/nothing", CPU)


def test_a_network_whose_files_lack_weights_does_not_measure_with_random_ones(tmp_path: Path) -> None:
    clip, dino = save_clip(tmp_path / "clip"), save_dino(tmp_path / "dino")
    for folder, lacking, key in (
        (clip, "text_projection.weight", "features.clip"),
        (dino, "layernorm.bias", "features.dino"),
    ):
        file = folder / "model.safetensors"
        kept = {name: tensor for name, tensor in load(file.read_bytes()).items() if name != lacking}
        save_file(kept, file, metadata={"format": "pt"})
        with pytest.raises(
            SettingsError, match=rf"{key} = .*: its files lack 1 of the weights of a .*, such as {lacking}"
        ):
            picture_network(key, str(folder), CPU)


@pytest.mark.parametrize("damage", [lambda whole: whole[:5000], lambda whole: b""])
def test_a_damaged_network_is_named_with_its_key(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    file = save_dino(tmp_path / "dino") / "model.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(SettingsError, match=r"features.dino = .*dino': cannot be loaded \(Error while deserializing"):
        Vision("features.dino", str(file.parent), CPU)


def test_features_that_are_no_finite_numbers_are_refused(tmp_path: Path) -> None:
    """The library that computes their eigenvalues would end the whole process."""

    class Spoilt(nn.Module):
        def forward(self, images_B3HW: Tensor) -> Tensor:
            return images_B3HW.float().amax(dim=(2, 3)).log()

    torch.jit.script(Spoilt()).save(str(tmp_path / "spoilt.pt"))
    black = [Image.new("RGB", (48, 40)), *pictures(2)]
    with pytest.raises(
        SettingsError, match=r"features.inception = .*spoilt.pt': for 1 of 3 its features are not finite"
    ):
        picture_network("features.inception", str(tmp_path / "spoilt.pt"), CPU).pictures(black)


def test_a_scripted_network_that_takes_no_such_bytes_is_named_with_its_key(tmp_path: Path) -> None:
    class Large(nn.Module):
        def forward(self, images_B3HW: Tensor) -> Tensor:
            assert images_B3HW.shape[2] == 299, "wants 299 px"
            return images_B3HW.float().mean(dim=(2, 3))

    torch.jit.script(Large()).save(str(tmp_path / "large.pt"))
    torch.jit.script(nn.Conv2d(3, 2, 5)).save(str(tmp_path / "floats.pt"))
    for name, reason in (("large.pt", "wants 299 px"), ("floats.pt", ".*")):
        with pytest.raises(
            SettingsError, match=rf"features.inception = .*{name}': does not accept bytes of 48 x 40 px \(.*{reason}"
        ):
            picture_network("features.inception", str(tmp_path / name), CPU).pictures(pictures(2))


def test_a_scripted_network_that_gives_no_rows_of_features_is_refused(tmp_path: Path) -> None:
    class Several(nn.Module):
        def forward(self, images_B3HW: Tensor) -> tuple[Tensor, Tensor]:
            return images_B3HW, images_B3HW

    torch.jit.script(Several()).save(str(tmp_path / "several.pt"))
    with pytest.raises(SettingsError, match=r"several.pt': gives a tuple instead of a row of features for each image"):
        picture_network("features.inception", str(tmp_path / "several.pt"), CPU).pictures(pictures(2))


def test_code_that_a_network_brings_is_not_run_and_nobody_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_dino(tmp_path / "dino")
    own = {"model_type": "theirs", "auto_map": {"AutoConfig": "theirs.Config", "AutoModel": "theirs.Model"}}
    (folder / "config.json").write_text(json.dumps(json.loads((folder / "config.json").read_text()) | own))
    (folder / "theirs.py").write_text(f"open({str(tmp_path / 'harm')!r}, 'w')\n")
    monkeypatch.setattr("builtins.input", lambda _: "y")
    with pytest.raises(SettingsError, match=r"features.dino = .*: cannot be loaded \(The repository .* custom code"):
        Vision("features.dino", str(folder), CPU)
    assert not (tmp_path / "harm").exists()


def test_a_scripted_network_is_asked_for_features_only_if_it_can_be(tmp_path: Path) -> None:
    asked = Scripted("features.inception", str(save_inception(tmp_path / "asked.pt")), CPU)
    assert asked.pictures(pictures(3)).shape == (3, FEATURES)

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Inception()

        def forward(self, images: Tensor) -> Tensor:
            return self.inner(images, True)

    torch.jit.script(Plain()).save(str(tmp_path / "plain.pt"))
    assert Scripted("features.inception", str(tmp_path / "plain.pt"), CPU).pictures(pictures(3)).shape == (3, FEATURES)


@pytest.mark.parametrize(
    ("measure", "samples", "widest"),
    [(likeness.image_score, 100, 1.5), (distances.kid, 100, 2.0), (distances.fid, 40, 3.0)],
)
def test_intervals_are_not_narrower_than_figures_spread_between_samples(
    measure: Callable[..., Figure], samples: int, widest: float
) -> None:
    """Compares the spread given by the intervals with the actual spread between samples of two clouds."""
    figures = [
        measure(
            features(40, 16, seed=2 * at, shift=0.3),
            features(30, 16, seed=2 * at + 1, scale=1.1, shift=0.25),
            Resampling(count=120),
        )
        for at in range(samples)
    ]
    said = np.mean([figure.high - figure.low for figure in figures]) / (2 * 1.96)  # type: ignore[operator]
    chance = 1.96 / np.sqrt(2 * samples)
    assert 1 - chance < said / np.std([figure.value for figure in figures]) < widest
