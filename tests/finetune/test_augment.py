"""Augmentation: each operation's effect on images made for it, draws by image, nothing that the host waits for."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta, kstest
from torch.utils._python_dispatch import TorchDispatchMode

from hpsearch.finetune import augment as module
from hpsearch.finetune.augment import COLOURS, GEOMETRIC, OPERATIONS, Strengths, augment, cutmix, draw_share, mixup
from hpsearch.finetune.recipe import Recipe

CPU = torch.device("cpu")
OFF = {"crop": 1.0, "flip": 0.0, "rotate": 0.0, "colour": 0.0, "randaugment": 0.0}
ONE_AT_A_TIME = [{"crop": 0.3}, {"flip": 0.5}, {"rotate": 30.0}, {"colour": 0.5}, {"randaugment": 9.0}]
ALL = {"crop": 0.3, "flip": 0.5, "rotate": 30.0, "colour": 0.5, "randaugment": 9.0}


def strengths(device=CPU, **changed):
    return Strengths.of(tuple((OFF | changed).values()), device)


def photographs(n=8, channels=3, height=12, width=12, seed=0):
    """Smooth noise without a plain background."""
    noise = torch.rand(n, channels, height, width, generator=torch.Generator().manual_seed(seed))
    return noise.contiguous(memory_format=torch.channels_last)


def drawing(height=15, width=15, **pixels):
    """A black image with one white pixel."""
    x = torch.zeros(1, 1, height, width)
    x[0, 0, pixels["row"], pixels["column"]] = 1
    return x


def brightest(x):
    position = x[0, 0].argmax().item()
    return divmod(position, x.shape[3])


def only(name, strength, n=1):
    """The strengths of one of RandAugment's operations."""
    return {o: torch.full((n,), strength if o == name else 0.0) for o in OPERATIONS}


def after(x, name, strength):
    operation = only(name, strength, len(x))
    return module.recoloured(module.warp(x, module.placed(operation, x.shape)), operation)


# ---------------------------------------------------------------- the whole


@pytest.mark.parametrize("channels", [1, 3])
def test_with_everything_off_nothing_changes(channels):
    x = photographs(channels=channels)
    assert torch.equal(augment(x, strengths()), x)


@pytest.mark.parametrize("channels", [1, 3])
def test_so_it_is_where_every_part_is_run(monkeypatch, channels):
    monkeypatch.setattr(module, "acts", lambda *_: True)  # as on a GPU
    x = photographs(channels=channels)
    assert torch.equal(augment(x, strengths()), x)


@pytest.mark.parametrize("changed", ONE_AT_A_TIME)
def test_a_cpu_leaves_out_what_is_off_without_changing_the_rest(monkeypatch, changed):
    x = photographs()
    torch.manual_seed(0)
    short = augment(x, strengths(**changed))
    monkeypatch.setattr(module, "acts", lambda *_: True)
    torch.manual_seed(0)
    assert torch.equal(augment(x, strengths(**changed)), short)


@pytest.mark.parametrize("changed", ONE_AT_A_TIME)
def test_images_of_a_batch_are_changed_each_in_its_way(changed):
    torch.manual_seed(0)
    x = photographs(1).expand(32, -1, -1, -1)
    different = {image.numpy().tobytes() for image in augment(x, strengths(**changed))}
    assert len(different) == 2 if changed == {"flip": 0.5} else len(different) > 20


@pytest.mark.parametrize("changed", [*ONE_AT_A_TIME, ALL])
@pytest.mark.parametrize(("channels", "height", "width"), [(1, 16, 16), (3, 16, 16), (3, 9, 14)])
def test_values_shape_and_memory_format_are_kept(changed, channels, height, width):
    torch.manual_seed(0)
    x = photographs(64, channels, height, width)
    before = x.clone()
    out = augment(x, strengths(**changed))
    assert out.shape == x.shape
    assert out.dtype == torch.float32
    assert out.stride() == x.stride()
    assert out.min() >= 0
    assert out.max() <= 1
    assert torch.equal(x, before)
    assert not torch.equal(out, x)
    assert augment(x.contiguous(), strengths(**changed)).is_contiguous()


def test_one_state_of_the_generator_gives_one_result():
    x, s = photographs(), strengths(**ALL)
    torch.manual_seed(3)
    first, second = augment(x, s), augment(x, s)
    torch.manual_seed(3)
    assert torch.equal(augment(x, s), first)
    assert not torch.equal(first, second)


def test_autocast_does_not_make_it_coarser():
    x, s = photographs(), strengths(**ALL)
    torch.manual_seed(0)
    exact = augment(x, s)
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(augment(x, s), exact)


class OnDevice(TorchDispatchMode):
    """Notes what mixes the host's tensors with the device's: a copy, which a graph cannot hold."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        tensors = [a for a in args if isinstance(a, torch.Tensor)]
        if any(t.device.type == "cpu" for t in tensors):
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("channels", [1, 3])
def test_the_host_is_told_no_value(channels):
    """Tensors without data raise where someone reads them, or makes a shape of them."""
    meta = torch.device("meta")
    x, y, s = torch.empty(4, channels, 8, 8, device=meta), torch.empty(4, 5, device=meta), strengths(meta)
    with OnDevice() as mode:
        augment(x, s)
        mixup(x, y, s.crop)
        cutmix(x, y, s.crop)
    assert not mode.found


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_one_captured_graph_serves_all_strengths_and_states():
    device = torch.device("cuda")
    x, s = photographs().to(device), strengths(device, **ALL)
    y, share = torch.eye(8, device=device), torch.tensor(0.6, device=device)

    def work():
        return cutmix(*mixup(augment(x, s), y, share), share)[0]

    work()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = work()

    def replayed(seed):
        torch.cuda.manual_seed(seed)
        graph.replay()
        return out.clone()

    first, second = replayed(1), replayed(2)
    torch.cuda.manual_seed(1)
    assert torch.equal(work(), first)
    assert not torch.equal(first, second)
    assert torch.equal(replayed(1), first)
    for tensor, value in zip(vars(s).values(), OFF.values(), strict=True):
        tensor.fill_(value)
    share.fill_(1)
    assert torch.equal(replayed(1), x)


# ---------------------------------------------------------------- strengths


def test_strengths_are_those_of_the_recipe():
    recipe = Recipe(1e-3, 8, 1, 0.0, 0.0, 0, **ALL)
    s = strengths()
    s.set(recipe)
    expected = tuple(torch.tensor(v).item() for v in ALL.values())
    assert tuple(t.item() for t in vars(s).values()) == expected
    assert tuple(t.item() for t in vars(Strengths.of(Strengths.values(recipe), CPU)).values()) == expected
    assert all(t.shape == () for t in vars(s).values())


def test_they_are_off_at_first():
    assert {name: t.item() for name, t in vars(Strengths.on(CPU)).items()} == OFF


# ---------------------------------------------------------------- where pixels go


def test_flips_are_exact_and_as_frequent_as_asked():
    torch.manual_seed(0)
    x = photographs(1).expand(1000, -1, -1, -1)
    out = augment(x, strengths(flip=0.3))
    flipped = (out == x.flip(3)).flatten(1).all(1)
    assert ((out == x).flatten(1).all(1) | flipped).all()
    assert 250 < flipped.sum() < 350
    assert torch.equal(augment(x, strengths(flip=1.0)), x.flip(3))


@pytest.mark.parametrize(("shape", "turned"), [((15, 15), (7, 11)), ((11, 21), (5, 14))])
def test_a_rotation_moves_a_pixel(shape, turned):
    """By 90 degrees, from above the centre; in pixels, whatever the shape of the image."""
    height, width = shape
    row, column = (height - 1) // 2, (width - 1) // 2
    x = drawing(height, width, row=row - 4, column=column)
    u = torch.tensor([0.5, 0.5, 0.5, 0.5, 0.0]).view(5, 1)  # the largest negative angle
    out = module.warp(x, module.crop_and_turn(u, torch.tensor(1.0), torch.tensor(90.0), x.shape))
    assert brightest(out) == turned
    assert out.max() == pytest.approx(1, abs=1e-4)
    assert out.sum() == pytest.approx(1, abs=1e-4)


@given(st.integers(0, 2**31), st.floats(0.05, 1))
def test_crops_are_of_the_area_and_aspect_promised_and_inside(seed, crop):
    u = torch.rand(5, 200, generator=torch.Generator().manual_seed(seed))
    place = module.crop_and_turn(u, torch.tensor(crop), torch.tensor(0.0), torch.Size((200, 3, 20, 30)))
    w, h, right, down = place[:, 0, 0], place[:, 1, 1], place[:, 0, 2], place[:, 1, 2]
    area = w * h
    assert (area >= crop - 1e-5).all()
    assert (area <= 1 + 1e-5).all()
    assert ((w / h).log().abs() <= math.log(4 / 3) + 1e-5).all()
    for side, shift, size in ((w, right, 30), (h, down, 20)):
        assert (side <= 1 + 1e-6).all()
        assert (shift.abs() + side * size / 2 <= size / 2 + 1e-4).all()
    if crop < 0.9:
        assert area.min() < crop + 0.1 * (1 - crop)
        assert area.max() > 1 - 0.1 * (1 - crop)
        assert (w / h).min() < 1 < (w / h).max()


def test_a_crop_shows_part_of_the_image_larger():
    """The upper left quarter of a ramp, by bilinear interpolation of what is there."""
    x = torch.arange(8.0).expand(1, 1, 8, 8) / 10
    u = torch.tensor([0.0, 0.5, 0.0, 0.0, 0.5]).view(5, 1)
    out = module.warp(x, module.crop_and_turn(u, torch.tensor(0.25), torch.tensor(0.0), x.shape))
    expected = torch.nn.functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)[..., :8, :8]
    assert torch.allclose(out[..., :7], expected[..., :7], atol=1e-6)


@pytest.mark.parametrize("paper", [0.0, 1.0])
def test_what_lies_outside_a_drawing_is_its_paper(paper):
    x = torch.full((1, 3, 12, 12), paper)
    x[..., 3:10, 9:] = 1 - paper  # ink up to the edge
    moved = module.warp(x, module.placed(only("translate_x", 1.0), x.shape))
    assert torch.allclose(moved[..., 7:], torch.tensor(paper))  # 0.45 of 12 pixels came in on the right, not ink
    assert (moved[..., 3:10, 4:6] == 1 - paper).all()


def test_what_lies_outside_a_photograph_is_its_mirror_image():
    x = photographs(1, height=20, width=20)
    moved = module.warp(x, module.placed(only("translate_x", 1.0), x.shape))
    assert torch.allclose(moved[..., :11], x[..., 9:], atol=1e-5)
    assert torch.allclose(moved[..., 11:], x[..., 11:].flip(3), atol=1e-5)


def test_unmoved_images_are_not_resampled():
    x = photographs(2)
    angles = {o: torch.tensor([0.0, 1.0]) if o == "rotate" else torch.zeros(2) for o in OPERATIONS}
    out = module.warp(x, module.placed(angles, x.shape))
    assert torch.equal(out[0], x[0])
    assert not torch.allclose(out[1], x[1], atol=0.01)


def test_an_image_is_cropped_before_it_is_turned():
    x = photographs(4, height=20, width=31)
    u = torch.rand(5, 4, generator=torch.Generator().manual_seed(0))
    crop, degrees = torch.tensor(0.3), torch.tensor(40.0)
    cropped, turned = (module.crop_and_turn(u, c, d, x.shape) for c, d in ((crop, 0 * degrees), (crop / crop, degrees)))
    assert torch.allclose(module.crop_and_turn(u, crop, degrees, x.shape), module.compose(cropped, turned), atol=1e-6)


def test_randaugment_moves_what_the_crop_has_left(monkeypatch):
    """The left half, then 9 of 20 pixels to the left: of the image, 4.5."""
    x = drawing(20, 20, row=10, column=6)
    half = module.affine(*(torch.tensor([v]) for v in (0.5, 0.0, -5.0, 0.0, 1.0, 0.0)))
    operations = iter((only("translate_x", 1.0), only("identity", 1.0)))
    monkeypatch.setattr(module, "crop_and_turn", lambda *_: half)
    monkeypatch.setattr(module, "randaugment", lambda *_: next(operations))
    assert brightest(augment(x, strengths(randaugment=10.0)))[1] in (3, 4)  # 2 * 6.5 - 9 = 4: the edge between them


def test_maps_compose_in_their_order():
    """First to the right, then a quarter turn: what was above is then to the right of where it had gone, turned."""
    x = drawing(21, 21, row=8, column=10)
    right = module.affine(*(torch.tensor([v]) for v in (1.0, 0.0, -4.0, 0.0, 1.0, 0.0)))
    turn = module.affine(*(torch.tensor([v]) for v in (0.0, -1.0, 0.0, 1.0, 0.0, 0.0)))
    one_by_one = module.warp(module.warp(x, right), turn)
    assert torch.allclose(module.warp(x, module.compose(right, turn)), one_by_one, atol=1e-5)
    assert brightest(one_by_one) != brightest(module.warp(x, module.compose(turn, right)))


# ---------------------------------------------------------------- colours


def test_jitter_is_that_of_torchvision():
    functional = pytest.importorskip("torchvision.transforms.v2.functional")
    x = 0.3 + 0.3 * photographs(4)  # far from black and white, where torchvision cuts off between its steps
    b, c, s = torch.tensor([1.2, 0.8, 1.0, 1.1]), torch.tensor([0.9, 1.2, 0.7, 1.0]), torch.tensor([1.3, 1.0, 0.5, 0.0])
    for i, image in enumerate(module.jitter(x, b, c, s)):
        theirs = functional.adjust_brightness_image(x[i : i + 1], b[i].item())
        theirs = functional.adjust_contrast_image(theirs, c[i].item())
        theirs = functional.adjust_saturation_image(theirs, s[i].item())
        assert torch.allclose(image, theirs[0], atol=2e-3)  # torchvision's luma has rounded weights


def test_saturation_means_nothing_to_grey_images():
    x = 0.5 * photographs(channels=1)
    one = torch.ones(len(x))
    assert torch.allclose(module.jitter(x, one, one, 0.3 * one), x, atol=1e-6)


# ---------------------------------------------------------------- RandAugment


@given(st.floats(0, 1 - 2**-24, width=32), st.floats(0, 1 - 2**-24, width=32), st.floats(0.1, 10))
def test_one_operation_is_chosen(which, sign, magnitude):
    operation = module.randaugment(torch.tensor([which]), torch.tensor([sign]), torch.tensor(magnitude))
    assert tuple(operation) == OPERATIONS
    strengths = [abs(s.item()) for s in operation.values() if s.item() != 0]
    assert strengths == pytest.approx([magnitude / 10], rel=1e-5)


def test_operations_and_signs_are_equally_frequent():
    u = torch.rand(2, 130_000, generator=torch.Generator().manual_seed(0))
    operation = module.randaugment(u[0], u[1], torch.tensor(5.0))
    for strength in operation.values():
        assert 9_500 < (strength > 0).sum() + (strength < 0).sum() < 10_500
        assert 4_600 < (strength > 0).sum() < 5_400


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_not_chosen_does_nothing(name, channels):
    x = photographs(channels=channels)
    assert torch.allclose(after(x, name, 0.0), x, atol=1e-7)


@pytest.mark.parametrize("name", GEOMETRIC + COLOURS)
@pytest.mark.parametrize("strength", [-1.0, 1.0])
def test_what_is_chosen_changes_the_image_and_more_so_with_strength(name, strength):
    x = 0.1 + 0.7 * photographs(1)
    little, much = ((after(x, name, share * strength) - x).abs().mean() for share in (0.3, 1.0))
    assert 0 < little < much


@pytest.mark.parametrize(
    ("name", "row", "column"), [("translate_x", 10, 1), ("translate_y", 1, 10), ("shear_x", 14, 9), ("shear_y", 10, 10)]
)
def test_geometry_moves_a_pixel(name, row, column):
    """At full strength: 9 of 20 pixels to the left or up; 0.3 of the distance from the centre line."""
    x = drawing(20, 20, row=14 if name == "shear_x" else 10, column=10)
    assert brightest(after(x, name, 1.0)) == (row, column)


@pytest.mark.parametrize(
    ("name", "enhance"), [("brightness", "Brightness"), ("contrast", "Contrast"), ("colour", "Color"), ("sharpness", "Sharpness")]
)
@pytest.mark.parametrize("strength", [-1.0, -0.4, 0.7])
def test_enhancements_are_those_of_pillow(name, enhance, strength):
    image_module, enhancers = pytest.importorskip("PIL.Image"), pytest.importorskip("PIL.ImageEnhance")
    pixels = (photographs(1) * 255).round()[0].permute(1, 2, 0).byte()
    theirs = getattr(enhancers, enhance)(image_module.fromarray(pixels.numpy())).enhance(1 + 0.9 * strength)
    ours = after(pixels.permute(2, 0, 1)[None] / 255, name, strength)[0].permute(1, 2, 0) * 255
    reference = torch.frombuffer(bytearray(theirs.tobytes()), dtype=torch.uint8).view(pixels.shape)
    assert (ours - reference).abs().max() < 2.5  # Pillow rounds in between


@pytest.mark.parametrize(
    ("name", "strength", "call"), [("autocontrast", 1.0, "autocontrast"), ("solarise", 0.5, "solarize"), ("posterise", 1.0, "posterize")]
)
@pytest.mark.parametrize("sign", [-1, 1])
def test_the_others_too_whatever_their_sign(name, strength, call, sign):
    image_module, ops = pytest.importorskip("PIL.Image"), pytest.importorskip("PIL.ImageOps")
    pixels = (20 + photographs(1) * 200).round()[0].permute(1, 2, 0).byte()
    arguments = {"autocontrast": (), "solarise": (128,), "posterise": (4,)}[name]
    theirs = getattr(ops, call)(image_module.fromarray(pixels.numpy()), *arguments)
    ours = after(pixels.permute(2, 0, 1)[None] / 255, name, sign * strength)[0].permute(1, 2, 0) * 255
    reference = torch.frombuffer(bytearray(theirs.tobytes()), dtype=torch.uint8).view(pixels.shape)
    assert (ours - reference).abs().max() < (1.01 if name == "autocontrast" else 0.01)


def test_autocontrast_leaves_a_flat_image():
    x = torch.full((1, 3, 8, 8), 0.4)
    assert torch.allclose(after(x, "autocontrast", 1.0), x)


# ---------------------------------------------------------------- mixing


def targets(n, k=3, seed=0):
    return torch.rand(n, k, generator=torch.Generator().manual_seed(seed)).softmax(1)


@pytest.mark.parametrize("mix", [mixup, cutmix])
@given(share=st.floats(0, 1), n=st.integers(1, 6))
def test_the_mass_of_labels_is_kept(mix, share, n):
    _, y = mix(photographs(n), targets(n), torch.tensor(share))
    assert torch.allclose(y.sum(1), torch.ones(n), atol=1e-6)
    assert (y >= 0).all()


@pytest.mark.parametrize("mix", [mixup, cutmix])
def test_a_share_of_one_changes_nothing_and_of_zero_gives_the_neighbour(mix):
    x, y = photographs(), targets(8)
    for share, expected in ((1.0, (x, y)), (0.0, (x.roll(1, 0), y.roll(1, 0)))):
        assert all(map(torch.equal, mix(x, y, torch.tensor(share)), expected))


def test_mixup_blends_pixels_and_activations():
    for x in (photographs(), torch.randn(8, 5)):
        y = torch.eye(8)
        mixed, labels = mixup(x, y, torch.tensor(0.7))
        assert torch.allclose(mixed[3], 0.7 * x[3] + 0.3 * x[2])
        assert torch.allclose(labels[3], 0.7 * y[3] + 0.3 * y[2])
        assert mixed.stride() == x.stride()


def test_mixup_keeps_the_precision_of_activations():
    x = torch.randn(4, 5, dtype=torch.bfloat16)
    assert mixup(x, targets(4), torch.tensor(0.7))[0].dtype == torch.bfloat16


@given(st.floats(0, 1), st.integers(0, 2**31), st.sampled_from([(16, 16), (9, 14)]))
def test_cutmix_replaces_a_box_of_the_area_that_labels_say(share, seed, shape):
    torch.manual_seed(seed)
    height, width = shape
    x = torch.arange(6.0).view(-1, 1, 1, 1).expand(-1, 3, *shape).contiguous(memory_format=torch.channels_last)
    mixed, labels = cutmix(x, torch.eye(6), torch.tensor(share))
    assert mixed.stride() == x.stride()
    for i in range(6):
        box = mixed[i, 0] == (i - 1) % 6
        assert (box | (mixed[i, 0] == i)).all()
        assert labels[i, i] == pytest.approx(1 - box.float().mean().item(), abs=1e-6)
        rows, columns = box.any(1), box.any(0)
        assert torch.equal(box, rows[:, None] & columns)
        for line in (rows, columns):
            assert (line.int().diff().abs().sum() + line[0] + line[-1]).item() in (0, 2)  # in one piece
    assert labels[0, 0] == pytest.approx(share, abs=0.5 / height + 0.5 / width + 1e-4)


def test_every_image_has_its_own_box_and_every_place_is_possible():
    torch.manual_seed(0)
    x = torch.arange(2.0).view(-1, 1, 1, 1).expand(-1, 1, 8, 8).repeat(500, 1, 1, 1)
    mixed, _ = cutmix(x, torch.zeros(1000, 2), torch.tensor(0.75))  # boxes of 4 by 4
    boxes = (mixed != x)[:, 0]
    assert (boxes.sum((1, 2)) == 16).all()
    assert len({box.numpy().tobytes() for box in boxes}) == 25


@pytest.mark.parametrize("alpha", [0.1, 0.4, 1.0, 5.0])
def test_shares_follow_the_beta_distribution(alpha):
    generator = torch.Generator().manual_seed(0)
    draws = [draw_share(alpha, generator) for _ in range(2000)]
    assert kstest(draws, beta(alpha, alpha).cdf).pvalue > 0.01


@given(st.floats(1e-6, 1e4), st.integers(0, 2**31))
def test_shares_are_shares(alpha, seed):
    assert 0 <= draw_share(alpha, torch.Generator().manual_seed(seed)) <= 1


def test_without_mixing_an_image_keeps_itself():
    assert draw_share(0.0, torch.Generator()) == 1
